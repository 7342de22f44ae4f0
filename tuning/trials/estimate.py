"""What a search will take, from a few real steps of each kind of trial that its space can give: `search --dry-run`.

Each kind (network, image size, batch size) trains a few batches with as many side by side as the search would run; then
searches are simulated, each trial of its own length, through the search's own scheduler. They begin with the space's
first points, as a search does, and come to prefer what did best, as its sampler does. On a GPU it is measured, too, how
many trials side by side on it pay. Nothing is written but the estimate.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuning.base import files, machine, own_model
from tuning.base.config import TrainConfig, network
from tuning.base.errors import UserError, counted
from tuning.base.own_model import OwnModel
from tuning.base.registries import SCHEDULERS
from tuning.images.datasets import Labelled
from tuning.images.splitting import Splits
from tuning.runs import run_folder
from tuning.trials import local_ray, ray_internals
from tuning.trials.kinds import Cost, kinds, step_kind
from tuning.trials.simulated_searches import START_SECONDS, simulate
from tuning.trials.slots import SlotRequest, plan_slots, this_machine

if TYPE_CHECKING:
    from tuning.sampling.spaces import Space

VALID_IMAGES = 500
FILE = ".estimates.json"
SIDE_BY_SIDE = (2, 4, 8)
# A GPU is done with few batches before the workers beside have begun with theirs: there are more, and for a while.
BATCHES, SECONDS = {"cpu": 5, "cuda": 50}, {"cpu": 0.0, "cuda": 2.0}
CONTEXT_BYTES = 600 << 20  # What CUDA itself keeps of a GPU's memory for each process, roughly; torch does not know.


def dry_run(settings: Any, splits: Splits, space: "Space", *, n_done: int = 0, choose_slots: bool = False) -> str:
    """Returns what a search of these settings will take, from a few real steps.

    Args:
        settings: Of the search.
        splits: Its images.
        space: Its space, less what this machine cannot do.
        n_done: Trials that have ended already, of a run that is resumed.
        choose_slots: Measure how many trials side by side on a GPU pay, and keep that for later searches.

    Raises:
        UserError: The machine has too little memory for any of them.
    """
    found_kinds, first = kinds(space, settings.epochs)
    rates: dict[int, float] = {}
    n_gpus = max(1, len(machine.gpu_memory()))
    most = max(settings.concurrency, n_gpus * max(SIDE_BY_SIDE)) if choose_slots else settings.concurrency
    place = this_machine(settings.device)  # Before there is a Ray of our own, which has what the steps need.
    with local_ray.started(replace(settings.slots, concurrency=most), logging.NullHandler()):
        if choose_slots:
            rates = measure_slots(settings, found_kinds, splits)
            pays = slots_that_pay(rates)
            slots = plan_slots(SlotRequest(settings.device, settings.cpus_per_trial), place, trials_a_gpu=pays)
            settings = replace(settings, **vars(slots))
        costs = measure(settings, found_kinds, splits)
    if not costs:
        raise UserError(
            f"No kind of trial of the space {settings.space} fits {settings.concurrency} side by side on this machine. "
            "Take fewer with --concurrency, or smaller networks, images or batches."
        )
    fitting = {step_kind(cost.config) for cost in costs}
    too_large = {kind: config for config, _ in found_kinds if (kind := step_kind(config)) not in fitting}
    found = summarise(settings, costs, first, n_done)
    if not n_done:
        keep(asdict(settings), found)
    if rates:
        keep_slots(space.source, settings.dataset, rates)
    left_out = []
    if settings.start_from is not None:
        left_out.append("what the runs of --start-from make the sampler propose")
    if n_done and SCHEDULERS[settings.scheduler].pauses_trials:
        left_out.append("that trials that have paused may go on")
    if settings.until_converged:
        left_out.append("that it ends before its samples when nothing is left to gain")
    said = text(settings, costs, found, rates, too_large.values())
    return said + f"\nNot simulated   {', and '.join(left_out)}" * bool(left_out)


def _named(config: TrainConfig) -> str:
    return f"{network(config.architecture, config.width)} in batches of {config.batch_size}"


def time_steps(
    config: TrainConfig, splits: Splits, device: str, threads: int, own_models: Sequence[OwnModel] = ()
) -> tuple[float, int, int]:
    """Returns seconds an epoch, peak bytes of memory and bytes of a checkpoint, from a few batches of real images."""
    import io
    import resource

    import torch

    from tuning.training.fit import Training, prepare

    prepare(threads)
    own_model.know(own_models)
    few = Splits(
        **vars(splits)
        | {
            "train": _first(splits.train, BATCHES[device] * config.batch_size),
            "valid": _first(splits.valid, VALID_IMAGES),
        }
    )
    training = Training(config.model_copy(update={"epochs": 1000, "patience": None}), few, seed=0, device=device)
    training.run_epoch()  # It warms up.
    timed, end = [training.run_epoch()], time.perf_counter() + SECONDS[device]
    while time.perf_counter() < end:
        timed.append(training.run_epoch())
    train_seconds = float(np.mean([len(few.train) / result.images_per_second for result in timed]))
    valid_seconds = max(0.0, float(np.mean([result.epoch_seconds for result in timed])) - train_seconds)
    seconds = train_seconds * len(splits.train) / len(few.train) + valid_seconds * len(splits.valid) / len(few.valid)
    buffer = io.BytesIO()
    torch.save(training.state_dict(), buffer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        peak = torch.cuda.max_memory_reserved() + CONTEXT_BYTES
        torch.cuda.empty_cache()  # The worker may wait, holding it, while others are measured.
    return seconds, peak, buffer.tell()


def measure(settings: Any, kinds: Sequence[tuple[TrainConfig, float]], splits: Splits) -> list[Cost]:
    """Returns the cost of each kind, timed in Ray workers with as many side by side as the search runs.

    Kinds that have too little memory so are left out. Ray must have been started.

    Raises:
        UserError: A worker was killed.
    """
    import ray

    shared = ray.put(splits if settings.address is None else splits.in_memory())
    each = {"num_cpus": settings.cpus_per_trial, "num_gpus": settings.gpus_per_trial}
    remote: Any = ray.remote(**each, max_retries=0)(time_steps)
    threads = max(1, int(settings.cpus_per_trial))
    measured: dict[tuple[Any, ...], tuple[float, int, int] | None] = {}
    for config, _ in kinds:
        if step_kind(config) not in measured:
            given = (config, shared, settings.device, threads, own_model.known())
            beside = [remote.remote(*given) for _ in range(settings.concurrency)]
            try:
                seconds, peaks, sizes = zip(*local_ray.get(beside), strict=True)
            except ray.exceptions.WorkerCrashedError as error:
                raise UserError(
                    f"A worker that timed a trial of {_named(config)} was killed, as the system does where memory runs "
                    "out. Run fewer trials side by side with --concurrency, or close other programs."
                ) from error
            except ray.exceptions.RayError as error:
                if not ray_internals.OUT_OF_MEMORY.search(f"{type(error).__name__} {error}"):
                    error.add_note(f"This was a trial of {_named(config)}.")
                    raise
                measured[step_kind(config)] = None
                ray.wait(beside, num_returns=len(beside))  # The next kind is to be measured by itself.
                continue
            measured[step_kind(config)] = (sum(seconds) / len(seconds), max(peaks), max(sizes))
    costs = ((config, share, measured[step_kind(config)]) for config, share in kinds)
    return [Cost(config, share, *cost) for config, share, cost in costs if cost is not None]


def measure_slots(settings: Any, kinds: Sequence[tuple[TrainConfig, float]], splits: Splits) -> dict[int, float]:
    """Returns the epochs a second that 1, 2, 4 and 8 trials on one GPU do together, less what cannot be.

    The quickest kind, the slowest and the one between stand for all. Ray must have been started.
    """
    gpus = machine.gpu_memory()
    alone = measure(replace(settings, concurrency=1, gpus_per_trial=1.0), kinds, splits)
    alone = list({step_kind(cost.config): cost for cost in alone}.values())
    alone.sort(key=lambda cost: cost.epoch_seconds)
    if not alone:
        return {1: 1.0}  # Nothing fits alone, so no number of them pays; the caller says so.
    some = [alone[0], alone[len(alone) // 2], alone[-1]]
    rates = {1: len(some) / sum(cost.epoch_seconds for cost in some)}
    peak = max(cost.peak_bytes for cost in alone)
    for n in slots_that_fit(peak, min(gpus), machine.cores() / len(gpus) / settings.cpus_per_trial):
        several = replace(settings, concurrency=n, gpus_per_trial=1 / n)
        measure(several, [(some[0].config, 1.0)], splits)  # Its workers start, which is not to be timed.
        costs = measure(several, [(cost.config, cost.share) for cost in some], splits)
        if len(costs) < len(some):  # What each has for itself is less than what it had alone.
            break
        rates[n] = n * len(some) / sum(cost.epoch_seconds for cost in costs)
    return rates


def slots_that_fit(peak_bytes: int, gpu_bytes: int, most: float) -> list[int]:
    """Returns which numbers of trials side by side one GPU has memory for, though all be of the largest kind.

    Args:
        peak_bytes: Of a trial of the largest kind.
        gpu_bytes: Of the GPU.
        most: As many as it has cores.
    """
    return [n for n in SIDE_BY_SIDE if n * peak_bytes <= machine.GPU_ROOM * gpu_bytes and n <= most]


def slots_that_pay(rates: Mapping[int, float]) -> int:
    """Returns the least number of trials side by side that do 95 % of the most epochs a second.

    More would gain next to nothing, and the sampler and the scheduler would know less at each of their decisions.

    Args:
        rates: Trials on one GPU -> epochs a second of all of them together.
    """
    return min(n for n, rate in rates.items() if rate >= 0.95 * max(rates.values()))


def summarise(
    settings: Any, costs: Sequence[Cost], first: Sequence[TrainConfig] = (), n_done: int = 0
) -> dict[str, float]:
    """Returns the estimate: for how many samples, seconds of the search (median, 10 % and 90 % quantile), bytes, ..."""
    most = math.inf if settings.time_budget is None else settings.time_budget + START_SECONDS
    low, middle, high = np.quantile(simulate(settings, costs, first, n_done).clip(max=most), [0.1, 0.5, 0.9])
    largest, samples = max(cost.checkpoint_bytes for cost in costs), max(0, settings.samples - n_done)
    return {
        "samples": float(samples),
        "seconds": float(middle),
        "seconds_low": float(low),
        "seconds_high": float(high),
        "longest_trial_seconds": max(cost.epoch_seconds * cost.config.epochs for cost in costs),
        "peak_bytes": float(max(cost.peak_bytes for cost in costs)),
        # While it runs: best and latest of each slot, one of them being written, and those of the trials that ended.
        "disk_bytes": float(largest * (3 * settings.concurrency + 2 * samples)),
    }


def text(
    settings: Any,
    costs: Sequence[Cost],
    found: dict[str, float],
    rates: Mapping[int, float] = {},
    too_large: Iterable[TrainConfig] = (),
) -> str:
    """Returns what the dry run prints; with `rates` also what `measure_slots` found, and which kinds do not fit."""
    networks: dict[str, list[Cost]] = {}
    for cost in costs:
        networks.setdefault(network(cost.config.architecture, cost.config.width), []).append(cost)
    lines = ["One epoch, with as many trials side by side as the search runs:"]
    for name, group in networks.items():
        seconds = [cost.epoch_seconds for cost in group]
        share = sum(cost.share for cost in group)
        lines.append(f"  {name:<14} {min(seconds):6.1f} to {max(seconds):6.1f} s   {share:4.0%} of the space")
    lines += [
        f"  {_named(config)} does not fit {settings.concurrency} side by side: the search trains it alone, or cuts its "
        "batches. That is not in what follows."
        for config in too_large
    ]
    if rates:
        together = ", ".join(f"{60 * rate:.1f} with {n}" for n, rate in rates.items())
        lines.append(
            f"Epochs a minute of all trials on one GPU: {together}. "
            f"A search of this space here runs {slots_that_pay(rates)} a GPU from now on."
        )
    minutes = {name: value / 60 for name, value in found.items() if "seconds" in name}
    return "\n".join(
        [
            *lines,
            f"The search      about {minutes['seconds']:.1f} minutes (80 % of simulated ones: "
            f"{minutes['seconds_low']:.1f} to {minutes['seconds_high']:.1f})",
            f"One full trial  {minutes['longest_trial_seconds']:.1f} minutes at most",
            f"Side by side    {settings.concurrency} on {settings.device}, "
            f"{found['peak_bytes'] / 1e9:.1f} GB of memory each at most",
            f"Disk            {found['disk_bytes'] / 1e6:.0f} MB at most while it runs",
            *(
                [f"The audit       up to {counted(settings.audit, 'trial')} to the end, beside that"]
                if settings.audit
                else []
            ),
        ]
    )


def keep(settings: dict[str, Any], found: dict[str, float], root: Path = run_folder.RESULTS) -> None:
    """Writes an estimate down, so that the run of the same settings can say how far off it was."""
    _keep(json.dumps(settings, sort_keys=True), found, root)


def recall(settings: dict[str, Any], root: Path = run_folder.RESULTS) -> dict[str, float] | None:
    """Returns the last estimate for these settings, or None."""
    found: dict[str, float] | None = _kept(root).get(json.dumps(settings, sort_keys=True))
    return found


def keep_slots(source: str, dataset: str, rates: Mapping[int, float], root: Path = run_folder.RESULTS) -> None:
    """Writes down how many trials a GPU pay: for searches of the same data set and space (its source) on these GPUs."""
    _keep(_slots_key(source, dataset), {"trials_a_gpu": slots_that_pay(rates), "epochs_per_second": dict(rates)}, root)


def recall_slots(source: str, dataset: str, root: Path = run_folder.RESULTS) -> int | None:
    """Returns how many trials a GPU the last dry run of the same found to pay, or None."""
    found: dict[str, int] = _kept(root).get(_slots_key(source, dataset), {}) if machine.gpu_memory() else {}
    return found.get("trials_a_gpu")


def _slots_key(source: str, dataset: str) -> str:
    return f"{dataset}, space {hashlib.sha256(source.encode()).hexdigest()[:12]}, GPUs of {machine.gpu_memory()} bytes"


def _keep(key: str, found: Mapping[str, Any], root: Path) -> None:
    """Writes one of them down; where that cannot be, it says so, for what was measured is printed all the same."""
    try:
        root.mkdir(exist_ok=True)
        files.write_json(root / FILE, _kept(root) | {key: found})
    except (OSError, UserError) as error:
        print(f"The estimate is not kept: {error}", flush=True)


def _kept(root: Path) -> dict[str, Any]:
    try:
        return files.read_json(root / FILE)
    except (OSError, UserError):  # None was kept, or a damaged file: an estimate is no loss.
        return {}


def _first(part: Labelled, n: int) -> Labelled:
    return part.at(slice(n))

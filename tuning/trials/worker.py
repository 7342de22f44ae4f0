"""The Ray side of a trial: `train_trial` runs in a worker, `recorder.py` has Ray's hooks in the search's process.

`train_all` is the Ray side of `tuning.final`: several retrainings beside each other.

A trial's state is written to its own folder after each epoch and before the epoch is reported; whoever runs the trial
again (a retry, a resumed search) goes on from there. Ray's own checkpoints are not used: there is one way to go on.
"""

import contextlib
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from tuning.base import files, machine, own_model
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.masking import masked
from tuning.base.registries import METRICS
from tuning.images.splitting import Splits
from tuning.runs.run_folder import trial_folder
from tuning.training import checkpoints, jobs
from tuning.trials import local_ray, ray_internals
from tuning.trials.schedulers import METRIC
from tuning.trials.slots import Slots

if TYPE_CHECKING:
    from tuning.training.fit import Training

LOG = "trial.log"
TRIES = 3  # Of a retraining whose worker dies.
SECONDS_TO_ARRIVE = 3.0  # What a node that a trial has left may still be sending of it.
SECONDS_FOR_A_CHECKPOINT = 600.0  # A storage that is away for longer costs a trial that moved its epochs.


def train_trial(
    config: Mapping[str, Any],
    *,
    splits: Splits,
    run: str,
    threads: int,
    metric: str = METRICS.default,
    stored: tuple[str, str] | None = None,
    own_models: Sequence[own_model.OwnModel] = (),
) -> None:
    """Trains one configuration in a Ray worker and reports each epoch; the trial's log gets what is printed meanwhile.

    Args:
        config: `trial` (its number), `seed`, `config` (the hyperparameters), `accumulation`, the parts of a batch,
            `epochs`, how many the study knows of it, `alone`, whether it has all of its device, and `device`, that of
            its slot: a "cuda" that torch does not find where the trial runs gives way to "cpu".
        splits: From the object store; its arrays are read-only and shared by all trials on a node.
        run: The run folder; the trial's is `trials/<number>` below it.
        threads: For torch, on a CPU.
        metric: A name in `METRICS`, the run's.
        stored: The run's URI in a storage, and its id. The run folder may then be on another machine: the trial's is a
            scratch folder of this node, and sent from there.
        own_models: Users' own networks that the search's process has read.
    """
    import torch

    from tuning.training.fit import Training, prepare

    if stored is not None:
        from tuning.remote import mirror

    root = Path(run) if stored is None else mirror.scratch(stored[1])
    folder = trial_folder(root, config["trial"])
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if stored is not None:
            _fetch(stored[0], folder, config["epochs"])
            part = folder.relative_to(root).as_posix()
            stack.enter_context(mirror.Mirror(root, stored[0], print, part=part, every=1.0))
        log = stack.enter_context((folder / LOG).open("a", buffering=1, encoding="utf-8"))
        stack.enter_context(redirect_stdout(log))
        stack.enter_context(redirect_stderr(log))
        try:
            prepare(threads)
            own_model.know(own_models)
            device = "cuda" if config["device"] == "cuda" and torch.cuda.is_available() else "cpu"
            if share := gpu_share(device):
                machine.limit_gpu_memory(share)
            training = Training(
                TrainConfig.model_validate(config["config"]),
                splits,
                seed=config["seed"],
                device=device,
                accumulation=config["accumulation"],
                metric=metric,
            )
            print(f"trial {config['trial']}, seed {config['seed']}, {device}, {training.precision}: {config['config']}")
            _train(training, folder)
        except Exception:
            print(masked(traceback.format_exc()), end="", file=sys.stderr)
            raise


def gpu_share(device: str) -> float:
    """Returns the share of its GPU that Ray gave to this worker, in [0, 1]; it sees that GPU alone. 0 on a CPU."""
    import ray

    return ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0) if device == "cuda" else 0.0


def _fetch(uri: str, folder: Path, epochs: int) -> None:
    """Fetches checkpoint and log of a trial that has run elsewhere: more epochs of it are known than are here.

    The other node may still be sending what it had when the trial paused. Where nothing comes, or the storage is away
    for long, the trial goes on from what is here, if only from its beginning.
    """
    from tuning.remote import storage

    latest, log = folder / checkpoints.LATEST, folder / LOG
    if epochs == 0 or checkpoints.n_epochs(latest) >= epochs:
        return
    store, fetched = storage.Store(uri, SECONDS_FOR_A_CHECKPOINT), folder / ".fetched"

    def take(path: Path, length: Callable[[Path], int]) -> int:
        """Takes the storage's file where it is longer; returns how long the file here is then."""
        files.write_bytes(fetched, store.read(f"trials/{folder.name}/{path.name}") or b"")
        if length(fetched) > length(path):
            fetched.replace(path)
        return length(path)

    try:
        deadline = time.monotonic() + SECONDS_TO_ARRIVE
        while not take(latest, checkpoints.n_epochs) >= epochs and time.monotonic() < deadline:
            time.sleep(1.0)
        take(log, lambda path: path.stat().st_size if path.exists() else 0)
    except UserError as error:
        with log.open("a", encoding="utf-8") as file:
            print(error, file=file)
    fetched.unlink(missing_ok=True)


def _train(training: "Training", folder: Path) -> None:
    """Goes on from the folder's checkpoint, if there is one, to the end."""
    from tuning.training.fit import NonFiniteLossError, fit

    device, precision = training.device.type, training.precision
    facts = {"n_parameters": training.n_parameters, "device": device, "precision": precision, "error": ""}
    metric, known = training.metric, checkpoints.load(folder, training)
    best = f"best_{metric.column}"
    for result in known:  # The study knows these already, unless it was cut off; a new scheduler has to learn them.
        tune.report({**result, METRIC: metric.merit(result[best]), **facts})
    try:
        for epoch in fit(training):
            result = {**vars(epoch), best: training.best["valid_score"]}
            known.append(result)
            checkpoints.save(folder, training, known)
            print(epoch)
            tune.report({**result, METRIC: metric.merit(result[best]), **facts})
    except (
        NonFiniteLossError
    ) as error:  # Training it again would end in the same place, so this is a result, not a failure.
        print(error)
        tune.report({"epoch": training.epoch, METRIC: 0.0, **facts, "error": str(error)})


def train_all(
    next_job: Callable[[], jobs.Job | None], splits: Splits | Mapping[int, Splits], slots: Slots
) -> Iterator[tuple[jobs.Job, dict[str, Any]]]:
    """Runs `jobs.train` on jobs side by side, as many as there are slots; yields each job's rows as they come.

    One that runs out of memory is run again when the others have ended, alone on its device, where it cuts its batches
    into parts if it must. So are later ones of its configuration. One whose worker dies for another reason is run again
    from its last epoch, at most `TRIES` times in all, as a trial of a search is.

    Args:
        next_job: Returns what to run next, whose folder must be absolute, or None where there is nothing now. It is
            asked at the beginning and each time that a job has ended, until it returns None while nothing runs.
        splits: Shared by all through the object store; or those of each seed.
        slots: Where they run, and what each has.

    Raises:
        UserError: The disk is full; or what `next_job` raises.
    """
    import ray

    if (first := next_job()) is None:
        return
    on_gpu = slots.device == "cuda"
    every_one_alone = slots.concurrency == 1 or (on_gpu and slots.gpus_per_trial >= 1)
    with local_ray.started(slots, logging.NullHandler()):
        stored: dict[str, Any] = {}

        def start(job: jobs.Job, cpus: float, gpus: float, *, alone: bool) -> Any:
            part = splits if isinstance(splits, Splits) else splits[job.seed]
            if part.split_hash not in stored:
                stored[part.split_hash] = ray.put(part)
            remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, num_returns="streaming")(jobs.train)
            own_models, shared = own_model.known(), stored[part.split_hash]
            return remote.remote(job, shared, slots.device, max(1, int(cpus)), alone=alone, own_models=own_models)

        share = (slots.cpus_per_trial, slots.gpus_per_trial)
        whole = (float(slots.cpus), max(float(on_gpu), share[1]))
        running: dict[Any, jobs.Job] = {start(first, *share, alone=every_one_alone): first}
        waiting: list[jobs.Job] = []  # For the whole device.
        large: set[str] = set()  # Configurations that have run out of memory beside others.
        deaths: Counter[Path] = Counter()
        alone = every_one_alone
        while True:
            if not running:
                alone = every_one_alone
            while alone == every_one_alone and len(running) < slots.concurrency and (more := next_job()) is not None:
                if more.config.hash() in large:
                    waiting.append(more)
                else:
                    running[start(more, *share, alone=alone)] = more
            if not running and waiting:
                alone, job = True, waiting.pop(0)
                running = {start(job, *whole, alone=True): job}
            if not running:
                return
            ready: list[Any] = ray.wait(list(running), num_returns=1, fetch_local=False)[0]
            [rows] = ready
            try:
                row = local_ray.get(next(rows))
            except StopIteration:
                del running[rows]
                continue
            except UserError:
                raise
            except ray.exceptions.RayError as error:  # The worker died; `jobs.train` tells of what it can catch.
                reason = str(error).strip()
                no_memory = ray_internals.OUT_OF_MEMORY.search(f"{type(error).__name__} {reason}") is not None
                row = {"error": reason.splitlines()[0], "out_of_memory": no_memory, "killed": True}
            again = _again(running[rows], row, alone) if row.get("out_of_memory") else None
            if again is not None:
                waiting.append(again)
                if not alone:
                    large.add(again.config.hash())
                row = {"note": f"{row['error']} It is run again, alone, when the others have ended."}
            elif row.get("killed") and deaths[running[rows].path] < TRIES - 1:
                job = running.pop(rows)
                deaths[job.path] += 1
                running[start(job, *(whole if alone and not every_one_alone else share), alone=alone)] = job
                yield job, {"note": f"{row['error']} It is run again from its last epoch."}
                continue
            yield (running.pop(rows) if row.get("killed") else running[rows]), row


def _again(job: jobs.Job, row: Mapping[str, Any], alone: bool) -> jobs.Job | None:
    """Returns the job to run alone after one ran out of memory: in smaller parts if it was alone; None if it cannot."""
    if not alone:
        return job
    # What `jobs.train` catches it mends itself; a worker that the system has killed could not.
    if row.get("killed") and 2 * job.accumulation <= job.config.batch_size // jobs.SMALLEST_PART:
        return replace(job, accumulation=2 * job.accumulation)
    return None


def sweep_nodes(run_id: str, uri: str) -> list[str]:
    """Has each node send what its trials have not, and clear it away; returns what is left, and where."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from tuning.remote import mirror

    remote, here = ray.remote(num_cpus=0, max_retries=0)(mirror.sweep), ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    swept = {
        node["NodeManagerHostname"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(run_id, uri)
        for node in others
    }
    left = {"this machine": mirror.sweep(run_id, uri)}
    for name, answer in swept.items():
        try:
            left[name] = local_ray.get(answer)
        except UserError as error:
            left[name] = str(error)
        except ray.exceptions.RayError as error:  # The node is gone, and what was only there with it.
            left[name] = f"what was only there: {next(iter(str(error).splitlines()), 'it is gone')}"
    return [f"{what} of {name}" for name, what in left.items() if what]

"""What a search is asked to do: its settings, their defaults, and what of them is refused before anything is imported.

`tuning.search` asks here before it imports torch or Ray.
"""

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tuning.base import interrupts
from tuning.base.errors import UserError, counted, unknown_name
from tuning.base.registries import METRICS, OBJECTIVES, SAMPLERS, SCHEDULERS
from tuning.images.options import READING
from tuning.images.source import Source
from tuning.runs import run_folder
from tuning.trials import slots
from tuning.trials.slots import SlotRequest, Slots

DEFAULT_EPOCHS = {"cpu": 6, "cuda": 18}
N_STARTUP = 8
COSTS = ("epochs", "seconds")  # What a training is taken to cost; the first is the default.
BEGUN_SLOTS = "begun_slots"  # What `meta.json` calls the slots of a resumed run as it was begun.
# Options that a resumed search takes anew; all else is as the run was begun.
OF_ANY_SESSION = {
    "samples",
    "until_converged",
    "time_budget",
    "data_dir",
    "audit",
    "resume",
    "address",
    "dashboard",
    "progress",
}


@dataclass(frozen=True)
class Settings:
    """What a search was asked to do, with all defaults resolved; `meta.json` keeps it for `--resume`."""

    samples: int
    space: str
    dataset: str
    epochs: int
    seed: int
    sampler: str
    scheduler: str
    device: str
    concurrency: int
    cpus_per_trial: float
    gpus_per_trial: float
    train_images: int | None
    data_dir: str | None
    max_failures: int
    time_budget: float | None
    minimize: str | None = None
    mlflow: str | None = None
    audit: int = 0
    storage: str | None = None
    address: str | None = None
    limit: int | None = None
    dashboard: bool = False
    model: str | None = None
    reading: dict[str, Any] | None = None
    metric: str = METRICS.default
    start_from: list[str] | None = None
    until_converged: bool = False
    cost: str = "epochs"

    @property
    def source(self) -> Source:
        """Which images are read, and how."""
        return _source(self.dataset, None if self.data_dir is None else Path(self.data_dir), self.reading)

    @property
    def slots(self) -> Slots:
        """Where the trials run, and what each has."""
        return Slots(**{field.name: getattr(self, field.name) for field in fields(Slots)})


def of_run(run: run_folder.Run) -> Settings:
    """Returns the settings that a run had last; what only a later version knows is passed over.

    Raises:
        UserError: `meta.json` lacks one, or it is of another type.
    """
    return _read(run, run.meta.get("settings"))


def begun_slots(run: run_folder.Run) -> Slots:
    """Returns the slots that a run was begun with, whatever a machine that resumed it had; raises as `of_run`."""
    return _read(run, run.settings | (run.meta.get(BEGUN_SLOTS) or {})).slots


def _read(run: run_folder.Run, recorded: Any) -> Settings:
    meta = run.meta
    try:
        return TypeAdapter(Settings).validate_python(recorded)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(["settings", *(str(part) for part in problem["loc"])])
        raise UserError(
            f"{run.path / 'meta.json'} is damaged, or of another version (schema {meta.get('schema', 'none')}): "
            f"{name}: {problem['msg'].lower()}. Put back a copy of it; the frames can be read without it."
        ) from error


def source_of_run(run: run_folder.Run, data_dir: Path | None) -> Source:
    """Returns which images a run was begun with, and how it read them.

    Args:
        run: Of a search.
        data_dir: Where they are now; None is where the run last had them, if they are there.
    """
    recorded = run.settings.get("data_dir")
    if data_dir is None and recorded is not None and Path(recorded).exists():
        data_dir = Path(recorded)
    return _source(run.setting("dataset"), data_dir, run.settings.get("reading"))


def _source(dataset: str, data_dir: Path | None, reading: Mapping[str, Any] | None) -> Source:
    """Returns what a record says of images: a name, or one's own, which may have moved since."""
    if reading is None:
        return Source(dataset, data_dir)
    path = Path(dataset) if data_dir is None else data_dir
    if not os.path.exists(path):
        raise UserError(f"The images of the run are not in {path}. Name the folder or file with --data-dir.")
    known = {name: value for name, value in reading.items() if name in READING}
    known |= {"labels_leave_out": tuple(known.get("labels_leave_out") or ()), "known_as": reading.get("name")}
    return Source(str(path), **known)


def as_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the command that ask for recorded settings; anything else in the mapping stays as it is.

    The record has the time budget in seconds, and on a cluster the concurrency that was asked for as the limit.
    """
    found = {name: value for name, value in settings.items() if name not in ("limit", "reading")}
    found |= {name: value for name, value in (settings.get("reading") or {}).items() if name in READING}
    if settings.get("reading") and found.get("data_dir") is not None:  # One's own images, which have moved.
        found["dataset"] = found.pop("data_dir")
    if found.get("address") is not None and "limit" in settings:
        found["concurrency"] = settings["limit"]
    for name in {"start_from", "start-from"} & found.keys():
        if isinstance(found[name], list) and all(isinstance(run, str) for run in found[name]):
            found[name] = ",".join(found[name])
    for name in {"time_budget", "time-budget"} & found.keys():
        if isinstance(found[name], int | float) and not isinstance(found[name], bool):
            found[name] = f"{found[name]:f}s" if isinstance(found[name], float) else f"{found[name]}s"
        elif re.fullmatch(r"\d+(\.\d+)?", str(found[name])):  # A record that is written as YAML.
            found[name] = f"{found[name]}s"
    return found


def check_names(
    space: str, sampler: str | None, scheduler: str | None, minimize: str | None, metric: str = METRICS.default
) -> tuple[str, str]:
    """Returns sampler and scheduler; raises UserError for an unknown name. Imports neither torch nor Ray."""
    if sampler is not None:
        SAMPLERS.find(sampler, "--sampler")
    if scheduler is not None:
        SCHEDULERS.find(scheduler, "--scheduler")
    if minimize is not None:
        OBJECTIVES.find(minimize, "--minimize")
    METRICS.find(metric, "--metric")
    samplers, schedulers = fitting(minimize is not None)
    if sampler not in (None, *samplers):
        raise UserError(
            f"--sampler must be one for two objectives beside --minimize, but got {sampler!r}. Choose {samplers[0]}."
        )
    if scheduler not in (None, *schedulers):
        raise UserError(
            f"--scheduler must be {' or '.join(schedulers)} beside --minimize, which compares full trials, "
            f"but got {scheduler!r}."
        )
    if scheduler is not None and SCHEDULERS[scheduler].pauses_trials and sampler is not None:
        those = [name for name, known in SAMPLERS.items() if known.reads_paused]
        if sampler not in those:
            raise UserError(
                f"--scheduler {scheduler} must have a sampler that reads paused trials, {' or '.join(those)}, but got "
                f"{sampler!r}. Choose one of them, or --scheduler {schedulers[0]}."
            )
    with interrupts.importing():  # Of optuna and numpy, the first time.
        from tuning.sampling.spaces import load_space

    load_space(space)
    return sampler or samplers[0], scheduler or schedulers[0]


def check_sampler_can(sampler: str, *, until_converged: bool, cost: str, two_objectives: bool = False) -> None:
    """Raises UserError for options that need more of a sampler than it has, and for a cost that there is not."""
    if cost not in COSTS:
        raise unknown_name("--cost", cost, COSTS)
    for asked, fact, option, can in (
        (until_converged, "says_gains", "--until-converged", "says what it expects"),
        (cost == "seconds", "weighs_costs", "--cost seconds", "weighs costs"),
    ):
        if asked and two_objectives:
            raise UserError(f"{option} must be of a search with one objective, but got --minimize, too. Leave one out.")
        if asked and not getattr(SAMPLERS.find(sampler), fact):
            those = " or ".join(name for name, known in SAMPLERS.items() if getattr(known, fact))
            raise UserError(
                f"{option} must have a sampler that {can}, {those}, but got {sampler!r}. Choose that one, or leave the "
                "option out."
            )


def check_audit(audit: int | None, scheduler: str) -> None:
    """Raises UserError where stopped trials are to be trained to their end, and the scheduler stops none."""
    if audit and not SCHEDULERS.find(scheduler).stops_trials:
        those = " or ".join(name for name, known in SCHEDULERS.items() if known.stops_trials)
        raise UserError(
            f"--audit must be of a search whose scheduler stops trials, {those}, but got {scheduler!r}. Leave it out."
        )


def fitting(two_objectives: bool) -> tuple[list[str], list[str]]:
    """Returns the samplers and the schedulers that a search with one or two objectives can have, the default first."""
    samplers = [name for name, known in SAMPLERS.items() if known.two_objectives or not two_objectives]
    return samplers, [name for name, known in SCHEDULERS.items() if not (known.stops_trials and two_objectives)]


def check_resumed(given: Collection[str], run: run_folder.Run, samples: int | None) -> None:
    """Raises UserError for an option that a resumed run cannot take, or for fewer samples than it has."""
    fixed = [f"--{name.replace('_', '-')}" for name in given if name not in OF_ANY_SESSION]
    if fixed:
        raise UserError(
            f"--resume must keep the settings of run {run.name}, but got {', '.join(fixed)}. Leave that out, "
            "or begin another run."
        )
    n_trials = int((run.trials["attempt"].fillna(1) != 0).sum())  # Without duplicates, which are not run.
    if samples is not None and samples < n_trials:
        raise UserError(
            f"--samples must be at least the {counted(n_trials, 'trial')} of {run.name}, but got {samples}."
        )


def parse_duration(text: str) -> float:
    """Returns seconds from "90s", "30m", "1.5h" or "1h30m"; raises UserError for anything else, and for nothing."""
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not 0 < seconds < math.inf:
        raise UserError(f"--time-budget must be a duration such as 90s, 30m or 1h30m, but got {text!r}.")
    return seconds


def plan_slots(address: str | None, storage: str | None, asked: SlotRequest, trials_a_gpu: int | None) -> Slots:
    """Returns the slots of a search on this machine or, with an address, on a cluster, which needs a storage.

    Raises:
        UserError: There is no storage, or see `slots.plan_slots`.
    """
    if address is not None and storage is None:
        raise UserError(
            f"--storage must be given with --address, because checkpoints must outlive a node, but got --address "
            f"{address} alone. Add --storage s3://BUCKET/FOLDER, or a folder that all nodes share."
        )
    return slots.plan_slots(asked, None if address is None else slots.of_cluster(address), trials_a_gpu)


def placed(settings: Settings, address: str, begun: Slots, hardware: Mapping[str, Any] | None) -> tuple[Settings, str]:
    """Returns the settings of a run that is resumed on a cluster, or on this machine ("local"), and what has changed.

    Args:
        settings: Those that the run had last.
        address: Of the cluster, or "local".
        begun: The slots that the run was begun with.
        hardware: Of the machine where the run was begun, from its `meta.json`.
    """
    if address == "local":
        planned, changed = slots.replan(begun, hardware, settings.slots)
    else:
        asked = SlotRequest(begun.device, begun.cpus_per_trial, begun.gpus_per_trial, begun.limit)
        planned, changed = plan_slots(address, settings.storage, asked, None), ""
    return replace(settings, **vars(planned)), changed

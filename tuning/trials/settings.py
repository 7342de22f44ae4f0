"""What a search is asked to do: its settings, their defaults, and what of them is refused before anything is imported.

`tuning.search` asks here before it imports torch or Ray; `tuning.trials.schedulers` has the builders of the names.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tuning.base import machine
from tuning.base.errors import UserError, counted, unknown_name
from tuning.base.registries import SAMPLERS, SCHEDULERS
from tuning.runs import run_folder, schema

DEFAULT_EPOCHS = {"cpu": 6, "cuda": 18}
N_STARTUP = 8
# What a search that is gone on with may be told anew; all else is as it was begun.
OF_ANY_SESSION = {"samples", "time_budget", "data_dir", "audit", "resume", "address", "dashboard", "progress"}
Asked = tuple[str | None, float | None, float | None, int | None]  # Device, CPUs and GPUs a trial, concurrency.


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


def of_run(run: run_folder.Run) -> Settings:
    """Returns the settings that a run was begun with; what only a later version knows is passed over.

    Raises:
        UserError: `meta.json` lacks one, or it is of another type.
    """
    meta = run.meta
    try:
        return TypeAdapter(Settings).validate_python(meta.get("settings"))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(["settings", *(str(part) for part in problem["loc"])])
        raise UserError(
            f"{run.path / 'meta.json'} is damaged, or of another version (schema {meta.get('schema', 'none')}): "
            f"{name}: {problem['msg'].lower()}. Put back a copy of it; the frames can be read without it."
        ) from error


def as_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the command that ask for recorded settings; anything else in the mapping stays as it is.

    The record has the time budget in seconds, and on a cluster the concurrency that was asked for as the limit.
    """
    found = {name: value for name, value in settings.items() if name != "limit"}
    if found.get("address") is not None and "limit" in settings:
        found["concurrency"] = settings["limit"]
    for name in {"time_budget", "time-budget"} & found.keys():
        if isinstance(found[name], int | float):
            found[name] = f"{found[name]:f}s"
    return found


def check_names(
    space: str, dataset: str, sampler: str | None, scheduler: str | None, minimize: str | None
) -> tuple[str, str]:
    """Returns sampler and scheduler; raises UserError for an unknown name. Imports neither torch nor Ray."""
    if sampler is not None and sampler not in SAMPLERS:
        raise unknown_name("--sampler", sampler, SAMPLERS)
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise unknown_name("--scheduler", scheduler, SCHEDULERS)
    if minimize is not None and minimize not in schema.OBJECTIVES:
        raise unknown_name("--minimize", minimize, schema.OBJECTIVES)
    if minimize is not None and sampler == "curves":
        raise UserError("--sampler must be one for two objectives beside --minimize, but got 'curves'. Choose tpe.")
    if minimize is not None and scheduler not in (None, "none"):
        raise UserError(
            f"--scheduler must be none beside --minimize, which compares full trials, but got {scheduler!r}."
        )
    from tuning.images.datasets import find_dataset
    from tuning.sampling.spaces import load_space

    find_dataset(dataset)
    load_space(space)
    return (sampler or "curves", scheduler or "asha") if minimize is None else (sampler or "tpe", "none")


def check_resumed(given: Collection[str], run: run_folder.Run, samples: int | None) -> None:
    """Raises UserError for an option that a run cannot take when it is gone on with, or fewer samples than it has."""
    fixed = [f"--{name.replace('_', '-')}" for name in given if name not in OF_ANY_SESSION]
    if fixed:
        raise UserError(
            f"--resume must go on with the settings of run {run.name}, but got {', '.join(fixed)}. Leave that out, "
            "or begin another run."
        )
    n_trials = int((run.trials["attempt"].fillna(1) != 0).sum())  # Not those whose result is a twin's.
    if samples is not None and samples < n_trials:
        raise UserError(
            f"--samples must be at least the {counted(n_trials, 'trial')} of {run.name}, but got {samples}."
        )


def parse_duration(text: str) -> float:
    """Returns seconds from "90s", "30m", "1.5h" or "1h30m"; raises UserError for anything else, and for nothing."""
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise UserError(f"--time-budget must be a duration such as 90s, 30m or 1h30m, but got {text!r}.")
    return seconds


def plan_slots(address: str | None, storage: str | None, asked: Asked, trials_a_gpu: int | None) -> dict[str, Any]:
    """Returns what `machine.plan_slots` or, with an address, `cluster.plan_slots` does; a cluster needs a storage."""
    if address is None:
        return machine.plan_slots(*asked, trials_a_gpu)
    if storage is None:
        raise UserError(
            f"--storage must be given with --address, because checkpoints must outlive a node, but got --address "
            f"{address} alone. Add --storage s3://BUCKET/FOLDER, or a folder that all nodes share."
        )
    from tuning.remote import cluster

    return cluster.plan_slots(address, *asked)


def placed(settings: Settings, address: str, hardware: Mapping[str, Any] | None) -> tuple[Settings, str]:
    """Returns the settings of a run that is resumed on a cluster, or on this machine ("local"), and what has changed.

    Args:
        settings: Those that the run was begun with.
        address: Of the cluster, or "local".
        hardware: Of the machine where the run was begun, from its `meta.json`.
    """
    if address != "local":
        asked = (settings.device, settings.cpus_per_trial, settings.gpus_per_trial, settings.limit)
        return replace(settings, **plan_slots(address, settings.storage, asked, None)), ""
    slots, changed = machine.replan(settings, hardware)
    return replace(settings, address=None, limit=None, **slots), changed

"""Recorded learning curves, others' and our own, as tasks for a search: each format is read by a file of its own.

A reader is a module with `names(folder) -> list[str]` and `load(folder, name) -> Task`; `TABLES` says which one reads
which folder. A reader has a function `check`, too, which refuses in a sentence what is no table of its format.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError

# Folder of the format -> its reader in this package.
TABLES = {"taskset": "taskset", "lcbench-surrogate": "lcbench", "image-classifiers": "image_classifiers"}
WORST = 1.5  # regret, in distances from the best to the median: how far below that a value is, does not matter
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """How one configuration trains.

    Attributes:
        values: What is to be maximised, in [0, 1], after each epoch, (epochs,), rising: the best so far, because a
            training keeps the weights of its best epoch. From where it diverged on, NaN. A curve is shorter than others
            if its training stops by itself.
        costs: The cost until then, (epochs,), rising.
    """

    values: Array
    costs: Array


class Snap(Protocol):
    """Replaces a configuration by the nearest one that a table has and that is not taken, and takes it."""

    def __call__(self, config: dict[str, Any], taken: set[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the configuration, and the parameters of an Optuna trial of which the space makes it."""


def nothing(config: dict[str, Any]) -> dict[str, Any]:
    """Returns no hyperparameters."""
    return {}


@dataclass(frozen=True)
class Task:
    """Something to be tuned.

    Attributes:
        name: Unique among all tables.
        epochs: Length of a full trial; where configurations have lengths of their own, the longest.
        space: Makes a configuration of an Optuna trial, as a module of `search_spaces/` does. What it returns may be
            anything that `curve`, `snap` and `known` understand.
        curve: Says how a configuration trains.
        best: The best final value that is known: of a table all of it, of a surrogate the best found by a climb.
        median: The median final value of random configurations.
        cost: The median cost of a full trial of random configurations.
        snap: For a table of few configurations; None where it answers for any.
        known: Returns the hyperparameters of a configuration that samplers and schedulers heed, beside the epochs, e.g.
            its schedule.
        first: Points that a search of the space begins with, as the space says.
        n_configurations: That a table has, which is the most trials of a search; None where it answers for any.
        table: Tells a table from another one of the same name: a `fingerprint` of what it holds.
    """

    name: str
    epochs: int
    space: Callable[[Any], dict[str, Any]]
    curve: Callable[[dict[str, Any]], Curve]
    best: float
    median: float
    cost: float
    snap: Snap | None = None
    known: Callable[[dict[str, Any]], dict[str, Any]] = nothing
    first: Sequence[Mapping[str, Any]] = ()
    n_configurations: int | None = None
    table: str = ""

    def regret(self, value: float) -> float:
        """Returns 0 for the best that is known, 1 for the median of random configurations, at most `WORST`."""
        return min((self.best - value) / (self.best - self.median), WORST)


def names(folder: Path) -> dict[str, str]:
    """Returns the names of all tasks below a folder, each with the format that it has, sorted.

    Raises:
        UserError: There is none, or two formats have one name.
    """
    found: dict[str, str] = {}
    for kind in TABLES:
        for name in _reader(kind).names(folder / kind) if (folder / kind).is_dir() else ():
            if name in found:
                raise UserError(
                    f"{folder} has {name} twice, in {found[name]}/ and in {kind}/. Rename the files of one."
                )
            found[name] = kind
    if not found:
        *others, last = TABLES
        raise UserError(f"--tables must be a folder that holds {', '.join(others)} or {last}, but got {folder}.")
    return dict(sorted(found.items()))


def matching(names: Sequence[str], parts: Sequence[str] | None) -> list[str]:
    """Returns the names that have one of the parts; all of them if there are no parts.

    Raises:
        UserError: A part is in no name.
    """
    for part in parts or ():
        if not any(part in name for name in names):
            raise UserError(f"--tasks must be parts of the names {', '.join(names)}, but got {part!r}.")
    return [name for name in names if not parts or any(part in name for part in parts)]


def half_of(names: Sequence[str], half: str) -> list[str]:
    """Returns every other name: for `a` the first, the third, ..., for `b` the others; all for anything else.

    Raises:
        UserError: There is none.
    """
    found = {"a": names[::2], "b": names[1::2]}.get(half, names)
    if not found:
        raise UserError(f"--half {half} has every other task, but {names[0]} is the only one. Use --half a or all.")
    return list(found)


def load(folder: Path, kind: str, name: str) -> Task:
    """Returns a task by the name and the format that `names` gives.

    Raises:
        UserError: It is no table, or one in which no configuration is better than the median.
    """
    task: Task = _reader(kind).load(folder / kind, name)
    if not task.best > task.median:
        raise UserError(
            f"The best configuration of {name} in {folder / kind} must be better than the median one, but both reach "
            f"{task.best:g}, so that there is no regret. Leave this table out."
        )
    return task


def check_samples(task: Task, samples: int, option: str) -> None:
    """Raises UserError where a search has more trials than the table has configurations.

    Args:
        task: Of the table.
        samples: Trials of the search.
        option: That says how many these are.
    """
    if task.n_configurations is not None and samples > task.n_configurations:
        raise UserError(
            f"{option} must be at most {task.n_configurations}, the number of configurations of {task.name}, "
            f"but got {samples}."
        )


def fingerprint(*parts: bytes) -> str:
    """Returns a short hash of what a table holds."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()[:12]


def seed_of(name: str, seed: int) -> int:
    """Returns the seed of a task's search: another one for each task, so that no two begin with the same points."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:4], "big")


def _reader(kind: str) -> Any:
    return importlib.import_module(f"tables.{TABLES[kind]}")

"""Recorded learning curves, others' and our own, as tasks for a search: each format is read by a file of its own.

A reader is a module with `names(folder) -> list[str]` and `load(folder, name) -> Task`; `TABLES` says which one reads
which folder.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

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

    def regret(self, value: float) -> float:
        """Returns 0 for the best that is known, 1 for the median of random configurations, at most `WORST`."""
        return min((self.best - value) / (self.best - self.median), WORST)


def names(folder: Path) -> dict[str, str]:
    """Returns the names of all tasks below a folder, each with the format that it has, sorted.

    Raises:
        SystemExit: There is none.
    """
    found = {name: kind for kind in TABLES if (folder / kind).is_dir() for name in _reader(kind).names(folder / kind)}
    if not found:
        *others, last = TABLES
        raise SystemExit(f"--tables must be a folder that holds {', '.join(others)} or {last}, but got {folder}.")
    return dict(sorted(found.items()))


def load(folder: Path, kind: str, name: str) -> Task:
    """Returns a task by the name and the format that `names` gives."""
    task: Task = _reader(kind).load(folder / kind, name)
    return task


def _reader(kind: str) -> Any:
    return importlib.import_module(f"tables.{TABLES[kind]}")

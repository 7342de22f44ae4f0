"""Our own recordings of image classifiers (`record_curves.py`): some hundred random configurations of a search space.

The search is that of the recorded space. It proposes any of its points; the nearest recorded configuration that the
search has not had answers, and is what the study has on record. Distances are Euclidean, and each hyperparameter counts
alike: a number is in [0, 1] on its scale, and two choices that differ are as far apart as makes the mean over random
pairs equal to that of two numbers. A hyperparameter that only one of the two configurations has counts as a whole
range, so that e.g. another optimizer answers only where the right one is used up.

Values are the merit of the recorded metric on the valid split. Costs are seconds: of the processor where one thread of
it trained, so that what ran beside it does not count, and on a GPU those of the clock. A training that diverged has
failed. Of a configuration with several seeds the first counts.

A method may begin with the first points that the space of that name has today, or else the recorded one.
"""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import recording

from tables import Array, Curve, Task, fingerprint
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import METRICS
from tuning.sampling.columns import Column, merged
from tuning.sampling.spaces import Space, load_space, point_of, space_names

MEAN_SQUARE = 1 / 6  # Of the difference of two random numbers in [0, 1].


def names(folder: Path) -> list[str]:
    """Returns the name of each recording."""
    return [path.stem for path in folder.glob("*.json")]


def load(folder: Path, name: str) -> Task:
    """Returns a task."""
    path = folder / f"{name}.csv"
    facts, frame = recording.read(path)
    epochs = facts["epochs"]
    space = load_space(str(recording.space_file(path)))
    check_space(path, facts, space)
    space = _as_searched(space, facts)
    frame = frame[frame["repeat"] == 0]
    numbers = check(path, facts, frame)
    points = [facts["points"][number] for number in numbers]
    configs = [recording.config_of(space, point, epochs) for point in points]
    rows = dict(iter(frame.groupby("configuration")))
    curves = [_curve(rows[n], c, facts) for n, c in zip(numbers, configs, strict=True)]
    columns = _columns(space, points, epochs)
    known = np.array([_encoded(columns, point) for point in points])
    weights = np.array([MEAN_SQUARE / (1 - 1 / c.n_choices) if c.n_choices else 0.0 for c in columns])

    def define(trial: Any) -> dict[str, Any]:
        space.sample(trial, epochs)
        return dict(trial.params)

    def distances(point: dict[str, Any]) -> Array:
        here = _encoded(columns, point)
        apart = np.where(weights > 0, weights * (known != here), np.square(known - here))
        lacking = np.isnan(known), np.isnan(here)
        squares: Array = np.where(lacking[0] | lacking[1], lacking[0] != lacking[1], apart).sum(axis=1)
        return squares

    def snap(point: dict[str, Any], taken: set[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        if len(taken) == len(points):
            raise UserError(f"--samples must be at most the {len(points)} configurations of {name}, but got more.")
        from_here = distances(point)
        from_here[list(taken)] = np.inf
        nearest = int(from_here.argmin())
        taken.add(nearest)
        return points[nearest], points[nearest]

    def curve(point: dict[str, Any]) -> Curve:
        return curves[int(distances(point).argmin())]

    def config(point: dict[str, Any]) -> dict[str, Any]:
        return configs[int(distances(point).argmin())].model_dump()

    final = np.nan_to_num(np.array([each.values[-1] for each in curves]), nan=0.0)
    cost = float(np.median([each.costs[-1] for each in curves]))
    length = max(each.epochs for each in configs)
    named = facts["space"] in space_names()
    first = [p for p in (load_space(facts["space"]) if named else space).first if point_of(space, p, epochs)]
    best, median = float(final.max()), float(np.median(final))
    shown = [part for each in curves for part in (each.values.tobytes(), each.costs.tobytes())]
    searched = json.dumps([points, epochs, [dict(p) for p in first]], sort_keys=True).encode()
    table = fingerprint(searched, space.source.encode(), *shown)
    return Task(name, length, define, curve, best, median, cost, snap, config, first, len(points), table)


def check(path: Path, facts: dict[str, Any], frame: Any) -> list[int]:
    """Returns the numbers of the configurations that were trained.

    Raises:
        UserError: They are too few, or not those of the facts.
    """
    numbers = sorted(int(number) for number in frame["configuration"].unique())
    if len(numbers) < 2:
        trained = "one training" if numbers else "none yet"
        raise UserError(
            f"{path} must have the trainings of at least 2 configurations, but has {trained}. "
            "Run record_curves.py again, or move its files out of this folder."
        )
    known = len(facts["points"])
    if numbers[0] < 0 or numbers[-1] >= known:
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise UserError(
            f"{path} must have trainings of the {known} configurations in {recording.facts_file(path).name}, "
            f"but has one of configuration {wrong}."
        )
    return numbers


def check_space(path: Path, facts: dict[str, Any], space: Space) -> None:
    """Raises UserError where a recorded configuration is no point of the space beside it."""
    for number, point in enumerate(facts["points"]):
        try:
            with warnings.catch_warnings(action="error", category=UserWarning):  # Optuna's, of a value out of range.
                recording.config_of(space, point, facts["epochs"])
        except (UserError, ValueError) as error:
            raise UserError(
                f"{recording.space_file(path)} must be the space that the configurations in "
                f"{recording.facts_file(path).name} are of, but configuration {number} is no point of it: "
                f"{str(error).splitlines()[0]} Put the file back with which they were recorded."
            ) from error


def _as_searched(space: Space, facts: dict[str, Any]) -> Space:
    """Returns the space without the choices that were left out: a replayed search is not to propose them."""
    offered: dict[str, list[Any]] = {}
    for point in facts["points"]:
        trial = optuna.trial.FixedTrial(point)
        space.sample(trial, facts["epochs"])
        for name in facts["left_out"].keys() & trial.distributions.keys():
            choices = getattr(trial.distributions[name], "choices", ())
            offered[name] = [choice for choice in choices if choice not in facts["left_out"][name]]
    return replace(space, gpu_only=facts["left_out"], recorded=offered)


def _columns(space: Space, points: list[dict[str, Any]], epochs: int) -> list[Column]:
    """Returns the hyperparameters that the configurations differ in, by name."""
    found: dict[str, Any] = {}
    for point in points:
        trial = optuna.trial.FixedTrial(point)
        space.sample(trial, epochs)
        for name, one in trial.distributions.items():
            found[name] = merged(found.get(name, one), one)
    return [Column(name, one) for name, one in sorted(found.items()) if one is not None and not one.single()]


def _encoded(columns: list[Column], point: dict[str, Any]) -> Array:
    return np.array([column.encode(point[column.name]) if column.name in point else np.nan for column in columns])


def _curve(rows: Any, config: TrainConfig, facts: dict[str, Any]) -> Curve:
    """Returns the curve of a training; one that diverged is not a number from there on, at the mean cost so far."""
    rows, metric = rows.sort_values("epoch"), METRICS[facts["metric"]]
    costs = rows["seconds" if facts["device"] == "cuda" else "cpu_seconds"].to_numpy(np.float64)
    merits = rows[metric.column].map(metric.merit).to_numpy(np.float64, copy=True)
    if rows["finished"].iloc[-1] == recording.DIVERGED:
        merits[-1] = np.nan
        missing = config.epochs - len(rows)
        merits = np.append(merits, np.full(missing, np.nan))
        costs = np.append(costs, np.full(missing, costs.mean()))
    return Curve(np.maximum.accumulate(merits), np.cumsum(costs))

"""TaskSet (Metz et al. 2020) as the authors of DyHPO packed it: 1,000 real trainings a task, a JSON file each.

A file is a list of `{"hp": {name: value}, "valid": {"loss": [51 values]}, ...}`. The first value is of the untrained
network, so a full trial is 50 epochs; no times are recorded, so an epoch costs 1. The value is exp(-loss), the
geometric mean of the probability that the network gives to the right label: in [0, 1], and the ranking is that of the
loss. A loss that is not finite has diverged. Where exp(-loss) would be 0 for all configurations, or above 1, the least
loss of the table is subtracted first.

A hyperparameter with one value in the whole table is in each configuration, but is not searched.

The sampler proposes anything within the bounds of the table. The nearest configuration of the table that the search has
not had answers, and is what the study has on record: else the distance to it would be noise, and a good one would be
found over and over. Distances are Euclidean where each hyperparameter is in [0, 1] on its scale.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kstest

from tables import Array, Curve, Task, fingerprint
from tuning.base.errors import UserError

EPOCHS_IN_TABLE_BEFORE_TRAINING = 1
# Scale -> the values as one would search them: on a log scale, or (beta of Adam) the distance to 1 on a log scale.
SCALES = {
    "linear": lambda values: values,
    "log": lambda values: np.log(np.where(values > 0, values, np.nan)),
    "log of 1 -": lambda values: np.log(np.where(values < 1, 1 - values, np.nan)),
}


def names(folder: Path) -> list[str]:
    """Returns the task of each file."""
    return [path.stem for path in folder.glob("*.json")]


def load(folder: Path, name: str) -> Task:
    """Returns a task."""
    rows = check(folder / f"{name}.json")
    configs = [row["hp"] for row in rows]
    known = {p: np.array([config[p] for config in configs], dtype=np.float64) for p in configs[0]}
    parameters = [p for p, column in known.items() if column.min() < column.max()]
    points = np.column_stack([known[p] for p in parameters])
    constant = {p: configs[0][p] for p in known if p not in parameters}
    scales = dict(zip(parameters, map(scale_of, points.T), strict=True))
    scaled = np.column_stack([SCALES[scales[p]](points[:, i]) for i, p in enumerate(parameters)])
    low, high = scaled.min(axis=0), scaled.max(axis=0)
    scaled = (scaled - low) / (high - low)
    losses = np.array([row["valid"]["loss"] for row in rows], dtype=np.float64)[:, EPOCHS_IN_TABLE_BEFORE_TRAINING:]
    values = _values(losses)
    costs = np.arange(1.0, values.shape[1] + 1)
    reflected = [scales[parameter] == "log of 1 -" for parameter in parameters]
    suggested = [f"1 - {p}" if mirror else p for p, mirror in zip(parameters, reflected, strict=True)]
    searched = np.where(reflected, 1 - points, points)

    def space(trial: Any) -> dict[str, Any]:
        config = dict(constant)
        for i, parameter in enumerate(parameters):
            low, high = searched[:, i].min(), searched[:, i].max()
            value = trial.suggest_float(suggested[i], low, high, log=scales[parameter] != "linear")
            config[parameter] = 1 - value if reflected[i] else value
        return config

    def distances(config: dict[str, Any]) -> Array:
        point = np.array([float(SCALES[scales[p]](np.float64(config[p]))) for p in parameters])
        squares: Array = np.square(scaled - (point - low) / (high - low)).sum(axis=1)
        return squares

    def snap(config: dict[str, Any], taken: set[int]) -> tuple[dict[str, Any], dict[str, float]]:
        if len(taken) == len(configs):
            raise UserError(f"--samples must be at most the {len(configs)} configurations of {name}, but got more.")
        from_here = distances(config)
        from_here[list(taken)] = np.inf
        nearest = int(from_here.argmin())
        taken.add(nearest)
        return configs[nearest], dict(zip(suggested, searched[nearest].tolist(), strict=True))

    def curve(config: dict[str, Any]) -> Curve:
        return Curve(values[distances(config).argmin()], costs)

    final = np.nan_to_num(values[:, -1], nan=0.0)
    best, median, cost = float(final.max()), float(np.median(final)), float(costs[-1])
    columns = [part for p in known for part in (p.encode(), known[p].tobytes())]
    return Task(
        name, len(costs), space, curve, best, median, cost, snap,
        n_configurations=len(configs), table=fingerprint(losses.tobytes(), *columns),
    )  # fmt: skip


def check(path: Path) -> list[dict[str, Any]]:
    """Returns the configurations of a file, with their curves.

    Raises:
        UserError: The file is no table of this format.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} must be a readable JSON file, but got: {error}.") from error
    if not isinstance(rows, list) or len(rows) < 2 or not all(isinstance(row, dict) for row in rows):
        got = f"a list of {len(rows)}" if isinstance(rows, list) else f"a {type(rows).__name__}"
        raise UserError(
            f"{path} must be a list of at least 2 configurations with their curves, but got {got}. "
            "Move a file that is no table out of this folder."
        )
    for i, row in enumerate(rows):
        if problem := _problem(row, rows[0]):
            raise UserError(f"{path}: configuration {i} {problem}.")
    if not any(len({row["hp"][parameter] for row in rows}) > 1 for parameter in rows[0]["hp"]):
        raise UserError(f"{path} must have a hyperparameter of more than one value, but all are constant.")
    return rows


def _problem(row: dict[str, Any], first: dict[str, Any]) -> str:
    """Returns what is wrong with a configuration, the first one of its table being right; "" for nothing."""
    config, valid = row.get("hp"), row.get("valid")
    if not isinstance(config, dict) or not config:
        return 'must have hyperparameters, {"hp": {name: value}}, but has none'
    for name in [*first["hp"], *config]:
        if name not in config or name not in first["hp"]:
            return f"must have the hyperparameters of the first one, but {name!r} is not in both"
        value = config[name]
        if not isinstance(value, int | float) or not np.isfinite(value):
            return f"must have finite numbers as hyperparameters, but {name} is {value!r}"
    curve = valid.get("loss") if isinstance(valid, dict) else None
    if not isinstance(curve, list) or len(curve) <= EPOCHS_IN_TABLE_BEFORE_TRAINING:
        got = f"{len(curve)} of them" if isinstance(curve, list) else "none"
        return f'must have losses, {{"valid": {{"loss": [untrained, epoch 1, ...]}}}}, but has {got}'
    if len(curve) != len(first["valid"]["loss"]):
        return f"must have {len(first['valid']['loss'])} losses, as the first one has, but has {len(curve)}"
    if wrong := [loss for loss in curve if loss is not None and not isinstance(loss, int | float)]:
        return f"must have numbers as losses (null or NaN where it diverged), but has {wrong[0]!r}"
    return ""


def _values(losses: Array) -> Array:
    """Returns the best value so far after each epoch, NaN from where a training diverged."""
    diverged = np.maximum.accumulate(~np.isfinite(losses), axis=1)
    least = losses[~diverged].min(initial=np.inf)
    in_range = least >= 0 and np.exp(-least) >= np.finfo(np.float64).tiny
    values = np.exp(-(losses if in_range or not np.isfinite(least) else losses - least))
    values[diverged] = np.nan
    found: Array = np.maximum.accumulate(values, axis=1)
    return found


def scale_of(values: Array) -> str:
    """Returns the scale on which the values of a hyperparameter lie most evenly (Kolmogorov-Smirnov distance)."""
    distances = {}
    for name, scaled in ((name, scale(values)) for name, scale in SCALES.items()):
        if np.isfinite(scaled).all():
            distances[name] = kstest(scaled, "uniform", (scaled.min(), np.ptp(scaled))).statistic
    return min(distances, key=lambda name: distances[name])

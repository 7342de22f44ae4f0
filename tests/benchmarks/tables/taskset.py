"""TaskSet (Metz et al. 2020) as the authors of DyHPO packed it: 1,000 real trainings a task, a JSON file each.

A file is a list of `{"hp": {name: value}, "valid": {"loss": [51 values]}, ...}`. The first value is of the untrained
network, so a full trial is 50 epochs; no times are recorded, so an epoch costs 1. The value is exp(-loss), the
geometric mean of the probability that the network gives to the right label: in [0, 1], and the ranking is that of the
loss. A loss that is not finite has diverged.

The sampler proposes anything within the bounds of the table. The nearest configuration of the table that the search has
not had answers, and is what the study has on record: else the distance to it would be noise, and a good one would be
found over and over. Distances are Euclidean where each hyperparameter is in [0, 1] on its scale.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kstest

from tables import Array, Curve, Task

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
    rows = json.loads((folder / f"{name}.json").read_text())
    parameters = list(rows[0]["hp"])
    points = np.array([[row["hp"][parameter] for parameter in parameters] for row in rows], dtype=np.float64)
    scales = dict(zip(parameters, map(scale_of, points.T), strict=True))
    scaled = np.column_stack([SCALES[scales[p]](points[:, i]) for i, p in enumerate(parameters)])
    low, high = scaled.min(axis=0), scaled.max(axis=0)
    scaled = (scaled - low) / (high - low)
    losses = np.array([row["valid"]["loss"] for row in rows], dtype=np.float64)[:, EPOCHS_IN_TABLE_BEFORE_TRAINING:]
    values = np.exp(-losses)
    values[np.maximum.accumulate(~np.isfinite(losses), axis=1)] = np.nan
    values = np.maximum.accumulate(values, axis=1)
    costs = np.arange(1.0, values.shape[1] + 1)
    configs = [row["hp"] for row in rows]
    reflected = [scales[parameter] == "log of 1 -" for parameter in parameters]
    suggested = [f"1 - {p}" if mirror else p for p, mirror in zip(parameters, reflected, strict=True)]
    searched = np.where(reflected, 1 - points, points)

    def space(trial: Any) -> dict[str, Any]:
        config = {}
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
        from_here = distances(config)
        from_here[list(taken)] = np.inf
        nearest = int(from_here.argmin())
        taken.add(nearest)
        return configs[nearest], dict(zip(suggested, searched[nearest].tolist(), strict=True))

    def curve(config: dict[str, Any]) -> Curve:
        return Curve(values[distances(config).argmin()], costs)

    final = np.nan_to_num(values[:, -1], nan=0.0)
    return Task(name, len(costs), space, curve, float(final.max()), float(np.median(final)), float(costs[-1]), snap)


def scale_of(values: Array) -> str:
    """Returns the scale on which the values of a hyperparameter lie most evenly (Kolmogorov-Smirnov distance)."""
    distances = {}
    for name, scaled in ((name, scale(values)) for name, scale in SCALES.items()):
        if np.isfinite(scaled).all():
            distances[name] = kstest(scaled, "uniform", (scaled.min(), np.ptp(scaled))).statistic
    return min(distances, key=lambda name: distances[name])

"""How often a search is said to have its best trials at an end of a range, where that is so and where it is not.

    python tests/benchmarks/edges.py

Nothing is trained. Searches of 20 trials by a sampler of the project draw five hyperparameters; a trial's value falls
with the square of its distance from an optimum, on the scale of each range, and has noise. In "noise" it is noise
alone; in "inside" each optimum lies in the middle three fifths of its range; in "beyond" that of the learning rate lies
at twice, or ten times, the upper end of its range, which is a factor of 100 wide.

"said" are the searches in which any end is named, "right" those in which that end of the learning rate is, "wrong"
those in which another one is, and "naive" those in which the best trial alone has a value in the outer twentieth of a
range. All are in per cent of the searches. `--searches` and `--samplers` shorten the run.
"""

import math
import sys
import time
from typing import Any

import numpy as np
import optuna
import pandas as pd
from common import parser, report

from tuning.base.config import TrainConfig
from tuning.runs import edges
from tuning.sampling import samplers

EPOCHS, NOISE, N_STARTUP = 6, 0.01, 8
RANGES = {
    "learning_rate": optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True),
    "weight_decay": optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True),
    "momentum": optuna.distributions.FloatDistribution(0.5, 0.9),
    "label_smoothing": optuna.distributions.FloatDistribution(0.02, 0.3),
    "crop_scale": optuna.distributions.FloatDistribution(0.3, 0.8),
}
BEYOND = {"beyond, twice": 2.0, "beyond, ten times": 10.0}
KINDS = ("noise", "inside", *BEYOND)


def place(name: str, value: float) -> float:
    """Returns where a value lies in its range, from 0 to 1 on its scale; beyond it, less or more."""
    of = RANGES[name]
    warp = math.log if of.log else float
    return (warp(value) - warp(of.low)) / (warp(of.high) - warp(of.low))


def searched(kind: str, sampler: str, samples: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns what the trials of a search drew, and the trials, as the frames of a run have them."""
    draw = np.random.default_rng(seed)
    weights = dict(zip(RANGES, draw.uniform(0.2, 1.0, len(RANGES)), strict=True))
    optima = dict(zip(RANGES, draw.uniform(0.2, 0.8, len(RANGES)), strict=True))
    if kind == "noise":
        weights = dict.fromkeys(RANGES, 0.0)
    if kind in BEYOND:
        optima["learning_rate"] = place("learning_rate", BEYOND[kind] * RANGES["learning_rate"].high)
    study = optuna.create_study(direction="maximize", sampler=samplers.make(sampler, seed, N_STARTUP))
    numbers, trials = [], []
    for number in range(samples):
        trial = study.ask(dict(RANGES))
        lost = sum(weights[name] * (place(name, value) - optima[name]) ** 2 for name, value in trial.params.items())
        value = max(0.0, 0.9 - 0.1 * lost + draw.normal(0, NOISE))
        for epoch in range(1, EPOCHS + 1):
            trial.report(value * (1 - 0.3 * math.exp(-epoch)), epoch)
        study.tell(trial, value)
        for name, one in trial.params.items():
            of = RANGES[name]
            row = {"trial": number, "parameter": name, "value": one, "low": of.low, "high": of.high, "log": of.log}
            numbers.append(row | {"step": math.nan, "whole": False})
        config = {f"config/{name}": one for name, one in TrainConfig(**trial.params).model_dump().items()}
        trials.append({"trial": number, "state": "complete", "valid_accuracy": value, "error": "", **config})
    frame = pd.DataFrame(trials).assign(stopped_by="length", error=pd.Series(dtype="str"))
    return pd.DataFrame(numbers).astype(edges.DRAWN), frame


def naive(drawn: pd.DataFrame, trials: pd.DataFrame) -> bool:
    """Returns whether the best trial has a value at an end of a range."""
    best = drawn[drawn["trial"] == trials["valid_accuracy"].idxmax()]
    places = [place(row.parameter, row.value) for row in best.itertuples()]
    return any(one < 0.05 or one > 0.95 for one in places)


def measured(kind: str, sampler: str, samples: int, searches: int) -> dict[str, Any]:
    """Returns a row of the table."""
    said = right = wrong = simple = 0
    for seed in range(searches):
        drawn, trials = searched(kind, sampler, samples, seed)
        found = edges.find(drawn, trials)
        named = {(row.parameter, row.end) for row in found.itertuples()}
        there = {("learning_rate", "high")} if kind in BEYOND else set()
        said, right = said + bool(named), right + bool(named & there)
        wrong, simple = wrong + bool(named - there), simple + naive(drawn, trials)
    counts = {"said": said, "right": right if kind in BEYOND else None, "wrong": wrong, "naive": simple}
    shares = {name: None if n is None else 100 * n / searches for name, n in counts.items()}
    return {"sampler": sampler, "optimum": kind, "trials": samples, "searches": searches, **shares}


def main() -> None:
    """Prints the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--searches", type=int, default=100, help="of each kind (default: 100)")
    arguments.add_argument("--samples", type=int, default=20, help="trials a search (default: 20)")
    arguments.add_argument("--samplers", default="curves,tpe,random", help="names, with commas between them")
    options = arguments.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = []
    for sampler in options.samplers.split(","):
        for kind in KINDS:
            start = time.perf_counter()
            rows.append(measured(kind, sampler, options.samples, options.searches))
            print(f"{sampler}, {kind}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    report("Edges that are named, in per cent of the searches", rows, options.out)


if __name__ == "__main__":
    main()

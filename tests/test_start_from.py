"""The benchmark of searches that begin with earlier ones, on planted tasks."""

import math
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import start_from
from start_from import COLD, UPSIDE_DOWN, WARM, WARM_TPE, Pair
from tables import Curve, Task

EPOCHS = 9


def space(trial: Any) -> dict[str, Any]:
    return {"momentum": trial.suggest_float("momentum", 0.0, 0.9), "lr": trial.suggest_float("lr", 1e-3, 1, log=True)}


def planted(name: str, best: float) -> Task:
    def curve(config: dict[str, Any]) -> Curve:
        epochs = np.arange(1.0, EPOCHS + 1)
        level = 0.9 - abs(config["momentum"] - best) - 0.1 * abs(math.log10(config["lr"]) + 1)
        return Curve(level * (1 - 0.5**epochs), epochs)

    return Task(name, EPOCHS, space, curve, best=0.9, median=0.5, cost=9.0)


ONE, ALIKE = planted("one", 0.7), planted("alike", 0.65)


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    """Two seeds of a pair that is alike, and of one that misleads."""
    rows = []
    for seed in range(2):
        rows += start_from.replay(ONE, ALIKE, Pair("one", "alike"), slots=2, first=15, seed=seed)
        upside_down = start_from.turned(ALIKE)
        rows += start_from.replay(upside_down, ALIKE, Pair(UPSIDE_DOWN, "alike"), slots=2, first=15, seed=seed)
    return pd.DataFrame(rows)


def test_a_search_that_begins_with_one_of_a_like_task_is_ahead(trials: pd.DataFrame) -> None:
    found = start_from.table(trials, {Pair("one", "alike"): 0.9}).set_index(["pair", "sampler"])
    ours, tpe = found.loc[("one:alike", "ours")], found.loc[("one:alike", "tpe")]
    assert ours["begun at 5"] < ours["cold at 5"] and tpe["begun at 5"] < tpe["cold at 5"]
    assert ours["rank correlation"] == 0.9 and math.isnan(found.loc[(f"{UPSIDE_DOWN}:alike", "tpe")].iloc[0])
    reached = "yes" if ours["begun at 5"] <= ours["cold at 20"] else "no"
    assert ours["5 begun reach 20 cold"] == reached
    assert len(trials) == 2 * 2 * 4 * 20


def test_one_that_begins_with_a_task_that_misleads_is_behind_at_first(trials: pd.DataFrame) -> None:
    misled = trials[(trials["task"] == f"{UPSIDE_DOWN}:alike") & (trials["trial"] == 0)].set_index(["method", "seed"])
    assert (misled.loc[WARM]["regret"] > 0.9).all()
    assert (misled.loc[WARM_TPE]["regret"] > 0.9).all()


def test_the_cold_search_is_that_of_the_other_benchmark(trials: pd.DataFrame) -> None:
    cold = trials[trials["method"] == COLD]
    assert (cold.groupby(["seed", "trial"])["regret"].nunique() == 1).all()


def test_upside_down_the_best_is_the_worst() -> None:
    def last(task: Task, momentum: float) -> float:
        return float(task.curve({"momentum": momentum, "lr": 0.1}).values[-1])  # noqa: PD011

    assert last(ONE, 0.7) > last(ONE, 0.1)
    turned = start_from.turned(ONE)
    assert last(turned, 0.7) < last(turned, 0.1)
    assert (np.diff(turned.curve({"momentum": 0.3, "lr": 0.1}).values) >= 0).all()


def test_pairs_are_chosen_by_how_alike_they_are() -> None:
    correlations = {
        Pair("a", "b"): 0.9,
        Pair("c", "b"): 0.8,
        Pair("a", "c"): 0.7,
        Pair("b", "a"): 0.6,
        Pair("d", "c"): -0.2,
    }
    found = [pair.name for pair in start_from.chosen(correlations, 2)]
    assert found == ["a:b", "a:c", "d:c", "upside-down:c"]


def test_the_points_that_are_given_come_first() -> None:
    drawn = start_from.draw(ONE, 5)
    points = [{"momentum": 0.1, "lr": 0.5}, {"momentum": 0.2, "lr": 0.25}]
    sampler = start_from.FirstPoints(optuna.samplers.RandomSampler(seed=0), points, drawn)
    study = optuna.create_study(sampler=sampler)
    found = []
    for _ in range(3):
        one = study.ask()
        space(one)
        found.append(one.params)
    assert found[:2] == points and found[2] not in points

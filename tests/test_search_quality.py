"""The benchmark of search quality: its event loop against a plan and against Ray Tune, its readers, its statistics."""

import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comparison
import numpy as np
import pandas as pd
import pytest
import quality_figures
import search_quality
import tables
from methods import METHODS, named
from ray.tune.schedulers import FIFOScheduler
from rivals import one_epoch, promotion
from simulation import Method, Ours, Stock, replayed, simulate
from tables import Curve, Task, lcbench, taskset

from tuning.base.errors import UserError
from tuning.base.registries import SCHEDULERS
from tuning.sampling import samplers
from tuning.trials.schedulers import METRIC, StandIn

EPOCHS = 9


def space(trial: Any) -> dict[str, Any]:
    return {"momentum": trial.suggest_float("momentum", 0.0, 0.9)}


def planted(curve: Callable[[dict[str, Any]], Curve]) -> Task:
    return Task("planted", EPOCHS, space, curve, best=0.9, median=0.5, cost=10.0)


def rising(config: dict[str, Any]) -> Curve:
    epochs = np.arange(1.0, EPOCHS + 1)
    momentum = config["momentum"]
    dips = 0.1 * (1 + np.sin(40 * momentum)) * (epochs % 2 == 0)  # so that the best value is not the latest
    return Curve((0.9 - abs(momentum - 0.6)) * (1 - 0.5 ** (epochs * (1.2 - momentum))) - dips, epochs)


def test_one_slot_runs_one_trial_after_the_other() -> None:
    trials = simulate(planted(rising), Method(named("random"), SCHEDULERS.load("none")), slots=1, samples=3, seed=0)
    assert [trial.ended for trial in trials] == pytest.approx([0.9, 1.8, 2.7])
    assert {(trial.state, trial.epochs) for trial in trials} == {("complete", EPOCHS)}


def test_a_slot_that_is_free_asks_the_sampler_again_in_the_order_of_costs() -> None:
    costs, told = iter([1.0, 3.0, 1.0, 1.0]), []

    class Order(Stock):
        @staticmethod
        def end(study: Any, number: int, values: list[float], finished: bool) -> None:
            told.append((number, len(study.trials)))
            Stock.end(study, number, values, finished)

    def curve(config: dict[str, Any]) -> Curve:
        return Curve(np.full(EPOCHS, 0.5), next(costs) * np.arange(1.0, EPOCHS + 1))

    method = Method(named("random"), SCHEDULERS.load("none"), Order)
    trials = simulate(planted(curve), method, slots=2, samples=4, seed=0)
    assert told == [(0, 2), (2, 3), (1, 4), (3, 4)]  # 1 and 3 end together: the lower number reports first
    assert [trial.ended for trial in trials] == pytest.approx([0.9, 2.7, 1.8, 2.7])


def test_a_sampler_that_weighs_seconds_takes_what_costs_less_of_what_is_as_good() -> None:
    def dear_above_a_half(config: dict[str, Any]) -> Curve:
        momentum, epochs = config["momentum"], np.arange(1.0, EPOCHS + 1)
        height = 0.6 - (momentum - 0.45) ** 2  # As good on both sides.
        return Curve(height * (1 - 0.5**epochs), epochs * (10.0 if momentum > 0.45 else 1.0))

    spent = {}
    for name in ("ours", "ours, first points, by seconds"):
        found = [simulate(planted(dear_above_a_half), METHODS[name], slots=1, samples=30, seed=seed) for seed in (0, 1)]
        spent[name] = sum(trials[-1].ended for trials in found)
    assert spent["ours, first points, by seconds"] < 0.8 * spent["ours"], spent


def test_a_trial_that_diverges_has_failed_and_is_not_chosen() -> None:
    def curve(config: dict[str, Any]) -> Curve:
        return Curve(np.array([0.8] * 3 + [np.nan] * 6), np.arange(1.0, EPOCHS + 1))

    for method, epochs in (
        (Method(named("tpe"), SCHEDULERS.load("none")), 4),
        (Method(named("tpe"), SCHEDULERS.load("none"), Stock, goes_on_diverged=True), EPOCHS),
    ):
        trials = simulate(planted(curve), method, slots=1, samples=2, seed=0)
        assert {(trial.state, trial.epochs, trial.value) for trial in trials} == {("failed", epochs, 0.0)}
        assert comparison.incumbents(frame_of(trials))["regret"].tolist() == [tables.WORST] * 2


class PauseAt2(FIFOScheduler):
    """Pauses each trial at its second epoch and resumes the first in line when a third has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.paused: list[int] = []
        self.asked: list[bool] = []

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["epoch"] != 2:
            return str(self.CONTINUE)
        self.paused.append(int(trial.trial_id))
        return str(self.PAUSE)

    def resumed(self, last: bool) -> int | None:
        self.asked.append(last)
        return self.paused.pop(0) if len(self.paused) > 1 else None


def test_a_paused_trial_frees_its_slot_and_costs_only_its_further_epochs() -> None:
    scheduler, told = PauseAt2(), []

    class Order(Ours):
        @staticmethod
        def end(study: Any, number: int, values: list[float], finished: bool) -> None:
            told.append((number, len(values), finished, study.trials[number].state.name))
            Ours.end(study, number, values, finished)

    method = Method(named("random"), lambda epochs, seed: scheduler, Order)
    trials = simulate(planted(rising), method, slots=1, samples=3, seed=0)
    assert [(t.trial, t.state, t.epochs, pytest.approx(t.ended)) for t in trials] == [
        (0, "complete", EPOCHS, 1.1),  # after 2 + 2 + 7 epochs
        (1, "complete", EPOCHS, 2.0),
        (2, "pruned", 2, 1.3),  # never resumed
    ]
    assert told == [(0, 9, True, "RUNNING"), (1, 9, True, "RUNNING"), (2, 2, False, "RUNNING")]
    assert scheduler.asked == [False] * 4 + [True] * 2
    last = [trial.proposing for trial in trials]
    assert 0 < last[0] < last[2] < last[1]  # 0 goes on before 2 begins, and 1 after that.


def test_a_trial_that_diverges_or_ends_where_it_would_pause_has_ended() -> None:
    def curve(config: dict[str, Any]) -> Curve:
        diverges = config["momentum"] < 0.5
        return Curve(np.full(EPOCHS if diverges else 1, np.nan if diverges else 0.8), np.arange(1.0, EPOCHS + 1))

    method = Method(named("random"), promotion(lambda epochs: 1))
    trials = simulate(planted(curve), method, slots=2, samples=8, seed=0)
    assert {(trial.state, trial.epochs) for trial in trials} == {("failed", 1), ("complete", 1)}
    assert len(trials) == 8


def by_momentum(config: dict[str, Any]) -> Curve:
    """A curve that shows all from its first epoch on."""
    return Curve(np.full(EPOCHS, config["momentum"]), np.arange(1.0, EPOCHS + 1))


def test_of_a_batch_the_best_after_an_epoch_go_on_to_the_end() -> None:
    method = Method(named("random"), one_epoch(4, 1))
    trials = simulate(planted(by_momentum), method, slots=1, samples=10, seed=0)
    value = {trial.trial: trial.value for trial in trials}
    batches = (range(4), range(4, 8), range(8, 10))  # of the last two, the share is rounded up
    best = [max(batch, key=value.__getitem__) for batch in batches]
    assert [trial.trial for trial in trials if trial.state == "complete"] == sorted(best)
    assert {(t.state, t.epochs) for t in trials if t.trial not in best} == {("pruned", 1)}
    ends = [trial.ended for trial in trials if trial.state == "complete"]
    assert ends == pytest.approx([1.2, 2.4, 3.4])  # after 4 + 8, 4 + 8, 2 + 8 epochs


def test_a_batch_has_trials_that_diverged_and_resumes_none_of_them() -> None:
    def curve(config: dict[str, Any]) -> Curve:
        return Curve(np.full(EPOCHS, np.nan), np.arange(1.0, EPOCHS + 1))

    method = Method(named("random"), one_epoch(4, 4))
    trials = simulate(planted(curve), method, slots=2, samples=6, seed=0)
    assert {(trial.state, trial.epochs) for trial in trials} == {("failed", 1)} and len(trials) == 6


def test_a_scheduler_of_the_project_that_pauses_does_so_here() -> None:
    scheduler = promotion()(EPOCHS, 0)
    trials = [StandIn(str(i), {"config": {}, "trial": i}) for i in range(3)]
    for i, one in enumerate(trials):
        assert scheduler.resumed(last=False) is None
        scheduler.on_trial_add(None, one)
        assert scheduler.on_trial_result(None, one, {"epoch": 1, METRIC: 0.1 * i}) == "PAUSE"
    scheduler.on_trial_complete(None, trials[2], {})
    assert [scheduler.resumed(last=False) for _ in range(2)] == [1, None]  # The best has ended.
    trials = simulate(planted(by_momentum), Method(named("random"), promotion()), slots=1, samples=10, seed=0)
    ends = [trial for trial in trials if trial.state != "shown"]
    assert [trial.epochs for trial in ends].count(1) <= 6 and {trial.epochs for trial in ends} == {1, 3, 9}
    assert max(ends, key=lambda trial: trial.value).epochs == EPOCHS


@pytest.mark.parametrize(
    ("epochs", "first", "rungs"), [(9, 1, [1, 3]), (51, 5, [5, 15, 45]), (10, 1, [1, 3, 9]), (2, 2, [])]
)
def test_rungs_end_before_the_full_length(epochs: int, first: int, rungs: list[int]) -> None:
    scheduler = promotion(lambda epochs: first)(epochs, 0)
    one = StandIn("0", {"trial": 0})
    decisions = [scheduler.on_trial_result(None, one, {"epoch": n, METRIC: 0.5}) for n in range(1, epochs + 1)]
    assert [epoch for epoch, decision in enumerate(decisions, 1) if decision == "PAUSE"] == rungs


def frame_of(trials: list[Any], **group: Any) -> pd.DataFrame:
    frame = pd.DataFrame([vars(trial) for trial in trials])
    return frame.assign(**{"task": "planted", "method": "m", "slots": 2, "seed": 0} | group)


@pytest.mark.parametrize(
    "name", ["ours", "stock", "hyperband", "ours + promotion", "tpe + asha, multivariate, no liar"]
)
def test_a_search_is_the_same_each_time(name: str) -> None:
    one, other = (simulate(planted(rising), METHODS[name], slots=2, samples=15, seed=3) for _ in range(2))
    assert one == other
    proposing = [trial.proposing for trial in one]
    assert min(proposing) > 0 and (proposing == sorted(proposing) or "promotion" in name)  # These may have gone on.
    assert {"complete", "pruned"} <= {trial.state for trial in one}


def test_regret_is_0_for_the_best_and_1_for_the_median() -> None:
    task = planted(rising)
    assert [task.regret(value) for value in (0.9, 0.7, 0.5, 0.4, 0.0)] == pytest.approx([0, 0.5, 1, 1.25, 1.5])


def test_the_incumbent_is_the_best_observed_trial_scored_by_its_full_training() -> None:
    rows = [
        {"trial": 0, "state": "pruned", "ended": 3.0, "observed": 0.6, "value": 0.9, "regret": 0.0},
        {"trial": 1, "state": "failed", "ended": 1.0, "observed": 0.9, "value": 0.0, "regret": 1.0},
        {"trial": 2, "state": "complete", "ended": 2.0, "observed": 0.6, "value": 0.5, "regret": 0.8},
        {"trial": 3, "state": "pruned", "ended": 4.0, "observed": 0.7, "value": 0.7, "regret": 0.4},
    ]
    frame = pd.DataFrame([row | {"task": "t", "method": "m", "slots": 2, "seed": 0, "epochs": 1} for row in rows])
    found = comparison.incumbents(frame)
    assert found["regret"].tolist() == [0.0, 0.0, 0.8, 0.4]
    assert found["cost"].tolist() == [3.0, 3.0, 3.0, 4.0]
    by_cost = comparison.regret_by_cost(frame)
    at = {cost: by_cost.loc[0, min(comparison.GRID, key=lambda x: abs(x - cost))] for cost in (0.5, 1.5, 2.5, 3.5, 4.5)}
    assert list(at.values()) == [tables.WORST, tables.WORST, 0.8, 0.8, 0.4]


def test_a_trial_counts_from_when_it_was_the_best_until_it_fails() -> None:
    rows = [
        {"trial": 0, "state": "pruned", "ended": 1.0, "observed": 0.4, "value": 0.4, "regret": 0.8},
        {"trial": 1, "state": "shown", "ended": 2.0, "observed": 0.5, "value": 0.9, "regret": 0.1},
        {"trial": 1, "state": "complete", "ended": 5.0, "observed": 0.9, "value": 0.9, "regret": 0.1},
        {"trial": 2, "state": "shown", "ended": 3.0, "observed": 0.8, "value": 0.0, "regret": 1.5},
        {"trial": 2, "state": "failed", "ended": 4.0, "observed": 0.8, "value": 0.0, "regret": 1.5},
    ]
    frame = pd.DataFrame([row | {"task": "t", "method": "m", "slots": 2, "seed": 0, "epochs": 1} for row in rows])
    by_cost = comparison.regret_by_cost(frame)
    at = {cost: by_cost.loc[0, min(comparison.GRID, key=lambda x: abs(x - cost))] for cost in (1.5, 2.5, 3.5, 4.5, 5.5)}
    assert list(at.values()) == [0.8, 0.1, 1.5, 0.1, 0.1]
    found = comparison.incumbents(frame)
    assert found["samples"].tolist() == [1, 2, 3] and found["regret"].tolist() == [0.8, 0.1, 0.1]
    assert found["cost"].tolist() == [1.0, 5.0, 5.0]


def test_a_search_that_ended_early_would_choose_a_trial_that_still_trains() -> None:
    """At first the first trial is the best; the second is better from its second epoch on, long before it has ended."""
    values = iter([np.full(EPOCHS, 0.6), np.array([0.5, *[0.8] * (EPOCHS - 1)]), np.full(EPOCHS, 0.1)])

    def curve(config: dict[str, Any]) -> Curve:
        return Curve(next(values), np.arange(1.0, EPOCHS + 1))

    method = Method(named("random"), SCHEDULERS.load("none"))
    rows = replayed(planted(curve), method, slots=2, samples=3, seed=0)
    assert [(row.trial, row.state, row.epochs) for row in rows] == [
        *((0, "shown", 1), (0, "complete", EPOCHS), (1, "shown", 2), (1, "complete", EPOCHS)),
        (2, "complete", EPOCHS),
    ]
    found = comparison.regret_by_cost(frame_of(rows), np.array([0.05, 0.15, 0.25, 1.0]))
    assert found.loc[0, [0.05, 0.15, 0.25, 1.0]].tolist() == pytest.approx([tables.WORST, 0.75, 0.25, 0.25])


def test_ranks_and_differences_are_those_of_demsar() -> None:
    assert comparison.critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)  # section 3.2.2 of the paper
    assert quality_figures.cliques(np.array([1.0, 1.5, 2.6, 3.0]), 1.25) == [(1.0, 1.5), (1.5, 2.6), (2.6, 3.0)]
    regrets = pd.DataFrame({"a": [0.1, 0.2], "b": [0.3, 0.2], "c": [0.5, 0.9]})
    assert comparison.average_ranks(regrets).to_dict() == {"a": 1.25, "b": 1.75, "c": 3.0}


def test_a_method_is_behind_where_the_interval_over_seeds_says_so() -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"task": task, "seed": seed, "method": method, "samples": 20, "regret": draw.normal(level, 0.05)}
        for task, levels in {"same": (0.5, 0.5), "worse": (0.5, 0.7)}.items()
        for method, level in zip(("base", "other"), levels, strict=True)
        for seed in range(10)
    ]
    found = comparison.against(pd.DataFrame(rows), "other", "base", 20)
    assert found.loc["same", "low"] < 0 < found.loc["same", "high"]
    assert 0.1 < found.loc["worse", "low"] < 0.2 < found.loc["worse", "high"] < 0.3


def write_taskset(folder: Path, n_tasks: int = 1) -> None:
    """Writes tables of 40 configurations, the first of which diverges; the best learning rate is 0.1."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for task in range(n_tasks):
        rows = []
        for i in range(40):
            lr, distance, plain = 10 ** draw.uniform(-4, 1), 10 ** draw.uniform(-4, 0), draw.uniform(1, 3)
            loss = list(1 + abs(np.log10(lr) + 1) * np.linspace(0.5, 1, 51))
            loss = [*loss[:5], float("nan"), *loss[6:]] if i == 0 else loss
            hp = {"learning_rate": lr, "beta1": 1 - distance, "plain": plain}
            rows.append({"hp": hp, "valid": {"loss": loss}})
        (folder / f"task{task}.json").write_text(json.dumps(rows))


def test_taskset_is_answered_by_the_nearest_neighbour_on_the_scale_of_each_hyperparameter(tmp_path: Path) -> None:
    import optuna

    write_taskset(tmp_path / "taskset")
    rows = json.loads((tmp_path / "taskset" / "task0.json").read_text())
    points = {name: np.array([row["hp"][name] for row in rows]) for name in rows[0]["hp"]}
    scales = {name: taskset.scale_of(values) for name, values in points.items()}
    assert scales == {"learning_rate": "log", "beta1": "log of 1 -", "plain": "linear"}
    task = tables.load(tmp_path, "taskset", "task0")
    for row in rows[1:]:
        best_so_far = np.minimum.accumulate(row["valid"]["loss"][1:])
        np.testing.assert_allclose(task.curve(row["hp"]).values, np.exp(-best_so_far))
    assert np.isnan(task.curve(rows[0]["hp"]).values).tolist() == [False] * 4 + [True] * 46
    assert task.epochs == 50 and task.cost == 50
    assert task.best == pytest.approx(max(np.exp(-min(row["valid"]["loss"][1:])) for row in rows[1:]))
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    assert all(points[name].min() <= value <= points[name].max() for name, value in task.space(trial).items())
    assert trial.distributions["1 - beta1"].log and not trial.distributions["plain"].log  # type: ignore[attr-defined]


def test_a_search_has_each_configuration_of_taskset_once_and_on_record(tmp_path: Path) -> None:
    write_taskset(tmp_path / "taskset")
    task, asked, told = tables.load(tmp_path, "taskset", "task0"), [], []

    class Told(Ours):
        @staticmethod
        def end(study: Any, number: int, values: list[float], finished: bool) -> None:
            told.append(study.trials[number].params)
            Ours.end(study, number, values, finished)

    def curve(config: dict[str, Any]) -> Curve:
        asked.append(config)
        return task.curve(config)

    simulate(
        replace(task, curve=curve), Method(named("tpe"), SCHEDULERS.load("none"), Told), slots=1, samples=40, seed=0
    )
    assert sorted(config["plain"] for config in asked) == sorted({config["plain"] for config in asked})
    for config, parameters in zip(asked, told, strict=True):
        assert parameters["plain"] == config["plain"]
        assert 1 - parameters["1 - beta1"] == pytest.approx(config["beta1"])


def write_lcbench(folder: Path) -> None:
    """Writes a model whose accuracy is `epoch + 20 * dropout + code` and whose seconds are `2 * epoch`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    weights, code = np.zeros((8, 6), np.float32), np.zeros((1, 6), np.float32)
    weights[0, 0], weights[0, 1], weights[7, 1], code[0, 1] = 2, 1, 20, 1
    nodes = [
        helper.make_node("Cast", ["x_cat"], ["cat"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["cat", "code"], ["a"]),
        helper.make_node("MatMul", ["x_cont", "weights"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["output"]),
    ]
    ends = [("x_cat", TensorProto.INT32, 1), ("x_cont", TensorProto.FLOAT, 8), ("output", TensorProto.FLOAT, 6)]
    *inputs, output = [helper.make_tensor_value_info(name, kind, ["n", width]) for name, kind, width in ends]
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(code, "code")]
    model = helper.make_model(
        helper.make_graph(nodes, "planted", inputs, [output], constants),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.save(model, folder / "model.onnx")
    bounds: list[dict[str, Any]] = [{"name": "OpenML_task_id", "choices": ["7", "167184"]}]
    for name in ("epoch", *lcbench.INPUTS):
        kind = "uniform_int" if name in ("epoch", "num_layers") else "uniform_float"
        low, high = (1, 52) if name == "epoch" else (1, 5) if name == "num_layers" else (0.5, 1.0)
        bounds.append({"name": name, "type": kind, "lower": low, "upper": high, "log": name == "learning_rate"})
    (folder / "config_space.json").write_text(json.dumps({"hyperparameters": bounds}))
    (folder / "encoding.json").write_text(json.dumps({"OpenML_task_id": {"7": 3, "167184": 4}}))


def test_lcbench_begins_at_epoch_2_and_leaves_the_poor_task_out(tmp_path: Path) -> None:
    import optuna

    write_lcbench(tmp_path / "lcbench-surrogate")
    assert tables.names(tmp_path) == {"lcbench-7": "lcbench-surrogate"}
    task = tables.load(tmp_path, "lcbench-surrogate", "lcbench-7")
    config = task.space(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask())
    curve, epochs = task.curve(config), np.arange(2, 53)
    np.testing.assert_allclose(curve.values, (epochs + 20 * config["max_dropout"] + 3) / 100, rtol=1e-5)
    np.testing.assert_allclose(curve.costs, 2 * epochs)
    assert isinstance(config["num_layers"], int) and task.epochs == 51 and task.cost == 104
    assert task.best == pytest.approx(0.75) and task.median == pytest.approx(0.70, abs=0.01)


def test_the_help_names_every_method() -> None:
    said = "".join(search_quality.parser().format_help().split())  # A name may be wrapped.
    assert all(name.replace(" ", "") in said for name in METHODS)


def test_an_empty_folder_of_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a folder that holds taskset, lcbench-surrogate or image-c"):
        tables.names(tmp_path)


def test_halves_share_no_task_and_no_seed() -> None:
    a, b = (search_quality.planned(["t1", "t2", "t3"], ["ours"], [2], 4, half) for half in "ab")
    assert {(one.task, one.seed) for one in a} == {("t1", 0), ("t1", 2), ("t3", 0), ("t3", 2)}
    assert {(one.task, one.seed) for one in b} == {("t2", 1), ("t2", 3)}
    assert len(search_quality.planned(["t1", "t2", "t3"], ["ours"], [2], 4, "all")) == 12


PAUSES = "random + one epoch, 2 of 20"


def frames(out: Path) -> pd.DataFrame:
    frame = search_quality.read_runs(out, ["stock", PAUSES], 6).drop(columns=["seconds", "proposing"])
    return frame.sort_values([*comparison.GROUP, "trial"], ignore_index=True)


def test_a_killed_benchmark_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_taskset(tmp_path / "taskset", n_tasks=2)
    out, ran = tmp_path / "out", []

    class Here(search_quality.concurrent.futures.ThreadPoolExecutor):
        def __init__(self, n: int, mp_context: Any) -> None:
            super().__init__(1)

        def submit(self, function: Any, *args: Any) -> Any:
            ran.append(args[2])
            return super().submit(function, *args)

    monkeypatch.setattr(search_quality.concurrent.futures, "ProcessPoolExecutor", Here)
    command = ["search_quality.py", "--tables", str(tmp_path), "--methods", "stock", PAUSES]
    command += ["--seeds", "2", "--slots", "2", "--samples", "6", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    search_quality.main()
    assert len(ran) == 2 * 2 * 2
    whole = frames(out)
    assert {file.name for file in out.glob("*.png")} == {"regret.png", "ranks.png", "critical_difference.png"}
    stock = out / "runs" / "stock.6-samples.csv"
    stock.write_text(stock.read_text()[:-30])  # the last search is not whole, nor is its last line
    ran.clear()
    search_quality.main()
    assert [one.method for one in ran] == ["stock"]
    pd.testing.assert_frame_equal(frames(out), whole)
    assert (whole["state"] == "shown").any() and whole["state"].nunique() > 2
    assert PAUSES in capsys.readouterr().out


def test_a_method_without_its_package_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search_quality.importlib.util, "find_spec", lambda name: None if name == "syne_tune" else name)
    monkeypatch.setattr(sys, "argv", ["search_quality.py", "--tables", "none", "--methods", "ours", "syne-tune bohb"])
    with pytest.raises(SystemExit) as ended:
        search_quality.main()
    assert ended.value.code == 2
    message = (
        "error: --methods 'syne-tune bohb' needs the package syne-tune, which is not installed. Run `pip install s"
    )
    assert message in capsys.readouterr().err
    assert search_quality.missing_package(["ours", "smac + asha"]) == ""


def mixed(config: dict[str, Any]) -> Curve:
    height = config["momentum"] * (1 if config["kind"] == "good" else 0.5) + config["layers"] / 100
    return Curve(height * (1 - 0.5 ** np.arange(1.0, EPOCHS + 1)), np.arange(1.0, EPOCHS + 1))


def mixed_space(trial: Any) -> dict[str, Any]:
    kind = trial.suggest_categorical("kind", ["poor", "good", "odd"])
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    return space(trial) | {"kind": kind, "rate": rate, "layers": trial.suggest_int("layers", 1, 9, log=True)}


MIXED = Task("planted", EPOCHS, mixed_space, mixed, best=0.99, median=0.5, cost=10.0)


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.needs))
def test_another_system_searches_where_it_is_installed(name: str) -> None:
    pytest.importorskip(METHODS[name].needs.replace("-", "_"))
    trials, again = (simulate(MIXED, METHODS[name], slots=2, samples=16, seed=0) for _ in range(2))
    ends = [trial for trial in trials if trial.state != "shown"]
    assert [trial.trial for trial in ends] == list(range(16))
    assert trials == again
    assert len({trial.epochs for trial in ends}) > 1


def told_smac(name: str, slots: int, samples: int) -> tuple[list[Any], dict[float, list[float]]]:
    """Returns the rows of a search, and what SMAC was told: cost -> final values of the configurations that had it."""
    pytest.importorskip("smac")
    made: list[Any] = []

    def sampler(seed: int) -> Any:
        made.append(METHODS[name].sampler(seed))
        return made[0]

    trials = simulate(MIXED, replace(METHODS[name], sampler=sampler), slots=slots, samples=samples, seed=0)
    history, told = made[0].smac(None).runhistory, {}
    for key, value in history.items():
        config = dict(history.get_config(key.config_id))
        values, _ = vars(mixed(config | {"kind": ["poor", "good", "odd"][int(config["kind"])]})).values()
        if value.status.name == "SUCCESS":
            told.setdefault(round(1 - value.cost, 6), []).append(pytest.approx(values[-1]))
    return trials, told


def test_smac_is_told_what_trials_have_shown_until_they_were_stopped() -> None:
    trials, told = told_smac("smac + asha", slots=2, samples=12)
    assert len({trial.epochs for trial in trials}) > 1
    assert told == {round(trial.observed, 6): [trial.value] for trial in trials}


def test_smac_has_the_ends_of_a_range_though_it_rounds_them() -> None:
    pytest.importorskip("smac")
    import optuna
    import outside_smac

    low, high = 1.001581395598805e-06, 0.9981682595321479
    ranges = {"x": optuna.distributions.FloatDistribution(low, high, log=True)}
    space = outside_smac.space(ranges, seed=0)
    for end in (low, high):
        trial = optuna.trial.create_trial(params={"x": end}, distributions=ranges, value=0.0)
        point = outside_smac.configuration(space, trial)
        assert outside_smac.Smac.parameters(point, ranges)["x"] == pytest.approx(end)
        assert low <= outside_smac.Smac.parameters(point, ranges)["x"] <= high


def test_smac_hyperband_resumes_the_best_of_a_bracket() -> None:
    trials, told = told_smac("smac hyperband", slots=1, samples=9)
    ends = {trial.trial: trial.epochs for trial in trials if trial.state != "shown"}
    shown = {trial.trial: trial.observed for trial in trials if trial.epochs == 1}
    best = sorted(shown, key=lambda number: -shown[number])
    assert [ends[number] for number in best] == [9, 3, 3] + [1] * 5
    assert ends[8] == 3  # of the second bracket, which begins there
    assert told == {round(trial.observed, 6): [trial.value] for trial in trials}


@pytest.mark.slow
def test_one_slot_is_as_ray_tune_itself_has_it(tmp_path: Path) -> None:
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from tuning.sampling.spaces import Space
    from tuning.sampling.study import RunStudy
    from tuning.trials.local_ray import started
    from tuning.trials.progress import Progress
    from tuning.trials.recorder import Proposals, Recorder
    from tuning.trials.session import Session
    from tuning.trials.settings import Settings

    task, samples = planted(rising), 12

    def train(config: dict[str, Any]) -> None:
        best, is_stock = 0.0, "config" not in config
        momentum = config["momentum"] if is_stock else config["config"]["momentum"]
        for epoch in range(1, EPOCHS + 1):  # `rising`, which the workers cannot import
            value = (0.9 - abs(momentum - 0.6)) * (1 - 0.5 ** (epoch * (1.2 - momentum)))
            value -= 0.1 * (1 + math.sin(40 * momentum)) * (epoch % 2 == 0)
            best = value if is_stock else max(best, value)
            row = dict.fromkeys(("train_loss", "train_accuracy", "valid_loss", "lr", "epoch_seconds"), 0.0)
            row |= {"valid_accuracy": value, "images_per_second": 1.0, "seconds_per_image": 1.0}
            row |= {"epoch": epoch, METRIC: best, "finished": "length" * (epoch == EPOCHS)}
            tune.report({**row, "error": "", "n_parameters": 1, "device": "cpu", "precision": "fp32"})

    class Latest(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            stock.setdefault(trial.trial_id, []).append(result[METRIC])

    stock: dict[str, list[float]] = {}

    def fit(search_alg: Any, scheduler: Any, *callbacks: Any) -> Any:
        options: dict[str, Any] = {"num_samples": samples, "max_concurrent_trials": 1, "reuse_actors": True}
        return tune.Tuner(
            train,
            tune_config=tune.TuneConfig(search_alg=search_alg, scheduler=scheduler, **options),
            run_config=tune.RunConfig(storage_path=str(tmp_path), callbacks=list(callbacks), verbose=0),
        ).fit()

    run = tmp_path / "run"
    run.mkdir()
    study = RunStudy(
        run, Space("planted", "", "", space, [], {}, {}), samplers.make("tpe", 0, 4), epochs=EPOCHS, seed=0
    )
    settings = Settings(
        samples=samples, space="planted", dataset="x", epochs=EPOCHS, seed=0, sampler="tpe", scheduler="asha",
        device="cpu", concurrency=1, cpus_per_trial=1.0, gpus_per_trial=0.0, train_images=None, data_dir=None,
        max_failures=0, time_budget=None,
    )  # fmt: skip
    splits: Any = None  # Nothing is trained on them.
    with started(settings.slots, logging.NullHandler()), Progress(samples, 0, quiet=True) as progress:
        session = Session(settings, run, splits, study, progress)
        fit(Proposals(session), SCHEDULERS.load("asha")(EPOCHS, 0), Recorder(session))
        assert session.problem is None
        stock_asha = METHODS["stock"].scheduler(EPOCHS, 0)
        fit(OptunaSearch(space, metric=METRIC, mode="max", seed=0), stock_asha, Latest())
    study.close(stopped_by=None)
    rows = [study.row(number) for number in range(samples)]
    simulated = simulate(task, Method(named("tpe", 4), SCHEDULERS.load("asha")), slots=1, samples=samples, seed=0)
    assert [(t.state, t.epochs) for t in simulated] == [(row["state"], row["epochs"]) for row in rows]
    assert [t.observed for t in simulated] == pytest.approx([row["valid_accuracy"] for row in rows])
    assert len({t.epochs for t in simulated}) > 1
    simulated = simulate(task, METHODS["stock"], slots=1, samples=samples, seed=0)
    assert [(t.epochs, pytest.approx(t.observed)) for t in simulated] == [(len(v), max(v)) for v in stock.values()]

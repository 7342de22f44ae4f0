"""`tuning.figures.importances`: what was planted is found, by both methods, with intervals of the right width."""

import logging
import math
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import write_run
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tuning.base.errors import UserError
from tuning.figures import importances
from tuning.runs import run_folder, study_file

COLUMNS = ["method", "parameter", "importance", "low", "high"]
UNIT = FloatDistribution(0.0, 1.0)
Values = "pd.Series[float]"


def make_study(
    n_trials: int,
    ranges: dict[str, BaseDistribution],
    value: Callable[[dict[str, Any]], float],
    *,
    seed: int = 4,
    **absent: Any,
) -> tuple[optuna.Study, Values]:
    """Returns a study of random points, every fourth of them stopped, and the values of the points.

    Args:
        n_trials: How many.
        ranges: Name -> range.
        value: Of a point's hyperparameters.
        seed: Of the points.
        absent: Name -> the condition (of the other hyperparameters) under which a point does not have it.
    """
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="maximize")
    draw = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    values = {}
    for number in range(n_trials):
        params = draw.ask(ranges).params
        params = {name: v for name, v in params.items() if name not in absent or not absent[name](params)}
        values[number] = value(params)
        pruned = number % 4 == 0
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
                params=params,
                distributions={name: ranges[name] for name in params},
                value=None if pruned else values[number],
            )
        )
    return study, pd.Series(values)


def planted(n_trials: int) -> tuple[optuna.Study, Values]:
    """Returns a study whose values are `matters` alone; `fixed` is not searched, and some points lack `momentum`."""
    ranges = {"matters": UNIT, "noise": UNIT, "momentum": UNIT, "fixed": FloatDistribution(1.0, 1.0)}
    return make_study(n_trials, ranges, lambda p: float(p["matters"]), momentum=lambda p: p["noise"] < 0.2)


def of(frame: pd.DataFrame, method: str) -> pd.DataFrame:
    return frame[frame["method"] == method].set_index("parameter")


@pytest.mark.slow
def test_both_methods_find_what_matters_and_are_sure_of_it() -> None:
    study, values = planted(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = importances.assess(study, values)
    assert frame.columns.tolist() == COLUMNS
    assert frame.dtypes.astype("str").tolist() == ["str", "str", "float64", "float64", "float64"]
    assert frame["method"].unique().tolist() == ["PED-ANOVA", "fANOVA"]
    for method, rows in frame.groupby("method"):
        assert rows["parameter"].iloc[0] == "matters", method
        assert set(rows["parameter"]) == {"matters", "noise", "momentum"}, method
        assert rows["importance"].sum() == pytest.approx(1.0)
        assert rows["importance"].is_monotonic_decreasing
        assert rows["low"].iloc[0] > rows["high"].iloc[1:].max(), method
        assert (rows["low"] < rows["high"]).all()
    assert len(study.trials) == 60


def test_stopped_trials_count() -> None:
    study, values = planted(40)
    frame = importances.assess(study, values, n_bootstrap=1)
    without = importances.assess(study, values[values.index % 4 != 0], n_bootstrap=1)
    assert not np.allclose(of(frame, "PED-ANOVA")["importance"], of(without, "PED-ANOVA")["importance"])


def test_importances_follow_the_values_not_the_study() -> None:
    study, _ = planted(40)
    noise = pd.Series({trial.number: trial.params["noise"] for trial in study.trials})
    frame = importances.assess(study, noise, n_bootstrap=1)
    assert frame.groupby("method")["parameter"].first().tolist() == ["noise", "noise"]


@pytest.mark.slow
def test_of_nothing_but_noise_neither_method_is_sure() -> None:
    draw = np.random.default_rng(0)
    study, values = make_study(40, dict.fromkeys("abcd", UNIT), lambda p: float(draw.normal()))
    for _, rows in importances.assess(study, values).groupby("method"):
        assert (rows["low"] < 0.25).all() and (rows["high"] > 0.25).all()


@pytest.mark.slow
def test_intervals_narrow_with_trials() -> None:
    widths, draw = {}, np.random.default_rng(0)
    for n_trials in (20, 160):
        study, values = make_study(n_trials, {"a": UNIT, "b": UNIT}, lambda p: p["a"] + p["b"] + 0.2 * draw.normal())
        frame = importances.assess(study, values)
        widths[n_trials] = (frame["high"] - frame["low"]).groupby(frame["method"]).mean()
    assert (widths[160] < 0.85 * widths[20]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n_trials", "n_bootstrap", "off"), [(20, 30, 0.2), (300, 1, 0.07)])
def test_fanova_finds_the_share_of_the_variance_that_was_planted(n_trials: int, n_bootstrap: int, off: float) -> None:
    """Of 2a + b, uniform and independent, a has four fifths; the more trials, the less a forest overrates it."""
    ranges = dict.fromkeys(("a", "b", "noise", "more_noise"), UNIT)
    for seed in range(3):
        draw = np.random.default_rng(seed)
        points = make_study(n_trials, ranges, lambda p, draw=draw: 2 * p["a"] + p["b"] + draw.normal(0, 0.1), seed=seed)
        row = of(importances.assess(*points, n_bootstrap=n_bootstrap, seed=seed), "fANOVA").loc["a"]
        assert row["importance"] == pytest.approx(0.8, abs=off)
        assert n_bootstrap == 1 or row["low"] < 0.8 < row["high"]


def test_ped_anova_is_about_the_best_and_fanova_about_the_whole_range() -> None:
    ranges = {"to_the_top": UNIT, "out_of_the_pit": UNIT}
    study, values = make_study(
        100, ranges, lambda p: max(p["to_the_top"] - 0.7, 0.0) - 3 * max(0.3 - p["out_of_the_pit"], 0.0)
    )
    frame = importances.assess(study, values, n_bootstrap=1)
    assert frame.groupby("method")["parameter"].first().to_dict() == {
        "PED-ANOVA": "to_the_top",
        "fANOVA": "out_of_the_pit",
    }


def test_fanova_gives_a_conditional_hyperparameter_its_effect_where_it_is_active() -> None:
    ranges: dict[str, BaseDistribution] = {"kind": CategoricalDistribution(["sgd", "adamw"]), "sgd_rate": UNIT}
    absent = {"sgd_rate": lambda p: p["kind"] == "adamw"}
    study, values = make_study(60, ranges, lambda p: p.get("sgd_rate", 0.5), **absent)
    rows = of(importances.assess(study, values, n_bootstrap=1), "fANOVA")
    assert rows.loc["sgd_rate", "importance"] > 0.8
    study, values = make_study(60, ranges, lambda p: 1.0 * (p["kind"] == "sgd") + 0.01 * p.get("sgd_rate", 0), **absent)
    rows = of(importances.assess(study, values, n_bootstrap=1), "fANOVA")
    assert rows.loc["kind", "importance"] > 0.95


def test_fanova_counts_a_logarithmic_range_by_its_decades() -> None:
    """A rate that fails above 0.01 fails in half of what was searched, not in 99 % of it."""
    log: dict[str, BaseDistribution] = {"rate": FloatDistribution(1e-4, 1.0, log=True), "other": UNIT}
    exponent: dict[str, BaseDistribution] = {"rate": FloatDistribution(-4.0, 0.0), "other": UNIT}
    by_rate = make_study(40, log, lambda p: (p["rate"] < 0.01) + p["other"])
    shares = [of(importances.assess(*by_rate, n_bootstrap=1), "fANOVA")["importance"]]
    by_exponent = make_study(40, exponent, lambda p: (p["rate"] < -2) + p["other"])
    shares.append(of(importances.assess(*by_exponent, n_bootstrap=1), "fANOVA")["importance"])
    assert shares[0].to_dict() == pytest.approx(shares[1].to_dict(), abs=1e-6)
    assert shares[0]["rate"] > 0.6


def test_ranges_may_differ_between_trials_and_integers_have_a_width() -> None:
    narrow, wide = IntDistribution(0, 1), IntDistribution(0, 3)
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="maximize")
    draw = np.random.default_rng(0)
    for number in range(40):
        distribution = narrow if number < 20 else wide
        params = {"n": int(draw.integers(distribution.high + 1)), "x": float(draw.uniform())}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions={"n": distribution, "x": UNIT}, value=0.0)
        )
    whole, positions = importances._everywhere("n", study.trials, draw)
    assert whole == UNIT  # It stands for -0.5 to 3.5.
    assert positions == pytest.approx([(trial.params["n"] + 0.5) / 4 for trial in study.trials])
    values = pd.Series({trial.number: float(trial.params["n"]) for trial in study.trials})
    assert of(importances.assess(study, values, n_bootstrap=1), "fANOVA").index[0] == "n"


def test_the_same_seed_gives_the_same_frame() -> None:
    study, values = planted(12)
    first, again, other = (importances.assess(study, values, n_bootstrap=3, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["low"].equals(other["low"])


def test_nothing_is_logged_and_the_log_is_left_as_it_was() -> None:
    study, values = planted(12)
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.addHandler(handler)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        importances.assess(study, values, n_bootstrap=1)
        assert records == []
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
        logger.removeHandler(handler)


def test_a_parameter_that_one_trial_has_neither_warns_nor_matters() -> None:
    study, values = planted(20)
    params, ranges = {"rare": 0.5, "matters": 0.1}, {"rare": UNIT, "matters": UNIT}
    study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = importances.assess(study, pd.concat([values, pd.Series({20: 0.1})]), n_bootstrap=5)
    assert of(frame, "PED-ANOVA").loc["rare", "importance"] == 0
    assert of(frame, "fANOVA").loc["rare", "importance"] < 0.1
    for seed in range(6):  # of which some resample without that trial
        frame = importances.assess(study, pd.concat([values, pd.Series({20: 0.1})]), n_bootstrap=1, seed=seed)
        assert not frame.isna().any(axis=None)


def test_a_tie_of_most_trials_with_the_worst_is_survived() -> None:
    study, values = planted(20)
    frame = importances.assess(study, values.where(values > values.quantile(0.8), 0.1), n_bootstrap=20)
    assert of(frame, "PED-ANOVA").index[0] == "matters"
    one_above = importances.assess(study, values.where(values == values.max(), 0.1), n_bootstrap=20)
    assert not one_above.isna().any(axis=None)


POINTS: dict[str, Any] = {
    "a range of 1e-9": lambda t: t.suggest_float("lr", 1e-9, 2e-9) * 1e8,
    "up to 1e-7": lambda t: t.suggest_float("wd", 0, 1e-7) * 1e6,
    "a range of 1e-12 and a wide one": lambda t: (
        t.suggest_float("a", 1, 1 + 1e-12) + t.suggest_float("b", 0, 1e9) / 1e9
    ),
    "a logarithmic one of 1e-300": lambda t: math.log(t.suggest_float("a", 1e-300, 1e-290, log=True)) / 700,
    "all numbers that there are": lambda t: math.tanh(t.suggest_float("a", -8e307, 8e307) / 1e308),
    "very large integers": lambda t: t.suggest_int("n", 1, 10**18) / 10**18,
    "two choices alone": lambda t: 0.1 * (t.suggest_categorical("c", ["a", "b"]) == "a"),
    "choices of all types": lambda t: 0.1 * (t.suggest_categorical("c", [None, True, 1.5, "a"]) == "a"),
    "one choice and a number": lambda t: t.suggest_float("a", 0, 1) + len(t.suggest_categorical("c", ["a"])),
    "a grid of two": lambda t: t.suggest_float("a", 0, 0.5, step=0.5) + t.suggest_int("n", 0, 4, step=4),
    "ranges that move": lambda t: t.suggest_int("n", 1, t.suggest_int("k", 2, 8)) / 8,
    "a range a trial": lambda t: t.suggest_float("a", t.number, t.number + 0.5) / 10,
    "a point and a range": lambda t: t.suggest_int("n", 1, 1 + t.number % 2) / 2,
    "a point that moves": lambda t: t.suggest_int("n", t.number, t.number) + t.suggest_float("a", 0, 1),
    "a constant": lambda t: 0 * t.suggest_float("a", 0, 1),
    "one that differs": lambda t: 0 * t.suggest_float("a", 0, 1) + 0.4 * (t.number == 0),
    "one that differs, of a choice": lambda t: 0.4 * (t.number == len(t.suggest_categorical("c", "ab"))),
    "one value in a wide range": lambda t: t.suggest_float("a", 0.5, 0.5 + t.number % 2) * 0 + 0.1 * (t.number % 3),
}


@pytest.mark.parametrize("n_trials", [8, 12])
@pytest.mark.parametrize("name", POINTS)
def test_no_range_and_no_choices_make_the_importances_fail(name: str, n_trials: int) -> None:
    for seed in range(2):
        study, values = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)), {}
        for number in range(n_trials):
            trial = study.ask()
            values[number] = POINTS[name](trial) + (0.0 if name in ("a constant",) else 0.01 * (number % 3))
            study.tell(trial, values[number])
        frame = importances.assess(study, pd.Series(values), n_bootstrap=5, seed=seed)
        assert np.isfinite(frame[["importance", "low", "high"]].to_numpy()).all()
        assert frame.empty == (name == "a constant")


@pytest.mark.parametrize("high", [1.0, 1e-9])
def test_a_tiny_range_matters_as_much_as_a_wide_one(high: float) -> None:
    ranges: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, high), "y": UNIT}
    study, values = make_study(40, ranges, lambda p: p["x"] / high + 0.1 * p["y"])
    fanova = of(importances.assess(study, values, n_bootstrap=1), "fANOVA")
    assert list(fanova.index) == ["x", "y"] and fanova["importance"].iloc[0] > 0.8


@pytest.mark.filterwarnings("ignore:Fixed parameter:UserWarning")
@pytest.mark.parametrize("fixed", [{"a": 7.0}, {"a": -1.0}, {"n": 99}, {"n": 2}, {"l": 5.0}, {"i": 300}])
def test_a_first_point_out_of_its_range_counts(fixed: dict[str, float]) -> None:
    study, values = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), {}
    study.enqueue_trial(fixed)
    for number in range(10):
        trial = study.ask()
        values[number] = trial.suggest_float("a", 0, 1) / 10 + trial.suggest_int("n", 1, 9, step=2) / 100
        values[number] += trial.suggest_float("l", 1e-3, 1, log=True) + trial.suggest_int("i", 1, 64, log=True) / 1e3
        study.tell(trial, values[number])
    frame = importances.assess(study, pd.Series(values), n_bootstrap=5)
    assert set(frame["parameter"]) == {"a", "n", "l", "i"}


def test_importances_are_empty_where_nothing_can_be_said() -> None:
    study, values = planted(12)
    for said_nothing in (values.head(7), values * 0 + 0.9, values * math.nan):
        frame = importances.assess(study, said_nothing)
        assert frame.empty
        assert frame.columns.tolist() == COLUMNS
    assert not importances.assess(study, values.head(8), n_bootstrap=1).empty


def test_of_a_run_trials_are_compared_at_equal_budget(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 14)
    study_file.settle(run.path)  # Else SQLite does when the study that made the run is let go of.
    before = (run.path / "study.db").read_bytes()
    frame = importances.of_run(run)
    assert frame.groupby("method")["parameter"].first().tolist() == ["learning_rate", "learning_rate"]
    assert of(frame, "fANOVA").loc["learning_rate", "importance"] > 0.9
    assert (run.path / "study.db").read_bytes() == before


def test_a_run_without_a_study_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    (run.path / "study.db").unlink()
    with pytest.raises(UserError, match=r"run has no study: .*study\.db is missing or empty\."):
        importances.of_run(run)
    assert not (run.path / "study.db").exists()


@pytest.fixture
def closed(tmp_path: Path) -> run_folder.Run:
    """A run of nine trials whose study is all in the one file."""
    run = write_run(tmp_path / "run", 9)
    study_file.settle(run.path)
    return run


@pytest.mark.parametrize("content", [b"no database", b"\0" * 9000, "cut"])
def test_a_damaged_study_is_named(closed: run_folder.Run, content: bytes | str) -> None:
    study = closed.path / "study.db"
    study.write_bytes(content if isinstance(content, bytes) else study.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"run/study\.db is damaged"):
        importances.of_run(closed)


def test_a_study_of_another_optuna_is_named(closed: run_folder.Run) -> None:
    with closing(sqlite3.connect(closed.path / "study.db")) as connection:
        connection.execute("UPDATE version_info SET schema_version = 99")
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0'")
        connection.commit()
    message = r"run/study\.db was written by another version of Optuna: .*"
    with pytest.raises(UserError, match=message):
        importances.of_run(closed)


def test_where_nothing_varies_nothing_is_important() -> None:
    same = [optuna.trial.create_trial(params={"a": x}, distributions={"a": UNIT}, value=0.5) for x in (0.1, 0.5, 0.9)]
    assert importances._shares(optuna.importance.FanovaImportanceEvaluator(seed=0), same) == {}


@pytest.mark.parametrize(
    ("distribution", "value", "expected"),
    [
        (FloatDistribution(0.1, 1.0, log=True), 0.5, FloatDistribution(0.1, 1.0, log=True)),
        (FloatDistribution(0.1, 1.0, log=True), 2.0, FloatDistribution(0.1, 2.0, log=True)),
        (FloatDistribution(0.1, 1.0, log=True), 0.0, FloatDistribution(0.0, 1.0)),
        (FloatDistribution(0.0, 1.0, step=0.1), 0.3, FloatDistribution(0.0, 1.0, step=0.1)),
        (FloatDistribution(0.0, 1.0, step=0.1), 0.35, FloatDistribution(0.0, 1.0)),
        (IntDistribution(0, 8, step=2), 6, IntDistribution(0, 8, step=2)),
        (IntDistribution(0, 8, step=2), 5, IntDistribution(0, 8)),
        (IntDistribution(1, 8), 9, IntDistribution(1, 9)),
    ],
)
def test_a_range_is_widened_to_a_value_that_it_does_not_hold(
    distribution: BaseDistribution, value: float, expected: BaseDistribution
) -> None:
    assert importances._holding(distribution, value) == expected
    optuna.trial.create_trial(params={"a": value}, distributions={"a": expected}, value=0.0)

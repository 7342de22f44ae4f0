"""`tuning.runs.edges`: an end at which the best trials lie is named, with its line; chance and limits are not."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import write_run
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from studies import ask

from tuning import results
from tuning.base import files
from tuning.base.config import Limits, TrainConfig
from tuning.base.errors import UserError
from tuning.runs import edges, schema
from tuning.runs.run_folder import Run
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy

RATE = FloatDistribution(1e-3, 1e-1, log=True)


def frames(
    numbers: dict[str, tuple[BaseDistribution, list[float]]], values: list[float], **columns: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns what trials drew, and the trials; one whose number is NaN did not draw it."""
    rows = []
    for name, (of, drawn) in numbers.items():
        assert isinstance(of, FloatDistribution | IntDistribution)
        row = {"parameter": name, "low": of.low, "high": of.high, "log": of.log, "step": of.step}
        row["whole"] = isinstance(of, IntDistribution)
        rows += [row | {"trial": trial, "value": one} for trial, one in enumerate(drawn) if not math.isnan(one)]
    trials = pd.DataFrame({"trial": range(len(values)), "state": "complete", "valid_accuracy": values})
    config = {f"config/{name}": value for name, value in TrainConfig().model_dump().items()}
    used = {f"config/{name}": drawn for name, (_, drawn) in numbers.items() if name in TrainConfig.model_fields}
    trials = trials.assign(**{**config, "stopped_by": "length", "error": "", **used, **columns})
    return pd.DataFrame(rows).astype(edges.DRAWN), trials


def rates(n: int, seed: int = 0) -> list[float]:
    """Returns learning rates that are spread evenly over their range, in random order; both ends are among them."""
    return (10.0 ** np.random.default_rng(seed).permutation(np.linspace(-3, -1, n))).clip(1e-3, 1e-1).tolist()


def named(found: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(found["parameter"], found["end"], strict=True))


@pytest.mark.parametrize(("end", "sign", "suggested"), [("high", 1, 0.4), ("low", -1, 2.5e-4)])
def test_an_end_at_which_the_best_trials_lie_is_named_and_four_times_as_far_is_another_one(
    end: str, sign: int, suggested: float
) -> None:
    drawn = rates(16)
    found = edges.find(*frames({"learning_rate": (RATE, drawn)}, [0.8 + 0.05 * sign * math.log10(x) for x in drawn]))
    assert {name: str(dtype) for name, dtype in found.dtypes.items()} == edges.COLUMNS
    [row] = found.to_dict("records")
    assert (row["parameter"], row["end"], row["trials"]) == ("learning_rate", end, 16)
    assert (row["low"], row["high"], row["log"], row["hyperparameter"]) == (1e-3, 1e-1, True, "learning_rate")
    assert row["best_value"] == pytest.approx(row[end]) and row["suggested"] == pytest.approx(suggested)
    assert 0 < row["p_value"] <= edges.LEVEL and pd.isna(row["line"]) and pd.isna(row["changed"])


def test_a_best_value_inside_and_chance_are_no_edges() -> None:
    drawn = rates(20)
    inside = [0.9 - (math.log10(x) + 1.5) ** 2 for x in drawn]
    assert named(edges.find(*frames({"learning_rate": (RATE, drawn)}, inside))) == []
    chance = np.random.default_rng(1).normal(size=20).tolist()
    chance[int(np.argmax(drawn))] = 9.0  # The best trial alone lies at the end.
    assert named(edges.find(*frames({"learning_rate": (RATE, drawn)}, chance))) == []


def test_values_that_fall_again_before_the_end_are_no_edge_though_the_best_trials_lie_near_it() -> None:
    ranks = pd.Series(np.arange(1.0, 17.0))
    falling = pd.Series([0.1, 0.2, 0.3, 0.4, 1, 1, 1, 1, 0.6, 0.7, 0.8, 0.8, 0.85, 0.85, 0.85, 0.92])
    assert not edges._is_at(edges._End(falling, ranks, {}))
    assert edges._is_at(edges._End(falling.sort_values(ignore_index=True), ranks, {}))


def test_the_best_trial_itself_lies_in_the_outer_tenth() -> None:
    ranks, rising = pd.Series(np.arange(1.0, 17.0)), pd.Series(np.linspace(0, 1, 16))
    assert edges._is_at(edges._End(rising, ranks, {}))
    assert not edges._is_at(edges._End(rising.replace(1.0, 0.85), ranks, {}))


def test_the_more_ends_are_judged_the_less_does_each_tell() -> None:
    drawn = rates(16)
    values = [0.8 + 0.05 * math.log10(x) for x in drawn]
    one = {"learning_rate": (RATE, drawn)}
    other = {"momentum": (FloatDistribution(0.1, 0.9), np.random.default_rng(5).uniform(0.1, 0.9, 16).tolist())}
    [alone], [beside] = (edges.find(*frames(given, values))["p_value"] for given in (one, one | other))
    assert beside == pytest.approx(2 * alone)


def test_a_conditional_hyperparameter_is_judged_by_the_trials_that_have_it() -> None:
    drawn = [x for rate in rates(12) for x in (math.nan, rate)]
    values = [0.99 if math.isnan(x) else 0.8 + 0.05 * math.log10(x) for x in drawn]
    [row] = edges.find(*frames({"learning_rate": (RATE, drawn)}, values)).to_dict("records")
    assert (row["end"], row["trials"]) == ("high", 12)
    few = [x if i < edges.MIN_TRIALS - 1 else math.nan for i, x in enumerate(rates(24))]
    assert named(edges.find(*frames({"learning_rate": (RATE, few)}, values))) == []


def test_an_end_that_is_the_limit_of_the_hyperparameter_is_none() -> None:
    drawn = np.random.default_rng(2).permutation(np.linspace(0, 0.2, 16)).tolist()
    better_at_0, better_above = [0.9 - x for x in drawn], [0.9 + x for x in drawn]
    numbers = {"label_smoothing": (FloatDistribution(0.0, 0.2), drawn)}
    assert named(edges.find(*frames(numbers, better_at_0))) == []
    [row] = edges.find(*frames(numbers, better_above)).to_dict("records")
    assert row["suggested"] == pytest.approx(0.3)
    # By the name of the hyperparameter that has the values, and not by that of the parameter.
    other = {"smooth": (FloatDistribution(0.0, 0.2), drawn)}
    assert named(edges.find(*frames(other, better_at_0, **{"config/label_smoothing": drawn}))) == []
    [row] = edges.find(*frames(other, better_at_0)).to_dict("records")
    assert (row["end"], row["suggested"]) == ("low", pytest.approx(-0.1)) and pd.isna(row["hyperparameter"])


def test_integers_of_three_values_can_have_an_edge_and_those_of_two_have_none() -> None:
    drawn = [float(i % 3) for i in range(18)]
    values = [0.9 + 0.01 * x + 0.0001 * i for i, x in enumerate(drawn)]
    [row] = edges.find(*frames({"crop_padding": (IntDistribution(0, 2), drawn)}, values)).to_dict("records")
    assert (row["end"], row["suggested"], row["whole"]) == ("high", 3, True)
    two = {"crop_padding": (IntDistribution(0, 1), [x % 2 for x in drawn])}
    assert named(edges.find(*frames(two, [0.9 + 0.01 * (x % 2) for x in drawn]))) == []


def test_a_second_end_must_explain_what_the_first_does_not() -> None:
    """A sampler that learns draws the ends of two ranges together; only one of them does anything."""
    drawn = rates(20)
    place = [(math.log10(x) + 3) / 2 for x in drawn]
    together = [0.8 + 0.1 * min(1.0, max(0.0, p + 0.02 * (-1) ** i)) for i, p in enumerate(place)]
    momentum = (FloatDistribution(0.8, 0.9), together)
    numbers = {"learning_rate": (RATE, drawn), "momentum": momentum}
    assert named(edges.find(*frames(numbers, place))) == [("learning_rate", "high")]
    assert named(edges.find(*frames({"momentum": momentum}, place))) == [("momentum", "high")]


def test_a_range_that_was_widened_is_judged_as_it_is_now() -> None:
    drawn, trials = frames({"learning_rate": (RATE, rates(16))}, [0.8 + 0.05 * math.log10(x) for x in rates(16)])
    assert named(edges.find(drawn, trials)) == [("learning_rate", "high")]
    wider = drawn.assign(high=drawn["high"].where(drawn["trial"] < 15, 0.4))
    assert named(edges.find(wider, trials)) == []
    narrower = drawn.assign(high=drawn["high"].where(drawn["trial"] < 15, 0.02))
    [row] = edges.find(narrower, trials).to_dict("records")
    assert (row["high"], row["best_value"]) == (0.02, pytest.approx(0.1))


def test_what_says_nothing_of_its_configuration_is_left_out_and_what_diverged_is_the_worst() -> None:
    drawn = rates(16)
    values: list[float] = [0.8 + 0.05 * math.log10(x) for x in drawn]
    state = ["complete"] * 16
    numbers = {"learning_rate": (RATE, drawn)}
    for i in range(16):  # Those with the highest rates.
        if drawn[i] > 0.03:
            state[i], values[i] = "failed", math.nan
    diverged = edges.find(*frames(numbers, values, state=state, error="Training loss must be finite, but got nan"))
    assert named(diverged) == []
    # Of another failure nothing is known: the best of the others lie far from the end, or too few are left.
    assert named(edges.find(*frames(numbers, values, state=state, error="OSError: no disk"))) == []
    running = frames(numbers, [0.8 + 0.05 * math.log10(x) for x in drawn], state="running")
    assert named(edges.find(*running)) == []
    for stopped_by, n in (("scheduler", 1), ("time budget", 0)):
        columns = {"state": "pruned", "stopped_by": stopped_by}
        assert len(edges.find(*frames(numbers, [0.8 + 0.05 * math.log10(x) for x in drawn], **columns))) == n


def test_a_loss_is_better_where_it_is_lower() -> None:
    from tuning.base.registries import METRICS

    drawn = rates(16)
    given = frames({"learning_rate": (RATE, drawn)}, [0.0] * 16, valid_score=[-math.log10(x) for x in drawn])
    assert named(edges.find(*given, METRICS["log_loss"])) == [("learning_rate", "high")]


def test_many_trials_are_judged_by_the_normal_approximation() -> None:
    rising = {n: _p(n) for n in (edges.MOST_PERMUTED, edges.MOST_PERMUTED + 1)}
    assert rising[edges.MOST_PERMUTED + 1] == pytest.approx(rising[edges.MOST_PERMUTED], rel=0.15)


def _p(n: int) -> float:
    draw = np.random.default_rng(3)
    closeness, noise = pd.Series(np.linspace(0, 1, n)), pd.Series(draw.normal(size=n))
    end = edges._End(closeness, (1.0 * closeness + noise).rank(), {})
    return edges._p_value(end, [])


@pytest.mark.parametrize(
    ("low", "high", "end", "options", "expected"),
    [
        (0.01, 1.0, "high", {"log": True}, 4.0),
        (0.01, 5.0, "high", {"log": True, "limit": Limits(0, 10, low_is_open=True)}, 10.0),
        (0.01, 10.0, "high", {"log": True, "limit": Limits(0, 10, low_is_open=True)}, None),
        (0.8, 0.95, "high", {"limit": Limits(0, 1, high_is_open=True)}, 0.97),
        (0.9, 0.9999, "high", {"limit": Limits(0, 1, high_is_open=True)}, 0.99995),
        (0.01, 0.1, "low", {}, 0.005),
        (0.0, 0.4, "low", {"limit": Limits(0, 1)}, None),
        (0.1, 0.4, "low", {"limit": Limits(0, 1)}, 0.05),
        (-1.0, 1.0, "low", {}, -2.0),
        (0, 2, "high", {"step": 1.0, "limit": Limits(0, 16)}, 3.0),
        (0, 15, "high", {"step": 1.0, "limit": Limits(0, 16)}, 16.0),
        (8, 64, "low", {"log": True, "step": 1.0, "limit": Limits(4, 256)}, 4.0),
        (8, 64, "low", {"log": True, "step": 1.0, "limit": Limits(8, 4096)}, None),
        (0.0, 1.0, "high", {"step": 0.25}, 1.5),
        (1000.0, 1010.0, "high", {}, 1020.0),
    ],
)
def test_where_a_range_may_end_instead(
    low: float, high: float, end: str, options: dict[str, Any], expected: float | None
) -> None:
    found = edges.wider(low, high, end, **{"log": False, "step": math.nan, "limit": Limits(), **options})
    assert found == (None if expected is None else pytest.approx(expected, rel=0.02))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose best learning rates lie at the upper end of the smoke space's range."""
    found = write_run(tmp_path / "results" / "one", 20, best=1.0)
    shutil.copy(files.SPACES / "smoke.py", found.path / "space.py")
    return found


LINE = '"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True),'


def test_a_run_names_the_line_of_its_space(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.path.parents[1])
    space = run.path / "space.py"
    space.write_text(space.read_text(), encoding="utf-8-sig")  # As some editors write a file that was changed.
    [row] = run.edges.to_dict("records")
    line = space.read_text().splitlines()[row["line"] - 1].strip()
    assert row["text"] == line == LINE and row["changed"] == LINE.replace("1.0", "4.0")
    results.print_edges(run)
    said, *lines, step = capsys.readouterr().out.splitlines()
    assert said.startswith(
        "At the edge: The best of the 20 trials that drew learning_rate lie at the upper end of its range, 0.001 to "
    )
    assert lines == [f"  space.py, line {row['line']}: {LINE}", f"  a wider range: {LINE.replace('1.0', '4.0')}"]
    assert step.startswith("To search beyond it, change ")
    assert step.endswith("one/space.py, then run `python -m tuning.search --resume one --samples 40`.")


def test_a_space_that_does_not_tell_has_the_sentence_alone(run: Run) -> None:
    for source in ("def space(trial):\n    return suggest(trial)\n", None):
        (run.path / "space.py").unlink() if source is None else (run.path / "space.py").write_text(source)
        found = edges.text(run)
        assert "Let it end at 4.0 in the space, for example." in found and "space.py, line" not in found
        assert {name: str(dtype) for name, dtype in run.edges.dtypes.items()} == edges.COLUMNS


@pytest.mark.parametrize(
    ("whole", "best", "shown"), [(True, 2040, "2040"), (False, 0.99991, "0.99991"), (False, 0.8765, "0.876")]
)
def test_the_best_value_is_written_as_it_is(run: Run, whole: bool, best: float, shown: str) -> None:
    row = run.edges.assign(whole=whole, best_value=float(best), high=2048.0)
    assert edges.said(row)[0].partition(": the best one has ")[2].startswith(f"{shown}.")


def test_a_space_that_uses_other_files_is_changed_for_a_new_search(run: Run) -> None:
    (run.path / "space.zip").touch()
    assert edges.text(run).endswith("To search beyond it, change the space smoke and begin a new search.")


def test_a_resumed_run_draws_beyond_the_end_and_is_judged_by_the_wider_range(run: Run) -> None:
    [row] = run.edges.to_dict("records")
    space = run.path / "space.py"
    space.write_text(space.read_text().replace(row["text"], row["changed"]))
    study = RunStudy(run.path, load_space(str(space)), optuna.samplers.RandomSampler(seed=1), epochs=4, seed=0)
    drawn = [ask(study).config.learning_rate for _ in range(30)]
    study.close("the test")
    assert 1.0 < max(drawn) <= 4.0
    assert (edges.drawn(run.path).query("trial >= 20 and parameter == 'learning_rate'")["high"] == 4.0).all()
    assert run.edges.empty or (run.edges["high"] == 4.0).all()


def test_without_an_edge_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "one", 20)
    results.print_edges(run)
    assert capsys.readouterr().out == "" and run.edges.empty


def test_a_run_without_a_study_has_no_edges_and_one_whose_study_is_damaged_says_so(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run.path / "study.db"
    study.write_bytes(b"no database at all")
    (run.path / "study.db-wal").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"study\.db is damaged"):
        _ = run.edges
    results.print_edges(run)
    said = capsys.readouterr().out
    assert said.startswith("Whether the best trials lie at an end of a range is not known: ") and "is damaged" in said
    study.unlink()
    assert run.edges.empty and {name: str(dtype) for name, dtype in run.edges.dtypes.items()} == edges.COLUMNS
    results.print_edges(run)
    assert capsys.readouterr().out == ""


def test_what_trials_drew_is_read_from_the_study_of_the_run(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    trial = study.ask()
    x, n = trial.suggest_float("x", 0.5, 2.0, log=True), trial.suggest_int("n", 0, 8, step=2)
    trial.suggest_categorical("c", ["a", "b"])
    found = edges.drawn(tmp_path)
    assert {name: str(dtype) for name, dtype in found.dtypes.items()} == edges.DRAWN
    one, two = found.to_dict("records")
    assert (one["parameter"], one["value"], one["low"], one["high"], one["log"]) == ("x", x, 0.5, 2.0, True)
    assert (two["parameter"], two["value"], two["step"], two["whole"], one["whole"]) == ("n", n, 2.0, True, False)
    assert math.isnan(one["step"]) and edges.drawn(tmp_path / "nowhere").empty


def test_a_run_of_version_0_2_0_is_read(tmp_path: Path) -> None:
    old = Run(Path(__file__).parent / "version-0.2.0" / "old")
    assert len(edges.drawn(old.path)) and list(old.edges.columns) == list(edges.COLUMNS)
    assert set(schema.TRIAL_COLUMNS) <= set(old.trials.columns)

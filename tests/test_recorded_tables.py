"""Tables of learning curves that others bring: what is read, what is refused, and that no result is lost over it."""

import concurrent.futures
import copy
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import comparison
import numpy as np
import optuna
import pandas as pd
import portfolio
import pytest
import recording
import search_quality
import start_from
import tables
import time_left
import until_converged
from methods import METHODS
from search_quality import Search, read_runs, runs_file
from simulation import Ended, simulate

from tuning.base.errors import UserError

RECORDED = Path(__file__).parent / "benchmarks" / "tables" / "image-classifiers" / "fashion-mnist.csv"
N, LAST = 24, 10  # Configurations of a table, and its last epoch.
Rows = list[dict[str, Any]]


def rows_of(n: int = N) -> Rows:
    """Returns a table in TaskSet's format; the best rate is 0.1."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        config = {"rate": 10 ** draw.uniform(-4, 1), "plain": draw.uniform(1, 3)}
        loss = 1 + abs(math.log10(config["rate"]) + 1) * np.linspace(0.5, 1, LAST + 1)[::-1]
        rows.append({"hp": config, "valid": {"loss": loss.tolist()}})
    return rows


def write(folder: Path, rows: Any, name: str = "t1") -> Path:
    """Writes a table; returns the folder of tables."""
    (folder / "taskset").mkdir(parents=True, exist_ok=True)
    (folder / "taskset" / f"{name}.json").write_text(json.dumps(rows))
    return folder


def record(folder: Path, frame: pd.DataFrame, name: str = "fm", **written: Any) -> Path:
    """Writes some rows of our own recording as one of its own; returns the folder of tables."""
    path = folder / "image-classifiers" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, **written)
    for file in (recording.facts_file, recording.space_file):
        file(path).write_bytes(file(RECORDED).read_bytes())
    return folder


@pytest.fixture(scope="module")
def recorded() -> pd.DataFrame:
    """The first 8 configurations of our own recording, as text."""
    frame = pd.read_csv(RECORDED, dtype=str, keep_default_na=False)
    return frame[(frame["repeat"] == "0") & (frame["configuration"].astype(int) < 8)]


class Here(concurrent.futures.ThreadPoolExecutor):
    """One thread in the place of processes."""

    def __init__(self, n: int, mp_context: Any = None) -> None:
        super().__init__(1)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script's main; returns what it said on stderr, and checks its exit code."""
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(until_converged, "ProcessPoolExecutor", Here)

    def run(module: Any, options: str, folder: Path, code: int = 2, out: Path | None = None) -> str:
        search_quality._task.cache_clear()
        command = [module.__name__, "--tables", str(folder), *options.split(), *(("--out", str(out)) if out else ())]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        if code:
            with pytest.raises(SystemExit) as ended:
                module.main()
            assert ended.value.code == code
        else:
            module.main()
        return capsys.readouterr().err

    return run


SHORT = "--methods random --seeds 2 --slots 2"


def kept(out: Path, samples: int, of: dict[str, str] | None = None) -> int:
    """Returns how many searches of so many samples are kept."""
    frame = read_runs(out, ["random"], samples, of)
    return len(frame[["task", "slots", "seed"]].drop_duplicates())


def test_results_of_other_numbers_of_samples_stay(tmp_path: Path, ends: Callable[..., str]) -> None:
    folder, out = write(tmp_path, rows_of()), tmp_path / "out"
    for samples in (6, 4):
        ends(search_quality, f"{SHORT} --samples {samples}", folder, 0, out)
    ends(search_quality, f"{SHORT} --samples 4 --seeds 1", folder, 0, out)
    assert (kept(out, 6), kept(out, 4)) == (2, 2)


def test_another_table_of_the_name_is_searched_again_and_the_first_is_kept(
    tmp_path: Path, ends: Callable[..., str]
) -> None:
    out, other = tmp_path / "out", rows_of()
    other[3]["valid"]["loss"][-1] -= 0.1
    old = out / "runs" / "random.csv"
    old.parent.mkdir(parents=True)
    old.write_text("task,method\n")
    assert "does not say of which tables" in ends(
        search_quality, f"{SHORT} --samples 4", write(tmp_path / "a", rows_of()), 0, out
    )
    ends(search_quality, f"{SHORT} --samples 4", write(tmp_path / "b", other), 0, out)
    found = read_runs(out, ["random"], 4)
    assert found["table"].nunique() == 2 and len(found[found["state"] != "shown"]) == 2 * 2 * 4
    a, b = (tables.load(tmp_path / name, "taskset", "t1").table for name in "ab")
    assert kept(out, 4, {"t1": a}) == kept(out, 4, {"t1": b}) == 2 and kept(out, 4, {"t1": "c"}) == 0
    assert old.read_text() == "task,method\n"


def test_a_method_slots_and_rows_that_are_there_twice_count_once(tmp_path: Path, ends: Callable[..., str]) -> None:
    folder, out = write(tmp_path, rows_of()), tmp_path / "out"
    options = "--methods random random --slots 2 2 --seeds 1 --samples 4"
    ends(search_quality, options, folder, 0, out)
    file = runs_file(out, "random", 4)
    text = file.read_text()
    assert text.count(",complete,") == 4
    file.write_text(text + text.partition("\n")[2])
    assert kept(out, 4) == 1
    ends(search_quality, options, folder, 0, out)
    assert len(pd.read_csv(out / "frame.csv")) == 4


@pytest.mark.parametrize("name", ["189908", "nan"])
def test_a_name_may_be_a_number(name: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    folder, out = write(tmp_path, rows_of(), name), tmp_path / "out"
    ends(search_quality, f"{SHORT} --samples 4", folder, 0, out)
    assert kept(out, 4, {name: tables.load(folder, "taskset", name).table}) == 2


def test_a_file_of_results_that_is_damaged_is_named(tmp_path: Path, ends: Callable[..., str]) -> None:
    folder, out = write(tmp_path, rows_of()), tmp_path / "out"
    ends(search_quality, f"{SHORT} --samples 4", folder, 0, out)
    file = runs_file(out, "random", 4)
    whole = file.read_text()
    file.write_text(whole.replace(",complete,", ",complete,x", 1))
    assert f"{file} is damaged" in ends(search_quality, f"{SHORT} --samples 4", folder, out=out)
    file.write_text("task,method\na,b\n")
    assert f"{file} must have the columns" in ends(search_quality, f"{SHORT} --samples 4", folder, out=out)


def test_what_has_ended_is_kept_where_another_search_fails(
    tmp_path: Path, ends: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, rows_of(), "a")
    folder, out, run = write(tmp_path, rows_of(), "b"), tmp_path / "out", search_quality.run
    ran = []

    def failing(folder: Path, kind: str, search: Search, samples: int) -> Any:
        ran.append(search)
        if (search.task, search.seed) == ("a", 1):
            raise KeyError("lost")
        if search.seed > 1:  # The failure is noticed in another thread.
            time.sleep(0.1)
        return run(folder, kind, search, samples)

    monkeypatch.setattr(search_quality, "run", failing)
    said = ends(search_quality, "--methods random --seeds 30 --slots 2 --samples 4", folder, out=out)
    assert "The search of a by 'random' (2 slots, seed 1) failed" in said and "KeyError: 'lost'" in said
    assert 2 <= kept(out, 4) == len(ran) - 1 < 30


def test_pairs_that_have_ended_are_shown_and_kept_where_another_fails(
    tmp_path: Path, ends: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = write(tmp_path, rows_of()), start_from.run

    def failing(folder: Path, pair: Any, slots: int, first: int, seed: int, bare: bool) -> Any:
        if seed:
            raise KeyError("lost")
        return run(folder, pair, slots, first, seed, bare)

    monkeypatch.setattr(start_from, "run", failing)
    out = tmp_path / "new" / "trials.csv"
    said = ends(start_from, "--pairs upside-down:t1 --seeds 2 --first 5", folder, out=out)
    assert "The search of upside-down:t1 (seed 1) failed" in said
    assert pd.read_csv(out)["seed"].unique().tolist() == [0]


def test_a_hyperparameter_of_one_value_is_not_searched(tmp_path: Path) -> None:
    rows = rows_of()
    for row in rows:
        row["hp"]["fixed"] = 0.9
    task = tables.load(write(tmp_path, rows), "taskset", "t1")
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    assert task.space(trial)["fixed"] == 0.9 and trial.params.keys() == {"rate", "plain"}
    found = simulate(task, METHODS["random"], slots=1, samples=N, seed=0)
    assert len({trial.value for trial in found}) == N and min(trial.regret for trial in found) == 0


@pytest.mark.parametrize(("factor", "more"), [(100.0, 1000.0), (1.0, -100.0)])
def test_losses_of_any_size_are_told_apart(factor: float, more: float, tmp_path: Path) -> None:
    rows = rows_of()
    plain = tables.load(write(tmp_path / "plain", copy.deepcopy(rows)), "taskset", "t1")
    for row in rows:
        row["valid"]["loss"] = [factor * loss + more for loss in row["valid"]["loss"]]
    task = tables.load(write(tmp_path / "other", rows), "taskset", "t1")
    least = min(rows, key=lambda row: min(row["valid"]["loss"][1:]))
    assert task.best == task.curve(least["hp"]).values[-1] == 1.0  # noqa: PD011
    assert plain.best == np.exp(-min(plain_loss for row in rows_of() for plain_loss in row["valid"]["loss"][1:]))


def broken(change: Callable[[Rows], Any]) -> Any:
    rows = rows_of()
    return change(rows) or rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: {"a": 1}, "t1.json must be a list of at least 2 configurations .*, but got a dict"),
        (lambda rows: rows[:1], "t1.json must be a list of at least 2 configurations .*, but got a list of 1"),
        (lambda rows: rows[3].pop("valid") and None, "t1.json: configuration 3 must have losses, .*, but has none"),
        (lambda rows: rows[3]["valid"].update(loss=None), "configuration 3 must have losses, .*, but has none"),
        (lambda rows: rows[3]["valid"].update(loss=[]), "configuration 3 must have losses, .*, but has 0 of them"),
        (lambda rows: rows[0]["valid"].update(loss=[1.0]), "configuration 0 must have losses, .*, but has 1 of them"),
        (lambda rows: rows[3]["valid"]["loss"].pop() and None, f"must have {LAST + 1} losses, .*, but has {LAST}"),
        (lambda rows: rows[3]["valid"]["loss"].append("x"), "must have 11 losses, as the first one has, but has 12"),
        (lambda rows: rows[3]["valid"]["loss"].__setitem__(2, "x"), "must have numbers as losses .*, but has 'x'"),
        (lambda rows: rows[3]["hp"].pop("plain") and None, "must have the hyperparameters of the first one, but 'pla"),
        (lambda rows: rows[3]["hp"].update(plain="relu"), "must have finite numbers as hyper.*, but plain is 'relu'"),
        (lambda rows: [rows[0], rows[0]], "must have a hyperparameter of more than one value, but all are constant"),
        (lambda rows: [r | {"valid": rows[0]["valid"]} for r in rows], "The best configuration of t1 in .* must be be"),
        (lambda rows: [r | {"valid": {"loss": [1.0, None]}} for r in rows], "both reach 0, so that there is no regret"),
    ],
)
def test_what_is_no_table_is_refused_by_name(
    change: Callable[[Rows], Any], said: str, tmp_path: Path, ends: Callable[..., str]
) -> None:
    folder = write(tmp_path, broken(change))
    with pytest.raises(UserError, match=said):
        tables.load(folder, "taskset", "t1")
    assert ends(search_quality, f"{SHORT} --samples 2", folder, out=tmp_path / "out").startswith("error: ")


def test_a_recording_is_read_by_the_names_of_its_columns(recorded: pd.DataFrame, tmp_path: Path) -> None:
    ways: dict[str, dict[str, Any]] = {"plain": {}, "crlf": {"lineterminator": "\r\n"}}
    folders = [record(tmp_path / name, recorded, **written) for name, written in ways.items()]
    folders.append(record(tmp_path / "turned", recorded[list(recorded.columns[::-1])]))
    found = [tables.load(folder, "image-classifiers", "fm") for folder in folders]
    assert len({(task.best, task.median, task.cost, task.table) for task in found}) == 1
    assert found[0].n_configurations == 8


def test_a_recording_that_is_not_whole_is_refused_by_name(recorded: pd.DataFrame, tmp_path: Path) -> None:
    def said(folder: Path) -> str:
        with pytest.raises(UserError) as refused:
            tables.load(folder, "image-classifiers", "fm")
        return str(refused.value)

    one = recorded[recorded["configuration"] == "0"]
    assert "fm.csv must have the trainings of at least 2 configurations, but has one" in said(
        record(tmp_path / "1", one)
    )
    assert "but has none yet. Run record_curves.py" in said(record(tmp_path / "2", recorded[:0]))
    far = recorded.assign(configuration=[str(int(number) + 9000) for number in recorded["configuration"]])
    assert "but has one of configuration 9007." in said(record(tmp_path / "3", far))
    assert "but both reach 0.5" in said(record(tmp_path / "4", recorded.assign(valid_accuracy="0.5")))
    words = recorded.assign(valid_accuracy="good")
    assert "fm.csv is damaged" in said(record(tmp_path / "5", words))
    assert "but 'finished' is not among them" in said(record(tmp_path / "6", recorded.drop(columns="finished")))
    for n, file in enumerate(("fm.csv", "fm.space.py"), 7):
        folder = record(tmp_path / str(n), recorded)
        (folder / "image-classifiers" / file).unlink()
        assert f"must be a recording of three files, but {file} is missing" in said(folder)
    folder = record(tmp_path / "9", recorded)
    (folder / "image-classifiers" / "fm.json").write_text("{}")
    assert "fm.json must say how a recording was made, but has no 'epochs'" in said(folder)
    facts = json.loads(recording.facts_file(RECORDED).read_text()) | {"metric": "luck"}
    (folder / "image-classifiers" / "fm.json").write_text(json.dumps(facts))
    assert "must be one of" in said(folder) and "but got 'luck'" in said(folder)
    changes = {'"erase", 0.0, 0.4': '"erase", 0.5, 0.6', "[64, 128, 256]": "[32]", '"batch_size"': '"batch"'}
    for n, (before, after) in enumerate(changes.items(), 10):
        folder = record(tmp_path / str(n), recorded)
        space = folder / "image-classifiers" / "fm.space.py"
        text = space.read_text()
        space.write_text(text.replace(before, after))
        assert before in text
        assert "fm.space.py must be the space that the configurations in fm.json are of, but conf" in said(folder)


def test_no_two_tasks_begin_with_the_same_points(tmp_path: Path, ends: Callable[..., str]) -> None:
    for name in ("t1", "t2"):
        write(tmp_path, rows_of(), name)
    ends(search_quality, "--methods random --seeds 1 --slots 1 --samples 3", tmp_path, 0, tmp_path / "out")
    found = read_runs(tmp_path / "out", ["random"], 3)
    of_task = {task: list(rows["value"]) for task, rows in found.groupby("task")}
    assert of_task["t1"] != of_task["t2"]


def test_a_folder_without_tables_is_refused(tmp_path: Path, ends: Callable[..., str]) -> None:
    assert "must be a folder that holds taskset" in ends(search_quality, SHORT, tmp_path, out=tmp_path / "out")


def test_one_name_in_two_formats_is_refused(recorded: pd.DataFrame, tmp_path: Path) -> None:
    record(tmp_path, recorded)
    write(tmp_path, rows_of(), "fm")
    with pytest.raises(UserError, match=r"has fm twice, in taskset/ and in image-classifiers/\. Rename"):
        tables.names(tmp_path)


def test_more_samples_than_configurations_are_refused_before_anything_runs(
    recorded: pd.DataFrame, tmp_path: Path, ends: Callable[..., str]
) -> None:
    folder, images = write(tmp_path / "a", rows_of(12)), record(tmp_path / "b", recorded)
    said = "--samples must be at most 12, the number of configurations of t1, but got 13."
    for module, options in ((search_quality, SHORT), (time_left, ""), (until_converged, "")):
        assert said in ends(module, f"{options} --samples 13", folder)
    assert "--samples must be at most 8, the number of configurations of fm" in ends(
        until_converged, "--samples 9", images
    )
    assert "--first must be at most 12" in ends(start_from, "--pairs upside-down:t1", folder)
    said = "t1 must have at least 20 configurations, as many as a search has trials, but has 12."
    assert said in ends(start_from, "--pairs upside-down:t1 --first 5", folder)
    for of, kind in ((folder, "taskset"), (images, "image-classifiers")):
        [name] = tables.names(of)
        task = tables.load(of, kind, name)
        with pytest.raises(UserError, match=f"must be at most the {task.n_configurations} configurations of {name}"):
            simulate(task, METHODS["random"], slots=1, samples=13, seed=0)


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        *((search_quality, f"--{name} 0", f"argument --{name}: must be a whole number of at least 1") for name in (
            "samples", "slots", "seeds", "processes",
        )),
        (search_quality, "--seeds x", "argument --seeds: must be a whole number of at least 1, but got 'x'."),
        (search_quality, "--training-seconds 0", "must be a number of at least 0.001, but got '0'."),
        (search_quality, "--tasks zz", "--tasks must be parts of the names t1, but got 'zz'."),
        (search_quality, "--half b", "--half b has every other task, but t1 is the only one. Use --half a or all."),
        (until_converged, "--half b", "--half b has every other task, but t1 is the only one. Use --half a or all."),
        (until_converged, "--samples 0", "must be a whole number of at least 1, but got '0'."),
        (time_left, "--seeds 0", "must be a whole number of at least 1, but got '0'."),
        (portfolio, "--size 0", "must be a whole number of at least 1, but got '0'."),
        (start_from, "", "--tasks must leave two tasks with the same hyperparameters, but got t1."),
        (start_from, "--tasks zz", "--tasks must be parts of the names t1, but got 'zz'."),
        (start_from, "--pairs a", "--pairs must be FROM:TO, two names of tasks, but got 'a'."),
        (start_from, "--pairs t1:q", "TO in --pairs t1:q must be one of t1, but got 'q'."),
        (start_from, "--pairs q:t1", "FROM in --pairs q:t1 must be one of t1, upside-down, but got 'q'."),
        (start_from, "--out .", "--out must be a file, but got the folder ."),
    ],
)  # fmt: skip
def test_what_an_option_cannot_take_is_said(
    module: Any, options: str, said: str, tmp_path: Path, ends: Callable[..., str]
) -> None:
    assert said in ends(module, options, write(tmp_path, rows_of()))


def test_half_b_has_every_other_seed(tmp_path: Path, ends: Callable[..., str]) -> None:
    write(tmp_path, rows_of(), "t2")
    said = "--seeds must be at least 2 with --half b, which has every other one, but got 1."
    assert said in ends(search_quality, "--methods random --half b --seeds 1", write(tmp_path, rows_of()))


def test_a_file_that_cannot_be_read_is_named_and_a_bug_keeps_its_traceback(
    tmp_path: Path, ends: Callable[..., str]
) -> None:
    (tmp_path / "taskset" / "t1.json").mkdir(parents=True)
    assert "t1.json: Is a directory." in ends(search_quality, "--methods random", tmp_path)
    bug = SimpleNamespace(__name__="bug", main=common.command(lambda: {}["a"]))
    with pytest.raises(KeyError):
        bug.main()


def test_a_portfolio_needs_configurations_in_common(
    recorded: pd.DataFrame, tmp_path: Path, ends: Callable[..., str]
) -> None:
    number = recorded["configuration"].astype(int)
    record(tmp_path / "apart", recorded[number < 4], "low")
    said = ends(portfolio, "", record(tmp_path / "apart", recorded[number >= 4], "high"))
    assert "high, low must have trained configurations in common, by number, but have none." in said
    record(tmp_path / "same", recorded.assign(valid_accuracy="0.5"), "flat")
    said = ends(portfolio, "", record(tmp_path / "same", recorded, "other"))
    assert "flat.csv must have a configuration that is better than the median one" in said
    record(tmp_path / "both", recorded, "one")
    said = ends(portfolio, "--size 9", record(tmp_path / "both", recorded, "two"))
    assert "--size must be at most 8, the number of configurations that one, two have in common, but got 9." in said


def test_searches_that_end_at_once_are_shown(tmp_path: Path, ends: Callable[..., str]) -> None:
    rows = rows_of()
    for i, row in enumerate(rows):
        if i % 5:
            row["valid"]["loss"][1:] = [None] * LAST
    out = tmp_path / "out"
    ends(search_quality, "--methods random --seeds 1 --samples 1 --slots 2", write(tmp_path, rows), 0, out)
    assert (out / "regret.png").exists()


def test_the_time_that_is_left_goes_by_the_epochs_of_a_configuration_and_both_rules_by_the_same_moments(
    recorded: pd.DataFrame, tmp_path: Path
) -> None:
    short = recorded[recorded["epoch"].astype(int) <= 2].copy()
    short.loc[short["epoch"] == "2", "finished"] = "early stopping"
    task = tables.load(record(tmp_path, short), "image-classifiers", "fm")
    search = time_left.Watched(task, time_left.METHOD, time_left.METHOD.sampler(0), 0)
    search.run(2, 6)
    assert {trial.length for trial, _ in search.seen(max(search.ended.values()))} == {task.epochs} != {2}
    rows = time_left.measured(tables.load(write(tmp_path, rows_of()), "taskset", "t1"), 2, 20, 3)
    assert len({row["said"] for row in rows}) == 1 and rows[0]["trials"] == 20
    assert len({tuple(math.isnan(row[name]) for name in row if name.startswith("off")) for row in rows}) == 1


def ended(number: int, at: float, observed: float = 0.5) -> Ended:
    return Ended(number, "complete", 1, at, observed, observed, 0.5)


def test_a_search_that_has_converged_ends_with_what_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def has_converged(gains: Any, merits: Any) -> bool:
        asked.append((len(gains), len(merits)))
        return len(gains) == 4

    monkeypatch.setattr(until_converged.convergence, "has_converged", has_converged)
    trials = [ended(0, 1.0), ended(1, 9.0), ended(2, 2.0), ended(3, 3.0), ended(4, 4.0), ended(5, 5.0)]
    assert until_converged.ends_after(trials, dict.fromkeys(range(6), 0.0), slots=2) == 4
    assert asked == [(2, 1), (3, 2), (4, 3)]  # 1 trains on: of those that have begun, it alone has not ended.
    assert until_converged.ends_after(trials, {}, slots=2) == 6


def test_an_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    found = [comparison.mean_and_interval(draw.normal(0, 1, 5)) for _ in range(2000)]
    assert 0.94 < np.mean([low <= 0 <= high for _, low, high in found]) < 0.96
    assert comparison.mean_and_interval(np.ones(5)) == (1.0, 1.0, 1.0)
    assert comparison.with_interval(np.array([0.1, 0.2])) == "+0.150"
    assert comparison.with_interval(np.full(5, 0.25), ".3f") == "0.250 (0.250 to 0.250)"


def test_of_two_tasks_no_pair_is_chosen_twice() -> None:
    pairs = [start_from.Pair("a", "b"), start_from.Pair("b", "a")]
    assert [pair.name for pair in start_from.chosen(dict.fromkeys(pairs, 0.5), 4)] == ["a:b", "b:a", "upside-down:a"]

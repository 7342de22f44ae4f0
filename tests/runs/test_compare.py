"""`tuning.runs.compare`: runs with known numbers, what differs between them, and how good they are at equal cost."""

import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from rich.console import Console

from tuning import results
from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.figures import run_figures
from tuning.runs import compare, run_folder, schema, summaries
from tuning.runs.run_folder import Run
from tuning.trials import record

START = pd.Timestamp("2026-11-23T10:00:00+00:00")
META = {
    "settings": {"space": "resnet", "dataset": "fashion-mnist", "epochs": 8, "seed": 0, "sampler": "tpe"}
    | {"scheduler": "asha", "device": "cpu", "concurrency": 2, "train_images": None},
    "dataset": "fashion-mnist",
    "seed": 0,
    "started": START.isoformat(),
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "hardware": {"cpu": "one", "cores": 2, "gpus": []},
    "git_commit": "abc",
    "split_hash": "af0c",
    "valid_hash": "fa0c",
}
# (trial, epoch_seconds, valid_accuracy), in the order in which the epochs ended: 6 and 3.5 slot minutes.
LONG = [(0, 60, 0.5), (1, 60, 0.6), (0, 60, 0.75), (1, 60, 0.8), (2, 120, 0.9)]
SHORT = [(1, 90, 0.55), (0, 90, 0.4), (1, 30, 0.65)]


def make_run(
    path: Path,
    epochs: Sequence[tuple[int, float, float]],
    states: Sequence[str] = ("complete",) * 3,
    space: str = "def space(trial): ...\n",
    **meta: Any,
) -> Run:
    """Writes a run folder; values of `meta` that are objects are merged into those of `META`."""
    files.make_folder(path)
    merged = {name: value | meta.get(name, {}) if isinstance(value, dict) else value for name, value in META.items()}
    plain = {name: value for name, value in meta.items() if not isinstance(value, dict)}
    files.write_json(path / "meta.json", merged | plain)
    files.write_text(path / "space.py", space)
    rows, ended = [], Counter[int]()
    for t, s, a in epochs:
        ended[t] += 1
        values = {"trial": t, "epoch": ended[t], "epoch_seconds": s, "valid_accuracy": a}
        rows.append(dict.fromkeys(schema.EPOCH_COLUMNS, 1) | values)
    files.write_rows(path / "epochs.csv", schema.EPOCH_COLUMNS, rows)
    config = {f"config/{name}": value for name, value in TrainConfig().model_dump().items()}
    trials = []
    for number in sorted({trial for trial, _, _ in epochs}):
        own = [(seconds, accuracy) for trial, seconds, accuracy in epochs if trial == number]
        end = None if states[number] == "running" else START + pd.Timedelta(minutes=10 * (number + 1))
        row = {"trial": number, "state": states[number], "started": META["started"], "ended": end, "epochs": len(own)}
        row |= {"seconds": sum(seconds for seconds, _ in own), "valid_accuracy": max(best for _, best in own)}
        trials.append({**config, **row})
    files.write_rows(path / "trials.csv", schema.TRIAL_COLUMNS, trials)
    return Run(path)


@pytest.fixture
def pair(tmp_path: Path) -> list[Run]:
    """Two runs, made in the same way, of 6 and 3.5 slot minutes."""
    return [make_run(tmp_path / "results" / "long", LONG), make_run(tmp_path / "results" / "short", SHORT)]


def test_runs_made_in_the_same_way_do_not_differ(pair: list[Run]) -> None:
    frame = compare.differences(pair)
    assert frame.empty
    assert list(frame.columns) == ["long", "short"]
    assert compare.caveats(pair) == []


def test_what_differs_is_a_row_and_what_does_not_is_none(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", LONG)
    settings = {"epochs": 16, "dataset": "kmnist", "seed": 3}
    other = make_run(
        tmp_path / "b",
        SHORT,
        space="def space(trial): return {}\n",
        settings=settings,
        versions={"torch": "2.16.0"},
        hardware={"gpus": ["H100", "H100"]},
        dataset="kmnist",
        split_hash="beef",
        seed=3,
        git_commit="def",
    )
    frame = compare.differences([one, other, one_more := make_run(tmp_path / "c", LONG)])
    assert one_more.name == "c"
    assert {str(dtype) for dtype in frame.dtypes} == {"str"}
    assert frame["a"].equals(frame["c"].rename("a"))
    spaces = frame.loc["space.py"]
    assert spaces["a"] != spaces["b"] and len(spaces["a"]) == 12
    assert frame.drop("space.py")[["a", "b"]].T.to_dict("list") == {
        "dataset": ["fashion-mnist", "kmnist"],
        "split_hash": ["af0c", "beef"],
        "seed": ["0", "3"],
        "git_commit": ["abc", "def"],
        "settings/epochs": ["8", "16"],
        "versions/torch": ["2.15.0", "2.16.0"],
        "hardware/gpus": ["none", "H100, H100"],
    }


def test_a_setting_that_an_older_version_did_not_have_is_none(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", LONG), make_run(tmp_path / "b", SHORT, settings={"new": 1, "unset": None})]
    assert compare.differences(runs).T.to_dict("list") == {"settings/new": ["none", "1"]}


@pytest.mark.parametrize(
    ("meta", "reason"),
    [({"valid_hash": "beef"}, "valid_hash"), ({"dataset": "kmnist", "valid_hash": "beef"}, "dataset and valid_hash")],
)
def test_accuracies_on_different_images_are_said_to_be(tmp_path: Path, meta: dict[str, Any], reason: str) -> None:
    runs = [make_run(tmp_path / "a", LONG), make_run(tmp_path / "b", SHORT, **meta)]
    sentence = f"These runs' accuracies are on different validation images: not the same {reason}."
    assert compare.caveats(runs) == [sentence]


def test_slots_of_another_speed_are_said_to_be(tmp_path: Path) -> None:
    other = make_run(tmp_path / "b", SHORT, settings={"concurrency": 1, "epochs": 2}, hardware={"cpu": "two"})
    (sentence,) = compare.caveats([make_run(tmp_path / "a", LONG), other])
    assert sentence.startswith("A slot minute is not the same amount of training in these runs: ")
    assert sentence.endswith(": see settings/concurrency, hardware/cpu.")


def test_a_run_that_was_gone_on_with_on_another_machine_is_of_another_speed(tmp_path: Path) -> None:
    later = [{"cpu": "two", "cores": 2, "gpus": []}, {"cpu": "two", "cores": 2, "gpus": ["H100"]}]
    runs = [make_run(tmp_path / "a", LONG), make_run(tmp_path / "b", LONG, later_hardware=later)]
    (sentence,) = compare.caveats(runs)
    assert sentence.startswith("A slot minute is not") and sentence.endswith(": see hardware/later.")
    assert compare.differences(runs).loc["hardware/later", "b"] == "two, H100"


def test_a_run_that_began_with_another_is_said_to_have(tmp_path: Path) -> None:
    began = [{"name": "a", "id": "1f", "dataset": "kmnist"}, {"name": "x", "id": "2f", "dataset": "kmnist"}]
    runs = [make_run(tmp_path / "a", LONG), make_run(tmp_path / "b", SHORT, begun_with=began)]
    assert compare.caveats(runs) == ["b began with what a and x had found, and the cost of that is not counted."]


def test_equal_cost_is_the_least_total_and_later_epochs_do_not_count(pair: list[Run]) -> None:
    frame = compare.at_equal_cost(pair)
    # At 3.5 minutes the long run had ended three epochs; the fourth, of trial 1, ended at 4 minutes.
    expected = pd.DataFrame(
        [
            ("equal cost", "long", 3.5, 2, 0.75, 0.675),
            ("equal cost", "short", 3.5, 2, 0.65, 0.525),
            ("whole run", "long", 6.0, 3, 0.9, 0.8),
            ("whole run", "short", 3.5, 2, 0.65, 0.525),
        ],
        columns=["at", "run", "slot_minutes", "trials", "best_accuracy", "median_accuracy"],
    )
    pd.testing.assert_frame_equal(frame, expected)


def test_an_epoch_without_a_time_costs_nothing_and_that_is_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "long", LONG), make_run(tmp_path / "torn", [*SHORT, (0, float("nan"), 0.7)])]
    frame = compare.at_equal_cost(runs)
    assert frame["slot_minutes"].tolist() == [3.5, 3.5, 6.0, 3.5] and frame["best_accuracy"].notna().all()
    assert compare.curves(runs)["slot_minutes"].notna().all()
    assert "torn has no time of 1 epoch, which cost nothing here." in compare.caveats(runs)


def test_a_failed_trial_costs_but_its_accuracy_does_not_count(tmp_path: Path) -> None:
    failed = make_run(tmp_path / "failed", LONG, ["complete", "complete", "failed"])
    frame = compare.at_equal_cost([failed, make_run(tmp_path / "all", LONG)])
    assert frame["slot_minutes"].tolist() == [6.0] * 4
    assert frame["trials"].tolist() == [3] * 4
    assert frame["best_accuracy"].tolist() == [0.8, 0.9, 0.8, 0.9]
    assert compare.curves([failed, pair_of(failed)])["best"].max() == 0.8


def pair_of(run: Run) -> Run:
    """Returns a second run to compare with that never gets far."""
    return make_run(run.path.parent / "other", [(0, 1, 0.1)])


def test_a_trial_that_still_runs_counts(tmp_path: Path) -> None:
    running = make_run(tmp_path / "running", LONG, ["complete", "complete", "running"])
    frame = compare.at_equal_cost([running, pair_of(running)])
    assert frame["trials"].tolist() == [0, 1, 3, 1]  # at the other's end, after a second, it had ended no epoch
    assert frame["best_accuracy"].fillna(0).tolist() == [0, 0.1, 0.9, 0.1]


def test_where_all_trials_failed_there_is_no_accuracy(tmp_path: Path) -> None:
    failed = make_run(tmp_path / "failed", SHORT, ["failed", "failed"])
    runs = [failed, pair_of(failed)]
    assert compare.at_equal_cost(runs)["best_accuracy"].isna().tolist() == [True, False, True, False]
    (ax,) = run_figures.best_so_far_of(compare.curves(runs)).axes
    assert [line.get_label() for line in ax.lines] == ["other: 10.00 %", "equal cost: 0.0167 slot minutes"]


def test_curves_rise_with_the_epochs_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    dips = make_run(tmp_path / "dips", [(0, 60, 0.5), (2, 30, 0.4), (1, 60, np.nan), (0, 90, 0.6)])
    frame = compare.curves([dips, pair_of(dips)])
    assert frame.columns.tolist() == ["run", "slot_minutes", "best"]
    own = frame[frame["run"] == "dips"]
    assert own["slot_minutes"].tolist() == [1.0, 1.5, 2.5, 4.0]
    assert own["best"].tolist() == [0.5, 0.5, 0.5, 0.6]


def test_the_picture_has_a_line_a_run_and_one_at_the_equal_cost(pair: list[Run]) -> None:
    (ax,) = run_figures.best_so_far_of(compare.curves(pair)).axes
    long, short, common = ax.lines
    assert [line.get_label() for line in ax.lines] == [
        "long: 90.00 %",
        "short: 65.00 %",
        "equal cost: 3.5 slot minutes",
    ]
    assert long.get_drawstyle() == "steps-post"
    assert np.asarray(short.get_ydata()).tolist() == [0.55, 0.55, 0.65]
    assert np.asarray(common.get_xdata()).tolist() == [3.5, 3.5]
    assert (long.get_color(), long.get_marker()) != (short.get_color(), short.get_marker())
    legend = ax.get_legend()
    assert legend is not None and len(legend.get_texts()) == 3
    assert "slot minutes" in ax.get_xlabel()


def test_a_picture_of_nothing_says_so() -> None:
    figure = run_figures.best_so_far_of(pd.DataFrame({"run": [], "slot_minutes": [], "best": []}))
    assert figure.axes[0].texts[0].get_text() == "No epoch has finished yet."


@pytest.mark.parametrize("function", [compare.differences, compare.at_equal_cost, compare.curves, compare.caveats])
def test_fewer_than_two_different_runs_are_refused(pair: list[Run], function: Any) -> None:
    with pytest.raises(UserError, match=r"at least two runs, but got 1\. `python -m tuning\.results list` lists them"):
        function(pair[:1])
    with pytest.raises(UserError, match=r"at least two runs, but got 0\."):
        function([])
    with pytest.raises(UserError, match=r"must be given different runs, but got 'short' twice"):
        function([*pair, Run(pair[1].path / ".." / "short")])


def test_runs_of_one_name_in_two_folders_are_called_by_their_paths(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder / "same", LONG) for folder in ("a", "b")]
    assert compare.curves(runs)["run"].unique().tolist() == [str(run.path) for run in runs]


def test_a_run_without_an_epoch_is_named(pair: list[Run]) -> None:
    (pair[1].path / "epochs.csv").unlink()
    with pytest.raises(UserError, match=r"Run .*short cannot be compared: no epoch of it has ended"):
        compare.at_equal_cost(pair)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"short/meta\.json must be a readable JSON file"),
        ("{}", r"short/meta\.json must hold a dataset and objects of .*, but got another settings and dataset or none"),
        ('{"dataset": "a", "settings": [1]}', r"short/meta\.json must hold .*, but got another settings or none"),
        ('{"dataset": "a", "settings": {}, "hardware": 1}', r"meta\.json must hold .*, but got another hardware or"),
    ],
)
def test_a_damaged_meta_is_named(pair: list[Run], text: str, message: str) -> None:
    (pair[1].path / "meta.json").write_text(text)
    with pytest.raises(UserError, match=message):
        compare.differences(pair)
    listed = compare.list_runs(pair[1].path.parent).set_index("name")["trials"]
    assert listed["short"] == "cannot be read" and listed.drop("short").ne("cannot be read").all()


def test_damaged_pauses_of_one_run_hide_no_other(pair: list[Run]) -> None:
    files.write_json(pair[1].path / "meta.json", pair[1].meta | {"pauses": [7]})
    listed = compare.list_runs(pair[1].path.parent).set_index("name")["trials"]
    assert listed["short"] == "cannot be read" and listed.drop("short").ne("cannot be read").all()


def test_a_meta_that_is_not_there_is_named(pair: list[Run]) -> None:
    (pair[1].path / "meta.json").unlink()
    with pytest.raises(UserError, match=r"short/meta\.json must be a readable JSON file, but got: .*No such file"):
        compare.differences(pair)


def test_the_list_has_a_row_a_run_in_the_order_of_their_starts(tmp_path: Path) -> None:
    make_run(tmp_path / "new", LONG, ["complete", "running", "failed"], started="2026-11-24T10:00:00+00:00")
    make_run(tmp_path / "old", SHORT, ["pruned", "pruned"], settings={"sampler": "random"})
    make_run(tmp_path / "older", [], started="2025-01-01T10:00:00+00:00")
    frame = compare.list_runs(tmp_path).set_index("name")
    assert list(frame.index) == ["older", "old", "new"]
    assert str(frame["started"]["new"]) == "2026-11-24 10:00:00+00:00"
    assert frame.loc["old", ["dataset", "space", "sampler", "scheduler"]].tolist() == [
        *("fashion-mnist", "resnet", "random", "asha")
    ]
    assert frame["trials"].tolist() == ["", "2 pruned", "1 complete, 1 running, 1 failed"]
    assert frame["best_accuracy"].fillna(0).tolist() == [0, 0.65, 0.75]  # the best of a finished trial
    assert frame["minutes"].fillna(0).tolist() == [0, 20.0, 30.0]


@pytest.mark.parametrize("name", ["trials.csv", "epochs.csv"])
def test_a_file_that_cannot_be_read_is_named_and_hides_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    one = make_run(tmp_path / "results" / "one", LONG)
    make_run(tmp_path / "results" / "two", LONG)
    (one.path / name).unlink()
    (one.path / name).mkdir()
    listed = compare.list_runs().set_index("name")["trials"]
    assert listed["two"] == "3 complete" and (listed["one"] == "cannot be read") == (name == "trials.csv")
    with pytest.raises(UserError, match=rf"{name} cannot be read \(Is a directory\)\. Make it readable, or put back a"):
        getattr(one, name.removesuffix(".csv"))
    with pytest.raises(UserError, match="cannot be read"):
        run_folder.mend(one, print)
    assert (one.path / name).is_dir()
    results.main(["two"])


def test_the_minutes_of_a_run_that_was_killed_end_with_its_last_epoch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "killed", [(0, 60, 0.5), (1, 2400, 0.6)], ["complete", "running"])
    assert summaries.minutes(run) == 40.0
    assert "2 trials (1 complete, 1 running), 40.0 minutes" in summaries.summary_line(run)


def test_the_time_between_an_end_and_a_resume_is_no_time_of_the_run(tmp_path: Path) -> None:
    moments = [(START + pd.Timedelta(minutes=minute)).isoformat() for minute in (-5, 1, 12, 19, 99, 100)]
    pauses = [moments[0:2], moments[2:4], moments[4:6]]
    run = make_run(tmp_path / "resumed", [(0, 60, 0.5), (1, 60, 0.6)], pauses=pauses)
    assert run.clock(run.trials["ended"]).tolist() == [9 * 60, 12 * 60]  # of ends after 10 and 20 minutes
    assert summaries.minutes(run) == 12.0


def test_the_picture_shows_where_each_run_ended_however_poor(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", [(0, 60, 0.9), (0, 60, 0.91), (0, 60, 0.92)])
    poor = make_run(tmp_path / "poor", [(0, 60, 0.3)])
    (ax,) = run_figures.best_so_far_of(compare.curves([good, poor])).axes
    assert ax.get_ylim()[0] < 0.3


def test_in_a_narrow_terminal_a_list_keeps_what_came_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "results" / "2026-11-24-fashion-mnist-1", LONG)
    make_run(tmp_path / "results" / "2026-11-24-fashion-mnist-2", SHORT, ["pruned", "pruned"])
    monkeypatch.chdir(tmp_path)
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None, markup=False)
    monkeypatch.setattr("rich.console.Console", lambda **given: console)
    results.main(["list"])
    assert "2 pruned" in file.getvalue() and "90.00%" in file.getvalue()


def test_a_list_of_no_runs_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no run folder below .*/\. Run `python -m tuning\.search` first"):
        compare.list_runs(tmp_path)


@pytest.mark.parametrize("name", ["list", "compare"])
def test_no_run_may_be_called_like_what_the_command_does(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--run must be .* none of \('latest', 'list', 'compare'\)\), but got"):
        record.new_path(name, "fashion-mnist", tmp_path)


def test_the_command_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("results/a"), LONG)
    make_run(Path("results/b"), SHORT, settings={"sampler": "[gp]"}, valid_hash="beef")
    results.main(["compare", "a", "b"], out=Path("new/both.png"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["what", "a", "b"] in lines
    assert ["settings/sampler", "tpe", "[gp]"] in lines
    assert ["equal", "cost", "a", "3.5", "2", "75.00%", "67.50%"] in lines
    assert ["whole", "run", "a", "6.0", "3", "90.00%", "80.00%"] in lines
    assert " ".join(lines[-2]).endswith("on different validation images: not the same valid_hash.")
    assert lines[-1] == ["Best-so-far", "curves:", "new/both.png"]
    assert imread("new/both.png").shape[:2] == (690, 1050)


def test_the_command_lists_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("results/a"), LONG)
    results.main(["list"])
    _, heading, _, row = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert heading == [
        *("name", "started", "(UTC)", "dataset", "space", "sampler", "scheduler", "trials"),
        *["best", "accuracy", "minutes"],
    ]
    assert row == [
        "a",
        "2026-11-23",
        "10:00",
        "fashion-mnist",
        "resnet",
        "tpe",
        "asha",
        "3",
        "complete",
        "90.00%",
        "30.0",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare"], r"at least two runs, but got 0"),
        (["compare", "a", "bb"], r"Run below results/ must be one of a, b, latest, but got 'bb'\. Did you mean 'b'\?"),
        (["a", "b"], r"The command must be a run, list, or compare RUN RUN\.\.\., but got 'a b'"),
        (["list", "a"], r"The command must be a run, list, or compare RUN RUN\.\.\., but got 'list a'"),
    ],
)
def test_words_that_mean_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        make_run(Path("results") / name, LONG)
    with pytest.raises(UserError, match=message):
        results.main(words)


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["a"], {"out": Path("x.png")}, "--out must be left out with 'a': it is the picture that compare draws."),
        (["list"], {"out": Path("x.txt")}, "--out must be left out with 'list': it is the picture that compare draws."),
        (None, {"out": Path("x.png")}, "--out must be left out with 'latest': it is the picture that compare draws."),
        (["list"], {"limit": 3}, "--limit must be left out with 'list': it is how many trials of one run are printed."),
        (
            ["compare", "a", "b"],
            {"limit": 3},
            "--limit must be left out with 'compare': it is how many trials of one run are printed.",
        ),
    ],
)
def test_an_option_that_would_not_be_read_is_refused(words: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        results.main(words, **options)


@pytest.mark.parametrize("out", ["both", "both.txt"])
def test_a_picture_of_no_known_kind_is_refused(pair: list[Run], out: str) -> None:
    with pytest.raises(UserError, match=rf"--out must end in \.png, \.pdf or \.svg, but got '{out}'"):
        results.main(["compare", *(str(run.path) for run in pair)], out=Path(out))


def test_from_a_shell_a_mistake_is_one_line_and_a_comparison_a_picture(tmp_path: Path, pair: list[Run]) -> None:
    command = [sys.executable, "-m", "tuning.results", "compare", "long"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: compare must be given at least two runs, but got 1.")
    done = subprocess.run([*command, "short"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "What differs: nothing" in done.stdout
    assert (tmp_path / "results" / "compare.png").stat().st_size > 10_000

"""Run folders: names, and frames with fixed dtypes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from conftest import write_run

from tuning import results
from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.runs import run_folder, schema, summaries
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy
from tuning.trials import record

TIME = "datetime64[us, UTC]"
# Those of version 0.2.0, which stay; what was added since is in the schema.
EPOCH_DTYPES = {"trial": "int64", "epoch": "int64"} | dict.fromkeys(
    (
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_accuracy",
        "lr",
        "epoch_seconds",
        "images_per_second",
    ),
    "float64",
)
TRIAL_DTYPES = {
    "trial": "int64",
    "state": "str",
    "valid_accuracy": "float64",
    "valid_loss": "float64",
    "best_epoch": "Int64",
    "epochs": "Int64",
    "seconds": "float64",
    "images_per_second": "float64",
    "n_parameters": "Int64",
    "seconds_per_image": "float64",
    "pareto": "boolean",
    "seed": "Int64",
    "attempt": "Int64",
    "accumulation": "Int64",
    "device": "str",
    "precision": "str",
    "node": "str",
    "stopped_by": "str",
    "error": "str",
    "started": TIME,
    "ended": TIME,
    "config/architecture": "str",
    "config/width": "Int64",
    "config/pretrained": "boolean",
    "config/stem": "str",
    "config/image_size": "Int64",
    "config/optimizer": "str",
    "config/learning_rate": "float64",
    "config/momentum": "float64",
    "config/weight_decay": "float64",
    "config/batch_size": "Int64",
    "config/epochs": "Int64",
    "config/schedule": "str",
    "config/warmup_epochs": "float64",
    "config/plateau_patience": "Int64",
    "config/plateau_factor": "float64",
    "config/patience": "Int64",
    "config/min_delta": "float64",
    "config/label_smoothing": "float64",
    "config/crop_padding": "Int64",
    "config/flip": "boolean",
    "config/erase": "float64",
    "config/ema_decay": "float64",
    "config/precision": "str",
}


def make_run(root: Path, name: str, trials: list[dict[str, Any]]) -> run_folder.Run:
    path = record.new_path(name, "fashion-mnist", root)
    files.make_folder(path)
    files.write_json(path / "meta.json", {"dataset": "fashion-mnist", "settings": {"concurrency": 2}})
    config = {f"config/{k}": v for k, v in TrainConfig().model_dump().items()}
    files.write_rows(path / "trials.csv", schema.TRIAL_COLUMNS, ({**config, **trial} for trial in trials))
    return run_folder.Run(path)


def trial(number: int, accuracy: float | None, state: str = "complete") -> dict[str, Any]:
    times = {"started": "2026-11-23T10:00:00+00:00", "ended": "2026-11-23T10:10:00+00:00"}
    return {"trial": number, "state": state, "valid_accuracy": accuracy, "epochs": 3, "seconds": 500.0, **times}


def test_latest_is_the_run_that_was_written_last(tmp_path: Path) -> None:
    make_run(tmp_path, "b", [])
    newest = make_run(tmp_path, "a", [])
    files.write_json(newest.path / "meta.json", newest.meta)
    assert run_folder.load("latest", tmp_path).name == "a"
    assert run_folder.load("b", tmp_path).name == "b"
    assert run_folder.load(newest.path).name == "a"


def test_a_run_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "first", [])

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(
        UserError, match=r"^A run must be a folder that can be read, but got 'xx.*': File name too long"
    ):
        run_folder.load("x" * 300, tmp_path)
    monkeypatch.setattr(Path, "exists", refused)
    with pytest.raises(
        UserError, match=r"^A run must be a folder that can be read, but got 'a/b': Permission denied\."
    ):
        run_folder.load("a/b", tmp_path)


def test_the_fewest_parameters_are_those_of_a_trial_that_has_a_result(tmp_path: Path) -> None:
    run = make_run(
        tmp_path, "r", [trial(0, 0.9) | {"n_parameters": 50}, trial(1, None, "failed") | {"n_parameters": 9}]
    )
    with pytest.raises(UserError, match=r"must be at least 50, the fewest of a finished trial in .*, but got 10\."):
        run_folder.within(run.trials, run.path, 10)
    failed = make_run(tmp_path, "s", [trial(0, None, "failed")])
    small = run_folder.within(failed.trials, failed.path, 10)
    with pytest.raises(UserError, match=r"must have a finished trial, but none of its 1 trial has finished\."):
        run_folder.rank_trials(small, failed.path)


def test_a_run_that_is_not_there_names_the_closest(tmp_path: Path) -> None:
    make_run(tmp_path, "first", [])
    with pytest.raises(
        UserError, match=r"Run below .* must be one of first, latest, but got 'frist'\. Did you mean 'first'\?"
    ):
        run_folder.load("frist", tmp_path)


def test_without_any_run_the_next_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no run folder below .*/\. Run `python -m tuning\.search` first"):
        run_folder.load("latest", tmp_path)


def test_runs_are_numbered_and_names_are_not_used_twice(tmp_path: Path) -> None:
    files.make_folder(first := record.new_path(None, "fashion-mnist", tmp_path))
    files.make_folder(second := record.new_path(None, "fashion-mnist", tmp_path))
    assert (first.name[-16:], second.name[-16:]) == ("-fashion-mnist-1", "-fashion-mnist-2")
    files.write_json(second / "meta.json", {})
    with pytest.raises(UserError, match=r"--run must be a new name, but got '.*-2', and .* exists"):
        record.new_path(second.name, "fashion-mnist", tmp_path)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "<script>", "latest", ".hidden", "a b"])
def test_names_that_are_no_plain_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--run must be letters, digits"):
        record.new_path(name, "fashion-mnist", tmp_path)


def test_frames_of_a_run_without_trials_have_all_columns(tmp_path: Path) -> None:
    run = run_folder.Run(tmp_path)
    assert {k: str(v) for k, v in run.trials.dtypes.items()} == schema.TRIAL_COLUMNS
    assert {k: str(v) for k, v in run.epochs.dtypes.items()} == schema.EPOCH_COLUMNS
    assert TRIAL_DTYPES.items() <= schema.TRIAL_COLUMNS.items() and EPOCH_DTYPES.items() <= schema.EPOCH_COLUMNS.items()
    with pytest.raises(UserError, match="must have a finished trial, but none of its 0 trials has finished"):
        _ = run.best


def test_the_trials_frame_round_trips_every_type(tmp_path: Path) -> None:
    seed = 2**53 + 1
    row = {**trial(0, 0.9), "seed": seed, "error": 'a, "b"\nc', "config/flip": True, "config/image_size": None}
    frame = make_run(tmp_path, "r", [row]).trials
    assert frame["seed"][0] == seed
    assert frame["error"][0] == row["error"]
    assert frame["config/flip"][0] and pd.isna(frame["config/image_size"][0])
    assert frame["ended"][0] - frame["started"][0] == pd.Timedelta(minutes=10)
    assert {k: str(v) for k, v in frame.dtypes.items()} == schema.TRIAL_COLUMNS


def test_numbers_that_may_be_missing_are_numbers(tmp_path: Path) -> None:
    rows = [{**trial(i, 0.9), "config/image_size": size, "config/patience": size} for i, size in enumerate((14, None))]
    frame = make_run(tmp_path, "r", rows).trials
    for name in ("config/image_size", "config/patience"):
        assert frame[name].iloc[0] == 14 and pd.isna(frame[name].iloc[1])


def test_read_csv_gives_the_documented_columns(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9)])
    assert list(pd.read_csv(run.path / "trials.csv").columns) == list(schema.TRIAL_COLUMNS)


def test_a_last_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "epochs.csv"
    row = dict.fromkeys(schema.EPOCH_COLUMNS, 1)
    files.append_row(path, schema.EPOCH_COLUMNS, row)
    with path.open("a") as file:
        file.write("1,2,0.")
    assert len(schema.read_frame(path, schema.EPOCH_COLUMNS)) == 1


def test_a_frame_is_the_readers_own_and_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "epochs.csv"
    path.write_text("trial,epoch,lr\n0,1,0.1\n")
    first = schema.read_frame(path, schema.EPOCH_COLUMNS)
    first.loc[0, "lr"] = 7.0
    assert schema.read_frame(path, schema.EPOCH_COLUMNS)["lr"].tolist() == [0.1]
    path.write_text("trial,epoch,lr\n0,1,0.2\n")
    assert schema.read_frame(path, schema.EPOCH_COLUMNS)["lr"].tolist() == [0.2]


@pytest.mark.parametrize(
    ("text", "damage"),
    [
        ("epoch\n2\n", "its first line must name the columns trial, epoch, train_loss"),
        ("trial,epoch,train_loss\nx,y,z\n", "invalid literal for int"),
        ("trial,epoch,lr\n0,1,0.1\n0,20,3,0.1\n", "line 3 has 4 fields, expected 3"),
        ("\x00" * 100 + "\n", "its first line must name"),
    ],
)
def test_a_damaged_frame_is_named(tmp_path: Path, text: str, damage: str) -> None:
    (tmp_path / "epochs.csv").write_text(text)
    with pytest.raises(
        UserError, match=rf"epochs\.csv is damaged: {damage}.*--resume .* writes it anew from the study"
    ):
        schema.read_frame(tmp_path / "epochs.csv", schema.EPOCH_COLUMNS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pauses": [["x", "y"]]}, r"r/meta\.json has pauses that are no pairs of times: it is damaged"),
        ({"pauses": 7}, r"has pauses that are no pairs of times"),
        ({"settings": {"concurrency": "x"}}, r"r/meta\.json has no usable setting 'concurrency': it is damaged"),
    ],
)
def test_a_meta_json_of_another_shape_is_a_sentence(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9)])
    files.write_json(run.path / "meta.json", run.meta | changed)
    with pytest.raises(UserError, match=message):
        summaries.summary_line(run)


def test_a_password_in_an_error_is_shown_nowhere(tmp_path: Path) -> None:
    error = "OSError: cannot reach http://bob:hunter2@127.0.0.1:5055"
    run = make_run(tmp_path, "r", [trial(0, None, "failed") | {"error": error}])
    assert run.trials["error"][0] == "OSError: cannot reach http://***@127.0.0.1:5055"


def test_the_best_trial_is_a_finished_one_and_a_complete_one_where_equal(tmp_path: Path) -> None:
    trials = [
        trial(0, 0.9, "pruned"),
        trial(1, 0.9),
        trial(2, 0.99, "running"),
        trial(3, 0.5),
        trial(4, None, "failed"),
    ]
    run = make_run(tmp_path, "r", trials)
    assert run.best["trial"] == 1
    assert list(run_folder.rank_trials(run.trials, run.path)["trial"]) == [1, 0, 3]
    run_folder.write_best(run)
    best = json.loads((run.path / "best.json").read_text())
    assert (best["trial"], best["second_valid_accuracy"]) == (1, 0.9)
    assert TrainConfig.model_validate(best["config"]) == TrainConfig()


def test_the_summary_says_how_much_of_the_slots_time_was_training(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9), trial(1, 0.8)])
    line = summaries.summary_line(run)
    assert line == "r: fashion-mnist, 2 trials (2 complete), 10.0 minutes, 2 side by side, training 83% of that time"


def test_of_sessions_with_other_slots_no_share_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9), trial(1, 0.8)])
    files.write_json(run.path / "meta.json", run.meta | {"slots_varied": True})
    said = "10.0 minutes, with other numbers of trials side by side in other sessions"
    assert summaries.summary_line(run) == f"r: fashion-mnist, 2 trials (2 complete), {said}"


ESTIMATE = {"seconds": 1200.0, "seconds_low": 600.0, "seconds_high": 1800.0}


def estimated(root: Path, minutes: list[int], estimate: dict[str, float], **meta: Any) -> str:
    """Returns the line of a run whose trials ended after so many minutes each."""
    ends = [{"ended": f"2026-11-23T10:{minute:02d}:00+00:00"} for minute in minutes]
    run = make_run(root, "r", [{**trial(i, 0.9), **end} for i, end in enumerate(ends)])
    settings = {"concurrency": 2, "samples": len(minutes)}
    files.write_json(run.path / "meta.json", {**run.meta, "settings": settings, "estimate": estimate, **meta})
    return summaries.estimate_line(run)


def test_an_estimate_is_compared_with_as_many_trials_as_it_was_for(tmp_path: Path) -> None:
    said, of_two = "The dry run said 20.0 minutes (10.0 to 30.0)", {**ESTIMATE, "samples": 2.0}
    assert estimated(tmp_path / "a", [30, 10], of_two) == f"{said} for 2 trials; it took 30.0, +50%"
    # Two more samples, after the two that the estimate was for.
    extended = estimated(tmp_path / "b", [10, 25, 40, 55], of_two)
    assert extended == f"{said} for 2 trials; the first 2 took 25.0, +25%"
    assert estimated(tmp_path / "c", [30], {**ESTIMATE, "samples": 2.0}) == f"{said} for 2 trials, of which 1 ended."


def test_an_estimate_of_an_earlier_version_is_compared_unless_the_run_was_resumed(tmp_path: Path) -> None:
    said = "The dry run said 20.0 minutes (10.0 to 30.0)"
    assert estimated(tmp_path / "a", [30, 10], ESTIMATE) == f"{said} for 2 trials; it took 30.0, +50%"
    pause = ["2026-11-23T10:31:00+00:00", "2026-11-23T10:32:00+00:00"]
    line = estimated(tmp_path / "b", [30, 10], ESTIMATE, pauses=[pause])
    assert line == f"{said}, for the samples that the run began with."


def test_the_command_prints_the_best_trials_and_the_next_step(tmp_path: Path) -> None:
    make_run(tmp_path / "results", "mine", [trial(0, 0.9), trial(1, 0.95)])
    done = subprocess.run(
        [sys.executable, "-m", "tuning.results", "mine"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.index("95.00%") < done.stdout.index("90.00%")
    assert "Next: python -m tuning.final --run mine" in done.stdout


@pytest.mark.parametrize(
    ("states", "samples", "step"),
    [
        (["complete", "failed"], 2, "python -m tuning.final --run r"),
        (["pruned"], 4, "python -m tuning.final --run r"),
        (["running", "failed"], 2, "python -m tuning.search --resume r"),
        (["failed", "failed"], 4, "python -m tuning.search --resume r"),
        (["failed", "failed"], 2, "python -m tuning.search --resume r --samples 4"),
        ([], 4, "python -m tuning.search --resume r"),
    ],
)
def test_the_next_step_is_one_that_works(
    tmp_path: Path,
    states: list[str],
    samples: int,
    step: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [trial(i, 0.9 if state in ("complete", "pruned") else None, state) for i, state in enumerate(states)]
    run = make_run(
        Path("results"), "r", [row | {"error": "no time" if row["state"] == "failed" else None} for row in rows]
    )
    files.write_json(run.path / "meta.json", run.meta | {"settings": {"concurrency": 2, "samples": samples}})
    assert summaries.next_step(run) == step
    results.main(words=[str(run.path)], limit=3)
    said = capsys.readouterr().out
    assert said.strip().endswith(f"Next: {step}")
    if "final" not in step:
        error = r" The last error was: no time\." if "failed" in states else ""
        with pytest.raises(
            UserError, match=rf"has finished\.{error} If nothing is running, resume it with `{step}`\.$"
        ):
            _ = run.best
        assert "No trial has finished." in said and ("The last error was: no time" in said) == ("failed" in states)


def test_proposals_that_repeat_a_trial_are_not_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9) | {"attempt": 1}, trial(1, 0.9) | {"attempt": 0}, trial(2, 0.8)])
    assert list(run_folder.ran(run.trials)["trial"]) == [0, 2]
    assert summaries.summary_line(run).startswith("r: fashion-mnist, 2 trials (2 complete)")


@pytest.mark.parametrize(("settings", "message"), [(7, "has no settings"), ({}, "has no setting 'concurrency'")])
def test_a_meta_json_of_another_version_is_a_sentence(tmp_path: Path, settings: Any, message: str) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9)])
    files.write_json(run.path / "meta.json", {"settings": settings})
    with pytest.raises(UserError, match=rf"meta\.json {message}: it is damaged, or another version wrote it"):
        summaries.summary_line(run)


def test_a_frame_that_is_missing_beside_a_study_with_results_is_no_run_without_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "results" / "one", 2)
    monkeypatch.chdir(tmp_path)
    before = run.trials
    for name in ("trials", "epochs"):
        (run.path / f"{name}.csv").unlink()
        with pytest.raises(
            UserError, match=rf"one/{name}\.csv is missing, but .* have ended\. .*--resume one` writes it"
        ):
            getattr(run_folder.load("one"), name)
    run_folder.mend(run, print)
    RunStudy(run.path, load_space("smoke"), optuna.samplers.RandomSampler(seed=0), epochs=4, seed=0).close(None)
    assert len(run.trials) == len(before) and len(run.epochs) == before["epochs"].sum()


@pytest.mark.parametrize("name", ["trials", "epochs"])
@pytest.mark.parametrize("lines", [0, 1, 1.5])
def test_a_frame_without_a_row_beside_a_study_with_results_is_no_run_without_trials(
    tmp_path: Path, name: str, lines: float
) -> None:
    run = write_run(tmp_path / "one", 1)
    path, notes = run.path / f"{name}.csv", list[str]()
    head, row, *_ = path.read_text().splitlines(keepends=True)
    path.write_text({0: "", 1: head, 1.5: head + row[:5]}[lines])
    with pytest.raises(UserError, match=rf"one/{name}\.csv has no rows, but .* have ended\. .*--resume .*` writes it"):
        getattr(run, name)
    run_folder.mend(run, notes.append)
    assert notes == [f"{path} had no rows, and is written anew from the study."]


def test_every_hyperparameter_that_differs_is_shown_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "momentum",
        "weight_decay",
        "batch_size",
        "label_smoothing",
        "erase",
        "ema_decay",
        "crop_scale",
        "jitter",
        "mixup",
        "cutmix",
    ]
    trials = [trial(n, 0.9) | {f"config/{name}": 0.1 * n + 0.2 for name in names} for n in range(2)]
    trials = [each | {"config/batch_size": 8 + n} for n, each in enumerate(trials)]
    results.print_trials(make_run(tmp_path, "r", trials))
    said = " ".join(capsys.readouterr().out.split())
    assert all(word in said for name in names for word in name.split("_"))


def test_a_run_is_read_after_a_change_of_directory_and_one_that_is_gone_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "results", "one", [trial(0, 0.9)])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = run_folder.load("one")
    assert run_folder.load(run) is run and (str(run.path), repr(run)) == ("results/one", "Run('results/one')")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(run.trials) == 1 and run.meta and run.path == tmp_path / "results" / "one"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "one").rename(tmp_path / "results" / "two")
    for name in ("trials", "epochs", "meta"):
        with pytest.raises(UserError, match=r"^The run folder results/one is not there: it was renamed, moved or del"):
            getattr(run, name)


@pytest.mark.parametrize("name", [None, 5])
def test_what_names_no_run_is_said(name: Any) -> None:
    with pytest.raises(UserError, match=rf"^A run must be its name, its folder or a Run, but got {name}\.$"):
        results.load(name)


def test_the_latest_run_of_a_folder_that_is_a_storage_is_found(tmp_path: Path) -> None:
    make_run(tmp_path / "store", "a", [])
    assert run_folder.load(str(tmp_path / "store" / "latest")).name == "a"

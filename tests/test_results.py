"""Run folders: names, and frames with fixed dtypes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tuning import files, results
from tuning.config import TrainConfig
from tuning.errors import UserError


def make_run(root: Path, name: str, trials: list[dict[str, Any]]) -> results.Run:
    path = results.new_path(name, "fashion-mnist", root)
    files.make_folder(path)
    files.write_json(path / "meta.json", {"dataset": "fashion-mnist", "settings": {"concurrency": 2}})
    config = {f"config/{k}": v for k, v in TrainConfig().model_dump().items()}
    files.write_rows(path / "trials.csv", results.TRIAL_COLUMNS, ({**config, **trial} for trial in trials))
    return results.Run(path)


def trial(number: int, accuracy: float | None, state: str = "complete") -> dict[str, Any]:
    times = {"started": "2026-11-23T10:00:00+00:00", "ended": "2026-11-23T10:10:00+00:00"}
    return {"trial": number, "state": state, "valid_accuracy": accuracy, "epochs": 3, "seconds": 500.0, **times}


def test_latest_is_the_run_that_was_written_last(tmp_path: Path) -> None:
    make_run(tmp_path, "b", [])
    newest = make_run(tmp_path, "a", [])
    files.write_json(newest.path / "meta.json", newest.meta)
    assert results.load("latest", tmp_path).name == "a"
    assert results.load("b", tmp_path).name == "b"
    assert results.load(newest.path).name == "a"


def test_a_run_that_is_not_there_names_the_closest(tmp_path: Path) -> None:
    make_run(tmp_path, "first", [])
    with pytest.raises(
        UserError, match=r"Run below .* must be one of first, latest, but got 'frist'\. Did you mean 'first'\?"
    ):
        results.load("frist", tmp_path)


def test_without_any_run_the_next_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be below .*, but got none\. Run `python -m tuning\.search` first"):
        results.load("latest", tmp_path)


def test_runs_are_numbered_and_names_are_not_used_twice(tmp_path: Path) -> None:
    files.make_folder(first := results.new_path(None, "fashion-mnist", tmp_path))
    files.make_folder(second := results.new_path(None, "fashion-mnist", tmp_path))
    assert (first.name[-16:], second.name[-16:]) == ("-fashion-mnist-1", "-fashion-mnist-2")
    with pytest.raises(UserError, match=r"--run must be a new name, but got '.*-2', and .* exists"):
        results.new_path(second.name, "fashion-mnist", tmp_path)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "<script>", "latest", ".hidden", "a b"])
def test_names_that_are_no_plain_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--run must be letters, digits"):
        results.new_path(name, "fashion-mnist", tmp_path)


def test_frames_of_a_run_without_trials_have_all_columns(tmp_path: Path) -> None:
    run = results.Run(tmp_path)
    assert {k: str(v) for k, v in run.trials.dtypes.items()} == results.TRIAL_COLUMNS
    assert {k: str(v) for k, v in run.epochs.dtypes.items()} == results.EPOCH_COLUMNS
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
    assert {k: str(v) for k, v in frame.dtypes.items()} == results.TRIAL_COLUMNS


def test_read_csv_gives_the_documented_columns(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9)])
    assert list(pd.read_csv(run.path / "trials.csv").columns) == list(results.TRIAL_COLUMNS)


def test_a_last_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "epochs.csv"
    row = dict.fromkeys(results.EPOCH_COLUMNS, 1)
    files.append_row(path, results.EPOCH_COLUMNS, row)
    with path.open("a") as file:
        file.write("1,2,0.")
    assert len(results.read_frame(path, results.EPOCH_COLUMNS)) == 1


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
        results.read_frame(tmp_path / "epochs.csv", results.EPOCH_COLUMNS)


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
    assert list(results.rank_trials(run.trials, run.path)["trial"]) == [1, 0, 3]
    results.write_best(run)
    best = json.loads((run.path / "best.json").read_text())
    assert (best["trial"], best["second_valid_accuracy"]) == (1, 0.9)
    assert TrainConfig.model_validate(best["config"]) == TrainConfig()


def test_the_summary_says_how_much_of_the_slots_time_was_training(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9), trial(1, 0.8)])
    line = results.summary_line(run)
    assert line == "r: fashion-mnist, 2 trials (2 complete), 10.0 minutes, 2 side by side, training 83% of that time"


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
    tmp_path: Path, states: list[str], samples: int, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [trial(i, 0.9 if state in ("complete", "pruned") else None, state) for i, state in enumerate(states)]
    run = make_run(tmp_path, "r", [row | {"error": "no time" if row["state"] == "failed" else None} for row in rows])
    files.write_json(run.path / "meta.json", run.meta | {"settings": {"concurrency": 2, "samples": samples}})
    assert results.next_step(run) == step
    results.main(words=[str(run.path)], limit=3)
    said = capsys.readouterr().out
    assert said.strip().endswith(f"Next: {step}")
    if "final" not in step:
        assert "No trial has finished." in said and ("The last error was: no time" in said) == ("failed" in states)


def test_proposals_that_repeat_a_trial_are_not_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9) | {"attempt": 1}, trial(1, 0.9) | {"attempt": 0}, trial(2, 0.8)])
    assert list(results.ran(run.trials)["trial"]) == [0, 2]
    assert results.summary_line(run).startswith("r: fashion-mnist, 2 trials (2 complete)")


@pytest.mark.parametrize(("settings", "message"), [(7, "has no settings"), ({}, "has no setting 'concurrency'")])
def test_a_meta_json_of_another_version_is_a_sentence(tmp_path: Path, settings: Any, message: str) -> None:
    run = make_run(tmp_path, "r", [trial(0, 0.9)])
    files.write_json(run.path / "meta.json", {"settings": settings})
    with pytest.raises(UserError, match=rf"meta\.json {message}: it is damaged, or another version wrote it"):
        results.summary_line(run)

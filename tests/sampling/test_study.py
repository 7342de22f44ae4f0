"""The study: what the sampler is told, and what the frames and a resumed run know."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from studies import ask, epoch, told, train

from tuning.base import files
from tuning.base.errors import UserError
from tuning.base.registries import SAMPLERS
from tuning.runs import run_folder, schema, study_file
from tuning.sampling import samplers
from tuning.sampling.curve_sampler import observations, tells
from tuning.sampling.spaces import Space, load_space
from tuning.sampling.study import RunStudy, trial_seed


def open_study(path: Path, seed: int = 0) -> RunStudy:
    return RunStudy(path, load_space("smoke"), optuna.samplers.RandomSampler(seed=seed), epochs=5, seed=7)


@pytest.fixture
def study(tmp_path: Path) -> RunStudy:
    return open_study(tmp_path)


@pytest.fixture
def soon_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a space of three points count as exhausted after 30 repeats: 200 take eight seconds."""
    monkeypatch.setattr("tuning.sampling.study.REPEATS_THAT_EXHAUST", 30)


@pytest.mark.parametrize("finished", ["length", "early stopping"])
def test_a_trial_that_ended_by_itself_is_complete_with_its_best_value(study: RunStudy, finished: str) -> None:
    proposal = ask(study)
    train(study, proposal, [0.3, 0.8, 0.7], finished)
    study.finish(proposal.number, "scheduler")
    assert (told(study, 0).state, told(study, 0).value) == (TrialState.COMPLETE, 0.8)
    assert study.row(0)["stopped_by"] == finished


def test_a_trial_whose_node_was_lost_counts_for_what_it_has_shown(study: RunStudy) -> None:
    for accuracy in (0.3, 0.4):
        train(study, proposal := ask(study), [accuracy, accuracy + 0.2])
        study.finish(proposal.number, "scheduler")
    train(study, lost := ask(study), [0.8, 0.9])
    study.fail(lost.number, "its node has died", node_lost=True)
    study.fail(ask(study).number, "its node has died", node_lost=True)
    trials = [trial for trial in study.study.get_trials() if tells(trial)]
    own, progress, values = observations(trials, 1.0)
    assert set(own) == {0, 1, 2} and values[own == 2].max() == 0.9 and progress[own == 2].max() < 0


@pytest.mark.usefixtures("soon_exhausted")
def test_what_a_repeat_told_the_sampler_is_no_epoch_of_its_own_after_a_resume(tmp_path: Path) -> None:
    def opened() -> RunStudy:
        sampler = optuna.samplers.RandomSampler(seed=0)
        return RunStudy(tmp_path, finite_space(tmp_path), sampler, epochs=2, seed=0, metric="log_loss")

    study = opened()
    while (proposal := study.ask()) is not None:
        loss = 60.0 if proposal.config.batch_size == 8 else 2.0
        study.report(proposal.number, epoch(1, 0.1, "length") | {"valid_loss": loss, "valid_score": loss})
        study.finish(proposal.number, "scheduler")
    before = (tmp_path / "epochs.csv").read_bytes()
    study.close(None)
    study = opened()
    assert any(trial.is_duplicate for trial in study.trials.values())
    assert (tmp_path / "epochs.csv").read_bytes() == before
    assert not study.is_perfect and not study.has_converged
    study.close(None)
    # Version 0.3.0 wrote such rows for a while.
    repeat = next(number for number, trial in study.trials.items() if trial.is_duplicate)
    last = before.decode().splitlines()[-1].split(",")
    (tmp_path / "epochs.csv").write_bytes(before + ",".join([str(repeat), *last[1:]]).encode() + b"\n")
    opened().close(None)
    assert (tmp_path / "epochs.csv").read_bytes() == before


def test_a_trial_that_was_stopped_is_pruned_with_its_values_by_epoch(study: RunStudy) -> None:
    train(study, proposal := ask(study), [0.3, 0.8, 0.7])
    study.finish(proposal.number, "scheduler")
    assert told(study, 0).state == TrialState.PRUNED
    assert told(study, 0).intermediate_values == {1: 0.3, 2: 0.8, 3: 0.7}
    row = study.row(0)
    assert (row["state"], row["stopped_by"], row["valid_accuracy"], row["best_epoch"]) == (
        "pruned",
        "scheduler",
        0.8,
        2,
    )


def test_a_trial_that_failed_is_failed_with_the_reason(study: RunStudy) -> None:
    train(study, proposal := ask(study), [0.3])
    study.fail(proposal.number, "Training loss must be finite")
    assert told(study, 0).state == TrialState.FAIL
    assert told(study, 0).user_attrs["error"] == "Training loss must be finite"


def test_a_trial_that_was_stopped_before_its_first_epoch_is_failed(study: RunStudy) -> None:
    study.finish(ask(study).number, "time budget")
    assert told(study, 0).state == TrialState.FAIL
    assert study.row(0)["error"] == "stopped by time budget before its first epoch ended"


def test_a_trial_that_was_cut_off_before_it_had_a_configuration_counts_for_nothing(tmp_path: Path) -> None:
    cut_off = open_study(tmp_path)
    cut_off.study.ask()
    cut_off.abandon()
    open_study(tmp_path).close("time budget")
    again = open_study(tmp_path)
    assert (again.trials.n_finished, again.trials.n_failed, again.trials.undrawn) == (0, 0, [0])
    assert ask(again).number == 0


@pytest.mark.parametrize("stuck", [False, True])
def test_a_point_that_the_space_does_not_allow_is_not_drawn_again(
    tmp_path: Path, stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(low: int) -> RunStudy:
        (tmp_path / "mine.py").write_text(
            f"def space(trial):\n    return {{'width': trial.suggest_int('width', {low}, 5)}}\n"
        )
        return RunStudy(tmp_path, load_space(str(tmp_path / "mine.py")), Lowest(), epochs=5, seed=7)

    class Lowest(optuna.samplers.RandomSampler):
        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return param_distribution.low

    wrong = opened(3)
    with pytest.raises(UserError, match=r"width must be greater than or equal to 4, but got 3\.$"):
        wrong.ask()
    assert not wrong.trials
    if stuck:  # As earlier versions left it.
        wrong._database.create_new_trial(wrong._study_id, wrong.study.trials[0])
        with sqlite3.connect(tmp_path / study_file.FILE) as database:
            database.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
    wrong.close(None)
    mended = opened(4)
    assert mended.trials.undrawn == [1] * stuck
    proposal = ask(mended)
    assert (proposal.number, proposal.config.width) == (1 + stuck, 4)
    assert [trial.state for trial in mended.study.trials] == [*[TrialState.FAIL] * (1 + stuck), TrialState.RUNNING]
    assert mended.trials.n_failed == 0


def test_points_that_are_drawn_because_the_sampler_repeats_itself_are_random(tmp_path: Path) -> None:
    class Stubborn(optuna.samplers.RandomSampler):
        def __init__(self) -> None:
            super().__init__()
            self.origins: dict[int, str] = {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            self.origins[trial.number] = "model"
            return param_distribution.low if hasattr(param_distribution, "low") else param_distribution.choices[0]

    found = RunStudy(tmp_path, load_space("smoke"), Stubborn(), epochs=5, seed=7)
    first, second = ask(found), ask(found)
    assert found.trials[first.number].attrs["origin"] == "model"
    assert found.trials[second.number].attrs["origin"] == "random"


def test_closing_with_a_reason_leaves_no_trial_running(study: RunStudy) -> None:
    train(study, ask(study), [0.3])
    ask(study)
    study.close("time budget")
    assert [trial.state for trial in study.study.trials] == [TrialState.PRUNED, TrialState.FAIL]


def test_the_frames_have_their_columns_and_dtypes_while_trials_run(tmp_path: Path, study: RunStudy) -> None:
    train(study, ask(study), [0.3, 0.5])
    ask(study)
    study.write_trials()
    run = run_folder.Run(tmp_path)
    assert {name: str(dtype) for name, dtype in run.trials.dtypes.items()} == schema.TRIAL_COLUMNS
    assert {name: str(dtype) for name, dtype in run.epochs.dtypes.items()} == schema.EPOCH_COLUMNS
    first, second = run.trials.iloc[0], run.trials.iloc[1]
    assert (first["state"], first["valid_accuracy"], first["seconds"], first["epochs"]) == ("running", 0.5, 4.0, 2)
    assert pd.isna(second["valid_accuracy"]) and pd.isna(second["ended"]) and second["epochs"] == 0
    assert first["config/width"] == 4 and first["seed"] == trial_seed(7, 0)


def test_an_epoch_that_is_reported_again_is_written_once(tmp_path: Path, study: RunStudy) -> None:
    proposal = ask(study)
    assert study.report(proposal.number, epoch(1, 0.3))
    assert not study.report(proposal.number, epoch(1, 0.3))
    assert len(run_folder.Run(tmp_path).epochs) == 1


def test_interrupted_trials_are_asked_for_again_as_they_were(tmp_path: Path, study: RunStudy) -> None:
    train(study, done := ask(study), [0.3, 0.4], "length")
    study.finish(done.number, "scheduler")
    train(study, interrupted := ask(study), [0.3])
    study.write_trials()

    again = open_study(tmp_path, seed=1)
    assert (again.trials.n_finished, again.trials.running) == (1, [1])
    proposal = ask(again)
    assert proposal == replace(interrupted, epochs=1)
    assert not again.report(proposal.number, epoch(1, 0.3))
    assert again.report(proposal.number, epoch(2, 0.6, "length"))
    again.finish(proposal.number, "scheduler")
    assert ask(again).number == 2
    trials = run_folder.Run(tmp_path).trials
    assert list(trials["state"]) == ["complete", "complete", "running"]
    assert list(trials["attempt"]) == [1, 2, 1]
    assert list(trials["valid_accuracy"])[:2] == [0.4, 0.6]


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def ask_killed_after(study: RunStudy, n_writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks, and ends when so many parameters and attributes of the trial have reached the disk."""
    left = [n_writes]

    def counted(write: Any) -> Any:
        def write_or_die(*given: Any, **named: Any) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            write(*given, **named)

        return write_or_die

    with monkeypatch.context() as patched, pytest.raises(Killed):
        for storage, name in (
            (study.study._storage, "set_trial_param"),
            (study._database, "set_trial_user_attr"),
        ):
            patched.setattr(storage, name, counted(getattr(storage, name)))
        study.ask()


@pytest.mark.parametrize("n_writes", range(5))
def test_a_trial_that_was_cut_off_while_it_was_drawn_is_drawn_to_its_end(
    tmp_path: Path, study: RunStudy, monkeypatch: pytest.MonkeyPatch, n_writes: int
) -> None:
    train(study, ask(study), [0.3], "length")
    study.finish(0, "scheduler")
    ask_killed_after(study, n_writes, monkeypatch)
    drawn = dict(told(study, 1).params)
    assert len(drawn) == min(n_writes, 2)
    again = open_study(tmp_path, seed=1)
    proposal = ask(again)
    assert (proposal.number, proposal.seed) == (1, trial_seed(7, 1))
    assert drawn.items() <= told(again, 1).params.items() <= proposal.config.model_dump().items()
    train(again, proposal, [0.4], "length")
    again.finish(1, "scheduler")
    row = again.row(1)
    assert (row["state"], row["attempt"], row["valid_accuracy"]) == ("complete", 1, 0.4)
    assert ask(again).number == 2


@pytest.mark.usefixtures("soon_exhausted")
@pytest.mark.parametrize("n_writes", range(5))
def test_a_twin_that_was_cut_off_while_it_was_written_down_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_writes: int
) -> None:
    def opened() -> RunStudy:
        return RunStudy(tmp_path, finite_space(tmp_path), optuna.samplers.RandomSampler(seed=0), epochs=2, seed=0)

    for accuracy in (0.3, 0.4, 0.5):
        train(study := opened(), proposal := ask(study), [accuracy], "length")
        study.finish(proposal.number, "scheduler")
    ask_killed_after(study, n_writes, monkeypatch)
    twin = len(study.study.trials) - 1
    again = opened()
    assert again.ask() is None
    row = again.row(twin)
    assert (row["state"], row["attempt"], row["seconds"]) == ("complete", 0, 0.0)
    assert row["valid_accuracy"] == told(again, twin).value


def test_a_study_that_knows_fewer_trials_than_the_frames_never_rewrites_them(tmp_path: Path, study: RunStudy) -> None:
    train(study, ask(study), [0.3, 0.4])
    whole = (tmp_path / "epochs.csv").read_text()
    last = whole.splitlines()[-1].removeprefix("0,")
    (tmp_path / "epochs.csv").write_text(f"{whole}1,{last}\n")
    with pytest.raises(
        UserError, match=r"study\.db knows 1 trial, but trials\.csv and epochs\.csv have 1 trial more \(1\)"
    ):
        open_study(tmp_path, seed=1)
    assert (tmp_path / "epochs.csv").read_text() == f"{whole}1,{last}\n"


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "zeros", "text", "without its wal"])
def test_a_study_that_is_missing_or_damaged_is_said_and_costs_no_frame(tmp_path: Path, damage: str) -> None:
    study = open_study(tmp_path)
    for _ in range(3):
        train(study, proposal := ask(study), [0.3, 0.4], "length")
        study.finish(proposal.number, "scheduler")
    study.write_trials()
    file = tmp_path / "study.db"
    if damage == "without its wal":
        file.write_bytes(file.read_bytes())
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("study.db-*", "copy"))
        tmp_path = tmp_path / "copy"
    else:
        study.close(None)
        content = file.read_bytes()
        {
            "missing": file.unlink,
            "empty": lambda: file.write_bytes(b""),
            "cut": lambda: file.write_bytes(content[: len(content) // 2]),
            "zeros": lambda: file.write_bytes(content[:4096] + bytes(len(content) - 4096)),
            "text": lambda: file.write_text("hello " * 1000),
        }[damage]()
    frames = [(tmp_path / name).read_bytes() for name in ("trials.csv", "epochs.csv")]
    with pytest.raises(UserError, match=r"study\.db is (missing or empty, but trials|damaged \()"):
        open_study(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("trials.csv", "epochs.csv")] == frames
    assert len(run_folder.Run(tmp_path).trials) == 3


@pytest.mark.parametrize("name", ["other", "a b", "ü #1 50%?", "a?mode=ro", "a%20b", "-x", "[x]", 'a"b'])
def test_a_run_is_found_by_what_its_folder_holds_and_not_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "first").mkdir()
    study = open_study(tmp_path / "first")
    train(study, ask(study), [0.3, 0.4], "length")
    study.finish(0, "scheduler")
    study.close("search")
    folder = tmp_path / name
    folder.parent.mkdir(exist_ok=True)
    (tmp_path / "first").rename(folder)
    again = open_study(folder, seed=1)
    assert again.trials.n_finished == 1 and ask(again).number == 1
    again.close(None)
    assert study_file.studies(folder) == {"first": 2}
    assert [path.name for path in tmp_path.rglob("*.db")] == ["study.db"]


def test_a_run_that_version_020_erased_under_another_name_is_found_again(tmp_path: Path, study: RunStudy) -> None:
    train(study, ask(study), [0.3, 0.4], "length")
    study.finish(0, "scheduler")
    study.close("search")
    whole = (tmp_path / "epochs.csv").read_text()
    optuna.create_study(study_name="other", storage=f"sqlite:///{tmp_path}/study.db")  # And its empty frames.
    for name in ("epochs.csv", "trials.csv"):
        (tmp_path / name).write_text((tmp_path / name).read_text().splitlines()[0] + "\n")
    again = open_study(tmp_path)
    assert again.trials.n_finished == 1
    assert (tmp_path / "epochs.csv").read_text() == whole


@pytest.mark.parametrize("damage", ["torn", "short", "missing", "twice", "glued"])
def test_epochs_are_written_anew_from_the_study(tmp_path: Path, study: RunStudy, damage: str) -> None:
    train(study, ask(study), [0.3, 0.4])
    train(study, ask(study), [0.5])
    file = tmp_path / "epochs.csv"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    damaged = {
        "torn": whole[:-9],
        "short": "".join(lines[:2]),
        "missing": None,
        "twice": whole + lines[-1],
        "glued": "".join([*lines[:2], lines[2][:12], lines[3]]),
    }[damage]
    if damaged is None:
        file.unlink()
    else:
        file.write_text(damaged)
    study.abandon()
    again = open_study(tmp_path)
    assert file.read_text() == whole
    train(again, ask(again), [0.3, 0.4, 0.45])
    epochs = run_folder.Run(tmp_path).epochs
    assert list(zip(epochs["trial"], epochs["epoch"], strict=True)) == [(0, 1), (0, 2), (1, 1), (0, 3)]


def test_a_run_of_020_keeps_its_epochs_in_the_frame_alone(tmp_path: Path, study: RunStudy) -> None:
    train(study, ask(study), [0.3, 0.4], "length")
    study.finish(0, "scheduler")
    train(study, ask(study), [0.5, 0.6])
    study.close(None)
    with sqlite3.connect(tmp_path / "study.db") as connection:  # As version 0.2.0 left it.
        connection.execute("DELETE FROM trial_user_attributes WHERE key LIKE 'epoch/%'")
    connection.close()
    whole = (tmp_path / "epochs.csv").read_text()
    again = open_study(tmp_path)
    assert (tmp_path / "epochs.csv").read_text() == whole
    assert ask(again).epochs == 2
    (tmp_path / "epochs.csv").write_text("".join(whole.splitlines(keepends=True)[:2]))
    again.close(None)
    again = open_study(tmp_path)
    epochs = run_folder.Run(tmp_path).epochs
    assert list(epochs["valid_accuracy"]) == [0.3, 0.4, 0.5, 0.6]
    assert again.row(0)["valid_accuracy"] == 0.4


def test_the_end_of_a_trial_that_the_frames_know_and_the_study_does_not_is_told(
    tmp_path: Path, study: RunStudy
) -> None:
    train(study, ask(study), [0.3, 0.4], "length")
    study.close(None)
    shutil.copy(tmp_path / "study.db", tmp_path / "before.db")
    again = open_study(tmp_path)
    again.finish(0, "scheduler")
    again.close("search")
    shutil.move(tmp_path / "before.db", tmp_path / "study.db")
    late = open_study(tmp_path)
    assert (late.trials.n_finished, late.trials.running, told(late, 0).value) == (1, [], 0.4)


def test_frames_that_know_a_trial_which_only_waits_in_the_study_are_kept(tmp_path: Path) -> None:
    space = replace(load_space("smoke"), first=[{"learning_rate": 0.1, "momentum": 0.9}])
    (tmp_path / "a").mkdir()
    study = RunStudy(tmp_path / "a", space, optuna.samplers.RandomSampler(seed=0), epochs=5, seed=7)
    study.study.enqueue_trial({"learning_rate": 0.1, "momentum": 0.9})  # As version 0.2.0 did with all first points.
    study.close(None)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = open_study(tmp_path / "b")
    train(again, ask(again), [0.3, 0.4], "length")
    again.finish(0, "scheduler")
    again.close("search")
    shutil.copy(tmp_path / "a" / "study.db", tmp_path / "b" / "study.db")  # Copied without what was beside it.
    with pytest.raises(UserError, match=r"but trials\.csv and epochs\.csv have 1 trial more \(0\)"):
        open_study(tmp_path / "b")


def test_frames_that_know_a_trial_which_the_study_was_only_drawing_are_kept(
    tmp_path: Path, study: RunStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_killed_after(study, 3, monkeypatch)
    study.abandon()
    files.write_rows(tmp_path / "epochs.csv", schema.EPOCH_COLUMNS, [epoch(1, 0.9) | {"trial": 0}])
    with pytest.raises(UserError, match="have 1 trial more"):
        open_study(tmp_path)


def test_the_frames_never_know_a_trial_that_a_full_disk_kept_from_the_study(
    tmp_path: Path, study: RunStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(study, ask(study), [0.3], "length")
    ask_killed_after(study, 4, monkeypatch)
    study.close(None)
    assert list(run_folder.Run(tmp_path).trials["trial"]) == [0]
    assert ask(open_study(tmp_path, seed=1)).number == 0  # It had not ended.


def test_a_duplicate_that_was_cut_off_and_is_none_any_more_stays_a_trial(tmp_path: Path) -> None:
    def opened() -> RunStudy:
        return RunStudy(tmp_path, finite_space(tmp_path), optuna.samplers.RandomSampler(seed=0), epochs=2, seed=0)

    study = opened()
    first = ask(study)
    twin = study.study.ask()
    twin.suggest_categorical("batch_size", [8, 16, 32])
    for name, value in {
        "config": first.config.model_dump(),
        "started": study.now(),
        "attempt": 0,
        "same_as": 0,
    }.items():
        twin.set_user_attr(name, value)
    study.fail(0, "made up")
    study.abandon()
    again = opened()
    proposal = ask(again)
    assert proposal.number == 1
    train(again, proposal, [0.9], "length")
    again.finish(1, "scheduler")
    again.abandon()
    row = opened().row(1)
    assert (row["state"], row["valid_accuracy"], row["attempt"]) == ("complete", 0.9, 1)


def test_the_end_of_a_trial_is_adopted_with_two_objectives_too(tmp_path: Path) -> None:
    def opened() -> RunStudy:
        sampler = optuna.samplers.RandomSampler(seed=0)
        return RunStudy(tmp_path, load_space("smoke"), sampler, epochs=5, seed=7, minimize="n_parameters")

    study = opened()
    proposal = ask(study)
    study.close(None)
    shutil.copy(tmp_path / "study.db", tmp_path / "before.db")
    study = opened()
    train(study, proposal, [0.3], "length")
    study.finish(0, "scheduler")
    study.close("search")
    shutil.move(tmp_path / "before.db", tmp_path / "study.db")
    late = opened()
    assert told(late, 0).values == [0.3, 5142]  # noqa: PD011
    assert late.row(0)["device"] == "cpu"


def test_a_run_that_was_killed_while_its_study_was_made_begins_anew(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.execute(
            "CREATE TABLE studies (study_id INTEGER NOT NULL, study_name VARCHAR(512), PRIMARY KEY (study_id))"
        )
        connection.commit()
    assert ask(open_study(tmp_path)).number == 0


def test_a_trial_cut_off_before_its_first_epoch_twice_is_no_error(tmp_path: Path, study: RunStudy) -> None:
    ask(study)
    study.abandon()
    again = open_study(tmp_path)
    ask(again)
    again.close("time budget")
    row = open_study(tmp_path).row(0)
    assert (row["state"], row["attempt"]) == ("failed", 2)
    assert told(open_study(tmp_path), 0).user_attrs["no_result"] is True


def test_attempts_are_counted_over_all_sessions(tmp_path: Path) -> None:
    for attempt in range(1, 5):
        study = open_study(tmp_path)
        ask(study)
        study.abandon()
        assert open_study(tmp_path).row(0)["attempt"] == attempt


def test_times_never_go_back(tmp_path: Path, study: RunStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    train(study, ask(study), [0.3])
    study.close(None)

    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - timedelta(hours=2)

    monkeypatch.setattr("tuning.sampling.study.datetime", Behind)
    again = open_study(tmp_path)
    before = again.last_moment
    assert before is not None and again.now() >= before
    train(again, ask(again), [0.3, 0.4], "length")
    again.finish(0, "scheduler")
    assert again.row(0)["ended"] >= before


def test_what_a_trial_told_survives_the_process(tmp_path: Path, study: RunStudy) -> None:
    train(study, proposal := ask(study), [0.3, 0.9, 0.4])
    study.finish(proposal.number, "scheduler")
    before = study.row(proposal.number)
    assert open_study(tmp_path).row(proposal.number) == before
    assert [row["valid_accuracy"] for row in open_study(tmp_path).trials.shown()[0][1]] == [0.3, 0.9, 0.4]


@pytest.mark.parametrize("name", [name for name, known in SAMPLERS.items() if known.two_objectives])
def test_two_objectives_give_a_front(tmp_path: Path, name: str) -> None:
    sampler = samplers.make(name, 0, 4)
    study = RunStudy(tmp_path, load_space("smoke"), sampler, epochs=5, seed=7, minimize="n_parameters")
    outcomes = [(0.9, 500), (0.8, 100), (0.7, 300), (0.9, 600), (0.5, 50), (0.6, 100), (0.8, 200)]
    for i, (accuracy, n_parameters) in enumerate(outcomes):
        proposal = ask(study)
        result = epoch(1, accuracy, "" if i == 2 else "length") | {"n_parameters": n_parameters}
        study.report(proposal.number, result)
        study.finish(proposal.number, "time budget")
    trials = run_folder.Run(tmp_path).trials
    assert list(trials["pareto"]) == [True, True, False, False, True, False, False]
    assert list(trials["state"]) == ["complete", "complete", "pruned", *["complete"] * 4]
    assert told(study, 1).values == [0.8, 100]  # noqa: PD011
    assert len(run_folder.within(trials, tmp_path, None)) == 7
    assert run_folder.rank_trials(run_folder.within(trials, tmp_path, 300), tmp_path).iloc[0]["trial"] == 1
    with pytest.raises(
        UserError, match=r"--max-parameters must be at least 50, the fewest of a finished trial in .*, but got 49"
    ):
        run_folder.within(trials, tmp_path, 49)


def test_a_trials_seed_derives_from_the_runs_seed_and_its_number() -> None:
    seeds = {trial_seed(run, number) for run in range(10) for number in range(10)}
    assert len(seeds) == 100 and all(0 <= seed < 2**31 for seed in seeds)
    assert trial_seed(3, 4) == trial_seed(3, 4)


def share_of_slow_starters(path: Path, seed: int, truth: bool) -> float:
    """Returns how many of a sampler's proposals are slow starters, where curves cross and slow ones are the better.

    They end at 0.8 to 0.9 and the fast ones at 0.5 to 0.6, but after the first epoch they are behind; two of three are
    stopped there. Without the truth a stopped trial is told as Ray's own `OptunaSearch` does: complete, with its last
    value.
    """
    path.mkdir()
    (path / "crossing.py").write_text(
        "def space(trial):\n    return {'momentum': trial.suggest_float('momentum', 0, 0.99)}\n"
    )
    study = RunStudy(path, load_space(str(path / "crossing.py")), samplers.make("gp", seed, 6), epochs=3, seed=0)
    slow = []
    for _ in range(18):
        proposal = ask(study)
        momentum = proposal.config.momentum
        slow.append(momentum > 0.5)
        end = 0.9 - 0.4 * abs(momentum - 0.75) if slow[-1] else 0.6 - 0.4 * abs(momentum - 0.25)
        stopped = slow[-1] and sum(slow) % 3 != 0
        if stopped:
            train(study, proposal, [0.3], finished="" if truth else "told as complete")
        else:
            train(study, proposal, [0.3 if slow[-1] else 0.5, 0.55, end], finished="length")
        study.finish(proposal.number, "scheduler")
    return sum(slow[6:]) / len(slow[6:])


@pytest.mark.slow
def test_a_configuration_is_not_punished_for_having_been_stopped(tmp_path: Path) -> None:
    shares = {
        name: np.mean([share_of_slow_starters(tmp_path / f"{name}-{seed}", seed, truth) for seed in range(3)])
        for name, truth in (("truth", True), ("stock", False))
    }
    assert shares["truth"] > 0.6
    assert shares["truth"] - shares["stock"] > 0.25


def finite_space(tmp_path: Path) -> Space:
    path = tmp_path / "finite.py"
    path.write_text(
        "def space(trial):\n    return {'batch_size': trial.suggest_categorical('batch_size', [8, 16, 32])}\n"
    )
    return load_space(str(path))


@pytest.mark.usefixtures("soon_exhausted")
def test_a_configuration_is_run_once_and_its_twin_gets_its_result(tmp_path: Path) -> None:
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=1)
    study = RunStudy(tmp_path, finite_space(tmp_path), sampler, epochs=2, seed=0)
    sizes = []
    while (proposal := study.ask()) is not None:
        sizes.append(proposal.config.batch_size)
        train(study, proposal, [0.01, proposal.config.batch_size / 100], "length")
        study.finish(proposal.number, "scheduler")
    assert sorted(sizes) == [8, 16, 32]
    assert study.trials.n_finished == 3
    trials = run_folder.Run(tmp_path).trials
    repeats = trials[trials["stopped_by"].str.startswith("same configuration as trial")]
    assert len(repeats) == len(trials) - 3 > 0
    assert (repeats["seconds"] == 0).all()
    for trial in study.study.trials:
        assert trial.state == TrialState.COMPLETE
        assert trial.value == trial.params["batch_size"] / 100
    assert study.study.sampler is sampler


@pytest.mark.usefixtures("soon_exhausted")
def test_a_search_of_an_exhausted_space_is_resumed_with_few_repeats(tmp_path: Path) -> None:
    def opened() -> RunStudy:
        return RunStudy(tmp_path, finite_space(tmp_path), optuna.samplers.RandomSampler(seed=0), epochs=2, seed=0)

    study = opened()
    while (proposal := study.ask()) is not None:
        train(study, proposal, [proposal.config.batch_size / 100], "length")
        study.finish(proposal.number, "scheduler")
    for n_before in (len(study.trials), len(study.trials) + 20):
        study.close(None)
        study = opened()
        assert study.ask() is None and len(study.trials) == n_before + 20
    # What was lost before its first epoch is found all the same.
    for trial in study.trials.values():
        if trial.config_hash == study.trials[0].config_hash:
            trial.state, trial.attrs["no_result"] = "failed", True
    again = study.ask()
    assert again is not None and again.config.hash() == study.trials[0].config_hash


@pytest.mark.usefixtures("soon_exhausted")
def test_a_twin_of_a_running_trial_is_not_run_beside_it(tmp_path: Path) -> None:
    study = RunStudy(tmp_path, finite_space(tmp_path), optuna.samplers.RandomSampler(seed=0), epochs=2, seed=0)
    assert len({ask(study).config.batch_size for _ in range(3)}) == 3
    assert study.ask() is None
    assert {trial.state for trial in study.study.trials} == {TrialState.RUNNING, TrialState.FAIL}


@pytest.mark.usefixtures("soon_exhausted")
def test_a_configuration_that_fails_is_run_once(tmp_path: Path) -> None:
    study = RunStudy(tmp_path, finite_space(tmp_path), optuna.samplers.RandomSampler(seed=0), epochs=2, seed=0)
    sizes = []
    for end in (
        lambda number: study.finish(number, "time budget"),  # Before its first epoch: it may be run again.
        lambda number: study.fail(number, "its node has died", node_lost=True),  # So may this one.
    ):
        end(ask(study).number)
    study.close(None)
    study = RunStudy(tmp_path, finite_space(tmp_path), optuna.samplers.RandomSampler(seed=1), epochs=2, seed=0)
    while (proposal := study.ask()) is not None:
        sizes.append(proposal.config.batch_size)
        if proposal.config.batch_size == 32:
            study.fail(proposal.number, "CUDA out of memory")
            study.close(None)
            study = RunStudy(tmp_path, finite_space(tmp_path), study.study.sampler, epochs=2, seed=0)
            continue
        train(study, proposal, [0.5, 0.6], "length")
        study.finish(proposal.number, "scheduler")
    assert sorted(sizes) == [8, 16, 32]
    assert (study.trials.n_finished, study.trials.n_failed) == (5, 2)
    trials = run_folder.Run(tmp_path).trials
    repeats = trials[trials["attempt"] == 0]
    failed = repeats[repeats["config/batch_size"] == 32]
    assert (failed["state"] == "failed").all() and (failed["error"] == "CUDA out of memory").all() and len(failed)
    assert (repeats["seconds"] == 0).all() and repeats["stopped_by"].str.startswith("same configuration as trial").all()


def test_a_closed_study_is_one_file_that_waits_for_the_disk_now_and_then(study: RunStudy, tmp_path: Path) -> None:
    proposal = study.ask()
    assert proposal is not None
    assert {path.name for path in tmp_path.glob("study.db*")} >= {"study.db", "study.db-wal"}
    study.close("search")
    assert [path.name for path in tmp_path.glob("study.db*")] == ["study.db"]


def test_writing_the_frame_takes_a_twentieth_of_the_time_at_most(
    study: RunStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, begun, written = [study._opened], study._opened, []
    monkeypatch.setattr("tuning.sampling.study_frames._SECONDS_OF_WRITES", 1.0)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def write(*given: object) -> None:
        written.append(clock[0] - begun)
        clock[0] += 0.2

    monkeypatch.setattr("tuning.base.files.write_rows", write)
    for _ in range(60):
        study.ask()
        clock[0] += 0.1
    assert written[:5] == pytest.approx([0, 0.3, 0.6, 0.9, 1.2])
    assert 0.2 * len(written) <= 1.2 + (clock[0] - begun) / 20


def test_a_paused_trial_goes_on_where_it_was_in_this_session_or_another(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for i in range(3):
        train(study, ask(study), [0.3 + 0.1 * i])
        study.pause(i)
    assert study.trials.paused == [0, 1, 2] and study.trials.running == [] and study.trials.n_finished == 0
    assert run_folder.Run(tmp_path).trials["state"].tolist() == ["paused"] * 3
    again = study.go_on(2)
    assert (again.number, again.epochs, study.trials.paused, study.trials.running) == (2, 1, [0, 1], [2])
    study.report(2, epoch(2, 0.9, "length"))
    study.finish(2, "scheduler")
    study.close(None)
    study = open_study(tmp_path, seed=1)
    assert study.trials.paused == [0, 1] and set(study.trials.shown()) == {0, 1, 2}
    assert ask(study).number == 3  # They are no interrupted trials.
    assert study.go_on(1).epochs == 1 and study.row(1)["attempt"] == 1
    study.close("search")
    assert [told(study, n).state for n in range(3)] == [TrialState.PRUNED, TrialState.PRUNED, TrialState.COMPLETE]
    assert study.row(0)["stopped_by"] == "scheduler"

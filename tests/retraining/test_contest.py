"""The contest: who is trained on which seeds, who wins, and what is said of it. Accuracies are planted."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.images.splitting import Splits
from tuning.retraining import contest
from tuning.retraining.candidates import Entry, Plan
from tuning.training import fit, jobs
from tuning.training.jobs import Job, Result
from tuning.trials.slots import Slots

SLOTS = Slots("cpu", concurrency=1)
SEEDS = (11, 12, 13)


def entry(name: int, role: Any = "candidate", search: float | None = 0.95, epochs: int = 3) -> Entry:
    """Returns an entry whose configuration is told from others by its batch size."""
    trial = None if role == "default" else name
    config = TrainConfig(width=4, batch_size=32 + name, epochs=epochs, precision="fp32")
    return Entry(role, config, trial, trial, search if trial is not None else None, 1)


def make_plan(folder: Path, *entries: Entry, **values: Any) -> Plan:
    return Plan("run", "run", entries, SEEDS, folder, "patterns", **values)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[tuple[int, int], float | str], list[tuple[int, int]]]:
    """Puts planted accuracies, or errors, by name and seed in the place of training; the list has what was trained."""
    accuracies: dict[tuple[int, int], float | str] = {}
    trained: list[tuple[int, int]] = []

    def train(job: Job, splits: Splits, device: str, threads: int) -> Iterator[dict[str, Any]]:
        key = (job.config.batch_size - 32, job.seed)
        trained.append(key)
        found = accuracies[key]
        if isinstance(found, str):
            yield {"error": found}
            return
        result = Result(splits.split_hash, found, found, found, best_epoch=1, n_parameters=1, seconds=60.0)
        job.path.mkdir(parents=True)
        files.write_json(job.path / jobs.RESULT, asdict(result))

    monkeypatch.setattr(jobs, "train", train)
    return accuracies, trained


def plant(accuracies: dict[Any, Any], rows: Mapping[int, list[Any]]) -> None:
    accuracies |= {(name, seed): value for name, row in rows.items() for seed, value in zip(SEEDS, row, strict=False)}


def given(*wanted: Job) -> Callable[[], Job | None]:
    """Returns what gives these one by one."""
    left = iter(wanted)
    return lambda: next(left, None)


def states(held: contest.Contest) -> dict[Any, str]:
    return dict(zip(held.table["trial"].fillna(-1), held.table["state"], strict=True))


def test_the_best_mean_wins_and_the_table_says_how(
    tmp_path: Path, planted: Any, splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(planted[0], {1: [0.90, 0.90, 0.90], 2: [0.92, 0.91, 0.93], 9: [0.3]})
    default = entry(9, "default")
    plan = make_plan(tmp_path, entry(1), entry(2, search=0.94), default, default=default.config.hash())
    held = contest.hold(plan, splits, SLOTS)
    assert held.winner.trial == 2 and list(held.won) == list(SEEDS)
    assert states(held) == {1: "complete", 2: "complete", -1: "dropped"}
    row = held.table.set_index("trial").loc[2]
    assert row["valid_accuracy_mean"] == pytest.approx(0.92) and row["chosen"] and row["seconds"] == 180
    assert row[["seed_1", "seed_2", "seed_3"]].tolist() == [0.92, 0.91, 0.93]
    assert held.shrinkage is not None and held.shrinkage.value == pytest.approx((0.05 + 0.02) / 2)
    behind = held.behind(plan.default)
    assert behind is not None and behind.value == pytest.approx(0.62) and behind.low < 0.62 < behind.high
    assert held.seconds == 7 * 60
    contest.show(held)
    printed = capsys.readouterr().out
    assert "chosen" in printed and "cannot be told from the winner" in printed
    assert (
        "dropped after its first seed" in printed
        and "Dropped: the chance of the best mean is below 1%, or a candidate would add less than 0.10 points"
        in printed
    )
    assert "The search's values minus the fresh means: +3.50 (" in printed
    assert "trained 3 times as long as in the search" in printed
    assert "the winner is 62.00 points better than the default configuration (95% interval " in printed


def test_one_for_which_no_time_is_left_was_not_dropped(
    tmp_path: Path, planted: Any, splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each training takes a minute, and eight seconds around it."""
    for n, said in ((4, "no time for more than its first seed"), (6, "cannot be told from the winner")):
        plant(planted[0], {1: [0.90, 0.90, 0.90], 2: [0.90, 0.91, 0.89]})
        plan = make_plan(tmp_path / str(n), entry(1), entry(2), slot_seconds=68.0 * n)
        held = contest.hold(plan, splits, SLOTS)
        assert states(held) == {1: "complete", 2: "no time left" if n == 4 else "complete"}
        contest.show(held)
        printed = capsys.readouterr().out
        assert said in " ".join(printed.split()) and "Dropped" not in printed


def test_at_equal_length_the_shrinkage_is_luck_alone(tmp_path: Path, planted: Any, splits: Splits) -> None:
    plant(planted[0], {1: [0.9, 0.9, 0.9]})
    [line] = contest.explain(contest.hold(make_plan(tmp_path, entry(1, epochs=1)), splits, SLOTS))
    assert line.endswith("makes them too high: this is the luck that they had.")


def test_what_has_been_trained_is_not_trained_again(tmp_path: Path, planted: Any, splits: Splits) -> None:
    accuracies, trained = planted
    plant(accuracies, {1: [0.90, 0.90, 0.90], 2: [0.91, 0.91, "killed"]})
    plan = make_plan(tmp_path, entry(1), entry(2))
    first = contest.hold(plan, splits, SLOTS)
    assert first.winner.trial == 1 and states(first)[2] == "failed"
    trained.clear()
    plant(accuracies, {2: [0.91, 0.91, 0.91]})
    assert contest.hold(plan, splits, SLOTS).winner.trial == 2
    assert trained == [(2, 13)]


def test_a_failure_cannot_win_is_said_and_brings_back_whom_it_had_beaten(
    tmp_path: Path, planted: Any, splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(planted[0], {1: [0.7, 0.7, 0.7], 2: [0.99, 0.99, "loss is nan"], 3: ["no memory"]})
    plan = make_plan(tmp_path, entry(1), entry(2), entry(3))
    held = contest.hold(plan, splits, SLOTS)
    assert held.winner.trial == 1 and states(held) == {1: "complete", 2: "failed", 3: "failed"}
    assert held.table.loc[1:, "valid_accuracy_mean"].isna().all()
    contest.show(held)
    printed = capsys.readouterr().out
    assert "trial 2, seed 3  failed: loss is nan" in printed and "failed: no memory" in printed


def test_where_all_candidates_fail_that_is_an_error(tmp_path: Path, planted: Any, splits: Splits) -> None:
    plant(planted[0], {1: ["no memory"], 2: ["loss is nan"], 9: [0.9]})
    plan = make_plan(tmp_path, entry(1), entry(2), entry(9, "default"))
    with pytest.raises(
        UserError, match=r"None of the candidates could be trained \(2 failed\)\. The last error was: loss is nan"
    ):
        contest.hold(plan, splits, SLOTS)


def test_a_recipe_from_elsewhere_cannot_win_and_the_failure_of_a_comparison_is_said(
    tmp_path: Path, planted: Any, splits: Splits
) -> None:
    plant(planted[0], {1: [0.5, 0.5, 0.5], 8: ["no memory"], 9: [0.9, 0.9, 0.9]})
    random, default = entry(8, "random"), entry(9, "default")
    hashes = {"random": random.config.hash(), "default": default.config.hash()}
    held = contest.hold(make_plan(tmp_path, entry(1), random, default, **hashes), splits, SLOTS)
    assert held.winner.trial == 1
    assert held.facts["random_difference"] is None and states(held)[8] == "failed"
    assert "40.00 points worse than the default configuration (95% " in contest.explain(held)[-1]


@pytest.mark.parametrize("role", ["candidate", "random", "default"])
def test_the_best_configuration_of_the_run_wins_whatever_it_is_compared_as(
    role: str, tmp_path: Path, planted: Any, splits: Splits
) -> None:
    plant(planted[0], {1: [0.5, 0.5, 0.5], 2: [0.9, 0.9, 0.9]})
    best = replace(entry(2, role), trial=2)
    name = "random" if role == "candidate" else role
    held = contest.hold(make_plan(tmp_path, entry(1), best, **{name: best.config.hash()}), splits, SLOTS)
    assert held.winner == best and states(held) == {1: "dropped", 2: "complete"}
    what = {"random": "the best of the points drawn at random", "default": "the default configuration"}[name]
    assert contest.explain(held)[-1] == f"The winner is {what} itself."


@pytest.mark.parametrize(
    ("regularised", "trained", "winner"),
    [(0.96, False, {"erase": 0.3}), (0.95, True, {}), ("loss is nan", True, {})],
)
def test_the_best_is_trained_as_it_was_only_where_more_regularisation_did_not_help(
    regularised: Any, trained: bool, winner: dict[str, Any], tmp_path: Path, planted: Any, splits: Splits
) -> None:
    changed = replace(entry(1), regularised={"erase": 0.3})
    best = replace(entry(2, "unchanged"), trial=1, rank=1)
    plant(planted[0], {1: [regularised] * 3, 2: [0.955] * 3})
    held = contest.hold(make_plan(tmp_path, changed, best, unchanged=best.config.hash()), splits, SLOTS)
    assert held.winner.regularised == winner
    assert (2, SEEDS[0]) in planted[1] if trained else planted[1] == [(1, seed) for seed in SEEDS]
    assert planted[1].index((1, SEEDS[0])) == 0
    assert held.table["state"][1] == ("complete" if trained else "not needed")
    told = " ".join(contest.explain(held))
    assert ("without more regularisation" in told) == trained
    if not trained:
        assert held.shrinkage is None and held.facts["unchanged_difference"] is None
        assert contest._note(held.table.loc[1], held) == (
            "not trained: more regularisation already did better than the search"
        )


@pytest.mark.slow
def test_side_by_side_the_numbers_are_those_of_one_by_one_and_a_failure_is_alone(
    tmp_path: Path, splits: Splits, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a real Ray, which is started once for all seeds."""
    import ray

    starts, init = [], ray.init
    monkeypatch.setattr(ray, "init", lambda **how: starts.append(how) or init(**how))
    fit.prepare(1)
    broken = Entry("candidate", TrainConfig(width=4, learning_rate=10.0, optimizer="sgd", precision="fp32", epochs=2))
    entries = (entry(1), entry(2), broken)
    beside = contest.hold(make_plan(tmp_path / "a", *entries), splits, replace(SLOTS, concurrency=2))
    said = capsys.readouterr().out
    assert "trial 1, seed 1  epoch   1/3" in said and "seed 2  epoch   1/3" in said
    assert len(starts) == 1 and not ray.is_initialized()
    alone = contest.hold(make_plan(tmp_path / "b", *entries), splits, SLOTS, threads=1)
    kept = [name for name in beside.table if name != "seconds"]
    assert beside.table[kept].equals(alone.table[kept])
    assert not math.isnan(beside.table["valid_accuracy_mean"].iloc[0])


@pytest.mark.slow
def test_a_worker_that_dies_is_tried_again_and_then_fails_its_job_and_no_other(tmp_path: Path, splits: Splits) -> None:
    from tuning.trials.worker import train_all

    here = os.getpid()

    class Deadly(Job):
        @property
        def path(self) -> Path:
            if os.getpid() != here:
                os._exit(1)
            return self.folder

    class Mortal(Job):
        @property
        def path(self) -> Path:
            if os.getpid() != here and not (marker := self.folder / "died").exists():
                marker.touch()
                os._exit(1)
            return super().path

    good, bad, once = (kind(entry(n).config, 1, tmp_path) for n, kind in ((1, Job), (2, Deadly), (3, Mortal)))
    rows = list(train_all(given(good, bad, once), splits, replace(SLOTS, concurrency=2)))
    assert [row["epoch"] for job, row in rows if job is good] == [1, 2, 3]
    *notes, last = [row for job, row in rows if job is bad]
    assert len(notes) == 2 and all(row["note"].endswith("It is run again from its last epoch.") for row in notes)
    assert "worker" in last["error"].lower()
    first, *epochs = [row for job, row in rows if job is once]
    assert "worker" in first["note"].lower() and [row["epoch"] for row in epochs] == [1, 2, 3]


@pytest.mark.slow
def test_a_job_that_runs_out_of_memory_beside_others_is_run_again_alone(tmp_path: Path, splits: Splits) -> None:
    from tuning.trials.worker import train_all

    here = os.getpid()

    class Large(Job):
        @property
        def path(self) -> Path:
            if os.getpid() != here and not (marker := self.folder / "tried").exists():
                marker.touch()
                raise MemoryError
            return super().path

    good, large = Job(entry(1).config, 1, tmp_path), Large(entry(2).config, 1, tmp_path)
    rows = list(train_all(given(good, large), splits, replace(SLOTS, concurrency=2)))
    told = [row for job, row in rows if job is not good]
    assert told[0]["note"].endswith("It is run again, alone, when the others have ended.")
    assert [row["epoch"] for row in told[1:]] == [row["epoch"] for job, row in rows if job is good] == [1, 2, 3]


@pytest.mark.slow
def test_later_seeds_of_a_configuration_that_ran_out_of_memory_wait_and_no_slot_is_empty(
    tmp_path: Path, splits: Splits
) -> None:
    from tuning.trials.worker import train_all

    here = os.getpid()

    class Large(Job):
        @property
        def path(self) -> Path:
            if os.getpid() != here and not (marker := self.folder / f"tried-{self.seed}").exists():
                marker.touch()
                raise MemoryError
            return super().path

    class Patient(Job):
        @property
        def path(self) -> Path:
            while os.getpid() != here and not (self.folder / "tried-1").exists():
                time.sleep(0.05)
            return super().path

    good = [Patient(entry(1).config, seed, tmp_path) for seed in (1, 2)]
    large = [Large(entry(2).config, seed, tmp_path) for seed in (1, 2)]
    (tmp_path / "tried-2").touch()  # Alone it would not fail; and it is not tried beside others.
    rows = list(train_all(given(large[0], *good, large[1]), splits, replace(SLOTS, concurrency=2)))
    ended = [job for job, row in rows if row.get("epoch") == 3]
    assert sorted(ended[:2], key=good.index) == good and ended[2:] == large


def test_a_worker_that_was_killed_for_memory_gets_smaller_parts_as_far_as_there_are_any() -> None:
    from tuning.trials.worker import _again

    job = Job(TrainConfig(batch_size=8), 1, Path("x"))
    killed = {"error": "x", "out_of_memory": True, "killed": True}
    assert _again(job, killed, alone=False) == job
    assert _again(job, killed, alone=True) == replace(job, accumulation=2)
    assert _again(replace(job, accumulation=4), killed, alone=True) is None
    assert _again(job, {"error": "x", "out_of_memory": True}, alone=True) is None


def test_the_other_seeds_begin_with_the_parts_that_the_first_one_needed(
    tmp_path: Path, planted: Any, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(planted[0], {1: [0.9] * 3})
    train, parts = jobs.train, []

    def noted(job: Job, *args: Any) -> Iterator[dict[str, Any]]:
        parts.append(job.accumulation)
        yield from train(job, *args)
        if job.path.exists():
            found = files.read_json(job.path / jobs.RESULT)
            files.write_json(job.path / jobs.RESULT, found | {"accumulation": 4})

    monkeypatch.setattr(jobs, "train", noted)
    contest.hold(make_plan(tmp_path, replace(entry(1), accumulation=2)), splits, SLOTS)
    assert parts == [2, 4, 4]

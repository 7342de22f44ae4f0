"""The race: which retraining is next, and who gets no more of them. What trainings come to is planted."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.images.splitting import Splits
from tuning.retraining.candidates import Entry, Plan
from tuning.retraining.race import Race
from tuning.training import jobs
from tuning.training.jobs import Job, Result

SEEDS = (11, 12, 13, 14, 15)


def make_race(folder: Path, splits: Splits, n: int, *, folds: int = 5, **values: Any) -> Race:
    """Returns a race of configurations that differ in their batch size, the first of which is the slowest."""
    entries = [
        Entry("candidate", TrainConfig(width=4, batch_size=32 + i, epochs=1), i, i, 0.9, 1, epoch_seconds=10.0 - i)
        for i in range(n)
    ]
    plan = Plan("run", "run", tuple(entries), SEEDS, folder, "patterns", folds=folds, **values)
    return Race(plan, dict.fromkeys(SEEDS, splits))


def end(job: Job, splits: Splits, right: "np.ndarray[Any, Any] | float") -> None:
    """Writes what came of a job: which valid images it has right, or only its accuracy, as version 0.2.0 did."""
    job.path.mkdir(parents=True)
    value = right if isinstance(right, float) else float(right.mean())
    if not isinstance(right, float):
        n_classes = len(splits.class_names)
        predicted = np.where(right, splits.valid.labels, (splits.valid.labels + 1) % n_classes)
        np.savez(job.path / jobs.VALID_OUTPUTS, log_probabilities=np.log(0.01 + np.eye(n_classes)[predicted]))
    result = Result(splits.split_hash, value, value, value, best_epoch=1, n_parameters=1, seconds=1.0)
    files.write_json(job.path / jobs.RESULT, asdict(result))


def number(job: Job | None) -> tuple[int, int] | None:
    """Returns a job's configuration and the index of its seed."""
    return None if job is None else (job.config.batch_size - 32, SEEDS.index(job.seed))


def take(race: Race, n: int) -> list[Job]:
    found = [race.next_job() for _ in range(n)]
    return [job for job in found if job is not None]


def test_the_slowest_is_first_and_an_empty_slot_trains_the_best_so_far_on_the_next_seed(
    tmp_path: Path, splits: Splits
) -> None:
    race = make_race(tmp_path, splits, 3)
    first = take(race, 2)
    assert list(map(number, first)) == [(0, 0), (1, 0)]
    end(first[1], splits, 0.91)
    assert number(race.next_job()) == (2, 0)
    assert number(race.next_job()) == (1, 1)  # The first and the third are still in training.
    end(first[0], splits, 0.93)
    assert number(race.next_job()) == (0, 1)
    assert number(race.next_job()) == (0, 2)


@pytest.mark.parametrize(("slot_seconds", "n"), [(None, 5), (90.0, 5), (89.9, 1), (1.0, 1)])
def test_all_but_the_best_get_later_seeds_where_what_both_may_need_fits(
    slot_seconds: float | None, n: int, tmp_path: Path, splits: Splits
) -> None:
    """A training takes a second and eight around it, so all ten of them take 90."""
    race = make_race(tmp_path, splits, 2, slot_seconds=slot_seconds)
    first = take(race, 2)
    for job in first:
        end(job, splits, 0.9)
    while (job := race.next_job()) is not None:
        end(job, splits, 0.9)
    trained = [number(job) for job in race._started.values()]
    assert sorted(trained) == [*((0, seed) for seed in range(5)), *((1, seed) for seed in range(n))]  # type: ignore[type-var]
    assert race.out_of_time == (set() if n == 5 else {first[1].config.hash()})


def test_what_is_in_training_counts_and_a_new_leader_has_all_its_seeds(tmp_path: Path, splits: Splits) -> None:
    race = make_race(tmp_path, splits, 2, slot_seconds=90.0)
    first = take(race, 2)
    for job, value in zip(first, (0.9, 0.89), strict=True):
        end(job, splits, value)
    later = take(race, 8)
    assert len(later) == 8
    for job in later:
        end(job, splits, 0.95 if number(job)[0] == 1 else 0.85)  # type: ignore[index]
    assert race.next_job() is None and race.on_valid().notna().all().all()


def test_where_nothing_can_start_now_there_is_more_when_something_has_ended(tmp_path: Path, splits: Splits) -> None:
    race = make_race(tmp_path, splits, 2)
    first = take(race, 7)
    assert list(map(number, first)) == [(0, 0), (1, 0), (0, 1), (0, 2), (0, 3), (0, 4)]
    assert race.next_job() is None
    end(first[1], splits, 0.9)
    assert [number(job) for job in take(race, 9)] == [(1, 1), (1, 2), (1, 3), (1, 4)]


def test_while_nothing_has_ended_an_empty_slot_trains_the_best_of_the_search_on_its_next_seed(
    tmp_path: Path, splits: Splits
) -> None:
    """A single configuration, too, is trained on its seeds side by side."""
    alone = make_race(tmp_path / "alone", splits, 1)
    assert list(map(number, take(alone, 6))) == [(0, seed) for seed in range(5)]
    assert alone.next_job() is None
    alone = make_race(tmp_path / "later", splits, 1)
    end(take(alone, 2)[1], splits, 0.9)  # The first seed is still in training.
    assert list(map(number, take(alone, 4))) == [(0, seed) for seed in range(2, 5)]
    race = make_race(tmp_path / "two", splits, 2)
    first = take(race, 4)
    assert list(map(number, first)) == [(0, 0), (1, 0), (0, 1), (0, 2)]
    end(first[1], splits, 0.9)
    assert number(race.next_job()) == (1, 1)  # It leads.
    race = make_race(tmp_path / "failed", splits, 2)
    first = take(race, 2)
    race.failed[first[0].config.hash()] = "no memory"
    assert number(race.next_job()) == (1, 1)
    race = make_race(tmp_path / "short", splits, 2, slot_seconds=36.0)  # Of four trainings.
    assert list(map(number, take(race, 6))) == [(0, 0), (1, 0)]


def test_differences_on_the_same_images_drop_what_the_values_alone_would_not(tmp_path: Path, splits: Splits) -> None:
    """Two percent behind, on 100 images: as shares of other images nothing could be said, for years."""
    n = len(splits.valid)
    good = np.arange(n) >= n // 5
    worse = good & (np.arange(n) < n - n // 12)  # Wrong where the better one is wrong, and on a few more.
    for folder, outcomes, out in (("paired", (good, worse), True), ("unpaired", (good.mean(), worse.mean()), False)):
        race = make_race(tmp_path / folder, splits, 2)
        for job, outcome in zip(take(race, 2), outcomes, strict=True):
            end(job, splits, outcome if isinstance(outcome, np.ndarray) else float(outcome))
        later = take(race, 9)
        assert {number(job)[0] for job in later} == ({0} if out else {0, 1})  # type: ignore[index]


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(40)])
def test_damaged_outputs_are_as_good_as_none(tmp_path: Path, splits: Splits, content: bytes) -> None:
    race = make_race(tmp_path, splits, 2)
    for job in take(race, 2):
        end(job, splits, 0.9)
        (job.path / jobs.VALID_OUTPUTS).write_bytes(content)
    assert len(take(race, 9)) == 8


def test_what_a_slot_trained_ahead_counts_when_a_contest_is_resumed(tmp_path: Path, splits: Splits) -> None:
    """By first folds alone the second one is dropped; with all of its folds it is the better one."""
    values = {(0, 0): 0.95, (1, 0): 0.6, **{(1, fold): 0.99 for fold in range(1, 5)}}
    race = make_race(tmp_path, splits, 2)
    for (which, fold), value in values.items():
        end(race.plan.job(race.plan.entries[which], SEEDS[fold]), splits, value)
    assert list(map(number, take(race, 9))) == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert len(race.done) == 6


def test_a_candidate_that_falls_behind_does_not_lead_because_of_its_first_fold(tmp_path: Path, splits: Splits) -> None:
    race, trained = make_race(tmp_path, splits, 3), []
    of = {0: [0.925, 0.6, 0.6, 0.6, 0.6], 1: [0.92] * 5, 2: [0.1] * 5}
    while (job := race.next_job()) is not None:
        which, fold = job.config.batch_size - 32, SEEDS.index(job.seed)
        trained.append((which, fold))
        end(job, splits, of[which][fold])
    assert trained.count((2, 1)) == 0 and [n for n in range(5) if (1, n) in trained] == list(range(5))
    assert (0, 4) not in trained


def test_a_damaged_result_is_said_once(tmp_path: Path, splits: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    race = make_race(tmp_path, splits, 1)
    job = race.plan.job(race.plan.entries[0], SEEDS[0])
    job.path.mkdir(parents=True)
    (job.path / jobs.RESULT).write_text("{")
    assert number(race.next_job()) == (0, 0)
    take(race, 9)
    assert capsys.readouterr().out.count("is damaged, so it is kept as result.json.damaged") == 1


def test_a_failure_brings_back_whom_it_had_dropped_and_without_candidates_that_is_an_error(
    tmp_path: Path, splits: Splits
) -> None:
    race = make_race(tmp_path, splits, 2)
    first = take(race, 2)
    end(first[0], splits, 0.99)
    end(first[1], splits, 0.3)
    [second] = take(race, 1)
    assert number(second) == (0, 1)
    race.failed[second.config.hash()] = "loss is nan"
    assert number(race.next_job()) == (1, 1)
    race.failed[first[1].config.hash()] = "no memory"
    with pytest.raises(UserError, match=r"could be trained \(2 failed\)\. The last error was: no memory"):
        race.next_job()


def test_what_is_on_disk_is_not_started_again_also_not_a_failure(tmp_path: Path, splits: Splits) -> None:
    race = make_race(tmp_path, splits, 2)
    first = take(race, 2)
    end(first[0], splits, 0.9)
    first[1].path.mkdir(parents=True)
    files.write_json(first[1].path / jobs.RESULT, asdict(Result(splits.split_hash, error="loss is nan")))
    again = make_race(tmp_path, splits, 2)
    assert list(map(number, take(again, 9))) == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert list(again.failed.values()) == ["loss is nan"] and len(again.done) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("folds", "effect"), [(5, 0.03), (0, 0.0)])
def test_the_best_is_seldom_dropped_and_the_others_often_are(
    tmp_path: Path, splits: Splits, folds: int, effect: float
) -> None:
    """Planted truth: images of their own difficulty, folds of theirs, and trainings of their own luck."""
    draw, n, lost, trained, n_cases = np.random.default_rng(folds), len(splits.valid), 0, 0, 60
    for case in range(n_cases):
        race = make_race(tmp_path / str(case), splits, 3, folds=folds)
        skill = np.array([0.0, -0.05, -0.15])[draw.permutation(3)]
        shifts = draw.normal(0, effect, len(SEEDS))
        hard = draw.uniform(0, 1, (len(SEEDS) if folds else 1, n))
        while (job := race.next_job()) is not None:
            which, seed = job.config.batch_size - 32, SEEDS.index(job.seed)
            share = 0.85 + skill[which] + shifts[seed] + draw.normal(0, 0.01)  # The luck of the training.
            end(job, splits, hard[seed if folds else 0] + draw.normal(0, 0.05, n) < share)
            trained += 1
        values = race.on_valid()
        lost += bool(values.iloc[int(skill.argmax())].isna().any())
    assert lost <= 0.05 * n_cases
    assert trained < 0.8 * 3 * len(SEEDS) * n_cases

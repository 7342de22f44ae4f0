"""Folds: when there are any, what is trained on which, and what is kept of them. No test here trains a network."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.images.datasets import load_train
from tuning.images.source import Source
from tuning.images.splitting import Splits, load_folds
from tuning.retraining import contest, folds, verdict
from tuning.retraining.candidates import Entry, Plan
from tuning.training import jobs
from tuning.training.jobs import Job, Result
from tuning.trials.slots import Slots

SLOTS = Slots("cpu", concurrency=1)
SEEDS = (11, 12, 13)


def write_images(folder: Path, n: int = 60, first: int = 0) -> Source:
    """Returns images of two classes, each with other pixels."""
    for i in range(first, first + n):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return Source(str(folder))


def make_plan(folder: Path, images: Source, n_folds: int = 3, n_entries: int = 1) -> Plan:
    configs = [TrainConfig(width=4, batch_size=32 + n, epochs=1, precision="fp32") for n in range(n_entries)]
    entries = tuple(Entry("candidate", each, number, number, 0.9, 1) for number, each in enumerate(configs))
    return Plan("run", "run", entries, SEEDS, folder, images, folds=n_folds)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """Has a job end at once, with a planted accuracy; the list has its batch size, seed and split."""
    found: list[tuple[int, int, str]] = []

    def train(job: Job, splits: Splits, device: str, threads: int) -> Iterator[dict[str, Any]]:
        found.append((job.config.batch_size, job.seed, splits.split_hash))
        accuracy = {11: 0.95, 12: 0.7, 13: 0.8}[job.seed] - 0.01 * (job.config.batch_size - 32)
        result = Result(splits.split_hash, accuracy, accuracy, accuracy, best_epoch=1, n_parameters=1, seconds=1.0)
        job.path.mkdir(parents=True, exist_ok=True)
        files.write_json(job.path / jobs.RESULT, asdict(result))
        yield from ()

    monkeypatch.setattr(jobs, "train", train)
    return found


def test_small_sets_of_ones_own_get_five_folds_unless_something_else_is_asked_for(tmp_path: Path) -> None:
    images = write_images(tmp_path / "a")
    n, [said] = folds.how_many(images, None, None)
    assert n == 5 and said.startswith(f"With {len(load_train(images))} images one valid split says little")
    assert folds.how_many(images, 4, None) == (4, ())
    assert folds.how_many(images, 0, None) == folds.how_many(images, None, 3) == (0, ())
    assert folds.how_many(Source("mnist"), None, None) == (0, ())


def test_a_large_set_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "FEW_IMAGES", len(load_train(images := write_images(tmp_path / "a"))))
    assert folds.how_many(images, None, None) == (0, ())
    monkeypatch.setattr(folds, "FEW_IMAGES", folds.FEW_IMAGES + 1)
    assert folds.how_many(images, None, None)[0] == 5


def test_a_valid_split_that_is_given_is_the_valid_split(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "train")
    write_images(tmp_path / "a" / "valid", 20, first=60)
    write_images(tmp_path / "a" / "test", 20, first=80)
    images = Source(str(tmp_path / "a"))
    assert folds.how_many(images, None, None) == (0, ())
    with pytest.raises(UserError, match=r"--folds must be left out for .*a, because it says itself which .* got 5\."):
        folds.how_many(images, 5, None)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "a")
    with pytest.raises(UserError, match="--folds must be 2 or more, or 0 for none, but got 1"):
        folds.how_many(images, 1, None)
    with pytest.raises(UserError, match=r"--folds and --seeds exclude each other, .* but got 5 and 3"):
        folds.how_many(images, 5, 3)
    with pytest.raises(UserError, match="--folds must be used with images of your own, but got mnist"):
        folds.how_many(Source("mnist"), 5, None)
    with pytest.raises(UserError, match=r"--folds must be so few that each has images, but got 99 for \d+ images"):
        load_folds(images, 99, seed=1)


def test_the_number_of_train_images_is_no_more_than_a_fold_has(tmp_path: Path) -> None:
    images = write_images(tmp_path / "a")
    assert {len(each.train) for each in load_folds(images, 3, seed=1, train_images=20)} == {20}
    assert len({len(each.train) for each in load_folds(images, 3, seed=1, train_images=50)}) == 1


def test_each_configuration_is_trained_on_the_same_folds_each_with_its_seed(tmp_path: Path, trained: Any) -> None:
    plan = make_plan(tmp_path / "jobs", write_images(tmp_path / "a"), n_entries=2)
    parts = folds.load(plan)
    held = contest.hold(plan, parts, SLOTS)
    assert [parts[seed].split_hash for _, seed, _ in trained] == [split for _, _, split in trained]
    assert len({split for _, _, split in trained}) == 3 and len(trained) == 6
    assert [name for name in held.table if name.startswith("fold_")] == ["fold_1", "fold_2", "fold_3"]
    assert held.table[["fold_1", "fold_2", "fold_3"]].iloc[0].tolist() == [0.95, 0.7, 0.8]
    assert held.table["difference"].iloc[1] == pytest.approx(0.01)
    chosen = verdict.choose(held)
    assert chosen.job.seed == 13 and chosen.valid_accuracy == 0.8  # The fold in the middle.
    figures = verdict.describe(held, chosen, held.splits[13])
    assert (figures["folds"], figures["fold"]) == (3, 3) and figures["split_hash"] == parts[13].split_hash


def test_the_console_says_folds(tmp_path: Path, trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(tmp_path / "jobs", write_images(tmp_path / "a"))
    contest.show(contest.hold(plan, folds.load(plan), SLOTS))
    assert capsys.readouterr().out.startswith("Valid accuracy over 3 folds")


def test_after_a_kill_between_folds_only_what_is_left_is_trained(
    tmp_path: Path, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, train = make_plan(tmp_path / "jobs", write_images(tmp_path / "a")), jobs.train

    def killed(job: Job, *rest: Any) -> Iterator[dict[str, Any]]:
        if job.seed == 13:
            raise KeyboardInterrupt
        yield from train(job, *rest)

    monkeypatch.setattr(jobs, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        contest.hold(plan, folds.load(plan), SLOTS)
    monkeypatch.setattr(jobs, "train", train)
    trained.clear()
    contest.hold(plan, folds.load(plan), SLOTS)
    assert [seed for _, seed, _ in trained] == [13]


def test_results_of_folds_and_of_seeds_are_not_taken_for_each_other(tmp_path: Path, trained: Any) -> None:
    plan = make_plan(tmp_path / "jobs", write_images(tmp_path / "a"))
    plain, four = replace(plan, folds=0), replace(plan, seeds=(*SEEDS, 14), folds=4)
    assert len({each.job(plan.entries[0], 11).path for each in (plan, plain, four)}) == 3
    contest.hold(plan, folds.load(plan), SLOTS)
    contest.hold(plain, folds.load(plain), SLOTS)
    assert len(trained) == 6
    contest.hold(plan, folds.load(plan), SLOTS)
    assert len(trained) == 6

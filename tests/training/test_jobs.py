"""A retraining: what it leaves, how it goes on, and what its failures leave behind."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tuning.base import files
from tuning.base.averagings import AVERAGINGS
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import ACCURACY
from tuning.images.splitting import Splits
from tuning.training import checkpoints, evaluation, fit, jobs
from tuning.training.jobs import Job


@pytest.fixture
def job(tmp_path: Path, tiny: TrainConfig) -> Job:
    return Job(tiny, 5, tmp_path)


def train(job: Job, splits: Splits) -> list[dict[str, Any]]:
    return list(jobs.train(job, splits, "cpu", 1))


def result(job: Job, splits: Splits) -> jobs.Result:
    found = jobs.read(job, splits.split_hash)
    assert found is not None
    return found


def test_a_job_leaves_its_result_and_the_best_epochs_weights_and_is_not_trained_again(job: Job, splits: Splits) -> None:
    rows = train(job, splits)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {path.name for path in job.path.iterdir()} == {
        jobs.RESULT,
        jobs.WEIGHTS,
        jobs.VALID_OUTPUTS,
        checkpoints.PROGRESS,
    }
    found = result(job, splits)
    assert found.averagings(ACCURACY) == {"none"} and not jobs.read_influences(job)
    assert found.epochs == rows
    assert found.valid_accuracy == max(row["valid_accuracy"] for row in rows) == found.valid_accuracy_plain
    assert train(job, splits) == []
    found = jobs.average(job, found, splits, "cpu")
    assert found == result(job, splits)
    influences = jobs.read_influences(job)
    assert list(influences) == list(AVERAGINGS) and found.averagings(ACCURACY) == set(AVERAGINGS)
    for name, each in AVERAGINGS.items():
        model = jobs.load_model(job, splits, "cpu")
        scores, _ = evaluation.evaluate(model, splits.valid, splits, averaging=name)
        right = scores.argmax(1).numpy() == splits.valid.labels
        assert right.mean() == found.on_valid(ACCURACY, each.end)
        assert (influences[name] == right).all()
        if name == "none":
            np.testing.assert_allclose(jobs.read_valid(job), scores, atol=1e-6)


def test_averagings_are_measured_once_also_of_a_result_of_version_0_2_0_and_anew_when_it_is_trained_again(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(job, splits)
    whole = jobs.average(job, result(job, splits), splits, "cpu")
    path = job.path / jobs.RESULT
    old = {name: value for name, value in json.loads(path.read_text()).items() if "shift" not in name}
    path.write_text(json.dumps(old))
    (job.path / jobs.VALID_INFLUENCES).unlink()
    assert result(job, splits).averagings(ACCURACY) == {"none", "flip"} and train(job, splits) == []
    assert jobs.average(job, result(job, splits), splits, "cpu") == whole
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "load_model", lambda *given: pytest.fail("It was measured again."))
        assert jobs.average(job, result(job, splits), splits, "cpu") == whole
    path.unlink()
    assert len(train(job, splits)) == 3 and jobs.read_influences(job) == {}


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(40)])
def test_damaged_influences_are_as_good_as_none(job: Job, content: bytes) -> None:
    job.path.mkdir(parents=True)
    (job.path / jobs.VALID_INFLUENCES).write_bytes(content)
    assert jobs.read_influences(job) == {}


def test_whichever_bit_of_influences_is_wrong_they_are_as_good_as_none(job: Job) -> None:
    job.path.mkdir(parents=True)
    jobs._write_arrays(job.path / jobs.VALID_INFLUENCES, {"none": np.zeros(3)})
    whole = (job.path / jobs.VALID_INFLUENCES).read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (job.path / jobs.VALID_INFLUENCES).write_bytes(damaged)
        assert not any(values.any() for values in jobs.read_influences(job).values())


def test_a_result_of_other_images_does_not_count(job: Job, splits: Splits) -> None:
    train(job, splits)
    assert jobs.read(job, "another") is None
    assert len(train(job, replace(splits, split_hash="another"))) == 3


def test_a_killed_job_goes_on_to_the_same_weights(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(job, splits)
    other = replace(job, folder=tmp_path / "broken")
    save = checkpoints.save

    def save_and_stop(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(other, splits)
    monkeypatch.setattr(checkpoints, "save", save)
    assert [row["epoch"] for row in train(other, splits)] == [2, 3]
    one, two = (torch.load(each.path / jobs.WEIGHTS, weights_only=True) for each in (job, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_loss_that_is_not_finite_is_a_result(job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: Any) -> Iterator[Any]:
        raise fit.NonFiniteLossError("Training loss must be finite, but got nan")
        yield

    monkeypatch.setattr(fit, "fit", diverge)
    assert train(job, splits) == [{"error": "Training loss must be finite, but got nan"}]
    assert result(job, splits).error == "Training loss must be finite, but got nan"
    assert train(job, splits) == []


def test_another_failure_is_told_with_its_traceback_and_can_be_gone_on_with(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoints.save

    def fail(*args: Any) -> None:
        raise RuntimeError("out of memory at http://bob:hunter2@host")

    monkeypatch.setattr(checkpoints, "save", fail)
    [row] = train(job, splits)
    assert row["error"] == f"RuntimeError: out of memory at http://***@host (traceback: {job.path / jobs.ERROR})"
    written = (job.path / jobs.ERROR).read_text()
    assert "Traceback" in written and "hunter2" not in written
    assert jobs.read(job, splits.split_hash) is None
    monkeypatch.setattr(checkpoints, "save", save)
    assert len(train(job, splits)) == 3


def test_a_full_disk_is_no_failure_of_the_job(job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise UserError("No space left on the disk while writing latest.pt.")

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(UserError, match="No space left on the disk"):
        train(job, splits)


@pytest.mark.parametrize("schedule", ["onecycle", "plateau"])
def test_a_length_ends_it_and_keeps_the_last_weights_and_the_rates_that_are_given(
    job: Job, splits: Splits, schedule: str
) -> None:
    config = job.config.model_copy(update={"schedule": schedule, "patience": None, "plateau_patience": 0})
    job = replace(job, config=config, length=2, lrs=(0.1, 0.004, 0.001))
    rows = train(job, splits)
    assert [row["epoch"] for row in rows] == [1, 2]
    found = result(job, splits)
    assert (found.best_epoch, found.valid_accuracy) == (2, rows[1]["valid_accuracy"])
    if schedule == "plateau":
        assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.004])
    assert json.loads((job.path / jobs.RESULT).read_text())["epochs"] == rows


def needs(monkeypatch: pytest.MonkeyPatch, parts: int, error: str) -> None:
    """Has a training fail with that error in its second epoch unless its batches are cut into so many parts."""
    run_epoch = fit.Training.run_epoch

    def epoch(self: fit.Training) -> fit.EpochResult:
        if self.epoch == 1 and self.accumulation < parts:
            raise RuntimeError(error)
        return run_epoch(self)

    monkeypatch.setattr(fit.Training, "run_epoch", epoch)


def test_a_job_trains_with_its_batches_cut_as_the_search_had_to(job: Job, splits: Splits) -> None:
    train(replace(job, accumulation=4), splits)
    assert result(job, splits).accumulation == 4


def test_a_job_that_runs_out_of_memory_alone_goes_on_with_its_batches_cut(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(monkeypatch, 4, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    rows = train(job, splits)
    assert [row.get("epoch") for row in rows] == [1, None, None, 2, 3]
    said = [row["note"].partition("bytes. ")[2] for row in rows[1:3]]
    assert said == [f"It is resumed with each batch in {parts} parts." for parts in (2, 4)]
    assert result(job, splits).accumulation == 4


def test_beside_others_it_is_said_that_memory_was_short(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(monkeypatch, 2, "CUDA out of memory.")
    rows = list(jobs.train(job, splits, "cpu", 1, alone=False))
    assert rows[-1]["out_of_memory"] and "CUDA out of memory" in rows[-1]["error"]
    assert [row["epoch"] for row in jobs.train(job, splits, "cpu", 1, alone=True) if "epoch" in row] == [2, 3]


def test_batches_are_cut_no_further_than_two_images(job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(monkeypatch, 1000, "MemoryError")
    rows = train(replace(job, config=TrainConfig(**job.config.model_dump() | {"batch_size": 8})), splits)
    assert [sorted(row)[0] for row in rows[1:]] == ["note", "note", "error"]


@pytest.mark.parametrize("text", ["", "{", '{"of": "another version"}', "[]"])
def test_a_damaged_result_is_trained_again(
    job: Job, splits: Splits, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(job, splits)
    (job.path / jobs.RESULT).write_text(text)
    assert jobs.read(job, splits.split_hash) is None
    assert (
        "result.json is damaged, so it is kept as result.json.damaged, and trained again: " in capsys.readouterr().out
    )
    assert (job.path / f"{jobs.RESULT}.damaged").read_text() == text
    assert len(train(job, splits)) == 3


def test_a_result_that_cannot_be_read_now_or_says_more_is_kept(job: Job, splits: Splits) -> None:
    train(job, splits)
    path = job.path / jobs.RESULT
    content = path.read_bytes()
    path.write_bytes(content.replace(b"{", b'{"of_a_later_version": 1, ', 1))
    found = jobs.read(job, splits.split_hash)
    assert found is not None and found.best_epoch is not None
    path.unlink()
    path.mkdir()  # A drive that fails.
    with pytest.raises(UserError, match=r"result\.json, the result of a retraining, cannot be read \(Is a directory\)"):
        jobs.read(job, splits.split_hash)
    assert path.is_dir()


def test_the_disk_has_a_result_before_the_checkpoints_go(
    job: Job, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    write, remove = files.write_bytes, checkpoints.remove

    def written(path: Path, content: bytes, *, durable: bool = False) -> None:
        write(path, content, durable=durable)
        done.append(f"{path.name} {'on disk' if durable else 'some time'}")

    monkeypatch.setattr(files, "write_bytes", written)
    monkeypatch.setattr(checkpoints, "remove", lambda folder: (done.append("removed"), remove(folder)))
    train(job, splits)
    end = done[done.index(f"{jobs.VALID_OUTPUTS} on disk") :]
    assert end == [f"{name} on disk" for name in (jobs.VALID_OUTPUTS, jobs.WEIGHTS, jobs.RESULT)] + ["removed"]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_weights_that_cannot_be_read_are_named(job: Job, splits: Splits, damage: str) -> None:
    train(job, splits)
    weights = job.path / jobs.WEIGHTS
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"The weights of a retraining in .*weights\.pt cannot be read .* Remove the"):
        jobs.load_model(job, splits, "cpu")


def test_what_torch_and_python_say_when_memory_is_short_is_recognised() -> None:
    with pytest.raises(RuntimeError) as host:
        torch.empty(1 << 50)
    for said in (str(host.value), torch.OutOfMemoryError.__name__, MemoryError.__name__):
        message = f"torch {torch.__version__} says {said!r}: see OUT_OF_MEMORY in tuning/training/jobs.py"
        assert jobs.OUT_OF_MEMORY.search(said), message

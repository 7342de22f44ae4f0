"""`training.checkpoints`: what is saved comes back the same; a damaged file or a full disk costs an epoch at most."""

import dataclasses
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from conftest import CLASS_NAMES, patterned_images

from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.images.splitting import Splits, make_splits
from tuning.training import checkpoints
from tuning.training.fit import EpochResult, Training


@pytest.fixture(scope="session")
def few() -> Splits:
    """64 train and 32 valid images: an epoch of two steps."""
    return make_splits(patterned_images(96), "patterns", CLASS_NAMES, valid_images=32)


@pytest.fixture
def training(few: Splits) -> Training:
    """A training that has not begun."""
    return new_training(few)


def new_training(few: Splits, **values: Any) -> Training:
    """Returns a training of five epochs that has not begun."""
    config = TrainConfig(width=4, batch_size=32, epochs=5, patience=None, precision="fp32", ema_decay=0.5)
    return Training(TrainConfig(**(config.model_dump() | values)), few, seed=0)


def train(folder: Path, training: Training, n_epochs: int, best_epoch: int) -> list[dict[str, Any]]:
    """Trains and saves so many epochs, of which the given one is the best; returns the results."""
    results: list[dict[str, Any]] = []
    for epoch in range(1, n_epochs + 1):
        result = training.run_epoch()
        training.best["epoch"] = min(epoch, best_epoch)
        training.best["valid_accuracy"] = 2.0 if epoch >= best_epoch else -1.0  # No later epoch beats it.
        results.append(dataclasses.asdict(result))
        checkpoints.save(folder, training, results)
    return results


def names(folder: Path) -> list[str]:
    """Returns the names of all files in the folder, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def numbers(result: EpochResult) -> dict[str, Any]:
    """Returns the result without its times."""
    timed = ("epoch_seconds", "images_per_second", "seconds_per_image")
    return {name: value for name, value in dataclasses.asdict(result).items() if name not in timed}


def test_a_saved_training_goes_on_where_it_was(
    tmp_path: Path, few: Splits, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    results = train(tmp_path, training, n_epochs=2, best_epoch=1)
    resumed = new_training(few)
    assert checkpoints.load(tmp_path, resumed) == results
    assert capsys.readouterr().out == f"Going on after epoch 2, from {tmp_path}/latest.pt\n"
    assert (resumed.epoch, resumed.best) == (2, training.best)
    assert numbers(resumed.run_epoch()) == numbers(training.run_epoch())
    assert names(tmp_path) == ["best.pt", "latest.pt", "progress.json"]


def test_the_best_checkpoint_stays_that_of_the_best_epoch(tmp_path: Path, training: Training) -> None:
    train(tmp_path, training, n_epochs=4, best_epoch=2)
    latest, best = (torch.load(tmp_path / name, weights_only=True) for name in ("latest.pt", "best.pt"))
    assert (latest["training"]["epoch"], len(latest["results"])) == (4, 4)
    assert (best["training"]["epoch"], len(best["results"])) == (2, 2)


def test_an_empty_folder_has_no_results(tmp_path: Path, training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoints.load(tmp_path, training) == []
    assert training.epoch == 0
    assert capsys.readouterr().out == ""


class Code:
    """What makes a folder as soon as it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.folder), 0o777, True)


def damage(path: Path, kind: str) -> None:
    """Replaces the file as a crash or a stranger might leave it."""
    whole = path.read_bytes()
    path.unlink()  # The best checkpoint may be the same file under another name.
    if kind == "a state cut short":
        state = torch.load(io.BytesIO(whole), weights_only=True)
        del state["training"]["best_weights"]
        torch.save(state, path)
    elif kind == "code":
        torch.save({"training": Code(path.parent / "code ran"), "results": []}, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[kind])


DAMAGES = ["cut", "text", "empty", "code", "a state cut short"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_latest_checkpoint_is_passed_over_for_the_best(
    tmp_path: Path, few: Splits, training: Training, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    results = train(tmp_path, training, n_epochs=3, best_epoch=2)
    damage(tmp_path / "latest.pt", kind)
    resumed = new_training(few)
    assert checkpoints.load(tmp_path, resumed) == results[:2]
    assert resumed.epoch == 2
    assert names(tmp_path) == ["best.pt", "latest.pt", "progress.json"]
    printed = capsys.readouterr().out
    assert printed.startswith(f"Checkpoint {tmp_path}/latest.pt cannot be used and is passed over: ")
    assert printed.endswith(f"Going on after epoch 2, from {tmp_path}/best.pt\n")


@pytest.mark.parametrize("kind", DAMAGES)
def test_two_damaged_checkpoints_leave_a_training_that_has_not_begun(
    tmp_path: Path, few: Splits, training: Training, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    train(tmp_path, training, n_epochs=2, best_epoch=1)
    for name in ("latest.pt", "best.pt"):
        damage(tmp_path / name, kind)
    untouched, resumed = new_training(few), new_training(few)
    assert checkpoints.load(tmp_path, resumed) == []
    assert resumed.epoch == 0
    assert numbers(resumed.run_epoch()) == numbers(untouched.run_epoch())
    printed = capsys.readouterr().out
    for name in ("latest.pt", "best.pt"):
        assert f"Checkpoint {tmp_path / name} cannot be used and is passed over: " in printed


def test_a_checkpoint_of_another_configuration_is_passed_over(
    tmp_path: Path, few: Splits, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, training, n_epochs=1, best_epoch=1)
    other = new_training(few, momentum=0.5)
    assert checkpoints.load(tmp_path, other) == []
    assert other.epoch == 0
    assert 'cannot be used and is passed over: ValueError("The state must belong to ' in capsys.readouterr().out


def full_disk(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


FULL = r"^No space left on the disk while writing {}/latest\.pt\. Free some space, then run the command again\.$"


def full_disk_as_torch_says_it(*args: object, **options: object) -> None:
    try:
        full_disk()
    except OSError:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")  # noqa: B904


@pytest.mark.parametrize(
    ("function", "fail"),
    [("torch.save", full_disk), ("torch.save", full_disk_as_torch_says_it), ("os.replace", full_disk)],
)
def test_a_full_disk_names_the_file_and_leaves_the_checkpoint_before(
    tmp_path: Path,
    few: Splits,
    training: Training,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    fail: Callable[..., None],
) -> None:
    results = train(tmp_path, training, n_epochs=1, best_epoch=1)
    before = (tmp_path / "latest.pt").read_bytes()
    training.run_epoch()
    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        with pytest.raises(UserError, match=FULL.format(tmp_path)):
            checkpoints.save(tmp_path, training, results)
    assert names(tmp_path) == ["best.pt", "latest.pt", "progress.json"]
    assert (tmp_path / "latest.pt").read_bytes() == before
    assert checkpoints.load(tmp_path, new_training(few)) == results


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_disk_that_fills_up_in_the_middle_of_writing_names_the_file(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_full(path: Path) -> IO[bytes]:
        path.touch()
        return Path("/dev/full").open("wb")

    training.run_epoch()
    monkeypatch.setattr(files, "create", make_full)
    with pytest.raises(UserError, match=FULL.format(tmp_path)):
        checkpoints.save(tmp_path, training, [])
    assert names(tmp_path) == []


def test_a_disk_without_room_for_a_new_name_names_the_file(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.run_epoch()
    monkeypatch.setattr(files, "create", full_disk)
    with pytest.raises(UserError, match=FULL.format(tmp_path)):
        checkpoints.save(tmp_path, training, [])


def test_an_interrupt_in_the_middle_of_a_checkpoint_leaves_nothing_hidden(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    training.run_epoch()
    monkeypatch.setattr("torch.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path, training, [])
    assert names(tmp_path) == []


def test_another_error_of_the_disk_keeps_its_own_name(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    training.run_epoch()
    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoints.save(tmp_path, training, [])
    assert names(tmp_path) == []


def test_remove_takes_both_and_minds_none(tmp_path: Path, training: Training) -> None:
    train(tmp_path, training, n_epochs=1, best_epoch=1)
    (tmp_path / "log.txt").touch()
    for _ in range(2):
        checkpoints.remove(tmp_path)
        assert names(tmp_path) == ["log.txt", "progress.json"]


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def replaced(source: Any, target: Any) -> None:
        events.append(f"-> {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    train(tmp_path, training, n_epochs=1, best_epoch=1)
    kept = [event for event in events if not event.startswith((".progress", "-> progress"))]
    assert kept[0].startswith(".latest.pt.") and kept[1:4] == ["-> latest.pt", "-> best.pt", tmp_path.name]


def test_how_many_epochs_there_are_is_said_beside_the_checkpoint(tmp_path: Path, training: Training) -> None:
    train(tmp_path, training, n_epochs=2, best_epoch=1)
    assert json.loads((tmp_path / checkpoints.PROGRESS).read_text()) == {"epochs": 2}
    assert checkpoints.n_epochs(tmp_path / checkpoints.LATEST) == 2
    checkpoints.remove(tmp_path)
    assert names(tmp_path) == ["progress.json"]  # It stays, to be compared with what a storage has.


def test_a_file_system_that_cannot_sync_costs_no_checkpoint(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    training.run_epoch()
    monkeypatch.setattr(checkpoints.os, "fsync", refuse)
    checkpoints.save(tmp_path, training, [])
    assert "latest.pt" in names(tmp_path)

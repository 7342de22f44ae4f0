"""A model's files take the place of the one before: all or none, on the disk, and nobody else's."""

import errno
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuning.base import locks
from tuning.base.errors import UserError
from tuning.retraining import artefacts
from tuning.runs import replacing

OLD = {"model.pth": "old", "config.json": "old", "metrics.json": "old", "mistakes.png": "old", "notes.txt": "mine"}
NEW = {"model.pth": "new", "config.json": "new", "metrics.json": "new", "pca.png": "new"}


def write(folder: Path, content: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in content.items():
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.suffix != ".lock"}


def test_a_move_that_is_killed_leaves_no_half_model_and_is_ended_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, unlink = Path.replace, Path.unlink
    whole = {**NEW, "notes.txt": "mine"}
    for moment in itertools.count():
        folder, left = tmp_path / f"killed at step {moment}", iter(range(moment))

        def step(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        write(folder, OLD)
        write(folder / replacing.STAGING, NEW)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda path, target: (step(), replace(path, target))[1])
            patch.setattr(Path, "unlink", lambda path, missing_ok=False: (step(), unlink(path, missing_ok))[1])
            try:
                artefacts.publish(folder / replacing.STAGING, folder)
            except KeyboardInterrupt:
                pass
            else:
                break
        now = contents(folder)
        assert "config.json" not in now or len({now[name] for name in ("config.json", "model.pth")}) == 1
        assert "metrics.json" not in now or now == whole or now["config.json"] == now["metrics.json"] == "old"
        if moment % 2:
            assert replacing.end(folder) and not replacing.end(folder)
        with replacing.staged(folder):
            assert contents(folder) == whole
    assert moment > 8 and contents(folder) == whole


def test_a_move_that_another_command_is_at_is_left_to_it(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    write(tmp_path / replacing.STAGING, NEW | {replacing.WHOLE: '{"remove": []}'})
    with locks.hold(tmp_path, "final"):
        assert not replacing.end(tmp_path)
    assert contents(tmp_path) == OLD
    assert replacing.end(tmp_path)


def test_a_move_that_fails_can_be_ended_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    write(tmp_path, OLD)
    with monkeypatch.context() as patch, pytest.raises(OSError), replacing.staged(tmp_path) as staging:
        write(staging, NEW)
        patch.setattr(Path, "replace", failing)
        replacing.publish(staging, tmp_path, ["mistakes.png"])
    assert replacing.end(tmp_path)
    assert contents(tmp_path) == {**NEW, "notes.txt": "mine"}


def test_a_killed_command_that_had_not_begun_to_move_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    write(tmp_path / replacing.STAGING, {"model.pth": "half"})
    with replacing.staged(tmp_path) as staging:
        assert list(staging.iterdir()) == []
    assert contents(tmp_path) == OLD and not staging.exists()


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (
            {"meta.json": "{}", "epochs.csv": ""},
            r"is that of a run, whose files would be replaced\. Give a folder",
        ),
        ({"study.db": "", "metrics.json": ""}, r"is that of a run"),
        ({"model.py": "def network(): ..."}, r"with model\.py, which would be replaced or removed\. Name another"),
        ({"config.json": "{}", "notes.txt": ""}, r"with config\.json, which would be replaced"),
        ({"metrics.json": '{"auc": 0.9}', "model.py": "def network(): ..."}, r"with metrics\.json, which would be"),
        ({}, None),
        ({"README.md": "", "mine.txt": ""}, None),
        (OLD | {"metrics.json": '{"config_hash": "ab"}'}, None),
        ({"test_log.jsonl": "", "model.py": ""}, None),  # Of a model whose move was killed.
    ],
)
def test_files_that_are_of_no_model_are_not_replaced(tmp_path: Path, there: dict[str, str], said: str | None) -> None:
    write(tmp_path, there)
    if said is None:
        artefacts.check_folder(tmp_path)
    else:
        with pytest.raises(UserError, match=said):
            artefacts.check_folder(tmp_path)
    artefacts.check_folder(tmp_path / "not there yet")


def test_a_folder_that_cannot_be_looked_into_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)
    assert not replacing.end(tmp_path)

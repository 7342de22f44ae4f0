"""The log of the test split's openings: on the disk before the split is opened, and readable whatever was torn."""

import errno
import json
import os
from pathlib import Path

import pytest

from tuning.base.errors import UserError
from tuning.runs import openings

OPENED = {"event": openings.OPENED, "dataset": "patterns", "split_hash": "af0c", "seed": 1, "not logged": 7}


@pytest.mark.parametrize("cut", [1, 5, 40, 70, 100])
def test_after_a_torn_line_the_next_one_stands_on_its_own(tmp_path: Path, cut: int) -> None:
    openings.append(tmp_path, OPENED)
    path = tmp_path / openings.LOG
    path.write_bytes(path.read_bytes()[:-cut])
    (openings.PROJECT / openings.LOG).unlink()  # It is written after that, so the power cut came before.
    openings.append(tmp_path, OPENED)
    assert json.loads(path.read_text().splitlines()[-1])["split_hash"] == "af0c"
    assert openings.times_opened(tmp_path, "patterns") == len(openings.read(tmp_path)) == 2


@pytest.mark.parametrize(
    ("text", "patterns", "other"),
    [
        ('{"time": "2026", "event": "opened", "dataset": "pat', 1, 0),
        ('{"time": "2026", "event": "opened", "dataset": "patterns", "seeds": [1', 1, 0),
        ('{"time": "2026", "event": "op', 1, 1),
        ('{"time": "20', 1, 1),
        ("\0\0\0\0", 1, 1),
        ('{"time": "2026", "event": "result", "dataset": "patt', 0, 0),
        ('{"time": "2026", "event": "res', 0, 0),
        ('{"event": "opened"}\n', 1, 1),
        ('{"time": "2026", "event": "opened", "da{"time": "2026", "event": "opened", "dataset": "patterns"}\n', 2, 1),
        ("\n\n", 0, 0),
    ],
)
def test_what_is_torn_counts_as_an_opening_unless_it_says_something_else(
    tmp_path: Path, text: str, patterns: int, other: int
) -> None:
    (tmp_path / openings.LOG).write_text(text)
    assert openings.times_opened(tmp_path, "patterns") == patterns
    assert openings.times_opened(tmp_path, "other") == other


def test_images_that_were_opened_under_another_name_count(tmp_path: Path) -> None:
    """A folder of images was renamed between the openings; the third one was killed before it had a result."""
    for name, test_hash in (("old", "aa"), ("new", "aa"), ("old", None), ("other", "bb")):
        openings.append(tmp_path, OPENED | {"dataset": name})
        if test_hash is not None:
            openings.append(tmp_path, {"event": openings.RESULT, "dataset": name, "test_hash": test_hash})
    found = {name: openings.times_opened(tmp_path, name, "aa") for name in ("old", "new", "newest")}
    assert found == {"old": 3, "new": 2, "newest": 2}
    assert openings.times_opened(tmp_path, "newest", "cc") == openings.times_opened(tmp_path, "newest") == 0


def test_models_in_folders_of_their_own_share_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "PROJECT", tmp_path / "results")
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        openings.append(folder, OPENED)
    for folder in folders:  # Of two commands that ran at once.
        openings.append(folder, {"event": openings.RESULT, "dataset": "patterns", "test_hash": "aa"})
    for folder in (*folders, tmp_path / "three"):
        assert openings.times_opened(folder, "patterns") == openings.times_opened(folder, "new name", "aa") == 2
        assert openings.times_opened(folder, "other", "bb") == 0
    (folders[0] / openings.LOG).unlink()
    assert openings.times_opened(folders[0], "patterns") == 2
    assert openings.why_not_counted() == ""
    (tmp_path / "results" / openings.LOG).unlink()
    (tmp_path / "results" / openings.LOG).mkdir()  # Of somebody else.
    openings.append(folders[0], OPENED)
    assert openings.times_opened(folders[0], "patterns") == 1
    assert openings.times_opened(folders[0], "patterns", others=[*folders, tmp_path / "three"]) == 2
    assert openings.why_not_counted().startswith(f"{tmp_path / 'results' / openings.LOG} cannot be used (")


def test_a_model_in_the_folder_of_the_projects_log_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "PROJECT", tmp_path / "results")
    (tmp_path / "results").mkdir()
    for times in (1, 2):
        openings.append(tmp_path / "results", OPENED)
        assert openings.times_opened(tmp_path / "results", "patterns") == times


def test_without_a_log_nothing_was_opened(tmp_path: Path) -> None:
    assert openings.read(tmp_path) == [] and openings.times_opened(tmp_path, "patterns") == 0


def test_a_line_is_on_the_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((tmp_path / openings.LOG).read_bytes()))
    openings.append(tmp_path, OPENED)
    assert [json.loads(content)["event"] for content in synced] == [openings.OPENED] * 2  # Then the project's log.


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"No space left on the disk while writing .*test_log\.jsonl"),
        (errno.EROFS, r"test_log\.jsonl cannot be written .* is not opened without a line in it\. Make it writable"),
    ],
)
def test_a_line_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=message):
        openings.append(tmp_path, OPENED)


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / openings.LOG).mkdir()
    with pytest.raises(UserError, match=r"test_log\.jsonl cannot be read: Is a directory"):
        openings.read(tmp_path)

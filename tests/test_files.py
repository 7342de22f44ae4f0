"""Files of a run: whole or not there, and errors that name them."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from tuning import files
from tuning.errors import UserError


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run must be a folder that can be made"):
        files.make_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_json_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(UserError, match=r"meta\.json must (be a readable JSON file|hold a JSON object)"):
        files.read_json(tmp_path / "meta.json")


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meta.json"
    files.write_json(path, {"a": 1})

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match=r"No space left on the disk while writing .*meta\.json"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["meta.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_while_appending_is_named(tmp_path: Path) -> None:
    (tmp_path / "epochs.csv").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"No space left on the disk while writing .*epochs\.csv"):
        files.append_row(tmp_path / "epochs.csv", ["a"], {"a": 1})

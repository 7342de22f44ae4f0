"""Files of a run: whole or not there, and errors that name them."""

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tuning.base import files
from tuning.base.errors import UserError


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


@pytest.mark.parametrize("torn", ["tri", "trial,epoch\n0,1", "trial,epoch\n0,1\n0,", "trial,epoch\n0,1\n"])
def test_a_torn_line_is_cut_by_the_next_append(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "epochs.csv"
    path.write_text(torn)
    files.append_row(path, ["trial", "epoch"], {"trial": 7, "epoch": 8})
    whole = torn[: torn.rfind("\n") + 1] or "trial,epoch\n"
    assert path.read_text() == f"{whole}7,8\n"


def test_an_interrupt_in_the_middle_of_a_write_leaves_nothing_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    files.write_text(tmp_path / "meta.json", "before")
    for name in ("write", "replace"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(files, name, interrupted)
            files.write_text(tmp_path / "meta.json", "after")
        assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("meta.json", "before")]


def test_the_umask_says_who_may_read_a_file(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write_text(tmp_path / "mine", "x")
        files.append_row(tmp_path / "rows", ["a"], {"a": 1})
        os.umask(0o002)
        files.write_text(tmp_path / "ours", "x")
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    assert modes == {"mine": "0o600", "rows": "0o600", "ours": "0o664"}


def test_a_torn_line_of_a_log_stays_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for line in ("a", "b"):
        files.append_line(path, line)
    path.write_text(path.read_text() + '{"event": "ope')
    files.append_line(path, "c")
    assert path.read_text() == 'a\nb\n{"event": "ope\nc\n'
    assert files.whole_lines(path) == path.read_text() and files.whole_lines(tmp_path / "none") == ""


def test_a_files_name_that_is_no_utf_8_can_be_written(tmp_path: Path) -> None:
    files.write_text(tmp_path / "page", "caf\udce9 é")
    assert (tmp_path / "page").read_text(encoding="utf-8") == "caf\\udce9 é"


def test_a_link_stays_one_and_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link.csv", tmp_path / "there" / "target.csv"
    link.symlink_to(target)
    for text in ("new", "newer"):
        files.write_text(link, text)
        assert link.is_symlink() and target.read_text() == text
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    files.write_text(pipe, "said")
    reader.join(timeout=300)
    assert found == ["said"] and pipe.is_fifo()


def test_standard_output_can_be_named_as_a_file() -> None:
    code = "from pathlib import Path; from tuning.base import files; files.write_text(Path('/dev/stdout'), 'said')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert (done.stdout, done.stderr) == ("said", "")


@pytest.mark.parametrize("mode", ["a", "w"])
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/3", "/dev/stderr", "all.txt"])
def test_standard_output_that_is_a_file_keeps_what_else_is_written_to_it(tmp_path: Path, name: str, mode: str) -> None:
    (tmp_path / "all.txt").write_text("old\n")
    code = "from pathlib import Path; from tuning.base import files; import os; os.dup2(1, 3); print('before'); "
    code += f"files.write_text(Path('{name}'), 'said\\n'); print('after')"
    with (tmp_path / "all.txt").open(mode) as out:
        environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
        command = [sys.executable, "-c", code]
        subprocess.run(command, cwd=tmp_path, env=environment, stdout=out, stderr=out, timeout=600, check=True)
    assert (tmp_path / "all.txt").read_text() == "old\n" * (mode == "a") + "before\nsaid\nafter\n"
    assert [path.name for path in tmp_path.iterdir()] == ["all.txt"]


def test_a_path_can_be_copied_into_a_shell() -> None:
    assert files.as_typed(Path("my model/a")) == "'my model/a'"
    assert files.as_typed("plain/model") == "plain/model"


def test_a_path_with_a_byte_0_is_said() -> None:
    with pytest.raises(UserError, match=r"^'a\\x00b' cannot be looked at: embedded null byte\. Check the path\.$"):
        files.expanded("a\0b")


def test_where_standard_output_is_closed_a_device_is_written_to_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    files.write_bytes(Path(os.devnull), b"said")


@pytest.mark.parametrize(("number", "is_said"), [(errno.EACCES, True), (errno.ENOENT, False), (errno.ENOTDIR, False)])
def test_a_folder_that_may_not_be_searched_is_said(
    number: int, is_said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:  # The tests may run as root.
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", refuse)
        with (
            pytest.raises(UserError, match=r"^'.*/a' cannot be looked at: Permission denied\. Check the path\.$")
            if is_said
            else contextlib.nullcontext()
        ):
            assert files.expanded(tmp_path / "a") == tmp_path / "a"
        monkeypatch.setenv("TUNING_CACHE", str(tmp_path))
        assert files.cache_dir("images") == tmp_path / "images"  # Without a cache it goes, too.

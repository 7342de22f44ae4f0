"""Temporary folders: short, this user's own, removed at the end and after a kill; and a home for who has none."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuning.base import temporary

ROOT = Path(__file__).parents[2]
# Takes a folder for a Ray and waits for its end.
HOLDER = """
import sys, time
from pathlib import Path
from tuning.base import temporary
with temporary.ray_folder([Path(sys.argv[1])]) as (folder, note):
    (folder / "session").mkdir()
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder with a path that is short enough for a socket's."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


def holder(base: Path) -> tuple[subprocess.Popen[str], Path]:
    """Starts a process that holds a folder below `base`; returns both."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(base)], env=environment, stdout=-1, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_ray_gets_an_empty_folder_of_this_users_own_that_is_gone_afterwards(base: Path) -> None:
    with temporary.ray_folder([base]) as (folder, note):
        assert note == ""
        assert folder.parent == base / f"tuning-{os.geteuid()}"
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o700, 0o700]
        (folder / "session_x" / "logs").mkdir(parents=True)
        (folder / "session_x" / "logs" / "raylet.out").write_text("x")
    assert not [path for path in folder.parent.iterdir() if path.is_dir()]


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_running_one_stays(base: Path) -> None:
    killed, its_folder = holder(base)
    running, other = holder(base)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert its_folder.exists()
        with temporary.ray_folder([base]):
            assert not its_folder.exists()
            assert (other / "session").exists()
    finally:
        running.kill()
        running.communicate()


def test_a_folder_that_is_too_deep_for_a_socket_gives_way_and_it_is_said(base: Path) -> None:
    deep = base / ("x" * 70)
    with temporary.ray_folder([deep, base]) as (folder, note):
        assert folder.parent.parent == base
        assert note.startswith(f"Ray's temporary folder is {folder}, because another cannot be used ({deep}: its path")
        longest = folder / "session_2026-11-28_09-40-31_123456_4194304/sockets/plasma_store"
        assert len(os.fsencode(longest)) <= 103
    assert not deep.exists()


def test_a_path_of_as_many_bytes_as_a_socket_leaves_is_used_and_one_byte_more_is_not(base: Path) -> None:
    rest = len(f"/tuning-{os.geteuid()}/abcde")
    longest = base / ("x" * (temporary.MOST_BYTES - rest - len(f"{base}/")))
    with temporary.ray_folder([longest]) as (folder, note):
        assert note == "" and len(folder.name) == temporary.N_LETTERS == 5
        assert len(f"{folder}/session_2026-11-28_09-40-31_123456_4194304/sockets/plasma_store") + 4 == 103
    with pytest.raises(OSError, match="its path is too long"), temporary.ray_folder([Path(f"{longest}x")]):
        pass


def test_a_name_that_is_taken_is_not_used_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = iter("aaaaabbbbb")
    (base / f"tuning-{os.geteuid()}" / "aaaaa" / "data").mkdir(parents=True)
    monkeypatch.setattr("tuning.base.temporary.secrets.choice", lambda given: next(letters))
    with temporary.ray_folder([base]) as (folder, _):
        assert folder.name == "bbbbb"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_where_no_file_system_has_locks_a_folder_is_used_without_and_it_is_said(
    base: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with temporary.ray_folder([base]) as (one, note), temporary.ray_folder([base]) as (other, _):
        assert one.exists() and other.exists() and one != other
        assert note == f"Ray's temporary folder is {one}, on a file system without locks: remove it if this is killed."
    assert not one.exists() and not other.exists()


def test_a_place_without_locks_gives_way_to_one_with_them(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, (one, two) = fcntl.flock, (base / "one", base / "two")

    def refuse(file: Any, how: int) -> None:
        if str(one) in os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"):
            raise OSError(errno.ENOLCK, "No locks available")
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", refuse)
    with temporary.ray_folder([one, two]) as (folder, note):
        assert folder.parent.parent == two
        assert note.endswith(f"because another cannot be used ({one}: No locks available).")


@pytest.mark.parametrize("name", ["somebody", "link", "file"])
def test_a_folder_that_is_not_this_users_own_gives_way(base: Path, name: str) -> None:
    there, other = base / "a" / f"tuning-{os.geteuid()}", base / "b"
    there.parent.mkdir()
    if name == "somebody":
        if os.geteuid():
            pytest.skip("only root can give a folder away")
        there.mkdir()
        os.chown(there, 54321, 54321)
    elif name == "link":
        there.symlink_to(base)
    else:
        there.write_text("")
    with temporary.ray_folder([there.parent, other]) as (folder, note):
        assert folder.parent.parent == other
        assert "belongs to another user" in note


def test_a_folder_that_others_may_enter_is_closed(base: Path) -> None:
    there = base / f"tuning-{os.geteuid()}"
    there.mkdir(mode=0o777)
    there.chmod(0o777)
    with temporary.ray_folder([base]):
        assert stat.S_IMODE(there.stat().st_mode) == 0o700


def test_no_place_at_all_is_said_with_the_next_step(base: Path) -> None:
    (base / "file").write_text("")
    wanted = (
        r"Ray needs a temporary folder, and none can be used \(.*file.*\)\. Set RAY_TMPDIR to a folder that you can"
    )
    with pytest.raises(OSError, match=wanted), temporary.ray_folder([base / "file"]):
        pass


def test_the_usual_place_is_rays_then_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/ray")
    monkeypatch.setenv("TMPDIR", "/scratch")
    assert temporary.bases()[:3] == [Path("/ray"), Path("/scratch"), Path("/tmp")]
    monkeypatch.delenv("RAY_TMPDIR")
    assert temporary.bases()[:2] == [Path("/scratch"), Path("/tmp")]
    monkeypatch.delenv("TMPDIR")
    assert temporary.bases()[0] == Path("/tmp")


def without_a_name(folder: Path, program: str, **variables: str) -> list[str]:
    """Returns the lines that a program prints as a user without a name, with nothing in its environment but these."""
    command = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", sys.executable, "-c", program]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("home", [None, "/", "", "/nonexistent"])
def test_a_user_without_name_or_home_gets_a_home_and_a_cache(base: Path, home: str | None) -> None:
    base.chmod(0o777)
    program = (
        "import getpass, os; from pathlib import Path; from tuning.base import files, temporary\n"
        "temporary.provide_home()\n"
        "print(getpass.getuser()); print(Path.home()); print(files.cache_dir('kernels'))\n"
        "files.cache_dir('kernels').mkdir(parents=True); Path.home().joinpath('x').write_text('')"
    )
    given = {} if home is None else {"HOME": home}
    user, found, cache = without_a_name(base, program, TMPDIR=str(base), **given)
    assert (user, found) == ("54321", str(base / "home-54321"))
    assert cache == str(base / "home-54321/.cache/tuning/kernels")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_home_that_can_only_be_read_is_kept_and_the_cache_moves(base: Path) -> None:
    base.chmod(0o777)
    home = base / "home"
    home.mkdir(mode=0o755)
    program = (
        "import os; from pathlib import Path; from tuning.base import files, temporary; temporary.provide_home()\n"
        "print(Path.home()); print(files.cache_dir('kernels')); print(os.environ['MPLCONFIGDIR'])"
    )
    found = without_a_name(base, program, TMPDIR=str(base), HOME=str(home), USER="somebody")
    own = base / "home-54321"
    assert found == [str(home), str(own / ".cache/tuning/kernels"), str(own / ".config/matplotlib")]


def test_a_home_of_ones_own_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "somebody")
    before = dict(os.environ)
    temporary.provide_home()
    assert dict(os.environ) == before


def test_what_is_not_ours_is_left_alone(base: Path) -> None:
    ours = base / f"tuning-{os.geteuid()}"
    for name, lock in {"mine": None, "other": "elsewhere some-boot", "dead": ""}.items():
        (ours / name).mkdir(parents=True)
        (ours / name / "data").touch()
        if lock is not None:
            (ours / name / temporary.LOCK).write_text(lock)
    (base / f"ray-{os.geteuid()}" / "session_x").mkdir(parents=True)
    with temporary.ray_folder([base]):
        assert {path.name for path in ours.iterdir() if path.is_dir()} > {"mine", "other"}
        assert not (ours / "dead").exists()
    assert (base / f"ray-{os.geteuid()}" / "session_x").exists() and (ours / "mine" / "data").exists()

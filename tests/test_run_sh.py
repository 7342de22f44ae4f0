"""`tuning/run.sh` and `tests/run.sh`: what they install, where, and what they leave alone; with a stand-in for pip.

One test makes a real environment, in a folder whose name has all that a path may have.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, copy_project

# A python3 that notes what it is asked, and makes environments of itself. Where FAIL names a word of the command, it
# fails there; where KILL does, it kills the script.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in *sys.version_info*) exit "${OLD:-0}";; --version) echo Python 3.10; exit;; esac
echo "$*" >>"$LOG"
case "$*" in "-P -m tuning"*) echo "$PWD $PYTHONPATH" >>"$LOG.where";; esac
case "$*" in
  *"${FAIL:-no such word}"*) echo "no network" >&2; exit 1;;
  *"${KILL:-no such word}"*) kill -9 $PPID; exit 1;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg";;
  *"${WAIT:-no such word}"*) while [ ! -e "$LOG.go" ]; do sleep 0.05; done;;
esac
"""
INSTALL = "-m pip install --quiet --disable-pip-version-check --editable "
NEWEST = f"{INSTALL}.[photos]"
PINNED = " --constraint tuning/constraints.txt"
BASE, DEV = f"{NEWEST}{PINNED}", f"{INSTALL}.[dev]{PINNED}"
VENV = "-m venv .venv"
TESTED = "-m pytest --numprocesses 4 --dist loadgroup -k x"


class Clone:
    """A clone with both scripts, and stand-ins on its PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder / "clone", folder / "clone/.venv"
        for name in ("tuning/run.sh", "tuning/constraints.txt", "tests/run.sh", "pyproject.toml"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)
        self.bin, self.log = folder / "bin", folder / "log"
        self.bin.mkdir()
        for name in (
            "bash",
            "sh",
            "env",
            "dirname",
            "sha256sum",
            "sed",
            "find",
            "mkdir",
            "mv",
            "rm",
            "cp",
            "touch",
            "id",
            "sleep",
        ):
            (self.bin / name).symlink_to(str(shutil.which(name, path=os.defpath)))
        if flock := shutil.which("flock", path=os.defpath):
            (self.bin / "flock").symlink_to(flock)
        self.stand_in("python3", PYTHON)

    def stand_in(self, name: str, script: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(script, encoding="utf-8")
        (self.bin / name).chmod(0o755)

    def start(self, *words: str, script: str = "tuning/run.sh", **variables: str) -> subprocess.Popen[str]:
        """Starts a script from elsewhere."""
        environment = {"PATH": str(self.bin), "LOG": str(self.log), **variables}
        command = [str(self.bin / "bash"), str(self.folder / script), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, cwd="/", stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: str, script: str = "tuning/run.sh", **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a script from elsewhere; `asked` of the result are the commands that python3 and pip were given."""
        self.log.write_text("")
        with self.start(*words, script=script, **variables) as process:
            said = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, *said)

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_who_searches_gets_no_developers_tools_and_the_environment_once(clone: Clone) -> None:
    done = clone.run("search", "--samples", "2 0")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "Setting up .venv (about 2 minutes, 6 GB) ...\n"
    assert clone.asked() == [VENV, BASE, "-P -m tuning search --samples 2 0"]
    assert clone.run("results").stderr == ""
    assert clone.asked() == ["-P -m tuning results"]


@pytest.mark.parametrize("link", [False, True])
def test_an_environment_that_it_did_not_make_is_left_as_it_is(clone: Clone, tmp_path: Path, link: bool) -> None:
    theirs = tmp_path / "theirs" if link else clone.venv
    (theirs / "bin").mkdir(parents=True)
    (theirs / "precious").write_text("x")
    if link:
        clone.venv.symlink_to(theirs)
    for script in ("tuning/run.sh", "tests/run.sh"):
        done = clone.run("search", script=script, NO_APT="1")
        assert done.returncode == 2 and clone.asked() == []
        said = "".join(line for line in done.stderr.splitlines(keepends=True) if "Chromium" not in line)
        assert said == (
            "error: .venv was not made by tuning/run.sh, and is left as it is. Activate it and run `pip install -e .`, "
            "then `python -m tuning.search`; or choose another folder with TUNING_VENV=FOLDER; or move it away.\n"
        )
    assert sorted(path.name for path in theirs.iterdir()) == ["bin", "precious"]
    done = clone.run("search", TUNING_VENV="other folder")
    assert done.returncode == 0 and clone.asked()[0] == "-m venv other folder"
    assert (clone.folder / "other folder" / "installed").exists()


def test_developers_tools_are_added_and_stay(clone: Clone) -> None:
    clone.run("search")
    done = clone.run("--dev")
    assert done.stderr == "Setting up .venv anew: it lacks what pyproject.toml asks for ...\n"
    assert clone.asked() == [DEV]
    clone.run("search")
    assert clone.asked() == ["-P -m tuning search"]
    with (clone.folder / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    clone.run("search")
    assert clone.asked() == [DEV, "-P -m tuning search"]


def test_the_environment_of_version_0_2_0_is_gone_on_with(clone: Clone) -> None:
    (clone.venv / "bin").mkdir(parents=True)
    shutil.copy(clone.bin / "python3", clone.venv / "bin" / "python")
    (clone.venv / "installed").write_text("of an older pyproject.toml\n")
    assert clone.run("search").returncode == 0
    assert clone.asked() == [DEV, "-P -m tuning search"]


def test_an_upgrade_of_version_0_2_0_that_is_killed_is_known_as_its_own(clone: Clone) -> None:
    (clone.venv / "bin").mkdir(parents=True)
    shutil.copy(clone.bin / "python3", clone.venv / "bin" / "python")
    (clone.venv / "installed").write_text("of an older pyproject.toml\n")
    move = shutil.which("mv", path=os.defpath)
    clone.stand_in("mv", f'#!/usr/bin/env bash\n{move} "$@"\nkill -9 $PPID\n')
    assert clone.run("search").returncode == -9
    assert not (clone.venv / "installed").exists()
    clone.stand_in("mv", f'#!/usr/bin/env bash\n{move} "$@"\n')
    done = clone.run("search")
    assert (done.returncode, done.stderr) == (0, "Setting up .venv (about 2 minutes, 6 GB) ...\n")
    assert clone.asked() == [VENV, BASE, "-P -m tuning search"]


def test_an_empty_folder_is_nobodys_environment(clone: Clone) -> None:
    clone.venv.mkdir()
    assert clone.run("search").returncode == 0
    assert clone.asked() == [VENV, BASE, "-P -m tuning search"]


@pytest.mark.parametrize("moment", ["venv", "pip"])
def test_an_interrupted_set_up_is_known_as_its_own_and_begun_anew(clone: Clone, moment: str) -> None:
    assert clone.run("search", KILL=f"-m {moment}").returncode == -9
    (clone.venv / "half").mkdir()
    done = clone.run("search")
    assert done.returncode == 0 and clone.asked() == [VENV, BASE, "-P -m tuning search"]
    assert not (clone.venv / "half").exists()


@pytest.mark.parametrize("moment", ["venv", "pip"])
def test_a_set_up_that_fails_is_said_and_goes_on_later(clone: Clone, moment: str) -> None:
    done = clone.run("search", FAIL=f"-m {moment}")
    said = {
        "venv": "python3 -m venv failed. On Debian and Ubuntu, install python3-venv.",
        "pip": "pip could not install the project into .venv, for the reason above. Run the command again to go on.",
    }
    assert done.returncode == 2 and done.stderr.endswith(f"no network\nerror: {said[moment]}\n")
    assert clone.run("search").returncode == 0


def test_versions_that_are_not_to_be_had_give_way_to_the_newest_ones_and_that_is_said(clone: Clone) -> None:
    done = clone.run("search", FAIL="--constraint")
    assert done.returncode == 0 and clone.asked() == [VENV, BASE, NEWEST, "-P -m tuning search"]
    said = "The versions of tuning/constraints.txt cannot be installed, as said above. Trying the newest ones ...\n"
    assert done.stderr.endswith(f"no network\n{said}")
    assert clone.run("search").stderr == ""


def test_the_newest_versions_can_be_asked_for_at_any_time(clone: Clone) -> None:
    eager = f"{NEWEST} --upgrade --upgrade-strategy eager"
    assert clone.run("search", TUNING_NEWEST="1").returncode == 0
    assert clone.asked() == [VENV, eager, "-P -m tuning search"]
    done = clone.run("search", TUNING_NEWEST="1")
    assert done.stderr == "Setting up .venv anew: TUNING_NEWEST asks for the newest versions ...\n"
    assert clone.asked() == [eager, "-P -m tuning search"]
    clone.run("search")
    assert clone.asked() == ["-P -m tuning search"]


def test_a_command_runs_in_the_folder_of_the_call_with_the_project_of_the_clone(clone: Clone) -> None:
    clone.run("explore", "--dataset", "photos/", PYTHONPATH="theirs")
    assert Path(f"{clone.log}.where").read_text() == f"/ {clone.folder}:theirs\n"


@pytest.mark.parametrize("words", [[], ["serch"], ["--help"]], ids=repr)
def test_every_word_goes_to_the_command_that_knows_them_all(clone: Clone, words: list[str]) -> None:
    clone.run("search")
    assert clone.run(*words).returncode == 0
    assert clone.asked() == [" ".join(["-P -m tuning", *words])]
    clone.run("--dev")
    clone.run("--dev")
    assert clone.asked() == []


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_needs_no_environment(clone: Clone, word: str) -> None:
    done = clone.run(word)
    assert (done.returncode, done.stderr, clone.asked(), clone.venv.exists()) == (0, "", [], False)
    assert done.stdout.startswith("Runs a command of the project in its own environment, which it makes where there is")
    assert done.stdout.endswith("The command runs in the folder in which this is called.\n")


@pytest.mark.skipif(shutil.which("flock", path=os.defpath) is None, reason="without flock nothing waits")
def test_a_call_waits_while_another_one_makes_the_environment(clone: Clone) -> None:
    clone.log.write_text("")
    with clone.start("search", WAIT="-m pip") as one:
        while "-m pip" not in clone.log.read_text():
            assert one.poll() is None
            time.sleep(0.02)
        with clone.start("results") as other:
            assert other.stderr is not None
            assert other.stderr.readline() == "Waiting for another call, which sets up .venv ...\n"
            assert clone.asked() == [VENV, BASE]
            Path(f"{clone.log}.go").touch()
            assert (one.wait(30), other.wait(30)) == (0, 0)
            assert other.stderr.read() == ""
    assert sorted(clone.asked()) == sorted([VENV, BASE, "-P -m tuning search", "-P -m tuning results"])


def test_a_machine_without_flock_goes_on_without(clone: Clone) -> None:
    (clone.bin / "flock").unlink(missing_ok=True)
    assert clone.run("search").returncode == 0
    assert clone.asked() == [VENV, BASE, "-P -m tuning search"]


def test_the_constraints_are_names_and_versions_of_all_that_the_project_asks_for() -> None:
    lines = (ROOT / "tuning" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    pinned = {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["dev"], *extras["export"], *extras["mlflow"]]
    assert {re.split(r"[\[<>=]", name)[0].lower() for name in asked} <= pinned


def test_tools_that_cannot_be_had_cost_no_environment(clone: Clone) -> None:
    clone.run("search")
    assert clone.run("--dev", FAIL="pip").returncode == 2
    assert clone.run("search").returncode == 0
    assert clone.asked() == ["-P -m tuning search"]


def test_an_old_python_is_said(clone: Clone) -> None:
    done = clone.run("search", OLD="1")
    assert (done.returncode, done.stderr) == (
        2,
        "error: python3 must be Python 3.11 or later, but got Python 3.10.\n",
    )
    assert not clone.venv.exists()


@pytest.mark.parametrize("case", ["installed", "by root", "left out", "fails", "no root", "no apt-get"])
def test_what_apt_get_installs_is_said_and_can_be_left_out(clone: Clone, case: str) -> None:
    apt = '#!/bin/sh\necho "apt-get $*" >>"$LOG"\nexit {}\n'
    clone.stand_in("apt-get", apt.format(1 if case == "fails" else 0))
    clone.stand_in("id", f"#!/bin/sh\necho {1000 if case == 'no root' else 0}\n")
    if case == "installed":
        clone.stand_in("chromium", "#!/bin/sh\n")
    if case == "no apt-get":
        (clone.bin / "apt-get").unlink()
    done = clone.run("-k", "x", script="tests/run.sh", **({"NO_APT": "1"} if case == "left out" else {}))
    assert done.returncode == 0, done.stderr
    asked = [line for line in clone.asked() if line.startswith("apt-get")]
    installing = "Installing Chromium with apt-get, for the tests of the page (NO_APT=1 leaves it out) ..."
    assert {
        "installed": (asked == [] and "Chromium" not in done.stderr),
        "by root": (len(asked) == 2 and installing in done.stderr),
        "left out": (asked == [] and "Chromium is not installed: the tests of the page in a br" in done.stderr),
        "no apt-get": (asked == [] and "Chromium is not installed: the tests of the page in a br" in done.stderr),
        "no root": (asked == [] and "Chromium is not installed: the tests of the page in a br" in done.stderr),
        "fails": (len(asked) == 1 and "apt-get could not install Chromium: the tests of the page" in done.stderr),
    }[case]
    others = [line for line in clone.asked() if not line.startswith("apt-get")]
    assert others[1] == DEV and "-m mypy" in others[2:] and others.index(TESTED) >= len(others) - 2


@pytest.mark.parametrize(("fails", "code"), [("-m ruff", 1), ("-m mypy", 1), ("-m pytest", 1), ("no such word", 0)])
def test_lint_types_or_a_test_that_fails_is_a_failure(clone: Clone, fails: str, code: int) -> None:
    done = clone.run("-k", "x", script="tests/run.sh", NO_APT="1", FAIL=fails)
    assert done.returncode == code
    assert (TESTED in clone.asked()) == (fails != "-m ruff")
    assert ("The types are wrong, as said above" in done.stderr) == (fails == "-m mypy")


@pytest.mark.slow
def test_a_clone_in_any_folder_makes_a_real_environment_and_runs(tmp_path: Path) -> None:
    folder = copy_project(tmp_path / "Grün #1 50%? [x] 'y' %20")
    # The dependencies are those of this environment; pip must neither ask the network nor build in isolation.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    environment = os.environ | offline | {"PYTHONPATH": sysconfig.get_paths()["purelib"]}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for words in (["search", "--help"], ["predict", "--help"]):
        command = ["bash", str(folder / "tuning" / "run.sh"), *words]
        done = subprocess.run(
            command, env=environment, cwd="/", capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
    del environment["PYTHONPATH"]  # Beside the dependencies it has how this environment finds the project.
    where = "import tuning, search_spaces; print(tuning.__file__, search_spaces.__file__)"
    command = [str(folder / ".venv/bin/python"), "-P", "-c", where]
    found = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=600, check=True)
    assert found.stdout == f"{folder}/tuning/__init__.py {folder}/search_spaces/__init__.py\n"

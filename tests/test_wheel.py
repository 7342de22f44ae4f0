"""The project as a wheel: it has every file that a command needs, and says no other project's commit for its own.

`test_readme.py` runs all commands of the README from it.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import ROOT

from tuning.base import machine
from tuning.base.errors import UserError
from tuning.sampling import spaces

# What a checkout has for its own needs: the script that makes the environment of a clone, and the versions in it.
NOT_INSTALLED = {"tuning/run.sh", "tuning/constraints.txt"}


def python(environment: Mapping[str, str], folder: Path, *words: str) -> str:
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_has_every_file_of_the_packages(wheel: Mapping[str, str]) -> None:
    listed = subprocess.run(["git", "ls-files", "tuning", "search_spaces"], cwd=ROOT, capture_output=True, text=True)
    files = {name for name in listed.stdout.split() if not name.endswith(".md")} - NOT_INSTALLED
    assert "search_spaces/original-resnet8.yaml" in files
    assert not {name for name in files if not Path(wheel["PYTHONPATH"], name).is_file()}


def test_commands_run_from_the_wheel_in_an_empty_folder(wheel: Mapping[str, str], tmp_path: Path) -> None:
    listed = python(wheel, tmp_path, "-m", "tuning")
    for name in ("search", "final", "results", "report", "predict", "explore"):
        assert f"tuning.{name}" in listed
        assert "Usage" in python(wheel, tmp_path, "-m", f"tuning.{name}", "--help")
    found = python(
        wheel,
        tmp_path,
        "-c",
        "import pathlib\nfrom tuning.figures import run_page\nfrom tuning.models import kernels\n"
        "from tuning.retraining import candidates\nfrom tuning.sampling import spaces\n"
        "print(spaces.SPACES, spaces.space_names(), kernels.SOURCE.is_file())\n"
        "print(spaces.shipped_config(pathlib.Path('original-resnet8')).read_text(encoding='utf-8'))\n"
        "print(candidates.read_config(candidates.DEFAULT).architecture)",
    )
    assert (
        f"{wheel['PYTHONPATH']}/search_spaces ['own', 'photos', 'resnet', 'resnet18', 'resnet8', 'scans', 'smoke'] True"
        in found
    )
    assert "learning_rate" in found and found.endswith("resnet8\n")
    assert list(tmp_path.iterdir()) == []


def test_the_commit_is_the_projects_own_or_none(
    wheel: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert machine.git_commit() == (head or None)
    # Installed into an environment that lies in the checkout of another project.
    package = tmp_path / "other" / ".venv" / "tuning"
    package.mkdir(parents=True)
    (package / "machine.py").touch()
    git = ["git", "-C", str(tmp_path / "other"), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "theirs"], check=True)
    monkeypatch.setattr(machine, "__file__", str(package / "machine.py"))
    assert machine.git_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))  # No git.
    assert machine.git_commit() is None


def test_a_configuration_that_comes_with_the_project_goes_by_its_name(tmp_path: Path) -> None:
    assert spaces.shipped_config(Path("original-resnet18")) == spaces.SPACES / "original-resnet18.yaml"
    for own in ("mine.yaml", "folder/original-resnet8"):
        assert spaces.shipped_config(Path(own)) == Path(own)
    with pytest.raises(UserError, match=r"--config .* one of original-resnet18, .*'original-resnet9'\. Did you mean"):
        spaces.shipped_config(Path("original-resnet9"))

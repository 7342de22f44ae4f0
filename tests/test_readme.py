"""The README is true: every command and snippet in it is run, in its order, from the wheel in an empty folder."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.images.datasets import load_train
from tuning.runs import run_folder, schema

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
# What a command gets besides, because as it stands it takes an hour.
CHEAPER = {
    "bash tuning/run.sh search --samples 20": "--samples 3 --space smoke --epochs 2 --train-images 1000",
    "bash tuning/run.sh final": "--epochs 1 --seeds 2",
}
# What runs this test.
NOT_HERE = {"bash tests/run.sh"}
# The door of a clone, which `test_run_sh.py` tests, and what it opens.
DOOR = re.compile(r"^bash tuning/run\.sh ")


def run(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", DOOR.sub("python -m tuning.", command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_and_snippet_runs_in_the_order_of_the_readme(wheel: Mapping[str, str], tmp_path: Path) -> None:
    printed = []
    for language, block in BLOCKS:
        if language == "bash":
            for command in block.strip().splitlines():
                if command not in NOT_HERE:
                    printed.append(run(f"{command} {CHEAPER.get(command, '')}", tmp_path, wheel))
        elif block.startswith("# "):
            (tmp_path / block.split("\n")[0].removeprefix("# ")).write_text(block, encoding="utf-8")
        else:
            (tmp_path / "snippet.py").write_text(block, encoding="utf-8")
            printed.append(run("python snippet.py", tmp_path, wheel))
    assert sum("Next: python -m tuning.final" in text for text in printed) == 5
    assert sum("Next: python -m tuning.predict" in text for text in printed) == 3
    assert (tmp_path / "best_model" / "pca.png").stat().st_size > 20_000
    assert len(run_folder.load("first", tmp_path / "results").trials) == 6

    # The configuration that ships with the project has learned on the real images, and labels one of them.
    original = tmp_path / "results" / "first" / "original"
    metrics = files.read_json(original / "metrics.json")
    assert 0.4 < metrics["test_accuracy"] < 0.8
    assert any(f"{metrics['test_accuracy']:.2%}" in text and "55,000 images (train)" in text for text in printed)
    Image.fromarray(load_train("fashion-mnist").images[0, 0]).save(tmp_path / "boot.png")
    assert "boot.png" in run(f"python -m tuning.predict --model-dir {original} boot.png", tmp_path, wheel)


def test_nothing_in_the_lists_above_has_left_the_readme() -> None:
    commands = {line for language, block in BLOCKS if language == "bash" for line in block.strip().splitlines()}
    assert set(CHEAPER) | NOT_HERE <= commands
    assert "tests/run.sh" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_picture_is_there_and_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for name in pictures:
        assert 5_000 < (ROOT / name).stat().st_size < 1_000_000, name


def test_every_column_of_the_frames_is_explained() -> None:
    for name in [*schema.TRIAL_COLUMNS, *schema.EPOCH_COLUMNS]:
        assert f"`{name}`" in README or name.removeprefix("config/") in TrainConfig.model_fields, name


def test_every_hyperparameter_is_explained_in_its_docstring() -> None:
    assert TrainConfig.__doc__ is not None
    for name in TrainConfig.model_fields:
        assert f"\n        {name}: " in TrainConfig.__doc__, name


def test_the_changelog_has_the_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

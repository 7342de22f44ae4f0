"""The rim is deletable: without `figures/` and `remote/` a local search and `final` run, and say what they skip."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import copy_project

# An environment in which the checkout is installed to be edited would find there what the copy lacks.
OF_THE_COPY = "import sys\nsys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in str(each).lower()]\n"
SKIPPED = "skipped, because the folder tuning/figures/ is not installed."


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the project without the folders of the rim."""
    folder = copy_project(tmp_path_factory.mktemp("deletable"))
    for name in ("figures", "remote"):
        shutil.rmtree(folder / "tuning" / name)
    (folder / "sitecustomize.py").write_text(OF_THE_COPY, encoding="utf-8")
    return folder


def run(project: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Returns what a command of the copy printed, with its exit status."""
    return subprocess.run(
        [sys.executable, "-m", f"tuning.{command}", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_a_local_search_and_final_run_without_the_rim(project: Path) -> None:
    size = ["--samples", "2", "--epochs", "2", "--train-images", "500", "--concurrency", "1"]
    searched = run(project, "search", "--space", "smoke", "--run", "one", *size)
    assert searched.returncode == 0, searched.stdout + searched.stderr
    assert f"Pictures and page are {SKIPPED}" in searched.stdout and "Page:" not in searched.stdout
    folder = project / "results" / "one"
    assert len(pd.read_csv(folder / "trials.csv")) == 2 and len(pd.read_csv(folder / "epochs.csv")) >= 2
    assert json.loads((folder / "best.json").read_text())["valid_accuracy"] > 0

    retrained = run(project, "final", "--run", "one", "--top-k", "1", "--seeds", "1", "--epochs", "2")
    assert retrained.returncode == 0, retrained.stdout + retrained.stderr
    assert f"The model's pictures are {SKIPPED}" in retrained.stdout and f"The page is {SKIPPED}" in retrained.stdout
    metrics = json.loads((project / "best_model" / "metrics.json").read_text())
    assert metrics["run"] == "one" and 0 < metrics["test_accuracy"] < 1
    assert not list(project.glob("results/one/*.png")) and not list(project.glob("best_model/*.png"))

    shutil.copytree(folder, folder.with_name("two"))
    compared = run(project, "results", "compare", "one", "two")
    assert compared.returncode == 0 and f"The picture is {SKIPPED}" in compared.stdout, compared.stderr


REFUSED = {
    "search --storage s3://bucket/runs": "--storage needs the folder tuning/remote/",
    "search --mlflow sqlite:///runs.db": "--mlflow needs the folder tuning/remote/",
    "search --address auto": "--address needs the folder tuning/remote/",
    "search --resume s3://bucket/runs/one": "A run with a storage needs the folder tuning/remote/",
    "results s3://bucket/runs/one": "The run s3://bucket/runs/one needs the folder tuning/remote/",
    "report": "The page of a run needs the folder tuning/figures/",
}
# Runs commands one after the other in a process of the copy, and prints the exit status of each.
COMMANDS = """
import runpy, sys
for words in {words!r}:
    command, *arguments = words.split()
    sys.argv[1:] = arguments
    sys.modules.pop(f"tuning.{{command}}", None)  # One command may have imported another.
    try:
        runpy.run_module(f"tuning.{{command}}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print("ended", end.code)
"""


@pytest.mark.slow
def test_what_needs_a_folder_of_the_rim_is_refused_by_its_name(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS.format(words=list(REFUSED))],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.splitlines() == ["ended 2"] * len(REFUSED), done.stdout + done.stderr
    wanted = [f"error: {text}, which is not installed. Put the folder back first." for text in REFUSED.values()]
    assert [line for line in done.stderr.splitlines() if line] == wanted

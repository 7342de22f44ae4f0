"""A network of one's own, from `--model` to `predict`; the user's file is gone after the search began."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from tuning.base import own_model

MINE = """
from torch import nn

def model(config, channels, n_classes, image_size):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(128, n_classes))
"""


def command(folder: Path, name: str, *words: str, fails: bool = False) -> str:
    """Returns what a command prints in a folder; on stderr where it must fail, with exit status 2."""
    line = [sys.executable, "-m", f"tuning.{name}", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == (2 if fails else 0), done.stdout + done.stderr
    return done.stderr if fails else done.stdout


@pytest.mark.slow
def test_a_run_keeps_the_file_and_predict_runs_it_only_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    small = ["--epochs", "2", "--train-images", "1000"]
    command(tmp_path, "search", "--model", "mine.py", "--samples", "1", "--run", "one", *small)
    architecture = own_model.read(tmp_path / "mine.py").architecture
    (tmp_path / "mine.py").unlink()
    run = tmp_path / "results" / "one"
    assert (run / "model.py").read_text() == MINE
    command(tmp_path, "search", "--resume", "one", "--samples", "2")
    trials = pd.read_csv(run / "trials.csv")
    assert list(trials["state"]) == ["complete"] * 2 or "pruned" in set(trials["state"])
    assert set(trials["config/architecture"]) == {architecture}
    said = command(
        tmp_path,
        "final",
        "--run",
        "one",
        "--top-k",
        "1",
        "--seeds",
        "2",
        "--epochs",
        "2",
        "--no-compare",
        "--export",
        "pt2",
    )
    assert f"network            {architecture}" in said
    assert "Next: python -m tuning.predict --model best_model/model.py IMAGE" in said
    folder = tmp_path / "best_model"
    assert (folder / "model.py").read_text() == MINE and (folder / "pca.png").exists()
    assert json.loads((folder / "config.json").read_text())["config"]["architecture"] == architecture
    Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)).save(tmp_path / "image.png")
    # A copy from somebody else must not run, whatever it says.
    (folder / "model.py").write_text("open('harm', 'w').close()\n" + MINE)
    refused = command(tmp_path, "predict", "image.png", fails=True)
    assert re.search(rf"is code of its user's \({architecture}\), and no code there is run unasked\. Read", refused)
    other = command(tmp_path, "predict", "--model", "best_model/model.py", "image.png", fails=True)
    assert "--model must be the file that the model in best_model was trained with" in other
    assert not (tmp_path / "harm").exists()
    (folder / "model.py").write_text(MINE)
    assert "image.png" in command(tmp_path, "predict", "--model", "best_model/model.py", "image.png")


@pytest.mark.slow
def test_what_is_wrong_is_said_before_a_run_is_made(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace("128, n_classes", "128, 3"))
    wrong = command(tmp_path, "search", "--model", "mine.py", "--train-images", "1000", fails=True)
    assert "mine.py: the model must return logits (N, 10) for images (N, 1, 28, 28)" in wrong
    (tmp_path / "mine.py").write_text(MINE)
    unused = command(tmp_path, "search", "--model", "mine.py", "--space", "smoke", fails=True)
    assert "--model mine.py is in no configuration of the space smoke. Choose --space own" in unused
    assert "needs a file of yours: --model FILE" in command(tmp_path, "search", "--space", "own", fails=True)
    assert not list((tmp_path / "results").glob("*"))
    kept = command(tmp_path, "final", "--model", "mine.py", fails=True)
    assert "--model must be used with --config, because a run keeps its own" in kept
    (tmp_path / "c.yaml").write_text("architecture: resnet8\n")
    named = command(tmp_path, "final", "--config", "c.yaml", "--model", "mine.py", fails=True)
    assert "--model must be used with a configuration of the architecture 'own'" in named

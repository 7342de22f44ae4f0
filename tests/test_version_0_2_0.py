"""A run that version 0.2.0 began is read, resumed, finalled and reported: `tests/runs/version-0.2.0` is one.

It was interrupted in the sixth epoch of trial 2. Of its checkpoints only that trial's latest is kept.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from tuning.retraining import candidates
from tuning.runs import run_folder, schema
from tuning.trials import settings

KEPT = ROOT / "tests" / "runs" / "version-0.2.0" / "old"


def command(folder: Path, name: str, *words: str) -> str:
    """Returns what a command of the project prints in a folder; it must not fail."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", f"tuning.{name}", *words]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_record_is_read_as_it_is() -> None:
    run = run_folder.Run(KEPT)
    assert {name: str(dtype) for name, dtype in run.trials.dtypes.items()} == schema.TRIAL_COLUMNS
    assert list(run.trials["state"]) == ["complete", "complete", "running"]
    assert list(run.trials["epochs"]) == [7, 18, 5] and len(run.epochs) == 30
    assert run.best["trial"] == 1
    assert settings.of_run(run).samples == 5 and settings.of_run(run).sampler == "curves"
    plan = candidates.from_run(str(KEPT), top_k=1, n_seeds=2, compare=False)
    assert plan.identity == "old"  # Its seeds derive from the name, as they did.


@pytest.mark.slow
def test_it_is_resumed_from_its_last_epoch_then_finalled_and_reported(tmp_path: Path) -> None:
    shutil.copytree(KEPT, tmp_path / "results" / "old")
    before = pd.read_csv(KEPT / "epochs.csv")
    assert "3 trials (2 complete, 1 running)" in command(tmp_path, "results", "old")
    command(tmp_path, "search", "--resume", "old")
    run = run_folder.load("old", tmp_path / "results")
    assert len(run.trials) == 5 and not (run.trials["state"] == "running").any()
    assert run.trials["attempt"].tolist()[:3] == [1, 1, 2]
    assert not run.epochs.duplicated(["trial", "epoch"]).any()
    after = pd.read_csv(run.path / "epochs.csv")
    pd.testing.assert_frame_equal(after.loc[: len(before) - 1, list(before.columns)], before)
    assert (after["valid_score"] == after["valid_accuracy"]).all()
    log = (run.path / "trials" / "0002" / "trial.log").read_text()
    assert not re.search(r"epoch [1-5]\b", log), log
    said = command(tmp_path, "final", "--run", "old", "--top-k", "1", "--seeds", "1", "--epochs", "2")
    assert "test loss" in said
    metrics = json.loads((tmp_path / "best_model" / "metrics.json").read_text())
    assert metrics["run"] == "old"
    command(tmp_path, "report", "old")
    assert (run.path / "report.html").stat().st_size > 100_000

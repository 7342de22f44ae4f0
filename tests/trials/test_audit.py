"""What an audit says: rank correlations by rung and the estimated loss, on curves whose truth is known."""

from pathlib import Path

import pandas as pd
import pytest

from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.runs import run_folder, schema, summaries
from tuning.trials import audit

# Trial -> its curve; 0 to 3 are complete, 4 and 5 were stopped after two epochs. After epoch 1 the order is reversed.
CURVES = {
    0: [0.50, 0.60, 0.80],
    1: [0.51, 0.59, 0.79],
    2: [0.52, 0.58, 0.78],
    3: [0.53, 0.57, 0.77],
    4: [0.1, 0.2],
    5: [0.1, 0.3],
}


@pytest.fixture
def run(tmp_path: Path) -> run_folder.Run:
    rows = [
        {"trial": trial, "epoch": epoch, "valid_accuracy": accuracy}
        for trial, curve in CURVES.items()
        for epoch, accuracy in enumerate(curve, start=1)
    ]
    trials = [
        {"trial": trial, "state": "complete" if len(curve) == 3 else "pruned", "valid_accuracy": max(curve)}
        | {"epochs": len(curve), "stopped_by": "length" if len(curve) == 3 else "scheduler", "seed": trial}
        for trial, curve in CURVES.items()
    ]
    files.write_rows(tmp_path / "epochs.csv", schema.EPOCH_COLUMNS, rows)
    files.write_rows(tmp_path / "trials.csv", schema.TRIAL_COLUMNS, trials)
    return run_folder.Run(tmp_path)


@pytest.mark.parametrize(("end", "loss"), [(0.9, 0.1), (0.7, 0.0)])
def test_the_loss_is_what_the_best_audited_trial_has_more(run: run_folder.Run, end: float, loss: float) -> None:
    audited = pd.DataFrame({"trial": 4, "epoch": [1, 2, 3], "valid_accuracy": [0.1, 0.2, end]})
    found = audit.summarise(run, audited)
    assert found["loss"] == pytest.approx(loss)
    assert (found["trials"], found["n_stopped"], found["best_audited"]) == ([4], 2, end)
    [rung] = found["rungs"]
    assert (rung["epoch"], rung["n"]) == (2, 5)
    # The four complete ones are in order after epoch 2; the audited one is last there, and first or last in the end.
    assert rung["rank_correlation"] == pytest.approx(0.0 if end > 0.8 else 1.0)
    assert f"lost {100 * loss:.2f} points" in summaries.audit_text(found)
    assert f"{rung['rank_correlation']:+.2f} after epoch 2 (5 trials)" in summaries.audit_text(found)


def test_the_trials_to_audit_are_drawn_from_the_stopped_ones(run: run_folder.Run) -> None:
    trials = pd.read_csv(run.path / "trials.csv")
    trials.loc[trials["trial"] == 5, "stopped_by"] = "time budget"
    for name, value in TrainConfig().model_dump().items():
        trials[f"config/{name}"] = value
    trials.to_csv(run.path / "trials.csv", index=False)
    [(number, job)] = audit.wanted(run, 5, seed=0).items()
    assert (number, job.seed, job.config) == (4, 4, TrainConfig())


def test_an_audit_that_is_repeated_after_more_trials_keeps_what_it_had(run: run_folder.Run) -> None:
    trials = pd.read_csv(run.path / "trials.csv")
    for name, value in TrainConfig().model_dump().items():
        trials[f"config/{name}"] = value
    trials.to_csv(run.path / "trials.csv", index=False)
    for audited in (4, 5):
        pd.DataFrame({"trial": [audited], "epoch": [1]}).to_csv(run.path / audit.FILE, index=False)
        assert [*audit.wanted(run, 1, seed=0)] == [audited]
    assert {*audit.wanted(run, 2, seed=0)} == {4, 5}
    pd.DataFrame({"trial": [4, 5], "epoch": [1, 1]}).to_csv(run.path / audit.FILE, index=False)
    assert {*audit.wanted(run, 1, seed=0)} == {4, 5}


def test_a_search_that_stopped_nothing_has_nothing_to_audit(run: run_folder.Run) -> None:
    trials = pd.read_csv(run.path / "trials.csv")
    trials[trials["state"] == "complete"].to_csv(run.path / "trials.csv", index=False)
    told: list[str] = []
    chosen = audit.wanted(run, 2, seed=0)
    assert chosen == {} and audit.hold(run, chosen, "x", lambda jobs: [], told.append) is None
    assert told == ["Audit: the scheduler stopped no trial, so there is nothing to audit."]
    assert not (run.path / audit.FILE).exists()


def test_an_audited_trial_has_its_batches_cut_as_in_the_search(run: run_folder.Run) -> None:
    trials = pd.read_csv(run.path / "trials.csv")
    trials["accumulation"] = 4
    for name, value in TrainConfig().model_dump().items():
        trials[f"config/{name}"] = value
    trials.to_csv(run.path / "trials.csv", index=False)
    assert {job.accumulation for job in audit.wanted(run, 5, seed=0).values()} == {4}

"""The benchmarks still run: each in its shortest form, for the table that it prints and writes. No time is judged."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_run
from PIL import Image

from tuning.base import files
from tuning.images.splitting import load_splits

BENCHMARKS = Path(__file__).parent / "benchmarks"


def run(script: str, options: str, folder: Path) -> pd.DataFrame:
    """Returns the table that a benchmark writes."""
    command = [sys.executable, str(BENCHMARKS / script), *options.split(), "--out", str(folder / "table.csv")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cores of" in done.stdout and "torch" in done.stdout
    return pd.read_csv(folder / "table.csv")


@pytest.mark.slow
def test_scale_replays_trials_and_measures_the_search_without_torch(tmp_path: Path) -> None:
    row = run("scale.py", "--samples 8 --side-by-side 2 --busy 0", tmp_path).iloc[0]
    assert row["trials"] == 8 and 8 <= row["epochs"] <= 48
    assert 100 < row["driver_mb"] < 700  # With torch it would be more.
    assert (row[["trial_ms", "cpu_ms", "sampler_ms", "frames_ms", "study_ms", "end_s"]] > 0).all()


@pytest.mark.slow
def test_tricks_get_the_same_seconds_and_no_training_is_repeated(tmp_path: Path) -> None:
    options = f"--epochs 2 --seeds 2 --train-images 600 --only half --records {tmp_path / 'records.csv'}"
    table = run("tricks.py", options, tmp_path).set_index("trick")
    half = "half of the images at first"
    assert list(table.index) == ["base", half, f"Muon, {half}", f"Muon, not in the last layer, {half}"]
    assert table.loc["base", "epochs"] == 2 and (table["epochs"] > 0.5).all() and (table["seeds"] == 2).all()
    assert table["difference"].notna().sum() == 3
    records = (tmp_path / "records.csv").read_text()
    assert run("tricks.py", options, tmp_path).set_index("trick")["valid_accuracy"].equals(table["valid_accuracy"])
    assert (tmp_path / "records.csv").read_text() == records and len(records.splitlines()) == 9


@pytest.mark.slow
def test_time_to_accuracy_stops_where_the_target_is(tmp_path: Path) -> None:
    options = "--seeds 1 --epochs 2 --train-images 1500 --target 0.3 --plain-steps 2 --plain-epochs 3"
    ours, plain = run("time_to_accuracy.py", options, tmp_path).to_dict("records")
    assert ours["reached"] == "yes" and ours["valid_accuracy"] >= 0.3 and ours["times_faster"] > 0
    assert plain["reached"] == "assumed" and plain["epochs"] == 3
    options = "--seeds 1 --epochs 1 --train-images 1500 --target 0.05 --beside SGD --beside epochs=1"
    rows = run("time_to_accuracy.py", options, tmp_path)
    assert list(rows["loop"]) == ["ours, seed 0", "beside, seed 0"] and rows["times_faster"].notna().sum() == 1


@pytest.mark.slow
def test_training_sets_fit_beside_the_ceiling(tmp_path: Path) -> None:
    table = run("training.py", "--seconds 0.2 --only batch=512", tmp_path)
    assert list(table["loop"]) == ["ceiling", "fit", "fit, torch"] and (table["images/s"] > 0).all()
    assert table["of_ceiling"].notna().sum() == 2


@pytest.mark.slow
def test_augmentation_has_a_share_of_the_step(tmp_path: Path) -> None:
    table = run("augmentation.py", "--seconds 0.05 --only mix", tmp_path)
    assert list(table["augmentation"]) == ["mixup", "cutmix", "crop, flip, jitter, erase, mixup"] * 2
    share = table["share"]  # A difference of two short times may be below zero.
    assert np.isfinite(table["ms"]).all() and (share < 1).all() and ((share > 0) == (table["ms"] > 0)).all()


@pytest.mark.slow
def test_edges_are_counted_where_there_is_one_and_where_there_is_none(tmp_path: Path) -> None:
    table = run("edges.py", "--searches 3 --samplers curves", tmp_path).set_index("optimum")
    assert list(table.index) == ["noise", "inside", "beyond, twice", "beyond, ten times"]
    assert table.loc["beyond, ten times", "right"] > 50 > table.loc["inside", "said"]
    assert table["right"].notna().sum() == 2 and (table["naive"] <= 100).all()


@pytest.mark.slow
def test_means_are_judged_on_images_that_did_not_choose_them(tmp_path: Path) -> None:
    found, labels = write_run(tmp_path / "run", 1), load_splits("fashion-mnist").valid.labels
    draw = np.random.default_rng(0)
    for n, share in enumerate((0.9, 0.9, 0.9, 0.2)):
        taken = np.where(
            draw.random(len(labels)) < share, labels, (labels + 1 + draw.integers(9, size=len(labels))) % 10
        )
        folder = found.path / "final" / str(n)
        folder.mkdir(parents=True)
        files.write_json(folder / "result.json", {"split_hash": found.meta["split_hash"]})
        np.savez(folder / "valid_outputs.npz", log_probabilities=np.log(0.05 + 0.5 * np.eye(10)[taken]))
    table = run("ensembles.py", f"--runs {found.path} --repeats 3", tmp_path).set_index("rule")
    assert list(table.index) == ["single", "greedy", "all", "ours", "four"] and set(table["trained"]) == {4}
    values = table["value"].str.rstrip("%").astype(float)
    assert values["ours"] > values["single"] + 5 and (table["chosen_on"] == len(labels) // 2).all()
    assert table["models"]["single"] == 1 and table["models"]["all"] == 4
    assert 3 <= table["models"]["ours"] <= 4 and table["models"]["four"] == table["models"]["ours"]


@pytest.mark.slow
def test_reading_is_measured_the_first_time_and_from_then_on(tmp_path: Path) -> None:
    small, large = run("reading.py", "--images 40,20 --rounds 1", tmp_path).to_dict("records")
    assert (small["images"], small["stored_side"], large["images"], large["stored_side"]) == (40, 100, 20, 128)
    assert all(row["first_seconds"] > 0 and row["again_seconds"] > 0 and row["memory_mb"] > 0 for row in (small, large))


@pytest.mark.slow
def test_photos_are_trained_on_for_equal_minutes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    options = "--dataset photos --minutes 0.02,0.05 --folds 2 --ways scratch --metric log_loss"
    short, long = run("own_photos.py", options, tmp_path).to_dict("records")
    assert (short["data_set"], short["way"]) == ("photos", "scratch")
    assert short["epochs"] < long["epochs"] and long["log_loss_mean"] > 0 and long["sd"] > 0


@pytest.mark.slow
def test_proposals_are_timed_where_all_trials_are_fitted_to_and_where_some_are(tmp_path: Path) -> None:
    table = run("proposals.py", "--trials 40 170 --epochs 9 --hyperparameters 3", tmp_path)
    assert list(table["trials"]) == [40, 170] and (table["reported_epochs"] > table["trials"]).all()
    assert (table[["first_s", "median_s", "refit_s"]] > 0).all(axis=None) and (
        table["most_s"] >= table["median_s"]
    ).all()
    assert (table["process_mb"] < 700).all()


def test_the_time_that_is_left_is_held_against_the_truth(tmp_path: Path) -> None:
    found = run("time_left.py", f"--tables {BENCHMARKS / 'tables'} --tasks 1 --seeds 1", tmp_path)
    assert found["slots"].tolist() == [2, 2, 8, 8] and found["said"].between(2, 5).all()
    assert (found.filter(like="off at").fillna(0) < 300).all(axis=None)  # At first only one rule says something.

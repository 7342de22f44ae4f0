"""Retraining: what is chosen, what is written, how often the test split is opened."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASS_NAMES, patterned_images

from tuning import data, final, results
from tuning.config import TrainConfig
from tuning.data import Splits
from tuning.errors import UserError
from tuning.models import build_model

TINY = TrainConfig(width=4, batch_size=32, epochs=3, precision="fp32", learning_rate=0.05)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> list[str]:
    """Puts small images in the place of Fashion-MNIST; the list has an item for each opening of the test split."""
    openings: list[str] = []

    def load_test(dataset: str, data_dir: Path | None = None) -> Any:
        openings.append(dataset)
        return patterned_images(200, seed=9)

    monkeypatch.setattr(data, "load_splits", lambda *args, **kwargs: splits)
    monkeypatch.setattr(data, "load_test", load_test)
    return openings


def choice(config: TrainConfig = TINY) -> final.Choice:
    return final.Choice(config, "a test", 0.5, "patterns", data_seed=0, train_images=None)


def train(model_dir: Path, config: TrainConfig = TINY, seed: int = 1) -> dict[str, Any]:
    model_dir.mkdir(exist_ok=True)
    return final.final(choice(config), seed=seed, device="cpu", data_dir=None, model_dir=model_dir)


def test_everything_is_written_and_agrees(tmp_path: Path, opened: list[str], splits: Splits) -> None:
    metrics = train(tmp_path)
    assert opened == ["patterns"]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        *("model.pth", "config.json", "metrics.json", "scores.txt", "classification_report.csv", "epochs.csv"),
        *("confusion.png", "pca.png", "learning_curve.png", "calibration.png", "mistakes.png", "separability.csv"),
        "test_log.jsonl",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert f"test               {metrics['test_accuracy']:.2%} (95 % interval" in (tmp_path / "scores.txt").read_text()
    assert metrics["test_interval"][0] < metrics["test_accuracy"] <= metrics["test_interval"][1]

    described = json.loads((tmp_path / "config.json").read_text())
    model = build_model(TrainConfig.model_validate(described["config"]), 1, 4)
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    test = patterned_images(200, seed=9)
    from tuning.training import evaluate

    scores, _ = evaluate(model, test, splits, flip_averaging=metrics["flip_averaging"])
    assert (scores.argmax(1).numpy() == test.labels).mean() == metrics["test_accuracy"]
    report = pd.read_csv(tmp_path / "classification_report.csv")
    assert list(report["class"])[:4] == list(CLASS_NAMES)
    support = report.set_index("class").loc[list(CLASS_NAMES)]
    assert np.isclose((support["recall"] * support["support"]).sum() / 200, metrics["test_accuracy"])


def test_the_log_says_each_time_that_the_test_split_was_opened(tmp_path: Path, opened: list[str]) -> None:
    first = train(tmp_path)
    second = train(tmp_path, seed=2)
    assert final.times_opened(tmp_path) == len(opened) == 2
    lines = [json.loads(line) for line in (tmp_path / "test_log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["opened", "result", "opened", "result"]
    assert [line["seed"] for line in lines] == [1, 1, 2, 2]
    assert "test_accuracy" not in lines[0]
    assert [lines[1]["test_accuracy"], lines[3]["test_accuracy"]] == [first["test_accuracy"], second["test_accuracy"]]
    assert all(line["time"] and line["split_hash"] and line["config_hash"] == TINY.hash() for line in lines)


def test_the_test_split_is_opened_after_training_only(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        assert not opened
        raise KeyboardInterrupt

    monkeypatch.setattr(final, "log_test", fail)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert not opened


def test_an_interrupted_retraining_goes_on_to_the_same_numbers(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole")
    from tuning import checkpoints

    save, saved = checkpoints.save, []

    def save_and_stop(*args: Any) -> None:
        save(*args)
        saved.append(args)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken")
    capsys.readouterr()
    again = train(tmp_path / "broken")
    assert "Going on after epoch 2" in capsys.readouterr().out
    assert len(saved) == 3
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


def test_a_run_without_finished_trials_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "empty").mkdir(parents=True)
    results.write_json(tmp_path / "results" / "empty" / "meta.json", {"settings": {}})
    with pytest.raises(UserError, match=r"Run results/empty must have a finished trial, but got 0 trials"):
        final.choose("latest", None, "fashion-mnist")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"c\.json must be a JSON file, but it cannot be parsed"),
        ("[]", r"c\.json must hold a mapping of hyperparameters, but got list"),
        ('{"learning_rte": 1}', r"Did you mean 'learning_rate'\?"),
        ('{"epochs": 0}', r"epochs must be greater than or equal to 1, but got 0"),
    ],
)
def test_a_wrong_configuration_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=message):
        final.choose("latest", tmp_path / "c.json", "fashion-mnist")


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match="--device must be 'cpu' on a machine without a GPU"):
        final.main(config=tmp_path / "c.json", device="cuda", model_dir=tmp_path / "model")
    with pytest.raises(UserError, match="--device must be 'cpu' or 'cuda', but got 'tpu'"):
        final.main(config=tmp_path / "c.json", device="tpu", model_dir=tmp_path / "model")


@pytest.mark.slow
def test_the_command_trains_the_original_configuration_by_name_and_predict_takes_its_model(tmp_path: Path) -> None:
    """On the real images, one epoch of the file that ships with the project, then a label for a real image."""
    from PIL import Image

    from tuning.data import load_train

    config = Path(__file__).parent.parent / "search_spaces" / "original-resnet8.yaml"
    command = [sys.executable, "-m", "tuning.final", "--config", str(config), "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "best_model" / "metrics.json").read_text())
    assert 0.4 < metrics["test_accuracy"] < 0.8
    assert f"{metrics['test_accuracy']:.2%}" in done.stdout
    Image.fromarray(load_train("fashion-mnist").images[0, 0]).save(tmp_path / "boot.png")
    command = [sys.executable, "-m", "tuning.predict", "boot.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "boot.png" in done.stdout

"""Retraining: what is chosen, what is written, how often the test split is opened."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLASS_NAMES, patterned_images, write_run
from matplotlib.figure import Figure

from tuning import final
from tuning.base import averagings, files
from tuning.base.averagings import AVERAGINGS
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.figures import run_page
from tuning.images import datasets, splitting
from tuning.images.splitting import Splits
from tuning.models.architectures import build_model
from tuning.retraining import artefacts, averaging, contest, model_card, opening, verdict
from tuning.retraining.best_model import load_best_model
from tuning.retraining.candidates import Entry, Plan
from tuning.retraining.ensemble import Ensemble
from tuning.runs import analysis, openings, replacing, run_folder
from tuning.runs.verdicts import verdicts
from tuning.training import jobs
from tuning.training.evaluation import evaluate
from tuning.trials.slots import Slots

pytestmark = pytest.mark.usefixtures("unrendered")

TINY = TrainConfig(width=4, batch_size=32, epochs=3, precision="fp32", learning_rate=0.05)
SLOTS = Slots("cpu", concurrency=1)


@pytest.fixture(autouse=True)
def pictures_that_are_not_rendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has pictures drawn and written, empty but for one test: to render them is most of a retraining's four seconds."""
    if request.function is not test_everything_is_written_and_agrees:
        monkeypatch.setattr(Figure, "savefig", lambda figure, file, **how: file.write(b"a picture"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> list[str]:
    """Puts small images in the place of Fashion-MNIST; the list has an item for each opening of the test split."""
    openings: list[str] = []

    def load_test(dataset: str, data_dir: Path | None = None) -> Any:
        openings.append(dataset)
        return patterned_images(200, seed=9)

    monkeypatch.setattr(splitting, "load_splits", lambda *args, **kwargs: splits)
    monkeypatch.setattr(datasets, "load_test", load_test)
    return openings


def make_plan(folder: Path, seeds: tuple[int, ...] = (1,), run: str | None = "run", n: int = 1) -> Plan:
    """Returns a plan of `n` candidates and, where there are several, a default."""
    configs = [TINY.model_copy(update={"batch_size": 32 + i}) for i in range(n + 1)]
    entries = [Entry("candidate", config, i + 1, i, 0.5, 3) for i, config in enumerate(configs[:n])]
    if n > 1:
        entries.append(Entry("default", configs[n]))
    return Plan("a test", run, tuple(entries), seeds, folder / "jobs", "patterns", default=configs[n].hash())


def train(model_dir: Path, plan: Plan | None = None, **values: Any) -> dict[str, Any]:
    model_dir.mkdir(exist_ok=True)
    return opening.retrain_and_test(plan or make_plan(model_dir), SLOTS, threads=1, model_dir=model_dir, **values)


def test_everything_is_written_and_agrees(tmp_path: Path, opened: list[str], splits: Splits) -> None:
    metrics = train(tmp_path, make_plan(tmp_path, run=None))
    assert opened == ["patterns"]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        *("model.pth", "config.json", "metrics.json", "scores.txt", "classification_report.csv", "epochs.csv"),
        *("confusion.png", "pca.png", "learning_curve.png", "calibration.png", "mistakes.png", "separability.csv"),
        *("test_log.jsonl", "final.csv", "test_outputs.npz", "model_card.md"),
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert f"test               {metrics['test_accuracy']:.2%} (95 % interval" in (tmp_path / "scores.txt").read_text()
    assert metrics["test_interval"][0] < metrics["test_accuracy"] <= metrics["test_interval"][1]
    assert metrics["test_accuracy"] == metrics["test_accuracy_mean"]
    assert metrics["test_accuracy_std"] is metrics["valid_accuracy_std"] is metrics["shrinkage_interval"] is None

    described = json.loads((tmp_path / "config.json").read_text())
    model = build_model(TrainConfig.model_validate(described["config"]), 1, 4)
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    test = patterned_images(200, seed=9)
    scores, _ = evaluate(model, test, splits, averaging=metrics["averaging"])
    assert (scores.argmax(1).numpy() == test.labels).mean() == metrics["test_accuracy"]
    report = pd.read_csv(tmp_path / "classification_report.csv")
    assert list(report["class"])[:4] == list(CLASS_NAMES)
    support = report.set_index("class").loc[list(CLASS_NAMES)]
    assert np.isclose((support["recall"] * support["support"]).sum() / 200, metrics["test_accuracy"])


def test_over_seeds_metrics_and_table_agree_to_the_last_digit(
    tmp_path: Path, opened: list[str], splits: Splits
) -> None:
    metrics = train(tmp_path, plan := make_plan(tmp_path, (1, 2, 3), n=2))
    assert opened == ["patterns"]
    table = pd.read_csv(tmp_path / "final.csv").set_index("config_hash")
    winner = table.loc[metrics["config_hash"]]
    assert winner["chosen"] and table["chosen"].sum() == 1
    for name in ("valid_accuracy_mean", "valid_accuracy_std"):
        assert metrics[name] == winner[name], name
    assert metrics["trial"] == winner["trial"]
    default = table[table["role"] == "default"].iloc[0]
    assert metrics["default_difference"] == default["difference"]
    assert metrics["default_difference_interval"] == [default["difference_low"], default["difference_high"]]
    best = max(range(3), key=lambda i: winner[f"seed_{i + 1}"])
    assert metrics["seed"] == (1, 2, 3)[best] and metrics["seeds"] == [1, 2, 3]
    config = next(e.config for e in plan.entries if e.config.hash() == metrics["config_hash"])
    accuracies = []
    for seed in plan.seeds:
        model = jobs.load_model(jobs.Job(config, seed, plan.folder), splits, "cpu")
        test = patterned_images(200, seed=9)
        scores, _ = evaluate(model, test, splits, averaging=metrics["averaging"])
        accuracies.append((scores.argmax(1).numpy() == test.labels).mean())
    assert metrics["test_accuracy"] == accuracies[best]
    assert metrics["test_accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert metrics["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert f"{metrics['test_accuracy_mean']:.2%} ± " in (tmp_path / "scores.txt").read_text()
    for name, ends in (("none", ["", ""]), ("flip", [", without averaging", ", with flip averaging (2 views)"])):
        text = model_card.scores(metrics | averagings.recorded(name), "resnet8")
        assert re.findall(r"^(?:valid|test), mean .* over 3 fresh seeds(.*)$", text, re.M) == ends


def test_the_outputs_on_the_test_images_are_kept(tmp_path: Path, opened: list[str]) -> None:
    metrics = train(tmp_path)
    with np.load(tmp_path / "test_outputs.npz", allow_pickle=False) as outputs:
        found = {name: (array.dtype.name, array.shape) for name, array in outputs.items()}
        right = outputs["probabilities"].argmax(1) == outputs["labels"]
        assert outputs["probabilities"].sum(1) == pytest.approx(1)
    assert found == {
        "labels": ("int64", (200,)),
        "probabilities": ("float32", (200, 4)),
        "points": ("float64", (200, 2)),
        "explained": ("float64", (2,)),
        "images": ("uint8", (200, 1, 12, 12)),
    }
    assert right.mean() == metrics["test_accuracy"]


def test_the_log_says_each_time_that_the_test_split_was_opened(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(tmp_path)
    second = train(tmp_path, make_plan(tmp_path, (2,)))
    assert openings.times_opened(tmp_path, "patterns") == len(opened) == 2
    assert (first["test_opened"], second["test_opened"]) == (1, 2)
    lines = [json.loads(line) for line in (tmp_path / "test_log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["opened", "result", "opened", "result"]
    assert [line["seeds"] for line in lines] == [[1], [1], [2], [2]]
    assert "test_accuracy" not in lines[0]
    assert [lines[1]["test_accuracy"], lines[3]["test_accuracy"]] == [first["test_accuracy"], second["test_accuracy"]]
    assert all(line["time"] and line["split_hash"] and line["config_hash"] == TINY.hash() for line in lines)
    assert openings.times_opened(tmp_path, "other") == 0
    assert openings.times_opened(tmp_path, "renamed", second["test_hash"]) == 2
    assert [line.get("test_hash") for line in lines] == [None, first["test_hash"]] * 2
    with (tmp_path / "test_log.jsonl").open("a") as log:
        log.write('{"event": "opened"}\n')  # As it was written before there was a name.
    assert openings.times_opened(tmp_path, "other") == 1


def test_from_the_second_opening_on_it_is_said_what_that_does(tmp_path: Path) -> None:
    text = opening.opened_again({"test_opened": 3, "test_accuracy": 0.9, "test_images": 10_000})
    assert "has been opened 3 times" in text
    assert "too high by up to 0.25 points on average (0.85 standard errors" in text


def test_the_test_split_is_opened_after_training_only(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        assert not opened
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "log_test", fail)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, train_on="train+valid")
    assert not opened


def test_on_averaging_all_seeds_decide_on_valid_images(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, (1, 2))
    values = {1: (0.9, 0.90, 0.80), 2: (0.8, 0.80, 0.95)}
    done = {(TINY.hash(), seed): jobs.Result("x", *found, best_epoch=1) for seed, found in values.items()}
    table = pd.DataFrame({"chosen": [True]})
    chosen = verdict.choose(contest.Contest(plan, done, {}, table, None))
    assert (chosen.job.seed, chosen.averaging, chosen.valid_accuracy) == (1, "flip", 0.80)


@pytest.mark.parametrize("name", AVERAGINGS)
def test_the_average_that_is_chosen_is_tested_written_and_said(
    tmp_path: Path,
    opened: list[str],
    splits: Splits,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setattr(
        averaging, "choose", lambda models, metric, folds: (name, {"flip": averaging.Gain(0.012, 0.004)})
    )
    metrics = train(tmp_path)
    printed, views = capsys.readouterr().out, AVERAGINGS[name].facts
    assert f"on the valid images: flip +1.20 ± 0.40 points. Chosen: {name}, {views}." in printed
    assert (metrics["averaging"], metrics["flip_averaging"]) == (name, "flip" in name)
    assert metrics["averaging_gains"] == {"flip": {"gain": 0.012, "standard_error": 0.004}}
    described = json.loads((tmp_path / "config.json").read_text())
    assert (described["averaging"], described["flip_averaging"]) == (name, "flip" in name)
    model, test = jobs.load_model(jobs.Job(TINY, 1, tmp_path / "jobs"), splits, "cpu"), patterned_images(200, seed=9)
    for other, each in AVERAGINGS.items():
        scores, _ = evaluate(model, test, splits, averaging=other)
        accuracy = (scores.argmax(1).numpy() == test.labels).mean()
        # What was not chosen is not tested.
        assert metrics.get(f"test_accuracy{each.end}") == (accuracy if other in ("none", name) else None)
        if other == name:
            assert metrics["test_accuracy"] == metrics["test_accuracy_mean"] == accuracy
            with np.load(tmp_path / "test_outputs.npz") as outputs:
                np.testing.assert_allclose(outputs["probabilities"], scores.exp(), atol=1e-6)
    shown = [row.probability for row in load_best_model(tmp_path).predict(test.images)]
    with np.load(tmp_path / "test_outputs.npz") as outputs:
        np.testing.assert_allclose(outputs["probabilities"].max(1), shown, atol=1e-5)
    text, card = (tmp_path / "scores.txt").read_text(), (tmp_path / "model_card.md").read_text()
    assert len(re.findall(rf"^(valid, as saved|test  ).*, {re.escape(AVERAGINGS[name].phrase)}$", text, re.M)) == 2
    assert f", {AVERAGINGS[name].phrase}." in card and "configuration, epoch and averaging were chosen" in card
    assert ("So an image takes" in card) == (name != "none")
    if name != "none":
        n = len(AVERAGINGS[name].views)
        assert f"mean over {views}: {AVERAGINGS[name].summary}. So an image takes {n} times as long" in card


def test_the_test_images_are_evaluated_once_a_view(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the winner's seeds the chosen views, and the image alone; of the rest of an ensemble that."""
    monkeypatch.setattr(averaging, "choose", lambda models, metric, folds: ("flip", {}))
    asked: list[tuple[int, tuple[str, ...]]] = []
    outcomes = opening._outcomes

    def noted(model: Any, part: Any, splits: Any, device: str, averagings: Any) -> Any:
        if opened:
            asked.append((len(part.labels), tuple(averagings)))
        return outcomes(model, part, splits, device, averagings)

    monkeypatch.setattr(opening, "_outcomes", noted)
    metrics = train(tmp_path, make_plan(tmp_path, (1, 2)))
    assert asked == [(200, ("none", "flip"))] * 2
    assert metrics["averaging"] == "flip"


def test_how_many_times_as_long_an_ensemble_takes_counts_the_views_of_the_single_model(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, outcomes = [0.0], opening._outcomes

    def now() -> float:
        clock[0] += 1e-6
        return clock[0]

    def slow(model: Any, part: Any, splits: Any, device: str, averagings: Any) -> Any:
        clock[0] += max(len(AVERAGINGS[name].views) for name in averagings)  # A second a view.
        return outcomes(model, part, splits, device, averagings)

    monkeypatch.setattr(opening, "_outcomes", slow)
    monkeypatch.setattr(opening.time, "perf_counter", now)
    monkeypatch.setattr(averaging, "choose", lambda models, metric, folds: ("shift", {}))
    plan = make_plan(tmp_path, (1, 2))
    together = Ensemble(tuple(plan.job(plan.entries[0], seed) for seed in (1, 2)), (0.5, 0.5), 0.9, 0.9, 10)
    monkeypatch.setattr(opening.ensemble, "choose", lambda held: together)
    metrics = train(tmp_path, plan)
    assert metrics["ensemble"]["times_single"] == pytest.approx(2 / 5, abs=1e-3)


def test_an_interrupted_retraining_goes_on_to_the_same_numbers(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole")
    from tuning.training import checkpoints

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
    timed = {"seconds", "seconds_total", "test_opened"}  # The second model opens the test images once more.
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in whole.items() if k not in timed}


def test_train_and_valid_images_make_the_model_to_ship(tmp_path: Path, opened: list[str], splits: Splits) -> None:
    plan = make_plan(tmp_path, (1, 2))
    separate = train(tmp_path, plan)
    metrics = train(tmp_path, plan, train_on="train+valid")
    assert metrics["train_on"] == "train+valid"
    for name in ("test_accuracy_mean", "valid_accuracy", "best_epoch", "seed", "config_hash"):
        assert metrics[name] == separate[name], name
    weights = torch.load(tmp_path / "model.pth", weights_only=True)
    before = jobs.load_model(jobs.Job(TINY, metrics["seed"], plan.folder), splits, "cpu").state_dict()
    assert not torch.equal(weights["head.weight"], before["head.weight"])
    assert weights["stem.1.num_batches_tracked"] == metrics["best_epoch"] * 19  # 600 images in batches of 32
    assert json.loads((tmp_path / "config.json").read_text())["config"]["patience"] is None
    assert "trained on 600 images (train+valid)" in (tmp_path / "model_card.md").read_text()
    assert re.search(r"^valid, before that +\d", (tmp_path / "scores.txt").read_text(), re.M)


def test_a_retraining_on_everything_that_fails_is_said(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_job = jobs.train

    def fail_on_everything(job: jobs.Job, *args: Any) -> Any:
        return train_job(job, *args) if job.length is None else iter([{"error": "no memory"}])

    monkeypatch.setattr(jobs, "train", fail_on_everything)
    with pytest.raises(
        UserError, match=r"The training on train and valid images \(--train-on train\+valid\) failed\. .*-3 says why"
    ):
        train(tmp_path, train_on="train+valid")
    assert not opened


def test_exports_are_written_and_those_of_the_model_before_removed(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, formats=["safetensors"])
    assert "Exported: " in capsys.readouterr().out and (tmp_path / "model.safetensors").exists()
    train(tmp_path, formats=[])
    assert not (tmp_path / "model.safetensors").exists()


def test_the_model_card_has_the_figures_and_the_weaknesses(tmp_path: Path, opened: list[str]) -> None:
    metrics = train(tmp_path, make_plan(tmp_path, (1, 2), n=2))
    card = (tmp_path / "model_card.md").read_text()
    for text in (
        f"Test accuracy of this model: {metrics['test_accuracy']:.2%}",
        f"{metrics['test_accuracy_mean']:.2%} ± {metrics['test_accuracy_std']:.2%}",
        f"calibration error {metrics['ece']:.4f}",
        "images a second on",
        " the default configuration",  # How much ahead of it, or that it won: a test of its own has both sentences.
        "| checks | ",
        f"{metrics['n_parameters']:,} parameters",
        f"trained on {metrics['train_images']:,} images (train)",
        "Licence of the data: see its source.",
    ):
        assert text in card, text


@pytest.mark.parametrize(
    ("lengths", "said"), [((6,), "6"), ((6, 6, 12), "6 to 12"), ((6, 9, 12), "6 to 12"), ((12, 6), "6 to 12")]
)
def test_the_summary_says_how_long_the_shortest_and_the_longest_train(lengths: tuple[int, ...], said: str) -> None:
    entries = [SimpleNamespace(name=f"trial {n}", config=TrainConfig(epochs=n)) for n in lengths]
    plan: Any = SimpleNamespace(entries=entries, seeds=(1, 2), repeat="seed")
    assert final._summary(plan).endswith(f"trial {lengths[-1]} (resnet8); 2 seeds, {said} epochs at most")


def test_a_model_of_another_run_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    assert final.replaced(tmp_path, plan) == ""
    metrics = {"run": "first", "source": "first, trial 3", "test_accuracy": 0.9357}
    files.write_json(tmp_path / "metrics.json", metrics)
    said = r"The model of first, trial 3 in .*/ \(test accuracy 93\.57%\) will be replaced; --model-dir DIR keeps it"
    assert re.match(said, final.replaced(tmp_path, plan))
    files.write_json(tmp_path / "metrics.json", metrics | {"run": plan.run})
    assert final.replaced(tmp_path, plan) == ""


def test_names_in_the_card_are_shown_as_they_are() -> None:
    assert model_card.markdown("long_sleeve (new) Größe 3") == "long_sleeve (new) Größe 3"
    assert model_card.markdown("_a_ | <b>*x*</b>") == r"\_a\_ \| \<b\>\*x\*\</b\>"


def test_the_most_confused_pairs_come_first_with_the_surest_mistakes() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    scores = np.array([[0.1, 0.9], [0.4, 0.6], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8]], dtype=np.float32)
    lines = model_card.confused_pairs(labels, scores, ["Coat", "Shirt"])
    assert lines == ["- Coat taken for Shirt: 2 of 3 (images 0, 1)", "- Shirt taken for Coat: 1 of 2 (images 3)"]


def test_a_card_of_a_model_without_mistakes_says_that_there_are_none() -> None:
    metrics = {"test_accuracy": 1.0, "test_interval": [0.9, 1.0], "test_accuracy_mean": 1.0, "test_accuracy_std": None}
    metrics |= {"seeds": [1], "shipped": "single", "n_parameters": 10, "test_images": 2, "ece": 0.0, "test_opened": 1}
    metrics |= {"folds": None, "split_hash": "a", "train_images": 4, "train_on": "train", "valid_accuracy": 1.0}
    metrics |= {"valid_accuracy_mean": 1.0, "ensemble": None, "distilled": None, "search_valid_accuracy": 1.0}
    described = {"config": {"architecture": "resnet8"}, "dataset": "mine", "class_names": ["a", "b"]}
    described |= {"channels": 1, "height": 8, "width": 8}
    labels = np.array([0, 1])
    report = analysis.classification_report(labels, labels, ["a", "b"])
    card = model_card.model_card(
        metrics, described, report=report, labels=labels, test_probabilities=np.eye(2, dtype=np.float32), speed=""
    )
    weaknesses = card.partition("## Known weaknesses")[2].partition("##")[0]
    assert weaknesses.strip() == "None of the test images was labelled wrongly."


def test_a_run_without_finished_trials_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "empty").mkdir(parents=True)
    files.write_json(tmp_path / "results" / "empty" / "meta.json", {"settings": {}})
    with pytest.raises(UserError, match=r"Run results/empty must have a finished trial, but none of its 0 trials"):
        final.main(run="latest")


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
        final.main(config=tmp_path / "c.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "cuda"}, "--device must be 'cpu' on a machine without a GPU"),
        ({"device": "tpu"}, "--device must be one of cpu, cuda, but got 'tpu'"),
        ({"compare": True}, r"--compare must be used with a run, but got --config .*c\.json"),
        (
            {"run": "nowhere"},
            r"--run must be used without --config, but got --config .*c\.json\. Leave one of them out",
        ),
        ({"top_k": 2}, r"--top-k must be used with a run, but got --config .*c\.json"),
        ({"max_parameters": 0}, r"--max-parameters must be used with a run, but got --config .*c\.json"),
        ({"max_parameters": 9}, r"--max-parameters must be used with a run, but got --config .*c\.json"),
        ({"train_on": "test"}, r"--train-on must be one of train, train\+valid, but got 'test'"),
        ({"export": ["tflite"]}, "--export must be one of onnx, pt2, safetensors, but got 'tflite'"),
    ],
)
def test_a_wrong_option_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        final.main(config=tmp_path / "c.json", model_dir=tmp_path / "model", **values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dataset": "mnist"}, "--dataset must be used with --config, because a run keeps its own, but got mnist"),
        ({"image_size": 64}, "--image-size must be used with --config, because a run keeps its own, but got 64"),
        ({"skip_broken": True}, "--skip-broken must be used with --config"),
    ],
)
def test_what_says_which_images_is_refused_beside_a_run(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        final.run("any", **values)


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was_and_a_second_one_says_so(tmp_path: Path) -> None:
    """On the real images: `final` with its defaults after a made-up search of tiny trials, killed in the middle."""
    run = write_run(tmp_path / "results" / "first", 4)
    fewer = {"settings": run.settings | {"train_images": 6000}}
    fewer["split_hash"] = splitting.load_splits("fashion-mnist", seed=0, train_images=6000).split_hash
    files.write_json(run.path / "meta.json", run.meta | fewer)
    command = [sys.executable, "-m", "tuning.final", "--epochs", "1", "--no-compare"]
    folder = tmp_path / "results" / "first" / "final"
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(folder.glob("*/result.json")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    assert finished and not (tmp_path / "best_model" / "metrics.json").exists()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert "Valid accuracy over 3 fresh seeds" in done.stdout and "The test split has been" not in done.stdout
    metrics = files.read_json(tmp_path / "best_model" / "metrics.json")
    assert not set(metrics["seeds"]) & set(run_folder.Run(tmp_path / "results" / "first").trials["seed"])
    quick = [sys.executable, "-m", "tuning.final", "--top-k", "1", "--seeds", "1", "--epochs", "1"]
    done = subprocess.run(quick, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The test split has been opened 2 times" in done.stdout and "default" not in done.stdout
    assert "will be replaced" not in done.stdout


def test_the_model_card_says_where_the_winner_is_the_random_point_itself() -> None:
    compared = {"default_difference": 0.1, "default_difference_interval": [0.05, 0.15]}
    lines = verdicts(compared | {"random_difference": 0.0, "random_difference_interval": [0.0, 0.0]})
    better = "10.00 points better than the default configuration (95% interval +5.00 to +15.00)."
    assert lines == [
        ("No", "The winner is the best of the points drawn at random itself."),
        ("Yes", f"On the valid split, the winner is {better}"),
    ]


def full(*args: Any, **kwargs: Any) -> Any:
    raise UserError("No space left on the disk while writing x.")


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no font")


def missing(*args: Any, **kwargs: Any) -> Any:
    raise ImportError("No module named 'sklearn'")


@pytest.mark.parametrize(
    ("module", "function", "fail", "message"),
    [
        (
            "figures.style",
            "save",
            broken,
            r"No picture can be drawn\. .*RuntimeError: no font Is the package matplotlib",
        ),
        ("figures.style", "save", full, "No space left on the disk"),
        ("retraining.artefacts", "write_card", full, "No space left on the disk"),
        (
            "retraining.artefacts",
            "write_separability",
            missing,
            "a package is missing or broken: No module named 'sklearn'",
        ),
        ("retraining.artefacts", "load_best_model", full, "No space left on the disk"),
        ("retraining.export", "load_best_model", full, "No space left on the disk"),
        ("runs.openings", "append", full, "No space left on the disk"),
        ("os", "posix_fallocate", full, "No space left on the disk"),
        ("training.jobs", "load_model", full, "No space left on the disk"),
    ],
)
def test_what_can_fail_fails_before_the_test_split_is_opened(
    tmp_path: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    function: str,
    fail: Any,
    message: str,
) -> None:
    import importlib

    plan = make_plan(tmp_path)
    first = train(tmp_path, plan)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(module if module == "os" else f"tuning.{module}"), function, fail)
        if module == "runs.openings":
            patch.setattr(opening, "log_test", fail)
        with pytest.raises(UserError, match=message):
            train(tmp_path, plan, formats=["pt2"])
    assert opened == ["patterns"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not (tmp_path / replacing.STAGING).exists()
    assert first["test_opened"] == 1


def opening_events(folder: Path) -> list[str]:
    lines = (folder / "test_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["event"] for line in lines]


@pytest.mark.parametrize("moment", ["log_test", "write_everything", "publish"])
@pytest.mark.parametrize("run", [None, "first"])
def test_a_signal_after_the_opening_costs_no_result_and_advises_no_second_opening(
    tmp_path: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    moment: str,
    run: str | None,
) -> None:
    from tuning.base import interrupts

    module: Any = artefacts if moment == "publish" else opening
    act = getattr(module, moment)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("rehearsing"):
            os.kill(os.getpid(), signal.SIGTERM)
        return act(*args, **kwargs)

    monkeypatch.setattr(module, moment, interrupted)
    page = r" `python -m tuning\.report 'a test'` writes its page\." if run else ""
    said = rf"^Interrupted\. The model is in .*: the test split need not be opened again, so do not run the.*{page}$"
    with pytest.raises(interrupts.Interrupted, match=said), interrupts.raised():
        train(tmp_path, make_plan(tmp_path, run=run))
    assert opened == ["patterns"] and opening_events(tmp_path) == ["opened", "result"]
    assert files.read_json(tmp_path / "metrics.json")["test_opened"] == 1
    assert {"model.pth", "model_card.md", "scores.txt", "pca.png"} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "jobs").exists() == (run is not None)
    assert opening.FINISHING in capfd.readouterr().err


def test_a_command_that_gets_sigterm_when_the_test_split_is_open_ends_with_130_and_its_model(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import conftest, test_final
from tuning import final
from tuning.base.errors import run_command
from tuning.images import datasets, splitting
from tuning.retraining import opening
here = Path({str(tmp_path)!r})
splits = splitting.make_splits(conftest.patterned_images(600), "patterns", conftest.CLASS_NAMES, valid_images=120)
splitting.load_splits = lambda *args, **kwargs: splits
datasets.load_test = lambda *args: conftest.patterned_images(200, seed=9)
write = opening.write_everything
def interrupted(*args, rehearsing):
    if not rehearsing:
        os.kill(os.getpid(), signal.SIGTERM)
    return write(*args, rehearsing=rehearsing)
opening.write_everything = interrupted
def main():
    "Train."
    opening.retrain_and_test(test_final.make_plan(here, run=None), test_final.SLOTS, threads=1, model_dir=here)
run_command(main)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith(f"{opening.FINISHING}\nInterrupted. The model is in {tmp_path}/")
    assert (tmp_path / "model.pth").exists() and (tmp_path / "metrics.json").exists()
    assert opening_events(tmp_path) == ["opened", "result"]


def test_a_signal_when_the_page_is_written_advises_no_second_opening(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuning.base import interrupts

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "load", interrupt)
    with pytest.raises(
        interrupts.Interrupted, match=r"do not run the command again\. `python -m tuning\.report 'a test'`"
    ):
        final.carry_out(make_plan(tmp_path), SLOTS, model_dir=tmp_path, threads=1)


@pytest.mark.parametrize("function", ["write_card", "write_separability"])
def test_what_describes_the_model_and_fails_after_the_opening_costs_no_figure(
    tmp_path: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    function: str,
) -> None:
    from tuning.figures import style

    train(tmp_path)  # Nothing of this model stays beside the next one's figures.
    act, save = getattr(artefacts, function), style.save
    monkeypatch.setattr(artefacts, function, lambda *args: broken() if len(opened) > 1 else act(*args))
    monkeypatch.setattr(style, "save", lambda *args: broken() if len(opened) > 1 else save(*args))
    metrics = train(tmp_path)
    assert files.read_json(tmp_path / "metrics.json") == metrics and metrics["test_opened"] == 2
    name = {"write_card": "model_card.md", "write_separability": "separability.csv"}[function]
    said = capsys.readouterr().out
    assert f"{name} cannot be made: RuntimeError: no font" in said
    assert "The picture pca.png cannot be made" in said
    assert not (tmp_path / name).exists() and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("n", [2, 4])
def test_a_valid_split_too_small_for_separability_ends_nothing(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, splits: Splits, n: int
) -> None:
    from dataclasses import replace

    first = [int(np.flatnonzero(splits.valid.labels == label)[0]) for label in range(4)][:n]
    valid = type(splits.valid)(splits.valid.images[first], splits.valid.labels[first])
    monkeypatch.setattr(splitting, "load_splits", lambda *args, **kwargs: replace(splits, valid=valid))
    train(tmp_path)
    assert (tmp_path / "separability.csv").exists()  # Of the test images, which are enough.


def test_test_images_too_few_for_separability_are_said(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path)
    few = patterned_images(200, seed=9)
    first = [int(np.flatnonzero(few.labels == label)[0]) for label in range(4)]
    monkeypatch.setattr(datasets, "load_test", lambda *args: type(few)(few.images[first], few.labels[first]))
    train(tmp_path)
    assert "separability.csv cannot be made from 4 images and is left out: " in capsys.readouterr().out
    assert not (tmp_path / "separability.csv").exists()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.EFBIG, None])
def test_where_room_cannot_be_reserved_zeros_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def fail(*args: int) -> None:
        raise OSError(number, "as some file systems say")

    (tmp_path / artefacts.OUTPUTS).write_bytes(b"x" * 1_000_000)
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", fail)
    artefacts.reserve(tmp_path, 10_000, 2_000)
    assert (tmp_path / artefacts.ROOM).stat().st_size == 12 * 1_000_000 + 2**20
    artefacts.give_back(tmp_path)
    assert not (tmp_path / artefacts.ROOM).exists()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"No space left on the disk while writing .* \(13 MB are needed\)"),
        (errno.EROFS, r"cannot be written \(why\)\. Make it writable, or give another --model-dir\."),
        (errno.EFBIG, ""),
    ],
)
def test_zeros_that_cannot_be_written_are_said_unless_one_file_of_them_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(number, "why")

    (tmp_path / artefacts.OUTPUTS).write_bytes(b"x" * 1_000_000)
    monkeypatch.setattr(artefacts, "_fill", fail)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        artefacts.reserve(tmp_path, 10_000, 2_000)
    assert not (tmp_path / artefacts.ROOM).exists()


def test_a_users_own_folder_of_the_name_is_not_removed(tmp_path: Path, opened: list[str]) -> None:
    from dataclasses import replace

    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "thesis.tex").write_text("years of work")
    plan = replace(make_plan(tmp_path, (1, 2), run=None), folder=tmp_path / "final")
    train(tmp_path, plan, train_on="train+valid")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("config_hash", "same"), [(TINY.hash(), True), ("another", False)])
def test_a_model_of_another_configuration_file_is_not_replaced_without_a_word(
    tmp_path: Path, config_hash: str, same: bool
) -> None:
    metrics = {"run": None, "run_id": None, "source": "one.json", "config_hash": config_hash}
    files.write_json(tmp_path / "metrics.json", metrics)
    said = final.replaced(tmp_path, make_plan(tmp_path, run=None))
    assert (said == "") == same
    assert same or said.startswith("The model of one.json in ")


@pytest.mark.parametrize("name", ["metrics.json", "pca.png"])
def test_a_folder_in_the_place_of_a_file_is_said_before_the_test_split_is_opened(
    tmp_path: Path, opened: list[str], name: str
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} must be a file, but got a folder\. Move it away\."):
        train(tmp_path)
    assert not opened


def test_a_model_folder_that_cannot_be_written_is_said_before_anything_is_trained(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(30, "Read-only file system")

    plan = make_plan(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        UserError, match=r"cannot be written \(Read-only file system\)\. Make it writable, or give anoth"
    ):
        opening.retrain_and_test(plan, SLOTS, threads=1, model_dir=tmp_path)
    assert not opened and not plan.folder.exists()


def test_there_must_be_room_for_what_the_test_images_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / artefacts.OUTPUTS).write_bytes(b"x" * 1_000_000)
    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(UserError, match=r"No space left on the disk while writing .* \(13 MB are needed\)"):
        artefacts.reserve(tmp_path, 10_000, 2_000)
    assert not (tmp_path / artefacts.ROOM).exists()


def test_one_picture_that_fails_is_said_and_costs_no_other(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tuning.figures import model_figures

    monkeypatch.setattr(model_figures, "pca", broken)
    train(tmp_path)
    said = "The picture pca.png cannot be made: RuntimeError: no font\n"
    assert capsys.readouterr().out.count(said) == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert {"confusion.png", "mistakes.png", "learning_curve.png", "model_card.md"} <= names and "pca.png" not in names


def test_a_picture_of_the_model_before_does_not_stay_with_the_next(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuning.figures import model_figures

    train(tmp_path)
    monkeypatch.setattr(model_figures, "pca", broken)
    train(tmp_path)
    assert not (tmp_path / "pca.png").exists()


def test_a_command_that_was_killed_while_it_wrote_leaves_nothing_behind(tmp_path: Path, opened: list[str]) -> None:
    left = tmp_path / replacing.STAGING / "half"
    left.mkdir(parents=True)
    train(tmp_path)
    assert not left.parent.exists()


def test_a_model_whose_move_was_killed_is_not_tested_again(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, replace = make_plan(tmp_path, run=None), Path.replace

    def killed(path: Path, target: Path) -> Path:
        if path.name == "metrics.json":
            raise KeyboardInterrupt
        return replace(path, target)

    for reader in ("predict", "final"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "replace", killed)
            train(tmp_path / reader, plan)
        assert not (tmp_path / reader / "metrics.json").exists()
    n_opened = len(opened)
    load_best_model(tmp_path / "predict")
    monkeypatch.setattr(final, "_planned", lambda *_: plan)
    monkeypatch.setattr(final, "_check_test_files", lambda _: None)
    with pytest.warns(match="opened 2 times"):  # Once each.
        final.run(config="resnet8-5-minutes", model_dir=tmp_path / "final")
    assert "the test split is not opened again" in capsys.readouterr().out and len(opened) == n_opened
    for reader in ("predict", "final"):
        assert json.loads((tmp_path / reader / "metrics.json").read_text())["test_opened"] >= 1
        assert opening_events(tmp_path / reader) == ["opened", "result"]


def test_a_run_is_known_by_what_it_is_and_not_by_its_folders_name(tmp_path: Path) -> None:
    from dataclasses import replace

    plan = replace(make_plan(tmp_path), identity="4f1c", run="second")
    metrics = {"source": "results/second", "test_accuracy": 0.9}
    for old, same in (
        ({"run": "first", "run_id": "4f1c"}, True),
        ({"run": "second", "run_id": "0000"}, False),
        ({"run": "4f1c"}, True),  # 0.2.0 wrote the name only that the folder had first, and the study has.
        ({"run": "second"}, True),
        ({"run": "third"}, False),
    ):
        files.write_json(tmp_path / "metrics.json", metrics | old)
        assert (final.replaced(tmp_path, plan) == "") == same, old


@pytest.mark.parametrize("text", ["{", "[]", '{"run": "another"}'])
def test_a_damaged_or_foreign_model_is_replaced_with_a_word(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    assert re.match(
        r"The model (of another run )?in .*/ will be replaced", final.replaced(tmp_path, make_plan(tmp_path))
    )


def test_damaged_files_of_the_test_split_are_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.json").write_text("{}")
    monkeypatch.setattr(datasets, "hash_test", full)
    monkeypatch.setattr(final, "retrain_and_test", broken)
    with pytest.raises(UserError, match="No space left"):
        final.main(config=tmp_path / "c.json", model_dir=tmp_path / "model")


def test_a_page_that_cannot_be_written_is_said_when_the_model_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_page, "write", full)
    said = final._write_page(run_folder.Run(tmp_path / "first"), tmp_path, print)
    assert "The page is not written: No space left" in said
    assert f"`python -m tuning.report {tmp_path / 'first'}` writes it later." in said


def test_a_second_command_at_once_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuning.base import locks

    (tmp_path / "c.json").write_text("{}")
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(datasets, "hash_test", lambda *args: None)
    monkeypatch.setattr(final, "retrain_and_test", broken)
    with locks.hold(tmp_path / "model", "final"), pytest.raises(UserError, match=r"/model is in use: .* works on it"):
        final.main(config=tmp_path / "c.json", model_dir=tmp_path / "model")
    with pytest.raises(RuntimeError, match="no font"):
        final.main(config=tmp_path / "c.json", model_dir=tmp_path / "model")

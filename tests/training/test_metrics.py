"""`METRICS`: values as scikit-learn computes them, errors and intervals; and the weights of the classes."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import CLASS_NAMES, patterned_images
from sklearn import metrics as reference
from torch import nn
from torch.nn import functional

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import ACCURACY, METRICS
from tuning.images.batches import Batch
from tuning.images.datasets import Labelled
from tuning.images.splitting import Splits, make_splits
from tuning.training import metrics
from tuning.training.fit import Training, fit
from tuning.training.head_first import fit_head
from tuning.training.losses import Loss, class_weights

Arrays = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def classified(n: int, n_classes: int, *, seed: int = 0, missing: int = 0, signal: float = 1.5) -> Arrays:
    """Returns logits that are often right, and labels of classes of very different sizes; the last ones never occur."""
    draw = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(n_classes - missing)
    labels = draw.choice(n_classes - missing, size=n, p=shares / shares.sum())
    return draw.normal(size=(n, n_classes)) + signal * np.eye(n_classes)[labels], labels


def expected(name: str, scores: Any, labels: Any) -> float:
    """Returns what scikit-learn says."""
    predictions, occurring = scores.argmax(1), np.unique(labels)
    probabilities = np.exp(scores - scores.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    everything = list(range(scores.shape[1]))
    k = min(5, scores.shape[1] - 1)
    found = {
        "accuracy": lambda: reference.accuracy_score(labels, predictions),
        "balanced_accuracy": lambda: reference.recall_score(labels, predictions, labels=occurring, average="macro"),
        "macro_f1": lambda: reference.f1_score(labels, predictions, labels=occurring, average="macro"),
        "log_loss": lambda: reference.log_loss(labels, probabilities, labels=everything),
        "top5": lambda: (np.argsort(-scores, axis=1)[:, :k] == labels[:, None]).any(1).mean(),
    }
    return float(found[name]())


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("n_classes", "missing"), [(2, 0), (4, 0), (5, 0), (10, 0), (10, 3)])
def test_a_metric_is_what_scikit_learn_says(name: str, n_classes: int, missing: int) -> None:
    scores, labels = classified(400, n_classes, missing=missing)
    assert metrics.score(name, scores, labels) == pytest.approx(expected(name, scores, labels), abs=1e-12)
    log_probabilities = torch.from_numpy(scores).log_softmax(1).numpy()
    assert metrics.score(name, log_probabilities, labels) == pytest.approx(metrics.score(name, scores, labels))


def test_the_five_likeliest_of_few_classes_are_all_but_one() -> None:
    scores, labels = classified(400, 2)
    assert metrics.score("top5", scores, labels) == metrics.score("accuracy", scores, labels) < 1
    scores, labels = classified(400, 6)
    assert metrics.score("top5", scores, labels) == (scores.argmin(1) != labels).mean() < 1


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].in_per_cent])
def test_where_all_images_are_right_the_error_is_not_none(name: str) -> None:
    labels = np.arange(346) % 4
    error = metrics.standard_error(name, 9.0 * np.eye(4)[labels], labels)
    assert 1.96 * error == pytest.approx(0.0079, abs=0.0001)  # The rule of three gives 3 / 346 = 0.0087.


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(UserError, match=r"^metric must be one of accuracy, .*, but got 'f1'"):
        metrics.score("f1", *classified(4, 2))


@pytest.mark.parametrize("name", METRICS)
def test_errors_and_intervals_are_those_of_further_samples(name: str) -> None:
    values = [metrics.score(name, *classified(500, 4, seed=seed, signal=0.5)) for seed in range(300)]
    spread, truth = float(np.std(values)), float(np.mean(values))
    held = 0
    for seed in range(40):
        scores, labels = classified(500, 4, seed=seed, signal=0.5)
        assert metrics.standard_error(name, scores, labels) == pytest.approx(spread, rel=0.35)
        low, high = metrics.bootstrapped(name, scores, labels, n=400, seed=seed)
        assert low < metrics.score(name, scores, labels) < high
        assert (high - low) / (2 * 1.96) == pytest.approx(spread, rel=0.35)
        held += low <= truth <= high
    assert held >= 34  # Of 40, at 95 %: fewer with a chance below 1 %.


def test_the_same_seed_gives_the_same_interval() -> None:
    for name in METRICS:
        drawn = [metrics.bootstrapped(name, *classified(100, 4), n=150, seed=seed) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2], name


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_says_how_its_values_are_compared_and_written(name: str) -> None:
    metric = METRICS[name]
    good, poor = (0.9, 0.2) if metric.greater_is_better else (0.1, 1.4)
    assert 0 <= metric.merit(poor) < metric.merit(good) <= 1
    assert metric.sign * good > metric.sign * poor
    assert metric.said(0.1234567) == ("12.35%" if metric.in_per_cent else "0.1235")
    assert metric.gap(-0.01234) == ("-1.23" if metric.in_per_cent else "-0.0123")
    assert metric.gap(0.01234, "") + metric.unit == ("1.23 points" if metric.in_per_cent else "0.0123")
    assert (metric.column == "valid_accuracy") == (metric is ACCURACY) == (metric.label == "valid")
    assert math.isnan(metric.merit(math.nan))


def uneven(n: int = 400, seed: int = 0) -> Splits:
    """Returns splits whose first two classes have eight times as many images as the others, which are hard to see."""
    images = patterned_images(n * 4, seed=seed)
    draw = np.random.default_rng(seed)
    kept = (images.labels < 2) | (draw.random(len(images)) < 1 / 8)
    part = Labelled(images.images[kept], images.labels[kept])
    return make_splits(part, "uneven", CLASS_NAMES, seed=seed)


@pytest.mark.parametrize("name", METRICS)
def test_the_best_epoch_is_the_best_in_the_metric(name: str, splits: Splits, tiny: TrainConfig) -> None:
    metric = METRICS[name]
    training = Training(tiny.model_copy(update={"learning_rate": 0.5, "epochs": 4}), splits, seed=3, metric=name)
    results = list(fit(training))
    best = max(results, key=lambda r: (metric.sign * r.valid_score, -r.valid_loss))
    assert training.best["epoch"] == results[-1].best_epoch == best.epoch
    assert training.best["valid_score"] == best.valid_score
    assert {"accuracy": best.valid_accuracy, "log_loss": best.valid_loss}.get(
        name, best.valid_score
    ) == best.valid_score
    assert all(result.valid_error > 0 for result in results if 0 < metric.merit(result.valid_score) < 1)


def test_a_state_is_not_loaded_where_another_metric_counts(splits: Splits, tiny: TrainConfig) -> None:
    training = Training(tiny, splits, seed=0)
    assert "metric" not in training.state_dict()["belongs_to"]  # As version 0.2.0 wrote it.
    with pytest.raises(ValueError, match="'metric': 'macro_f1'"):
        Training(tiny, splits, seed=0, metric="macro_f1").load_state_dict(training.state_dict())


def test_a_state_of_version_0_2_0_has_its_accuracy_as_its_score(splits: Splits, tiny: TrainConfig) -> None:
    training = Training(tiny, splits, seed=0)
    training.run_epoch()
    state = training.state_dict()
    state["best"] = {name: value for name, value in state["best"].items() if name != "valid_score"}
    again = Training(tiny, splits, seed=0)
    again.load_state_dict(state)
    assert again.best == training.best


def test_class_weights_have_a_mean_of_one_over_the_train_images() -> None:
    labels = torch.tensor([0] * 16 + [1] * 4 + [3])
    assert class_weights(labels, 4, "none") is None
    for how, ratio in (("balanced", 4.0), ("sqrt", 2.0)):
        weights = class_weights(labels, 4, how)
        assert weights is not None and weights.dtype == torch.float32
        assert weights[labels].mean().item() == pytest.approx(1)
        assert (weights[1] / weights[0]).item() == pytest.approx(ratio)
        assert weights[2] == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_batches_in_parts_have_the_loss_and_the_gradient_of_the_whole(smoothing: float) -> None:
    config = TrainConfig(width=4, batch_size=32, class_weights="balanced", label_smoothing=smoothing, precision="fp32")
    splits = uneven(100)
    found = []
    for parts in (1, 3):
        training = Training(config, splits, seed=0, accumulation=parts)
        training.model.eval()  # Batch normalisation sees the parts, which are not the whole.
        images, labels = training._train.images[:32], training._train.labels[:32]
        loss, _ = training._gradients(Batch(images, labels))
        found.append((loss.item(), [p.grad.clone() for p in training.model.parameters() if p.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for whole, summed in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-3, atol=1e-5)
    logits = training._logits(metrics_input(training, images))
    weights = class_weights(training._train.labels, 4, "balanced")
    each = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    assert weights is not None
    mean = (each * weights[labels]).sum() / weights[labels].sum()
    assert found[0][0] == pytest.approx(mean.item(), rel=1e-5)


def test_label_smoothing_and_class_weights_do_not_teach_the_rare_class_for_all_images() -> None:
    """Of images that all look alike, 19 of 20 of one class, balanced weights leave no class ahead of the other."""
    labels = torch.tensor([0] * 95 + [1] * 5)
    weights = class_weights(labels, 2, "balanced")
    seen = functional.one_hot(labels, 2).float()  # What an image shows says which class it is.
    head = nn.Linear(2, 2)
    fit_head(head, seen, labels, weights, label_smoothing=0.2)
    assert head(seen).argmax(dim=1).equal(labels)
    whole = Batch(torch.zeros(100, 1), labels)
    logits = torch.zeros(2, 2, requires_grad=True)
    for _ in range(300):
        (slope,) = torch.autograd.grad(Loss(weights, 0.2)(logits[labels], whole.images, whole, whole), logits)
        logits = (logits - 5 * slope).detach().requires_grad_()
    probabilities = logits.softmax(dim=1)
    assert probabilities.diagonal().tolist() == pytest.approx([0.9, 0.9], abs=0.01)  # 0.32 and 0.99 by torch's weights.


def metrics_input(training: Training, images: torch.Tensor) -> torch.Tensor:
    from tuning.images.batches import normalise

    return normalise(images, training.mean, training.std)


def test_class_weights_help_the_small_classes() -> None:
    recalls = {}
    for how in ("none", "balanced"):
        config = TrainConfig(width=4, batch_size=32, epochs=2, learning_rate=0.05, precision="fp32", class_weights=how)
        recalls[how] = [
            list(fit(Training(config, uneven(seed=seed), seed=seed, metric="balanced_accuracy")))[-1].valid_score
            for seed in range(3)
        ]
    assert np.mean(recalls["balanced"]) > np.mean(recalls["none"]) + 0.05, recalls

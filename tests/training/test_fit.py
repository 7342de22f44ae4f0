"""`tuning.training.fit`: `fit` learns, repeats itself, goes on from any epoch to the same numbers, and ends in time."""

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, patterned_images
from torch import Tensor, nn
from torch.nn import functional

from tuning.base.config import NAMED, TrainConfig
from tuning.base.registries import ARCHITECTURES
from tuning.images.batches import normalise, parts_of, to_tensors, train_batches
from tuning.images.datasets import Labelled
from tuning.images.splitting import Splits, make_splits
from tuning.models.architectures import build_model, count_parameters
from tuning.training import acceleration, evaluation
from tuning.training import fit as training_module
from tuning.training.acceleration import Logits, faster_precision
from tuning.training.ema import RunningMean
from tuning.training.evaluation import evaluate, predict
from tuning.training.fit import EpochResult, NonFiniteLossError, Training, fit, prepare

# A configuration under which valid_loss cannot become lower by min_delta after the first epoch.
STUCK: dict[str, Any] = {"learning_rate": 1e-4, "schedule": "constant", "min_delta": 1.0}
CPU = torch.device("cpu")


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    """Returns the configuration with other values, checked."""
    return TrainConfig(**(config.model_dump() | values))


def numbers(result: EpochResult) -> dict[str, Any]:
    """Returns what a repeated epoch must repeat: all but the times."""
    values = dataclasses.asdict(result)
    assert values.pop("epoch_seconds") > 0
    assert values.pop("images_per_second") > 0
    assert values.pop("seconds_per_image") > 0
    return values


def run(config: TrainConfig, splits: Splits, seed: int = 0) -> list[dict[str, Any]]:
    """Returns the numbers of all epochs."""
    return [numbers(result) for result in fit(Training(config, splits, seed=seed))]


def equal_weights(first: nn.Module, second: nn.Module) -> bool:
    """Returns whether two modules hold the same weights and buffers, to the bit."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def script_validation(
    patch: pytest.MonkeyPatch, labels: Sequence[int], epochs: Sequence[tuple[float, float]]
) -> list[float]:
    """Makes each epoch's validation label a given share of the images rightly; returns the losses it will give.

    Args:
        patch: Undoes it.
        labels: Of the valid split.
        epochs: The share of images labelled rightly and the logit of the label given; the others' are 0.
    """
    wanted, scripts = torch.tensor(labels), []
    for share, logit in epochs:
        right = torch.arange(len(wanted)) < round(share * len(wanted))
        given = torch.where(right, wanted, (wanted + 1) % len(CLASS_NAMES))
        scripts.append(functional.one_hot(given, len(CLASS_NAMES)).float() * logit)
    remaining = iter(scripts)
    patch.setattr(training_module, "predict", lambda *args: (next(remaining), torch.zeros(len(wanted), 1)))
    return [functional.cross_entropy(script, wanted).item() for script in scripts]


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.5}, {"cutmix": 1.0}])
def test_batches_in_parts_give_the_gradient_of_the_whole(
    splits: Splits, tiny: TrainConfig, mixing: dict[str, float]
) -> None:
    config = changed(tiny, label_smoothing=0.1, batch_size=64, **mixing)
    gradients = []
    for accumulation in (1, 3):
        training = Training(config, splits, seed=0, accumulation=accumulation)
        training.model.eval()  # with running statistics, so that no image depends on its neighbours
        batch = next(iter(train_batches(training._train, config, torch.Generator().manual_seed(1))))
        loss, right = training._gradients(batch)
        gradients.append([loss, right, *(p.grad for p in training.model.parameters())])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("mixing", "smoothing"), [({"mixup": 0.5}, 0.0), ({"mixup": 0.5}, 0.2), ({"cutmix": 1.0}, 0.2)]
)
def test_the_loss_and_gradient_of_mixed_images_are_those_of_mixed_labels(
    splits: Splits, tiny: TrainConfig, mixing: dict[str, float], smoothing: float
) -> None:
    """By hand: cross entropy with the shares of both labels, smoothed, as probabilities."""
    config = changed(tiny, batch_size=64, label_smoothing=smoothing, **mixing)
    training = Training(config, splits, seed=0)
    training.model.eval()
    batch = next(iter(train_batches(training._train, config, torch.Generator().manual_seed(2))))
    assert batch.others is not None and 0.5 < batch.share < 1
    loss, right = training._gradients(batch)
    gradient = [p.grad.clone() for p in training.model.parameters() if p.grad is not None]
    training.model.zero_grad()
    logits, _ = training.model(normalise(batch.images, splits.mean, splits.std))
    one_hot = [functional.one_hot(labels, len(CLASS_NAMES)).float() for labels in (batch.labels, batch.others)]
    truth = batch.share * one_hot[0] + (1 - batch.share) * one_hot[1]
    truth = (1 - smoothing) * truth + smoothing / len(CLASS_NAMES)
    expected = -(truth * logits.log_softmax(1)).sum(1).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for ours, parameter in zip(gradient, training.model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)
    assert right == (logits.argmax(1) == batch.labels).sum()  # Of those that dominate.


@pytest.mark.parametrize(
    "augmentation",
    [
        {"crop_scale": 0.7, "jitter": 0.3},
        {"crop_scale": 0.7, "mixup": 0.2, "label_smoothing": 0.1},
        {"mixup": 0.2, "cutmix": 1.0},
    ],
)
def test_fit_learns_from_augmented_photos(tiny: TrainConfig, augmentation: dict[str, Any]) -> None:
    parts = make_splits(patterned_images(600, channels=3), "colour", CLASS_NAMES, valid_images=120)
    assert run(changed(tiny, epochs=5, **augmentation), parts)[-1]["valid_accuracy"] > 0.85


@pytest.mark.parametrize("accumulation", [2, 3, 4, 5, 8, 16, 1000])
@pytest.mark.parametrize(("architecture", "batch_size"), [("resnet8", 8), ("resnet8", 13), ("resnet18", 8)])
def test_no_part_of_a_batch_is_a_single_image(
    splits: Splits, tiny: TrainConfig, architecture: str, batch_size: int, accumulation: int
) -> None:
    """Of resnet18 the last feature maps of these images are one pixel each, of which one image has no variance."""
    few = dataclasses.replace(splits, train=Labelled(splits.train.images[:22], splits.train.labels[:22]))
    config = changed(tiny, architecture=architecture, batch_size=batch_size)
    training, sizes = Training(config, few, seed=0, accumulation=accumulation), []
    training._logits.register_forward_hook(lambda module, given, logits: sizes.append(len(logits)))
    assert math.isfinite(training.run_epoch().train_loss)
    assert sum(sizes[:-1]) >= 16 and min(sizes) >= 2


@pytest.mark.parametrize(
    ("n_images", "asked", "parts"), [(8, 1, 1), (8, 4, 4), (8, 8, 4), (9, 4, 4), (2, 2, 1), (1, 2, 1)]
)
def test_a_batch_is_cut_into_no_more_parts_than_have_two_images(n_images: int, asked: int, parts: int) -> None:
    assert parts_of(n_images, asked) == parts


@pytest.mark.parametrize("accelerated", [True, False, None])
def test_a_step_is_captured_once_where_it_is_asked_for_and_not_on_a_cpu(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch, accelerated: bool | None
) -> None:
    asked = []

    def accelerate(logits: Logits, images: Tensor) -> Logits:
        asked.append(images.shape)
        return logits

    monkeypatch.setattr(acceleration, "accelerate", accelerate)
    list(fit(Training(changed(tiny, batch_size=100), splits, seed=0, accelerated=accelerated)))
    assert asked == ([(100, 1, 12, 12)] if accelerated else [])  # Once, not once an epoch.


def test_only_whole_batches_are_accelerated(splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def accelerate(logits: Logits, images: Tensor) -> Callable[[Tensor], Tensor]:
        def forward(images: Tensor) -> Tensor:
            sizes.append(len(images))
            result: Tensor = logits(images)
            return result

        return forward

    monkeypatch.setattr(acceleration, "accelerate", accelerate)
    config = changed(tiny, batch_size=100, epochs=1)  # 480 images: the last batch has 80.
    accelerated = list(fit(Training(config, splits, seed=0, accelerated=True)))
    assert sizes == [100] * 4
    assert [numbers(result) for result in accelerated] == run(config, splits)


def test_fit_yields_a_frozen_result_an_epoch_and_then_nothing(splits: Splits, tiny: TrainConfig) -> None:
    training = Training(tiny, splits, seed=0)
    results = list(fit(training))
    assert [result.epoch for result in results] == [1, 2, 3]
    assert [result.finished for result in results] == ["", "", "length"]
    assert list(fit(training)) == []
    with pytest.raises(dataclasses.FrozenInstanceError, match="valid_accuracy"):
        results[0].valid_accuracy = 1.0  # type: ignore[misc]
    for result in results:
        assert 0 <= result.train_accuracy <= 1
        assert 0 <= result.valid_accuracy <= 1
        # 480 images in the part of the epoch that trains.
        assert 480 / result.images_per_second < result.epoch_seconds
    assert all(type(value) in (int, float, str) for value in dataclasses.asdict(results[0]).values())


def test_fit_learns(splits: Splits, tiny: TrainConfig) -> None:
    results = run(tiny, splits)
    assert results[-1]["valid_accuracy"] > 0.9
    assert results[-1]["train_accuracy"] > 0.9
    assert results[-1]["train_loss"] < results[0]["train_loss"]
    assert results[-1]["best_epoch"] > 1


def test_dropout_follows_from_the_seed_and_not_from_what_ran_before(splits: Splits, tiny: TrainConfig) -> None:
    """A worker trains one trial after another, and a resumed one begins in the middle."""
    found = []
    for before in (0, 1):
        training = Training(changed(tiny, epochs=1), splits, seed=0)
        network: Any = training.model
        network.stages.append(torch.nn.Dropout(0.5))
        torch.manual_seed(before)
        state = torch.random.get_rng_state()
        found.append(numbers(training.run_epoch()))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert found[0] == found[1]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, registry in NAMED.items() for name in registry])
def test_every_name_trains_and_goes_on_from_a_saved_state_to_the_same_numbers(
    splits: Splits, tiny: TrainConfig, kind: str, name: str
) -> None:
    n_train, n_valid = 192, len(splits.valid)
    config = changed(tiny, **{kind: name}, learning_rate=0.01, epochs=2)
    if kind == "architecture" and (known := ARCHITECTURES[name]).weights:
        if known.extra:
            pytest.importorskip("timm")
        config = changed(config, optimizer="adamw", learning_rate=1e-3, image_size=32, batch_size=16)
        n_train, n_valid = 96, 40  # Those networks are large.
    few = dataclasses.replace(splits, train=splits.train.at(slice(n_train)), valid=splits.valid.at(slice(n_valid)))
    unbroken = Training(config, few, seed=0)
    first = numbers(unbroken.run_epoch())
    file = io.BytesIO()
    torch.save(unbroken.state_dict(), file)
    resumed = Training(config, few, seed=0)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    second = numbers(unbroken.run_epoch())
    assert numbers(resumed.run_epoch()) == second
    assert equal_weights(resumed.model, unbroken.model)
    assert second["train_loss"] < first["train_loss"]


@pytest.mark.parametrize("optimizer", [{"optimizer": "adamw", "learning_rate": 0.01}, {"momentum": 0.0}])
def test_fit_learns_with_each_optimizer_and_three_channels(tiny: TrainConfig, optimizer: dict[str, Any]) -> None:
    parts = make_splits(patterned_images(600, channels=3), "colour", CLASS_NAMES, valid_images=120)
    assert run(changed(tiny, **optimizer), parts)[-1]["valid_accuracy"] > 0.9


def test_a_seed_repeats_its_numbers_and_another_gives_others(splits: Splits, tiny: TrainConfig) -> None:
    config = changed(tiny, epochs=1, crop_padding=1, flip=True, erase=0.3)
    first = run(config, splits)
    torch.rand(3)  # The global generator has no say,
    np.random.random(3)  # noqa: NPY002  nor has numpy's.
    assert run(config, splits) == first
    assert run(config, splits, seed=1)[0]["train_loss"] != first[0]["train_loss"]


RESUMED: dict[str, dict[str, Any]] = {
    "sgd, onecycle, mean of weights, augmented": {
        "ema_decay": 0.9,
        "crop_padding": 1,
        "flip": True,
        "erase": 0.25,
    },
    "augmented as photos are": {
        **{"crop_scale": 0.5, "jitter": 0.4, "trivial_augment": True},
        **{"mixup": 0.4, "cutmix": 1.0},
    },
    "adamw, plateau that drops each epoch": {
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "schedule": "plateau",
        "plateau_patience": 0,
        "min_delta": 1.0,
        "epochs": 4,
    },
    "cosine": {"schedule": "cosine", "warmup_epochs": 1.5},
    "label smoothing": {"schedule": "constant", "label_smoothing": 0.2},
    "stopped early": {**STUCK, "epochs": 9, "patience": 3, "ema_decay": 0.5},
    "best in the middle": {"learning_rate": 10.0, "schedule": "constant", "momentum": 0.0, "epochs": 4},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.slow
@pytest.mark.parametrize("values", RESUMED.values(), ids=RESUMED)
def test_interrupted_after_any_epoch_it_goes_on_to_the_same_numbers(
    splits: Splits, tiny: TrainConfig, values: dict[str, Any]
) -> None:
    config = changed(tiny, **values)
    unbroken = Training(config, splits, seed=5)
    expected, saved = [], []
    for result in fit(unbroken):
        expected.append(numbers(result))
        file = io.BytesIO()
        torch.save(unbroken.state_dict(), file)
        saved.append(file.getvalue())
    assert len(expected) >= 3
    for n_done, content in enumerate(saved, start=1):
        torch.manual_seed(n_done)
        resumed = Training(config, splits, seed=5)
        resumed.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
        assert resumed.epoch == n_done
        assert [numbers(result) for result in fit(resumed)] == expected[n_done:]
        assert equal_weights(resumed.model, unbroken.model)
        assert equal_weights(resumed.evaluated_model, unbroken.evaluated_model)
        assert equal_weights(resumed.best_model(), unbroken.best_model())
        assert (resumed.best, resumed.finished) == (unbroken.best, unbroken.finished)


@pytest.mark.parametrize("other", ["seed", "config", "splits"])
def test_a_state_of_another_training_is_refused_and_changes_nothing(
    splits: Splits, tiny: TrainConfig, other: str
) -> None:
    training = Training(tiny, splits, seed=0)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    config = changed(tiny, momentum=0.5) if other == "config" else tiny
    parts = splits
    if other == "splits":
        parts = make_splits(patterned_images(600), "patterns", CLASS_NAMES, seed=1, valid_images=120)
    state = Training(config, parts, seed=1 if other == "seed" else 0).state_dict()
    with pytest.raises(ValueError, match=r"^The state must belong to \{.*\}, but got one of \{.*\}\.$"):
        training.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


@pytest.mark.slow
def test_training_leaves_global_generator_and_threads_as_they_were(splits: Splits, tiny: TrainConfig) -> None:
    faster_precision.cache_clear()
    torch.set_num_threads(2)
    torch.manual_seed(11)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    training = Training(changed(tiny, epochs=1, precision="auto", flip=True), splits, seed=0)
    list(fit(training))
    evaluate(training.best_model(), splits.valid, splits)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # type: ignore[index]  # noqa: NPY002
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()


def test_prepare_sets_the_threads() -> None:
    prepare(2)
    assert torch.get_num_threads() == 2
    assert (torch.tensor([1e-38]) * 0.1).item() == 0  # Denormal numbers are flushed.
    torch.set_flush_denormal(False)


def test_early_stopping_ends_after_its_patience(splits: Splits, tiny: TrainConfig) -> None:
    results = run(changed(tiny, **STUCK, epochs=9, patience=2), splits)
    assert [result["finished"] for result in results] == ["", "", "early stopping"]


def test_without_patience_a_stuck_training_goes_its_length(splits: Splits, tiny: TrainConfig) -> None:
    results = run(changed(tiny, **STUCK, epochs=4, patience=None), splits)
    assert [result["finished"] for result in results] == ["", "", "", "length"]


def test_the_last_epoch_ends_by_length_even_where_patience_ends_too(splits: Splits, tiny: TrainConfig) -> None:
    results = run(changed(tiny, **STUCK, epochs=3, patience=2), splits)
    assert results[-1]["finished"] == "length"


@pytest.mark.parametrize(("min_delta", "n_epochs"), [(0.0, 7), (0.2, 4)])
def test_patience_counts_epochs_since_the_lowest_loss(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch, min_delta: float, n_epochs: int
) -> None:
    logits = [1.0, 2.0, 1.9, 2.1, 1.0, 2.0, 2.05, 3.0, 4.0]
    losses = script_validation(monkeypatch, splits.valid.labels.tolist(), [(1.0, logit) for logit in logits])
    # Lower by under 0.2 in epoch 4: that resets the count without min_delta only.
    assert 0 < losses[1] - losses[3] < 0.2 < losses[0] - losses[1]
    values = {"schedule": "constant", "epochs": 9, "patience": 3 if min_delta == 0 else 2, "min_delta": min_delta}
    results = run(changed(tiny, **values), splits)
    assert [result["valid_loss"] for result in results] == pytest.approx(losses[:n_epochs])
    assert results[-1]["finished"] == "early stopping"


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_while_an_annealed_rate_is_high_patience_does_not_count(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    few = dataclasses.replace(splits, train=splits.train.at(slice(64)))
    script_validation(monkeypatch, splits.valid.labels.tolist(), [(1.0, 1.0)] * 30)
    results = run(changed(tiny, schedule=schedule, epochs=30, patience=2), few)
    late = [result["epoch"] for result in results if result["lr"] <= 0.1 * tiny.learning_rate]
    assert results[-1]["finished"] == "early stopping"
    assert 20 < late[0] <= results[-1]["epoch"] - 1 < 30


def test_a_loss_that_is_not_finite_names_epoch_and_step(splits: Splits, tiny: TrainConfig) -> None:
    # Weight decay of 1 at a learning rate of 10 multiplies the weights by -9 a step.
    values = {"learning_rate": 10.0, "weight_decay": 1.0, "momentum": 0.0, "schedule": "constant", "batch_size": 8}
    config = changed(tiny, **values)
    expected = (
        r"^Training loss must be finite, but got (inf|nan) in epoch 1, step [1-5]\d "
        r"\(learning rate 10\)\. A lower learning_rate may help\.$"
    )
    with pytest.raises(NonFiniteLossError, match=expected):
        list(fit(Training(config, splits, seed=0)))


def test_a_training_loss_of_nan_stops_before_the_weights_are_spoilt(splits: Splits, tiny: TrainConfig) -> None:
    training = Training(tiny, splits, seed=0)
    training.run_epoch()
    before = training.model.stem[0].weight.clone()  # type: ignore[index, union-attr]
    with torch.no_grad():
        training.model.head.bias.fill_(math.nan)  # type: ignore[operator, union-attr]
    with pytest.raises(NonFiniteLossError, match="but got nan in epoch 2, step 1 "):
        training.run_epoch()
    assert torch.equal(training.model.stem[0].weight, before)  # type: ignore[index, union-attr]


def test_a_valid_loss_that_is_not_finite_names_the_epoch(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, splits.valid.labels.tolist(), [(1.0, 1.0), (1.0, math.nan)])
    with pytest.raises(
        NonFiniteLossError, match=r"^Validation loss must be finite, but got nan after epoch 2\. A lower"
    ):
        list(fit(Training(tiny, splits, seed=0)))


def test_the_best_epoch_is_the_most_accurate_and_of_equals_that_of_the_lower_loss(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [(0.5, 1.0), (0.6, 9.0), (0.6, 5.0), (0.6, 7.0), (0.6, 5.0), (0.4, 1.0), (0.7, 9.0)]
    losses = script_validation(monkeypatch, splits.valid.labels.tolist(), script)
    assert losses[1] > losses[0]
    assert losses[3] > losses[2]
    training = Training(changed(tiny, epochs=7, patience=None), splits, seed=0)
    assert [result.best_epoch for result in fit(training)] == [1, 2, 3, 3, 3, 3, 7]
    accuracy = pytest.approx(0.7)
    assert training.best.pop("valid_loss") == pytest.approx(losses[6])
    assert training.best == {"epoch": 7, "valid_accuracy": accuracy, "valid_score": accuracy}


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_the_best_model_has_the_weights_of_the_best_epoch(splits: Splits, tiny: TrainConfig, ema_decay: float) -> None:
    values = {"learning_rate": 10.0, "schedule": "constant", "momentum": 0.0, "epochs": 5, "patience": None}
    training = Training(changed(tiny, **values, ema_decay=ema_decay), splits, seed=0)
    results = list(fit(training))
    best = max(results, key=lambda result: (result.valid_accuracy, -result.valid_loss))
    assert best.epoch < 5  # At this learning rate the weights wander.
    assert [result.best_epoch for result in results][-1] == best.epoch
    model = training.best_model()
    log_probabilities, _ = evaluate(model, splits.valid, splits)
    labels = torch.from_numpy(splits.valid.labels)
    accuracy = (log_probabilities.argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(best.valid_accuracy)
    assert functional.nll_loss(log_probabilities, labels).item() == pytest.approx(best.valid_loss, rel=1e-4)
    assert not model.training


def test_the_best_model_is_a_copy(splits: Splits, tiny: TrainConfig) -> None:
    training = Training(tiny, splits, seed=0)
    training.run_epoch()
    model = training.best_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.run_epoch()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("batch_size", [32, 50, 100, 320, 321, 350, 4096])
def test_the_schedule_counts_the_steps_that_are_taken(splits: Splits, tiny: TrainConfig, batch_size: int) -> None:
    config = changed(tiny, batch_size=batch_size, epochs=2, warmup_epochs=0)
    n_steps = len(list(train_batches(to_tensors(splits.train, CPU), config, torch.Generator())))
    *_, last = fit(Training(config, splits, seed=0))
    assert last.lr == pytest.approx(config.learning_rate / (2 * n_steps))  # One step before the line reaches 0.


def test_a_plateau_lowers_the_learning_rate_after_its_patience(splits: Splits, tiny: TrainConfig) -> None:
    values = STUCK | {"schedule": "plateau", "plateau_patience": 1, "plateau_factor": 0.25, "epochs": 6}
    results = run(changed(tiny, **values, patience=None), splits)
    # Epoch 1 is the lowest; epochs 2 and 3 are not; the drop comes after the second of them.
    assert [result["lr"] for result in results] == pytest.approx([1e-4] * 3 + [2.5e-5] * 2 + [6.25e-6])


def test_a_plateau_keeps_the_learning_rate_while_the_loss_falls(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, splits.valid.labels.tolist(), [(1.0, logit) for logit in (1, 2, 3)])
    results = run(changed(tiny, schedule="plateau", plateau_patience=0), splits)
    assert [result["lr"] for result in results] == [0.1] * 3


def test_the_mean_of_the_weights_is_what_is_validated(splits: Splits, tiny: TrainConfig) -> None:
    training = Training(changed(tiny, ema_decay=0.9, label_smoothing=0.3), splits, seed=0)
    result = training.run_epoch()
    labels = torch.from_numpy(splits.valid.labels)

    def valid_loss(model: nn.Module) -> float:
        return functional.nll_loss(evaluate(model, splits.valid, splits)[0], labels).item()

    assert not equal_weights(training.model, training.evaluated_model)
    assert result.valid_loss == pytest.approx(valid_loss(training.evaluated_model), rel=1e-5)
    assert result.valid_loss != pytest.approx(valid_loss(training.model), rel=1e-3)


def test_the_mean_of_the_weights_follows_its_decay() -> None:
    model = nn.BatchNorm2d(2)
    mean = RunningMean(model, 0.5)
    assert mean.model is not model
    with torch.no_grad():
        model.weight.fill_(9.0)
        model.running_mean.fill_(4.0)  # type: ignore[union-attr]
    distances, ratios = [8.0], []
    for _ in range(20):
        mean.update()
        distances.append(9.0 - mean.model.weight[0].item())  # type: ignore[union-attr, index]
        ratios.append(distances[-1] / distances[-2])
    # min(decay, (1 + n) / (10 + n)): the first steps weigh more.
    assert ratios[:3] == pytest.approx([2 / 11, 3 / 12, 4 / 13], rel=1e-3)
    assert ratios[8:12] == pytest.approx([0.5] * 4, rel=0.05)
    assert mean.model.running_mean[0].item() == pytest.approx(4.0, abs=1e-3)  # type: ignore[union-attr, index]


def test_the_mean_leaves_what_no_mean_is_of_and_takes_tied_weights_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
    model.register_buffer("count", torch.tensor(0))
    model.register_buffer("used", torch.tensor([False, False]))
    nn.init.zeros_(model[0].weight)
    mean = RunningMean(model, 0.5)
    nn.init.ones_(model[0].weight)
    model.count += 3
    model.used[0] = True
    mean.update()
    assert mean.model[1].weight is mean.model[0].weight
    assert mean.model[0].weight[0, 0].item() == pytest.approx(1 - 2 / 11)
    for name in ("mask", "count", "used"):
        assert torch.equal(getattr(mean.model, name), getattr(model, name)), name


def test_the_mean_follows_buffers_that_a_network_assigns_anew() -> None:
    model = nn.Module()
    model.register_buffer("count", torch.tensor(0))
    model.register_buffer("shift", torch.zeros(2))
    model.register_buffer("tied", model.shift)
    model.register_parameter("weight", nn.Parameter(torch.zeros(2)))
    mean = RunningMean(model, 0.5)
    model.count, model.shift = model.count + 3, model.shift + 1
    mean.update()
    assert mean.model.count == 3 and mean.model.tied.tolist() == [0.0, 0.0]
    assert mean.model.shift.tolist() == pytest.approx([1 - 2 / 11] * 2)
    with torch.inference_mode():
        mean.model.count += 1  # As a validation may.
    model.count = model.count + 1
    assert mean.model.count == 4


def test_the_mean_takes_whatever_a_network_makes_of_its_buffers_and_weights() -> None:
    model = nn.Linear(2, 2)
    for name in ("narrow", "longer", "gone", "touched"):
        model.register_buffer(name, torch.zeros(2))
    model.register_buffer("hidden", torch.zeros(2), persistent=False)
    nn.init.constant_(model.bias, math.nan)  # Until the first batch says what it is.
    mean = RunningMean(model, 0.5)
    nn.init.ones_(model.bias)
    model.narrow, model.longer, model.gone = torch.ones(2, dtype=torch.bfloat16), torch.ones(3), None
    model.touched, model.hidden = torch.ones(2), torch.ones(2)
    for _ in range(2):
        mean.update()
        averaged = mean.model
        averaged.touched.add_(100.0)  # As a network may in evaluation, and so change what the mean goes on from.
        averaged.narrow = torch.full((2,), 100.0)
    averaged, expected = mean.model, 1 - 2 / 11 * 3 / 12
    assert averaged.narrow.dtype == torch.float32 and averaged.gone is None
    assert averaged.narrow.tolist() == averaged.touched.tolist() == pytest.approx([expected] * 2, rel=1e-3)
    assert averaged.bias.tolist() == averaged.hidden.tolist() == [1.0, 1.0] and averaged.longer.tolist() == [1.0] * 3


def test_the_mean_has_a_buffer_that_begins_as_none() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("centre", None)
    mean = RunningMean(model, 0.5)
    assert mean.model.centre is None
    model.centre = torch.ones(2)
    mean.update()
    assert mean.model.centre.tolist() == [1.0, 1.0]  # type: ignore[union-attr, operator]
    again = RunningMean(nn.Linear(2, 2), 0.5)
    again._model.register_buffer("centre", None)
    again.load_state_dict(mean.model.state_dict(), mean.n_steps)
    assert again.model.centre.tolist() == [1.0, 1.0]  # type: ignore[union-attr, operator]


def test_the_mean_goes_on_from_its_state() -> None:
    model = nn.BatchNorm2d(2)
    mean = RunningMean(model, 0.5)
    model.running_mean = torch.ones(2)
    mean.update()
    again = RunningMean(model, 0.5)
    again.load_state_dict(mean.model.state_dict(), mean.n_steps)
    for each in (mean, again):
        each.update()
    assert again.n_steps == 2
    assert torch.equal(again.model.running_mean, mean.model.running_mean)  # type: ignore[arg-type]


def test_label_smoothing_is_in_the_training_loss_alone(splits: Splits, tiny: TrainConfig) -> None:
    last = run(changed(tiny, label_smoothing=0.5), splits)[-1]
    floor = -(0.625 * math.log(0.625) + 0.375 * math.log(0.125))  # The least smoothed loss of four classes: 1.07.
    assert last["train_accuracy"] > 0.9
    assert last["train_loss"] > floor
    assert last["valid_loss"] < floor


def test_bf16_is_close_to_fp32_but_not_the_same(splits: Splits, tiny: TrainConfig) -> None:
    full, half = run(tiny, splits), run(changed(tiny, precision="bf16"), splits)
    assert half[0]["train_loss"] != full[0]["train_loss"]
    assert half[0]["train_loss"] == pytest.approx(full[0]["train_loss"], rel=0.05)
    assert half[-1]["valid_accuracy"] == pytest.approx(full[-1]["valid_accuracy"], abs=0.1)


@pytest.mark.parametrize("faster", ["bf16", "fp32"])
def test_precision_auto_is_the_faster_one(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    monkeypatch.setattr(training_module, "faster_precision", {"cpu": faster}.__getitem__)
    assert Training(changed(tiny, precision="auto"), splits, seed=0).precision == faster
    assert Training(tiny, splits, seed=0).precision == "fp32"


def random_model(splits: Splits) -> nn.Module:
    """Returns a model whose answers differ from image to image, its statistics those of the train split."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_model(TrainConfig(width=8), splits.channels, splits.n_classes).train()
    with torch.no_grad():
        model(normalise(to_tensors(splits.train, CPU)[0], splits.mean, splits.std))
    return model


def test_evaluate_gives_log_probabilities_and_features(splits: Splits) -> None:
    model = random_model(splits)
    log_probabilities, features = evaluate(model, splits.valid, splits)
    assert log_probabilities.shape == (120, 4)
    assert features.shape == (120, 32)
    assert log_probabilities.dtype == features.dtype == torch.float32
    torch.testing.assert_close(log_probabilities.exp().sum(1), torch.ones(120))
    logits, same = predict(model, to_tensors(splits.valid, CPU)[0], splits.mean, splits.std)
    torch.testing.assert_close(log_probabilities, logits.log_softmax(1))
    assert torch.equal(features, same)
    assert not model.training


def test_flip_averaging_is_the_mean_probability_of_an_image_and_its_mirror_image(splits: Splits) -> None:
    model = random_model(splits)
    images, *_ = to_tensors(splits.valid, CPU)

    def probabilities(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = predict(model, images, splits.mean, splits.std)
        return logits.softmax(1), features

    (plain, features), (mirrored, mirrored_features) = probabilities(images), probabilities(images.flip(3))
    assert not torch.allclose(plain, mirrored, atol=1e-3)
    averaged, averaged_features = evaluate(model, splits.valid, splits, averaging="flip")
    torch.testing.assert_close(averaged.exp(), (plain + mirrored) / 2)
    torch.testing.assert_close(averaged_features, (features + mirrored_features) / 2)


def test_predictions_do_not_depend_on_the_batches(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(splits)
    images, *_ = to_tensors(splits.valid, CPU)
    logits, features = predict(model, images, splits.mean, splits.std)
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 50)
    in_parts, features_in_parts = predict(model, images, splits.mean, splits.std)
    torch.testing.assert_close(in_parts, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features_in_parts, features, rtol=1e-4, atol=1e-5)


def test_a_training_counts_its_parameters(splits: Splits, tiny: TrainConfig) -> None:
    training = Training(tiny, splits, seed=0)
    assert training.n_parameters == count_parameters(build_model(tiny, 1, 4))

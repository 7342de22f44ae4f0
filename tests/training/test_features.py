"""`train: head`: a body that stays as it is, and features that are computed once for all trials of a machine."""

import contextlib
import copy
import dataclasses
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, patterned_images
from sklearn.linear_model import LogisticRegression

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import ARCHITECTURES
from tuning.images.splitting import Splits, make_splits
from tuning.models.architectures import SmallResNet, count_parameters, head_of
from tuning.training import checkpoints, features, fit
from tuning.training.evaluation import evaluate
from tuning.training.fit import Training
from tuning.training.head_first import PENALTY
from tuning.trials.estimate import step_kind

HEAD = TrainConfig(width=8, train="head", batch_size=32, epochs=3, learning_rate=0.05, precision="fp32")
MADE = features.Features(torch.zeros(2, 3, 1, 1), torch.zeros(1, 3, 1, 1), 0.1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache of one's own."""
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    return config.model_copy(update=values)


def numbers(training: Training) -> list[tuple[float, ...]]:
    return [(r.train_loss, r.train_accuracy, r.valid_loss, r.valid_accuracy) for r in fit.fit(training)]


@pytest.mark.parametrize("crop", [0, 1])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_only_the_head_changes(splits: Splits, crop: int, ema_decay: float) -> None:
    """With features, and with images that are cropped, of which each epoch has others."""
    config = changed(HEAD, crop_padding=crop, ema_decay=ema_decay, weight_decay=0.1)
    training = Training(config, splits, seed=0)
    assert (training._body is None) == bool(crop)
    before = {name: value.clone() for name, value in training.last_model().state_dict().items()}
    found = numbers(training)
    assert found[-1][0] < found[0][0]
    after = training.best_model().state_dict()
    assert after.keys() == before.keys()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"head.weight", "head.bias"}
    assert training.n_parameters == count_parameters(fit.new_model(changed(config, train="all"), splits))


def test_features_give_the_epochs_that_the_whole_network_does(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = numbers(Training(HEAD, splits, seed=0))
    monkeypatch.setattr(features, "can_be_used", lambda config, model: False)
    np.testing.assert_allclose(quick, numbers(Training(HEAD, splits, seed=0)), rtol=1e-4)


def test_the_saved_model_is_whole_and_labels_as_its_epoch_did(splits: Splits) -> None:
    training = Training(HEAD, splits, seed=0)
    results = list(fit.fit(training))
    for model in (training.best_model(), training.last_model()):
        other = fit.new_model(HEAD, splits, load_pretrained=False)
        other.load_state_dict(model.state_dict())
        scores, found = evaluate(other, splits.valid, splits)
        assert found.shape == (120, 32)
        accuracy = float((scores.argmax(1).numpy() == splits.valid.labels).mean())
        assert accuracy == pytest.approx(max(result.valid_accuracy for result in results), abs=0.02)
    assert results[0].seconds_per_image > training._body_seconds > 0


@pytest.mark.parametrize("crop", [0, 1])
def test_a_resumed_training_goes_on_to_the_same_numbers(splits: Splits, tmp_path: Path, crop: int) -> None:
    config = changed(HEAD, crop_padding=crop, ema_decay=0.9)
    whole = numbers(Training(config, splits, seed=0))
    first = Training(config, splits, seed=0)
    rows = [dataclasses.asdict(first.run_epoch())]
    checkpoints.save(tmp_path, first, rows)
    again = Training(config, splits, seed=0)
    assert len(checkpoints.load(tmp_path, again)) == 1
    assert numbers(again) == whole[1:]


def test_what_does_something_to_the_images_is_trained_on_images() -> None:
    """A hyperparameter that this list does not name counts as one that does."""
    others = set(TrainConfig.model_fields) - features.NOT_OF_IMAGES
    assert {"crop_padding", "flip", "erase"} <= others
    assert features.leaves_images(changed(HEAD, label_smoothing=0.1, ema_decay=0.9, image_size=32))
    for values in ({"crop_padding": 1}, {"flip": True}, {"erase": 0.1}):
        assert not features.leaves_images(changed(HEAD, **values))


def test_the_dry_run_times_heads_apart_with_features_and_without() -> None:
    kinds = [changed(HEAD, **values) for values in ({}, {"train": "all"}, {"flip": True}, {"learning_rate": 0.1})]
    assert len({step_kind(config) for config in kinds}) == 3
    assert step_kind(changed(HEAD, train="all")) == step_kind(changed(HEAD, train="all", flip=True))


# Shared between trials: of pretrained weights alone, as those of others follow from each trial's seed.


@pytest.fixture
def pretrained() -> TrainConfig:
    """A head on weights that pip installs."""
    pytest.importorskip("timm")
    return changed(HEAD, architecture="efficientnet_lite0", pretrained=True, learning_rate=0.01, optimizer="adamw")


@pytest.fixture(scope="module")
def colours() -> Splits:
    """60 train and 40 valid RGB images of 32 x 32 pixels."""
    return make_splits(patterned_images(100, channels=3, side=32), "patterns", CLASS_NAMES, valid_images=40)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows by an item with each time that features are computed."""
    calls: list[int] = []
    original = features.computed

    def computed(*given: Any) -> features.Features:
        calls.append(len(calls))
        return original(*given)

    monkeypatch.setattr(features, "computed", computed)
    return calls


@pytest.mark.slow
def test_features_of_pretrained_weights_are_computed_once(
    pretrained: TrainConfig, colours: Splits, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counting(monkeypatch)
    first, again = (numbers(Training(pretrained, colours, seed=0)) for _ in range(2))
    assert len(calls) == 1 and first == again and first[-1][0] < first[0][0]
    [file] = cache.glob("*.pt")
    numbers(Training(changed(pretrained, learning_rate=0.02, batch_size=16), colours, seed=1))
    assert len(calls) == 1
    few = dataclasses.replace(colours, train=type(colours.train)(colours.train.images[:30], colours.train.labels[:30]))
    for config, splits in ((changed(pretrained, image_size=48), colours), (pretrained, few)):
        Training(config, splits, seed=0)
    Training(changed(pretrained, precision="bf16"), colours, seed=0)
    assert len(calls) == 4 and len(list(cache.glob("*.pt"))) == 4
    file.write_bytes(file.read_bytes()[:1000])
    assert numbers(Training(pretrained, colours, seed=0)) == first and len(calls) == 5
    monkeypatch.setattr(features, "LARGEST_IN_ALL", 1)
    Training(changed(pretrained, image_size=40), colours, seed=0)
    assert len(list(cache.glob("*.pt"))) == 1


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    pretrained: TrainConfig, colours: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "file"))
    calls = counting(monkeypatch)
    for _ in range(2):
        Training(pretrained, colours, seed=0)
    assert len(calls) == 2


def test_a_head_that_is_fitted_first_labels_as_a_logistic_regression_and_then_all_changes(splits: Splits) -> None:
    config = changed(HEAD, train="head_first", pretrained=False, flip=True)  # Features are of images as they are.
    training = Training(config, splits, seed=0)
    before = copy.deepcopy(training.last_model())
    found = Training(HEAD, splits, seed=0)  # The same body.
    x, y = found._train.images.flatten(1).numpy(), found._train.labels.numpy()
    expected = LogisticRegression(C=1 / (PENALTY * len(y)), max_iter=2_000, tol=1e-8).fit(x, y)
    # Adding a number to all logits of an image changes nothing: both are compared about their mean.
    weight = head_of(before).weight.detach().numpy()
    theirs = expected.coef_ - expected.coef_.mean(0)
    np.testing.assert_allclose(weight - weight.mean(0), theirs, atol=0.02 * np.abs(theirs).max())
    training.run_epoch()
    after = training.last_model().state_dict()
    assert all(not torch.equal(after[n], v) for n, v in before.state_dict().items() if n.endswith("weight"))


@pytest.mark.parametrize(("values", "missing"), [({"train": "head_first"}, "ends"), ({"train": "head"}, "classifies")])
def test_a_network_that_does_not_end_in_its_head_cannot_have_it_trained_apart(
    splits: Splits, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], missing: str
) -> None:
    monkeypatch.setattr(SmallResNet, missing, False, raising=False)
    with pytest.raises(
        UserError, match=rf"train: {values['train']} needs a network .* and resnet8 is none\. Use train: all"
    ):
        Training(changed(HEAD, **values), splits, seed=0)


def test_what_a_killed_process_left_in_the_cache_goes_after_a_day(cache: Path) -> None:
    cache.mkdir(parents=True)
    for name in (".0123.pt.abcd", ".4567.pt.efgh"):
        (cache / name).write_bytes(b"half")
    os.utime(cache / ".0123.pt.abcd", (0, 0))
    features.shared("89ab", lambda: MADE)
    assert {path.name for path in cache.iterdir()} == {".4567.pt.efgh", "89ab.lock", "89ab.pt"}


def test_the_features_of_another_user_are_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    before = os.umask(0o022)
    try:
        features.shared("89ab", lambda: MADE)
    finally:
        os.umask(before)
    assert stat.S_IMODE((cache / "89ab.pt").stat().st_mode) == 0o644
    monkeypatch.setattr("os.utime", refused)
    found = features.shared("89ab", lambda: pytest.fail("They were computed again."))
    assert torch.equal(found.train, MADE.train)


@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt, True), (RuntimeError, False), (OSError, False)])
def test_features_that_cannot_be_written_leave_nothing_hidden(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], raised: bool
) -> None:
    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(KeyboardInterrupt) if raised else contextlib.nullcontext():
        assert features.shared("89ab", lambda: MADE) is MADE
    assert {path.name for path in cache.iterdir()} == {"89ab.lock"}


def test_a_body_that_is_drawn_by_chance_is_not_shared(splits: Splits, cache: Path) -> None:
    Training(HEAD, splits, seed=0)
    assert not cache.exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("train", ["all", "head", "head_first"])
def test_every_network_with_installed_weights_trains_resumes_and_is_whole(
    colours: Splits, pretrained: TrainConfig, tmp_path: Path, train: str, precision: str
) -> None:
    assert ARCHITECTURES[pretrained.architecture].package
    config = changed(pretrained, train=train, precision=precision, epochs=2, body_lr_factor=0.1, learning_rate=0.003)
    whole = Training(config, colours, seed=0)
    expected = numbers(whole)
    first = Training(config, colours, seed=0)
    checkpoints.save(tmp_path, first, [dataclasses.asdict(first.run_epoch())])
    again = Training(config, colours, seed=0)
    checkpoints.load(tmp_path, again)
    assert numbers(again) == expected[1:]
    assert isinstance(head_of(whole.best_model()), torch.nn.Linear)

"""`tuning.training.evaluation`: what views look like, and what a model makes of their average, in one pass."""

from typing import Any

import pytest
import torch
from conftest import patterned_images
from torch import Tensor, nn

from tuning.base.averagings import AVERAGINGS, View
from tuning.images.batches import normalise, to_tensors
from tuning.images.splitting import Splits
from tuning.training import evaluation
from tuning.training.evaluation import averaged, evaluate, evaluate_each, seen_as

IMAGE = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View(), [[1, 2, 3], [4, 5, 6]]),
        (View(mirrored=True), [[3, 2, 1], [6, 5, 4]]),
        (View(down=-1), [[4, 5, 6], [4, 5, 6]]),
        (View(down=1), [[1, 2, 3], [1, 2, 3]]),
        (View(right=-1), [[2, 3, 3], [5, 6, 6]]),
        (View(right=1), [[1, 1, 2], [4, 4, 5]]),
        (View(mirrored=True, right=1), [[3, 3, 2], [6, 6, 5]]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_enters_an_image_is_the_nearest_pixel_in_it(view: View, expected: list[Any], channels: int) -> None:
    found = seen_as(IMAGE.expand(2, channels, 2, 3), view)
    assert found.dtype == torch.uint8 and found.shape == (2, channels, 2, 3)
    assert all(image.tolist() == expected for image in found.flatten(0, 1))


def test_a_colour_image_is_seen_as_a_shift_in_training_shows_it() -> None:
    """Of gray ones training fills in 0: see `seen_as`."""
    from tuning.base.config import TrainConfig
    from tuning.images.augmentation import augment

    images = torch.randint(0, 256, (1, 3, 6, 5), dtype=torch.uint8)
    seen = {seen_as(images, view).numpy().tobytes() for view in AVERAGINGS["shift"].views}
    for down, right in ((0.5, 0.5), (0.1, 0.5), (0.9, 0.5), (0.5, 0.1), (0.5, 0.9)):
        draws = torch.tensor([[down], [right], [0.9], [0.5], [0.5]])
        shifted = augment(images, TrainConfig(crop_padding=1, flip=False, erase=0.0), draws)
        seen.remove(shifted.numpy().tobytes())
    assert not seen


class Linear(nn.Module):
    """Counts the images that it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.seen = nn.Linear(144, 4), 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(images)
        features = images.flatten(1).sin()
        return 5 * self.layer(features), features


def test_one_pass_over_ten_views_gives_every_average_exactly(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 50)
    model, part = Linear(), patterned_images(120, seed=3)
    each = evaluate_each(model, part, splits, list(AVERAGINGS))
    assert model.seen == 10 * 120 and list(each) == list(AVERAGINGS)
    images, *_ = to_tensors(part, torch.device("cpu"))
    for name, averaging in AVERAGINGS.items():
        seen = [model(normalise(seen_as(images, view), splits.mean, splits.std)) for view in averaging.views]
        log_probabilities, features = each[name]
        expected = torch.stack([logits.softmax(1) for logits, _ in seen]).mean(0)
        torch.testing.assert_close(log_probabilities.exp(), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(features, torch.stack([found for _, found in seen]).mean(0), atol=1e-6, rtol=1e-5)
        model.seen = 0
        alone = evaluate(model, part, splits, averaging=name)
        assert model.seen == 120 * len(averaging.views)
        assert torch.equal(alone[0], log_probabilities) and torch.equal(alone[1], features)


def test_an_improbable_class_keeps_its_logarithm() -> None:
    def apply(images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([[0.0, 300.0]]), torch.zeros(1, 1)

    [(log_probabilities, _)] = averaged(apply, IMAGE, ("flip+shift",)).values()
    assert log_probabilities.tolist() == [[pytest.approx(-300, abs=1e-3), pytest.approx(0, abs=1e-3)]]

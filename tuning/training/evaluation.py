"""What a trained model says of images: logits, probabilities and features, a part of them at a time."""

import functools
import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from tuning.base.averagings import AVERAGINGS, NONE, View
from tuning.images.batches import Tensors, normalise, to_tensors
from tuning.images.datasets import Labelled
from tuning.images.mapped import Stored
from tuning.images.splitting import Splits
from tuning.training.acceleration import autocast

EVALUATION_BATCH = 500
MOST_PIXELS = 96 * 96  # Of an image in such a batch.


def predict(
    model: nn.Module, images: Tensor | Tensors, mean: tuple[float, ...], std: tuple[float, ...], precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Returns logits (N, n_classes) and features (N, D), float32, of images uint8 (N, C, H, W)."""
    model.eval()
    outputs = []
    part = Tensors(images, images) if isinstance(images, Tensor) else images
    size = evaluation_batch(model, part.images)
    with torch.inference_mode(), autocast(part.labels.device, precision):
        for start in range(0, len(part), size):
            logits, features = model(normalise(part.at(slice(start, start + size)), mean, std))
            outputs.append((logits.float(), features.float()))
    logits, features = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(features)


def evaluation_batch(model: nn.Module, images: "Tensor | Stored") -> int:
    """Returns how many images are labelled at once: fewer where a network sees large ones, whose maps take memory."""
    side = getattr(model, "side", 0)
    pixels = side**2 if side else images.shape[2] * images.shape[3]
    return EVALUATION_BATCH if pixels <= MOST_PIXELS else max(8, EVALUATION_BATCH * MOST_PIXELS // (2 * pixels))


def seen_as(images: Tensor, view: View) -> Tensor:
    """Returns the images (N, C, H, W) as a view shows them; a pixel from outside an image is the nearest one in it.

    Of images in colour this is what `crop_padding` does in training, by one pixel. Gray ones get 0 there in training,
    and not here: 97 % of the images of Fashion-MNIST touch their border (a pixel above 50 of 255), and a garment that
    ends before the border, as if cut off, is in no test image. On a black background both are the same, and on any
    other one, as of gray photos, 0 would draw a line.
    """
    if view.mirrored:
        images = images.flip(3)
    for axis, step in ((2, view.down), (3, view.right)):
        if step:
            last = images.shape[axis] - 1
            index = (torch.arange(last + 1, device=images.device) - step).clamp(0, last)
            images = images.index_select(axis, index)
    return images


def mean_probability(log_probabilities: Tensor) -> Tensor:
    """Returns the logarithm of the mean of probabilities (N, n_classes), given theirs (n_views, N, n_classes)."""
    if len(log_probabilities) == 1:
        return log_probabilities[0]
    return log_probabilities.logsumexp(0) - math.log(len(log_probabilities))


def averaged(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor, averagings: Collection[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns by averaging the log-probabilities (N, n_classes) and features (N, D): means over the views of an image.

    A view that several averagings have is evaluated once.

    Args:
        apply: Returns logits and features of images.
        images: uint8 (N, C, H, W).
        averagings: Names in `AVERAGINGS`.
    """
    seen: dict[View, tuple[Tensor, Tensor]] = {}
    for view in dict.fromkeys(view for name in averagings for view in AVERAGINGS[name].views):
        logits, features = apply(seen_as(images, view))
        seen[view] = logits.log_softmax(1), features
    found = {}
    for name in averagings:
        log_probabilities, features_of = zip(*(seen[view] for view in AVERAGINGS[name].views), strict=True)
        found[name] = (
            mean_probability(torch.stack(log_probabilities)),
            sum(features_of[1:], features_of[0]) / len(features_of),
        )
    return found


def evaluate_each(
    model: nn.Module, part: Labelled, splits: Splits, averagings: Collection[str], *, device: str = "cpu"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns what `evaluate` does, by averaging, from one pass over all of their views."""
    apply = functools.partial(predict, model, mean=splits.mean, std=splits.std)
    tensors = to_tensors(part, torch.device(device))
    outputs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in averagings}
    size = evaluation_batch(model, tensors.images)
    for start in range(0, len(tensors), size):
        for name, found in averaged(apply, tensors.at(slice(start, start + size)), averagings).items():
            outputs[name].append(found)
    whole = {}
    for name, parts in outputs.items():
        log_probabilities, features = zip(*parts, strict=True)
        whole[name] = torch.cat(log_probabilities).cpu(), torch.cat(features).cpu()
    return whole


def evaluate(
    model: nn.Module, part: Labelled, splits: Splits, *, device: str = "cpu", averaging: str = NONE
) -> tuple[Tensor, Tensor]:
    """Returns float32 log-probabilities (N, n_classes) and features (N, D) of labelled images, on the CPU.

    Args:
        model: As `build_model` makes them.
        part: The images.
        splits: Whose mean and std normalise the images.
        device: Where the model is.
        averaging: A name in `AVERAGINGS`: take the mean probability and the mean features over these views.
    """
    return evaluate_each(model, part, splits, (averaging,), device=device)[averaging]

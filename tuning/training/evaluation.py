"""What a trained model says of images: logits, probabilities and features, a part of them at a time."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

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


def flip_averaged(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor, averaging: bool = True
) -> tuple[Tensor, Tensor]:
    """Returns log-probabilities (N, n_classes) and features (N, D): the means over each image and its mirror image.

    Args:
        apply: Returns logits and features of images.
        images: (N, C, H, W).
        averaging: False leaves the mirror images out.
    """
    logits, features = apply(images)
    log_probabilities = logits.log_softmax(1)
    if averaging:
        mirrored, mirrored_features = apply(images.flip(3))
        log_probabilities = torch.logaddexp(log_probabilities, mirrored.log_softmax(1)) - math.log(2)
        features = (features + mirrored_features) / 2
    return log_probabilities, features


def evaluate(
    model: nn.Module, part: Labelled, splits: Splits, *, device: str = "cpu", flip_averaging: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns float32 log-probabilities (N, n_classes) and features (N, D) of labelled images, on the CPU.

    Args:
        model: As `build_model` makes them.
        part: The images.
        splits: Whose mean and std normalise the images.
        device: Where the model is.
        flip_averaging: Take the mean probability (and mean features) of each image and its mirror image.
    """
    apply = functools.partial(predict, model, mean=splits.mean, std=splits.std)
    tensors, outputs = to_tensors(part, torch.device(device)), []
    size = evaluation_batch(model, tensors.images)
    for start in range(0, len(tensors), size):
        outputs.append(flip_averaged(apply, tensors.at(slice(start, start + size)), flip_averaging))
    log_probabilities, features = zip(*outputs, strict=True)
    return torch.cat(log_probabilities).cpu(), torch.cat(features).cpu()

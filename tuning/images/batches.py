"""Images a batch at a time, on the device: shuffled, augmented, normalised."""

import functools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tuning.base.config import TrainConfig
from tuning.images.datasets import Labelled

if TYPE_CHECKING:
    import torch


def to_tensors(part: Labelled, device: "torch.device") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Returns images uint8 (N, C, H, W) and labels int64 (N,) on the device; on a CPU they share the arrays' memory."""
    import torch

    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only; so are the tensors over them, as nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images, labels = torch.from_numpy(part.pixels()), torch.from_numpy(part.labels)
    return images.to(device), labels.to(device)


def train_batches(
    images: "torch.Tensor", labels: "torch.Tensor", config: TrainConfig, generator: "torch.Generator"
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Yields one epoch of shuffled, augmented batches: images uint8 (B, C, H, W) and labels (B,).

    All random numbers of the epoch are drawn at once on the generator's device (the CPU) and sent over once, so that
    every device sees the same batches and none waits inside an epoch. The last batch is dropped when it is smaller than
    half a batch, because batch normalisation and the size of the step suffer from it.
    """
    import torch

    n, device = len(labels), images.device
    order = torch.randperm(n, generator=generator).to(device)
    draws = torch.rand(5, n, generator=generator).to(device)
    for start in range(0, n, config.batch_size):
        index = order[start : start + config.batch_size]
        if len(index) * 2 < config.batch_size and start > 0:
            return
        yield augment(images[index], config, draws[:, start : start + config.batch_size]), labels[index]


def parts_of(n_images: int, asked: int) -> int:
    """Returns how many parts a batch is cut into: as many as asked for, as far as each has two images.

    Batch normalisation cannot normalise a single image whose features are one pixel, as a small image's are at the end.
    """
    return max(1, min(asked, n_images // 2))


def augment(images: "torch.Tensor", config: TrainConfig, draws: "torch.Tensor") -> "torch.Tensor":
    """Returns the images, each cropped, flipped and erased: uint8 (B, C, H, W) in and out.

    One gather does crop and flip for the whole batch. Pixels from outside the image, and erased ones, are 0: the
    background of Fashion-MNIST.

    Args:
        images: uint8 (B, C, H, W).
        config: Its crop_padding, flip and erase say what is done.
        draws: Uniform in [0, 1), float32 (5, B): row and column of the crop, flip, row and column of the square.
    """
    import torch

    device, (n, _, height, width) = images.device, images.shape
    down, right, mirror, square_row, square_column = draws[:, :, None]
    if config.crop_padding or config.flip:
        pad = config.crop_padding
        rows = torch.arange(height, device=device) + (down * (2 * pad + 1)).long()
        columns = torch.arange(width, device=device).expand(n, width)
        if config.flip:
            columns = torch.where(mirror < 0.5, width - 1 - columns, columns)
        columns = columns + (right * (2 * pad + 1)).long()
        padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
        batch = torch.arange(n, device=device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    side = round(config.erase * min(height, width))
    if side:
        rows = torch.arange(height, device=device) - (square_row * height).long() + side // 2
        columns = torch.arange(width, device=device) - (square_column * width).long() + side // 2
        inside = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
        images = images.masked_fill(inside, 0)
    return images


def normalise(images: "torch.Tensor", mean: tuple[float, ...], std: tuple[float, ...]) -> "torch.Tensor":
    """Returns float32 (B, C, H, W), channels last: pixels / 255, less the mean, over the standard deviation."""
    import torch

    scale, shift = _scale_and_shift(mean, std, images.device)
    return torch.addcmul(shift, images.float(), scale).contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: "torch.device"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Returns what pixels are multiplied by and what is added, (1, C, 1, 1); kept, as a GPU would be waited for."""
    import torch

    with torch.inference_mode(False):
        scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)

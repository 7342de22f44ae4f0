"""What training does to a batch of images, on the device: crops, colours, TrivialAugment, erasing, and mixing.

Nothing here draws for an image: `train_batches` draws for a whole epoch, and each function works on a whole batch. A
GPU is never waited for, as no size and no index depends on what is on it. Images are uint8 (B, C, H, W) in and out.

Pixels from outside an image: a gray image (one channel) that is shifted by `crop_padding` gets 0 there, and erased ones
are 0, too, the background of Fashion-MNIST. Images of more channels are mirrored at their border, and the erased square
gets the mean colour of its image. Resampled images, gray or not, are mirrored.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tuning.base.config import TrainConfig

if TYPE_CHECKING:
    import torch

# Rows of draws an image: shift down, shift right, flip, row and column of the erased square;
N_DRAWS = 5
# and for photos: area, aspect, row and column of the crop; brightness, contrast, saturation, hue; TrivialAugment.
N_PHOTO_DRAWS = 9
# TrivialAugment's, in its wide space. Each image of a batch gets the one after that of the image before it.
OPERATIONS = (
    *("identity", "shear x", "shear y", "translate x", "translate y", "rotate"),
    *("brightness", "contrast", "saturation", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
MOST_ASPECT, MOST_ROTATION, MOST_TRANSLATION, MOST_CHANGE = 4 / 3, math.radians(135), 32, 0.99
# Rec. 601, as Pillow and torchvision have it.
LUMA = (0.2989, 0.587, 0.114)


def needs_photo_draws(config: TrainConfig) -> bool:
    """Returns whether `augment` needs the draws for photos."""
    return config.crop_scale < 1 or config.jitter > 0 or config.trivial_augment


def augment(images: "torch.Tensor", config: TrainConfig, draws: "torch.Tensor", first: int = 0) -> "torch.Tensor":
    """Returns the images, each shifted, flipped, cropped, recoloured and erased: uint8 (B, C, H, W) in and out.

    Args:
        images: uint8 (B, C, H, W), C = 1 or 3 for colours.
        config: Its crop_padding, flip, crop_scale, jitter, trivial_augment and erase say what is done.
        draws: Uniform in [0, 1), float32 (`N_DRAWS`, B), or (`N_DRAWS + N_PHOTO_DRAWS`, B) where the config needs it.
        first: The number in `OPERATIONS` of the first image's.
    """
    if config.crop_padding or config.flip:
        images = _shifted(images, config, draws[:3])
    if needs_photo_draws(config):
        images = _resampled(images, config, draws[N_DRAWS:], first)
    return _erased(images, config.erase, *draws[3:N_DRAWS])


def mix(
    images: "torch.Tensor", labels: "torch.Tensor", config: TrainConfig, generator: np.random.Generator
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", float]:
    """Returns the images, each mixed with the one before it, their labels, those mixed in, and the share of the former.

    Mixup (Zhang et al. 2018) adds the two images up; cutmix (Yun et al. 2019) pastes a rectangle of the one into the
    other. One share, from the distribution Beta(alpha, alpha), and one rectangle hold for the batch, as in both papers.
    Where the config has both, each batch gets one of them at random.

    Args:
        images: uint8 (B, C, H, W).
        labels: int64 (B,).
        config: Its mixup and cutmix are the alphas; one of them must be above 0.
        generator: Draws two to five numbers.

    Returns:
        images, labels, others, share: of a loss, `share` is that of `labels`, at least 0.5, and the rest of `others`.
    """
    import torch

    cut = config.cutmix > 0 and (config.mixup == 0 or generator.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    share, (height, width) = float(generator.beta(alpha, alpha)), images.shape[2:]
    before, others = images.roll(1, 0), labels.roll(1)
    if cut:
        reach = math.sqrt(1 - share) / 2
        (top, bottom), (left, right) = (
            (round(side * max(0, centre - reach)), round(side * min(1, centre + reach)))
            for side, centre in zip((height, width), generator.random(2).tolist(), strict=True)
        )
        images = images.clone()
        images[:, :, top:bottom, left:right] = before[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = torch.lerp(before.float(), images.float(), share).round_().to(torch.uint8)
    return (images, labels, others, share) if share >= 0.5 else (images, others, labels, 1 - share)


def _shifted(images: "torch.Tensor", config: TrainConfig, draws: "torch.Tensor") -> "torch.Tensor":
    """Returns the images, shifted by up to `crop_padding` pixels, and flipped: one gather does both for the batch."""
    import torch

    device, (n, channels, height, width) = images.device, images.shape
    down, right, mirror = draws[:, :, None]
    pad = config.crop_padding
    rows = torch.arange(height, device=device) + (down * (2 * pad + 1)).long()
    columns = torch.arange(width, device=device).expand(n, width)
    if config.flip:
        columns = torch.where(mirror < 0.5, width - 1 - columns, columns)
    columns = columns + (right * (2 * pad + 1)).long()
    if channels == 1:
        images = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    else:
        rows, columns = _mirrored(rows - pad, height), _mirrored(columns - pad, width)
    batch = torch.arange(n, device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(index: "torch.Tensor", side: int) -> "torch.Tensor":
    """Returns the index, mirrored at the borders as often as it takes to lie in [0, side)."""
    import torch

    index = index.remainder(2 * side)
    return torch.minimum(index, 2 * side - 1 - index)


def _erased(
    images: "torch.Tensor", share: float, square_row: "torch.Tensor", square_column: "torch.Tensor"
) -> "torch.Tensor":
    """Returns the images with a square blanked, whose side is a share of theirs, and whose centre is in the image."""
    import torch

    device, (_, channels, height, width) = images.device, images.shape
    side = round(share * min(height, width))
    if not side:
        return images
    rows = torch.arange(height, device=device) - (square_row[:, None] * height).long() + side // 2
    columns = torch.arange(width, device=device) - (square_column[:, None] * width).long() + side // 2
    inside = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
    if channels == 1:
        return images.masked_fill(inside, 0)
    return torch.where(inside, images.float().mean((2, 3), keepdim=True).round_().to(torch.uint8), images)


def _resampled(images: "torch.Tensor", config: TrainConfig, draws: "torch.Tensor", first: int) -> "torch.Tensor":
    """Returns the images cropped, recoloured, and with TrivialAugment's operations.

    Crops, shears, translations and rotations are one affine map an image, so that pixels are interpolated once; jitter,
    brightness, contrast and saturation are one linear map of its colours. What is left of TrivialAugment is done with
    every 14th image at a time.
    """
    import torch

    operation = (torch.arange(len(images), device=images.device) + first) % len(OPERATIONS)
    strength = 2 * draws[8] - 1
    if not config.trivial_augment:
        operation = torch.zeros_like(operation)
    pixels = images.float()
    if config.crop_scale < 1 or config.trivial_augment:
        maps = _affine_maps(config.crop_scale, draws[:4], operation, strength, *images.shape[2:])
        grid = torch.nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
        pixels = torch.nn.functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    if config.jitter or config.trivial_augment:
        factors = 1 + config.jitter * (2 * draws[4:7] - 1)
        for number, factor in enumerate(factors, start=OPERATIONS.index("brightness")):
            factor *= 1 + MOST_CHANGE * _only(strength, operation == number)
        brightness, contrast, saturation = factors
        pixels = recoloured(pixels, brightness, contrast, saturation, config.jitter * (draws[7] - 0.5) / 2)
    images = pixels.clamp_(0, 255).round_().to(torch.uint8)
    if config.trivial_augment:
        for name, change in _CHANGES.items():
            every = slice((OPERATIONS.index(name) - first) % len(OPERATIONS), None, len(OPERATIONS))
            if len(images[every]):
                images[every] = change(images[every], strength[every][:, None, None, None])
    return images


def _only(strength: "torch.Tensor", where: "torch.Tensor") -> "torch.Tensor":
    return strength * where


def _affine_maps(
    least: float, draws: "torch.Tensor", operation: "torch.Tensor", strength: "torch.Tensor", height: int, width: int
) -> "torch.Tensor":
    """Returns where in an image each pixel of the new one comes from, float32 (B, 2, 3), as `affine_grid` has it.

    A random resized crop (Szegedy et al. 2015): its area is uniform in [least, 1] of the image's, and it is stretched
    by up to 4/3 either way, as far as it fits into the image. Then a shear, a translation or a rotation about the
    centre.

    Args:
        least: Least share of the area; 1: no crop.
        draws: (4, B).
        operation: Numbers in `OPERATIONS`, (B,).
        strength: Of the operation, in [-1, 1), (B,).
        height: In pixels.
        width: In pixels.
    """
    import torch

    area, aspect, down, right = draws
    log_area = torch.log1p((least - 1) * area)
    stretch = (2 * aspect - 1) * (-log_area).clamp(max=math.log(MOST_ASPECT))
    x_size, y_size = torch.exp((log_area + stretch) / 2), torch.exp((log_area - stretch) / 2)
    x_shear, y_shear, x_move, y_move, turn = (
        _only(strength, operation == number) for number in range(1, OPERATIONS.index("brightness"))
    )
    cos, sin = torch.cos(turn * MOST_ROTATION), torch.sin(turn * MOST_ROTATION)
    x_move, y_move = (move * min(2 * MOST_TRANSLATION / side, 1) for move, side in ((x_move, width), (y_move, height)))
    x_row = [cos, (sin + MOST_CHANGE * x_shear) * (height / width), -x_move]
    y_row = [(MOST_CHANGE * y_shear - sin) * (width / height), cos, -y_move]
    maps = torch.stack([torch.stack(x_row, 1) * x_size[:, None], torch.stack(y_row, 1) * y_size[:, None]], 1)
    maps[:, 0, 2] += (2 * right - 1) * (1 - x_size)
    maps[:, 1, 2] += (2 * down - 1) * (1 - y_size)
    return maps


def recoloured(
    pixels: "torch.Tensor",
    brightness: "torch.Tensor",
    contrast: "torch.Tensor",
    saturation: "torch.Tensor",
    turns: "torch.Tensor",
) -> "torch.Tensor":
    """Returns the images with other brightness, contrast, saturation and hue, each by a factor of its own.

    All four are linear, so that they are one map an image. The hue turns about the axis of the grays, which needs no
    HSV; a third of a turn gives what HSV gives: red becomes green. A gray image has brightness and contrast alone.

    Args:
        pixels: float32 (B, C, H, W) in [0, 255].
        brightness: What black to white is multiplied by, (B,).
        contrast: What the distance from the mean gray is multiplied by, (B,).
        saturation: What the distance from each pixel's gray is multiplied by, (B,).
        turns: Of the hue, in whole turns, (B,).

    Returns:
        float32 (B, C, H, W), not clamped to [0, 255].
    """
    import torch

    (n, channels, height, width), means = pixels.shape, pixels.mean((2, 3))
    gain = (brightness * contrast)[:, None, None]
    if channels == 3:
        same, next_one, luma = _colour_matrices(pixels.device)
        cos, sin = torch.cos(2 * math.pi * turns)[:, None, None], torch.sin(2 * math.pi * turns)[:, None, None]
        turned = cos * same + (1 - cos) / 3 + sin / math.sqrt(3) * (next_one - next_one.T)
        saturation = saturation[:, None, None]
        gray = luma @ turned
        maps = gain * (saturation * turned + (1 - saturation) * gray[:, None])
        mean = (gray * means).sum(1)
    else:
        mean = means.mean(1)
        maps = gain * torch.eye(channels, device=pixels.device)
    offset = (mean * brightness * (1 - contrast))[:, None, None]
    return torch.baddbmm(offset, maps, pixels.flatten(2)).view(n, channels, height, width)


@functools.lru_cache(maxsize=4)
def _colour_matrices(device: "torch.device") -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Returns what leaves colours, what makes red green, green blue and blue red, and what makes a pixel's gray."""
    import torch

    with torch.inference_mode(False):
        same = torch.eye(3, device=device)
        return same, same.roll(1, 0), torch.tensor(LUMA, device=device)


def _sharpened(images: "torch.Tensor", strength: "torch.Tensor") -> "torch.Tensor":
    """Returns the images nearer to or farther from those smoothed by Pillow's SMOOTH; the outermost pixels stay."""
    import torch

    pixels = images.float()
    if min(pixels.shape[2:]) > 2:
        around = torch.nn.functional.avg_pool2d(pixels, 3, stride=1) * (9 / 13)
        inner = pixels[:, :, 1:-1, 1:-1]
        inner -= MOST_CHANGE * strength * (around - inner * (9 / 13))
    return pixels.clamp_(0, 255).round_().to(torch.uint8)


def _posterized(images: "torch.Tensor", strength: "torch.Tensor") -> "torch.Tensor":
    """Returns the images without up to 6 of the 8 bits of each pixel."""
    import torch

    bits = (6 * strength.abs()).round().to(torch.uint8)
    return (images >> bits) << bits


def _solarized(images: "torch.Tensor", strength: "torch.Tensor") -> "torch.Tensor":
    """Returns the images with pixels from a threshold on inverted."""
    import torch

    return torch.where(images >= 255 * (1 - strength.abs()), 255 - images, images)


def _autocontrasted(images: "torch.Tensor", strength: "torch.Tensor") -> "torch.Tensor":
    """Returns the images, each channel stretched to [0, 255]."""
    from torchvision.transforms.v2 import functional

    stretched: torch.Tensor = functional.autocontrast(images)
    return stretched


def _equalized(images: "torch.Tensor", strength: "torch.Tensor") -> "torch.Tensor":
    """Returns the images, with about as many pixels of each value in each channel."""
    from torchvision.transforms.v2 import functional

    equalized: torch.Tensor = functional.equalize(images)
    return equalized


_CHANGES: dict[str, Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]] = {
    "sharpness": _sharpened,
    "posterize": _posterized,
    "solarize": _solarized,
    "autocontrast": _autocontrasted,
    "equalize": _equalized,
}

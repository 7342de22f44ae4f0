"""The networks. They return logits (N, n_classes) and the features (N, D) before the last layer, which is `head`.

The logits are what the head makes of the features, and nothing else; `HeadApart` makes such a network of any other.

The small family is the CIFAR ResNet of He et al. 2016 (section 4.2) with three stages of 1, 2 or 3 blocks; others are
those of libraries (`pretrained.py`) and a user's own (`own.py`). To add one, write a builder like `resnet8` and its
entry in `registries.ARCHITECTURES`.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.own_model import is_own
from tuning.base.registries import ARCHITECTURES, TIMM, Normalisation
from tuning.models.norm import Norm
from tuning.models.own import own_network
from tuning.models.pretrained import timm_network
from tuning.models.shortcut import convolve_both


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut: (N, in, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = Norm(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = Norm(n_out)
        self.shortcut = nn.Sequential()  # Empty, it gives what it is given.
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), Norm(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        if self.shortcut:
            convolution, norm = self.shortcut
            y, short = convolve_both(x, self.conv1, convolution)
            short = norm(short)
        else:
            y, short = self.conv1(x), x
        result: Tensor = self.norm2(self.conv2(self.norm1(y, relu=True)), short, relu=True)
        return result


class SmallResNet(nn.Module):
    """The small family: a 3x3 stem, three stages at full, half and quarter resolution, average pooling, a linear layer.

    Args:
        blocks: Blocks a stage: 1 is ResNet-8, 2 is ResNet-14, 3 is ResNet-20.
        width: Channels of the first stage; the second has twice, the third four times as many.
    """

    def __init__(self, blocks: int, width: int, channels: int, n_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), Norm(width))
        stages: list[nn.Module] = []
        n_in = width
        for stage in range(3):
            n_out = width * 2**stage
            for block in range(blocks):
                stages.append(Block(n_in, n_out, stride=2 if stage > 0 and block == 0 else 1))
                n_in = n_out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(n_in, n_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, n_classes) and features (N, 4 * width) of images (N, C, H, W)."""
        convolution, norm = self.stem
        y = self.stages(norm(convolution(images), relu=True))
        features = y.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)  # As it lies in memory: its gradient is faster so.
        return self.head(features), features


class Resized(nn.Module):
    """A model whose images are first resized to a square (bilinear, antialiased)."""

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model = model
        self.side = side

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the model returns for the resized images."""
        size = (self.side, self.side)
        resized = functional.interpolate(images, size, mode="bilinear", antialias=True)
        logits, features = self.model(resized.contiguous(memory_format=torch.channels_last))
        return logits, features


class Renormalised(nn.Module):
    """A model whose weights want the images normalised in another way than those of the data set are.

    What it does is in two buffers of the state dict, so that whoever loads a saved model needs to know neither way.

    Args:
        model: Gets the images as its weights want them.
        channels: Of an image.
        seen: How the images come; None: as pixels in [0, 1].
        wanted: How the weights want them.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, channels: int, seen: Normalisation | None, wanted: Normalisation) -> None:
        super().__init__()
        self.model = model
        seen = seen or Normalisation((0.0,) * channels, (1.0,) * channels)
        mean, std, their_mean, their_std = (
            torch.tensor(_by_channel(values, channels), dtype=torch.float64).view(1, -1, 1, 1)
            for values in (seen.mean, seen.std, wanted.mean, wanted.std)
        )
        self.register_buffer("scale", (std / their_std).float())
        self.register_buffer("shift", ((mean - their_mean) / their_std).float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the model returns for the images as its weights want them."""
        logits, features = self.model(images * self.scale + self.shift)
        return logits, features


def build_model(
    config: TrainConfig,
    channels: int,
    n_classes: int,
    load_pretrained: bool = True,
    *,
    seen: Normalisation | None = None,
    size: tuple[int, int] | None = None,
) -> nn.Module:
    """Returns a new model; its weights are drawn from torch's global generator, which the caller seeds.

    Args:
        config: Chooses architecture, width, stem, image_size and pretrained.
        channels: Of an image.
        n_classes: Length of the logits.
        load_pretrained: False builds the module without ImageNet weights, to load a state dict into it.
        seen: How the images that it gets are normalised, for pretrained weights that want them otherwise; None: as
            pixels in [0, 1]. A state dict has it.
        size: Height and width of the images; only a user's own model must be told.

    Raises:
        UserError: The pretrained weights or the packages cannot be had, the images are too small, or the user's own
            model is wrong.
    """
    given, architecture = config, config.architecture
    size = (config.image_size, config.image_size) if config.image_size else size
    known = ARCHITECTURES.get(architecture)
    if known and size and min(size) < known.least_size:
        raise UserError(
            f"{architecture} needs images of {known.least_size} pixels a side at least, but got {min(size)}. "
            f"Set image_size to {known.least_size} or more."
        )
    if not load_pretrained:
        config = config.model_copy(update={"pretrained": False})
    if is_own(architecture):
        model: nn.Module = own_network(config, channels, n_classes, size)
    elif architecture.startswith(TIMM):
        model = timm_network(config, channels, n_classes)
    else:
        model = ARCHITECTURES.load(architecture)(config, channels, n_classes)
    if given.pretrained and (wanted := normalisation_of_weights(architecture)) is not None:
        model = Renormalised(model, channels, seen, wanted)
    if config.image_size is not None:
        model = Resized(model, config.image_size)
    # A user's own network has brought its weights into its layout.
    return model if is_own(architecture) else model.to(memory_format=torch.channels_last)


def normalisation_of_weights(architecture: str) -> Normalisation | None:
    """Returns how an architecture's pretrained weights want images; None: as the data set has them."""
    if not architecture.startswith(TIMM):
        return ARCHITECTURES[architecture].normalisation
    from timm.models import get_pretrained_cfg

    known: Any = get_pretrained_cfg(architecture.removeprefix(TIMM))
    return Normalisation(tuple(known.mean), tuple(known.std))


def inner(model: nn.Module) -> nn.Module:
    """Returns the network within what `build_model` put around it."""
    while isinstance(model, Resized | Renormalised):
        model = model.model
    return model


def head_of(model: nn.Module) -> nn.Linear:
    """Returns the last linear layer of a model that `build_model` made."""
    return cast(nn.Linear, inner(model).head)


def head_ends(model: nn.Module) -> bool:
    """Returns whether a model's logits are what its head makes of its features, and nothing else."""
    return bool(getattr(inner(model), "ends", True))  # Of a user's own file it was found out.


def check_head(model: nn.Module, config: TrainConfig) -> None:
    """Raises UserError where the head is to be trained in another way than the body, and the model has none for that.

    To be trained it must give a value a class; to be fitted to the features first, also be the model's end.
    """
    named, instead = f"train: {config.train}", "train: all"
    if config.train == "all":
        if config.body_lr_factor == 1:
            return
        named, instead = f"body_lr_factor: {config.body_lr_factor:g}", "body_lr_factor: 1"
    if config.train == "head_first" and not head_ends(model):
        wanted = "whose logits are what its last linear layer makes of its features"
    elif not getattr(inner(model), "classifies", True):
        wanted = "whose last linear layer gives a value for each class"
    else:
        return
    raise UserError(f"{named} needs a network {wanted}, and {config.architecture} is none. Use {instead}.")


def _by_channel(values: Sequence[float], channels: int) -> list[float]:
    """Returns a value for each channel: the mean of three for one, and the three again and again for more."""
    if channels == 1:
        return [sum(values) / len(values)]
    return [values[channel % len(values)] for channel in range(channels)]


def count_parameters(model: nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def resnet8(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns a ResNet-8."""
    return SmallResNet(1, config.width, channels, n_classes)


def resnet14(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns a ResNet-14."""
    return SmallResNet(2, config.width, channels, n_classes)


def resnet20(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns a ResNet-20."""
    return SmallResNet(3, config.width, channels, n_classes)


def _initialise(model: nn.Module) -> None:
    """Draws weights as He et al. 2015; each block's last normalisation starts at 0 (Goyal et al. 2017)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, Block):
            nn.init.zeros_(module.norm2.weight)

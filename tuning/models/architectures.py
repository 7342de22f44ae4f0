"""The networks. They return logits (N, n_classes) and the features (N, D) before the last layer, which is `head`.

The small family is the CIFAR ResNet of He et al. 2016 (section 4.2) with three stages of 1, 2 or 3 blocks; resnet18 is
torchvision's own module. To add one, write a builder like `resnet8` and its entry in `registries.ARCHITECTURES`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tuning.base.config import TrainConfig
from tuning.base.downloads import resnet18_weights
from tuning.base.registries import ARCHITECTURES
from tuning.models.norm import Norm
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


class ResNet18(nn.Module):
    """torchvision's ResNet-18 with either stem; its features are the 512 that enter `fc`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.head: nn.Module = network.fc  # type: ignore[assignment]
        network.fc = nn.Identity()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, n_classes) and features (N, 512) of images (N, C, H, W)."""
        features = self.network(images)
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


def build_model(config: TrainConfig, channels: int, n_classes: int, load_pretrained: bool = True) -> nn.Module:
    """Returns a new model; its weights are drawn from torch's global generator, which the caller seeds.

    Args:
        config: Chooses architecture, width, stem, image_size and pretrained.
        channels: Of an image.
        n_classes: Length of the logits.
        load_pretrained: False builds the module without ImageNet weights, to load a state dict into it.

    Raises:
        UserError: The pretrained weights cannot be had.
    """
    if not load_pretrained:
        config = config.model_copy(update={"pretrained": False})
    model: nn.Module = ARCHITECTURES.load(config.architecture)(config, channels, n_classes)
    if config.image_size is not None:
        model = Resized(model, config.image_size)
    return model.to(memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def fold_channels(weight: Tensor, channels: int) -> Tensor:
    """Returns a first layer's weight (out, 3, k, k) for images of `channels` channels: (out, channels, k, k).

    For one channel the sum over colour: a grey image gives what it would give as red = green = blue. For more than
    three, colours repeat, scaled to keep the response's size.
    """
    if channels == weight.shape[1]:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    index = torch.arange(channels) % weight.shape[1]
    return weight[:, index] * (weight.shape[1] / channels)


def resnet8(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns a ResNet-8."""
    return SmallResNet(1, config.width, channels, n_classes)


def resnet14(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns a ResNet-14."""
    return SmallResNet(2, config.width, channels, n_classes)


def resnet20(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns a ResNet-20."""
    return SmallResNet(3, config.width, channels, n_classes)


def resnet18(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns torchvision's ResNet-18; its first layer takes any number of channels."""
    from torchvision import models

    network = models.resnet18(weights=None, num_classes=1000 if config.pretrained else n_classes)
    if config.pretrained:
        network.load_state_dict(torch.load(resnet18_weights(), map_location="cpu", weights_only=True))
        network.fc = nn.Linear(512, n_classes)
    first = network.conv1.weight.detach()
    if config.stem == "small":
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
        # The 3x3 centre of the pretrained 7x7 filters, rescaled to the same response, is a better start than noise.
        centre = first[:, :, 2:5, 2:5]
        first = centre * (first.norm() / centre.norm())
    else:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    if config.pretrained:
        with torch.no_grad():
            network.conv1.weight.copy_(fold_channels(first, channels))
    else:
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return ResNet18(network)


def _initialise(model: nn.Module) -> None:
    """Draws weights as He et al. 2015; each block's last normalisation starts at 0 (Goyal et al. 2017)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, Block):
            nn.init.zeros_(module.norm2.weight)

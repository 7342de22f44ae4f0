"""Networks of torchvision and timm, from scratch or from their ImageNet weights, for any number of channels.

The last linear layer is set apart as `head`, so that its input is the features. To add a network of torchvision, write
its entry in `registries.ARCHITECTURES`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tuning.base.config import TrainConfig
from tuning.base.downloads import check_installed, weights_file
from tuning.base.errors import UserError
from tuning.base.registries import ARCHITECTURES, TIMM


class HeadApart(nn.Module):
    """A network whose last linear layer is apart; its state dict has the names `head.*` and `network.*`.

    Args:
        network: Gives logits (N, n_classes), which come from a linear layer.
        head: Where in the network that layer is, e.g. "fc".
        n_classes: Has a new layer with torch's own initial weights in its place: those of an EfficientNet grow with
            fewer classes (a first loss of 7 with five). None takes the layer as it is.
    """

    def __init__(self, network: nn.Module, head: str, n_classes: int | None = None) -> None:
        super().__init__()
        last: Any = network.get_submodule(head)
        self.head: nn.Linear = last if n_classes is None else nn.Linear(last.in_features, n_classes)
        network.set_submodule(head, nn.Identity())
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, n_classes) and features (N, D) of images (N, C, H, W)."""
        features = self.network(images)
        return self.head(features), features


def torchvision_network(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns torchvision's network of the architecture's name; its first layer takes any number of channels."""
    from torchvision import models

    name = config.architecture
    network: nn.Module = models.get_model(name, weights=None, num_classes=1000 if config.pretrained else n_classes)
    head = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    if config.pretrained:
        network.load_state_dict(_load(name))
    # A new ResNet's last layer is as torch makes one; made again, the weights of a seed would be others than before.
    new_head = config.pretrained or not isinstance(network, models.ResNet)
    apart = HeadApart(network, head, n_classes if new_head else None)
    _replace_first_layer(network, config, channels)
    return apart


def efficientnet_lite(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns timm's EfficientNet-Lite; the weights of the packages fit it in the order of the state dict.

    Raises:
        UserError: timm or the package with the weights is not installed.
    """
    timm = _timm(config.architecture)
    network: nn.Module = timm.create_model(f"tf_{config.architecture}", num_classes=n_classes, in_chans=channels)
    if config.pretrained:
        _load_in_order(network, _load(config.architecture), channels)
    return HeadApart(network, "classifier", n_classes)


def timm_network(config: TrainConfig, channels: int, n_classes: int) -> nn.Module:
    """Returns the network "timm:NAME"; timm fetches its weights and folds the first layer.

    Raises:
        UserError: timm is not installed, the network cannot be built, or does not end in one linear layer.
    """
    timm = _timm(config.architecture)
    name = config.architecture.removeprefix(TIMM)
    options = {"pretrained": config.pretrained, "num_classes": n_classes, "in_chans": channels}
    try:
        network: Any = timm.create_model(name, **options)
        head = network.get_classifier()
    except Exception as error:  # Whatever a network, or the place of its weights, raises.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{config.architecture} cannot be built with {options}: {reason.rstrip('.')}. "
            f"Choose another{', or pretrained: false' if config.pretrained else ''}."
        ) from error
    path = next((path for path, module in network.named_modules() if module is head), None)
    if path is None or not isinstance(head, nn.Linear):
        raise UserError(f"{config.architecture} must end in one linear layer, but ends in {type(head).__name__}.")
    return HeadApart(network, path, n_classes)


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


def _timm(architecture: str) -> Any:
    """Returns the package timm."""
    check_installed(architecture)
    import timm

    return timm


def _load(architecture: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(weights_file(architecture), map_location="cpu", weights_only=True)
    return weights


def _replace_first_layer(network: nn.Module, config: TrainConfig, channels: int) -> None:
    """Has the first convolution take `channels` channels, with the small stem where that is asked for."""
    path, old = next(each for each in network.named_modules() if isinstance(each[1], nn.Conv2d))
    first, n_out = old.weight.detach(), old.out_channels
    if config.stem == "small" and "stem" in ARCHITECTURES[config.architecture].uses:
        new = nn.Conv2d(channels, n_out, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
        # The 3x3 centre of the pretrained 7x7 filters, rescaled to the same response, is a better start than noise.
        centre = first[:, :, 2:5, 2:5]
        first = centre * (first.norm() / centre.norm())
    else:
        shape: dict[str, Any] = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding")}
        new = nn.Conv2d(channels, n_out, **shape, bias=old.bias is not None)
    with torch.no_grad():
        if config.pretrained:
            new.weight.copy_(fold_channels(first, channels))
        else:
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    network.set_submodule(path, new)


def _load_in_order(network: nn.Module, weights: Mapping[str, Tensor], channels: int) -> None:
    """Loads all weights but the classifier's, whose names differ from the network's and whose order does not."""
    own = network.state_dict()
    if len(own) != len(weights):
        raise _unlike(f"{len(own)} tensors and not {len(weights)}")
    for number, (name, value) in enumerate(own.items()):
        given = weights[list(weights)[number]]
        if name.startswith("classifier."):
            continue
        if number == 0:
            given = fold_channels(given, channels)
        if value.shape != given.shape:
            raise _unlike(f"{name} of shape {tuple(value.shape)} and not {tuple(given.shape)}")
        value.copy_(given)


def _unlike(difference: str) -> UserError:
    return UserError(
        f"This version of timm has another EfficientNet-Lite than the pretrained weights: {difference}. "
        "Run `python -m pip install -e '.[photos]' -c tuning/constraints.txt`."
    )

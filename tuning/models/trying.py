"""A network tried on two images before anything is trained with it."""

import torch

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.own_model import is_own
from tuning.base.registries import TIMM
from tuning.models.architectures import build_model, check_head


def check_network(config: TrainConfig, channels: int, n_classes: int, size: tuple[int, int]) -> None:
    """Builds a network and labels two images of this height and width.

    Pretrained weights are loaded only where that shows whether they can be had: those that timm fetches.

    Raises:
        UserError: It cannot be built, it cannot take such images, or its head cannot be trained as it is to be.
    """
    with torch.random.fork_rng(devices=[]):
        fetched = config.architecture.startswith(TIMM)
        model = build_model(config, channels, n_classes, load_pretrained=fetched, size=size).eval()
    side = f"{size[0]} x {size[1]}" if config.image_size is None else f"{config.image_size} x {config.image_size}"
    try:
        with torch.inference_mode():
            logits, features = model(torch.zeros(2, channels, *size))
    except Exception as error:  # Whatever a library's network, or a user's own, raises.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        size_matters = "" if is_own(config.architecture) else " Set image_size."  # `own.py` has tried it at this size.
        raise UserError(
            f"{config.architecture} cannot take images of {side} pixels: {reason.rstrip('.')}.{size_matters}"
        ) from error
    if logits.shape != (2, n_classes) or features.ndim != 2:
        raise UserError(
            f"{config.architecture} must return logits (N, {n_classes}) and features (N, D), but got "
            f"{tuple(logits.shape)} and {tuple(features.shape)}."
        )
    check_head(model, config)

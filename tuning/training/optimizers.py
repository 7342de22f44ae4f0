"""The optimizers. To add one, write a builder like `adamw` and its entry in `registries.OPTIMIZERS`."""

from typing import Any

import torch
from torch import nn

from tuning.base.config import TrainConfig
from tuning.base.registries import OPTIMIZERS
from tuning.models.architectures import head_of

Groups = list[dict[str, Any]]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns the optimizer; weight decay is applied to weights of two and more dimensions only (not biases, norms).

    Frozen weights are left out. The head's groups come first: theirs is the learning rate of the configuration.

    Raises:
        UserError: `OPTIMIZERS` has none of the configuration's name.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    parts: list[tuple[list[nn.Parameter], dict[str, float]]] = [(trained, {})]
    if config.body_lr_factor != 1:
        head = {id(p) for p in head_of(model).parameters()}
        rate = {"lr": config.learning_rate * config.body_lr_factor}
        parts = [([p for p in trained if id(p) in head], {}), ([p for p in trained if id(p) not in head], rate)]
    groups: Groups = []
    for some, own in parts:
        groups.append({"params": [p for p in some if p.ndim > 1], "weight_decay": config.weight_decay, **own})
        groups.append({"params": [p for p in some if p.ndim <= 1], "weight_decay": 0.0, **own})
    optimizer: torch.optim.Optimizer = OPTIMIZERS.load(config.optimizer)(groups, config)
    return optimizer


def sgd(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns SGD; its momentum is Nesterov's."""
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=True)


def adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns AdamW with torch's betas."""
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)

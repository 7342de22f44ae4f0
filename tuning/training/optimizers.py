"""The optimizers. To add one, write a builder like `adamw` and its entry in `registries.OPTIMIZERS`."""

from typing import Any

import torch
from torch import nn

from tuning.base.config import TrainConfig
from tuning.base.registries import OPTIMIZERS

Groups = list[dict[str, Any]]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns the optimizer; weight decay is applied to weights of two and more dimensions only (not biases, norms).

    Raises:
        UserError: `OPTIMIZERS` has none of the configuration's name.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer = OPTIMIZERS.load(config.optimizer)(groups, config)
    return optimizer


def sgd(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns SGD; its momentum is Nesterov's."""
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=True)


def adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns AdamW with torch's betas."""
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)

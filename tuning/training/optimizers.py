"""The optimizers. To add one, write a builder like `adamw` and its entry in `registries.OPTIMIZERS`."""

import inspect
from typing import Any

import torch
from torch import nn

from tuning.base.config import TrainConfig
from tuning.base.registries import OPTIMIZERS
from tuning.models.architectures import head_of
from tuning.training.muon import Muon, groups_of

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


def uncompiled(optimizer: type[torch.optim.Optimizer]) -> Any:
    """Returns a class of torch's with the same methods, less what torch wraps around them for its compiler.

    The first call of a wrapped one imports the compiler, which took 2.5 s of a core in each process that trains
    (torch 2.14).
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


_SGD, _ADAMW, _MUON = (uncompiled(optimizer) for optimizer in (torch.optim.SGD, torch.optim.AdamW, Muon))


def sgd(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns SGD; its momentum is Nesterov's."""
    nesterov = config.momentum > 0
    made: torch.optim.Optimizer = _SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=True
    )
    return made


def adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns AdamW with torch's betas."""
    made: torch.optim.Optimizer = _ADAMW(groups, lr=config.learning_rate, fused=True)
    return made


def muon(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns Muon for weights that are matrices, at a tenth of the learning rate; all others have SGD."""
    made: torch.optim.Optimizer = _MUON(groups_of(groups, config.learning_rate), momentum=config.momentum)
    return made

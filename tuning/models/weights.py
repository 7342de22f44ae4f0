"""Weights that a network takes on, whatever shape its buffers have by now."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict into a network of the same class; its buffers get the shape and type that they had.

    A network of one's own may assign its buffers anew: as a tensor of another shape or type, where there was None, or
    as None, which a state dict leaves out. Those of torch's own modules are never None.

    Raises:
        RuntimeError: The weights are of another network.
    """
    modules, weights = dict(network.named_modules()), dict(network.named_parameters(remove_duplicate=False))
    device = next((value.device for value in weights.values()), torch.device("cpu"))
    for key in network.state_dict().keys() - weights.keys() - state.keys():
        path, _, name = key.rpartition(".")
        if not type(modules[path]).__module__.startswith("torch."):
            setattr(modules[path], name, None)
    for key in state.keys() - weights.keys():
        path, _, name = key.rpartition(".")
        now, then = getattr(modules.get(path), name, state), state[key]
        if now is None or (isinstance(now, Tensor) and (now.shape, now.dtype) != (then.shape, then.dtype)):
            setattr(modules[path], name, torch.empty_like(then, device=device if now is None else now.device))
    network.load_state_dict(state)

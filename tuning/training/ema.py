"""The exponential moving average (EMA) of a model's weights."""

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class RunningMean:
    """The exponential moving average of a model's weights and buffers; the first steps weigh more.

    Buffers of which there is no mean are copied: integers, booleans, and those that begin with a value that is not
    finite, as a mask of -inf. torch's `AveragedModel` would do, but for its step count on the device, and its averaging
    of these.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = copy.deepcopy(model)
        self.decay = decay
        self.n_steps = 0
        # Tied weights have several names, and are averaged once.
        weights = zip(self._model.parameters(), model.parameters(), strict=True)
        self._weights = [(mean.detach(), value.detach()) for mean, value in weights if _has_mean(value)]
        # Looked up each time: a network may assign a buffer anew, as `self.count = self.count + 1` does.
        self._averaged: list[tuple[Tensor, nn.Module, str]] = []
        self._copied: list[tuple[nn.Module, nn.Module, str]] = []
        for own, theirs in zip(self._model.modules(), model.modules(), strict=True):
            for name, value in theirs.named_buffers(recurse=False, remove_duplicate=False):
                if _has_mean(value):
                    mean = value.detach().clone()  # Of its own, should it be tied.
                    setattr(own, name, mean)
                    self._averaged.append((mean, theirs, name))
                else:
                    self._copied.append((own, theirs, name))

    @property
    def model(self) -> nn.Module:
        """The model with the mean weights, and with the buffers that are copied as they are now."""
        for own, theirs, name in self._copied:
            setattr(own, name, getattr(theirs, name).detach().clone())
        return self._model

    def update(self) -> None:
        """Takes the model's present weights into the mean."""
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        buffers = ((mean, getattr(theirs, name)) for mean, theirs, name in self._averaged)
        means, values = zip(*self._weights, *buffers, strict=True)
        get_ema_multi_avg_fn(decay)(means, values, self.n_steps)


def _has_mean(value: Tensor) -> bool:
    return value.is_floating_point() and bool(torch.isfinite(value).all())

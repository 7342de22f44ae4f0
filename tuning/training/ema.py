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
        means, values = (each.state_dict(keep_vars=True).values() for each in (self._model, model))
        # Tied weights have several names, and are averaged once.
        pairs = {id(value): (mean.detach(), value.detach()) for mean, value in zip(means, values, strict=True)}
        has_mean = {key: value.is_floating_point() and _is_finite(value) for key, (_, value) in pairs.items()}
        self._pairs = [pair for key, pair in pairs.items() if has_mean[key]]
        self._copied = [pair for key, pair in pairs.items() if not has_mean[key]]

    @property
    def model(self) -> nn.Module:
        """The model with the mean weights, and with the buffers that are copied as they are now."""
        for mean, value in self._copied:
            mean.copy_(value)
        return self._model

    def update(self) -> None:
        """Takes the model's present weights into the mean."""
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        means, values = zip(*self._pairs, strict=True)
        get_ema_multi_avg_fn(decay)(means, values, self.n_steps)


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())

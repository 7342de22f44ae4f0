"""The exponential moving average (EMA) of a model's weights."""

import copy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class RunningMean:
    """The exponential moving average of a model's weights and buffers; the first steps weigh more.

    torch's `AveragedModel` would do, but for its step count on the device, and its averaging of integer buffers.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay
        self.n_steps = 0
        self._pairs = [
            (mean, value)
            for mean, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
            if value.is_floating_point()
        ]

    def update(self) -> None:
        """Takes the model's present weights into the mean."""
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        means, values = zip(*self._pairs, strict=True)
        get_ema_multi_avg_fn(decay)(means, values, self.n_steps)

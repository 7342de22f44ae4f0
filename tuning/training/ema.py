"""The exponential moving average (EMA) of a model's weights."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tuning.models.weights import load_weights


@dataclass
class _Buffer:
    """A buffer of the averaged model, which is looked up each time: a network may assign it anew.

    Attributes:
        own: The averaged model's module that has it.
        theirs: The model's module that has it.
        name: What both call it.
        mean: Its mean so far, of its own, should it be tied; None where it is copied.
    """

    own: nn.Module
    theirs: nn.Module
    name: str
    mean: Tensor | None


class RunningMean:
    """The exponential moving average of a model's weights and buffers; the first steps weigh more.

    What has no mean is copied: integers, booleans, what begins with a value that is not finite, as a mask of -inf, what
    a state dict leaves out, and buffers that change their shape. torch's `AveragedModel` would do, but for its step
    count on the device, and its averaging of these.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._trained = copy.deepcopy(model), model
        self.decay = decay
        self.n_steps = 0
        # Tied weights have several names, and are averaged once.
        pairs = zip(self._model.parameters(), model.parameters(), strict=True)
        weights = [(mean.detach(), value.detach()) for mean, value in pairs]
        self._weights = [pair for pair in weights if _has_mean(pair[1])]
        self._copied = [pair for pair in weights if not _has_mean(pair[1])]
        kept = model.state_dict().keys()
        self._buffers = [
            _Buffer(own, theirs, name, _begun(value) if _joined(path, name) in kept else None)
            for own, (path, theirs) in zip(self._model.modules(), model.named_modules(), strict=True)
            for name, value in theirs.named_buffers(recurse=False, remove_duplicate=False)
        ]

    @property
    def model(self) -> nn.Module:
        """The model with the mean weights and buffers, and with what is copied as it is now."""
        for own, value in self._copied:
            own.copy_(value)
        known = {(each.own, each.name) for each in self._buffers}
        for each in [*self._buffers, *(late for late in self._late() if (late.own, late.name) not in known)]:
            value = getattr(each.theirs, each.name) if each.mean is None else each.mean
            setattr(each.own, each.name, None if value is None else value.detach().clone())
        return self._model

    def _late(self) -> Iterator[_Buffer]:
        """Yields the buffers that the model has now, to be copied: those that began as None are among them."""
        for own, theirs in zip(self._model.modules(), self._trained.modules(), strict=True):
            for name, _ in theirs.named_buffers(recurse=False, remove_duplicate=False):
                yield _Buffer(own, theirs, name, None)

    def update(self) -> None:
        """Takes the model's present weights into the mean."""
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        pairs = list(self._weights)
        for each in self._buffers:
            if each.mean is not None:
                value = getattr(each.theirs, each.name)
                if value is None or value.shape != each.mean.shape:
                    each.mean = None
                else:
                    pairs.append((each.mean, value.detach().to(each.mean)))
        get_ema_multi_avg_fn(decay)(*zip(*pairs, strict=True), self.n_steps)

    def load_state_dict(self, state: Mapping[str, Tensor], n_steps: int) -> None:
        """Goes on from the state of a model that `model` gave after so many steps."""
        load_weights(self._model, state)
        self.n_steps = n_steps
        for each in self._buffers:
            if each.mean is not None:
                value = getattr(each.own, each.name)
                fits = value is not None and value.shape == each.mean.shape
                each.mean = value.detach().clone() if fits else None


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _begun(value: Tensor | None) -> Tensor | None:
    """Returns the mean of a buffer at first; None where it has none."""
    return None if value is None or not _has_mean(value) else value.detach().clone()


def _has_mean(value: Tensor) -> bool:
    return value.is_floating_point() and bool(torch.isfinite(value).all())

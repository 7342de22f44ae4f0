"""`Norm`: batch normalisation with the addition and the ReLU behind it, on a CPU core in two passes over its numbers.

Between its convolutions a small ResNet only waits for memory. torch reads an activation five times there and writes it
twice or three times; `kernels.c` reads it two or three times and writes it once; and backward likewise.
"""

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tuning.models import kernels

WIDTH = 256  # Numbers in an inner loop, where there are fewer channels.
MOST_CHANNELS = 4096  # So that what it keeps for each is far from a stack's size.


class Norm(nn.BatchNorm2d):
    """torch's `BatchNorm2d`, and what may follow it: (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """Returns relu(normalised x + residual), without the addition or the ReLU where that is not asked for."""
        library = self._library(x, residual)
        if library is not None:
            if self.training and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            result: Tensor = _Fused.apply(library, self, x, residual, self.weight, self.bias, relu)
            return result
        y = super().forward(x)
        y = y if residual is None else y + residual
        return functional.relu(y, inplace=True) if relu else y

    def _library(self, x: Tensor, residual: Tensor | None) -> ctypes.CDLL | None:
        """Returns the kernels that can do it, or None."""
        if not kernels.suit(x) or (torch.is_grad_enabled() and not self.training):
            return None
        own = (self.weight, self.bias, self.running_mean, self.running_var)
        if self.momentum is None or not all(map(functools.partial(_for_each_channel, x.shape[1]), own)):
            return None
        others = [] if residual is None else [residual]
        whole = all(one.is_contiguous(memory_format=torch.channels_last) for one in [x, *others])
        alike = all((one.dtype, one.shape) == (x.dtype, x.shape) for one in others)
        usual = x.numel() // x.shape[1] > 1 and x.shape[1] <= MOST_CHANNELS
        return kernels.trusted(x.dtype, deviation) if whole and alike and usual else None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        library: ctypes.CDLL,
        norm: nn.BatchNorm2d,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        relu: bool,
    ) -> Tensor:
        y, mean, inverse = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        library.norm_forward(
            *kernels.pointers(x, residual, y),
            *_sizes(x),
            *kernels.pointers(weight, bias, mean, inverse, norm.running_mean, norm.running_var),
            ctypes.c_float(norm.momentum),  # type: ignore[arg-type]  # None is for torch.
            ctypes.c_float(norm.eps),
            int(relu),
            int(norm.training),
        )
        context.library, context.relu, context.residual = library, relu, residual is not None
        context.save_for_backward(x, y if relu and context.residual else None, weight, bias, mean, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias, mean, inverse = context.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        grad_residual = None if y is None else torch.empty_like(x)
        context.library.norm_backward(
            *kernels.pointers(x, y, gradient, grad_x, grad_residual),
            *_sizes(x),
            *kernels.pointers(weight, bias, mean, inverse, grad_weight, grad_bias),
            int(context.relu),
        )
        if context.residual and grad_residual is None:
            grad_residual = gradient
        return None, None, grad_x, grad_residual, grad_weight, grad_bias, None


def _for_each_channel(channels: int, one: Tensor | None) -> bool:
    return one is not None and one.dtype == torch.float32 and one.shape == (channels,) and one.is_contiguous()


def _sizes(x: Tensor) -> list[ctypes.c_long]:
    """Returns the numbers in `x`, its channels, and how many numbers an inner loop takes."""
    n, channels = x.numel(), x.shape[1]
    rows = math.gcd(n // channels, 2 ** max(0, (WIDTH // channels).bit_length() - 1))
    return kernels.longs(n, channels, rows * channels)


def deviation(library: ctypes.CDLL, dtype: torch.dtype) -> float:
    """Returns by how much `Norm` differs from torch's own, with these kernels; see `kernels.trusted`."""
    generator = torch.Generator().manual_seed(0)

    def results(norm: nn.BatchNorm2d, function: Callable[..., Tensor], residual: bool, relu: bool) -> list[Tensor]:
        x, other, gradient = torch.randn(3, 6, 16, 5, 5, generator=generator.manual_seed(0)).to(dtype).add(0.5).unbind()
        x, other = (one.to(memory_format=torch.channels_last).requires_grad_() for one in (x, other))
        y = function(x, other if residual else None, relu)
        y.backward(gradient.to(memory_format=torch.channels_last))
        norm.eval()
        with torch.no_grad():
            evaluated = function(x, other if residual else None, relu)
        found = [y, evaluated, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
        return [one for one in [*found, *([other.grad] if residual else [])] if one is not None]

    all_own, all_theirs = [], []
    for residual, relu in ((False, False), (False, True), (True, False), (True, True)):
        own, theirs = Norm(16), nn.BatchNorm2d(16)

        def plain(x: Tensor, other: Tensor | None, relu: bool, norm: nn.BatchNorm2d = theirs) -> Tensor:
            y = norm(x).float() + (0 if other is None else other.float())
            return (functional.relu(y) if relu else y).to(dtype)

        def fused(x: Tensor, other: Tensor | None, relu: bool, norm: nn.BatchNorm2d = own) -> Tensor:
            y: Tensor = _Fused.apply(library, norm, x, other, norm.weight, norm.bias, relu)
            return y

        all_own += results(own, fused, residual, relu)
        all_theirs += results(theirs, plain, residual, relu)
    return kernels.largest(all_own, all_theirs)

"""`convolve_both`: the two convolutions of stride 2 that a block begins with where the images get smaller.

The shortcut's 1x1 convolution reads one number in four. On a CPU core these are taken out first, and its gradient is
added to the 3x3 convolution's where they were. torch goes through all of them, and adds up two whole gradients.
"""

import ctypes
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tuning.models import kernels

LEAST_SAFE_CHANNELS = 16


def convolve_both(x: Tensor, convolution: nn.Module, shortcut: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns two convolutions of stride 2 of `x` (N, C, H, W), a 3x3 and a 1x1 one: twice (N, filters, H/2, W/2).

    Hooks of the two layers are called only where torch does it.
    """
    if x.requires_grad and x.is_contiguous(memory_format=torch.channels_last) and kernels.suit(x):
        weight, short = _weight(x, convolution, 3), _weight(x, shortcut, 1)
        ours = weight is not None and short is not None
        library = kernels.trusted(x.dtype, deviation) if ours else None
        if library is not None:
            results: tuple[Tensor, Tensor] = _Both.apply(library, x, weight, short)
            return results
    if _is_unsafe(shortcut, x):
        second = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
        return convolution(x), torch.conv2d(second, shortcut.weight)
    return convolution(x), shortcut(x)


def _is_unsafe(shortcut: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    """Returns whether a 1x1 convolution must not be trained with stride 2.

    On several threads oneDNN writes beyond the gradient of such a weight if it has fewer than 16 input channels (torch
    2.14.1, in fp32 and bf16, channels last), and the process dies a moment later. From 16 on, striding is quicker.
    """
    few = isinstance(shortcut, nn.Conv2d) and shortcut.in_channels < LEAST_SAFE_CHANNELS and _is_ours(shortcut, 1)
    return few and x.device.type == "cpu" and torch.get_num_threads() > 1


def _is_ours(layer: nn.Module, size: int) -> bool:
    """Returns whether a layer is a convolution of stride 2 as `architectures` makes it, in training."""
    if type(layer) is not nn.Conv2d or not layer.training or layer.bias is not None:
        return False
    ours = (size, size), (2, 2), (size // 2, size // 2), (1, 1), 1, "zeros"
    return (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode) == ours


def _weight(x: Tensor, layer: nn.Module, size: int) -> Tensor | None:
    """Returns a layer's weight in the type of `x`, or None where the layer is another than ours or not in training."""
    if not isinstance(layer, nn.Conv2d) or not _is_ours(layer, size):
        return None
    cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if cast else layer.weight.dtype
    return layer.weight.to(dtype) if dtype == x.dtype else None


class _Both(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, library: ctypes.CDLL, x: Tensor, weight: Tensor, shortcut: Tensor
    ) -> tuple[Tensor, Tensor]:
        n, channels, height, width = x.shape
        size = (n, channels, (height + 1) // 2, (width + 1) // 2)
        second = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        context.library, context.sizes = library, kernels.longs(n, height, width, channels)
        library.every_second(*kernels.pointers(x, second), *context.sizes, 0)
        context.save_for_backward(x, second, weight, shortcut)
        return torch.conv2d(x, weight, stride=2, padding=1), torch.conv2d(second, shortcut)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, second, weight, shortcut = context.saved_tensors
        grad_x, grad_weight = _backward(gradients[0], x, weight, stride=2, padding=1)
        grad_second, grad_shortcut = _backward(gradients[1], second, shortcut, stride=1, padding=0)
        context.library.every_second(*kernels.pointers(grad_x, grad_second), *context.sizes, 1)
        return None, grad_x, grad_weight, grad_shortcut


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """Returns the gradients of a convolution by its input, channels last, and by its weights."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return grad_x.contiguous(memory_format=torch.channels_last), grad_weight


def deviation(library: ctypes.CDLL, dtype: torch.dtype) -> float:
    """Returns by how much `convolve_both` differs from torch's own, with these kernels; see `kernels.trusted`."""
    shapes = (3, 16, 5, 6), (32, 16, 3, 3), (32, 16, 1, 1), (3, 32, 3, 3), (3, 32, 3, 3)
    found = []
    for own in (True, False):
        generator = torch.Generator().manual_seed(0)
        numbers = [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]
        x, weight, shortcut = (one.to(memory_format=torch.channels_last).requires_grad_() for one in numbers[:3])
        if own:
            y = _Both.apply(library, x, weight, shortcut)
        else:
            y = torch.conv2d(x, weight, stride=2, padding=1), torch.conv2d(x, shortcut, stride=2)
        torch.autograd.backward(y, numbers[3:])
        found.append([*y, x.grad, weight.grad, shortcut.grad])
    return kernels.largest(*found)

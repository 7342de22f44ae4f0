"""`Norm`: batch normalisation with the addition and the ReLU behind it, on a CPU core in two passes over its numbers.

Between its convolutions a small ResNet only waits for memory. torch reads an activation five times there and writes it
twice or three times, `norm.c` reads it two or three times and writes it once; and backward likewise. The system's C
compiler makes it once, into the user's cache. Where there is none, where what it makes gives other numbers than torch,
with several threads or on a GPU, torch's own operations do it.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tuning import machine
from tuning.fetch import cache_dir

SOURCE = Path(__file__).with_name("norm.c")
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
NATIVE = ("-march=native", "-mprefer-vector-width=512") if platform.machine() == "x86_64" else ("-mcpu=native",)
DEFINES = {torch.bfloat16: ("-DBF16",), torch.float32: ()}
WIDTH = 256  # Numbers in an inner loop, where there are fewer channels.
MOST_CHANNELS = 4096  # So that what it keeps for each is far from a stack's size.
COMPILE_SECONDS = 60
# Of the largest number of each result, where torch's own differ by rounding.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}


class Norm(nn.BatchNorm2d):
    """torch's `BatchNorm2d`, and what may follow it: (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, x: Tensor, added: Tensor | None = None, *, rectified: bool = False) -> Tensor:
        """Returns relu(normalised x + added), without the addition or the ReLU where that is not asked for."""
        kernels = self._kernels(x, added)
        if kernels is not None:
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            result: Tensor = _Fused.apply(kernels, self, x, added, self.weight, self.bias, rectified)
            return result
        y = super().forward(x)
        y = y if added is None else y + added
        return functional.relu(y, inplace=True) if rectified else y

    def _kernels(self, x: Tensor, added: Tensor | None) -> ctypes.CDLL | None:
        """Returns the kernels that can do it, or None."""
        if not self.training or x.device.type != "cpu" or torch.get_num_threads() > 1 or x.dtype not in DEFINES:
            return None
        others = [] if added is None else [added]
        whole = all(one.is_contiguous(memory_format=torch.channels_last) for one in [x, *others])
        alike = all((one.dtype, one.shape) == (x.dtype, x.shape) for one in others)
        usual = x.numel() // x.shape[1] > 1 and x.shape[1] <= MOST_CHANNELS
        return compiled(x.dtype) if whole and alike and usual else None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        kernels: ctypes.CDLL,
        norm: nn.BatchNorm2d,
        x: Tensor,
        added: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        rectified: bool,
    ) -> Tensor:
        y, mean, inverse = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        kernels.forward(
            *_pointers(x, added, y),
            *_sizes(x),
            *_pointers(weight, bias, mean, inverse, norm.running_mean, norm.running_var),
            ctypes.c_float(norm.momentum),  # type: ignore[arg-type]  # Of a `Norm` it is a number.
            ctypes.c_float(norm.eps),
            int(rectified),
        )
        context.save_for_backward(x, y if rectified else None, weight, mean, inverse)
        context.kernels, context.added = kernels, added is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, inverse = context.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        by_x, by_weight, by_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        by_added = torch.empty_like(x) if context.added and y is not None else None
        context.kernels.backward(
            *_pointers(x, y, gradient, by_x, by_added),
            *_sizes(x),
            *_pointers(weight, mean, inverse, by_weight, by_bias),
        )
        if context.added and by_added is None:
            by_added = gradient
        return None, None, by_x, by_added, by_weight, by_bias, None


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def _sizes(x: Tensor) -> list[ctypes.c_long]:
    """Returns the numbers in `x`, its channels, and how many numbers an inner loop takes."""
    n, channels = x.numel(), x.shape[1]
    rows = math.gcd(n // channels, 2 ** max(0, (WIDTH // channels).bit_length() - 1))
    return [ctypes.c_long(one) for one in (n, channels, rows * channels)]


@functools.cache
def compiled(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Returns the kernels for a type of numbers, or None where they cannot be had, with a warning if they should."""
    compiler = next(
        (found for name in (os.environ.get("CC", "cc"), "gcc", "clang") if (found := shutil.which(name))), ""
    )
    if not compiler:
        return None
    try:
        kernels = ctypes.CDLL(str(_library(compiler, dtype)))
        if not (deviation := _deviation(kernels, dtype)) <= TOLERANCE[dtype]:
            raise RuntimeError(f"its results differ by {deviation:.2g}")
    except Exception as error:  # Whatever compiler, disk or loader raises: it runs as well without.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"{SOURCE.name} could not be used, and training is slower for it: {reason}", stacklevel=2)
        return None
    return kernels


def _library(compiler: str, dtype: torch.dtype) -> Path:
    """Returns the compiled file, which is made where the cache has none for this source, compiler and processor."""
    command = [compiler, *FLAGS, *NATIVE, *DEFINES[dtype]]
    made_of = f"{SOURCE.read_text()}{command}{machine.instruction_set()}"
    path = cache_dir("kernels") / f"{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # Another worker may be making it, too.
            new = Path(folder, path.name)
            done = subprocess.run(
                [*command, "-o", str(new), str(SOURCE), "-lm"],
                capture_output=True,
                text=True,
                check=False,
                timeout=COMPILE_SECONDS,
            )
            if done.returncode:
                raise RuntimeError(f"{compiler} says {done.stderr.strip()}")
            new.replace(path)
    return path


def _deviation(kernels: ctypes.CDLL, dtype: torch.dtype) -> float:
    """Returns by how much the kernels' results differ from torch's, as a share of the largest number of each."""
    generator = torch.Generator().manual_seed(0)

    def results(norm: nn.BatchNorm2d, function: Callable[..., Tensor], added: bool, rectified: bool) -> list[Tensor]:
        x, other, gradient = torch.randn(3, 6, 16, 5, 5, generator=generator.manual_seed(0)).to(dtype).add(0.5).unbind()
        x, other = (one.to(memory_format=torch.channels_last).requires_grad_() for one in (x, other))
        y = function(x, other if added else None, rectified)
        y.backward(gradient.to(memory_format=torch.channels_last))
        found = [y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
        return [one.detach().float() for one in [*found, *([other.grad] if added else [])] if one is not None]

    worst = 0.0
    for added, rectified in ((False, False), (False, True), (True, False), (True, True)):
        own, theirs = Norm(16), nn.BatchNorm2d(16)

        def plain(x: Tensor, other: Tensor | None, rectified: bool, norm: nn.BatchNorm2d = theirs) -> Tensor:
            y = norm(x).float() + (0 if other is None else other.float())
            return (functional.relu(y) if rectified else y).to(dtype)

        def fused(x: Tensor, other: Tensor | None, rectified: bool, norm: nn.BatchNorm2d = own) -> Tensor:
            y: Tensor = _Fused.apply(kernels, norm, x, other, norm.weight, norm.bias, rectified)
            return y

        for one, other in zip(
            results(own, fused, added, rectified), results(theirs, plain, added, rectified), strict=True
        ):
            worst = max(worst, float((one - other).abs().max() / other.abs().max()))
    return worst

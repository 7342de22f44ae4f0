"""`trusted`: the C code of `kernels.c`, for what makes a small ResNet wait for memory when it trains on one core.

The system's C compiler makes it once, into the user's cache. Where there is none, where what it makes gives other
numbers than torch, with several threads or on a GPU, torch's own operations do it: `norm.py` and `shortcut.py` call the
one or the other.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tuning.base import machine
from tuning.base.files import cache_dir

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
NATIVE = ("-march=native", "-mprefer-vector-width=512") if platform.machine() == "x86_64" else ("-mcpu=native",)
DEFINES = {torch.bfloat16: ("-DBF16",), torch.float32: ()}
COMPILE_SECONDS = 60
# Of the largest number of each result, where torch's own differ by rounding.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}


def suit(x: Tensor) -> bool:
    """Returns whether there may be kernels for a tensor, here; not where torch only records what is done to it."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    there = type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype in DEFINES
    return there and torch.get_num_threads() == 1 and not recorded


@functools.cache
def trusted(dtype: torch.dtype, deviation: Callable[[ctypes.CDLL, torch.dtype], float]) -> ctypes.CDLL | None:
    """Returns the kernels for a type of numbers, or None where they cannot be had, with a warning if they should.

    Args:
        dtype: One of `DEFINES`.
        deviation: Tries those that its caller needs: the most by which a result differs from torch's, as `largest`.
    """
    compiler = next(
        (found for name in (os.environ.get("CC", "cc"), "gcc", "clang") if (found := shutil.which(name))), ""
    )
    if not compiler:
        return None
    try:
        kernels = ctypes.CDLL(str(_library(compiler, dtype)))
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            off = deviation(kernels, dtype)
        if not off <= TOLERANCE[dtype]:
            raise RuntimeError(f"its results differ by {off:.2g}")
    except Exception as error:  # Whatever compiler, disk or loader raises: it runs as well without.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"{SOURCE.name} could not be used, and training is slower for it: {reason}", stacklevel=2)
        return None
    return kernels


def largest(own: list[Tensor], theirs: list[Tensor]) -> float:
    """Returns the largest difference of two lists of results, as a share of the largest number of each, or nan."""
    pairs = [(one.detach().float(), other.detach().float()) for one, other in zip(own, theirs, strict=True)]
    return float(torch.stack([(one - other).abs().max() / other.abs().max() for one, other in pairs]).max())


def pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Returns tensors as the kernels take them."""
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def longs(*numbers: int) -> list[ctypes.c_long]:
    """Returns whole numbers as the kernels take them."""
    return [ctypes.c_long(number) for number in numbers]


def _library(compiler: str, dtype: torch.dtype) -> Path:
    """Returns the compiled file, which is made where the cache has none for this source, compiler and processor."""
    command = [compiler, *FLAGS, *NATIVE, *DEFINES[dtype]]
    version = Path(compiler).resolve()
    made_of = (
        f"{SOURCE.read_text(encoding='utf-8')}{command}{version}{version.stat().st_mtime_ns}{machine.instruction_set()}"
    )
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
            with new.open("rb") as made:
                os.fsync(made.fileno())  # What a power cut left of it would end the process that loads it.
            new.replace(path)
    return path

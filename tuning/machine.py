"""What this machine has: cores and GPUs, how many trials fit side by side, and what a run's `meta.json` says of it."""

import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuning.errors import UserError, unknown_name

GPU_BYTES_FOR_A_TRIAL = 8 << 30
GPU_ROOM = 0.9  # Of a GPU's memory is for tensors; the rest is for what CUDA keeps for each process.
# Of NVIDIA, WSL, Jetson, AMD. torch takes two seconds to say that there is no GPU; an error must not wait for that.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")


def plan_slots(
    device: str | None,
    cpus_per_trial: float | None,
    gpus_per_trial: float | None,
    concurrency: int | None,
    trials_a_gpu: int | None = None,
) -> dict[str, Any]:
    """Returns device, concurrency and resources a trial, from what the machine has and what was asked for.

    On a CPU: a trial a core with one thread, because one trial a core beats two cores a trial. On GPUs: as many trials
    a GPU as a dry run found to pay (`trials_a_gpu`); where there was none, as many as cores and memory (8 GiB a trial)
    allow, at most 4. With `concurrency` alone, each of so many gets an equal share of a GPU.

    Raises:
        UserError: More CPUs or GPUs are asked for than there are, or no trial would fit.
    """
    n_cpus = cores()
    if device not in (None, "cpu", "cuda"):
        raise unknown_name("--device", device, ["cpu", "cuda"])
    cpus = cpus_per_trial or 1.0
    if cpus > n_cpus:
        raise UserError(f"--cpus-per-trial must be at most {n_cpus}, the cores of this machine, but got {cpus:g}.")
    gpus = [] if device == "cpu" else gpu_memory()
    device = device or ("cuda" if gpus else "cpu")
    wanted_gpus = gpus_per_trial or 0.0
    if device == "cuda" and not gpus:
        raise UserError("--device must be 'cpu' on a machine without a GPU that torch can use, but got 'cuda'.")
    if wanted_gpus > (len(gpus) if device == "cuda" else 0):
        raise UserError(f"--gpus-per-trial must be at most {len(gpus)}, the GPUs to be used, but got {wanted_gpus:g}.")
    slots = int(n_cpus / cpus)
    if device == "cuda":
        if gpus_per_trial is None:
            side_by_side = trials_a_gpu or min(4, max(1, min(gpus) // GPU_BYTES_FOR_A_TRIAL))
            if concurrency is not None:
                side_by_side = math.ceil(concurrency / len(gpus))
            wanted_gpus = 1 / max(1, min(side_by_side, slots // len(gpus)))
        if wanted_gpus > 0:
            slots = min(slots, int(len(gpus) / wanted_gpus + 1e-6))
    if concurrency is not None:
        if not 1 <= concurrency <= slots:
            raise UserError(f"--concurrency must be between 1 and {slots} on this machine, but got {concurrency}.")
        slots = concurrency
    return {"device": device, "concurrency": slots, "cpus_per_trial": cpus, "gpus_per_trial": wanted_gpus}


def cores() -> int:
    """Returns the number of cores that this process may use: its affinity and its container's quota count."""
    from joblib import cpu_count

    return int(cpu_count())


def gpu_memory() -> list[int]:
    """Returns the bytes of memory of each GPU that torch can use; imports torch only where a driver has a device."""
    if sys.platform != "win32" and not any(Path(device).exists() for device in GPU_DEVICES):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]


def limit_gpu_memory(share: float) -> None:
    """Keeps this process to its share of its GPU's memory, in (0, 1], so that it cannot starve those beside it."""
    import torch

    torch.cuda.set_per_process_memory_fraction(GPU_ROOM * share)


def cpus_in_use(slots: Mapping[str, Any]) -> int:
    """Returns the cores that all slots together take; `slots` as `plan_slots` gives them."""
    n_cpus: int = max(1, round(slots["concurrency"] * slots["cpus_per_trial"]))
    return n_cpus


# Huge pages; and what is freed is kept for the next step instead of given back, up to 1 GB. glibc's own threshold grows
# to 32 MB with what is freed, but only where none of these is set.
_MALLOC = {"hugetlb": 1, "mmap_threshold": 32 * 2**20, "trim_threshold": 2**30}


def tune_malloc() -> None:
    """Has processes that are started from here on allocate for training; those that run, this one too, cannot any more.

    A step's activations are tens of megabytes, read and written once an operation. Where the kernel gives huge pages
    to those who ask (`madvise`, as many distributions set it), a ResNet-8 trains 1.13 to 1.31 times as fast (three
    rounds, both cores of a Xeon with AMX busy). Elsewhere, and without glibc 2.35, it does nothing.
    """
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in _MALLOC.items())
    os.environ.setdefault("GLIBC_TUNABLES", tunables)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide the numbers."""
    from importlib.metadata import version
    from platform import python_version

    names = ("torch", "torchvision", "ray", "optuna", "numpy", "pandas")
    return {"python": python_version()} | {name: version(name) for name in names}


def hardware() -> dict[str, Any]:
    """Returns the names of processor and GPUs, and the number of cores."""
    import platform

    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = re.findall(r"model name\s*: (.*)", info.read_text())
        cpu = names[0] if names else cpu
    gpus = []
    if gpu_memory():
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu, "cores": cores(), "gpus": gpus}


def instruction_set() -> str:
    """Returns a text that differs where code made for this very processor may not run."""
    import platform

    info = Path("/proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*: (.*)", info.read_text(), re.MULTILINE) if info.exists() else None
    return f"{platform.machine()} {found[1] if found else platform.processor()}"


def git_commit() -> str | None:
    """Returns the commit of the project's checkout; None for an installed package, and where git is missing.

    A package may be installed below a checkout of another project, whose commit says nothing about this code.
    """
    import subprocess

    file = Path(__file__)
    try:
        tracked = ["git", "ls-files", "--error-unmatch", file.name]
        if subprocess.run(tracked, cwd=file.parent, capture_output=True, check=False).returncode != 0:
            return None
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, cwd=file.parent, capture_output=True, encoding="utf-8", check=False)
    except OSError:
        return None
    return done.stdout.strip() or None

"""What this machine has: cores, GPUs and their memory, and what a run's `meta.json` says of it."""

import math
import os
import re
import sys
from pathlib import Path
from typing import Any

GPU_ROOM = 0.9  # Of a GPU's memory is for tensors; the rest is for what CUDA keeps for each process.
# Of NVIDIA, WSL, Jetson, AMD. torch takes two seconds to say that there is no GPU; an error must not wait for that.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")


def cores() -> int:
    """Returns the number of whole cores that this process may use: its affinity and its CPU quota count; at least 1.

    A quota of 1.5 cores is one core: two trials would each wait a quarter of the time. joblib, which knows the
    affinity, rounds a quota up, and knows only that of a container's root.
    """
    from joblib import cpu_count

    quota = min(cpu_quota(), float(sys.maxsize))
    return max(1, min(int(cpu_count()), math.floor(quota + 1e-6)))


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns the cores that the control groups of this process, of version 1 or 2, allow it; inf without a limit.

    Args:
        groups: Names the process's groups.
        root: Where the groups' files are.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    least = math.inf
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers and (root / "cpu").exists() else root / controllers
        # A container sees its own group as the root, whatever name stands here.
        own = top / group.strip("/")
        for folder in (own, *own.parents):
            least = min(least, _quota_of(folder))
            if folder == top:
                break
    return least


def _quota_of(group: Path) -> float:
    """Returns the cores that a control group's own files allow; inf without a limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # Not there, or not to be read: then nothing is known of a limit.
        return math.inf


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
        names = re.findall(r"model name\s*: (.*)", info.read_text(encoding="utf-8", errors="replace"))
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
    found = (
        re.search(r"^(?:flags|Features)\s*: (.*)", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if info.exists()
        else None
    )
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

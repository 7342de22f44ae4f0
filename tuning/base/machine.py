"""What this machine has: cores and GPUs, how many trials fit side by side, and what a run's `meta.json` says of it."""

import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuning.base.errors import UserError, unknown_name

RAY_UNITS = 10_000  # Ray counts CPUs and GPUs in parts of one.
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
    asked = 1.0 if cpus_per_trial is None else cpus_per_trial
    cpus = representable(asked)
    if not asked <= n_cpus:  # NaN, too.
        raise UserError(f"--cpus-per-trial must be at most {n_cpus}, the cores of this machine, but got {asked:g}.")
    if cpus <= 0:
        raise UserError(f"--cpus-per-trial must be at least {1 / RAY_UNITS}, but got {asked:g}.")
    gpus = [] if device == "cpu" else gpu_memory()
    device = device or ("cuda" if gpus else "cpu")
    if device == "cuda" and not gpus:
        raise UserError("--device must be 'cpu' on a machine without a GPU that torch can use, but got 'cuda'.")
    n_gpus = len(gpus) if device == "cuda" else 0
    wanted_gpus = check_gpus(gpus_per_trial or 0.0, n_gpus, "the GPUs to be used")
    if device == "cuda" and gpus_per_trial is None:
        side_by_side = trials_a_gpu or min(4, max(1, min(gpus) // GPU_BYTES_FOR_A_TRIAL))
        if concurrency is not None:
            side_by_side = math.ceil(concurrency / n_gpus)
        wanted_gpus = representable(1 / max(1, min(side_by_side, n_fitting(n_cpus, 0, cpus, 0.0) // n_gpus)))
    slots = n_fitting(n_cpus, n_gpus, cpus, wanted_gpus)
    if concurrency is not None:
        if not 1 <= concurrency <= slots:
            raise UserError(f"--concurrency must be between 1 and {slots} on this machine, but got {concurrency}.")
        slots = concurrency
    return {"device": device, "concurrency": slots, "cpus_per_trial": cpus, "gpus_per_trial": wanted_gpus}


def replan(settings: Any, before: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """Returns the slots of a run that is resumed on this machine, and a sentence that says what changed, if anything.

    What the run had is kept where this machine has it. A GPU that is not here gives way to the CPU; trials that took
    more than there is take what there is. A run that filled its machine fills this one, too. It never raises.

    Args:
        settings: The run's, of which device, concurrency, CPUs and GPUs a trial are read.
        before: What `hardware` said of the machine where the run was begun, from its `meta.json`.
    """
    n_cpus, n_gpus = cores(), len(gpu_memory())
    device = "cuda" if settings.device != "cpu" and n_gpus else "cpu"
    cpus = min(representable(settings.cpus_per_trial), float(n_cpus))
    gpus = min(representable(settings.gpus_per_trial), float(n_gpus)) if device == "cuda" else 0.0
    most = n_fitting(n_cpus, n_gpus, cpus, gpus)
    old_cpus, old_gpus = (before or {}).get("cores"), len((before or {}).get("gpus") or ())
    filled = device != settings.device or (
        old_cpus is not None
        and settings.concurrency >= n_fitting(old_cpus, old_gpus, settings.cpus_per_trial, settings.gpus_per_trial)
    )
    slots = {
        "device": device,
        "concurrency": most if filled else min(settings.concurrency, most),
        "cpus_per_trial": cpus,
        "gpus_per_trial": gpus,
    }
    changes = [
        f"{slots[name]:{form}} {words} (before: {getattr(settings, name):{form}})"
        for name, form, words in (
            ("device", "", "as the device"),
            ("concurrency", "d", "side by side"),
            ("cpus_per_trial", "g", "CPU cores a trial"),
            ("gpus_per_trial", "g", "GPUs a trial"),
        )
        if not _same(slots[name], getattr(settings, name))
    ]
    return slots, f"The run goes on with what this machine has: {', '.join(changes)}." if changes else ""


def _same(one: Any, other: Any) -> bool:
    return abs(one - other) < 2 / RAY_UNITS if isinstance(one, float) else bool(one == other)


def check_gpus(gpus: float, most: float, which: str) -> float:
    """Returns the GPUs of a trial, as Ray counts them.

    Args:
        gpus: As `--gpus-per-trial` has it.
        most: How many one trial may have.
        which: Says of what these are the most.

    Raises:
        UserError: They are more, or neither a share of one GPU nor a whole number of them.
    """
    if not gpus <= most:
        raise UserError(f"--gpus-per-trial must be at most {most:g}, {which}, but got {gpus:g}.")
    if 0 < gpus < 1 / RAY_UNITS or (gpus > 1 and gpus != int(gpus)):
        raise UserError(
            f"--gpus-per-trial must be a whole number of GPUs or a share of one, at least {1 / RAY_UNITS}, "
            f"but got {gpus:g}."
        )
    return representable(gpus)


def representable(amount: float) -> float:
    """Returns the most that Ray can count and that is no more than `amount`: it counts in ten-thousandths.

    It rounds to the nearest, so that of seven sevenths of a GPU (0.1429 each) only six would fit on it.
    """
    return math.floor(amount * RAY_UNITS + 1e-6) / RAY_UNITS if math.isfinite(amount) else amount


def n_fitting(n_cpus: float, n_gpus: int, cpus: float, gpus: float) -> int:
    """Returns how many trials fit on a machine; shares of one GPU do not add up across GPUs.

    Args:
        n_cpus: Cores of the machine.
        n_gpus: GPUs of the machine.
        cpus: Cores of a trial, above 0.
        gpus: GPUs of a trial: none, a share of one, or a whole number.
    """
    on_cpus = int(n_cpus / cpus + 1e-6)
    if gpus == 0:
        return on_cpus
    return min(on_cpus, n_gpus * int(1 / gpus + 1e-6) if gpus < 1 else int(n_gpus / gpus))


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
        # A container sees its own group as the root, whatever the name that is told here.
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


def cpus_in_use(slots: Mapping[str, Any]) -> int:
    """Returns the cores that all slots together take, rounded up to whole ones, which is what Ray is told to have.

    Were it less than the slots need, those that do not fit would wait for ever. `slots` as `plan_slots` gives them.
    """
    units = math.ceil(slots["cpus_per_trial"] * RAY_UNITS - 1e-6)
    n_cpus: int = max(1, math.ceil(slots["concurrency"] * units / RAY_UNITS))
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

"""What a machine holds: the whole cores of a quota."""

import math
from pathlib import Path

import pytest

from tuning.base import machine


def control_groups(folder: Path, names: str, files: dict[str, str]) -> dict[str, Path]:
    """Writes what the kernel says of a process's groups; returns the arguments of `machine.cpu_quota`."""
    for name, text in files.items():
        (folder / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "fs" / name).write_text(text)
    (folder / "cgroup").write_text(names)
    return {"groups": folder / "cgroup", "root": folder / "fs"}


@pytest.mark.parametrize(
    ("names", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/job/step\n", {"job/cpu.max": "250000 100000\n", "job/step/cpu.max": "max 100000\n"}, 2.5),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/unseen\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/\n", {"cpu.max": "damaged\n"}, math.inf),
        ("5:memory:/x\n", {"memory/x/cpu.max": "100000 100000\n"}, math.inf),
        (
            "4:cpu,cpuacct:/docker/ab\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1.5,
        ),
        (
            "4:cpu,cpuacct:/job\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"},
            math.inf,
        ),
    ],
)
def test_the_quota_is_the_least_of_the_process_groups(
    tmp_path: Path, names: str, files: dict[str, str], quota: float
) -> None:
    assert machine.cpu_quota(**control_groups(tmp_path, names, files)) == quota


def test_no_control_groups_are_no_limit(tmp_path: Path) -> None:
    assert machine.cpu_quota(tmp_path / "none", tmp_path) == math.inf


@pytest.mark.parametrize(
    ("quota", "cores"), [(1.5, 1), (0.5, 1), (2.9999999999, 3), (3.0, 3), (3.99, 3), (math.inf, 16)]
)
def test_a_quota_gives_whole_cores_only(monkeypatch: pytest.MonkeyPatch, quota: float, cores: int) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 16)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.cores() == cores

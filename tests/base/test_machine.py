"""What a machine holds: slots that all fit into what Ray is told, whole cores of a quota, and a run from elsewhere."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuning.base import machine
from tuning.base.errors import UserError
from tuning.remote import cluster

CPUS = (0.1, 0.15, 0.3, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.9999, 1, 1.4, 1.5, 2, 2.5, 3.3, 4, 7)
GPUS = (None, 0, 0.1, 1 / 7, 0.3, 1 / 3, 0.5, 0.7, 1, 2, 3)


def has(monkeypatch: pytest.MonkeyPatch, n_cpus: int, n_gpus: int = 0) -> None:
    """Makes this machine one of so many cores and GPUs of 80 GiB."""
    monkeypatch.setattr(machine, "cores", lambda: n_cpus)
    monkeypatch.setattr(machine, "gpu_memory", lambda: [80 << 30] * n_gpus)


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 4, 7, 8, 16, 64])
@pytest.mark.parametrize("cpus", CPUS)
def test_what_ray_is_told_holds_all_slots_and_no_slot_is_given_away(
    monkeypatch: pytest.MonkeyPatch, n_cpus: int, cpus: float
) -> None:
    has(monkeypatch, n_cpus)
    if cpus > n_cpus:
        with pytest.raises(UserError, match=f"--cpus-per-trial must be at most {n_cpus}, the cores of this machine"):
            machine.plan_slots(None, cpus, None, None)
        return
    for concurrency in (None, *range(1, int(n_cpus / cpus + 1e-6) + 1)):
        slots = machine.plan_slots(None, cpus, None, concurrency)
        # Ray rounds what a trial takes to ten-thousandths.
        taken = slots["concurrency"] * round(slots["cpus_per_trial"] * 10_000)
        assert taken <= 10_000 * machine.cpus_in_use(slots)
        assert concurrency or slots["concurrency"] == int(n_cpus / cpus + 1e-6)
    # Settings of an older version were not rounded.
    old = {"concurrency": int(n_cpus / cpus + 1e-6), "cpus_per_trial": float(cpus)}
    assert old["concurrency"] * round(cpus * 10_000) <= 10_000 * machine.cpus_in_use(old)


@pytest.mark.parametrize("n_gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("gpus", GPUS)
def test_all_slots_fit_on_the_gpus_of_which_each_has_shares_of_its_own(
    monkeypatch: pytest.MonkeyPatch, n_gpus: int, gpus: float | None
) -> None:
    has(monkeypatch, 64, n_gpus)
    if gpus is not None and gpus > n_gpus:
        with pytest.raises(UserError, match=f"--gpus-per-trial must be at most {n_gpus}, the GPUs to be used, but got"):
            machine.plan_slots(None, None, gpus, None)
        return
    for side_by_side in (None, 1, 2, 3, 5, 6, 7, 12):
        slots = machine.plan_slots(None, None, gpus, None, side_by_side)
        units = round(slots["gpus_per_trial"] * 10_000)  # As Ray rounds it.
        if units:
            fitting = n_gpus * (10_000 // units) if units < 10_000 else n_gpus * 10_000 // units
            assert slots["concurrency"] <= fitting
        for concurrency in range(1, slots["concurrency"] + 1):
            asked = machine.plan_slots("cuda", None, gpus, concurrency)
            units = round(asked["gpus_per_trial"] * 10_000)
            assert not units or concurrency <= n_gpus * max(1, 10_000 // units)
    nodes = [{"CPU": 64.0, "GPU": float(n_gpus)}]
    monkeypatch.setattr(cluster, "look", lambda address: (nodes, []))
    monkeypatch.setattr(machine, "gpu_memory", list)
    on_cluster = cluster.plan_slots("auto", None, 0.7, gpus, None)
    if on_cluster["gpus_per_trial"]:
        has(monkeypatch, 64, n_gpus)
        on_one = machine.plan_slots(None, 0.7, on_cluster["gpus_per_trial"], None)
        assert on_one["concurrency"] == on_cluster["concurrency"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((None, math.nan, None, None), "--cpus-per-trial must be at most 8, the cores of this machine, but got nan"),
        ((None, 1e-5, None, None), "--cpus-per-trial must be at least 0.0001, but got 1e-05"),
        ((None, 0.0, None, None), "--cpus-per-trial must be at least 0.0001, but got 0"),
        ((None, None, 1.5, None), "--gpus-per-trial must be a whole number of GPUs or a share of one, .*but got 1.5"),
        ((None, None, 1e-5, None), "--gpus-per-trial must be a whole number .*, at least 0.0001, but got 1e-05"),
        ((None, None, math.nan, None), "--gpus-per-trial must be at most 2, the GPUs to be used, but got nan"),
        ((None, None, 0.7, 3), "--concurrency must be between 1 and 2 on this machine, but got 3"),
    ],
)
def test_what_ray_cannot_count_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[Any, ...], message: str
) -> None:
    has(monkeypatch, 8, 2)
    with pytest.raises(UserError, match=message):
        machine.plan_slots(*asked)


@pytest.mark.parametrize("cpus", [1e-5, math.nan])
def test_a_cluster_refuses_the_same(monkeypatch: pytest.MonkeyPatch, cpus: float) -> None:
    monkeypatch.setattr(cluster, "look", lambda address: ([{"CPU": 8.0, "GPU": 2.0}], []))
    with pytest.raises(UserError, match=r"--cpus-per-trial must be at least 0.0001, but got"):
        cluster.plan_slots("auto", None, cpus, None, None)
    with pytest.raises(UserError, match=r"--gpus-per-trial must be a whole number of GPUs or a share of one"):
        cluster.plan_slots("auto", None, None, 1.5, None)


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
    assert machine.plan_slots("cpu", None, None, None)["concurrency"] == cores


def settings(device: str, concurrency: int, cpus: float, gpus: float) -> Any:
    return SimpleNamespace(device=device, concurrency=concurrency, cpus_per_trial=cpus, gpus_per_trial=gpus)


@pytest.mark.parametrize(
    ("here", "had", "before", "planned", "said"),
    [
        ((2, 0), ("cpu", 2, 1.0, 0.0), None, ("cpu", 2, 1.0, 0.0), ""),
        ((2, 0), ("cuda", 1, 1.0, 1.0), None, ("cpu", 2, 1.0, 0.0), "cpu as the device (before: cuda), 2 side by side"),
        ((2, 0), ("cuda", 2, 1.0, 0.5), None, ("cpu", 2, 1.0, 0.0), "cpu as the device (before: cuda), 0 GPUs a trial"),
        ((2, 0), ("cpu", 16, 1.0, 0.0), None, ("cpu", 2, 1.0, 0.0), "machine has: 2 side by side (before: 16)."),
        ((2, 0), ("cpu", 2, 4.0, 0.0), None, ("cpu", 1, 2.0, 0.0), "2 CPU cores a trial (before: 4)."),
        ((16, 0), ("cpu", 2, 1.0, 0.0), None, ("cpu", 2, 1.0, 0.0), ""),
        ((16, 0), ("cpu", 2, 1.0, 0.0), (2, 0), ("cpu", 16, 1.0, 0.0), "machine has: 16 side by side (before: 2)."),
        ((16, 0), ("cpu", 1, 1.0, 0.0), (2, 0), ("cpu", 1, 1.0, 0.0), ""),
        ((16, 2), ("cpu", 4, 1.0, 0.0), None, ("cpu", 4, 1.0, 0.0), ""),
        ((16, 1), ("cuda", 8, 1.0, 0.25), None, ("cuda", 4, 1.0, 0.25), "machine has: 4 side by side (before: 8)."),
        ((16, 2), ("cuda", 4, 1.0, 0.25), (16, 1), ("cuda", 8, 1.0, 0.25), "machine has: 8 side by side (before: 4)."),
        ((16, 2), ("cuda", 1, 1.0, 4.0), None, ("cuda", 1, 1.0, 2.0), "2 GPUs a trial (before: 4)."),
        ((16, 1), ("cuda", 6, 1.0, 1 / 6), None, ("cuda", 6, 1.0, 0.1666), ""),
        (
            (16, 2),
            ("any", 12, 2.0, 0.5),
            None,
            ("cuda", 4, 2.0, 0.5),
            "cuda as the device (before: any), 4 side by side",
        ),
        ((4, 0), ("any", 12, 2.0, 0.5), None, ("cpu", 2, 2.0, 0.0), "cpu as the device (before: any), 2 side by side"),
    ],
)
def test_a_run_from_another_machine_is_planned_for_this_one(
    monkeypatch: pytest.MonkeyPatch,
    here: tuple[int, int],
    had: tuple[str, int, float, float],
    before: tuple[int, int] | None,
    planned: tuple[str, int, float, float],
    said: str,
) -> None:
    has(monkeypatch, *here)
    hardware = None if before is None else {"cores": before[0], "gpus": ["H100"] * before[1]}
    slots, note = machine.replan(settings(*had), hardware)
    assert tuple(slots[name] for name in ("device", "concurrency", "cpus_per_trial", "gpus_per_trial")) == planned
    assert said in note and bool(note) == bool(said)
    if note:
        assert note.startswith("The run goes on with what this machine has: ")


@pytest.mark.parametrize("here", [(1, 0), (2, 0), (3, 2), (64, 8)])
@pytest.mark.parametrize("device", ["cpu", "cuda", "any"])
def test_whatever_a_run_had_the_new_slots_can_be_planned(
    monkeypatch: pytest.MonkeyPatch, here: tuple[int, int], device: str
) -> None:
    has(monkeypatch, *here)
    for cpus in CPUS:
        for gpus in (0.0, *GPUS[2:]):
            for concurrency in (1, 3, 16, 100):
                slots, _ = machine.replan(settings(device, concurrency, cpus, float(gpus or 0)))
                again = machine.plan_slots(
                    slots["device"], slots["cpus_per_trial"], slots["gpus_per_trial"], slots["concurrency"]
                )
                assert again == slots

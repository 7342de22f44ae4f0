"""The slots that are planned: all fit into what Ray is told, and into what a machine or a cluster has."""

import math
from typing import Any

import pytest

from tuning.base import machine
from tuning.base.errors import UserError
from tuning.remote import cluster
from tuning.trials.local_ray import TakenSlots
from tuning.trials.slots import SlotRequest, Slots, of_cluster, plan_slots, replan

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
            plan_slots(SlotRequest(None, cpus, None, None))
        return
    for concurrency in (None, *range(1, int(n_cpus / cpus + 1e-6) + 1)):
        slots = plan_slots(SlotRequest(None, cpus, None, concurrency))
        # Ray rounds what a trial takes to ten-thousandths.
        taken = slots.concurrency * round(slots.cpus_per_trial * 10_000)
        assert taken <= 10_000 * slots.cpus
        assert concurrency or slots.concurrency == int(n_cpus / cpus + 1e-6)
    # Settings of an older version were not rounded.
    old = Slots("cpu", int(n_cpus / cpus + 1e-6), float(cpus))
    assert old.concurrency * round(cpus * 10_000) <= 10_000 * old.cpus


@pytest.mark.parametrize("n_gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("gpus", GPUS)
def test_all_slots_fit_on_the_gpus_of_which_each_has_shares_of_its_own(
    monkeypatch: pytest.MonkeyPatch, n_gpus: int, gpus: float | None
) -> None:
    has(monkeypatch, 64, n_gpus)
    if gpus is not None and gpus > n_gpus:
        with pytest.raises(UserError, match=f"--gpus-per-trial must be at most {n_gpus}, the GPUs to be used, but got"):
            plan_slots(SlotRequest(None, None, gpus, None))
        return
    for side_by_side in (None, 1, 2, 3, 5, 6, 7, 12):
        slots = plan_slots(SlotRequest(None, None, gpus), trials_a_gpu=side_by_side)
        units = round(slots.gpus_per_trial * 10_000)  # As Ray rounds it.
        if units:
            fitting = n_gpus * (10_000 // units) if units < 10_000 else n_gpus * 10_000 // units
            assert slots.concurrency <= fitting
        for concurrency in range(1, slots.concurrency + 1):
            asked = plan_slots(SlotRequest("cuda", None, gpus, concurrency))
            units = round(asked.gpus_per_trial * 10_000)
            assert not units or concurrency <= n_gpus * max(1, 10_000 // units)
    nodes = [{"CPU": 64.0, "GPU": float(n_gpus)}]
    monkeypatch.setattr(cluster, "look", lambda address: (nodes, []))
    monkeypatch.setattr(machine, "gpu_memory", list)
    on_cluster = plan_slots(SlotRequest(None, 0.7, gpus, None), of_cluster("auto"))
    if on_cluster.gpus_per_trial:
        has(monkeypatch, 64, n_gpus)
        on_one = plan_slots(SlotRequest(None, 0.7, on_cluster.gpus_per_trial, None))
        assert on_one.concurrency == on_cluster.concurrency


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((None, math.nan, None, None), "--cpus-per-trial must be at least 0.0001, but got nan"),
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
        plan_slots(SlotRequest(*asked))


@pytest.mark.parametrize("cpus", [1e-5, math.nan])
def test_a_cluster_refuses_the_same(monkeypatch: pytest.MonkeyPatch, cpus: float) -> None:
    monkeypatch.setattr(cluster, "look", lambda address: ([{"CPU": 8.0, "GPU": 2.0}], []))
    with pytest.raises(UserError, match=r"--cpus-per-trial must be at least 0.0001, but got"):
        plan_slots(SlotRequest(None, cpus, None, None), of_cluster("auto"))
    with pytest.raises(UserError, match=r"--gpus-per-trial must be a whole number of GPUs or a share of one"):
        plan_slots(SlotRequest(None, None, 1.5, None), of_cluster("auto"))


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
    slots, note = replan(Slots(*had), hardware)
    assert (slots.device, slots.concurrency, slots.cpus_per_trial, slots.gpus_per_trial) == planned
    assert said in note and bool(note) == bool(said)
    if note:
        assert note.startswith("The run is resumed with what this machine has: ")


@pytest.mark.parametrize("here", [(1, 0), (2, 0), (3, 2), (64, 8)])
@pytest.mark.parametrize("device", ["cpu", "cuda", "any"])
def test_whatever_a_run_had_the_new_slots_can_be_planned(
    monkeypatch: pytest.MonkeyPatch, here: tuple[int, int], device: str
) -> None:
    has(monkeypatch, *here)
    for cpus in CPUS:
        for gpus in (0.0, *GPUS[2:]):
            for concurrency in (1, 3, 16, 100):
                slots, _ = replan(Slots(device, concurrency, cpus, float(gpus or 0)))
                again = plan_slots(
                    SlotRequest(slots.device, slots.cpus_per_trial, slots.gpus_per_trial, slots.concurrency)
                )
                assert again == slots


def test_slots_are_planned_from_what_a_cluster_has(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}, {"memory": 1e9}]
    monkeypatch.setattr(cluster, "look", lambda address: (nodes, []))

    def plan(*asked: Any) -> tuple[Any, ...]:
        slots = plan_slots(SlotRequest(*asked), of_cluster("auto"))
        found = slots.capacity(nodes)
        return slots.device, slots.concurrency, found["cuda"], found["cpu"]

    assert plan(None, None, None, None) == ("cuda", 2, 2, 0)
    assert plan(None, None, 0.25, None) == ("cuda", 8, 8, 0)
    assert plan(None, None, 0.0, None) == ("cpu", 24, 0, 24)
    assert plan("any", 2.0, 0.5, None) == ("any", 12, 4, 8)
    assert plan("any", 2.0, 0.5, 5) == ("any", 5, 4, 1)
    assert plan("cpu", 9.0, None, None) == ("cpu", 1, 0, 1)


def test_an_autoscaler_counts_for_what_it_may_add(monkeypatch: pytest.MonkeyPatch) -> None:
    to_come = [({"CPU": 4.0}, 3), ({"CPU": 16.0, "GPU": 1.0}, 2)]
    monkeypatch.setattr(cluster, "look", lambda address: ([{"CPU": 0.0}], to_come))
    slots = plan_slots(SlotRequest("cpu", 4.0), of_cluster("auto"))
    assert slots.concurrency == 1  # None is there yet; the first are waited for.
    assert slots.capacity([{"CPU": 0.0}], to_come) == {"cuda": 0, "cpu": 3 + 2 * 4}
    assert slots.capacity([{"CPU": 4.0}] * 12, to_come) == {"cuda": 0, "cpu": 12}
    assert plan_slots(SlotRequest(), of_cluster("auto")).device == "cuda"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("gpu", None, None, None), "--device must be one of any, cpu, cuda, but got 'gpu'"),
        (("cuda", None, None, None), "--device must be 'cpu' on a cluster without a GPU for trials, but got 'cuda'"),
        ((None, 9.0, None, None), "--cpus-per-trial must be at most 8, the cores of the largest node, but got 9"),
        ((None, None, 1.0, None), "--gpus-per-trial must be at most 0, the GPUs of a node .*, but got 1"),
        ((None, None, None, 0), "--concurrency must be at least 1, but got 0"),
    ],
)
def test_what_no_node_can_hold_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[Any, ...], message: str
) -> None:
    monkeypatch.setattr(cluster, "look", lambda address: ([{"CPU": 8.0}, {"CPU": 4.0}], []))
    with pytest.raises(UserError, match=message):
        plan_slots(SlotRequest(*asked), of_cluster("auto"))


def test_a_trial_takes_a_gpu_where_one_is_free_and_gives_it_back() -> None:
    slots = TakenSlots(Slots("any", 3))
    slots._capacity = {"cuda": 1, "cpu": 2}
    taken = []
    for number in (1, 2, 3):
        taken.append(slots.free())
        slots.take(number, taken[-1] or "")
    assert taken == ["cuda", "cpu", "cpu"] and slots.free() is None
    slots.give_back(1)
    slots.give_back(1)
    assert slots.free() == "cuda" and slots.most == 3
    asked = Slots("any", 1, 2.0, 0.5)
    assert asked.resources("cuda") == {"CPU": 2.0, "GPU": 0.5}
    assert asked.resources("cpu") == {"CPU": 2.0}


@pytest.mark.parametrize(
    ("n_cpus", "gpus", "asked", "planned"),
    [
        (2, [], {}, ("cpu", 2, 1.0, 0.0)),
        (8, [], {"cpus_per_trial": 3.0}, ("cpu", 2, 3.0, 0.0)),
        (8, [], {"concurrency": 5}, ("cpu", 5, 1.0, 0.0)),
        (16, [80 << 30], {}, ("cuda", 4, 1.0, 0.25)),
        (16, [24 << 30], {}, ("cuda", 3, 1.0, 0.3333)),
        (4, [12 << 30, 12 << 30], {}, ("cuda", 2, 1.0, 1.0)),
        (16, [80 << 30], {"gpus_per_trial": 1.0}, ("cuda", 1, 1.0, 1.0)),
        (16, [80 << 30], {"device": "cpu"}, ("cpu", 16, 1.0, 0.0)),
        (16, [80 << 30], {"trials_a_gpu": 8}, ("cuda", 8, 1.0, 0.125)),
        (8, [80 << 30, 80 << 30], {"trials_a_gpu": 8}, ("cuda", 8, 1.0, 0.25)),
        (16, [80 << 30], {"concurrency": 6, "trials_a_gpu": 8}, ("cuda", 6, 1.0, 0.1666)),
        (16, [80 << 30, 80 << 30], {"concurrency": 3}, ("cuda", 3, 1.0, 0.5)),
    ],
)
def test_slots_are_planned_from_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    n_cpus: int,
    gpus: list[int],
    asked: dict[str, Any],
    planned: tuple[str, int, float, float],
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: n_cpus)
    monkeypatch.setattr(machine, "gpu_memory", lambda: gpus)
    trials_a_gpu = asked.pop("trials_a_gpu", None)
    assert plan_slots(SlotRequest(**asked), trials_a_gpu=trials_a_gpu) == Slots(*planned)

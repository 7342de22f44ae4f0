"""The slots of a search: how many trials fit beside each other on what there is, and what each of them has.

One planner serves this machine, a cluster, a Ray that runs in this process, and a run that is resumed elsewhere.
"""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tuning.base import machine
from tuning.base.errors import UserError, unknown_name

RAY_UNITS = 10_000  # Ray counts CPUs and GPUs in parts of one.
GPU_BYTES_FOR_A_TRIAL = 8 << 30
DEVICES = ("cpu", "cuda", "any")
Resources = Mapping[str, float]  # Of a node or a trial, as Ray names them: "CPU" and "GPU".


class SlotRequest(NamedTuple):
    """What a user asks of the slots; None is what suits what there is."""

    device: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class Place:
    """What there is for trials.

    Attributes:
        name: For messages.
        cores_of: What `nodes` are called where one has too few cores for a trial.
        nodes: The resources of each node; a machine is one node.
        to_come: The resources of nodes that an autoscaler may add, and how many of them (-1: without end).
        gpu_bytes: Memory of the smallest GPU; None where it is not known.
        address: Of the cluster; None is this machine.
    """

    name: str
    cores_of: str
    nodes: Sequence[Resources]
    to_come: Sequence[tuple[Resources, int]] = ()
    gpu_bytes: int | None = None
    address: str | None = None

    @property
    def all_nodes(self) -> list[Resources]:
        """The nodes that there are or may be."""
        return [*self.nodes, *(node for node, n in self.to_come if n)]


@dataclass(frozen=True)
class Slots:
    """Where trials run beside each other, and what each of them has.

    Attributes:
        device: "cpu" or "cuda"; on a cluster also "any", a GPU where one is free and else CPU cores.
        concurrency: How many there are; on a cluster now, or where it has none yet, 1.
        cpus_per_trial: Cores of each.
        gpus_per_trial: GPUs of each, or its share of one.
        address: Of the cluster, whose nodes come and go; None is this machine.
        limit: The most slots of a cluster; None is no limit.
    """

    device: str
    concurrency: int
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    address: str | None = None
    limit: int | None = None

    @property
    def cpus(self) -> int:
        """The cores that all slots take, rounded up to whole ones, which is what Ray gets.

        If it were less than the slots need, those that do not fit would wait for ever.
        """
        units = math.ceil(self.cpus_per_trial * RAY_UNITS - 1e-6)
        return max(1, math.ceil(self.concurrency * units / RAY_UNITS))

    @property
    def whole_device(self) -> dict[str, float]:
        """The resources with which a trial is alone on its device; empty where each trial is, and on a cluster.

        There one trial would keep all nodes waiting until a device is free of others.
        """
        if self.address is not None:
            return {}
        if self.device == "cuda":
            return {"CPU": self.cpus_per_trial, "GPU": 1.0} if self.gpus_per_trial < 1 else {}
        return {"CPU": float(self.cpus)} if self.concurrency > 1 else {}

    @property
    def a_device(self) -> int:
        """How many slots a device has: all of the CPU's, or those of a GPU."""
        if self.device == "cuda" and self.gpus_per_trial < 1:
            return min(self.concurrency, n_fitting(self.cpus, 1, self.cpus_per_trial, self.gpus_per_trial))
        return self.concurrency

    def resources(self, device: str) -> dict[str, float]:
        """Returns what a trial on that device asks Ray for."""
        gpus = self.gpus_per_trial if device == "cuda" else 0.0
        return {"CPU": self.cpus_per_trial} | ({"GPU": gpus} if gpus else {})

    def capacity(self, nodes: Sequence[Resources], to_come: Sequence[tuple[Resources, int]] = ()) -> dict[str, int]:
        """Returns how many trials fit on the nodes there are, or those that an autoscaler may make it, by device."""
        now: Counter[str] = Counter()
        later: Counter[str] = Counter()
        for node in nodes:
            now.update(self._fitting(node))
        for node, n in to_come:
            later.update({device: fits * (n if n >= 0 else 10_000) for device, fits in self._fitting(node).items()})
        both = {device: max(now[device], later[device]) for device in ("cuda", "cpu")}
        limit = self.limit if self.limit is not None else sys.maxsize
        on_gpus = min(both["cuda"], limit)
        return {"cuda": on_gpus, "cpu": min(both["cpu"], limit - on_gpus)}

    def _fitting(self, node: Resources) -> dict[str, int]:
        """Returns how many trials fit on a node, by their device."""
        n_cpus, n_gpus = node.get("CPU", 0.0), int(node.get("GPU", 0.0))
        with_gpu = n_fitting(n_cpus, n_gpus, self.cpus_per_trial, self.gpus_per_trial)
        if self.device == "cuda":
            return {"cuda": with_gpu, "cpu": 0}
        on_gpus = with_gpu if self.device == "any" and self.gpus_per_trial else 0
        return {"cuda": on_gpus, "cpu": n_fitting(n_cpus, 0, self.cpus_per_trial, 0.0) - on_gpus}


def this_machine(device: str | None = None) -> Place:
    """Returns what this machine has, or the Ray that runs in this process; for "cpu" no GPU is looked for.

    Raises:
        UserError: The Ray that runs in this process has several nodes.
    """
    gpus = [] if device == "cpu" else machine.gpu_memory()
    node: dict[str, float] = {"CPU": machine.cores(), "GPU": len(gpus)}
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return Place("this machine", "the cores of this machine", [node], gpu_bytes=min(gpus, default=None))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1:
        raise UserError(
            f"The Ray that runs in this process has {len(nodes)} nodes. Call ray.shutdown() first, and name that "
            "cluster with --address, and a --storage that all its nodes reach."
        )
    node = {"CPU": nodes[0].get("CPU", 0.0), "GPU": min(len(gpus), nodes[0].get("GPU", 0.0))}
    return Place("the running Ray", "the cores of the running Ray", [node], gpu_bytes=min(gpus, default=None))


def of_cluster(address: str) -> Place:
    """Returns what a cluster has.

    Raises:
        UserError: There is no such cluster, or this process cannot join it.
    """
    from tuning.remote import cluster

    nodes, to_come = cluster.look(address)
    return Place("a cluster", "the cores of the largest node", nodes, to_come, address=address)


def plan_slots(asked: SlotRequest, place: Place | None = None, trials_a_gpu: int | None = None) -> Slots:
    """Returns the slots for what is asked, on what there is: this machine, unless another place is named.

    On a CPU: a trial a core with one thread, because one trial a core beats two cores a trial. On a machine's GPUs: as
    many trials a GPU as a dry run found to pay (`trials_a_gpu`); where there was none, as many as cores and memory
    (8 GiB a trial) allow, at most 4. With `concurrency` alone, each of so many gets an equal share of a GPU. On a
    cluster, whose GPUs are not asked for their memory, a trial has one for itself unless a share is asked for.

    Raises:
        UserError: More CPUs or GPUs are asked for than there are, no trial would fit, or a name is wrong.
    """
    place = place or this_machine(asked.device)
    on_cluster = place.address is not None
    devices = DEVICES if on_cluster else DEVICES[:2]
    if asked.device is not None and asked.device not in devices:
        raise unknown_name("--device", asked.device, devices)
    if asked.concurrency is not None and on_cluster and asked.concurrency < 1:
        raise UserError(f"--concurrency must be at least 1, but got {asked.concurrency}.")
    most_gpus = max((node.get("GPU", 0.0) for node in place.all_nodes), default=0.0)
    # On a cluster only a trial that asks for a GPU gets one; on a machine it is there for all.
    usable = bool(most_gpus) and not (on_cluster and asked.gpus_per_trial == 0)
    device = asked.device or ("cuda" if usable else "cpu")
    if device == "cuda" and not usable:
        lacks = "without a GPU for trials" if on_cluster else "without a GPU that torch can use"
        where = f"on {place.name}" if place.name != "this machine" else "on a machine"
        raise UserError(f"--device must be 'cpu' {where} {lacks}, but got 'cuda'.")
    cpus = _checked_cpus(1.0 if asked.cpus_per_trial is None else asked.cpus_per_trial)
    which = "the GPUs of a node that are to be used" if on_cluster else "the GPUs to be used"
    gpus = _checked_gpus(asked.gpus_per_trial or 0.0, most_gpus if device != "cpu" else 0.0, which)
    fitting = [node for node in place.all_nodes if device != "cuda" or node.get("GPU", 0.0) >= max(gpus, 1e-4)]
    most_cpus = max((node.get("CPU", 0.0) for node in fitting), default=0.0)
    if cpus > most_cpus + 1e-6:
        advice = " Start more nodes, or ask for less." if on_cluster else ""
        raise UserError(f"--cpus-per-trial must be at most {most_cpus:g}, {place.cores_of}, but got {cpus:g}.{advice}")
    if device != "cpu" and asked.gpus_per_trial is None:
        gpus = 1.0 if on_cluster else _share(place, cpus, asked.concurrency, trials_a_gpu)
    slots = Slots(device, 1, cpus, gpus, place.address, asked.concurrency if on_cluster else None)
    n_slots = sum(slots.capacity(place.nodes).values())
    if on_cluster:
        return replace(slots, concurrency=n_slots or 1)
    if asked.concurrency is not None and not 1 <= asked.concurrency <= n_slots:
        raise UserError(f"--concurrency must be between 1 and {n_slots} on {place.name}, but got {asked.concurrency}.")
    return replace(slots, concurrency=n_slots if asked.concurrency is None else asked.concurrency)


def _share(place: Place, cpus: float, concurrency: int | None, trials_a_gpu: int | None) -> float:
    """Returns the share of a machine's GPU that a trial gets where none is asked for."""
    [node] = place.nodes
    n_gpus = int(node["GPU"])
    a_gpu = trials_a_gpu or min(4, max(1, (place.gpu_bytes or 0) // GPU_BYTES_FOR_A_TRIAL))
    if concurrency is not None:
        a_gpu = math.ceil(concurrency / n_gpus)
    return representable(1 / max(1, min(a_gpu, n_fitting(node["CPU"], 0, cpus, 0.0) // n_gpus)))


def replan(had: Slots, before: Mapping[str, Any] | None = None, last: Slots | None = None) -> tuple[Slots, str]:
    """Returns the slots of a run that is resumed on this machine, and a sentence that says what changed, if anything.

    What the run was begun with is kept where this machine has it. A GPU that is not here gives way to the CPU; trials
    that took more than there is take what there is. A run that filled its machine fills this one, too. It refuses
    nothing.

    Args:
        had: Those that the run was begun with.
        before: What `machine.hardware` said of the machine where the run was begun, from its `meta.json`.
        last: Those of its last session, from which the sentence says what changed; None is those of the beginning.
    """
    place = this_machine(had.device)
    [node] = place.nodes
    device = "cuda" if had.device != "cpu" and node["GPU"] else "cpu"
    cpus, gpus = min(had.cpus_per_trial, node["CPU"]), min(had.gpus_per_trial, node["GPU"])
    slots = plan_slots(SlotRequest(device, cpus, (gpus if gpus < 1 else int(gpus)) if device == "cuda" else 0.0), place)
    old_cpus, old_gpus = (before or {}).get("cores"), len((before or {}).get("gpus") or ())
    filled = device != had.device or (
        old_cpus is not None
        and had.concurrency >= n_fitting(old_cpus, old_gpus, had.cpus_per_trial, had.gpus_per_trial)
    )
    if not filled:
        slots = replace(slots, concurrency=min(had.concurrency, slots.concurrency))
    last = last or had
    changes = [
        f"{getattr(slots, name):{form}} {words} (before: {getattr(last, name):{form}})"
        for name, form, words in (
            ("device", "", "as the device"),
            ("concurrency", "d", "side by side"),
            ("cpus_per_trial", "g", "CPU cores a trial"),
            ("gpus_per_trial", "g", "GPUs a trial"),
        )
        if not _same(getattr(slots, name), getattr(last, name))
    ]
    return slots, f"The run is resumed with what this machine has: {', '.join(changes)}." if changes else ""


def _same(one: Any, other: Any) -> bool:
    return abs(one - other) < 2 / RAY_UNITS if isinstance(one, float) else bool(one == other)


def _checked_cpus(cpus: float) -> float:
    """Returns the cores of a trial, as Ray counts them; raises UserError for none."""
    if not representable(cpus) > 0:  # NaN, too.
        raise UserError(f"--cpus-per-trial must be at least {1 / RAY_UNITS}, but got {cpus:g}.")
    return representable(cpus)


def _checked_gpus(gpus: float, most: float, which: str) -> float:
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

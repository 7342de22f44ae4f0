"""A Ray cluster that was started elsewhere, and is joined.

What is asked of a cluster is what its nodes have now, and what its autoscaler may add. Nothing here knows a trial.
"""

import json
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tuning.base import files, machine
from tuning.base.errors import UserError, unknown_name
from tuning.remote import cluster_internals

DEVICES = ("cpu", "cuda", "any")
SECONDS_TO_ANSWER = 25.0
# Ray retries a connection for many minutes, so it is tried in a process of its own first. What it prints: the resources
# of each node that is alive, and of each that an autoscaler may add (-1: without end).
_LOOK = """
import json, sys, ray
from tuning.remote import cluster_internals
cluster_internals.accept_token()
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
print(json.dumps([alive, cluster_internals.nodes_to_come()]))
"""
Resources = Mapping[str, float]


def look(address: str) -> tuple[list[Resources], list[tuple[Resources, int]]]:
    """Returns the resources of each node of a cluster, and of each kind that its autoscaler may add, with how many.

    Raises:
        UserError: There is no such cluster, or this process cannot join it; within half a minute.
    """
    wanted = (
        f"--address must be auto or the HOST:PORT of a Ray cluster of which this machine is a node, but got {address!r}"
    )
    if address.startswith("ray://"):
        raise UserError(
            f"{wanted}. A search keeps its record beside it, so it cannot run through Ray's client: run it on the "
            "head node, or with `ray job submit`."
        )
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or not re.fullmatch(r"\d{1,5}", port):
            raise UserError(f"{wanted}.")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"{wanted}: nothing answers there ({error}). Start one with `ray start --head`.") from error
    try:
        command = [sys.executable, "-c", _LOOK, address]
        done = subprocess.run(
            command, cwd=files.PACKAGE.parent, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{wanted}: it gave no answer in {SECONDS_TO_ANSWER:.0f} s.") from error
    if done.returncode != 0:
        raise UserError(f"{wanted}: {_reason(done.stderr)}")
    alive, to_come = json.loads(done.stdout.splitlines()[-1])
    return alive, [(resources, n) for resources, n in to_come]


def _reason(text: str) -> str:
    """Returns what Ray's traceback says: which versions do not match, or else its last exception, or its cause."""
    versions = re.findall(r"^ +(Ray|Python): (.+)$", text, re.MULTILINE)
    if "Version mismatch" in text and len(versions) == 4:
        theirs, ours = (" and ".join(f"{name} {version}" for name, version in versions[i : i + 2]) for i in (0, 2))
        return f"it has {theirs}, this process {ours}. Install the same versions on all."
    errors = re.findall(r"^(?:[a-z_]+\.)*[A-Z]\w*(?:Error|Exception): (.+)$", text, re.MULTILINE)
    return errors[0] if errors else "it cannot be joined."


def plan_slots(
    address: str,
    device: str | None,
    cpus_per_trial: float | None,
    gpus_per_trial: float | None,
    concurrency: int | None,
) -> dict[str, Any]:
    """Returns device, concurrency, its limit and resources a trial, from what a cluster has and what was asked for.

    As `machine.plan_slots` for one machine, but GPUs are not asked for their memory: a trial has one for itself unless
    a share is asked for. "any" is a GPU where one is free, and else CPU cores. Slots grow and shrink with the cluster,
    up to `limit`, if there is one; `concurrency` are those that it has now, or where it has none, may come to have.

    Raises:
        UserError: There is no such cluster, no node can hold a trial and none that could may come, or a name is wrong.
    """
    if device not in (None, *DEVICES):
        raise unknown_name("--device", device, DEVICES)
    if concurrency is not None and concurrency < 1:
        raise UserError(f"--concurrency must be at least 1, but got {concurrency}.")
    alive, to_come = look(address)
    nodes = [*alive, *(resources for resources, n in to_come if n)]
    most_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    device = device or ("cuda" if most_gpus and gpus_per_trial != 0 else "cpu")
    if device == "cuda" and not (most_gpus and gpus_per_trial != 0):
        raise UserError("--device must be 'cpu' on a cluster without a GPU for trials, but got 'cuda'.")
    if cpus_per_trial is not None and not machine.representable(cpus_per_trial) > 0:
        raise UserError(f"--cpus-per-trial must be at least {1 / machine.RAY_UNITS}, but got {cpus_per_trial:g}.")
    usable_gpus = most_gpus if device != "cpu" else 0.0
    gpus = machine.check_gpus(gpus_per_trial or 0.0, usable_gpus, "the GPUs of a node that are to be used")
    slots: dict[str, Any] = {
        "device": device,
        "cpus_per_trial": 1.0 if cpus_per_trial is None else machine.representable(cpus_per_trial),
        "gpus_per_trial": 1.0 if device != "cpu" and gpus_per_trial is None else gpus,
        "limit": concurrency,
        "address": address,
    }
    now = sum(capacity(slots, alive, []).values())
    if not sum(capacity(slots, alive, to_come).values()):
        fitting = [node for node in nodes if device != "cuda" or node.get("GPU", 0.0) >= slots["gpus_per_trial"]]
        most_cpus = max((node.get("CPU", 0.0) for node in fitting), default=0.0)
        raise UserError(
            f"--cpus-per-trial must be at most {most_cpus:g}, the cores of the largest node, "
            f"but got {slots['cpus_per_trial']:g}. Start more nodes, or ask for less."
        )
    return slots | {"concurrency": now or 1}


def capacity(
    slots: Mapping[str, Any], alive: Sequence[Resources], to_come: Sequence[tuple[Resources, int]]
) -> dict[str, int]:
    """Returns how many trials fit on the nodes there are, or those that an autoscaler may make it, by device."""
    now: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for node in alive:
        now.update(_fitting(slots, node))
    for node, n in to_come:
        later.update({device: fits * (n if n >= 0 else 10_000) for device, fits in _fitting(slots, node).items()})
    both = {device: max(now[device], later[device]) for device in ("cuda", "cpu")}
    limit = slots["limit"] if slots["limit"] is not None else sys.maxsize
    on_gpus = min(both["cuda"], limit)
    return {"cuda": on_gpus, "cpu": min(both["cpu"], limit - on_gpus)}


def _fitting(slots: Mapping[str, Any], node: Resources) -> dict[str, int]:
    """Returns how many trials fit on a node, by their device."""
    cpus, gpus, on_gpus = slots["cpus_per_trial"], slots["gpus_per_trial"], 0
    fit = machine.n_fitting(node.get("CPU", 0.0), 0, cpus, 0.0)
    if slots["device"] != "cpu" and gpus:
        on_gpus = machine.n_fitting(node.get("CPU", 0.0), int(node.get("GPU", 0.0)), cpus, gpus)
    return {"cuda": on_gpus, "cpu": 0 if slots["device"] == "cuda" else fit - on_gpus}


def joining(address: str) -> dict[str, Any]:
    """Returns the arguments of `ray.init` that join a cluster: it gets this package with the job."""
    cluster_internals.accept_token()
    return {
        "address": address,
        "runtime_env": {"py_modules": [str(files.PACKAGE)], "excludes": ["__pycache__"]},
    }

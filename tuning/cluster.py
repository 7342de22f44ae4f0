"""Where trials run: a Ray of our own on this machine, or a cluster that was started elsewhere and is joined.

What is asked of a cluster is what its nodes have now, and what its autoscaler may add. Nothing here knows a trial.
"""

import contextlib
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuning import interrupts, machine, temporary
from tuning.errors import UserError, counted, unknown_name
from tuning.masking import MaskedFormatter

DEVICES = ("cpu", "cuda", "any")
SECONDS_TO_ANSWER, SECONDS_BETWEEN_LOOKS = 25.0, 2.0
# Ray retries a connection for many minutes, so it is tried in a process of its own first. What it prints: the resources
# of each node that is alive, and of each that an autoscaler may add (-1: without end).
_LOOK = """
import json, sys, ray
from ray._private import state
from ray._private.authentication import authentication_token_setup as tokens
tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
config = state.state.get_cluster_config()
groups = config.node_group_configs if config is not None else []
print(json.dumps([alive, [[dict(group.resources), group.max_count] for group in groups]]))
"""
Resources = Mapping[str, float]
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


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
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False)
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


def resources(slots: Mapping[str, Any], device: str) -> dict[str, float]:
    """Returns what a trial on that device asks Ray for."""
    gpus = slots["gpus_per_trial"] if device == "cuda" else 0.0
    return {"CPU": slots["cpus_per_trial"]} | ({"GPU": gpus} if gpus else {})


class Slots:
    """The slots that trials take: so many beside each other as the machine was planned for, or as a cluster has now.

    Args:
        slots: As `plan_slots` gives them, or `machine.plan_slots`.
        is_running: Whether a trial has not ended yet, by its number.
        note: Is told which nodes came and went.

    Attributes:
        most: So many were taken at a time.
    """

    def __init__(
        self, slots: Mapping[str, Any], is_running: Callable[[int], bool], note: Callable[[str], None]
    ) -> None:
        self._slots, self._is_running, self._note = slots, is_running, note
        self._taken: dict[int, str] = {}
        self._names: dict[str, str] = {}
        self._capacity = {slots["device"]: slots["concurrency"]}
        self._looked = -math.inf
        self.most = 0

    def free(self) -> str | None:
        """Returns the device of a slot that is free, a GPU's first; None where there is none."""
        self.watch()
        self._taken = {number: device for number, device in self._taken.items() if self._is_running(number)}
        used = Counter(self._taken.values())
        return next((device for device, n in self._capacity.items() if used[device] < n), None)

    def take(self, number: int, device: str) -> None:
        """Gives a trial a slot until it has ended."""
        self._taken[number] = device
        self.most = max(self.most, len(self._taken))

    def watch(self) -> None:
        """Asks the cluster what it has now, and says what has changed, if the last time is long enough ago."""
        if self._slots.get("address") is None or time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        import ray
        from ray._private import state

        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        config = state.state.get_cluster_config()
        groups = config.node_group_configs if config is not None else []
        to_come = [(dict(group.resources), group.max_count) for group in groups]
        nodes = [node["Resources"] for node in alive.values()]
        self._capacity = capacity(self._slots, nodes, to_come)
        before, self._names = self._names, {name: _name(node) for name, node in alive.items()}
        now = sum(capacity(self._slots, nodes, []).values())
        side_by_side = f"{counted(now, 'trial')} side by side"
        for verb, names in (("joined", self._names.keys() - before), ("was lost", before.keys() - self._names)):
            for name in names if before else ():
                self._note(f"Node {(self._names | before)[name]} {verb}; {side_by_side} now.")
        if not now and self._names != before:
            self._note(f"Waiting for a node that can hold a trial ({resources(self._slots, self._slots['device'])}).")


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


@contextlib.contextmanager
def started(slots: Mapping[str, Any], log: logging.Handler) -> Iterator[None]:
    """Starts a Ray of our own, bound to the loopback address of this machine, or joins the cluster at `address`.

    A cluster gets this package with the job, so that its nodes need the dependencies only.

    Args:
        slots: `device`, `concurrency` and `cpus_per_trial`, as `machine.plan_slots` gives them; or `plan_slots`. With
            `dashboard`, Ray's own page is served, on the loopback address.
        log: Gets what Ray has to say, without passwords and keys.
    """
    os.environ |= {
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        # How many trials there are side by side, `Slots` says; Ray would start one after the other.
        "TUNE_MAX_PENDING_TRIALS_PG": "10000",
        "RAY_AIR_NEW_OUTPUT": "0",
        # Ray would run trials at niceness 15, where whatever else the machine does takes their cores from them.
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Tune gives its trials an environment of their own, which the workers that Ray starts in advance do not have.
        "RAY_prestart_worker_first_driver": "0",
    }
    machine.tune_malloc()
    log.setFormatter(MaskedFormatter())
    loggers = [logging.getLogger("ray"), logging.getLogger("ray.tune")]
    with contextlib.ExitStack() as stack:
        stack.callback(log.close)
        for logger in loggers:
            stack.callback(logger.removeHandler, log)
        stack.enter_context(_joined(slots["address"]) if slots.get("address") is not None else _own(slots))
        for logger in loggers:
            logger.handlers, logger.propagate = [log], False
        yield


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    """Joins a cluster."""
    import ray
    from ray._private import ray_constants
    from ray._private.authentication import authentication_token_setup as tokens

    ray_constants.ENABLE_RAY_CLUSTER = True
    tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    code = {"py_modules": [str(Path(__file__).parent)], "excludes": ["__pycache__"]}
    try:
        with _own_handlers():
            ray.init(address=address, runtime_env=code, **_QUIET)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own(slots: Mapping[str, Any]) -> Iterator[None]:
    """Starts a Ray of our own, which ends with this process, or before; none of its files stays."""
    import ray
    from ray._private import ray_constants

    # Where it is false, Ray takes the loopback address for that of the machine; else its ports are open to the world,
    # whatever `_node_ip_address` says (ray 2.60: "127.0.0.1" is replaced by an address that others can reach).
    ray_constants.ENABLE_RAY_CLUSTER = False
    with contextlib.ExitStack() as stack:
        try:
            folder, note = stack.enter_context(temporary.ray_folder())
        except OSError as error:
            raise UserError(str(error)) from error
        if note:
            print(note, flush=True)
        stack.callback(_end_ray)
        with _own_handlers():
            context = ray.init(
                address="local",
                num_cpus=machine.cpus_in_use(slots),
                num_gpus=len(machine.gpu_memory()) if slots["device"] == "cuda" else 0,
                include_dashboard=slots.get("dashboard", False),
                dashboard_host="127.0.0.1",
                _temp_dir=str(folder),
                **_QUIET,
            )
        if slots.get("dashboard", False):
            print(f"Dashboard: http://{context.dashboard_url}")
        yield


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Has signals wait while Ray starts, and keeps Ray's handler of SIGTERM out, which ends the process unsaid."""
    from ray._private import utils

    theirs = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        with interrupts.held_back():
            yield
    finally:
        utils.set_sigterm_handler = theirs


def _end_ray() -> None:
    """Ends all processes of our own Ray at once.

    They do not get SIGTERM (`interrupts.held_back`), for which `ray.shutdown` would wait a second each; and once Ray's
    raylet is killed, its agents would stay for half a minute.
    """
    import psutil  # type: ignore[import-untyped]  # Ray brings one.
    import ray
    from ray._private import worker

    node: Any = worker._global_node
    if node is None:  # It was interrupted while it started.
        ray.shutdown()
        return
    begun = [started.process.pid for kind in node.all_processes.values() for started in kind]
    processes = []
    for pid in begun:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    kill = node.kill_all_processes
    node.kill_all_processes = lambda **how: kill(**how | {"allow_graceful": False})
    ray.shutdown()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def get(answer: Any) -> Any:
    """Returns what `ray.get` does; a `UserError` of a worker comes as it was, without the worker's traceback.

    Raises:
        UserError: The worker raised it.
    """
    import ray

    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def check_dashboard(address: str | None) -> None:
    """Raises UserError where Ray's dashboard cannot be served from here."""
    import importlib.util

    if address is not None:
        raise UserError("--dashboard must be left out with --address, for that cluster has one of its own, if any.")
    if importlib.util.find_spec("aiohttp_cors") is None:
        raise UserError(
            "--dashboard must have the package ray[default], but it is missing. Run `pip install 'ray[default]'`."
        )

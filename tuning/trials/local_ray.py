"""Where trials run: the Ray of this machine, and the slots that trials take."""

import contextlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuning.base import interrupts, machine, temporary
from tuning.base.errors import UserError, counted
from tuning.base.masking import MaskedFormatter

SECONDS_BETWEEN_LOOKS = 2.0  # At what a cluster has.
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


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

        from tuning.remote.cluster import capacity, nodes_to_come

        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        nodes = [node["Resources"] for node in alive.values()]
        self._capacity = capacity(self._slots, nodes, nodes_to_come())
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

    A process that called `ray.init` itself has a Ray already: that is used, and stays. A cluster gets this package with
    the job, so that its nodes need the dependencies only.

    Args:
        slots: `device`, `concurrency` and `cpus_per_trial`, as `machine.plan_slots` gives them; or `plan_slots`. With
            `dashboard`, Ray's own page is served, on the loopback address.
        log: Gets what Ray has to say, without passwords and keys.
    """
    import ray

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
        if ray.is_initialized():
            _check_free(slots)
        else:
            stack.enter_context(_own(slots) if slots.get("address") is None else _joined(slots["address"]))
        for logger in loggers:
            logger.handlers, logger.propagate = [log], False
        yield


def _check_free(slots: Mapping[str, Any]) -> None:
    """Raises UserError where the Ray of this process has no room for the trials, which would wait for ever."""
    import ray

    free, trial = ray.available_resources(), resources(slots, slots["device"])
    fitting = min(int(free.get(name, 0.0) / amount) for name, amount in trial.items())
    if fitting < slots["concurrency"]:
        raise UserError(
            f"--concurrency must be at most {fitting}, the trials that the Ray of this process has room for, but got "
            f"{slots['concurrency']}. Call ray.shutdown() first to search with a Ray of its own."
        )


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    """Joins a cluster."""
    import ray

    from tuning.remote import cluster

    try:
        with _own_handlers():
            ray.init(**cluster.joining(address), **_QUIET)
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

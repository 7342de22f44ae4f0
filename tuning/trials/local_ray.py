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
from tuning.trials import ray_internals
from tuning.trials.slots import Slots

SECONDS_BETWEEN_LOOKS = 2.0  # At what a cluster has.
SECONDS_TO_BE_FREE = 10.0  # So long Ray may take to know that trials have ended.
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class StartError(UserError):
    """Ray did not start in time: nothing has been trained, and nothing is lost."""


class TakenSlots:
    """Which slots trials have taken: so many beside each other as were planned, or as a cluster has now.

    Attributes:
        by_trial: The device of each trial that has a slot, by the trial's number.
        alone: The trials that have all slots of a device.
        most: So many were taken at a time.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._names: dict[str, str] = {}
        self._capacity = {slots.device: slots.concurrency}
        self._looked = -math.inf
        self.by_trial: dict[int, str] = {}
        self.alone: set[int] = set()
        self.most = 0

    def free(self) -> str | None:
        """Returns the device of a slot that is free, a GPU's first; None where there is none."""
        used = Counter(self.by_trial.values())
        used[self._slots.device] += len(self.alone) * (self._slots.a_device - 1)
        return next((device for device, n in self._capacity.items() if used[device] < n), None)

    def take(self, number: int, device: str) -> None:
        """Gives a trial a slot."""
        self.by_trial[number] = device
        self.most = max(self.most, len(self.by_trial))

    def give_back(self, number: int) -> None:
        """Frees the slot of a trial, if it has one."""
        self.by_trial.pop(number, None)
        self.alone.discard(number)

    def watch(self) -> list[str]:
        """Asks the cluster what it has, if the last time is long enough ago; returns a line for each change."""
        if self._slots.address is None or time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return []
        import ray

        from tuning.remote.cluster_internals import nodes_to_come

        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        nodes = [node["Resources"] for node in alive.values()]
        self._capacity = self._slots.capacity(nodes, nodes_to_come())
        before, self._names = self._names, {name: _name(node) for name, node in alive.items()}
        now = sum(self._slots.capacity(nodes).values())
        changes = [("joined", name) for name in self._names.keys() - before] if before else []
        changes += [("was lost", name) for name in before.keys() - self._names]
        side_by_side = f"{counted(now, 'trial')} side by side"
        notes = [f"Node {(self._names | before)[name]} {verb}; {side_by_side} now." for verb, name in changes]
        if not now and self._names != before:
            wanted = self._slots.resources(self._slots.device)
            notes.append(f"Waiting for a node that can hold a trial ({wanted}).")
        return notes


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


@contextlib.contextmanager
def started(
    slots: Slots, log: logging.Handler, *, dashboard: bool = False, note: Callable[[str], None] = print
) -> Iterator[None]:
    """Starts a Ray of our own, bound to the loopback address of this machine, or joins the cluster at `slots.address`.

    Where no address is asked for and a Ray runs in this process already, that one is used, and still runs afterwards.
    Unless the process is a command's, the environment and Ray's loggers are then as before. A cluster gets this package
    with the job, so that its nodes need the dependencies only.

    Args:
        slots: Those that it must have.
        log: Gets what Ray has to say, without passwords and keys.
        dashboard: Serve Ray's own page, on the loopback address.
        note: Receives what a person should know.
    """
    import ray

    loggers = [logging.getLogger("ray"), logging.getLogger("ray.tune")]
    with contextlib.ExitStack() as stack:
        stack.callback(log.close)
        is_theirs = slots.address is None and ray.is_initialized()
        is_shared = is_theirs or not interrupts.is_command()  # With what else the process does.
        for logger in loggers:
            before = {"handlers": logger.handlers, "propagate": logger.propagate}
            stack.callback(vars(logger).update, before if is_shared else {"handlers": [], "propagate": False})
        if is_theirs:
            _check_free(slots)
        if is_shared:
            stack.callback(_set_environment, dict(os.environ))
        os.environ |= ray_internals.ENVIRONMENT
        if not is_theirs:
            machine.tune_malloc()
            own = _own(slots, note, dashboard=dashboard) if slots.address is None else _joined(slots.address)
            stack.enter_context(own)
        log.setFormatter(MaskedFormatter())
        for logger in loggers:
            logger.handlers, logger.propagate = [log], False
        yield


def _set_environment(wanted: Mapping[str, str]) -> None:
    """Sets the environment of this process to the one that is wanted."""
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def _check_free(slots: Slots) -> None:
    """Raises UserError where the Ray of this process has no room for the trials, which would wait for ever."""
    import ray

    deadline = time.monotonic() + SECONDS_TO_BE_FREE
    while True:
        free, trial = ray.available_resources(), slots.resources(slots.device)
        fitting = min(int(free.get(name, 0.0) / amount + 1e-6) for name, amount in trial.items())
        if fitting >= slots.concurrency:
            return
        if time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        raise UserError(
            f"--concurrency must be at most {fitting}, the trials that the Ray of this process has room for, but got "
            f"{slots.concurrency}. Call ray.shutdown() first to search with a Ray of its own."
        )


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    """Joins a cluster."""
    import ray

    from tuning.remote import cluster

    try:
        with ray_internals.across_machines(), _own_handlers():
            ray.init(**cluster.joining(address), **_QUIET)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own(slots: Slots, note: Callable[[str], None], *, dashboard: bool) -> Iterator[None]:
    """Starts a Ray of our own, which ends with this process, or before; none of its files stays."""
    with contextlib.ExitStack() as stack:
        try:
            folder, said = stack.enter_context(temporary.ray_folder())
        except OSError as error:
            raise UserError(str(error)) from error
        if said:
            note(said)
        stack.callback(_end_ray)
        quick = ray_internals.without_idle_processes(dashboard=dashboard)
        with ray_internals.on_loopback(), quick, _own_handlers():
            context = _started(
                address="local",
                num_cpus=slots.cpus,
                num_gpus=len(machine.gpu_memory()) if slots.device == "cuda" else 0,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                **ray_internals.in_folder(folder),
                **_QUIET,
            )
        if dashboard:
            note(f"Dashboard: http://{context.dashboard_url}")
        yield


def _started(**options: Any) -> Any:
    """Returns what `ray.init` does; raises StartError where the machine is too busy for Ray to start in time."""
    import ray

    try:
        return ray.init(**options)
    except Exception as error:  # Ray has no class for it: only the text tells.
        if not ray_internals.NOT_STARTED.search(str(error)):
            raise
        said = str(error).partition(". ")[0].rstrip(".")
        raise StartError(
            f"Ray did not start on this machine in time ({said}). Try again when less runs beside it."
        ) from error


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Has signals wait while Ray starts, and keeps Ray's handler of SIGTERM out, which ends the process unsaid."""
    with interrupts.held_back(), ray_internals.without_sigterm_handler():
        yield


def _end_ray() -> None:
    """Ends all processes of our own Ray at once.

    They do not get SIGTERM (`interrupts.held_back`), for which `ray.shutdown` would wait a second each; and once Ray's
    raylet is killed, its agents would stay for half a minute.
    """
    import psutil  # type: ignore[import-untyped]  # Ray brings one.
    import ray

    processes = []
    for pid in ray_internals.kill_quickly():
        with contextlib.suppress(psutil.NoSuchProcess):
            processes += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
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

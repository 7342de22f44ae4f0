"""What Ray does for us under private names, environment variables and texts alone. No other file of the core uses them.

`tests/trials/test_ray_internals.py` fails with the name of what a new version of Ray lacks. At run time a missing name
is no error: Ray then does what it does by default, and each function documents what that is.
"""

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tuning.training import jobs

# How Ray runs trials: `RAY_...` are settings that it documents for its developers, `TUNE_...` those of its users.
ENVIRONMENT = {
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # How many trials there are side by side, `TakenSlots` says; Ray would start one after the other.
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray would run trials at niceness 15, where whatever else the machine does takes their cores from them.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Tune gives its trials an environment of their own, which the workers that Ray starts in advance do not have.
    "RAY_prestart_worker_first_driver": "0",
}
# Methods of Ray's `Node`, the dashboard's first.
IDLE = ("start_api_server", "start_monitor", "start_log_monitor")
# An actor's death is one class of exception, `ActorDiedError`, whatever it died of: only the text tells.
LOST_NODE = re.compile(r"its node has died|is unavailable: ")
NOT_STARTED = re.compile(r"The current node timed out during startup|Failed to start GCS")  # In time, that is.
OUT_OF_MEMORY = re.compile(rf"{jobs.OUT_OF_MEMORY.pattern}|running low on memory")


def private(module: str) -> Any:
    """Returns a private module of Ray; an empty stand-in where this version has none of that name."""
    return _imported(f"ray._private.{module}")


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return SimpleNamespace()


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Has a Ray that is started meanwhile listen on the loopback address; without the name it says that it does not.

    Ray replaces `_node_ip_address="127.0.0.1"` by an address that others can reach, and reads the environment variable
    of this setting once, when it is imported (ray 2.60).
    """
    constants = private("ray_constants")
    if not hasattr(constants, "ENABLE_RAY_CLUSTER"):
        print("This version of Ray opens its ports to the network. Install ray 2.60 to keep them closed.", flush=True)
    with _replaced(constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextlib.contextmanager
def across_machines() -> Iterator[None]:
    """Has a process that joins a cluster meanwhile take an address that other machines reach, on every system."""
    with _replaced(private("ray_constants"), "ENABLE_RAY_CLUSTER", True):
        yield


def in_folder(folder: Path) -> dict[str, Any]:
    """Returns the argument of `ray.init` that puts Ray's files there; RAY_TMPDIR would add a folder to a short path."""
    return {"_temp_dir": str(folder)}


@contextlib.contextmanager
def without_sigterm_handler() -> Iterator[None]:
    """Keeps out Ray's handler of SIGTERM, which ends the process unsaid; without the name Ray sets it.

    `ray.init` takes no handler, and a signal may come before another one can be set.
    """
    with _replaced(private("utils"), "set_sigterm_handler", lambda handler: None):
        yield


@contextlib.contextmanager
def without_idle_processes(*, dashboard: bool) -> Iterator[None]:
    """Has a Ray that is started meanwhile leave out the processes of which a search makes no use.

    They add nodes to a cluster, send what workers print to this process, and count Ray's users, unless there is a
    dashboard to serve. Each takes 0.7 to 0.9 s of a core to start, and Ray waits for the last one (ray 2.60). Without
    the names they are started.
    """
    node = getattr(private("node"), "Node", None)
    with contextlib.ExitStack() as stack:
        for name in IDLE[1:] if dashboard else IDLE:
            stack.enter_context(_replaced(node, name, lambda self, **how: None))
        yield


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Keeps Ray Tune from counting the callbacks of a search for its usage statistics; without the name it counts.

    To know MLflow's callback it imports MLflow, where that is installed: 0.8 s of a core (ray 2.60).
    """
    with _replaced(_imported("ray.air._internal.usage"), "tag_callbacks", lambda callbacks: False):
        yield


def kill_quickly() -> list[int]:
    """Has `ray.shutdown` kill the processes of our own Ray, and returns their numbers.

    It would wait a second for each to obey a SIGTERM that none of them gets, and leaves the agents of a raylet that is
    killed. Without the names, or where Ray was interrupted while it started, there are none, and it does that.
    """
    node: Any = getattr(private("worker"), "_global_node", None)
    kill = getattr(node, "kill_all_processes", None)
    if kill is None:
        return []
    node.kill_all_processes = lambda **how: kill(**how | {"allow_graceful": False})
    return [started.process.pid for kind in getattr(node, "all_processes", {}).values() for started in kind]


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Gives a name of a module another value meanwhile; does nothing where the module has no such name."""
    if not hasattr(module, name):
        yield
        return
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)

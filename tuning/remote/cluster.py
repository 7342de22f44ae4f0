"""A Ray cluster that was started elsewhere, and is joined.

What is asked of a cluster is what its nodes have now, and what its autoscaler may add. Nothing here knows a trial.
"""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tuning.base import files
from tuning.base.errors import UserError
from tuning.remote import cluster_internals

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


def joining(address: str) -> dict[str, Any]:
    """Returns the arguments of `ray.init` that join a cluster: it gets this package with the job."""
    cluster_internals.accept_token()
    return {
        "address": address,
        "runtime_env": {"py_modules": [str(files.PACKAGE)], "excludes": ["__pycache__"]},
    }

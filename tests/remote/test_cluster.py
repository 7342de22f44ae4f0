"""A search on a cluster of several machines, which are namespaces of this one; slots, addresses and open ports."""

import contextlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tuning.base.errors import UserError
from tuning.remote import cluster
from tuning.runs import run_folder
from tuning.trials import local_ray
from tuning.trials.slots import Slots

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
# A network, a file system's mounts, a host name and a process tree of its own, without being root outside of it.
MACHINE = ["unshare", "--map-root-user", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
# As the README has it for a cluster by hand: a node that says nothing for 15 s is lost.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "known-to-all-nodes",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


class Machines:
    """Machines on a network of their own: "head", which is 10.7.0.1, and others. None outlives this object's close."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pids: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.begun: list[subprocess.Popen[bytes]] = []

    def add(self, name: str, *ray_start: str, hidden: tuple[Path, ...] = ()) -> None:
        """Starts a machine with a Ray node on it; it does not see what is in the hidden folders."""
        address = f"10.7.0.{len(self._pids) + 1}"
        outer = self.command("head") if self._pids else []
        process = subprocess.Popen([*outer, *MACHINE, "sleep", "inf"])
        self._processes[name] = process
        parent = _wait_for(lambda: _child(process.pid), f"machine {name}") if outer else process.pid  # nsenter forks
        self._pids[name] = _wait_for(lambda: _ready(_child(parent)), f"machine {name}")
        setup = f"hostname {name}; mount -t tmpfs none /dev/shm; mkdir -p /tmp/ray; mount -t tmpfs none /tmp/ray"
        setup += "".join(f"; mount -t tmpfs none {folder}" for folder in hidden) + "; ip link set lo up"
        if name == "head":
            setup += "; ip link add br0 type bridge; ip link set br0 up; ip addr add 10.7.0.1/24 dev br0"
        else:
            with open(f"/proc/{self._pids[name]}/ns/net") as namespace:
                link = f"ip link add v{name} type veth peer name eth0 netns /proc/self/fd/{namespace.fileno()}"
                self.run("head", f"{link}; ip link set v{name} master br0 up", pass_fds=(namespace.fileno(),))
            setup += f"; ip link set eth0 up; ip addr add {address}/24 dev eth0"
        self.run(name, f"set -e; {setup}")
        start = [
            str(BIN / "ray"),
            "start",
            f"--node-ip-address={address}",
            "--disable-usage-stats",
            "--block",
            *ray_start,
        ]
        said = self._folder / f"{name}.log"
        with said.open("wb") as log:
            ray = subprocess.Popen([*self.command(name), *start], env=ENVIRONMENT, stdout=log, stderr=log)
        self.begun.append(ray)
        if name == "head":
            _wait_for(lambda: "Ray runtime started" in said.read_text(), "the head")

    def command(self, name: str) -> list[str]:
        """Returns the words that run a command on a machine."""
        spaces = ["--user", "--net", "--mount", "--uts", "--pid", "--preserve-credentials"]
        return ["nsenter", f"--target={self._pids[name]}", *spaces, f"--wdns={self._folder}"]

    def run(self, name: str, script: str, **options: Any) -> None:
        """Runs a script on a machine."""
        subprocess.run([*self.command(name), "sh", "-c", script], check=True, timeout=300, **options)

    def kill(self, name: str) -> None:
        """Ends everything on a machine with SIGKILL at once."""
        os.kill(self._pids[name], 9)
        self._processes[name].wait()

    def close(self) -> None:
        for name in reversed(self._pids):
            if self._processes[name].poll() is None:
                self.kill(name)
        for process in self.begun:
            process.wait()


def _child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


def _ready(pid: int) -> int:
    """Returns the process once it sleeps: it maps its user and mounts its /proc between its start and that."""
    return pid if pid and Path(f"/proc/{pid}/comm").read_text().strip() == "sleep" else 0


def _wait_for(found: Callable[[], Any], what: str, seconds: float = 400) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come in {seconds:.0f} s")


def _search(machines: Machines, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Starts a search on the head, in a folder, where "said" gets what it prints."""
    with (folder / "said").open("w") as out:
        command = [*machines.command("head"), sys.executable, "-m", "tuning.search", *options]
        environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
        machines.begun.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
        return machines.begun[-1]


@contextlib.contextmanager
def _machines(folder: Path) -> Iterator[Machines]:
    if shutil.which("unshare") is None or subprocess.run([*MACHINE, "ip", "link"], capture_output=True).returncode:
        pytest.skip("this system gives no namespaces")
    made = Machines(folder)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with _machines(tmp_path) as made:
        yield made


@pytest.mark.slow
def test_a_search_uses_all_nodes_outlives_one_and_takes_in_another(machines: Machines, tmp_path: Path) -> None:
    shared, path, said = tmp_path / "shared", tmp_path / "results" / "one", tmp_path / "said"
    shared.mkdir()
    path.parent.mkdir()
    # What the nodes have of the package, of the runs and of the data is hidden from them.
    where = [sys.executable, "-c", "import tuning; print(tuning.__path__[0])"]
    package = subprocess.run(where, cwd="/", env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()
    node = ("--address=10.7.0.1:6379", "--num-cpus=1")
    hidden = (Path(package), ROOT / "tuning", path.parent)
    machines.add("head", "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false")
    machines.add("a", *node, hidden=hidden)
    machines.add("b", *node, hidden=hidden)

    def alive() -> int:
        status = subprocess.run(
            [*machines.command("head"), str(BIN / "ray"), "status"], env=ENVIRONMENT, capture_output=True
        )
        return status.stdout.count(b" 1 node_")

    _wait_for(lambda: alive() == 3, "the third node")
    size = ["--samples", "4", "--epochs", "12", "--train-images", "6000", "--scheduler", "none", "--space", "smoke"]
    search = _search(machines, tmp_path, *size, "--run", "one", "--address", "auto", "--storage", str(shared))

    def rows(node: str) -> Any:
        trials = run_folder.Run(path).trials
        return trials[(trials["node"] == node) & (trials["state"] == "running") & (trials["epochs"] >= 2)]

    _wait_for(path.exists, "the run folder")
    _wait_for(lambda: len(rows("a")), "a trial in mid-training on a")
    lost = _wait_for(lambda: rows("b").to_dict("records"), "a trial in mid-training on b")[0]
    machines.kill("b")
    _wait_for(
        lambda: f"trial {lost['trial']} failed and is tried again: its node b was lost" in said.read_text(), "note"
    )
    machines.add("c", *node, hidden=hidden)
    assert search.wait(timeout=600) == 0, said.read_text()

    trials = run_folder.Run(path).trials
    assert list(trials["state"]) == ["complete"] * 4, said.read_text()
    row = trials.iloc[lost["trial"]]
    assert row["attempt"] == 2 and row["error"].startswith("its node b was lost: ") and row["node"] in ("a", "c")
    assert (trials["node"] == "a").any() and (trials["node"] == "c").any()
    assert not run_folder.Run(path).epochs.duplicated(["trial", "epoch"]).any()
    log = (shared / "one" / "trials" / f"{lost['trial']:04d}" / "trial.log").read_text()
    assert log.count("EpochResult(epoch=1,") == 1, log
    assert int(log.partition("Going on after epoch ")[2].split(",")[0]) >= 2
    told = " ".join(said.read_text().split())
    # Three, where Ray is not sure yet that b is no more.
    assert re.search(r"Node c \(10.7.0.4\) joined; [23] trials side by side now\.", told), said.read_text()


@pytest.mark.slow
def test_a_search_whose_head_is_lost_goes_on_from_the_storage_on_another_cluster(tmp_path: Path) -> None:
    shared, before, after = tmp_path / "shared", tmp_path / "before", tmp_path / "after"
    for folder in (shared, before, after):
        folder.mkdir()
    head = ("--head", "--port=6379", "--num-cpus=1", "--include-dashboard=false")
    with _machines(before) as machines:
        machines.add("head", *head)
        size = ["--samples", "2", "--epochs", "12", "--train-images", "6000", "--scheduler", "none", "--space", "smoke"]
        given = ["--run", "one", "--address", "auto", "--storage", str(shared), *size]
        search = _search(machines, before, *given)
        stored = shared / "one" / "trials.csv"

        def in_mid_training() -> bool:
            return stored.exists() and (run_folder.Run(shared / "one").trials["epochs"] >= 2).any()

        _wait_for(in_mid_training, "a stored trial in mid-training")
        search.kill()
        machines.kill("head")
        search.wait()
    shutil.rmtree(before / "results")
    with _machines(after) as machines:
        machines.add("head", *head)
        search = _search(machines, after, "--resume", f"file://{shared}/one", "--address", "auto")
        assert search.wait(timeout=600) == 0, (after / "said").read_text()
    run = run_folder.Run(after / "results" / "one")
    assert list(run.trials["state"]) == ["complete"] * 2 and not run.epochs.duplicated(["trial", "epoch"]).any()
    log = (shared / "one" / "trials" / "0000" / "trial.log").read_text()
    assert log.count("EpochResult(epoch=1,") == 1 and "Going on after epoch " in log, log


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "nothing answers there .* Start one with `ray start --head`"),
        ("head", "--address must be auto or the HOST:PORT of a Ray cluster .*, but got 'head'"),
        ("ray://head:10001", "it cannot run through Ray's client: run it on the head node"),
        ("127.0.0.1:99999", "nothing answers there"),
        ("no.such.host.invalid:6379", "nothing answers there"),
    ],
)
def test_an_address_without_a_cluster_is_named(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cluster.look(address)


def test_what_answers_but_is_no_cluster_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS_TO_ANSWER", 4.0)
    gives_up = pytest.raises(UserError, match="it gave no answer in 4 s")
    with socket.create_server(("127.0.0.1", 0)) as server, gives_up:
        cluster.look(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_cluster_of_other_versions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"ray_version": "2.9.0", "python_version": "3.8.1"}
    monkeypatch.setattr(
        cluster, "_LOOK", f"from ray._private.utils import check_version_info; check_version_info({other}, 'here')"
    )
    with pytest.raises(UserError, match=r"it has Ray 2.9.0 and Python 3.8.1, this process Ray [\d.]+ and Python 3"):
        cluster.look("auto")


def test_no_cluster_at_all_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(
        cluster,
        "_LOOK",
        cluster._LOOK.replace("import json", "import psutil\npsutil.process_iter = lambda *a, **k: []\nimport json"),
    )
    with pytest.raises(UserError, match="Could not find any running Ray instance"):
        cluster.look("auto")


def test_a_dashboard_that_cannot_be_served_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--dashboard must be left out with --address"):
        local_ray.check_dashboard("auto")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--dashboard must have the package ray\[default\], but it is missing"):
        local_ray.check_dashboard(None)


# Prints how many sockets Ray listens on, and which of them beyond the loopback address, while a task is running. Then a
# worker raises what a user can mend, where `ray.get` says it with Ray's traceback; the last line is what is left.
ENDING = """
import logging, os, pathlib, signal, sys, time, psutil, ray
from tuning.trials import local_ray
from tuning.trials.slots import Slots
from tuning.base.errors import UserError
def fail():
    raise UserError("Free some space.")
def wait():
    time.sleep(60)
def mask():
    import signal
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
def listening():
    inodes, processes = {}, [pathlib.Path("/proc/self")]
    for process in processes:
        for task in process.glob("task/*/children"):
            processes += [pathlib.Path("/proc", child) for child in task.read_text().split()]
        for descriptor in process.glob("fd/*"):
            inodes[str(descriptor.readlink()) if descriptor.is_symlink() else ""] = process
    sockets = [line.split() for kind in ("tcp", "tcp6") for line in open(f"/proc/net/{kind}").readlines()[1:]]
    ours = [s[1].split(":")[0] for s in sockets if s[3] == "0A" and f"socket:[{s[9]}]" in inodes]
    print(len(ours), [address for address in ours if not address.endswith("0100007F")])
slots = Slots("cpu", 5, 0.5)
with local_ray.started(slots, logging.NullHandler()):
    assert ray.cluster_resources()["CPU"] == 3
    try:
        local_ray.get(ray.remote(max_retries=0)(fail).remote())
    except UserError as error:
        print(type(error).__name__, str(error))
    assert {signal.SIGTERM, signal.SIGHUP} <= set(local_ray.get(ray.remote(mask).remote()))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    listening()
    folder = ray._private.worker._global_node.get_session_dir_path()
    assert os.path.exists(folder)
    running = ray.remote(wait).remote()
    time.sleep(1)
    began = time.monotonic()
print(time.monotonic() - began < 4, os.path.exists(folder), len(psutil.Process().children(recursive=True)))
"""


@pytest.mark.slow
def test_a_ray_of_our_own_holds_all_slots_listens_here_alone_says_errors_as_they_are_and_leaves_nothing() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ENDING], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    error, listening, left = done.stdout.splitlines()
    assert (error, left) == ("UserError Free some space.", "True False 0")
    n_sockets, beyond = listening.split(maxsplit=1)
    assert int(n_sockets) >= 4 and beyond == "[]"


# Runs a search where a Ray runs already; then prints whether the environment, the logger and that Ray are as before.
INSIDE = """
import logging, os, sys, ray
from tuning import search
from tuning.base.errors import run_command
ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
def of_ray():
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "TUNE_", "GLIBC_"))}
before, handlers = of_ray(), list(logging.getLogger("ray").handlers)
sys.argv[1:] = ["--space", "smoke", "--samples", "3", "--epochs", "1", "--train-images", "200", "--run", "one"]
try:
    run_command(search.main)
except SystemExit as ended:
    print("ended", ended.code)
print(of_ray() == before, logging.getLogger("ray").handlers == handlers, ray.get(ray.remote(lambda: 7).remote()))
"""


@pytest.mark.slow
def test_a_search_inside_a_running_ray_uses_it_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", INSIDE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True True 7", done.stdout + done.stderr
    run = run_folder.Run(tmp_path / "results" / "one")
    assert list(run.trials["state"]) == ["complete"] * 3 and run.settings["concurrency"] == 3


def test_where_no_temporary_folder_can_be_had_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tuning.base.temporary.bases", lambda: [tmp_path / "file"])
    slots = Slots("cpu", 1)
    wanted = pytest.raises(UserError, match="Ray needs a temporary folder, and none can be used")
    with wanted, local_ray.started(slots, logging.NullHandler()):
        pass


def test_the_log_of_ray_has_no_password_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logger = logging.getLogger("ray.tune")
    monkeypatch.setattr("os.environ", dict(os.environ))
    monkeypatch.setattr(local_ray, "_own", lambda slots, note, dashboard: contextlib.nullcontext())
    for each in (logger, logging.getLogger("ray")):
        monkeypatch.setattr(each, "handlers", [])
        monkeypatch.setattr(each, "propagate", True)
    with local_ray.started(Slots("cpu", 1), logging.FileHandler(tmp_path / "driver.log")):
        logger.error("No answer from http://bob:hunter2@host")
    assert (tmp_path / "driver.log").read_text() == "No answer from http://***@host\n"

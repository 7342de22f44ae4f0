"""Names that Ray does not document: each is still there, or a test says which is gone, and where it was used."""

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray

from tuning.trials import ray_internals

FOLDER = Path(ray.__file__).parent
SEE = f"see {Path(ray_internals.__file__).name}, where it is used"


@functools.cache
def says(text: str, files: Sequence[str]) -> bool:
    """Returns whether one of Ray's files has a text in it, which may be a program."""
    return any(text.encode() in path.read_bytes() for file in files for path in FOLDER.glob(file))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ray_constants", "ENABLE_RAY_CLUSTER"),
        ("utils", "set_sigterm_handler"),
        ("worker", "_global_node"),
        ("node", "Node.kill_all_processes"),
        *(("node", f"Node.{name}") for name in ray_internals.IDLE),
    ],
)
def test_ray_has_the_private_names(module: str, name: str) -> None:
    found = ray_internals.private(module)
    for part in name.split("."):
        assert hasattr(found, part), f"ray {ray.__version__} has no ray._private.{module}.{name}: {SEE}"
        found = getattr(found, part)


def test_ray_tune_has_the_name_that_counts_callbacks() -> None:
    from ray.air._internal import usage

    assert hasattr(usage, "tag_callbacks"), f"ray {ray.__version__} has no tag_callbacks: {SEE}"
    before = usage.tag_callbacks
    with ray_internals.uncounted():
        assert usage.tag_callbacks is not before and not usage.tag_callbacks([])
    assert usage.tag_callbacks is before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tune/tune.py", "air_usage.tag_callbacks(callbacks)"),
        ("_private/services.py", "if not ray_constants.ENABLE_RAY_CLUSTER:"),
        ("_private/worker.py", "ray._private.utils.set_sigterm_handler("),
        ("_private/node.py", "ray._private.utils.set_sigterm_handler("),
        ("_private/worker.py", "_global_node.kill_all_processes("),
        ("_private/node.py", "self.all_processes"),
        *(("_private/node.py", f"self.{name}(") for name in ray_internals.IDLE),
        ("_private/worker.py", 'kwargs.pop("_temp_dir"'),
    ],
)
def test_ray_uses_what_we_replace(file: str, text: str) -> None:
    assert says(text, (file,)), f"ray {ray.__version__} does not write {text!r} in {file} any more: {SEE}"


def test_ray_kills_at_once_when_it_is_told_to() -> None:
    parameters = inspect.signature(ray_internals.private("node").Node.kill_all_processes).parameters
    assert "allow_graceful" in parameters, f"Node.kill_all_processes of ray {ray.__version__} is another: {SEE}"


@pytest.mark.parametrize("name", ray_internals.ENVIRONMENT)
def test_ray_reads_each_variable_that_we_set(name: str) -> None:
    files = ("tune/**/*.py", "train/v2/_internal/constants.py", "_private/**/*.py", "air/**/*.py", "_raylet.so")
    files += ("core/src/ray/raylet/raylet",)
    plain = name.removeprefix("RAY_") if name.islower() or name[4:].islower() else name
    assert says(plain, files), f"ray {ray.__version__} reads no variable {name}: {SEE}"


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("its node has died", ("core/src/ray/gcs/gcs_server",)),
        ("is unavailable: ", ("exceptions.py",)),
        ("running low on memory", ("core/src/ray/raylet/raylet",)),
        ("OutOfMemoryError", ("exceptions.py",)),
    ],
)
def test_ray_still_says_of_a_death_what_we_look_for(text: str, files: Sequence[str]) -> None:
    assert says(text, files), f"ray {ray.__version__} does not say {text!r} any more: {SEE}"
    assert ray_internals.LOST_NODE.search(text) or ray_internals.OUT_OF_MEMORY.search(text)


@pytest.mark.parametrize("text", ["The current node timed out during startup", "Failed to {'start' if self.head"])
def test_ray_still_says_that_it_did_not_start_in_time(text: str) -> None:
    assert says(text, ("_private/node.py",)), f"ray {ray.__version__} does not say {text!r} any more: {SEE}"
    assert ray_internals.NOT_STARTED.search(text.replace("{'start' if self.head", "start GCS"))


def test_without_the_names_ray_does_what_it_does_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_internals, "private", lambda module: ray_internals.SimpleNamespace())
    idle = ray_internals.without_idle_processes(dashboard=False)
    with ray_internals.on_loopback(), ray_internals.without_sigterm_handler(), idle:
        assert ray_internals.kill_quickly() == []
    assert "opens its ports to the network. Install ray 2.60" in capsys.readouterr().out
    monkeypatch.undo()
    assert vars(ray_internals.private("no_such_module")) == {}


def test_what_is_replaced_comes_back() -> None:
    utils, constants = ray_internals.private("utils"), ray_internals.private("ray_constants")
    before = utils.set_sigterm_handler, constants.ENABLE_RAY_CLUSTER
    with ray_internals.on_loopback(), ray_internals.without_sigterm_handler():
        assert utils.set_sigterm_handler is not before[0] and constants.ENABLE_RAY_CLUSTER is False
    assert before == (utils.set_sigterm_handler, constants.ENABLE_RAY_CLUSTER)


@pytest.mark.parametrize("dashboard", [False, True])
def test_processes_that_no_search_uses_are_left_out_and_the_dashboard_where_none_is_asked_for(dashboard: bool) -> None:
    node = ray_internals.private("node").Node
    before = {name: getattr(node, name) for name in ray_internals.IDLE}
    with ray_internals.without_idle_processes(dashboard=dashboard):
        left_out = [name for name in ray_internals.IDLE if getattr(node, name) is not before[name]]
    assert left_out == ["start_api_server"] * (not dashboard) + ["start_monitor", "start_log_monitor"]
    assert before == {name: getattr(node, name) for name in ray_internals.IDLE}

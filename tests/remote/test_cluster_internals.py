"""Names of a cluster that Ray does not document: each is still there, or a test says which is gone."""

import importlib
import inspect
import os
import sys
from types import SimpleNamespace

import pytest
import ray

from tuning.remote import cluster_internals

TOKENS = "ray._private.authentication.authentication_token_setup"


@pytest.mark.parametrize(
    ("module", "name"),
    [(TOKENS, "maybe_enable_token_auth_if_token_available"), ("ray._private.state", "GlobalState.get_cluster_config")],
)
def test_ray_has_the_private_names(module: str, name: str) -> None:
    missing = f"ray {ray.__version__} has no {module}.{name}: see tuning/remote/cluster_internals.py, where it is used"
    try:
        found = importlib.import_module(module)
    except ImportError:
        pytest.fail(missing)
    for part in name.split("."):
        assert hasattr(found, part), missing
        found = getattr(found, part)


def test_a_token_is_accepted_without_a_warning_where_there_is_none() -> None:
    function = importlib.import_module(TOKENS).maybe_enable_token_auth_if_token_available
    assert "warn_if_disabled" in inspect.signature(function).parameters, "see tuning/remote/cluster_internals.py"


def test_without_the_names_nothing_is_to_come_and_no_token_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TOKENS, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray._private.state", SimpleNamespace(state=object()))
    before = dict(os.environ)
    cluster_internals.accept_token()
    assert dict(os.environ) == before
    assert cluster_internals.nodes_to_come() == []


def test_what_an_autoscaler_may_add_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import state
    from ray.core.generated import autoscaler_pb2

    config = autoscaler_pb2.ClusterConfig()
    config.node_group_configs.add(resources={"CPU": 4}, max_count=-1)
    monkeypatch.setattr(state.state, "get_cluster_config", lambda: config)
    assert cluster_internals.nodes_to_come() == [({"CPU": 4}, -1)]

"""What Ray says of a cluster under private names alone. No other file of this folder uses them.

`tests/remote/test_cluster_internals.py` fails with the name of what a new version of Ray lacks.
"""

import contextlib
from collections.abc import Mapping


def accept_token() -> None:
    """Has this process use the token that is on this machine, if any; without the name, RAY_AUTH_MODE=token does.

    `ray.init` looks for a token with the address "auto", and with no other (ray 2.60).
    """
    with contextlib.suppress(ImportError):
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def nodes_to_come() -> list[tuple[Mapping[str, float], int]]:
    """Returns the nodes that the autoscaler of the joined cluster may add: their resources, and how many (-1: any).

    `ray.nodes()` knows those that are there. Without the name no node is waited for that is not there yet.
    """
    try:
        from ray._private.state import state

        config = state.get_cluster_config()
    except (ImportError, AttributeError):
        config = None
    groups = config.node_group_configs if config is not None else []
    return [(dict(group.resources), group.max_count) for group in groups]

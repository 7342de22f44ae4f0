"""Search spaces: one module a space, each with `space(trial) -> dict`."""

"""The rim of the house, `figures/` and `remote/`: a local search and `final` run where both folders are deleted."""

from collections.abc import Callable
from importlib.util import find_spec

from tuning.base.errors import UserError


def is_there(folder: str) -> bool:
    """Returns whether a folder of the rim is part of this installation."""
    spec = find_spec(f"tuning.{folder}")
    return spec is not None and spec.origin is not None  # What a deletion left, such as `__pycache__`, has no origin.


def usable(folder: str, what: str, tell: Callable[[str], None]) -> bool:
    """Returns whether a folder of the rim is there; where it is not, tells that `what` is skipped."""
    if not is_there(folder):
        tell(f"{what} skipped, because the folder tuning/{folder}/ is not installed.")
        return False
    return True


def need(folder: str, what: str) -> None:
    """Raises UserError where a folder of the rim, without which there is no `what`, is not there."""
    if not is_there(folder):
        raise UserError(f"{what} needs the folder tuning/{folder}/, which is not installed. Put the folder back first.")

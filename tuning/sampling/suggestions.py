"""`Steady`: what a space may suggest. Optuna cannot compare trials whose parameters differ in more than a range.

What must never live here: how a space is found, and which of its choices this machine leaves out.
"""

import functools
from typing import Any

import optuna

from tuning.base.errors import UserError

# How Optuna says that a trial, an earlier one or this one, has had another distribution of the name -> what differs.
_REFUSED = {
    "different distribution kind": "is of another type",
    "different log configuration": "is of another scale (log or linear)",
    "does not support dynamic value space": "has other choices",
}


class Steady:
    """A trial that names the parameter that Optuna refuses, as it differs from that of an earlier trial.

    Args:
        trial: Optuna's, of any kind.
    """

    def __init__(self, trial: optuna.trial.BaseTrial) -> None:
        self._trial = trial

    def __getattr__(self, attribute: str) -> Any:
        """Returns what the trial has; of a `suggest_...`, one that raises UserError for such a parameter."""
        found = getattr(self._trial, attribute)
        if not attribute.startswith("suggest_"):
            return found

        @functools.wraps(found)
        def suggest(name: str, *given: Any, **named: Any) -> Any:
            try:
                return found(name, *given, **named)
            except ValueError as error:
                for text, difference in _REFUSED.items():
                    if text in str(error):
                        raise UserError(_refusal(name, difference)) from error
                raise

        return suggest


def _refusal(parameter: str, difference: str) -> str:
    return (
        f"The parameter {parameter!r} {difference} than in an earlier trial, so no sampler can compare the two. "
        f"Suggest each under a name of its own, e.g. {parameter + '_1'!r} and {parameter + '_2'!r}."
    )

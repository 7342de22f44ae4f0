"""Search spaces: found by name or file, checked before the first trial, limited to what this machine can do.

A space is a module with `space(trial) -> dict`; it may have `FIRST`, a list of points to try first, and `GPU_ONLY`, a
mapping from names of categorical parameters to the choices that a search on CPUs leaves out.
"""

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from tuning.config import TrainConfig, parse_config
from tuning.errors import UserError, unknown_name
from tuning.suggestions import Steady

SPACES = Path(__file__).parent.parent / "search_spaces"
_DRAWS_TO_CHECK = 50


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        name: Its name, or its file's.
        file: Its path.
        source: The module's text; a run keeps it as `space.py`.
        define: The module's `space(trial) -> dict`.
        first: Points to try first, as parameters of the trial.
        gpu_only: Choices that a search on CPUs leaves out.
        left_out: Choices that are left out.
    """

    name: str
    file: str
    source: str
    define: Callable[[Any], Mapping[str, Any]]
    first: Sequence[Mapping[str, Any]]
    gpu_only: Mapping[str, Sequence[Any]]
    left_out: Mapping[str, Sequence[Any]]

    def sample(self, trial: optuna.trial.BaseTrial, epochs: int) -> TrainConfig:
        """Returns the configuration that the space makes of a trial; `epochs` counts where the space sets none.

        Raises:
            UserError: The space raised, gave no mapping, or an unknown or out-of-range hyperparameter.
        """
        try:
            values = self.define(_Limited(Steady(trial), self.left_out))
        except UserError as error:
            raise UserError(f"Search space {self.name}: {error}") from error
        except Exception as error:  # The space is a user's code: whatever it raises is for the user to mend.
            raise UserError(
                f"Search space {self.name} must return hyperparameters, but {_raised(error, self.file)}."
            ) from error
        if not isinstance(values, Mapping):
            raise UserError(f"Search space {self.name} must return a dict, but got {type(values).__name__}.")
        return parse_config({"epochs": epochs, **values}, f"Search space {self.name}")

    def without(self, left_out: Mapping[str, Sequence[Any]]) -> "Space":
        """Returns the space less these choices, and less the first points that need them."""
        merged = {k: [*self.left_out.get(k, []), *left_out.get(k, [])] for k in {**self.left_out, **left_out}}
        first = [p for p in self.first if not any(p.get(name) in gone for name, gone in merged.items() if name in p)]
        return replace(self, left_out=merged, first=first)


class _Limited:
    """A trial that does not offer certain choices; all else is the trial's own."""

    def __init__(self, trial: Steady, left_out: Mapping[str, Sequence[Any]]) -> None:
        self._trial = trial
        self._left_out = left_out

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        kept = [choice for choice in choices if choice not in self._left_out.get(name, ())]
        return self._trial.suggest_categorical(name, kept or list(choices))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


def _raised(error: Exception, file: str) -> str:
    """Returns what a user's code raised, and in which line of its file."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"line {error.lineno} raised SyntaxError({error.msg!r})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"line {lines[-1]} raised {error!r}" if lines else f"raised {error!r}"


def space_names() -> list[str]:
    """Returns the names of the spaces that come with the project."""
    return sorted(path.stem for path in SPACES.glob("*.py") if not path.stem.startswith("_"))


def load_space(name: str) -> Space:
    """Returns a space by name, or by the path of a .py file.

    Raises:
        UserError: The name is unknown (the closest is given); the file is missing, fails to import or has no `space`.
    """
    if name.endswith(".py"):
        path = Path(name)
    elif name in space_names():
        path = SPACES / f"{name}.py"
    else:
        raise unknown_name("Search space", name, space_names())
    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--space must be a readable .py file, but got {name!r}: {error}.") from error
    module: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(source, str(path), "exec"), module)
    except Exception as error:  # The user's code again.
        raise UserError(
            f"Search space {path} must import without an error, but {_raised(error, str(path))}."
        ) from error
    if not callable(module.get("space")):
        raise UserError(f"Search space {path} must define space(trial) -> dict, but has no such function.")
    return Space(path.stem, str(path), source, module["space"], module.get("FIRST", []), module.get("GPU_ONLY", {}), {})


def check_space(space: Space, epochs: int) -> set[str]:
    """Draws points at random, and the first points, before any trial runs; returns the parameters that it offers.

    Raises:
        UserError: One of them is not a valid configuration.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    offered: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # An out-of-range first point is only a warning for Optuna.
        for _ in range(_DRAWS_TO_CHECK):
            trial = study.ask()
            space.sample(trial, epochs)
            offered |= {f"{name}={value!r}" for name, value in trial.params.items()}
        for point in space.first:
            try:
                space.sample(optuna.trial.FixedTrial(dict(point)), epochs)
            except UserError as error:
                raise UserError(f"FIRST must hold points of the space, but got {dict(point)}. {error}") from error
    return offered

"""Search spaces: found by name or file, checked before the first trial, limited to what this machine can do.

A space is a module with `space(trial) -> dict`; it may have `FIRST`, a list of points to try first, and `GPU_ONLY`, a
mapping from names of categorical parameters to the choices that a search on CPUs leaves out.
"""

import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from tuning.base import files
from tuning.base.config import TrainConfig, parse_config
from tuning.base.errors import UserError, unknown_name
from tuning.base.registries import OWN
from tuning.sampling.study_storage import quiet
from tuning.sampling.suggestions import Steady
from tuning.sampling.surroundings import Surroundings, of_run

SPACES, space_names = files.SPACES, files.space_names
_WITHIN = 1e-9  # Of a range.
_DRAWS_TO_CHECK = 50
_MOST_DRAWS = 500  # To see a parameter of a rare branch.
# Parameters with choices for which a machine may lack weights or packages.
OF_NETWORK = ("pretrained", "network", "architecture")
# Choices that a machine may lack, beside those that a space names as for GPUs only: the pretrained weights.
LIMITED = {"pretrained": [True]}
# Optuna's warnings of what is wrong with a space: a first point out of its range, a choice that no study can keep, and
# a parameter that is drawn twice from two ranges.
_WRONG = ("The value .* is out of", "Choices for a categorical distribution should be", "Inconsistent parameter values")


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
        left_out: Choices that are not drawn, because this machine cannot do them.
        recorded: Choices that the run's study has on record.
        surroundings: What its code uses from beside its file; None where it has no file.
        own: The architecture of the user's own file, which the space calls "own"; "" where there is none.
        best_before: The best points of earlier runs, which are tried before `first`.
        interleaved: `first` takes every second trial only, as the sampler knows earlier runs.
    """

    name: str
    file: str
    source: str
    define: Callable[[Any], Mapping[str, Any]]
    first: Sequence[Mapping[str, Any]]
    gpu_only: Mapping[str, Sequence[Any]]
    left_out: Mapping[str, Sequence[Any]]
    recorded: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    surroundings: Surroundings | None = None
    own: str = ""
    best_before: Sequence[Mapping[str, Any]] = ()
    interleaved: bool = False

    def sample(self, trial: optuna.trial.BaseTrial, epochs: int) -> TrainConfig:
        """Returns the configuration that the space makes of a trial; `epochs` counts where the space sets none.

        Raises:
            UserError: The space raised, gave no mapping, or an unknown or out-of-range hyperparameter.
        """
        try:
            with self.surroundings.active() if self.surroundings else nullcontext():
                values = self.define(_Limited(Steady(trial), self))
        except UserError as error:
            raise UserError(f"Search space {self.name}: {error}") from error
        except (Exception, SystemExit) as error:  # A user's code: whatever it raises is for the user to mend.
            raise UserError(
                f"Search space {self.name} must return hyperparameters, but {_raised(error, self.file)}."
            ) from error
        if not isinstance(values, Mapping):
            raise UserError(f"Search space {self.name} must return a dict, but got {type(values).__name__}.")
        values = {"epochs": epochs, **({"architecture": OWN} if self.own else {}), **values}
        if values.get("architecture") == OWN:
            if not self.own:
                raise UserError(f'Search space {self.name}: architecture "own" needs a file of yours: --model FILE.')
            values["architecture"] = self.own
        return parse_config(values, f"Search space {self.name}")

    def without(self, left_out: Mapping[str, Sequence[Any]]) -> "Space":
        """Returns the space less these choices, and less the first points that need them.

        The choices stay in the distribution that Optuna records, so that a run can be resumed where more is possible,
        or less; they are not drawn (`possible`).
        """
        merged = {k: [*self.left_out.get(k, []), *left_out.get(k, [])] for k in {**self.left_out, **left_out}}
        space = replace(self, left_out=merged)
        return replace(space, first=[point for point in self.first if space.is_possible(point)])

    def is_possible(self, params: Mapping[str, Any]) -> bool:
        """Returns whether a point has none of the choices that are left out, nor one that its study cannot record."""
        offered = all(params[name] in choices for name, choices in self.recorded.items() if name in params)
        return offered and not any(params[name] in gone for name, gone in self.left_out.items() if name in params)

    def possible(self, sampler: optuna.samplers.BaseSampler) -> optuna.samplers.BaseSampler:
        """Returns a sampler that draws what `sampler` does, less the choices that are left out."""
        from tuning.sampling.possible import PossibleSampler

        return PossibleSampler(sampler, self.left_out) if self.left_out else sampler

    def as_recorded(self, trials: Sequence[optuna.trial.FrozenTrial]) -> "Space":
        """Returns the space with the choices that a study has recorded, where it has fewer.

        Version 0.2.0 recorded only those that were possible when a run was begun, and Optuna takes no others later.
        """
        recorded: dict[str, tuple[Any, ...]] = {}
        for trial in trials:
            for name, one in trial.distributions.items():
                if isinstance(one, optuna.distributions.CategoricalDistribution):
                    recorded[name] = one.choices
        space = replace(self, recorded=recorded)
        first, before = ([p for p in points if space.is_possible(p)] for points in (self.first, self.best_before))
        return replace(space, first=first, best_before=before)


class _Limited:
    """A trial that offers the choices which its study has recorded; all else is the trial's own."""

    def __init__(self, trial: Steady, space: Space) -> None:
        self._trial = trial
        self._space = space

    def suggest_categorical(self, name: str, choices: Iterable[Any]) -> Any:
        choices = tuple(choices)
        recorded, limited = self._space.recorded.get(name, ()), {**LIMITED, **self._space.gpu_only}.get(name, ())
        lacking = [choice for choice in choices if choice not in recorded]
        if recorded and len(lacking) + len(recorded) == len(choices) and all(one in limited for one in lacking):
            choices = recorded
        if choices and all(choice in self._space.left_out.get(name, ()) for choice in choices):
            raise UserError(
                f"This machine can do none of the choices of {name!r}. Add one that needs no GPU or weights."
            )
        return self._trial.suggest_categorical(name, choices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


def _raised(error: BaseException, file: str) -> str:
    """Returns what a user's code raised, and in which line of its file."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"line {error.lineno} raised SyntaxError({error.msg!r})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"line {lines[-1]} raised {error!r}" if lines else f"raised {error!r}"


def shipped_config(path: Path) -> Path:
    """Returns the file of a configuration: a path of the user's, or the name of one that comes with the project.

    Raises:
        UserError: It is a name, not a path, and no configuration of that name comes with the project.
    """
    if path.suffix or len(path.parts) > 1 or path.exists():
        return path
    names = sorted(file.stem for file in SPACES.glob("*.yaml"))
    if str(path) not in names:
        raise unknown_name("--config without a file's suffix", str(path), names)
    return SPACES / f"{path}.yaml"


def load_space(name: str) -> Space:
    """Returns a space by name, or by the path of a .py file.

    Raises:
        UserError: The name is unknown (the closest is given); the file is missing, fails to import or has no `space`.
    """
    if name.endswith(".py"):
        path = files.expanded(name)
    elif name in space_names():
        path = SPACES / f"{name}.py"
    else:
        unknown = unknown_name("Search space", name, space_names())
        is_file = files.expanded(f"{name}.py").is_file()
        raise UserError(f"{unknown} Your file is --space {files.as_typed(f'{name}.py')}.") if is_file else unknown
    around = of_run(path) or Surroundings(path, Path.cwd())
    try:
        source = around.file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--space must be a readable .py file, but got {name!r}: {error}.") from error
    file = str(around.file)
    try:
        module = around.execute(source)
    except (Exception, SystemExit) as error:  # The user's code again.
        raise UserError(f"Search space {path} must import without an error, but {_raised(error, file)}.") from error
    if not callable(module.get("space")):
        raise UserError(f"Search space {path} must define space(trial) -> dict, but has no such function.")
    first, gpu_only = first_points(module.get("FIRST", []), path), gpu_choices(module.get("GPU_ONLY", {}), path)
    return Space(path.stem, file, source, module["space"], first, gpu_only, {}, surroundings=around)


def are_points(value: Any) -> bool:
    """Returns whether a value has the form of `FIRST`: a list of mappings."""
    return isinstance(value, list | tuple) and all(isinstance(point, Mapping) for point in value)


def are_choices(value: Any) -> bool:
    """Returns whether a value has the form of `GPU_ONLY`: a mapping to lists."""
    return isinstance(value, Mapping) and all(isinstance(each, list | tuple) for each in value.values())


def first_points(points: Any, path: Path | str) -> list[dict[str, Any]]:
    """Returns the first points of a space, with numpy's numbers as Python's.

    Raises:
        UserError: They are no list of points, or one holds what a study cannot record.
    """
    if not are_points(points):
        raise UserError(f"FIRST of search space {path} must be a list of points {{name: value}}, but got {points!r}.")
    found = [{name: value.item() if hasattr(value, "item") else value for name, value in p.items()} for p in points]
    for point in found:
        for name, value in point.items():
            if not isinstance(name, str) or not isinstance(value, types.NoneType | bool | int | float | str):
                raise UserError(
                    f"FIRST of search space {path} must have texts, numbers, True, False or None, but {name!r} "
                    f"is {value!r}."
                )
    return found


def gpu_choices(limited: Any, path: Path | str) -> dict[str, list[Any]]:
    """Returns the choices that need a GPU; raises UserError where they are not lists by name."""
    if not are_choices(limited):
        raise UserError(f"GPU_ONLY of search space {path} must be {{name: [choice, ...]}}, but got {limited!r}.")
    return {name: list(choices) for name, choices in limited.items()}


def _random_study(space: Space) -> optuna.Study:
    """Returns a study in memory that draws points of a space at random, the same each time."""
    with quiet():
        return optuna.create_study(sampler=space.possible(optuna.samplers.RandomSampler(seed=0)))


def check_space(space: Space, epochs: int) -> list[tuple[dict[str, Any], TrainConfig]]:
    """Draws points at random, and the first points, before any trial runs; returns these and their configurations.

    Each end of each number's range is tried on one of the random points.

    Raises:
        UserError: One of them is not a valid configuration, or a first point has a name that the space never asks for.
    """
    study = _random_study(space)
    drawn: list[tuple[dict[str, Any], TrainConfig]] = []
    with warnings.catch_warnings():
        for message in _WRONG:  # All other warnings are the user's own, and are no errors.
            warnings.filterwarnings("error", message)
        for _ in range(_DRAWS_TO_CHECK):
            trial = study.ask()
            config = space.sample(trial, epochs)
            drawn.append((trial.params, config))
        _check_ends(space, study, epochs)
        asked = {name for params, _ in drawn for name in params}
        for point in space.first:
            fixed = optuna.trial.FixedTrial(dict(point))
            try:
                drawn.append((dict(point), space.sample(fixed, epochs)))
                asked |= set(fixed.params)
                if unknown := [name for name in point if name not in asked]:
                    raise unknown_name("Parameter", unknown[0], asked)
            except UserError as error:
                raise UserError(f"FIRST must hold points of the space, but got {dict(point)}. {error}") from error
    return drawn


def _check_ends(space: Space, study: optuna.Study, epochs: int) -> None:
    """Raises UserError where an end of a range that the trials of a study drew from is no valid hyperparameter.

    Of a range of real numbers the end itself may be excluded, as it is hardly drawn.
    """
    ends: dict[tuple[str, float], tuple[dict[str, Any], dict[str, Any]]] = {}
    for trial in study.get_trials(deepcopy=False):
        for name, one in trial.distributions.items():
            if isinstance(one, optuna.distributions.FloatDistribution | optuna.distributions.IntDistribution):
                within = 0.0 if one.step is not None else _WITHIN * (one.high - one.low)
                for end, inner in ((one.low, one.low + within), (one.high, one.high - within)):
                    ends.setdefault((name, end), ({**trial.params, name: end}, {**trial.params, name: inner}))
    warnings.filterwarnings("ignore", "Fixed parameter")  # Another one may have another range there.

    def sample(point: Mapping[str, Any]) -> None:
        study.enqueue_trial(dict(point))
        space.sample(study.ask(), epochs)

    for point, near in ends.values():
        try:
            sample(point)
        except UserError as error:
            try:
                sample(near)
            except UserError:
                raise error from None


def check_gpu_only(space: Space, epochs: int) -> None:
    """Raises UserError where `GPU_ONLY` has what could not be left out: no choice of a `suggest_categorical`."""
    study = _random_study(space)
    seen: dict[str, BaseDistribution] = {}
    for _ in range(_MOST_DRAWS):
        if set(space.gpu_only) <= set(seen):
            break
        trial = study.ask()
        space.sample(trial, epochs)
        seen |= trial.distributions
    called = f"GPU_ONLY of search space {space.name}"
    for name, choices in space.gpu_only.items():
        if name not in seen:
            raise unknown_name(f"{called}: The parameter", str(name), seen)
        one = seen[name]
        if not isinstance(one, optuna.distributions.CategoricalDistribution):
            raise UserError(f"{called} must have parameters of suggest_categorical, but {name!r} is a number.")
        for choice in choices:
            if choice not in one.choices:
                raise unknown_name(f"{called}: {name}", str(choice), map(str, one.choices))


def draw_points(space: Space, epochs: int) -> list[optuna.trial.FrozenTrial]:
    """Returns trials at random points of a space, the same each time: they show which hyperparameters it has."""
    study = _random_study(space)
    for _ in range(_DRAWS_TO_CHECK):
        space.sample(study.ask(), epochs)
    return study.get_trials(deepcopy=False)


def point_of(space: Space, values: Mapping[str, Any], epochs: int) -> dict[str, Any] | None:
    """Returns those of some values by name that are a point of a space; None where it asks for more, or for others."""
    fixed = _asked(space, values, epochs)
    return dict(fixed.params) if fixed is not None and space.is_possible(fixed.params) else None


def gives(space: Space, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], epochs: int) -> bool:
    """Returns whether a space, at a point, asks for its parameters from these ranges and choices, and for no others."""
    fixed = _asked(space, params, epochs)
    return fixed is not None and fixed.distributions == distributions


def _asked(space: Space, values: Mapping[str, Any], epochs: int) -> optuna.trial.FixedTrial | None:
    """Returns the trial of those of some values that a space asks for; None where it asks for more, or for others."""
    fixed = optuna.trial.FixedTrial(dict(values))
    with warnings.catch_warnings():
        for message in _WRONG:
            warnings.filterwarnings("error", message)
        try:
            space.sample(fixed, epochs)
        except UserError:
            return None
    return fixed

"""The hyperparameters of trials as columns of numbers, for the process of `curve_sampler.py`.

What must never live here: what trials have reached, and what is proposed.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from tuning.sampling.gaussian_process import Floats

INACTIVE = 0.5
FOREIGN = -1.0  # A choice that is not among the present ones: as far from all of these as they are from each other.


@dataclass(frozen=True)
class Column:
    """A hyperparameter as numbers: in [0, 1] along its scale, or the index of a choice.

    Attributes:
        name: Its name.
        distribution: Its range or choices.
        left_out: Choices that are not proposed.
    """

    name: str
    distribution: BaseDistribution
    left_out: tuple[Any, ...] = ()

    @property
    def n_choices(self) -> int:
        """Choices of a categorical one; 0 for a number."""
        return len(self.distribution.choices) if isinstance(self.distribution, CategoricalDistribution) else 0

    def encode(self, value: Any) -> float:
        """Returns the number that stands for a value."""
        if isinstance(self.distribution, CategoricalDistribution):
            return float(self.distribution.to_internal_repr(value))
        return float(self._encode(np.float64(value)))

    def encode_foreign(self, value: Any) -> float:
        """Returns the number that stands for a value of another space, however that draws it.

        It is beyond [0, 1] outside of the range, `FOREIGN` for another choice, and NaN for what is no value at all.
        """
        if isinstance(self.distribution, CategoricalDistribution):
            same = (i for i, one in enumerate(self.distribution.choices) if one == value and _are_alike(one, value))
            return float(next(same, FOREIGN))
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return self.encode(value) if is_number and (value > 0 or not self._log) else math.nan

    def next_to(self, value: Any) -> Any:
        """Returns the value that is nearest to another one; None where there is none, as among choices."""
        number = self.encode_foreign(value)
        if self.n_choices:
            return None if number == FOREIGN else value
        return None if math.isnan(number) else self.decode(min(max(number, 0.0), 1.0))

    def decode(self, number: float) -> Any:
        """Returns the value that a number stands for."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.distribution.choices[int(number)]
        value = float(self._values(np.float64(number)))
        return round(value) if isinstance(self.distribution, IntDistribution) else value

    def draw(self, n: int, generator: np.random.Generator) -> Floats:
        """Returns numbers of random values, (n,)."""
        if self.n_choices and self.left_out:
            return generator.choice(np.flatnonzero(self.is_possible(np.arange(self.n_choices))), size=n).astype(
                np.float64
            )
        if self.n_choices:
            return generator.integers(self.n_choices, size=n).astype(np.float64)
        return self.nearest(generator.random(n))

    def move(self, numbers: Floats, size: Floats, generator: np.random.Generator) -> Floats:
        """Returns numbers of values near those of `numbers`, or other choices."""
        if self.n_choices:
            return self.draw(len(numbers), generator)
        return self.nearest(np.clip(numbers + size * generator.normal(size=len(numbers)), 0, 1))

    def is_possible(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Returns which numbers stand for values that may be proposed, (n,); all where no choice would be left."""
        choices = self.distribution.choices if isinstance(self.distribution, CategoricalDistribution) else ()
        gone = [index for index, choice in enumerate(choices) if choice in self.left_out]
        return np.ones(len(numbers), bool) if len(gone) == len(choices) else ~np.isin(numbers, gone)

    def adopt(self, numbers: Floats, generator: np.random.Generator) -> Floats:
        """Returns numbers of the values next to those of another space; random ones where there is none."""
        drawn = self.draw(len(numbers), generator)
        if self.n_choices:
            return np.where(np.isnan(numbers) | (numbers == FOREIGN), drawn, numbers)
        return np.where(np.isnan(numbers), drawn, self.nearest(np.clip(numbers, 0, 1)))

    def nearest(self, numbers: Floats) -> Floats:
        """Returns the numbers of the values next to these: some have a grid."""
        return np.asarray(self._encode(self._values(numbers)), dtype=np.float64)

    def _encode(self, values: Any) -> Any:
        low, high = self._ends()
        return ((np.log(values) if self._log else values) - low) / (high - low)

    def _values(self, numbers: Any) -> Any:
        distribution: Any = self.distribution
        low, high = self._ends()
        values = low + numbers * (high - low)
        values = np.exp(values) if self._log else values
        if distribution.step is not None:
            values = distribution.low + distribution.step * np.round((values - distribution.low) / distribution.step)
        return np.clip(values, distribution.low, distribution.high)

    def _ends(self) -> tuple[float, float]:
        distribution: Any = self.distribution
        low, high = float(distribution.low), float(distribution.high)
        return (math.log(low), math.log(high)) if self._log else (low, high)

    @property
    def _log(self) -> bool:
        return isinstance(self.distribution, FloatDistribution | IntDistribution) and self.distribution.log


@dataclass(frozen=True)
class Activity:
    """Which hyperparameters a configuration has, as far as trials show that a choice of another one decides it.

    Attributes:
        deciders: Column -> (the column of the choice, the choices with which it was seen).
    """

    deciders: Mapping[int, tuple[int, npt.NDArray[np.float64]]]

    @staticmethod
    def of(columns: Sequence[Column], known: Floats) -> "Activity":
        """Returns what trials show; NaN in `known` (n_trials, n_columns) is a hyperparameter that a trial had not."""
        active = ~np.isnan(known)
        deciders = {}
        for i in np.flatnonzero(~active.all(axis=0)):
            for j, column in enumerate(columns):
                if j == i or not column.n_choices or (active[:, i] & ~active[:, j]).any():
                    continue
                with_it, without = set(known[active[:, i], j]), set(known[active[:, j] & ~active[:, i], j])
                if not with_it & without:
                    deciders[int(i)] = (j, np.array(sorted(with_it)))
                    break
        return Activity(deciders)

    def blank(self, configs: Floats) -> Floats:
        """Returns configurations in which what is inactive (or NaN) has one number for all."""
        blanked = configs.copy()
        for column, (decider, choices) in self.deciders.items():
            decided = configs[:, decider]
            blanked[~np.isin(decided, choices) & ~np.isnan(decided), column] = INACTIVE
        return np.where(np.isnan(blanked), INACTIVE, blanked)


@dataclass(frozen=True)
class Limits:
    """Ranges that are not the whole of their column, as far as trials show it.

    A choice of another hyperparameter may decide a range; or it was changed, as the last two trials show.

    Attributes:
        ranges: Column -> (the column of the choice, the lowest and the highest number with each choice, (n_choices, 2);
            0 and 1 where no trial had it). Where nothing decides, the column is its own, and all rows are the same.
    """

    ranges: Mapping[int, tuple[int, Floats]]

    @staticmethod
    def of(columns: Sequence[Column], trials: Sequence[FrozenTrial]) -> "Limits":
        """Returns what the ranges show from which the trials have drawn, the oldest trial first."""
        found = {}
        for i, column in enumerate(columns):
            having = [] if column.n_choices else [t for t in trials if column.name in t.params]
            drawn_from: list[Any] = [t.distributions[column.name] for t in having]
            if len({(one.low, one.high) for one in drawn_from}) < 2:
                continue
            for j, other in enumerate(columns):
                if other.n_choices and (ranges := _by_choice(column, other, having)) is not None:
                    found[i] = (j, ranges)
                    break
            else:
                last, before = (_ends_of(column, t) for t in reversed(having[-2:]))
                if last == before:
                    found[i] = (i, np.array([last]))
        return Limits(found)

    def spread(self, configs: Floats, columns: Sequence[Column]) -> Floats:
        """Returns configurations whose numbers are as far along their range as they were along the whole column."""
        return self._changed(configs, columns, lambda numbers, low, high: low + numbers * (high - low))

    def clipped(self, configs: Floats, columns: Sequence[Column]) -> Floats:
        """Returns configurations whose numbers are within their range."""
        return self._changed(configs, columns, np.clip)

    def _changed(
        self, configs: Floats, columns: Sequence[Column], change: Callable[[Floats, Floats, Floats], Floats]
    ) -> Floats:
        changed = configs.copy()
        for i, (decider, ranges) in self.ranges.items():
            rows = np.zeros(len(configs), int) if decider == i else configs[:, decider].astype(int)
            low, high = ranges[rows].T
            changed[:, i] = np.clip(columns[i].nearest(change(configs[:, i], low, high)), low, high)
        return changed


def _by_choice(column: Column, other: Column, trials: Sequence[FrozenTrial]) -> Floats | None:
    """Returns the ends of a column's range with each choice of another one; None where that does not decide it."""
    if any(other.name not in t.params for t in trials):
        return None
    by_choice: dict[int, set[tuple[float, float]]] = {}
    for t in trials:
        by_choice.setdefault(int(other.encode(t.params[other.name])), set()).add(_ends_of(column, t))
    if len(by_choice) == len(trials) or any(len(ends) > 1 for ends in by_choice.values()):
        return None
    ranges = np.tile([0.0, 1.0], (other.n_choices, 1))
    for choice, ends in by_choice.items():
        ranges[choice] = next(iter(ends))
    return ranges


def _ends_of(column: Column, trial: FrozenTrial) -> tuple[float, float]:
    """Returns the numbers of the ends of the range from which a trial has drawn."""
    one: Any = trial.distributions[column.name]
    return column.encode(one.low), column.encode(one.high)


def numbers_of(columns: Sequence[Column], trials: Sequence[FrozenTrial]) -> Floats:
    """Returns the numbers of trials, (n_trials, n_columns); NaN is a hyperparameter that a trial had not."""
    rows = [[c.encode(t.params[c.name]) if c.name in t.params else np.nan for c in columns] for t in trials]
    return np.array(rows, dtype=np.float64).reshape(len(trials), len(columns))


def numbers_of_earlier(columns: Sequence[Column], trials: Sequence[FrozenTrial], searched: Collection[str]) -> Floats:
    """Returns the same of trials of another run, whose space may have been another one.

    Args:
        columns: Of the present space.
        trials: Of the other run.
        searched: The hyperparameters that the other run searched. Any other one has the value that a trial's
            configuration gives it, if it is one of that.
    """
    known = [values_of(t, searched) for t in trials]
    rows = [[c.encode_foreign(one[c.name]) if c.name in one else np.nan for c in columns] for one in known]
    return np.array(rows, dtype=np.float64).reshape(len(trials), len(columns))


def values_of(trial: FrozenTrial, searched: Collection[str]) -> dict[str, Any]:
    """Returns the values of a trial of another run, and by its configuration those of what that run did not search."""
    config = trial.user_attrs.get("config")
    others = config if isinstance(config, Mapping) else {}
    return {name: value for name, value in others.items() if name not in searched} | trial.params


def all_of(trials: Iterable[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Returns all hyperparameters that any trial had, each over all of its trials' ranges, by name."""
    found: dict[str, BaseDistribution | None] = {}
    for trial in trials:
        for name, one in trial.distributions.items():
            found[name] = merged(found.get(name, one), one)
    return {name: one for name, one in sorted(found.items()) if one is not None and not one.single()}


def _are_alike(one: Any, other: Any) -> bool:
    """Returns whether two values that are equal are the same choice: True is not 1."""
    return isinstance(one, bool) == isinstance(other, bool)


def merged(known: BaseDistribution | None, other: BaseDistribution) -> BaseDistribution | None:
    """Returns the distribution that holds the values of both, as a range may depend on the trial.

    None where there is no such one, which Optuna refuses within a study: of two types, of two scales, of other choices.
    """
    if known is None or known == other:
        return known
    if isinstance(known, FloatDistribution) and isinstance(other, FloatDistribution) and known.log == other.log:
        step = known.step if (known.low, known.step) == (other.low, other.step) else None
        return FloatDistribution(min(known.low, other.low), max(known.high, other.high), known.log, step)
    if isinstance(known, IntDistribution) and isinstance(other, IntDistribution) and known.log == other.log:
        steps = 1 if known.log else math.gcd(known.step, other.step, known.low - other.low)
        return IntDistribution(min(known.low, other.low), max(known.high, other.high), known.log, steps)
    return None

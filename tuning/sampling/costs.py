"""What a configuration's full training takes, learned from the trials that have run: a second output beside its value.

A Gaussian process over configurations predicts the logarithm of the seconds. What must never live here: what trials
have reached, and what is proposed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from tuning.runs.study_file import EPOCH
from tuning.sampling.gaussian_process import Floats, Points, Process, fit

LOST = "lost_seconds"  # A trial's attribute: of attempts that ran out of memory, and whose epochs were trained again.
LEAST_TRIALS, LEAST_DEVIATION = 3, 0.05  # Of the logarithm: what costs the same within 5 % needs no model.
STEPS = 15


def seconds_of(trial: FrozenTrial, length: int) -> float:
    """Returns the seconds that a trial's full training of so many epochs takes, by those that it has had; NaN: unknown.

    What failed attempts took counts as well, since the same configuration would fail again.
    """
    rows = [value for name, value in trial.user_attrs.items() if name.startswith(EPOCH) and isinstance(value, dict)]
    seconds = [float(row["epoch_seconds"]) for row in rows if row.get("epoch_seconds") is not None]
    known = [value for value in seconds if math.isfinite(value) and value > 0]
    if not known:
        return math.nan
    return length * sum(known) / len(known) + float(trial.user_attrs.get(LOST) or 0.0)


@dataclass(frozen=True)
class Costs:
    """The seconds of full trainings by configuration.

    Attributes:
        process: Of the logarithm, standardised; None where all cost the same, or too few are known.
        mean: Of the logarithm.
        deviation: Of the logarithm.
    """

    process: Process | None
    mean: float
    deviation: float

    def log_seconds(self, configs: Floats) -> Floats:
        """Returns the logarithm of the seconds that configurations are expected to take, (n,)."""
        if self.process is None:
            return np.full(len(configs), self.mean)
        return self.mean + self.deviation * self.process.predict(configs)[0]


def learned(configs: Floats, seconds: Floats, categorical: npt.NDArray[np.bool_], start: Floats | None = None) -> Costs:
    """Returns what trials of some configurations say of their costs.

    Args:
        configs: Numbers in [0, 1] or indices of choices, (n, n_columns).
        seconds: Of their full training, (n,); NaN where it is not known.
        categorical: Which columns hold choices, (n_columns,).
        start: `theta` of the process of an earlier one, to go on from.
    """
    known = ~np.isnan(seconds)
    logs = np.log(seconds[known])
    mean, deviation = (float(logs.mean()), float(logs.std())) if len(logs) else (0.0, 0.0)
    if len(logs) < LEAST_TRIALS or deviation < LEAST_DEVIATION:
        return Costs(None, mean, deviation)
    points = Points(configs[known], np.zeros(len(logs)), np.arange(len(logs)))
    process = fit(points, (logs - mean) / deviation, categorical, start=start, n_steps=STEPS)
    return Costs(process, mean, deviation)


def of_trials(trials: Sequence[FrozenTrial], lengths: Sequence[int]) -> Floats:
    """Returns `seconds_of` each, (n,)."""
    return np.array([seconds_of(t, n) for t, n in zip(trials, lengths, strict=True)], dtype=np.float64)

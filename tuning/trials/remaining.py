"""How long a search will go on, by what its trials have taken and how many of them were stopped when.

What must never live here: what is shown, and clocks; `tuning.trials.progress` has both.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timed:
    """A trial, as far as its time is known.

    Attributes:
        epochs: It has had.
        length: Epochs of its full training, at least 1.
        epoch_seconds: Of one of its epochs, start and checkpoints included; None where this session has timed none.
        running: Whether it trains now.
        since: Seconds since its last epoch ended, or since it began, if it trains now.
    """

    epochs: int
    length: int
    epoch_seconds: float | None
    running: bool = False
    since: float = 0.0


def seconds_left(trials: Sequence[Timed], n_to_come: int, slots: int) -> float | None:
    """Returns the seconds that a search will still take; None until an epoch of this session has ended.

    A trial's full training takes its own epochs' mean times its length; that of one without an epoch, or to come, the
    mean of the others'. How much of it is trained follows from the share of trials that went on at each epoch, of those
    that came as far: the product-limit estimator (Kaplan and Meier 1958), on progress from 0 to 1.

    Args:
        trials: Those that have begun, in any session.
        n_to_come: Trials that are not among them.
        slots: Trials side by side.
    """
    full = [trial.epoch_seconds * trial.length for trial in trials if trial.epoch_seconds is not None]
    if not full:
        return None
    mean, goes_on = sum(full) / len(full), survival(trials)
    steps = len(goes_on)
    running = []
    for trial in trials:
        if trial.running:
            takes = mean if trial.epoch_seconds is None else trial.epoch_seconds * trial.length
            done = min(steps, trial.epochs * steps // trial.length)
            rest = sum(goes_on[done:]) / goes_on[done] / steps if done < steps else 0.0
            running.append(max(0.0, rest * takes - trial.since))
    to_come = n_to_come * mean * sum(goes_on) / steps
    return max([(to_come + sum(running)) / slots, *running])


def survival(trials: Sequence[Timed]) -> list[float]:
    """Returns the shares of trials that train each of the steps into which a full training is cut, the first one 1.

    There are as many steps as the longest training has epochs. It is as if one more trial had been watched at each of
    them, so that the first one that ends does not speak for all: a share 1 / (n + 1) of it stopped after step n, as
    under successive halving.
    """
    steps = max(trial.length for trial in trials)
    goes_on = [1.0]
    for step in range(1, steps):
        came = [trial for trial in trials if trial.epochs * steps >= step * trial.length]
        stopped = [t for t in came if not t.running and t.epochs < t.length]
        n_here = sum(t.epochs * steps // t.length == step for t in stopped)  # The last step that it came to.
        goes_on.append(goes_on[-1] * (1 - (n_here + 1 / (step + 1)) / (len(came) + 1)))
    return goes_on

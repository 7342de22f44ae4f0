"""Which average over views of an image is taken at test time: the valid images of all of the winner's seeds decide.

An average over ten views takes ten times as long for an image, and the best of four values on the valid images is the
best by luck, too. So more views are taken only where they pay beyond chance. The test split has no place here.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tuning.base.averagings import AVERAGINGS, NONE
from tuning.base.registries import Metric
from tuning.training import jobs
from tuning.training.jobs import Job, Result

if TYPE_CHECKING:
    import numpy.typing as npt

Influences = Mapping[Job, "Mapping[str, npt.NDArray[np.float32]]"]  # By training and averaging.


class Gain(NamedTuple):
    """By how much one averaging is better than another on the valid images; positive is better, whatever the metric.

    `error` is its standard error, as the images are a sample; NaN where what an image adds is not known.
    """

    value: float
    error: float

    @property
    def pays(self) -> bool:
        """It is larger than its standard error; where that is unknown, larger than 0."""
        least = 0.0 if math.isnan(self.error) else self.error
        return self.value > least and not math.isclose(self.value, least)  # They are equal where one image differs.


def choose(models: Mapping[Job, Result], metric: Metric, *, folds: bool = False) -> tuple[str, dict[str, Gain]]:
    """Returns the averaging that is taken, and by how much each averaging is better than none.

    From the fewest views on, an averaging takes the place of the one so far where it is better by more than the
    standard error of their difference. So of equal ones the one with the fewest views is taken. All seeds or folds of
    the winner count alike, not the saved model's alone: its seed was chosen for its value.

    In a simulation (5,000 images, three seeds, averagings that change 1.2 to 3 % of the labels), one that is worth
    nothing is taken in 36 % of the cases, and in 76 % if the best value is taken. This costs time, and no accuracy. 1.6
    standard errors lower that to 10 %. But if flip averaging is worth 0.2 points, and shifts 0.1 more, no averaging is
    taken in 40 % of the cases, and in 16 % with one standard error.

    Only what is known of all of them can be taken; `jobs.average` measures what is not known yet.

    Args:
        models: The trainings of one configuration, a seed or fold each.
        metric: What they are judged by.
        folds: Whether each has valid images of its own.
    """
    known = set.intersection(*(result.averagings(metric) for result in models.values()))
    taken = NONE
    influences: Influences = {job: jobs.read_influences(job) for job in models}
    names = [name for name in AVERAGINGS if name in known]

    def better(name: str, other: str) -> Gain:
        return gain(models, metric, influences, name, other, folds=folds)

    for name in names:
        if better(name, taken).pays:
            taken = name
    return taken, {name: better(name, NONE) for name in names if name != NONE}


def gain(
    models: Mapping[Job, Result], metric: Metric, influences: Influences, name: str, other: str, *, folds: bool
) -> Gain:
    """Returns by how much an averaging is better than another one: the mean over the winner's seeds.

    Its standard error is that of the mean paired difference of the images: what an image adds to the one value less
    what it adds to the other. Most images add the same to both, so it is much smaller than that of a value. Without
    folds all seeds have the same images, so an image's difference is its mean over the seeds. It is the error of a
    difference that is 0 in truth (as in McNemar's test of 1947): one image more that is right is then no gain.

    Args:
        models: The trainings of one configuration.
        metric: What they are judged by.
        influences: As in `jobs.read_influences`; a training without them leaves the error unknown.
        name: In `AVERAGINGS`.
        other: What it is compared with.
        folds: Whether each training has valid images of its own.
    """
    ends = AVERAGINGS[name].end, AVERAGINGS[other].end
    gains = {job: _difference(result, metric, *ends) for job, result in models.items()}
    value = math.fsum(gains.values()) / len(gains)
    pairs = [influences.get(job, {}) for job in gains]
    if not all(name in pair and other in pair for pair in pairs):
        return Gain(value, math.nan)
    each = [np.subtract(pair[name], pair[other], dtype=np.float64) for pair in pairs]
    if folds:
        squares = [_variance(images, of_fold) for images, of_fold in zip(each, gains.values(), strict=True)]
        return Gain(value, math.sqrt(math.fsum(squares)) / len(squares))
    if len({len(images) for images in each}) > 1:
        return Gain(value, math.nan)  # One of the files is not of these images.
    return Gain(value, math.sqrt(_variance(np.mean(each, axis=0), value)))


def explain(taken: str, gains: Mapping[str, Gain], metric: Metric) -> str:
    """Returns what the averagings are worth on the valid images, with standard errors, and which one is taken."""
    shown = [
        f"{name} {metric.gap(metric.sign * each.value)}"
        + ("" if math.isnan(each.error) else f" ± {metric.gap(each.error, '')}")
        + metric.unit
        for name, each in gains.items()
    ]
    return (
        f"Averaging over views of an image, compared with none on the valid images: {', '.join(shown)}. "
        f"Chosen: {taken}, {AVERAGINGS[taken].facts}."
    )


def _difference(result: jobs.Result, metric: Metric, end: str, other: str) -> float:
    return metric.sign * (result.on_valid(metric, end) - result.on_valid(metric, other))


def _variance(images: "npt.NDArray[np.float64]", difference: float) -> float:
    """Returns the squared error of a difference that is 0 in truth, of what each image adds to it."""
    return float(np.var(images) + difference**2) / len(images)

"""What the models of a contest are worth together: their mean probabilities, chosen on valid images as the winner is.

Models that are nearly as good as the best one count alike. Where they differ more, some are worth more than others, and
the selection is that of Caruana et al. (Ensemble Selection from Libraries of Models, 2004): again and again the model
that makes the mean best is added, also one that is in it. Its choice among models that are nearly alike is one of luck:
`tests/benchmarks/ensembles.py` measures both. The test split has no place here.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tuning.base.averagings import AVERAGINGS
from tuning.base.registries import ACCURACY, Metric
from tuning.retraining.contest import Contest
from tuning.training import jobs
from tuning.training.jobs import Job

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from tuning.retraining.verdict import Chosen

    Floats = npt.NDArray[np.floating[Any]]

ROUNDS = 25
# Standard errors of the difference on the same valid images.
CLEARLY_WORSE, CLEARLY_BETTER = 3.0, 1.0
PARTS = 5


@dataclass(frozen=True)
class Ensemble:
    """Models that are averaged.

    Attributes:
        jobs: How they were trained, distinct; the heaviest first, and of those that count alike the best.
        weights: One a job; they add up to 1.
        valid_score: The metric of the mean on the valid images. Of folds each image is judged by those models alone
            that did not train on it.
        valid_accuracy: The same of the accuracy.
        n_parameters: Of all of them.
    """

    jobs: tuple[Job, ...]
    weights: tuple[float, ...]
    valid_score: float
    valid_accuracy: float
    n_parameters: int

    @property
    def n_configurations(self) -> int:
        """How many configurations they are of."""
        return len({job.config.hash() for job in self.jobs})


def choose(held: Contest) -> Ensemble | None:
    """Returns the best ensemble of all that a contest has trained; None where that is a single model.

    With seeds its parts are single models. With folds each part is a configuration, with the models of all its folds:
    of a fold alone nothing is known on the images of the others.
    """
    from tuning.training import metrics

    parts = _parts(held)
    outputs = [_outputs(part, held) for part in parts]
    known = [(part, found) for part, found in zip(parts, outputs, strict=True) if found is not None]
    if not known:
        return None
    labels = np.concatenate([held.splits[seed].valid.labels for seed in _judging(held)])
    of_parts = weigh([found for _, found in known], labels, held.metric)
    weights: dict[Job, float] = {}
    for index, weight in of_parts.items():
        for job in known[index][0]:
            weights[job] = weight / len(known[index][0])
    if len(weights) < 2:
        return None
    together = mean([found for _, found in known], of_parts)
    results = [held.done[job.config.hash(), job.seed] for job in weights]
    return Ensemble(
        jobs=tuple(weights),
        weights=tuple(weights.values()),
        valid_score=metrics.score(held.metric.name, together, labels),
        valid_accuracy=metrics.score(ACCURACY.name, together, labels),
        n_parameters=sum(result.n_parameters or 0 for result in results),
    )


def is_better(ensemble: Ensemble, held: Contest, chosen: "Chosen") -> bool:
    """Returns whether an ensemble is better on the valid images than the single model that would be saved.

    Of folds it is compared with the winner's models on the images of their folds; where it is of these models alone,
    that says nothing, and a mean of models that were trained on other images is taken for the better one.
    """
    if not held.plan.folds:
        return held.metric.sign * (ensemble.valid_score - chosen.valid_score) > 0
    if ensemble.n_configurations == 1:
        return True
    how = AVERAGINGS[chosen.averaging].end
    alone = np.mean([result.on_valid(held.metric, how) for result in chosen.models.values()])
    return bool(held.metric.sign * (ensemble.valid_score - alone) > 0)


def weigh(outputs: Sequence["Floats"], labels: "npt.NDArray[np.int64]", metric: Metric) -> dict[int, float]:
    """Returns the weights of what is averaged, by index, the heaviest and then the best first; they add up to 1.

    All that are not clearly worse than the best one count alike. What `select` takes counts as often as it is taken,
    where that is better beyond the noise on images that did not choose it (cross-validation in `PARTS` parts).

    Args:
        outputs: Log-probabilities (N, n_classes) of each part, of the same images.
        labels: (N,).
        metric: What the mean is to be best in.
    """
    rules = (_selected, _alike)
    order = np.random.default_rng(0).permutation(len(labels))
    parts = [part for part in np.array_split(order, PARTS) if 0 < len(part) < len(order)]
    means: list[list[Floats]] = [[], []]
    for part in parts:
        rest = np.setdiff1d(order, part)
        for found, rule in zip(means, rules, strict=True):
            weights = rule([each[rest] for each in outputs], labels[rest], metric)
            found.append(mean([each[part] for each in outputs], weights))
    if parts:
        selected, alike = map(np.concatenate, means)
        if _Lead(labels[np.concatenate(parts)], metric).is_clear(selected, alike, CLEARLY_BETTER):
            return _selected(outputs, labels, metric)
    return _alike(outputs, labels, metric)


def _selected(outputs: Sequence["Floats"], labels: "npt.NDArray[np.int64]", metric: Metric) -> dict[int, float]:
    taken = select(outputs, labels, metric)
    return {i: n / len(taken) for i, n in Counter(taken).most_common()}


def _alike(outputs: Sequence["Floats"], labels: "npt.NDArray[np.int64]", metric: Metric) -> dict[int, float]:
    lead = _Lead(labels, metric)
    best = max(outputs, key=lambda each: lead.of(each, outputs[0]))
    alike = [i for i, each in enumerate(outputs) if not lead.is_clear(best, each, CLEARLY_WORSE)]
    alike.sort(key=lambda i: lead.of(best, outputs[i]))
    return {i: 1 / len(alike) for i in alike}


@dataclass(frozen=True)
class _Lead:
    """By how much one is better than another, on the same labelled images."""

    labels: "npt.NDArray[np.int64]"
    metric: Metric

    def of(self, one: "Floats", other: "Floats") -> float:
        """Returns by how much log-probabilities (N, n_classes) are better than others."""
        from tuning.training import metrics

        first, second = (metrics.score(self.metric.name, each, self.labels) for each in (one, other))
        return self.metric.sign * (first - second)

    def is_clear(self, one: "Floats", other: "Floats", errors: float) -> bool:
        """Returns whether they are better by more than so many standard errors of the difference."""
        from tuning.training import metrics

        first, second = (metrics.influence(self.metric.name, each, self.labels) for each in (one, other))
        return self.of(one, other) > errors * float((first - second).std()) / math.sqrt(len(self.labels))


def mean(outputs: Sequence["Floats"], weights: Mapping[int, float]) -> "Floats":
    """Returns the log of the weighted mean of probabilities, (N, n_classes), of log-probabilities like it."""
    total = sum(weights.values())
    return np.asarray(np.log(sum(weight / total * np.exp(outputs[i]) for i, weight in weights.items()) + 1e-12))


def select(outputs: Sequence["Floats"], labels: "npt.NDArray[np.int64]", metric: Metric) -> list[int]:
    """Returns the indices of what is averaged, the same one perhaps more than once.

    Of means that are equally good in the metric, as on few images they often are, the one of the lower log loss counts
    as the better one; of equal ones the smaller.

    Args:
        outputs: Log-probabilities (N, n_classes) of each part, of the same images.
        labels: (N,).
        metric: What the mean is to be best in.
    """
    from tuning.training import metrics

    def value(probabilities: "Floats", name: str, sign: int) -> float:
        return round(sign * metrics.score(name, np.log(probabilities + 1e-12), labels), 9)

    each = [np.exp(part.astype(np.float64)) for part in outputs]
    total, taken, best = np.zeros_like(each[0]), list[int](), ((-math.inf, -math.inf), 0)
    for size in range(1, ROUNDS + 1):
        means = [(total + one) / size for one in each]
        values = [value(one, metric.name, metric.sign) for one in means]
        equal = [i for i, found in enumerate(values) if found == max(values)]
        losses = {i: value(means[i], "log_loss", -1) for i in equal}
        taken.append(max(equal, key=losses.__getitem__))
        total = total + each[taken[-1]]
        if (merit := (values[taken[-1]], losses[taken[-1]])) > best[0]:
            best = (merit, size)
    return taken[: best[1]]


def build(ensemble: Ensemble, held: Contest, device: str) -> "nn.Module":
    """Returns the ensemble as one network, ready to evaluate.

    Raises:
        UserError: The weights of a model are missing or damaged.
    """
    from tuning.models.ensemble import Ensemble as Network

    splits = [held.splits[job.seed] for job in ensemble.jobs]
    members = [jobs.load_model(job, part, "cpu") for job, part in zip(ensemble.jobs, splits, strict=True)]
    network = Network(members, ensemble.weights, [part.mean for part in splits], [part.std for part in splits])
    return network.to(device).eval()


def as_metrics(ensemble: Ensemble) -> dict[str, Any]:
    """Returns what is known before the test split is opened, as in `metrics.json`."""
    return {
        "models": len(ensemble.jobs),
        "configurations": ensemble.n_configurations,
        "n_parameters": ensemble.n_parameters,
        "valid_accuracy": ensemble.valid_accuracy,
        "valid_score": ensemble.valid_score,
    }


def described(ensemble: Ensemble, held: Contest) -> list[dict[str, Any]]:
    """Returns what `config.json` has of each member."""
    return [
        {
            "config": job.config.model_dump(),
            "weight": weight,
            "mean": held.splits[job.seed].mean,
            "std": held.splits[job.seed].std,
        }
        for job, weight in zip(ensemble.jobs, ensemble.weights, strict=True)
    ]


def _judging(held: Contest) -> tuple[int, ...]:
    """Returns the seeds whose valid images count: those of all folds; without folds they are the same for all seeds."""
    return held.plan.seeds if held.plan.folds else held.plan.seeds[:1]


def _parts(held: Contest) -> list[tuple[Job, ...]]:
    """Returns what may be taken, each with its jobs, the winner's first."""
    winner, plan = held.winner.config.hash(), held.plan
    found: list[tuple[Job, ...]] = []
    for entry in sorted(plan.entries, key=lambda each: each.config.hash() != winner):
        config_hash = entry.config.hash()
        if config_hash in held.failed:
            continue
        results = [(seed, held.done[config_hash, seed]) for seed in plan.seeds if (config_hash, seed) in held.done]
        trained = tuple(plan.job(entry, seed, result.accumulation) for seed, result in results)
        if not plan.folds:
            found += [(job,) for job in trained]
        elif len(trained) == len(plan.seeds):
            found.append(trained)
    return found


def _outputs(part: Sequence[Job], held: Contest) -> "Floats | None":
    """Returns log-probabilities (N, n_classes) of the valid images; None where version 0.2.0 trained the models."""
    found = []
    for job in part:
        scores = jobs.read_valid(job)
        if scores is None or len(scores) != len(held.splits[job.seed].valid):
            return None
        found.append(scores)
    return np.concatenate(found)

"""Which mean of the models that `final` has trained is best on images that did not choose it; nothing is trained.

    python tests/benchmarks/ensembles.py --runs results/RUN [results/RUN ...]

The runs' valid images are halved at random, again and again: on one half a rule chooses the models and their weights,
and on the other one their mean is judged. The rules:

    single   the best one
    greedy   again and again the one that makes the mean best (Caruana et al. 2004)
    all      all of them, alike
    ours     all that are not clearly worse than the best one, alike; greedy where that is clearly better
    four     of ours, the four heaviest or best: what a distilled network learns from

"value" is the mean over the halves, "gain" by how much it is better than greedy's, "models" how many it has on average.
A run counts for its own metric. The halves are of the same images, so that the spread over them says less than that
over runs: the table has none.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import at_least, command, parser, prepare_out, report

from tuning.base import files
from tuning.base.errors import UserError
from tuning.base.registries import Metric
from tuning.images.splitting import load_splits
from tuning.retraining import ensemble
from tuning.retraining.candidates import JOBS
from tuning.retraining.distilled import MOST_TEACHERS
from tuning.runs import run_folder
from tuning.training import metrics
from tuning.training.jobs import VALID_OUTPUTS
from tuning.trials.settings import source_of_run

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Weights = Mapping[int, float]
Rule = Callable[[list[Floats], Integers, Metric], Weights]


def greedy(outputs: list[Floats], labels: Integers, metric: Metric) -> Weights:
    """Returns the weights of the greedy selection."""
    return dict(Counter(ensemble.select(outputs, labels, metric)))


def four(outputs: list[Floats], labels: Integers, metric: Metric) -> Weights:
    """Returns the weights of those that teach."""
    return dict(list(ensemble.weigh(outputs, labels, metric).items())[:MOST_TEACHERS])


RULES: Mapping[str, Rule] = {
    "single": lambda outputs, labels, metric: {ensemble.select(outputs, labels, metric)[0]: 1},
    "greedy": greedy,
    "all": lambda outputs, labels, metric: dict.fromkeys(range(len(outputs)), 1),
    "ours": ensemble.weigh,
    "four": four,
}


def read(path: Path) -> tuple[list[Floats], Integers, Metric]:
    """Returns the log-probabilities (N, n_classes) of each model of a run, the labels (N,), and what counts.

    Raises:
        UserError: There are fewer than two models that were judged on the same images.
    """
    run = run_folder.load(str(path))
    seed, train_images = run.setting("seed"), run.settings.get("train_images")
    splits = load_splits(source_of_run(run, None), seed=seed, train_images=train_images)
    found = []
    for result in sorted((run.path / JOBS).glob("*/result.json")):
        outputs = result.with_name(VALID_OUTPUTS)
        if outputs.exists() and files.read_json(result).get("split_hash") == splits.split_hash:
            with np.load(outputs) as arrays:
                found.append(np.asarray(arrays["log_probabilities"], np.float64))
    if len(found) < 2:
        raise UserError(
            f"{path} must have two models that `final` has trained on fresh seeds, but has {len(found)}. Run "
            f"`python -m tuning.final --run {files.called(run.path)} --folds 0` first."
        )
    return found, splits.valid.labels, run.metric


def judged(path: Path, repeats: int, n_images: int | None) -> list[dict[str, Any]]:
    """Returns the rows of a run."""
    outputs, labels, metric = read(path)
    draw, found = np.random.default_rng(0), {name: list[tuple[float, int]]() for name in RULES}
    most = len(labels) // 2
    for _ in range(repeats):
        order = draw.permutation(len(labels))
        chosen_on, judged_on = order[: min(n_images or most, most)], order[most:]
        for name, rule in RULES.items():
            weights = rule([each[chosen_on] for each in outputs], labels[chosen_on], metric)
            mean = ensemble.mean([each[judged_on] for each in outputs], weights)
            found[name].append((metrics.score(metric.name, mean, labels[judged_on]), len(weights)))
    values = {name: np.mean([value for value, _ in each]) for name, each in found.items()}
    return [
        {
            "run": path.name,
            "trained": len(outputs),
            "chosen_on": min(n_images or most, most),
            "rule": name,
            "value": metric.said(float(values[name])),
            "gain": metric.gap(metric.sign * float(values[name] - values["greedy"])),
            "models": float(np.mean([n for _, n in each])),
        }
        for name, each in found.items()
    ]


@command
def main() -> None:
    """Prints the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of runs that `final` has had")
    arguments.add_argument("--repeats", type=at_least(1), default=40, help="halves of each run (default: 40)")
    arguments.add_argument("--images", type=at_least(10), help="choose on so many of the half (default: all)")
    given = arguments.parse_args()
    prepare_out(given.out)
    rows = []
    for path in given.runs:
        rows += judged(path, given.repeats, given.images)
        print(f"{path}: judged", file=sys.stderr)
    report("What the mean is worth on the other half of the valid images", rows, given.out)


if __name__ == "__main__":
    main()

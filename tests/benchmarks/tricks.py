"""What training tricks are worth: the same seconds for each, the same seeds, valid accuracy beside that of the base.

    python tests/benchmarks/tricks.py [--epochs 3] [--seeds 3] [--only TEXT] [--train-images N] [--out FILE.csv]

The base trains ResNet-8 so many epochs with SGD, one-cycle and mirroring. Each trick changes one thing. A few steps are
timed first, as many processes side by side as the machine has cores, of one thread each; then a trick that costs more
a step gets fewer steps, so that all take the time of the base. `difference`: of the accuracy after the last epoch, in
points, paired over the seeds, with a 95 % interval (Student's t). Half an hour on two cores.
"""

import functools
import itertools
import math
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import CORES, parser, report
from rich.progress import Progress
from scipy import stats
from time_to_accuracy import RECIPE
from torch import Tensor
from torch.nn import functional

from tuning.base import machine
from tuning.base.config import TrainConfig, parse_config
from tuning.images.batches import Batch, Tensors
from tuning.images.datasets import Labelled
from tuning.images.splitting import Splits, load_splits
from tuning.training.fit import EpochResult, Training, prepare
from tuning.training.schedules import make_schedule

BASE = RECIPE | {"flip": True, "image_size": None}
SIDE, TIMED_STEPS = 28, 60


@dataclass(frozen=True)
class Trick:
    """Changes to `BASE`, and what is done to the images of the first half of all epochs: their share and their side."""

    changes: dict[str, Any]
    share: float = 1.0
    side: int = SIDE


TRICKS = {
    "base": Trick({}),
    "no mirroring": Trick({"flip": False}),
    "crop and erase, too": Trick({"crop_padding": 2, "erase": 0.3}),
    "batch 64, lr 0.1": Trick({"batch_size": 64, "learning_rate": 0.1}),
    "batch 256, lr 0.4": Trick({"batch_size": 256, "learning_rate": 0.4}),
    "batch 512, lr 0.8": Trick({"batch_size": 512, "learning_rate": 0.8}),
    "cosine": Trick({"schedule": "cosine"}),
    "constant lr 0.05": Trick({"schedule": "constant", "learning_rate": 0.05}),
    "plateau, lr 0.05": Trick({"schedule": "plateau", "learning_rate": 0.05}),
    "EMA 0.99": Trick({"ema_decay": 0.99}),
    "EMA 0.99, constant lr 0.1": Trick({"ema_decay": 0.99, "schedule": "constant", "learning_rate": 0.1}),
    "label smoothing 0.1": Trick({"label_smoothing": 0.1}),
    "AdamW, lr 0.01": Trick({"optimizer": "adamw", "learning_rate": 0.01}),
    "Muon": Trick({"optimizer": "muon"}),
    "Muon, lr 0.3, decay 2e-3, momentum 0.95": Trick(
        {"optimizer": "muon", "learning_rate": 0.3, "weight_decay": 2e-3, "momentum": 0.95}
    ),
    "14 x 14 pixels at first": Trick({}, side=14),
    "20 x 20 pixels at first": Trick({}, side=20),
    "half of the images at first": Trick({}, share=0.5),
}


@functools.cache
def images(train_images: int | None) -> Splits:
    """Returns the splits of seed 0; with fewer train images there are at most as many valid images."""
    splits = load_splits("fashion-mnist", seed=0, train_images=train_images)
    valid = Labelled(splits.valid.images[:train_images], splits.valid.labels[:train_images])
    return replace(splits, valid=valid)


def configured(trick: Trick, epochs: int) -> TrainConfig:
    return parse_config(BASE | trick.changes | {"epochs": epochs}, "a trick")


class Paced(Training):
    """A training whose epochs each have a share of the images, at a side in pixels; its schedule spans them all."""

    def __init__(self, config: TrainConfig, splits: Splits, plan: Sequence[tuple[float, int]], *, seed: int) -> None:
        config = config.model_copy(update={"epochs": len(plan)})
        super().__init__(config, splits, seed=seed, accelerated=False)
        self._all, self._plan, self._side = self._train, plan, SIDE
        n_steps = sum(math.ceil(share * len(splits.train) / config.batch_size) for share, _ in plan)
        if config.schedule != "plateau":
            warmup = config.warmup_epochs / len(plan)
            whole = config.model_copy(update={"epochs": 1, "warmup_epochs": min(0.5, warmup)})
            self._schedule = make_schedule(self._optimizer, whole, n_steps)

    def run_epoch(self) -> EpochResult:
        """As `Training`'s, on this epoch's images."""
        share, self._side = self._plan[self.epoch]
        n = len(self._all)
        chosen = torch.randperm(n, generator=self._generator)[: round(share * n)]
        self._train = self._all if share >= 1 else Tensors(self._all.at(chosen), self._all.labels[chosen])
        return super().run_epoch()

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._side != SIDE:
            images = functional.interpolate(batch.images.float(), size=self._side, mode="area").round().to(torch.uint8)
            batch = batch._replace(images=images.contiguous(memory_format=torch.channels_last))
        return super()._gradients(batch)


def plan(trick: Trick, epochs: int, seconds: dict[int, float], budget: float) -> list[tuple[float, int]]:
    """Returns share and side of each epoch, so that they take the budget.

    Args:
        seconds: Of a whole epoch, by the side of the images.
        budget: In seconds.
    """
    if (trick.share, trick.side) != (1.0, SIDE):
        # As many seconds in the second half as the base has; the first gets what is left, in epochs of its own kind.
        later = [(1.0, SIDE)] * (epochs - epochs // 2)
        left = budget - len(later) * seconds[SIDE]
        return [(trick.share, trick.side)] * max(1, round(left / (trick.share * seconds[trick.side]))) + later
    whole = int(budget / seconds[SIDE] + 1e-9)
    rest = budget / seconds[SIDE] - whole
    return [(1.0, SIDE)] * whole + ([(rest, SIDE)] if rest > 0.02 else [])


def timed(trick: Trick, train_images: int | None) -> dict[int, float]:
    """Returns the seconds of an epoch at each side, from a few steps."""
    prepare(1)
    splits, found = images(train_images), {}
    config = configured(trick, 2)
    share = min(1.0, TIMED_STEPS * 128 / len(splits.train))
    for side in {SIDE, trick.side}:
        training = Paced(config, splits, [(share, side)] * 3, seed=0)
        training.run_epoch()
        found[side] = min(share * len(splits.train) / training.run_epoch().images_per_second for _ in range(2)) / share
    return found


def train(
    trick: Trick, seed: int, epochs: int, seconds: dict[int, float], budget: float, train_images: int | None
) -> tuple[float, float, float]:
    """Returns the valid accuracy after the last epoch, the seconds that it took and the epochs' worth of images."""
    prepare(1)
    chosen = plan(trick, epochs, seconds, budget)
    training = Paced(configured(trick, epochs), images(train_images), chosen, seed=seed)
    begin = time.perf_counter()
    results = [training.run_epoch() for _ in chosen]
    return results[-1].valid_accuracy, time.perf_counter() - begin, sum(share for share, _ in chosen)


def row(name: str, found: list[tuple[float, float, float]], base: list[tuple[float, float, float]]) -> dict[str, Any]:
    accuracies, seconds, epochs = zip(*found, strict=True)
    differences = [100 * (ours[0] - theirs[0]) for ours, theirs in zip(found, base, strict=True)]
    n, half = len(differences), math.nan
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    mean = statistics.mean(differences)
    return {
        "trick": name,
        "epochs": statistics.mean(epochs),
        "seconds": statistics.mean(seconds),
        "valid_accuracy": f"{statistics.mean(accuracies):.2%}",
        "difference": "" if found is base else f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})",
    }


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--epochs", type=int, default=3, help="length of the base")
    args.add_argument("--seeds", type=int, default=3, help="trainings of each")
    args.add_argument("--only", default="", help="tricks whose name has this, and the base")
    args.add_argument(
        "--train-images", type=int, help="for a quick look: so many train images, and at most as many valid ones"
    )
    given = args.parse_args()
    machine.tune_malloc()
    chosen = {name: trick for name, trick in TRICKS.items() if name == "base" or given.only in name}
    with multiprocessing.get_context("spawn").Pool(CORES) as pool, Progress() as progress:
        # Each core times each trick, all at once: as loaded as it will be.
        times = {}
        for name in progress.track(chosen, description="Timing steps"):
            both = pool.starmap(timed, [(chosen[name], given.train_images)] * CORES, chunksize=1)
            times[name] = {side: statistics.mean(one[side] for one in both) for side in both[0]}
        budget = given.epochs * times["base"][SIDE]
        jobs = [
            (chosen[name], seed, given.epochs, times[name], budget, given.train_images)
            for name, seed in itertools.product(chosen, range(given.seeds))
        ]
        waiting = [pool.apply_async(train, job) for job in jobs]
        done = [one.get() for one in progress.track(waiting, description="Training")]
    found = {name: done[i * given.seeds : (i + 1) * given.seeds] for i, name in enumerate(chosen)}
    title = f"Tricks: {given.seeds} seeds, each the time of {given.epochs} epochs of the base"
    report(title, [row(name, each, found["base"]) for name, each in found.items()], given.out)


if __name__ == "__main__":
    main()

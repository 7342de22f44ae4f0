"""What each augmentation costs: milliseconds a batch, and their share of the training step that it makes longer.

    python tests/benchmarks/augmentation.py [--seconds 2] [--only TEXT] [--out FILE.csv]

Prints a row an augmentation and a network: ResNet-8 on gray images of 28 x 28, as Fashion-MNIST has them, and ResNet-18
on photos of 128 x 128. One thread, the precision that is faster, random pixels. `ms`: of a batch's augmentation alone,
less that of batches that are only shuffled, which `none` has. `share`: of a step with it. Times are the thread's own,
the best of many, so that other work on the machine counts little. A minute on two cores.
"""

import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import parser, report
from torch.nn import functional

from tuning.base.config import TrainConfig
from tuning.images.batches import Tensors, normalise, train_batches
from tuning.models.architectures import build_model
from tuning.training.acceleration import Logits, faster_precision
from tuning.training.fit import prepare
from tuning.training.optimizers import make_optimizer

# Network -> its configuration, and the shape of its images.
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "resnet8, batch 128, 28 x 28 gray": ({"architecture": "resnet8", "batch_size": 128}, (1, 28, 28)),
    "resnet18, batch 32, 128 x 128 photos": ({"architecture": "resnet18", "batch_size": 32}, (3, 128, 128)),
}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "shift and flip": {"crop_padding": 2, "flip": True},
    "erase": {"erase": 0.3},
    "resized crop": {"crop_scale": 0.3},
    "jitter": {"jitter": 0.4},
    "TrivialAugment": {"trivial_augment": True},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "crop, flip, jitter, erase, mixup": {"crop_scale": 0.3, "flip": True, "jitter": 0.4, "erase": 0.3, "mixup": 0.2},
}
BATCHES = 8


def best(run: Callable[[], object], seconds: float) -> float:
    """Returns the shortest of the times that a call takes, after one that is not counted."""
    run()
    times, end = [], time.thread_time() + seconds
    while not times or time.thread_time() < end:
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return min(times)


def step_seconds(config: TrainConfig, images: torch.Tensor, labels: torch.Tensor, seconds: float) -> float:
    """Returns the time of a training step on a batch that is there, normalisation included."""
    channels = images.shape[1]
    model = build_model(config, channels, n_classes=10).train()
    logits, optimizer = Logits(model, faster_precision("cpu")), make_optimizer(model, config)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits(normalise(images, (0.5,) * channels, (0.25,) * channels)), labels).backward()
        optimizer.step()

    return best(step, seconds)


def batch_seconds(config: TrainConfig, images: torch.Tensor, labels: torch.Tensor, seconds: float) -> float:
    """Returns the time that `train_batches` takes a batch, in an epoch of a few."""
    generator = torch.Generator().manual_seed(0)
    return best(lambda: list(train_batches(Tensors(images, labels), config, generator)), seconds) / BATCHES


def measure(network: str, only: str, seconds: float) -> list[dict[str, Any]]:
    """Returns a row an augmentation."""
    values, shape = NETWORKS[network]
    config = TrainConfig(**values)
    n = BATCHES * config.batch_size
    images, labels = torch.randint(256, (n, *shape), dtype=torch.uint8), torch.randint(10, (n,))
    step = step_seconds(config, images[: config.batch_size], labels[: config.batch_size], 3 * seconds)
    shuffled, rows = batch_seconds(config, images, labels, seconds), []
    for name, changes in AUGMENTATIONS.items():
        if only in name:
            took = shuffled
            if changes:
                took = batch_seconds(config.model_copy(update=changes), images, labels, seconds) - shuffled
            rows.append({"network": network, "augmentation": name, "ms": took * 1000, "share": took / (took + step)})
            print(f"{network}, {name}: {took * 1000:.2f} ms", file=sys.stderr)
    return rows


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--seconds", type=float, default=2.0, help="length of a measurement")
    args.add_argument("--only", default="", help="only augmentations with this text in their name")
    given = args.parse_args()
    if not any(given.only in name for name in AUGMENTATIONS):
        raise SystemExit(f"--only must be part of an augmentation's name, but got {given.only!r}.")
    prepare(threads=1)
    rows = itertools.chain.from_iterable(measure(network, given.only, given.seconds) for network in NETWORKS)
    report("Augmentation", list(rows), given.out)


if __name__ == "__main__":
    main()

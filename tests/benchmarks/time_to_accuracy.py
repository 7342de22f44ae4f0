"""Seconds until the validation accuracy first reaches 90.38 %, the original project's best: ours and the plain loop.

    python tests/benchmarks/time_to_accuracy.py [--seeds 3] [--epochs 1] [--set NAME=VALUE] [--plain] [--out FILE.csv]
    python tests/benchmarks/time_to_accuracy.py --target 0.93 --epochs 4 --set warmup_epochs=0.3 --beside SGD

Ours trains `RECIPE` on the whole machine, each seed with its own valid split and weights; the clock starts before the
images are loaded. The plain loop (`DataLoader`, PIL, `ToTensor`, fp32) follows the original recipe: ResNet-8, Adam at
1e-4, batch 64, ReduceLROnPlateau. By default it is timed for some hundred steps and one validation, and its row says
how many epochs were assumed (32: what it took once); this takes under five minutes on two cores. With `--plain` it is
run until it is there. With `--beside NAME=VALUE`, or `--beside SGD` for the recipe before Muon, there is another recipe
of ours in the place of the plain loop, on the same seeds, in turns.
"""

import itertools
import multiprocessing
import statistics
import sys
import time
from typing import Any

import torch
import yaml
from common import CORES, parser, report
from plain import ItemByItem, plain_epoch, plain_model
from torch.utils.data import DataLoader

from tuning.base import machine
from tuning.base.config import TrainConfig, parse_config
from tuning.images.splitting import load_splits
from tuning.training.fit import Training, fit, prepare

TARGET = 0.9038
RECIPE: dict[str, Any] = {
    "architecture": "resnet8",
    "width": 16,
    "optimizer": "muon",
    "learning_rate": 0.3,
    "momentum": 0.9,
    "weight_decay": 2e-3,
    "batch_size": 64,
    "schedule": "onecycle",
    "warmup_epochs": 0.1,
    "label_smoothing": 0.05,
    "flip": False,
}
# What the default search began with before Muon; at 6 epochs one training in two reaches 93.0 %.
SGD: dict[str, Any] = {
    "architecture": "resnet8",
    "optimizer": "sgd",
    "learning_rate": 0.2,
    "batch_size": 128,
    "schedule": "onecycle",
    "warmup_epochs": 0.6,
    "flip": False,
    "epochs": 8,
}
WARM_STEPS = 20


def ours(
    name: str, config: TrainConfig, seed: int, target: float, train_images: int | None, threads: int
) -> dict[str, Any]:
    """Returns the row of a training that ends as soon as it is there."""
    prepare(threads)
    start = time.perf_counter()
    splits = load_splits("fashion-mnist", seed=seed, train_images=train_images)
    for result in fit(Training(config, splits, seed=seed)):
        if result.valid_accuracy >= target:
            break
    reached = "yes" if result.valid_accuracy >= target else "no"
    return row(f"{name}, seed {seed}", time.perf_counter() - start, result.epoch, result.valid_accuracy, reached)


def plain(target: float, train_images: int | None, *, steps: int | None, epochs: int, workers: int) -> dict[str, Any]:
    """Returns the row of the plain loop: run until it is there or, with `steps`, worked out from so many of them."""
    start = time.perf_counter()
    splits = load_splits("fashion-mnist", seed=0, train_images=train_images)
    torch.manual_seed(0)
    loader = DataLoader(ItemByItem(splits.train), 64, shuffle=True, num_workers=workers)
    valid = DataLoader(ItemByItem(splits.valid), 64, num_workers=workers)
    model = plain_model(TrainConfig(architecture="resnet8"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3, factor=0.1)
    if steps is not None:
        batches = plain_epoch(model, loader, optimizer)
        n_warm = sum(1 for _ in itertools.islice(batches, WARM_STEPS))
        begun = time.perf_counter()
        n_steps = sum(1 for _ in itertools.islice(batches, steps))
        trained = time.perf_counter()
        if n_warm < WARM_STEPS or n_steps < steps:
            raise SystemExit(f"--plain-steps must be at most {len(loader) - WARM_STEPS}, but got {steps}.")
        validate(model, valid)
        seconds = (trained - begun) / steps * len(loader) + time.perf_counter() - trained
        return row(f"plain, {epochs} epochs of {seconds:.1f} s", epochs * seconds, epochs, None, "assumed")
    for epoch in range(1, 2 * epochs + 1):
        for _ in plain_epoch(model, loader, optimizer):
            pass
        loss, accuracy = validate(model, valid)
        schedule.step(loss)
        print(f"plain: epoch {epoch}, {accuracy:.2%}", file=sys.stderr)
        if accuracy >= target:
            break
    reached = "yes" if accuracy >= target else "no"
    return row("plain", time.perf_counter() - start, epoch, accuracy, reached)


def validate(model: torch.nn.Module, loader: DataLoader[Any]) -> tuple[float, float]:
    """Returns the mean loss and the accuracy."""
    model.eval()
    loss, n_right, n = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            logits, _ = model(images)
            loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            n_right += int((logits.argmax(1) == labels).sum().item())
            n += len(labels)
    return loss / n, n_right / n


def row(loop: str, seconds: float, epochs: int, accuracy: float | None, reached: str) -> dict[str, Any]:
    return {
        "loop": loop,
        "reached": reached,
        "seconds": seconds,
        "epochs": epochs,
        "valid_accuracy": None if accuracy is None else round(accuracy, 4),
        "times_faster": None,
    }


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--seeds", type=int, default=3, help="trainings of ours")
    args.add_argument("--epochs", type=int, default=1, help="length of ours")
    args.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change RECIPE")
    args.add_argument("--target", type=float, default=TARGET, help="validation accuracy to reach, in [0, 1]")
    args.add_argument("--plain", action="store_true", help="run the plain loop to the end")
    args.add_argument("--plain-steps", type=int, default=200, help="steps to time without --plain")
    args.add_argument(
        "--plain-epochs", type=int, default=32, help="epochs to assume; --plain gives up after twice that"
    )
    args.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    args.add_argument("--train-images", type=int, help="for a quick look: train both on this many images only")
    args.add_argument("--beside", action="append", default=[], metavar="NAME=VALUE", help="another recipe of ours")
    args.add_argument("--threads", type=int, default=CORES, help="of ours (default: all cores)")
    given = args.parse_args()
    recipes = {"ours": parse_config(RECIPE | {"epochs": given.epochs} | changes(given.set), "--set")}
    rows, other = [], None
    if given.beside:
        base = SGD if "SGD" in given.beside else RECIPE | {"epochs": given.epochs}
        recipes["beside"] = parse_config(base | changes(given.beside), "--beside")
    else:
        steps = None if given.plain else given.plain_steps
        other = plain(given.target, given.train_images, steps=steps, epochs=given.plain_epochs, workers=given.workers)
    # In a process of its own, with huge pages as a trial has them; the plain loop has had none.
    machine.tune_malloc()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for seed, (name, config) in itertools.product(range(given.seeds), recipes.items()):
            rows.append(pool.apply(ours, (name, config, seed, given.target, given.train_images, given.threads)))
            print(rows[-1], file=sys.stderr)
    mine = [one for one in rows if one["loop"].startswith("ours")]
    theirs = [other] * len(mine) if other else [one for one in rows if one not in mine]
    for one, against in zip(mine, theirs, strict=True):
        if "no" not in (one["reached"], against["reached"]):
            one["times_faster"] = against["seconds"] / one["seconds"]
    seconds = [one["seconds"] for one in mine]
    spread = f" +- {statistics.stdev(seconds):.1f}" if len(seconds) > 1 else ""
    title = f"Time to {given.target:.2%} valid accuracy; ours {statistics.mean(seconds):.1f}{spread} s"
    report(title, [*rows, other] if other else rows, given.out)


def changes(texts: list[str]) -> dict[str, Any]:
    """Returns hyperparameters by name, of texts NAME=VALUE."""
    return {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in texts) if value}


if __name__ == "__main__":
    main()

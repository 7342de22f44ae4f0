"""What training tricks are worth: the same seconds for each, the same seeds, valid accuracy beside that of the base.

    python tests/benchmarks/tricks.py [--network resnet14] [--epochs 6] [--seeds 3] [--base TRICK] [--only TEXT ...]
        [--records FILE.csv] [--train-images N] [--out FILE.csv]

The base trains the network so many epochs with SGD, one-cycle and mirroring. Each trick changes one thing, or adds
Muon, as its name says. What a step costs is measured beside the base's, in turns, as many processes side by side as the
machine has cores, of one thread each, in processor time; a trick that costs more a step then gets fewer steps.
`of_base`: the processor time that its trainings took beside those of the base with the same seeds, as a check.
`difference`: of the accuracy after the last epoch, in points, paired over the seeds, with a 95 % interval (Student's
t). With --records, each training is a row of that file, and is not repeated. A training of ResNet-8 takes half a minute
of a core an epoch.
"""

import csv
import functools
import itertools
import math
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import CORES, parser, report
from paced import SIDE, Paced, Trick
from rich.progress import Progress
from scipy import stats
from time_to_accuracy import RECIPE

from tuning.base import machine
from tuning.base.config import TrainConfig, parse_config
from tuning.images.datasets import Labelled
from tuning.images.splitting import Splits, load_splits
from tuning.training.fit import prepare

BASE = RECIPE | {"flip": True, "image_size": None}
TIMED_STEPS, ROUNDS = 20, 3


def muon(learning_rate: float = 0.3, **changes: Any) -> dict[str, Any]:
    return {"optimizer": "muon", "learning_rate": learning_rate, "weight_decay": 2e-3, "momentum": 0.95} | changes


SMOOTH = {"label_smoothing": 0.1}
LIGHT = {"crop_padding": 1, "erase": 0.2}
REGULARISED = SMOOTH | {"crop_padding": 1, "erase": 0.3}
WEAK = {"weight_decay": 5e-4, "momentum": 0.9}  # As SGD has them here.
TRICKS = {
    "base": Trick(),
    "Muon": Trick(muon()),
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
    "label smoothing 0.1": Trick(SMOOTH),
    "decay 2e-3": Trick({"weight_decay": 2e-3}),
    "lr 0.3, decay 2e-3, momentum 0.95": Trick({"learning_rate": 0.3, "weight_decay": 2e-3, "momentum": 0.95}),
    "AdamW, lr 0.01": Trick({"optimizer": "adamw", "learning_rate": 0.01}),
    "14 x 14 pixels at first": Trick(side=14),
    "20 x 20 pixels at first": Trick(side=20),
    "half of the images at first": Trick(share=0.5),
    "whitened first layer": Trick(whiten=True),
    "norm biases 8 times": Trick(norm_bias_rate=8),
    "Muon, lr 0.1, decay 5e-4, momentum 0.9": Trick(muon(0.1, **WEAK)),
    "Muon, lr 0.2, decay 5e-4, momentum 0.9": Trick(muon(0.2, **WEAK)),
    "Muon, lr 0.4, decay 5e-4, momentum 0.9": Trick(muon(0.4, **WEAK)),
    "Muon, lr 0.2": Trick(muon(0.2)),
    "Muon, lr 0.45": Trick(muon(0.45)),
    "Muon, lr 0.7": Trick(muon(0.7)),
    "Muon, decay 1e-3": Trick(muon(weight_decay=1e-3)),
    "Muon, decay 4e-3": Trick(muon(weight_decay=4e-3)),
    "Muon, decay 8e-3": Trick(muon(weight_decay=8e-3)),
    "Muon, momentum 0.9": Trick(muon(momentum=0.9)),
    "Muon, momentum 0.97": Trick(muon(momentum=0.97)),
    "Muon, label smoothing 0.1": Trick(muon(**SMOOTH)),
    "Muon, no mirroring": Trick(muon(flip=False)),
    "Muon, mirrored in turns": Trick(muon(flip=False), alternate=True),
    "Muon, batch 64, lr 0.2": Trick(muon(0.2, batch_size=64)),
    "Muon, batch 256, lr 0.45": Trick(muon(0.45, batch_size=256)),
    "Muon, batch 512, lr 0.7": Trick(muon(0.7, batch_size=512)),
    "Muon, falling in the last 60 %": Trick(muon(), decay_share=0.6),
    "Muon, falling in the last 30 %": Trick(muon(), decay_share=0.3),
    "Muon, cosine": Trick(muon(schedule="cosine")),
    "Muon, erase 0.2": Trick(muon(erase=0.2)),
    "Muon, crop 1": Trick(muon(crop_padding=1)),
    "Muon, EMA 0.99": Trick(muon(ema_decay=0.99)),
    "Muon, Lookahead": Trick(muon(), lookahead=5),
    "Muon, not in the first layer": Trick(muon(), first_plain=True),
    "Muon, whitened first layer": Trick(muon(), whiten=True),
    "Muon, norm biases 8 times": Trick(muon(), norm_bias_rate=8),
    "Muon, 20 x 20 pixels at first": Trick(muon(), side=20),
    "Muon, 14 x 14 pixels at first": Trick(muon(), side=14),
    "Muon, half of the images at first": Trick(muon(), share=0.5),
    "Muon, 2 steps": Trick(muon(), newton_schulz=2),
    "Muon, 5 steps": Trick(muon(), newton_schulz=5),
    "Muon, a fifth of the rate": Trick(muon(), muon_share=0.2),
    "Muon, a twentieth of the rate": Trick(muon(), muon_share=0.05),
    "Muon, cutmix 1": Trick(muon(cutmix=1.0)),
    "Muon, mixup 0.2": Trick(muon(mixup=0.2)),
    "Muon, label smoothing 0.2": Trick(muon(label_smoothing=0.2)),
    "Muon, label smoothing 0.1, erase 0.2": Trick(muon(**SMOOTH, erase=0.2)),
    "Muon, label smoothing 0.1, crop 1, erase 0.2": Trick(muon(**SMOOTH, **LIGHT)),
    "Muon, label smoothing 0.1, decay 4e-3": Trick(muon(weight_decay=4e-3, **SMOOTH)),
    "Muon, no mirroring, label smoothing 0.1": Trick(muon(flip=False, **SMOOTH)),
    "Muon, no mirroring, erase 0.2": Trick(muon(flip=False, erase=0.2)),
    "Muon, no mirroring, crop 1": Trick(muon(flip=False, crop_padding=1)),
    "Muon, no mirroring, label smoothing 0.1, erase 0.2": Trick(muon(flip=False, erase=0.2, **SMOOTH)),
    "Muon, no mirroring, decay 4e-3": Trick(muon(flip=False, weight_decay=4e-3)),
    "Muon, no mirroring, EMA 0.99": Trick(muon(flip=False, ema_decay=0.99)),
    "Muon, ResNet-8 of width 24": Trick(muon(architecture="resnet8", width=24)),
    "Muon, ResNet-8 of width 32": Trick(muon(architecture="resnet8", width=32)),
    "Muon, ResNet-14": Trick(muon(architecture="resnet14")),
    "Muon, ResNet-20": Trick(muon(architecture="resnet20")),
    "Muon, regularised, ResNet-8 of width 32": Trick(muon(architecture="resnet8", width=32, **REGULARISED)),
    "Muon, regularised, ResNet-14": Trick(muon(architecture="resnet14", **REGULARISED)),
    "Muon, regularised, ResNet-14 of width 24": Trick(muon(architecture="resnet14", width=24, **REGULARISED)),
    "Muon, regularised, ResNet-20": Trick(muon(architecture="resnet20", **REGULARISED)),
}
# The same with SGD for the last layer, as most of them were measured first.
TRICKS |= {
    name.replace("Muon", "Muon, not in the last layer", 1): replace(trick, head_plain=True)
    for name, trick in TRICKS.items()
    if name.startswith("Muon")
}
# What costs a step nothing.
FREE = ("learning_rate", "momentum", "weight_decay", "schedule", "label_smoothing")
COLUMNS = ("network", "epochs", "trick", "seed", "valid_accuracy", "epochs_trained", "seconds", "relative_cost", "cpu")
Costs = dict[int, float]  # Of an epoch beside one of the base, by the side of the images.


@functools.cache
def images(train_images: int | None) -> Splits:
    """Returns the splits of seed 0; with fewer train images there are at most as many valid images."""
    splits = load_splits("fashion-mnist", seed=0, train_images=train_images)
    valid = Labelled(splits.valid.images[:train_images], splits.valid.labels[:train_images])
    return replace(splits, valid=valid)


def configured(trick: Trick, network: str) -> TrainConfig:
    return parse_config(BASE | {"architecture": network} | trick.changes, "a trick")


def kind(trick: Trick) -> str:
    """Returns what tricks have in common whose steps cost the same."""
    costly = {name: value for name, value in trick.changes.items() if name not in FREE}
    return repr(replace(trick, changes=dict(sorted(costly.items())), decay_share=0.0, muon_share=None))


def plan(trick: Trick, epochs: int, costs: Costs) -> list[tuple[float, int]]:
    """Returns share and side of each epoch, so that they take the time of so many epochs of the base."""
    if (trick.share, trick.side) != (1.0, SIDE):
        # As much time in the second half as the base has; the first gets what is left, in epochs of its own kind.
        later = [(1.0, SIDE)] * (epochs - epochs // 2)
        left = epochs - len(later) * costs[SIDE]
        return [(trick.share, trick.side)] * max(1, round(left / (trick.share * costs[trick.side]))) + later
    whole = int(epochs / costs[SIDE] + 1e-9)
    rest = epochs / costs[SIDE] - whole
    return [(1.0, SIDE)] * whole + ([(rest, SIDE)] if rest > 0.02 else [])


def cost(trick: Trick, network: str, train_images: int | None) -> Costs:
    """Returns what an epoch costs, at each side; the base is timed in turns with it, in the processor's time."""
    prepare(1)
    splits, seconds = images(train_images), defaultdict[int, list[float]](list)

    def training(which: Trick, side: int) -> Paced:
        config = configured(which, network)
        share = min(1.0, TIMED_STEPS * config.batch_size / len(splits.train))
        return Paced(config, splits, [(share, side)] * (ROUNDS + 1), which, seed=0)

    sides = {SIDE, trick.side}
    trainings = {0: training(Trick(), SIDE)} | {side: training(trick, side) for side in sides}
    for turn in range(ROUNDS + 1):
        for side, each in trainings.items():
            taken, n_images = each.timed_epoch()
            if turn > 0:
                seconds[side].append(taken / n_images)
    return {side: min(seconds[side]) / min(seconds[0]) for side in sides}


def train(name: str, seed: int, network: str, epochs: int, costs: Costs, train_images: int | None) -> dict[str, Any]:
    """Returns the row of a training; `seconds` are those of the processor."""
    prepare(1)
    trick, splits = TRICKS[name], images(train_images)
    chosen = plan(trick, epochs, costs)
    training = Paced(configured(trick, network), splits, chosen, trick, seed=seed)
    begin = time.process_time()
    results = [training.run_epoch() for _ in chosen]
    return {
        "network": network,
        "epochs": epochs,
        "trick": name,
        "seed": seed,
        "valid_accuracy": round(results[-1].valid_accuracy, 4),
        "epochs_trained": round(sum(share for share, _ in chosen), 3),
        "seconds": round(time.process_time() - begin, 1),
        "relative_cost": " ".join(f"{side}:{value:.3f}" for side, value in costs.items()),
        "cpu": machine.hardware()["cpu"],
    }


def row(name: str, found: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns a trick's line of the table: its mean, and differences to the base over the seeds that both have."""
    theirs = {one["seed"]: one for one in base}
    pairs = [(one, theirs[one["seed"]]) for one in found if one["seed"] in theirs]
    differences = [100 * (ours["valid_accuracy"] - other["valid_accuracy"]) for ours, other in pairs]
    n, half = len(differences), math.nan
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    mean = statistics.mean(differences) if n else math.nan
    accuracies = [one["valid_accuracy"] for one in found]
    return {
        "trick": name,
        "seeds": len(found),
        "epochs": statistics.mean(one["epochs_trained"] for one in found),
        "of_base": sum(ours["seconds"] for ours, _ in pairs) / sum(other["seconds"] for _, other in pairs),
        "valid_accuracy": f"{statistics.mean(accuracies):.2%}",
        "difference": "" if found is base else f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})",
    }


def recorded(path: Path | None, network: str, epochs: int) -> list[dict[str, Any]]:
    """Returns the rows of this network and length in a file of records."""
    if path is None or not path.exists():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for each in rows:
        each.update({name: int(each[name]) for name in ("epochs", "seed")})
        each.update({name: float(each[name]) for name in ("valid_accuracy", "epochs_trained", "seconds")})
    return [each for each in rows if (each["network"], each["epochs"]) == (network, epochs)]


def append(path: Path, found: dict[str, Any]) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(found)


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--network", default="resnet8", help="architecture of the base, of width 16")
    args.add_argument("--epochs", type=int, default=3, help="length of the base")
    args.add_argument("--seeds", type=int, default=3, help="trainings of each")
    args.add_argument("--base", default="base", choices=TRICKS, metavar="TRICK", help="what the others are beside")
    args.add_argument("--only", nargs="*", default=[""], help="tricks: names, or a text in them; and the base")
    args.add_argument("--records", type=Path, help="one row a training; what is there is not repeated")
    args.add_argument(
        "--train-images", type=int, help="for a quick look: so many train images, and at most as many valid ones"
    )
    given = args.parse_args()
    machine.tune_malloc()
    chosen = [name for name in TRICKS if name == given.base or any(_is_meant(text, name) for text in given.only)]
    known = recorded(given.records, given.network, given.epochs)
    costs = {each["trick"]: _costs(each["relative_cost"]) for each in known}
    have = {(each["trick"], each["seed"]) for each in known}
    jobs = [job for job in itertools.product(range(given.seeds), chosen) if job[::-1] not in have]
    with multiprocessing.get_context("spawn").Pool(CORES) as pool, Progress() as progress:
        alike = {kind(TRICKS["base"]): {SIDE: 1.0}} | {kind(TRICKS[name]): found for name, found in costs.items()}
        untimed = {kind(TRICKS[name]): TRICKS[name] for _, name in jobs if kind(TRICKS[name]) not in alike}
        for key, trick in progress.track(untimed.items(), description="Timing steps"):
            # Each core times it, all at once: as loaded as it will be.
            both = pool.starmap(cost, [(trick, given.network, given.train_images)] * CORES, chunksize=1)
            alike[key] = {side: statistics.mean(one[side] for one in both) for side in both[0]}
        waiting = [
            pool.apply_async(
                train, (name, seed, given.network, given.epochs, alike[kind(TRICKS[name])], given.train_images)
            )
            for seed, name in jobs
        ]
        for one in progress.track(waiting, description="Training"):
            known.append(one.get())
            if given.records:
                append(given.records, known[-1])
    found = {name: [each for each in known if each["trick"] == name] for name in chosen}
    title = f"Tricks: {given.network}, each the time of {given.epochs} epochs of the base"
    rows = [row(name, each, found[given.base]) for name, each in found.items()]
    report(title, rows, given.out)


def _is_meant(text: str, name: str) -> bool:
    return text == name if text in TRICKS else text in name


def _costs(text: str) -> Costs:
    return {int(side): float(value) for side, _, value in (part.partition(":") for part in text.split())}


if __name__ == "__main__":
    main()

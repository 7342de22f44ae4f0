"""What a GPU does: seconds an epoch, trials side by side as processes, and time to an accuracy with a given recipe.

    python tests/benchmarks/gpu.py [--data-dir DIR] [--recipe FILE.json] [--target 0.95 0.96] [--out FILE.csv]

Needs torch, numpy and pydantic alone, and torchvision for ResNet-18: neither Ray nor Optuna. `images_per_second` is of
all processes together, train images only; `memory_mb` is what torch reserved for one of them. A `captured` step is a
CUDA graph, as trials on a GPU have it; the same network alone is also timed with the step as it is. Without a GPU it
says so and ends with 2; `--device cpu` with few images is for a look at the script itself.
"""

import argparse
import csv
import multiprocessing
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tuning.base import machine
from tuning.base.config import TrainConfig, parse_config, read_config
from tuning.base.errors import UserError
from tuning.images.splitting import Splits, load_splits
from tuning.training.fit import Training, fit, prepare

BASE = {"batch_size": 256, "flip": True, "crop_padding": 2, "epochs": 1000, "patience": None}
NETWORKS = {
    "resnet8-16": {"architecture": "resnet8"},
    "resnet8-64": {"architecture": "resnet8", "width": 64},
    "resnet18-small": {"architecture": "resnet18", "stem": "small"},
}
RECIPE = {
    **{"architecture": "resnet18", "stem": "small", "batch_size": 512, "epochs": 30, "learning_rate": 0.4},
    **{"flip": True, "crop_padding": 2, "erase": 0.3, "label_smoothing": 0.05, "ema_decay": 0.99, "patience": None},
}


def timed(
    config: TrainConfig, splits: Splits, device: str, epochs: int, *, captured: bool, start: Any = None
) -> dict[str, Any]:
    """Returns what some epochs after the first, which warms up, took: rate, seconds, memory; and the precision.

    With `start`, a barrier, the epochs begin when those of all processes do.
    """
    training = Training(config, splits, seed=0, device=device, accelerated=captured)
    training.run_epoch()
    if start is not None:
        start.wait()
    begun = time.perf_counter()
    results = [training.run_epoch() for _ in range(epochs)]
    seconds = (time.perf_counter() - begun) / epochs
    memory = torch.cuda.max_memory_reserved() / 1e6 if device == "cuda" else 0.0
    rate = sum(result.images_per_second for result in results) / epochs
    return {
        "seconds_per_epoch": seconds,
        "images_per_second": rate,
        "memory_mb": memory,
        "precision": training.precision,
    }


def _process(config: TrainConfig, given: argparse.Namespace, captured: bool, start: Any, found: Any) -> None:
    try:
        prepare(1)
        splits = load_splits("fashion-mnist", given.data_dir, train_images=given.train_images)
        found.put(timed(config, splits, given.device, given.epochs, captured=captured, start=start))
    except Exception as error:  # Out of memory, say: those beside must not wait for this one.
        start.abort()
        found.put(repr(error))


def side_by_side(config: TrainConfig, given: argparse.Namespace, n: int, captured: bool) -> dict[str, Any]:
    """Returns the same of `n` processes that train at the same time; rates added up, the slowest's seconds an epoch."""
    context = multiprocessing.get_context("spawn")
    start, found = context.Barrier(n), context.Queue()
    processes = [context.Process(target=_process, args=(config, given, captured, start, found)) for _ in range(n)]
    for process in processes:
        process.start()
    rows = [found.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    if errors := [row for row in rows if isinstance(row, str)]:
        raise SystemExit(f"{n} side by side: {min(errors, key=lambda error: 'BrokenBarrier' in error)}")
    return {
        "seconds_per_epoch": max(row["seconds_per_epoch"] for row in rows),
        "images_per_second": sum(row["images_per_second"] for row in rows),
        "memory_mb": max(row["memory_mb"] for row in rows),
        "precision": "/".join(sorted({row["precision"] for row in rows})),
    }


def time_to(targets: list[float], config: TrainConfig, splits: Splits, device: str) -> list[dict[str, Any]]:
    """Returns a row a target: seconds until the valid accuracy first reaches it, making the network included."""
    begun, best, rows = time.perf_counter(), 0.0, []
    for result in fit(Training(config, splits, seed=0, device=device)):
        best, seconds = max(best, result.valid_accuracy), time.perf_counter() - begun
        while len(rows) < len(targets) and best >= sorted(targets)[len(rows)]:
            target = sorted(targets)[len(rows)]
            rows.append({"what": f"{target:.2%} valid accuracy", "seconds": seconds, "epochs": result.epoch})
        if len(rows) == len(targets):
            return rows
    missed = {"seconds": seconds, "epochs": result.epoch}
    return rows + [{"what": f"{t:.2%} not reached, best {best:.2%}", **missed} for t in sorted(targets)[len(rows) :]]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    args.add_argument("--data-dir", type=Path, help="a folder that holds the data set's files")
    args.add_argument("--recipe", type=Path, help="a JSON file of hyperparameters for the time to an accuracy")
    args.add_argument("--target", type=float, nargs="*", default=[0.95, 0.96], help="valid accuracies, in [0, 1]")
    args.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    args.add_argument("--side-by-side", type=int, nargs="*", default=[1, 2, 4, 8], help="numbers of processes")
    args.add_argument("--epochs", type=int, default=3, help="timed ones of each, after one that warms up")
    args.add_argument("--train-images", type=int, help="for a quick look: fewer images")
    args.add_argument("--out", type=Path, help="write the table to this CSV file, too")
    given = args.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use; --device cpu shows what the script does", file=sys.stderr)
        sys.exit(2)
    try:
        recipe = read_config(given.recipe) if given.recipe else parse_config(RECIPE, "RECIPE")
        splits = load_splits("fashion-mnist", given.data_dir, train_images=given.train_images)
    except UserError as error:
        sys.exit(f"error: {error}")
    prepare(1)
    rows: list[dict[str, Any]] = []
    for name in given.networks:
        config = parse_config(BASE | NETWORKS[name], name)
        on_gpu = given.device == "cuda"
        for n, captured in [(1, False)] * on_gpu + [(n, on_gpu) for n in given.side_by_side]:
            found = side_by_side(config, given, n, captured)
            rows.append({"what": name, "step": "captured" if captured else "as it is", "processes": n, **found})
            print(rows[-1], file=sys.stderr)
    if given.target:
        rows += time_to(given.target, recipe, splits, given.device)
    gpu = torch.cuda.get_device_name() if given.device == "cuda" else machine.hardware()["cpu"]
    columns = ["what", "step", "precision", "processes", "seconds_per_epoch", "images_per_second", "memory_mb"]
    columns += ["seconds", "epochs"]
    print(f"{gpu}, torch {torch.__version__}, Python {platform.python_version()}; recipe {recipe.model_dump_json()}")
    print("".join(f"{column:>30}" if column == "what" else f"{column:>19}" for column in columns))
    for row in rows:
        cells = [_cell(row.get(column)) for column in columns]
        print(f"{cells[0]:>30}" + "".join(f"{cell:>19}" for cell in cells[1:]))
    if given.out is not None:
        with given.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*columns, "hardware", "torch"])
            writer.writeheader()
            writer.writerows({**row, "hardware": gpu, "torch": torch.__version__} for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()

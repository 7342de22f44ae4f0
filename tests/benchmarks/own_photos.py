"""What pays on a small set of one's own photos: ways to train, at equal minutes of a core.

    python tests/benchmarks/own_photos.py --dataset DIR [--minutes 3] [--folds 3] [--ways head,scratch] [--out FILE.csv]

Options of the images are those of `python -m tuning.search` (--group-column, --labels-leave-out ...). Each way is
trained on the same stratified, grouped folds of the images that are not test, by one thread, two folds at once. Its
length is the most epochs whose processor time fits into the minutes, by the time of an epoch that is trained before
and thrown away; reading the images is not counted, a body's features are. `mean` and `sd`: of the metric of the last
epoch over the folds; each image is valid at most once.
"""

import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import parser, report

from tuning.base.config import TrainConfig
from tuning.base.registries import METRICS
from tuning.images.source import Source

LITE = {"architecture": "efficientnet_lite0", "pretrained": True, "optimizer": "adamw", "batch_size": 32}
AUGMENTED = {"crop_scale": 0.6, "flip": True, "label_smoothing": 0.1}
BODY = LITE | AUGMENTED | {"weight_decay": 1e-2, "body_lr_factor": 0.1}
SMALL = {"width": 32, "image_size": 64, "batch_size": 32, "learning_rate": 0.1, "crop_scale": 0.6, "flip": True}
WAYS: dict[str, dict[str, Any]] = {
    "head": LITE | {"train": "head", "learning_rate": 5e-3, "weight_decay": 1e-3},
    "head first": BODY | {"train": "head_first", "learning_rate": 1e-3, "body_lr_factor": 1.0},
    "fine-tune": BODY | {"learning_rate": 1e-2},
    "fine-tune without mirroring": BODY | {"learning_rate": 1e-2, "flip": False},
    "fine-tune with EMA 0.99": BODY | {"learning_rate": 1e-2, "ema_decay": 0.99},
    "random weights": BODY | {"learning_rate": 1e-3, "body_lr_factor": 1.0, "pretrained": False},
    "scratch": SMALL | {"architecture": "resnet14"},
}
MOST_EPOCHS = 100  # A head alone has no use for more.


def train(way: str, images: Source, fold: int, n_folds: int, minutes: float, metric: str) -> dict[str, Any]:
    """Returns what one way reaches on one fold, its epochs and its minutes of a core."""
    from tuning.images.splitting import load_folds
    from tuning.training.fit import Training, fit, prepare

    prepare(threads=1)
    splits = load_folds(images, n_folds, seed=0)[fold]
    config = TrainConfig(**{"schedule": "onecycle", "patience": None, **WAYS[way]})

    def begun(epochs: int) -> tuple[Training, float]:
        start = time.process_time()
        made = Training(config.model_copy(update={"epochs": epochs}), splits, seed=fold, metric=metric)
        return made, time.process_time() - start

    first, before = begun(MOST_EPOCHS)
    first.run_epoch()  # It warms up.
    start = time.process_time()
    first.run_epoch()
    epoch = time.process_time() - start
    epochs = min(MOST_EPOCHS, max(1, math.floor((60 * minutes - before) / epoch)))
    training, again = begun(epochs)
    start = time.process_time()
    *_, last = fit(training)
    seconds = time.process_time() - start + max(before, again)  # The features are in the cache the second time.
    return {"way": way, "epochs": epochs, "minutes": seconds / 60, "value": last.valid_score}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments_parser = parser(__doc__)
    add = arguments_parser.add_argument
    add("--dataset", required=True)
    for option in ("--image-column", "--label-column", "--group-column", "--group-pattern"):
        add(option)
    add("--labels-leave-out", action="append", default=[])
    add("--image-size", type=int)
    add("--metric", default="accuracy", choices=list(METRICS))
    add("--minutes", default="3")
    add("--folds", type=int, default=3, help="of five (or of as many, if more)")
    add("--ways", default=",".join(WAYS))
    given = vars(arguments_parser.parse_args(arguments))
    out: Path | None = given.pop("out")
    n_folds, metric = given.pop("folds"), given.pop("metric")
    minutes = [float(value) for value in given.pop("minutes").split(",")]
    ways = given.pop("ways").split(",")
    images = Source(**given | {"labels_leave_out": tuple(given["labels_leave_out"])})
    rows = []
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for each in minutes:
            for way in ways:
                jobs = [pool.submit(train, way, images, k, max(5, n_folds), each, metric) for k in range(n_folds)]
                found = [job.result() for job in jobs]
                values = np.array([one["value"] for one in found])
                rows.append(
                    {
                        "data_set": images.name,
                        "minutes": each,
                        "way": way,
                        "epochs": float(np.mean([one["epochs"] for one in found])),
                        "used": float(np.mean([one["minutes"] for one in found])),
                        f"{metric}_mean": float(values.mean()),
                        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    report(f"{images.name}: mean over {n_folds} folds at equal minutes of a core", rows, out)


if __name__ == "__main__":
    main()

"""Twenty trials of a blink: what a search costs beside its training, ours against stock Ray Tune with Optuna.

    python tests/benchmarks/orchestration.py [--samples 20] [--train-images 200] [--rounds 1] [--out FILE.csv]

Both train the same configurations of the space `smoke` for one epoch, as many side by side as there are cores. Stock is
Tune as it comes, with `OptunaSearch`: a new process a trial. `trials_seconds` runs from when the first trial has made
its network to when the end of the last one is known; `start_seconds` from the command to that beginning, torch's import
included; `command_seconds` to its end, pictures included in ours. With rounds, medians. About two minutes.
"""

import functools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import CORES, parser, report, run

from tuning.runs import run_folder


def ours(folder: Path, samples: int, train_images: int) -> tuple[float, float, float]:
    """Returns trials_seconds, start_seconds and command_seconds of our search."""
    size = ["--samples", str(samples), "--epochs", "1", "--train-images", str(train_images)]
    command = ["-m", "tuning.search", "--space", "smoke", *size, "--run", "ours", "--quiet"]
    begin = time.time()
    seconds, start = run(command, folder, appears="results/ours/trials/*/trial.log")
    trials = run_folder.Run(folder / "results/ours").trials
    if (trials["state"] != "complete").any() or len(trials) != samples:
        raise SystemExit(f"{samples} trials must be complete, but got {dict(trials['state'].value_counts())}.")
    return trials["ended"].max().timestamp() - begin - start, start, seconds


def stock(folder: Path, samples: int, train_images: int) -> tuple[float, float, float]:
    """Returns the same of stock Tune, which this script runs in a process of its own."""
    size = ["--samples", str(samples), "--train-images", str(train_images)]
    begin = time.time()
    seconds, start = run([str(Path(__file__).resolve()), "--stock", str(folder), *size], folder, appears="began")
    return json.loads((folder / "ended.json").read_text()) - begin - start, start, seconds


def run_stock(folder: Path, samples: int, train_images: int) -> None:
    """Runs the trials with stock Tune and writes when they began and ended."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from search_spaces import smoke
    from tuning.images.splitting import load_splits

    class Ends(tune.Callback):
        last: float

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.last = time.time()

    ends = Ends()

    ray.init(address="local")
    splits = load_splits("fashion-mnist", train_images=train_images)
    grid = tune.Tuner(
        tune.with_parameters(functools.partial(_train, str(folder)), splits=splits),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(space=smoke.space, metric="valid_accuracy", mode="max"), num_samples=samples
        ),
        run_config=tune.RunConfig(name="stock", storage_path=str(folder / "ray"), callbacks=[ends]),
    ).fit()
    if grid.num_errors or len(grid) != samples:
        raise SystemExit(f"{samples} trials must be complete, but {grid.num_errors} of {len(grid)} failed.")
    (folder / "ended.json").write_text(json.dumps(ends.last))


def _train(folder: str, config: dict[str, Any], splits: Any) -> None:
    from ray import tune

    from tuning.base.config import TrainConfig
    from tuning.training.fit import Training, fit, prepare

    prepare(1)
    training = Training(TrainConfig(**config, epochs=1), splits, seed=0)
    Path(folder, "began").write_text(str(os.getpid()))
    for epoch in fit(training):
        tune.report(vars(epoch))


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--samples", type=int, default=20, help="trials")
    args.add_argument("--train-images", type=int, default=200, help="images that a trial trains on")
    args.add_argument("--rounds", type=int, default=1, help="how often each is run; the median counts")
    args.add_argument("--stock", type=Path, help="(its own use) run stock Tune in this folder")
    given = args.parse_args()
    if given.stock:
        run_stock(given.stock, given.samples, given.train_images)
        return
    times: dict[str, list[tuple[float, float, float]]] = {"ours": [], "stock": []}
    for _ in range(given.rounds):
        for name, measure in (("ours", ours), ("stock", stock)):
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                times[name].append(measure(Path(folder), given.samples, given.train_images))
            print(f"{name}: {times[name][-1][0]:.1f} s", file=sys.stderr)
    medians = {name: [statistics.median(column) for column in zip(*each, strict=True)] for name, each in times.items()}
    medians["ours / stock"] = [a / b for a, b in zip(medians["ours"], medians["stock"], strict=True)]
    names = ("trials_seconds", "start_seconds", "command_seconds")
    rows = [{"search": name, **dict(zip(names, each, strict=True))} for name, each in medians.items()]
    report(f"{given.samples} trials of a blink, {CORES} side by side", rows, given.out)


if __name__ == "__main__":
    main()

"""A thousand trials, 64 side by side: what a search itself costs, and whether that grows with the trials.

    python tests/benchmarks/scale.py [--samples 250 500 1000] [--side-by-side 64] [--sampler curves] [--busy 2]
        [--out FILE.csv]

Nothing is trained: a trial replays a made-up learning curve of six epochs, 20 ms each, and ASHA stops it. Instead,
`--busy` processes keep so many cores busy, as trials in training do; with 0 the search has the machine to itself. All
else is the search: Ray (which is told that the machine has so many CPUs), Tune, sampler, study, frames, pictures and
page.

`trial_ms`: time between the ends of two trials, on average, once each slot has its worker and has had two trials;
`cpu_ms`: of that, the driver's CPU time; `last_cpu_ms`: the same of the last tenth, to show what grows; `sampler_ms`: a
proposal's time, in the space and the sampler; `driver_mb`: peak memory of the driver before it makes pictures and page,
which takes `end_s`; `frames_ms`, `study_ms`: to open frames and study. Each search begins with a minute in which Ray
starts its workers. About 20 minutes.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import ROOT, parser, report


def replay(config: dict[str, Any], *, run: str, **others: Any) -> None:
    """Reports a learning curve that the configuration decides, as `train_trial` would."""
    import math
    import random
    import time

    from ray import tune

    from tuning.trials.schedulers import METRIC

    values, noise = config["config"], random.Random(config["seed"])
    level = 0.94 - 0.05 * min(1.0, abs(math.log10(values["learning_rate"]) + 1.5)) - 0.01 * noise.random()
    best = 0.0
    for epoch in range(1, values["epochs"] + 1):
        time.sleep(0.02)
        accuracy = level - 0.3 * 2.0**-epoch + 0.003 * noise.gauss(0, 1)
        best = max(best, accuracy)
        row = {"epoch": epoch, "train_loss": 1 - accuracy, "train_accuracy": accuracy, "valid_loss": 1 - accuracy}
        row |= {
            "valid_accuracy": accuracy,
            "valid_score": accuracy,
            "lr": values["learning_rate"],
            "epoch_seconds": 0.02,
            "error": "",
        }
        row |= {"images_per_second": 1e6, "seconds_per_image": 1e-6, "n_parameters": 77754, "device": "cpu"}
        finished = "length" if epoch == values["epochs"] else ""
        tune.report(row | {"precision": "fp32", "finished": finished, METRIC: best})


class Clock:
    """Notes when a function is called, and how long it takes."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds, self.ends, self.cpu = 0.0, [], []  # type: float, list[float], list[float]
        function = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.ends.append(time.perf_counter())
                self.cpu.append(time.process_time())
                self.seconds += self.ends[-1] - begin

        setattr(owner, name, timed)


def measure(n: int, side_by_side: int, sampler: str) -> dict[str, Any]:
    """Runs a search of `n` trials in this process and folder; returns its row of the table."""
    import optuna

    from tuning.runs import run_folder
    from tuning.sampling import spaces
    from tuning.sampling.study import RunStudy
    from tuning.trials import record, session, worker
    from tuning.trials.progress import Progress
    from tuning.trials.settings import Settings

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = spaces.load_space("resnet").without({"pretrained": [True]})
    settings = Settings(
        n, "resnet", "fashion-mnist", 6, 0, sampler, "asha", "cpu", side_by_side, 1.0, 0.0, None, None, 2, None
    )
    worker.train_trial = replay  # type: ignore[assignment]
    sampled, ended = Clock(spaces.Space, "sample"), Clock(RunStudy, "_end")
    concluded = Clock(record, "conclude")
    peaks: list[float] = []
    run_trials = session.Session.run_trials

    def noted(*given: Any) -> None:
        run_trials(*given)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    session.Session.run_trials = noted  # type: ignore[method-assign]
    path = run_folder.RESULTS / "one"
    record.begin(path, settings, space)
    with Progress(n, quiet=True) as progress:
        splits: Any = SimpleNamespace(split_hash="", valid_hash="", valid=range(5000))
        session.search(settings, path, splits, space, progress)
    run, begin = run_folder.Run(path), time.perf_counter()
    n_trials, n_epochs = len(run.trials), len(run.epochs)
    frames, begin = time.perf_counter() - begin, time.perf_counter()
    optuna.load_study(study_name="one", storage=f"sqlite:///{path}/study.db").get_trials()
    opened, tenth, warm = time.perf_counter() - begin, max(1, n // 10), min(2 * side_by_side, n // 2)
    return {
        "trials": n_trials,
        "epochs": n_epochs,
        "trial_ms": 1e3 * (ended.ends[-1] - ended.ends[warm]) / (n - warm - 1),
        "cpu_ms": 1e3 * (ended.cpu[-1] - ended.cpu[warm]) / (n - warm - 1),
        "last_cpu_ms": 1e3 * (ended.cpu[-1] - ended.cpu[-1 - tenth]) / tenth,
        "sampler_ms": 1e3 * sampled.seconds / n,
        "driver_mb": peaks[0],
        "frames_mb": sum((path / name).stat().st_size for name in ("trials.csv", "epochs.csv")) / 1e6,
        "frames_ms": 1e3 * frames,
        "study_mb": (path / "study.db").stat().st_size / 1e6,
        "study_ms": 1e3 * opened,
        "end_s": concluded.seconds,
    }


@contextlib.contextmanager
def busy_cores(n: int) -> Iterator[None]:
    """Keeps `n` cores busy: each with a process that computes until the end."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--samples", type=int, nargs="+", default=[250, 500, 1000], help="trials of each search")
    args.add_argument("--side-by-side", type=int, default=64, help="trials at a time")
    args.add_argument("--sampler", default="curves", help="as search's")
    args.add_argument("--busy", type=int, default=os.cpu_count(), help="cores that other processes keep busy")
    args.add_argument("--here", action="store_true", help="(its own use) run one search in this process and folder")
    given = args.parse_args()
    if given.here:
        print(json.dumps(measure(given.samples[0], given.side_by_side, given.sampler)))
        return
    rows = []
    for n in given.samples:
        command = [sys.executable, str(Path(__file__).resolve()), "--here", "--samples", str(n)]
        command += ["--side-by-side", str(given.side_by_side), "--sampler", given.sampler]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, busy_cores(given.busy):
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr)
    title = f"Replayed trials, {given.side_by_side} side by side, {given.sampler}, {given.busy} cores kept busy"
    report(title, rows, given.out)


if __name__ == "__main__":
    main()

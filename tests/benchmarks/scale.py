"""A thousand trials, 64 side by side: what the search itself costs, and whether that grows with the trials.

    python tests/benchmarks/scale.py [--samples 250 500 1000] [--concurrency 64] [--sampler tpe] [--out FILE.csv]

Nothing is trained: a trial replays a made-up learning curve, with a blink of sleep an epoch. All else is the search:
Ray, Tune, ASHA, the study, the frames, and at the end pictures and page. Ray believes that the machine has so many CPUs.

`trial_ms`: from the first trial's start to the last one's end, over the trials, workers' start excluded; `last_ms`: the same of the last
tenth, so that it shows what grows; `sampler_ms`: of that, what Optuna's sampler takes; `driver_mb`: peak memory of the
driver; `frames_ms`, `study_ms`: opening `trials` and `epochs`, and the study; `end_s`: pictures and page. About 10 minutes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def replay(config: dict[str, Any], *, splits: Any, run: str, threads: int, stored: Any = None) -> None:
    """Reports a learning curve that the configuration decides, as `train_trial` would."""
    import math
    import random
    import time

    from ray import tune

    values, noise = config["config"], random.Random(config["seed"])
    level = 0.94 - 0.05 * min(1.0, abs(math.log10(values["learning_rate"]) + 1.5)) - 0.01 * noise.random()
    best = 0.0
    for epoch in range(1, values["epochs"] + 1):
        time.sleep(0.02)
        accuracy = level - 0.3 * 2.0**-epoch + 0.003 * noise.gauss(0, 1)
        best = max(best, accuracy)
        row = {"epoch": epoch, "train_loss": 1 - accuracy, "train_accuracy": accuracy, "valid_loss": 1 - accuracy}
        row |= {"valid_accuracy": accuracy, "lr": values["learning_rate"], "epoch_seconds": 0.02}
        row |= {"images_per_second": 1e6, "seconds_per_image": 1e-6, "n_parameters": 77754, "error": ""}
        finished = "length" if epoch == values["epochs"] else ""
        row |= {"device": "cpu", "precision": "fp32", "finished": finished, "best_valid_accuracy": best}
        tune.report(row)


def measure(folder: Path, n: int, concurrency: int, sampler: str, profile: Path | None) -> dict[str, float]:
    """Returns the row of a search of `n` trials, run in this process."""
    import cProfile

    import optuna

    from tuning import results, search, trainable
    from tuning.progress import Progress
    from tuning.spaces import load_space
    from tuning.study import RunStudy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.chdir(folder)
    path, space = results.RESULTS / "one", load_space("resnet").without({"pretrained": [True]})
    settings = search.Settings(
        n, "resnet", "fashion-mnist", 6, 0, sampler, "asha", "cpu", concurrency, 1.0, 0.0, None, None, 2, None
    )
    splits: Any = argparse.Namespace(split_hash="", valid_hash="")
    in_sampler, ended_at = [0.0], []
    ask, end = RunStudy.ask, RunStudy._end

    def timed_ask(study: RunStudy) -> Any:
        sample, begin = study._space.sample, time.perf_counter()
        proposal = ask(study)
        in_sampler[0] += time.perf_counter() - begin
        del sample
        return proposal

    def noted_end(study: RunStudy, *given: Any, **named: Any) -> None:
        end(study, *given, **named)
        ended_at.append(time.perf_counter())

    begun_at: list[float] = []
    trainable.train_trial = replay
    RunStudy.ask, RunStudy._end = timed_ask, noted_end  # type: ignore[method-assign]
    conclude, concluded = search.conclude, [0.0]

    def timed_conclude(run: results.Run) -> None:
        begin = time.perf_counter()
        conclude(run)
        concluded[0] = time.perf_counter() - begin

    search.conclude = timed_conclude
    started = trainable.Recorder.on_trial_result

    def noted_result(recorder: Any, *given: Any, **named: Any) -> None:
        begun_at.append(time.perf_counter())
        started(recorder, *given, **named)

    trainable.Recorder.on_trial_result = noted_result  # type: ignore[method-assign]
    search._begin_run(path, settings, space)
    profiler = cProfile.Profile()
    if profile is not None:
        profiler.enable()
    with Progress(n, quiet=True) as progress:
        search.search(settings, path, splits, space, progress)
    if profile is not None:
        profiler.disable()
        profiler.dump_stats(profile)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    opened = time.perf_counter()
    run = results.Run(path)
    trials, epochs = run.trials, run.epochs
    frames_ms = 1e3 * (time.perf_counter() - opened)
    opened = time.perf_counter()
    optuna.load_study(study_name="one", storage=f"sqlite:///{path}/study.db").get_trials()
    tenth = n // 10
    return {
        "trials": n,
        "epochs": len(epochs),
        "trial_ms": 1e3 * (ended_at[-1] - begun_at[0]) / n,
        "last_ms": 1e3 * (ended_at[-1] - ended_at[-1 - tenth]) / tenth,
        "ask_ms": 1e3 * in_sampler[0] / n,
        "driver_mb": peak,
        "frames_kb": sum((path / name).stat().st_size for name in ("trials.csv", "epochs.csv")) / 1e3,
        "frames_ms": frames_ms,
        "study_kb": (path / "study.db").stat().st_size / 1e3,
        "study_ms": 1e3 * (time.perf_counter() - opened),
        "end_s": concluded[0],
    }


if __name__ == "__main__":
    import sys

    print(measure(Path(tempfile.mkdtemp()), int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))

"""What a proposal of the default sampler costs after so many trials: seconds of a core, and memory. Nothing is trained.

    python tests/benchmarks/proposals.py [--trials 150 300 1000] [--epochs 30] [--hyperparameters 8] [--out FILE.csv]

A study is filled with trials at random points, whose made-up curves are stopped as ASHA stops them. Then the sampler is
asked for more, some of which run at a time. `first_s`: the first proposal, which fits hyperparameters from the priors,
as after a resume; `median_s`, `most_s`: the proposals after it; `refit_s`: one that fits hyperparameters again, as one
in a tenth more trials does; `process_mb`: peak memory of the process, imports included. Seconds are processor time of
one thread. About a minute; 0.2 s after 1,000 trials (`README.md`).
"""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import optuna
from common import ROOT, parser, report
from optuna.trial import TrialState

from tuning.sampling.curve_sampler import CurveSampler

RUNGS = (1, 3, 10)
PROPOSALS, RUNNING = 40, 8


def ask(study: optuna.Study, n_hyperparameters: int, epochs: int) -> optuna.Trial:
    """Returns the next trial, with a value of each hyperparameter."""
    trial = study.ask()
    for i in range(n_hyperparameters - 2):
        trial.suggest_float(f"x{i}", 0, 1)
    trial.suggest_categorical("kind", ["a", "b", "c"])
    trial.suggest_float("learning_rate", 1e-4, 1, log=True)
    trial.set_user_attr("config", {"epochs": epochs})
    return trial


def train(study: optuna.Study, trial: optuna.Trial, epochs: int, rungs: dict[int, list[float]], noise: Any) -> None:
    """Reports a trial's curve and ends it, early where it is not among the best third of a rung."""
    numbers = [value for name, value in trial.params.items() if name.startswith("x")]
    level = 0.9 - sum((number - 0.6) ** 2 / (1 + i) for i, number in enumerate(numbers))
    level -= 0.1 * abs(math.log10(trial.params["learning_rate"]) + 2)
    best = -math.inf
    for epoch in range(1, epochs + 1):
        value = level - 0.5 * (1 + numbers[0]) / epoch**0.7 + 0.003 * noise.normal()
        best = max(best, value)
        trial.report(value, epoch)
        if epoch in RUNGS:
            rungs.setdefault(epoch, []).append(best)
            if best < np.quantile(rungs[epoch], 2 / 3):
                study.tell(trial, state=TrialState.PRUNED)
                return
    study.tell(trial, best)


def measure(n: int, n_hyperparameters: int, epochs: int) -> dict[str, Any]:
    """Returns a row of the table."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    noise, rungs = np.random.default_rng(0), dict[int, list[float]]()
    for _ in range(n - PROPOSALS // 2):
        train(study, ask(study, n_hyperparameters, epochs), epochs, rungs, noise)
    study.sampler = CurveSampler(0, 5, 0.0)
    seconds, open_trials = [], []
    for _ in range(PROPOSALS):
        begin = time.process_time()
        open_trials.append(ask(study, n_hyperparameters, epochs))
        seconds.append(time.process_time() - begin)
        if len(open_trials) == RUNNING:
            train(study, open_trials.pop(0), epochs, rungs, noise)
    study.sampler._n_fitted = 0
    begin = time.process_time()
    ask(study, n_hyperparameters, epochs)
    return {
        "trials": n,
        "reported_epochs": sum(len(t.intermediate_values) for t in study.get_trials(deepcopy=False)),
        "first_s": seconds[0],
        "median_s": statistics.median(seconds[1:]),
        "most_s": max(seconds[1:]),
        "refit_s": time.process_time() - begin,
        "process_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--trials", type=int, nargs="+", default=[150, 300, 1000], help="trials of each study")
    args.add_argument("--epochs", type=int, default=30, help="of a full trial (default: 30)")
    args.add_argument("--hyperparameters", type=int, default=8, help="of the space, three at least (default: 8)")
    args.add_argument("--here", action="store_true", help="(its own use) measure in this process")
    given = args.parse_args()
    if given.here:
        print(json.dumps(measure(given.trials[0], given.hyperparameters, given.epochs)))
        return
    rows = []
    for n in given.trials:
        command = [sys.executable, __file__, "--here", "--trials", str(n), "--epochs", str(given.epochs)]
        command += ["--hyperparameters", str(given.hyperparameters)]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | one_thread
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    title = f"Proposals of searches of {given.epochs} epochs and {given.hyperparameters} hyperparameters"
    report(f"{title}, {RUNNING} trials at a time", rows, given.out)


if __name__ == "__main__":
    main()

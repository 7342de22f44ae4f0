"""How long a user waits: for help, for an error, for a run's table, and for the first training step of a search.

    python tests/benchmarks/cold_start.py [--rounds 3] [--out FILE.csv]

Prints the median, the least and the most seconds of each. The search is of the default space, with few images and one
epoch, so that it ends soon; it reads the whole data set all the same. Under five minutes on two cores.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import parser, report, run

SEARCH = ["-m", "tuning.search", "--samples", "2", "--epochs", "1", "--train-images", "500", "--quiet"]


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--rounds", type=int, default=3, help="how often each is run")
    given = args.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)

        def first_step(i: int) -> float:
            return run([*SEARCH, "--run", f"run-{i}"], folder, appears=f"results/run-{i}/trials/*/trial.log")[1]

        # In this order: the table needs a run.
        waits: dict[str, Callable[[int], float]] = {
            "tuning.search --help": lambda i: run(["-m", "tuning.search", "--help"], folder)[0],
            "an argument error": lambda i: run(["-m", "tuning.search", "--sampler", "tp"], folder, code=2)[0],
            "tuning.search, to the first training step": first_step,
            "tuning.results": lambda i: run(["-m", "tuning.results"], folder)[0],
        }
        for i in range(given.rounds):
            for what, wait in waits.items():
                seconds.setdefault(what, []).append(wait(i))
                print(f"{what}: {seconds[what][-1]:.2f} s", file=sys.stderr)
    rows = [
        {"wait": what, "median_seconds": statistics.median(each), "least": min(each), "most": max(each)}
        for what, each in seconds.items()
    ]
    report(f"From command to result, rounds: {given.rounds}", rows, given.out)


if __name__ == "__main__":
    main()

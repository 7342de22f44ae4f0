"""Memory of a search with two trials side by side, by process, from their start until each has ended an epoch.

    python tests/benchmarks/memory.py [--train-images N | --photos N] [--out FILE.csv]

The trials are a ResNet-14 and a ResNet-18 of the default space with batches of 256, on the whole data set. In MB, each
the most that was seen: `rss` is all that a process has mapped, `uss` what it would give back if it ended, `shared` the
rest: libraries, and the data set in Ray's object store. `object store` is the shared memory of all processes, each page
counted once. Reads /proc, so Linux only. About three minutes on two cores.

--photos N: on N JPEGs of 64 x 64 pixels of one's own, which are made first; both trials are a ResNet-8 with batches of
64.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, parser, report
from PIL import Image

from tuning.runs import run_folder

SPACE = """
def space(trial):
    rate = trial.suggest_float("learning_rate", 0.01, 0.1)
    network = ["resnet14", "resnet18"][trial.number % 2]
    return {"architecture": network, "batch_size": 256, "learning_rate": rate, "ema_decay": 0.99}
"""
OWN = """
def space(trial):
    rate = trial.suggest_float("learning_rate", 0.01, 0.1)
    return {"architecture": "resnet8", "batch_size": 64, "learning_rate": rate, "crop_scale": 0.5}
"""
SEARCH = ["-m", "tuning.search", "--space", "mine.py", "--samples", "2", "--concurrency", "2", "--scheduler", "none"]


def memory(pid: int) -> dict[str, float] | None:
    """Returns MB of a process: rss, uss, shm (a shared page counts for its share), peak; None if it ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text() + Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    kb = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    if "VmHWM" not in kb:
        return None
    private = kb["Private_Clean"] + kb["Private_Dirty"]
    return {"rss": kb["Rss"] / 1e3, "uss": private / 1e3, "shm": kb["Pss_Shmem"] / 1e3, "peak": kb["VmHWM"] / 1e3}


def descendants(root: int) -> dict[int, str]:
    """Returns what the processes below one are called, and itself."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    found = {root}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return {pid: names[pid] for pid in found if pid in names}


def role(pid: int, root: int, command: str) -> str:
    """Returns what a process of a search is."""
    if pid == root:
        return "search"
    return "worker" if command.startswith("ray::ImplicitFunc") else "Ray's own"


def make_photos(folder: Path, n: int) -> None:
    """Writes JPEGs of smooth noise into ten class folders, below one of their own."""
    rng = np.random.default_rng(0)
    for number in range(n):
        path = folder / "photos" / f"class {number % 10}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        small.resize((64, 64)).save(path, quality=85)


def main() -> None:
    args = parser(__doc__)
    args.add_argument(
        "--photos", type=int, default=0, help="so many photos, made for it, in the place of Fashion-MNIST"
    )
    args.add_argument("--train-images", type=int, default=55_000, help="for a quick look: fewer images")
    args.add_argument("--limit", type=float, default=280.0, help="seconds after which it ends in any case")
    given = args.parse_args()
    most: dict[str, dict[str, float]] = {}
    store = 0.0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "mine.py").write_text(OWN if given.photos else SPACE)
        size = ["--train-images", str(given.train_images)]
        if given.photos:
            make_photos(folder, given.photos)
            size = ["--dataset", str(folder / "photos")]
        size += ["--epochs", "50", "--run", "run", "--quiet"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment |= {"TUNING_CACHE": str(folder / "cache")} if given.photos else {}
        process = subprocess.Popen([sys.executable, *SEARCH, *size], cwd=folder, env=environment)
        run, end = run_folder.Run(folder / "results/run"), time.monotonic() + given.limit
        while process.poll() is None and time.monotonic() < end:
            seen = {pid: (command, memory(pid)) for pid, command in descendants(process.pid).items()}
            total: dict[str, dict[str, float]] = {}
            for pid, (command, found) in seen.items():
                if found is not None:
                    what = role(pid, process.pid, command)
                    what = f"{what} {pid}" if what == "worker" else what
                    sums = total.setdefault(what, dict.fromkeys(found, 0.0) | {"processes": 0.0})
                    for column, value in (found | {"processes": 1.0}).items():
                        sums[column] += value
            for what, sums in total.items():
                most[what] = {column: max(value, most.get(what, {}).get(column, 0.0)) for column, value in sums.items()}
            store = max(store, sum(sums["shm"] for sums in total.values()))
            if run.epochs["trial"].nunique() == 2:
                break
            time.sleep(0.25)
        process.send_signal(signal.SIGTERM)
        process.wait()
    rows = [
        {
            "process": re.sub(r"\d+", "", what).strip(),
            "processes": int(sums["processes"]),
            "rss": sums["rss"],
            "uss": sums["uss"],
            "shared": sums["rss"] - sums["uss"],
            "peak_rss": sums["peak"],
        }
        for what, sums in sorted(most.items(), key=lambda item: -item[1]["rss"])
    ]
    rows.append(
        {"process": "object store", "processes": None, "rss": store, "uss": None, "shared": store, "peak_rss": None}
    )
    report(
        f"Memory in MB of a search with two trials of {given.photos or given.train_images:,} images side by side",
        rows,
        given.out,
    )


if __name__ == "__main__":
    main()

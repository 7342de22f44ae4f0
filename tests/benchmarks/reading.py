"""How long one's own images take to be read: the first time, and from then on.

    python tests/benchmarks/reading.py [--sets DIR] [--images 2062,1399] [--rounds 3] [--out FILE.csv]

Without DIR, JPEGs of smooth noise are made: so many of 100 x 100 pixels in class folders, and so many of 400 x 533 with
a table. DIR is a folder with sets of one's own, of which each is read as it is. Each reading is a process of its own,
with imports, as a command has them, and the first time is with an empty cache. Prints the median seconds, the images a
second of the first time, and the memory of the process. Under two minutes on two cores.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, parser, report
from PIL import Image


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--sets", type=Path, help="folder with sets to read instead of those that are made")
    args.add_argument("--images", default="2062,1399", help="how many small and large images are made")
    args.add_argument(
        "--rounds", type=int, default=3, help="how often each is read with an empty cache, and then again"
    )
    args.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = args.parse_args()
    if given.one is not None:
        read_one(given.one)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = sorted(given.sets.iterdir()) if given.sets else make_sets(folder, *map(int, given.images.split(",")))
        rows = [row(path, folder / "cache", given.rounds) for path in sets if path.is_dir()]
    report(f"Reading one's own images, rounds: {given.rounds}", rows, given.out)


def read_one(path: Path) -> None:
    """Reads a set in this process; prints its images, its seconds with imports, and the memory in MB."""
    began = time.perf_counter()
    from tuning.images.reading import read
    from tuning.images.source import Source

    found = read(Source(str(path), skip_broken=True), note=lambda line: None)
    seconds = time.perf_counter() - began
    print(len(found), found.images.shape[-1], seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def row(path: Path, cache: Path, rounds: int) -> dict[str, object]:
    """Returns a row of the table: a set is read with an empty cache, then again, `rounds` times."""
    first, again = [], []
    n = side = memory = 0
    for _ in range(rounds):
        shutil.rmtree(cache, ignore_errors=True)
        for seconds in (first, again):
            command = [sys.executable, __file__, "--one", str(path)]
            environment = os.environ | {"TUNING_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            words = done.stdout.split()
            n, side, memory = int(words[0]), int(words[1]), max(memory, int(words[3]))
            seconds.append(float(words[2]))
        print(f"{path.name}: {first[-1]:.2f} s, then {again[-1]:.2f} s", file=sys.stderr)
    seconds_first = statistics.median(first)
    return {
        "set": path.name,
        "images": n,
        "stored_side": side,
        "first_seconds": seconds_first,
        "again_seconds": statistics.median(again),
        "images/s": n / seconds_first,
        "memory_mb": memory,
    }


def make_sets(folder: Path, n_small: int, n_large: int) -> list[Path]:
    """Returns two folders: small JPEGs in class folders, and large ones with a table."""
    for i in range(n_small):
        save(folder / "small" / str(i % 10) / f"{i}.jpg", i, 100, 100)
    for i in range(n_large):
        save(folder / "large" / "images" / f"{i}.jpg", i, 400, 533)
    lines = [f"{i},{i % 10}\n" for i in range(n_large)]
    (folder / "large" / "labels.csv").write_text("image,label\n" + "".join(lines))
    time.sleep(2.5)  # The index trusts no file that has just been written.
    return [folder / "small", folder / "large"]


def save(path: Path, number: int, width: int, height: int) -> None:
    """Writes a JPEG about as large as that of a photo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


if __name__ == "__main__":
    main()

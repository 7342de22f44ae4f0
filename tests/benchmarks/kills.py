"""Kills a real search of real images again and again, and resumes it, every third time on an empty machine.

    python tests/benchmarks/kills.py [--kills 25]        (about half a minute a kill on two cores)

The search keeps its run in an S3 server on the loopback address. After each kill -9 what had finished must still be
there, here and, a moment later, in the storage; at the end each epoch must be there once. It says how many epochs were
trained twice: at most one of a trial and a kill.
"""

import argparse
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from tuning.remote.storage import Store
from tuning.runs import run_folder, schema

ROOT = Path(__file__).parents[2]
SIZE = ["--space", "smoke", "--epochs", "9", "--scheduler", "none", "--train-images", "24000"]
URI = "s3://bucket/runs/one"


def command(folder: Path, *arguments: str) -> tuple[list[str], dict[str, Any]]:
    """Returns command and options of a search on a machine of its own: nothing is there but its folder."""
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    named = {"PYTHONPATH": f"{folder}:{ROOT}", "TMPDIR": str(folder / "scratch"), "RAY_TMPDIR": "/tmp"}
    return [sys.executable, "-m", "tuning.search", *arguments], {"cwd": folder, "env": os.environ | named}


def finished(run: run_folder.Run) -> dict[int, str]:
    """Returns the rows of the trials that have ended, by number."""
    trials = run.trials
    ended = trials[trials["state"].isin(["complete", "pruned", "failed"])]
    return {int(row["trial"]): str(row) for row in ended.to_dict("records")}


def main() -> None:
    """Plays it through; an assertion fails where something is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*server.get_host_and_port())
    boto3.client("s3").create_bucket(Bucket="bucket")
    draw, known, samples = random.Random(given.seed), dict[int, str](), given.kills + 5
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    machine = root / "0"
    for kill in range(given.kills):
        if kill and kill % 3 == 0 and Store(URI).read("meta.json"):
            shutil.rmtree(machine)
            machine = root / str(kill)
        path = machine / "results" / "one"
        begin = ["--run", "one", "--storage", "s3://bucket/runs", *SIZE]
        begun = Store(URI).read("meta.json") is not None
        run, options = command(machine, "--samples", str(samples), *(["--resume", URI] if begun else begin))
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
        moment = draw.uniform(3, 40)
        time.sleep(moment)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Killed before it had fetched the run, it leaves what was known as it was.
        now = finished(run_folder.Run(path)) if (path / "meta.json").exists() else known
        lost = {number for number, row in known.items() if now.get(number) != row}
        print(
            f"kill {kill + 1:>2} after {moment:4.1f} s{' (it had ended)' if ended else ''} on machine {machine.name}: "
            f"{len(now)} trials finished, lost: {sorted(lost)}",
            flush=True,
        )
        assert not lost
        # What was not in the storage yet when an empty machine goes on was never there for it.
        stored = Store(URI).read("trials.csv") or b""
        (root / "stored.csv").write_bytes(stored)
        known = now if (kill + 1) % 3 else finished_in(root / "stored.csv")
        samples += ended * 2
    run, options = command(machine, "--resume", URI, "--samples", str(samples))
    subprocess.run(run, check=True, **options)
    check(machine / "results" / "one", samples)
    server.stop()
    shutil.rmtree(root)


def finished_in(path: Path) -> dict[int, str]:
    """Returns the same as `finished` of the frame in a file."""
    trials = schema.read_frame(path, schema.TRIAL_COLUMNS)
    ended = trials[trials["state"].isin(["complete", "pruned", "failed"])]
    return {int(row["trial"]): str(row) for row in ended.to_dict("records")}


def check(path: Path, samples: int) -> None:
    """Says what the record holds at the end, and how many epochs were trained twice."""
    run = run_folder.Run(path)
    ran = run.trials[run.trials["attempt"] != 0]
    assert len(ran) == samples and (ran["state"] == "complete").all(), ran
    pairs = Counter(zip(run.epochs["trial"], run.epochs["epoch"], strict=True))
    assert max(pairs.values()) == 1
    trained: Counter[tuple[int, int]] = Counter()
    for name in Store(URI).infos("trials"):
        if name.endswith("trial.log"):
            text = (Store(URI).read(name) or b"").decode(errors="replace")
            for epoch in re.findall(r"EpochResult\(epoch=(\d+),", text):
                trained[int(name.split("/")[1]), int(epoch)] += 1
    again = sum(n - 1 for n in trained.values())
    most = max((number for number in trained.values()), default=0)
    print(
        f"{samples} trials, {len(pairs)} epochs, each once; {int(ran['attempt'].max())} attempts at most; by the logs "
        f"{again} epochs were trained again, none more than {most} times"
    )


if __name__ == "__main__":
    main()

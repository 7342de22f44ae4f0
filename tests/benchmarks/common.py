"""What the benchmarks share: the table that they print, and commands that they time. No torch: that is measured."""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tuning.base import machine

ROOT = Path(__file__).parents[2]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser that shows a script's docstring and knows --out."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="write the table to this CSV file, too")
    return made


def report(title: str, rows: Sequence[Mapping[str, Any]], out: Path | None) -> None:
    """Prints the rows as a table, with hardware and versions; writes them to a CSV file where one was asked for."""
    hardware = machine.hardware()
    where = ", ".join([f"{CORES} cores of {hardware['cpu']}", *hardware["gpus"]])
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions().items())
    table = Table(box=box.SIMPLE_HEAD, title=title, caption=f"{where}\n{versions}", title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right" if _is_number([row[name] for row in rows]) else "left")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    console = Console()
    console.width = console.width if console.is_terminal else 160
    console.print(table)
    if out is not None:
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "hardware", "versions"])
            writer.writeheader()
            writer.writerows({**row, "hardware": where, "versions": versions} for row in rows)


def _is_number(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float | None) for value in values)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def run(command: Sequence[str], folder: Path, *, appears: str | None = None, code: int = 0) -> tuple[float, float]:
    """Runs a Python command in a folder; returns its seconds, and those until it wrote into a file that is waited for.

    Args:
        command: What comes after `python`.
        folder: Where it runs; `output.txt` there gets what it prints.
        appears: A pattern below `folder` of files, the first of which is waited for.
        code: The exit code that it must end with.
    """
    appeared = float("nan")
    with (folder / "output.txt").open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        while process.poll() is None:
            if appears and appeared != appeared and any(path.stat().st_size for path in folder.glob(appears)):
                appeared = time.perf_counter() - start
            time.sleep(0.01)
        seconds = time.perf_counter() - start
    if process.returncode != code:
        text = (folder / "output.txt").read_text(errors="replace")
        raise SystemExit(f"{' '.join(command)} must end with {code}, but got {process.returncode}:\n{text[-3000:]}")
    return seconds, appeared

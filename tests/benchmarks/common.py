"""What the benchmarks share: their options and errors, the table that they print, and commands that they time.

No torch: that is measured.
"""

import argparse
import csv
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from tuning.base import files, machine
from tuning.base.errors import UserError, disk_full

ROOT = Path(__file__).parents[2]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Job = TypeVar("Job")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser that shows a script's docstring and knows --out."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="write the table to this CSV file, too")
    return made


def at_least(low: float, kind: type[int] | type[float] = int) -> Callable[[str], Any]:
    """Returns the type of an option that is a number and has a lower bound."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < float("inf"):
            whole = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a {whole} of at least {low:g}, but got {text!r}.")
        return value

    return read


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Returns a script's main, which says on stderr what the user did wrong, in a sentence, and ends with exit code 2.

    So does a file that cannot be read or written. Bugs keep their tracebacks.
    """

    @functools.wraps(main)
    def run_main() -> None:
        try:
            main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except OSError as error:
            if error.filename is None:
                raise
            full = disk_full(error.filename, error)
            print(f"error: {full or f'{error.filename}: {error.strerror}.'}", file=sys.stderr)
        else:
            return
        sys.exit(2)

    return run_main


def prepare_out(path: Path | None) -> None:
    """Makes the folder of a file that is written at the end; raises UserError where it cannot be written."""
    if path is not None:
        if path.is_dir():
            raise UserError(f"--out must be a file, but got the folder {path}. Write a file's name after it.")
        files.make_folder(path.parent, exist_ok=True)


def ended(pool: Executor, jobs: Mapping["Future[Any]", Job], called: Callable[[Job], str]) -> Iterator[tuple[Job, Any]]:
    """Returns each job with its result, as it ends.

    After an error no further job begins. Those that run end and are returned, too, and then the error is raised.

    Args:
        pool: Runs them.
        jobs: By their futures.
        called: How a job is called in a sentence.

    Raises:
        UserError: A job failed.
    """
    left, failed = dict(jobs), None
    try:
        for future in as_completed(jobs):
            failed = future.exception()
            if failed is not None:
                break
            yield left.pop(future), future.result()
        if failed is None:
            return
        name = called(left.pop(future))
        pool.shutdown(wait=True, cancel_futures=True)
        for other, job in left.items():
            if other.done() and not other.cancelled() and other.exception() is None:
                yield job, other.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    said = str(failed) if isinstance(failed, UserError) else f"{type(failed).__name__}: {failed}"
    raise UserError(f"{name} failed, and those that had not begun were cancelled. The error was: {said}") from failed


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

"""Recorded learning curves of random configurations: the files that `record_curves.py` writes, and how they are read.

A recording is three files of one name:

    NAME.csv        a row an epoch of a training, appended a whole training at a time
    NAME.json       how it was recorded, on what, and the configurations: their points in the space, by number
    NAME.space.py   the search space as it was

Nothing here trains, and nothing here knows the searches that are replayed.
"""

import csv
import fcntl
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import optuna
import pandas as pd

from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError, unknown_name
from tuning.base.registries import METRICS
from tuning.sampling.spaces import Space
from tuning.sampling.study import trial_seed

COLUMNS = (
    *("configuration", "repeat", "seed", "epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy"),
    *("valid_score", "lr", "seconds", "cpu_seconds", "finished", "session"),
)
INTEGERS = ("configuration", "repeat", "seed", "epoch", "session")
OF_ONE = ("configuration", "repeat")  # What tells trainings apart.
DIVERGED = "diverged"
# What all sessions of a recording have in common.
FIXED = ("dataset", "split_hash", "space", "left_out", "epochs", "metric", "precision", "device", "seed")
FIRST_OF_REPEAT = 1_000_000  # Configurations are fewer.
Job = tuple[int, int]  # Configuration and repeat.


def facts_file(path: Path) -> Path:
    """Returns where it is said how a recording was made."""
    return path.with_suffix(".json")


def space_file(path: Path) -> Path:
    """Returns where the space of a recording is."""
    return path.with_suffix(".space.py")


def draw(space: Space, seed: int, number: int, epochs: int) -> dict[str, Any]:
    """Returns a random point of a space; it depends on the seed and its own number alone."""
    sampler = optuna.samplers.RandomSampler(seed=trial_seed(seed, number))
    trial = optuna.create_study(sampler=space.possible(sampler)).ask()
    space.sample(trial, epochs)
    return dict(trial.params)


def config_of(space: Space, point: Mapping[str, Any], epochs: int) -> TrainConfig:
    """Returns the configuration of a point."""
    return space.sample(optuna.trial.FixedTrial(dict(point)), epochs)


def training_seed(seed: int, job: Job) -> int:
    """Returns the seed of a training; that of the first repeat is the one that a search's trial would have."""
    configuration, repeat = job
    return trial_seed(seed, configuration + repeat * FIRST_OF_REPEAT)


def planned(configurations: int, repeats: int, seeds: int) -> list[Job]:
    """Returns the trainings in their order: each configuration once, then the first `repeats` on more seeds."""
    again = [(number, seed) for seed in range(1, seeds) for number in range(min(repeats, configurations))]
    return [(number, 0) for number in range(configurations)] + again


class Recording:
    """A recording that this process alone appends to; what an earlier one left unfinished is cut off.

    Args:
        path: Of the CSV file.
        facts: How it is recorded, `FIXED` among them.

    Attributes:
        facts: The same, with the sessions and the points that there are.
        done: The trainings that have ended.

    Raises:
        UserError: Another process records into it, it was begun in another way, or it is no recording.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        files.make_folder(path.parent, exist_ok=True)
        self._file: IO[bytes] = path.open("a+b")
        try:
            self._lock()
            before = files.read_json(facts_file(path)) if facts_file(path).exists() else {}
            _check(path, before, facts)
            self.facts: dict[str, Any] = {**facts, **{k: before.get(k, []) for k in ("sessions", "points")}}
            self.done = self._resume()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def begin(self, space: Space, configurations: int, session: Mapping[str, Any]) -> int:
        """Writes what a session needs before its first training: the space, points and facts; returns its number."""
        known = self.facts["points"]
        numbers = range(len(known), configurations)
        self.facts["points"] = [*known, *(draw(space, self.facts["seed"], n, self.facts["epochs"]) for n in numbers)]
        self.facts["sessions"] = [*self.facts["sessions"], dict(session)]
        if not space_file(self.path).exists():
            files.write_text(space_file(self.path), space.source, durable=True)
        files.write_text(facts_file(self.path), _as_text(self.facts), durable=True)
        return len(self.facts["sessions"]) - 1

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends a training that has ended, and waits until the disk has it."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writerows({name: _cell(row.get(name)) for name in COLUMNS} for row in rows)
        files.write(self._file, text.getvalue().encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.add((rows[0]["configuration"], rows[0]["repeat"]))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.path} is in use: another process records into it. Wait until it ends.") from error

    def _resume(self) -> set[Job]:
        """Cuts off what is not of a whole training, and returns those that are."""
        self._file.seek(0)
        content, header = self._file.read(), f"{','.join(COLUMNS)}\n".encode()
        if not (content.startswith(header) or header.startswith(content)):
            raise UserError(f"{self.path} must be a recording of this version, but its first line is another.")
        whole = content[: _end(self.path, content)]
        self._file.truncate(len(whole))
        if not whole:
            files.write(self._file, f"{','.join(COLUMNS)}\n".encode())
            self._file.flush()
        frame = pd.read_csv(io.BytesIO(whole)) if whole else pd.DataFrame(columns=list(OF_ONE))
        return {(int(number), int(repeat)) for number, repeat in frame[list(OF_ONE)].drop_duplicates().to_numpy()}


def read(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Returns the facts of a recording, and a row an epoch of each training that has ended.

    Raises:
        UserError: It is no recording.
    """
    facts, content = read_facts(path), path.read_bytes()
    kinds = {name: "int64" if name in INTEGERS else "float64" for name in COLUMNS} | {"finished": "str"}
    whole = content[: _end(path, content)]
    if not whole:
        return facts, pd.DataFrame(columns=list(COLUMNS)).astype(kinds)
    try:
        frame = pd.read_csv(io.BytesIO(whole), dtype=kinds)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    return facts, frame[list(COLUMNS)].assign(finished=frame["finished"].fillna(""))


def read_facts(path: Path) -> dict[str, Any]:
    """Returns how a recording was made.

    Raises:
        UserError: A file of it is missing, or what it says is not that of a recording.
    """
    file = facts_file(path)
    for part in (file, path, space_file(path)):
        if not part.is_file():
            raise UserError(f"{file.with_suffix('')} must be a recording of three files, but {part.name} is missing.")
    facts = files.read_json(file)
    if lacks := [name for name in ("epochs", "points", "metric", "device", "space", "left_out") if name not in facts]:
        raise UserError(f"{file} must say how a recording was made, but has no {lacks[0]!r}. Move it if it is none.")
    if facts["metric"] not in METRICS:
        raise unknown_name(f"The metric in {file}", str(facts["metric"]), METRICS)
    return facts


def finals(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Returns what each training has reached, best epoch and seconds: a row each; NaN where it has diverged.

    Args:
        frame: A row an epoch.
        column: Of the metric, or of its merit: greater is better.
    """
    grouped = frame.groupby(list(OF_ONE))
    diverged = grouped["finished"].last() == DIVERGED
    found = pd.DataFrame({"value": grouped[column].max().mask(diverged), "seconds": grouped["seconds"].sum()})
    return found.reset_index()


def noise(found: pd.DataFrame) -> float:
    """Returns the standard deviation of a training's value over seeds, pooled over those that have several.

    Args:
        found: As `finals` returns it. A configuration one of whose trainings has diverged is left out.
    """
    groups = found.groupby("configuration")["value"]
    counts = groups.size()
    whole = (counts > 1) & (groups.count() == counts)
    if not whole.any():
        return float("nan")
    weights = counts[whole] - 1
    return float((groups.var(ddof=1)[whole] * weights).sum() / weights.sum()) ** 0.5


def _check(path: Path, before: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    for name in FIXED if before else ():
        if before.get(name) != facts[name]:
            raise UserError(
                f"{name} must be {before.get(name)!r}, as {path} was begun with, but got {facts[name]!r}. "
                "Choose another --out to begin a new recording."
            )


def _end(path: Path, content: bytes) -> int:
    """Returns where the last whole training ends; its last row alone says why it has ended.

    Columns may stand in any order, and lines may end as on Windows.
    """
    first, newline, _ = content.partition(b"\n")
    header = first.decode(errors="replace").rstrip("\r").split(",")
    if not newline and f"{','.join(COLUMNS)}\n".encode().startswith(content):
        return 0
    if sorted(header) != sorted(COLUMNS):
        lacks = [name for name in COLUMNS if name not in header]
        but = f"but {lacks[0]!r} is not among them" if lacks else f"but got {len(header)} columns"
        raise UserError(f"{path} must be a recording with the columns {', '.join(COLUMNS)}, {but}.")
    end, at, finished = 0, 0, header.index("finished")
    for i, line in enumerate(content.splitlines(keepends=True)):
        at += len(line)
        cells = line.decode(errors="replace").rstrip("\r\n").split(",")
        if line.endswith(b"\n") and len(cells) == len(COLUMNS) and (i == 0 or cells[finished]):
            end = at
    return end


def _cell(value: Any) -> Any:
    """Returns what is written of a value: of a float as many digits as the noise leaves any meaning."""
    return f"{value:.5g}" if isinstance(value, float) else value


def _as_text(facts: Mapping[str, Any]) -> str:
    """Returns indented JSON with a line a point."""
    head = json.dumps({name: value for name, value in facts.items() if name != "points"}, indent=2)
    points = ",\n".join(f"    {json.dumps(point)}" for point in facts["points"])
    return re.sub(r"\n\}$", "", head) + f',\n  "points": [\n{points}\n  ]\n}}\n'


def mixed(sessions: Iterable[Mapping[str, Any]]) -> bool:
    """Returns whether sessions ran on processors or GPUs of several kinds, whose seconds cannot be compared."""
    return len({json.dumps([one["hardware"]["cpu"], one["hardware"]["gpus"]]) for one in sessions}) > 1

"""Of two records of a run, the one in its folder and the one in its storage: which knows more.

No clock has a say in that: a record is what it knows of epochs, and of trials that have ended.
"""

import contextlib
import csv
import io
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuning.base.errors import UserError
from tuning.base.masking import masked
from tuning.remote.storage import META, Store
from tuning.runs import schema
from tuning.runs.study_file import FILE as STUDY
from tuning.runs.study_file import facts, snapshot, unreadable


def stored_is_newer(store: Store, path: Path, tell: Callable[[str], None] = print) -> bool:
    """Returns whether the stored record has more epochs, or ends of trials, than the one that is here.

    Epochs of trials that still ran, which were not sent before their process was killed, do not count if the run has
    gone on elsewhere since: they are trained again, or the trial goes on from its checkpoint, which is still here.

    Raises:
        UserError: Each has trials that ended which the other has not, or they are of different runs; or a file that is
            here cannot be read.
    """

    def here(name: str) -> bytes:
        file = path / name
        try:
            return snapshot(file) if name == STUDY else file.read_bytes()
        except (OSError, sqlite3.DatabaseError) as error:
            if file.exists() and (found := unreadable(file, error)) is not None:
                raise found from error
            return b""  # A damaged study knows nothing; its frames are asked.

    ids = [_id(here(META), f"{path / META}"), _id(store.read(META), f"meta.json in {masked(store.uri)}")]
    if (path / META).exists() and ids[0] != ids[1]:
        raise UserError(
            f"{path} is another run than {masked(store.uri)} (its id in meta.json is {ids[0]}, not {ids[1]}). "
            f"Move {path} away to fetch the stored one."
        )
    own = Known.of(here(STUDY), here("epochs.csv"), here("trials.csv"))
    frames = [store.read(name) or b"" for name in ("epochs.csv", "trials.csv")]
    stored = Known.of(store.read(STUDY) or b"", *frames)
    if own.holds(stored) and stored.holds(own):
        return own.behind_frames  # The study here is missing or damaged; there is the same with one.
    if stored.holds(own) or (not own.holds(stored) and stored.holds_what_ended(own)):
        return True
    if own.holds(stored) or own.holds_what_ended(stored):
        tell(f"{path} has gone on for longer than what is stored, and is taken.")
        return False
    raise UserError(
        f"{path} and {masked(store.uri)} have diverged: each has finished trials that the other lacks. Move one of "
        "them away to resume the other."
    )


def _id(meta: bytes | None, name: str) -> str | None:
    """Returns a run's id from its `meta.json`; raises UserError where that is damaged."""
    try:
        found: str | None = json.loads(meta or b"{}").get("id")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{name} is damaged ({error}). Put back a copy of it, or remove it, if the other one is whole."
        ) from error
    return found


@dataclass(frozen=True)
class Known:
    """What a record knows.

    Attributes:
        epochs: (trial, epoch).
        ended: (trial, when it began) of each trial that has ended.
        behind_frames: The frames have trials that the study lacks, so that nobody can go on from this record.
    """

    epochs: frozenset[tuple[int, int]]
    ended: frozenset[tuple[int, str]]
    behind_frames: bool = False

    @staticmethod
    def of(study: bytes, epochs: bytes, trials: bytes) -> "Known":
        """Returns what the study and the frames know; a line that is cut off is none."""
        values: dict[tuple[int, int], float] = {}
        states: dict[int, tuple[str, str]] = {}
        with contextlib.suppress(sqlite3.DatabaseError, KeyError):
            values, states = facts(study)
        in_frames: set[int] = set()
        known, ended = set(values), {(n, start) for n, (state, start) in states.items() if state != "RUNNING"}
        for row in _rows(epochs):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                known.add((int(row["trial"]), int(row["epoch"])))
        for row in _rows(trials):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                number = int(row["trial"])
                in_frames.add(number)
                if row["state"] not in schema.MAY_GO_ON:
                    ended.add((number, states[number][1] if number in states else row.get("started") or ""))
        in_frames |= {number for number, _ in known}
        return Known(frozenset(known), frozenset(ended), not in_frames <= set(states))

    def holds(self, other: "Known") -> bool:
        """Returns whether this knows all that the other knows."""
        return self.epochs >= other.epochs and self.ended >= other.ended

    def holds_what_ended(self, other: "Known") -> bool:
        """Returns whether what the other knows beyond this is of trials that had not ended there."""
        beyond, over = {trial for trial, _ in other.epochs - self.epochs}, {trial for trial, _ in other.ended}
        return self.ended >= other.ended and not over & beyond


def _rows(text: bytes) -> list[dict[str, str]]:
    whole = text[: text.rfind(b"\n") + 1].decode(errors="replace")
    return list(csv.DictReader(io.StringIO(whole)))

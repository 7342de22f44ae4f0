"""`test_log.jsonl`: each opening of the test split, written down before it happens, and each result.

It is kept beside each model, and once more in `results/`, for all models of a project: whoever writes every model into
a folder of its own has opened the test images no less often.

A line is on the disk when `append` returns. A power cut may leave half a line: the next one begins on a line of its
own, and what is torn counts as an opening unless it says that it is something else.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuning.base import files
from tuning.base.errors import UserError

LOG = "test_log.jsonl"
PROJECT = files.RESULTS
OPENED, RESULT = "opened", "result"
_FIELDS = (
    *("event", "dataset", "split_hash", "config_hash", "seed", "seeds", "train_on", "source", "shipped"),
    "test_hash",  # Of the test images; known once they have been opened.
)
_SCORES = ("test_accuracy", "test_accuracy_plain", "test_accuracy_mean", "metric", "test_score", "test_score_mean")


def append(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Adds a line to a model's log: time, event, data set, hashes, seeds, and the result where there is one.

    The project's log has it, too, where that can be written.

    Raises:
        UserError: The disk is full, or the log cannot be written.
    """
    path, line = folder / LOG, {"time": datetime.now(UTC).isoformat()}
    line |= {name: metrics[name] for name in _FIELDS + _SCORES if name in metrics}
    try:
        files.append_line(path, json.dumps(line))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}), and the test split is not opened without a line in it. "
            "Make it writable, or give another --model-dir."
        ) from error
    with contextlib.suppress(OSError, UserError):
        PROJECT.mkdir(exist_ok=True)
        files.append_line(PROJECT / LOG, json.dumps(line | {"model_dir": str(folder)}))


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of the log, the oldest first; of one that is torn what it still says, and `torn` True.

    Raises:
        UserError: The log cannot be read.
    """
    path = folder / LOG
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    # 0.2.0 wrote the next line behind half a line, where there was one.
    parts = (part for line in text.split("\n") for part in re.split(r'(?<!^)(?={"time": )', line))
    return [_parsed(part) for part in parts if part.strip()]


def why_not_counted() -> str:
    """Returns a sentence where the project's log cannot be read and written; nothing where it can."""
    try:
        PROJECT.mkdir(exist_ok=True)
        read(PROJECT)
        (PROJECT / LOG).open("ab").close()
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return (
            f"{PROJECT / LOG} cannot be used ({reason}), so openings of the test images for models in other folders "
            "are not all counted."
        )
    return ""


def times_opened(folder: Path, dataset: str, test_hash: str | None = None, others: Iterable[Path] = ()) -> int:
    """Returns how often the data set's test split has been opened, as the logs say; a line without a name counts.

    Args:
        folder: Of the model, with its log; what was opened for others is in the project's.
        others: More folders with such logs, as those of models before there was one of the project.
        dataset: The data set's name.
        test_hash: Of its test images; those of a folder that was renamed have another name and the same hash.

    Raises:
        UserError: The log in `folder` cannot be read.
    """
    logs = [read(folder)]
    for other in {each.resolve() for each in others} - {folder.resolve()}:
        with contextlib.suppress(OSError, UserError):
            logs.append(read(other))
    with contextlib.suppress(OSError, UserError):
        project = sorted(read(PROJECT), key=_folder_of)  # Those of two commands that ran at once alternate.
        logs += [list(log) for _, log in itertools.groupby(project, _folder_of)]
    known: set[str] = set()
    return sum(_times_opened(_new(log, known), dataset, test_hash) for log in logs)


def _new(log: Iterable[Mapping[str, Any]], known: set[str]) -> Iterator[Mapping[str, Any]]:
    """Yields the lines that are not known from another log, by their times."""
    for line in log:
        time = line.get("time")
        if time is None or time not in known:
            yield line
        if time is not None and not line.get("torn"):
            known.add(str(time))


def _folder_of(line: Mapping[str, Any]) -> str:
    return str(line.get("model_dir"))


def _times_opened(log: Iterable[Mapping[str, Any]], dataset: str, test_hash: str | None) -> int:
    n, is_open = 0, False
    for line in log:
        if line.get("event") == OPENED:
            is_open = bool(line.get("dataset")) and not _names(line, dataset)
            n += not is_open
        elif is_open and test_hash is not None and line.get("test_hash") == test_hash:
            n, is_open = n + 1, False  # Opened under another name.
    return n


def _names(line: Mapping[str, Any], dataset: str) -> bool:
    return dataset.startswith(str(line["dataset"])) if line.get("torn") else bool(line["dataset"] == dataset)


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    kept = dict(re.findall(r'"(time|event|dataset)": "([^"]*)', line))
    event = kept.get("event", "")
    return kept | {"event": RESULT if event and RESULT.startswith(event) else OPENED, "torn": True}

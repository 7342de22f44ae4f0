"""`test_log.jsonl`: each opening of the test split, written down before it happens, and each result.

A line is on the disk when `append` returns. A power cut may leave half a line: the next one begins on a line of its
own, and what is torn counts as an opening unless it says that it is something else.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuning.base import files
from tuning.base.errors import UserError

LOG = "test_log.jsonl"
OPENED, RESULT = "opened", "result"
_FIELDS = (
    *("event", "dataset", "split_hash", "config_hash", "seed", "seeds", "train_on", "source", "shipped"),
    "test_hash",  # Of the test images; known once they have been opened.
)
_SCORES = ("test_accuracy", "test_accuracy_plain", "test_accuracy_mean", "metric", "test_score", "test_score_mean")


def append(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Adds a line to the log: time, event, data set, hashes, seeds, and the result where there is one.

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


def times_opened(folder: Path, dataset: str, test_hash: str | None = None) -> int:
    """Returns how often the data set's test split has been opened, as the log says; a line without a name counts.

    Args:
        folder: That of the log.
        dataset: The data set's name.
        test_hash: Of its test images; those of a folder that was renamed have another name and the same hash.
    """
    n, is_open = 0, False
    for line in read(folder):
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

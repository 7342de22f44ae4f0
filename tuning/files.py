"""Files of a run, each written whole or not at all, and read with errors that name them.

What must never live here: what is in them.
"""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tuning.errors import UserError, disk_full


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Makes a folder; raises UserError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise (disk_full(path, error) or UserError(f"{path} must be a folder that can be made: {error}.")) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; raises UserError where the disk is full."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, through a temporary one beside it; raises UserError where the disk is full."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise (disk_full(path, error) or error) from error


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object from a file; raises UserError where it is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be a readable JSON file, but got: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, but got {type(value).__name__}.")
    return value


def write_rows(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file whole or not at all; values that a row lacks are left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def append_row(path: Path, columns: Iterable[str], row: Mapping[str, Any]) -> None:
    """Adds a line to a CSV file in one write, after a header where it is new; a full disk raises UserError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    try:
        with path.open("ab") as file:
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
            file.write(text.getvalue().encode())
    except OSError as error:
        raise (disk_full(path, error) or error) from error

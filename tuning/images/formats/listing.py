"""`Listing`: what every format returns, before any image is decoded; and the order of names."""

import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

# A file to be read, a file's bytes, or pixels of whole numbers: (H, W) or (H, W, C) with 1, 3 or 4 channels.
Content = Path | bytes | npt.NDArray[Any]
Note = Callable[[str], None]
# What splits are called, in lower case.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev", "validset", "valset"), "valid"),
    **dict.fromkeys(("test", "testing", "testset", "t10k"), "test"),
}
SPLIT_ORDER = ("train", "valid", "test", "")
NO_LABEL = "rows without a label"


def to_stderr(line: str) -> None:
    """Prints a line to stderr."""
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class Listing:
    """The images of a data set in their order, a row each, before any is decoded.

    Attributes:
        names: What a row is called.
        labels: As they are written; "" where a row has none.
        splits: "train", "valid", "test", or "" where none is given.
        groups: "" where none is given.
        files: The files that hold the pixels: one a row where `one_each`, else containers of many images, and whatever
            files these name.
        contents: Yields what some rows hold, which are given in ascending order.
        one_each: A row is a file. Where such a file is not there, the row is in `missing`.
        missing: Rows whose file is not there.
        of_folders: The labels are folders' names, and not cells in which a whole number may have become a float.
        empty: Class folders without an image that are left out by their names.
        passed_over: Reason -> how many.
        options: What beside the files' contents decides the pixels, e.g. a column.
    """

    names: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    groups: Sequence[str]
    files: Sequence[Path]
    contents: Callable[[Sequence[int]], Iterator[Content]]
    one_each: bool = False
    missing: frozenset[int] = frozenset()
    of_folders: bool = False
    empty: frozenset[str] = frozenset()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    options: str = ""


def of_files(
    names: Sequence[str],
    labels: Sequence[str],
    files: Sequence[Path],
    *,
    splits: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    missing: frozenset[int] = frozenset(),
    passed_over: Mapping[str, int],
) -> Listing:
    """Returns the listing of images that are a file each; bytes of a name that are no UTF-8 are escaped in it."""
    none = [""] * len(names)
    return Listing(
        names=[name.encode(errors="backslashreplace").decode() for name in names],
        labels=labels,
        splits=splits or none,
        groups=groups or none,
        files=files,
        contents=lambda rows: (files[row] for row in rows),
        one_each=True,
        missing=missing,
        passed_over=passed_over,
    )


@functools.lru_cache(maxsize=1024)  # Folders come again and again.
def natural_folder(path: str) -> tuple[list[str | int], str]:
    """Returns a key to sort by for the folder of a relative path."""
    return natural(path)


def natural(text: str) -> tuple[list[str | int], str]:
    """Returns a key to sort by in which digits count as numbers: "img2" comes before "img10"."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text


def split_of(file_name: str) -> str:
    """Returns the split that a file's name begins with or has as a word, or ""."""
    words = re.split(r"[^a-z0-9]+", file_name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")

"""`FORMATS`: the formats of labelled images, in the order in which they are asked whether a path is theirs.

To add one, write a file with `claims(path)` and `list_images(source, note)` beside the others, and an entry here.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tuning.base.errors import UserError
from tuning.base.registries import Entry, Registry
from tuning.images.formats.listing import Listing, Note
from tuning.images.source import Source


@dataclass(frozen=True)
class Format(Entry):
    """A format: its module is asked whether a path is of it, and lists the images there.

    Attributes:
        module: In this folder.
        has_columns: It is a table, so that its columns can be chosen.
    """

    module: str = field(kw_only=True)
    has_columns: bool = False

    def claims(self, path: Path) -> bool:
        """Returns whether a path is of this format."""
        return bool(self._get("claims")(path))

    def list_images(self, source: Source, note: Note) -> Listing:
        """Returns the images of a path with their labels; raises UserError where that cannot be done."""
        if source.columns and not self.has_columns:
            option, column = next(iter(source.columns.items()))
            raise UserError(f"{option} {column} needs a table, but {source.path} has no columns. Leave the option out.")
        with said_if_locked(source.path):
            listing = self._get("list_images")(source, note)
        assert isinstance(listing, Listing)
        return listing

    def _get(self, name: str) -> Callable[..., object]:
        found: Callable[..., object] = getattr(importlib.import_module(f"tuning.images.formats.{self.module}"), name)
        return found


FORMATS = Registry(
    "format",
    {
        "IDX": Format("MNIST's files of any content, gzipped or not: a folder, or one file of images", module="idx"),
        "npz": Format("arrays as Keras and MedMNIST name them: `x_train`, `train_images`, `x` ...", module="arrays"),
        "Parquet": Format(
            "images inside, as Hugging Face's `datasets` writes them, or a table of image files: a file or a folder",
            module="parquet",
            has_columns=True,
        ),
        "table": Format(
            "CSV, TSV or text: the path or id of an image and its label", module="tables", has_columns=True
        ),
        "folders": Format(
            "a folder for each class, below `train`, `valid` and `test` folders or without; or images and one table",
            module="folders",
            has_columns=True,
        ),
    },
)


@contextlib.contextmanager
def said_if_locked(path: Path) -> Iterator[None]:
    """Turns it into a sentence that a file or folder may not be read."""
    try:
        yield
    except PermissionError as error:
        raise UserError(
            f"{error.filename or path} cannot be read ({error.strerror}). Change its permissions."
        ) from error


def find_format(path: Path) -> str:
    """Returns the name of the format that a path is of.

    Raises:
        UserError: There is no such path, or it is of no format.
    """
    try:
        path.stat()
    except OSError as error:
        raise UserError(f"--dataset {path} cannot be read: {error.strerror}. Check the path.") from error
    with said_if_locked(path):
        for name, entry in FORMATS.items():
            if entry.claims(path):
                return name
    hint = "Unpack it, and pass the folder." if path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z") else ""
    raise UserError(
        f"--dataset must be a folder of class folders, a table (.csv, .tsv, .parquet), .npz or IDX files, but "
        f"got {path}. {hint}".rstrip()
    )

"""`Resolver`: the file that a table means by a path, a file name or an id."""

import contextlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from tuning.base.errors import UserError
from tuning.images.formats.walking import Walk, stem, walk


class AmbiguousError(UserError):
    """A text in a table that could be two files."""


class Resolver:
    """Finds images by what a table calls them: their path from the table, or their name with or without extension.

    The folder is walked through only where a path from the table does not lead to a file.

    Args:
        folder: Where the table is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, value: str) -> Path | None:
        """Returns the file; None where there is none.

        A name with its extension comes before one without, and both before one whose letters differ in case. Of files
        of one name, that beside the table comes first, then that in its folder "images", then that in another.

        Raises:
            AmbiguousError: Two files could be meant.
        """
        value = value.strip().replace("\\", "/")
        above, _, last = value.rstrip("/").rpartition("/")
        if not last:
            return None
        exact = os.path.join(self.folder, value)
        if os.path.splitext(last)[1] and _is_file(exact):
            return Path(exact)
        tail = composed("/".join(part for part in above.split("/") if part not in ("", "."))).lower()
        found = self._lookup(composed(last), tail)
        for place in (tail, f"images/{tail}".rstrip("/"), None):
            tier = [name for name in found if place is None or _folder(name) == place]
            if len(tier) > 1:
                raise AmbiguousError(
                    f"{value!r} in the table could be {self.folder / tier[0]} or {self.folder / tier[1]}. Write "
                    "the path from the table's folder, with the extension, into the table."
                )
            if tier:
                return self.folder / tier[0]
        return Path(exact) if _is_file(exact) else None

    def _lookup(self, last: str, tail: str) -> list[str]:
        """Returns the images of a name whose folders end with `tail`."""
        for index in ("_names", "_stems", "_loose"):  # By name: what is not needed is not made.
            key = last.lower() if index == "_loose" else last
            if found := [name for name in getattr(self, index).get(key, ()) if _is_in(name, tail)]:
                return found
        return []

    def without_row(self, taken: set[Path]) -> int:
        """Returns how many images lie below the table's folder without a row.

        Where every path in the table leads to its file, only the folders of these are looked at.
        """
        rows = {str(path) for path in taken}
        if "_walked" in self.__dict__:
            images = {os.path.join(self.folder, name) for name in self._walked.images}
        else:
            suffixes = {os.path.splitext(path)[1].lower() for path in rows}
            images = {
                entry.path
                for entry in _entries({os.path.dirname(path) for path in rows})
                if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in suffixes
            }
        return len(images - rows)

    @cached_property
    def _walked(self) -> Walk:
        return walk(self.folder)

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self._walked.images:
            found[composed(name.rpartition("/")[2])].append(name)
        return found

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self._walked.images:
            found[composed(stem(name))].append(name)
        return found

    @cached_property
    def _loose(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self._walked.images:
            for key in {composed(each).lower() for each in (name.rpartition("/")[2], stem(name))}:
                found[key].append(name)
        return found


def composed(text: str) -> str:
    """Returns a text in Unicode's composed form: files from a Mac have the other one, and look the same."""
    return unicodedata.normalize("NFC", text)


def _entries(folders: Iterable[str]) -> Iterator[os.DirEntry[str]]:
    """Yields what is in folders; nothing of one whose files may be read, but not listed."""
    for folder in folders:
        with contextlib.suppress(PermissionError):
            yield from os.scandir(folder)


def _folder(name: str) -> str:
    return composed(name.rpartition("/")[0]).lower()


def _is_in(name: str, tail: str) -> bool:
    return not tail or f"/{_folder(name)}".endswith(f"/{tail}")


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # A name that no file system takes.
        return False

"""From what a user names to image files: files as they are, the images below a folder, those that a table lists."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tuning.base import files
from tuning.base.errors import UserError, counted
from tuning.images.formats import tables
from tuning.images.formats.columns import find_image_column, has_suffix, is_header
from tuning.images.formats.known import said_if_locked
from tuning.images.formats.listing import Note, natural, to_stderr
from tuning.images.formats.resolving import Resolver
from tuning.images.formats.walking import walk
from tuning.images.source import Source

TABLES = {*tables.SUFFIXES, ".parquet"}
NAMED, LOOKED_AT = 3, 50


def expanded(
    paths: Sequence[Path],
    image_column: str | None = None,
    note: Note = to_stderr,
    skip: Callable[[str], None] | None = None,
) -> list[Path]:
    """Returns image files: those named, those below a named folder in natural order, those in a table's rows.

    Args:
        paths: Files, folders and tables.
        image_column: The column of a table that has the files or ids; None is the one that a search would take.
        note: Receives what was guessed of a table.
        skip: Receives what a table lists that is not there, and the others are returned; None makes it an error.

    Raises:
        UserError: A folder has no image, or a table has no such column or lists files that are not there; with `skip`,
            none of them.
    """
    found: list[Path] = []
    for path in map(files.with_home, paths):
        if os.path.isdir(path):  # `Path.is_dir` raises where that cannot be found out; reading it says so.
            with said_if_locked(path):
                names = sorted(walk(path).images, key=lambda name: natural(Path(name).name))
            if not names:
                raise UserError(f"The folder {path} has no image in it. Name image files, or a folder that has some.")
            found += [path / name for name in names]
        elif path.suffix.lower() in TABLES:
            with said_if_locked(path):
                found += _of_table(path, image_column, note, skip)
        else:
            found.append(path)
    return found


def _of_table(path: Path, column: str | None, note: Note, skip: Callable[[str], None] | None) -> list[Path]:
    """Returns the files of a table's rows."""
    resolver, source = Resolver(path.parent), Source(str(path), image_column=column)
    table = _read(path, source, resolver, note)

    def names_images(name: str) -> bool:
        return any(tables.leads(resolver, value) for value in table[name][:LOOKED_AT])

    values = table[find_image_column(table, source, str(path), note, names_images=names_images)]
    files = [resolver.find(value) for value in values]
    missing = [value for value, file in zip(values, files, strict=True) if file is None]
    if skip is not None and len(missing) < len(values):
        for value in missing:
            skip(f"{path} lists {value!r}, which is not there.")
    elif missing:
        some = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        way = " --skip-broken leaves out such rows." if len(missing) < len(values) else ""
        raise UserError(
            f"{path} has {counted(len(missing), 'row')} whose image is not there: {some}. Check --image-column and the "
            f"table's place.{way}"
        )
    return [file for file in files if file is not None]


def _read(path: Path, source: Source, resolver: Resolver, note: Note) -> dict[str, list[str]]:
    """Returns a table as a search reads it: column -> its texts. One column suffices, and none needs a name."""
    if path.suffix.lower() == ".parquet":
        from tuning.images.formats import parquet

        return parquet.texts_of(path, source, note)

    def leads(cell: str) -> bool:
        return tables.leads(resolver, cell)

    rows = tables.rows_of(path, note, is_list=lambda lines: _is_list(lines, source, leads))
    header, *body = rows
    if not is_header(rows, source, leads) and any(has_suffix(cell) or leads(cell) for cell in header):
        names = [f"column {number}" for number in range(1, len(header) + 1)]
        header, body = names if len(names) > 1 else ["image"], rows
    return tables.by_columns(path, header, body)


def _is_list(lines: Sequence[str], source: Source, leads: Callable[[str], bool]) -> bool:
    """Returns whether lines are names of images as a whole, whatever commas and blanks are in them.

    They are where one leads to an image. Where none does, blanks in all of them part no columns, unless a part leads
    to one.
    """
    named = [line for line in lines if has_suffix(line)]
    if any(map(leads, named)):
        return True
    if source.image_column is not None or not named or any(re.search(r"[\t,;|]", line) for line in lines):
        return False
    return len(named) >= len(lines) - 1 and not any(leads(word) for line in named for word in line.split())

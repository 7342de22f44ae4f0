"""From what a user names to image files: files as they are, the images below a folder, those that a table lists."""

from collections.abc import Sequence
from pathlib import Path

from tuning.base import files
from tuning.base.errors import UserError, counted, unknown_name
from tuning.images.formats import tables
from tuning.images.formats.columns import is_header
from tuning.images.formats.known import said_if_locked
from tuning.images.formats.listing import Note, natural, to_stderr
from tuning.images.formats.resolving import Resolver
from tuning.images.formats.walking import walk
from tuning.images.source import Source

TABLES = {*tables.SUFFIXES, ".parquet"}
NAMED, LOOKED_AT = 3, 50


def expanded(paths: Sequence[Path], image_column: str | None = None, note: Note = to_stderr) -> list[Path]:
    """Returns image files: those named, those below a named folder in natural order, those in a table's rows.

    Args:
        paths: Files, folders and tables.
        image_column: The column of a table that has the files or ids; None is the first that leads to files.
        note: Receives that a table's encoding was guessed.

    Raises:
        UserError: A folder has no image, or a table has no such column or lists files that are not there.
    """
    found: list[Path] = []
    for path in map(files.expanded, paths):
        if path.is_dir():
            names = sorted(walk(path).images, key=lambda name: natural(Path(name).name))
            if not names:
                raise UserError(f"The folder {path} has no image in it. Name image files, or a folder that has some.")
            found += [path / name for name in names]
        elif path.suffix.lower() in TABLES:
            with said_if_locked(path):
                found += _of_table(path, image_column, note)
        else:
            found.append(path)
    return found


def _of_table(path: Path, column: str | None, note: Note) -> list[Path]:
    """Returns the files of a table's rows; the column is the first whose values lead to files, if none is named."""
    resolver = Resolver(path.parent)
    table = _read(path, column, resolver, note)
    if column is not None and column not in table:
        raise unknown_name("--image-column", column, table)
    leading = [name for name in table if any(tables.leads(resolver, value) for value in table[name][:LOOKED_AT])]
    if column is None and not leading:
        raise UserError(
            f"{path} must have a column that names image files, but its columns are {', '.join(table)}. Choose one "
            "with --image-column, or check the table's place."
        )
    values = table[column or leading[0]]
    files = [resolver.find(value) for value in values]
    if missing := [value for value, file in zip(values, files, strict=True) if file is None]:
        some = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        raise UserError(
            f"{path} has {counted(len(missing), 'row')} whose image is not there: {some}. Check --image-column and the "
            "table's place."
        )
    return [file for file in files if file is not None]


def _read(path: Path, column: str | None, resolver: Resolver, note: Note) -> dict[str, list[str]]:
    """Returns a table as a search reads it: column -> its texts. One column suffices, and none needs a name."""
    if path.suffix.lower() == ".parquet":
        from tuning.images.formats import parquet

        return parquet.texts_of(path)
    header, *body = rows = tables.rows_of(path, note, least=1)
    if not is_header(header, Source(str(path), image_column=column)) and any(
        tables.is_image(cell, resolver) for cell in header
    ):
        header, body = [f"column {number}" for number in range(1, len(header) + 1)], rows
    return tables.by_columns(path, header, body)

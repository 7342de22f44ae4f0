"""From what a user names to image files: files as they are, the images below a folder, those that a table lists."""

from collections.abc import Sequence
from pathlib import Path

from tuning.base.errors import UserError, counted, unknown_name
from tuning.images.formats.listing import natural
from tuning.images.formats.resolving import Resolver
from tuning.images.formats.walking import walk

TABLES = {".csv", ".tsv", ".txt", ".parquet"}
NAMED, LOOKED_AT = 3, 50


def expanded(paths: Sequence[Path], image_column: str | None = None) -> list[Path]:
    """Returns image files: those named, those below a named folder in natural order, those in a table's rows.

    Args:
        paths: Files, folders and tables.
        image_column: The column of a table that has the files or ids; None finds it by its name.

    Raises:
        UserError: A folder has no image, or a table has no such column or lists files that are not there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            names = sorted(walk(path).images, key=lambda name: natural(Path(name).name))
            if not names:
                raise UserError(f"The folder {path} has no image in it. Name image files, or a folder that has some.")
            found += [path / name for name in names]
        elif path.suffix.lower() in TABLES:
            found += _of_table(path, image_column)
        else:
            found.append(path)
    return found


def _of_table(path: Path, column: str | None) -> list[Path]:
    """Returns the files of a table's rows; the column is the first whose values lead to files, if none is named."""
    table, resolver = _read(path), Resolver(path.parent)
    if column is not None and column not in table:
        raise unknown_name("--image-column", column, table)
    leading = [name for name in table if any(resolver.find(value) for value in table[name][:LOOKED_AT])]
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


def _read(path: Path) -> dict[str, list[str]]:
    """Returns a table: column -> its texts."""
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path).astype("str")
        else:
            frame = pd.read_csv(path, sep=None, engine="python", dtype="str", keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be a table of images, but it cannot be read: {error}.") from error
    return {str(name): frame[name].tolist() for name in frame.columns}

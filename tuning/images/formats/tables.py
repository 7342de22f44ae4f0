"""A table of images and labels: CSV, TSV, or text with blanks between the columns. The images are files beside it."""

import contextlib
import csv
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuning.base.errors import UserError, counted
from tuning.images.formats.columns import find_columns, has_suffix, is_header, with_labels_of_indicators
from tuning.images.formats.listing import NO_LABEL, SPLIT_NAMES, Listing, Note, of_files
from tuning.images.formats.resolving import AmbiguousError, Resolver
from tuning.images.source import Source

SUFFIXES = {".csv", ".tsv", ".txt"}
NO_ROW = "images without a row"
_DELIMITERS = ("\t", ",", ";", "|")
_SAID = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*$', re.IGNORECASE)  # Excel's first line, which names the delimiter.
_LOOKED_AT = 50  # Rows that decide on delimiter and columns.
# What is wrong with a row; its line comes before.
_LONG = f"has a cell of more than {csv.field_size_limit():,} characters. Write short texts, or leave that column out."
_OPEN_QUOTE = (
    'has a cell that begins with a quote (") and does not end in that row. Remove it, or write it as "" in a cell '
    'between quotes, such as """5 inch".'
)


def claims(path: Path) -> bool:
    """Returns whether the path is a text file that is called like a table."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def list_images(source: Source, note: Note, path: Path | None = None) -> Listing:
    """Returns the rows of a table, in their order.

    Args:
        source: Its path is the table, if no other is given.
        note: Receives what was guessed.
        path: The table.

    Raises:
        UserError: It cannot be read, or it is not clear which column is what or which file is meant.
    """
    path = path or source.path
    root = source.path if source.path.is_dir() else path.parent
    resolver = Resolver(path.parent)
    table = _with_header(path, rows_of(path, note), source, resolver, note)
    return list_table(table, path, source, note, root=root, resolver=resolver)


def list_table(
    table: Mapping[str, Sequence[str]],
    path: Path,
    source: Source,
    note: Note,
    *,
    root: Path | None = None,
    resolver: Resolver | None = None,
) -> Listing:
    """Returns the listing of a table of texts, whose images are files: column name -> a text a row."""
    resolver, root = resolver or Resolver(path.parent), root or path.parent
    table = with_labels_of_indicators(table, source, str(path), note)
    columns = find_columns(
        table,
        source,
        str(path),
        note,
        names_images=lambda name: any(leads(resolver, value) for value in table[name][:_LOOKED_AT]),
    )
    labelled = [row for row, label in enumerate(table[columns.label]) if label]
    values = [table[columns.image][row] for row in labelled]
    found = [resolver.find(value) for value in values]
    taken = {path for path in found if path is not None}
    passed_over = Counter({NO_LABEL: len(table[columns.label]) - len(labelled), NO_ROW: resolver.without_row(taken)})
    splits = (
        None if columns.split is None else splits_of([table[columns.split][row] for row in labelled], columns.split)
    )
    return of_files(
        [_name(file, root) if file else value for file, value in zip(found, values, strict=True)],
        [table[columns.label][row] for row in labelled],
        [file or path.parent / value for file, value in zip(found, values, strict=True)],
        splits=splits,
        groups=None if columns.group is None else [table[columns.group][row] for row in labelled],
        missing=frozenset(i for i, file in enumerate(found) if file is None),
        passed_over=passed_over,
    )


def splits_of(values: Sequence[str], column: str) -> list[str]:
    """Returns "train", "valid" or "test" for each text of a column.

    Raises:
        UserError: A text is none of these, in any of their usual spellings.
    """
    wrong = sorted({value for value in values if value.casefold() not in SPLIT_NAMES})
    if wrong:
        n = sum(value == wrong[0] for value in values)
        raise UserError(
            f"Column {column!r} must say train, valid or test in every row, but has {wrong[0]!r} in "
            f"{counted(n, 'row')}. Mend the table, or choose another column with --split-column."
        )
    return [SPLIT_NAMES[value.casefold()] for value in values]


def _name(file: Path, root: Path) -> str:
    below = os.path.join(root, "")
    if str(file).startswith(below) and "/../" not in str(file):
        return file.as_posix()[len(below) :]
    return Path(os.path.relpath(file, root)).as_posix()


def _text(path: Path, note: Note) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        way = "Change its permissions." if isinstance(error, PermissionError) else "Check the path."
        raise UserError(f"{path} cannot be read ({error.strerror}). {way}") from error
    encodings = ["utf-16"] if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            text = raw.decode(encoding)
            if encoding == "cp1252":  # As spreadsheets write it; it fits nearly any text of one byte a letter.
                note(f"{path} is no UTF-8 and is read as cp1252. If names look wrong, save it as UTF-8.")
            return text
    raise UserError(f"{path} must be text in UTF-8, but is in another encoding. Save it as UTF-8.")


def rows_of(path: Path, note: Note, *, is_list: Callable[[Sequence[str]], bool] | None = None) -> list[list[str]]:
    """Returns the rows of a table without blanks around their cells; empty ones are left out.

    Args:
        path: The table.
        note: Receives that its encoding was guessed.
        is_list: Whether some lines are names of images as a whole, so that commas and blanks are theirs; None where
            one column is too few.

    Raises:
        UserError: It cannot be read, is empty, or has fewer columns.
    """
    text = _text(path, note)
    # Lines keep their ends, which a quoted cell may have in it.
    all_lines = list(io.StringIO(text, newline=""))
    lines = list(itertools.dropwhile(lambda line: not line.strip(), all_lines))
    marks: Sequence[str] = _DELIMITERS
    if lines and (said := _SAID.match(lines[0])):
        marks, lines = (said[1],), lines[1:]
    first = [line.strip().strip('"') for line in lines[:_LOOKED_AT] if line.strip()]
    if not first:
        raise UserError(f"{path} must be a table of images and labels, but is empty.")
    widths = {mark: _width(lines[:_LOOKED_AT], mark) for mark in (*marks, " ")}
    mark = max(marks, key=lambda mark: widths[mark])
    alone = is_list is not None and is_list(first)
    if widths[mark][1] < 2 or alone:
        if alone or (is_list is not None and not (widths[" "][0] and widths[" "][1] > 1)):
            return [[line.strip().strip('"')] for line in lines if line.strip()]
        if widths[" "][1] < 2:
            raise UserError(
                f"{path} must be a table of at least two columns with a comma, tab, semicolon, bar or blanks between "
                f"them, but its first line is {first[0][:80]!r}."
            )
        mark = " "
    return _split_lines(lines, mark, path, len(all_lines) - len(lines) + 1)


def _split_lines(lines: Sequence[str], mark: str, path: Path, first: int) -> list[list[str]]:
    """Returns the rows of the lines of a table, from line `first` on.

    Raises:
        UserError: A quote that is not closed makes one cell of several lines, or a cell is very long.
    """
    rows = []
    for line, row, wrong in _rows(lines, mark):
        if wrong:
            raise UserError(f"{path}: line {first + line} {wrong}")
        rows.append(row)
    return [row for row in rows if row not in ([], [""])]


def _rows(lines: Sequence[str], mark: str) -> Iterator[tuple[int, list[str], str]]:
    """Yields the place of each row's first line, its cells, and what is wrong with it, if anything.

    A quote that swallows the lines after it is wrong. One that is not closed where its cell ends, but in its line, is
    read as text.
    """
    if mark == " ":
        lines = [" ".join(line.split()) for line in lines]
    lines = [*lines, "\n"]  # A quote that is open in the last row swallows this one.
    how: dict[str, Any] = {"delimiter": mark, "skipinitialspace": True}
    reader, first = csv.reader(lines, **how), 0
    while first < len(lines):
        row, wrong = list[str](), ""
        try:
            row = [cell.strip() for cell in next(reader)]
            if reader.line_num > first + 1:
                list(csv.reader(lines[first : reader.line_num], strict=True, **how))
                others = csv.reader([line.replace('"', "") for line in lines[first + 1 : reader.line_num]], **how)
                if any(len(other) == len(row) and any(map(has_suffix, other)) for other in others):
                    wrong = _OPEN_QUOTE  # A later row ends with a quote in a cell.
        except csv.Error:
            wrong = _OPEN_QUOTE if reader.line_num > first + 1 else _LONG
        yield first, row, wrong
        first = reader.line_num


def _width(lines: Sequence[str], mark: str) -> tuple[bool, int]:
    """Returns whether line 1 has the columns that a delimiter makes of nearly all lines, and how many these are, or 0.

    A cell may have several labels with a delimiter of its own between them, but a header has one name a column.
    """
    rows = [row for _, row, wrong in _rows(lines, mark) if not wrong and row not in ([], [""])]
    if not rows:
        return False, 0
    [(width, n)] = Counter(map(len, rows)).most_common(1)
    width = width if n >= 0.8 * len(rows) else 0
    return width > 1 and len(rows[0]) == width, width


def _with_header(
    path: Path, rows: Sequence[list[str]], source: Source, resolver: Resolver, note: Note
) -> dict[str, list[str]]:
    """Returns the table by columns. Where the first row is no header and it is clear what is what, names are given."""
    header, body = rows[0], rows[1:]
    if not is_header(rows, source, lambda cell: leads(resolver, cell)):
        # A label may lead to an image by chance.
        images = [i for i, cell in enumerate(header) if has_suffix(cell)]
        images = images or [i for i, cell in enumerate(header) if leads(resolver, cell)]
        if len(images) == 1 and len(header) == 2:
            header = ["label", "label"]
            header[images[0]] = "image"
            body = rows
            note(f"{path} has no header: column {images[0] + 1} names the images, the other one has the labels.")
        elif images:
            raise UserError(
                f"{path} has no header. Write the names of its {len(header)} columns as its first line, such as "
                "image,label."
            )
    return by_columns(path, header, body)


def by_columns(path: Path, header: Sequence[str], body: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Returns a table as column -> its texts; a column without a name is left out.

    Raises:
        UserError: There is no row, rows differ in their length, or two columns have one name.
    """
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise UserError(
                f"{path} must have {counted(len(header), 'column')} in every row, but row {number} has {len(row)}."
            )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        if twice:
            raise UserError(f"{path} must have a name of its own for each column, but has {twice!r} twice.")
    if not body:
        raise UserError(f"{path} has a header and no rows.")
    return {name: [row[i] for row in body] for i, name in enumerate(header) if name}


def leads(resolver: Resolver, value: str) -> bool:
    """Returns whether a text leads to an image, or to several: a label may do that by chance."""
    try:
        return resolver.find(value) is not None
    except AmbiguousError:
        return True

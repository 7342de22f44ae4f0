"""Parquet: images inside, as Hugging Face's `datasets` writes them, or a table of image files."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuning.base.errors import UserError, unknown_name
from tuning.base.files import as_typed
from tuning.images.formats import tables
from tuning.images.formats.columns import find_columns, with_labels_of_indicators
from tuning.images.formats.listing import NO_LABEL, SPLIT_ORDER, Content, Listing, Note, natural, split_of
from tuning.images.formats.walking import IMAGE_SUFFIXES, is_hidden, is_ours, starts_like_image
from tuning.images.source import Source

_BATCH = 64  # Rows read at a time.
_ONE_VALUE = "Write one text, number or image in each row."


def claims(path: Path) -> bool:
    """Returns whether the path is a Parquet file, or a folder whose files are all of this format."""
    return bool(_files(path))


def list_images(source: Source, note: Note) -> Listing:
    """Returns the rows of the files; these are in the order train, valid, test, and of their names.

    Where no column says train, valid or test, the beginning of a file's name does ("train-00000-of-00002.parquet").

    Raises:
        UserError: A file is damaged, the files differ in their columns, or no column holds or names images.
    """
    files = _files(source.path)
    schema = _open(files[0]).schema_arrow
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise UserError(f"{files[0]} must have a name of its own for each column, but has {twice[0]!r} twice.")
    _check_chosen(schema, source, files[0])
    inside = _with_images(schema)
    for file in files[1:]:
        other = _open(file).schema_arrow
        if other.names != schema.names or _with_images(other) != inside:
            raise UserError(f"{file} must have the columns of {files[0]}, but has others. Pass one of them alone.")
    if nested := [field.name for field in schema if pa.types.is_nested(field.type) and field.name not in inside]:
        note(f"Columns of lists or structs in {files[0]} are not read: {', '.join(nested)}. {_ONE_VALUE}")
    images, words = _told_by_content(files[0], schema, inside)
    inside = [name for name in inside if name == source.image_column] if source.image_column in schema.names else images
    texts = _texts(files, [name for name in (*_plain(schema), *words) if name not in inside], note)
    by_name = _splits(files)
    if len(inside) > 1:
        options = " or ".join(f"--image-column {as_typed(name)}" for name in inside)
        raise UserError(f"{files[0]} has {len(inside)} columns with images. Choose one: {options}.")
    if not inside:
        if any(by_name) and not {"split", "set", "subset"} & set(texts):
            texts["split"] = by_name
        return tables.list_table(texts, files[0], source, note)
    n = len(by_name)
    chosen = replace(source, image_column=inside[0])
    table = with_labels_of_indicators({inside[0]: [""] * n, **texts}, chosen, str(files[0]), note)
    columns = find_columns(table, chosen, str(files[0]), note, names_images=lambda name: name == inside[0])
    labels = table[columns.label]
    rows = [row for row in range(n) if labels[row]]
    splits = by_name if columns.split is None else tables.splits_of(table[columns.split], columns.split)
    return Listing(
        names=[f"row {row}" for row in rows],
        labels=[labels[row] for row in rows],
        splits=[splits[row] for row in rows],
        groups=[table[columns.group][row] if columns.group else "" for row in rows],
        files=[*files, *_named(files, inside[0])],
        contents=lambda wanted: _contents(files, inside[0], [rows[i] for i in wanted]),
        passed_over=Counter({NO_LABEL: n - len(rows)}),
        options=f"{inside[0]} {rows if len(rows) < n else ''}",
    )


def _check_chosen(schema: pa.Schema, source: Source, file: Path) -> None:
    """Raises UserError where a column that an option names is not there, or is no column of single values."""
    if source.image_column is not None and source.image_column not in schema.names:
        raise unknown_name("--image-column", source.image_column, schema.names)
    for name in source.columns.values():
        kind = schema.field(name).type if name in schema.names else pa.null()
        if pa.types.is_nested(kind) and not (name == source.image_column and _holds_images(kind)):
            what = "structs" if pa.types.is_struct(kind) else "lists"
            raise UserError(f"Column {name!r} of {file} holds {what} and is not read. {_ONE_VALUE}")


def _files(path: Path) -> list[Path]:
    """Returns the Parquet files of a path in their order; none where a folder has folders or images beside them.

    Hugging Face's hub has them in `data`, or in a folder called like a part of the set.
    """
    if path.is_file():
        return [path] if path.suffix.lower() in (".parquet", ".pq") else []
    entries = _visible(path)
    while not _shards(entries):
        if any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries):  # First: there may be many.
            return []
        inner = [entry for entry in entries if entry.is_dir()]
        if len(inner) != 1:
            return []
        entries = _visible(inner[0])
    if any(entry.is_dir() or entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries):
        return []
    return sorted(_shards(entries), key=lambda file: (SPLIT_ORDER.index(split_of(file.name)), natural(file.name)))


def _shards(entries: Sequence[Path]) -> list[Path]:
    return [entry for entry in entries if entry.suffix.lower() == ".parquet"]


def _visible(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        seen = [entry for entry in entries if not is_hidden(entry.name)]
        return [Path(entry.path) for entry in seen if not (entry.is_dir() and is_ours(Path(entry.path)))]


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} must be a readable Parquet file, but got: {str(error).splitlines()[0]}.") from error


def _splits(files: Sequence[Path]) -> list[str]:
    """Returns the split of each row by the names of the files, where these name more than one."""
    named = [split_of(file.name) for file in files]
    several = len(set(named)) > 1
    return [
        split if several else ""
        for file, split in zip(files, named, strict=True)
        for _ in range(_open(file).metadata.num_rows)
    ]


def _with_images(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _holds_images(field.type)]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _plain(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if not pa.types.is_nested(field.type) and not _holds_images(field.type)]


def _told_by_content(file: Path, schema: pa.Schema, could: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns, of the columns that may hold images, those that do, and those that hold words; by their first rows.

    Where none begins like an image, images are what is no text, so that broken ones are named. An id of a fixed size
    is no image.
    """
    images, unclear, words = list[str](), list[str](), list[str]()
    with _said_if_damaged(file):
        batch = next(_open(file).iter_batches(batch_size=_BATCH, columns=list(could)), None) if could else None
    for name in could:
        kind, values = schema.field(name).type, [] if batch is None else batch.column(name).to_pylist()
        if pa.types.is_struct(kind) or any(starts_like_image(value[:16]) for value in values if value):
            images.append(name)
        elif any(values) and all(map(_is_word, values)):
            words.append(name)
        elif not pa.types.is_fixed_size_binary(kind):
            unclear.append(name)
    return images or unclear, words


def _is_word(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def texts_of(file: Path, source: Source, note: Note) -> dict[str, list[str]]:
    """Returns the columns of a file that may name images, as texts.

    Raises:
        UserError: It cannot be read, or the column that is to name the images is not there.
    """
    schema = _open(file).schema_arrow
    _check_chosen(schema, source, file)
    _, words = _told_by_content(file, schema, _with_images(schema))
    return _texts([file], [*_plain(schema), *words], note)


def _texts(files: Sequence[Path], columns: Sequence[str], note: Note) -> dict[str, list[str]]:
    """Returns columns as texts; class names where the file has them for the numbers of a column.

    A column that Python cannot represent, such as times in a zone that it does not know, is left out.
    """
    if not columns:
        return {}
    names = _class_names(_open(files[0]).schema_arrow.metadata)
    parts = []
    for file in files:
        with _said_if_damaged(file):
            parts.append(_open(file).read(columns=list(columns)).replace_schema_metadata())
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"The Parquet files in {files[0].parent} must have columns of the same types, but got: "
            f"{str(error).splitlines()[0]}. Write them alike, or pass one file alone."
        ) from error
    texts = {}
    for column in columns:
        try:
            texts[column] = [_text(value, names.get(column)) for value in table.column(column).to_pylist()]
        except (pa.ArrowException, ValueError, OverflowError, KeyError) as error:
            note(f"Column {column!r} of {files[0]} is not read: {str(error).splitlines()[0]}.")
    return texts


def _text(value: Any, names: Sequence[str] | None) -> str:
    if value is None or value != value or (names and value == -1):  # -1: no label, in `datasets`.
        return ""
    if names and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return (value.decode() if isinstance(value, bytes) else str(value)).strip()


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Returns column -> class names by number, which `datasets` keeps in the schema's metadata."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    except ValueError:
        return {}
    for key in ("info", "features"):
        features = features.get(key) if isinstance(features, dict) else None
    if not isinstance(features, dict):
        return {}
    return {
        column: [str(name) for name in feature["names"]]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _contents(files: Sequence[Path], column: str, wanted: Sequence[int]) -> Iterator[Content]:
    """Yields the images of some rows, which are counted through all files; a batch of rows is in memory at a time."""
    first, waiting = 0, list(reversed(wanted))
    for file in files:
        with _said_if_damaged(file):
            for batch in _open(file).iter_batches(batch_size=_BATCH, columns=[column]):
                values = batch.column(0)
                while waiting and waiting[-1] < first + len(values):
                    yield _content(values[waiting.pop() - first].as_py(), file.parent)
                first += len(values)


@contextmanager
def _said_if_damaged(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}. Replace it.") from error


def _named(files: Sequence[Path], column: str) -> list[Path]:
    """Returns the files that a column of images names, where some of its images are not inside."""
    found = []
    for file in files:
        opened = _open(file)
        kind = opened.schema_arrow.field(column).type
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0 or _all_inside(opened.metadata, column):
            continue
        with _said_if_damaged(file):
            paths = opened.read(columns=[f"{column}.path"]).column(0).to_pylist()
        found += [file.parent / str(each["path"]) for each in paths if each and each["path"] not in (None, "")]
    return found


def _all_inside(metadata: pq.FileMetaData, column: str) -> bool:
    """Returns whether no row lacks the bytes of its image, as far as the file's statistics say."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    known = [chunk.statistics for chunk in chunks if chunk.path_in_schema == f"{column}.bytes"]
    return all(each is not None and each.has_null_count and each.null_count == 0 for each in known)


def _content(value: Any, folder: Path) -> Content:
    """Returns an image's bytes, or the file that the row names instead; no bytes where it has neither."""
    if isinstance(value, dict):
        instead = b"" if value.get("path") in (None, "") else folder / str(value["path"])
        return instead if value["bytes"] is None else value["bytes"]
    return b"" if value is None else bytes(value)

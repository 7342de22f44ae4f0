"""Which column of a table is what: by the option that was typed, else by its name."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tuning.base.errors import UserError, unknown_name
from tuning.base.files import as_typed
from tuning.images.formats.listing import SPLIT_NAMES, Note
from tuning.images.formats.walking import IMAGE_SUFFIXES
from tuning.images.source import Source

# Names as `_plain` has them. Those of images in the order in which they are tried: ids come last.
_IMAGES = (
    *("image", "images", "img", "image_path", "img_path", "path", "filepath", "file_path", "image_file", "file"),
    *(
        "filename",
        "file_name",
        "image_name",
        "img_name",
        "image_filename",
        "image_id",
        "img_id",
        "id",
        "id_code",
        "uid",
        "name",
    ),
)
# Of these, what a column of row numbers may be called: such a number leads to another row's file by chance.
_ROWS = {"id", "uid", "name"}
_LABELS = {
    *("label", "labels", "class", "classes", "class_name", "classname", "category", "categories", "target", "y"),
    *("label_name", "label_id", "class_id", "classid", "target_name", "category_id", "category_name"),
    *("diagnosis", "species", "breed"),
}
# As pandas, spreadsheets and archives write that a row is of a class, or is not.
_INDICATORS = {**dict.fromkeys(("0", "0.0", "false", ""), False), **dict.fromkeys(("1", "1.0", "true"), True)}
_NAMED = 20  # Columns that an error lists: a table of pixels has hundreds.
_SPLITS = {"split", "set", "subset", "partition", "fold", "usage"}
_GROUPS = {
    *("group", "group_id", "patient", "patient_id", "patientid", "subject", "subject_id", "subjectid", "person"),
    *("person_id", "sender", "sender_id", "user", "user_id", "participant", "participant_id", "lesion_id", "case_id"),
    *("study_id", "series_id", "session_id", "video_id", "slide_id", "donor_id", "writer_id"),
}


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None where there is none."""

    image: str
    label: str
    split: str | None = None
    group: str | None = None


def find_columns(
    table: Mapping[str, Sequence[str]],
    source: Source,
    where: str,
    note: Note,
    *,
    names_images: Callable[[str], bool],
) -> Columns:
    """Returns which column of a table is what.

    Args:
        table: Column name -> its texts.
        source: Its options come before names.
        where: The table, as errors call it.
        note: Receives what was taken although its name does not say so, and which column may be a group.
        names_images: Whether the values of a column lead to images.

    Raises:
        UserError: There is no such column, or two could be the label.
    """
    image = find_image_column(table, source, where, note, names_images=names_images)
    label = _typed(table, source.label_column, "--label-column")
    group = _typed(table, source.group_column, "--group-column")
    split = _typed(table, source.split_column, "--split-column") or _split(table, {image, label, group}, note)
    label = label or _label(table, {image, split, group}, where, note)
    taken = {image, label, split}
    likely = [name for name in table if _plain(name) in _GROUPS and name not in taken]
    if group is None and source.group_pattern is None and likely:
        n = len(set(table[likely[0]]))
        note(
            f"Column {likely[0]!r} of {where} may be a group ({n:,} values). --group-column {as_typed(likely[0])} "
            "keeps the images of a group on one side of every split."
        )
    return Columns(image=image, label=label, split=split, group=group)


def with_labels_of_indicators(
    table: Mapping[str, Sequence[str]], source: Source, where: str, note: Note
) -> Mapping[str, Sequence[str]]:
    """Returns a table with a column of labels in the place of a column for each class with one 1 in every row.

    That is how some archives write them (one-hot). A table that has labels already is returned as it is: one with a
    column that is called so, too, though a class may be called by the letter y.
    """
    typed = {source.image_column, source.split_column, source.group_column}
    known = {*_IMAGES, *_SPLITS, *_GROUPS}
    free = [name for name in table if name not in typed and _plain(name) not in known]
    classes = [name for name in free if all(value.casefold() in _INDICATORS for value in table[name])]
    if source.label_column is not None or len(classes) < 2 or len(classes) < len(free):
        return table
    if any(_plain(name) in _LABELS - {"y"} for name in free):
        return table
    cells = zip(*(table[name] for name in classes), strict=True)
    marked = [[_INDICATORS[value.casefold()] for value in row] for row in cells]
    if any(sum(row) != 1 for row in marked):
        return table
    labels = [classes[row.index(True)] for row in marked]
    used = ", ".join(name for name in classes if name in labels)
    note(f"The labels are the names of the columns {used} of {where}: each row has one 1 in them.")
    return {**{name: table[name] for name in table if name not in classes}, "label": labels}


def is_header(rows: Sequence[Sequence[str]], source: Source, names_image: Callable[[str], bool]) -> bool:
    """Returns whether a table's first row has a name that is known or was typed, and no image beside it.

    A label may be called like a column: "0.png,y" is an image of the letter y.

    Args:
        rows: Of the table.
        source: Its options come before names.
        names_image: Whether a cell leads to an image.
    """
    names = rows[0]
    if set(names) & set(source.columns.values()):
        return True
    known = {name for name in names if _plain(name) in {*_IMAGES, *_SPLITS, *_GROUPS} or _is_label(name)}
    others = [name for name in names if name not in known]
    if not known or any(map(has_suffix, others)):
        return False
    if len(names) != 2 or not others:
        return True
    # An id without an extension, and a label that other rows have, too: a column may be called like a file.
    at = 1 - names.index(others[0])
    return not (any(row[at : at + 1] == names[at : at + 1] for row in rows[1:]) and names_image(others[0]))


def has_suffix(cell: str) -> bool:
    """Returns whether a cell ends like the name of an image file."""
    return os.path.splitext(cell)[1].lower() in IMAGE_SUFFIXES


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def _listed(table: Mapping[str, Sequence[str]]) -> str:
    names = list(table)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


def _is_label(name: str) -> bool:
    return _plain(name) in _LABELS or _plain(name).endswith(("_label", "_class"))


def _typed(table: Mapping[str, Sequence[str]], name: str | None, option: str) -> str | None:
    if name is not None and name not in table:
        raise unknown_name(option, name, table)
    return name


def find_image_column(
    table: Mapping[str, Sequence[str]],
    source: Source,
    where: str,
    note: Note,
    *,
    names_images: Callable[[str], bool],
) -> str:
    """Returns the column that names the images; the arguments are those of `find_columns`.

    Raises:
        UserError: There is no such column, or two could be the one.
    """
    if typed := _typed(table, source.image_column, "--image-column"):
        return typed
    free = [name for name in table if name not in source.columns.values()]
    named = sorted((name for name in free if _plain(name) in _IMAGES), key=lambda name: _IMAGES.index(_plain(name)))
    sure = [name for name in named if _plain(name) not in _ROWS]
    if found := next(filter(names_images, sure), None):
        return found
    numbers = [name for name in named if name not in sure and names_images(name)]
    others = [name for name in free if name not in named]
    paths = [name for name in others if _are_paths(table[name]) and names_images(name)]
    if sure and not numbers:
        return sure[0]
    alike = len(paths) == 1 and all(_are_stems(table[name], table[paths[0]]) for name in numbers)
    if paths and not alike:
        could = [*numbers, *paths]
        options = " or ".join(f"--image-column {as_typed(name)}" for name in could)
        raise UserError(f"{where} has {len(could)} columns that could name the images. Choose one: {options}.")
    if numbers and not paths:
        return numbers[0]
    leading = paths
    if not named and not paths:
        leading = [name for name in others if not _is_label(name) and names_images(name)]
    if len(leading) == 1:
        note(f"The images are those that column {leading[0]!r} of {where} names.")
        return leading[0]
    if named:
        return named[0]
    raise UserError(
        f"{where} must have a column that names the images, called image, path, filename or id, but its columns are "
        f"{_listed(table)}. Choose one with --image-column; a table without a header needs one as its first line."
    )


def _are_paths(values: Sequence[str]) -> bool:
    """Returns whether a column's texts end like names of image files, as far as it has any."""
    return any(values) and all(has_suffix(value) for value in values if value)


def _are_stems(ids: Sequence[str], paths: Sequence[str]) -> bool:
    """Returns whether a column says of each row's image the same as one of paths: "7" or "7.png" of "photos/7.png"."""
    names = [path.replace("\\", "/").rpartition("/")[2] for path in paths]
    return all(each in (name, os.path.splitext(name)[0]) for each, name in zip(ids, names, strict=True))


def _split(table: Mapping[str, Sequence[str]], taken: set[str | None], note: Note) -> str | None:
    """Returns a column that is called like a split and says nothing but train, valid and test."""
    for name in table:
        if _plain(name) not in _SPLITS or name in taken:
            continue
        if all(not value or value.casefold() in SPLIT_NAMES for value in table[name]):
            return name
        if _plain(name) != "fold":
            other = next(value for value in table[name] if value and value.casefold() not in SPLIT_NAMES)
            note(f"Column {name!r} is not taken for the split: it has {other!r}, beside or instead of train and test.")
    return None


def _label(table: Mapping[str, Sequence[str]], taken: set[str | None], where: str, note: Note) -> str:
    free = [name for name in table if name not in taken]
    named = [name for name in free if _is_label(name)]
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        options = " or ".join(f"--label-column {as_typed(name)}" for name in named)
        raise UserError(f"{where} has {len(named)} columns that could be the label. Choose one: {options}.")
    others = [
        name
        for name in free
        if _plain(name) not in _GROUPS and _plain(name) not in _SPLITS and _plain(name) not in _IMAGES
    ]
    if len(others) == 1:
        note(f"The labels are those of column {others[0]!r} of {where}: no other is left.")
        return others[0]
    raise UserError(
        f"{where} must have a column with the labels, called label, class, category or target, but its columns are "
        f"{_listed(table)}. Choose one with --label-column."
    )

"""Which column of a table is what: by the option that was typed, else by its name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tuning.base.errors import UserError, unknown_name
from tuning.images.formats.listing import SPLIT_NAMES, Note
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
_LABELS = {
    *("label", "labels", "class", "classes", "class_name", "classname", "category", "categories", "target", "y"),
    *("label_name", "label_id", "class_id", "classid", "target_name", "category_id", "category_name"),
    *("diagnosis", "species", "breed"),
}
_INDICATORS = {"0": "0", "0.0": "0", "1": "1", "1.0": "1"}
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
    image = _typed(table, source.image_column, "--image-column") or _image(table, source, where, names_images)
    label = _typed(table, source.label_column, "--label-column")
    group = _typed(table, source.group_column, "--group-column")
    split = _typed(table, source.split_column, "--split-column") or _split(table, {image, label, group}, note)
    label = label or _label(table, {image, split, group}, where, note)
    taken = {image, label, split}
    likely = [name for name in table if _plain(name) in _GROUPS and name not in taken]
    if group is None and source.group_pattern is None and likely:
        n = len(set(table[likely[0]]))
        note(
            f"Column {likely[0]!r} of {where} may be a group ({n:,} values). --group-column {likely[0]} keeps the "
            "images of a group on one side of every split."
        )
    return Columns(image=image, label=label, split=split, group=group)


def with_labels_of_indicators(
    table: Mapping[str, Sequence[str]], source: Source, where: str, note: Note
) -> Mapping[str, Sequence[str]]:
    """Returns a table with a column of labels, where it had a column for each class with one 1 in every row.

    That is how some archives write them (one-hot). A table that has labels already is returned as it is.
    """
    typed = {source.image_column, source.split_column, source.group_column}
    known = {*_IMAGES, *_SPLITS, *_GROUPS}
    free = [name for name in table if name not in typed and _plain(name) not in known]
    classes = [name for name in free if {_INDICATORS.get(value, value) for value in table[name]} <= {"0", "1"}]
    if source.label_column is not None or len(classes) < 2 or len(classes) < len(free):
        return table
    cells = zip(*(table[name] for name in classes), strict=True)
    marked = [[_INDICATORS.get(value) == "1" for value in row] for row in cells]
    if any(sum(row) != 1 for row in marked):
        return table
    labels = [classes[row.index(True)] for row in marked]
    used = ", ".join(name for name in classes if name in labels)
    note(f"The labels are the names of the columns {used} of {where}: each row has one 1 in them.")
    return {**table, "label": labels}


def is_header(names: Sequence[str], source: Source) -> bool:
    """Returns whether a table's first row has a name that is known or was typed."""
    typed = {source.image_column, source.label_column, source.split_column, source.group_column} - {None}
    known = {*_IMAGES, *_LABELS, *_SPLITS, *_GROUPS}
    return any(name in typed or _plain(name) in known or _ends_like_a_label(name) for name in names)


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def _listed(table: Mapping[str, Sequence[str]]) -> str:
    names = list(table)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


def _ends_like_a_label(name: str) -> bool:
    return _plain(name).endswith(("_label", "_class"))


def _typed(table: Mapping[str, Sequence[str]], name: str | None, option: str) -> str | None:
    if name is not None and name not in table:
        raise unknown_name(option, name, table)
    return name


def _image(table: Mapping[str, Sequence[str]], source: Source, where: str, names_images: Callable[[str], bool]) -> str:
    named = sorted((name for name in table if _plain(name) in _IMAGES), key=lambda name: _IMAGES.index(_plain(name)))
    if named:
        return next((name for name in named if names_images(name)), named[0])
    leading = [name for name in table if name != source.label_column and names_images(name)]
    if len(leading) == 1:
        return leading[0]
    raise UserError(
        f"{where} must have a column that names the images, called image, path, filename or id, but its columns are "
        f"{_listed(table)}. Choose one with --image-column; a table without a header needs one as its first line."
    )


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
    named = [name for name in free if _plain(name) in _LABELS or _ends_like_a_label(name)]
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        options = " or ".join(f"--label-column {name}" for name in named)
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

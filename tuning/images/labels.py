"""Which rows have which class: labels that are left out, files that lack, and labels that are none."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuning.base.errors import UserError, counted, unknown_name
from tuning.base.files import as_typed
from tuning.images.formats.listing import Listing, Note, natural
from tuning.images.source import Source

_FEW_NUMBERS = 20  # Fractions as labels: more different ones than this are a quantity, not classes.
_LONG = 200  # Letters that an error shows of a file's name: a cell may hold anything.
_MANY_ROWS = 100  # From so many images on, a class for every second one is a name for each.
_WHOLE = re.compile(r"-?\d+(\.0+)?", re.ASCII)
_NO_VALUES = {"nan", "none", "null", "na", "n/a", "<na>", "nat"}  # As tables write that there is no value.


@dataclass(frozen=True)
class Labels:
    """The rows that are read, in their order.

    Attributes:
        rows: Numbers of rows of the listing.
        texts: The label of each row of the listing.
        left_out: Name and reason of each other row.
    """

    rows: list[int]
    texts: Sequence[str]
    left_out: list[tuple[str, str]]

    def numbered(self, rows: Sequence[int], where: str) -> tuple[tuple[str, ...], list[int]]:
        """Returns the class names, sorted with digits as numbers, and each row's class.

        Raises:
            UserError: There are fewer than two classes.
        """
        names = tuple(sorted({self.texts[row] for row in rows}, key=natural))
        if len(names) < 2:
            found = f"only {names[0]!r}, in {counted(len(rows), 'image')}" if names else "none"
            raise UserError(f"{where} must have images of two classes at least, but has {found}.")
        number = {name: i for i, name in enumerate(names)}
        return names, [number[self.texts[row]] for row in rows]


def check_labels(listing: Listing, source: Source, note: Note) -> Labels:
    """Returns the rows with a class and a file; rows without a label, which the listing counts, are passed over.

    Raises:
        UserError: Labels to leave out do not occur, files lack, or the labels are not those of classes.
    """
    texts = [unicodedata.normalize("NFC", label.strip()) for label in listing.labels]
    if not listing.of_folders:
        texts = as_whole_numbers(texts, "labels", note)
    where = str(source.path)
    leave_out = {unicodedata.normalize("NFC", label.strip()) for label in source.labels_leave_out}
    for label in sorted(leave_out - set(texts) - listing.empty):
        raise unknown_name(f"--labels-leave-out for {where}", label, set(texts) - {""})
    rows, left_out, missing = [], [], []
    for row, (text, name) in enumerate(zip(texts, listing.names, strict=True)):
        if not text:
            continue
        if text in leave_out:
            left_out.append((name, f"label {text!r}"))
        elif row in listing.missing:
            missing.append(row)
            left_out.append((name, "no such file"))
        else:
            rows.append(row)
    if leave_out:
        note(f"Left out by label: {counted(sum(text in leave_out for text in texts), 'image')}.")
    if missing:
        _refuse_missing([(listing.names[row], texts[row]) for row in missing], len(texts), source, note)
    counts = Counter(texts[row] for row in rows)
    if source.min_images is not None:
        check_min_images(counts, source.min_images)
        counts = Counter({name: n for name, n in counts.items() if n >= (source.min_images or 0)})
    _refuse_what_is_no_class(counts, where)
    for name, n in counts.items():
        if name.casefold() in _NO_VALUES:
            note(
                f"{name!r} is a class of {counted(n, 'image')}. If they have no label, leave them out with "
                f"--labels-leave-out {as_typed(name)}."
            )
    return Labels(rows, texts, left_out)


def check_min_images(counts: Mapping[str, int], least: int) -> None:
    """Raises UserError where fewer than two classes have so many images."""
    by_size = sorted(counts, key=lambda name: -counts[name])
    if len(by_size) > 1 and counts[by_size[1]] < least:
        named = ", ".join(f"{name!r} ({counts[name]:,})" for name in by_size[:2])
        raise UserError(
            f"--min-images must be at most {counts[by_size[1]]:,}, to keep two classes, but got {least:,}. The largest "
            f"are {named}."
        )


def note_groups(groups: Sequence[str], note: Note) -> None:
    """Says where a group is called like a value that is not there: all its images would lie on one side of a split."""
    for name, n in Counter(groups).items():
        if name.casefold() in _NO_VALUES:
            note(
                f"{counted(n, 'image')} are of one group, {name!r}, and lie on one side of every split. If they have "
                "no group, leave their cells empty."
            )


def as_whole_numbers(texts: list[str], what: str, note: Note) -> list[str]:
    """Returns texts such as "3.0" as "3", where all are whole numbers: a table with gaps turns them into floats.

    Args:
        texts: Some may be empty.
        what: What a note calls them, e.g. "labels".
        note: Receives that some are read so.
    """
    names = set(texts) - {""}
    floats = sorted((name for name in names if "." in name), key=natural)
    if not floats or not all(map(_WHOLE.fullmatch, names)):
        return texts
    note(f"The {what} are whole numbers: {floats[0]} is read as {floats[0].partition('.')[0]}.")
    return [text.partition(".")[0] for text in texts]


def _refuse_missing(missing: Sequence[tuple[str, str]], n_rows: int, source: Source, note: Note) -> None:
    n = len(missing)
    first = ", ".join(name if len(name) <= _LONG else f"{name[:_LONG]} ..." for name, _ in missing[:3])
    said = (
        f"{n:,} of {n_rows:,} rows of {source.path} have no file"
        if n > 1
        else (f"1 of {n_rows:,} rows of {source.path} has no file")
    )
    if source.skip_broken and n < n_rows:
        note(f"{said} and {'is' if n == 1 else 'are'} left out: {first}{', ...' if n > 3 else ''}.")
        return
    labels = ", ".join(f"{label!r} ({n})" for label, n in Counter(label for _, label in missing).most_common(3))
    way = "leave their labels out with --labels-leave-out, or the rows with --skip-broken"
    raise UserError(
        f"{said}: {first}{', ...' if n > 3 else ''}. Their labels are {labels}. Check --image-column and where "
        "the table is" + (f", {way}." if n < n_rows else ".")
    )


def _refuse_what_is_no_class(counts: Counter[str], where: str) -> None:
    """Raises UserError for labels that are no text or measured, or differ from image to image or in case alone."""
    names, n = sorted(counts, key=natural), counts.total()
    for name in names:
        if (shown := name.encode(errors="backslashreplace").decode()) != name:
            raise UserError(
                f"The labels of {where} must be text in UTF-8, but one is '{shown}', as folders from an old archive "
                "may be called. Rename it, or leave it out with --labels-leave-out."
            )
    fractions = [name for name in names if _is_fraction(name)]
    if len(names) > _FEW_NUMBERS and all(map(_is_number, names)) and fractions:
        raise UserError(
            f"The labels of {where} must be classes, but are numbers such as {fractions[0]} ({len(names):,} different "
            "ones). Choose another column with --label-column; numbers as targets are not learned."
        )
    if len(names) > 1 and (len(names) == n or (n >= _MANY_ROWS and 2 * len(names) > n)):
        raise UserError(
            f"The labels of {where} must be classes with several images each, but {counted(n, 'image')} have "
            f"{len(names):,} different labels, e.g. {names[0]!r}. Choose another column of a table with "
            "--label-column, or leave small classes out with --min-images."
        )
    by_case: dict[str, str] = {}
    for name in names:
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"The labels {other!r} and {name!r} of {where} differ in upper and lower case alone. Write them alike."
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_fraction(text: str) -> bool:
    return _is_number(text) and not float(text).is_integer()

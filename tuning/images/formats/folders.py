"""A folder of class folders, with train, valid and test folders above them or without."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tuning.base.errors import UserError, counted
from tuning.base.files import as_typed
from tuning.images.formats import parquet, tables
from tuning.images.formats.listing import (
    SPLIT_NAMES,
    SPLIT_ORDER,
    Listing,
    Note,
    natural,
    natural_folder,
    of_files,
    split_of,
)
from tuning.images.formats.walking import NO_IMAGES, Walk, is_hidden, walk
from tuning.images.source import Source

_TABLES = (".csv", ".tsv", ".parquet")
NO_CLASS = "images in no class folder"
# Folders that differ in their number alone and are called so are parts of a set: HAM_images_part_1, images_001, batch2.
_PART = re.compile(r"(?<![a-z])(part|batch|chunk|shard|vol|volume|archive|image|img|photo|picture|file)s?[^a-z]*$")
Parts = tuple[str, ...]


@dataclass
class _Found:
    """The images of class folders: path, label and split of each; and class folders without any that are left out."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    empty: set[str] = field(default_factory=set)
    passed_over: Counter[str] = field(default_factory=Counter)


def claims(path: Path) -> bool:
    """Returns whether this format may read the path: any folder."""
    return path.is_dir()


def list_images(source: Source, note: Note) -> Listing:
    """Returns the images below the folder in natural order of their file names, by split.

    A single folder level that holds everything is stepped through. Where there are no class folders and one table
    beside the images, the table is read; so is one beside folders that are the parts of a set.

    Raises:
        UserError: There is no image or no class folder, a class folder is empty, a folder cannot be read, or there are
            splits and none to train on.
    """
    root = source.path
    walked = walk(root)
    if not walked.images:
        shards = sorted(path for path in root.rglob("*.parquet") if path.is_file())
        raise UserError(
            f"{root} has no image in it ({counted(walked.passed_over[NO_IMAGES], 'other file')}). "
            + (
                f"It has {counted(len(shards), 'Parquet file')}. Pass one, or a folder that has them directly in it: "
                f"--dataset {as_typed(shards[0])} or --dataset {as_typed(shards[0].parent)}."
                if shards
                else "Put a folder for each class into it, with the images of the class."
            )
        )
    images = [tuple(name.split("/")) for name in walked.images]
    base = _stepped(images, set())
    top = _children(images, base)
    splits = _splits(images, base, top, note)
    if listing := _by_tables(source, images, base, splits, note):
        return listing
    if source.columns:
        return _by_columns(source, note)
    if len(top) < 2:
        return _without_classes(source, walked, (*base, *top), note)
    beside = [table for depth in {0, len(base)} for table in _tables_in(Path(root, *base[:depth]))]
    untrained = len(splits) == len(top) and "train" not in splits.values()
    if len(beside) == 1 and (untrained or _are_parts(top)):
        note(f"{', '.join(top)} are no classes, but parts of a set: the labels are those of {beside[0]}.")
        return _by_table(source, beside[0], note)
    if untrained:
        folder = Path(root, *base)
        raise UserError(
            f"{folder} has the splits {', '.join(top)}, and none to train on. Call the folder of the train images "
            f"train, or pass one split alone: --dataset {as_typed(folder / top[0])}."
        )
    if "train" not in splits.values() and len(top) - len(splits) > 1:  # With one beside them, all must be classes.
        _refuse_half_splits(Path(root, *base), splits, source.labels_leave_out)
    if beside:
        other = f"--dataset {as_typed(beside[0])}"
        note(f"The classes are folders. {beside[0]} is not read; {other} reads it in their place.")
    found = _Found()
    if "train" in splits.values():
        _with_splits(root, walked, base, splits, found, source.labels_leave_out, note)
    else:
        if inner := ", ".join(_alike_within(images, base, top)[:3]):
            note(f"The classes are the outer folders, {top[0]} ..., and not {inner} ... in each of them.")
        _add(root, walked, base, "", found, source.labels_leave_out)
    rank = {split: i for i, split in enumerate(SPLIT_ORDER)}

    def place(row: tuple[str, str, str]) -> tuple[object, ...]:
        folder, _, name = row[0].rpartition("/")
        return rank[row[2]], natural(name), natural_folder(folder)

    found.rows.sort(key=place)
    names, labels, of_split = (list(column) for column in zip(*found.rows, strict=True))
    paths, passed_over = [root / name for name in names], walked.passed_over + found.passed_over
    listing = of_files(names, labels, paths, splits=of_split, passed_over=passed_over)
    return replace(listing, of_folders=True, empty=frozenset(found.empty))


def _splits(images: Sequence[Parts], base: Parts, top: Sequence[str], note: Note) -> dict[str, str]:
    """Returns folder -> split of folders that are called so, or like "seg_train" where these have the same classes."""
    splits = {name: SPLIT_NAMES[name.casefold()] for name in top if name.casefold() in SPLIT_NAMES}
    alike = {name: split_of(name) for name in top if split_of(name)}
    if "train" in splits.values() or len(set(alike.values())) < 2:
        return splits
    classes = [set(_children(images, _stepped(images, (), (*base, name)))) for name in alike]
    if len(set.intersection(*classes)) < 2 or ("train" not in alike.values() and len(alike) < len(top)):
        return splits
    note(f"Read as splits: {', '.join(f'{name} ({split})' for name, split in alike.items())}.")
    return alike


def _refuse_half_splits(folder: Path, splits: Mapping[str, str], leave_out: Sequence[str]) -> None:
    """Raises UserError where a folder beside those of classes is called like a split, and none is to train on."""
    left_out = {unicodedata.normalize("NFC", name.strip()) for name in leave_out}
    if unclear := [name for name in splits if unicodedata.normalize("NFC", name.strip()) not in left_out]:
        raise UserError(
            f"{folder / unclear[0]} looks like a split, but the folders beside it are classes. If it is a split, move "
            f"these into a folder {folder / 'train'}. If it is a class, rename it; or leave it out with "
            f"--labels-leave-out {as_typed(unclear[0])}."
        )


def _alike_within(images: Sequence[Parts], base: Parts, top: Sequence[str]) -> list[str]:
    """Returns the folders that all folders of a level have in common, where these are several and no others."""
    inner: dict[str, set[str]] = {name: set() for name in top}
    level = len(base)
    for parts in images:  # Once: there may be as many folders as images.
        if len(parts) > level + 2 and parts[:level] == base:
            inner[parts[level]].add(parts[level + 1])
    first = inner[top[0]]
    return sorted(first) if len(first) > 1 and all(each == first for each in inner.values()) else []


def _are_parts(names: Sequence[str]) -> bool:
    """Returns whether folders are called like the parts of one set: they differ in their number alone."""
    return len({re.sub(r"\d+", "", name) for name in names}) == 1 and bool(_PART.search(names[0].lower()))


def _below(images: Sequence[Parts], base: Parts) -> list[Parts]:
    return [parts for parts in images if parts[: len(base)] == base]


def _children(images: Sequence[Parts], base: Parts) -> list[str]:
    """Returns the folders of a level that have images at any depth."""
    return sorted({parts[len(base)] for parts in _below(images, base) if len(parts) > len(base) + 1})


def _stepped(images: Sequence[Parts], classes: Iterable[str], base: Parts = ()) -> Parts:
    """Returns the level of the class folders: down through folders that hold everything and no image directly."""
    while True:
        below = _below(images, base)
        children = _children(below, base)
        if len(children) != 1 or children[0] in classes or any(len(parts) == len(base) + 1 for parts in below):
            return base
        deeper = (*base, children[0])
        if not _children(below, deeper) or any(len(parts) == len(deeper) + 1 for parts in below):
            # Its images lie in it: it is a class, or else the flat folder of a table.
            return base
        base = deeper


def _with_splits(
    root: Path,
    walked: Walk,
    base: Parts,
    splits: dict[str, str],
    found: _Found,
    leave_out: Sequence[str],
    note: Note,
) -> None:
    """Adds the images of train, valid and test folders, each with class folders of its own."""
    images = [tuple(name.split("/")) for name in walked.images]
    others = [name for name in _children(images, base) if name not in splits]
    if others:
        raise UserError(
            f"{Path(root, *base)} has the splits {', '.join(splits)} and beside them {', '.join(others)}. "
            "Move what is no split elsewhere, or into one of them. "
            f"If {next(iter(splits))} is a class, rename that folder."
        )
    found.passed_over[NO_CLASS] += sum(len(parts) == len(base) + 1 for parts in _below(images, base))
    classes: set[str] = set()
    for name in sorted(splits, key=_place_of(splits)):
        level = _stepped(images, classes, (*base, name))
        if not _children(images, level):
            n = len(_below(images, level))
            if splits[name] == "train":
                raise UserError(
                    f"{Path(root, *level)} must have a folder for each class, but has {counted(n, 'image')} alone. "
                    "If a table has their labels, pass it as --dataset."
                )
            found.passed_over[NO_CLASS] += n
            note(f"{Path(root, *level)} has no class folders: its {counted(n, 'image')} without a label are not read.")
            continue
        _add(root, walked, level, splits[name], found, leave_out)
        classes |= set(_children(images, level))


def _add(root: Path, walked: Walk, base: Parts, split: str, found: _Found, leave_out: Sequence[str]) -> None:
    """Adds the images of the class folders of one level."""
    images = [tuple(name.split("/")) for name in walked.images]
    found.empty |= _empty(root, walked, base, set(_children(images, base)), leave_out)
    for parts in _below(images, base):
        if len(parts) > len(base) + 1:
            found.rows.append(("/".join(parts), parts[len(base)], split))
        else:
            found.passed_over[NO_CLASS] += 1


def _empty(root: Path, walked: Walk, base: Parts, full: set[str], leave_out: Sequence[str] = ()) -> set[str]:
    """Returns the class folders of a level without an image, which must be left out by their names."""
    left_out, found = {unicodedata.normalize("NFC", name.strip()) for name in leave_out}, set()
    for name in walked.folders:
        *above, last = name.split("/")
        if tuple(above) == base and last not in full:
            found.add(unicodedata.normalize("NFC", last.strip()))
            if not found <= left_out:
                raise UserError(f"The class folder {root / name} has no image in it. Put images into it, or remove it.")
    return found


def _without_classes(source: Source, walked: Walk, base: Parts, note: Note) -> Listing:
    """Reads images that all lie in `base` by the one table beside or above them, or says what is lacking."""
    root = source.path
    beside = sorted(path for level in range(len(base) + 1) for path in _tables_in(Path(root, *base[:level])))
    if len(beside) == 1:
        note(f"{root} has no class folders: the labels are those of {beside[0]}.")
        return _by_table(source, beside[0], note)
    if base:
        _empty(root, walked, base[:-1], {base[-1]})
    if beside:
        way = f"Choose the table of their labels: --dataset {' or '.join(map(as_typed, beside))}."
    else:
        way = "A table of images and labels (CSV, TSV or Parquet) as --dataset is the other way."
    raise UserError(
        f"{root} has images in one class at most: there must be a folder for each class, with its images. {way}"
    )


def _by_tables(
    source: Source, images: Sequence[Parts], base: Parts, splits: dict[str, str], note: Note
) -> Listing | None:
    """Reads images in train, valid and test folders without class folders, by a table in each or the one above them.

    Hugging Face's `imagefolder` has them so, and calls the tables metadata.csv. None where there are class folders or
    no such table.
    """
    root, level = source.path, len(base)
    train = next((name for name, split in splits.items() if split == "train"), None)
    if train is None or any(len(_children(images, (*base, name))) > 1 for name in splits):
        return None
    tables_of = {name: _texts_in(Path(root, *base, name)) for name in sorted(splits, key=_place_of(splits))}
    if len(tables_of[train]) == 1:
        listed = []
        for name, found in tables_of.items():
            if len(found) == 1:
                listed.append((splits[name], tables.list_images(source, note, found[0])))
            else:
                n = counted(len(_below(images, (*base, name))), "image")
                note(f"{Path(root, *base, name)} has no table of labels: its {n} without a label are not read.")
        return _joined(listed)
    above = [table for depth in {0, level} for table in _texts_in(Path(root, *base[:depth]))]
    if len(above) != 1:
        return None
    note(f"{root} has no class folders: the labels are those of {above[0]}.")
    listing = tables.list_images(source, note, above[0])
    if any(listing.splits):
        return listing
    folders = [parts[level] if len(parts) > level else "" for parts in (name.split("/") for name in listing.names)]
    return replace(listing, splits=[splits.get(folder, "") for folder in folders])


def _joined(listed: Sequence[tuple[str, Listing]]) -> Listing:
    """Returns the rows of several tables, each of the split that is given with it."""
    names, labels, files, groups = list[str](), list[str](), list[Path](), list[str]()
    splits, missing, passed_over = list[str](), set[int](), Counter[str]()
    for split, one in listed:
        missing |= {len(names) + row for row in one.missing}
        names, labels, files = [*names, *one.names], [*labels, *one.labels], [*files, *one.files]
        groups, splits = [*groups, *one.groups], [*splits, *[split] * len(one.names)]
        passed_over.update(one.passed_over)
    kept = frozenset(missing)
    return of_files(names, labels, files, splits=splits, groups=groups, missing=kept, passed_over=passed_over)


def _place_of(splits: dict[str, str]) -> Callable[[str], int]:
    return lambda name: SPLIT_ORDER.index(splits[name])


def _tables_in(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in _TABLES and not is_hidden(path.name))
    return sorted(path for path in found if path.is_file())


def _texts_in(folder: Path) -> list[Path]:
    return [path for path in _tables_in(folder) if tables.claims(path)]


def _by_columns(source: Source, note: Note) -> Listing:
    """Reads the one table in the folder, as a column was typed."""
    beside = _tables_in(source.path)
    if len(beside) != 1:
        option, column = next(iter(source.columns.items()))
        raise UserError(
            f"{option} {column} needs a table, but {source.path} has {counted(len(beside), 'table')}. "
            "Pass the table as --dataset."
        )
    return _by_table(source, beside[0], note)


def _by_table(source: Source, table: Path, note: Note) -> Listing:
    if table.suffix.lower() == ".parquet":
        return parquet.list_images(replace(source, dataset=str(table)), note)
    return tables.list_images(source, note, table)

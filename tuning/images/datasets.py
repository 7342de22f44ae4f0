"""How a data set becomes arrays: one of `DATASETS`, or one's own images (`tuning.images.reading`)."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError, counted
from tuning.images import partition, torchvision_sets
from tuning.images.catalogue import DATASETS, FileSet
from tuning.images.fetch import parse_idx, read_files
from tuning.images.labels import check_min_images
from tuning.images.mapped import BYTES_AT_ONCE, file_of, give_back
from tuning.images.partition import Known, Partition
from tuning.images.source import Source

if TYPE_CHECKING:
    from tuning.images.reading import Facts

Integers = npt.NDArray[np.int64]


def silent(text: str) -> None:
    """Takes a note, and tells nobody."""


@dataclass(frozen=True)
class Labelled:
    """Images and their labels.

    Attributes:
        images: uint8 (M, C, H, W) in [0, 255]; of one's own images all that are stored, mapped from their file.
        labels: int64 (N,) in [0, n_classes).
        rows: int64 (N,): which of `images` these are; None: all of them, in their order.
    """

    images: npt.NDArray[np.uint8]
    labels: Integers
    rows: Integers | None = None

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self), *self.images.shape[1:])

    def pixels(self, index: Any = slice(None)) -> npt.NDArray[np.uint8]:
        """Returns the images, or those at an index into these N: uint8 (n, C, H, W)."""
        return np.asarray(self.images[index] if self.rows is None else self.images[self.rows[index]])

    def blocks(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yields all images, some at a time; of mapped ones few are in memory then."""
        at_once = max(1, BYTES_AT_ONCE // math.prod(self.shape[1:]))
        file = file_of(self.images)
        for start in range(0, len(self), at_once):
            yield self.pixels(slice(start, start + at_once))
            give_back(file)

    def at(self, index: Any) -> "Labelled":
        """Returns the images at an index into these N; mapped ones stay mapped."""
        if self.rows is None:
            return Labelled(self.images[index], self.labels[index])
        return Labelled(self.images, self.labels[index], self.rows[index])

    def joined(self, other: "Labelled") -> "Labelled":
        """Returns these images, then those of another part of the same data set."""
        labels = np.concatenate([self.labels, other.labels])
        if self.rows is None or other.rows is None:
            return Labelled(np.concatenate([self.pixels(), other.pixels()]), labels)
        return Labelled(self.images, labels, np.concatenate([self.rows, other.rows]))

    def in_memory(self) -> "Labelled":
        """Returns the same without a file, for another machine."""
        return self if self.rows is None else Labelled(self.pixels(), self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a process of this machine needs: of mapped images their file's name, and no pixel."""
        state = dict(vars(self))
        if isinstance(self.images, np.memmap):
            state["images"] = (self.images.filename, self.images.offset, self.images.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["images"], tuple):
            file, offset, shape = state["images"]
            try:
                images = np.memmap(file, np.uint8, "r", offset, shape)
            except FileNotFoundError as error:
                raise UserError(
                    f"The decoded images {file} were removed from the cache while they were in use. Run the command "
                    "again, or resume the run: they are then read anew."
                ) from error
            state = state | {"images": images}
        vars(self).update(state)


@dataclass(frozen=True)
class HashedTest:
    """What may be known of the test split outside `tuning.final`: no image of it, and no image's label.

    Attributes:
        digests: One a test image, as `image_digests` gives them; of one's own images as `Known` has them.
        counts: Images per class, (n_classes,).
        shape: Of the images, (N, C, H, W).
        value_range: Least and greatest pixel.
        group_sizes: Images of each group, (n_groups,); empty where there are no groups.
    """

    digests: npt.NDArray[np.bytes_]
    counts: Integers
    shape: tuple[int, ...]
    value_range: tuple[int, int]
    group_sizes: Integers = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class Own:
    """One's own images without their test split.

    Attributes:
        rest: All that are not test.
        known: What decides about splits, of the rest.
        units: (N,); equal for images that must not lie on two sides of a split.
        valid: (N,): the data set itself gives the image as valid; all False where it gives none.
        image_size: Side of the stored images in pixels; None where they are not square, because all had one size.
        resize: How they were brought to it.
        notes: What a person should know of them, a sentence each.
        facts: What was found while they were read.
    """

    rest: Labelled
    known: Known
    units: Integers
    valid: npt.NDArray[np.bool_]
    image_size: int | None
    resize: str
    notes: tuple[str, ...]
    facts: "Facts"


def as_source(dataset: Source | str, data_dir: Path | None = None) -> Source:
    """Returns the source of a data set that is named by a text: a name in `DATASETS`, or a path."""
    return dataset if isinstance(dataset, Source) else Source(dataset, data_dir)


def load_train(dataset: Source | str, data_dir: Path | None = None) -> Labelled:
    """Returns all images that are not test, before they are split.

    Raises:
        UserError: The files cannot be had, or are damaged, or images and labels differ in number.
    """
    source = as_source(dataset, data_dir)
    if source.is_own:
        return load_own(source).rest
    return _load(source.dataset, "train", source.data_dir)


def load_test(dataset: Source | str, data_dir: Path | None = None) -> Labelled:
    """Returns the test images. For `tuning.final` alone, which logs each time that it calls this."""
    source = as_source(dataset, data_dir)
    if source.is_own:
        everything, _, parts, _, _ = _read_own(source)
        return everything.at(parts.test)
    return _load(source.dataset, "test", source.data_dir)


def hash_test(dataset: Source | str, data_dir: Path | None = None) -> HashedTest:
    """Returns what may be known of the test split without opening it: a digest an image, and counts."""
    source = as_source(dataset, data_dir)
    if source.is_own:
        everything, known, parts, _, _ = _read_own(source)
        test, n_classes = everything.at(parts.test), len(known.class_names)
        digests, group_sizes = known.digests[parts.test], partition.group_sizes(known.groups[parts.test])
    else:
        test, n_classes = load_test(source), len(DATASETS.find(source.dataset).class_names)
        digests, group_sizes = image_digests(test.pixels()), np.empty(0, np.int64)
    return HashedTest(
        digests=digests,
        counts=np.bincount(test.labels, minlength=n_classes),
        shape=test.shape,
        value_range=value_range(test),
        group_sizes=group_sizes,
    )


def load_own(source: Source, *, device: str = "cpu", note: Callable[[str], None] = silent) -> Own:
    """Returns one's own images without their test split.

    Args:
        source: Which, and how they are read.
        device: What is trained on: a GPU can have larger images by default.
        note: Receives what a person should know, a line each.

    Raises:
        UserError: The images cannot be read, or a class cannot be in all splits.
    """
    everything, known, parts, notes, facts = _read_own(source, device, note)
    height, width = facts.image_size
    rest = Known(
        class_names=known.class_names,
        **{name: value[parts.rest] for name, value in vars(known).items() if name != "class_names"},
    )
    return Own(
        rest=everything.at(parts.rest),
        known=rest,
        units=parts.units[parts.rest],
        valid=np.isin(parts.rest, parts.valid),
        image_size=height if height == width else None,
        resize=facts.resize,
        notes=notes,
        facts=facts,
    )


def with_size(source: Source, device: str) -> Source:
    """Returns a source with the size that its images have by default on a device; a CPU's needs no asking.

    Raises:
        UserError: As `load_own`.
    """
    if device == "cpu" or source.image_size is not None or not source.is_own:
        return source
    own = load_own(source, device=device)
    return replace(source, image_size=own.image_size)


def _read_own(
    source: Source, device: str = "cpu", note: Callable[[str], None] = silent
) -> tuple[Labelled, Known, Partition, tuple[str, ...], "Facts"]:
    """Returns all of one's own images, what is known of them, their test split, what to say, and what was found."""
    from tuning.images.reading import read

    found = read(source, device=device, note=note)
    known = Known(found.labels, found.class_names, found.splits, found.groups, found.digests, found.names)
    rows, notes = np.arange(len(known)), list[str]()
    if source.min_images is not None:
        rows, known, notes = _large_classes(known, source.min_images)
    counts = np.bincount(known.labels, minlength=len(known.class_names))
    named = [f"{name} ({n:,})" for name, n in zip(known.class_names, counts.tolist(), strict=True)]
    notes.insert(0, f"Classes: {partition.named(named)}.")
    parts, is_given = partition.partition(known), bool((known.given == "test").any())
    if is_given or len(parts.valid):
        splits = np.where(known.given == "valid", "valid", "train")
        splits[parts.test] = "test"
        notes += partition.leaks(known, splits)
    if not is_given:
        by_what = "their groups" if (known.groups != "").any() else "what they show"
        moved = (
            "none or few of them, as some groups are of several classes"
            if partition.are_mixed(known, parts)
            else "none of them"
        )
        notes.append(
            f"{counted(len(parts.test), 'image')} of {len(known):,} are set aside as the test split. Which follows "
            f"from {by_what}: images that are added later move {moved}."
        )
    notes += partition.describe_equals(known)
    for text in notes:
        note(text)
    return Labelled(found.images, known.labels, rows), known, parts, tuple(notes), found.facts


def value_range(part: Labelled) -> tuple[int, int]:
    """Returns the least and the greatest pixel."""
    ends = np.array([(images.min(), images.max()) for images in part.blocks()])
    return int(ends[:, 0].min()), int(ends[:, 1].max())


def image_digests(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Returns a 16-byte BLAKE2 digest (as hexadecimal text) for each image; equal for equal images."""
    return np.array([hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest().encode() for image in images])


def digest_of(images: Labelled) -> str:
    """Returns a hash of images in any order: that of a data set, whatever it is called."""
    digests = np.sort(np.concatenate([image_digests(block) for block in images.blocks()]))
    return hashlib.blake2b(digests.tobytes(), digest_size=8).hexdigest()


def _large_classes(known: Known, least: int) -> tuple[Integers, Known, list[str]]:
    """Returns the rows of the images of classes with so many, what is known of them, and a sentence on the others."""
    counts = np.bincount(known.labels, minlength=len(known.class_names))
    check_min_images(dict(zip(known.class_names, counts.tolist(), strict=True)), least)
    kept = np.flatnonzero(counts >= least)
    if len(kept) == len(counts):
        return np.arange(len(known)), known, []
    rows = np.flatnonzero(np.isin(known.labels, kept))
    names = tuple(known.class_names[label] for label in kept)
    fewer = {name: value[rows] for name, value in vars(known).items() if name not in ("class_names", "labels")}
    gone = [f"{known.class_names[label]} ({counts[label]})" for label in np.flatnonzero(counts < least)]
    said = f"Classes of fewer than {least} images are left out: {', '.join(gone)}."
    return rows, Known(labels=np.searchsorted(kept, known.labels[rows]), class_names=names, **fewer), [said]


def _load(name: str, part: str, data_dir: Path | None) -> Labelled:
    """Returns the "train" or the "test" images of a data set with a name."""
    dataset = DATASETS.find(name)
    if not isinstance(dataset.files, FileSet):
        return Labelled(*torchvision_sets.load(name, dataset.files, len(dataset.class_names), part, data_dir))
    names: tuple[str, str] = getattr(dataset.files, part)
    contents = read_files(dataset.files, names, data_dir)
    images, labels = (parse_idx(contents[name], name) for name in names)
    if len(images) != len(labels):
        raise UserError(
            f"{names[0]} and {names[1]} must hold equally many items, but got {len(images)} images "
            f"and {len(labels)} labels. Fetch both files again."
        )
    n_classes = len(dataset.class_names)
    if labels.max(initial=0) >= n_classes:
        raise UserError(f"{names[1]} must hold labels below {n_classes}, but got {labels.max()}. Fetch the file again.")
    if images.ndim == 3:
        images = images[:, None]
    return Labelled(images=np.ascontiguousarray(images), labels=labels.astype(np.int64))

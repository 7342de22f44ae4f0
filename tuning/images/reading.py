"""`read`: labelled images of any format become arrays; decoded once, kept in the cache, in an order of their own.

The order of the file system, times and the place of the folder do not matter. What must never live here: splits.
"""

import hashlib
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError, counted
from tuning.images import cache
from tuning.images.decoding import NOT_THERE, Preparation, own_limits
from tuning.images.formats.known import FORMATS, find_format
from tuning.images.formats.listing import Listing, Note, to_stderr
from tuning.images.labels import as_whole_numbers, check_labels, note_groups
from tuning.images.source import Resize, Source
from tuning.images.storing import Decoding, progress, refuse_broken

# On 1,234 photos of clothes at 128 px, frozen features and five folds by sender: crop 69.3 %, stretch 65.3, pad 63.0.
DEFAULT_RESIZE: Resize = "crop"
MOST_SIDE = {"cpu": 128, "cuda": 224}  # Of the stored images, where no size was asked for.


@dataclass(frozen=True)
class Facts:
    """What a reader should know of how a data set was read.

    Attributes:
        format: Of `FORMATS`.
        sizes: "width x height" of the originals -> how many, the most frequent first.
        modes: Pillow's modes of the originals -> how many.
        passed_over: Reason -> how many files or rows.
        left_out: Name and reason of each image that was left out: by its label, or as it is broken or has no file.
        preparation: The stored size, and how it came about.
        n_resized: Images whose original had another size.
        why: Why they have this size, in a sentence.
        seconds: That reading took this time.
        decoding_seconds: That it took when the images were decoded.
        cache: The file with the stored images.
    """

    format: str
    sizes: Mapping[str, int]
    modes: Mapping[str, int]
    passed_over: Mapping[str, int]
    left_out: tuple[tuple[str, str], ...]
    preparation: Preparation
    n_resized: int
    why: str
    seconds: float
    decoding_seconds: float
    cache: Path

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the stored images, in pixels."""
        return self.preparation.height, self.preparation.width

    @property
    def resize(self) -> str:
        """How images of another size were brought to the stored one."""
        return self.preparation.resize


@dataclass(frozen=True)
class Pictures:
    """Labelled images in their order.

    Attributes:
        images: uint8 (N, C, H, W), read-only, from the cache's file.
        labels: int64 (N,), indices of `class_names`.
        class_names: Sorted, digits as numbers.
        splits: "train", "valid", "test" or "" where none is given, (N,).
        groups: "" where there is none, (N,).
        digests: Of the originals' pixels before they were resized: equal for equal images, S32 (N,).
        names: Path relative to the data set's folder with "/", "row 17", or "x_train[17]", (N,).
        facts: How they were read.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    splits: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    digests: npt.NDArray[np.bytes_]
    names: npt.NDArray[np.str_]
    facts: Facts

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)


def read(source: Source, *, device: str = "cpu", note: Note = to_stderr) -> Pictures:
    """Returns one's own images, decoded and resized, from the cache where they are there.

    Args:
        source: Its dataset is a path.
        device: "cpu" or "cuda": what will train decides on the default size.
        note: Receives each line that a user should see.

    Raises:
        UserError: The images or labels cannot be read, or are not what a classifier can learn.
    """
    began = time.monotonic()
    path = source.path
    kind = find_format(path)
    listing = FORMATS[kind].list_images(source, note)
    labels = check_labels(listing, source, note)
    rows = labels.rows
    groups = _groups(listing, source, note)
    if passed := {reason: n for reason, n in listing.passed_over.items() if n}:
        note("Passed over: " + ", ".join(f"{reason} ({n:,})" for reason, n in passed.items()) + ".")
    all_names, _ = labels.numbered(rows, str(path))  # Here, too: decoding takes time.
    key, entry, images = _cached(listing, rows, source, device, note)
    broken = [(listing.names[rows[i]], reason) for i, reason in entry.broken]
    refuse_broken(broken, len(rows), path, source.skip_broken, note)
    kept = [rows[i] for i in entry.rows]
    with_images = {labels.texts[row] for row in kept}
    if gone := [name for name in all_names if name not in with_images]:
        raise UserError(
            f"No image of class {gone[0]!r} can be read. Mend some, or leave the class out with --labels-leave-out "
            f"{gone[0]}."
        )
    class_names, numbers = labels.numbered(kept, str(path))
    preparation = Preparation(
        *entry.shape[2:], channels=entry.shape[1], resize=source.resize or DEFAULT_RESIZE, bits=entry.bits
    )
    note(entry.why)
    return Pictures(
        images=images,
        labels=np.array(numbers, np.int64),
        class_names=class_names,
        splits=np.array([listing.splits[row] for row in kept]),
        groups=np.array([groups[row] for row in kept]),
        digests=np.array(entry.digests, "S32"),
        names=np.array([listing.names[row] for row in kept]),
        facts=Facts(
            format=kind,
            sizes=entry.sizes,
            modes=entry.modes,
            passed_over=passed,
            left_out=(*labels.left_out, *broken),
            preparation=preparation,
            n_resized=entry.n_resized,
            why=entry.why,
            seconds=time.monotonic() - began,
            decoding_seconds=entry.seconds,
            cache=cache.pixels_file(key),
        ),
    )


def _groups(listing: Listing, source: Source, note: Note) -> Sequence[str]:
    """Returns the groups of a column, or those that the pattern finds in the names.

    Raises:
        UserError: The pattern is in no name.
    """
    if source.group_pattern is None:
        found = [unicodedata.normalize("NFC", group) for group in listing.groups]
        found = as_whole_numbers(found, "groups", note)
        note_groups(found, note)
        return found
    pattern = re.compile(source.group_pattern)
    matches = [pattern.search(unicodedata.normalize("NFC", name)) for name in listing.names]
    groups = [(match[1] if pattern.groups else match[0]) or "" if match else "" for match in matches]
    lacking = [name for name, group in zip(listing.names, groups, strict=True) if not group]
    if len(lacking) == len(groups):
        raise UserError(f"--group-pattern {source.group_pattern!r} is in no image's path, e.g. not in {lacking[0]!r}.")
    if lacking:
        note(
            f"--group-pattern {source.group_pattern!r} is not in the path of {counted(len(lacking), 'image')}, e.g. "
            f"{lacking[0]!r}: each is a group of its own."
        )
    return groups


def _cached(
    listing: Listing, rows: Sequence[int], source: Source, device: str, note: Note
) -> tuple[str, cache.Entry, npt.NDArray[np.uint8]]:
    """Returns key, record and images of some rows; they are decoded where the cache has none."""
    paths = [listing.files[row] for row in rows] if listing.one_each else listing.files
    with progress("Looking for changes", len(paths)) as advance:
        digests = cache.content_digests(paths, source.path, advance)
    most = MOST_SIDE["cuda" if device.startswith("cuda") else "cpu"]
    resize = source.resize or DEFAULT_RESIZE
    options = [source.image_size or f"at most {most}", resize, listing.options]
    if not listing.one_each and len(rows) < len(listing.names):
        options.append(hashlib.blake2b(np.array(rows, np.int64).tobytes()).hexdigest())
    key = cache.key_of(repr(options), digests)
    found = cache.load(key, note)
    if found is None:
        began = time.monotonic()

        def check(broken: Sequence[tuple[int, str]]) -> None:
            """Raises where a file is not what its digest says; what it was decoded to has another key then."""
            now = cache.content_digests(paths, source.path)
            changed = [path for path, before, after in zip(paths, digests, now, strict=True) if before != after]
            if listing.one_each:  # Gone for a while, as a drive or a file that is being saved.
                changed += [paths[i] for i, reason in broken if reason == NOT_THERE and digests[i]]
            if changed:
                raise UserError(
                    f"{changed[0]} changed while it was read. Run the command again when it stays as it is."
                )

        with own_limits(), progress("Reading images", len(rows)) as advance:
            decoding = Decoding.planned(listing, rows, source, most, resize, advance, check)
            decoding.write(key, began)
        found = cache.load(key, note)
        if found is None:
            raise UserError(f"{cache.folder()} changes what is written to it. Set TUNING_CACHE to a folder elsewhere.")
        height, width = found[0].shape[2:]
        if source.image_size is None and height == width:  # A run's record has the size: `final` asks for it.
            cache.also_called(key, cache.key_of(repr([height, *options[1:]]), digests))
    return key, *found

"""`read`: labelled images of any format become arrays; decoded once, kept in the cache, in an order of their own.

The order of the file system, times and the place of the folder do not matter. What must never live here: splits.
"""

import contextlib
import hashlib
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError, counted
from tuning.images import cache
from tuning.images.decoding import (
    BrokenImage,
    Header,
    Preparation,
    digest_of,
    own_limits,
    prepare,
    read_header,
    read_pixels,
)
from tuning.images.formats.known import FORMATS, find_format
from tuning.images.formats.listing import Content, Listing
from tuning.images.labels import check_labels
from tuning.images.source import SIDES, Resize, Source

DEFAULT_RESIZE: Resize = "crop"
KEPT_SIDE = 96  # Images of one size are kept as they are up to this side, in pixels.
MOST_SIDE = {"cpu": 128, "cuda": 224}  # Of the stored images, where no size was asked for.
_BITS = (8, 10, 12, 14, 16)  # That a camera or scanner may have.
_NAMED = 10  # Broken images that an error names.
Note = Callable[[str], None]
Result = TypeVar("Result")


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


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def read(source: Source, *, device: str = "cpu", note: Note = _to_stderr) -> Pictures:
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
    key, entry, images = _cached(listing, rows, source, device, note)
    broken = [(listing.names[rows[i]], reason) for i, reason in entry.broken]
    _refuse_broken(broken, len(rows), path, source.skip_broken, note)
    kept = [rows[i] for i in entry.rows]
    class_names, numbers = labels.numbered(kept, str(path))
    preparation = Preparation(*entry.shape[2:], channels=entry.shape[1], resize=_resize(source), bits=entry.bits)
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


def _resize(source: Source) -> Resize:
    return source.resize or DEFAULT_RESIZE


def _groups(listing: Listing, source: Source, note: Note) -> Sequence[str]:
    """Returns the groups of a column, or those that the pattern finds in the names.

    Raises:
        UserError: The pattern is in no name.
    """
    if source.group_pattern is None:
        return listing.groups
    pattern = re.compile(source.group_pattern)
    found = [pattern.search(name) for name in listing.names]
    groups = [(match[1] if pattern.groups else match[0]) or "" if match else "" for match in found]
    lacking = [name for name, group in zip(listing.names, groups, strict=True) if not group]
    if len(lacking) == len(groups):
        raise UserError(f"--group-pattern {source.group_pattern!r} is in no image's path, e.g. not in {lacking[0]!r}.")
    if lacking:
        note(
            f"--group-pattern {source.group_pattern!r} is not in the path of {counted(len(lacking), 'image')}, e.g. "
            f"{lacking[0]!r}: each is a group of its own."
        )
    return groups


def _refuse_broken(broken: Sequence[tuple[str, str]], n_rows: int, path: Path, skip_broken: bool, note: Note) -> None:
    if not broken:
        return
    listed = "".join(f"\n  {name}: {reason}" for name, reason in broken[:_NAMED])
    more = f"\n  and {len(broken) - _NAMED:,} more" if len(broken) > _NAMED else ""
    said = f"{len(broken):,} of the {counted(n_rows, 'image')} of {path} cannot be read"
    if not skip_broken:
        raise UserError(f"{said}:{listed}{more}\nReplace or remove them, or leave them out with --skip-broken.")
    note(f"{said} and are left out:{listed}{more}")


def _cached(
    listing: Listing, rows: Sequence[int], source: Source, device: str, note: Note
) -> tuple[str, cache.Entry, npt.NDArray[np.uint8]]:
    """Returns key, record and images of some rows; they are decoded where the cache has none."""
    paths = [listing.files[row] for row in rows] if listing.one_each else listing.files
    digests = cache.content_digests(paths, source.path)
    most = MOST_SIDE["cuda" if device.startswith("cuda") else "cpu"]
    options = [source.image_size or f"at most {most}", _resize(source), listing.options]
    if not listing.one_each and len(rows) < len(listing.names):
        options.append(hashlib.blake2b(np.array(rows, np.int64).tobytes()).hexdigest())
    key = cache.key_of(repr(options), digests)
    found = cache.load(key, note)
    if found is None:
        began = time.monotonic()
        with own_limits(), _progress(len(rows)) as advance:
            decoding = _Decoding.planned(listing, rows, source, most, advance)
            decoding.write(key, began)
        found = cache.load(key, note)
        if found is None:
            raise UserError(f"{cache.folder()} changes what is written to it. Set TUNING_CACHE to a folder elsewhere.")
    return key, *found


@dataclass(frozen=True)
class _Decoding:
    """Images on their way into the cache: their rows, the size that their headers led to, and why."""

    listing: Listing
    rows: Sequence[int]
    headers: Sequence[Header]
    how: Preparation
    why: str
    advance: Callable[[], None]

    @classmethod
    def planned(
        cls, listing: Listing, rows: Sequence[int], source: Source, most: int, advance: Callable[[], None]
    ) -> "_Decoding":
        """Reads the headers, and decides on the size by them.

        Raises:
            UserError: Not one is readable.
        """
        found = list(cache.in_threads(_or_reason(read_header), listing.contents(rows)))
        headers = [header for header in found if isinstance(header, Header)]
        if not headers:
            broken = [(listing.names[row], str(reason)) for row, reason in zip(rows, found, strict=True)]
            _refuse_broken(broken, len(rows), source.path, False, _to_stderr)
        how, why = plan(headers, source.image_size, most, _resize(source))
        return cls(listing, rows, headers, how, why, advance)

    def write(self, key: str, began: float) -> None:
        """Decodes, resizes and writes all images in their order; the broken ones are noted with their reasons."""
        how, rows, broken, digests = self.how, list[int](), list[tuple[int, str]](), list[str]()
        n_resized, gray = 0, True
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(cache.Writer(key, (how.channels, how.height, how.width)))
            for i, one in enumerate(cache.in_threads(_or_reason(self._one), self.listing.contents(self.rows))):
                self.advance()
                if isinstance(one, str):
                    broken.append((i, one))
                    continue
                rows.append(i)
                digests.append(one.digest)
                n_resized += one.is_resized
                gray &= one.is_gray
                writer.add(one.image)
            if gray and how.channels == 3:
                writer = stack.enter_context(writer.first_channel())
            if rows:
                writer.finish(
                    digests=digests,
                    rows=rows,
                    broken=broken,
                    sizes=_counts(f"{header.width} x {header.height}" for header in self.headers),
                    modes=_counts(header.mode for header in self.headers),
                    bits=how.bits,
                    n_resized=n_resized,
                    why=self.why,
                    seconds=time.monotonic() - began,
                )
        if not rows:
            named = [(self.listing.names[self.rows[i]], reason) for i, reason in broken]
            _refuse_broken(named, len(self.rows), Path(self.listing.files[0]).parent, False, _to_stderr)

    def _one(self, content: Content) -> "_Decoded":
        pixels = read_pixels(content)
        return _Decoded(
            image=prepare(pixels, self.how),
            digest=digest_of(pixels).decode(),
            is_gray=pixels.ndim == 2,
            is_resized=pixels.shape[:2] != (self.how.height, self.how.width),
        )


@dataclass(frozen=True)
class _Decoded:
    """An image as it is stored, uint8 (C, H, W), and what is known of its original."""

    image: npt.NDArray[np.uint8]
    digest: str
    is_gray: bool
    is_resized: bool


def plan(headers: Sequence[Header], side: int | None, most: int, resize: Resize) -> tuple[Preparation, str]:
    """Returns how images of some headers are stored, and why, in sentences.

    Args:
        headers: At least one.
        side: That was asked for, in pixels.
        most: The greatest side where none was asked for.
        resize: How other sizes are brought to it.
    """
    first = headers[0]
    height = width = side or most
    if side:
        why = f"Images are stored at {side} x {side} pixels ({resize}), as --image-size asks."
    elif len({(each.width, each.height) for each in headers}) == 1 and max(first.width, first.height) <= KEPT_SIDE:
        height, width = first.height, first.width
        why = f"Images are stored as they are: all have {width} x {height} pixels."
    else:
        short = int(median(min(each.width, each.height) for each in headers))
        height = width = max(SIDES[0], min(short, most))
        reason = f", and {most} is the default's most on this device" if short > most else ""
        why = (
            f"Images are stored at {width} x {width} pixels ({resize}): the median of their short sides is {short:,}"
            f"{reason}. --image-size chooses another size."
        )
    greatest = max(each.greatest for each in headers)
    bits = next(bits for bits in _BITS if greatest < 2**bits)
    if bits > 8:
        why += f" Images of more than 8 bits are scaled from {bits} bits: their greatest value is {greatest:,}."
    channels = 1 if all(each.is_gray for each in headers) else 3
    return Preparation(height, width, channels, resize, bits), why


def _or_reason(work: Callable[[Content], Result]) -> Callable[[Content], Result | str]:
    """Returns a function that returns the reason of an image that is broken."""

    def attempt(content: Content) -> Result | str:
        try:
            return work(content)
        except BrokenImage as error:
            return str(error)

    return attempt


def _counts(values: Iterable[str]) -> dict[str, int]:
    """Returns value -> how many, the most frequent first."""
    return dict(Counter(values).most_common())


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Shows a bar on stderr, if that is a terminal; yields what moves it on by an image."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("Reading images", total=total)
        yield lambda: progress.advance(task)

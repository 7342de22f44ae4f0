"""From a listing into the cache: headers decide on the size, then each image is decoded, resized and written.

What must never live here: formats, labels, and what is read again from the cache.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError, counted
from tuning.images import cache
from tuning.images.decoding import (
    BrokenImageError,
    Header,
    Preparation,
    depth_of,
    digest_of,
    prepare,
    read_header,
    read_pixels,
)
from tuning.images.formats.listing import Content, Listing, Note, to_stderr
from tuning.images.source import SIDES, Resize, Source

KEPT_SIDE = 96  # Images of one size are kept as they are up to this side, in pixels.
_NAMED = 10  # Broken images that an error names.
Result = TypeVar("Result")


def refuse_broken(broken: Sequence[tuple[str, str]], n_rows: int, path: Path, skip_broken: bool, note: Note) -> None:
    """Says which images are broken and why.

    Args:
        broken: Name and reason of each.
        n_rows: Of how many.
        path: Of the data set.
        skip_broken: They are left out.
        note: Receives that.

    Raises:
        UserError: They are not left out.
    """
    if not broken:
        return
    listed = "".join(f"\n  {name}: {reason}" for name, reason in broken[:_NAMED])
    more = f"\n  and {len(broken) - _NAMED:,} more" if len(broken) > _NAMED else ""
    said = f"{len(broken):,} of the {counted(n_rows, 'image')} of {path} cannot be read"
    if not skip_broken:
        way = "or remove them, or leave them out with --skip-broken." if len(broken) < n_rows else "them."
        raise UserError(f"{said}:{listed}{more}\nReplace {way}")
    note(f"{said} and are left out:{listed}{more}")


@dataclass(frozen=True)
class Decoding:
    """Images of a path on their way into the cache: their rows, the size that their headers led to, and why."""

    listing: Listing
    rows: Sequence[int]
    headers: Sequence[Header | str]
    path: Path
    how: Preparation
    why: str
    advance: Callable[[], None]
    check: Callable[[Sequence[tuple[int, str]]], None]

    @classmethod
    def planned(
        cls,
        listing: Listing,
        rows: Sequence[int],
        source: Source,
        most: int,
        resize: Resize,
        advance: Callable[[], None],
        check: Callable[[Sequence[tuple[int, str]]], None],
    ) -> "Decoding":
        """Reads the headers, and decides on the size by them.

        `check` gets the broken images, by row and reason, and raises where the cache must not keep what was read.

        Raises:
            UserError: Not one is readable.
        """
        found = list(cache.in_threads(or_reason(read_header), listing.contents(rows)))
        headers = [header for header in found if isinstance(header, Header)]
        if not headers:
            broken = [(listing.names[row], str(reason)) for row, reason in zip(rows, found, strict=True)]
            refuse_broken(broken, len(rows), source.path, False, to_stderr)
        how, why = plan(headers, source.image_size, most, resize)
        return cls(listing, rows, found, source.path, how, why, advance, check)

    def write(self, key: str, began: float) -> None:
        """Decodes, resizes and writes all images in their order; the broken ones are noted with their reasons."""
        how, rows, broken, digests = self.how, list[int](), list[tuple[int, str]](), list[str]()
        n_resized, gray = 0, True
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(cache.Writer(key, (how.channels, how.height, how.width)))
            for i, one in enumerate(cache.in_threads(or_reason(self._one), self.listing.contents(self.rows))):
                self.advance()
                if isinstance(one, str):
                    broken.append((i, one))
                    continue
                rows.append(i)
                digests.append(one.digest)
                n_resized += one.is_resized
                gray &= one.is_gray
                writer.add(one.image)
            if rows and gray and how.channels == 3:
                writer = stack.enter_context(writer.first_channel())
            self.check(broken)
            if rows:
                writer.finish(
                    digests=digests,
                    rows=rows,
                    broken=broken,
                    sizes=_counts(f"{header.width} x {header.height}" for header in self._headers(rows)),
                    modes=_counts(header.mode for header in self._headers(rows)),
                    bits=how.bits,
                    n_resized=n_resized,
                    why=self.why,
                    seconds=time.monotonic() - began,
                )
        if not rows:
            named = [(self.listing.names[self.rows[i]], reason) for i, reason in broken]
            refuse_broken(named, len(self.rows), self.path, False, to_stderr)

    def _headers(self, rows: Sequence[int]) -> list[Header]:
        return [header for row in rows if isinstance(header := self.headers[row], Header)]

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
    bits = depth_of(greatest)
    if bits > 8:
        why += f" Images of more than 8 bits are scaled from {bits} bits: their greatest value is {greatest:,}."
    channels = 1 if all(each.is_gray for each in headers) else 3
    return Preparation(height, width, channels, resize, bits), why


def or_reason(work: Callable[[Content], Result]) -> Callable[[Content], Result | str]:
    """Returns a function that returns the reason of an image that is broken."""

    def attempt(content: Content) -> Result | str:
        try:
            return work(content)
        except BrokenImageError as error:
            return str(error)

    return attempt


def _counts(values: Iterable[str]) -> dict[str, int]:
    """Returns value -> how many, the most frequent first."""
    return dict(Counter(values).most_common())


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows a bar on stderr, if that is a terminal; yields what moves it on by an image."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)

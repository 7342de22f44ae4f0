"""Arrays of images that are read from a file block by block, as `.npz` and IDX files hold them."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError
from tuning.base.files import DAMAGE
from tuning.images.formats.listing import NO_LABEL, Content, Listing, Note

_BLOCK_BYTES = 1 << 22  # Read at a time.
_LARGEST_IMAGE = 1 << 30  # Bytes.


@dataclass(frozen=True)
class Stream:
    """Images in a file, one after the other.

    Attributes:
        shape: (N, H, W), (N, H, W, C) or (N, C, H, W).
        dtype: Of whole numbers.
        begin: Bytes before the first image.
        opened: Returns the file, decompressed.
        where: What errors call it.

    Raises:
        UserError: The shape is not one of these, or the numbers are not whole.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begin: int
    opened: Callable[[], AbstractContextManager[IO[bytes]]]
    where: str

    def __post_init__(self) -> None:
        sizes = " x ".join(map(str, self.shape))
        if len(self.shape) not in (3, 4) or (len(self.shape) == 4 and not self._leading and not self._trailing):
            raise UserError(
                f"{self.where} must have the shape images x height x width, with 1, 3 or 4 channels at the end or "
                f"after the images, but has {sizes}."
            )
        if min(self.shape[1:]) < 1 or self.shape[0] < 0:
            raise UserError(f"{self.where} must hold images of a pixel at least, but has {sizes}. Replace it.")
        if self._image_bytes > _LARGEST_IMAGE:
            raise UserError(
                f"{self.where} must hold images of at most {_LARGEST_IMAGE / 1e9:.0f} GB, but has {sizes}: "
                "its header is damaged. Replace the file."
            )
        if self.dtype.kind not in "ui":
            raise UserError(
                f"{self.where} must hold whole numbers (0 to 255, or to 65,535), but has {self.dtype}. "
                "Scale and round them before saving."
            )

    @property
    def _image_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def _trailing(self) -> bool:
        return self.shape[-1] in (1, 3, 4)

    @property
    def _leading(self) -> bool:
        return self.shape[1] in (1, 3, 4) and not self._trailing

    def images(self, rows: Sequence[int]) -> Iterator[npt.NDArray[Any]]:
        """Yields some images, (H, W) or (H, W, C), which are asked for in ascending order.

        Raises:
            UserError: The file ends before its last image, or is damaged.
        """
        n_block = max(1, _BLOCK_BYTES // self._image_bytes)
        waiting = list(reversed(rows))
        try:
            with self.opened() as file:
                _skip(file, self.begin)
                for first in range(0, self.shape[0], n_block):
                    n = min(n_block, self.shape[0] - first)
                    content = file.read(n * self._image_bytes)
                    if len(content) < n * self._image_bytes:
                        raise UserError(
                            f"{self.where} must hold {self.shape[0]:,} images, but ends in number "
                            f"{first + len(content) // self._image_bytes:,}. Replace the file."
                        )
                    block = np.frombuffer(content, self.dtype).reshape(n, *self.shape[1:])
                    while waiting and waiting[-1] < first + n:
                        image = block[waiting.pop() - first]
                        yield image.transpose(1, 2, 0) if image.ndim == 3 and self._leading else image
                while file.read(_BLOCK_BYTES):  # A compressed file's checksum is compared where it ends.
                    pass
        except MemoryError:  # Not the fault of the file: blocks are small.
            raise
        except DAMAGE as error:
            raise UserError(f"{self.where} is damaged: {error}. Replace the file.") from error


@dataclass(frozen=True)
class Part:
    """The images of a split, their labels as texts, and what an image is called: `name[17]`."""

    images: Stream
    labels: Sequence[str]
    split: str
    name: str


def list_parts(parts: Sequence[Part], files: Sequence[Path]) -> Listing:
    """Returns the listing of arrays, one after the other.

    Raises:
        UserError: Images and labels differ in number.
    """
    names: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    for part in parts:
        n = part.images.shape[0]
        if n != len(part.labels):
            raise UserError(
                f"{part.images.where} has {n:,} images, but {len(part.labels):,} labels. Save one label for each image."
            )
        names += [f"{part.name}[{i}]" for i in range(n)]
        labels += part.labels
        splits += [part.split] * n

    def contents(rows: Sequence[int]) -> Iterator[Content]:
        first = 0
        for part in parts:
            n = part.images.shape[0]
            yield from part.images.images([row - first for row in rows if first <= row < first + n])
            first += n

    return Listing(
        names=names,
        labels=labels,
        splits=splits,
        groups=[""] * len(names),
        files=files,
        contents=contents,
        passed_over=Counter({NO_LABEL: labels.count("")}),
    )


def texts_of(labels: npt.NDArray[Any], where: str, note: Note) -> list[str]:
    """Returns labels (N,), (N, 1) or one-hot (N, K) as texts, "" for NaN.

    Raises:
        UserError: An image has several labels or none, or bytes are no text.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2 and labels.dtype.kind in "uifb":
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise UserError(f"{where} must have one label an image, but has rows of {labels.shape[1]} numbers.")
        labels = labels.argmax(axis=1)
    if labels.ndim != 1:
        sizes = " x ".join(map(str, labels.shape))
        raise UserError(f"{where} must have one label an image, but has the shape {sizes or 'of a single number'}.")
    if labels.dtype.kind == "S":
        return [text.strip() for text in _decoded(labels.tolist(), where, note)]
    return ["" if label != label else str(label).strip() for label in labels.tolist()]


def _decoded(labels: Sequence[bytes], where: str, note: Note) -> list[str]:
    for encoding in ("utf-8", "cp1252"):  # As tables are read.
        with contextlib.suppress(UnicodeDecodeError):
            texts = [label.decode(encoding) for label in labels]
            if encoding == "cp1252":
                note(f"{where} is no UTF-8 and is read as cp1252. If labels look wrong, save them as texts.")
            return texts
    raise UserError(f"{where} must be text in UTF-8, but is in another encoding. Save it as texts.")


def _skip(file: IO[bytes], n_bytes: int) -> None:
    while n_bytes > 0:
        n_bytes -= len(file.read(n_bytes)) or n_bytes

"""Decoded images in a file of the user's cache, found by what is in the originals; a damaged one is never used.

An entry is two files: `<key>.u8` with the pixels one after the other, and `<key>.json` with what is known of them. The
second is written last, so that an entry is whole or is none. A stat index says which files were not touched since their
content was last digested; it saves time and decides nothing. What must never live here: formats and decoding.
"""

import contextlib
import hashlib
import itertools
import json
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tuning.base import files
from tuning.base.errors import DISK_FULL, UserError, disk_full
from tuning.base.machine import cores

VERSION = 1  # Of what is in an entry, and of how images are decoded and resized.
BLOCK_BYTES = 1 << 22  # What a checksum is of.
MOST_CHECKED = 1 << 31  # Bytes of an entry that are checked when it is opened; of a larger one, evenly spread blocks.
SETTLED_NS = (
    2_000_000_000  # A file changed so shortly before it was read may change again within one tick of its clock.
)
LEFTOVER_SECONDS = 86_400  # A temporary file that nobody has written to for so long is nobody's.
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Entry:
    """What is known of cached images.

    Attributes:
        shape: (N, C, H, W).
        digests: Of the originals' pixels, one an image.
        rows: Which of the rows that were read the images are: the others are broken.
        broken: Row and reason of each.
        sizes: "width x height" of the originals -> how many.
        modes: Pillow's modes of the originals -> how many.
        bits: Of the originals' pixels.
        n_resized: Images whose original had another size.
        why: Why they have this size, in a sentence.
        checksums: CRC-32 of each block of the pixels.
        seconds: That reading them took.
    """

    shape: tuple[int, int, int, int]
    digests: list[str]
    rows: list[int]
    broken: list[tuple[int, str]]
    sizes: dict[str, int]
    modes: dict[str, int]
    bits: int
    n_resized: int
    why: str
    checksums: list[int]
    seconds: float


def folder() -> Path:
    """Returns the folder of all entries."""
    return files.cache_dir("images")


def pixels_file(key: str) -> Path:
    """Returns the file with an entry's pixels."""
    return folder() / f"{key}.u8"


def load(key: str, note: Callable[[str], None]) -> tuple[Entry, npt.NDArray[np.uint8]] | None:
    """Returns an entry with its images, read-only (N, C, H, W); None where there is none or it is damaged.

    Args:
        key: Of the entry.
        note: Receives that it is damaged.
    """
    record, path = folder() / f"{key}.json", pixels_file(key)
    try:
        if not record.exists():
            return None
    except PermissionError:  # The folder is another user's: who writes an entry says so.
        return None
    try:
        found = json.loads(record.read_bytes())
        checksum = found.pop("checksum")
        if zlib.crc32(json.dumps(found).encode()) != checksum:
            raise ValueError("its record has changed")
        entry = Entry(**found | {"shape": tuple(found["shape"]), "broken": [tuple(each) for each in found["broken"]]})
        if path.stat().st_size != np.prod(entry.shape, dtype=np.int64):
            raise ValueError("it is cut")
        if not _is_whole(path, entry.checksums):
            raise ValueError("its pixels have changed")
        images = np.memmap(path, np.uint8, mode="r", shape=entry.shape)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        note(f"The cached images {path} are damaged ({error}): they are read anew.")
        return None
    return entry, images


class Writer:
    """Writes the pixels of an entry block by block into a temporary file; `finish` names it.

    Args:
        key: Of the entry.
        shape: (C, H, W) of an image.

    Raises:
        UserError: The disk is full, or the cache cannot be written to.
    """

    def __init__(self, key: str, shape: tuple[int, int, int]) -> None:
        self.key, self.shape, self.n = key, shape, 0
        self._buffer, self._checksums = bytearray(), list[int]()
        with _said_if_full():
            folder().mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder(), ".*.part")
            self._name = f"{files.beside(folder() / key)}.part"
            self._file = files.create(Path(self._name), buffering=0)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves nothing behind of what was not finished."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name)

    def add(self, image: npt.NDArray[np.uint8]) -> None:
        """Adds an image (C, H, W)."""
        self._buffer += image.tobytes()
        self.n += 1
        while len(self._buffer) >= BLOCK_BYTES:
            self._write_block()

    def first_channel(self) -> "Writer":
        """Returns a writer of the first of three channels of what was added, for images that are all gray."""
        self._write_block()
        gray = Writer(self.key, (1, *self.shape[1:]))
        for image in np.memmap(self._name, np.uint8, mode="r", shape=(self.n, *self.shape)):
            gray.add(image[:1])
        return gray

    def finish(self, **known: Any) -> Entry:
        """Gives the entry its name, when the disk has it, and returns what is known of it."""
        self._write_block()
        entry = Entry(shape=(self.n, *self.shape), checksums=self._checksums, **known)
        record = json.loads(json.dumps(asdict(entry)))
        with _said_if_full():
            os.fsync(self._file.fileno())
            files.replace(self._name, pixels_file(self.key))
            checksum = zlib.crc32(json.dumps(record).encode())
            files.write_json(folder() / f"{self.key}.json", record | {"checksum": checksum}, durable=True)
        return entry

    def _write_block(self) -> None:
        """Writes what was added last, a block at most."""
        block, self._buffer = self._buffer[:BLOCK_BYTES], self._buffer[BLOCK_BYTES:]
        if block:
            with _said_if_full():
                files.write(self._file, bytes(block))
            self._checksums.append(zlib.crc32(block))


def also_called(key: str, other: str) -> None:
    """Has an entry found by another key, too, without a second copy of its pixels; where that cannot be, it is not."""
    record = folder() / f"{other}.json"
    with contextlib.suppress(OSError):
        if not record.exists():
            with contextlib.suppress(FileExistsError):
                os.link(pixels_file(key), pixels_file(other))
            os.link(folder() / f"{key}.json", record)


def remove_leftovers(place: Path, names: str) -> None:
    """Removes what processes that were killed left behind, of the temporary files with such names in a folder."""
    for path in place.glob(names):
        with contextlib.suppress(OSError):  # Gone, or another user's.
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()


@contextlib.contextmanager
def _said_if_full() -> Iterator[None]:
    """Turns what the disk says into a sentence that names the cache and how to choose another."""
    try:
        yield
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) and not disk_full(folder(), error) else DISK_FULL
        raise UserError(
            f"{reason} while writing decoded images to the cache {folder()}. Free some space, or set TUNING_CACHE to a "
            "folder elsewhere, then run the command again."
        ) from error


def _is_whole(path: Path, checksums: Sequence[int]) -> bool:
    """Returns whether the blocks have their checksums; of a very large entry, evenly spread ones are checked."""
    n_blocks = -(-path.stat().st_size // BLOCK_BYTES)
    if n_blocks != len(checksums):
        return False
    n_checked = min(n_blocks, MOST_CHECKED // BLOCK_BYTES)
    chosen = np.unique(np.linspace(0, n_blocks - 1, n_checked).round().astype(int))

    with path.open("rb") as file:

        def is_whole(block: int) -> bool:
            return zlib.crc32(os.pread(file.fileno(), BLOCK_BYTES, block * BLOCK_BYTES)) == checksums[block]

        return all(in_threads(is_whole, chosen.tolist()))


def key_of(options: str, digests: Iterable[str]) -> str:
    """Returns the name of the entry of some contents in their order, read with some options."""
    digest = hashlib.blake2b(f"{VERSION} {options}".encode(), digest_size=16)
    for each in digests:
        digest.update(each.encode())
    return digest.hexdigest()


def content_digests(paths: Sequence[Path], root: Path, advance: Callable[[], None] = lambda: None) -> list[str]:
    """Returns a digest of each file's content; "" for one that cannot be read.

    A file whose size, times and inode are those of the last time is not read again, unless it had been changed less
    than two seconds before it was read.

    Args:
        paths: The files; one may be named more than once.
        root: Of the data set: it has an index of its own.
        advance: Is called after each file.
    """
    index = folder() / f"index-{hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()}.json"
    known = _known(index)
    began = time.time_ns()
    seen: dict[str, list[Any]] = {}
    new = False

    def digest(path: Path) -> tuple[str, list[Any], bool]:
        name = str(path)
        try:
            status = path.stat()
            stat = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            if (row := known.get(name)) and row[:4] == stat:
                return name, row, False
            with path.open("rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        except (OSError, ValueError):  # ValueError: a NUL in the path.
            return name, ["", 0, 0, 0, ""], False  # Decoding says why.
        return name, [*stat, content], max(status.st_mtime_ns, status.st_ctime_ns) < began - SETTLED_NS

    digests = []
    for name, row, is_new in in_threads(digest, paths, at_once=128):
        digests.append(row[4])
        advance()
        new |= is_new
        if is_new or row is known.get(name):
            seen[name] = row
    if new:
        with contextlib.suppress(OSError, UserError):  # A cache that is full or another's: the next time is slower.
            files.make_folder(folder(), exist_ok=True)
            files.write_text(index, json.dumps(seen))
    return digests


def _known(index: Path) -> dict[str, list[Any]]:
    """Returns the rows of an index; none where there is no readable one, as it only saves time."""
    try:
        found = json.loads(index.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], *, at_once: int = 16) -> Iterator[Result]:
    """Yields the results in the order of the items, from a thread a core; few are in memory at a time.

    Args:
        work: What is done with an item.
        items: May be produced as they are taken.
        at_once: Items that a thread works through before it hands over.
    """

    def several(some: list[Item]) -> list[Result]:
        return [work(item) for item in some]

    n_threads = cores()
    waiting: deque[Future[list[Result]]] = deque()
    iterator = iter(items)
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            while True:
                some = list(itertools.islice(iterator, at_once))
                if some:
                    waiting.append(pool.submit(several, some))
                while waiting and (len(waiting) > 2 * n_threads or not some):
                    yield from waiting.popleft().result()
                if not some and not waiting:
                    return
        finally:
            for future in waiting:
                future.cancel()

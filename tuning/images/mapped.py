"""Images that lie in a file, and the memory of a process that reads them: it does not grow with the set.

Pages of a mapped file count as a process's own while it has them. A read at random maps up to 2 MB with each image, so
batches are read from the file instead; a pass in order gives back what it has seen. What was read stays in the kernel's
cache as long as there is room.
"""

import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

BYTES_AT_ONCE = 1 << 25  # Of images in order, before they are given back.


class Stored:
    """The images of a file, which can only be indexed by rows on the CPU, int64 (n,) -> uint8 (n, C, H, W).

    Args:
        images: All of the file that are images.

    Attributes:
        shape: (M, C, H, W).

    Raises:
        OSError: The file cannot be opened, or has become shorter when it is read.
    """

    def __init__(self, images: "np.memmap[Any, Any]") -> None:
        import torch

        self.shape, self.device = images.shape, torch.device("cpu")
        self._offset, self._size = images.offset, images[:1].nbytes
        self._name = str(images.filename)
        self._file = os.open(self._name, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, rows: "torch.Tensor") -> "torch.Tensor":
        import torch

        found = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
        bytes_of: Any = found.view(-1).numpy()
        parts, size = memoryview(bytes_of), self._size
        for place, row in enumerate(rows.tolist()):
            if os.preadv(self._file, [parts[place * size : (place + 1) * size]], self._offset + row * size) != size:
                raise OSError(f"{self._name} was cut while it was read.")
        return found


def file_of(images: Any) -> mmap.mmap | None:
    """Returns the mapping that an array's memory is; None where it is none."""
    while images is not None and not isinstance(images, mmap.mmap):
        images = getattr(images, "base", None)
    return images


def give_back(file: mmap.mmap | None) -> None:
    """Takes a mapping's pages out of this process."""
    if file is not None and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)

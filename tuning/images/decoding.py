"""One image: from a file's bytes to pixels, and from pixels to the stored size. Pillow decodes, by content.

The same for a data set and for what `predict` is given. What must never live here: which images there are.
"""

import contextlib
import errno
import hashlib
import io
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tuning.base.errors import UserError
from tuning.images.formats.listing import Content
from tuning.images.source import Resize

READ = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM")  # As Pillow calls them.
MOST_PIXELS = 100_000_000  # Of an image that is decoded: 300 MB.
_BITS = (8, 10, 12, 14, 16)  # That a camera or scanner may have.
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
NOT_THERE = "no such file"
_GRAY = ("1", "L", "LA", "La", *DEEP)
# Of reading a file, as lasting as its content: the cache may keep them. A drive that fails may be well again.
_LASTING = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM),
}
_ONE_AT_A_TIME = threading.Lock()  # Who changes Pillow's limit, which is the process's.
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class BrokenImageError(Exception):
    """An image that cannot be read; the text is the reason."""


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded.

    Attributes:
        width: In pixels, as it is looked at: after the turn that EXIF asks for.
        height: The same.
        mode: Pillow's, e.g. "RGB"; of arrays "L", "RGB", "RGBA" or "I;16".
        greatest: The greatest value, where pixels may have more than 8 bits; such images are decoded for it.
    """

    width: int
    height: int
    mode: str
    greatest: int = 0

    @property
    def is_gray(self) -> bool:
        """Whether it has one channel for sure; a palette or three equal channels may be gray, too."""
        return self.mode in _GRAY


@dataclass(frozen=True)
class Preparation:
    """How decoded pixels become what a network gets.

    Attributes:
        height: Of the stored images, in pixels.
        width: The same.
        channels: 1 or 3.
        resize: How an image of another size is brought to this one.
        bits: Of a pixel, 8 to 16: the greatest value, 2^bits - 1, becomes 255. Images of 8 bits are not scaled.
    """

    height: int
    width: int
    channels: int
    resize: Resize
    bits: int = 8


@contextlib.contextmanager
def own_limits() -> Iterator[None]:
    """Has Pillow leave the limit of pixels to us, and keep its warnings on odd files to itself; for all threads."""
    with _ONE_AT_A_TIME:
        Image.init()  # Here: threads that load Pillow's plugins at once are in each other's way.
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"PIL\b")
                yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def read_header(content: Content) -> Header:
    """Returns size and mode of an image, within `own_limits`.

    Raises:
        BrokenImageError: It is no image of a kind that is read, or has too many pixels.
    """
    if isinstance(content, np.ndarray):
        channels = content.shape[2] if content.ndim == 3 else 1
        is_deep = content.dtype != np.uint8
        mode = {1: "I;16" if is_deep else "L", 3: "RGB", 4: "RGBA"}[channels]
        return Header(content.shape[1], content.shape[0], mode, int(deep(content).max(initial=0)) if is_deep else 0)
    with _opened(content) as image:
        width, height = image.size
        if image.format != "TIFF" and _orientation(image) >= 5:  # Pillow turns a TIFF's size itself.
            width, height = height, width
        greatest = int(deep(np.asarray(image)).max(initial=0)) if image.mode in DEEP else 0
        return Header(width, height, image.mode, greatest)


def read_pixels(content: Content) -> Pixels:
    """Returns the pixels of an image, (H, W) if it is gray, else (H, W, 3), within `own_limits`.

    EXIF's turn is done, transparency is laid over white, and three equal channels count as gray. They are uint8, or
    uint16 where a gray file has more than 8 bits. Of 16 bits in each of three channels Pillow keeps the upper 8.

    Raises:
        BrokenImageError: It cannot be decoded.
    """
    if isinstance(content, np.ndarray):
        return _of_array(content)
    with _opened(content) as image:
        turn(image)
        if image.mode in DEEP:
            return deep(np.asarray(image))
        if image.mode == "F":
            raise BrokenImageError("its pixels are floating-point numbers")
        return _gray_or_colour(_without_alpha(image))


def turn(image: Image.Image) -> None:
    """Loads an opened image and turns it in place as its EXIF says, as far as that can be read."""
    image.load()  # Here: pixels that are damaged are an error.
    with _damaged_exif():
        ImageOps.exif_transpose(image, in_place=True)


@contextlib.contextmanager
def _damaged_exif() -> Iterator[None]:
    """Has EXIF that is damaged be no obstacle, as in other programs."""
    try:
        yield
    except MemoryError:
        raise
    except Exception:  # Pillow's many ways to fail on it.
        return


def depth_of(greatest: int) -> int:
    """Returns the bits of a pixel, of the usual numbers of them, that hold a greatest value of at most 65,535."""
    return next(bits for bits in _BITS if greatest < 2**bits)


def digest_of(pixels: Pixels) -> bytes:
    """Returns BLAKE2b-128 of the pixels and their shape as hexadecimal text, 32 bytes; equal for equal images."""
    if pixels.dtype != np.uint8 and pixels.max(initial=0) <= 255:
        pixels = pixels.astype(np.uint8)  # Whole numbers of 64 bits in an array may be plain bytes.
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype.itemsize} ".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest().encode()


def prepare(pixels: Pixels, how: Preparation) -> npt.NDArray[np.uint8]:
    """Returns an image as it is stored: uint8 (C, H, W). One that has the size is not changed.

    Args:
        pixels: As `read_pixels` returns them.
        how: Size, channels and depth.
    """
    small = _eight_bits(pixels, how.bits)
    if small.shape[:2] != (how.height, how.width):
        small = _resized(small, how)
    if how.channels == 1:
        if small.ndim == 3:
            small = np.asarray(Image.fromarray(small).convert("L"))
        return small[None]
    if small.ndim == 2:
        return np.repeat(small[None], 3, axis=0)
    return np.ascontiguousarray(small.transpose(2, 0, 1))


@contextlib.contextmanager
def _opened(content: Path | bytes) -> Iterator[Image.Image]:
    """Opens an image; whatever Pillow raises while it is open becomes `BrokenImageError`."""
    try:
        if isinstance(content, bytes) and not content:
            raise BrokenImageError("it is empty")
        with Image.open(content if isinstance(content, Path) else io.BytesIO(content), formats=READ) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BrokenImageError(
                    f"{image.width:,} x {image.height:,} pixels are more than {MOST_PIXELS // 10**6} million"
                )
            yield image
    except (BrokenImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        empty = isinstance(content, Path) and content.stat().st_size == 0
        reason = "it is empty" if empty else "it is no JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM"
        raise BrokenImageError(reason) from error
    except FileNotFoundError as error:
        raise BrokenImageError(NOT_THERE) from error
    except OSError as error:
        if error.errno is not None and error.errno not in _LASTING:
            raise UserError(
                f"{error.filename or 'An image'} cannot be read now: {error.strerror}. Run the command again; if it "
                "fails again, check the drive, or replace the image."
            ) from error
        raise BrokenImageError(error.strerror or str(error)) from error
    except Exception as error:  # Decoders' many ways to fail on damaged data.
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's orientation, 1 to 8; from 5 on, width and height change places."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode it, to look behind the pixels.
    found = None
    with _damaged_exif():
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _without_alpha(image: Image.Image) -> Image.Image:
    """Returns an image as "L" or "RGB"; what is transparent is white."""
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        white.alpha_composite(colours)
        return white.convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _gray_or_colour(image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image)
    return _one_channel(pixels) if pixels.ndim == 3 and _is_gray(pixels) else pixels


def _is_gray(pixels: npt.NDArray[Any]) -> bool:
    """Returns whether three channels are equal; a few pixels suffice to see that most photos are not."""
    for some in (pixels[::16, ::16], pixels):
        if not np.array_equal(some[..., 0], some[..., 1]) or not np.array_equal(some[..., 0], some[..., 2]):
            return False
    return True


def _one_channel(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(pixels[..., 0])


def _of_array(pixels: npt.NDArray[Any]) -> Pixels:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8:
        pixels = deep(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        if pixels.dtype != np.uint8:
            raise BrokenImageError("it has transparency and more than 8 bits a channel")
        return _gray_or_colour(_without_alpha(Image.fromarray(np.ascontiguousarray(pixels))))
    return _one_channel(pixels) if pixels.ndim == 3 and _is_gray(pixels) else np.ascontiguousarray(pixels)


def deep(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Returns whole numbers as uint16."""
    least, greatest = int(pixels.min(initial=0)), int(pixels.max(initial=0))
    if least < 0 or greatest > 65_535:
        raise BrokenImageError(f"its pixels are {least:,} to {greatest:,}, and must be 0 to 65,535")
    return pixels.astype(np.uint16)


def _eight_bits(pixels: Pixels, bits: int) -> npt.NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    scaled: npt.NDArray[np.float64] = np.rint(pixels * (255 / (2**bits - 1)))
    return scaled.clip(0, 255).astype(np.uint8)


def _resized(pixels: npt.NDArray[np.uint8], how: Preparation) -> npt.NDArray[np.uint8]:
    """Returns an image in another size, antialiased."""
    image = Image.fromarray(pixels)
    width, height = how.width, how.height
    box: tuple[float, float, float, float] = (0, 0, image.width, image.height)
    if how.resize == "crop":
        scale = max(width / image.width, height / image.height)
        left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
        box = (max(0, left), max(0, top), min(image.width, image.width - left), min(image.height, image.height - top))
    elif how.resize == "pad":
        scale = min(width / image.width, height / image.height)
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resized = image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    if (width, height) != (how.width, how.height):
        whole = Image.new(image.mode, (how.width, how.height))
        whole.paste(resized, ((how.width - width) // 2, (how.height - height) // 2))
        resized = whole
    return np.asarray(resized)

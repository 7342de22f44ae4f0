"""What a model is asked about: arrays, tensors, files or Pillow's images, as images of the size that it takes."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, Union

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

Images = Union[npt.NDArray[np.uint8], "torch.Tensor", Iterable[Any], str, Path]


# Modes of Pillow's images that a PNG file keeps, and that of floating-point numbers, which nothing reads.
_OF_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "F"}


def arrays_or_paths(images: Images) -> npt.NDArray[Any] | list[Path] | list[bytes]:
    """Returns images as one array, or the paths that name them, or Pillow's images as PNG files in memory.

    Raises:
        UserError: They are something else, or arrays of several shapes.
    """
    if isinstance(images, str | Path):
        return [Path(images)]
    if _is_picture(images):
        return [_as_file(images)]
    if _is_array(images):
        return _array(images)
    if not isinstance(images, Iterable):
        raise _no_images(images)
    each = list(images)
    if each and all(map(_is_picture, each)):
        return [_as_file(one) for one in each]
    if wrong := [one for one in each if not isinstance(one, str | Path) and not _is_array(one)]:
        raise _no_images(wrong[0])
    paths = [Path(one) for one in each if isinstance(one, str | Path)]
    if len(paths) == len(each):
        return paths
    if paths:
        raise UserError(f"images must be all files or all arrays, but got both, {str(paths[0])!r} among them.")
    arrays = [_array(one) for one in each]
    if len(shapes := dict.fromkeys(one.shape for one in arrays)) > 1:
        raise UserError(f"images must be arrays of one shape, but got {' and '.join(map(str, [*shapes][:2]))}.")
    return np.stack(arrays)


def _is_array(images: Any) -> bool:
    """Returns whether this is an array or a tensor of pixels; one of a single dimension may be a column of paths."""
    return hasattr(images, "dtype") and getattr(images, "ndim", 0) > 1


def _is_picture(images: Any) -> "TypeGuard[Picture]":
    """Returns whether this is an image of Pillow's."""
    from PIL import Image

    return isinstance(images, Image.Image)


def _as_file(image: "Picture") -> bytes:
    """Returns an image as a PNG file, turned as its EXIF says: it is then read as the file would be."""
    from PIL import Image

    from tuning.images import decoding

    file = io.BytesIO()
    try:
        turned = _turned(image)
        if turned.mode in decoding.DEEP:
            turned = Image.fromarray(decoding.deep(np.asarray(turned)))
        elif turned.mode not in _OF_PNG:
            plain = "RGBA" if turned.has_transparency_data else "RGB"
            turned = turned.convert("LA" if turned.mode == "La" else plain)
        turned.save(file, "PNG")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's many ways to fail on damaged data.
        raise UserError(f"images must be ones that can be read, but one of Pillow's cannot: {error}.") from error
    return file.getvalue()


def _turned(image: "Picture") -> "Picture":
    """Returns a copy of an image, turned as its EXIF says, as far as that can be read."""
    from PIL import ImageOps

    from tuning.images.decoding import turn

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Damaged EXIF, which is no obstacle in a file. Damaged pixels fail again.
        copy = image.copy()
        turn(copy)
        return copy


def _array(images: Any) -> npt.NDArray[Any]:
    return np.asarray(images.cpu() if hasattr(images, "cpu") else images)


def _no_images(found: Any) -> UserError:
    return UserError(
        "images must be all files, all Pillow's, or uint8 arrays of the size that the model was trained on, but got "
        f"{type(found).__name__}."
    )


def read_image(file: Path | bytes, channels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Returns the image of a PNG or JPEG file as uint8 (C, H, W), resized; what is transparent becomes white.

    Raises:
        UserError: The file is missing, damaged, or in another format.
    """
    from PIL import Image

    from tuning.images.decoding import turn

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=("PNG", "JPEG")) as opened:
            turn(opened)
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16 bits: a plain conversion would clip, not scale.
                image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"IMAGE must be a readable PNG or JPEG file, but got {named(file)}: {error}.") from error
    return np.asarray(image, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def named(file: Path | bytes) -> str:
    """Returns what an error calls a file."""
    return "an image of Pillow's" if isinstance(file, bytes) else repr(str(file))


def looks_inverted(image: npt.NDArray[np.uint8]) -> bool:
    """Returns whether a grey image (1, H, W) is brighter on its border, one pixel wide, than within it.

    So are 8 of the 60,000 training images of Fashion-MNIST, which are bright on black.
    """
    if image.shape[0] != 1 or min(image.shape[1:]) < 3:
        return False
    inner = image[:, 1:-1, 1:-1]
    border_mean = (image.sum() - inner.sum()) / (image.size - inner.size)
    return bool(border_mean > inner.mean())

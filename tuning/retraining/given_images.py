"""What a model is asked about: arrays, tensors or files, as images of the size that it takes."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError

if TYPE_CHECKING:
    import torch

Images = Union[npt.NDArray[np.uint8], "torch.Tensor", Iterable[Any], str, Path]


def arrays_or_paths(images: Images) -> npt.NDArray[Any] | list[Path]:
    """Returns images as one array, or the paths that name them.

    Raises:
        UserError: They are something else, or arrays of several shapes.
    """
    if isinstance(images, str | Path):
        return [Path(images)]
    if _is_array(images):
        return _array(images)
    if not isinstance(images, Iterable):
        raise _no_images(images)
    each = list(images)
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


def _array(images: Any) -> npt.NDArray[Any]:
    return np.asarray(images.cpu() if hasattr(images, "cpu") else images)


def _no_images(found: Any) -> UserError:
    return UserError(
        "images must be files, or uint8 arrays of the size that the model was trained on, but got "
        f"{type(found).__name__}."
    )


def read_image(path: Path, channels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Returns the image of a PNG or JPEG file as uint8 (C, H, W), resized; what is transparent becomes white.

    Raises:
        UserError: The file is missing, damaged, or in another format.
    """
    from PIL import Image

    from tuning.images.decoding import turn

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            turn(file)
            image: Image.Image = file
            if image.mode.startswith("I"):  # 16 bits: a plain conversion would clip, not scale.
                image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"IMAGE must be a readable PNG or JPEG file, but got {str(path)!r}: {error}.") from error
    return np.asarray(image, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def looks_inverted(image: npt.NDArray[np.uint8]) -> bool:
    """Returns whether a grey image (1, H, W) is brighter on its border, one pixel wide, than within it.

    So are 8 of the 60,000 training images of Fashion-MNIST, which are bright on black.
    """
    if image.shape[0] != 1 or min(image.shape[1:]) < 3:
        return False
    inner = image[:, 1:-1, 1:-1]
    border_mean = (image.sum() - inner.sum()) / (image.size - inner.size)
    return bool(border_mean > inner.mean())

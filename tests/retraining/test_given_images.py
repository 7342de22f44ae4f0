"""`tuning.retraining.given_images`: an image of Pillow's is read as its file is."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tuning.images import decoding
from tuning.retraining.given_images import arrays_or_paths, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
COLOURS = Image.fromarray(PIXELS)
DEEP = PIXELS.astype(np.uint16)[..., 0] * 257
PALETTE = COLOURS.convert("RGB").quantize(8)
IMAGES = {
    **{mode: COLOURS.convert(mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "RGBX")},
    **{mode: COLOURS.convert("RGB").convert(mode) for mode in ("CMYK", "YCbCr", "LAB")},
    "P": PALETTE,
    "PA": PALETTE.convert("PA"),
    "I": Image.fromarray(DEEP.astype(np.int32)),
    "I;16": Image.fromarray(DEEP),
    "I;16B": Image.frombytes("I;16B", (5, 6), DEEP.astype(">u2").tobytes()),
}
IMAGES["PA"].putalpha(COLOURS.getchannel("A"))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels_of(image: Image.Image) -> Any:
    """Returns the pixels of Pillow's image as the model of a user's own images gets them."""
    [file] = arrays_or_paths(image)
    assert isinstance(file, bytes)
    return decoding.read_pixels(file)


@pytest.mark.parametrize("mode", IMAGES)
def test_an_image_of_each_mode_is_read_as_its_file_is(mode: str) -> None:
    assert IMAGES[mode].mode == mode
    file = encoded(IMAGES[mode], "TIFF")
    expected = decoding.read_pixels(file)
    for image in (IMAGES[mode], Image.open(io.BytesIO(file))):
        np.testing.assert_array_equal(pixels_of(image), expected)
    assert mode != "PA" or (expected == 255).any()


@pytest.mark.parametrize(("mode", "plain"), [("RGBa", "RGBA"), ("La", "LA")])
def test_what_is_multiplied_by_its_transparency_stays_transparent(mode: str, plain: str) -> None:
    found = pixels_of(COLOURS.convert(plain).convert(mode)).astype(int)
    assert np.abs(found - pixels_of(COLOURS.convert(plain))).max() <= 2  # Of rounding.


@pytest.mark.parametrize("mode", ["I", "I;16B"])
def test_16_bits_are_scaled_for_a_model_of_fashion_mnist_too(mode: str) -> None:
    [file] = arrays_or_paths(IMAGES[mode])
    assert isinstance(file, bytes)
    np.testing.assert_array_equal(read_image(file, 1, 6, 5)[0], PIXELS[..., 0])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Which Pillow has for some of the damage.
def test_damaged_exif_of_an_image_is_no_obstacle_as_in_its_file() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    good, wrong = exif.tobytes(), 0
    for place in range(len(good)):
        file = encoded(COLOURS.convert("RGB"), "JPEG", exif=good[:place] + b"\7" + good[place + 1 :])
        image = Image.open(io.BytesIO(file))
        try:
            image.getexif().tobytes()
        except Exception:  # Whatever Pillow raises on it.
            wrong += 1
        np.testing.assert_array_equal(pixels_of(image), decoding.read_pixels(file))
    assert wrong

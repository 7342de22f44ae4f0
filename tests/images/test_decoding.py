"""Each kind of image file, and each that is broken; the files are made here."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import photo, save
from PIL import Image

from tuning.images.decoding import (
    BrokenImageError,
    Header,
    Preparation,
    digest_of,
    own_limits,
    prepare,
    read_header,
    read_pixels,
)

COLOUR, GRAY = photo(1, 20, 30), photo(2, 20, 30, 1)


def encoded(pixels: Any, kind: str, **options: Any) -> bytes:
    """Returns an image's bytes in a format."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content: Any) -> Any:
    with own_limits():
        return read_pixels(content)


def header(content: Any) -> Header:
    with own_limits():
        return read_header(content)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("original", [COLOUR, GRAY], ids=["colour", "gray"])
def test_formats_without_loss_give_the_pixels_bit_by_bit(kind: str, original: Any) -> None:
    assert np.array_equal(pixels(encoded(original, kind)), original)
    assert header(encoded(original, kind)) == Header(30, 20, "RGB" if original.ndim == 3 else "L")


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95, "subsampling": 0}), ("WEBP", {"lossless": True})]
)
def test_jpeg_and_webp_are_read(kind: str, options: dict[str, Any]) -> None:
    smooth = np.repeat(np.repeat(photo(3, 3, 4), 8, axis=0), 8, axis=1)
    assert abs(pixels(encoded(smooth, kind, **options)).astype(int) - smooth).mean() < 8


def test_the_first_frame_of_a_gif_is_read() -> None:
    frames = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (10, 200)]
    found = pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.array_equal(found, np.full((4, 6), 10))


def test_the_content_decides_and_not_the_extension(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", COLOUR, format="PNG")
    assert np.array_equal(pixels(path), COLOUR)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "turned"), [(3, np.rot90(GRAY, 2)), (6, np.rot90(GRAY, -1)), (8, np.rot90(GRAY))]
)
def test_the_turn_that_exif_asks_for_is_done(kind: str, orientation: int, turned: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(GRAY, kind, exif=exif)
    found = pixels(content)
    assert found.shape == turned.shape == (header(content).height, header(content).width)
    if kind != "JPEG":
        assert np.array_equal(found, turned)
    # The same image without EXIF is another one, unless it is turned by hand.
    assert digest_of(pixels(encoded(turned, "PNG"))) == digest_of(np.ascontiguousarray(turned))


def test_damaged_exif_turns_nothing() -> None:
    content = encoded(COLOUR, "PNG", exif=b"Exif\0\0MM\0*garbage and nothing else")
    assert np.array_equal(pixels(content), COLOUR)
    assert header(content).width == 30


# EXIF that is damaged, by the error that Pillow raises on it.
DAMAGED_EXIF = {
    "struct.error": b"Exif\0\0MM\0*\0\0\0\x08\0\x04\x01\n\0\x02\0\0\0\x06\0\0\0\0"
    b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x1a\0\x05\0\0",
    "AttributeError": b"Exif\0\0MM\0*\0\0\0\x08\0\x04\x01\x0f\0\n\0\0\0\x06\0\0\0\x04\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    b"\x01\x1a\0\x05\0\0\0\x01\0\0\0D\x032\0\x02\0\0\0\x0b\0\0\0L\0\0\0\0Maker\0\0\0",
}


@pytest.mark.parametrize("exif", DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
def test_however_exif_is_damaged_the_image_is_read(exif: bytes) -> None:
    content = encoded(COLOUR, "JPEG", exif=exif)
    assert pixels(content).shape[:2] == (header(content).height, header(content).width)


def test_palettes_and_what_is_transparent_over_white() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode=None).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert pixels(encoded(palette, "PNG")).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert pixels(encoded(palette, "PNG", transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    # Half a red over white is a light one; black that is not there at all is white.
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 128], [0, 0, 0, 0]]], np.uint8)
    found = pixels(encoded(rgba, "PNG"))
    assert found[0, 0].tolist() == [255, 0, 0] and found[0, 2].tolist() == [255, 255, 255]
    assert abs(found[0, 1].astype(int) - [255, 127, 127]).max() <= 1
    la = Image.fromarray(np.array([[[40, 255], [0, 0]]], np.uint8))
    assert la.mode == "LA" and pixels(encoded(la, "PNG")).tolist() == [[40, 255]]
    gray_with_a_hole = encoded(Image.fromarray(np.array([[7, 9]], np.uint8)), "PNG", transparency=9)
    assert pixels(gray_with_a_hole).tolist() == [[7, 255]]


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.fromarray(np.full((8, 8, 3), (200, 40, 90), np.uint8)).convert("CMYK")
    for kind in ("TIFF", "JPEG"):
        content = encoded(cmyk, kind)
        assert header(content).mode == "CMYK"
        assert abs(pixels(content).astype(int) - (200, 40, 90)).max() < 12


def test_one_bit_becomes_black_and_white() -> None:
    bits = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    assert pixels(encoded(bits, "PNG")).tolist() == [[0, 255, 0]]
    assert header(encoded(bits, "TIFF")).is_gray


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_kept_until_the_depth_is_known(kind: str) -> None:
    deep = np.array([[0, 2048, 4095]], np.uint16)
    content = encoded(deep, kind)
    assert header(content).greatest == 4095 and header(content).is_gray
    assert np.array_equal(pixels(content), deep)
    assert prepare(pixels(content), Preparation(1, 3, 1, "crop", 12)).tolist() == [[[0, 128, 255]]]
    assert prepare(pixels(content), Preparation(1, 3, 1, "crop", 16)).tolist() == [[[0, 8, 16]]]


def test_pixels_that_are_no_numbers_of_16_bits_are_broken() -> None:
    with pytest.raises(BrokenImageError, match=r"^its pixels are floating-point numbers$"):
        pixels(encoded(np.zeros((2, 2), np.float32), "TIFF"))
    with pytest.raises(BrokenImageError, match=r"^its pixels are -5 to 0, and must be 0 to 65,535$"):
        pixels(encoded(np.array([[-5, 0]], np.int32), "TIFF"))


def test_three_equal_channels_are_gray_and_one_other_pixel_is_colour() -> None:
    three = np.repeat(photo(4, 40, 40, 1)[..., None], 3, axis=2)
    assert np.array_equal(pixels(encoded(three, "PNG")), three[..., 0])
    three[33, 7, 1] ^= 1
    assert np.array_equal(pixels(encoded(three, "PNG")), three)


def png(width: int, height: int) -> bytes:
    """Returns the beginning of a PNG of some size, which has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in (chunk, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>404 Not Found</html>", "it is no JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM"),
        (png(60_000, 60_000), "60,000 x 60,000 pixels are more than 100 million"),
        (encoded(photo(5, 60, 80), "JPEG")[:-900], "truncated"),
        (encoded(photo(5, 60, 80), "PNG")[:-900], "truncated|broken"),
        (encoded(photo(5, 60, 80), "WEBP")[:-900], "."),
        (encoded(photo(5, 60, 80), "GIF")[:400], "."),
    ],
    ids=["empty", "text", "huge", "jpeg", "png", "webp", "gif"],
)
def test_what_is_no_whole_image_says_why(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(content)
    for form in (content, tmp_path / "photo.png"):
        with pytest.raises(BrokenImageError, match=reason):
            pixels(form)


def test_an_image_of_a_hundred_million_pixels_is_no_bomb_to_pillow_and_its_limit_comes_back() -> None:
    before = Image.MAX_IMAGE_PIXELS
    assert before is not None
    assert header(png(9_500, 10_000)).width == 9_500  # Pillow would warn, which is an error here.
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_file_that_is_not_there_or_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenImageError, match=r"^no such file$"):
        pixels(tmp_path / "gone.png")
    path = save(tmp_path / "a.png", COLOUR)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("PIL.Image.open", refuse)
    with pytest.raises(BrokenImageError, match=r"^Permission denied$"):
        pixels(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16])
def test_arrays_of_bytes_are_like_files_whatever_their_type(dtype: Any) -> None:
    for original in (COLOUR, GRAY, GRAY[..., None]):
        found = pixels(original.astype(dtype))
        assert np.array_equal(found, original.squeeze())
        assert digest_of(found) == digest_of(pixels(encoded(original.squeeze(), "PNG")))


def test_arrays_with_transparency_are_laid_over_white() -> None:
    rgba = np.dstack([COLOUR, np.zeros((20, 30), np.uint8)])
    assert (pixels(rgba) == 255).all()
    with pytest.raises(BrokenImageError, match=r"transparency and more than 8 bits"):
        pixels(rgba.astype(np.uint16))


def test_digests_see_shape_and_pixels_and_nothing_else() -> None:
    assert digest_of(GRAY) != digest_of(GRAY.reshape(30, 20))
    assert digest_of(GRAY) == digest_of(np.asfortranarray(GRAY)) == digest_of(GRAY.astype(np.uint16))
    assert digest_of(GRAY) != digest_of(GRAY ^ 1)
    assert len(digest_of(GRAY)) == 32


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_stored_size_is_not_touched(channels: int) -> None:
    for original in (COLOUR, GRAY):
        found = prepare(original, Preparation(20, 30, 3, "crop"))
        assert np.array_equal(found.transpose(1, 2, 0), np.broadcast_to(np.atleast_3d(original), (20, 30, 3)))
    assert np.array_equal(prepare(GRAY, Preparation(20, 30, 1, "pad")), GRAY[None])
    luminance = prepare(COLOUR, Preparation(20, 30, 1, "pad"))[0]
    assert np.abs(luminance - COLOUR @ [0.299, 0.587, 0.114]).max() <= 1


def wide() -> Any:
    """Returns an image 40 x 80: a white square in the middle, a black one left and a gray one right of it."""
    image = np.zeros((40, 80), np.uint8)
    image[:, 20:60], image[:, 60:] = 255, 128
    return image


def test_a_crop_takes_the_centre() -> None:
    found = prepare(wide(), Preparation(10, 10, 1, "crop"))[0]
    assert (found[:, 1:-1] == 255).all() and (found > 220).all()  # The filter sees a little of what is beside it.


def test_a_pad_keeps_all_and_is_black_around_it() -> None:
    found = prepare(wide(), Preparation(16, 16, 1, "pad"))[0]
    assert found.shape == (16, 16)
    assert not found[:4].any() and not found[12:].any()
    assert found[8].tolist()[:2] == [0, 0] and found[8, 7:9].tolist() == [255, 255] and found[8, 14] == 128


def test_a_stretch_keeps_all_in_another_shape() -> None:
    found = prepare(wide(), Preparation(16, 16, 1, "stretch"))[0]
    assert found[0].tolist()[:2] == [0, 0] and found[0, 8] == 255 and found[15, 15] == 128


def test_resizing_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    found = prepare(stripes, Preparation(8, 8, 1, "stretch"))
    assert np.abs(found.astype(int) - 128).max() <= 2


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (3, 5), (31, 17)])
def test_every_shape_can_be_brought_to_the_stored_one(resize: Any, shape: tuple[int, int]) -> None:
    for channels in (1, 3):
        assert prepare(photo(0, *shape, channels), Preparation(24, 20, 3, resize)).shape == (3, 24, 20)

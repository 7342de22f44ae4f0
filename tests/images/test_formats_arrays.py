"""`.npz` and IDX files: names, axes, kinds of numbers, and files that are damaged."""

import gzip
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import Array, photo, reading

from tuning.base.errors import UserError

IMAGES = np.stack([photo(i, 9, 8, 1) for i in range(10)])
COLOUR = np.stack([photo(i, 9, 8) for i in range(10)])
LABELS = np.arange(10) % 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))


def npz(tmp_path: Path, **arrays: Any) -> Path:
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


@pytest.mark.parametrize(
    "names",
    ["x y", "images labels", "X Y", "data target", "images label"],
)
def test_arrays_without_a_split_may_have_many_names(names: str, tmp_path: Path) -> None:
    x, y = names.split()
    found, _ = reading(npz(tmp_path, **{x: IMAGES, y: LABELS}))
    assert np.array_equal(found.images[:, 0], IMAGES) and np.array_equal(found.labels, LABELS)
    assert set(found.splits) == {""} and found.names[7] == f"{x}[7]"


def test_all_splits_of_medmnist_are_read(tmp_path: Path) -> None:
    arrays = {
        f"{s}_{k}": v for s in ("train", "val", "test") for k, v in (("images", COLOUR), ("labels", LABELS[:, None]))
    }
    found, _ = reading(npz(tmp_path, **arrays))
    assert found.splits.tolist() == ["train"] * 10 + ["valid"] * 10 + ["test"] * 10
    assert np.array_equal(found.images[10:20], COLOUR.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
        (IMAGES[..., None], IMAGES[:, None]),
        (IMAGES[:, None], IMAGES[:, None]),
        (IMAGES.astype(np.int64), IMAGES[:, None]),
        (IMAGES.astype(np.float32).astype(">i4"), IMAGES[:, None]),
        (np.repeat(IMAGES[..., None], 3, axis=3), IMAGES[:, None]),
        (np.concatenate([COLOUR, np.full((10, 9, 8, 1), 255, np.uint8)], axis=3), COLOUR.transpose(0, 3, 1, 2)),
        (IMAGES.astype(np.uint16) * 257, IMAGES[:, None]),
    ],
    ids=["NHWC", "NCHW", "NHW1", "N1HW", "int64", "big-endian", "three equal", "RGBA", "16 bits"],
)
def test_axes_and_kinds_of_numbers(images: Array, expected: Array, tmp_path: Path) -> None:
    found, _ = reading(npz(tmp_path, x=images, y=LABELS))
    assert np.array_equal(found.images, expected)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.eye(3)[LABELS], ("0", "1", "2")),
        (np.array(["b", "a", "c"])[LABELS], ("a", "b", "c")),
        (np.array([b"b", b"a", b"c"])[LABELS], ("a", "b", "c")),
        (LABELS.astype(float), ("0", "1", "2")),
        (LABELS[:, None], ("0", "1", "2")),
    ],
    ids=["one-hot", "texts", "bytes", "floats", "column"],
)
def test_kinds_of_labels(labels: Array, names: tuple[str, ...], tmp_path: Path) -> None:
    found, _ = reading(npz(tmp_path, x=IMAGES, y=labels))
    assert found.class_names == names and np.bincount(found.labels).tolist() in ([4, 3, 3], [3, 4, 3])


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"a": IMAGES, "b": LABELS}, "must have arrays called x_train and y_train, .* or x and y, but has a, b."),
        ({"x": IMAGES[:9], "y": LABELS}, "Array x of .* has 9 images, but 10 labels. Save one label for each image."),
        ({"x": np.zeros((10, 0, 8), np.uint8), "y": LABELS}, "of a pixel at least, but has 10 x 0 x 8"),
        ({"x": IMAGES, "y": np.array([b"\x81", b"a"] * 5)}, "Array y of .* must be text in UTF-8, .* Save it as texts"),
        (
            {"x": IMAGES / 255, "y": LABELS},
            "Array x of .* must hold whole numbers .*, but has float64. Scale and round",
        ),
        ({"x": IMAGES.reshape(10, 72), "y": LABELS}, "the shape images x height x width, .* but has 10 x 72"),
        ({"x": np.zeros((10, 2, 9, 8), np.uint8), "y": LABELS}, "the shape images x height x width, .* 10 x 2 x 9 x 8"),
        ({"x": IMAGES, "y": np.ones((10, 14), int)}, "must have one label an image, but has rows of 14 numbers"),
        ({"x": IMAGES, "y": np.ones((10, 2, 2), int)}, "must have one label an image, but has the shape 10 x 2 x 2"),
        ({"x": np.asfortranarray(IMAGES), "y": LABELS}, "in Fortran order. Save numpy.ascontiguousarray"),
        ({"x": IMAGES, "y": np.array([None] * 10)}, "Array y of .* must be one of numbers or texts, .*astype\\(str\\)"),
        (
            {"x": np.array([IMAGES[0], None], object), "y": LABELS[:2]},
            "Array x of .* must hold whole numbers|have the shape",
        ),
        ({"x": -IMAGES.astype(int) - 1, "y": LABELS}, "10 of the 10 images .* must be 0 to 65,535"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(arrays: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"(?s){match}"):
        reading(npz(tmp_path, **arrays))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_wherever_an_npz_is_damaged_it_is_said(tmp_path: Path, save: Callable[..., None]) -> None:
    path, said = tmp_path / "set.npz", 0
    save(path, x=IMAGES, y=LABELS)
    whole = path.read_bytes()
    for byte in (0, 7, 255):
        for place in range(0, len(whole) - 40, 31):
            path.write_bytes(whole[:place] + bytes([byte]) * 40 + whole[place + 40 :])
            try:
                reading(path)
            except UserError as error:
                said += str(path) in str(error)
    assert said > 3 * len(whole) / 31 * 0.9


def test_a_damaged_npz_is_said(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", x=IMAGES, y=LABELS)
    content = (tmp_path / "set.npz").read_bytes()
    (tmp_path / "set.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"set.npz must be a readable .npz file, but got: File is not a zip file"):
        reading(tmp_path / "set.npz")
    (tmp_path / "set.npz").write_bytes(content[:300] + bytes(80) + content[380:])
    with pytest.raises(UserError, match=r"Array x of .*set.npz is damaged: "):
        reading(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        ("x", "(10,-4,4)", r"Array x of .* must hold images of a pixel at least, but has 10 x -4 x 4"),
        ("x", "(-9,9,8)", r"Array x of .* must hold images of a pixel at least, but has -9 x 9 x 8"),
        ("x", "(10,09,8)", r"Array x of .* must be one of numbers, but got: "),
        ("y", "(10**13,)", r"Array y of .* must be one of numbers or texts, but got: "),
        ("y", f"({10**13},)", r"Array y of .* must be one of numbers or texts, but got: Unable to allocate 72"),
        ("y", f"({10**30},)", r"Array y of .* must be one of numbers or texts, but got: Python int too large"),
    ],
)
def test_a_damaged_header_of_an_array_is_said(key: str, shape: str, match: str, tmp_path: Path) -> None:
    path = npz(tmp_path, x=IMAGES, y=LABELS)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    start, head, end = re.split(rb"(?<='shape': )(\(.*?\)), }( +)", contents[f"{key}.npy"])[:3]
    contents[f"{key}.npy"] = start + shape.encode() + b", }" + b" " * (len(head + end) - len(shape)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=match):
        reading(path)


def test_a_checksum_is_compared_behind_whatever_follows_the_last_image(tmp_path: Path) -> None:
    path = idx(tmp_path / "set" / "train-images-idx3-ubyte", np.concatenate([IMAGES, IMAGES]), size=10)
    idx(tmp_path / "set" / "train-labels-idx1-ubyte", LABELS.astype(np.uint8))
    packed = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    packed[200] ^= 1
    path.write_bytes(packed)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is damaged: CRC check failed"):
        reading(tmp_path / "set")


def idx(path: Path, array: Array, kind: int = 8, *, size: int | None = None, zipped: bool = False) -> Path:
    shape = (size if size is not None else len(array), *array.shape[1:])
    header = bytes([0, 0, kind, array.ndim]) + b"".join(each.to_bytes(4, "big") for each in shape)
    content = header + array.tobytes()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
        ("emnist-digits-train-images-idx3-ubyte.gz", "emnist-digits-train-labels-idx1-ubyte"),
        ("images-idx3-ubyte", "labels-idx1-ubyte"),
        ("images.idx", "labels.idx"),
    ],
)
def test_idx_files_may_be_called_in_other_ways(images: str, labels: str, tmp_path: Path) -> None:
    idx(tmp_path / "set" / images, IMAGES, zipped=images.endswith(".gz"))
    idx(tmp_path / "set" / labels, LABELS.astype(np.uint8))
    for path in (tmp_path / "set", tmp_path / "set" / images):
        found, _ = reading(path)
        assert np.array_equal(found.images[:, 0], IMAGES) and set(found.splits) == {""}


def test_idx_files_of_colour_of_16_bits_and_of_whole_labels(tmp_path: Path) -> None:
    idx(tmp_path / "set" / "train-images-idx4-ubyte", COLOUR)
    idx(tmp_path / "set" / "train-labels-idx1-int", LABELS.astype(">i4"), 12)
    found, _ = reading(tmp_path / "set")
    assert np.array_equal(found.images, COLOUR.transpose(0, 3, 1, 2)) and np.array_equal(found.labels, LABELS)
    idx(tmp_path / "deep" / "images-idx3-short", (IMAGES.astype(int) * 4).astype(">i2"), 11)
    idx(tmp_path / "deep" / "labels-idx1-ubyte", LABELS.astype(np.uint8))
    assert reading(tmp_path / "deep")[0].facts.preparation.bits == 10


def test_one_of_several_idx_sets_is_chosen_by_its_file(tmp_path: Path) -> None:
    for i, name in enumerate(("digits", "letters")):
        for split in ("train", "test"):
            idx(tmp_path / "set" / f"{name}-{split}-images-idx3-ubyte", IMAGES + i)
            idx(tmp_path / "set" / f"{name}-{split}-labels-idx1-ubyte", LABELS.astype(np.uint8))
    with pytest.raises(
        UserError, match=r"set has several sets of IDX files. Choose one: --dataset .*digits.* or .*letters"
    ):
        reading(tmp_path / "set")
    found, _ = reading(tmp_path / "set" / "letters-train-images-idx3-ubyte")
    assert np.array_equal(found.images[:10, 0], IMAGES + 1)
    assert found.splits.tolist() == ["train"] * 10 + ["test"] * 10


def test_idx_files_that_lack_something_are_named(tmp_path: Path) -> None:
    path = idx(tmp_path / "set" / "train-images-idx3-ubyte", IMAGES, size=12)
    with pytest.raises(UserError, match=r"needs its labels in a file called train-labels-idx1-ubyte beside it"):
        reading(tmp_path / "set")
    labels = idx(tmp_path / "set" / "train-labels-idx1-ubyte", LABELS.astype(np.uint8), size=12)
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte must hold 12 bytes after its header, but has 10"):
        reading(tmp_path / "set")
    idx(labels, np.tile(LABELS, 2)[:12].astype(np.uint8))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte must hold 12 images, but ends in number 10"):
        reading(tmp_path / "set")
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:8] + b"\xff\xff\xff\xff" + whole[12:])
    with pytest.raises(UserError, match=r"must hold images of at most 1 GB, but has 12 x 4294967295 x 8: its"):
        reading(tmp_path / "set")
    idx(path, IMAGES)
    idx(labels, LABELS.astype(np.uint8))
    packed = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))  # Damage shows in the checksum alone.
    packed[200] ^= 1
    path.write_bytes(packed)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is damaged: CRC check failed"):
        reading(tmp_path / "set")
    path.write_bytes(gzip.compress(idx(path, IMAGES).read_bytes())[:-200])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is damaged: Compressed file ended"):
        reading(tmp_path / "set")


@pytest.mark.parametrize("gone", [np.nan, ""])
def test_images_without_a_label_are_passed_over(gone: Any, tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, gone] if gone == "" else [0.0, 1.0, 2.0, gone])[np.arange(10) % 4]
    found, said = reading(npz(tmp_path, x=IMAGES, y=labels))
    assert found.class_names == ("0", "1", "2") and found.names.tolist() == [f"x[{i}]" for i in range(10) if i % 4 < 3]
    assert np.array_equal(found.images[3:6, 0], IMAGES[4:7])
    assert "Passed over: rows without a label (2)." in said


def test_an_idx_file_of_images_must_be_called_so(tmp_path: Path) -> None:
    path = idx(tmp_path / "digits.idx3", IMAGES)
    with pytest.raises(UserError, match=r'digits.idx3 must have "images" in its name, .* with "labels"\. Rename both'):
        reading(path)


def test_images_without_labels_are_said(tmp_path: Path) -> None:
    path = npz(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES, images=IMAGES)
    found, said = reading(path)
    assert found.splits.tolist() == ["train"] * 10
    assert said[0] == (
        f"Not read of {path}: x_test, images. An array of images needs its labels, as x_test needs y_test."
    )


def test_arrays_that_name_no_split_are_those_to_train_on(tmp_path: Path) -> None:
    found, _ = reading(npz(tmp_path, x=IMAGES, y=LABELS, x_test=IMAGES + 1, y_test=LABELS))
    assert found.splits.tolist() == ["train"] * 10 + ["test"] * 10
    assert np.array_equal(found.images[:10, 0], IMAGES)


def test_labels_of_bytes_may_be_in_another_encoding(tmp_path: Path) -> None:
    for encoding, n in (("utf-8", 0), ("cp1252", 1)):
        names = [name.encode(encoding) for name in ("caf\u00e9", "bar")]
        found, said = reading(npz(tmp_path, x=IMAGES, y=np.array(names * 5)))
        assert found.class_names == ("bar", "caf\u00e9")
        assert sum("is no UTF-8 and is read as cp1252. If labels look wrong" in line for line in said) == n


@pytest.mark.parametrize("key", ["x", "y"])
@pytest.mark.parametrize(("field", "value", "match"), [(6, 1, "encrypted"), (8, 93, "compression method")])
def test_an_archive_that_python_cannot_unpack_is_said(
    key: str, field: int, value: int, match: str, tmp_path: Path
) -> None:
    path = npz(tmp_path, x=IMAGES, y=LABELS)
    content = bytearray(path.read_bytes())
    for mark, ahead in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):  # The header of the file, and that in the directory.
        at = content.find(mark)
        while content[at + (30 if not ahead else 46) :][:5] != f"{key}.npy".encode():
            at = content.find(mark, at + 1)
        content[at + field + ahead] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^Array {key} of .*set.npz cannot be read: .*{match}.*\. Save it with numpy"):
        reading(path)


def test_idx_files_of_images_without_pixels_are_refused(tmp_path: Path) -> None:
    path = idx(tmp_path / "set" / "train-images-idx3-ubyte", np.zeros((10, 0, 8), np.uint8))
    path.write_bytes(path.read_bytes() + bytes(24))
    idx(tmp_path / "set" / "train-labels-idx1-ubyte", LABELS.astype(np.uint8))
    with pytest.raises(UserError, match=r"must hold images of a pixel at least, but has 10 x 0 x 8"):
        reading(tmp_path / "set")

"""`read` as a whole: all formats give the same arrays, order, sizes, what is left out, and the two real sets."""

import gzip
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photos import Array, class_folders, photo, reading, same, save
from PIL import Image

from tuning.base.errors import UserError
from tuning.images.datasets import load_own, with_size
from tuning.images.formats.known import FORMATS
from tuning.images.reading import Pictures
from tuning.images.source import Source
from tuning.images.storing import Decoding

SETS = Path(__file__).parents[3] / "shared" / "imagesets"  # Beside the checkout, where they are given.
with_sets = pytest.mark.skipif(not SETS.exists(), reason="the real sets are not beside this checkout")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


IMAGES = {split: np.stack([photo(i + n, 28, 28, 1) for i in range(n)]) for split, n in (("train", 120), ("test", 30))}
LABELS = {split: np.random.default_rng(0).integers(0, 11, len(images)) for split, images in IMAGES.items()}
Write = Callable[[Path], Path]


def as_idx(folder: Path, *, zipped: bool = False) -> Path:
    for split, word in (("train", "train"), ("test", "t10k")):
        for kind, array in (("images-idx3", IMAGES[split]), ("labels-idx1", LABELS[split])):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            content = header + array.astype(np.uint8).tobytes()
            folder.mkdir(exist_ok=True)
            path = folder / f"{word}-{kind}-ubyte{'.gz' * zipped}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


def as_folders(folder: Path) -> Path:
    for split, images in IMAGES.items():
        for i, (image, label) in enumerate(zip(images, LABELS[split], strict=True)):
            save(folder / split / str(label) / f"{i}.png", image)
    return folder


def as_table(folder: Path) -> Path:
    lines = ["image,label,split"]
    for split, images in IMAGES.items():
        for i, (image, label) in enumerate(zip(images, LABELS[split], strict=True)):
            save(folder / "images" / f"{split}-{i}.png", image)
            lines.append(f"{split}-{i},{label},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder / "labels.csv"


def as_parquet(folder: Path) -> Path:
    folder.mkdir()
    for split, images in IMAGES.items():
        cells = [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(images)]
        table = pa.table({"image": cells, "label": pa.array(LABELS[split], pa.int64())})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=50)
    return folder


def as_npz(folder: Path, names: str = "x_{0} y_{0}", axis: int | None = None, **options: Any) -> Path:
    folder.mkdir()
    arrays = {}
    for split, images in IMAGES.items():
        x, y = names.format(split).split()
        arrays[x] = images if axis is None else np.expand_dims(images, axis)
        arrays[y] = LABELS[split]
    write = np.savez_compressed if options.get("compressed") else np.savez
    write(folder / "set.npz", **arrays)
    return folder / "set.npz"


def png(image: Array) -> bytes:
    import io

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


WAYS: dict[str, Write] = {
    "IDX": as_idx,
    "IDX, gzipped": lambda folder: as_idx(folder, zipped=True),
    "an IDX file": lambda folder: as_idx(folder) / "train-images-idx3-ubyte",
    "folders": as_folders,
    "table": as_table,
    "Parquet": as_parquet,
    "npz": as_npz,
    "npz, compressed, as MedMNIST": lambda folder: as_npz(folder, "{0}_images {0}_labels", compressed=True),
    "npz, channels last": lambda folder: as_npz(folder, axis=3),
    "npz, channels first": lambda folder: as_npz(folder, axis=1),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_format_gives_the_same_arrays_bit_by_bit(way: str, tmp_path: Path) -> None:
    found, _ = reading(WAYS[way](tmp_path / "set"))
    assert np.array_equal(found.images, np.concatenate([IMAGES["train"], IMAGES["test"]])[:, None])
    assert np.array_equal(found.labels, np.concatenate([LABELS["train"], LABELS["test"]]))
    assert found.class_names == tuple(map(str, range(11)))  # And not "1", "10", "2".
    assert found.splits.tolist() == ["train"] * 120 + ["test"] * 30
    assert len(set(found.digests)) == 150 and found.digests.dtype == "S32"
    assert found.facts.image_size == (28, 28) and found.facts.n_resized == 0
    idx, _ = reading(as_idx(tmp_path / "other"))
    assert same(found, idx)


def test_every_format_has_a_test_of_that() -> None:
    assert set(FORMATS) == {re.split(r",| file", way.removeprefix("an "))[0] for way in WAYS}


def test_the_page_names_every_format() -> None:
    page = Path(__file__).parents[2] / "tuning" / "images" / "README.md"
    assert FORMATS.table() in page.read_text(encoding="utf-8")


def test_the_images_are_a_read_only_file_in_the_cache(tmp_path: Path, cache: Path) -> None:
    found, lines = reading(class_folders(tmp_path / "set"))
    assert isinstance(found.images, np.memmap) and not found.images.flags.writeable
    assert found.facts.cache.parent == cache and found.facts.cache.stat().st_size == found.images.nbytes
    assert lines == ["Images are stored as they are: all have 5 x 6 pixels."]
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".u8"]


def test_a_bar_is_shown_in_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = class_folders(tmp_path / "set")
    reading(root)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # What rich takes for a terminal.
    reading(root, image_size=9)
    shown = capsys.readouterr()
    assert "Reading images" in shown.err and "6/6" in shown.err and shown.out == ""


def test_names_are_paths_or_rows(tmp_path: Path) -> None:
    assert reading(as_folders(tmp_path / "a"))[0].names[0] == f"train/{LABELS['train'][0]}/0.png"
    assert reading(as_table(tmp_path / "b"))[0].names[0] == "images/train-0.png"
    assert reading(as_parquet(tmp_path / "c"))[0].names[121] == "row 121"
    assert reading(as_npz(tmp_path / "d"))[0].names[121] == "x_test[1]"


def test_the_order_does_not_depend_on_the_file_system_the_times_or_the_place(tmp_path: Path, cache: Path) -> None:
    one, _ = reading(class_folders(tmp_path / "one", n=12))
    files = sorted((tmp_path / "one").rglob("*.png"), reverse=True)
    for i, file in enumerate(files):
        target = tmp_path / "elsewhere" / "set" / file.relative_to(tmp_path / "one")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        os.utime(target, (i, i))
    other, _ = reading(tmp_path / "elsewhere" / "set")
    assert same(one, other) and one.names.tolist() == other.names.tolist()
    assert one.names[:4].tolist() == ["cat/0.png", "dog/1.png", "cat/2.png", "dog/3.png"]
    assert one.names[-1] == "dog/23.png"
    assert one.facts.cache == other.facts.cache and len(list(cache.glob("*.u8"))) == 1


def test_one_size_above_96_pixels_or_several_sizes_become_squares(tmp_path: Path) -> None:
    kept, _ = reading(class_folders(tmp_path / "a", height=40, width=96))
    assert kept.facts.image_size == (40, 96)
    large, lines = reading(class_folders(tmp_path / "b", height=100, width=97))
    assert large.images.shape == (6, 3, 97, 97) and large.facts.n_resized == 6
    assert lines[-1] == (
        "Images are stored at 97 x 97 pixels (crop): the median of their short sides is 97. --image-size chooses "
        "another size."
    )
    save(tmp_path / "a" / "cat" / "x.png", photo(9, 30, 30))
    mixed, _ = reading(tmp_path / "a")
    assert mixed.images.shape == (7, 3, 40, 40)


def test_the_device_limits_the_default_size_and_an_option_does_not_follow_it(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "a", n=2, height=300, width=400)
    on_cpu, lines = reading(root)
    assert on_cpu.facts.image_size == (128, 128) and "128 is the default's most on this device" in lines[-1]
    on_gpu, _ = reading(root, device="cuda:0")
    assert on_gpu.facts.image_size == (224, 224)
    chosen, lines = reading(root, image_size=32, resize="pad")
    assert chosen.images.shape == (4, 3, 32, 32) and chosen.facts.resize == "pad"
    assert not chosen.images[:, :, 0].any()
    assert lines == ["Images are stored at 32 x 32 pixels (pad), as --image-size asks."]
    assert chosen.digests.tolist() == on_gpu.digests.tolist() == on_cpu.digests.tolist()


def test_one_channel_where_all_images_are_gray_and_three_where_one_is_not(tmp_path: Path) -> None:
    gray = photo(1, 6, 5, 1)
    save(tmp_path / "set" / "a" / "0.png", gray)
    save(tmp_path / "set" / "b" / "1.png", np.repeat(gray[..., None] ^ 255, 3, axis=2))  # RGB, and gray all the same.
    palette = Image.fromarray(gray // 2).convert("P")
    palette.save(tmp_path / "set" / "b" / "2.png")
    found, _ = reading(tmp_path / "set")
    assert found.images.shape == (3, 1, 6, 5)
    assert [each.tolist() for each in found.images[:, 0]] == [
        gray.tolist(),
        (gray ^ 255).tolist(),
        (gray // 2).tolist(),
    ]
    assert found.facts.modes == {"L": 1, "RGB": 1, "P": 1}
    save(tmp_path / "set" / "a" / "3.png", photo(3))
    coloured, _ = reading(tmp_path / "set")
    assert coloured.images.shape == (4, 3, 6, 5)
    assert np.array_equal(coloured.images[:3], np.repeat(found.images, 3, axis=1))
    assert coloured.digests[:3].tolist() == found.digests.tolist()


def test_16_bit_images_are_scaled_by_the_depth_of_their_set(tmp_path: Path) -> None:
    for i, greatest in enumerate((4000, 200, 900, 15)):
        image = np.full((4, 4), greatest, np.uint16)
        save(tmp_path / "set" / "ab"[i % 2] / f"{i}.png", image)
    save(tmp_path / "set" / "a" / "4.png", np.full((4, 4), 77, np.uint8))
    found, lines = reading(tmp_path / "set")
    expected = [round(value * 255 / 4095) for value in (4000, 200, 900, 15)]
    assert found.images[:, 0, 0, 0].tolist() == [*expected, 77]
    assert found.facts.preparation.bits == 12
    assert "Images of more than 8 bits are scaled from 12 bits: their greatest value is 4,000." in lines[-1]


@pytest.mark.parametrize("greatest", [1023, 1024, 16383, 16384, 65535, 255])
def test_the_depth_is_the_smallest_that_covers_the_greatest_value(greatest: int, tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "set" / "ab"[i % 2] / f"{i}.png", np.full((4, 4), greatest - i, np.uint16))
    found, _ = reading(tmp_path / "set")
    depths = {255: 8, 1023: 10, 1024: 12, 16383: 14, 16384: 16, 65535: 16}
    assert found.facts.preparation.bits == depths[greatest]


def broken_folder(root: Path, n: int = 12) -> Path:
    class_folders(root, n=8)
    for i in range(n):
        (root / "cat" / f"broken-{i}.jpg").write_bytes(b"not an image")
    return root


def test_broken_images_are_named_with_their_reasons(tmp_path: Path) -> None:
    root = broken_folder(tmp_path / "set")
    whole = (root / "dog" / "1.png").read_bytes()
    (root / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "link.png").symlink_to("nowhere.png")
    with pytest.raises(UserError) as caught:
        reading(root)
    text = str(caught.value)
    assert text.startswith(f"14 of the 29 images of {root} cannot be read:\n  dog/1.png: ")
    assert "\n  cat/broken-0.jpg: it is no JPEG, PNG" in text and "\n  and 4 more\n" in text
    assert text.endswith("Replace or remove them, or leave them out with --skip-broken.")


def test_broken_images_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    root = broken_folder(tmp_path / "set", n=2)
    whole, _ = reading(class_folders(tmp_path / "whole", n=8))
    for _ in range(2):  # The second time from the cache.
        found, lines = reading(root, skip_broken=True)
        assert same(found, whole)
        assert [name for name, _ in found.facts.left_out] == ["cat/broken-0.jpg", "cat/broken-1.jpg"]
        assert any(line.startswith("2 of the 18 images of ") and "are left out:" in line for line in lines)
        with pytest.raises(UserError, match=r"^2 of the 18 images"):
            reading(root)


def test_a_picture_of_60_000_by_60_000_is_not_decoded(tmp_path: Path) -> None:
    from test_decoding import png as beginning

    root = class_folders(tmp_path / "set")
    (root / "cat" / "huge.png").write_bytes(beginning(60_000, 60_000))
    with pytest.raises(UserError, match=r"cat/huge.png: 60,000 x 60,000 pixels are more than 100 million"):
        reading(root)


def test_nothing_but_broken_images_is_an_error_even_where_they_are_skipped(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / f"{name}.png").write_bytes(b"nothing")
        (tmp_path / "set" / name / f"{name}2.png").write_bytes(b"nothing")
    for skip in (False, True):
        with pytest.raises(UserError, match=r"(?s)^4 of the 4 images of .*/set cannot be read:.*\nReplace them\.$"):
            reading(tmp_path / "set", skip_broken=skip)


@pytest.mark.parametrize("others", [("cat",), ("cat", "bird")])
def test_a_class_whose_images_are_all_broken_is_named(others: tuple[str, ...], tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", classes=others)
    (root / "dog").mkdir()
    (root / "dog" / "a.png").write_bytes(b"nothing")
    for _ in range(2):  # The second time from the cache.
        with pytest.raises(
            UserError, match=r"^No image of class 'dog' can be read\. Mend some, or .* --labels-leave-out dog\.$"
        ):
            reading(root, skip_broken=True)


def test_what_changes_while_it_is_read_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "set")
    file, other, write = root / "cat" / "0.png", (root / "dog" / "1.png").read_bytes(), Decoding.write
    before, content = reading(class_folders(tmp_path / "whole"))[0], file.read_bytes()

    def replaced(self: Decoding, key: str, began: float) -> None:
        file.write_bytes(other)
        write(self, key, began)

    def absent(self: Decoding, key: str, began: float) -> None:
        file.rename(tmp_path / "away.png")
        try:
            object.__setattr__(self, "check", lambda broken, check=self.check: (back(), check(broken)))
            write(self, key, began)
        finally:
            back()

    def back() -> None:
        if not file.exists():
            (tmp_path / "away.png").rename(file)

    for changed, options in ((replaced, {}), (absent, {}), (absent, {"skip_broken": True})):
        shutil.rmtree(tmp_path / "cache")
        with monkeypatch.context() as patched:
            patched.setattr(Decoding, "write", changed)
            with pytest.raises(UserError, match=r"cat/0\.png changed while it was read\. Run the command again"):
                reading(root, **options)
        file.write_bytes(content)
        assert same(reading(root, **options)[0], before)


def test_hidden_files_and_what_is_no_image_are_passed_over_and_counted(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    before, _ = reading(root)
    for name in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", "dog/._1.png"):
        (root / name).write_bytes(b"\xff\xd8\xff junk")
    for folder in (".ipynb_checkpoints", "__MACOSX", "cat/.ipynb_checkpoints"):
        (root / folder).mkdir()
        save(root / folder / "0.png", photo(77))
    for name in ("README.txt", "labels.csv", "cat/notes.md"):
        (root / name).write_text("BM is how a BMP begins, and this text, too\n")
    after, lines = reading(root)
    assert same(before, after)
    assert after.facts.passed_over == {"hidden files and folders": 8, "files that are no images": 3}
    assert "Passed over: hidden files and folders (8), files that are no images (3)." in lines


def test_groups_that_a_table_with_gaps_has_as_floats_are_whole_numbers(tmp_path: Path) -> None:
    """As pandas writes a column of numbers in which some are missing."""
    root = class_folders(tmp_path / "set", n=4)
    rows = [f"cat/{2 * k}.png,cat,{k // 2}" for k in range(4)] + [f"dog/{2 * k + 1}.png,dog,{k}.0" for k in range(4)]
    (tmp_path / "set" / "t.csv").write_text("\n".join(["image,label,patient", *rows]) + "\n")
    found, lines = reading(root / "t.csv", group_column="patient")
    assert found.groups.tolist() == ["0", "0", "1", "1", "0", "1", "2", "3"]
    assert "The groups are whole numbers: 0.0 is read as 0." in lines


def test_groups_come_from_the_path(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(6):
        save(root / "ab"[i % 2] / f"patient{i // 2}_{i}.png", photo(i))
    whole, _ = reading(root, group_pattern=r"patient\d+")
    assert whole.groups.tolist() == ["patient0", "patient0", "patient1", "patient1", "patient2", "patient2"]
    part, _ = reading(root, group_pattern=r"patient(\d+)")
    assert part.groups.tolist() == ["0", "0", "1", "1", "2", "2"]
    assert reading(root)[0].groups.tolist() == [""] * 6
    save(root / "a" / "other.png", photo(9))
    _, lines = reading(root, group_pattern=r"patient(\d+)")
    assert any(
        "is not in the path of 1 image, e.g. 'a/other.png': each is a group of its own" in line for line in lines
    )
    with pytest.raises(UserError, match=r"^--group-pattern 'person' is in no image's path, e.g. not in 'a/other.png'"):
        reading(root, group_pattern="person")


@pytest.mark.parametrize("option", ["image_column", "label_column", "split_column", "group_column"])
def test_a_column_of_what_has_none_is_refused(option: str, tmp_path: Path) -> None:
    typed = f"--{option.replace('_', '-')}"
    with pytest.raises(UserError, match=rf"^{typed} kind needs a table, but .*set.npz has no columns"):
        reading(as_npz(tmp_path / "set"), **{option: "kind"})
    with pytest.raises(
        UserError, match=rf"^{typed} kind needs a table, but .* has 0 tables. Pass the table as --dataset"
    ):
        reading(class_folders(tmp_path / "b"), **{option: "kind"})


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gone", "^--dataset .*gone cannot be read: No such file or directory. Check the path.$"),
        ("set.zip", "^--dataset must be a folder of class folders, a table .* but got .*set.zip. Unpack it, and pass"),
        ("set.bin", "^--dataset must be .* but got .*set.bin.$"),
        ("loop", "^--dataset .*loop cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_path_of_no_format_is_refused(name: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")
    (tmp_path / "set.bin").write_bytes(b"??")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=match):
        reading(tmp_path / name)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


def read_real(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Pictures, list[str]]:
    monkeypatch.setenv("TUNING_CACHE", str(cache))
    return reading(SETS / name, **options)


@with_sets
@pytest.mark.slow
def test_signdigits_is_read_with_its_three_large_turned_photos(
    real_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, lines = read_real("signdigits", real_cache, monkeypatch)
    assert found.images.shape == (2062, 3, 100, 100) and found.class_names == tuple("0123456789")
    assert found.facts.sizes == {"100 x 100": 2059, "3024 x 3024": 3} and found.facts.n_resized == 3
    counts = np.bincount(found.labels)
    assert counts.min() == 204 and counts.max() == 208 and not found.facts.passed_over
    assert len(lines) == 1 and set(found.splits) == {""}
    path = next(path for path in (SETS / "signdigits").rglob("*.JPG") if path.stat().st_size > 500_000)
    index = found.names.tolist().index(path.relative_to(SETS / "signdigits").as_posix())
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.ROTATE_270).resize((100, 100), Image.Resampling.BOX)
    difference = np.abs(np.asarray(turned).transpose(2, 0, 1).astype(int) - found.images[index])
    assert difference.mean() < 5


@with_sets
@pytest.mark.slow
def test_clothing_is_read_by_its_label_and_not_by_kids(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^5 of 1,310 rows of .* have no file: .*, .*, .*, \.\.\.\. .* 'Skip' \(5\)"):
        read_real("clothing", real_cache, monkeypatch)
    junk = ("Not sure", "Skip", "Other")
    found, lines = read_real(
        "clothing/images.csv", real_cache, monkeypatch, labels_leave_out=junk, group_column="sender_id", image_size=32
    )
    assert found.images.shape == (1234, 3, 32, 32) and len(found.class_names) == 17
    assert np.bincount(found.labels).max() == 252 and len(set(found.groups)) > 200
    assert found.facts.passed_over == {"images without a row": 94}
    assert "Left out by label: 76 images." in lines and len(found.facts.left_out) == 76


def test_the_size_that_the_default_found_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's record has it, and `final` asks for it."""
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    class_folders(tmp_path / "data", n=4, height=40, width=40)
    first, _ = reading(tmp_path / "data")
    monkeypatch.setattr(Decoding, "planned", None)
    again, _ = reading(tmp_path / "data", image_size=40, resize=first.facts.resize)
    assert same(first, again)


def test_a_gpus_default_size_is_its_own(tmp_path: Path) -> None:
    source = Source(str(class_folders(tmp_path, n=4, height=300, width=260)))
    assert with_size(source, "cuda").image_size == 224 and with_size(source, "cpu") is source


def test_images_whose_cache_was_removed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    sent = pickle.dumps(load_own(Source(str(class_folders(tmp_path / "data", n=20)))).rest)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"removed from the cache while they were in use. Run the command again"):
        pickle.loads(sent)

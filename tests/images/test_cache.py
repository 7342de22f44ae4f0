"""The cache of decoded images: whole or not at all, never a damaged one, and quick from the second time on."""

import errno
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photos import class_folders, photo, reading, same, save

from tuning.base import files
from tuning.base.errors import UserError
from tuning.images import cache as entries
from tuning.images import decoding


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The images that were decoded since the test began."""
    seen: list[Any] = []
    read_pixels = decoding.read_pixels

    def counting(content: Any) -> Any:
        seen.append(content)
        return read_pixels(content)

    monkeypatch.setattr("tuning.images.storing.read_pixels", counting)
    return seen


def test_images_are_decoded_once_whatever_their_labels_and_place(tmp_path: Path, decoded: list[Any]) -> None:
    root = class_folders(tmp_path / "set")
    one, _ = reading(root)
    assert len(decoded) == 6
    again, lines = reading(root)
    root.rename(tmp_path / "other")
    (tmp_path / "other" / "cat").rename(tmp_path / "other" / "bird")
    moved, _ = reading(tmp_path / "other")
    assert len(decoded) == 6 and same(one, again) and moved.class_names == ("bird", "dog")
    assert np.array_equal(moved.images, one.images) and len(lines) == 1
    reading(tmp_path / "other", image_size=16)
    assert len(decoded) == 12


def test_a_changed_image_of_the_same_size_and_times_is_seen(tmp_path: Path, decoded: list[Any]) -> None:
    root = class_folders(tmp_path / "set")
    path = save(root / "cat" / "0.bmp", photo(50))
    before, _ = reading(root)
    status = path.stat()
    save(path, photo(51))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after, _ = reading(root)
    assert path.stat().st_size == status.st_size and len(decoded) == 14
    assert (before.digests != after.digests).sum() == 1


def test_the_index_spares_reading_files_that_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    root = class_folders(tmp_path / "set")
    paths = sorted(root.rglob("*.png"))
    first = entries.content_digests(paths, root)
    assert not list(cache.glob("index-*"))  # They are younger than two seconds.
    monkeypatch.setattr(entries, "SETTLED_NS", -(10**12))
    assert entries.content_digests(paths, root) == first
    [index] = cache.glob("index-*")
    monkeypatch.setattr("hashlib.file_digest", lambda *args: pytest.fail("read again"))
    assert entries.content_digests(paths, root) == first
    index.write_text("{damaged")
    with pytest.raises(pytest.fail.Exception, match=r"read again"):
        entries.content_digests(paths, root)


def test_an_index_does_not_hide_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "SETTLED_NS", -(10**12))
    root = class_folders(tmp_path / "set")
    path = save(root / "cat" / "0.bmp", photo(50))
    before = entries.content_digests([path], root)
    status = path.stat()
    save(path, photo(51))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # But not the time of the change of the inode.
    assert entries.content_digests([path], root) != before


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", ["pixel", "last pixel", "cut", "longer", "record", "cut record", "gone", "no record"]
)
def test_a_damaged_entry_is_said_and_read_anew(damage: str, tmp_path: Path, decoded: list[Any], cache: Path) -> None:
    root = class_folders(tmp_path / "set")
    before, _ = reading(root)
    expected, path = before.images.copy(), before.facts.cache
    record = path.with_suffix(".json")
    match damage:
        case "pixel" | "last pixel":
            flip(path, 0 if damage == "pixel" else -1)
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "longer":
            path.write_bytes(path.read_bytes() + b"0")
        case "record":
            record.write_text(record.read_text().replace('"bits": 8', '"bits": 9'))
        case "cut record":
            record.write_text(record.read_text()[:-20])
        case "gone":
            path.unlink()
        case "no record":
            record.unlink()
    after, lines = reading(root)
    assert np.array_equal(after.images, expected) and len(decoded) == 12
    said = [line for line in lines if line.startswith(f"The cached images {path} are damaged (")]
    assert len(said) == (0 if damage == "no record" else 1)
    assert same(reading(root)[0], after) and len(decoded) == 12


def test_damage_in_any_block_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "BLOCK_BYTES", 100)
    root = class_folders(tmp_path / "set")
    before, _ = reading(root)
    record = json.loads(before.facts.cache.with_suffix(".json").read_text())
    assert len(record["checksums"]) == 6 and before.images.nbytes == 540
    for at in range(50, 540, 100):
        flip(before.facts.cache, at)
        assert reading(root)[1][0].endswith("are damaged (its pixels have changed): they are read anew.")


def test_of_a_very_large_entry_some_blocks_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "BLOCK_BYTES", 100)
    root = class_folders(tmp_path / "set")
    before, _ = reading(root)
    monkeypatch.setattr(entries, "MOST_CHECKED", 200)
    checked: list[int] = []
    crc32 = entries.zlib.crc32
    monkeypatch.setattr(entries.zlib, "crc32", lambda block: checked.append(len(block)) or crc32(block))
    reading(root)
    assert sorted(checked)[:2] == [40, 100] and len(checked) == 3  # First and last block, and the record.
    assert before.images.nbytes == 540


@pytest.mark.parametrize("where", ["write", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_nothing_behind(
    where: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    root = class_folders(tmp_path / "set")

    def full(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(files, where, full)
        with pytest.raises(UserError, match=r"^No space left on the disk while writing .* to the cache .*TUNING_CACHE"):
            reading(root)
        assert list(cache.iterdir()) == []
    assert len(reading(root)[0]) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_really_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "set")
    monkeypatch.setattr(files, "create", lambda path, buffering: io.FileIO("/dev/full", "w"))
    with pytest.raises(UserError, match=r"^No space left on the disk while writing decoded images"):
        reading(root)


def test_a_cache_that_cannot_be_written_to_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"^Not a directory while writing decoded images .* set TUNING_CACHE to a folder"
    ):
        reading(class_folders(tmp_path / "set"))


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entries.Writer, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reading(class_folders(tmp_path / "set"))
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    for name, age in ((".a.1.part", 90_000), (".b.2.part", 3_600)):
        (cache / name).write_bytes(b"?")
        then = (cache / name).stat().st_mtime - age
        os.utime(cache / name, (then, then))
    reading(class_folders(tmp_path / "set"))
    assert [path.name for path in cache.glob(".*")] == [".b.2.part"]


def test_two_processes_may_read_at_once(tmp_path: Path, cache: Path) -> None:
    root = class_folders(tmp_path / "set", n=40, height=50, width=50)
    program = (
        "import sys\nfrom tuning.images.reading import read\nfrom tuning.images.source import Source\n"
        "print(read(Source(sys.argv[1])).images.sum())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    sums = {process.communicate(timeout=600)[0] for process in processes}
    found, _ = reading(root)
    assert sums == {f"{found.images.sum()}\n"}
    # An entry, and its other name for whoever asks for this size.
    assert len(list(cache.glob("*.u8"))) == len(list(cache.glob("[!i]*.json"))) == 2 and not list(cache.glob(".*"))


def test_threads_of_one_process_may_read_at_once(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", n=40)
    with ThreadPoolExecutor(4) as pool:
        found = [each for each, _ in pool.map(lambda _: reading(root), range(4))]
    assert all(same(found[0], each) for each in found)


def test_in_threads_keeps_the_order_takes_few_at_a_time_and_hands_errors_on() -> None:
    taken: list[int] = []

    def items() -> Any:
        for i in range(5000):
            taken.append(i)
            yield i

    results = entries.in_threads(lambda i: i * 2, items(), at_once=4)
    assert [next(results) for _ in range(10)] == list(range(0, 20, 2))
    assert len(taken) < 1000
    assert list(results) == list(range(20, 10000, 2))
    with pytest.raises(ZeroDivisionError):
        list(entries.in_threads(lambda i: 1 // (i - 50), range(100)))


def test_images_are_written_as_they_come_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "BLOCK_BYTES", 1000)
    written: list[int] = []
    write = files.write
    monkeypatch.setattr(files, "write", lambda file, content: written.append(len(content)) or write(file, content))
    found, _ = reading(class_folders(tmp_path / "set", n=50))
    assert found.images.nbytes == 9000
    assert written[:9] == [1000] * 9 and max(written) <= 100_000


def test_gray_images_in_three_channels_take_the_space_of_one(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "set" / "ab"[i % 2] / f"{i}.png", np.repeat(photo(i, channels=1)[..., None], 3, axis=2))
    found, _ = reading(tmp_path / "set")
    assert found.images.shape == (4, 1, 6, 5) and found.facts.cache.stat().st_size == 120
    assert np.array_equal(found.images[3, 0], photo(3, channels=1))
    assert same(found, reading(tmp_path / "set")[0])


def test_a_drive_that_fails_once_ends_the_command_and_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, opened, n = class_folders(tmp_path / "set"), decoding.Image.open, iter(range(99))

    def fails_once(file: Any, **options: Any) -> Any:
        if next(n) == 8:  # While decoding: six headers are read before.
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(file))
        return opened(file, **options)

    monkeypatch.setattr(decoding.Image, "open", fails_once)
    with pytest.raises(UserError, match=r"png cannot be read now: Too many open files. Run the command again"):
        reading(root, skip_broken=True)
    assert len(reading(root)[0]) == 6


def test_colour_images_that_are_all_cut_are_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(4):
        path = save(root / "ab"[i % 2] / f"{i}.jpg", photo(i, 60, 60))
        path.write_bytes(path.read_bytes()[:-600])
    match = rf"(?s)^4 of the 4 images of {root} cannot be read:.*0.jpg: image file is truncated.*\nReplace them\.$"
    for skip in (False, True):
        with pytest.raises(UserError, match=match):
            reading(root, skip_broken=skip)
    pq.write_table(
        pa.table({"image": [path.read_bytes() for path in root.glob("*/*.jpg")], "label": list("abab")}),
        tmp_path / "set.parquet",
    )
    with pytest.raises(UserError, match=rf"^4 of the 4 images of {root}\.parquet cannot be read:"):
        reading(tmp_path / "set.parquet", skip_broken=True)


def test_a_cache_of_another_user_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    exists, root = Path.exists, class_folders(tmp_path / "set")

    def refuse(path: Path) -> Any:
        if cache in path.parents:
            raise PermissionError(13, "Permission denied", str(path))  # The tests may run as root.
        return exists(path)

    def denied(*args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(files, "create", denied)
    with pytest.raises(UserError, match=r"^Permission denied while writing decoded images .* set TUNING_CACHE"):
        reading(root)


def test_what_another_user_left_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ".a.part").write_bytes(b"?")
    os.utime(cache / ".a.part", (1, 1))
    unlink = Path.unlink

    def refuse(path: Path, **options: Any) -> None:
        if path.suffix == ".part":
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert len(reading(class_folders(tmp_path / "set"))[0]) == 6

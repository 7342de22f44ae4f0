"""Parquet with images inside, as Hugging Face's `datasets` writes it; its layout is made here by hand."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photos import photo, reading, save
from PIL import Image

from tuning.base.errors import UserError
from tuning.images.reading import read
from tuning.images.source import Source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(number)).save(file, "PNG")
    return file.getvalue()


def rows(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": png(i), "path": f"{i}.png"} for i in range(first, first + n)]


def write(path: Path, table: dict[str, Any], names: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table(table)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, path, row_group_size=3)
    return path


def test_class_names_come_from_the_metadata_and_a_label_of_minus_1_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "set.parquet", {"image": rows(6), "label": [1, 0, -1, 1, 0, 2]}, ["dog", "cat", "ant"])
    found, lines = reading(path)
    assert found.class_names == ("ant", "cat", "dog") and found.labels.tolist() == [1, 2, 1, 2, 0]
    assert found.names.tolist() == ["row 0", "row 1", "row 3", "row 4", "row 5"]
    assert np.array_equal(found.images[2].transpose(1, 2, 0), photo(3))
    assert "Passed over: rows without a label (1)." in lines


def test_a_folder_of_shards_has_its_splits_in_their_names(tmp_path: Path) -> None:
    for place in ("hub/data", "plain"):
        write(tmp_path / place / "test-00000-of-00001.parquet", {"image": rows(3, 20), "label": [0, 1, 0]})
        write(tmp_path / place / "train-00010-of-00011.parquet", {"image": rows(3, 10), "label": [0, 1, 0]})
        write(tmp_path / place / "train-00002-of-00011.parquet", {"image": rows(3), "label": [0, 1, 0]})
    (tmp_path / "hub" / "README.md").write_text("?")
    (tmp_path / "hub" / ".gitattributes").write_text("?")
    for path in (tmp_path / "hub", tmp_path / "plain"):
        found, _ = reading(path)
        assert found.splits.tolist() == ["train"] * 6 + ["test"] * 3
        assert [
            np.array_equal(found.images[i].transpose(1, 2, 0), photo(k)) for i, k in ((0, 0), (3, 10), (8, 22))
        ] == [True] * 3
    alone, _ = reading(tmp_path / "plain" / "train-00002-of-00011.parquet")
    assert set(alone.splits) == {""} and len(alone) == 3


def test_bytes_alone_and_columns_with_splits_and_groups(tmp_path: Path) -> None:
    table = {
        "img": [png(i) for i in range(4)],
        "label": ["a", "b", "a", "b"],
        "split": ["train", "train", "test", "test"],
        "patient": [7, 8, 9, 9],
    }
    found, lines = reading(write(tmp_path / "set.parquet", table))
    assert found.splits.tolist() == ["train", "train", "test", "test"] and "--group-column patient" in lines[0]
    found, _ = reading(tmp_path / "set.parquet", group_column="patient")
    assert found.groups.tolist() == ["7", "8", "9", "9"]


def test_a_row_may_name_its_file_instead(tmp_path: Path) -> None:
    save(tmp_path / "0.png", photo(50))
    cells = [{"bytes": None, "path": "0.png"}, *rows(3, 1)]
    found, _ = reading(write(tmp_path / "set.parquet", {"image": cells, "label": [0, 1, 0, 1]}))
    assert np.array_equal(found.images[0].transpose(1, 2, 0), photo(50))


def test_broken_cells_are_named_by_their_row(tmp_path: Path) -> None:
    cells = [*rows(3), {"bytes": b"nothing", "path": None}, {"bytes": b"", "path": None}]
    with pytest.raises(UserError, match=r"(?s)^2 of the 5 images .*\n  row 3: it is no JPEG.*\n  row 4: it is empty"):
        reading(write(tmp_path / "set.parquet", {"image": cells, "label": [0, 1, 0, 1, 0]}))


@pytest.mark.parametrize(
    ("kind", "path", "reason"),
    [
        (pa.string(), "a\0.png", "ValueError: embedded null .*"),
        (pa.int64(), 7, "no such file"),
        (pa.string(), None, "it is empty"),
        (pa.string(), "", "it is empty"),
        (pa.string(), ".", "Is a directory"),
    ],
)
def test_a_path_that_leads_nowhere_is_named_by_its_row(kind: Any, path: Any, reason: str, tmp_path: Path) -> None:
    cells = [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}, {"bytes": None, "path": path}]
    images = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", kind)]))
    parquet = write(tmp_path / "set.parquet", {"image": images, "label": ["a", "b", "a"]})
    with pytest.raises(UserError, match=rf"^1 of the 3 images of .* cannot be read:\n  row 2: {reason}\n"):
        reading(parquet)
    assert len(reading(parquet, skip_broken=True)[0]) == 2


def test_an_image_column_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "set.parquet", {"image": rows(4), "label": [0, 1, 0, 1]})
    with pytest.raises(
        UserError, match=r"--image-column must be one of image, label, but got 'imge'. Did you mean 'im"
    ):
        reading(path, image_column="imge")


@pytest.mark.parametrize(("cell", "what"), [(["a"], "lists"), ({"a": 1}, "structs"), ([["a"]], "lists")])
def test_nested_columns_are_said_not_to_be_read(cell: Any, what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "set.parquet", {"image": rows(4), "label": [cell] * 4})
    said = rf"Column 'label' of .*parquet holds {what} and is not read\. Write one text, number or image in each row\.$"
    for option in ("label_column", "group_column", "split_column", "image_column"):
        with pytest.raises(UserError, match=said):
            reading(path, **{option: "label"})
    lines: list[str] = []
    with pytest.raises(UserError, match="must have a column with the labels"):
        read(Source(str(path)), note=lines.append)
    assert lines == [
        f"Columns of lists or structs in {path} are not read: label. Write one text, number or image in each row."
    ]


def test_the_column_is_chosen_where_there_are_two(tmp_path: Path) -> None:
    table = {"image": rows(4), "a mask": rows(4, 4), "label": [0, 1, 0, 1]}
    path = write(tmp_path / "set.parquet", table)
    with pytest.raises(
        UserError, match=r"has 2 columns with images. Choose one: --image-column image or --image-column 'a mask'"
    ):
        reading(path)
    masks, _ = reading(path, image_column="a mask")
    images, _ = reading(path, image_column="image")
    assert np.array_equal(masks.images[0].transpose(1, 2, 0), photo(4)) and masks.digests[0] != images.digests[0]


def test_labels_that_are_left_out_leave_the_others_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "set.parquet", {"image": rows(8), "label": list("abcabcab")})
    whole, _ = reading(path)
    part, _ = reading(path, labels_leave_out=("b",))
    assert part.names.tolist() == [f"row {i}" for i in (0, 2, 3, 5, 6)]
    assert part.digests.tolist() == whole.digests[[0, 2, 3, 5, 6]].tolist()
    assert np.array_equal(part.images, whole.images[[0, 2, 3, 5, 6]])


def test_files_that_are_damaged_or_differ_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "set" / "train-0.parquet", {"image": rows(4), "label": [0, 1, 0, 1]})
    other = write(tmp_path / "set" / "test-0.parquet", {"image": rows(4), "kind": [0, 1, 0, 1]})
    with pytest.raises(UserError, match=r"test-0.parquet must have the columns of .*train-0.parquet, but has others"):
        reading(tmp_path / "set")
    other.unlink()
    content = path.read_bytes()
    path.write_bytes(content[:-50])
    with pytest.raises(UserError, match=r"train-0.parquet must be a readable Parquet file, but got: "):
        reading(tmp_path / "set")
    path.write_bytes(content[:40] + bytes(300) + content[340:])
    with pytest.raises(UserError, match=r"train-0.parquet is damaged: |cannot be read"):
        reading(tmp_path / "set")


def test_files_that_rows_name_decide_what_the_cache_has(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", photo(50 + i))
    cells = [{"bytes": None, "path": f"{i}.png"} for i in range(4)]
    path = write(tmp_path / "set.parquet", {"image": cells, "label": [0, 1, 0, 1]})
    assert np.array_equal(reading(path)[0].images[3].transpose(1, 2, 0), photo(53))
    save(tmp_path / "3.png", photo(60))
    assert np.array_equal(reading(path)[0].images[3].transpose(1, 2, 0), photo(60))
    (tmp_path / "3.png").unlink()
    with pytest.raises(UserError, match=r"row 3: no such file"):
        reading(path)
    save(tmp_path / "3.png", photo(61))
    assert np.array_equal(reading(path)[0].images[3].transpose(1, 2, 0), photo(61))


def test_columns_of_other_types_and_of_one_name_are_named(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train-0.parquet", {"image": rows(4), "label": [0, 1, 0, 1]})
    other = write(tmp_path / "set" / "test-0.parquet", {"image": rows(4), "label": list("abab")})
    with pytest.raises(UserError, match=r"^The Parquet files in .*set must have .* the same types, but got: .*label"):
        reading(tmp_path / "set")
    write(other, {"image": [f"{i}.png" for i in range(4)], "label": [0, 1, 0, 1]})
    with pytest.raises(UserError, match=r"test-0.parquet must have the columns of .*train-0.parquet, but has others"):
        reading(tmp_path / "set")
    twice = pa.Table.from_arrays([pa.array(rows(4)), pa.array([0, 1, 0, 1]), pa.array(list("abab"))], ["i", "y", "y"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"must have a name of its own for each column, but has 'y' twice"):
        reading(tmp_path / "twice.parquet")


def test_a_damaged_column_of_labels_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "set.parquet", {"label": list(range(2)) * 500, "image": rows(2) * 500})
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^.*set.parquet is damaged: .* Replace it."):
        reading(path)


@pytest.mark.parametrize("no", [0, False])
def test_a_column_for_each_class_is_a_label_beside_images_inside(no: int, tmp_path: Path) -> None:
    yes = type(no)(1)
    path = write(tmp_path / "set.parquet", {"photo": rows(4), "cat": [yes, no, yes, no], "dog": [no, yes, no, yes]})
    found, said = reading(path)
    assert found.class_names == ("cat", "dog") and found.labels.tolist() == [0, 1, 0, 1]
    assert said[0].startswith("The labels are the names of the columns cat, dog of ")


def test_columns_that_python_cannot_represent_are_left_out_and_said(tmp_path: Path) -> None:
    table = {
        "image": rows(4),
        "label": list("abab"),
        "far": pa.array([10**13] * 4, pa.timestamp("s")),
        "zone": pa.array([0] * 4, pa.timestamp("s", "Foo/Bar")),
        "odd": pa.array([b"\xe9"] * 4, pa.binary()).view(pa.string()),
    }
    path = write(tmp_path / "set.parquet", table)
    found, said = reading(path)
    assert found.class_names == ("a", "b")
    assert [line.split(" is not read: ")[0] for line in said[:3]] == [
        f"Column {name!r} of {path}" for name in ("far", "zone", "odd")
    ]


@pytest.mark.parametrize("metadata", ['{"info": null}', "[]", '{"info": {"features": []}}', "7", "\udcff"])
def test_metadata_of_another_shape_names_no_classes(metadata: str, tmp_path: Path) -> None:
    table = pa.table({"image": rows(4), "label": [0, 1, 0, 1]})
    raw = metadata.encode(errors="surrogateescape")
    pq.write_table(table.replace_schema_metadata({b"huggingface": raw}), tmp_path / "set.parquet")
    assert reading(tmp_path / "set.parquet")[0].class_names == ("0", "1")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), "fixed"])
def test_bytes_of_any_type_are_images_where_they_begin_like_some(kind: Any, tmp_path: Path) -> None:
    images = [png(i) for i in range(4)]
    if kind == "fixed":
        longest = max(map(len, images))
        images, kind = [image.ljust(longest, b"\0") for image in images], pa.binary(longest)
    ids = pa.array([bytes([255, i] * 8) for i in range(4)], pa.binary(16))
    labels = pa.array([b"cat", b"dog", b"cat", b"dog"])
    path = write(tmp_path / "set.parquet", {"photo": pa.array(images, kind), "label": labels, "uuid": ids})
    found, _ = reading(path)
    assert found.class_names == ("cat", "dog") and np.array_equal(found.images[3].transpose(1, 2, 0), photo(3))


def test_bytes_that_are_names_of_files_are_read_as_texts(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", photo(i))
    names = [f"{i}.png".encode() for i in range(4)]
    path = write(tmp_path / "set.parquet", {"image": pa.array(names), "label": pa.array([b"a", b"b"] * 2)})
    assert reading(path)[0].names.tolist() == [f"{i}.png" for i in range(4)]


def test_a_column_of_bytes_that_are_no_image_is_named_by_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "set.parquet", {"image": [b"\xff\xfe"] * 4, "label": list("abab")})
    with pytest.raises(UserError, match=r"4 of the 4 images .*\n  row 0: it is no JPEG"):
        reading(path)


def test_a_single_folder_above_parquet_files_is_stepped_through(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 10)):
        name = f"{split}-00000-of-00001.parquet"
        write(tmp_path / "hub" / "deep" / "plain_text" / name, {"image": rows(4, first), "label": [0, 1, 0, 1]})
    (tmp_path / "hub" / "README.md").write_text("?")
    assert reading(tmp_path / "hub")[0].splits.tolist() == ["train"] * 4 + ["test"] * 4

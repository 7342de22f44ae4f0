"""What `predict` is given: files, folders, and tables that are read as a search reads them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tuning.base.errors import UserError
from tuning.retraining import inputs
from tuning.retraining.inputs import expanded

IMAGE = Image.fromarray(np.zeros((10, 8), np.uint8))


def test_folders_and_tables_stand_for_their_images(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    names = ["2.png", "10.png", ".hidden.png"]
    for name in names:
        IMAGE.save(tmp_path / "some" / name)
    (tmp_path / "some" / "notes.txt").write_text("nothing")
    numbered = [tmp_path / "some" / "2.png", tmp_path / "some" / "10.png"]
    assert expanded([tmp_path / "some"]) == numbered
    (tmp_path / "table.csv").write_text("age,id\n7,10\n8,2\n")
    assert expanded([tmp_path / "table.csv", numbered[0]]) == [numbered[1], numbered[0], numbered[0]]
    (tmp_path / "table.csv").write_text("a,b\nx,2\ny,10\nz,3\n")
    with pytest.raises(UserError, match=r"table.csv has 1 row whose image is not there: 3\. Check --image-column"):
        expanded([tmp_path / "table.csv"], "b")
    with pytest.raises(UserError, match="--image-column must be one of a, b, but got 'c'"):
        expanded([tmp_path / "table.csv"], "c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no image in it"):
        expanded([tmp_path / "empty"])


def test_a_table_is_read_as_a_search_reads_it(tmp_path: Path) -> None:
    files = [tmp_path / "photos" / f"{i}é.png" for i in range(4)]
    files[0].parent.mkdir()
    for file in files:
        IMAGE.save(file)
    names, said = [file.name for file in files], list[str]()
    table = tmp_path / "table.csv"
    for encoding in ("utf-8", "cp1252", "utf-16"):
        for lines in (
            ["image", *names],
            names,
            [f"{name},{i}" for i, name in enumerate(names)],
            [f"{i};x;{name}" for i, name in enumerate(names)],
        ):
            table.write_text("\n".join(lines), encoding=encoding)
            assert expanded([table], note=said.append) == files
    guessed = [line for line in said if line.endswith("If names look wrong, save it as UTF-8.")]
    assert len(guessed) == 4 and f"The images are those that column 'column 3' of {table} names." in said
    pq.write_table(pa.table({"n": [1, None, 3, 4], "file": names}), tmp_path / "table.parquet")
    assert expanded([tmp_path / "table.parquet"]) == files
    table.write_text("")
    with pytest.raises(UserError, match=r"table.csv must be a table of images and labels, but is empty"):
        expanded([table])
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"table.parquet must be a readable Parquet file, but got: "):
        expanded([tmp_path / "table.parquet"])


def test_a_list_of_names_with_blanks_and_commas_is_one_column(tmp_path: Path) -> None:
    for stem in ("{}", "photo {}", "photo, {}"):
        for i in range(3):
            IMAGE.save(tmp_path / f"{stem.format(i)}.png")
    listed = tmp_path / "list.txt"
    for stem in ("photo {}", "photo, {}", f"{tmp_path}/photo {{}}"):
        names = [f"{stem.format(i)}.png" for i in range(3)]
        for lines in (names, ["image", *names]):
            listed.write_text("\n".join(lines))
            assert expanded([listed]) == [tmp_path / name for name in names]
    listed.write_text("photo 0.png\nphoto 7.png\n")
    with pytest.raises(UserError, match=r"list.txt has 1 row whose image is not there: photo 7.png\. Check"):
        expanded([listed])
    listed.write_text("a photo 8.png\na photo 9.png\n")
    with pytest.raises(UserError, match=r"2 rows whose image is not there: a photo 8.png, a photo 9.png\. Check"):
        expanded([listed])
    listed.write_text("cat 0.png\ndog 2.png\n")  # As a search reads it: the label before the image.
    assert expanded([listed], note=str) == [tmp_path / "0.png", tmp_path / "2.png"]


def test_the_column_with_paths_comes_before_one_of_numbers(tmp_path: Path) -> None:
    for i in range(3):
        IMAGE.save(tmp_path / f"{i}.png")
    table = tmp_path / "table.csv"
    table.write_text("n,photo,label\n0,2.png,1\n1,1.png,0\n2,0.png,1\n")
    assert expanded([table], note=str) == [tmp_path / f"{i}.png" for i in (2, 1, 0)]
    table.write_text("id,photo,label\n0,2.png,1\n1,1.png,0\n2,0.png,1\n")
    with pytest.raises(UserError, match=r"2 columns that could name the images\. .* id or --image-column photo"):
        expanded([table])


def test_a_table_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match=r"none\.csv cannot be read \(No such file or directory\)\. Check the path\.$"):
        expanded([Path("none.csv")])


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))  # The tests may run as root.

    monkeypatch.setattr(inputs, "walk", refuse)
    with pytest.raises(UserError, match=r"some cannot be read \(Permission denied\)\. Change its permissions"):
        expanded([tmp_path / "some"])

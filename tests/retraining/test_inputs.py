"""What `predict` is given: files, folders, and tables that are read as a search reads them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tuning.base.errors import UserError
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
    assert len(said) == 4 and said[0].endswith("If names look wrong, save it as UTF-8.")
    pq.write_table(pa.table({"n": [1, None, 3, 4], "file": names}), tmp_path / "table.parquet")
    assert expanded([tmp_path / "table.parquet"]) == files
    table.write_text("")
    with pytest.raises(UserError, match=r"table.csv must be a table of images and labels, but is empty"):
        expanded([table])
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"table.parquet must be a readable Parquet file, but got: "):
        expanded([tmp_path / "table.parquet"])

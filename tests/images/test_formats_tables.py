"""Tables of images and labels: which column is what, which file is meant, and rows that lack something."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photos import Array, photo, reading, save

from tuning.base.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))


def table(tmp_path: Path, text: str, files: Sequence[str] = (), name: str = "labels.csv") -> Path:
    """Returns a table beside some images; four in images/ if none are named."""
    for i, file in enumerate(files or [f"images/{i}.png" for i in range(4)]):
        save(tmp_path / "set" / file, photo(i))
    path = tmp_path / "set" / name
    path.write_text(text, encoding="utf-8")
    return path


ROWS = "0,a\n1,b\n2,a\n3,b\n"


@pytest.mark.parametrize(
    "header",
    [
        *(
            "image,label",
            "path,class",
            "file,category",
            "Filename,Target",
            "file_name,y",
            "filepath,labels",
            "image_path,label",
        ),
        *("id,label", "image_id,class_name", "Image ID,Class-Name", "img,diagnosis", "image,age", "uid,species"),
    ],
)
def test_columns_are_found_by_their_usual_names(header: str, tmp_path: Path) -> None:
    found, _ = reading(table(tmp_path, f"{header}\n{ROWS}"))
    assert found.names.tolist() == [f"images/{i}.png" for i in range(4)]
    assert found.class_names == ("a", "b") and found.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.tsv", "image\tlabel\n0\ta\n1\tb\n2\ta\n3\tb\n"),
        ("labels.csv", "image;label\r\n0;a\r\n1;b\r\n2;a\r\n3;b\r\n"),
        ("labels.csv", "image , label\n0 , a\n1 ,b\n2, a\n\n3,b\n\n"),
        ("labels.txt", "image   label\n0  a\n1 b\n2 a\n3     b\n"),
        ("labels.csv", '\ufeff"image","label"\n"0","a"\n"1","b"\n"2","a"\n"3","b"\n'),
        ("labels.csv", ",image,label\n0,0,a\n1,1,b\n2,2,a\n3,3,b\n"),  # As pandas writes its index.
        ("labels.csv", "0.png,a\n1.png,b\n2.png,a\n3.png,b\n"),
        ("labels.csv", "a,0\nb,1\na,2\nb,3\n"),
        ("labels.txt", "0.png a\n1.png b\n2.png a\n3.png b\n"),
        ("labels.csv", "image|label\n0|a\n1|b\n2|a\n3|b\n"),
        ("labels.csv", "label,image\na,images/0.png\nb,./images/1.png\na,images\\2.png\nb,images/3\n"),
    ],
)
def test_delimiters_blanks_quotes_and_no_header(name: str, text: str, tmp_path: Path) -> None:
    found, _ = reading(table(tmp_path, text, name=name))
    assert found.names.tolist() == [f"images/{i}.png" for i in range(4)]
    assert found.class_names == ("a", "b") and found.labels.tolist() == [0, 1, 0, 1]


def test_other_encodings_are_read(tmp_path: Path) -> None:
    path = table(tmp_path, "")
    for encoding in ("utf-8", "utf-16", "cp1252"):
        path.write_text("image,label\n0,Käfer\n1,b\n2,Käfer\n3,b\n", encoding=encoding)
        assert reading(path)[0].class_names == ("Käfer", "b")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "labels.csv must be a table of images and labels, but is empty"),
        ("sep=;\n\n", "labels.csv must be a table of images and labels, but is empty"),
        ("image,label\n", "labels.csv has a header and no rows"),
        ("image\n0\n1\n", "at least two columns .* its first line is 'image'"),
        (
            "0.png,a,x\n1.png,b,y\n2.png,a,z\n",
            "labels.csv has no header. Write the names of its 3 columns as its first",
        ),
        ("image,label\n0,a\n1,b,c\n2,a\n3,b\n" + "3,b\n" * 9, "must have 2 columns in every row, but row 3 has 3"),
        ("image,label,label\n0,a,b\n1,b,b\n", "a name of its own for each column, but has 'label' twice"),
        (
            "when,what\n8,a\n9,b\n",
            "a column that names the images, .* but its columns are when, what. .*--image-column",
        ),
        (
            "image,age,kids,x\n0,a,1,1\n1,b,1,2\n",
            "a column with the labels, .* are image, age, kids, x. .*--label-column",
        ),
        (
            "image,label,class name,y\n0,a,1,1\n1,b,1,2\n",
            "3 columns that could be the label. Choose one: --label-column label or --label-column 'class name' or --l",
        ),
        ("image,fine_label,coarse_label\n0,a,1\n1,b,1\n", "--label-column fine_label or --label-column coarse_label"),
    ],
)
def test_what_is_no_table_of_labels_is_said(text: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        reading(table(tmp_path, text))


def test_a_column_for_each_class_with_one_1_in_a_row_is_a_label(tmp_path: Path) -> None:
    path = table(tmp_path, "image,MEL,NV,flag\n0,1.0,0.0,0\n1,0.0,1.0,0\n2,1,0,0\n3,0,1,0\n")
    found, lines = reading(path)
    assert found.class_names == ("MEL", "NV") and found.labels.tolist() == [0, 1, 0, 1]
    assert any(line.startswith("The labels are the names of the columns MEL, NV of") for line in lines)


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("1", ""), ("TRUE", "FALSE")])
def test_a_column_for_each_class_may_be_written_in_other_ways(yes: str, no: str, tmp_path: Path) -> None:
    found, _ = reading(table(tmp_path, f"image,cat,dog\n0,{yes},{no}\n1,{no},{yes}\n2,{yes},{no}\n3,{no},{yes}\n"))
    assert found.class_names == ("cat", "dog") and found.labels.tolist() == [0, 1, 0, 1]


def test_a_column_that_is_called_like_the_label_comes_before_indicators(tmp_path: Path) -> None:
    found, _ = reading(table(tmp_path, "image,label,healthy\n0,1,0\n1,0,1\n2,1,0\n3,0,1\n"))
    assert found.class_names == ("0", "1") and found.labels.tolist() == [1, 0, 1, 0]
    found, _ = reading(table(tmp_path, "image,x,y,z\n0,1,0,0\n1,0,1,0\n2,1,0,0\n3,0,0,1\n"))
    assert found.class_names == ("x", "y", "z")


@pytest.mark.parametrize("first", ["1,1", "0,0"])
def test_images_of_two_classes_or_none_are_no_label(first: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a column with the labels, .* are image, a, b\. .*--label-column"):
        reading(table(tmp_path, f"image,a,b\n0,{first}\n1,0,1\n2,1,0\n3,0,1\n"))


@pytest.mark.parametrize("header", ["image,dx,male,female", "image,finding,is_train,is_test", "image,note,a,b"])
def test_indicators_beside_what_may_be_the_label_are_none(header: str, tmp_path: Path) -> None:
    rows = "0,x,1,0\n1,y,0,1\n2,x,1,0\n3,y,0,1\n"
    with pytest.raises(UserError, match=r"a column with the labels, .*--label-column"):
        reading(table(tmp_path, f"{header}\n{rows}"))
    found, _ = reading(table(tmp_path, "image,fold,a,b\n0,0,1,0\n1,1,0,1\n2,0,1,0\n3,1,0,1\n"))
    assert found.class_names == ("a", "b")


def test_a_table_of_pixels_is_refused_in_few_words(tmp_path: Path) -> None:
    names = ",".join(f"pixel{i}" for i in range(784))
    with pytest.raises(UserError, match=r"its columns are label, pixel0, .*, pixel18 and 765 more. Choose one"):
        reading(table(tmp_path, f"label,{names}\n{'1,' * 784}1\n{'0,' * 784}1\n"))
    with pytest.raises(UserError, match=r"csv: line 2 has a cell of more than 131,072 characters. Write short texts"):
        reading(table(tmp_path, f"image,label\n{'x' * 200_000},a\n"))


def captioned(tmp_path: Path, captions: dict[int, str], n: int = 30) -> Path:
    """Returns a table of n images in lines 2 to n + 1, some of which have a caption of their own."""
    rows = [f"{i % 4}.png,{captions.get(i, 'c')},{'ab'[i % 2]}\n" for i in range(n)]
    return table(tmp_path, "\n\nimage,caption,label\n" + "".join(rows), [f"{i}.png" for i in range(4)])


@pytest.mark.parametrize(
    ("captions", "n"),
    [
        ({15: '"5 inch'}, 30),  # Open to the end of the file.
        ({15: '"5 inch', 20: 'of "wood"'}, 30),
        ({15: '"5 inch', 20: '"6 inch'}, 30),
        ({15: '"5 inch', 20: 'of 6"'}, 30),
        ({15: '"5 inch', 16: 'of 6"'}, 30),
        ({15: '"5 inch'}, 3000),  # A cell that is too long before the file ends.
        ({15: '"5 inch', 16: 'two\nlines"'}, 16),
    ],
)
def test_a_stray_quote_swallows_no_rows(captions: dict[int, str], n: int, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r'^/.*labels\.csv: line 19 has a cell that begins with a quote \("\) and .*inch'
    ):
        reading(captioned(tmp_path, captions, n))


def test_a_stray_quote_in_line_2_hides_no_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"csv: line 4 has a cell that begins with a quote"):
        reading(captioned(tmp_path, {0: '"5 inch'}, 100))


def test_quotes_in_their_places_are_read(tmp_path: Path) -> None:
    captions = {
        1: '5" screen',
        2: '"two\nlines, ""quoted"""',
        3: '"a" ',
        5: '"Big" dog',
        49: '"over\nline 50"',
        59: '5"',
    }
    found, _ = reading(captioned(tmp_path, captions, 60))
    assert len(found) == 60


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    path = table(tmp_path, "label,photo,kind,part,by\nq,0,a,train,x\nr,1,b,train,y\ns,2,a,val,x\nt,3,b,test,y\n")
    found, lines = reading(path, image_column="photo", label_column="kind", split_column="part", group_column="by")
    assert found.class_names == ("a", "b") and found.groups.tolist() == ["x", "y", "x", "y"]
    assert found.splits.tolist() == ["train", "train", "valid", "test"] and len(lines) == 1
    with pytest.raises(
        UserError, match=r"^--label-column must be one of by, kind, .*, but got 'kinds'. Did you mean 'kind'"
    ):
        reading(path, image_column="photo", label_column="kinds")
    with pytest.raises(
        UserError, match=r"^Column 'by' must say train, valid or test in every row, but has 'x' in 2 rows"
    ):
        reading(path, image_column="photo", label_column="kind", split_column="by")


def test_a_split_is_taken_where_its_column_says_nothing_else(tmp_path: Path) -> None:
    for name in ("split", "Set", "subset", "fold"):
        text = f"image,label,{name}\n0,a,train\n1,b,Train\n2,a,validation\n3,b,test\n"
        assert reading(table(tmp_path, text))[0].splits.tolist() == ["train", "train", "valid", "test"]
    found, lines = reading(table(tmp_path, "image,label,set\n0,a,left\n1,b,left\n2,a,right\n3,b,right\n"))
    assert set(found.splits) == {""}
    assert "Column 'set' is not taken for the split: it has 'left', beside or instead of train and test." in lines
    found, lines = reading(table(tmp_path, "image,label,fold\n0,a,1\n1,b,2\n2,a,1\n3,b,2\n"))
    assert set(found.splits) == {""} and len(lines) == 1
    with pytest.raises(
        UserError, match=r"Column 'split' must say train, valid or test in every row, but has '' in 1 row"
    ):
        reading(table(tmp_path, "image,label,split\n0,a,train\n1,b,train\n2,a,\n3,b,test\n"))


def test_a_likely_group_is_not_taken_and_its_option_is_said(tmp_path: Path) -> None:
    path = table(tmp_path, "image,patient_id,label\n0,p,a\n1,q,b\n2,p,a\n3,q,b\n")
    found, lines = reading(path)
    assert set(found.groups) == {""}
    assert lines[0].startswith("Column 'patient_id' of ") and "(2 values). --group-column patient_id keeps" in lines[0]
    found, lines = reading(path, group_column="patient_id")
    assert found.groups.tolist() == ["p", "q", "p", "q"] and len(lines) == 1


def test_ids_are_found_beside_the_table_then_in_images_then_anywhere(tmp_path: Path) -> None:
    files = ["0.png", "images/0.png", "deep/er/0.png", "images/1.jpg", "thumbs/1.jpg", "deep/er/2.PNG", "x/a.b.png"]
    found, _ = reading(table(tmp_path, "id,label\n0,a\n1,b\n2,a\na.b,b\n", files))
    assert found.names.tolist() == ["0.png", "images/1.jpg", "deep/er/2.PNG", "x/a.b.png"]
    assert found.facts.passed_over == {"images without a row": 3}


def test_names_that_differ_in_case_are_found_where_none_fits_better(tmp_path: Path) -> None:
    files = ["images/A.JPG", "images/b.png", "images/B.PNG", "c.png"]
    found, _ = reading(table(tmp_path, "id,label\na.jpg,x\nb,y\nB,x\nC,y\n", files))
    assert found.names.tolist() == ["images/A.JPG", "images/b.png", "images/B.PNG", "c.png"]


def test_labels_that_happen_to_be_called_like_files_are_no_images(tmp_path: Path) -> None:
    files = ["a/0.png", "b/0.png", "u.png", "v.png", "w.png"]
    found, _ = reading(table(tmp_path, "photo,what\nu,0\nv,1\nw,0\n", files), image_column="photo")
    assert found.names.tolist() == ["u.png", "v.png", "w.png"] and found.class_names == ("0", "1")
    with pytest.raises(UserError, match=r"a column that names the images, .* its columns are photo, what"):
        reading(table(tmp_path, "photo,what\nu,0\nv,1\nw,0\n", files))


@pytest.mark.parametrize(
    ("files", "value"),
    [(["a/7.png", "b/7.png"], "7"), (["images/7.png", "images/7.jpg"], "7"), (["u/a/7.png", "v/a/7.png"], "a/7.png")],
)
def test_an_id_that_could_be_two_files_names_both(files: list[str], value: str, tmp_path: Path) -> None:
    path = table(tmp_path, f"id,label\n{value},a\n8,b\n", [*files, "8.png"])
    with pytest.raises(UserError) as caught:
        reading(path)
    assert str(caught.value).startswith(f"{value!r} in the table could be ")
    assert all(file in str(caught.value) for file in files)


def test_paths_may_lead_elsewhere(tmp_path: Path) -> None:
    far = save(tmp_path / "far" / "9.png", photo(9))
    path = table(tmp_path, f"path,label\n{far},a\n../far/9.png,b\nimages/0.png,a\nimages/1.png,b\n")
    found, _ = reading(path)
    assert found.names.tolist() == ["../far/9.png", "../far/9.png", "images/0.png", "images/1.png"]
    assert found.facts.passed_over == {"images without a row": 2}


MISSING = "image,label\n0,a\n1,b\nx,Skip\n2,a\ny,Skip\nz,Skip\nq,Skip\n3,b\n"


def test_rows_without_a_file_are_counted_and_the_first_three_named(tmp_path: Path) -> None:
    path = table(tmp_path, MISSING)
    with pytest.raises(UserError, match=r"^4 of 8 rows of .* have no file: x, y, z, \.\.\.\. .* are 'Skip' \(4\)\."):
        reading(path)
    found, lines = reading(path, labels_leave_out=("Skip",))
    assert len(found) == 4 and lines[0] == "Left out by label: 4 images."
    assert found.facts.left_out[0] == ("x", "label 'Skip'")
    found, lines = reading(path, skip_broken=True)
    assert len(found) == 4 and found.facts.left_out[0] == ("x", "no such file")
    assert "4 of 8 rows" in lines[0] and lines[0].endswith("have no file and are left out: x, y, z, ....")


def test_a_table_none_of_whose_files_are_there_is_an_error_even_where_they_are_skipped(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label\nu.png,a\nv.png,b\nw.png,a\nx.png,b\n")
    for skip in (False, True):
        with pytest.raises(UserError, match=r"^4 of 4 rows of .* have no file: u.png, v.png, w.png, \.\.\."):
            reading(path, skip_broken=skip)


def test_rows_without_a_label_are_passed_over(tmp_path: Path) -> None:
    found, _ = reading(table(tmp_path, "image,label\n0,a\n1,b\n2,\n3,b\n"))
    assert found.names.tolist() == ["images/0.png", "images/1.png", "images/3.png"]
    assert found.facts.passed_over == {"rows without a label": 1, "images without a row": 1}


def test_rows_keep_their_order_and_may_name_a_file_twice(tmp_path: Path) -> None:
    found, _ = reading(table(tmp_path, "image,label\n3,b\n0,a\n3,b\n1,a\n"))
    assert [name[7] for name in found.names] == list("3031")
    assert found.digests[0] == found.digests[2] and (found.images[0] == found.images[2]).all()


def test_a_table_in_parquet_names_files(tmp_path: Path) -> None:
    path = table(tmp_path, "").with_name("labels.parquet")
    columns: dict[str, Any] = {"image": ["0", "1", "2", "3"], "label": [1, 0, None, 1], "split": ["train", "test"] * 2}
    pq.write_table(pa.table(columns), path)
    found, _ = reading(path)
    assert found.names.tolist() == ["images/0.png", "images/1.png", "images/3.png"]
    assert found.class_names == ("0", "1") and found.splits.tolist() == ["train", "test", "test"]


def test_photos_are_told_apart() -> None:
    images: list[Array] = [photo(i) for i in range(9)]
    assert len({image.tobytes() for image in images}) == 9


def test_an_encoding_that_is_guessed_is_said_and_one_that_fits_none_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "")
    path.write_text("image,label\n0,жук\n1,b\n2,жук\n3,b\n", encoding="cp1251")
    _, said = reading(path)
    assert said[0] == f"{path} is no UTF-8 and is read as cp1252. If names look wrong, save it as UTF-8."
    path.write_text("image,label\n0,\u8868\n1,\u80fd\n2,\u8868\n3,b\n", encoding="shift_jis")
    path.write_bytes(path.read_bytes() + b"\x81\x40")
    with pytest.raises(
        UserError, match=r"labels.csv must be text in UTF-8, but is in another encoding. Save it as UTF-8"
    ):
        reading(path)


def test_file_names_of_two_unicode_forms_are_one(tmp_path: Path) -> None:
    files = [f"fotos/caf\u00e9/{name}.png" for name in ("a\u00e9", "b\u00e9")]
    decomposed = [unicodedata.normalize("NFD", name) for name in files]
    found, _ = reading(table(tmp_path, f"image,label\n{files[0]},x\nB\u00c9,y\nB\u00c9,y\n", decomposed))
    assert found.names.tolist() == [*decomposed, decomposed[1]]


def test_a_delimiter_in_the_cells_alone_is_none(tmp_path: Path) -> None:
    found, _ = reading(table(tmp_path, "image,tags\n" + "0,red;round;big\n1,blue;round;big\n" * 3))
    assert found.class_names == ("blue;round;big", "red;round;big")


def test_a_folder_that_may_not_be_listed_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path, "image,label\n" + "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(4)))

    def refuse(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))  # The tests may run as root.

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(reading(path)[0]) == 4


@pytest.mark.parametrize("name", ["photo", "picture", "fname"])
@pytest.mark.parametrize("number", ["id", "uid", "name"])
def test_row_numbers_that_lead_to_images_by_chance_are_not_taken_silently(
    number: str, name: str, tmp_path: Path
) -> None:
    rows = [f"{i},{3 - i}.png,{'ab'[i % 2]}" for i in range(4)]
    text = "\n".join([f"{number},{name},label", *rows])
    with pytest.raises(
        UserError,
        match=rf"2 columns that could name the images\. .*: --image-column {number} or --image-column {name}\.",
    ):
        reading(table(tmp_path, text))
    found, _ = reading(table(tmp_path, text), image_column=name)
    assert found.names.tolist() == [f"images/{3 - i}.png" for i in range(4)]


def test_a_column_of_paths_is_taken_where_the_id_leads_nowhere_or_says_the_same(tmp_path: Path) -> None:
    for first in (0, 70):
        rows = [f"{first + i},images/{i}.png,{'ab'[i % 2]}" for i in range(4)]
        path = table(tmp_path, "\n".join(["id,photo,label", *rows]))
        found, lines = reading(path)
        assert found.names.tolist() == [f"images/{i}.png" for i in range(4)] and found.class_names == ("a", "b")
        assert lines[0] == f"The images are those that column 'photo' of {path} names."
    found, _ = reading(table(tmp_path, "photo,label\n3.png,0\n2.png,1\n1.png,0\n0.png,1\n"))
    assert found.names[0] == "images/3.png" and found.labels.tolist() == [0, 1, 0, 1]


def test_a_column_that_was_chosen_as_the_label_names_no_images(tmp_path: Path) -> None:
    path = table(tmp_path, "name,photo\n1,0.png\n0,1.png\n1,2.png\n0,3.png\n")
    found, _ = reading(path, label_column="name")
    assert found.names[0] == "images/0.png" and found.labels.tolist() == [1, 0, 1, 0]


def test_masks_do_not_stand_in_for_images_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^4 of 4 rows of .* have no file: 70, 71, 72, "):
        reading(table(tmp_path, "image,mask,label\n70,0.png,a\n71,1.png,b\n72,2.png,a\n73,3.png,b\n"))


@pytest.mark.parametrize("label", ["y", "person", "set", "image", "label"])
def test_a_first_label_that_is_called_like_a_column_is_no_header(label: str, tmp_path: Path) -> None:
    for suffix in (".png", ""):
        rows = [f"{i}{suffix},{(label, 'other')[i % 2]}" for i in range(4)]
        found, lines = reading(table(tmp_path, "\n".join(rows)))
        assert len(found) == 4 and set(found.class_names) == {label, "other"}
        assert lines[0].endswith("has no header: column 1 names the images, the other one has the labels.")
    files = [*(f"images/{i}.png" for i in range(4)), "photo.png"]
    found, _ = reading(table(tmp_path, "photo,label\n" + ROWS, files), image_column="photo")
    assert len(found) == 4
    found, _ = reading(table(tmp_path / "more", "photo,label\nphoto,a\n0,a\n1,b\n2,b\n", files))
    assert len(found) == 4 and found.class_names == ("a", "b")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\n", "\r\n"])
def test_a_cell_may_have_what_ends_lines_elsewhere(mark: str, tmp_path: Path) -> None:
    path = table(tmp_path, "")
    path.write_bytes(f'image,label\n0,"a{mark}foo"\n\n1,b\n2,"a{mark}foo"\n3,b\n'.encode())
    assert reading(path)[0].class_names == (f"a{mark}foo", "b")


@pytest.mark.parametrize("text", ["sep=;\r\nimage;label\r\n", '"sep=,"\nimage,label\n', "SEP=#\nimage#label\n"])
def test_the_line_of_excel_that_names_the_delimiter_is_none_of_the_table(text: str, tmp_path: Path) -> None:
    mark = next(mark for mark in ";,#" if mark in text)
    found, _ = reading(table(tmp_path, text + "".join(f"{i}{mark}{'ab'[i % 2]}\n" for i in range(4))))
    assert found.class_names == ("a", "b") and len(found) == 4

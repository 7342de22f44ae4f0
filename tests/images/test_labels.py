"""What is no class: floats, names, one class, and letters in two cases. The tables are made here."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from photos import class_folders, photo, reading, save

from tuning.base.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))


def table(tmp_path: Path, labels: Sequence[object]) -> Path:
    for i in range(len(labels)):
        save(tmp_path / f"{i}.png", photo(i))
    (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    return tmp_path / "labels.csv"


def test_numbers_that_are_measured_are_no_classes(tmp_path: Path) -> None:
    labels = [i // 2 / 7 for i in range(60)]
    with pytest.raises(UserError, match=r"must be classes, but are numbers such as 0\.\d+ \(30 different ones\)"):
        reading(table(tmp_path, labels))


def test_a_few_fractions_are_classes(tmp_path: Path) -> None:
    assert reading(table(tmp_path, [0.5, 1.5, 0.5, 1.5]))[0].class_names == ("0.5", "1.5")


def test_whole_numbers_that_a_gap_made_floats_are_whole_again(tmp_path: Path) -> None:
    found, said = reading(table(tmp_path, ["10.0", "2.0", "", "10.0", "2.0"]))
    assert found.class_names == ("2", "10") and found.labels.tolist() == [1, 0, 1, 0]
    assert said[0] == "The labels are whole numbers: 2.0 is read as 2."


@pytest.mark.parametrize("labels", [("1.0", "1e2"), ("1_0.0", "10"), ("1.5", "1.0"), ("\u0661.0", "1")])
def test_texts_that_python_reads_as_whole_numbers_stay_as_they_are(labels: Sequence[str], tmp_path: Path) -> None:
    found, _ = reading(table(tmp_path, labels * 2))
    assert set(found.class_names) == set(labels)


def test_a_long_text_in_the_place_of_a_file_is_cut(tmp_path: Path) -> None:
    path = table(tmp_path, ["a", "b", "a", "b"])
    path.write_text(path.read_text() + "x" * 9999 + ",a\n")
    with pytest.raises(UserError, match=r"1 of 5 rows of .* has no file: x{200} \.\.\.\. Their labels are"):
        reading(path)


@pytest.mark.parametrize("n", [2, 40, 130])
def test_a_label_for_each_image_is_none(n: int, tmp_path: Path) -> None:
    labels = [f"x{i}" for i in range(n)]
    with pytest.raises(UserError, match=rf"several images each, but {n} images have {n} different labels, e.g. 'x0'"):
        reading(table(tmp_path, labels))


def test_nearly_a_label_for_each_image_is_none_either(tmp_path: Path) -> None:
    labels = [f"x{min(i, 70)}" for i in range(120)]
    with pytest.raises(UserError, match=r"but 120 images have 71 different labels"):
        reading(table(tmp_path, labels))
    assert len(reading(table(tmp_path, ["a", "b", "b"]))[0].class_names) == 2


def test_one_class_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must have images of two classes at least, but has only 'a', in 4 images.$"):
        reading(table(tmp_path, ["a"] * 4))


def test_labels_that_differ_in_case_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^The labels 'Cat' and 'cat' of .* differ in upper and lower case alone"):
        reading(table(tmp_path, ["Cat", "cat", "dog", "dog", "Cat"]))


def test_labels_of_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    found, _ = reading(table(tmp_path, ["Caf\u00e9", "Cafe\u0301", "bar", "bar"]))
    assert found.class_names == ("Caf\u00e9", "bar")


def test_a_label_to_leave_out_must_occur(tmp_path: Path) -> None:
    path = table(tmp_path, ["a", "b", "Not sure", "b", "a"])
    with pytest.raises(UserError, match=r"^--labels-leave-out for .* one of Not sure, a, b, but got 'not sure'"):
        reading(path, labels_leave_out=("not sure",))
    found, _ = reading(path, labels_leave_out=("Not sure",))
    assert found.class_names == ("a", "b") and found.facts.left_out == (("2.png", "label 'Not sure'"),)


def test_a_class_whose_name_is_no_utf_8_is_refused_and_can_be_left_out(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", classes=("bar", "cat", "caf\udce9"))
    with pytest.raises(UserError, match=r"^The labels of .* must be text in UTF-8, but one is 'caf\\udce9'.* Rename"):
        reading(root)
    assert reading(root, labels_leave_out=("caf\udce9",))[0].class_names == ("bar", "cat")


def test_names_that_are_no_utf_8_can_be_written(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set\udce9")
    save(root / "cat" / "x\udce9.png", photo(9))
    found, _ = reading(root)
    assert [name for name in found.names if "x" in name] == ["cat/x\\udce9.png"]


@pytest.mark.parametrize("gone", ["nan", "None", "N/A"])
def test_a_class_that_is_called_like_no_value_is_said(gone: str, tmp_path: Path) -> None:
    found, said = reading(table(tmp_path, ["a", "b", gone, "b", gone]))
    assert len(found.class_names) == 3
    assert (
        f"{gone!r} is a class of 2 images. If they have no label, leave them out with --labels-leave-out {gone}."
        in said
    )


def test_a_group_that_is_called_like_no_value_is_said(tmp_path: Path) -> None:
    path = table(tmp_path, ["a,p", "b,q", "a,nan", "b,nan"])
    path.write_text(path.read_text().replace("id,label", "id,label,patient"))
    found, said = reading(path, group_column="patient")
    assert found.groups.tolist() == ["p", "q", "nan", "nan"]
    assert any(line.startswith("2 images are of one group, 'nan', and lie on one side") for line in said)


def test_groups_of_two_unicode_forms_are_one(tmp_path: Path) -> None:
    path = table(tmp_path, ["a,Ren\u00e9", "b,Rene\u0301", "a,x", "b,x"])
    path.write_text(path.read_text().replace("id,label", "id,label,by"))
    assert len(set(reading(path, group_column="by")[0].groups)) == 2


def test_small_classes_are_left_out_before_labels_are_judged(tmp_path: Path) -> None:
    path = table(tmp_path, ["a", "a", "b", "b", *(f"x{i}" for i in range(120))])
    with pytest.raises(
        UserError, match=r"124 images have 122 different labels.* or leave small classes out with --min"
    ):
        reading(path)
    assert len(reading(path, min_images=2)[0].class_names) == 122
    with pytest.raises(
        UserError, match=r"^--min-images must be at most 2, to keep .* but got 5\. .* 'a' \(2\), 'b' \(2\)"
    ):
        reading(path, min_images=5)

"""Folders of class folders: levels, splits, and what is no class."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from photos import class_folders, photo, reading, save

from tuning.base.errors import UserError
from tuning.images.formats import folders


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))


def test_levels_that_hold_everything_are_stepped_through(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "archive" / "Images")
    (tmp_path / "set" / "README.md").write_text("?")
    found, _ = reading(tmp_path / "set")
    assert found.class_names == ("cat", "dog")
    assert found.names[0] == "archive/Images/cat/0.png"


def test_any_depth_below_a_class_counts_to_the_class(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    save(root / "cat" / "2020" / "spring" / "7.png", photo(7))
    found, _ = reading(root)
    assert found.class_names == ("cat", "dog") and found.names[-1] == "cat/2020/spring/7.png"
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "valid", "test"), ("train", "valid", "test")),
        (("Training", "val", "Testing"), ("train", "valid", "test")),
        (("train", "validation"), ("train", "valid")),
        (("train", "test"), ("train", "test")),
    ],
)
def test_splits_above_the_classes(names: tuple[str, ...], splits: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        class_folders(tmp_path / "set" / name, n=2)
    found, _ = reading(tmp_path / "set")
    assert found.splits.tolist() == [split for split in splits for _ in range(4)]
    assert found.class_names == ("cat", "dog")


def test_splits_may_lie_a_level_deeper_and_have_a_level_of_their_own(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "archive" / "train" / "images")
    class_folders(tmp_path / "set" / "archive" / "test")
    found, _ = reading(tmp_path / "set")
    assert found.class_names == ("cat", "dog")
    assert found.splits.tolist() == ["train"] * 6 + ["test"] * 6


def test_a_split_with_one_class_alone_is_not_stepped_through(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train")
    save(tmp_path / "set" / "test" / "cat" / "2021" / "9.png", photo(9))
    found, _ = reading(tmp_path / "set")
    assert found.class_names == ("cat", "dog") and found.labels[-1] == 0 and found.splits[-1] == "test"


def test_a_train_folder_alone_is_a_level_and_no_split(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train")
    found, _ = reading(tmp_path / "set")
    assert set(found.splits) == {""} and found.class_names == ("cat", "dog")


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    found, _ = reading(class_folders(tmp_path / "set", classes=("control", "test")))
    assert found.class_names == ("control", "test") and set(found.splits) == {""}


def test_a_test_folder_without_class_folders_is_passed_over_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train")
    save(tmp_path / "set" / "test" / "1.png", photo(1))
    found, lines = reading(tmp_path / "set")
    assert len(found) == 6
    assert lines[0].endswith("test has no class folders: its 1 image without a label are not read.")
    assert found.facts.passed_over == {"images in no class folder": 1}
    save(tmp_path / "other" / "train" / "1.png", photo(1))
    class_folders(tmp_path / "other" / "test")
    with pytest.raises(
        UserError, match=r"train must have a folder for each class, but has 1 image alone. If a table has their labels"
    ):
        reading(tmp_path / "other")


def test_what_is_beside_the_splits_is_named(tmp_path: Path) -> None:
    for name in ("train", "test", "extra"):
        class_folders(tmp_path / "set" / name)
    with pytest.raises(UserError, match=r"set has the splits test, train and beside them extra. Move what is no split"):
        reading(tmp_path / "set")


def test_images_beside_the_class_folders_are_passed_over(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    save(root / "logo.png", photo(99))
    found, _ = reading(root)
    assert len(found) == 6 and found.facts.passed_over == {"images in no class folder": 1}


def test_classes_are_sorted_with_digits_as_numbers(tmp_path: Path) -> None:
    found, _ = reading(class_folders(tmp_path / "set", classes=("10", "9", "100", "b", "a10", "a9")))
    assert found.class_names == ("9", "10", "100", "a9", "a10", "b")


@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_an_empty_class_folder_is_named_unless_it_is_left_out(splits: Any, tmp_path: Path) -> None:
    for split in splits:
        class_folders(tmp_path / "set" / split, classes=("cat", "dog", "Other"))
    (tmp_path / "set" / splits[-1] / "bird").mkdir()
    (tmp_path / "set" / splits[-1] / "bird" / "README.txt").write_text("soon")
    with pytest.raises(UserError, match=rf"^The class folder .*{splits[-1]}bird has no image in it. Put images into"):
        reading(tmp_path / "set")
    for path in (tmp_path / "set" / splits[-1] / "Other").iterdir():
        path.unlink()
    (tmp_path / "set" / splits[-1] / "bird" / "README.txt").unlink()
    (tmp_path / "set" / splits[-1] / "bird").rmdir()
    if len(splits) > 1:
        found, _ = reading(tmp_path / "set", labels_leave_out=("Other",))
        assert found.class_names == ("cat", "dog")


def test_an_empty_folder_has_no_image(tmp_path: Path) -> None:
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "notes.md").write_text("?")
    with pytest.raises(UserError, match=r"^.*set has no image in it \(1 other file\)\. Put a folder for each class"):
        reading(tmp_path / "set")


def test_one_class_is_too_few(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", classes=("cat",))
    with pytest.raises(
        UserError, match=r"^.*set has images in one class at most: there must be a folder for each class"
    ):
        reading(root)
    (root / "dog").mkdir()
    with pytest.raises(UserError, match=r"^The class folder .*dog has no image in it"):
        reading(root)
    class_folders(tmp_path / "two", classes=("cat", "Other"))
    with pytest.raises(UserError, match=r"two classes at least, but has only 'cat', in 3 images"):
        reading(tmp_path / "two", labels_leave_out=("Other",))


def test_images_without_class_folders_are_read_by_the_table_beside_them(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "set" / "images" / f"{i}.png", photo(i))
    with pytest.raises(
        UserError, match=r"A table of images and labels \(CSV, TSV or Parquet\) as --dataset is the other"
    ):
        reading(tmp_path / "set")
    (tmp_path / "set" / "README.txt").write_text("a, b\n")
    (tmp_path / "set" / "labels.csv").write_text("id,label\n0,a\n1,b\n2,a\n3,b\n")
    found, lines = reading(tmp_path / "set")
    assert found.names[0] == "images/0.png" and found.labels.tolist() == [0, 1, 0, 1]
    assert lines[0].endswith(
        "set has no class folders: the labels are those of " + str(tmp_path / "set" / "labels.csv.")
    )
    (tmp_path / "set" / "other.csv").write_text("id,label\n0,a\n")
    with pytest.raises(UserError, match=r"Choose the table of their labels: --dataset .*labels.csv or .*other.csv\.$"):
        reading(tmp_path / "set")


def test_a_column_that_was_typed_has_the_table_read(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    (root / "labels.csv").write_text("id,kind,age\n0,x,1\n1,y,2\n2,x,3\n3,y,4\n4,x,1\n5,y,2\n")
    found, _ = reading(root, label_column="kind")
    assert found.class_names == ("x", "y") and found.names[1] == "dog/1.png"


def test_links_to_images_and_folders_are_followed(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    class_folders(tmp_path / "elsewhere", classes=("far",))
    (root / "bird").symlink_to(tmp_path / "elsewhere" / "far")
    (root / "cat" / "9.png").symlink_to(tmp_path / "elsewhere" / "far" / "0.png")
    found, _ = reading(root)
    assert found.class_names == ("bird", "cat", "dog") and len(found) == 10


def test_a_loop_of_links_is_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    (root / "cat" / "again").symlink_to(root)
    with pytest.raises(
        UserError, match=r"cat/again is a link to a folder that it lies in, an endless loop. Remove the"
    ):
        reading(root)
    (root / "cat" / "again").unlink()
    (root / "cat" / "loop.png").symlink_to("loop.png")
    with pytest.raises(UserError, match=r"cat/loop.png cannot be read \(Too many levels of symbolic links\)"):
        reading(root)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    os.mkfifo(root / "cat" / "pipe.png")
    found, _ = reading(root)
    assert found.facts.passed_over == {"files that are no images": 1}


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "set")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))  # The tests may run as root.
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        UserError, match=r"^The folder .*dog cannot be read \(Permission denied\). Change its permissions"
    ):
        reading(root)


def test_folders_that_differ_in_case_are_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train", classes=("Cat", "dog"))
    class_folders(tmp_path / "set" / "test", classes=("cat", "dog"))
    with pytest.raises(UserError, match=r"^The labels 'Cat' and 'cat' of .*set differ in upper and lower case alone"):
        reading(tmp_path / "set")


def test_images_are_told_by_their_content_where_the_name_says_nothing(tmp_path: Path) -> None:
    for i in range(4):
        for kind, suffix in (
            ("PNG", ""),
            ("JPEG", ".data"),
            ("GIF", ".x"),
            ("BMP", ".y"),
            ("TIFF", ".z"),
            ("WEBP", ".w"),
        ):
            save(tmp_path / "set" / "ab"[i % 2] / f"{i}{kind}{suffix}", photo(i), format=kind)
    found, _ = reading(tmp_path / "set")
    assert len(found) == 24


def test_a_photo_of_a_kind_that_is_not_read_is_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    (root / "cat" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"cat/IMG_1.HEIC: it is no JPEG, PNG"):
        reading(root)


def with_metadata(folder: Path, first: int, n: int) -> None:
    """Writes images into a folder, and beside them a table as Hugging Face's `imagefolder` has it."""
    rows = [f"{i}.png,{('cat', 'dog')[i % 2]}" for i in range(n)]
    for i in range(n):
        save(folder / f"{i}.png", photo(first + i))
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]), encoding="utf-8")


def test_each_split_folder_may_have_a_table_of_its_own(tmp_path: Path) -> None:
    with_metadata(tmp_path / "train", 0, 6)
    with_metadata(tmp_path / "validation", 20, 2)
    with_metadata(tmp_path / "test", 40, 4)
    found, _ = reading(tmp_path)
    assert found.splits.tolist() == ["train"] * 6 + ["valid"] * 2 + ["test"] * 4
    assert found.names[6] == "validation/0.png" and found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [0, 1] * 6


def test_a_split_folder_without_labels_is_passed_over(tmp_path: Path) -> None:
    with_metadata(tmp_path / "train", 0, 6)
    save(tmp_path / "test" / "a.png", photo(50))
    found, said = reading(tmp_path)
    assert (
        len(found) == 6
        and f"{tmp_path / 'test'} has no table of labels: its 1 image without a label are not read." in said
    )


def test_a_table_above_split_folders_names_the_images_in_them(tmp_path: Path) -> None:
    with_metadata(tmp_path / "train", 0, 4)
    with_metadata(tmp_path / "test", 40, 2)
    rows = []
    for split in ("train", "test"):
        lines = (tmp_path / split / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:]
        rows += [f"{split}/{line}" for line in lines]
        (tmp_path / split / "metadata.csv").unlink()
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]), encoding="utf-8")
    found, _ = reading(tmp_path)
    assert found.splits.tolist() == ["train"] * 4 + ["test"] * 2 and found.names[4] == "test/0.png"


def in_parts(root: Path, header: str = "image_id,dx,age") -> Path:
    """Writes images into two folders that are parts of a set, and the table of their labels beside these."""
    for i in range(8):
        save(root / f"HAM_images_part_{1 + i // 4}" / f"{i}.png", photo(i))
    rows = [f"{i},{'ab'[i % 2]},{30 + i % 3}" for i in range(8)]
    (root / "metadata.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return root


def test_parts_of_a_set_are_no_classes(tmp_path: Path) -> None:
    root = in_parts(tmp_path / "set")
    with pytest.raises(UserError, match=r"must have a column with the labels, .* image_id, dx, age.*--label-column"):
        reading(root)
    assert reading(root, label_column="dx")[0].class_names == ("a", "b")
    found, said = reading(in_parts(tmp_path / "other", "image_id,label,age"))
    assert found.class_names == ("a", "b") and found.names[4] == "HAM_images_part_2/4.png"
    assert said[0].startswith("HAM_images_part_1, HAM_images_part_2 are no classes, but parts of a set: the labels are")


def test_a_table_beside_class_folders_is_said(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", classes=("class_1", "class_2"))
    (root / "labels.csv").write_text("id,label\n0,a\n", encoding="utf-8")
    (root / "._labels.csv").write_text("?", encoding="utf-8")  # As a Mac leaves it.
    found, said = reading(root)
    assert found.class_names == ("class_1", "class_2")
    table = root / "labels.csv"
    assert said[0] == f"The classes are folders. {table} is not read; --dataset {table} reads it in their place."


def test_a_table_that_a_mac_left_is_none(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "set" / f"{i}.png", photo(i))
    (tmp_path / "set" / "labels.csv").write_text("id,label\n0,a\n1,b\n2,a\n3,b\n")
    (tmp_path / "set" / "._labels.csv").write_bytes(b"\0\5\x16\7")
    assert reading(tmp_path / "set")[0].class_names == ("a", "b")
    assert reading(tmp_path / "set", label_column="label")[0].class_names == ("a", "b")


def test_folders_that_are_called_like_splits_and_have_the_same_classes_are_splits(tmp_path: Path) -> None:
    for name in ("seg_train", "seg_test"):
        class_folders(tmp_path / "set" / name / name)
    found, said = reading(tmp_path / "set")
    assert found.class_names == ("cat", "dog") and found.splits.tolist() == ["train"] * 6 + ["test"] * 6
    assert said[0] == "Read as splits: seg_test (test), seg_train (train)."
    class_folders(tmp_path / "two" / "steam train", classes=("old", "new"))
    class_folders(tmp_path / "two" / "test track", classes=("red",))
    assert reading(tmp_path / "two")[0].class_names == ("steam train", "test track")


@pytest.mark.parametrize("names", [("val", "test"), ("seg_val", "seg_test")])
def test_splits_without_one_to_train_on_are_refused(names: Sequence[str], tmp_path: Path) -> None:
    for name in names:
        class_folders(tmp_path / "set" / name)
    with pytest.raises(
        UserError, match=r"^.*set has the splits .*test, .*val, and none to train on\. .*--dataset .*test"
    ):
        reading(tmp_path / "set")


def test_classes_with_the_same_folders_in_them_are_said(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        class_folders(tmp_path / "set" / name, classes=("2020", "2021"))
    found, said = reading(tmp_path / "set")
    assert found.class_names == ("cat", "dog")
    assert said[0] == "The classes are the outer folders, cat ..., and not 2020, 2021 ... in each of them."


def test_runs_and_models_in_the_folder_are_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "set")
    monkeypatch.chdir(root)
    Path("results", "one").mkdir(parents=True)  # As a search has made it before it reads images.
    Path("best_model").mkdir()
    assert reading(".")[0].class_names == ("cat", "dog")
    save(Path("results", "explore.png"), photo(1))
    save(Path("best_model", "pca.png"), photo(2))
    assert reading(".")[0].facts.passed_over == {"folders of this project's runs and models": 2}
    Path("results", "one", "meta.json").write_text("{}")
    Path("best_model", "model.pth").write_text("")
    monkeypatch.chdir(tmp_path)
    assert reading(root)[0].class_names == ("cat", "dog")


def test_an_empty_class_folder_may_be_left_out_by_its_name(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    (root / "bird").mkdir()
    assert reading(root, labels_leave_out=("bird",))[0].class_names == ("cat", "dog")


@pytest.mark.parametrize("inside", ["", "/cat"])
@pytest.mark.parametrize("name", ["test", "val", "Testset"])
def test_a_folder_beside_classes_that_is_called_like_a_split_is_no_class_unasked(
    name: str, inside: str, tmp_path: Path
) -> None:
    root = class_folders(tmp_path / "set")
    save(root / f"{name}{inside}" / "9.png", photo(9))
    with pytest.raises(
        UserError,
        match=rf"^.*{name} looks like a split, .*classes\. If it is a split, move these into a folder .*train\. "
        rf"If it is a class, rename it; or leave it out with --labels-leave-out {name}\.",
    ):
        reading(root)
    assert reading(root, labels_leave_out=(name,))[0].class_names == ("cat", "dog")


def test_folders_may_be_called_trainset_and_testset(tmp_path: Path) -> None:
    for name in ("trainset", "validset", "testset"):
        class_folders(tmp_path / "set" / name, n=2)
    found, _ = reading(tmp_path / "set")
    assert found.class_names == ("cat", "dog")
    assert found.splits.tolist() == ["train"] * 4 + ["valid"] * 4 + ["test"] * 4


def test_a_class_that_is_called_train_can_be_renamed(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", classes=("bus", "car", "train"))
    with pytest.raises(UserError, match=r"splits train and beside them bus, car\. .* If train is a class, rename"):
        reading(root)


def test_folders_that_are_called_like_numbers_keep_their_names(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", classes=("1.0", "1", "100"))
    found, said = reading(root)
    assert found.class_names == ("1", "1.0", "100") and not any("whole numbers" in line for line in said)


def test_a_folder_whose_parquet_files_lie_apart_names_one(tmp_path: Path) -> None:
    for name in ("split=train", "split=test"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"no image in it .* has 2 Parquet files\. .*split=test/0.parquet or"):
        reading(tmp_path / "set")


def test_folders_may_lie_deeper_than_python_calls_functions(tmp_path: Path) -> None:
    root, made = class_folders(tmp_path / "set"), [tmp_path / "set" / "cat"]
    for _ in range(1100):
        made.append(made[-1] / "a")
        made[-1].mkdir()
    save(made[-1] / "7.png", photo(7))
    try:
        found, _ = reading(root)
        assert len(found) == 7 and found.labels.tolist().count(0) == 4
    finally:
        (made[-1] / "7.png").unlink()
        for path in reversed(made[1:]):  # pytest's own removing calls itself.
            path.rmdir()


def test_many_class_folders_are_read_in_time_that_grows_with_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, calls = class_folders(tmp_path / "set", classes=[f"c{i}" for i in range(30)], n=2), list[Any]()
    below = folders._below
    monkeypatch.setattr(folders, "_below", lambda *args: calls.append(args) or below(*args))
    assert len(reading(root)[0].class_names) == 30 and len(calls) < 10


def test_a_folder_that_may_not_be_looked_into_is_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir, exists = class_folders(tmp_path / "set"), os.scandir, Path.exists

    def refuse(path: Any) -> Any:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def look(path: Path) -> bool:
        if path.parent.name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(Path, "exists", look)
    with pytest.raises(UserError, match=r"^The folder .*dog cannot be read \(Permission denied\)\. Change its"):
        reading(root)

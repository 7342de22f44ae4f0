import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuning.base.errors import UserError
from tuning.base.files import cache_dir
from tuning.images.options import READING, source_of
from tuning.images.source import Source


def test_a_known_name_is_the_name_even_where_a_folder_is_called_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not Source("fashion-mnist").is_own
    assert Source("./fashion-mnist").is_own
    assert Source("fashion-mnist").name == "fashion-mnist"


def test_a_bare_name_that_is_neither_known_nor_there_names_the_closest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"got 'fashion-mnits': no such folder .*Did you mean 'fashion-mnist'\?$"):
        _ = Source("fashion-mnits").is_own
    with pytest.raises(UserError, match=r"or the path of your own images, but got 'holiday': no such folder or file"):
        _ = Source("holiday").is_own
    (tmp_path / "holiday").mkdir()
    assert Source("holiday").is_own
    assert Source("pictures/holiday").is_own  # That it is not there is said where it is read.


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Holiday Photos (2024)/", "holiday-photos-2024"),
        ("a/b/Äpfel", "apfel"),
        ("labels.final.CSV", "labels.final"),
        ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"),
        ("日本", "images"),
    ],
)
def test_the_name_of_a_run_is_made_of_the_path(path: str, name: str, tmp_path: Path) -> None:
    if "." not in path:
        (tmp_path / path).mkdir(parents=True)
    assert Source(str(tmp_path / path)).name == name
    assert re.fullmatch("[a-z0-9._-]+", Source(path).name)


def test_the_folder_that_one_is_in_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path / "cats")
    assert Source(".").is_own and Source(".").name == "cats"
    assert Source("..").name == tmp_path.name.lower()


@pytest.mark.parametrize("size", [7, 1025])
def test_an_image_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=rf"^--image-size must be between 8 and 1,024 pixels, but got {size}.$"):
        Source("./photos", image_size=size)
    assert Source("./photos", image_size=8).image_size == 8


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"^--resize must be one of crop, pad, stretch, but got 'crops'. Did you mean"):
        Source("./photos", resize="crops")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^--group-pattern must be a regular expression, but got '\(a': missing \)"):
        Source("./photos", group_pattern="(a")
    with pytest.raises(UserError, match=r"^--group-column and --group-pattern exclude each other"):
        Source("./photos", group_pattern="a", group_column="b")


def test_lists_from_a_record_become_tuples() -> None:
    assert Source("./photos", labels_leave_out=["a"]) == Source("./photos", labels_leave_out=("a",))  # type: ignore[arg-type]


def test_a_plain_name_gives_way_to_that_of_the_folder_around_it(tmp_path: Path) -> None:
    (tmp_path / "signs" / "data" / "Dataset").mkdir(parents=True)
    (tmp_path / "signs" / "data" / "labels.csv").touch()
    for part in ("Dataset", "labels.csv"):
        assert Source(str(tmp_path / "signs" / "data" / part)).name == "signs"
    assert Source("/data").name == "data"


def test_the_folder_of_a_user_whom_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^~nosuchuser/x begins with the folder of a user, which cannot be found"):
        Source("~nosuchuser/x").path  # noqa: B018
    monkeypatch.setenv("TUNING_CACHE", "~nosuchuser/cache")
    with pytest.raises(UserError, match=r"^~nosuchuser/cache begins with the folder of a user"):
        cache_dir("images")


def test_another_place_does_not_go_with_images_of_ones_own(tmp_path: Path) -> None:
    asked = SimpleNamespace(**READING, dataset=str(tmp_path), data_dir="elsewhere")
    with pytest.raises(UserError, match=r"^--data-dir must be used with a data set that has a name, .* got elsewhere"):
        source_of(asked)
    asked = SimpleNamespace(**READING, dataset="mnist", data_dir="~/mnist")
    assert source_of(asked).data_dir == Path.home() / "mnist"


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_data_set_is_not_the_current_folder(value: str) -> None:
    with pytest.raises(UserError, match=r"^--dataset must be .*, or the path of your own images, but is empty\. The"):
        Source(value)

"""`tuning.figures.style`: figures are written whole or not at all, and classes can be told apart."""

import errno
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from tuning.base import files
from tuning.base.errors import UserError
from tuning.figures import model_figures, run_figures, style


def test_pyplot_is_not_touched() -> None:
    for room in (style, run_figures, model_figures):
        source = Path(str(room.__file__)).read_text()
        assert "matplotlib.pyplot" not in source
        assert "rcParams[" not in source


def test_save_writes_a_real_picture_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "best.png"
    figure, ax = style.single(7.0, 4.2)
    ax.plot([0, 1], [0, 1])
    style.save(figure, path)
    picture = imread(path)
    assert picture.shape[:2] == (630, 1050)  # 4.2 by 7 inches at 150 dots an inch
    assert 0.005 < (picture[..., :3].min(axis=2) < 0.9).mean() < 0.5
    assert [file.name for file in path.parent.iterdir()] == ["best.png"]


def test_save_names_the_file_on_a_full_disk_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def full(file: Any, content: bytes) -> None:
        file.write(content[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(UserError, match=r"No space left on the disk while writing .*figure\.png"):
        style.save(Figure(), path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_picture_that_cannot_be_drawn_again_does_not_stay_as_it_was(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / f"{name}.png").write_bytes(b"old")
    told: list[str] = []

    def bad() -> Figure:
        raise RuntimeError("no font")

    assert style.save_each({"good": lambda: style.single(1, 1)[0], "bad": bad}, tmp_path, told.append) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["good.png"]
    assert (tmp_path / "good.png").read_bytes() != b"old"
    assert told == ["The picture bad.png cannot be made: RuntimeError: no font"]


def test_save_names_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"/file/figure\.png must be a file that can be written, but got: [\w ]+\.$"):
        style.save(Figure(), tmp_path / "file" / "figure.png")


def test_more_than_ten_classes_differ_in_colour_or_marker() -> None:
    assert len({style.class_style(number) for number in range(100)}) == 100


def test_save_draws_once_what_matplotlib_would_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = [style.single(7.0, 4.2) for _ in range(2)]
    for _, ax in figures:
        ax.plot([0, 1], [0, 1])
        style.share_axis(ax.yaxis)
    figures[0][0].savefig(tmp_path / "theirs.png", dpi=style.DPI)
    drawn, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: drawn.append(figure) or draw(figure, renderer))
    style.save(figures[1][0], tmp_path / "ours.png")
    assert len(drawn) == 1
    assert (imread(tmp_path / "ours.png") == imread(tmp_path / "theirs.png")).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coat", "coat"),
        ("a coat_with-buttons", "a coat_with-\nbuttons"),
        ("Übergangsmanteltasche", "Übergangsman\nteltasche"),
        ("one two three four five six seven", "one two th…e\nsix seven"),
    ],
)
def test_names_are_wrapped_at_their_joints(name: str, expected: str) -> None:
    assert style.wrapped(name, 12) == expected


def test_a_name_is_shortened_in_its_middle() -> None:
    assert style.shortened("IMG_2026-11-29_0001.JPG", 12) == "IMG_2…01.JPG"
    assert style.shortened("a.jpg", 5) == "a.jpg"

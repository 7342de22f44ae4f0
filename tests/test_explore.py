"""`tuning.explore` on small sets whose duplicates are known, one's own images among them, and on the real one."""

import ast
import inspect
import io
import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tuning import explore
from tuning.base.errors import UserError
from tuning.figures import model_figures, style
from tuning.images import datasets, splitting
from tuning.images.catalogue import DATASETS
from tuning.images.datasets import HashedTest, Labelled
from tuning.images.source import Source
from tuning.images.splitting import Splits


def make_splits(channels: int = 1) -> tuple[Splits, HashedTest]:
    """Returns 12 train, 4 valid and 5 test images of two classes with known repetitions."""
    images = np.random.default_rng(0).integers(0, 200, (20, channels, 6, 5), dtype=np.uint8)
    images[3] = images[1]  # Again in train, under another label.
    images[4] = images[2]  # Again in train, under the same label.
    images[12] = images[0]  # In valid and in train.
    images[16], images[17] = images[6], images[13]  # In test and in train, in test and in valid.
    images[5, 0, 0, 0] = 255
    labels = np.array([0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1], dtype=np.int64)
    mean, std = (0.5,) * channels, (0.5,) * channels
    train, valid = Labelled(images[:12], labels[:12]), Labelled(images[12:16], labels[12:])
    splits = Splits("toy", ("cat", "dog"), train, valid, mean, std, "0", "1")
    test = images[[16, 17, 18, 19, 19]]
    return splits, HashedTest(datasets.image_digests(test), np.array([2, 3]), test.shape, (1, 199))


def test_overview_counts_and_compares() -> None:
    overview = explore.describe(*make_splits())
    assert {name: counts.tolist() for name, counts in overview.counts.items()} == {
        "train": [8, 4],
        "valid": [2, 2],
        "test": [2, 3],
    }
    assert overview.shapes == {"train": (12, 1, 6, 5), "valid": (4, 1, 6, 5), "test": (5, 1, 6, 5)}
    assert overview.value_ranges["train"][1] == 255 and overview.value_ranges["test"] == (1, 199)
    assert overview.repeated == {"train": 2, "valid": 0, "test": 1}
    assert overview.shared == {"train": 0, "valid": 1, "test": 2}
    assert overview.ambiguous == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_and_means_are_of_train_images(channels: int) -> None:
    train = make_splits(channels)[0].train
    samples = explore.sample(train, 2, is_own=False)
    dogs = train.images[train.labels == 1]
    np.testing.assert_array_equal(samples.images[1, :4], dogs)
    assert (samples.images[1, 4:] == (0 if channels == 1 else 255)).all()  # Blank paper.
    np.testing.assert_allclose(samples.means[1], dogs.mean(axis=0))
    assert (samples.classes.tolist(), samples.title) == ([0, 1], "first 8 train images")


def test_samples_of_ones_own_images_are_spread_and_gray_ones_look_as_they_are() -> None:
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    samples = explore.sample(Labelled(images, np.repeat([0, 1], 20)), 2, is_own=True)
    shown = 255 - samples.images[1, :, 0, 0, 0].astype(int)  # The figure draws 255 as black.
    assert shown.tolist() == [20, 22, 25, 27, 30, 32, 35, 37]
    assert samples.means[0, 0, 0, 0] == 255 - 9.5 and samples.title == "8 train images"


def test_of_many_classes_the_largest_are_shown_and_large_images_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "MOST_CLASSES", 2)
    labels = np.array([0, 1, 1, 2, 2, 2])
    images = np.zeros((6, 1, 300, 200), np.uint8)
    images[:, :, :150] = 90
    samples = explore.sample(Labelled(images, labels), 4, is_own=False)
    assert samples.classes.tolist() == [1, 2] and samples.images.shape == (2, 8, 1, 100, 66)
    assert (samples.images[0, 0, 0, :50] == 90).all() and not samples.images[0, 0, 0, 50:].any()
    monkeypatch.setattr(datasets, "BYTES_AT_ONCE", 1)
    np.testing.assert_array_equal(explore.sample(Labelled(images, labels), 4, is_own=False).means, samples.means)


def test_tables_hold_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    explore.print_overview(explore.describe(*make_splits()))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["class", "train", "valid", "test"],
        ["cat", "8", "2", "2"],
        ["total", "12", "4", "5"],
        ["valid", "4", "4", "1", "x", "6", "x", "5"],
    ):
        assert any(line[: len(row)] == row for line in lines), row
    assert next(line[-2:] for line in lines if line[:3] == ["test", "5", "5"]) == ["1", "2"]
    assert ["Equal", "images", "under", "different", "labels", "in", "train", "and", "valid:", "1"] in lines


@pytest.mark.parametrize("width", [40, 60, 80])
def test_numbers_stay_whole_in_a_narrow_terminal_that_knows_ascii_only(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **given: console)
    overview = replace(explore.describe(*make_splits()), class_names=("cat …", "dog ü"))
    explore.print_overview(replace(overview, counts={name: 30_000 * n for name, n in overview.counts.items()}))
    file.seek(0)
    text = file.read()
    assert "240,000" in text and "360,000" in text and "cat ..." in text and "dog ?" in text
    assert ("pixels" in text.partition("A wider terminal")[0]) == (width >= 60)


@pytest.mark.parametrize("channels", [1, 3])
def test_figure_has_a_row_a_class(tmp_path: Path, channels: int) -> None:
    splits, test = make_splits(channels)
    shown, overview = explore.sample(splits.train, 2, is_own=False), explore.describe(splits, test)
    figure = model_figures.data_overview(
        shown.images, shown.means, overview.counts, overview.class_names, title=shown.title
    )
    samples, mean, counts = figure.axes
    assert [label.get_text() for label in samples.get_yticklabels()] == ["cat", "dog"]
    assert (samples.get_title(), mean.get_title()) == ("first 8 train images", "mean")
    assert [bar.get_width() for bar in counts.patches if isinstance(bar, Rectangle)] == [8, 4, 2, 2, 2, 3]
    assert counts.get_ylim() == samples.get_ylim()
    figure.draw_without_rendering()
    places = [(panel.get_position().y0, panel.get_position().y1) for panel in figure.axes]
    assert places[0] == pytest.approx(places[1]) and places[0] == pytest.approx(places[2])  # A row is at one height.
    style.save(figure, tmp_path / "overview.png")
    assert (tmp_path / "overview.png").stat().st_size > 1000


@pytest.mark.parametrize(("n_classes", "side"), [(2, 128), (50, 28), (100, 64)])
def test_figure_has_room_for_many_classes_and_long_names(n_classes: int, side: int) -> None:
    names = [f"{i} a name of many words that goes on and on, and does not fit" for i in range(n_classes)]
    images = np.full((n_classes, 8, 3, side, side), 7, np.uint8)
    counts = {"train": np.full(n_classes, 12_345)}
    figure = model_figures.data_overview(images, images.mean(axis=1), counts, names, title="samples")
    figure.draw_without_rendering()
    samples = figure.axes[0]
    boxes = [label.get_window_extent() for label in samples.get_yticklabels()]
    assert min(box.x0 for box in boxes) >= 0 and max(box.x1 for box in boxes) < samples.get_window_extent().x0 + 1
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert samples.get_yticklabels()[0].get_text() == "0 a name of many words…d\non, and does not fit"
    numbers = [text.get_window_extent() for text in figure.axes[2].texts]
    assert max(box.x1 for box in numbers) <= figure.bbox.x1


def test_mosaic_keeps_images_in_place() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 1, 2, 2)
    mosaic = style.mosaic(images, edge=2)
    assert mosaic.shape == (12, 18, 1)
    np.testing.assert_array_equal(mosaic[8:10, 14:16, 0], images[1, 2, 0])
    assert mosaic.sum() == images.sum()


def test_figure_format_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--out must end with \.png, \.pdf, \.svg, but got '.*/x\.docx'\.$"):
        explore.main(out=tmp_path / "x.docx")


def test_figure_must_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    splits, test = make_splits()
    monkeypatch.setattr(splitting, "load_splits", lambda *_, **__: splits)
    monkeypatch.setattr(datasets, "hash_test", lambda *_: test)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"/file/x\.png must be a file that can be written, but got: [\w ]+\.$"):
        explore.main(out=tmp_path / "file" / "x.png")
    explore.main(out=tmp_path / "new" / "x.png")
    assert capsys.readouterr().out.endswith(f"Figure: {tmp_path}/new/x.png\n")


def test_test_images_are_never_named() -> None:
    tree = ast.parse(inspect.getsource(explore))
    named = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(tree)}
    assert "hash_test" in named and "load_test" not in named


def test_unknown_data_set_is_an_error_without_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuning.explore", "--dataset", "fashion-mnits", "--out", str(tmp_path / "x.png")]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    said = (
        f"error: --dataset must be {DATASETS.listed}, or the path of your own images, but got 'fashion-mnits': no such "
    )
    assert done.stderr == f"{said}folder or file exists here. Did you mean 'fashion-mnist'?\n"


def write_own(folder: Path, *, mode: str = "RGB", given: bool = False) -> Path:
    """Returns a table of 96 images of two classes and eight groups, with what `explore` is to find.

    Two are equal under two labels, two equal under one; one is broken, one hidden, and two have a label that is none.
    """
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    rows = []
    for i in range(96):
        height, width = (20, 30) if i == 5 else (24, 24)
        pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"images/{i:02}.png")
        split = "test" if i % 12 < 2 else "train"
        rows.append((f"images/{i:02}.png", ("cat", "dog")[int(i % 4 == 0)], f"P{i // 12}", split))
    for copy, original in ((30, 20), (31, 41), (36, 40)):
        (folder / f"images/{copy:02}.png").write_bytes((folder / f"images/{original:02}.png").read_bytes())
    (folder / "images/95.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    rows[93:95] = [(name, "unclear", group, split) for name, _, group, split in rows[93:95]]
    head, columns = ("image,label,patient,split", 4) if given else ("image,label,patient", 3)
    lines = [",".join(row[:columns]) for row in rows]
    (folder / "labels.csv").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return folder / "labels.csv"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for one's own images; the cache is the test's own."""
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "own"


OPTIONS = {"labels_leave_out": ["unclear"], "skip_broken": True, "group_column": "patient"}


def test_own_images_are_counted_by_class_split_group_size_and_reason(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explore.main(dataset=str(write_own(own)), out=tmp_path / "x.png", **OPTIONS)
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    total = next(line for line in lines if line[:1] == ["total"])
    assert sum(map(int, total[1:])) == 93
    for name, n in (("cat", 69), ("dog", 24)):
        assert sum(map(int, next(line for line in lines if line[:1] == [name])[1:])) == n
    rows = {line[0]: line for line in lines if line[:1] and line[0] in ("train", "valid", "test") and len(line) > 9}
    assert sum(int(row[-2]) for row in rows.values()) == 8  # Each group is in one split.
    assert all(int(row[-1]) in (12, 9) for row in rows.values())
    for said in (
        "The largest class, cat, has 69 images, the smallest, dog, 24.",
        "Originals, in pixels: 2 sizes, from 24 x 24 to 30 x 20; the most frequent are 24 x 24 (92), 30 x 20 (1).",
        "Modes: RGB (93).",
        "Left out: 2 images (label 'unclear'), e.g. images/93.png.",
        "images/30.png (cat) = images/20.png (dog)",
    ):
        assert out.count(said) == 1, said
    assert len(re.findall(r"^Left out: 1 image \(.+\), e\.g\. images/95\.png\.$", out, re.M)) == 1
    assert re.search(r"^The largest group outside test, P\d, has \d\d% of train and valid\.$", out, re.M)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_said_twice(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = write_own(own, given=True)
    (own / "images/.hidden.png").touch()
    explore.main(dataset=str(table), out=tmp_path / "x.png", **OPTIONS)
    shown = capfd.readouterr()
    sentences = [line for line in shown.out.splitlines() if line.endswith(".")]
    assert len(sentences) == len(set(sentences)) > 6 and shown.err == ""
    [leak] = [line for line in sentences if line.startswith("The given test split leaks: ")]
    assert "1 of its 16 images have the same pixels as one of train and 8 groups of it are in train, too" in leak


def test_conflicts_beyond_those_of_the_note_are_named(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, some in (("cat", range(60)), ("dog", range(52, 112))):
        (own / name).mkdir(parents=True)
        for i in some:
            Image.fromarray(np.full((9, 9), i, np.uint8)).save(own / name / f"{i:03}.png")
    explore.main(dataset=str(own), out=tmp_path / "x.png")
    out = capsys.readouterr().out
    assert "8 images have more than one label: " in out
    named = re.findall(r"cat/(\d+)\.png \(cat\) = dog/\1\.png \(dog\)", out)
    assert len(named) == len(set(named)) and set(named) <= {f"{i:03}" for i in range(52, 60)}
    in_test = datasets.hash_test(str(own))
    assert len(named) >= 8 - len(in_test.digests) + len(set(in_test.digests.tolist()))


def test_what_is_known_of_a_test_split_of_ones_own_are_hashes_and_counts(own: Path) -> None:
    source = Source(str(write_own(own)), **OPTIONS)
    test, everything = datasets.hash_test(source), datasets.load_own(source)
    assert test.counts.sum() == len(test.digests) == test.shape[0] == 93 - len(everything.rest)
    assert test.group_sizes.sum() == test.shape[0] and list(test.group_sizes) == sorted(test.group_sizes)[::-1]
    assert not np.isin(test.digests, everything.known.digests).any()
    named = datasets.HashedTest.__dataclass_fields__
    assert set(named) == {"digests", "counts", "shape", "value_range", "group_sizes"}


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_own_images_are_drawn_as_they_are(
    mode: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    act = model_figures.data_overview

    def data_overview(samples: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.append({"samples": samples, **kwargs})
        return act(samples, *args, **kwargs)

    monkeypatch.setattr(model_figures, "data_overview", data_overview)
    explore.main(dataset=str(write_own(own, mode=mode)), out=tmp_path / "x.png", **OPTIONS)
    train = splitting.load_splits(Source(str(own / "labels.csv"), **OPTIONS)).train
    first = train.pixels(np.flatnonzero(train.labels == 0)[:1])[0]
    assert drawn[0]["title"] == "8 train images"
    np.testing.assert_array_equal(drawn[0]["samples"][0, 0], 255 - first if mode == "L" else first)


@pytest.mark.slow
def test_fashion_mnist_is_balanced_and_free_of_duplicates(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(explore.main)
    done = CliRunner().invoke(app, ["--out", str(tmp_path / "explore.png")])
    lines = [line.split() for line in done.output.splitlines()]
    assert ["Trouser", "5,500", "500", "1,000"] in lines
    assert ["total", "55,000", "5,000", "10,000"] in lines
    assert ["train", "55,000", "55,000", "1", "x", "28", "x", "28", "0", "to", "255", "0", "0"] in lines
    assert ["test", "10,000", "10,000", "1", "x", "28", "x", "28", "0", "to", "255", "0", "0"] in lines
    assert (tmp_path / "explore.png").read_bytes().startswith(b"\x89PNG")

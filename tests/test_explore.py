"""`tuning.explore` on a small set whose duplicates are known, and on the real one."""

import ast
import inspect
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from rich.console import Console
from typer.testing import CliRunner

from tuning import explore
from tuning.base.errors import UserError
from tuning.figures import model_figures, style
from tuning.images import datasets, splitting
from tuning.images.catalogue import DATASETS
from tuning.images.datasets import HashedTest, Labelled
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


def test_samples_and_means_are_of_train_images() -> None:
    splits, test = make_splits()
    overview = explore.describe(splits, test)
    dogs = splits.train.images[splits.train.labels == 1]
    np.testing.assert_array_equal(overview.samples[1, :4], dogs)
    assert not overview.samples[1, 4:].any()
    np.testing.assert_allclose(overview.means[1], dogs.mean(axis=0))


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
    overview = explore.describe(*make_splits(channels))
    figure = model_figures.data_overview(overview.samples, overview.means, overview.counts, overview.class_names)
    samples, mean, counts = figure.axes
    assert [label.get_text() for label in samples.get_yticklabels()] == ["cat", "dog"]
    assert (samples.get_title(), mean.get_title()) == ("first 8 train images", "mean")
    assert [bar.get_width() for bar in counts.patches if isinstance(bar, Rectangle)] == [8, 4, 2, 2, 2, 3]
    assert counts.get_ylim() == samples.get_ylim()
    style.save(figure, tmp_path / "overview.png")
    assert (tmp_path / "overview.png").stat().st_size > 1000


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
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    said = f"error: --dataset must be {DATASETS.listed}, or the path of your own images, but got 'fashion-mnits': no such "
    assert done.stderr == f"{said}folder or file exists here. Did you mean 'fashion-mnist'?\n"


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

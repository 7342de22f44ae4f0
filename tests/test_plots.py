"""`tuning.plots`: what is drawn is what the frames hold, and no frame is too small or too odd to be drawn."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from tuning import analysis, plots
from tuning.config import TrainConfig
from tuning.errors import UserError

START = pd.Timestamp("2026-11-23T10:00:00", tz="UTC")
STATES = ("complete", "pruned", "failed", "running")


def _run(n_trials: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the trials and epochs of a run with all four states; failed trials have no accuracy."""
    generator = np.random.default_rng(0)
    trials: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    for number in range(n_trials):
        state = STATES[number % 4]
        config = TrainConfig(
            learning_rate=10 ** generator.uniform(-3, 0),
            weight_decay=0.0 if number == 1 else 10 ** generator.uniform(-5, -2),
            schedule=("onecycle", "cosine")[number % 2],
            patience=None if number == 2 else 4,
            flip=number % 3 == 0,
        )
        curve = [
            0.92 - 0.3 * 0.6**epoch - 0.001 * number for epoch in range(0 if state == "failed" else 3 + number % 4)
        ]
        for epoch, accuracy in enumerate(curve, 1):
            row = {"trial": number, "epoch": epoch, "valid_accuracy": accuracy, "valid_loss": 1 - accuracy, "lr": 0.1}
            epochs.append({**row, "train_accuracy": accuracy + 0.01, "train_loss": 0.9 - accuracy})
        ended = pd.NaT if state == "running" else START + pd.Timedelta(minutes=number + 1)
        result = {"trial": number, "state": state, "valid_accuracy": max(curve, default=np.nan)}
        trials.append(
            {
                **result,
                "started": START,
                "ended": ended,
                **{f"config/{name}": value for name, value in config.model_dump().items()},
            }
        )
    frame = pd.DataFrame(trials)
    frame = frame.astype({"config/patience": "Int64", "config/image_size": "Int64", "config/flip": "boolean"})
    return frame, pd.DataFrame(epochs)


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.fixture(scope="module")
def run() -> tuple[pd.DataFrame, pd.DataFrame]:
    return _run(12)


def test_pyplot_is_not_touched() -> None:
    source = Path(plots.__file__).read_text()
    assert "matplotlib.pyplot" not in source
    assert "rcParams[" not in source


def test_save_writes_a_real_picture_and_nothing_else(tmp_path: Path, run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    path = tmp_path / "new" / "best.png"
    plots.save(plots.best_so_far(analysis.best_so_far(run[0])), path)
    picture = imread(path)
    assert picture.shape[:2] == (630, 1050)  # 4.2 by 7 inches at 150 dots an inch
    assert 0.005 < (picture[..., :3].min(axis=2) < 0.9).mean() < 0.5
    assert [file.name for file in path.parent.iterdir()] == ["best.png"]


def test_save_names_the_file_on_a_full_disk_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def full(self: Figure, target: Path, **_: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(UserError, match=r"No space left on the disk while writing .*figure\.png"):
        plots.save(Figure(), path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_save_does_not_hide_other_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        plots.save(Figure(), tmp_path / "file" / "figure.png")


def test_best_so_far_steps_and_dots(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    frame = analysis.best_so_far(run[0])
    (ax,) = plots.best_so_far(frame).axes
    assert "minutes" in ax.get_xlabel()
    assert ax.get_ylabel() == "validation accuracy"
    assert ax.lines[0].get_drawstyle() == "steps-post"
    assert np.asarray(ax.lines[0].get_ydata()).tolist() == frame["best"].tolist()
    assert np.asarray(ax.lines[0].get_xdata()).tolist() == (frame["ended_seconds"] / 60).tolist()
    assert ax.texts[0].get_text() == f"trial 1: {100 * frame['best'].max():.2f} %"


def test_best_so_far_is_not_squashed_by_a_poor_first_trial() -> None:
    accuracy = pd.Series([0.1, *np.linspace(0.9, 0.93, 19)])
    frame = pd.DataFrame({"trial": range(20), "ended_seconds": np.arange(20) * 60.0, "valid_accuracy": accuracy})
    (ax,) = plots.best_so_far(frame.assign(best=accuracy.cummax())).axes
    assert ax.get_ylim()[0] > 0.8
    dots, triangles = (c for c in ax.collections if isinstance(c, PathCollection))
    assert len(np.asarray(dots.get_offsets())) == 19
    assert np.asarray(triangles.get_offsets()).tolist() == [[0.0, ax.get_ylim()[0]]]


def test_pareto_joins_the_front_and_shows_the_rest() -> None:
    trials = pd.DataFrame({"trial": range(4), "state": ["complete"] * 3 + ["pruned"]})
    trials = trials.assign(
        valid_accuracy=[0.9, 0.8, 0.7, 0.95], n_parameters=[500, 100, 300, 1], pareto=[True, True, False, False]
    )
    figure = plots.pareto(trials, "n_parameters")
    ax = figure.axes[0]
    assert ax.get_xlabel() == "trainable parameters"
    assert len(np.asarray(ax.collections[0].get_offsets())) == 3
    assert list(ax.lines[0].get_xdata()) == [100, 500]
    assert {"0", "1"} <= set(_texts(figure)) and "2" not in _texts(figure)


def test_learning_curves_one_line_a_trial_by_state_and_the_best_in_black(
    run: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    trials, epochs = run
    (ax,) = plots.learning_curves(epochs, trials).axes
    assert len(ax.lines) == epochs["trial"].nunique() == 9
    colours = [to_hex(line.get_color()) for line in ax.lines]
    assert colours.count(plots.BEST) == 1
    assert colours.count(plots.STATE_COLOURS["running"]) == 3
    assert colours.count(plots.STATE_COLOURS["pruned"]) == 2  # the best was pruned
    assert colours.count(plots.STATE_COLOURS["complete"]) == 3
    legend = ax.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    finished = trials[trials["state"].isin(["complete", "pruned"])]
    best = finished.iloc[int(finished["valid_accuracy"].argmax())]
    assert labels[0] == f"best: trial {best['trial']}, {100 * best['valid_accuracy']:.2f} %"
    assert labels[1:] == ["complete (3)", "pruned (3)", "running (3)"]
    assert ax.lines[colours.index(plots.BEST)].get_ydata()[-1] == best["valid_accuracy"]


def test_parallel_coordinates_draw_what_varies(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    figure = plots.parallel_coordinates(run[0])
    ax = figure.axes[0]
    names = [label.get_text().replace("\n", "_") for label in ax.get_xticklabels()]
    assert names == ["learning_rate", "weight_decay", "schedule", "patience", "flip"]
    grey, coloured = (c for c in ax.collections if isinstance(c, LineCollection))
    assert len(grey.get_segments()) == 3  # the failed trials
    assert len(coloured.get_segments()) == 9
    heights = np.stack([np.asarray(segment)[:, 1] for segment in coloured.get_segments() + grey.get_segments()])
    assert (heights[:, 1] == plots.MISSING_HEIGHT).sum() == 1  # weight_decay 0 is not on a log scale
    assert (heights[:, 3] == plots.MISSING_HEIGHT).sum() == 1  # patience None
    assert {"0", "none", "onecycle", "True", "0.01"} <= set(_texts(figure))


def test_parallel_coordinates_put_learning_rates_on_a_log_scale() -> None:
    trials = pd.DataFrame({"valid_accuracy": [0.9, 0.8, 0.7], "config/learning_rate": [0.001, 0.01, 0.1]})
    for name, middle in (("config/learning_rate", 0.5), ("config/momentum", 9 / 99)):
        figure = plots.parallel_coordinates(trials.set_axis(["valid_accuracy", name], axis=1))
        segments = figure.axes[0].collections[1].get_segments()
        assert sorted(segment[0, 1] for segment in segments) == pytest.approx([0, middle, 1])


def test_importances_bars() -> None:
    frame = pd.DataFrame({"parameter": ["learning_rate", "width"], "importance": [0.75, 0.25]})
    (ax,) = plots.importances(frame).axes
    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.25]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["learning_rate", "width"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
    assert [text.get_text() for text in ax.texts] == ["75 %", "25 %"]


def test_confusion_shades_by_row_and_writes_counts() -> None:
    frame = analysis.confusion(np.array([0] * 8 + [1, 1]), np.array([0] * 6 + [1, 1, 1, 1]), ["shirt", "coat"])
    ax = plots.confusion(frame).axes[0]
    assert np.asarray(ax.images[0].get_array()).tolist() == [[0.75, 0.25], [0, 1]]
    assert {(text.get_position(), text.get_text()) for text in ax.texts} == {
        ((0, 0), "6"),
        ((1, 0), "2"),
        ((1, 1), "2"),
    }
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("prediction", "truth")
    assert ax.texts[0].get_color() == "white"


def test_learning_curve_marks_the_best_epoch(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    epochs = run[1].query("trial == 0").copy()
    epochs.loc[epochs["epoch"] == 2, "valid_accuracy"] = 0.95
    figure = plots.learning_curve(epochs)
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "accuracy", "learning\nrate"]
    assert figure.axes[2].get_xlabel() == "epoch"
    for ax in figure.axes:
        marks = [line for line in ax.lines if str(line.get_label()).startswith("best epoch")]
        assert [np.asarray(line.get_xdata()).tolist() for line in marks] == [[2, 2]]
        assert marks[0].get_label() == "best epoch 2: 95.00 %"
    assert np.asarray(figure.axes[1].lines[1].get_ydata()).tolist() == epochs["valid_accuracy"].tolist()


def _pca_figure(n: int, labels: "np.ndarray[Any, Any]", channels: int = 1) -> Figure:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, channels, 8, 8), dtype=np.uint8)
    names = [f"class {number}" for number in range(12)]
    return plots.pca(generator.normal(size=(n, 2)), np.array([0.314, 0.2]), labels, images, names)


@pytest.mark.parametrize("channels", [1, 3])
def test_pca_draws_all_points_and_pictures_that_do_not_overlap(channels: int, tmp_path: Path) -> None:
    figure = _pca_figure(120, np.arange(120) % 10, channels)
    scatter, gallery = figure.axes
    assert scatter.get_xlabel() == "first principal component (31.4 % of the variance)"
    assert scatter.get_ylabel() == "second principal component (20.0 % of the variance)"
    clouds = [cloud for cloud in scatter.collections if isinstance(cloud, PathCollection)]
    assert [len(np.asarray(cloud.get_offsets())) for cloud in clouds] == [12] * 10
    assert len({to_hex(cloud.get_facecolor()[0]) for cloud in clouds}) == 10
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"class {number}" for number in range(10)]
    boxes = np.array([image.get_extent() for image in gallery.images])
    assert 60 < len(boxes) <= 120
    left, right, bottom, top = boxes.T
    apart = (left[:, None] >= right) | (right[:, None] <= left) | (bottom[:, None] >= top) | (top[:, None] <= bottom)
    assert (apart | np.eye(len(boxes), dtype=bool)).all()
    assert gallery.get_xlim()[0] < left.min()
    assert right.max() < gallery.get_xlim()[1]
    plots.save(figure, tmp_path / "pca.png")
    assert (tmp_path / "pca.png").stat().st_size > 20_000


def test_pca_picture_is_that_of_its_point() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    images = np.stack([np.full((1, 4, 4), value, np.uint8) for value in (10, 20, 30)])
    gallery = plots.pca(points, np.array([0.5, 0.5]), np.array([0, 1, 2]), images, ["a", "b", "c"]).axes[1]
    frames = gallery.collections[0].get_edgecolor()
    for picture, frame in zip(gallery.images, frames, strict=True):
        left, right, bottom, top = picture.get_extent()
        value = int(np.asarray(picture.get_array()).flat[0])
        point = points[value // 10 - 1]
        assert np.abs([(left + right) / 2, (bottom + top) / 2] - point).max() < 0.5 * 1.06 / plots.GALLERY_CELLS + 1e-9
        assert to_hex(frame) == plots.CLASS_COLOURS[value // 10 - 1]


def test_more_than_ten_classes_differ_in_colour_or_marker() -> None:
    assert len({plots._class_style(number) for number in range(100)}) == 100


def _empty_and_tiny() -> dict[str, Figure]:
    trials, epochs = _run(1)
    nothing, none = trials.iloc[:0], epochs.iloc[:0]
    importance = pd.DataFrame({"parameter": ["width"], "importance": [1.0]})
    counts = analysis.confusion(np.array([], dtype=int), np.array([], dtype=int), ["a", "b"])
    point, picture = np.zeros((1, 2)), np.zeros((1, 1, 8, 8), np.uint8)
    lone = trials.assign(**{"config/width": pd.Series([pd.NA], dtype="Int64")})
    return {
        "best, empty": plots.best_so_far(analysis.best_so_far(nothing)),
        "best, one": plots.best_so_far(analysis.best_so_far(trials)),
        "curves, empty": plots.learning_curves(none, nothing),
        "curves, one epoch": plots.learning_curves(epochs.head(1), trials),
        "curves, no such trial": plots.learning_curves(epochs, nothing),
        "parallel, empty": plots.parallel_coordinates(nothing),
        "parallel, one": plots.parallel_coordinates(trials),
        "parallel, no accuracy": plots.parallel_coordinates(_run(6)[0].assign(valid_accuracy=np.nan)),
        "parallel, one column": plots.parallel_coordinates(pd.concat([trials, lone])),
        "importances, empty": plots.importances(importance.iloc[:0]),
        "importances, one": plots.importances(importance),
        "confusion, empty": plots.confusion(counts),
        "curve, empty": plots.learning_curve(none),
        "curve, one epoch": plots.learning_curve(epochs.head(1)),
        "curve, diverged": plots.learning_curve(epochs.assign(valid_accuracy=np.nan, train_accuracy=np.nan)),
        "pca, empty": plots.pca(point[:0], np.zeros(2), np.array([], dtype=int), picture[:0], ["a"]),
        "pca, one": plots.pca(point, np.zeros(2), np.array([0]), picture, ["a"]),
    }


def test_empty_and_tiny_frames_give_figures() -> None:
    for name, figure in _empty_and_tiny().items():
        figure.canvas.draw()
        assert figure.axes, name
        says_so = any(text.startswith(("No ", "Too few", "There are no")) for text in _texts(figure))
        assert says_so == (name.endswith(", empty") or name == "parallel, one"), name

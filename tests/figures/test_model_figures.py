"""`tuning.figures.model_figures`: what is drawn is what the arrays hold, and no array is too small to be drawn."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tuning.figures import image_grids, model_figures, style
from tuning.runs import analysis

NAMES = ["shirt", "coat", "bag"]


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def _shown(figure: Figure) -> list[int]:
    """Returns the number that each picture of a gallery is."""
    [ax] = figure.axes
    return [int(np.asarray(picture.get_array()).flat[0]) for picture in ax.images]


def _scored(n: int) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Returns images, each of one grey that is its number, labels and probabilities of three classes."""
    generator = np.random.default_rng(1)
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 6, 6))
    return images, generator.integers(0, 3, n), generator.dirichlet(np.full(3, 0.4), n)


def test_confusion_shades_by_row_and_writes_counts() -> None:
    frame = analysis.confusion(np.array([0] * 8 + [1, 1]), np.array([0] * 6 + [1, 1, 1, 1]), ["shirt", "coat"])
    ax = model_figures.confusion(frame).axes[0]
    assert np.asarray(ax.collections[0].get_array()).tolist() == [[0.75, 0.25], [0, 1]]
    assert {(text.get_position(), text.get_text()) for text in ax.texts} == {
        ((0, 0), "6"),
        ((1, 0), "2"),
        ((1, 1), "2"),
    }
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("prediction", "truth")
    assert ax.texts[0].get_color() == "white"


def _pca_figure(n: int, labels: "np.ndarray[Any, Any]", channels: int = 1) -> Figure:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, channels, 8, 8), dtype=np.uint8)
    names = [f"class {number}" for number in range(12)]
    return model_figures.pca(generator.normal(size=(n, 2)), np.array([0.314, 0.2]), labels, images, names)


@pytest.mark.parametrize("channels", [1, 3])
def test_pca_draws_all_points_and_pictures_that_do_not_overlap(channels: int, tmp_path: Path) -> None:
    figure = _pca_figure(120, np.arange(120) % 10, channels)
    scatter, gallery = figure.axes
    assert scatter.get_xlabel() == "first principal component (31.4 % of the variance)"
    assert scatter.get_ylabel() == "second principal component (20.0 % of the variance)"
    clouds = [cloud for cloud in scatter.collections if isinstance(cloud, PathCollection)]
    drawn = Counter(to_hex(cloud.get_facecolor()[0]) for cloud in clouds for _ in np.asarray(cloud.get_offsets()))
    assert sorted(drawn.values()) == [12] * 10
    assert scatter.get_aspect() == gallery.get_aspect() == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"class {number}" for number in range(10)]
    boxes = np.array([image.get_extent() for image in gallery.images])
    assert 60 < len(boxes) <= 120
    left, right, bottom, top = boxes.T
    apart = (left[:, None] >= right) | (right[:, None] <= left) | (bottom[:, None] >= top) | (top[:, None] <= bottom)
    assert (apart | np.eye(len(boxes), dtype=bool)).all()
    assert gallery.get_xlim()[0] < left.min()
    assert right.max() < gallery.get_xlim()[1]
    style.save(figure, tmp_path / "pca.png")
    assert (tmp_path / "pca.png").stat().st_size > 20_000


def test_pca_picture_is_that_of_its_point() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    images = np.stack([np.full((1, 4, 4), value, np.uint8) for value in (10, 20, 30)])
    gallery = model_figures.pca(points, np.array([0.5, 0.5]), np.array([0, 1, 2]), images, ["a", "b", "c"]).axes[1]
    frames = gallery.collections[0].get_edgecolor()
    for picture, frame in zip(gallery.images, frames, strict=True):
        left, right, bottom, top = picture.get_extent()
        value = int(np.asarray(picture.get_array()).flat[0])
        point = points[value // 10 - 1]
        middle = np.array([left + right, bottom + top]) / 2
        assert np.abs(middle - point).max() < 0.5 * 1.08 / model_figures.GALLERY_CELLS + 1e-9
        assert right - left == pytest.approx(top - bottom)
        assert to_hex(frame) == style.CLASS_COLOURS[value // 10 - 1]


def test_calibration_draws_accuracy_against_confidence_with_intervals() -> None:
    _, labels, probabilities = _scored(200)
    error, bins = analysis.calibration(labels, probabilities)
    reliability, images = model_figures.calibration(error, bins).axes
    filled = bins[bins["count"] > 0]
    diagonal, model = reliability.lines
    assert np.asarray(diagonal.get_xydata()).tolist() == [[0, 0], [1, 1]]
    assert np.asarray(model.get_xydata()).tolist() == filled[["confidence", "accuracy"]].to_numpy().tolist()
    (intervals,) = (c for c in reliability.collections if isinstance(c, LineCollection))
    ends = np.array([np.asarray(segment)[:, 1] for segment in intervals.get_segments()])
    assert ends.tolist() == filled[["accuracy_low", "accuracy_high"]].to_numpy().tolist()
    assert [bar.get_height() for bar in images.patches] == filled["count"].tolist()
    assert [bar.get_x() for bar in images.patches] == filled["lower"].tolist()
    legend = reliability.get_legend()
    assert legend is not None and legend.get_title().get_text() == f"calibration error {100 * error:.2f} %"


def test_worst_mistakes_show_each_image_with_its_truth_and_prediction() -> None:
    images, labels, probabilities = _scored(100)
    worst = analysis.worst_mistakes(labels, probabilities)
    figure = image_grids.worst_mistakes(images, labels, probabilities, NAMES)
    assert len(worst) == 30
    assert _shown(figure) == worst.tolist()
    truth, prediction = labels[worst[0]], probabilities[worst[0]].argmax()
    assert truth != prediction
    shares = 100 * probabilities[worst[0]]
    expected = f"{NAMES[truth]}: {shares[truth]:.1f} %\n→ {NAMES[prediction]}: {shares[prediction]:.1f} %"
    assert _texts(figure)[0] == expected
    figure.draw_without_rendering()
    [ax] = figure.axes
    pictures, titles = ([each.get_window_extent() for each in group] for group in (ax.images, ax.texts))
    for picture, title in zip(pictures, titles, strict=True):  # Each is above its own picture, and on no other.
        assert picture.x0 < (title.x0 + title.x1) / 2 < picture.x1 and 0 < title.y0 - picture.y1 < 20
        assert title.x0 >= 0 and title.y1 <= figure.bbox.height
        assert not any(title.overlaps(other) for other in pictures)
    assert not any(one.overlaps(two) for one, two in itertools.combinations(titles, 2))


def test_a_picture_keeps_its_shape() -> None:
    wide = np.zeros((2, 1, 10, 20), np.uint8)
    figure = image_grids.worst_mistakes(wide, np.array([0, 1]), np.array([[0.1, 0.9], [0.8, 0.2]]), ["a", "b"])
    figure.draw_without_rendering()
    for picture in figure.axes[0].images:
        box = picture.get_window_extent()
        assert box.width / box.height == pytest.approx(2.0)


def test_few_mistakes_leave_the_rest_of_their_row_blank() -> None:
    images, labels, probabilities = _scored(12)
    labels = probabilities.argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % 3
    figure = image_grids.worst_mistakes(images, labels, probabilities, NAMES)
    assert len(figure.axes[0].images) == len(_texts(figure)) == 2
    assert not any(ax.axison for ax in figure.axes)


def test_a_model_has_every_picture_by_the_name_of_its_file(tmp_path: Path) -> None:
    images, labels, probabilities = _scored(60)
    components = analysis.pca(np.random.default_rng(0).normal(size=(60, 5)))
    draw = model_figures.drawings_of_model(labels, probabilities, images, NAMES, components)
    figures = {name: make() for name, make in draw.items()}
    assert set(figures) == {"confusion", "calibration", "pca", "mistakes"}
    for name, figure in figures.items():
        style.save(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000, name
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    assert {int(text) for text in _texts(figures["confusion"])} == set(counts[counts > 0].tolist())


def test_nothing_and_little_give_figures() -> None:
    none, point = np.array([], dtype=int), np.zeros((1, 2))
    picture, sure = np.zeros((1, 1, 8, 8), np.uint8), np.array([[1.0, 0.0]])
    for name, figure in {
        "confusion, empty": model_figures.confusion(analysis.confusion(none, none, ["a", "b"])),
        "pca, empty": model_figures.pca(point[:0], np.zeros(2), none, picture[:0], ["a"]),
        "pca, one": model_figures.pca(point, np.zeros(2), np.array([0]), picture, ["a"]),
        "calibration, one": model_figures.calibration(*analysis.calibration(np.array([0]), sure)),
        "mistakes, empty": image_grids.worst_mistakes(picture, np.array([0]), sure, ["a", "b"]),
        "mistakes, one": image_grids.worst_mistakes(picture, np.array([1]), sure, ["a", "b"]),
    }.items():
        figure.canvas.draw()
        says_so = any(text.startswith(("No ", "There are no")) for text in _texts(figure))
        assert says_so == name.endswith(", empty"), name


def test_labels_to_check_show_both_classes_and_the_file() -> None:
    images, _, _ = _scored(40)
    found = pd.DataFrame(
        {
            "image": [f"dir/{i} of a series with a long name.png" for i in range(40)],
            "label": "_a $long$ name",
            "predicted": "bag_of_long_handles_and_many_pockets",
            "label_probability": 0.0123,
            "predicted_probability": 0.9,
        }
    )
    figure = image_grids.suspects(images, found)
    assert _shown(figure) == list(range(30))
    assert _texts(figure)[0] == "_a \\$long\\$ name: 1.2 %\n→ bag_of_long_handle…_\nmany_pockets: 90.0 %"
    assert _texts(figure)[7] == "3 of a ser…ng name.png"
    assert _texts(image_grids.suspects(images, found[:0])) == ["The models agree with every label."]


def test_names_of_any_kind_are_drawn_as_they_are() -> None:
    names = ["_hidden", "$x$ costs", "a name that is so long that no axis has any room for it"]
    labels = np.arange(3)
    pca = model_figures.pca(np.eye(3, 2), np.array([0.5, 0.5]), labels, np.zeros((3, 3, 8, 8), np.uint8), names)
    shown = [text.get_text() for text in pca.legends[0].get_texts()]
    assert shown == [" _hidden", r"\$x\$ costs", "a name that is…any room for it"]
    matrix = model_figures.confusion(analysis.confusion(labels, labels, names))
    matrix.draw_without_rendering()
    ax = matrix.axes[0]
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0, label.get_text()


def test_many_classes_have_smaller_cells() -> None:
    labels = np.arange(40)
    few, many = (
        model_figures.confusion(analysis.confusion(labels[:n], labels[:n], [str(i) for i in range(n)]))
        for n in (20, 40)
    )
    assert many.get_figwidth() < 1.4 * few.get_figwidth()


def test_of_a_thousand_classes_the_matrix_shows_the_hundred_that_are_most_often_confused() -> None:
    labels = np.repeat(np.arange(1000), 10)
    predictions = labels.copy()
    predictions[: 10 * 120 : 10] += 1  # Of 120 classes one image in ten is taken for the next class.
    predictions[5:10] = 1  # The first class is confused most.
    frame = analysis.confusion(labels, predictions, [f"class {i}" for i in range(1000)])
    figure = model_figures.confusion(frame)
    width, height = figure.get_size_inches() * style.DPI
    assert width * height * 4 < 200e6
    ax = figure.axes[0]
    shares = np.asarray(ax.collections[0].get_array())
    assert shares.shape == (100, 100) and len(ax.texts) <= 100**2
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[:2] == ["class 0", "class 1"] and names == sorted(names, key=lambda name: int(name.split()[1]))
    assert shares[0, 1] == 0.6 and shares[-1, -1] == 0.9  # Shares of all images of a class.
    assert ax.get_title(loc="left") == "The 100 of 1,000 classes that are most often confused"


@pytest.mark.parametrize("n", [100, 101, 400])
def test_classes_that_a_legend_names_can_be_told_apart_and_the_others_are_grey(n: int) -> None:
    labels = np.concatenate([np.arange(n), np.arange(n)[-100:]])
    names, points = [f"class {i}" for i in range(n)], np.random.default_rng(0).normal(size=(len(labels), 2))
    images = np.zeros((len(labels), 1, 4, 4), np.uint8)
    figure = model_figures.pca(points, np.array([0.5, 0.2]), labels, images, names)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    handles = [handle for handle in figure.legends[0].legend_handles if isinstance(handle, PathCollection)]
    looks = {(to_hex(each.get_facecolor()[0]), each.get_paths()[0].vertices.tobytes()) for each in handles}
    assert len(looks) == len(legend)
    others = {100: [], 101: ["1 other"], 400: ["300 others"]}[n]
    assert legend == names[-100:] + others
    clouds = [cloud for cloud in figure.axes[0].collections if isinstance(cloud, PathCollection)]
    assert sum(len(np.asarray(cloud.get_offsets())) for cloud in clouds) == len(labels)
    assert len(clouds) <= 8 * 101


def test_a_legend_of_many_rows_leaves_the_panels_their_height() -> None:
    heights = []
    for n in (4, 90):
        labels, names = np.arange(180) % n, [f"a class whose name is long, {i}" for i in range(n)]
        points = np.random.default_rng(0).normal(size=(180, 2))
        figure = model_figures.pca(points, np.array([0.5, 0.2]), labels, np.zeros((180, 1, 4, 4), np.uint8), names)
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.95 * heights[0]

"""Pictures of a model and of images: what it confuses, how honest its confidence is, what it sees, where it errs.

What must never live here: the numbers themselves (`analysis`), files (`style.save` writes), the choice of a split.
Nothing to draw gives a figure that says so.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from tuning.base.errors import counted
from tuning.figures import image_grids
from tuning.figures.style import (
    CLASS_COLOURS,
    FAINT,
    INK,
    LABEL,
    MOST_CONFUSED,
    OTHERS,
    STATE_COLOURS,
    TICK,
    TITLE,
    class_style,
    count_axis,
    dress,
    legend_name,
    mosaic,
    named_classes,
    nothing,
    per_cent,
    plain,
    share_axis,
    shortened,
    single,
    wrapped,
)
from tuning.runs import analysis

GALLERY_CELLS = 30  # pictures along the longer side of the PCA figure's panels
PANEL, LAYERS = 7.6, 8  # inches of that side; layers that the marks are drawn in
# Inches of a sample image; where images are larger than the side in pixels, and there are few classes, the larger.
CELL, LARGE_CELL, SMALL_SIDE, FEW_CLASSES = 0.53, 0.8, 48, 20
LETTER, NAME_LETTERS, MOST_LETTERS = 0.085, 24, 30  # Inches of a letter, letters in a line of a name, and of one alone.
MATRIX_CELL = 0.56  # Inches of a cell of the confusion matrix; with more than a few classes they are smaller.
LEGEND_ROW = 0.21  # Inches of a row of the PCA figure's legend.
BARS = 2.2  # Inches of the panel with counts.

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


def drawings_of_model(
    labels: Integers,
    probabilities: Floats,
    images: npt.NDArray[np.uint8],
    class_names: Sequence[str],
    components: analysis.PCA2,
) -> dict[str, Callable[[], Figure]]:
    """Returns what draws each picture of a model on a split, by its file's name: confusion, calibration, pca, mistakes.

    Args:
        labels: int (N,), 0 to C - 1.
        probabilities: float (N, C); a row adds up to 1.
        images: uint8 (N, C, H, W).
        class_names: The classes' names.
        components: Of the images' features, two or more.
    """
    return {
        "confusion": lambda: confusion(analysis.confusion(labels, probabilities.argmax(axis=1), class_names)),
        "calibration": lambda: calibration(*analysis.calibration(labels, probabilities)),
        "pca": lambda: pca(components.points, components.explained, labels, images, class_names),
        "mistakes": lambda: image_grids.worst_mistakes(images, labels, probabilities, class_names),
    }


def confusion(frame: pd.DataFrame) -> Figure:
    """Returns the confusion matrix: counts as text, shaded by their share of the row; a 0 is left blank.

    Of more than a hundred classes, those are shown that are most often confused.

    Args:
        frame: Counts, rows truth and columns prediction, from `analysis.confusion`.
    """
    n_images, n_classes = frame.sum(axis=1).to_numpy(dtype=float), len(frame)
    places = analysis.most_confused(frame, MOST_CONFUSED)
    frame, n_images = frame.iloc[places, places], n_images[places]
    counts = frame.to_numpy(dtype=float)
    names = [plain(shortened(str(name), MOST_LETTERS)) for name in frame.index]
    size, cell = (TICK, MATRIX_CELL) if len(frame) <= FEW_CLASSES else (TICK - 2, 0.6 * MATRIX_CELL)
    side, aside = cell * max(5, len(frame)), LETTER * size / TICK * max(len(name) for name in names)
    # The names below are slanted, and those on the left are not.
    figure, ax = single(side + aside + 1.9, side + 0.65 * aside + 0.6)
    if n_images.sum() == 0:
        return nothing(figure, ax, "No image was classified.")
    shares = counts / np.maximum(n_images[:, None], 1)
    # The square root gives the few mistakes, which are what one looks for, a visible shade.
    # Of a hundred classes `imshow`, which makes an image of the figure's pixels, takes 0.9 GB more.
    edges = np.arange(len(frame) + 1) - 0.5
    shade = ax.pcolormesh(edges, edges, shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    ax.set(aspect="equal", ylim=edges[[-1, 0]])
    for row, column in np.argwhere(counts > 0):
        colour = "white" if shares[row, column] > 0.35 else INK
        weight = "bold" if row == column else "normal"
        text = f"{counts[row, column]:.0f}"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=size, fontweight=weight)
    ax.set_xticks(range(len(frame)), names, rotation=40, ha="right", va="top")
    ax.tick_params(axis="x", rotation=40)
    ax.set_yticks(range(len(frame)), names)
    for label in ax.get_xticklabels():
        label.set_rotation_mode("anchor")
    ax.tick_params(length=0, labelsize=size)
    ax.set_xlabel("prediction", fontsize=LABEL)
    ax.set_ylabel("truth", fontsize=LABEL)
    if len(frame) < n_classes:
        title = f"The {len(frame)} of {n_classes:,} classes that are most often confused"
        ax.set_title(title, fontsize=TITLE, color=INK, loc="left")
    ax.spines[:].set_visible(False)
    ax.grid(False)
    bar = figure.colorbar(shade, ax=ax, shrink=0.8, aspect=30, pad=0.02, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    share_axis(bar.ax.yaxis)
    bar.ax.tick_params(labelsize=TICK)
    bar.outline.set_visible(False)
    bar.set_label("share of the true class", fontsize=LABEL)
    return figure


def calibration(error: float, bins: pd.DataFrame) -> Figure:
    """Returns the reliability plot: accuracy against confidence by bin, with intervals, and how many images each has.

    Args:
        error: The expected calibration error, in [0, 1].
        bins: lower, upper, count, confidence, accuracy, accuracy_low and accuracy_high; with `error` from
            `analysis.calibration`.
    """
    figure = Figure(figsize=(5.6, 6.4), layout="constrained")
    reliability, images = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1.2))
    for ax in (reliability, images):
        dress(ax)
    filled = bins[bins["count"] > 0]
    text = f"calibration error {per_cent(error, 2)}"
    reliability.plot([0, 1], [0, 1], color=INK, lw=1.0, ls="--", label="as sure as right")
    x, low, high = filled["confidence"], filled["accuracy_low"], filled["accuracy_high"]
    reliability.vlines(x, low, high, color=STATE_COLOURS["complete"], lw=1.6, label="95 % interval")
    reliability.plot(x, filled["accuracy"], color=STATE_COLOURS["complete"], lw=1.0, marker="o", ms=5, label="model")
    reliability.set_ylabel("accuracy", fontsize=LABEL)
    reliability.set_ylim(0, 1.02)
    reliability.legend(loc="upper left", fontsize=TICK, frameon=False, title=text, title_fontsize=LABEL)
    widths = filled["upper"] - filled["lower"]
    images.bar(filled["lower"], filled["count"], widths, align="edge", color=STATE_COLOURS["running"], ec="white")
    images.set_yscale("log")
    images.set_ylim(bottom=0.8)
    count_axis(images.yaxis)
    images.set_ylabel("images", fontsize=LABEL)
    images.set_xlabel("confidence (probability of the predicted class)", fontsize=LABEL)
    images.set_xlim(0, 1)
    for axis in (reliability.yaxis, images.xaxis):
        share_axis(axis)
    figure.align_ylabels((reliability, images))
    return figure


def pca(
    points: npt.NDArray[np.floating[Any]],
    explained: npt.NDArray[np.floating[Any]],
    labels: Integers,
    images: npt.NDArray[np.uint8],
    class_names: Sequence[str],
) -> Figure:
    """Returns the images on two principal components: as coloured marks, and as themselves in the same plane.

    Of more than a hundred classes, those with the most images have a colour, and the others are grey.

    The plane is cut into cells; of the images in one, that nearest to its middle is drawn there, moved by at most half
    a cell.

    Args:
        points: float (N, 2), or more columns, of which the first two are drawn.
        explained: float (2,) or more, the components' shares of variance, in [0, 1].
        labels: int (N,), 0 to C - 1.
        images: uint8 (N, C, H, W) of one or three channels; one channel is drawn as ink on paper (255 is black).
        class_names: The classes' names.
    """
    if len(points) == 0:
        return nothing(*single(6.0, 3.0), "There are no images.")
    plane = points[:, :2].astype(float)
    low, high = plane.min(axis=0), plane.max(axis=0)
    span = 1.08 * np.where(high > low, high - low, 1.0)
    span = np.maximum(span, 0.6 * span[::-1])  # Neither side of a panel is much longer than the other.
    numbers = named_classes(labels, len(class_names))
    drawn = [number for number in np.unique(labels).tolist() if number in numbers]
    others = np.setdiff1d(labels, drawn)
    names = [legend_name(shortened(class_names[number], MOST_LETTERS)) for number in drawn]
    names += [counted(len(others), "other")] if len(others) else []
    width, height = PANEL / span.max() * span * (2, 1) + (1.6, 1.2)
    columns = max(1, min(10, int(width / (LETTER * max(map(len, names)) + 0.4))))
    height += LEGEND_ROW * ((len(names) - 1) // columns)
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", h_pad=0.1)
    scatter, gallery = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax in (scatter, gallery):
        dress(ax)
        ax.grid(False)
        ax.spines[:].set_visible(True)
        ax.spines[:].set_color(FAINT)
        ax.set_aspect("equal")
    size = float(np.clip(30_000 / len(plane), 7, 40))
    look: dict[str, Any] = {"s": size, "alpha": 0.65, "lw": 0, "rasterized": True}
    below = plane[np.isin(labels, others)]
    grey = [scatter.scatter(*below.T, **look, color=OTHERS, marker=".")] if len(others) else []
    handles: dict[int, PathCollection] = {}
    # In layers, so that no class is on top of all others.
    for layer in range(LAYERS):
        for number in drawn:
            chosen = plane[layer::LAYERS][labels[layer::LAYERS] == number]
            colour, marker = class_style(numbers[number])
            marks = scatter.scatter(*chosen.T, **look, color=colour, marker=marker)
            handles.setdefault(number, marks)
    cell = span.max() / GALLERY_CELLS
    side = 0.92 * cell
    frames, colours = [], []
    for index, middle in _nearest_to_cells(plane, cell):
        x, y = np.subtract(middle, side / 2)
        picture = images[index].transpose(1, 2, 0)
        extent = (x, x + side, y, y + side)
        gallery.imshow(picture, cmap="gray_r", vmin=0, vmax=255, extent=extent, aspect="auto", zorder=2)
        frames.append(Rectangle((x, y), side, side))
        place = numbers.get(int(labels[index]))
        colours.append(OTHERS if place is None else class_style(place)[0])
    gallery.add_collection(PatchCollection(frames, facecolor="none", edgecolor=colours, linewidth=1.3, zorder=3))
    gallery.set_aspect("equal")  # `imshow` has set it otherwise.
    (left, bottom), (right, top) = (low + high - span) / 2, (low + high + span) / 2
    gallery.set(xlim=(left, right), ylim=(bottom, top))
    for ax in (scatter, gallery):
        ax.set_xlabel(f"first principal component ({per_cent(explained[0], 1)} of the variance)", fontsize=LABEL)
        ax.set_ylabel(f"second principal component ({per_cent(explained[1], 1)} of the variance)", fontsize=LABEL)
    legend = figure.legend(
        [*handles.values(), *grey],
        names,
        loc="outside lower center",
        ncols=columns,
        fontsize=LABEL,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set(sizes=[60], alpha=1)
    return figure


def data_overview(
    samples: npt.NDArray[np.uint8],
    means: npt.NDArray[np.floating[Any]],
    counts: Mapping[str, Integers],
    class_names: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Returns a row a class: sample images, the mean image, and how many images each split has.

    Args:
        samples: uint8 (n_classes, k, C, H, W) of one or three channels; one channel is drawn as ink on paper.
        means: float (n_classes, C, H, W) in [0, 255].
        counts: Split -> images per class, (n_classes,).
        class_names: The classes' names; long ones are wrapped, and the longest cut.
        title: Of the samples.
    """
    n_classes, k = samples.shape[:2]
    rows, labels = np.arange(n_classes), [plain(wrapped(name, NAME_LETTERS)) for name in class_names]
    cell = CELL if n_classes > FEW_CLASSES or samples.shape[3] <= SMALL_SIDE else LARGE_CELL
    # Placed by inches, so that a row is at one height in all panels, however long the names are.
    names = 0.15 + LETTER * max(len(line) for label in labels for line in label.split("\n"))
    starts = [names, names + (k + 0.2) * cell, names + (k + 1.5) * cell]
    width, height = starts[2] + BARS + 0.4, 0.7 + cell * n_classes + 0.35
    figure = Figure(figsize=(width, height))
    left, middle, right = (
        figure.add_axes((start / width, 0.35 / height, wide / width, cell * n_classes / height))
        for start, wide in zip(starts, (k * cell, cell, BARS), strict=True)
    )
    mean_images = means.round().astype(np.uint8)[:, None]
    for ax, images, heading in ((left, samples, title), (middle, mean_images, "mean")):
        extent = (0, images.shape[1], n_classes - 0.5, -0.5)
        ax.imshow(mosaic(_square(images), edge=2), cmap="gray_r", vmin=0, vmax=255, extent=extent)
        ax.set_title(heading, fontsize=LABEL)
        ax.set_xticks([])
        ax.set_yticks(rows, labels if ax is left else [""] * n_classes)
        ax.tick_params(length=0, labelsize=TICK)
        ax.spines[:].set_visible(False)
    dress(right)
    right.grid(False)
    ends = np.zeros(n_classes, dtype=np.int64)
    for (split, values), colour in zip(counts.items(), CLASS_COLOURS, strict=False):
        right.barh(rows, values, left=ends, height=0.62, color=colour, label=split)
        ends = ends + values
    for row, total in enumerate(ends.tolist()):
        right.text(total, row, f" {total:,}", va="center", ha="left", fontsize=TICK, color=INK)
    right.set_ylim(n_classes - 0.5, -0.5)
    right.set_xlim(0, 1.2 * max(1, ends.max()))
    right.set_yticks([])
    right.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    count_axis(right.xaxis)
    right.set_title("images per class", fontsize=LABEL, pad=22)
    right.legend(
        loc="lower center", bbox_to_anchor=(0.45, 1), borderaxespad=0.1, ncols=len(counts), fontsize=TICK,
        frameon=False, handlelength=1, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
    return figure


def _square(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns images (rows, columns, C, H, W) with blank borders beside those that are no squares."""
    channels, height, width = images.shape[2:]
    side = max(height, width)
    borders = [((side - each) // 2, (side - each + 1) // 2) for each in (height, width)]
    blank = 0 if channels == 1 else 255
    return np.pad(images, ((0, 0), (0, 0), (0, 0), *borders), constant_values=blank)


def _nearest_to_cells(points: npt.NDArray[np.float64], cell: float) -> list[tuple[int, tuple[float, float]]]:
    """Returns, for each square of a grid that holds a point, the index of that nearest its middle, and the middle."""
    cells = np.floor(points / cell)
    offsets = np.abs(points / cell - cells - 0.5).max(axis=1)
    nearest: dict[tuple[float, float], int] = {}
    for index in np.argsort(offsets, kind="stable"):
        nearest.setdefault((cells[index, 0], cells[index, 1]), int(index))
    return [(index, ((x + 0.5) * cell, (y + 0.5) * cell)) for (x, y), index in nearest.items()]

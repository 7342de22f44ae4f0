"""Figures from frames and arrays: each function returns a matplotlib `Figure`, and `save` writes one to disk.

Figures are objects: no pyplot, no backend, no rcParams, so they can be drawn in any thread without a display. What must
never live here: the numbers themselves (`analysis`) and the reading of runs (`results`). A frame with no rows gives a
figure that says so.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PatchCollection, PathCollection
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from tuning.errors import disk_full

DPI = 150
# Ten colours for readers with and without a colour vision deficiency: the smallest OKLab distance between two of them,
# over normal vision and full protan-, deuteran- and tritanopia (Machado et al. 2009), is 15.1; tab10's is 0.7.
CLASS_COLOURS = (
    "#4563de", "#c9d200", "#8d1100", "#16dfff", "#27239f", "#905c83", "#d3430b", "#639fff", "#520047", "#e6888c",
)  # fmt: skip
CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
STATE_COLOURS = {"complete": "#3f90da", "pruned": "#ffa90e", "failed": "#bd1f01", "running": "#94a4a2"}
BEST, INK, FAINT = "#111111", "#333333", "#d0d0d0"
TITLE, LABEL, TICK = 11, 10, 9  # font sizes in points
LOG_SCALED = ("learning_rate", "weight_decay")
GALLERY_CELLS = 25  # pictures along one side of the PCA figure; each about 35 pixels wide at 150 dots an inch
MISSING_HEIGHT = -0.09  # where the parallel coordinates put a value that their axis cannot show

Integers = npt.NDArray[np.integer[Any]]


def save(figure: Figure, path: Path) -> None:
    """Writes the figure at 150 dots an inch, in the format of the path's suffix; a reader never sees half a file.

    Raises:
        UserError: The disk is full.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=DPI)
        temporary.replace(path)
    except OSError as error:
        raise disk_full(path, error) or error from error
    finally:
        temporary.unlink(missing_ok=True)


def best_so_far(frame: pd.DataFrame) -> Figure:
    """Returns each finished trial as a dot and the best accuracy so far as a step line, against minutes.

    The axis leaves out trials far below the others; a triangle on its lower edge stands for each of them.

    Args:
        frame: trial, ended_seconds, valid_accuracy and best, from `analysis.best_so_far`.
    """
    figure, ax = _single(7.0, 4.2)
    if frame.empty:
        return _nothing(figure, ax, "No trial has finished yet.")
    minutes, accuracy = frame["ended_seconds"] / 60, frame["valid_accuracy"]
    low, high = accuracy_limits(accuracy)
    shown = accuracy >= low
    ax.step(minutes, frame["best"], where="post", color=INK, lw=1.8, label="best so far")
    ax.scatter(minutes[shown], accuracy[shown], s=26, color=STATE_COLOURS["complete"], alpha=0.8, lw=0, label="a trial")
    if not shown.all():
        floor = np.full(int((~shown).sum()), low)
        label = "a trial below the axis"
        ax.scatter(minutes[~shown], floor, s=34, marker="v", color=STATE_COLOURS["failed"], clip_on=False, label=label)
    last = frame.iloc[int(accuracy.argmax())]
    text = f"trial {last['trial']:.0f}: {_per_cent(last['best'], 2)}"
    x = last["ended_seconds"] / 60
    left = x < (minutes.min() + minutes.max()) / 2
    align, shift = ("left", 4) if left else ("right", -4)
    ax.annotate(text, (x, last["best"]), (shift, 7), textcoords="offset points", ha=align, fontsize=LABEL, color=BEST)
    ax.set_ylim(low, high)
    ax.set_xlim(left=0)
    _accuracy_axis(ax)
    ax.set_xlabel("minutes since the search began", fontsize=LABEL)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=TICK, frameon=False, borderaxespad=0.2)
    return figure


def best_so_far_of(curves: pd.DataFrame) -> Figure:
    """Returns the best accuracy so far of several runs as step lines against their cost, a marker at the end of each.

    A dotted line stands at the cost that all of them reached.

    Args:
        curves: run, slot_minutes and best, from `compare.curves`.
    """
    figure, ax = _single(7.0, 4.6)
    known = curves[curves["best"].notna()]
    if known.empty:
        return _nothing(figure, ax, "No epoch has finished yet.")
    for number, (name, curve) in enumerate(known.groupby("run", sort=False)):
        colour, marker = _class_style(number)
        label = f"{name}: {_per_cent(curve['best'].max(), 2)}"
        x, y = curve["slot_minutes"], curve["best"]
        ax.step(x, y, where="post", color=colour, lw=1.8, marker=marker, ms=7, markevery=[-1], label=label)
    common = float(curves.groupby("run")["slot_minutes"].max().min())
    ax.axvline(common, color=INK, lw=1.0, ls=":", zorder=1, label=f"equal cost: {common:.1f} slot minutes")
    ax.set_ylim(*accuracy_limits(known["best"]))
    ax.set_xlim(left=0)
    _accuracy_axis(ax, "best validation accuracy so far")
    ax.set_xlabel("slot minutes (training time, summed over the trials)", fontsize=LABEL)
    ax.legend(loc="lower right", fontsize=TICK, framealpha=0.9, edgecolor="none")
    return figure


def learning_curves(epochs: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Returns the validation accuracy by epoch, a line a trial in the colour of its state, the best one on top.

    Args:
        epochs: A run's epochs.
        trials: The same run's trials.
    """
    figure, ax = _single(7.0, 4.6)
    rows = epochs[epochs["valid_accuracy"].notna()].sort_values(["trial", "epoch"])
    if rows.empty:
        return _nothing(figure, ax, "No epoch has finished yet.")
    states = dict(zip(trials["trial"], trials["state"], strict=True))
    finished = trials[trials["state"].isin(("complete", "pruned")) & trials["valid_accuracy"].notna()]
    best = None if finished.empty else int(finished["trial"].iloc[int(finished["valid_accuracy"].argmax())])
    n_trials = rows["trial"].nunique()
    for number, curve in rows.groupby("trial"):
        state = states.get(number, "running")
        marker = "o" if len(curve) == 1 else ""
        colour, width, layer = (BEST, 2.4, 4) if number == best else (STATE_COLOURS[state], 1.2, 2)
        alpha = 1.0 if number == best else 0.85 if n_trials <= 30 else 0.5
        x, y = curve["epoch"], curve["valid_accuracy"]
        ax.plot(x, y, marker=marker, ms=4, color=colour, lw=width, alpha=alpha, zorder=layer)
    handles = [
        Line2D([], [], color=colour, lw=2, label=f"{state} ({count})")
        for state, colour in STATE_COLOURS.items()
        if (count := sum(states.get(number, "running") == state for number in rows["trial"].unique()))
    ]
    if best is not None and (rows["trial"] == best).any():
        accuracy = rows.loc[rows["trial"] == best, "valid_accuracy"].max()
        text = f"best: trial {best}, {_per_cent(accuracy, 2)}"
        handles.insert(0, Line2D([], [], color=BEST, lw=2.4, label=text))
    ax.set_ylim(*accuracy_limits(rows["valid_accuracy"], reach=4.0))
    _accuracy_axis(ax)
    _epoch_axis(ax)
    ax.legend(handles=handles, loc="lower right", fontsize=TICK, framealpha=0.9, edgecolor="none")
    return figure


def parallel_coordinates(trials: pd.DataFrame) -> Figure:
    """Returns a line a trial through its hyperparameters (those that vary), coloured by validation accuracy.

    `learning_rate` and `weight_decay` are on a log scale. A missing value is drawn below its axis, and so is a 0 on
    a log scale; a trial without accuracy is grey.

    Args:
        trials: A run's trials; the columns config/<name> are its hyperparameters.
    """
    columns = [name for name in trials.columns if name.startswith("config/") and trials[name].nunique(dropna=False) > 1]
    figure, ax = _single(max(6.0, 1.15 * len(columns) + 2.2), 4.6)
    if not columns:
        return _nothing(figure, ax, "No hyperparameter varies yet.")
    heights = np.column_stack([_draw_coordinate(ax, x, trials[name]) for x, name in enumerate(columns)])
    accuracy = trials["valid_accuracy"].to_numpy(dtype=float, na_value=np.nan)
    known = np.isfinite(accuracy)
    segments = [np.column_stack([np.arange(len(columns)), row]) for row in heights]
    if len(columns) == 1:  # a line needs two ends
        segments = [np.array([[-0.12, row[0]], [0.12, row[0]]]) for row in heights]
    grey = [segments[i] for i in np.flatnonzero(~known)]
    ax.add_collection(LineCollection(grey, colors=FAINT, linewidths=1.0, zorder=1))
    if known.any():
        low, _ = accuracy_limits(pd.Series(accuracy[known]), reach=2.5)
        norm = Normalize(low, max(float(accuracy[known].max()), low + 1e-9))
        order = [i for i in np.argsort(accuracy, kind="stable") if known[i]]
        colours = colormaps["viridis_r"](norm(accuracy[order]))
        widths = 0.7 + 1.8 * np.linspace(0, 1, len(order)) ** 3  # the best stand out
        ax.add_collection(
            LineCollection([segments[i] for i in order], colors=colours, linewidths=widths, alpha=0.85, zorder=2)
        )
        extend = "min" if accuracy[known].min() < low else "neither"
        bar = figure.colorbar(ScalarMappable(norm, "viridis_r"), ax=ax, pad=0.02, aspect=30, extend=extend)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _per_cent(value, 1)))
        bar.ax.tick_params(labelsize=TICK)
        bar.set_label("validation accuracy", fontsize=LABEL)
    ax.set_xlim(-0.6, len(columns) - 0.4)
    ax.set_ylim(-0.13 if (heights < 0).any() else -0.04, 1.04)
    ax.set_yticks([])
    names = [name.removeprefix("config/").replace("_", "\n") for name in columns]
    ax.set_xticks(range(len(columns)), names, fontsize=LABEL, color=INK)
    ax.tick_params(axis="x", length=0, pad=4)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return figure


def importances(frame: pd.DataFrame) -> Figure:
    """Returns the importance of each hyperparameter as a horizontal bar, the largest on top.

    Args:
        frame: parameter and importance, from `analysis.importances`.
    """
    figure, ax = _single(6.4, 1.2 + 0.32 * max(3, len(frame)))
    if frame.empty:
        return _nothing(figure, ax, "Too few finished trials to tell what matters.")
    bars = ax.barh(frame["parameter"], frame["importance"], color=STATE_COLOURS["complete"], height=0.68)
    ax.bar_label(bars, [_per_cent(value, 0) for value in frame["importance"]], padding=4, fontsize=TICK, color=INK)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * float(frame["importance"].max()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _per_cent(value, 0)))
    ax.set_xlabel("importance (PED-ANOVA, share of the sum)", fontsize=LABEL)
    ax.tick_params(axis="y", length=0, labelsize=LABEL)
    ax.spines["left"].set_visible(False)
    ax.grid(False, axis="y")
    return figure


def confusion(frame: pd.DataFrame) -> Figure:
    """Returns the confusion matrix: counts as text, shaded by their share of the row; a 0 is left blank.

    Args:
        frame: Counts, rows truth and columns prediction, from `analysis.confusion`.
    """
    counts = frame.to_numpy(dtype=float)
    side = 2.2 + 0.56 * max(4, len(frame))
    figure, ax = _single(side + 0.8, side)
    if counts.sum() == 0:
        return _nothing(figure, ax, "No image was classified.")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The square root gives the few mistakes, which are what one looks for, a visible shade.
    shade = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    for row, column in np.argwhere(counts > 0):
        colour = "white" if shares[row, column] > 0.35 else INK
        weight = "bold" if row == column else "normal"
        text = f"{counts[row, column]:.0f}"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=TICK, fontweight=weight)
    ax.set_xticks(range(len(frame)), [str(name) for name in frame.columns], rotation=40, ha="right", va="top")
    ax.tick_params(axis="x", rotation=40)
    ax.set_yticks(range(len(frame)), [str(name) for name in frame.index])
    for label in ax.get_xticklabels():
        label.set_rotation_mode("anchor")
    ax.tick_params(length=0, labelsize=TICK)
    ax.set_xlabel("prediction", fontsize=LABEL)
    ax.set_ylabel("truth", fontsize=LABEL)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    bar = figure.colorbar(shade, ax=ax, shrink=0.8, aspect=30, pad=0.02, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _per_cent(value, 0)))
    bar.ax.tick_params(labelsize=TICK)
    bar.outline.set_visible(False)
    bar.set_label("share of the true class", fontsize=LABEL)
    return figure


def learning_curve(epochs: pd.DataFrame) -> Figure:
    """Returns one model's loss and accuracy (train and valid) and, below them, its learning rate, by epoch.

    The epoch of the highest validation accuracy is marked.

    Args:
        epochs: The epochs of a single trial or of the final model.
    """
    figure = Figure(figsize=(7.0, 6.4), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 1.3))
    loss, accuracy, rate = panels
    for ax in panels:
        _style(ax)
    if epochs.empty:
        for ax in (loss, rate):
            ax.set_visible(False)
        return _nothing(figure, accuracy, "No epoch has finished yet.")
    rows = epochs.sort_values("epoch")
    marker = "o" if len(rows) <= 30 else ""
    for ax, metric in ((loss, "loss"), (accuracy, "accuracy")):
        for split, colour in (("train", STATE_COLOURS["pruned"]), ("valid", STATE_COLOURS["complete"])):
            ax.plot(rows["epoch"], rows[f"{split}_{metric}"], color=colour, lw=1.8, marker=marker, ms=3.5, label=split)
    rate.plot(rows["epoch"], rows["lr"], color=INK, lw=1.0, marker="o" if len(rows) == 1 else "", ms=3)
    if rows["valid_accuracy"].notna().any():
        best = rows.iloc[int(rows["valid_accuracy"].argmax())]
        label = f"best epoch {best['epoch']:.0f}: {_per_cent(best['valid_accuracy'], 2)}"
        for ax in panels:
            ax.axvline(best["epoch"], color=BEST, lw=1.0, ls="--", zorder=1, label=label)
    both = pd.concat([rows["train_accuracy"], rows["valid_accuracy"]])
    if both.notna().any():
        accuracy.set_ylim(*accuracy_limits(both, reach=10.0))
    _accuracy_axis(accuracy, "accuracy")
    loss.set_ylabel("loss", fontsize=LABEL)
    loss.legend(*accuracy.get_legend_handles_labels(), loc="upper right", fontsize=TICK, edgecolor="none")
    rate.set_ylabel("learning\nrate", fontsize=LABEL)
    rate.set_ylim(0, 1.15 * float(rows["lr"].max()))
    rate.yaxis.set_major_locator(MaxNLocator(2))
    _epoch_axis(rate)
    figure.align_ylabels(panels)
    return figure


def pca(
    points: npt.NDArray[np.floating[Any]],
    explained: npt.NDArray[np.floating[Any]],
    labels: Integers,
    images: npt.NDArray[np.uint8],
    class_names: Sequence[str],
) -> Figure:
    """Returns the images on two principal components: as coloured marks, and as themselves in the same plane.

    The plane is cut into cells; of the images in one, that nearest to its middle is drawn there, moved by at most half
    a cell.

    Args:
        points: float (N, 2), or more columns, of which the first two are drawn.
        explained: float (2,) or more, the components' shares of variance, in [0, 1].
        labels: int (N,), 0 to C - 1.
        images: uint8 (N, C, H, W) of one or three channels; one channel is drawn as ink on paper (255 is black).
        class_names: The classes' names.
    """
    figure = Figure(figsize=(13.6, 7.15), layout="constrained")
    scatter, gallery = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax in (scatter, gallery):
        _style(ax)
        ax.grid(False)
        ax.spines[:].set_visible(True)
        ax.spines[:].set_color(FAINT)
        ax.set_box_aspect(1)
    if len(points) == 0:
        gallery.set_visible(False)
        return _nothing(figure, scatter, "There are no images.")
    plane = points[:, :2].astype(float)
    size = float(np.clip(30_000 / len(plane), 7, 40))
    for number in np.unique(labels):
        chosen = plane[labels == number]
        colour, marker = _class_style(int(number))
        scatter.scatter(
            *chosen.T, s=size, color=colour, marker=marker, alpha=0.65, lw=0, rasterized=True, label=class_names[number]
        )
    low, high = plane.min(axis=0), plane.max(axis=0)
    span = np.where(high > low, high - low, 1.0) * 1.06
    centre = (low + high) / 2
    cell = span / GALLERY_CELLS
    frames, colours = [], []
    for index, (x, y) in _nearest_to_cells(plane, cell):
        (width, height) = 0.92 * cell
        x, y = x - width / 2, y - height / 2
        picture = images[index].transpose(1, 2, 0)
        extent = (x, x + width, y, y + height)
        gallery.imshow(picture, cmap="gray_r", vmin=0, vmax=255, extent=extent, aspect="auto", zorder=2)
        frames.append(Rectangle((x, y), width, height))
        colours.append(_class_style(int(labels[index]))[0])
    gallery.add_collection(PatchCollection(frames, facecolor="none", edgecolor=colours, linewidth=1.3, zorder=3))
    gallery.set_xlim(centre[0] - 0.53 * span[0], centre[0] + 0.53 * span[0])
    gallery.set_ylim(centre[1] - 0.53 * span[1], centre[1] + 0.53 * span[1])
    for ax in (scatter, gallery):
        ax.set_xlabel(f"first principal component ({_per_cent(explained[0], 1)} of the variance)", fontsize=LABEL)
        ax.set_ylabel(f"second principal component ({_per_cent(explained[1], 1)} of the variance)", fontsize=LABEL)
    legend = figure.legend(
        *scatter.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(10, len(class_names)),
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
) -> Figure:
    """Returns a row a class: sample images, the mean image, and how many images each split has.

    Args:
        samples: uint8 (n_classes, k, C, H, W) of one or three channels; one channel is drawn as ink on paper.
        means: float (n_classes, C, H, W) in [0, 255].
        counts: Split -> images per class, (n_classes,).
        class_names: The classes' names.
    """
    n_classes, k = samples.shape[:2]
    rows = np.arange(n_classes)
    figure = Figure(figsize=(3.9 + 0.54 * k, 0.65 + 0.53 * n_classes), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[k, 1, 4.2])
    mean_images = means.round().astype(np.uint8)[:, None]
    for ax, images, title in ((left, samples, f"first {k} train images"), (middle, mean_images, "mean")):
        extent = (0, images.shape[1], n_classes - 0.5, -0.5)
        ax.imshow(_mosaic(images), cmap="gray_r", vmin=0, vmax=255, extent=extent)
        ax.set_title(title, fontsize=LABEL)
        ax.set_xticks([])
        ax.set_yticks(rows, class_names if ax is left else [""] * n_classes)
        ax.tick_params(length=0, labelsize=TICK)
        ax.spines[:].set_visible(False)
    _style(right)
    right.grid(False)
    starts = np.zeros(n_classes, dtype=np.int64)
    for (split, values), colour in zip(counts.items(), CLASS_COLOURS, strict=False):
        right.barh(rows, values, left=starts, height=0.62, color=colour, label=split)
        starts = starts + values
    for row, total in enumerate(starts):
        right.text(total, row, f" {total:,}", va="center", ha="left", fontsize=TICK, color=INK)
    right.set_ylim(n_classes - 0.5, -0.5)
    right.set_xlim(0, 1.2 * max(1, starts.max()))
    right.set_yticks([])
    right.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    right.set_title("images per class", fontsize=LABEL, pad=22)
    right.legend(
        loc="lower center", bbox_to_anchor=(0.45, 0.985), ncols=len(counts), fontsize=TICK, frameon=False,
        handlelength=1, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
    return figure


def _mosaic(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns images (rows, columns, C, H, W) as one, (rows * H', columns * W', C), two blank pixels around each."""
    channels = images.shape[2]
    edges = ((0, 0), (0, 0), (0, 0), (2, 2), (2, 2))
    padded = np.pad(images, edges, constant_values=0 if channels == 1 else 255)
    rows, columns, _, height, width = padded.shape
    return padded.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)


def _class_style(number: int) -> tuple[str, str]:
    """Returns a class's colour and marker; beyond ten the colours come again with other markers."""
    return CLASS_COLOURS[number % 10], CLASS_MARKERS[(number + number // 10) % 10]


def _nearest_to_cells(
    points: npt.NDArray[np.float64], cell: npt.NDArray[np.float64]
) -> list[tuple[int, tuple[float, float]]]:
    """Returns, for each cell of a grid that holds a point, the index of that nearest to its centre, and the centre."""
    cells = np.floor(points / cell)
    offsets = np.abs(points / cell - cells - 0.5).max(axis=1)
    nearest: dict[tuple[float, float], int] = {}
    for index in np.argsort(offsets, kind="stable"):
        nearest.setdefault((cells[index, 0], cells[index, 1]), int(index))
    return [(index, ((x + 0.5) * cell[0], (y + 0.5) * cell[1])) for (x, y), index in nearest.items()]


def coordinate(values: "pd.Series[Any]") -> tuple[npt.NDArray[np.float64], list[tuple[float, str]]]:
    """Returns the height of each value on an axis of parallel coordinates, float64 (N,), and the axis' ticks.

    Heights are in [0, 1], or `MISSING_HEIGHT` for a value that the axis cannot show. A tick is a height and a text.
    """
    below = "none"
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        log = str(values.name).removeprefix("config/") in LOG_SCALED
        if log and (numbers == 0).any():
            below, numbers = "0", np.where(numbers == 0, np.nan, numbers)
        heights, ticks = _scale(numbers, log)
    else:
        names = sorted(values.dropna().astype("str").unique(), key=lambda name: (len(name), name))  # resnet8, resnet14
        ticks = [((i + 0.5) / len(names), name) for i, name in enumerate(names)]
        place = {name: height for height, name in ticks}
        heights = np.array([np.nan if pd.isna(value) else place[str(value)] for value in values])
    if np.isnan(heights).any():
        ticks.append((MISSING_HEIGHT, below))
    return np.where(np.isnan(heights), MISSING_HEIGHT, heights), ticks


def _draw_coordinate(ax: Axes, x: int, values: "pd.Series[Any]") -> npt.NDArray[np.float64]:
    """Draws one axis of the parallel coordinates with its ticks and returns the height of each trial on it, (N,)."""
    heights, ticks = coordinate(values)
    ax.plot([x, x], [0, 1], color=INK, lw=0.9, zorder=3)
    halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    for height, label in ticks:
        ax.plot([x - 0.03, x + 0.03], [height, height], color=INK, lw=0.9, zorder=3)
        ax.text(x - 0.06, height, label, ha="right", va="center", fontsize=TICK, color=INK, bbox=halo, zorder=5)
    return heights


def _scale(numbers: npt.NDArray[np.float64], log: bool) -> tuple[npt.NDArray[np.float64], list[tuple[float, str]]]:
    """Returns the numbers' heights in [0, 1] (NaN stays) and the ticks of their axis: height and text."""
    present = np.unique(numbers[~np.isnan(numbers)])
    if present.size < 2:
        return np.where(np.isnan(numbers), np.nan, 0.5), [(0.5, f"{number:g}") for number in present]
    ends = np.log10(present[[0, -1]]) if log else present[[0, -1]]

    def height(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(((np.log10(value) if log else value) - ends[0]) / (ends[1] - ends[0]))

    decades = log and ends[1] - ends[0] >= 1
    locator = LogLocator(numticks=6) if decades else MaxNLocator(5, steps=[1, 2, 5, 10])
    levels = present if present.size <= 5 else np.asarray(locator.tick_values(present[0], present[-1]))
    levels = levels[(levels >= present[0]) & (levels <= present[-1])]
    ticks: list[tuple[float, str]] = []
    for at, level in zip(height(levels), levels, strict=True):
        if not ticks or at - ticks[-1][0] > 0.07:  # else the texts overlap
            ticks.append((float(at), f"{level:.3g}"))
    return height(numbers), ticks


def accuracy_limits(accuracy: "pd.Series[Any]", reach: float = 5.0) -> tuple[float, float]:
    """Returns axis limits: down to the lowest, but at most `reach` times as far as the median is below the best."""
    values = accuracy.dropna()
    high, middle, low = float(values.max()), float(values.median()), float(values.min())
    low = max(low, high - reach * max(high - middle, 0.005))
    margin = max(0.08 * (high - low), 0.002)
    return max(0.0, low - margin), min(1.0, high + 1.5 * margin)


def _per_cent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f} %"


def _single(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure of one panel in the house style, its size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    _style(ax)
    return figure, ax


def _style(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.grid(True, color=FAINT, lw=0.5, alpha=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=TICK, colors=INK)


def _accuracy_axis(ax: Axes, label: str = "validation accuracy") -> None:
    ax.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.5g} %"))
    ax.set_ylabel(label, fontsize=LABEL)


def _epoch_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch", fontsize=LABEL)


def _nothing(figure: Figure, ax: Axes, message: str) -> Figure:
    """Returns the figure with a message where the data would be."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, message, ha="center", va="center", fontsize=TITLE, color=INK, transform=ax.transAxes)
    return figure

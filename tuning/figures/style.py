"""How every figure looks, and how it is written: colours, sizes, axes of accuracies and epochs.

Figures are objects: no pyplot, no backend, no rcParams, so they can be drawn in any thread without a display. What a
figure shows stands elsewhere (`run_charts`, `model_charts` and others).
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator

from tuning.base import files
from tuning.base.errors import UserError, each_alone
from tuning.base.numerals import apart, rounded
from tuning.base.registries import ACCURACY, Metric
from tuning.figures import fonts

DPI = 150
# Ten colours for readers with and without a colour vision deficiency: the smallest OKLab distance between two of them,
# over normal vision and full protan-, deuteran- and tritanopia (Machado et al. 2009), is 15.1; tab10's is 0.7.
CLASS_COLOURS = (
    "#4563de", "#c9d200", "#8d1100", "#16dfff", "#27239f", "#905c83", "#d3430b", "#639fff", "#520047", "#e6888c",
)  # fmt: skip
CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
MOST_NAMED = len(CLASS_COLOURS) * len(CLASS_MARKERS)  # Classes that differ in colour or marker.
MOST_CONFUSED = 100  # Classes in a confusion matrix: one of 500 took 2.6 GB to draw.
STATE_COLOURS = {
    "complete": "#3f90da", "pruned": "#ffa90e", "failed": "#bd1f01", "paused": "#832db6", "running": "#94a4a2",
}  # fmt: skip
BEST, INK, MUTED, FAINT = "#111111", "#333333", "#6b6b6b", "#d0d0d0"
OTHERS = "#b0b0b0"  # Classes that no legend names.
TITLE, LABEL, TICK = 11, 10, 9  # font sizes in points

Integers = npt.NDArray[np.integer[Any]]


def save(figure: Figure, path: Path) -> None:
    """Writes the figure at 150 dots an inch, in the format of the path's suffix; a reader never sees half a file.

    Raises:
        UserError: It cannot be written, as on a full disk.
    """
    picture = io.BytesIO()
    fonts.say(fonts.fit(figure))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph .* missing from")  # That has been said, once for all letters.
            if path.suffix == ".png":
                figure.set_dpi(DPI)
                FigureCanvasAgg(figure).print_png(picture)  # `savefig` would draw everything twice, for the layout.
            else:
                figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=DPI)
        files.write_bytes(path, picture.getvalue())
    except OSError as error:
        raise UserError(f"{path} must be a file that can be written, but got: {error.strerror}.") from error


def save_each(draw: Mapping[str, Callable[[], Figure]], folder: Path, tell: Callable[[str], None]) -> int:
    """Draws pictures and writes them as `<name>.png`; one that fails is named, and the others are drawn.

    Of one that fails, an earlier picture, which shows something else, does not stay.

    Returns:
        How many were written.

    Raises:
        UserError: The disk is full.
    """
    makers = {f"The picture {name}.png": partial(_draw, make, folder / f"{name}.png") for name, make in draw.items()}
    made = each_alone(makers, tell)
    for name in draw:
        if f"The picture {name}.png" not in made:
            with contextlib.suppress(OSError):
                (folder / f"{name}.png").unlink(missing_ok=True)
    return len(made)


def _draw(make: Callable[[], Figure], path: Path) -> None:
    save(make(), path)


def single(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure of one panel in the house style, its size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    dress(ax)
    return figure, ax


def dress(ax: Axes) -> None:
    """Gives a panel the house style: two spines, a faint grid behind the data, small ticks."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.grid(True, color=FAINT, lw=0.5, alpha=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=TICK, colors=INK)


def class_style(number: int) -> tuple[str, str]:
    """Returns a class's colour and marker; beyond ten the colours come again with other markers."""
    colour, marker = class_look(number)
    return CLASS_COLOURS[colour], CLASS_MARKERS[marker]


def class_look(number: int) -> tuple[int, int]:
    """Returns the places of a class's colour and marker, 0 to 9; those of a hundred classes differ."""
    return number % 10, (number + number // 10) % 10


def named_classes(labels: Integers, n_classes: int) -> dict[int, int]:
    """Returns class -> its number for `class_style`, of the classes that a legend names.

    These are all, or where they are too many to be told apart, those that have the most images.
    """
    if n_classes <= MOST_NAMED:
        return {number: number for number in range(n_classes)}
    counts = np.bincount(labels, minlength=n_classes)
    largest = np.sort(np.argsort(-counts, kind="stable")[:MOST_NAMED])
    return {number: place for place, number in enumerate(largest.tolist())}


def per_cent(share: float, digits: int) -> str:
    """Returns a share as text, e.g. "93.4 %"."""
    return f"{100 * share:.{digits}f} %"


def plain(name: str) -> str:
    """Returns a user's name as matplotlib draws it as it is: a pair of dollar signs would be mathematics."""
    return name.replace("$", r"\$")


def legend_name(name: str) -> str:
    """Returns a user's name as a legend shows it as it is: matplotlib leaves out one that begins with an underscore."""
    return plain(f" {name}" if name.startswith("_") else name)


def shortened(name: str, letters: int) -> str:
    """Returns a name of so many letters at most, a long one without its middle: names often differ in their ends."""
    if len(name) <= letters:
        return name
    end = letters // 2
    return f"{name[: letters - end - 1].rstrip()}…{name[len(name) - end :].lstrip()}"


def wrapped(name: str, letters: int, lines: int = 2) -> str:
    """Returns a name in so many lines at most, broken at its blanks, hyphens, slashes and underscores.

    What is too long for them is left out of its middle.
    """
    for length in range(letters * lines, letters, -1):
        broken = _broken(shortened(name, length), letters)
        if len(broken) <= lines:
            return "\n".join(broken)
    return shortened(name, letters)


def _broken(name: str, letters: int) -> list[str]:
    """Returns the lines of a name, each of so many letters at most."""
    lines = [""]
    for part in re.findall(r"[^ _/-]*[ _/-]|[^ _/-]+", name):
        if lines[-1] and len((lines[-1] + part).rstrip()) > letters:
            lines.append("")
        whole = lines.pop() + part
        lines += [whole[start : start + letters] for start in range(0, max(len(whole.rstrip()), 1), letters)]
    return [line.strip() for line in lines]


def share_axis(axis: Axis, digits: int = 0) -> None:
    """Makes an axis one of shares, in per cent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: per_cent(value, digits)))


def count_axis(axis: Axis) -> None:
    """Makes an axis one of counts, with commas."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


class Apart(Formatter):
    """Writes the ticks of an axis with as few digits as keep them apart."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Returns one number as text."""
        return rounded(x)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Returns all ticks as texts."""
        return apart(values)


def legend_above(ax: Axes, *entries: Any, ncols: int) -> None:
    """Puts a legend in a row above a panel; `entries` are handles and labels, where they are not the panel's own."""
    look: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False, "borderaxespad": 0.2}
    ax.legend(*entries, **look, ncols=ncols, fontsize=TICK)


def mosaic(images: npt.NDArray[np.uint8], edge: int = 0) -> npt.NDArray[np.uint8]:
    """Returns images (rows, columns, C, H, W) as one, (rows * H', columns * W', C), `edge` blank pixels around each."""
    edges = ((0, 0), (0, 0), (0, 0), (edge, edge), (edge, edge))
    padded = np.pad(images, edges, constant_values=0 if images.shape[2] == 1 else 255)
    rows, columns, channels, height, width = padded.shape
    return padded.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)


def accuracy_limits(
    accuracy: "pd.Series[Any]", reach: float = 5.0, *, least: float | None = None
) -> tuple[float, float]:
    """Returns axis limits: down to the lowest, but at most `reach` times as far as the median is below the best.

    `least` is seen in any case.
    """
    values = accuracy.dropna()
    high, middle, low = float(values.max()), float(values.median()), float(values.min())
    low = max(low, high - reach * max(high - middle, 0.005))
    low = low if least is None else min(low, least)
    margin = max(0.08 * (high - low), 0.002)
    return max(0.0, low - margin), min(1.0, high + 1.5 * margin)


def score_limits(
    values: "pd.Series[Any]", metric: Metric, reach: float = 5.0, *, least: float | None = None
) -> tuple[float, float]:
    """Returns axis limits of a metric's values, as `accuracy_limits` does; the worse end of a loss is the upper one."""
    if metric.in_per_cent:
        return accuracy_limits(values, reach, least=least)
    known = metric.sign * values.dropna()
    high, middle, low = float(known.max()), float(known.median()), float(known.min())
    low = max(low, high - reach * max(high - middle, 0.005))
    low = low if least is None else min(low, metric.sign * least)
    margin = max(0.08 * (high - low), 0.002)
    ends = sorted((metric.sign * (low - margin), metric.sign * (high + 1.5 * margin)))
    return max(0.0, ends[0]), ends[1]


def said(metric: Metric, value: float) -> str:
    """Returns a metric's value as the pictures write it: per cent with a blank, or plain."""
    return per_cent(value, 2) if metric.in_per_cent else metric.said(value)


def score_axis(ax: Axes, metric: Metric = ACCURACY, label: str = "") -> None:
    """Makes the vertical axis one of a metric's values; the label is that of the valid split unless one is given."""
    ax.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    if metric.in_per_cent:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.5g} %"))
    ax.set_ylabel(label or f"validation {metric.title}", fontsize=LABEL)


def epoch_axis(ax: Axes) -> None:
    """Makes the horizontal axis one of epochs, which are whole."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch", fontsize=LABEL)


def nothing(figure: Figure, ax: Axes, message: str) -> Figure:
    """Returns the figure with a message where the data would be."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, message, ha="center", va="center", fontsize=TITLE, color=INK, transform=ax.transAxes)
    return figure

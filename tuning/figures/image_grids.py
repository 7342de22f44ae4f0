"""Pictures of images in rows, each with what a model makes of it: the worst mistakes, the labels to check.

What must never live here: the numbers themselves (`analysis`), files (`style.save` writes), the choice of a split.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from tuning.figures.style import INK, MUTED, TICK, nothing, per_cent, plain, shortened, single, wrapped
from tuning.runs import analysis

SHARP = 32  # Pixels; larger images are drawn without hard edges between them.
MOST, COLUMNS = 30, 6
CELL, LINE = 1.85, 0.155  # Inches of an image's cell, and of a line of its texts.
MARGIN = 0.06  # Inches around an image.
LETTERS, BLANK = 22, "\N{NO-BREAK SPACE}"  # Letters in a line of such a cell.

Images = npt.NDArray[np.uint8]


def worst_mistakes(
    images: Images,
    labels: npt.NDArray[np.integer[Any]],
    probabilities: npt.NDArray[np.floating[Any]],
    class_names: Sequence[str],
) -> Figure:
    """Returns the thirty images that the model is most wrong about, the worst first: truth, prediction, probabilities.

    Args:
        images: uint8 (N, C, H, W) of one or three channels; one channel is drawn as ink on paper (255 is black).
        labels: int (N,), 0 to C - 1.
        probabilities: float (N, C); a row adds up to 1.
        class_names: The classes' names.
    """
    worst = analysis.worst_mistakes(labels, probabilities, MOST)
    if not len(worst):
        return nothing(*single(6.0, 3.0), "There are no mistakes.")
    titles = []
    for index in worst:
        both = (int(labels[index]), int(probabilities[index].argmax()))
        titles.append(_title([(class_names[number], float(probabilities[index, number])) for number in both]))
    return _grid(images[worst], titles)


def suspects(images: Images, found: pd.DataFrame) -> Figure:
    """Returns the thirty images whose label is the least likely: label and prediction, probabilities, file.

    Args:
        images: uint8 (N, C, H, W) as in `worst_mistakes`.
        found: A row an image, in their order: image, label, predicted and the probabilities of both, as in
            `suspects.csv`.
    """
    if not len(found):
        return nothing(*single(6.0, 3.0), "The models agree with every label.")
    first = found.head(MOST)
    titles = [
        _title([(row["label"], row["label_probability"]), (row["predicted"], row["predicted_probability"])])
        for row in first.to_dict("records")
    ]
    files = [plain(shortened(name.rpartition("/")[2], LETTERS)) for name in first["image"]]
    return _grid(images[: len(first)], titles, files)


def _title(classes: Sequence[tuple[str, float]]) -> str:
    """Returns the label, then the prediction, each with its probability and in two lines at most."""
    lines = []
    for (name, share), start in zip(classes, ("", f"→{BLANK}"), strict=True):
        lines.append(wrapped(f"{start}{name}: {per_cent(share, 1).replace(' ', BLANK)}", LETTERS))
    return plain("\n".join(lines)).replace(BLANK, " ")


def _grid(images: Images, titles: Sequence[str], below: Sequence[str] = ()) -> Figure:
    """Returns a figure of images in rows of six at most, each with its title and the text below it.

    All are in one panel, in inches: with a panel an image it took four times as long to draw.
    """
    columns = min(COLUMNS, len(images))
    n_rows = -(-len(images) // columns)
    above = MARGIN + LINE * (1 + max(title.count("\n") for title in titles))
    cell = CELL + 0.09 + above + LINE * bool(below)
    figure = Figure(figsize=(CELL * columns, cell * n_rows))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    side = CELL - 2 * MARGIN
    for number, (image, title) in enumerate(zip(images, titles, strict=False)):
        row, column = divmod(number, columns)
        picture = image.transpose(1, 2, 0)
        height, width = side * np.array(picture.shape[:2]) / max(picture.shape[:2])
        middle, top = CELL * (column + 0.5), cell * row + above + MARGIN
        extent = (middle - width / 2, middle + width / 2, top + (side + height) / 2, top + (side - height) / 2)
        # The pixels of a tiny image are what the network saw; those of a photo's thumbnail are not.
        smooth = "bilinear" if max(picture.shape[:2]) > SHARP else "antialiased"
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=255, interpolation=smooth, extent=extent, aspect="auto")
        ax.text(middle, top - 0.04, title, fontsize=TICK, color=INK, ha="center", va="bottom")
        if below:
            text: dict[str, Any] = {"fontsize": TICK - 2, "color": MUTED, "ha": "center", "va": "top"}
            ax.text(middle, top + side + 0.04, below[number], **text)
    ax.set(xlim=(0, CELL * columns), ylim=(cell * n_rows, 0))
    return figure

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
    """Returns a figure of images in rows of six at most, each with its title and the text below it."""
    columns = min(COLUMNS, len(images))
    n_rows = -(-len(images) // columns)
    n_lines = 1 + max(title.count("\n") for title in titles) + bool(below)
    cell = CELL + 0.09 + LINE * n_lines
    figure = Figure(figsize=(CELL * columns, cell * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, columns, squeeze=False).ravel()
    for ax in panels:
        ax.set_axis_off()
    for number, (ax, image, title) in enumerate(zip(panels, images, titles, strict=False)):
        picture = image.transpose(1, 2, 0)
        # The pixels of a tiny image are what the network saw; those of a photo's thumbnail are not.
        smooth = "bilinear" if max(picture.shape[:2]) > SHARP else "antialiased"
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=255, interpolation=smooth)
        ax.set_title(title, fontsize=TICK, color=INK)
        if below:
            ax.text(
                0.5, -0.03, below[number], ha="center", va="top", fontsize=TICK - 2, color=MUTED, transform=ax.transAxes
            )
    return figure

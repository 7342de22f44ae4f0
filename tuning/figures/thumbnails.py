"""Images on the page, in data URIs: those that the scatter shows, the worst mistakes, those whose label is in doubt.

Arrays in, texts out. What must never live here: files, and the test split itself (`final` keeps what the page shows).
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from tuning.figures.style import mosaic
from tuning.runs import analysis

MAX_POINTS, MAX_BYTES = 1500, 1_500_000  # images in the scatter: at most so many, and so many bytes of them
N_MISTAKES = 30
SHARP = 32  # Pixels; a larger one is a JPEG: 2.5 kB, as PNG 11 kB (55 photos of 96 pixels).

Images = npt.NDArray[np.uint8]


def pictures(outputs: Mapping[str, npt.NDArray[Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the scatter's images as one `sheet` of `columns`, and the worst `mistakes`, each with what it is.

    Args:
        outputs: labels int (N,), probabilities float (N, C) and images uint8 (N, C, H, W), as `final` keeps them.
        class_names: The classes' names.
    """
    images, labels, probabilities = (outputs[name] for name in ("images", "labels", "probabilities"))
    shown = thinned(images)
    columns = math.ceil(math.sqrt(len(shown)))
    mistakes = [
        {
            "picture": _data_uri(images[i].transpose(1, 2, 0)),
            "caption": caption(int(i), labels[i], probabilities[i], class_names),
            "truth": class_names[labels[i]],
            "prediction": class_names[probabilities[i].argmax()],
            "probability": float(probabilities[i].max()),
        }
        for i in analysis.worst_mistakes(labels, probabilities, N_MISTAKES)
    ]
    size = {"grey": images.shape[1] == 1, "height": images.shape[2], "width": images.shape[3], "columns": columns}
    counts = {"n": len(labels), "n_shown": len(shown), "n_wrong": int((probabilities.argmax(axis=1) != labels).sum())}
    return counts | size | {"sheet": _data_uri(_sheet(images[shown], columns), sharp=True), "mistakes": mistakes}


def suspects(found: pd.DataFrame, images: Images) -> list[dict[str, Any]]:
    """Returns the images whose label is in doubt, in the order of the table: a picture, and what the table says of it.

    Args:
        found: As `suspects.csv` has it.
        images: Of its rows, uint8 (N, C, H, W), one channel as ink on paper.
    """
    rows = found.to_dict("records")
    return [
        {str(name): value for name, value in row.items()} | {"picture": _data_uri(image.transpose(1, 2, 0))}
        for row, image in zip(rows, images, strict=True)
    ]


def thinned(images: Images) -> npt.NDArray[np.int64]:
    """Returns the sorted numbers of those images that the scatter shows, the same for images of the same shape."""
    n = min(len(images), MAX_POINTS, max(1, MAX_BYTES // images[0].size))
    return np.sort(np.random.default_rng(0).choice(len(images), n, replace=False))


def caption(index: int, label: int, probabilities: npt.NDArray[np.floating[Any]], class_names: Sequence[str]) -> str:
    """Returns what the model made of a test image, in words that are not escaped."""
    prediction = int(probabilities.argmax())
    verdict = "recognised" if prediction == label else f"taken for {class_names[prediction]}"
    return f"test image {index}: {class_names[label]}, {verdict} ({probabilities.max():.0%})"


def _sheet(images: Images, columns: int) -> Images:
    """Returns images (N, C, H, W) as one, (rows * H, columns * W, C), row by row; the rest is 0."""
    n, *shape = images.shape
    rows = math.ceil(n / columns)
    padded = np.zeros((rows * columns, *shape), dtype=np.uint8)
    padded[:n] = images
    return mosaic(padded.reshape(rows, columns, *shape))


def _data_uri(image: Images, *, sharp: bool = False) -> str:
    """Returns an image (H, W, C) of one or three channels; one channel as ink on paper (255 is black)."""
    picture = Image.fromarray(255 - image[..., 0] if image.shape[2] == 1 else image)
    file, form = io.BytesIO(), "PNG" if sharp or max(image.shape[:2]) <= SHARP else "JPEG"
    picture.save(file, form, optimize=True, quality=90)
    return f"data:image/{form.lower()};base64," + base64.b64encode(file.getvalue()).decode()

"""Images whose label may be wrong: models that did not train on them disagree with it most.

With folds each image that is not test is valid once, so that the winner's models give probabilities for all of them
that no image's own label had a part in. They are ranked by self-confidence, the probability of the given label, as in
confident learning (Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, 2021).
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tuning.base import files, rim
from tuning.base.errors import counted
from tuning.images.source import Source

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from tuning.images.splitting import Splits
    from tuning.retraining.artefacts import Outcome

SUSPECTS, PIXELS, PICTURE, MOST = "suspects.csv", "suspects.npz", "suspects.png", 100
SIDE = 96  # Of the longer side of an image on the page, in pixels.


def find(
    labels: "npt.NDArray[np.int64]",
    probabilities: "npt.NDArray[np.float32]",
    names: "npt.NDArray[np.str_]",
    class_names: Sequence[str],
    most: int = MOST,
) -> "pd.DataFrame":
    """Returns the images that are taken for another class than their label, the least likely label first.

    Args:
        labels: (N,), in [0, n_classes).
        probabilities: (N, n_classes), of models that did not train on the image.
        names: What a person calls each image, (N,).
        class_names: By label.
        most: Rows at most.

    Returns:
        image, label, predicted, label_probability, predicted_probability; the index says which of the N.
    """
    import pandas as pd

    predicted = probabilities.argmax(axis=1)
    of_label = probabilities[np.arange(len(labels)), labels]
    other = np.flatnonzero(predicted != labels)
    rows = other[np.argsort(of_label[other], kind="stable")][:most]
    called = np.asarray(class_names, dtype=object)
    return pd.DataFrame(
        {
            "image": names[rows],
            "label": called[labels[rows]],
            "predicted": called[predicted[rows]],
            "label_probability": of_label[rows],
            "predicted_probability": probabilities[rows].max(axis=1),
        },
        index=rows,
    )


def write(folder: Path, images: Source, splits: Sequence["Splits"], outcomes: Sequence["Outcome"]) -> list[str]:
    """Writes `suspects.csv`, `suspects.npz` and `suspects.png`.

    Args:
        folder: Where.
        images: Those that were dealt into folds.
        splits: A fold each.
        outcomes: What the winner's model of each fold makes of its valid images.

    Returns:
        A sentence on them, and one where the picture could not be drawn.

    Raises:
        UserError: The disk is full, or the images cannot be read.
    """
    from tuning.images.datasets import load_own

    own = load_own(images)
    assert own.rest.rows is not None
    rows = np.concatenate([each.valid.rows for each in splits])
    places = np.searchsorted(own.rest.rows, rows)
    labels = np.concatenate([each.labels for each in outcomes])
    probabilities = np.concatenate([each.probabilities for each in outcomes])
    found = find(labels, probabilities, np.asarray(own.known.names)[places], splits[0].class_names)
    files.write_text(folder / SUSPECTS, found.to_csv(index=False))
    small = smaller(own.rest.pixels(places[found.index]))
    if small.shape[1] == 1:
        small = 255 - small  # Pictures draw one channel as ink on paper; gray photos are to look as they are.
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=small)
    files.write_bytes(folder / PIXELS, buffer.getvalue())
    said = [
        f"{SUSPECTS} names {counted(len(found), 'image')} whose label the models of the other folds disagree with "
        f"most; {PICTURE} and the page show them."
    ]
    if rim.usable("figures", f"{PICTURE} is", said.append):
        from tuning.figures import image_grids, style

        style.save_each({Path(PICTURE).stem: lambda: image_grids.suspects(small, found)}, folder, said.append)
    return said


def smaller(images: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.uint8]":
    """Returns images (N, C, H, W) whose longer side has 96 pixels at most."""
    from PIL import Image

    height, width = images.shape[2:]
    scale = SIDE / max(height, width)
    if scale >= 1 or not len(images):
        return images
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    shrunk = [
        np.stack([np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BOX)) for channel in image])
        for image in images
    ]
    return np.stack(shrunk)

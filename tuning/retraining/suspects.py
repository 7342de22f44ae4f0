"""Images whose label may be wrong: models that did not train on them disagree with it most.

With folds each image that is not test is valid once, so that the winner's models give probabilities for all of them
that no image's own label had a part in. They are ranked by self-confidence, the probability of the given label, as in
confident learning (Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, 2021).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tuning.base import files
from tuning.base.errors import counted
from tuning.images.source import Source

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from tuning.images.splitting import Splits
    from tuning.retraining.artefacts import Outcome

SUSPECTS, MOST = "suspects.csv", 100


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
        image, label, predicted, label_probability, predicted_probability.
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
        }
    )


def write(folder: Path, images: Source, splits: Sequence["Splits"], outcomes: Sequence["Outcome"]) -> str:
    """Writes `suspects.csv`, and returns a sentence on it.

    Args:
        folder: Where.
        images: Those that were dealt into folds.
        splits: A fold each.
        outcomes: What the winner's model of each fold makes of its valid images.

    Raises:
        UserError: The disk is full, or the images cannot be read.
    """
    from tuning.images.datasets import load_own

    own = load_own(images)
    assert own.rest.rows is not None
    called = dict(zip(own.rest.rows.tolist(), own.known.names, strict=True))
    names = np.array([called[row] for each in splits for row in each.valid.rows.tolist()])  # type: ignore[union-attr]
    labels = np.concatenate([each.labels for each in outcomes])
    probabilities = np.concatenate([each.probabilities for each in outcomes])
    found = find(labels, probabilities, names, splits[0].class_names)
    files.write_text(folder / SUSPECTS, found.to_csv(index=False))
    return (
        f"{SUSPECTS} names {counted(len(found), 'image')} whose label the models of the other folds disagree with most."
    )

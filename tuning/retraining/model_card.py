"""The model card of a folder."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tuning.base.errors import counted
from tuning.images.catalogue import DATASETS
from tuning.runs.verdicts import averaging_of, headline, repeats, verdicts

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

CARD = "model_card.md"


def scores(metrics: Mapping[str, Any], architecture: str) -> str:
    """Returns the text of `scores.txt`: what was trained, and what it scored."""
    return _filled("scores.txt.j2", metrics, architecture=architecture)


def _filled(template: str, metrics: Mapping[str, Any], **values: Any) -> str:
    """Returns a text from a template of this folder, whose figures are those of `metrics.json`."""
    import jinja2

    texts = jinja2.Environment(
        loader=jinja2.PackageLoader("tuning.retraining"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    texts.filters |= {"markdown": markdown, "percent": "{:.2%}".format, "whole": "{:,}".format, "counted": counted}
    shown = headline(metrics)
    texts.filters |= {"said": shown.metric.said}
    averaging = averaging_of(metrics)
    return texts.get_template(template).render(
        metrics=metrics, shown=shown, averaging=averaging, repeats=repeats(metrics), **values
    )


def model_card(
    metrics: Mapping[str, Any],
    described: Mapping[str, Any],
    *,
    report: "pd.DataFrame",
    labels: "npt.NDArray[np.int64]",
    test_probabilities: "npt.NDArray[np.float32]",
    speed: str,
) -> str:
    """Returns the text of `model_card.md`.

    Args:
        metrics: As in `metrics.json`.
        described: As in `config.json`.
        report: As in `classification_report.csv`.
        labels: Of the test images, int64 (N,).
        test_probabilities: float32 (N, n_classes).
        speed: A sentence.
    """
    names, known = described["class_names"], DATASETS.get(described["dataset"])
    return _filled(
        f"{CARD}.j2",
        metrics,
        described=described,
        speed=speed,
        verdicts=verdicts(metrics),
        classes=report[report["class"].isin(names)].to_dict("records"),
        confused=confused_pairs(labels, test_probabilities, names),
        licence=known.licence if known is not None else "Licence of the data: see its source.",
    )


def markdown(name: str) -> str:
    """Returns a user's name as Markdown shows it as it is; an underscore within a word stays, as it means nothing."""
    return re.sub(r"[\\`*<>|&\[\]]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", name)


def confused_pairs(
    labels: "npt.NDArray[np.int64]",
    test_probabilities: "npt.NDArray[np.float32]",
    class_names: Sequence[str],
    n_pairs: int = 5,
) -> list[str]:
    """Returns a line for each of the pairs (truth, prediction) that are most often confused, with three examples."""
    from tuning.runs import analysis

    predictions = test_probabilities.argmax(1)
    counts = analysis.confusion(labels, predictions, class_names).to_numpy().copy()
    np.fill_diagonal(counts, 0)
    lines = []
    for cell in np.argsort(-counts, axis=None, kind="stable")[:n_pairs]:
        truth, predicted = divmod(int(cell), len(class_names))
        if counts[truth, predicted] == 0:
            break
        images = np.flatnonzero((labels == truth) & (predictions == predicted))
        surest = images[np.argsort(-test_probabilities[images, predicted], kind="stable")[:3]]
        examples = ", ".join(map(str, surest))
        names = f"{markdown(class_names[truth])} taken for {markdown(class_names[predicted])}"
        lines.append(f"- {names}: {counts[truth, predicted]} of {(labels == truth).sum()} (images {examples})")
    return lines

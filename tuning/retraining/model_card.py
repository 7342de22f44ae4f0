"""The model card of a folder."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tuning.base.errors import counted
from tuning.images.catalogue import DATASETS

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

CARD = "model_card.md"


def scores(metrics: Mapping[str, Any], architecture: str) -> str:
    """Returns the text of `scores.txt`: what was trained, and what it scored."""
    low, high = metrics["test_interval"]
    n_seeds = len(metrics["seeds"])
    lines = [
        f"configuration      {metrics['source']} ({metrics['config_hash']})",
        f"network            {architecture}, {metrics['n_parameters']:,} parameters",
        f"training           {counted(metrics['epochs'], 'epoch')}, best {metrics['best_epoch']}, "
        f"on {metrics['train_images']:,} images ({metrics['train_on']}), "
        f"{metrics['seconds'] / 60:.1f} minutes (of {metrics['seconds_total'] / 60:.1f} in all)",
    ]
    if metrics["search_valid_accuracy"] is not None:
        lines.append(f"valid, in search   {metrics['search_valid_accuracy']:.2%}")
    lines.append(f"valid, as saved    {metrics['valid_accuracy']:.2%}, in fp32, {_averaged(metrics)}")
    if n_seeds > 1:
        lines += [
            f"{split}, mean {' ' * (11 - len(split))} {metrics[f'{split}_accuracy_mean']:.2%} "
            f"± {metrics[f'{split}_accuracy_std']:.2%} over {n_seeds} fresh seeds"
            for split in ("valid", "test")
        ]
    lines += [
        f"test               {metrics['test_accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"{_averaged(metrics)}",
        f"test loss          {metrics['test_loss']:.4f}",
    ]
    return "\n".join([*lines, ""])


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
    low, high = metrics["test_interval"]
    mean, std = metrics["test_accuracy_mean"], metrics["test_accuracy_std"]
    seeds = f"{mean:.2%} ± {std:.2%} (standard deviation)" if std is not None else f"{mean:.2%}"
    config, known = described["config"], DATASETS.get(described["dataset"])
    classes = [row for row in report.to_dict("records") if row["class"] in described["class_names"]]
    return "\n".join(
        [
            f"# {config['architecture']} for {described['dataset']}",
            "",
            f"{metrics['n_parameters']:,} parameters. {speed}",
            "",
            "## Figures",
            "",
            f"- Test accuracy of this model: {metrics['test_accuracy']:.2%} (95 % Wilson interval {low:.2%} to "
            f"{high:.2%}; {metrics['test_images']:,} images), {_averaged(metrics)}.",
            f"- The same configuration trained on {counted(len(metrics['seeds']), 'fresh seed')}: {seeds}.",
            f"- Calibration: expected calibration error {metrics['ece']:.4f} (15 bins).",
            f"- The test images had been opened {counted(metrics['test_opened'], 'time')} by then.",
            *_comparisons(metrics),
            "",
            "| class | test accuracy | 95 % interval | precision |",
            "|---|---|---|---|",
            *[_class_row(row) for row in classes],
            "",
            "## Known weaknesses",
            "",
            "The pairs most often confused, with the numbers of the test images that it was most sure about:",
            "",
            *confused_pairs(labels, test_probabilities, described["class_names"]),
            "",
            "## Data and protocol",
            "",
            f"{described['dataset']}, split {metrics['split_hash']}: trained on {metrics['train_images']:,} images "
            f"({metrics['train_on']}); configuration, "
            "epoch and flip averaging were chosen on the valid split; the test images were opened after that. "
            f"Images are {described['channels']} x {described['height']} x {described['width']} uint8.",
            known.licence if known is not None else "Licence of the data: see its source.",
            "",
            "Configuration: " + ", ".join(f"{name} {value}" for name, value in config.items()) + ".",
            "",
        ]
    )


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
        names = f"{class_names[truth]} taken for {class_names[predicted]}"
        lines.append(f"- {names}: {counts[truth, predicted]} of {(labels == truth).sum()} (images {examples})")
    return lines


def _averaged(metrics: Mapping[str, Any]) -> str:
    return f"{'with' if metrics['flip_averaging'] else 'without'} flip averaging"


def _comparisons(metrics: Mapping[str, Any]) -> list[str]:
    """Returns lines on what the search was worth, where that was measured."""
    names = {"default": "the default configuration", "random": "the best configuration that was drawn at random"}
    lines = []
    for key, name in names.items():
        difference, interval = metrics[f"{key}_difference"], metrics[f"{key}_difference_interval"]
        if difference == 0 and interval and not any(interval):
            lines.append(f"- The winner is {name}.")
        elif difference is not None:
            within = f" (95 % interval {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})" if interval else ""
            lines.append(f"- Against {name}, on the valid split: {100 * difference:+.2f} points{within}.")
    return lines


def _class_row(row: Mapping[Any, Any]) -> str:
    interval = f"{row['recall_low']:.2%} to {row['recall_high']:.2%}"
    return f"| {row['class']} | {row['recall']:.2%} | {interval} | {row['precision']:.2%} |"

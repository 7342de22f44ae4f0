"""`python -m tuning.explore`: what is in a data set: counts, value ranges, duplicates, samples. About 4 s on two cores.

The test images are seen as hashes only: no picture, mean or label of one comes out of this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from tuning import data
from tuning.data import HashedTest, Labelled, Splits
from tuning.errors import UserError, run_command

SAMPLES = 8
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Overview:
    """What `explore` has found.

    Attributes:
        shapes: Split -> shape of its images (N, C, H, W); train, valid and test.
        counts: Split -> images per class, (n_classes,).
        value_ranges: Split -> least and greatest pixel.
        duplicates: What was compared -> images that occur there again, pixel for pixel.
        samples: The first train images of each class, uint8 (n_classes, k, C, H, W); blank where a class has fewer.
        means: Each class's mean train image, float64 (n_classes, C, H, W) in [0, 255].
    """

    class_names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    counts: Mapping[str, npt.NDArray[np.int64]]
    value_ranges: Mapping[str, tuple[int, int]]
    duplicates: Mapping[str, int]
    samples: npt.NDArray[np.uint8]
    means: npt.NDArray[np.float64]


def describe(splits: Splits, test: HashedTest) -> Overview:
    """Returns the overview of a data set; of its test split only what the hashes tell."""
    train, valid, n_classes = splits.train, splits.valid, splits.n_classes
    parts = {"train": train, "valid": valid}
    samples = np.zeros((n_classes, SAMPLES, *train.images.shape[1:]), np.uint8)
    means = np.zeros((n_classes, *train.images.shape[1:]))
    for label in range(n_classes):
        images = train.images[train.labels == label]
        samples[label, : len(images)] = images[:SAMPLES]
        if len(images):
            means[label] = images.mean(axis=0)
    return Overview(
        class_names=splits.class_names,
        shapes={name: part.images.shape for name, part in parts.items()} | {"test": test.shape},
        counts={name: np.bincount(part.labels, minlength=n_classes) for name, part in parts.items()}
        | {"test": test.counts},
        value_ranges={name: (int(part.images.min()), int(part.images.max())) for name, part in parts.items()}
        | {"test": test.value_range},
        duplicates=count_duplicates(train, valid, test),
        samples=samples,
        means=means,
    )


def count_duplicates(train: Labelled, valid: Labelled, test: HashedTest) -> dict[str, int]:
    """Returns how many images occur again, pixel for pixel, within and across the splits.

    "train + valid, other label" counts the distinct images that are there under more than one label.
    """
    ours, theirs = data.image_digests(train.images), data.image_digests(valid.images)
    both, labels = np.concatenate([ours, theirs]), np.concatenate([train.labels, valid.labels])
    distinct = np.unique(both)
    _, ids = np.unique(both, return_inverse=True)
    pairs = np.unique(np.stack([ids, labels]), axis=1)
    return {
        "train + valid": len(both) - len(distinct),
        "train + valid, other label": int((np.bincount(pairs[0]) > 1).sum()),
        "valid, also in train": int(np.isin(theirs, ours).sum()),
        "test": len(test.digests) - len(np.unique(test.digests)),
        "test, also in train + valid": int(np.isin(test.digests, distinct).sum()),
    }


def print_overview(overview: Overview) -> None:
    """Prints the overview as two tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, title="Images per class and split", title_justify="left", show_footer=True)
    table.add_column("class", "total")
    for name, counts in overview.counts.items():
        table.add_column(name, f"{counts.sum():,}", justify="right")
    for row in zip(overview.class_names, *overview.counts.values(), strict=True):
        table.add_row(row[0], *(f"{count:,}" for count in row[1:]))
    console.print(table)
    checks = Table(box=box.SIMPLE_HEAD, title="Checks", title_justify="left", show_header=False)
    for name, shape in overview.shapes.items():
        n_labels = int(overview.counts[name].sum())
        agree = "as many labels" if n_labels == shape[0] else f"but {n_labels:,} labels"
        low, high = overview.value_ranges[name]
        size = " x ".join(map(str, shape[1:]))
        checks.add_row(name, f"{shape[0]:,} images of {size}, {agree}; pixels from {low} to {high}")
    for name, count in overview.duplicates.items():
        checks.add_row(f"duplicates: {name}", f"{count:,}")
    console.print(checks)


def main(
    dataset: Annotated[str, typer.Option(help=f"One of {', '.join(data.DATASETS)}.")] = "fashion-mnist",
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the data set's files.")] = None,
    out: Annotated[Path, typer.Option(help="Where the figure goes: .png, .pdf or .svg.")] = Path("explore.png"),
    seed: Annotated[int, typer.Option(min=0, help="Chooses the valid images, as in the search.")] = 0,
) -> None:
    """Show what is in a data set: counts, value ranges, duplicates, samples and mean images."""
    if out.suffix not in FIGURE_SUFFIXES:
        raise UserError(f"--out must end with {', '.join(FIGURE_SUFFIXES)}, but got {str(out)!r}.")
    splits = data.load_splits(dataset, data_dir, seed=seed)
    overview = describe(splits, data.hash_test(dataset, data_dir))
    print_overview(overview)
    from tuning import plots

    figure = plots.data_overview(overview.samples, overview.means, overview.counts, overview.class_names)
    try:
        plots.save(figure, out)
    except OSError as error:
        raise UserError(f"--out must be a file that can be written, but got {str(out)!r}: {error.strerror}.") from error
    print(f"Figure: {out}")


if __name__ == "__main__":
    run_command(main)

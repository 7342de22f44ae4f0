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

from tuning.base import rim, tables
from tuning.base.errors import UserError, run_command
from tuning.base.tables import Column
from tuning.images import datasets, splitting
from tuning.images.catalogue import DATASETS
from tuning.images.datasets import HashedTest
from tuning.images.splitting import Splits
from tuning.runs.run_folder import RESULTS

SAMPLES = 8
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Overview:
    """What `explore` has found.

    Attributes:
        shapes: Split -> shape of its images (N, C, H, W); train, valid and test.
        counts: Split -> images per class, (n_classes,).
        value_ranges: Split -> least and greatest pixel.
        repeated: Split -> images that have been in the same split before, pixel for pixel.
        shared: Split -> images that are also in a split before it (train, valid, test, in this order).
        ambiguous: Distinct images of train and valid that are there under more than one label.
        samples: The first train images of each class, uint8 (n_classes, k, C, H, W); blank where a class has fewer.
        means: Each class's mean train image, float64 (n_classes, C, H, W) in [0, 255].
    """

    class_names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    counts: Mapping[str, npt.NDArray[np.int64]]
    value_ranges: Mapping[str, tuple[int, int]]
    repeated: Mapping[str, int]
    shared: Mapping[str, int]
    ambiguous: int
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
    digests = {name: datasets.image_digests(part.images) for name, part in parts.items()} | {"test": test.digests}
    labels = np.concatenate([part.labels for part in parts.values()])
    return Overview(
        class_names=splits.class_names,
        shapes={name: part.images.shape for name, part in parts.items()} | {"test": test.shape},
        counts={name: np.bincount(part.labels, minlength=n_classes) for name, part in parts.items()}
        | {"test": test.counts},
        value_ranges={name: (int(part.images.min()), int(part.images.max())) for name, part in parts.items()}
        | {"test": test.value_range},
        repeated={name: len(values) - len(np.unique(values)) for name, values in digests.items()},
        shared=count_shared(digests),
        ambiguous=count_ambiguous(np.concatenate([digests["train"], digests["valid"]]), labels),
        samples=samples,
        means=means,
    )


def count_shared(digests: Mapping[str, npt.NDArray[np.bytes_]]) -> dict[str, int]:
    """Returns for each split how many of its images are also in one of the splits before it."""
    shared, before = {}, np.empty(0, dtype="S1")
    for name, values in digests.items():
        shared[name] = int(np.isin(values, before).sum())
        before = np.concatenate([before, values])
    return shared


def count_ambiguous(digests: npt.NDArray[np.bytes_], labels: npt.NDArray[np.int64]) -> int:
    """Returns how many distinct images occur under more than one label."""
    _, ids = np.unique(digests, return_inverse=True)
    pairs = np.unique(np.stack([ids, labels]), axis=1)
    return int((np.bincount(pairs[0]) > 1).sum())


def print_overview(overview: Overview) -> None:
    """Prints the overview as two tables."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = tables.FILE_WIDTH
    counts = {name: [*(f"{n:,}" for n in split), f"{split.sum():,}"] for name, split in overview.counts.items()}
    classes = Column("class", [*overview.class_names, "total"], text=True)
    per_split = {name: Column(name, cells) for name, cells in counts.items()}
    tables.show("Images per class and split", {"class": classes, **per_split}, console)
    names = list(overview.shapes)
    checks = {
        "split": Column("split", names, text=True),
        "images": Column("images", [f"{overview.shapes[name][0]:,}" for name in names]),
        "labels": Column("labels", [f"{overview.counts[name].sum():,}" for name in names]),
        "size": Column("size", [" x ".join(map(str, overview.shapes[name][1:])) for name in names]),
        "pixels": Column("pixels", ["{} to {}".format(*overview.value_ranges[name]) for name in names]),
        "repeated": Column("repeated", [f"{overview.repeated[name]:,}" for name in names]),
        "shared": Column("in a split above", [f"{overview.shared[name]:,}" for name in names]),
    }
    tables.show("Checks", checks, console, least=["labels", "pixels", "size"])
    console.print(f"Equal images under different labels in train and valid: {overview.ambiguous:,}")


def main(
    dataset: Annotated[str, typer.Option(help=f"{DATASETS.listed}.")] = DATASETS.default,
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the data set's files.")] = None,
    out: Annotated[Path, typer.Option(help="Where the figure goes: .png, .pdf or .svg.")] = RESULTS / "explore.png",
    seed: Annotated[int, typer.Option(min=0, help="Chooses the valid images, as in the search.")] = 0,
) -> None:
    """Show what is in a data set: counts, value ranges, duplicates, samples and mean images."""
    if out.suffix not in FIGURE_SUFFIXES:
        raise UserError(f"--out must end with {', '.join(FIGURE_SUFFIXES)}, but got {str(out)!r}.")
    splits = splitting.load_splits(dataset, data_dir, seed=seed)
    overview = describe(splits, datasets.hash_test(dataset, data_dir))
    print_overview(overview)
    if uneven := splitting.imbalance(splits):
        print(f"{uneven} It is an option of `python -m tuning.search`.")
    if not rim.usable("figures", "The figure is", print):
        return
    from tuning.figures import model_figures, style

    figure = model_figures.data_overview(overview.samples, overview.means, overview.counts, overview.class_names)
    style.save(figure, out)
    print(f"Figure: {out}")


if __name__ == "__main__":
    run_command(main)

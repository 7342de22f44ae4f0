"""`python -m tuning.explore`: what is in a data set: counts, value ranges, duplicates, samples. About 4 s on two cores.

Of the test images only hashes, counts and the range of the pixels are seen: no picture or mean of one comes out.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from tuning.base import doors, rim, tables
from tuning.base.errors import UserError, counted, run_command
from tuning.base.files import expanded
from tuning.base.tables import Column
from tuning.images import datasets, options, partition, splitting
from tuning.images.catalogue import DATASETS
from tuning.images.datasets import HashedTest, Labelled, Own
from tuning.images.splitting import Splits
from tuning.runs.run_folder import RESULTS

SAMPLES, SAMPLE_PIXELS = 8, 128  # Of a class, and the greatest side that the figure needs.
MOST_CLASSES = 100  # In the figure.
MOST_SIZES = 5  # Of the originals, in a line.
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")

Images = npt.NDArray[np.uint8]


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
        groups: Split -> images of each of its groups, the largest first; empty where there are no groups.
    """

    class_names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    counts: Mapping[str, npt.NDArray[np.int64]]
    value_ranges: Mapping[str, tuple[int, int]]
    repeated: Mapping[str, int]
    shared: Mapping[str, int]
    ambiguous: int
    groups: Mapping[str, npt.NDArray[np.int64]]


def describe(splits: Splits, test: HashedTest, own: Own | None = None) -> Overview:
    """Returns the overview of a data set; of its test split only what the hashes tell.

    Args:
        splits: Train and valid.
        test: What may be known of the test split.
        own: Where the splits are of one's own images: these.
    """
    n_classes, parts = splits.n_classes, {"train": splits.train, "valid": splits.valid}
    rows = {} if own is None else {name: _rows(part, own) for name, part in parts.items()}
    digests = {
        name: datasets.image_digests(part.pixels()) if own is None else own.known.digests[rows[name]]
        for name, part in parts.items()
    } | {"test": test.digests}
    groups = {} if own is None else {name: partition.group_sizes(own.known.groups[rows[name]]) for name in parts}
    return Overview(
        class_names=splits.class_names,
        shapes={name: part.shape for name, part in parts.items()} | {"test": test.shape},
        counts={name: np.bincount(part.labels, minlength=n_classes) for name, part in parts.items()}
        | {"test": test.counts},
        value_ranges={name: datasets.value_range(part) for name, part in parts.items()} | {"test": test.value_range},
        repeated={name: len(values) - len(np.unique(values)) for name, values in digests.items()},
        shared=count_shared(digests),
        ambiguous=count_ambiguous(
            np.concatenate([digests["train"], digests["valid"]]),
            np.concatenate([part.labels for part in parts.values()]),
        ),
        groups=groups | {"test": test.group_sizes},
    )


def _rows(part: Labelled, own: Own) -> npt.NDArray[np.int64]:
    """Returns which of one's own images without the test split those of a part are, (N,)."""
    assert part.rows is not None and own.rest.rows is not None
    return np.searchsorted(own.rest.rows, part.rows)


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


@dataclass(frozen=True)
class Samples:
    """What the figure shows of train.

    Attributes:
        classes: Which classes, by label: all, or the largest.
        images: uint8 (k, SAMPLES, C, H, W), ink on paper where they have one channel; blank where a class has fewer.
        means: Each class's mean image, float64 (k, C, H, W) in [0, 255].
        title: What the images are.
    """

    classes: npt.NDArray[np.int64]
    images: Images
    means: npt.NDArray[np.float64]
    title: str


def sample(train: Labelled, n_classes: int, *, is_own: bool) -> Samples:
    """Returns sample images and the mean image of each class.

    Args:
        train: The train split.
        n_classes: Of the data set.
        is_own: They are one's own images: drawn from all of a class, as neighbours in a folder are often of one
            series, and gray ones look as they are. Of a data set with a name they are the first, and drawings.
    """
    counts = np.bincount(train.labels, minlength=n_classes)
    classes = np.sort(np.argsort(-counts, kind="stable")[:MOST_CLASSES])
    channels = train.shape[1]
    blank = 0 if channels == 1 else 255
    height, width = smaller(train.pixels(slice(0, 1))).shape[2:]
    images = np.full((len(classes), SAMPLES, channels, height, width), blank, np.uint8)
    means = np.full((len(classes), channels, height, width), float(blank))
    for place, label in enumerate(classes):
        rows = np.flatnonzero(train.labels == label)
        n = min(len(rows), SAMPLES)
        if not n:
            continue
        chosen = rows[np.arange(n) * len(rows) // n] if is_own else rows[:n]
        images[place, :n], means[place] = smaller(train.pixels(chosen)), _mean(train, rows)
        if is_own and channels == 1:  # The figure draws one channel as ink on paper.
            images[place, :n], means[place] = 255 - images[place, :n], 255 - means[place]
    title = f"{SAMPLES} train images" if is_own else f"first {SAMPLES} train images"
    return Samples(classes, images, means, title)


def _mean(train: Labelled, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns the mean of some images as the figure shows them, (C, h, w), with few of them in memory at a time."""
    sums = [smaller(images).sum(axis=0, dtype=np.float64) for images in train.at(rows).blocks()]
    total: npt.NDArray[np.float64] = np.sum(sums, axis=0)
    return total / len(rows)


def smaller(images: Images) -> Images:
    """Returns images (n, C, H, W) as means of squares of pixels, so that no side has over SAMPLE_PIXELS."""
    n, channels, height, width = images.shape
    square = math.ceil(max(height, width) / SAMPLE_PIXELS)
    if square == 1:
        return images
    rows, columns = max(1, height // square), max(1, width // square)
    images = images[:, :, : rows * square, : columns * square]
    squares = images.reshape(n, channels, rows, images.shape[2] // rows, columns, images.shape[3] // columns)
    means: Images = squares.mean(axis=(3, 5)).round().astype(np.uint8)
    return means


def print_overview(overview: Overview, own: Own | None = None) -> None:
    """Prints the overview as two tables, and what was found while one's own images were read, a line each."""
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
    if any(len(overview.groups.get(name, ())) for name in names):
        sizes = [overview.groups[name] for name in names]
        checks["groups"] = Column("groups", [f"{len(each):,}" for each in sizes])
        checks["largest"] = Column("in the largest", [f"{each.max(initial=0):,}" for each in sizes])
    tables.show("Checks", checks, console, least=["labels", "pixels", "size"])
    lines = [f"Equal images under different labels in train and valid: {overview.ambiguous:,}"]
    for line in [*lines, *describe_imbalance(overview), *(describe_own(own) if own else [])]:
        console.print(tables.encodable(line, console.encoding), soft_wrap=True)


def describe_imbalance(overview: Overview) -> list[str]:
    """Returns a sentence on the largest and the smallest class, none where all are equally large."""
    total = np.sum(list(overview.counts.values()), axis=0)
    large, small = int(total.argmax()), int(total.argmin())
    if total[large] == total[small]:
        return []
    names = overview.class_names
    return [
        f"The largest class, {names[large]}, has {counted(int(total[large]), 'image')}, the smallest, {names[small]}, "
        f"{total[small]:,}."
    ]


def describe_own(own: Own) -> list[str]:
    """Returns what was found while one's own images were read and was not said then, a line each."""
    facts, known = own.facts, own.known
    sizes, modes = facts.sizes, ", ".join(f"{mode} ({n:,})" for mode, n in facts.modes.items())
    named = [f"{size} ({n:,})" for size, n in itertools.islice(sizes.items(), MOST_SIZES)]
    by_area = sorted(sizes, key=lambda size: math.prod(int(side) for side in size.split(" x ")))
    span = f", from {by_area[0]} to {by_area[-1]}; the most frequent are" if len(sizes) > 1 else ":"
    lines = [f"Originals, in pixels: {counted(len(sizes), 'size')}{span} {', '.join(named)}.", f"Modes: {modes}."]
    if (known.groups != "").any():
        groups, images = np.unique(known.groups[known.groups != ""], return_counts=True)
        share = images.max() / len(known)
        lines.append(f"The largest group outside test, {groups[images.argmax()]}, has {share:.0%} of train and valid.")
    reasons = Counter(reason for _, reason in facts.left_out)
    for reason, n in reasons.most_common():
        example = next(name for name, each in facts.left_out if each == reason)
        lines.append(f"Left out: {counted(n, 'image')} ({reason}), e.g. {example}.")
    disagreeing = [each for each in partition.conflicts(known) if not any(each in note for note in own.notes)]
    return [*lines, *(f"More than one label: {each}." for each in disagreeing)]


def draw(overview: Overview, samples: Samples, out: Path) -> None:
    """Writes the figure: a row a class."""
    from tuning.figures import model_figures, style

    counts = {name: split[samples.classes] for name, split in overview.counts.items()}
    names = [overview.class_names[label] for label in samples.classes]
    figure = model_figures.data_overview(samples.images, samples.means, counts, names, title=samples.title)
    style.save(figure, out)
    left = len(overview.class_names) - len(names)
    print(f"Figure: {out}" + (f" (the {len(names)} largest classes; {left:,} are left out)" if left else ""))


def main(
    dataset: Annotated[
        str, typer.Option(help=f"Images of your own, a folder or a file; or {DATASETS.listed}.")
    ] = DATASETS.default,
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the data set's files.")] = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    group_pattern: options.GroupPattern = None,
    labels_leave_out: options.LabelsLeaveOut = None,
    min_images: options.MinImages = None,
    skip_broken: options.SkipBroken = False,
    image_size: options.ImageSize = None,
    resize: options.HowResized = None,
    out: Annotated[Path, typer.Option(help="Where the figure goes: .png, .pdf or .svg.")] = RESULTS / "explore.png",
    seed: Annotated[
        int, typer.Option(min=0, max=doors.LARGEST_SEED, help="Chooses the valid images, as in the search.")
    ] = 0,
) -> None:
    """Show what is in a data set: counts, value ranges, duplicates, samples and mean images."""
    source = options.source_of(SimpleNamespace(**locals()))
    out = expanded(out)
    if out.suffix not in FIGURE_SUFFIXES:
        raise UserError(f"--out must end with {', '.join(FIGURE_SUFFIXES)}, but got {str(out)!r}.")
    own = datasets.load_own(source, note=print) if source.is_own else None
    splits = splitting.splits_of(own, source.name, seed=seed) if own else splitting.load_splits(source, seed=seed)
    overview = describe(splits, datasets.hash_test(source), own)
    print_overview(overview, own)
    if uneven := splitting.imbalance(splits):
        print(f"{uneven} It is an option of `python -m tuning.search`.")
    if rim.usable("figures", "The figure is", print):
        draw(overview, sample(splits.train, splits.n_classes, is_own=own is not None), out)


if __name__ == "__main__":
    run_command(main)

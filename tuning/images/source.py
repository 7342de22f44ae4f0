"""`Source`: which labelled images are read, and how. It is in settings and records, so it imports nothing heavy."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tuning.base import files
from tuning.base.errors import UserError, unknown_name
from tuning.images.catalogue import DATASETS

Resize = Literal["crop", "pad", "stretch"]
PLAIN_NAMES = {"images", "labels", "index", "metadata", "data", "dataset", "train", "table"}  # Their folder says more.
SIDES = (8, 1024)  # Least and greatest --image-size, in pixels.


@dataclass(frozen=True)
class Source:
    """Which labelled images are read, and how.

    Attributes:
        dataset: A name in `DATASETS`, or the path of one's own images: a folder or a file.
        data_dir: Where the files of a named data set are.
        image_column: The column of a table that names the images, or holds them.
        label_column: The column with the labels.
        split_column: The column that says train, valid or test.
        group_column: The column whose equal values keep images on one side of every split.
        group_pattern: A regular expression that is searched for in an image's relative path; its first group, or else
            the whole match, is the image's group.
        labels_leave_out: Labels whose images are left out.
        min_images: Classes with fewer images are left out, by whoever splits.
        skip_broken: Leave images out that cannot be read, instead of ending.
        image_size: Side of the stored images in pixels, 8 to 1,024; None follows from the images and the device.
        resize: How an image of another shape is brought to the stored one; None is the default.
        known_as: What run folders and pages call it, where its folder had another name when a run was begun.

    Raises:
        UserError: A value is out of its range, or the pattern is no regular expression.
    """

    dataset: str
    data_dir: Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    group_pattern: str | None = None
    labels_leave_out: tuple[str, ...] = ()
    min_images: int | None = None
    skip_broken: bool = False
    image_size: int | None = None
    resize: Resize | None = None
    known_as: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels_leave_out", tuple(self.labels_leave_out))  # JSON has lists.
        if not self.dataset.strip():
            raise UserError(
                f"--dataset must be {DATASETS.listed}, or the path of your own images, but is empty. The folder in "
                "which the command runs is --dataset ."
            )
        if self.image_size is not None and not SIDES[0] <= self.image_size <= SIDES[1]:
            raise UserError(
                f"--image-size must be between {SIDES[0]} and {SIDES[1]:,} pixels, but got {self.image_size}."
            )
        if self.resize is not None and self.resize not in get_args(Resize):
            raise unknown_name("--resize", self.resize, get_args(Resize))
        if self.group_pattern is not None:
            if self.group_column is not None:
                raise UserError("--group-column and --group-pattern exclude each other. Leave one of them out.")
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise UserError(
                    f"--group-pattern must be a regular expression, but got {self.group_pattern!r}: {error}."
                ) from error

    @property
    def is_own(self) -> bool:
        """Whether `dataset` is a path, not a name. A known name always is the name; "./mnist" is a path.

        Raises:
            UserError: It is a bare name that is neither known nor a file or folder here.
        """
        if self.dataset in DATASETS:
            return False
        if Path(self.dataset).name != self.dataset or self.dataset in (".", "..") or self.path.exists():
            return True
        error = unknown_name(f"{DATASETS.kind} {self.dataset}", self.dataset, DATASETS)
        hint = str(error).partition(f"{self.dataset!r}.")[2]
        raise UserError(
            f"--dataset must be {DATASETS.listed}, or the path of your own images, but got {self.dataset!r}: "
            f"no such folder or file exists here.{hint}"
        )

    @property
    def columns(self) -> dict[str, str]:
        """The columns that were typed: option -> name."""
        typed = {
            "--image-column": self.image_column,
            "--label-column": self.label_column,
            "--split-column": self.split_column,
            "--group-column": self.group_column,
        }
        return {option: name for option, name in typed.items() if name is not None}

    @property
    def path(self) -> Path:
        """Where one's own images are."""
        return files.expanded(self.dataset)

    @property
    def name(self) -> str:
        """What run folders and pages call it: the data set's name, or the folder's or file's in [a-z0-9._-]."""
        if self.known_as is not None:
            return self.known_as
        if self.dataset in DATASETS:
            return self.dataset
        path = self.path.absolute()
        stem = path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem
        if stem in ("", ".."):
            stem = path.resolve().name
        if stem.lower() in PLAIN_NAMES:
            stem = (
                next((each.name for each in path.resolve().parents if each.name.lower() not in PLAIN_NAMES), "") or stem
            )
        plain = unicodedata.normalize("NFKD", stem.lower()).encode("ascii", "ignore").decode()
        return re.sub(r"[^a-z0-9._]+", "-", plain).strip("-.") or "images"

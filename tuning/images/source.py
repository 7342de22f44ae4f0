"""`Source`: which labelled images are read, and how."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from tuning.base.errors import UserError, unknown_name
from tuning.images.catalogue import DATASETS

Resize = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class Source:
    """Which labelled images are read, and how.

    Attributes:
        dataset: A name in `DATASETS`, or the path of one's own images, a folder or a file.
        data_dir: Where the files of a name lie, or the moved folder of one's own images.
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

    @cached_property
    def is_own(self) -> bool:
        if self.dataset in DATASETS:
            return False
        if Path(self.dataset).exists():
            return True
        raise UserError(str(unknown_name("Data set", self.dataset, DATASETS)))

    @property
    def name(self) -> str:
        if self.dataset in DATASETS:
            return self.dataset
        return re.sub(r"[^a-z0-9._-]+", "-", Path(self.dataset).stem.lower()).strip("-") or "images"

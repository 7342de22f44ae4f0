"""How one's own images are read, as options of a command: `search`, `final` and `explore` have the same."""

from types import SimpleNamespace
from typing import Annotated, Any, get_args

import typer

from tuning.base.errors import UserError
from tuning.base.files import expanded
from tuning.images.source import Resize, Source

PANEL = "Your own images"

ImageColumn = Annotated[
    str | None, typer.Option(help="The column of a table that has each image's file or id.", rich_help_panel=PANEL)
]
LabelColumn = Annotated[str | None, typer.Option(help="The column that has its label.", rich_help_panel=PANEL)]
SplitColumn = Annotated[
    str | None, typer.Option(help="The column that says train, valid or test.", rich_help_panel=PANEL)
]
GroupColumn = Annotated[
    str | None,
    typer.Option(help="The column of groups, e.g. patients: none lies on two sides of a split.", rich_help_panel=PANEL),
]
GroupPattern = Annotated[
    str | None,
    typer.Option(
        help="A regular expression for the group in an image's path: its first (...), or all that fits.",
        rich_help_panel=PANEL,
    ),
]
LabelsLeaveOut = Annotated[
    list[str] | None,
    typer.Option("--labels-leave-out", help="Leave out this label; may be given again.", rich_help_panel=PANEL),
]
MinImages = Annotated[
    int | None, typer.Option(min=1, help="Leave out classes with fewer images.", rich_help_panel=PANEL)
]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out images that cannot be read.", rich_help_panel=PANEL)
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=8, help="Side in pixels to which images are brought (default: by their own sizes).", rich_help_panel=PANEL
    ),
]
HowResized = Annotated[
    str | None, typer.Option("--resize", help=f"{', '.join(get_args(Resize))}: how.", rich_help_panel=PANEL)
]

# Option -> its default. `source_of` reads them; the recorded settings of a search keep those of its images.
READING: dict[str, Any] = {
    **dict.fromkeys(("image_column", "label_column", "split_column", "group_column", "group_pattern")),
    "labels_leave_out": None,
    "min_images": None,
    "skip_broken": False,
    "image_size": None,
    "resize": None,
}


def source_of(asked: SimpleNamespace) -> Source:
    """Returns the images that the options of a command ask for.

    Raises:
        UserError: There is no such data set, or an option does not go with it.
    """
    source = Source(
        asked.dataset,
        None if asked.data_dir is None else expanded(asked.data_dir),
        **{name: getattr(asked, name) for name in READING if name != "labels_leave_out"},
        labels_leave_out=tuple(asked.labels_leave_out or ()),
    )
    if source.is_own and source.data_dir is not None:
        raise UserError(
            f"--data-dir must be used with a data set that has a name, or with a run, but got {asked.data_dir} beside "
            f"--dataset {asked.dataset}. Leave it out."
        )
    given = [f"--{name.replace('_', '-')}" for name, default in READING.items() if getattr(asked, name) != default]
    if not source.is_own and given:
        raise UserError(
            f"{given[0]} must be used with images of your own, but got --dataset {asked.dataset}. Leave it out."
        )
    return source

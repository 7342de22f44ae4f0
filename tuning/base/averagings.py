"""What the probabilities of an image can be averaged over: views of it, which are the image mirrored or shifted.

`AVERAGINGS` says which views belong to each name. What a view looks like, and what a model makes of it, is known in
`tuning.training.evaluation`; which average pays, in `tuning.retraining.averaging`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from tuning.base.registries import Entry, Registry


class View(NamedTuple):
    """An image as it is, mirrored, shifted, or both: mirrored first, then moved by so many pixels."""

    mirrored: bool = False
    down: int = 0
    right: int = 0


@dataclass(frozen=True)
class Averaging(Entry):
    """An average over views.

    Attributes:
        views: The image as it is comes first.
        end: Of the names of its figures: `valid_accuracy` + `end`, `test_accuracy` + `end`.
        said: How a sentence ends that has a figure of it, without the number of views.
    """

    views: tuple[View, ...] = (View(),)
    end: str = "_plain"
    said: str = "without averaging"

    @property
    def facts(self) -> str:
        """How many views there are, for a table."""
        return f"{len(self.views)} view" + ("s" if len(self.views) > 1 else "")

    @property
    def mirrors(self) -> bool:
        """Some of its views are mirrored."""
        return any(view.mirrored for view in self.views)

    @property
    def phrase(self) -> str:
        """How a sentence ends that has a figure of it."""
        return self.said if len(self.views) == 1 else f"{self.said} ({self.facts})"


_SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
NONE = "none"

# In the order of their views, the fewest first.
AVERAGINGS = Registry(
    "averaging",
    {
        NONE: Averaging("the image alone"),
        "flip": Averaging(
            "the image and its mirror image",
            views=(View(), View(mirrored=True)),
            end="_flip_averaging",
            said="with flip averaging",
        ),
        "shift": Averaging(
            "the image, and it moved by one pixel up, down, left and right",
            views=tuple(View(False, *shift) for shift in _SHIFTS),
            end="_shift_averaging",
            said="with shift averaging",
        ),
        "flip+shift": Averaging(
            "the image and its mirror image, and both moved by one pixel up, down, left and right",
            views=tuple(View(mirrored, *shift) for mirrored, shift in product((False, True), _SHIFTS)),
            end="_flip_shift_averaging",
            said="with flip and shift averaging",
        ),
    },
)


def recorded(name: str) -> dict[str, Any]:
    """Returns what `config.json` and `metrics.json` have of an averaging.

    Version 0.2.0 reads `flip_averaging` alone: of a model that is averaged over shifts, too, it takes the mirror image.
    """
    return {"averaging": name, "flip_averaging": AVERAGINGS.find(name).mirrors}


def named_in(record: Mapping[str, Any], place: str = "") -> str:
    """Returns the averaging that `config.json` or `metrics.json` names.

    Version 0.2.0 wrote `flip_averaging` alone.

    Args:
        record: What the file holds.
        place: The file, for the error.

    Raises:
        UserError: There is none of that name.
    """
    name = record.get("averaging")
    if name is None:
        return "flip" if record.get("flip_averaging") else NONE
    AVERAGINGS.find(str(name), f"{place}: averaging" if place else "")
    return str(name)

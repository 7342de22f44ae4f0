"""Tables in a terminal: a number stands on one line, and where the width does not suffice, columns give way.

Nothing here knows what is in a table. What a terminal cannot encode is written in another way, and never an error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from tuning.base.numerals import rounded

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

FILE_WIDTH = 160  # Of a table that goes into a file or a pipe, in columns of characters.
_WRAPPED, _NARROWEST = 24, 16  # A longer text than the first is wrapped at its blanks, to no fewer than the second.
_INSTEAD = str.maketrans({"…": "...", "±": "+-", "·": ".", "–": "-", "—": "-", "×": "x", "→": "->"})  # noqa: RUF001


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: Is wrapped at its blanks.
        cells: A text a row.
        text: Words, not numbers: aligned to the left, and wrapped at its blanks where it is long.
    """

    heading: str
    cells: Sequence[str]
    text: bool = False

    @property
    def width(self) -> int:
        """Characters that it takes where there is room."""
        return max(map(cell_len, [self.heading, *self.cells]))

    @property
    def least(self) -> int:
        """Characters that it takes at least: no number is cut apart."""
        words = [word for text in [self.heading, *(self.cells if self.wraps else [])] for word in text.split()]
        longest = max(map(cell_len, words), default=0)
        return max(longest, _NARROWEST) if self.wraps else max(longest, *map(cell_len, self.cells), 0)

    @property
    def wraps(self) -> bool:
        """Whether its cells are long texts."""
        return self.text and max(map(cell_len, self.cells), default=0) > _WRAPPED


def encodable(text: str, encoding: str) -> str:
    """Returns a text as an encoding can have it: "…" as "...", "±" as "+-", any other character as "?"."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_INSTEAD).encode(encoding, "replace").decode(encoding)
    return text


def fitting(columns: Mapping[str, Column], width: int, least: Sequence[str] = ()) -> list[str]:
    """Returns the names of the columns that fit into a width; at least the first.

    Args:
        columns: By name, in their order.
        width: Characters.
        least: Columns that give way first, in this order; after them the last ones do.
    """
    kept = list(columns)
    order = [*(name for name in least if name in kept), *(name for name in reversed(kept) if name not in least)]
    for name in order:
        if _total([columns[k].least for k in kept]) <= width or len(kept) == 1:
            break
        kept.remove(name)
    return kept


def show(title: str, columns: Mapping[str, Column], console: "Console", *, least: Sequence[str] = ()) -> None:
    """Prints a table, and in a line below it the columns for which the terminal is too narrow."""
    from rich import box
    from rich.table import Table

    encoding = console.encoding
    columns = {
        name: replace(
            column,
            heading=encodable(column.heading, encoding),
            cells=[encodable(cell, encoding) for cell in column.cells],
        )
        for name, column in columns.items()
    }
    kept = fitting(columns, console.width, least)
    widths = {name: columns[name].least for name in kept}
    spare = console.width - _total(list(widths.values()))
    # What is left of the width goes to the long texts first, then to the headings.
    for name in sorted(kept, key=lambda name: not columns[name].wraps):
        more = max(0, min(spare, columns[name].width - widths[name]))
        widths[name], spare = widths[name] + more, spare - more
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in kept:
        side = "left" if columns[name].text else "right"
        table.add_column(columns[name].heading, justify=side, overflow="fold", width=widths[name])  # type: ignore[arg-type]
    for row in zip(*(columns[name].cells for name in kept), strict=True):
        table.add_row(*row)
    console.print(encodable(title, encoding), soft_wrap=True, markup=False, highlight=False)
    console.print(table, markup=False)
    if left := [column.heading for name, column in columns.items() if name not in kept]:
        console.print(f"A wider terminal shows more columns: {', '.join(left)}.", markup=False, highlight=False)


def _total(widths: Sequence[int]) -> int:
    """Returns the width of a table, with its edges, and what is between its columns."""
    return sum(widths) + 2 * len(widths) + 1


def print_frame(
    frame: "pd.DataFrame",
    title: str,
    *,
    least: Sequence[str] = (),
    said: Mapping[str, Callable[[float], str]] | None = None,
) -> None:
    """Prints a frame as a table: accuracies in per cent, minutes to a tenth, other floats to three digits or more.

    Args:
        frame: A row a line.
        title: What it is of.
        least: Columns that give way first in a terminal that is too narrow; after them the last ones do.
        said: Column -> what writes its floats, where that is not the above.
    """
    from rich.console import Console

    console, said = Console(markup=False), said or {}
    if not console.is_terminal:
        console.width = FILE_WIDTH
    if frame.empty:
        console.print(f"{title}: nothing")
        return
    columns = {}
    for name, column in frame.items():
        heading = str(name).removeprefix("config/").replace("_", " ")
        heading += " (UTC)" if getattr(column.dtype, "tz", None) is not None else ""
        cells = [
            said[str(name)](v) if name in said and isinstance(v, float) and v == v else _cell(v, str(name))
            for v in column
        ]
        columns[str(name)] = Column(heading, cells, text=column.dtype == "str")
    show(title, columns, console, least=least)


def _cell(value: Any, column: str) -> str:
    import pandas as pd

    if pd.isna(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.2%}" if "accuracy" in column else f"{value:.1f}" if "minutes" in column else rounded(value)
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, pd.Timestamp) else str(value)

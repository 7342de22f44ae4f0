"""Values and frames as the page of a run shows them: rounded for the eye, whole behind it."""

import math
import numbers
import re
from typing import TYPE_CHECKING, Any

from tuning.base.errors import counted
from tuning.base.numerals import rounded
from tuning.base.registries import ACCURACY, Metric

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

NOTHING = "\N{EN DASH}"
_TIME = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d.*\+00:00$")
_HEADINGS = {
    "n_parameters": "parameters",
    **{f"search_{column}": "search" for column in ("valid_accuracy", "valid_score")},
    **{f"valid_accuracy_{name}": name for name in ("mean", "std", "low", "high")},
    **{f"valid_score_{name}": name for name in ("mean", "std", "low", "high")},
    **{f"difference_{name}": name for name in ("low", "high")},
}


def table(frame: "pd.DataFrame", metric: Metric = ACCURACY) -> dict[str, Any]:
    """Returns a frame for the page: `columns` (heading, whether numeric) and `rows` of cells (text, full value)."""
    import pandas as pd

    columns = [
        {
            "heading": _heading(str(name), metric),
            "numeric": pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column),
        }
        for name, column in frame.items()
    ]
    rows = [
        [
            (text := spoken(value, str(name), metric), "" if text == NOTHING else str(value))
            for name, value in zip(frame, row, strict=True)
        ]
        for row in frame.itertuples(index=False, name=None)
    ]
    return {"columns": columns, "rows": rows}


def exact(value: Any, text: str | None = None) -> Any:
    """Returns a number as HTML: rounded for the eye, whole in the element's `value` and `title`."""
    from markupsafe import Markup

    if value is None or value != value:  # NaN.
        return NOTHING
    return Markup('<data value="{0}" title="{0}">{1}</data>').format(
        str(value), spoken(value) if text is None else text
    )


def percent(value: float | None, digits: int = 2) -> Any:
    """Returns a share as HTML, in per cent."""
    return exact(value, None if value is None else f"{100 * value:.{digits}f}%")


def said(metric: Metric, value: float | None) -> Any:
    """Returns a metric's value as HTML."""
    return exact(value, None if value is None else metric.said(value))


def spread(metric: Metric, value: float) -> Any:
    """Returns a standard deviation of a metric's values as HTML, without the sign of a per cent."""
    return exact(value, metric.gap(value, ""))


def gap(metric: Metric, value: float | None) -> Any:
    """Returns a difference of a metric's values as HTML, with a sign: shares in points of a per cent."""
    return exact(value, None if value is None else metric.gap(value))


def spent(minutes: float, unit: str = "") -> Any:
    """Returns a time as HTML: "24 s", or "12 min" from a minute on; with a unit such as "slot" as "24 slot seconds"."""
    if not math.isfinite(minutes):
        return exact(None)
    short = (n := round(60 * minutes)) < 60
    n = n if short else round(minutes)
    words = counted(n, f"{unit} {'second' if short else 'minute'}") if unit else f"{n:,} {'s' if short else 'min'}"
    return exact(minutes, words)


def _heading(name: str, metric: Metric) -> str:
    known = _HEADINGS.get(name, metric.label if name == "valid_score" else name)
    return known.removeprefix("config/").replace("_", " ")


def spoken(value: Any, name: str = "", metric: Metric = ACCURACY) -> str:
    """Returns a value of a frame or of a JSON file, rounded for the eye as its name asks for."""
    import pandas as pd

    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if pd.isna(value):
        return NOTHING
    if isinstance(value, float):
        if "difference" in name:
            return metric.gap(value)
        if "valid_score" in name or name.startswith(("seed_", "fold_", "second_")):
            return metric.said(value)
        if "accuracy" in name or name.startswith(("precision", "recall", "f1")):
            return f"{value:.2%}"
        return rounded(value)
    if isinstance(value, numbers.Integral):
        grouped = int(value) >= 10_000 or name == "n_parameters"
        return f"{int(value):,}" if grouped and "seed" not in name else str(value)
    return _TIME.sub(r"\1 \2 UTC", str(value))


def with_code(text: str) -> "Markup":
    """Returns a text whose parts between backticks are shown as code; all else stays text."""
    from markupsafe import Markup

    parts = [Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(text.split("`"))]
    return Markup("").join(parts)

"""What the frames of a run hold: names and dtypes of their columns, and how a file is read into one."""

import csv
import functools
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tuning.base import files
from tuning.base.config import OF_0_2, TrainConfig
from tuning.base.errors import UserError, counted

if TYPE_CHECKING:
    import pandas as pd

_INT, _FLOAT, _TEXT, _TIME = "Int64", "float64", "str", "datetime64[us, UTC]"

EPOCH_COLUMNS = {
    "trial": "int64",
    "epoch": "int64",
    "train_loss": _FLOAT,
    "train_accuracy": _FLOAT,
    "valid_loss": _FLOAT,
    "valid_accuracy": _FLOAT,
    "valid_score": _FLOAT,
    "lr": _FLOAT,
    "epoch_seconds": _FLOAT,
    "images_per_second": _FLOAT,
}

# States of a trial: those in which it has a result, and those in which more may come of it.
HAVE_RESULTS = ("complete", "pruned", "paused")
MAY_GO_ON = ("running", "paused")

_OUTCOME_COLUMNS = {
    "trial": "int64",
    "state": _TEXT,
    "valid_accuracy": _FLOAT,
    "valid_loss": _FLOAT,
    "valid_score": _FLOAT,
    "best_epoch": _INT,
    "epochs": _INT,
    "seconds": _FLOAT,
    "images_per_second": _FLOAT,
    "n_parameters": _INT,
    "seconds_per_image": _FLOAT,
    "pareto": "boolean",
    "seed": _INT,
    "attempt": _INT,
    "accumulation": _INT,
    "device": _TEXT,
    "precision": _TEXT,
    "node": _TEXT,
    "stopped_by": _TEXT,
    "error": _TEXT,
    "started": _TIME,
    "ended": _TIME,
}


def _config_dtype(annotation: Any) -> str:
    """Returns the frame dtype of a hyperparameter, from its annotation in `TrainConfig`.

    An annotation may be nested, as that of `Annotated[int, ...] | None` is.
    """
    kinds, parts = {annotation}, list(get_args(annotation))
    while parts:
        kinds |= {parts[-1], type(parts[-1])}
        parts += get_args(parts.pop())
    if bool in kinds:
        return "boolean"
    if float in kinds:
        return _FLOAT
    return _INT if int in kinds else _TEXT


TRIAL_COLUMNS = _OUTCOME_COLUMNS | {
    f"config/{name}": _config_dtype(field.annotation) for name, field in TrainConfig.model_fields.items()
}
# Column -> the value of a hyperparameter that the version which wrote the file did not have yet.
DEFAULTS = {f"config/{name}": field.default for name, field in TrainConfig.model_fields.items() if name not in OF_0_2}
FRAMES = {"trials.csv": TRIAL_COLUMNS, "epochs.csv": EPOCH_COLUMNS}
REPEAT = "same configuration as trial"  # So `stopped_by` begins in the row of a trial that was not trained again.


def read_frame(path: Path, dtypes: Mapping[str, str]) -> "pd.DataFrame":
    """Returns a CSV file with exactly these columns and dtypes; a last line that is not yet whole is left out.

    A column that the file has not, because an earlier version wrote it, is empty; that of a hyperparameter has its
    default, with which the trials were trained, and the score is the accuracy. A missing file gives an empty frame.

    Raises:
        UserError: The file has no `trial`, a line has too many fields, or a value is of another type; or the file
            cannot be read.
    """
    try:
        text = files.whole_lines(path) or ",".join(dtypes) + "\n"
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Make it readable, or put back a copy of it."
        ) from error
    try:
        return _parsed(text, tuple(dtypes.items())).copy()
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: {_damage(text, dtypes, error)}. "
            f"`python -m tuning.search --resume {files.quoted(path.parent)}` writes it anew from the study."
        ) from error


def read_named(path: Path) -> "pd.DataFrame":
    """Returns the frame of a CSV file in which classes, images or configurations have names.

    An empty cell alone is no value: a class may be called "None" or "NA".
    """
    import pandas as pd

    dtypes = {"rank": "Int64", "trial": "Int64", "config_hash": "str", "class": "str"}
    dtypes |= dict.fromkeys(("image", "label", "predicted"), "str")
    return pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values=[""])


@functools.lru_cache(maxsize=4)
def _parsed(text: str, columns: tuple[tuple[str, str], ...]) -> "pd.DataFrame":
    """Returns the frame of a file's text; kept, because the end of a search read its two frames 24 times.

    Raises:
        KeyError: The text has no `trial`. ValueError and TypeError are pandas' own.
    """
    import pandas as pd

    dtypes = dict(columns)
    raw = pd.read_csv(io.StringIO(text), dtype="str", keep_default_na=False, na_values=[""])
    later: dict[str, Any] = {
        name: str(DEFAULTS[name]) for name in dtypes if name not in raw and DEFAULTS.get(name) is not None
    }
    if "valid_score" in dtypes and "valid_score" not in raw and "valid_accuracy" in raw:
        later["valid_score"] = raw["valid_accuracy"].to_list()
    raw = raw.set_index("trial", drop=False).reindex(columns=list(dtypes)).reset_index(drop=True).assign(**later)
    return pd.DataFrame({name: _typed(raw[name], dtype) for name, dtype in dtypes.items()})


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of `epochs.csv`, each once, as Python's own numbers; lines that are no rows are left out."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    lines = csv.DictReader(io.StringIO(files.whole_lines(path)))
    columns = lines.fieldnames or ()
    # An earlier version wrote the file.
    missing = {name: math.nan for name in EPOCH_COLUMNS if name not in columns and name != "valid_score"}
    for line in lines:
        try:
            row: dict[str, Any] = {
                name: int(line[name]) if dtype == "int64" else _float(line[name])
                for name, dtype in EPOCH_COLUMNS.items()
                if name in columns
            }
        except (KeyError, TypeError, ValueError):
            continue
        if None not in line:  # Where csv puts what a line has beyond its columns.
            found.setdefault((row["trial"], row["epoch"]), scored(row) | missing)
    return list(found.values())


def scored(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an epoch's row with its score, which is the accuracy where an earlier version wrote it."""
    return {"valid_score": row.get("valid_accuracy"), **row}


def _float(text: str) -> float:
    return float(text) if text else math.nan


def _damage(text: str, dtypes: Mapping[str, str], error: Exception) -> str:
    """Returns what is wrong with a frame's file: the first line with a wrong number of fields, or what pandas says."""
    lines = list(csv.reader(io.StringIO(text)))
    if "trial" not in lines[0]:
        return f"its first line must name the columns {', '.join(list(dtypes)[:3])}, ..."
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(lines[0]):
            return f"line {number} has {counted(len(line), 'field')}, expected {len(lines[0])}"
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _typed(column: "pd.Series[Any]", dtype: str) -> "pd.Series[Any]":
    import pandas as pd

    if dtype == _TIME:
        return pd.to_datetime(column, utc=True, format="ISO8601").astype("datetime64[us, UTC]")
    if dtype == "boolean":
        found = column.map(lambda text: {"true": True, "false": False}.get(text.lower(), text), na_action="ignore")
        if wrong := [value for value in found if isinstance(value, str)]:
            raise ValueError(f"{column.name} must be True or False, but got {wrong[0]!r}")
        return found.astype("boolean")
    return column.astype(pd.api.types.pandas_dtype(dtype))


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a frame's row as Python's own values; missing ones are None."""
    import pandas as pd

    return {name: None if pd.isna(v) else v.item() if hasattr(v, "item") else v for name, v in row.items()}

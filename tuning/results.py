"""A run folder as typed data frames: `results.load("latest").trials`.

    python -m tuning.results [RUN]                      the best trials, the run in a line, what to do next (under 2 s)
    python -m tuning.results list | compare RUN RUN...  all runs | what differs, accuracy at equal cost, a picture

This module needs neither torch nor Ray. Rows come from the search; here they are read and given fixed dtypes.
"""

import csv
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from tuning import database, files, mirror, storage
from tuning.config import TrainConfig
from tuning.errors import UserError, counted, run_command, unknown_name
from tuning.masking import masked

if TYPE_CHECKING:
    import pandas as pd

RESULTS = files.RESULTS
OBJECTIVES = ("n_parameters", "seconds_per_image")  # The columns that a search can minimize beside its accuracy.
WORDS = ("latest", "list", "compare")  # what the command understands, so that no run may be called it

# The types of the settings that are read here and elsewhere without a check of their own.
_SETTINGS: dict[str, type] = {
    **dict.fromkeys(("samples", "epochs", "seed", "concurrency"), int),
    **dict.fromkeys(("space", "dataset", "sampler"), str),
}

_INT, _FLOAT, _TEXT, _TIME = "Int64", "float64", "str", "datetime64[us, UTC]"

EPOCH_COLUMNS = {
    "trial": "int64",
    "epoch": "int64",
    "train_loss": _FLOAT,
    "train_accuracy": _FLOAT,
    "valid_loss": _FLOAT,
    "valid_accuracy": _FLOAT,
    "lr": _FLOAT,
    "epoch_seconds": _FLOAT,
    "images_per_second": _FLOAT,
}

_OUTCOME_COLUMNS = {
    "trial": "int64",
    "state": _TEXT,
    "valid_accuracy": _FLOAT,
    "valid_loss": _FLOAT,
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
FRAMES = {"trials.csv": TRIAL_COLUMNS, "epochs.csv": EPOCH_COLUMNS}


@dataclass(frozen=True)
class Run:
    """A run folder. The frames are read anew each time, so that they are right while a search is running."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def meta(self) -> dict[str, Any]:
        """How the run was made: command line, data set, seed, versions, hardware, times.

        Raises:
            UserError: `meta.json` is missing or damaged.
        """
        try:
            return files.read_json(self.path / "meta.json")
        except UserError as error:
            raise UserError(f"{error} Put back a copy of it; where the run has a storage, one is there.") from error

    @property
    def settings(self) -> dict[str, Any]:
        """What the search was asked to do.

        Raises:
            UserError: `meta.json` is missing or damaged, or has no settings.
        """
        found = self.meta.get("settings")
        if not isinstance(found, dict):
            raise UserError(
                f"{self.path / 'meta.json'} has no settings: it is damaged, or another version wrote it. "
                "Put back a copy of it, if there is one."
            )
        return found

    def setting(self, name: str) -> Any:
        """Returns one of the settings; raises UserError where `meta.json` lacks it, or has it with another type."""
        value = self.settings.get(name, ...)
        if not isinstance(value, _SETTINGS.get(name, object)) or value is ...:
            raise UserError(
                f"{self.path / 'meta.json'} has no {'' if value is ... else 'usable '}setting {name!r}: it is damaged, "
                "or another version wrote it. Put back a copy of it, if there is one."
            )
        return value

    @property
    def identity(self) -> str:
        """What tells this run from others, wherever its folder is and whatever its name.

        For a run of version 0.2.0 that is the name of the folder in which it was begun: what `final` trained of it has
        seeds that derive from that.
        """
        meta = self.meta
        return str(meta["id"]) if "schema" in meta and "id" in meta else first_name(self)

    @property
    def trials(self) -> "pd.DataFrame":
        """A row a trial; columns and dtypes as in `TRIAL_COLUMNS`.

        Raises:
            UserError: The file is damaged, or missing though trials have ended.
        """
        trials = self._frame("trials.csv", TRIAL_COLUMNS)
        return trials.assign(error=trials["error"].map(masked, na_action="ignore").astype("str"))

    @property
    def epochs(self) -> "pd.DataFrame":
        """A row an epoch of a trial; columns and dtypes as in `EPOCH_COLUMNS`."""
        return self._frame("epochs.csv", EPOCH_COLUMNS).drop_duplicates(["trial", "epoch"], ignore_index=True)

    def _frame(self, name: str, dtypes: Mapping[str, str]) -> "pd.DataFrame":
        """Returns a frame; raises UserError where it is damaged, or missing though the study has results."""
        if is_missing(self.path / name):
            raise UserError(
                f"{self.path / name} is missing, but {self.path / database.FILE} has trials that have ended. "
                f"`python -m tuning.search --resume {files.called(self.path)}` writes it anew."
            )
        return read_frame(self.path / name, dtypes)

    def clock(self, moments: "pd.Series[Any]") -> "pd.Series[float]":
        """Returns the seconds that the search had taken by each moment (UTC): from its first trial, less its pauses."""
        import pandas as pd

        start = self.trials["started"].min()
        seconds: pd.Series[float] = (moments - start).dt.total_seconds()
        try:
            # Version 0.2.0 wrote a pause twice where nothing happened in the session between.
            for pause in {pause[0]: pause for pause in self.meta.get("pauses", [])}.values():
                began, ended = (pd.Timestamp(moment) for moment in pause)
                rested = (moments.where(moments < ended, ended) - max(began, start)).dt.total_seconds()
                seconds -= rested.clip(lower=0.0)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.path / 'meta.json'} has pauses that are no pairs of times: it is damaged, or another version "
                "wrote it. Put back a copy of it, if there is one."
            ) from error
        return seconds

    @property
    def best(self) -> "pd.Series[Any]":
        """The row of the finished trial with the best valid_accuracy.

        Raises:
            UserError: No trial has finished.
        """
        return rank_trials(self.trials, self.path).iloc[0]


def rank_trials(trials: "pd.DataFrame", path: Path) -> "pd.DataFrame":
    """Returns the complete and pruned trials, complete ones first where accuracies are equal, the best first.

    Raises:
        UserError: There is none.
    """
    finished = trials[trials["state"].isin(["complete", "pruned"])]
    if finished.empty:
        raise UserError(
            f"Run {path} must have a finished trial, but none of its {counted(len(trials), 'trial')} has finished. "
            f"If nothing is running, go on with `python -m tuning.search --resume {files.called(path)}`."
        )
    return finished.sort_values(["valid_accuracy", "state", "trial"], ascending=[False, True, True], kind="stable")


def ran(trials: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the trials that were run: not the proposals that repeat the configuration of another one."""
    return trials[trials["attempt"].fillna(1) != 0] if "attempt" in trials else trials


def within(trials: "pd.DataFrame", path: Path, max_parameters: int | None) -> "pd.DataFrame":
    """Returns the trials whose model has at most so many parameters; None is all of them.

    Raises:
        UserError: There is none.
    """
    small = trials if max_parameters is None else trials[trials["n_parameters"] <= max_parameters]
    if small.empty and len(trials):
        least = trials["n_parameters"].min()
        raise UserError(f"--max-parameters must be at least {least}, the fewest in {path}, but got {max_parameters}.")
    return small


def load(name: str | Path = "latest", root: Path = RESULTS, *, retrained: bool = False) -> Run:
    """Returns a run by name, by path, or the newest one; or one in a storage, whose record it fetches.

    Args:
        name: A folder's name below `root`, a path, a URI (`s3://bucket/runs/<run>`), or "latest".
        root: Where the run folders are.
        retrained: Fetch what `final` has trained, too.

    Raises:
        UserError: There is no such run (the closest name is given), or none at all.
    """
    if "://" in str(name):
        return Run(mirror.fetch(str(name), root, retrained=retrained))
    if Path(name).name == "latest" and len(Path(name).parts) > 1 and not Path(name).exists():
        return load("latest", Path(name).parent, retrained=retrained)  # Of a storage that is a folder.
    if Path(name).is_dir() and (Path(name) / "meta.json").exists():
        return Run(Path(name) if Path(name).name not in ("", "..") else Path(name).resolve())
    names = run_names(root)
    if not names:
        raise UserError(
            f"There is no run folder below {root.absolute()}/. Run `python -m tuning.search` first, or this command in "
            "the folder in which the search ran."
        )
    if str(name) == "latest":
        return Run(max((root / run for run in names), key=_last_begun))
    if str(name) not in names:
        raise unknown_name(f"Run below {root}/", str(name), [*names, "latest"])
    return Run(root / name)


def _last_begun(path: Path) -> tuple[str, int]:
    """Returns when a run was begun or resumed last, by its record, for a copied folder has other times."""
    file = path / "meta.json"
    try:
        meta = files.read_json(file)
        moments = [meta.get("started"), meta.get("ended"), *(pause[1] for pause in meta.get("pauses", []))]
    except (UserError, TypeError, IndexError):
        moments = []
    return max((str(moment) for moment in moments if moment), default=""), file.stat().st_mtime_ns


def first_name(run: Run) -> str:
    """Returns the name of the folder in which a run was begun: its study has that name, even where it is renamed."""
    return next(iter(database.studies(run.path)), run.path.resolve().name)


def send(run: Run) -> None:
    """Sends the page, and what `final` has trained, to the run's storage, if it has one; says what it cannot."""
    base = run.settings.get("storage")
    if base is None or storage.is_at(base, run.path):
        return
    uri = storage.joined(base, run.meta.get("stored_as") or first_name(run))
    with mirror.Mirror(run.path, uri, print, part="final") as sending:
        sending.finish()
    try:
        storage.Store(uri).write("report.html", (run.path / "report.html").read_bytes())
    except UserError as error:
        print(f"Not in the storage yet: report.html. {error}. {mirror.sent_by(run.path)}")


def run_names(root: Path = RESULTS) -> list[str]:
    """Returns the names of the run folders below `root`, sorted."""
    return sorted(path.parent.name for path in root.glob("*/meta.json"))


def is_missing(frame: Path) -> bool:
    """Returns whether the file of a frame is not there, though the study beside it has trials that have ended."""
    return not frame.exists() and database.has_ended(frame.parent)


def read_frame(path: Path, dtypes: Mapping[str, str]) -> "pd.DataFrame":
    """Returns a CSV file with exactly these columns and dtypes; a last line that is not yet whole is left out.

    A column that the file has not, because an earlier version wrote it, is empty; a missing file gives an empty frame.

    Raises:
        UserError: The file has no `trial`, a line has too many fields, or a value is of another type.
    """
    import pandas as pd

    text = files.whole_lines(path) or ",".join(dtypes) + "\n"
    try:
        raw = pd.read_csv(io.StringIO(text), dtype="str", keep_default_na=False, na_values=[""])
        raw = raw.set_index("trial", drop=False).reindex(columns=list(dtypes)).reset_index(drop=True)
        frame = pd.DataFrame({name: _typed(raw[name], dtype) for name, dtype in dtypes.items()})
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: {_damage(text, dtypes, error)}. "
            f"`python -m tuning.search --resume {files.called(path.parent)}` writes it anew from the study."
        ) from error
    return frame


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of `epochs.csv`, each once, as Python's own numbers; lines that are no rows are left out."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    lines = csv.DictReader(io.StringIO(files.whole_lines(path)))
    for line in lines:
        try:
            row: dict[str, Any] = {
                name: int(line[name]) if dtype == "int64" else _float(line[name])
                for name, dtype in EPOCH_COLUMNS.items()
            }
        except (KeyError, TypeError, ValueError):
            continue
        if None not in line:  # Where csv puts what a line has beyond its columns.
            found.setdefault((row["trial"], row["epoch"]), row)
    return list(found.values())


def mend(run: Run, note: Callable[[str], None]) -> None:
    """Makes the frames of a run readable before it is resumed: what is damaged is kept, and written anew.

    Args:
        run: Nothing else may write to it.
        note: Receives what was damaged.
    """
    for path, columns in ((run.path / name, columns) for name, columns in FRAMES.items()):
        if is_missing(path):
            files.write_rows(path, columns, [])
            note(f"{path} was missing, and is written anew from the study.")
        try:
            read_frame(path, columns)
        except UserError as error:
            kept = next(name for i in itertools.count(1) if not (name := _damaged(path, i)).exists())
            files.write_bytes(kept, path.read_bytes())
            if columns is EPOCH_COLUMNS:
                files.write_rows(path, columns, whole_rows(path))
            else:
                path.unlink()
            note(f"{str(error).partition('. ')[0]}. It is kept as {kept.name}, and written anew from the study.")


def _damaged(path: Path, i: int) -> Path:
    return path.with_name(f"{path.name}.damaged{'' if i == 1 else f'-{i}'}")


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
        return column.map({"True": True, "False": False}).astype("boolean")
    if dtype == _INT:  # By way of Python's integers: seeds do not fit a float.
        return pd.Series([pd.NA if pd.isna(v) else int(v) for v in column], index=column.index, dtype=_INT)
    return column.astype(pd.api.types.pandas_dtype(dtype))


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a frame's row as Python's own values; missing ones are None."""
    import pandas as pd

    return {name: None if pd.isna(v) else v.item() if hasattr(v, "item") else v for name, v in row.items()}


def write_best(run: Run) -> None:
    """Writes `best.json`: the winner's configuration and why it won."""
    ranked = rank_trials(ran(run.trials), run.path)
    best = plain({str(name): value for name, value in ranked.iloc[0].items()})
    second = float(ranked.iloc[1]["valid_accuracy"]) if len(ranked) > 1 else None
    when = f"in its epoch {best['best_epoch']} of {best['epochs']}"
    why = f"the best valid_accuracy of {len(ranked)} finished trials, {when}"
    config = {name.removeprefix("config/"): value for name, value in best.items() if name.startswith("config/")}
    outcome = {name: value for name, value in best.items() if not name.startswith("config/")}
    files.write_json(run.path / "best.json", {"why": why, "second_valid_accuracy": second, **outcome, "config": config})


def summary_line(run: Run) -> str:
    """Returns one line on the run: data set, trials by state, how long it has taken."""
    trials, meta = ran(run.trials), run.meta
    counts = ", ".join(f"{n} {state}" for state, n in trials["state"].value_counts().items())
    dataset = meta.get("dataset", "unknown data")
    if trials.empty:
        return f"{run.name}: {dataset}, no trials yet"
    taken, slots = minutes(run), max(run.setting("concurrency"), meta.get("side_by_side", 1))
    busy = trials["seconds"].sum() / 60 / (slots * taken) if taken else 0.0
    return (
        f"{run.name}: {dataset}, {counted(len(trials), 'trial')} ({counts}), {taken:.1f} minutes, "
        f"{slots} side by side, training {busy:.0%} of that time"
    )


def minutes(run: Run) -> float:
    """Returns the minutes, on its clock, that a run with trials took until the last end of a trial or of an epoch."""
    trials = run.trials
    trained = (1e6 * trials["seconds"].fillna(0.0)).astype("timedelta64[us]")
    seen = trials["ended"].fillna(trials["started"] + trained)  # so a killed run's clock stands still
    return float(run.clock(seen).max() / 60)


def next_step(run: Run) -> str:
    """Returns the command that goes on from a run as it is: `final` can work only where a trial has finished."""
    trials = ran(run.trials)
    if trials["state"].isin(["complete", "pruned"]).any():
        return f"python -m tuning.final --run {files.called(run.path)}"
    resume = f"python -m tuning.search --resume {files.called(run.path)}"
    asked = run.settings.get("samples") or 0
    # What has failed is not run again: where all that was asked for has failed, only more samples are something to do.
    more = f" --samples {len(trials) + asked}" if asked and (trials["state"] != "running").sum() >= asked else ""
    return f"{resume}{more}"


def estimate_line(run: Run) -> str:
    """Returns how far off the dry run's estimate was, over as many trials as the estimate was for.

    Of a run that was extended these are the first ones; of one with fewer trials the line says only that. An estimate
    of version 0.2.0 does not say for how many it was: the run's samples count, as far as the run was never resumed.
    """
    meta, trials = run.meta, run.trials
    guess = {name: value / 60 for name, value in meta["estimate"].items()}
    said = (
        f"The dry run said {guess['seconds']:.1f} minutes ({guess['seconds_low']:.1f} to {guess['seconds_high']:.1f})"
    )
    n = meta["estimate"].get("samples", None if meta.get("pauses") else meta["settings"]["samples"])
    if n is None:
        return f"{said}, for the samples that the run began with."
    said += f" for {counted(int(n), 'trial')}"
    ended = trials.loc[(trials["attempt"].fillna(1) != 0) & (trials["state"] != "running"), "ended"].sort_values()
    if len(ended) < n:
        return f"{said}, of which {len(ended):,} ended."
    took = float(run.clock(ended).iloc[int(n) - 1] / 60)
    which = f"the first {int(n):,}" if len(ended) > n else "it"
    return f"{said}; {which} took {took:.1f}, {took / guess['seconds'] - 1:+.0%}"


def print_trials(run: Run, limit: int = 10) -> None:
    """Prints the best trials as a table: accuracy, length, cost and the hyperparameters that differ.

    Where none has finished, that is printed, and why the last one failed.
    """
    trials = ran(run.trials)
    if not trials["state"].isin(["complete", "pruned"]).any():
        errors = trials["error"].dropna()
        print("No trial has finished." + (f" The last error was: {errors.iloc[-1]}" if len(errors) else ""))
        return
    best = rank_trials(trials, run.path).head(limit)
    config = [c for c in best.filter(like="config/") if best[c].nunique(dropna=False) > 1 and c != "config/epochs"][:8]
    epochs = best["epochs"].astype("str") + best["state"].map({"complete": ""}).fillna(" (stopped)")
    shown = best[["trial", "valid_accuracy"]].assign(epochs=epochs, minutes=best["seconds"] / 60)
    if best["pareto"].any():
        shown = shown.join(best[[*OBJECTIVES, "pareto"]])
    print_frame(shown.join(best[config]), f"Best trials of {run.name}")


def print_frame(frame: "pd.DataFrame", title: str, *, least: Sequence[str] = ()) -> None:
    """Prints a frame as a table: accuracies in per cent, minutes to a tenth, other floats to three digits.

    Args:
        frame: A row a line.
        title: What it is of.
        least: Columns that give way first in a terminal that is too narrow; after them the last ones do.
    """
    from rich.console import Console

    from tuning import tables

    console = Console(markup=False)
    if not console.is_terminal:
        console.width = tables.FILE_WIDTH
    if frame.empty:
        console.print(f"{title}: nothing")
        return
    columns = {}
    for name, column in frame.items():
        heading = str(name).removeprefix("config/").replace("_", " ")
        cells = [_cell(value, str(name)) for value in column]
        columns[str(name)] = tables.Column(heading, cells, text=column.dtype == "str")
    tables.show(title, columns, console, least=least)


def _cell(value: Any, column: str) -> str:
    import pandas as pd

    if pd.isna(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.2%}" if "accuracy" in column else f"{value:.1f}" if "minutes" in column else f"{value:.3g}"
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, pd.Timestamp) else str(value)


def _print_comparison(runs: list[Run], out: Path) -> None:
    from tuning import compare, plots, style

    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out must end in .png, .pdf or .svg, but got {str(out)!r}.")
    differences, accuracies = compare.differences(runs).reset_index(), compare.at_equal_cost(runs)
    print_frame(differences, "What differs")
    print_frame(accuracies, "Best, and median of the trials, at the cost that all runs reached")
    print("\n".join(compare.caveats(runs)))
    try:
        style.save(plots.best_so_far_of(compare.curves(runs)), out)
    except UserError as error:
        raise UserError(f"{error} Name another place with --out FILE.png.") from error
    print(f"Best-so-far curves: {out}")


def main(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="RUN|list|compare RUN RUN", help="RUN: a name or a folder.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many of the best trials of RUN to print.")] = 10,
    out: Annotated[Path, typer.Option(help="The picture that compare draws.")] = RESULTS / "compare.png",
) -> None:
    """Print the best trials of a run (the latest) and what to do next; or list the runs; or compare some of them."""
    match words or ["latest"]:
        case ["list"]:
            from tuning.compare import HOW, list_runs

            listed = list_runs()
            equal = [name for name in HOW if listed[name].nunique(dropna=False) == 1]
            print_frame(listed, f"Runs below {RESULTS}/", least=list(dict.fromkeys([*equal, *reversed(HOW)])))
        case ["compare", *names]:
            _print_comparison([load(name) for name in names], out)
        case [name]:
            found = load(name)
            print(summary_line(found))
            print_trials(found, limit)
            frames = [str(path) for name in ("trials.csv", "epochs.csv") if (path := found.path / name).exists()]
            where = f"Frames: {', '.join(frames)}. " if frames else ""
            print(f"{where}Next: {next_step(found)}")
        case several:
            raise UserError(f"The command must be a run, list, or compare RUN RUN..., but got {' '.join(several)!r}.")


if __name__ == "__main__":
    run_command(main)

"""A run folder, and how one is found; what it holds is read anew each time."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files, rim
from tuning.base.errors import UserError, counted, unknown_name
from tuning.base.masking import masked
from tuning.base.registries import ACCURACY, METRICS, Metric
from tuning.runs import schema, study_file
from tuning.runs.schema import EPOCH_COLUMNS, FRAMES, TRIAL_COLUMNS, plain, read_frame, whole_rows

if TYPE_CHECKING:
    import pandas as pd

RESULTS, MODEL_DIR = files.RESULTS, files.MODEL_DIR
WORDS = ("latest", "list", "compare")  # what the command understands, so that no run may be called it
LATER_HARDWARE = "later_hardware"  # What `meta.json` calls the other machines on which a run was resumed.
VALID_IMAGES_BEFORE = 5_000  # Of the valid split, where an earlier version kept no number, as it did of fewer.

# The types of the settings that are read here and elsewhere without a check of their own.
_SETTINGS: dict[str, type] = {
    **dict.fromkeys(("samples", "epochs", "seed", "concurrency"), int),
    **dict.fromkeys(("space", "dataset", "sampler"), str),
}


@dataclass(frozen=True)
class Run:
    """A run folder. The frames are read anew each time, so that they are right while a search is running."""

    _named: Path
    _absolute: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_absolute", self._named.absolute())

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The folder as it was named; absolute where that name leads elsewhere, after a change of directory."""
        return self._named if self._named.absolute() == self._absolute else self._absolute

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
        self._check_there()
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
            raise self._damaged("no settings")
        return found

    def setting(self, name: str) -> Any:
        """Returns one of the settings; raises UserError where `meta.json` lacks it, or has it with another type."""
        value = self.settings.get(name, ...)
        if not isinstance(value, _SETTINGS.get(name, object)) or value is ...:
            raise self._damaged(f"no {'' if value is ... else 'usable '}setting {name!r}")
        return value

    @property
    def metric(self) -> Metric:
        """What the trials are ranked by: the accuracy where the record names nothing, as that of version 0.2.0 does.

        The frames can be read without the record: where it is damaged, the accuracy ranks them, too.

        Raises:
            UserError: The record names a metric that there is not.
        """
        try:
            name = self.settings.get("metric")
        except UserError:
            return ACCURACY
        return ACCURACY if name is None else METRICS.find(str(name), f"The metric of {self.path}")

    def _check_there(self) -> None:
        """Raises UserError where the folder is gone, which without that would be a run without trials."""
        if not self.path.is_dir():
            raise UserError(
                f"The run folder {self.path} is not there: it was renamed, moved or deleted. Load the run from where "
                "it is now."
            )

    def _damaged(self, what: str) -> UserError:
        """Returns the error for a `meta.json` that has no, or another, `what` than every version writes."""
        return UserError(
            f"{self.path / 'meta.json'} has {what}: it is damaged, or another version wrote it. "
            "Put back a copy of it, if there is one."
        )

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
            UserError: The file is damaged, or missing though trials have ended; or the folder is gone.
        """
        trials = self._frame("trials.csv", TRIAL_COLUMNS)
        return trials.assign(error=trials["error"].map(masked, na_action="ignore").astype("str"))

    @property
    def epochs(self) -> "pd.DataFrame":
        """A row an epoch of a trial; columns and dtypes as in `EPOCH_COLUMNS`."""
        return self._frame("epochs.csv", EPOCH_COLUMNS).drop_duplicates(["trial", "epoch"], ignore_index=True)

    def _frame(self, name: str, dtypes: Mapping[str, str]) -> "pd.DataFrame":
        """Returns a frame; raises UserError where it is damaged, or missing though the study has results."""
        self._check_there()
        if is_missing(self.path / name):
            lacks = "has no rows" if (self.path / name).exists() else "is missing"
            raise UserError(
                f"{self.path / name} {lacks}, but {self.path / study_file.FILE} has trials that have ended. "
                f"`python -m tuning.search --resume {files.quoted(self.path)}` writes it anew."
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
            raise self._damaged("pauses that are no pairs of times") from error
        return seconds

    @property
    def n_valid(self) -> int:
        """Images of the valid split."""
        meta = self.meta
        noise = meta.get("noise")
        known = meta.get("valid_images", noise.get("valid_images") if isinstance(noise, dict) else None)
        return known if isinstance(known, int) and known > 0 else VALID_IMAGES_BEFORE

    @property
    def best(self) -> "pd.Series[Any]":
        """The row of the finished trial that is best in the run's metric.

        Raises:
            UserError: No trial has finished.
        """
        return rank_trials(self.trials, self.path, self.metric).iloc[0]

    @property
    def edges(self) -> "pd.DataFrame":
        """A row an end of a range of the space at which the best trials lie; columns as in `edges.COLUMNS`.

        It is empty where there is none, where too few trials tell, and where the run has no study.

        Raises:
            UserError: The study, or `trials.csv`, is damaged.
        """
        from tuning.runs import edges

        return edges.with_lines(edges.find(edges.drawn(self.path), self.trials, self.metric), self.path / "space.py")


def rank_trials(trials: "pd.DataFrame", path: Path, metric: Metric = ACCURACY) -> "pd.DataFrame":
    """Returns the trials that have a result, complete ones first where the metric is equal, the best first.

    Raises:
        UserError: There is none.
    """
    finished = trials[trials["state"].isin(schema.HAVE_RESULTS)]
    if finished.empty:
        tried = ran(trials)
        raise UserError(
            f"Run {path} must have a finished trial, but none of its {counted(len(tried), 'trial')} has finished."
            f"{last_error(tried)} If nothing is running, resume it with `{resumption(path, tried)}`."
        )
    order = [not metric.greater_is_better, True, True]
    return finished.sort_values([metric.column, "state", "trial"], ascending=order, kind="stable")


def last_error(trials: "pd.DataFrame") -> str:
    """Returns why the last of the trials that failed did, as a sentence after another one; "" where none failed."""
    errors = trials["error"].dropna()
    return f" The last error was: {str(errors.iloc[-1]).rstrip('.')}." if len(errors) else ""


def resumption(path: Path, trials: "pd.DataFrame") -> str:
    """Returns the command that resumes a run, of which `trials` were run, so that it has something to do.

    What has failed is not run again: where all samples that were asked for have ended, there must be more.
    """
    try:
        asked = Run(path).settings.get("samples") or 0
    except UserError:  # The frames can be read without the record.
        asked = 0
    more = f" --samples {len(trials) + asked}" if asked and have_ended(trials).sum() >= asked else ""
    return f"python -m tuning.search --resume {files.quoted(path)}{more}"


def ran(trials: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the trials that were run: not the proposals that repeat the configuration of another one."""
    return trials[trials["attempt"].fillna(1) != 0] if "attempt" in trials else trials


def have_ended(trials: "pd.DataFrame") -> "pd.Series[bool]":
    """Returns which trials have ended: nothing more will come of them."""
    return ~trials["state"].isin(schema.MAY_GO_ON)


def within(trials: "pd.DataFrame", path: Path, max_parameters: int | None) -> "pd.DataFrame":
    """Returns the trials that have a result and whose model has at most so many parameters; None is all trials.

    Where none has a result, all are returned, of which `rank_trials` says so.

    Raises:
        UserError: None of those that have a result has so few.
    """
    ended = trials[trials["state"].isin(schema.HAVE_RESULTS)]
    if max_parameters is None or ended.empty:
        return trials
    small = ended[ended["n_parameters"] <= max_parameters]
    if small.empty:
        least = ended["n_parameters"].min()
        raise UserError(
            f"--max-parameters must be at least {least}, the fewest of a finished trial in {path}, "
            f"but got {max_parameters}."
        )
    return small


def load(name: str | Path | Run = "latest", root: Path = RESULTS, *, retrained: bool = False) -> Run:
    """Returns a run by name, by path, or the newest one; or one in a storage, whose record it fetches.

    Args:
        name: A folder's name below `root`, a path, a URI (`s3://bucket/runs/<run>`), "latest", or a run.
        root: Where the run folders are.
        retrained: Fetch what `final` has trained, too.

    Raises:
        UserError: There is no such run (the closest name is given), or none at all.
    """
    if isinstance(name, Run):
        return name
    if not isinstance(name, str | Path):
        raise UserError(f"A run must be its name, its folder or a Run, but got {name!r}.")
    if "://" in str(name):
        rim.need("remote", f"The run {masked(str(name))}")
        from tuning.remote import mirror

        return Run(mirror.fetch(str(name), root, retrained=retrained))
    name = files.expanded(name) if str(name).startswith("~") else name
    try:
        is_there, has_record = Path(name).exists(), (Path(name) / "meta.json").exists()
    except OSError as error:
        raise UserError(f"A run must be a folder that can be read, but got {str(name)!r}: {error.strerror}.") from error
    if Path(name).name == "latest" and len(Path(name).parts) > 1 and not is_there:
        return load("latest", Path(name).parent, retrained=retrained)  # Of a storage that is a folder.
    if has_record:
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
    except UserError:
        meta = {}
    return last_begun(meta), file.stat().st_mtime_ns


def last_begun(meta: Mapping[str, Any]) -> str:
    """Returns when a run was begun or resumed last, as its `meta.json` says; "" where that is damaged."""
    try:
        moments = [meta.get("started"), *(pause[1] for pause in meta.get("pauses", []))]
    except (TypeError, LookupError):
        moments = []
    return max((str(moment) for moment in moments if moment), default="")


def first_name(run: Run) -> str:
    """Returns the name of the folder in which a run was begun: its study has that name, even where it is renamed."""
    return next(iter(study_file.studies(run.path)), run.path.resolve().name)


def run_names(root: Path = RESULTS) -> list[str]:
    """Returns the names of the run folders below `root`, sorted."""
    return sorted(path.parent.name for path in root.glob("*/meta.json"))


def is_missing(frame: Path) -> bool:
    """Returns whether the file of a frame is not there, or has no row, though its study has trials that have ended."""
    try:
        with frame.open("rb") as file:
            head, row = file.readline(), file.readline()
    except FileNotFoundError:
        head = row = b""
    except OSError:
        return False  # Whoever reads it says so.
    is_frame = not head.endswith(b"\n") or b"trial" in head.strip().split(b",")
    return is_frame and not row.endswith(b"\n") and study_file.has_ended(frame.parent)


def mend(run: Run, note: Callable[[str], None]) -> None:
    """Makes the frames of a run readable before it is resumed: what is damaged is kept beside them.

    Frames that lack their rows then are for `tuning.sampling.missing_frames.write_missing`.

    Args:
        run: Nothing else may write to it.
        note: Receives what was damaged.
    """
    for path, columns in ((run.path / name, columns) for name, columns in FRAMES.items()):
        if is_missing(path):
            lacked = "had no rows" if path.exists() else "was missing"
            note(f"{path} {lacked}, and is written anew from the study.")
        try:
            read_frame(path, columns)
        except UserError as error:
            if isinstance(error.__cause__, OSError):  # Not damaged, and not to be replaced.
                raise
            kept = next(name for i in itertools.count(1) if not (name := _damaged(path, i)).exists())
            files.write_bytes(kept, path.read_bytes())
            if columns is EPOCH_COLUMNS:
                files.write_rows(path, columns, whole_rows(path))
            else:
                path.unlink()
            note(f"{str(error).partition('. ')[0]}. It is kept as {kept.name}, and written anew from the study.")


def _damaged(path: Path, i: int) -> Path:
    return path.with_name(f"{path.name}.damaged{'' if i == 1 else f'-{i}'}")


def write_best(run: Run) -> None:
    """Writes `best.json`: the winner's configuration and why it won."""
    metric = run.metric
    ranked = rank_trials(ran(run.trials), run.path, metric)
    best = plain({str(name): value for name, value in ranked.iloc[0].items()})
    second = float(ranked.iloc[1][metric.column]) if len(ranked) > 1 else None
    when = f"in its epoch {best['best_epoch']} of {best['epochs']}"
    why = f"the best {metric.called} of {len(ranked)} finished trials, {when}"
    config = {name.removeprefix("config/"): value for name, value in best.items() if name.startswith("config/")}
    outcome = {name: value for name, value in best.items() if not name.startswith("config/")}
    reasons = {"why": why, "metric": metric.name, f"second_{metric.column}": second}
    files.write_json(run.path / "best.json", {**reasons, **outcome, "config": config})


def trial_folder(run: Path, number: int) -> Path:
    """Returns the folder of a trial's log, events and checkpoints."""
    return run / "trials" / f"{number:04d}"


def is_of(metrics: Mapping[str, Any], name: str | None, identity: str | None) -> bool:
    """Returns whether a `metrics.json` is of a run; 0.2.0 wrote down the name only that the run's folder then had."""
    if metrics.get("run_id") is not None and identity is not None:
        return bool(metrics["run_id"] == identity)
    known = metrics.get("run")  # None is a model of `--config`, which is no run's.
    return known is not None and known in (name, identity)

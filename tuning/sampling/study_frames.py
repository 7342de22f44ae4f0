"""`trials.csv` and `epochs.csv` of a run, which are written from its study: rows of them, and when they are written.

Nothing here asks Optuna: what a trial is, the study has said before. Where a frame lacks something it is written anew.
"""

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files
from tuning.base.errors import UserError, counted
from tuning.base.registries import Metric
from tuning.runs import run_folder, schema, study_file
from tuning.sampling.known_trials import PAUSED, KnownTrials, total

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_SECONDS_OF_WRITES = 1.0  # So long `trials.csv` is written at every change; then for a twentieth of the time.


class StudyFrames:
    """The two frames of a run.

    Args:
        path: The run folder.
        trials: All trials by number, as the study knows them; read anew each time that something is written.
        metric: What a trial's best epoch is best in.
    """

    def __init__(self, path: Path, trials: KnownTrials, metric: Metric) -> None:
        self._path, self._trials, self._metric = path, trials, metric
        self._opened, self._written, self._write_seconds = time.monotonic(), -math.inf, 0.0

    def row(self, number: int) -> dict[str, Any]:
        """Returns a trial's row of `trials.csv`."""
        trial = self._trials[number]
        attrs, rows = trial.attrs, trial.epochs
        if attrs.get("same_as") in self._trials:
            same = {"trial": number, "seconds": 0.0, "stopped_by": f"{schema.REPEAT} {attrs['same_as']}"}
            return (
                self.row(attrs["same_as"]) | same | {name: attrs.get(name) for name in ("started", "ended", "attempt")}
            )
        row = {name: attrs.get(name) for name in schema.TRIAL_COLUMNS if name in attrs}
        is_paused = trial.is_paused
        state = trial.state if trial.has_ended else PAUSED if is_paused else "running"
        row |= {"trial": number, "state": state, "epochs": len(rows)}
        if "config" in attrs:
            row |= schema.DEFAULTS | {f"config/{name}": value for name, value in attrs["config"].items()}
        if rows:
            if is_paused:
                row["ended"] = rows[-1].get("at")
            sign = self._metric.sign
            best = max(rows, key=lambda r: (sign * r["valid_score"], -r["valid_loss"]))
            rates = [r["images_per_second"] for r in rows if not math.isnan(r["images_per_second"])]
            row |= {
                "valid_accuracy": best["valid_accuracy"],
                "valid_loss": best["valid_loss"],
                "valid_score": best["valid_score"],
                "best_epoch": best["epoch"],
            }
            row["seconds"] = total(rows, "epoch_seconds")
            row["images_per_second"] = sum(rates) / len(rates) if rates else None
        return row

    def write_trials(self, front: Iterable[int] | None = None) -> None:
        """Writes `trials.csv`; with two objectives `front` has the trials that no other is better than in both."""
        begun = time.monotonic()
        study_file.sync(self._path)
        rows = [self.row(number) for number, trial in sorted(self._trials.items()) if trial.was_drawn]
        if front is not None:
            best = set(front)
            rows = [row | {"pareto": row["trial"] in best} for row in rows]
        files.write_rows(self._path / "trials.csv", schema.TRIAL_COLUMNS, rows)
        self._written = time.monotonic()
        self._write_seconds += self._written - begun

    def are_due(self, seconds: float = 0.0) -> bool:
        """Whether `trials.csv` was not written within these seconds, and has not taken too much of the time."""
        now = time.monotonic()
        spent = self._write_seconds <= _SECONDS_OF_WRITES + (now - self._opened) / 20
        return now - self._written >= seconds and spent

    def append_epoch(self, row: Mapping[str, Any]) -> None:
        """Adds a row to `epochs.csv`, when what the study has of it is on the disk."""
        study_file.sync(self._path)
        files.append_row(self._path / "epochs.csv", schema.EPOCH_COLUMNS, row)

    def mend(self, epoch_rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes `epochs.csv` anew where it lacks an epoch, has one twice, or has a line that is no row.

        Both frames are there from then on, if only with their first lines: whoever reads them tells a search that has
        just begun from one whose frames were lost. `epoch_rows` is what was in the file.
        """
        for name, columns in schema.FRAMES.items():
            if not (self._path / name).exists():
                files.write_rows(self._path / name, columns, [])
        order = {(row["trial"], row["epoch"]): i for i, row in reversed(list(enumerate(epoch_rows)))}
        rows = [row for number in sorted(self._trials) for row in self._trials[number].epochs]
        if len(rows) == len(epoch_rows) == len(order) and _is_whole(self._path / "epochs.csv", len(rows)):
            return
        rows.sort(key=lambda row: order.get((row["trial"], row["epoch"]), len(order)))
        files.write_rows(self._path / "epochs.csv", schema.EPOCH_COLUMNS, rows)


def read(path: Path) -> tuple[set[int], dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """Returns what the frames know: the numbers of all trials, the rows of those that have ended, and all epochs.

    Lines that are no rows are passed over: the study has them, too.
    """
    rows = schema.whole_rows(path / "epochs.csv")
    try:
        trials = run_folder.Run(path).trials.to_dict("records")
    except UserError:
        trials = []
    ended = {}
    for row in trials:
        if row["state"] in ("complete", "pruned", "failed"):
            known = schema.plain({str(name): value for name, value in row.items()})
            ended[int(row["trial"])] = known | {"ended": known["ended"] and known["ended"].isoformat()}
    return {*(int(row["trial"]) for row in trials), *(row["trial"] for row in rows)}, ended, rows


def refuse(path: Path, what: str, unknown: Collection[int]) -> None:
    """Raises UserError: the study is not the one that the frames were written from, and must not replace them."""
    some = ", ".join(map(str, sorted(unknown)[:5])) + (", ..." if len(unknown) > 5 else "")
    raise UserError(
        f"In {path}, {what}, but trials.csv and epochs.csv have {counted(len(unknown), 'trial')} more ({some}). "
        f"Nothing was changed. Put back the {study_file.FILE} that belongs to them, with {study_file.BESIDE[0]} if "
        "there is one, or fetch the run from its storage. To go on without those trials, delete their lines from both "
        "files."
    )


def check_belongs(path: Path, trials: Sequence["FrozenTrial"], numbers: Collection[int]) -> None:
    """Raises UserError where the frames have numbers of trials that the study does not know."""
    told = {t.number for t in trials if t.state.is_finished() or {"seed", "same_as"} & set(t.user_attrs)}
    if unknown := set(numbers) - told:
        refuse(path, f"{study_file.FILE} knows {counted(len(trials), 'trial')}", unknown)


def _is_whole(path: Path, n_rows: int) -> bool:
    """Returns whether a file has the header that it has today, so many lines, and nothing else."""
    header = (",".join(schema.EPOCH_COLUMNS) + "\n").encode()
    text = path.read_bytes() if path.exists() else b""
    return text.startswith(header) and text.count(b"\n") == n_rows + 1 and text.endswith(b"\n")

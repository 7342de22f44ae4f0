"""What a run began with: the trials of earlier runs, as they were then, and what they were worth to it.

`earlier.json` is written before a run's first trial, and never again: a resume reads it, wherever the earlier runs are
by then. What must never live here: how a sampler learns from them; `tuning.sampling.earlier` says that.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files
from tuning.base.errors import UserError, counted
from tuning.base.registries import METRICS
from tuning.runs import run_folder, schema
from tuning.runs.run_folder import Run

if TYPE_CHECKING:
    import pandas as pd

FILE = "earlier.json"
FIRST = 5  # Trials after which it shows what a beginning was worth.


@dataclass(frozen=True)
class EarlierTrial:
    """A trial of an earlier run.

    Attributes:
        number: In its study.
        state: In capitals, as Optuna has it.
        params: Its point.
        distributions: Name of each hyperparameter -> its range or choices, as Optuna's JSON.
        curve: Epoch -> the metric's merit, in [0, 1], greater is better.
        score: The best value of the metric, as a person reads it; None where there is none.
        config: Its configuration; empty where the study has none.
        attrs: What tells whether a failed one says something: "error", "no_result", "node_lost".
    """

    number: int
    state: str
    params: dict[str, Any]
    distributions: dict[str, str]
    curve: dict[int, float]
    score: float | None
    config: dict[str, Any]
    attrs: dict[str, Any]


@dataclass(frozen=True)
class EarlierRun:
    """A run that another one begins with.

    Attributes:
        name: Its folder's, at that time.
        identity: What it is, wherever its folder is.
        dataset: Its images.
        valid_hash: Of its valid images; None where that is not on record.
        epochs: The full length of its trials; None where that is not on record.
        metric: A name in `METRICS`.
        trials: Those that were run, by number.
        train_images: How many it trained on, if not on all.
    """

    name: str
    identity: str
    dataset: str
    valid_hash: str | None
    epochs: int | None
    metric: str
    trials: tuple[EarlierTrial, ...]
    train_images: int | None = None

    @property
    def described(self) -> str:
        """What it is, e.g. "first (20 trials on fashion-mnist)"."""
        return f"{self.name} ({counted(len(self.trials), 'trial')} on {self.dataset})"


def write(path: Path, earlier: Sequence[EarlierRun]) -> None:
    """Writes what a run begins with into its folder."""
    files.write_json(path / FILE, {"runs": [asdict(run) for run in earlier]}, durable=True)


def read(path: Path) -> tuple[EarlierRun, ...]:
    """Returns what a run began with.

    Raises:
        UserError: The file is missing or damaged.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(tuple[EarlierRun, ...]).validate_python(files.read_json(path / FILE).get("runs"))
    except (UserError, ValidationError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc'])) or 'runs'}: {first['msg'].lower()}"
        else:
            problem = str(error).removesuffix(".")
        raise damaged(path, problem) from error


def damaged(path: Path, problem: str) -> UserError:
    """Returns the error for a file that cannot be read."""
    return UserError(
        f"{path / FILE}, which holds what run {path.name} took from earlier runs, is missing or damaged ({problem}). "
        "Put back a copy of it; where the run has a storage, one is there."
    )


def text(run: Run) -> str:
    """Returns what `worth` does, or why that is not known."""
    try:
        return worth(run)
    except UserError as error:
        return f"What beginning with earlier runs was worth is not known: {error}"


def worth(run: Run) -> str:
    """Returns what beginning with earlier runs was worth to a run, in a few sentences; "" where it began with none.

    The best of the first trials is set against the best of all. How many trials an earlier run needed to be as good is
    said where that is the same: of equal data set, metric, length and train images.

    Raises:
        UserError: The record is damaged.
    """
    meta = run.meta
    if not meta.get("begun_with"):
        return ""
    earlier, trials, metric = read(run.path), run_folder.ran(run.trials).sort_values("trial"), run.metric
    began = f"Began with {' and '.join(one.described for one in earlier)}."
    first, best = _best(trials.head(FIRST), metric.column, metric.sign), _best(trials, metric.column, metric.sign)
    if first is None or best is None:
        return began
    said = [began, f"The best of its first {counted(min(FIRST, len(trials)), 'trial')} has {metric.said(first)}"]
    if len(trials) > FIRST:
        said[-1] += f", the best of all {len(trials):,} has {metric.said(best)}"
    said[-1] += "."
    for one in earlier:
        same = (one.dataset, METRICS.get(one.metric), one.epochs, one.train_images)
        if same != (meta.get("dataset"), metric, run.settings.get("epochs"), run.settings.get("train_images")):
            continue
        usable = ((i, t.score) for i, t in enumerate(one.trials, start=1) if t.state != "FAIL")
        needed = next((i for i, score in usable if _is_as_good(score, first, metric.sign)), None)
        where = "" if one.valid_hash == meta.get("valid_hash") else ", on other valid images"
        of = (
            f"{one.name} needed {counted(needed, 'trial')} to be as good" if needed else f"{one.name} was never as good"
        )
        said.append(f"{of}{where}.")
    return " ".join(said)


def _best(trials: "pd.DataFrame", column: str, sign: int) -> float | None:
    finished = trials.loc[trials["state"].isin(schema.HAVE_RESULTS), column].dropna()
    return None if finished.empty else float(sign * (sign * finished).max())


def _is_as_good(score: float | None, goal: float, sign: int) -> bool:
    return score is not None and not math.isnan(score) and sign * score >= sign * goal

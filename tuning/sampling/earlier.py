"""Earlier runs that a search begins with: read from their studies, and handed to the sampler of the new one.

A sampler with an attribute `earlier`, which is `curves`, learns from the curves of their trials; any other one begins
with the best of their points. What a run keeps of them is `tuning.runs.beginnings`'.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from tuning.base.errors import UserError, counted
from tuning.base.registries import Metric
from tuning.runs import beginnings, run_folder, schema
from tuning.runs.beginnings import EarlierRun, EarlierTrial
from tuning.runs.run_folder import Run
from tuning.runs.study_file import EPOCH
from tuning.sampling import study_storage
from tuning.sampling.columns import FOREIGN, Column, all_of, numbers_of_earlier, values_of
from tuning.sampling.curve_sampler import best_value, tells
from tuning.sampling.known_trials import NODE_LOST
from tuning.sampling.spaces import Space, draw_points, point_of

BEST = 5  # Points that a sampler which reads no curves begins with.
OPTION = "--start-from"
OF_A_FAILURE = ("error", "no_result", NODE_LOST)  # What tells whether a failed trial says something.


def read(runs: Sequence[Run], metric: Metric, note: Callable[[str], None]) -> tuple[EarlierRun, ...]:
    """Returns what a search for a metric takes from earlier runs.

    Args:
        runs: Each is taken once; of copies, of which one may have gone on, that with the most trials.
        metric: Of the new search.
        note: Receives what a person should know of it.

    Raises:
        UserError: One has no finished trial, or a metric of another direction; or it is damaged.
    """
    found: list[EarlierRun] = []
    for run in {run.path.resolve(): run for run in runs}.values():
        one = _read(run, metric, note)
        again = next((known for known in found if known.identity == one.identity), None)
        if again is None or not _have_one_beginning(one, again):  # Two of version 0.2.0 may have had one name.
            found.append(one)
            continue
        more, less = (one, again) if len(one.trials) > len(again.trials) else (again, one)
        found[found.index(again)] = more
        note(f"{less.name} is a copy of {more.name} with {counted(len(less.trials), 'trial')}, and is left out.")
    return tuple(found)


def _have_one_beginning(one: EarlierRun, other: EarlierRun) -> bool:
    """Returns whether two runs are copies of one, of which one may have gone on."""
    points = {t.number: (t.params, t.curve.get(1)) for t in other.trials}
    return all(points[t.number] == (t.params, t.curve.get(1)) for t in one.trials if t.number in points)


def _read(run: Run, metric: Metric, note: Callable[[str], None]) -> EarlierRun:
    theirs, meta = run.metric, run.meta
    if theirs.greater_is_better != metric.greater_is_better:
        better = "more" if theirs.greater_is_better else "less"
        raise UserError(
            f"{OPTION} must name runs whose metric goes the same way as {metric.name}, but got {run.name!r}, which has "
            f"{theirs.name} ({better} is better). Name another run, or choose --metric {theirs.name}."
        )
    trials = study_storage.load(run.path).get_trials(deepcopy=False)
    kept = [_kept(t, theirs) for t in trials if t.params and t.user_attrs.get("same_as") is None]
    told = [t for t in kept if t is not None]
    if not any(t.state in ("COMPLETE", "PRUNED") and t.score is not None for t in told):
        raise UserError(
            f"{OPTION} must name runs with a finished trial, but got {run.name!r}, which has "
            f"{counted(len(run_folder.ran(run.trials)), 'trial')} and none that has finished. Leave it out, or resume "
            "it first."
        )
    if theirs is not metric:
        note(f"The trials of {run.name} count by their {theirs.title}, which is what it searched for.")
    dataset, epochs = str(meta.get("dataset", "unknown data")), run.settings.get("epochs")
    known = (run.name, run.identity, dataset, meta.get("valid_hash"), epochs, theirs.name, tuple(told))
    return EarlierRun(*known, run.settings.get("train_images"))


def _kept(trial: FrozenTrial, metric: Metric) -> EarlierTrial | None:
    """Returns what is taken of a trial; None of one that has shown nothing yet, or that was never drawn to its end."""
    rows = [schema.scored(value) for name, value in trial.user_attrs.items() if name.startswith(EPOCH)]
    scores = {int(row["epoch"]): float(row["valid_score"]) for row in rows if row["valid_score"] is not None}
    # Version 0.2.0 kept nothing else of an epoch, and knew no metric but the accuracy.
    scores = scores or {int(epoch): float(value) for epoch, value in trial.intermediate_values.items()}
    state = trial.state
    if state == TrialState.WAITING or (not scores and state != TrialState.FAIL):
        return None
    best = max((metric.sign * score for score in scores.values() if math.isfinite(score)), default=None)
    return EarlierTrial(
        number=trial.number,
        state="PRUNED" if state == TrialState.RUNNING else state.name,  # It has shown what it has shown.
        params=dict(trial.params),
        distributions={name: distribution_to_json(one) for name, one in trial.distributions.items()},
        curve={epoch: metric.merit(score) for epoch, score in sorted(scores.items())},
        score=None if best is None else metric.sign * best,
        config=dict(trial.user_attrs.get("config") or {}),
        attrs={name: trial.user_attrs[name] for name in OF_A_FAILURE if trial.user_attrs.get(name)},
    )


def trials_of(run: EarlierRun) -> list[FrozenTrial]:
    """Returns the trials of an earlier run that say something, as Optuna's.

    Raises:
        ValueError: What was kept of one is not what a study had.
    """
    made = [
        optuna.trial.create_trial(
            state=TrialState[t.state],
            value=max(filter(math.isfinite, t.curve.values()), default=0.0) if t.state == "COMPLETE" else None,
            params=t.params,
            distributions={name: json_to_distribution(text) for name, text in t.distributions.items()},
            user_attrs={"config": t.config, **t.attrs} if t.config else dict(t.attrs),
            intermediate_values=t.curve,
        )
        for t in run.trials
    ]
    return [trial for trial in made if tells(trial)]


def shared(earlier: Sequence[EarlierRun], space: Space, epochs: int) -> list[str]:
    """Returns what each of the runs and a space have in common, a sentence each.

    Raises:
        UserError: One and the space have no hyperparameter in common.
    """
    distributions = all_of(draw_points(space, epochs))
    columns = [Column(name, one) for name, one in distributions.items()]
    sentences = []
    for run in earlier:
        trials = trials_of(run)
        searched = sorted({name for t in trials for name in t.params})
        numbers = numbers_of_earlier(columns, trials, searched)
        categorical = np.array([column.n_choices > 0 for column in columns])
        n = int((~np.isnan(numbers) & ~(categorical & (numbers == FOREIGN))).any(axis=0).sum())
        if not n:
            raise UserError(
                f"{OPTION} must name runs that share a hyperparameter with the space {space.name}, but got "
                f"{run.name!r}, which searched {', '.join(searched)}. Name another run, or choose its --space."
            )
        sentences.append(f"Begins with {run.described}: {n} of {counted(len(columns), 'hyperparameter')} in common.")
    return sentences


def taken(earlier: Sequence[EarlierRun], space: Space, epochs: int, sampler: str) -> str:
    """Returns what a sampler that does not learn from earlier runs takes of them.

    Raises:
        UserError: It can take nothing of one, as no point of that is one of the space.
    """
    for run in earlier:
        if not best_points([trials_of(run)], space, epochs, n=1):
            raise UserError(
                f"{OPTION} must name runs with a point of the space {space.name} where the sampler is {sampler}, which "
                f"begins with the best of their points, but got {run.name!r}: none of its "
                f"{counted(len(run.trials), 'trial')} has all hyperparameters of the space within their ranges. Leave "
                "it out, or choose --sampler curves, which learns from those in common."
            )
    n = len(best_points(map(trials_of, earlier), space, epochs))
    return f"The sampler {sampler} begins with their best {counted(n, 'point')}, and learns nothing else of them."


def begin(path: Path, sampler: optuna.samplers.BaseSampler, space: Space, epochs: int) -> Space:
    """Has a sampler begin with what is in a run's folder of earlier runs; returns the space with its first points.

    The space's own first points stand back: no earlier result says less than a point that was given without one. The
    first of them is kept, as it is what one would train without a search; the others where no earlier run has had them.
    They take every second trial beside a sampler that learns from the curves, and so are a hedge against runs that
    mislead; another sampler begins with the best points of the earlier runs, and these follow.

    Raises:
        UserError: What was kept of the earlier runs is missing or damaged.
    """
    earlier = beginnings.read(path)
    try:
        trials = [trials_of(run) for run in earlier]
    except (ValueError, TypeError, KeyError) as error:
        raise beginnings.damaged(path, f"{type(error).__name__}: {error}") from error
    known = [t.params for run in trials for t in run]
    first = [point for i, point in enumerate(space.first) if i == 0 or dict(point) not in known]
    if hasattr(sampler, "earlier") and hasattr(sampler, "drawn"):
        sampler.earlier, sampler.drawn = trials, draw_points(space, epochs)
        return replace(space, first=first, interleaved=True)
    return replace(space, first=first, best_before=best_points(trials, space, epochs))


def best_points(
    earlier: Iterable[Sequence[FrozenTrial]], space: Space, epochs: int, n: int = BEST
) -> list[dict[str, Any]]:
    """Returns the best points of earlier runs, `n` at most, that are points of a space: of each run in turn."""
    queues = []
    for run in earlier:
        searched = {name for t in run for name in t.params}
        ranked = sorted(run, key=lambda t: best_value(t, 1.0), reverse=True)
        queues.append([values_of(t, searched) for t in ranked if t.state != TrialState.FAIL])
    found: list[dict[str, Any]] = []
    for values in chain.from_iterable(zip_longest(*queues)):
        if len(found) == n:
            break
        point = None if values is None else point_of(space, values, epochs)
        if point is not None and point not in found:
            found.append(point)
    return found

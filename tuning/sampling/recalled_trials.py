"""What an earlier session left of a trial, in the study and in the frames: read when a study is opened.

Nothing here changes the study. It goes first; the frames have what an earlier version wrote into them alone, and what a
study that was copied too early lacks.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tuning.base.config import TrainConfig
from tuning.base.registries import OBJECTIVES
from tuning.runs import schema
from tuning.runs.study_file import EPOCH
from tuning.sampling.known_trials import KnownTrial

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
# What the study keeps of a trial that has ended, beside its configuration.
OF_END = ("ended", "stopped_by", "error", "attempt", "accumulation", "device", "precision", "node", *OBJECTIVES)
# What an epoch's result says of its trial: the study keeps it with the epoch.
OF_TRIAL = ("n_parameters", "device", "precision", "finished", "seconds_per_image")


def by_trial(epoch_rows: Iterable[dict[str, Any]]) -> dict[int, dict[int, dict[str, Any]]]:
    """Returns the rows of `epochs.csv` by trial and epoch; of an epoch that is there twice, the first."""
    rows: dict[int, dict[int, dict[str, Any]]] = {}
    for row in epoch_rows:
        rows.setdefault(row["trial"], {}).setdefault(row["epoch"], row)
    return rows


def is_undrawn(trial: FrozenTrial) -> bool:
    """Whether the study has nothing of a trial but, perhaps, some of its point."""
    return not {"seed", "state", "same_as"} & set(trial.user_attrs)


def point_to_draw(trial: FrozenTrial) -> dict[str, Any] | None:
    """Returns the point, or as much of it as there is, of a trial that is still to be drawn; None for another."""
    if trial.state == TrialState.WAITING or (trial.state == TrialState.RUNNING and is_undrawn(trial)):
        return {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    return None


def recalled(trial: FrozenTrial, trial_id: int, in_frames: Mapping[int, dict[str, Any]]) -> KnownTrial | None:
    """Returns what is known of a trial that an earlier session drew; None where it drew none.

    `trial_id` is that of Optuna's storage. `in_frames` are the trial's rows of `epochs.csv`, by epoch.
    """
    if trial.state == TrialState.WAITING or (trial.state == TrialState.FAIL and is_undrawn(trial)):
        return None
    kept = {k: v for k, v in trial.user_attrs.items() if not k.startswith(EPOCH) and v is not None}
    # Version 0.2.0 kept nothing of an epoch but its value, and knew no metric but the accuracy.
    rows: dict[int, dict[str, Any]] = {
        epoch: dict.fromkeys(schema.EPOCH_COLUMNS, math.nan)
        | {"trial": trial.number, "epoch": epoch, "valid_accuracy": accuracy, "valid_score": accuracy}
        for epoch, accuracy in trial.intermediate_values.items()
    }
    rows |= in_frames
    kept_epochs = (value for name, value in trial.user_attrs.items() if name.startswith(EPOCH))
    rows |= {value["epoch"]: {"trial": trial.number, **schema.scored(value)} for value in kept_epochs}
    # What a duplicate told the sampler are the epochs of the trial that it repeats.
    epochs = [] if "same_as" in kept else [rows[epoch] for epoch in sorted(rows)]
    of_epochs = {name: v for row in epochs for name in OF_TRIAL if (v := row.get(name)) is not None}
    first = {"attempt": 1, "accumulation": 1} if "seed" in kept else {}
    state = kept.pop("state", STATES[trial.state])
    return KnownTrial(
        trial.number,
        trial_id,
        "running" if trial.state == TrialState.RUNNING else state,  # Cut off while its end was being told, perhaps.
        dict(trial.params),
        # The seed is the last of what a proposal writes; a duplicate has none.
        TrainConfig.model_validate(kept["config"]).hash() if "seed" in kept else "",
        {**first, **of_epochs, **kept},
        epochs,
    )


def adopted_end(trial: KnownTrial, ended: Mapping[str, Any] | None) -> TrialState | None:
    """Returns as what a trial ended that the frames know to have ended, and the study does not; None for another.

    The study was copied too early. `ended` is the trial's row of `trials.csv` if it has ended there; what the study
    lacks is taken over from it. A complete trial whose epochs are nowhere is trained again.
    """
    if ended is None or "seed" not in trial.attrs or ended["attempt"] == 0:
        return None
    told = {name: ended[name] for name in (*OF_END, *OF_TRIAL) if ended.get(name) is not None}
    trial.attrs = told | {name: v for name, v in trial.attrs.items() if v is not None}
    state = next(state for state, name in STATES.items() if name == ended["state"])
    return None if state == TrialState.COMPLETE and not trial.epochs else state

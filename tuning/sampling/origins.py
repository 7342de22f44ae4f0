"""Where the points of a run came from: its space, an earlier run, chance, or what the sampler had learned.

A trial's attribute `origin` says it: "space", "earlier", "random" or "model". Version 0.2.0 wrote none, and of samplers
that do not say what they did it is not known.
"""

from pathlib import Path

from tuning.base.registries import SAMPLERS
from tuning.runs import study_file
from tuning.sampling import study_storage


def given_points(path: Path) -> set[int]:
    """Returns the numbers of a run's trials that its space gave as first points."""
    return {number for number, origin in _origins(path).items() if origin == "space"}


def drawn_at_random(path: Path, sampler: str, n_startup: int) -> set[int]:
    """Returns the numbers of a run's trials that no model proposed, and neither its space nor an earlier run gave.

    Where that is not on record, those are all of a sampler that draws at random; of the others the first `n_startup`,
    as fewer trials were there.

    Raises:
        UserError: `SAMPLERS` has no sampler of that name.
    """
    all_random = SAMPLERS.find(sampler).random
    return {
        number
        for number, origin in _origins(path).items()
        if origin == "random" or (origin == "" and (all_random or number < n_startup))
    }


def _origins(path: Path) -> dict[int, str]:
    """Returns where the point of each trial of a run came from, "" where that is not known; none without a study."""
    if not study_file.studies(path):
        return {}
    trials = study_storage.load(path).get_trials(deepcopy=False)
    return {
        t.number: str(t.user_attrs.get("origin") or ("space" if "fixed_params" in t.system_attrs else ""))
        for t in trials
    }

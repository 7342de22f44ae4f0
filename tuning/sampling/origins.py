"""Where the points of a run came from: its space, chance, or what the sampler had learned."""

from pathlib import Path

from tuning.base.registries import SAMPLERS
from tuning.runs import study_file
from tuning.sampling import study_storage


def given_points(path: Path) -> set[int]:
    """Returns the numbers of a run's trials that its space gave as first points."""
    return {number for number, given in _trials(path).items() if given}


def drawn_at_random(path: Path, sampler: str, n_startup: int) -> set[int]:
    """Returns the numbers of a run's trials that no model proposed, the space's first points not among them.

    Those are all of a sampler that draws at random; of the others the first `n_startup`, as fewer trials were there.

    Raises:
        UserError: `SAMPLERS` has no sampler of that name.
    """
    all_random = SAMPLERS.find(sampler).random
    return {number for number, given in _trials(path).items() if not given and (all_random or number < n_startup)}


def _trials(path: Path) -> dict[int, bool]:
    """Returns whether each trial of a run was given; none where it has no study."""
    if not study_file.studies(path):
        return {}
    trials = study_storage.load(path).get_trials(deepcopy=False)
    return {trial.number: "fixed_params" in trial.system_attrs for trial in trials}

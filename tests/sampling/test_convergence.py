"""When a search has nothing left to gain."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from studies import ask, epoch

from tuning.sampling.convergence import LEAST_GAIN, PROPOSALS, has_converged
from tuning.sampling.curve_sampler import CurveSampler
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy

LITTLE, MUCH = 0.5 * LEAST_GAIN, 2 * LEAST_GAIN
BEST = 8
NO_BETTER = [0.5, 0.9, *[0.8] * PROPOSALS]


@pytest.mark.parametrize(
    ("gains", "merits", "found"),
    [
        ([MUCH, *[LITTLE] * PROPOSALS], NO_BETTER, True),
        ([LITTLE] * (PROPOSALS - 1), NO_BETTER, False),
        ([*[LITTLE] * PROPOSALS, MUCH], NO_BETTER, False),  # The last proposal promises something.
        ([LITTLE] * PROPOSALS, NO_BETTER[:-1], False),
        ([LITTLE] * PROPOSALS, [*NO_BETTER, 0.91], False),  # The last trial was better.
        ([LITTLE] * PROPOSALS, [*NO_BETTER, 0.9], True),  # It was as good.
        ([LITTLE] * PROPOSALS, [], False),
        ([], NO_BETTER, False),
        ([MUCH], [0.5, 1.0], True),  # None can be better.
    ],
)
def test_it_needs_proposals_that_promise_little_and_trials_that_are_no_better(
    gains: list[float], merits: list[float], found: bool
) -> None:
    assert has_converged(gains, merits) == found


def searched(path: Path, sampler: optuna.samplers.BaseSampler, n: int, space: str = "smoke") -> RunStudy:
    """Returns a study of trials that differ by noise alone, which was luckiest early on."""
    usable = load_space(space).without({"width": [64]})
    study, draw = RunStudy(path, usable, sampler, epochs=1, seed=0), np.random.default_rng(0)
    for _ in range(n):
        proposal = study.ask()
        assert proposal is not None
        value = 0.53 if proposal.number == BEST else draw.normal(0.5, 0.01)
        study.report(proposal.number, epoch(1, value, "length"))
        study.finish(proposal.number, "scheduler")
    return study


def test_a_flat_space_converges_and_a_resumed_search_knows_it(tmp_path: Path) -> None:
    study = searched(tmp_path, CurveSampler(0, 5), 40)
    assert study.has_converged
    study.close(None)
    assert RunStudy(
        tmp_path, load_space("smoke"), optuna.samplers.RandomSampler(seed=0), epochs=1, seed=0
    ).has_converged


def test_a_space_less_what_this_machine_cannot_do_converges_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    rate = "trial.suggest_float('learning_rate', 1e-3, 1.0, log=True)"
    width = "trial.suggest_categorical('width', [4, 64])"
    file.write_text(f"def space(trial):\n    return {{'width': {width}, 'learning_rate': {rate}}}\n")
    study = searched(tmp_path, CurveSampler(0, 5), 40, str(file))
    assert {known.params["width"] for known in study.trials.values()} == {4} and study.has_converged


def test_a_sampler_that_draws_at_random_expects_nothing_and_never_converges(tmp_path: Path) -> None:
    assert not searched(tmp_path, optuna.samplers.RandomSampler(seed=0), 40).has_converged


@pytest.mark.parametrize(("metric", "perfect", "less"), [("accuracy", 1.0, 0.99), ("log_loss", 0.0, 0.01)])
def test_a_perfect_trial_leaves_nothing_to_gain_unless_it_failed(
    tmp_path: Path, metric: str, perfect: float, less: float
) -> None:
    study = RunStudy(tmp_path, load_space("smoke"), CurveSampler(0, 5), epochs=2, seed=0, metric=metric)
    found = []
    for values, end in (([less, less], ""), ([perfect, less], "it crashed"), ([perfect, less], "")):
        proposal = ask(study)
        for number, value in enumerate(values, start=1):
            study.report(proposal.number, epoch(number, 0.5, "length" * (number == 2)) | {"valid_score": value})
        study.fail(proposal.number, end) if end else study.finish(proposal.number, "scheduler")
        found.append((study.has_converged, study.is_perfect))
    assert found == [(False, False), (False, False), (True, True)]


def test_where_something_else_counts_too_a_perfect_trial_leaves_that_to_gain(tmp_path: Path) -> None:
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = RunStudy(tmp_path, load_space("smoke"), sampler, epochs=1, seed=0, minimize="n_parameters")
    proposal = ask(study)
    study.report(proposal.number, epoch(1, 1.0, "length") | {"valid_score": 1.0, "n_parameters": 5_000})
    study.finish(proposal.number, "scheduler")
    assert not study.has_converged and not study.is_perfect


def test_failed_trials_are_no_best(tmp_path: Path) -> None:
    study = searched(tmp_path, CurveSampler(0, 3), 40)
    for _ in range(3):
        proposal = study.ask()
        assert proposal is not None
        study.report(proposal.number, epoch(1, float("nan")))
        study.fail(proposal.number, "Training loss is not finite.")
    assert study.has_converged


def test_paused_trials_count(tmp_path: Path) -> None:
    study, draw = (
        RunStudy(tmp_path, load_space("smoke"), CurveSampler(0, 5), epochs=1, seed=0),
        np.random.default_rng(0),
    )
    for _ in range(40):
        proposal = study.ask()
        assert proposal is not None
        study.report(proposal.number, epoch(1, 0.53 if proposal.number == BEST else draw.normal(0.5, 0.01)))
        study.pause(proposal.number)
    assert study.has_converged
    assert (study.trials.n_finished, study.trials.n_tried) == (0, 40)


class Repeating(optuna.samplers.RandomSampler):
    """Draws at random first, then expects next to nothing of its proposals, of which it repeats each five times."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.gains, self.origins = dict[int, float](), dict[int, str]()

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        later = trial.number - PROPOSALS
        if later >= 0:
            self.gains[trial.number], self.origins[trial.number] = LITTLE, "model"
        return 1 + min(trial.number, PROPOSALS + later // 6)


def test_repeats_are_no_proposals(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def space(trial):\n    return {'learning_rate': 0.01 * trial.suggest_int('parts', 1, 90)}\n")
    study, found = RunStudy(tmp_path, load_space(str(file)), Repeating(), epochs=1, seed=0), []
    for _ in range(2 * PROPOSALS):
        proposal = ask(study)
        study.report(proposal.number, epoch(1, 0.5, "length"))
        study.finish(proposal.number, "scheduler")
        found.append(study.has_converged)
    assert study.trials.n_finished == 2 * PROPOSALS < len(study.trials) - 4 * PROPOSALS
    assert found == [*[False] * (2 * PROPOSALS - 1), True]


class Expectant(optuna.samplers.RandomSampler):
    """Expects next to nothing of any proposal."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.gains, self.origins = dict[int, float](), dict[int, str]()

    def before_trial(self, study: Any, trial: Any) -> None:
        self.gains[trial.number], self.origins[trial.number] = LITTLE, "model"


@pytest.mark.parametrize(("high", "found"), [(1.0, True), (10.0, False)])
def test_where_the_space_was_widened_since_something_may_be_left(tmp_path: Path, high: float, found: bool) -> None:
    file = tmp_path / "mine.py"

    def opened(high: float) -> RunStudy:
        low = "0.1 if trial.suggest_categorical('flip', [True, False]) else 0.2"  # No one range for all.
        file.write_text(
            f"def space(trial):\n    return {{'learning_rate': trial.suggest_float('rate', {low}, {high})}}\n"
        )
        return RunStudy(tmp_path, load_space(str(file)), Expectant(), epochs=1, seed=0)

    def train(study: RunStudy, n: int) -> bool:
        for _ in range(n):
            proposal = ask(study)
            study.report(proposal.number, epoch(1, 0.5, "length"))
            study.finish(proposal.number, "scheduler")
        return study.has_converged

    study = opened(1.0)
    assert train(study, PROPOSALS + 1)
    study.close(None)
    study = opened(high)
    assert study.has_converged == found
    assert train(study, PROPOSALS - 1) == found
    assert train(study, 1)
    study.close(None)
    assert opened(high).has_converged

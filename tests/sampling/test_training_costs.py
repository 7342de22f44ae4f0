"""What configurations cost: what trials say of it, and what the sampler makes of that."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from tuning.runs.study_file import EPOCH
from tuning.sampling import costs
from tuning.sampling.curve_sampler import CurveSampler


def trial(seconds: list[float | None], lost: float | None = None) -> optuna.trial.FrozenTrial:
    attrs: dict[str, Any] = {f"{EPOCH}{i}": {"epoch": i, "epoch_seconds": s} for i, s in enumerate(seconds, start=1)}
    attrs |= {costs.LOST: lost} if lost else {}
    return create_trial(state=TrialState.PRUNED, user_attrs=attrs)


def test_a_stopped_trial_says_what_its_full_training_takes_and_what_failed_attempts_took_counts() -> None:
    assert costs.seconds_of(trial([3.0, 5.0]), 10) == 40.0
    assert costs.seconds_of(trial([3.0, None, math.nan, 5.0], lost=7.0), 10) == 47.0
    assert math.isnan(costs.seconds_of(trial([]), 10)) and math.isnan(costs.seconds_of(trial([math.nan, 0.0]), 10))


def test_costs_are_learned_by_configuration() -> None:
    draw = np.random.default_rng(0)
    configs = np.column_stack([draw.integers(3, size=40).astype(float), draw.random(40), draw.random(40)])
    truth = np.exp(configs[:, 0] + configs[:, 1] + 3)
    seconds = truth * np.exp(draw.normal(0, 0.05, 40))
    seconds[[3, 17]] = np.nan
    found = costs.learned(configs, seconds, np.array([True, False, False]))
    np.testing.assert_allclose(found.log_seconds(configs), np.log(truth), atol=0.15)


@pytest.mark.parametrize("seconds", [[10.0, 10.1, 9.9, 10.0], [10.0, 20.0], [math.nan] * 4, []])
def test_where_all_cost_the_same_or_little_is_known_there_is_one_cost(seconds: list[float]) -> None:
    configs = np.random.default_rng(0).random((len(seconds), 2))
    found = costs.learned(configs, np.array(seconds), np.zeros(2, bool))
    assert found.process is None and len(set(found.log_seconds(np.zeros((5, 2))))) == 1


def test_with_costs_the_quick_one_of_two_that_reach_as_much_is_proposed_more_often() -> None:
    """Which of two networks, one of which takes ten times as long, makes no difference to what is reached."""

    def share_of_small(weighs: bool) -> float:
        small = []
        for seed in range(4):
            sampler = CurveSampler(seed, 4, random_share=0.0)
            sampler.weighs_costs = weighs
            study = optuna.create_study(direction="maximize", sampler=sampler)
            space = {"network": CategoricalDistribution(["small", "large"]), "x": FloatDistribution(0, 1)}
            for number in range(20):
                one = study.ask(space)
                seconds = 10.0 if one.params["network"] == "large" else 1.0
                for epoch in range(1, 4):
                    one.report(1 - (one.params["x"] - 0.5) ** 2 - 0.5**epoch, epoch)
                    one.set_user_attr(f"{EPOCH}{epoch}", {"epoch": epoch, "epoch_seconds": seconds})
                study.tell(one, 1 - (one.params["x"] - 0.5) ** 2)
                small += [one.params["network"] == "small"] if number >= 4 else []
        return float(np.mean(small))

    assert share_of_small(True) > share_of_small(False) + 0.08


def test_a_trial_that_stopped_early_by_itself_costs_what_it_took() -> None:
    def seconds(state: TrialState) -> float:
        """Returns what a sampler expects of the costs where all trials of six epochs ended after two."""
        attrs = {f"{EPOCH}{i}": {"epoch": i, "epoch_seconds": 5.0} for i in (1, 2)}
        one = create_trial(
            state=state,
            value=0.5 if state == TrialState.COMPLETE else None,
            user_attrs={"config": {"epochs": 6}, **attrs},
            intermediate_values={1: 0.4, 2: 0.5},
        )
        sampler = CurveSampler(0, 4)
        sampler.weighs_costs = True
        found = sampler._costs([], [one] * 4, np.zeros((4, 0)))
        assert found is not None
        return math.exp(found.mean)

    assert seconds(TrialState.COMPLETE) == pytest.approx(10.0)
    assert seconds(TrialState.PRUNED) == pytest.approx(30.0)

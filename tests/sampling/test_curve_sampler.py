"""The sampler that reads learning curves: its numbers, what it observes, and what it proposes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import studies
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from tuning.base.registries import SAMPLERS
from tuning.sampling import samplers
from tuning.sampling.curve_sampler import (
    CurveSampler,
    full_length,
    known_best,
    observations,
    says_nothing,
    scores,
    spread,
)
from tuning.sampling.gaussian_process import fit
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy


def trial(
    values: list[float], state: TrialState = TrialState.PRUNED, attrs: Any = None, **params: float
) -> optuna.trial.FrozenTrial:
    return create_trial(
        user_attrs=attrs or {},
        state=state,
        value=max(values) if state == TrialState.COMPLETE else None,
        params=params,
        distributions=dict.fromkeys(params, FloatDistribution(0, 1)),
        intermediate_values=dict(enumerate(values, start=1)),
    )


def test_of_a_curve_the_best_so_far_counts_at_the_levels_and_at_its_end() -> None:
    whole = trial([0.1, 0.3, 0.2, 0.4, 0.5, 0.5, 0.6, 0.4, 0.4], TrialState.COMPLETE)
    own, progress, values = observations([whole, trial([0.2, 0.1])], sign=1.0)
    assert own.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(np.exp(progress) * 9, [1, 3, 9, 1, 2])
    assert values.tolist() == [0.1, 0.3, 0.6, 0.2, 0.2]


def test_a_failed_trial_counts_as_the_worst_at_its_end() -> None:
    own, progress, values = observations([trial([0.5, 0.6, 0.7]), trial([0.9], TrialState.FAIL)], sign=1.0)
    assert (own[-1], progress[-1], values[-1]) == (1, 0.0, 0.5)  # Not what it once had.


NO_RESULT = [
    {},
    {"no_result": True},
    {"no_result": True, "error": "The search ended before the trial's first epoch."},
    {"error": "stopped by time budget before its first epoch ended"},  # As 0.2.0 wrote it.
    {"error": "stopped by interrupt before its first epoch ended"},
    {"error": "same configuration as trial 12, which is running"},
]


@pytest.mark.parametrize("attrs", NO_RESULT, ids=repr)
def test_a_trial_that_was_ended_before_its_first_epoch_is_no_evidence(attrs: dict[str, Any]) -> None:
    ended = trial([], TrialState.FAIL, attrs)
    assert says_nothing(ended)
    own, _, values = observations([ended, trial([0.5, 0.6])], sign=1.0)
    assert own.tolist() == [1] and values.tolist() == [0.6]


@pytest.mark.parametrize("error", ["Training loss is nan.", "stopped by the kernel", "OutOfMemoryError"])
def test_a_trial_that_failed_by_itself_is_the_worst(error: str) -> None:
    failed = trial([], TrialState.FAIL, {"error": error})
    assert not says_nothing(failed)
    own, progress, values = observations([failed, trial([0.5, 0.6])], sign=1.0)
    assert (own[0], progress[0], values[0]) == (0, 0.0, 0.6)


def test_a_time_budget_does_not_turn_the_sampler_away_from_a_configuration() -> None:
    """Trials near the best point were cut off by a budget, in one of two sessions; the search still goes there."""

    def mean_of_last(attrs: dict[str, Any]) -> float:
        study = search(CurveSampler(0, 5), 12)
        for x in np.linspace(0.6, 0.95, 12):
            study.add_trial(trial([], TrialState.FAIL, attrs, x=float(x), learning_rate=0.01))
        proposed = []
        for _ in range(6):
            one = study.ask()
            proposed.append(one.suggest_float("x", 0, 1))
            one.suggest_float("learning_rate", 1e-4, 1, log=True)
            study.tell(one, state=TrialState.FAIL)
        return float(np.mean([abs(x - 0.8) for x in proposed]))

    assert mean_of_last({"no_result": True}) < mean_of_last({"error": "it crashed"})


def test_trials_count_along_their_own_lengths() -> None:
    lengths = [{"config": {"epochs": n}} for n in (4, 12, 12)]
    short, long = trial([0.1, 0.2, 0.3, 0.4], TrialState.COMPLETE, lengths[0]), trial([0.1] * 12, attrs=lengths[1])
    stopped = trial([0.5, 0.6], attrs=lengths[2])
    own, progress, _ = observations([short, long, stopped], sign=1.0)
    shares = np.exp(progress)
    np.testing.assert_allclose(shares[own == 0], [1 / 4, 1])
    np.testing.assert_allclose(shares[own == 1], [1 / 12, 4 / 12, 1])
    np.testing.assert_allclose(shares[own == 2], [1 / 12, 2 / 12])


def test_the_length_is_known_before_any_trial_has_reached_it() -> None:
    _, progress, _ = observations([trial([0.5, 0.6], attrs={"config": {"epochs": 6}})], sign=1.0)
    assert np.exp(progress).tolist() == pytest.approx([2 / 6])


@pytest.mark.parametrize(("state", "share"), [(TrialState.COMPLETE, 1.0), (TrialState.PRUNED, 0.5)])
def test_a_trial_that_stopped_early_by_itself_has_come_to_its_end(state: TrialState, share: float) -> None:
    early = trial([0.1, 0.3, 0.2], state, {"config": {"epochs": 6}})
    _, progress, values = observations([early], sign=1.0)
    assert math.exp(progress[-1]) == pytest.approx(share) and values[-1] == 0.3
    assert full_length(early, 9) == 3 / share


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_epoch_that_has_diverged_is_never_the_best(value: float) -> None:
    for sign, expected in ((1.0, [0.2, 0.3, 0.4, 0.2]), (-1.0, [-0.3, -0.3, -0.3, -0.2])):
        _, _, values = observations([trial([value]), trial([0.3, value, 0.4]), trial([0.2])], sign)
        assert values.tolist() == expected
    trials = [trial([value]), *(trial([0.1 * i]) for i in range(6))]
    assert known_best(trials, 2, 1.0, np.random.default_rng(0))[0].intermediate_values == {1: 0.5}


SPACES: dict[str, Any] = {
    "moving": lambda t: t.suggest_int("n", 1, t.suggest_int("k", 2, 8)) + t.suggest_float("x", 0, 1),
    "widening": lambda t: t.suggest_float("x", 1e-3, 0.05 if t.number < 8 else 1.0, log=True),
    "narrowing": lambda t: t.suggest_float("x", 0.1 if t.number > 8 else 0.0, 0.2 if t.number > 8 else 1.0),
    "steps": lambda t: t.suggest_int("x", 0, 12, step=1 + t.number % 3) + t.suggest_float("y", 0, 1),
    "apart": lambda t: t.suggest_float("x", t.number, t.number + 0.5),
    "often a point": lambda t: t.suggest_int("x", 1, 1 + t.number % 2) + t.suggest_float("y", 0, 1),
    "tiny": lambda t: t.suggest_float("x", 1e-9, 1e-9 * (2 + t.number % 2)) * 1e9,
}


@pytest.mark.filterwarnings("ignore:Inconsistent parameter values:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", SPACES)
def test_every_sampler_serves_a_space_whose_ranges_depend_on_the_trial(name: str, sampler: str) -> None:
    study = optuna.create_study(direction="maximize", sampler=samplers.make(sampler, 0, 4))
    for number in range(16):
        one = study.ask()
        value = SPACES[name](one)
        one.report(value, 1)
        study.tell(one, value) if number % 3 else study.tell(one, state=TrialState.PRUNED)


def decided(trial: optuna.trial.Trial) -> float:
    """Two optimizers with rates of their own; adamw is better, at the upper end of its range."""
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    low, high = (1e-2, 1.0) if optimizer == "sgd" else (1e-4, 1e-3)
    rate = trial.suggest_float("rate", low, high, log=True)
    return (0.9 if optimizer == "adamw" else 0.6) - 0.05 * abs(math.log10(rate) + 3)


def narrowed(trial: optuna.trial.Trial) -> float:
    """The best rates are out of the range that there is from trial 12 on."""
    rate = trial.suggest_float("rate", 1e-3, 1e-2 if trial.number >= 12 else 1.0, log=True)
    return 0.9 - 0.1 * abs(math.log10(rate) + 0.5) + 0 * trial.suggest_float("x", 0, 1)


@pytest.mark.filterwarnings("ignore:Inconsistent parameter values:RuntimeWarning")
@pytest.mark.parametrize(("space", "at"), [(decided, 1e-3), (narrowed, 1e-2)])
def test_what_is_proposed_is_what_is_drawn_where_a_range_is_not_the_same_for_all(
    space: Callable[[optuna.trial.Trial], float], at: float
) -> None:
    sampler = CurveSampler(0, 6, random_share=0.0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(16):
        one = study.ask()
        value = space(one)
        one.report(value, 1)
        study.tell(one, value)
    assert any(math.isclose(t.params["rate"], at, rel_tol=1e-2) for t in study.trials[6 if space is decided else 12 :])
    moved = [t.number for t in study.trials[6:] if t.number not in sampler.gains]
    assert len(moved) <= 2  # Their gain would be that of another point.


def test_a_loss_is_read_upside_down() -> None:
    _, _, values = observations([trial([0.5, 0.4, 0.6])], sign=-1.0)
    assert values.tolist() == [-0.5, -0.4]


def test_of_many_trials_the_best_and_those_that_run_are_kept_and_some_others() -> None:
    trials = [trial([0.01 * i]) for i in range(40)] + [trial([], TrialState.RUNNING)]
    kept = known_best(trials, 11, 1.0, np.random.default_rng(0))
    values = [one.intermediate_values.get(1) for one in kept]
    assert values[0] is None
    assert values[1:6] == pytest.approx([0.39, 0.38, 0.37, 0.36, 0.35])
    assert len(set(values)) == 11
    assert known_best(trials, 41, 1.0, np.random.default_rng(0)) == trials


def test_scores_are_not_moved_by_how_far_down_the_worst_is() -> None:
    np.testing.assert_allclose(scores(np.array([0.5, 0.6, -1e9])), scores(np.array([0.5, 0.6, 0.4])))


def level_of(params: dict[str, Any]) -> float:
    return float(0.9 - abs(params["x"] - 0.8) - 0.1 * abs(math.log10(params["learning_rate"]) + 2))


def search(sampler: optuna.samplers.BaseSampler, n: int, slow: float = 0.0) -> optuna.Study:
    """Runs trials of nine epochs on a planted landscape, each stopped after three that is below the median there.

    With `slow` a good configuration lags behind by so much in its first epochs.
    """
    study = optuna.create_study(direction="maximize", sampler=sampler)
    at_three: list[float] = []
    for _ in range(n):
        one = study.ask()
        x = one.suggest_float("x", 0, 1)
        one.suggest_float("learning_rate", 1e-4, 1, log=True)
        level = level_of(one.params)
        values = [level - (0.3 + slow * x) * (9 - epoch) / 9 for epoch in range(1, 10)]
        at_three.append(values[2])
        stopped = values[2] < np.median(at_three)
        for epoch, value in enumerate(values[: 3 if stopped else 9], start=1):
            one.report(value, epoch)
        study.tell(one, state=TrialState.PRUNED) if stopped else study.tell(one, values[-1])
    return study


def test_it_finds_a_better_point_than_chance() -> None:
    def best(sampler: optuna.samplers.BaseSampler) -> float:
        return max(level_of(one.params) for one in search(sampler, 25).trials)

    ours = [best(CurveSampler(seed, 5)) for seed in range(3)]
    chance = [best(optuna.samplers.RandomSampler(seed=seed)) for seed in range(3)]
    assert np.mean(ours) > np.mean(chance) + 0.03


def test_configurations_that_start_slowly_are_not_taken_for_bad_ones() -> None:
    study = search(CurveSampler(0, 5), 30, slow=0.6)
    assert np.mean([one.params["x"] for one in study.trials[-10:]]) > 0.6


def test_what_runs_is_not_proposed_again() -> None:
    study = search(CurveSampler(0, 5), 12)
    points = []
    for _ in range(4):
        one = study.ask()
        points.append(
            (one.suggest_float("x", 0, 1), math.log10(one.suggest_float("learning_rate", 1e-4, 1, log=True)) / 4)
        )
    apart = [math.dist(a, b) for i, a in enumerate(points) for b in points[:i]]
    assert min(apart) > 0.002


@pytest.mark.parametrize("most", [150, 8])  # Trials to which all is fitted.
def test_points_that_gave_a_configuration_again_are_learned_from_and_are_no_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A number decides what else is asked for, so that what is proposed differs and what is trained does not."""
    monkeypatch.setattr("tuning.sampling.curve_sampler.MOST_TRIALS", most)
    (tmp_path / "mine.py").write_text(
        "def space(trial):\n"
        "    n = trial.suggest_int('n', 1, 4)\n"
        "    more = {'erase': trial.suggest_float('erase', 0, 0.4, step=0.1)} if n > 2 else {}\n"
        "    return {'batch_size': 64 * n, 'crop_padding': trial.suggest_int('padding', 0, 3), **more}\n"
    )
    study = RunStudy(tmp_path, load_space(str(tmp_path / "mine.py")), CurveSampler(0, 5), epochs=1, seed=0)
    for _ in range(16):
        proposal = studies.ask(study)
        level = 0.9 - abs(proposal.config.batch_size / 64 - 2) / 20 - abs(proposal.config.crop_padding - 1) / 50
        studies.train(study, proposal, [level], "length")
        study.finish(proposal.number, "scheduler")
    new = [known for known in study.trials.values() if not known.is_duplicate]
    assert len(new) == study.trials.n_finished == 16
    assert sum(known.attrs["origin"] == "model" for known in new) >= 6


def test_the_default_space_with_its_branches_is_searched_to_the_same_points_each_time() -> None:
    def configs() -> list[str]:
        study = optuna.create_study(direction="maximize", sampler=CurveSampler(0, 4))
        space, hashes = load_space("resnet"), []
        for number in range(10):
            one = study.ask()
            config = space.sample(one, epochs=3)
            hashes.append(config.hash())
            for epoch in (1, 2, 3):
                one.report(0.8 + 0.01 * epoch - 0.1 * config.label_smoothing, epoch)
            study.tell(one, state=TrialState.FAIL) if number == 3 else study.tell(
                one, 0.83 - 0.1 * config.label_smoothing
            )
        return hashes

    assert configs() == configs()
    assert len(set(configs())) == 10


def drawn(n: int = 20) -> list[optuna.trial.FrozenTrial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(n):
        one = study.ask()
        one.suggest_float("x", 0, 1), one.suggest_float("learning_rate", 1e-4, 1, log=True)
    return study.get_trials()


def beginning_with(*earlier: list[optuna.trial.FrozenTrial], seed: int = 0, share: float = 0.0) -> CurveSampler:
    sampler = CurveSampler(seed, 5, share)
    sampler.earlier, sampler.drawn = earlier, drawn()
    return sampler


EARLIER = search(optuna.samplers.RandomSampler(seed=7), 25).trials
MISLEADING = [
    create_trial(
        state=TrialState.COMPLETE,
        value=1 - level_of(t.params),
        params=t.params,
        distributions=t.distributions,
        intermediate_values={9: 1 - level_of(t.params)},
    )
    for t in EARLIER
]


def test_a_search_that_begins_with_another_is_good_from_its_first_trial_on() -> None:
    sampler = beginning_with(EARLIER)
    levels = [level_of(t.params) for t in search(sampler, 5).trials]
    assert [sampler.origins[n] for n in range(5)] == ["model", "random", "model", "model", "random"]
    best = max(level_of(t.params) for t in EARLIER)
    assert levels[0] > best - 0.1 and max(levels) >= best
    cold = [level_of(t.params) for t in search(CurveSampler(0, 5), 20).trials]
    assert max(levels) > max(cold) - 0.02


def test_an_earlier_run_that_misleads_is_found_out() -> None:
    study = search(sampler := beginning_with(MISLEADING), 20)
    levels = [level_of(t.params) for t in study.trials]
    assert levels[0] < 0.3  # It was believed at first.
    cold = [max(level_of(t.params) for t in search(CurveSampler(seed, 5), 20).trials) for seed in range(3)]
    assert max(levels) > np.mean(cold) - 0.05
    assert sampler._theta is not None and math.exp(sampler._theta[-1]) < 0.3


def test_of_several_earlier_runs_each_is_believed_as_far_as_it_is_right() -> None:
    study = search(sampler := beginning_with(MISLEADING, EARLIER), 12)
    assert sampler._theta is not None and len(sampler._theta) == 2 + 5 + 2
    misleading, right = np.exp(sampler._theta[-2:])
    assert right > 0.6 > 0.3 > misleading
    assert max(level_of(t.params) for t in study.trials) > 0.8


def test_one_in_ten_points_is_random_from_the_first_trial_on_and_the_sampler_says_which() -> None:
    sampler = beginning_with(EARLIER, share=0.5)
    study = search(sampler, 12)
    assert {"random", "model"} == set(sampler.origins.values()) and set(sampler.origins) == set(range(12))
    by_model = [abs(t.params["x"] - 0.8) for t in study.trials if sampler.origins[t.number] == "model"]
    at_random = [abs(t.params["x"] - 0.8) for t in study.trials if sampler.origins[t.number] == "random"]
    assert np.median(by_model) < np.median(at_random)
    cold = CurveSampler(0, 5, 0.0)
    search(cold, 8)
    assert cold.origins == {number: "random" if number < 5 else "model" for number in range(8)}


def test_an_earlier_run_of_another_space_counts_in_what_both_have() -> None:
    other = [
        create_trial(
            state=t.state if t.state == TrialState.PRUNED else TrialState.COMPLETE,
            value=t.value,
            params={"x": 2 * t.params["x"] - 0.5, "kind": "a", "size": 3},
            distributions={
                "x": FloatDistribution(-0.5, 1.5),
                "kind": CategoricalDistribution(["a", "b"]),
                "size": IntDistribution(1, 4),
            },
            user_attrs={"config": {"learning_rate": t.params["learning_rate"], "epochs": 9}},
            intermediate_values=t.intermediate_values,
        )
        for t in EARLIER
    ]
    study = search(beginning_with(other), 4)
    assert all(set(t.params) == {"x", "learning_rate"} for t in study.trials)
    # Its best x was 2 * 0.8 - 0.5, which is beyond this space's range; the nearest is where it is tried.
    assert study.trials[0].params["x"] > 0.9


def test_a_trial_that_says_nothing_says_nothing_in_an_earlier_run_either() -> None:
    silent = [trial([], TrialState.FAIL, {"no_result": True}, x=0.1, learning_rate=0.5) for _ in range(30)]
    search(one := beginning_with(EARLIER), 3)
    search(other := beginning_with([*EARLIER, *silent]), 3)
    assert one._theta is not None and other._theta is not None
    assert one._theta.tolist() == other._theta.tolist()


def test_a_first_point_that_leaves_a_hyperparameter_out_is_no_proposal_of_the_model() -> None:
    sampler = beginning_with(EARLIER)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({"x": 0.5}, user_attrs={"origin": "space"})
    for _ in range(4):
        trial = study.ask(dict(EARLIER[0].distributions))
        trial.report(0.5, 1)
        study.tell(trial, 0.5)
    assert [sampler.origins[number] for number in (1, 2, 3)] == ["model"] * 3


def test_earlier_trials_leave_room_for_a_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def counted(points: Any, *given: Any, **named: Any) -> Any:
        tasks = dict(zip(points.trials.tolist(), points.of_tasks.tolist(), strict=True))
        seen.append((sum(task == 0 for task in tasks.values()), sum(task > 0 for task in tasks.values())))
        return fit(points, *given, **named)

    monkeypatch.setattr("tuning.sampling.curve_sampler.fit", counted)
    monkeypatch.setattr("tuning.sampling.curve_sampler.MOST_TRIALS", 14)
    monkeypatch.setattr("tuning.sampling.curve_sampler.MOST_EARLIER", 10)
    search(beginning_with(EARLIER), 18)
    assert seen[0] == (0, 10) and seen[-1] == (14, 0)
    assert all(earlier == min(10, 14 - own) for own, earlier in seen)


def test_the_best_and_some_of_all_the_others_speak_for_a_run() -> None:
    trials = [trial([0.01 * i]) for i in range(40)]
    kept = [one.intermediate_values[1] for one in spread(trials, 10, 1.0)]
    assert kept[:5] == pytest.approx([0.39, 0.38, 0.37, 0.36, 0.35])
    assert kept[5:] == sorted(kept[5:], reverse=True) and kept[-1] == 0.0 and len(set(kept)) == 10
    assert spread(trials, 40, 1.0) == trials and spread(trials, 0, 1.0) == []
    assert [one.intermediate_values[1] for one in spread(trials, 1, -1.0)] == [0.0]

"""`tuning.sampling.samplers`: the contract of every sampler by name."""

from typing import Any

import optuna
import pytest

from tuning.base.registries import SAMPLERS
from tuning.sampling import samplers
from tuning.sampling.spaces import load_space


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_serves_the_default_space_with_trials_running_beside(name: str) -> None:
    space = load_space("resnet")
    study = optuna.create_study(direction="maximize", sampler=samplers.make(name, 0, 4))
    running = [study.ask(), study.ask()]
    hashes = {space.sample(one, epochs=8).hash() for one in running}
    for i in range(10):
        one = study.ask()
        hashes.add(space.sample(one, epochs=8).hash())
        one.report(0.5 + 0.01 * i, 1)
        study.tell(one, 0.5 + 0.01 * i) if i % 2 else study.tell(one, state=optuna.trial.TrialState.PRUNED)
    assert len(hashes) == 12


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_known_as_random_where_its_points_do_not_depend_on_the_results(name: str) -> None:
    def points(sign: float) -> list[dict[str, Any]]:
        study = optuna.create_study(direction="maximize", sampler=samplers.make(name, 0, 4))
        for _ in range(16):
            one = study.ask()
            x = one.suggest_float("x", 0, 1) + one.suggest_float("y", 0, 1)
            one.report(sign * x, 1)
            study.tell(one, sign * x)
        return [one.params for one in study.trials]

    assert (points(1.0) == points(-1.0)) == SAMPLERS[name].random, f"The entry of {name} says `random` wrongly."


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_gives_the_same_first_point(name: str) -> None:
    def point(seed: int) -> dict[str, Any]:
        one = optuna.create_study(sampler=samplers.make(name, seed, 4)).ask()
        load_space("smoke").sample(one, epochs=2)
        return one.params

    assert point(1) == point(1)
    assert point(1) != point(2)

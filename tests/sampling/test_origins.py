"""Where the points of a run came from, as its study says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from studies import ask, epoch, told

from tuning.base.errors import UserError
from tuning.sampling import samplers
from tuning.sampling.curve_sampler import CurveSampler
from tuning.sampling.origins import drawn_at_random, given_points
from tuning.sampling.possible import PossibleSampler
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy

POINTS: list[dict[str, Any]] = [{"learning_rate": rate, "momentum": 0.9} for rate in (0.1, 0.2, 0.3)]


def searched(path: Path, sampler: optuna.samplers.BaseSampler, n: int, **changes: Any) -> RunStudy:
    path.mkdir(exist_ok=True)
    study = RunStudy(path, replace(load_space("smoke"), **changes), sampler, epochs=1, seed=0)
    for _ in range(n):
        study.report((number := ask(study).number), epoch(1, 0.5 + 0.01 * number, "length"))
        study.finish(number, "scheduler")
    return study


def test_the_study_keeps_where_each_point_came_from(tmp_path: Path) -> None:
    sampler = samplers.make("curves", 0, 4)
    study = searched(tmp_path, sampler, 7, best_before=POINTS[:2], first=POINTS[1:])
    found = [told(study, number).user_attrs["origin"] for number in range(7)]
    # A point that an earlier run and the space give is the earlier run's.
    assert found[:4] == ["earlier", "earlier", "space", "random"] and set(found[4:]) <= {"model", "random"}
    assert [told(study, number).params for number in range(3)] == POINTS
    study.close(None)
    assert given_points(tmp_path) == {2}
    assert drawn_at_random(tmp_path, "curves", 4) == {n for n in range(7) if found[n] == "random"}


def test_what_is_not_on_record_follows_from_the_sampler_and_the_number(tmp_path: Path) -> None:
    study = searched(tmp_path, samplers.make("random", 0, 4), 6, first=POINTS[:1])
    assert ["origin" in told(study, number).user_attrs for number in range(6)] == [True, *[False] * 5]
    study.close(None)
    assert given_points(tmp_path) == {0}
    assert drawn_at_random(tmp_path, "random", 4) == {1, 2, 3, 4, 5}
    assert drawn_at_random(tmp_path, "tpe", 4) == {1, 2, 3}
    with pytest.raises(UserError, match=r"[Ss]ampler.* must be one of .*, but got 'rando'\."):
        drawn_at_random(tmp_path, "rando", 4)


def test_a_folder_without_a_study_has_no_points(tmp_path: Path) -> None:
    assert given_points(tmp_path) == drawn_at_random(tmp_path, "tpe", 4) == set()


def test_a_sampler_of_possible_points_says_what_the_one_behind_it_says() -> None:
    sampler = CurveSampler(0, 4)
    sampler.origins[3], sampler.gains[3] = "model", 0.5
    assert PossibleSampler(sampler, {}).origins == {3: "model"} and PossibleSampler(sampler, {}).gains == {3: 0.5}
    other = PossibleSampler(optuna.samplers.RandomSampler(seed=0), {})
    assert other.origins == other.gains == {}

"""Which average is taken: the valid images of all seeds decide, by more than their standard error. Nothing is trained.

A planted job has of each averaging the images that are right. Most of them are right with all averagings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tuning.base import files
from tuning.base.averagings import AVERAGINGS
from tuning.base.config import TrainConfig
from tuning.base.registries import METRICS
from tuning.retraining import averaging, verdict
from tuning.retraining.averaging import Gain
from tuning.retraining.candidates import Entry, Plan
from tuning.retraining.contest import Contest
from tuning.training import jobs

N = 1000
CONFIG = TrainConfig(width=4)
Right = Mapping[str, Sequence[tuple[int, int]]]


def outcomes(wins: Mapping[str, tuple[int, int]], n: int = N) -> "dict[str, np.ndarray[Any, Any]]":
    """Returns by averaging which of the images are right; (6, 2) is 6 images that are wrong without it, and 2 right."""
    found = {}
    for name in AVERAGINGS:
        right, (won, lost) = np.arange(n) >= 100, wins.get(name, (0, 0))
        right[:won] = True
        right[n - lost :] = False
        found[name] = right
    return found


def contest(
    folder: Path,
    seeds: Sequence["dict[str, np.ndarray[Any, Any]]"],
    *,
    folds: bool = False,
    without: Sequence[int] = (),
    shifts: bool = True,
    metric: str = "accuracy",
) -> Contest:
    """Returns a contest whose winner has these outcomes of its seeds; `without` have no file of what an image adds."""
    numbers = tuple(range(1, len(seeds) + 1))
    entries = (Entry("candidate", CONFIG, 1, 1, 0.5, 1),)
    plan = Plan("run", "run", entries, numbers, folder, "patterns", folds=len(seeds) * folds, metric=metric)  # type: ignore[arg-type]
    done = {}
    for seed, right in zip(numbers, seeds, strict=True):
        job = plan.job(entries[0], seed)
        job.path.mkdir(parents=True)
        if seed not in without:
            np.savez(job.path / jobs.VALID_INFLUENCES, **{name: each.astype("f4") for name, each in right.items()})
        known = {name: each for name, each in AVERAGINGS.items() if shifts or "shift" not in name}
        for column in ("accuracy", "score"):
            values = {f"valid_{column}{each.end}": float(right[name].mean()) for name, each in known.items()}
        both = {
            key.replace("score", column): value for key, value in values.items() for column in ("accuracy", "score")
        }
        done[CONFIG.hash(), seed] = jobs.Result("x", 0.9, valid_score=0.9, best_epoch=1, **both)
        files.write_json(job.path / jobs.RESULT, asdict(done[CONFIG.hash(), seed]))
    return Contest(plan, done, {}, pd.DataFrame({"chosen": [True]}), None)


def choose(held: Contest) -> tuple[str, dict[str, Gain]]:
    return averaging.choose(held.models, held.metric, folds=held.plan.folds > 0)


@pytest.mark.parametrize(
    ("wins", "taken"),
    [
        ({}, "none"),  # Of equal ones the one with the fewest views.
        ({"flip": (6, 2)}, "flip"),  # +4 images; their standard error is 2.8.
        ({"flip": (12, 8)}, "none"),  # +4 images of 20 that change: 4.5.
        ({"shift": (1, 0)}, "none"),  # One image is chance.
        ({"flip": (6, 2), "shift": (6, 2), "flip+shift": (6, 2)}, "flip"),
        ({"flip": (6, 2), "flip+shift": (7, 2)}, "flip"),  # One image more does not pay for eight views more.
        ({"flip": (6, 2), "flip+shift": (16, 2)}, "flip+shift"),
        ({"flip": (1, 0), "flip+shift": (8, 2)}, "flip+shift"),
        ({"flip": (2, 8), "shift": (0, 5), "flip+shift": (3, 9)}, "none"),
    ],
)
def test_more_views_are_taken_where_they_pay_beyond_chance(
    tmp_path: Path, wins: dict[str, tuple[int, int]], taken: str
) -> None:
    assert choose(contest(tmp_path, [outcomes(wins)]))[0] == taken


def test_the_error_is_that_of_the_paired_difference_of_an_image_over_all_seeds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    seeds = [{name: rng.random(N) < 0.9 for name in AVERAGINGS} for _ in range(3)]
    _, gains = choose(contest(tmp_path, seeds))
    each = np.mean([right["shift"].astype(float) - right["none"] for right in seeds], axis=0)
    assert gains["shift"].value == pytest.approx(each.mean())
    assert gains["shift"].error == pytest.approx(math.sqrt((each**2).mean() / N))
    assert list(gains) == ["flip", "shift", "flip+shift"]


def test_all_seeds_count_not_the_saved_models_alone(tmp_path: Path) -> None:
    """Seeds whose images differ tell more than one: +5 of 35 is chance on one of them, and not on nine."""
    rng = np.random.default_rng(1)
    seeds = []
    for _ in range(9):
        right = outcomes({})
        changed = rng.permutation(N)[:35]
        right["none"][changed[:20]] = False
        right["none"][changed[20:]] = True
        right["flip"] = right["none"].copy()
        right["flip"][changed[:20]], right["flip"][changed[20:]] = True, False
        right["shift"] = right["flip+shift"] = right["none"]
        seeds.append(right)
    assert choose(contest(tmp_path / "one", seeds[:1]))[0] == "none"
    assert choose(contest(tmp_path / "all", seeds))[0] == "flip"
    chosen = verdict.choose(contest(tmp_path / "verdict", seeds))
    assert chosen.averaging == "flip" and chosen.valid_accuracy == pytest.approx(float(seeds[0]["flip"].mean()))


def test_folds_have_images_of_their_own_and_sizes(tmp_path: Path) -> None:
    folds = [outcomes({"flip": (4, 1)}, 400), outcomes({"flip": (9, 2)}, 500)]
    taken, gains = choose(contest(tmp_path, folds, folds=True))
    values = [3 / 400, 7 / 500]
    squares = [5 / 400 / 400, 11 / 500 / 500]
    assert taken == "flip" and gains["flip"].value == pytest.approx(np.mean(values))
    assert gains["flip"].error == pytest.approx(math.sqrt(sum(squares)) / 2)


def test_seeds_of_an_earlier_version_choose_among_what_they_have_as_it_did(tmp_path: Path) -> None:
    wins = {"flip": (12, 8), "shift": (50, 0), "flip+shift": (60, 0)}
    old = contest(tmp_path, [outcomes(wins)], without=[1], shifts=False)
    taken, gains = choose(old)
    assert taken == "flip" and list(gains) == ["flip"]
    assert gains["flip"].value == pytest.approx(0.004) and math.isnan(gains["flip"].error)
    assert choose(contest(tmp_path / "worse", [outcomes({"flip": (8, 9)})], without=[1]))[0] == "none"


def test_one_seed_of_an_earlier_version_keeps_shifts_from_all(tmp_path: Path) -> None:
    held = contest(tmp_path, [outcomes({"flip": (12, 0), "shift": (50, 0)})] * 2, without=[2])
    old = asdict(held.done[CONFIG.hash(), 2])
    old |= {name: None for name in old if "shift" in name}
    taken, gains = choose(replace(held, done={**held.done, (CONFIG.hash(), 2): jobs.Result(**old)}))
    assert taken == "flip" and list(gains) == ["flip"] and math.isnan(gains["flip"].error)


def test_a_file_of_other_images_leaves_the_error_unknown(tmp_path: Path) -> None:
    held = contest(tmp_path, [outcomes({"flip": (4, 1)}), outcomes({"flip": (4, 1)}, 900)])
    assert math.isnan(choose(held)[1]["flip"].error)


def test_where_less_is_better_a_gain_is_a_lower_value(tmp_path: Path) -> None:
    losses = {name: np.full(N, 0.5) for name in AVERAGINGS}
    losses["shift"] = losses["none"] - np.linspace(0.0, 0.2, N)
    held = contest(tmp_path, [losses], metric="log_loss")
    taken, gains = choose(held)
    assert taken == "shift" and gains["shift"].value == pytest.approx(0.1)
    said = averaging.explain(taken, gains, METRICS["log_loss"])
    assert "shift -0.1000 ± 0.0037, flip+shift" in said


def test_what_the_averagings_are_worth_is_said() -> None:
    gains = {"flip": Gain(0.0012, 0.0008), "shift": Gain(-0.0005, math.nan)}
    assert averaging.explain("flip", gains, METRICS["accuracy"]) == (
        "Averaging over views of an image, compared with none on the valid images: flip +0.12 ± 0.08 points, shift "
        "-0.05 points. Chosen: flip, 2 views."
    )
    assert averaging.explain("none", gains, METRICS["accuracy"]).endswith("Chosen: none, 1 view.")

"""`--minutes`: how long a plan takes, and what of it is given up so that it fits."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_candidates import SETTINGS, make_run
from test_folds import write_images

from tuning import final
from tuning.base import files, machine
from tuning.base.errors import UserError
from tuning.retraining import candidates, minutes, race
from tuning.retraining.candidates import Plan
from tuning.retraining.minutes import Pace
from tuning.runs import run_folder
from tuning.trials.slots import Slots

pytestmark = pytest.mark.usefixtures("unrendered")

SIZES = {"top_k": 3, "n_seeds": None, "folds": 0, "compare": None, "epochs": None}
SLOTS = Slots("cpu", concurrency=2)


@pytest.fixture(autouse=True)
def nothing_beside_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "AROUND", 0.0)
    monkeypatch.setattr(minutes, "FINAL_SECONDS", 0.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten trials of one epoch of 60 s, whose full length is 2: four epochs, 4 minutes, are a training of `final`."""
    return with_times(make_run(tmp_path / "run", [0.75, 0.5, 0.5, 0.7, 0.5, 0.5, 0.5, 0.5, 0.6, 0.8]))


def with_times(run: Path, seconds: float = 60.0, **settings: Any) -> Path:
    trials = run_folder.Run(run).trials.assign(seconds=seconds, n_parameters=100_000_000)
    trials.to_csv(run / "trials.csv", index=False)
    settings = SETTINGS | {"device": "cpu", "concurrency": 2, "cpus_per_trial": 1.0} | settings
    meta = {"settings": settings, "dataset": settings["dataset"], "hardware": machine.hardware()}
    files.write_json(run / "meta.json", meta)
    return run


def planned(
    run: Path, limit: float | None = None, given: Sequence[str] = (), slots: Slots = SLOTS, **sizes: Any
) -> Plan:
    make = functools.partial(candidates.from_run, str(run))
    return minutes.planned(make, {**SIZES, **sizes}, slots, minutes=limit, given=given)


def shape(plan: Plan) -> tuple[int, int, int]:
    """Returns how many candidates, seeds and comparisons there are."""
    others = [entry for entry in plan.entries if entry.role != "candidate"]
    return len(plan.entries) - len(others), len(plan.seeds), len(others)


def test_the_only_one_that_may_win_is_trained_ahead_whatever_is_dropped(run: Path) -> None:
    plan = planned(run, top_k=1)
    candidate, *others = plan.entries
    others = [replace(entry, trial=None, epoch_seconds=1.0) for entry in others]
    plan = replace(plan, entries=(candidate, *others))
    assert others and [plan.may_win(entry) for entry in plan.entries] == [True, *(False for _ in others)]
    for n_slots in range(1, 9):
        assert minutes.seconds(plan, Pace(n_slots), least=True) <= minutes.seconds(plan, Pace(n_slots))


def test_the_slots_are_filled_in_the_order_of_the_race(run: Path) -> None:
    """Three candidates and the default, 4 minutes each, on three seeds."""
    plan = planned(run)
    assert shape(plan) == (3, 3, 1) and {entry.expected_seconds for entry in plan.entries} == {240.0}
    for n_slots, expected in ((1, 48), (2, 24), (3, 16), (4, 12), (5, 12), (12, 8)):
        assert minutes.seconds(plan, Pace(n_slots)) == 60 * expected, n_slots
    assert minutes.seconds(plan, Pace(2), least=True) == 60 * 12
    assert minutes.seconds(plan, Pace(6), least=True) == 60 * 8  # Who wins is known only when the first seed has ended.
    as_it_was = replace(plan, unchanged=plan.entries[-1].config.hash())
    assert minutes.seconds(as_it_was, Pace(1), least=True) == 60 * 20
    assert minutes.seconds(as_it_was, Pace(1)) == minutes.seconds(plan, Pace(1)) == 60 * 48
    assert minutes.seconds(plan, Pace(2, slower=1.5, after="train+valid")) == 60 * 1.5 * 28
    alone = minutes.seconds(plan, Pace(2))
    rounds = math.ceil(len(plan.seeds) / 2)
    longest = minutes.seconds(plan, Pace(2, after="train+valid")) - alone
    assert minutes.seconds(plan, Pace(2, after="distilled")) == alone + rounds * minutes.DISTILLED_COST * longest


def test_a_single_training_can_teach_nothing_which_takes_no_time_and_is_said(run: Path) -> None:
    make = functools.partial(candidates.from_run, str(run))
    sizes = SIZES | {"top_k": 1}
    alone = minutes.planned(make, sizes, SLOTS, minutes=2, given=["top_k"], after="distilled")
    assert shape(alone) == (1, 1, 0) and minutes.seconds(alone, Pace(2, after="distilled")) == 60 * 2
    assert "2 epochs in the place of 4, nothing to distil from. This takes about 2 minutes if" in alone.notes[-1]
    several = minutes.planned(make, sizes, SLOTS, minutes=60, after="distilled")
    assert "distil" not in several.notes[-1]


def test_no_slot_waits_for_the_first_seed_of_a_single_configuration(run: Path) -> None:
    plan = planned(run, top_k=1, compare=False)
    assert minutes.seconds(plan, Pace(2)) == 60 * 8
    assert minutes.seconds(plan, Pace(3)) == 60 * 4


def test_a_slot_waits_where_a_first_seed_has_not_ended(run: Path) -> None:
    plan = planned(run, top_k=2, compare=False)
    assert minutes.seconds(plan, Pace(6)) == 60 * 8


def test_without_a_limit_all_is_planned_and_it_is_said_how_long_it_takes(run: Path) -> None:
    [note] = planned(run).notes
    assert (
        note
        == "This takes 12 to 24 minutes if the times are those of the search: the sooner some are dropped, the less."
    )
    [note] = planned(run, top_k=1, n_seeds=1).notes
    assert note == "This takes about 4 minutes if the times are those of the search."
    [note] = planned(run, 24).notes
    assert note.startswith("24 minutes are enough for all. This takes 12 to 24 minutes if ")


def test_few_minutes_have_a_decimal_and_one_is_no_plural(run: Path) -> None:
    quick: dict[str, Any] = {"top_k": 1, "n_seeds": 1}
    for seconds, said in ((16.5, "about 1.1 minutes if"), (15.0, "about 1 minute if"), (159.0, "about 11 minutes if")):
        with_times(run, seconds=seconds)
        assert said in planned(run, **quick).notes[-1]


@pytest.mark.parametrize(
    ("limit", "expected", "epochs", "said"),
    [
        (23, (3, 3, 1), 4, "later seeds as far as the time allows. This takes 12 to 23 minutes if"),
        (12, (3, 3, 1), 4, "later seeds as far as the time allows. This takes about 12 minutes if"),
        (11, (3, 2, 0), 4, "2 seeds in the place of 3, no comparisons, later seeds as far as the time allows."),
        (8, (3, 2, 0), 4, "2 seeds in the place of 3, no comparisons, later seeds as far as the time allows."),
        (7, (2, 1, 0), 4, "1 seed in the place of 3, 2 candidates in the place of 3, no comparisons. This"),
        (3, (2, 1, 0), 3, "1 seed in the place of 3, 2 candidates in the place of 3, no comparisons, 3 epochs in th"),
        (2, (2, 1, 0), 2, "1 seed in the place of 3, 2 candidates in the place of 3, no comparisons, 2 epochs in th"),
    ],
)
def test_what_is_given_up_comes_in_an_order_and_what_still_fits_is_taken_back(
    run: Path, limit: float, expected: tuple[int, int, int], epochs: int, said: str
) -> None:
    plan = planned(run, limit)
    assert shape(plan) == expected and {entry.config.epochs for entry in plan.entries} == {epochs}
    assert minutes.seconds(plan, Pace(2), least=True) <= 60 * limit
    assert (plan.slot_seconds is None) == (minutes.seconds(plan, Pace(2)) <= 60 * limit)
    assert plan.notes[-1].startswith(f"For {limit} minutes: {said}")


def test_the_order_itself_is_that_of_the_page() -> None:
    assert list(minutes._concessions(3, 3)) == [
        *(("n_seeds", 2), ("top_k", 2), ("compare", False), ("n_seeds", 1), ("top_k", 1))
    ]


def test_minutes_for_less_than_one_training_are_refused_with_the_least(run: Path) -> None:
    said = (
        r"--minutes must be at least 2, which trial 9 with 2 epochs takes by the times of the search, but got 1\.5\. "
        r"Give it more, or choose a smaller network with --max-parameters\."
    )
    with pytest.raises(UserError, match=said):
        planned(run, 1.5)
    assert len(planned(run, 2).seeds) == 1
    with pytest.raises(UserError, match=r"--minutes must be at least 2, which .*, but got nan\."):
        planned(run, float("nan"))


def test_what_is_asked_for_is_not_given_up(run: Path) -> None:
    asked: dict[str, Any] = {"top_k": 2, "n_seeds": 2, "epochs": 3}
    plan = planned(run, 6, tuple(asked), **asked)
    assert shape(plan) == (2, 2, 0) and {entry.config.epochs for entry in plan.entries} == {3}
    said = (
        r"--minutes must be at least 6 with --top-k and --seeds and --epochs, by the times of the search, but got 5\. "
        r"Give it more, or ask for less with --top-k and --seeds and --epochs\."
    )
    with pytest.raises(UserError, match=said):
        planned(run, 5, tuple(asked), **asked)
    with pytest.raises(UserError, match=r"--minutes must be at least 8 with --compare and --epochs, by the times"):
        planned(run, 7, ("compare", "epochs", "top_k"), compare=True, epochs=4, top_k=1)
    with pytest.raises(UserError, match=r"--minutes must be at least 2, which trial 9 with 2 epochs takes"):
        planned(run, 1, ("top_k", "n_seeds", "compare"), top_k=1, n_seeds=1, compare=False)


def test_folds_are_not_given_up(run: Path, tmp_path: Path) -> None:
    images = str(write_images(tmp_path / "photos").dataset)
    with_times(run, dataset=images, reading={})
    folds: dict[str, Any] = {"folds": None}
    assert shape(planned(run, **folds)) == (3, 5, 0)  # Those to compare with are candidates, too.
    plan = planned(run, 20, **folds)
    assert (plan.folds, shape(plan)) == (5, (3, 5, 0))
    assert plan.notes[-1].startswith("For 20 minutes: later folds as far as the time allows. This takes 16 to 20 ")
    plan = planned(run, 12, **folds)
    assert plan.notes[-1].startswith("For 12 minutes: 2 candidates in the place of 3, later folds as far")
    assert (plan.folds, shape(plan)) == (5, (2, 5, 0)) and plan.entries[0].config.epochs == 4
    said = r"--minutes must be at least 6, which trial 9 with 2 epochs on 5 folds takes .* or take fewer --folds\."
    with pytest.raises(UserError, match=said):
        planned(run, 4, **folds)
    with pytest.raises(UserError, match=r"at least 6 with --folds, by the times of the search"):
        planned(run, 4, ("folds",), folds=5)


def test_the_plan_does_not_depend_on_what_has_been_trained(run: Path) -> None:
    for limit in (None, 16, 3):
        before = planned(run, limit)
        for entry in before.entries:
            job = before.job(entry, before.seeds[0])
            files.make_folder(job.path, exist_ok=True)
            files.write_json(job.path / "result.json", {"split_hash": "x", "valid_accuracy": 0.9, "seconds": 1.0})
        assert planned(run, limit) == before


def test_with_a_smaller_share_of_the_machine_than_in_the_search_it_takes_longer(run: Path) -> None:
    with_times(run, cpus_per_trial=2.0)
    assert planned(run).notes[-1].startswith("This takes 24 to 48 minutes if the times are those of the search: ")
    alone = planned(run, top_k=1, compare=False, slots=Slots("cpu", concurrency=1))
    expected = 12 if machine.cores() > 1 else 24
    assert alone.notes[-1] == f"This takes about {expected} minutes if the times are those of the search."


def test_times_of_another_machine_are_said_and_those_of_another_device_say_nothing(run: Path) -> None:
    meta = files.read_json(run / "meta.json")
    files.write_json(run / "meta.json", meta | {"hardware": {"cpu": "another", "cores": 2, "gpus": []}})
    assert "those of the search, which ran on another machine: the" in planned(run).notes[-1]
    with_times(run, device="cuda")
    assert planned(run).notes == ()
    with pytest.raises(
        UserError, match=r"--minutes needs the times of the search, but those of .*run are of cuda, and "
    ):
        planned(run, 30)


def test_a_run_without_times_is_planned_without_minutes_only(run: Path) -> None:
    with_times(run, seconds=0.0)
    assert planned(run).notes == ()
    said = r"--minutes needs the times of the search, but .*run has none for trial 9\. Leave it out\."
    with pytest.raises(UserError, match=said):
        planned(run, 30)


def test_both_doors_plan_for_minutes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def carry_out(plan: Plan, *args: Any, **values: Any) -> str:
        plans.append(plan)
        raise UserError("far enough")

    monkeypatch.setattr(final, "carry_out", carry_out)
    monkeypatch.setattr(final, "_check_test_files", lambda source: None)
    monkeypatch.chdir(run.parent)
    for door in (final.run, final.main):
        with pytest.raises(UserError, match="far enough"):
            door(run=str(run), minutes=8.0, seeds=1, concurrency=1)
    first, second = plans
    assert first == second and shape(first) == (2, 1, 0)


def test_without_a_run_there_are_no_times(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{}")
    said = r"--minutes must be used with a run, but got --config .*c\.json\. Leave one of"
    with pytest.raises(UserError, match=said):
        final.main(config=tmp_path / "c.json", minutes=30.0, model_dir=tmp_path / "model")

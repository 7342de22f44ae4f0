"""Whose turn a free slot is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import studies

from tuning.base import files
from tuning.runs import convergence
from tuning.runs.run_folder import Run
from tuning.sampling.known_trials import KnownTrials
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy
from tuning.trials.settings import Settings
from tuning.trials.turns import Turn, Turns


def study_of(path: Path) -> RunStudy:
    return RunStudy(path, load_space("smoke"), optuna.samplers.RandomSampler(seed=0), epochs=5, seed=7)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def study(tmp_path: Path) -> RunStudy:
    return study_of(tmp_path)


@pytest.fixture
def begun(study: RunStudy, notes: list[str]) -> Callable[..., Turns]:
    """Returns a function that makes the turns of a search of two slots or more, one of which a trial has."""

    def make(n_slots: int = 2, **changes: Any) -> Turns:
        settings = Settings(
            samples=3, space="smoke", dataset="x", epochs=5, seed=7, sampler="random", scheduler="none", device="cpu",
            concurrency=n_slots, cpus_per_trial=1.0, gpus_per_trial=0.0, train_images=None, data_dir=None,
            max_failures=0, time_budget=None,
        )  # fmt: skip
        turns = Turns(replace(settings, **changes), study, notes.append)
        assert taken(turns).proposal.number == 0
        return turns

    return make


def taken(turns: Turns) -> Turn:
    turn = turns.next()
    assert turn is not None
    return turn


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Returns what decides whether a study has converged, and whether a trial of it was interrupted."""
    known = SimpleNamespace(converged=False, interrupted=False)
    monkeypatch.setattr(RunStudy, "has_converged", property(lambda study: known.converged))
    monkeypatch.setattr(KnownTrials, "has_interrupted", property(lambda trials: known.interrupted))
    return known


def pausing(*promoted: int, paused: int | None = None) -> Any:
    """Returns a scheduler that has these trials go on, one after the other, and has paused one."""
    left = iter(promoted)
    return SimpleNamespace(
        promoted=lambda: next(left, None), has_paused=lambda number: number == paused, ended=lambda number: None
    )


def test_where_nothing_is_left_to_gain_a_search_says_so_and_ends_if_it_is_to(
    begun: Callable[..., Turns], notes: list[str], known: SimpleNamespace
) -> None:
    turns = begun(9)
    known.converged = True
    taken(turns), taken(turns)
    assert len(notes) == 1 and notes[0].startswith("Nothing left to gain after 0 trials: ")
    assert turns.outcome(None) == {"stopped_by": None, "converged": 0}
    known.converged = False
    assert turns.outcome(None) == {"stopped_by": None, "converged": None}  # A later trial was better.
    taken(turns)
    known.converged = True
    turns.settings = replace(turns.settings, until_converged=True)
    known.interrupted = True  # What was begun goes on.
    taken(turns)
    known.interrupted = False
    assert turns.next() is None and not turns.are_over  # A trial that runs may be better.
    for number in list(turns.slots.by_trial):
        turns.ended(number)
    assert turns.next() is None and turns.are_over
    assert turns.outcome(None) == {"stopped_by": "converged", "converged": 0}
    assert turns.outcome("interrupt")["stopped_by"] == "interrupt"
    known.converged = False  # The last trial of all was better.
    assert turns.outcome(None) == {"stopped_by": None, "converged": None}


def test_what_the_last_trial_of_all_decides_is_known_at_the_end(begun: Callable[..., Turns], study: RunStudy) -> None:
    turns = begun(until_converged=True)
    study.report(0, studies.epoch(1, 1.0, "length"))
    study.finish(0, "scheduler")
    turns.ended(0)  # Nobody asks for another one.
    assert turns.outcome(None) == {"stopped_by": None, "converged": 1}


def test_a_search_whose_best_is_perfect_ends_if_it_is_to(
    begun: Callable[..., Turns], study: RunStudy, notes: list[str]
) -> None:
    turns = begun(until_converged=True)
    study.report(0, studies.epoch(1, 1.0, "length"))
    study.finish(0, "scheduler")
    turns.ended(0)
    assert turns.next() is None and turns.are_over
    said = "Nothing left to gain after 1 trial: a trial has the best value that there is."
    assert notes == [f"{said} The search ends with the trials that run."]
    assert turns.outcome(None) == {"stopped_by": "converged", "converged": 1}
    study.write_trials()
    files.write_json(study._path / "meta.json", {"settings": {}, **turns.outcome(None)})
    assert convergence.text(Run(study._path)) == f"{said} The search ended there."


def test_a_search_whose_samples_are_all_begun_is_over_though_trials_run(
    begun: Callable[..., Turns], known: SimpleNamespace
) -> None:
    turns = begun(until_converged=True)
    known.converged, turns.to_begin = True, 0
    assert turns.next() is None and turns.are_over


@pytest.mark.parametrize("scheduler", [None, pausing()])
def test_a_search_that_has_converged_begins_again_where_a_later_trial_was_better(
    begun: Callable[..., Turns],
    study: RunStudy,
    known: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: Any,
) -> None:
    turns = begun(until_converged=True)
    known.converged, turns.scheduler = True, scheduler
    assert turns.next() is None and not turns.are_over
    with monkeypatch.context() as patch:
        patch.setattr(study, "ask", None)
        assert turns.next() is None  # Until the trial that runs has ended.
    assert turns.converged_after == 0
    known.converged = False
    assert not turns.are_over
    study.fail(0, "made up")
    turns.ended(0)
    assert taken(turns).proposal.number == 1


def test_a_search_whose_trials_pause_goes_on_until_none_runs_and_none_is_to_go_on(
    begun: Callable[..., Turns], study: RunStudy
) -> None:
    turns = begun()
    turns.to_begin, turns.scheduler = 0, pausing(paused=0)
    assert turns.next() is None and not turns.are_over  # What trial 0 comes to decides who goes on.
    study.report(0, studies.epoch(1, 0.7))
    assert turns.has_paused(0)
    study.pause(0)
    turns.paused(0)
    turns.scheduler = pausing(0)
    gone_on = taken(turns)
    assert (gone_on.proposal.number, gone_on.proposal.epochs) == (0, 1)
    study.report(0, studies.epoch(2, 0.8, "length"))
    assert not turns.has_paused(0)
    study.finish(0, "scheduler")
    turns.ended(0)
    assert turns.next() is None and turns.are_over


def test_where_no_slot_is_free_nothing_is_over(begun: Callable[..., Turns]) -> None:
    turns = begun(1)
    assert turns.next() is None and not turns.are_over
    turns.scheduler, turns.slots._capacity = pausing(), {}  # A cluster that has lost its nodes.
    turns.slots.give_back(0)
    assert turns.next() is None and not turns.are_over


def test_a_trial_that_fails_before_it_has_the_device_it_waits_for_keeps_nobody_waiting(
    begun: Callable[..., Turns], study: RunStudy
) -> None:
    turns = begun()
    turns.wait_alone(0)
    assert turns.next() is None
    study.fail(0, "its worker was killed while it started")
    turns.ended(0)
    assert taken(turns).proposal.number == 1


def test_a_paused_trial_that_was_alone_on_its_device_is_so_when_it_goes_on(
    begun: Callable[..., Turns], study: RunStudy, tmp_path: Path
) -> None:
    turns = begun()
    assert taken(turns).proposal.number == 1
    study.report(0, studies.epoch(1, 0.7))
    assert turns.wait_alone(0) == turns.settings.slots.whole_device != {}
    study.retry(0, "out of memory", accumulation=1, alone=True)
    turns.slots.give_back(1)
    assert turns.next() is None  # The device is to be free of others.
    turns.began(0)
    study.pause(0)
    turns.paused(0)
    turns.scheduler = pausing(0)
    turn = taken(turns)
    assert (turn.proposal.number, turn.proposal.alone) == (0, True)
    assert turns.next() is None
    turns.began(0)
    assert turns.next() is None  # There is no room beside it.
    study.close(stopped_by=None)
    anew = study_of(tmp_path)
    assert anew.trials[0].was_alone and not anew.trials[1].was_alone
    again = anew.ask()
    assert again is not None and (again.number, again.alone) == (0, True)


@pytest.mark.parametrize(("n_gpus", "beside"), [(1, 0), (2, 2)])
def test_beside_a_trial_that_is_alone_on_a_gpu_run_those_of_the_other_gpus(
    begun: Callable[..., Turns], study: RunStudy, n_gpus: int, beside: int
) -> None:
    turns = begun(2 * n_gpus, device="cuda", gpus_per_trial=0.5)
    turns.wait_alone(0)
    study.retry(0, "out of memory", accumulation=1, alone=True)
    turns.began(0)
    for _ in range(beside):
        taken(turns)
    assert turns.next() is None and not turns.are_over
    study.fail(0, "it does not fit")
    turns.ended(0)
    taken(turns), taken(turns)
    assert turns.next() is None

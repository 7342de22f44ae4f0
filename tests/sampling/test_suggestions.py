"""A space whose parameters Optuna refuses is a sentence that names the parameter, before the first trial or later."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from tuning.base.errors import UserError
from tuning.base.registries import SAMPLERS
from tuning.sampling import samplers
from tuning.sampling.spaces import Space, check_space
from tuning.sampling.study import RunStudy


def by_choice(trial: Any, one: Any, other: Any) -> dict[str, Any]:
    """Returns what one of two suggestions gives, by another parameter."""
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    return {"optimizer": optimizer, **(one if optimizer == "sgd" else other)(trial)}


REFUSED: dict[str, tuple[Any, str]] = {
    "other choices": (
        lambda t: {"batch_size": t.suggest_categorical("b", [64, 128] if t.number % 2 else [128, 256])},
        r"mine: The parameter 'b' has other choices than in an earlier trial, .* of its own, e\.g\. 'b_1' and 'b_2'\.",
    ),
    "another type": (
        lambda t: by_choice(
            t,
            lambda t: {"batch_size": t.suggest_int("b", 64, 256)},
            lambda t: {"batch_size": t.suggest_categorical("b", [64, 128])},
        ),
        r"The parameter 'b' is of another type than in an earlier trial",
    ),
    "int and float": (
        lambda t: by_choice(
            t,
            lambda t: {"learning_rate": t.suggest_float("lr", 0.1, 1)},
            lambda t: {"learning_rate": t.suggest_int("lr", 1, 2)},
        ),
        r"The parameter 'lr' is of another type than in an earlier trial",
    ),
    "another scale": (
        lambda t: by_choice(
            t,
            lambda t: {"learning_rate": t.suggest_float("lr", 1e-3, 1, log=True)},
            lambda t: {"learning_rate": t.suggest_float("lr", 1e-4, 1e-2)},
        ),
        r"The parameter 'lr' is of another scale \(log or linear\) than in",
    ),
}


def space_of(define: Any) -> Space:
    return Space("mine", "mine.py", "", define, [], {}, {})


@pytest.mark.parametrize("name", REFUSED)
def test_what_optuna_refuses_is_said_before_the_first_trial(name: str) -> None:
    define, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        check_space(space_of(define), epochs=2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_the_check_could_not_see_is_said_in_mid_search(tmp_path: Path, sampler: str) -> None:
    choices = [64, 128]

    def define(trial: Any) -> dict[str, Any]:
        rate = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        return {"learning_rate": rate, "batch_size": trial.suggest_categorical("b", choices)}

    study = RunStudy(tmp_path, space_of(define), samplers.make(sampler, 0, 2), epochs=1, seed=0)
    row = {"epoch": 1, "valid_accuracy": 0.5, "train_accuracy": 0.5, "train_loss": 1.0, "valid_loss": 1.0, "lr": 0.1}
    row |= {"epoch_seconds": 1.0, "images_per_second": 1.0, "seconds_per_image": 1e-3, "finished": "length"}
    for _ in range(5):
        proposal = study.ask()
        assert proposal is not None
        study.report(proposal.number, row)
        study.finish(proposal.number, "scheduler")
    choices.append(256)
    with pytest.raises(UserError, match=r"mine: The parameter 'b' has other choices than in"):
        study.ask()
    study.close(None)


def test_another_error_of_a_suggestion_stays_the_users_own() -> None:
    define = space_of(lambda t: {"learning_rate": t.suggest_float("lr", 1.0, 0.1)})
    with pytest.raises(UserError, match=r"mine must return hyperparameters, but .* ValueError"):
        check_space(define, epochs=1)


def test_a_trial_has_all_else_that_it_has() -> None:
    seen = []

    def define(trial: Any) -> dict[str, Any]:
        trial.set_user_attr("a", 1)
        seen.append(trial.number)
        return {"learning_rate": trial.suggest_float("lr", low=0.1, high=1.0)}

    study = optuna.create_study()
    assert 0.1 <= space_of(define).sample(study.ask(), 1).learning_rate <= 1
    assert seen == [0] and study.trials[0].user_attrs == {"a": 1}

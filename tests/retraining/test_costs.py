"""What an epoch of a configuration that no trial had would cost."""

from typing import Any

import pandas as pd
import pytest

from tuning.base.config import TrainConfig
from tuning.retraining import costs

RESNET8 = TrainConfig(architecture="resnet8", width=16)


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    """Returns trials of 10 epochs, by what each has of a configuration, and its seconds and parameters."""
    base = {f"config/{name}": value for name, value in RESNET8.model_dump().items()}
    found: list[dict[str, Any]] = []
    for row in rows:
        named = {f"config/{name}" if name in TrainConfig.model_fields else name: value for name, value in row.items()}
        found.append({**base, **named, "epochs": 10})
    return pd.DataFrame(found)


def test_it_is_the_median_of_the_trials_of_the_same_network() -> None:
    rows = [{"seconds": s, "n_parameters": 78_000, "batch_size": 2**i} for i, s in enumerate((200, 300, 900), start=5)]
    others: list[dict[str, Any]] = [{"architecture": "resnet14"}, {"width": 32}, {"image_size": 96}, {"train": "head"}]
    trials = frame(*rows, *(other | {"seconds": 1.0, "n_parameters": 78_000} for other in others))
    assert costs.epoch_seconds(RESNET8, trials) == 30


def test_what_the_network_does_not_use_makes_no_difference() -> None:
    trials = frame(
        {"seconds": 200.0, "n_parameters": 78_000, "stem": "small"},
        {"architecture": "resnet14", "seconds": 900.0, "n_parameters": 78_000},
    )
    assert costs.epoch_seconds(RESNET8, trials) == 20


@pytest.mark.parametrize(
    ("parameters", "expected"), [((170_000, 11_000_000), 40.0), ((60_000, 5_000), 40.0 * 77_754 / 60_000)]
)
def test_without_one_it_is_that_of_the_nearest_in_parameters_and_never_less(
    parameters: tuple[int, int], expected: float
) -> None:
    near, far = parameters
    trials = frame(
        {"architecture": "resnet14", "seconds": 400.0, "n_parameters": near},
        {"architecture": "resnet18", "seconds": 900.0, "n_parameters": far},
    )
    assert costs.epoch_seconds(RESNET8, trials) == pytest.approx(expected, rel=0.02)


def test_trials_without_times_tell_nothing_and_those_without_parameters_their_median() -> None:
    assert costs.epoch_seconds(RESNET8, frame({"seconds": float("nan"), "n_parameters": 5})) is None
    known = [{"architecture": "resnet14", "seconds": s, "n_parameters": None} for s in (100.0, 200.0, 600.0)]
    assert costs.epoch_seconds(RESNET8, frame(*known)) == 20

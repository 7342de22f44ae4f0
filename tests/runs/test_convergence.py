"""What is said of a search that had nothing left to gain."""

from pathlib import Path

import pandas as pd
import pytest

from tuning.runs import convergence
from tuning.runs.run_folder import Run


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({}, ""),
        ({"converged": None}, ""),
        (
            {"converged": 3, "stopped_by": "converged"},
            "Nothing left to gain after 3 trials: a trial has the best value",
        ),
        # The perfect trial ended later: it was not why.
        ({"converged": 2}, "Nothing left to gain after 2 trials: the sampler expects far less"),
    ],
)
def test_the_reason_is_the_one_that_held_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, meta: dict[str, object], said: str
) -> None:
    hours = [10, 12, 11]
    trials = pd.DataFrame(
        {
            "trial": [0, 1, 2],
            "state": "complete",
            "same_as": pd.array([None] * 3, "Int64"),
            "ended": [pd.Timestamp(2026, 11, 23, hour, tz="UTC") for hour in hours],
            "valid_accuracy": [0.5, 1.0, 0.6],
        }
    )
    monkeypatch.setattr(Run, "meta", {"settings": {}, **meta})
    monkeypatch.setattr(Run, "trials", trials)
    text = convergence.text(Run(tmp_path))
    assert text.startswith(said) and bool(text) == bool(said)
    assert text.endswith("The search ended there.") == (meta.get("stopped_by") == "converged")

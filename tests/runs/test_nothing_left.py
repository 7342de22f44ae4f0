"""What is said of a search that had nothing left to gain."""

from pathlib import Path

import pytest

from tuning.base import files
from tuning.runs import convergence, schema
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
def test_the_reason_is_the_one_that_held_then(tmp_path: Path, meta: dict[str, object], said: str) -> None:
    files.write_json(tmp_path / "meta.json", {"settings": {}, **meta})
    rows = [
        {"trial": number, "state": "complete", "ended": f"2026-11-23T{hour}:00:00+00:00", "valid_accuracy": accuracy}
        for number, (hour, accuracy) in enumerate([(10, 0.5), (12, 1.0), (11, 0.6)])
    ]
    rows.insert(1, rows[0] | {"trial": 3, "stopped_by": f"{schema.REPEAT} 0"})  # Which counts for no trial.
    files.write_rows(tmp_path / "trials.csv", schema.TRIAL_COLUMNS, rows)
    text = convergence.text(Run(tmp_path))
    assert text.startswith(said) and bool(text) == bool(said)
    assert text.endswith("The search ended there.") == (meta.get("stopped_by") == "converged")

"""What a run keeps of the runs that it begins with, and what is said of their worth."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_run

from tuning.base import files
from tuning.base.errors import UserError
from tuning.runs import beginnings
from tuning.runs.beginnings import FILE, EarlierRun, EarlierTrial
from tuning.runs.run_folder import Run


def earlier_trial(number: int, score: float | None) -> EarlierTrial:
    curve = {} if score is None else {1: score / 2, 2: score}
    return EarlierTrial(number, "PRUNED", {"x": 0.5, "flip": True}, {"x": "{}"}, curve, score, {"epochs": 4}, {})


EARLIER = EarlierRun(
    name="one",
    identity="abc",
    dataset="fashion-mnist",
    valid_hash="fa0c",
    epochs=4,
    metric="accuracy",
    trials=tuple(earlier_trial(i, score) for i, score in enumerate([0.1, None, 0.2, 0.99])),
)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run of nine trials, which takes two seconds."""
    return write_run(tmp_path_factory.mktemp("searched") / "run", 9).path


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Run:
    """A run of nine trials that began with another one."""
    run = Run(Path(shutil.copytree(searched, tmp_path / "two")))
    files.write_json(run.path / "meta.json", run.meta | {"begun_with": [{"name": "one"}], "valid_hash": "fa0c"})
    beginnings.write(run.path, [EARLIER])
    return run


def test_what_is_written_is_read_whatever_has_become_of_the_earlier_run(run: Run) -> None:
    diverged = replace(EARLIER.trials[0], curve={1: float("nan")}, params={"x": None, "n": 3})
    beginnings.write(run.path, [EARLIER, replace(EARLIER, name="other", trials=(diverged,), valid_hash=None)])
    first, second = beginnings.read(run.path)
    assert first == EARLIER
    assert second.trials[0].params == {"x": None, "n": 3} and str(second.trials[0].curve) == "{1: nan}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"must be a readable JSON file, but got: .*No such file.*"),
        ("{", r"must be a readable JSON file, but got: .*"),
        ("{}", r"runs: input should be a valid tuple"),
        ('{"runs": [{"name": "one"}]}', r"0\.identity: field required"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_with_what_to_do(run: Run, content: str | None, problem: str) -> None:
    (run.path / FILE).unlink()
    if content is not None:
        (run.path / FILE).write_text(content)
    said = (
        rf"earlier\.json, which holds what run two took from earlier runs, is missing or damaged \(.*{problem}\)\. Put"
    )
    with pytest.raises(UserError, match=said):
        beginnings.read(run.path)
    assert beginnings.text(run).startswith("What beginning with earlier runs was worth is not known: ")


def values(run: Run, **changes: Any) -> str:
    beginnings.write(run.path, [replace(EARLIER, **changes)])
    return beginnings.text(run)


def test_the_best_of_the_first_trials_is_set_against_all_and_against_the_earlier_run(run: Run) -> None:
    trials = run.trials
    first, best = trials["valid_accuracy"].head(5).max(), trials["valid_accuracy"].max()
    assert beginnings.worth(run) == (
        f"Began with one (4 trials on fashion-mnist). The best of its first 5 trials has {first:.2%}, the best of all "
        f"9 has {best:.2%}. one needed 4 trials to be as good."
    )
    assert "one was never as good." in values(run, trials=EARLIER.trials[:3])
    failed = (replace(EARLIER.trials[0], state="FAIL", score=1.0), *EARLIER.trials[1:3])
    assert "one was never as good." in values(run, trials=failed)
    assert values(run, valid_hash="beef").endswith("one needed 4 trials to be as good, on other valid images.")


@pytest.mark.parametrize(
    "changes", [{"dataset": "kmnist"}, {"epochs": 8}, {"metric": "macro_f1"}, {"train_images": 9}], ids=repr
)
def test_runs_whose_values_cannot_be_compared_are_not(run: Run, changes: dict[str, Any]) -> None:
    said = values(run, **changes)
    assert "as good" not in said and "The best of its first 5 trials has" in said


def test_a_run_that_began_with_none_says_nothing_and_one_without_results_little(tmp_path: Path, searched: Path) -> None:
    assert beginnings.text(Run(searched)) == ""
    few = write_run(tmp_path / "few", 1)
    meta = few.meta | {"begun_with": [{"name": "one"}]}
    files.write_json(few.path / "meta.json", meta)
    beginnings.write(few.path, [EARLIER])
    assert " The best of its first 1 trial has " in beginnings.text(few) and "best of all" not in beginnings.text(few)
    for name in ("trials.csv", "epochs.csv"):
        lines = (few.path / name).read_text().splitlines(keepends=True)
        (few.path / name).write_text(lines[0])
    (few.path / "study.db").unlink()  # It has the trial.
    assert beginnings.text(few) == "Began with one (4 trials on fashion-mnist)."


def test_of_a_loss_less_is_better(run: Run) -> None:
    meta = json.loads((run.path / "meta.json").read_text())
    files.write_json(run.path / "meta.json", meta | {"settings": meta["settings"] | {"metric": "log_loss"}})
    low = run.trials["valid_score"].head(5).min()
    scores = [2.0, None, 1.5, low]
    trials = tuple(earlier_trial(i, score) for i, score in enumerate(scores))
    said = values(run, metric="log_loss", trials=trials)
    assert f"first 5 trials has {low:.4f}" in said and said.endswith("one needed 4 trials to be as good.")

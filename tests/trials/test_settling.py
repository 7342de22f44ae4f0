"""What of `--start-from` is refused before anything is imported that trains, and what of it is recorded."""

import contextlib
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import write_run

from tuning import search
from tuning.base import doors
from tuning.base.errors import UserError
from tuning.runs import beginnings, run_folder
from tuning.runs.run_folder import Run
from tuning.sampling.spaces import load_space
from tuning.trials import record, settling
from tuning.trials.settings import Settings, as_options, check_resumed


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run of six trials."""
    return write_run(tmp_path_factory.mktemp("searched") / "one", 6, seed=5).path


@pytest.fixture
def results(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of runs, which has one; it is below the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(searched, tmp_path / "results" / "one")
    return tmp_path / "results"


def settled(start_from: Any, **options: Any) -> settling.Settled:
    asked = doors.asked(search.run, {"space": "smoke", "start_from": start_from, **options})
    with contextlib.ExitStack() as stack:
        return settling.settle(asked, stack, dry_run=True)


def test_the_record_says_which_runs_a_search_begins_with(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "one", results / "two")
    meta = json.loads((results / "two" / "meta.json").read_text()) | {"schema": 1, "id": "beef", "started": "2027"}
    (results / "two" / "meta.json").write_text(json.dumps(meta))
    shutil.copytree(results / "one", tmp_path / "elsewhere")
    cases: list[tuple[Any, list[str], list[str]]] = [
        ("one", ["one"], ["one"]),
        ("latest", ["two"], ["two"]),
        ("one, two", ["one", "two"], ["one", "two"]),
        (["one", Run(results / "two")], ["one", "two"], ["one", "two"]),
        (Run(results / "one"), ["one"], ["one"]),
        (tmp_path / "elsewhere", [str(tmp_path / "elsewhere")], ["elsewhere"]),
    ]
    for given, names, taken in cases:
        found = settled(given)
        assert (found.settings.start_from, [run.name for run in found.earlier]) == (names, taken)
        assert [note for note in found.notes if note.startswith("Begins with ")] == [
            f"Begins with {name} (6 trials on fashion-mnist): 2 of 2 hyperparameters in common." for name in taken
        ]
    assert settled(None).settings.start_from is None and settled(None).earlier == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "on",
            "names a run that cannot be read. Run below results/ must be one of latest, one, but got 'on'. Did you ",
        ),
        ("", "must be names of runs with commas between them, but got ''."),
        ("one,,two", "must be names of runs with commas between them, but got 'one,,two'."),
        ([3], "must be names of runs with commas between them, but got 3."),
    ],
)
def test_a_run_that_there_is_not_is_refused(results: Path, given: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^--start-from {re.escape(said)}"):
        settled(given)


def test_without_any_run_the_next_step_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"^--start-from names a run that cannot be read\. There is no run folder below"
    ):
        settled("latest")


def test_what_cannot_be_begun_with_is_refused(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--start-from must name runs whose metric goes the same way as log_loss"):
        settled("one", metric="log_loss")
    (tmp_path / "own.py").write_text("def space(trial):\n    return {'width': 2 * trial.suggest_int('half', 2, 4)}\n")
    with pytest.raises(UserError, match=r"^--start-from must name runs that share a hyperparameter with the space own"):
        settled("one", space="own.py")


def test_a_resumed_run_keeps_what_it_began_with() -> None:
    one: Any = SimpleNamespace(name="one")
    said = r"^--resume must keep the settings of run one, but got --start-from\. Leave that out"
    with pytest.raises(UserError, match=said):
        check_resumed(("start_from",), one, None)


def test_a_file_of_options_may_have_a_list_of_runs() -> None:
    assert as_options({"start_from": ["one", "two"]}) == {"start_from": "one,two"}
    assert as_options({"start-from": "one"}) == {"start-from": "one"}
    assert as_options({"start_from": None}) == {"start_from": None}


def test_a_run_keeps_what_it_begins_with_and_a_killed_beginning_is_taken_over(results: Path) -> None:
    found = settled("one")
    path = results / "new"
    record.begin(path, found.settings, load_space("smoke"), "search.run()", found.earlier)
    assert beginnings.read(path) == found.earlier
    meta = Run(path).meta
    assert meta["begun_with"] == [{"name": "one", "id": Run(results / "one").identity, "dataset": "fashion-mnist"}]
    assert meta["settings"]["start_from"] == ["one"]
    assert Settings(**json.loads(json.dumps(asdict(found.settings)))) == found.settings
    (path / "meta.json").unlink()
    assert record.new_path("new", "any") == Path("results/new")
    cold = replace(found.settings, start_from=None)
    record.begin(results / "cold", cold, load_space("smoke"), "search.run()")
    assert "begun_with" not in Run(results / "cold").meta and not (results / "cold" / beginnings.FILE).exists()
    assert run_folder.run_names(results) == ["cold", "one"]

"""Which configurations of a run are retrained, and on which seeds."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from test_folds import write_images

from tuning.base import files
from tuning.base.config import TrainConfig, read_config
from tuning.base.errors import UserError
from tuning.base.registries import SAMPLERS
from tuning.retraining import candidates, regularising
from tuning.runs import run_folder, schema
from tuning.sampling.origins import drawn_at_random
from tuning.sampling.spaces import Space, load_space
from tuning.sampling.study import RunStudy

SPACE = replace(load_space("smoke"), first=[{"learning_rate": 0.1, "momentum": 0.9}])
SETTINGS = {"dataset": "fashion-mnist", "seed": 7, "train_images": None, "sampler": "tpe"}


def epoch(number: int, accuracy: float, finished: str = "") -> dict[str, Any]:
    row = {"epoch": number, "train_loss": 1.0, "train_accuracy": 0.5, "valid_loss": 1 - accuracy, "lr": 0.1}
    row |= {"valid_accuracy": accuracy, "epoch_seconds": 2.0, "images_per_second": 100.0, "seconds_per_image": 1e-4}
    return row | {"n_parameters": 5142, "device": "cpu", "precision": "fp32", "finished": finished}


def make_run(path: Path, accuracies: list[float], pruned: tuple[int, ...] = (), space: Space = SPACE) -> Path:
    """Returns a run's folder: trial i has the i-th accuracy; trial 0 is the space's first point."""
    path.mkdir(parents=True)
    study = RunStudy(path, space, optuna.samplers.RandomSampler(seed=0), epochs=2, seed=7)
    for number, accuracy in enumerate(accuracies):
        proposal = study.ask()
        assert proposal is not None and proposal.number == number
        study.report(number, epoch(1, accuracy, "" if number in pruned else "length"))
        study.finish(number, "scheduler")
    files.write_json(path / "meta.json", {"settings": SETTINGS, "dataset": "fashion-mnist"})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten trials; the best is 9, and 8 would be if it had not been stopped; the best of the first random ones is 3."""
    return make_run(tmp_path / "run", [0.75, 0.5, 0.5, 0.7, 0.5, 0.5, 0.5, 0.5, 0.9, 0.8], pruned=(8,))


def plan(run: Path, top_k: int = 3, n_seeds: int = 3, **values: Any) -> candidates.Plan:
    return candidates.from_run(str(run), top_k=top_k, n_seeds=n_seeds, **values)


def test_complete_trials_come_first_then_the_default_and_the_best_random_point(run: Path) -> None:
    found = plan(run, top_k=2)
    assert [(e.role, e.trial, e.rank) for e in found.entries] == [
        *(("candidate", 9, 1), ("candidate", 0, 2), ("default", None, None), ("random", 3, 3))
    ]
    assert [e.name for e in found.entries] == ["trial 9", "trial 0", "default", "trial 3"]
    assert found.entries[0].search_accuracy == 0.8
    assert found.default == found.entries[2].config.hash() and found.random == found.entries[3].config.hash()
    assert plan(run, top_k=20).entries[9].trial == 8


def learned(run: Path, *trials: int) -> None:
    """Lets trials have labelled their train images better than the valid ones."""
    epochs = run_folder.Run(run).epochs
    epochs.loc[epochs["trial"].isin(trials), "train_accuracy"] = 0.95
    epochs.to_csv(run / "epochs.csv", index=False)


def test_what_has_learned_its_images_gets_more_regularisation_beside_the_best_as_it_was(run: Path) -> None:
    learned(run, 9, 0, 3)
    before = plan(run, top_k=2, compare=False).entries
    found = plan(run, top_k=2)
    assert [(e.role, e.trial, e.name) for e in found.entries] == [
        *(("candidate", 9, "trial 9, regularised"), ("candidate", 0, "trial 0, regularised")),
        *(("unchanged", 9, "trial 9"), ("default", None, "default"), ("random", 3, "trial 3")),
    ]
    least = {"label_smoothing": 0.1, "crop_padding": 1, "erase": 0.3}
    for entry, as_it_was in zip(found.entries[:2], before, strict=True):
        assert entry.config == as_it_was.config.model_copy(update=least)
        assert entry.regularised == least and entry.search_accuracy == as_it_was.search_accuracy
    assert found.entries[2].config == before[0].config and found.unchanged == before[0].config.hash()
    assert all(found.may_win(e) for e in found.entries if e.role != "default")
    assert found.notes[0] == (
        "More regularisation for the longer training of trial 9 (label smoothing 0.1, crop padding 1, erase 0.3), "
        "trial 0 (label smoothing 0.1, crop padding 1, erase 0.3): they label their train images better than the valid "
        "ones already."
    )


@pytest.mark.parametrize(("n_valid", "found"), [(None, {1, 2}), (5000, {1, 2}), (300, {2})])
def test_what_noise_explains_is_not_learned(run: Path, n_valid: int | None, found: set[int]) -> None:
    epochs = run_folder.Run(run).epochs.iloc[:3].assign(trial=range(3))
    epochs[["train_accuracy", "valid_accuracy"]] = [(0.355, 0.35), (0.40, 0.35), (0.99, 0.95)]
    meta = {"valid_images": n_valid} if n_valid else {}
    files.write_json(run / "meta.json", {"settings": SETTINGS, "dataset": "fashion-mnist"} | meta)
    assert regularising.learned(epochs, run_folder.Run(run).n_valid) == found


def test_missing_epochs_cost_the_regularisation_only(run: Path) -> None:
    learned(run, 9)
    (run / "epochs.csv").unlink()
    found = plan(run, top_k=1)
    assert [e.name for e in found.entries] == ["trial 9", "default", "trial 3"]
    assert found.notes[0].startswith("No candidate gets more regularisation: ") and "epochs.csv" in found.notes[0]


def test_the_best_is_there_once_where_only_another_one_gets_more_regularisation(run: Path) -> None:
    learned(run, 0)
    found = plan(run, top_k=2)
    assert [e.name for e in found.entries] == ["trial 9", "trial 0, regularised", "default", "trial 3"]
    assert found.unchanged is None


def test_the_best_random_point_stays_as_it_was_and_is_trained_once(run: Path) -> None:
    learned(run, 3)
    trials = run_folder.Run(run).trials
    trials.loc[trials["trial"] == 3, ["valid_accuracy", "valid_score"]] = 0.9
    trials.to_csv(run / "trials.csv", index=False)
    found = plan(run, top_k=1)
    assert [(e.role, e.name) for e in found.entries] == [
        *(("candidate", "trial 3, regularised"), ("unchanged", "trial 3"), ("default", "default"))
    ]
    assert found.random == found.entries[1].config.hash() and found.unchanged is None


@pytest.mark.parametrize("values", [{"epochs": 2}, {"compare": False}, {"top_k": 1, "n_seeds": 1, "compare": None}])
def test_as_long_as_in_the_search_or_compared_with_nothing_all_is_as_it_was(run: Path, values: dict[str, Any]) -> None:
    learned(run, *range(10))
    found = plan(run, **values)
    assert not any(entry.regularised for entry in found.entries) and found.notes == ()


def test_where_a_configuration_has_all_that_is_given_it_is_as_it_was() -> None:
    config = TrainConfig(label_smoothing=0.2, crop_padding=2, erase=0.4)
    assert regularising.changes(config) == {} and regularising.regularised(config) == config
    assert regularising.changes(TrainConfig(crop_scale=0.6, erase=0.1)) == {"label_smoothing": 0.1, "erase": 0.3}
    assert regularising.changes(TrainConfig(train="head")) == {}


def test_for_images_of_ones_own_the_default_is_the_first_point_of_the_space(run: Path, tmp_path: Path) -> None:
    images = str(write_images(tmp_path / "photos").dataset)
    files.write_json(run / "meta.json", {"settings": SETTINGS | {"dataset": images, "reading": {}}, "dataset": images})
    found = plan(run, top_k=1)
    assert [(e.role, e.trial, e.rank) for e in found.entries] == [
        *(("candidate", 9, 1), ("default", 0, 2), ("random", 3, 3))
    ]
    assert found.default_trial == 0 and found.default == found.entries[1].config.hash()
    assert found.entries[1].config.epochs == 4 and found.entries[1].config.learning_rate == 0.1
    assert plan(run, top_k=2).default == plan(run, top_k=2).entries[1].config.hash()
    shutil.rmtree(run)
    make_run(run, [0.5, 0.6, 0.7], space=replace(SPACE, first=[]))
    files.write_json(run / "meta.json", {"settings": SETTINGS | {"dataset": images, "reading": {}}, "dataset": images})
    original = plan(run, top_k=1)
    assert original.default_trial is None and original.entries[1].config.architecture == "resnet8"


def test_the_best_of_a_size_are_taken(run: Path) -> None:
    trials = run_folder.Run(run).trials
    trials["n_parameters"] = [5000 if number == 3 else 9000 for number in trials["trial"]]
    trials.to_csv(run / "trials.csv", index=False)
    assert [entry.trial for entry in plan(run, max_parameters=5000).entries if entry.role == "candidate"] == [3]
    with pytest.raises(
        UserError, match=r"--max-parameters must be at least 5000, the fewest of a finished trial in .*, but got 10"
    ):
        plan(run, max_parameters=10)


def test_all_train_twice_as_long_as_the_search_or_as_is_said(run: Path) -> None:
    assert {e.config.epochs for e in plan(run).entries} == {4}
    assert plan(run).lengthening == 2
    found = plan(run, epochs=2)
    assert {e.config.epochs for e in found.entries} == {2} and found.lengthening == 1
    original = read_config(candidates.DEFAULT).model_dump() | {"epochs": 2}
    assert next(e for e in found.entries if e.role == "default").config.model_dump() == original


def test_a_shorter_length_is_in_whole_epochs_and_not_below_the_searchs(run: Path) -> None:
    trials = run_folder.Run(run).trials.assign(**{"config/epochs": 5})
    trials.to_csv(run / "trials.csv", index=False)
    for lengthening, epochs in ((1.9, 9), (1.8, 9), (1.2, 6), (1.0, 5)):
        found = plan(run, lengthening=lengthening)
        assert {entry.config.epochs for entry in found.entries} == {epochs} and found.notes == ()


def test_what_an_epoch_takes_is_known_of_the_default_too(run: Path) -> None:
    trials = run_folder.Run(run).trials.assign(seconds=3.0, epochs=2, n_parameters=100_000_000)
    trials.to_csv(run / "trials.csv", index=False)
    assert {entry.epoch_seconds for entry in plan(run, top_k=2).entries} == {1.5}


def test_a_random_point_that_is_a_candidate_is_trained_once(run: Path) -> None:
    found = plan(run, top_k=3)
    assert [(e.role, e.trial) for e in found.entries] == [
        *(("candidate", 9), ("candidate", 0), ("candidate", 3), ("default", None))
    ]
    assert found.random == found.entries[2].config.hash()


def test_without_comparisons_there_are_candidates_only(run: Path) -> None:
    found = plan(run, top_k=1, compare=False)
    assert [e.trial for e in found.entries] == [9]
    assert (found.default, found.random) == (None, None)


def test_equal_configurations_count_once(run: Path) -> None:
    frame = run_folder.Run(run).trials
    config = [name for name in frame if name.startswith("config/")]
    frame.loc[0, config] = frame.loc[9, config]
    rows = [schema.plain({str(k): v for k, v in row.items()}) for row in frame.to_dict("records")]
    files.write_rows(run / "trials.csv", schema.TRIAL_COLUMNS, rows)
    assert [e.trial for e in plan(run, top_k=2, compare=False).entries] == [9, 3]


def test_no_seed_of_the_search_is_used_again(run: Path) -> None:
    used = set(run_folder.Run(run).trials["seed"])
    found = plan(run, n_seeds=50)
    assert len(set(found.seeds)) == 50 and not set(found.seeds) & used
    assert found.seeds[:3] == plan(run).seeds
    assert plan(run, seed=5).seeds == (5, 6, 7)
    taken = min(used)
    with pytest.raises(UserError, match=rf"--seed must give seeds that no trial of the search had, but got {taken}"):
        plan(run, seed=taken - 1)


def test_a_file_is_a_candidate_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"width": 4, "epochs": 9}')
    found = candidates.from_file(tmp_path / "c.json", tmp_path / "model", "patterns", n_seeds=2)
    assert [e.config.epochs for e in found.entries] == [9] and len(found.seeds) == 2
    assert (found.run, found.lengthening, found.folder) == (None, None, tmp_path / "model" / "final")


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [(name, {1, 2, 3, 4, 5} if known.random else {1, 2, 3}) for name, known in SAMPLERS.items()],
)
def test_what_was_drawn_at_random(tmp_path: Path, sampler: str, expected: set[int]) -> None:
    run = make_run(tmp_path / "run", [0.5] * 6)
    assert drawn_at_random(run, sampler, 4) == expected
    (run / "study.db").unlink()
    assert drawn_at_random(run, sampler, 4) == set()


def test_a_configuration_keeps_the_parts_that_its_batches_were_cut_into(run: Path) -> None:
    trials = run_folder.Run(run).trials
    trials["accumulation"] = [4 if number == 9 else 1 for number in trials["trial"]]
    trials.to_csv(run / "trials.csv", index=False)
    entries = plan(run, top_k=2).entries
    assert [entry.job(1, run).accumulation for entry in entries] == [4, 1, 1, 1]


def test_twice_the_length_is_at_most_what_a_configuration_may_have_and_that_is_said(run: Path) -> None:
    trials = run_folder.Run(run).trials
    trials["config/epochs"] = 600
    trials.to_csv(run / "trials.csv", index=False)
    found = plan(run)
    assert {entry.config.epochs for entry in found.entries} == {1000}
    assert found.notes == ("The length is 1000 epochs, the most there are, and not twice the search's.",)
    for entry in found.entries:
        assert TrainConfig.model_validate(entry.config.model_dump()) == entry.config
    assert plan(run, epochs=700).notes == ()


@pytest.mark.parametrize("epochs", [0, 5000])
def test_a_length_that_no_configuration_may_have_is_refused(run: Path, tmp_path: Path, epochs: int) -> None:
    with pytest.raises(UserError, match=rf"--epochs must be 1 to 1000, but got {epochs}\."):
        plan(run, epochs=epochs)
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match=rf"--epochs must be 1 to 1000, but got {epochs}\."):
        candidates.from_file(tmp_path / "c.json", tmp_path, "patterns", n_seeds=1, epochs=epochs)


def test_a_renamed_run_has_the_same_seeds(run: Path) -> None:
    before = plan(run)
    found = plan(run.rename(run.parent / "renamed"))
    assert (found.seeds, found.identity) == (before.seeds, before.identity) == (found.seeds, "run")
    assert found.run == "renamed" and found.folder == run.parent / "renamed" / "final"


@pytest.mark.parametrize("content", [b"", b"no database", b"\0" * 4096, "cut"])
def test_a_damaged_study_costs_the_random_point_only(run: Path, content: Any) -> None:
    study = run / "study.db"
    with closing(sqlite3.connect(study)) as database:  # What SQLite keeps beside the file is then in it.
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for path in run.glob("study.db-*"):
        path.unlink()
    study.write_bytes(study.read_bytes()[:9000] if content == "cut" else content)
    files.write_json(run / "meta.json", {"settings": SETTINGS, "dataset": "fashion-mnist", "schema": 2, "id": "4f1c"})
    found = plan(run)
    assert [entry.role for entry in found.entries] == ["candidate"] * 3 + ["default"]
    assert found.random is None and found.identity == "4f1c"
    if content:
        [note] = found.notes
        assert note.startswith(f"The best random point is left out of the comparison: {study} is damaged")


@pytest.mark.parametrize("name", ["dataset", "seed", "sampler"])
def test_a_meta_json_of_another_version_is_named(run: Path, name: str) -> None:
    settings = {key: value for key, value in SETTINGS.items() if key != name}
    files.write_json(run / "meta.json", {"settings": settings, "dataset": "fashion-mnist"})
    if name == "sampler":
        [note] = plan(run).notes
        assert "has no setting 'sampler'" in note
        return
    with pytest.raises(UserError, match=rf"run/meta\.json has no setting '{name}': it is damaged, or another version"):
        plan(run)


def test_a_meta_json_without_settings_is_named(run: Path) -> None:
    files.write_json(run / "meta.json", {"settings": 7})
    with pytest.raises(UserError, match=r"run/meta\.json has no settings: it is damaged, or another version wrote it"):
        plan(run)


def test_a_sampler_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sampler must be one of .*, but got 'rando'\. Did you mean 'random'\?"):
        drawn_at_random(make_run(tmp_path / "run", [0.5]), "rando", 4)

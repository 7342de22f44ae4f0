"""A run that is resumed: by one process at a time, under another name, where more or less is possible than before."""

import contextlib
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pytest
from conftest import write_run
from studies import ask, epoch, told, train

from tuning import final, search
from tuning.base import doors, files, locks, machine
from tuning.base.errors import UserError
from tuning.base.registries import SAMPLERS
from tuning.images import datasets
from tuning.remote import leases, storage, stored_runs
from tuning.retraining import candidates
from tuning.runs import run_folder, summaries
from tuning.sampling import samplers
from tuning.sampling.spaces import Space, check_space, load_space
from tuning.sampling.study import RunStudy
from tuning.training import checkpoints
from tuning.trials import record, session, settling
from tuning.trials import settings as search_settings
from tuning.trials.settings import Settings

SETTINGS = Settings(
    samples=6, space="smoke", dataset="fashion-mnist", epochs=4, seed=0, sampler="random", scheduler="none",
    device="cpu", concurrency=2, cpus_per_trial=1.0, gpus_per_trial=0.0, train_images=None, data_dir=None,
    max_failures=0, time_budget=None,
)  # fmt: skip
NETWORKS = {"cpu": {"resnet8-16", "resnet14-16", "resnet20-16", "resnet18"}}
NETWORKS["gpu"] = {"resnet8-64", "resnet14-64", "resnet20-32", "resnet20-64"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder with a run `first` of three trials, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "results" / "first", 3)
    files.write_json(run.path / "meta.json", run.meta | {"settings": asdict(SETTINGS), "schema": 1, "id": "4f1c"})
    return tmp_path


def resume(**arguments: Any) -> None:
    search.main(**arguments)


@pytest.mark.parametrize("name", ["first", "results/first", "latest"])
def test_a_run_that_another_process_searches_is_refused(here: Path, name: str) -> None:
    before = {path.name: path.read_bytes() for path in (here / "results" / "first").iterdir() if path.is_file()}
    with (
        locks.hold(here / "results" / "first", "search"),
        pytest.raises(UserError, match=r"results/first is in use: process \d+ on .* works on it\. Wait until that has"),
    ):
        resume(resume=name, samples=9)
    after = {path.name: path.read_bytes() for path in (here / "results" / "first").iterdir() if path.is_file()}
    assert {name: after[name] for name in before} == before


def test_two_searches_that_begin_at_once_get_two_names(here: Path) -> None:
    with record.claimed(None, "d", None) as one, record.claimed(None, "d", None) as two:
        assert one != two and one.is_dir() and two.is_dir()
    assert not one.exists() and not two.exists()  # Nothing came of them.


def test_of_two_searches_that_want_one_name_the_second_is_refused(here: Path) -> None:
    with (
        record.claimed("mine", "d", None),
        pytest.raises(UserError, match=r"results/mine is in use: process \d+ on .* works on it\. Wait"),
        record.claimed("mine", "d", None),
    ):
        pass


def test_the_folder_of_a_search_that_was_killed_before_its_record_is_taken_over(here: Path) -> None:
    for name, file in (("mine", ".search.lock"), ("yours", "notes.txt")):
        (here / "results" / name).mkdir(parents=True)
        (here / "results" / name / file).write_text("")
    with record.claimed("mine", "d", None) as path:
        assert path.name == "mine"
    with (
        pytest.raises(UserError, match=r"--run must be a new name, but got 'yours', and results/yours exists"),
        record.claimed("yours", "d", None),
    ):
        pass
    assert (here / "results" / "yours" / "notes.txt").exists()


def test_two_machines_with_one_storage_get_two_names(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, other = tmp_path_factory.mktemp("stored"), tmp_path_factory.mktemp("other")
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    with record.claimed(None, "d", str(stored)) as one:
        monkeypatch.chdir(other)
        with record.claimed(None, "d", str(stored)) as two:
            assert one.name != two.name
            assert {path.name for path in stored.iterdir()} == {one.name, two.name}
        with pytest.raises(UserError, match=rf"{stored / one.name} is in use: process \d+ on .* works on it"):  # noqa: SIM117
            with record.claimed(one.name, "d", str(stored)):
                pass
        assert not (other / "results" / one.name).exists()
    assert not list(stored.iterdir())  # Nothing came of them.


def test_a_name_whose_claim_nobody_renews_is_free_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "stored" / "mine").mkdir(parents=True)
    (here / "stored" / "mine" / ".claim").write_text('{"pid": 3, "host": "other", "what": "search"}')
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.2)
    with record.claimed("mine", "d", str(here / "stored")) as path:
        assert path.name == "mine" and '"host": "other"' not in (here / "stored" / "mine" / ".claim").read_text()
    assert not list((here / "stored").iterdir())


def test_a_run_that_was_begun_and_ended_elsewhere_while_its_claim_was_waited_for_is_left_alone(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "stored" / "mine").mkdir(parents=True)
    claim = here / "stored" / "mine" / ".claim"
    claim.write_text('{"pid": 3, "host": "other", "what": "search"}')

    def ended(seconds: float) -> None:
        if "other" in claim.read_text():
            claim.unlink()
            (claim.parent / "meta.json").write_text("{}")

    monkeypatch.setattr(leases.time, "sleep", ended)
    said = "--run must be a new name, but got 'mine', and the storage has it. Choose another."
    with pytest.raises(UserError, match=re.escape(said)), record.claimed("mine", "d", str(here / "stored")):
        pass
    assert not (here / "results" / "mine").exists()
    assert [file.name for file in claim.parent.iterdir()] == ["meta.json"]


def test_a_search_that_was_killed_before_its_record_is_taken_over_where_the_storage_is_the_folder_of_runs(
    here: Path,
) -> None:
    results = str(here / "results")
    with record.claimed("mine", "d", results) as path:
        assert [file.name for file in path.iterdir()] == [".search.lock"]  # It is its own claim.
    (here / "results" / "mine").mkdir()
    (here / "results" / "mine" / ".claim").write_text('{"pid": 3, "host": "other", "what": "search"}')
    with record.claimed("mine", "d", results) as path:
        assert path.name == "mine"


def test_a_claim_makes_no_folder_where_the_storage_is_not_mounted(here: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--storage must be a place that can be read and written, but got"):  # noqa: SIM117
        with record.claimed(None, "d", str(tmp_path / "away")):
            pass
    assert not (tmp_path / "away").exists()


def test_a_run_that_lies_elsewhere_is_named_by_its_path(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from tuning.base import files

    run = here / "results" / "first"
    assert files.called(Path("results/first")) == files.called(run) == "first"
    away = tmp_path_factory.mktemp("a way") / "first"
    away.mkdir()
    assert files.called(away) == str(away)  # Another run has its name here.
    assert files.quoted(away) == f"'{away}'"
    assert search._resume(away) == f"Resume it with: python -m tuning.search --resume '{away}'"
    assert search._resume_in_python(away) == f"Resume it with: search.run(resume='{away}')"
    (here / "results" / "again").symlink_to(run)
    assert files.called(here / "results" / "again") == "again"
    renamed = run_folder.Run(run.rename(here / "results" / "my first"))
    assert files.called(renamed.path) == "my first"
    assert summaries.next_step(renamed) == "python -m tuning.final --run 'my first'"
    assert search._resume_in_python(renamed.path) == "Resume it with: search.run(resume='my first')"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"samples": None},
            r"first/meta\.json is damaged, or of another version \(schema 1\): settings\.samples: input",
        ),
        ({"epochs": "many"}, r"settings\.epochs: input should be a valid integer"),
        (
            {"sampler": ...},
            r"settings\.sampler: field required\. Put back a copy of it; the frames can be read without",
        ),
    ],
)
def test_settings_that_are_damaged_or_of_another_version_are_a_sentence(
    here: Path, changed: dict[str, Any], message: str
) -> None:
    run = run_folder.Run(here / "results" / "first")
    values = {name: value for name, value in (run.settings | changed).items() if value is not ...}
    files.write_json(run.path / "meta.json", run.meta | {"settings": values})
    with pytest.raises(UserError, match=message):
        resume(resume="first")


def test_settings_that_only_another_version_knows_are_passed_over(here: Path) -> None:
    run = run_folder.Run(here / "results" / "first")
    files.write_json(run.path / "meta.json", run.meta | {"settings": run.settings | {"colour": "blue"}})
    assert search_settings.of_run(run) == SETTINGS


def test_a_run_goes_on_with_what_the_machine_has_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_memory", list)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    had = {"cores": 16, "gpus": ["H100"]}
    for before in (
        replace(SETTINGS, device="cuda", gpus_per_trial=1.0, concurrency=1),
        replace(SETTINGS, device="cuda", gpus_per_trial=0.25, concurrency=4),
        replace(SETTINGS, concurrency=16),
        replace(SETTINGS, concurrency=16, address="10.0.0.1:6379", device="any", limit=16),
    ):
        now, said = search_settings.placed(before, "local", before.slots, had)
        assert (now.device, now.concurrency, now.gpus_per_trial, now.address) == ("cpu", 2, 0.0, None)
        assert said.startswith("The run is resumed with what this machine has: ")
    assert search_settings.placed(SETTINGS, "local", SETTINGS.slots, {"cores": 2, "gpus": []}) == (SETTINGS, "")


def test_other_images_than_the_run_was_begun_with_are_refused(here: Path) -> None:
    path = here / "results" / "first"
    files.write_json(path / "meta.json", run_folder.Run(path).meta | {"split_hash": "aaaa"})
    frames = [(path / name).read_bytes() for name in ("trials.csv", "epochs.csv")]
    splits: Any = SimpleNamespace(split_hash="bbbb", valid_hash="c")
    with pytest.raises(
        UserError, match=r"not those that .*first was begun with \(their hash is bbbb, not aaaa\).*--data-d"
    ):
        session.search(SETTINGS, path, splits, load_space("smoke"), SimpleNamespace(note=print), resumed=True)  # type: ignore[arg-type]
    assert [(path / name).read_bytes() for name in ("trials.csv", "epochs.csv")] == frames


def test_what_was_mended_is_said_though_the_run_is_not_resumed_then(here: Path) -> None:
    (here / "results" / "first" / "trials.csv").write_text("no frame\n")
    with pytest.raises(UserError, match=r"--resume must .* got --sampler.* It is kept as trials\.csv\.damaged"):
        resume(resume="first", sampler="tpe")


def test_a_search_that_fails_leaves_its_study_closed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = list[bool]()
    monkeypatch.setattr(session.Session, "run", lambda *given, **named: 1 / 0)
    monkeypatch.setattr(RunStudy, "abandon", lambda study: closed.append(True))
    path, splits = here / "results" / "first", SimpleNamespace(split_hash="x", valid_hash="y")
    with pytest.raises(ZeroDivisionError):
        session.search(SETTINGS, path, splits, load_space("smoke"), SimpleNamespace(note=print))  # type: ignore[arg-type]
    assert closed == [True]


def test_frames_that_are_damaged_are_kept_and_written_anew(here: Path) -> None:
    path, notes = here / "results" / "first", list[str]()
    whole = run_folder.Run(path).epochs
    header, *lines = (path / "epochs.csv").read_text().splitlines()
    (path / "epochs.csv").write_text("\n".join([header, lines[0] + lines[1], *lines[2:], ""]))
    (path / "trials.csv").write_text("no frame\n")
    run_folder.mend(run_folder.Run(path), notes.append)
    assert [note.partition(" is damaged")[0] for note in notes] == [f"{path}/trials.csv", f"{path}/epochs.csv"]
    assert "It is kept as trials.csv.damaged, and written anew from the study." in notes[0]
    study = RunStudy(path, load_space("smoke"), optuna.samplers.RandomSampler(seed=1), epochs=4, seed=0)
    study.close(None)
    assert len(run_folder.Run(path).trials) == 3 and (path / "trials.csv.damaged").read_text() == "no frame\n"
    assert set(zip(run_folder.Run(path).epochs["trial"], run_folder.Run(path).epochs["epoch"], strict=True)) == set(
        zip(whole["trial"], whole["epoch"], strict=True)
    )


# What is possible changes.


def spaces() -> dict[str, Space]:
    """Returns a space as a machine has it: with a GPU or without, with the pretrained weights or without.

    It is the default one, but ResNet-18 with the ImageNet stem needs no GPU; and it begins with a point that needs the
    weights.
    """
    space = load_space("resnet")
    few = {"network": [name for name in space.gpu_only["network"] if name != "resnet18"], "stem": ["small"]}
    space = replace(space, gpu_only=few)
    own = {"network": "resnet18", "pretrained": True, "stem": "imagenet"}
    point = {name: value for name, value in space.first[-1].items() if name != "network"} | own
    space = replace(space, first=[point, *space.first])
    on_cpu = space.without(space.gpu_only)
    return {"gpu": space, "cpu": on_cpu, "bare": on_cpu.without({"pretrained": [True]})}


def opened(path: Path, space: Space, sampler: str = "random", seed: int = 0) -> RunStudy:
    return RunStudy(path, space, samplers.make(sampler, seed, 3), epochs=3, seed=0)


def run_some(study: RunStudy, n: int) -> list[Any]:
    """Returns the configurations of so many trials, which do well where the network is wide."""
    configs = []
    for _ in range(n):
        proposal = ask(study)
        configs.append(proposal.config)
        accuracy = 0.5 + proposal.config.width / 300 + proposal.number / 1e4
        train(study, proposal, [accuracy - 0.1, accuracy - 0.01, accuracy], "length")
        study.finish(proposal.number, "scheduler")
    return configs


def networks(configs: list[Any]) -> set[str]:
    return {c.architecture if c.architecture == "resnet18" else f"{c.architecture}-{c.width}" for c in configs}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_not_possible_any_more_is_not_drawn(tmp_path: Path, sampler: str) -> None:
    first = opened(tmp_path, spaces()["gpu"])
    assert networks(run_some(first, 12)) & NETWORKS["gpu"]
    first.close(None)
    configs = run_some(opened(tmp_path, spaces()["bare"], sampler, seed=1), 8)
    assert not networks(configs) & NETWORKS["gpu"] and not any(config.pretrained for config in configs)
    assert {config.stem for config in configs} == {"imagenet"}


@pytest.mark.parametrize("sampler", ["random", "curves", "tpe"])
def test_what_has_become_possible_is_drawn(tmp_path: Path, sampler: str) -> None:
    first = opened(tmp_path, spaces()["bare"], sampler)
    assert not networks(run_some(first, 6)) & NETWORKS["gpu"]
    first.close(None)
    space = spaces()["gpu"]
    configs = run_some(opened(tmp_path, space, sampler, seed=1), 40)
    assert networks(configs) & NETWORKS["gpu"]
    # The point that had to be left out at first, as it needs the weights, comes now.
    assert configs[0].pretrained and configs[0].learning_rate == space.first[0]["learning_rate_muon"]


def test_a_run_of_020_takes_the_choices_that_it_has_on_record(tmp_path: Path) -> None:
    # It recorded only the choices that were possible; Optuna takes no others later.
    (tmp_path / "old.py").write_text(
        "def space(trial):\n"
        "    name, _, width = trial.suggest_categorical('network', ['resnet8-16', 'resnet14-16']).partition('-')\n"
        "    return {'architecture': name, 'width': int(width), 'batch_size': trial.suggest_int('b', 64, 256)}\n"
    )
    (tmp_path / "new.py").write_text(
        (tmp_path / "old.py").read_text().replace("-16']", "-16', 'resnet8-64']")
        + "\nGPU_ONLY = {'network': ['resnet8-64']}\n"
    )
    run_some(opened(tmp_path, load_space(str(tmp_path / "old.py"))), 3)
    new = load_space(str(tmp_path / "new.py"))
    for space in (new, new.without(new.gpu_only)):
        assert networks(run_some(opened(tmp_path, space, seed=1), 3)) <= {"resnet8-16", "resnet14-16"}


def test_a_first_point_that_a_run_of_020_cannot_record_is_left_out(tmp_path: Path) -> None:
    source = "def space(trial):\n    return {'width': trial.suggest_categorical('width', WIDTHS)}\n"
    (tmp_path / "old.py").write_text("WIDTHS = [8, 16]\n" + source)
    new = "WIDTHS = [8, 16, 64]\nGPU_ONLY = {'width': [64]}\nFIRST = [{'width': 64}, {'width': 16}]\n" + source
    (tmp_path / "new.py").write_text(new)
    study = opened(tmp_path, load_space(str(tmp_path / "old.py")))
    run_some(study, 1)
    study.study.enqueue_trial({"width": 64})  # What a version before this one began, and failed to draw.
    study.abandon()
    again = opened(tmp_path, load_space(str(tmp_path / "new.py")), seed=1)
    assert next(config.width for config in run_some(again, 1)) in (8, 16)


def test_a_trial_that_was_being_drawn_with_what_is_not_possible_any_more_is_given_up(tmp_path: Path) -> None:
    study = opened(tmp_path, spaces()["gpu"])
    study.study.enqueue_trial({"network": "resnet8-64"})
    study.study.ask().suggest_categorical(
        "network",
        load_space("resnet").define.__globals__["CPU_NETWORKS"]
        + list(load_space("resnet").define.__globals__["GPU_NETWORKS"]),
    )
    study.abandon()
    assert not networks(run_some(opened(tmp_path, spaces()["cpu"], seed=1), 3)) & NETWORKS["gpu"]


def test_a_space_of_which_this_machine_can_do_nothing_is_refused(tmp_path: Path) -> None:
    text = (
        "GPU_ONLY = {'width': [64]}\ndef space(trial):\n    return {'width': trial.suggest_categorical('width', [64])}"
    )
    (tmp_path / "wide.py").write_text(text)
    space = load_space(str(tmp_path / "wide.py"))
    with pytest.raises(UserError, match="Search space wide: This machine can do none of the choices of 'width'"):
        check_space(space.without(space.gpu_only), 2)


def interrupted(study: RunStudy) -> list[int]:
    """Returns the numbers of the trials that are resumed before a new one is drawn."""
    return [number for number in study.trials.running if study.trials[number].state == "interrupted"]


def test_an_interrupted_trial_waits_for_what_it_needs(tmp_path: Path) -> None:
    study = opened(tmp_path, spaces()["gpu"])
    while (proposal := ask(study)).config.width != 64:
        pass
    study.report(proposal.number, epoch(1, 0.5))
    study.abandon()
    bare = opened(tmp_path, spaces()["bare"], seed=1)
    assert bare.trials.waiting and proposal.number in bare.trials.waiting
    while interrupted(bare):
        assert ask(bare).number != proposal.number
    bare.close("time budget")
    assert opened(tmp_path, spaces()["bare"]).row(proposal.number)["state"] == "running"
    again = opened(tmp_path, spaces()["gpu"], seed=2)
    assert again.trials.waiting == [] and proposal.number in interrupted(again)


def test_a_duplicate_of_a_running_trial_is_shown_as_that_is_and_not_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.sampling.study.REPEATS_THAT_EXHAUST", 30)
    (tmp_path / "two.py").write_text(
        "def space(trial):\n    return {'batch_size': trial.suggest_categorical('batch_size', [8, 16])}\n"
    )
    study = opened(tmp_path, load_space(str(tmp_path / "two.py")))
    running = [ask(study), ask(study)]
    assert study.ask() is None
    duplicates = [number for number in study.trials if number > 1]
    assert {study.row(number)["state"] for number in duplicates} == {"running"}
    for proposal in running:
        train(study, proposal, [0.5], "length")
        study.finish(proposal.number, "scheduler")
    assert {study.row(number)["state"] for number in duplicates} == {"complete"} and study.trials.n_failed == 0
    assert all(told(study, number).user_attrs["no_result"] for number in duplicates)
    study.close("search")
    trials = run_folder.Run(tmp_path).trials
    assert (trials["state"] == "complete").all() and (trials["attempt"] == 0).sum() == len(duplicates)


# What belongs to a run wherever it is.


def test_a_run_is_stored_under_its_first_name(here: Path) -> None:
    store, path = here / "storage", here / "results" / "first"
    store.mkdir()
    assert stored_runs.stored_at(str(store), path) == f"{store}/first"
    path = path.rename(here / "results" / "other")
    assert stored_runs.stored_at(str(store), path) == f"{store}/first"  # The study has that name.
    files.write_json(path / "meta.json", run_folder.Run(path).meta | {"stored_as": "third"})
    assert stored_runs.stored_at(str(store), path) == f"{store}/third"
    assert stored_runs.stored_at(str(here / "results"), path) == f"{here}/results/other"  # It is itself the stored one.


def test_the_latest_run_is_the_one_of_the_latest_record_and_not_of_the_latest_file(here: Path) -> None:
    for name, moments in {"a": ["2026-11-24"], "b": ["2026-11-23", ["x", "2026-11-26"]]}.items():
        (here / "results" / name).mkdir()
        meta = {"started": moments[0], "pauses": moments[1:], "settings": {}}
        files.write_json(here / "results" / name / "meta.json", meta)
    (here / "results" / "a" / "meta.json").touch()
    assert run_folder.load("latest", here / "results").name == "b"
    long = {"started": "2026-11-20", "ended": "2026-11-27", "pauses": [], "settings": {}}
    files.write_json(here / "results" / "a" / "meta.json", long)  # Which ended after the other one was interrupted.
    assert run_folder.load("latest", here / "results").name == "b"


def test_the_winners_checkpoint_is_fetched_where_no_trial_of_the_run_has_been(here: Path) -> None:
    run, store = run_folder.Run(here / "results" / "first"), here / "store"
    for number in range(3):
        files.make_folder(store / "first" / "trials" / f"{number:04d}")
        (store / "first" / "trials" / f"{number:04d}" / "best.pt").write_text(str(number))
    stored_runs.conclude(run, f"{store}/first", print, checkpoints=checkpoints.NAMES, best=checkpoints.BEST)
    best = run.best["trial"]
    assert [path.read_text() for path in here.rglob("results/first/trials/*/best.pt")] == [str(best)]
    assert [path.read_text() for path in store.rglob("best.pt")] == [str(best)]


def test_a_final_elsewhere_keeps_this_one_from_the_test_split(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "hash_test", lambda *given: None)
    monkeypatch.setattr(final, "carry_out", lambda *given, **named: (_ for _ in ()).throw(RuntimeError("trained")))
    monkeypatch.setattr(leases, "LEASE_SECONDS", 2.0)
    run, store = run_folder.Run(here / "results" / "first"), here / "storage"
    store.mkdir()
    files.write_json(run.path / "meta.json", run.meta | {"settings": run.settings | {"storage": str(store)}})
    lease = leases.Lease(f"{store}/first", "final", print)
    monkeypatch.setattr(locks, "is_here", lambda holder: False)  # It is on another machine.
    lease.take(print)
    sleep = locks.time.sleep
    beat = storage.Store(f"{store}/first")
    with monkeypatch.context() as patch:
        patch.setattr(locks.time, "sleep", lambda seconds: (lease.beat(beat), sleep(0.01)))
        with pytest.raises(UserError, match=r"storage/first is in use: process \d+ on .* \(tuning\.final"):
            final.main(run="first", model_dir=here / "model")
    lease.release()
    with pytest.raises(RuntimeError, match="trained"):
        final.main(run="first", model_dir=here / "model")
    assert not (store / "first" / "final.lease").exists()
    store.rmdir() if not any(store.iterdir()) else (store / "first").rename(here / "gone")
    with contextlib.suppress(OSError):
        store.rmdir()
    with pytest.raises(RuntimeError, match="trained"):  # The storage is away, and the run is here.
        final.main(run="first", model_dir=here / "model")


def test_only_a_resume_runs_the_space_that_a_run_keeps() -> None:
    root = Path(search.__file__).parent
    naming = {path.stem for path in root.glob("*.py") if "space.py" in path.read_text(encoding="utf-8")}
    loading = {path.stem for path in root.glob("*.py") if "load_space(" in path.read_text(encoding="utf-8")}
    assert loading <= {"spaces", "search", "settings"} and not naming & {"results", "report", "final", "candidates"}


def test_a_stored_run_that_has_gone_on_since_it_was_fetched_is_not_overwritten(here: Path) -> None:
    path, store = here / "results" / "first", here / "store"
    shutil.copytree(path, store / "first")
    later = RunStudy(store / "first", load_space("smoke"), optuna.samplers.RandomSampler(seed=5), epochs=4, seed=0)
    train(later, ask(later), [0.3], "length")
    later.finish(3, "scheduler")
    later.close("search")
    before = {file.name: file.read_bytes() for file in (store / "first").iterdir() if file.is_file()}
    with (
        pytest.raises(UserError, match=r"store/first has gone on meanwhile\. Run the command again, which fetches it"),
        stored_runs.mirrored(str(store), path, skip=(), note=print, on_lost=print),
    ):
        pass
    assert {file.name: file.read_bytes() for file in (store / "first").iterdir() if file.is_file()} == before


def test_a_session_in_which_nothing_happened_is_part_of_one_pause(here: Path) -> None:
    path = here / "results" / "first"
    last = run_folder.Run(path).trials["ended"].max()
    for hours in (1, 2, 3):
        record.go_on(path, SETTINGS, last.isoformat(), (last + pd.Timedelta(hours=hours)).isoformat())
    assert len(run_folder.Run(path).meta["pauses"]) == 1
    # As version 0.2.0 wrote them.
    pauses = [[last.isoformat(), (last + pd.Timedelta(hours=hours)).isoformat()] for hours in (1, 2)]
    files.write_json(path / "meta.json", run_folder.Run(path).meta | {"pauses": pauses})
    assert summaries.minutes(run_folder.Run(path)) >= 0
    moment = pd.Series([last + pd.Timedelta(hours=2)])
    assert run_folder.Run(path).clock(moment)[0] < 60


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"id": "4f1c"'])
def test_a_damaged_meta_json_on_either_side_is_a_sentence(here: Path, content: bytes) -> None:
    path, store = here / "results" / "first", here / "store"
    shutil.copytree(path, store / "first")
    (store / "first" / "meta.json").write_bytes(content)
    with pytest.raises(UserError, match=r"meta\.json in .*store/first is damaged"):
        run_folder.load(f"file://{store}/first", here / "results")


def test_a_run_that_is_renamed_in_its_storage_goes_on_there(here: Path) -> None:
    path, store = here / "results" / "first", here / "store"
    shutil.copytree(path, store / "renamed")
    path.rename(path.with_name("renamed"))
    run = stored_runs.newest((store / "renamed").as_uri())
    assert stored_runs.stored_at(run.settings["storage"], run.path) == f"{store}/renamed"


def test_a_stored_run_is_resumed_in_a_shared_folder_that_is_mounted_elsewhere(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, was = here / "mnt" / "runs", here / "data" / "runs"
    (here / "results" / "first" / "space.py").write_text(load_space("smoke").source)
    run = run_folder.Run(here / "results" / "first")
    settings = run.settings | {"storage": str(was)}
    files.write_json(run.path / "meta.json", run.meta | {"settings": settings, "stored_as": "first"})
    shutil.copytree(run.path, shared / "first")
    shutil.copytree(run.path, shared / "copy")
    asked = doors.asked(search.run, {"resume": str(shared / "first")})
    with contextlib.ExitStack() as stack:
        settled = settling.settle(asked, stack, dry_run=False)
    assert (settled.path, settled.settings.storage) == (shared / "first", str(shared))
    assert capsys.readouterr().out == (
        f"{was} is not here. {shared}/first is the stored run, and is kept in {shared} from now on.\n"
    )
    assert stored_runs.base_of(run_folder.Run(shared / "first")) == str(shared)
    for path in (run.path, shared / "copy"):  # Neither is the stored run.
        with pytest.raises(UserError, match=r"--storage must be .*: --resume file:///FOLDER/first\.$"):
            stored_runs.newest(path)
    plan = candidates.Plan(
        str(shared / "first"), "first", (), (1,), here / "jobs", images=datasets.as_source("fashion-mnist")
    )
    with contextlib.ExitStack() as held:
        final._keep_others_out(plan, here, held, print)
        assert (shared / "first" / "final.lease").exists()


def test_a_run_in_its_storage_is_not_copied_onto_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, written, write = run_folder.Run(here / "results" / "first"), list[str](), storage.Store.write
    monkeypatch.setattr(storage.Store, "write", lambda *given: (written.append(given[1]), write(*given)))
    for base in ((here / "results").as_uri(), str(here / "results")):  # Earlier versions wrote down the first, too.
        files.write_json(run.path / "meta.json", run.meta | {"settings": run.settings | {"storage": base}})
        before = {path.name: path.read_bytes() for path in run.path.iterdir()}
        assert stored_runs.newest("first").path.resolve() == run.path and not stored_runs.is_behind(run)
        with stored_runs.mirrored(base, run.path, skip=(), note=print, on_lost=print):
            pass
        assert set(written) == {".probe", "search.lease"}
        assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_the_storage_of_a_run_that_is_resumed_by_its_uri_is_written_down_as_a_folder(here: Path) -> None:
    path, store = here / "results" / "first", here / "my store"
    (path / "space.py").write_text(load_space("smoke").source)
    shutil.move(path, store / "first")
    asked = doors.asked(search.run, {"resume": f"{store.as_uri()}/latest"})
    with contextlib.ExitStack() as stack:
        settled = settling.settle(asked, stack, dry_run=False)
    assert settled.settings.storage == run_folder.Run(path).settings["storage"] == str(store)
    assert settled.path.resolve() == path


def test_the_record_says_what_was_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "conclude", lambda run, tell: None)
    path = here / "results" / "first"
    space = replace(load_space("smoke"), left_out={"network": ["resnet8-64"]})
    splits: Any = SimpleNamespace(split_hash="af0cffd9f750", valid_hash="c", valid=[])
    progress: Any = SimpleNamespace(note=print)
    session.search(replace(SETTINGS, samples=3), path, splits, space, progress, resumed=True)
    assert json.loads((path / "meta.json").read_text())["left_out"] == {"network": ["resnet8-64"]}


def test_final_and_report_see_that_a_run_has_gone_on_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "shared"
    run = write_run(tmp_path / "here" / "first", 3)
    meta = run.meta | {"id": "f00d", "settings": run.settings | {"storage": str(store)}}
    files.write_json(run.path / "meta.json", meta)
    assert not stored_runs.is_behind(run)  # Nothing is stored yet.
    shutil.copytree(run.path, store / "first")
    assert not stored_runs.is_behind(run)
    (run.path / "report.html").write_text("the earlier one")
    stored_runs.send(run)
    assert (store / "first" / "report.html").read_text() == "the earlier one"
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = RunStudy(store / "first", load_space("smoke"), sampler, epochs=4, seed=0)
    train(study, ask(study), [0.5] * 4, "length")
    study.close(None)
    assert stored_runs.is_behind(run) and not stored_runs.is_behind(run_folder.Run(store / "first"))
    (store / "first" / "report.html").write_text("the later one")
    stored_runs.send(run)
    assert (store / "first" / "report.html").read_text() == "the later one"
    assert capsys.readouterr().out.endswith("first has gone on elsewhere, and has a later one or will have.\n")
    plan = candidates.Plan(
        str(run.path), run.name, (), (1,), tmp_path / "jobs", images=datasets.as_source("fashion-mnist")
    )
    with (
        contextlib.ExitStack() as held,
        pytest.raises(UserError, match=r"first is behind .*shared/first, where the search has gone on\. Fetch"),
    ):
        final._keep_others_out(plan, tmp_path, held, print)

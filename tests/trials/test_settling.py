"""What of `--start-from` is refused before anything is imported that trains, and what of it is recorded."""

import contextlib
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import write_run
from PIL import Image

from tuning import search
from tuning.base import doors, machine
from tuning.base.errors import UserError
from tuning.runs import beginnings, run_folder
from tuning.runs.run_folder import Run
from tuning.sampling.spaces import load_space
from tuning.trials import record, settling
from tuning.trials.settings import Settings, as_options, check_resumed, of_run, source_of_run
from tuning.trials.slots import Slots


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
    assert not [note for note in found.notes if "points" in note]
    said = "The sampler tpe begins with their best 5 points, and learns nothing else of them."
    assert said in settled("one", sampler="tpe").notes
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


def resumed(path: Path, **options: Any) -> settling.Settled:
    """Returns how a run is resumed, as it would be with these options."""
    asked = doors.asked(search.run, {"resume": str(path), **options})
    with contextlib.ExitStack() as stack:
        return settling.settle(asked, stack, dry_run=True)


@pytest.fixture
def begun(results: Path) -> Path:
    """Returns the folder of a run with options that each session may set."""
    found = settled(None, until_converged=True, audit=2, time_budget="30m")
    record.begin(results / "new", found.settings, load_space("smoke"), "search.run()")
    return results / "new"


def test_a_resumed_run_keeps_its_options_unless_it_is_given_others(begun: Path) -> None:
    found = resumed(begun)
    assert (found.settings.until_converged, found.settings.audit, found.settings.time_budget) == (True, 2, None)
    assert "The time budget was that of the earlier session; this one has none" in " ".join(found.notes)
    assert not resumed(begun, samples=30).settings.until_converged
    other = resumed(begun, until_converged=False, audit=0, time_budget="1m")
    assert (other.settings.until_converged, other.settings.audit, other.settings.time_budget) == (False, 0, 60.0)
    assert "time budget" not in " ".join(other.notes)


@pytest.mark.parametrize("name", ["trials", "epochs"])
@pytest.mark.parametrize("damage", ["missing", "empty", "header only", "truncated", "damaged"])
def test_a_run_whose_frame_was_lost_is_resumed_with_what_its_study_has(
    results: Path, capsys: pytest.CaptureFixture[str], damage: str, name: str
) -> None:
    run = Run(results / "one")
    record.update_meta(run.path, settled(None, samples=9).settings)
    shutil.copy(Path(load_space("smoke").file), run.path / "space.py")
    before, path = [run.trials, run.epochs], run.path / f"{name}.csv"
    head, row, *_ = path.read_text().splitlines(keepends=True)
    path.unlink()
    texts = {"empty": "", "header only": head, "truncated": head + row[:5], "damaged": "no frame\n"}
    if damage in texts:
        path.write_text(texts[damage])
    with contextlib.ExitStack() as stack:
        found = settling.settle(doors.asked(search.run, {"resume": "one"}), stack, dry_run=False)
        stack.enter_context(search._announced(found, "Run", quiet=True))
        assert search._n_done(found) == len(before[0])
    assert f"{name}.csv" in capsys.readouterr().out
    for frame, was in zip([run.trials, run.epochs], before, strict=True):
        pd.testing.assert_frame_equal(frame, was)
    with pytest.raises(UserError, match="--samples must be at least the 6 trials of one, but got 5"):
        resumed(run.path, samples=5)


def test_a_study_that_is_not_that_of_the_frame_that_is_left_writes_no_other(results: Path) -> None:
    run = Run(results / "one")
    record.update_meta(run.path, settled(None, samples=9).settings)
    shutil.copy(Path(load_space("smoke").file), run.path / "space.py")
    for file in write_run(results / "older", 2, seed=5).path.glob("study.db*"):
        shutil.copy(file, run.path / file.name)
    (run.path / "trials.csv").unlink()
    with contextlib.ExitStack() as stack, pytest.raises(UserError, match=r"4 trials more \(2, 3, 4, 5\)\. Nothing was"):
        settling.settle(doors.asked(search.run, {"resume": "one"}), stack, dry_run=False)
    assert not (run.path / "trials.csv").exists()


def test_a_run_or_its_path_is_resumed_and_an_option_that_it_keeps_is_refused_as_the_default_too(begun: Path) -> None:
    for name in (Run(begun), begun, "new"):
        asked = doors.asked(search.run, {"resume": name})
        with contextlib.ExitStack() as stack:
            found = settling.settle(asked, stack, dry_run=True)
        assert found.resumed and found.path.samefile(begun)
    with pytest.raises(
        UserError, match=r"^--resume must keep the settings of run new, but got --seed\. Leave that out"
    ):
        resumed(begun, seed=0)


def test_a_dashboard_that_is_not_installed_is_said_of_a_resumed_run_too(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(address: str | None) -> None:
        raise UserError("--dashboard needs a package.")

    monkeypatch.setattr("tuning.trials.local_ray.check_dashboard", missing)
    with pytest.raises(UserError, match=r"^--dashboard needs a package\."):
        resumed(begun, dashboard=True)


def test_final_looks_where_the_search_had_its_images_last(begun: Path, tmp_path: Path) -> None:
    found = Run(begun)
    assert source_of_run(found, None).data_dir is None
    record.update_meta(begun, replace(of_run(found), data_dir=str(tmp_path)))
    assert source_of_run(Run(begun), None).data_dir == tmp_path
    assert source_of_run(Run(begun), tmp_path / "other").data_dir == tmp_path / "other"
    record.update_meta(begun, replace(of_run(found), data_dir=str(tmp_path / "gone")))
    assert source_of_run(Run(begun), None).data_dir is None


@pytest.mark.parametrize("options", [{"until_converged": True}, {"cost": "seconds"}], ids=repr)
def test_what_needs_one_objective_is_refused_beside_another_in_a_sentence_that_helps(
    results: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"must be of a search with one objective, but got --minimize, too\. Leave one"):
        settled(None, minimize="n_parameters", **options)


def test_that_a_search_is_too_short_to_converge_is_said(results: Path, begun: Path) -> None:
    said = (
        "--until-converged cannot end this search before its 20 samples, unless a trial is perfect: it judges 15 "
        "proposals of the sampler in a row, which come after the first 8 trials. Take more than 23 --samples."
    )
    assert said in settled(None, until_converged=True).notes
    assert said in resumed(begun).notes
    others = [
        settled(None),
        settled(None, until_converged=True, samples=24),
        settled("one", until_converged=True, samples=21),
    ]
    others += [resumed(begun, until_converged=False), resumed(begun, until_converged=True, samples=24)]
    assert not any("--until-converged" in note for found in others for note in found.notes)
    assert any("its 23 samples" in note for note in settled(None, until_converged=True, samples=23).notes)
    beside = settled("one", until_converged=True).notes
    assert any("beside 5 trials that look whether an earlier run misleads. Take more than 20" in n for n in beside)


@pytest.mark.parametrize("options", [{"scheduler": "none"}, {"minimize": "n_parameters"}], ids=repr)
def test_an_audit_of_a_search_that_stops_no_trial_is_refused(results: Path, options: dict[str, Any]) -> None:
    said = r"^--audit must be of a search whose scheduler stops trials, asha or .*, but got 'none'\. Leave it out\.$"
    with pytest.raises(UserError, match=said):
        settled(None, audit=2, **options)
    found = settled(None, audit=0, **options)
    record.begin(results / "new", found.settings, load_space("smoke"), "search.run()")
    with pytest.raises(UserError, match=said):
        resumed(results / "new", audit=2)
    assert resumed(results / "new").settings.audit == 0


def test_no_earlier_runs_are_as_if_none_were_asked_for(results: Path) -> None:
    assert settled([]).settings.start_from is None


def test_that_a_session_had_other_slots_is_written_down(begun: Path) -> None:
    settings = of_run(Run(begun))
    record.go_on(begun, settings, None, record.now())
    assert "slots_varied" not in Run(begun).meta
    record.go_on(begun, replace(settings, concurrency=settings.concurrency + 6), None, record.now())
    record.go_on(begun, replace(settings, concurrency=settings.concurrency + 6), None, record.now())
    assert Run(begun).meta["slots_varied"]


def test_a_session_on_another_machine_is_written_down_once(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, meta = of_run(Run(begun)), Run(begun).meta
    record.update_meta(begun, settings, hardware=machine.hardware())
    other = {"cpu": "another", "cores": 4, "gpus": ["H100"]}
    fewer = machine.hardware() | {"cores": 1}
    for hardware, later in (
        (machine.hardware(), None),
        (fewer, None),
        (other, [other]),
        (other, [other]),
        (meta["hardware"], None),
    ):
        monkeypatch.setattr(machine, "hardware", lambda hardware=hardware: hardware)
        record.go_on(begun, settings, None, record.now())
        if later is None:
            assert Run(begun).meta.get("later_hardware", [other]) == [other]
        else:
            assert Run(begun).meta["later_hardware"] == later
    assert Run(begun).meta["later_hardware"] == [other]


def test_a_run_that_a_small_machine_resumed_has_its_slots_back_on_a_large_one(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def session(cores: int, gpus: int, **options: Any) -> tuple[str, int, str]:
        """Returns device, slots and notes of a session on a machine of so many cores and GPUs."""
        monkeypatch.setattr(machine, "cores", lambda: cores)
        monkeypatch.setattr(machine, "gpu_memory", lambda: [80 << 30] * gpus)
        found = resumed(begun, **options)
        record.go_on(begun, found.settings, None, record.now())
        return found.settings.device, found.settings.concurrency, " ".join(found.notes)

    for slots, hardware, here in (
        (Slots("cpu", 64), {"cores": 64, "gpus": []}, (64, 0)),
        (Slots("cuda", 4, 1.0, 0.25), {"cores": 16, "gpus": ["H200"]}, (16, 1)),
    ):
        record.update_meta(begun, replace(of_run(Run(begun)), **vars(slots)), hardware=hardware, begun_slots=None)
        small, again, back = session(2, 0), session(2, 0), session(*here)
        assert small[:2] == again[:2] == ("cpu", 2) and back[:2] == (slots.device, slots.concurrency)
        assert f"2 side by side (before: {slots.concurrency})" in small[2] and "side by side" not in again[2]
        assert f"{slots.concurrency} side by side (before: 2)" in back[2]

    cluster_has = [{"CPU": 16.0, "GPU": 2.0}]
    monkeypatch.setattr("tuning.remote.cluster.look", lambda address: (cluster_has, []))
    wanted = Slots("cuda", 3, 2.0, 0.5, "auto", limit=3)
    settings = replace(of_run(Run(begun)), storage="s3://bucket/runs", **vars(wanted))
    monkeypatch.setattr("tuning.trials.settling._newest", lambda name: Run(begun))
    monkeypatch.setattr("tuning.remote.stored_runs.base_of", lambda run: "s3://bucket/runs")
    record.update_meta(begun, settings, hardware={"cores": 16, "gpus": []}, begun_slots=None)
    assert session(4, 0, address="local")[:2] == ("cpu", 2)
    assert session(4, 0, address="auto")[:2] == ("cuda", 3) and of_run(Run(begun)).limit == 3


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder of class folders in the home folder of the user."""
    draw = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / "home" / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "photos"


def test_the_folder_of_the_user_may_be_written_as_a_tilde(photos: Path) -> None:
    found = settled(None, dataset="~/photos").settings
    assert found.dataset == str(photos) and found.source.path == photos
    assert settled(None, dataset="mnist", data_dir="~/photos").settings.data_dir == str(photos)


def test_another_place_of_ones_own_images_is_for_a_run_that_has_some(photos: Path) -> None:
    with pytest.raises(UserError, match=rf"^--data-dir must be used with .* elsewhere beside --dataset {photos}\."):
        settled(None, dataset="~/photos", data_dir="elsewhere")
    recorded = asdict(settled(None, dataset="~/photos").settings) | {"data_dir": "/moved"}
    options = as_options(recorded)
    assert options["dataset"] == "/moved" and "data_dir" not in options


def test_a_table_that_moved_is_where_it_was_said_to_be(photos: Path, tmp_path: Path) -> None:
    table = photos / "labels.csv"
    table.write_text("id,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(24)))
    path = write_run(tmp_path / "results" / "one", 3).path
    (path / "space.py").write_text(load_space("smoke").source)
    settings = asdict(settled(None, dataset=str(table)).settings) | {"dataset": "/gone/labels.csv"}
    meta = json.loads((path / "meta.json").read_text())
    for where in ("home/photos/labels.csv", str(table)):
        (path / "meta.json").write_text(json.dumps(meta | {"settings": settings}))
        asked = doors.asked(search.run, {"resume": "one", "data_dir": where})
        with contextlib.ExitStack() as stack:
            found = settling.settle(asked, stack, dry_run=True)
        assert found.settings.data_dir == str(table)
    (path / "meta.json").write_text(json.dumps(meta | {"settings": asdict(found.settings)}))
    with contextlib.ExitStack() as stack:
        again = settling.settle(doors.asked(search.run, {"resume": "one"}), stack, dry_run=True)
    assert again.settings.data_dir == str(table) and not any("is not here" in note for note in again.notes)


def test_a_space_that_is_asked_for_is_taken_where_it_is_the_default_too(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "_space_for", lambda images, device: "photos")
    for given, expected in (({"space": "resnet"}, "resnet"), ({}, "photos")):
        asked = doors.asked(search.run, {"dataset": photos, "device": "cpu", **given})
        with contextlib.ExitStack() as stack:
            assert settling.settle(asked, stack, dry_run=True).settings.space == expected


def test_a_space_that_is_asked_for_beside_a_network_is_taken(results: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef model(config, channels, n_classes, image_size):\n    return nn.Identity()\n"
    )
    given = {"model": tmp_path / "net.py", "device": "cpu", "start_from": None}
    for space, expected in (({"space": "resnet"}, "resnet"), ({}, "own")):
        asked = doors.asked(search.run, given | space)
        with contextlib.ExitStack() as stack:
            assert settling.settle(asked, stack, dry_run=True).settings.space == expected

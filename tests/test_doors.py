"""The doors: `run` and its command take the same, and a script goes from a search to its winner."""

import inspect
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import typer
import yaml
from conftest import ROOT
from rich.console import Console
from typer.testing import CliRunner

from tuning import explore, final, predict, report, results, search
from tuning.base import doors, files
from tuning.base.errors import UserError, run_command
from tuning.images.source import Source
from tuning.remote import storage
from tuning.runs import run_folder
from tuning.sampling.function_source import module_of
from tuning.sampling.spaces import load_space
from tuning.trials import loading, local_ray, session, settling
from tuning.trials import progress as shown
from tuning.trials.settings import as_options

# What each command has beside the options of its `run`, and what that has for Python alone.
OWN = {search: {"config", "dry_run_only", "quiet", "verbose"}, final: set[str](), report: set[str]()}
PYTHON_ONLY = {search: {"progress"}, final: {"progress"}, report: set[str]()}
SCRIPT = """
import signal
import threading
from tuning import final, predict, results, search
from tuning.base.errors import UserError, run_command

def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

WIDTH = 4

def tiny(trial):
    return {
        "width": WIDTH, "image_size": 8, "batch_size": 128, "schedule": "constant",
        "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True),
    }

before = handlers()
run = search.run(samples=2, space="smoke", train_images=600, epochs=1, seed=0, run="one", progress=False)
assert len(run.trials) == 2 and 0 <= run.best["valid_accuracy"] <= 1
winner = final.run(run, top_k=1, seeds=1, epochs=1, progress=False)
assert handlers() == before
print("quiet so far")
assert winner.metrics["test_opened"] == 1 and winner.config.width == 4 and len(winner.candidates) == 1
low, high = winner.intervals["test"]
assert low < winner.metrics["test_accuracy"] < high
from tuning.images.datasets import load_train
images = load_train("fashion-mnist").images[:5]
classes = [each.class_name for each in winner.predict(images)]
assert classes == [each.class_name for each in predict.load("best_model").predict(images[:, 0])]
again = search.run(samples=1, space=tiny, train_images=600, epochs=1, run="mine")  # Twice in one process.
assert results.load("mine").meta["command"].startswith("search.run(samples=1, space=tiny,")
found = []  # In another thread, which can set no signal handlers, a search runs, and those of the main thread stay.
thread = threading.Thread(target=lambda: found.append(search.run(resume="mine", samples=2, progress=False)))
thread.start()
thread.join(timeout=600)
[again] = found
assert handlers() == before
assert len(again.trials) == 2 and "WIDTH = 4" in (again.path / "space.py").read_text()
"""


@pytest.mark.parametrize("module", OWN)
def test_a_command_has_the_options_of_run_with_their_defaults(module: Any) -> None:
    command = {name: each.default for name, each in inspect.signature(module.main).parameters.items()}
    ours = {name: each.default for name, each in inspect.signature(module.run).parameters.items()}
    own, python_only = OWN[module], PYTHON_ONLY[module]
    assert command.keys() - own - {"context"} == ours.keys() - python_only
    assert all(command[name] == ours[name] for name in ours.keys() - python_only)
    described = inspect.getdoc(module.run).partition("Args:")[2]
    assert [name for name in ours if f"\n    {name}: " not in described] == []


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (search, {"samples": 0}, "--samples must be at least 1, but got 0."),
        (search, {"epochs": 0}, "--epochs must be at least 1, but got 0."),
        (search, {"space": "resnt"}, "Search space must be one of "),
        (search, {"sampler": "tpee"}, "--sampler must be one of "),
        (
            search,
            {"time_budget": "soon"},
            "--time-budget must be a duration such as 90s, 30m or 1h30m, but got 'soon'.",
        ),
        (search, {"cpus_per_trial": 0.01}, "--cpus-per-trial must be at least 0.1, but got 0.01."),
        (search, {"seed": 2**32}, "--seed must be at most 4,294,967,295, but got 4294967296."),
        (search, {"resume": "none"}, "There is no run folder below "),
        (final, {"seeds": 0}, "--seeds must be at least 1, but got 0."),
        (final, {"seed": 2**70}, f"--seed must be at most 4,294,967,295, but got {2**70}."),
        (final, {"minutes": "inf"}, "--minutes must be a finite number, but got 'inf'."),
        (search, {"samples": "abc"}, "--samples must be a whole number, but got 'abc'."),
        (search, {"cpus_per_trial": "all"}, "--cpus-per-trial must be a number, but got 'all'."),
        (final, {"train_on": "test"}, "--train-on must be one of train, train+valid, but got 'test'."),
        (final, {"export": ["tflite"]}, "--export must be one of "),
        (final, {"run": "none"}, "There is no run folder below "),
        (report, {"model_dir": "none", "run": "none"}, "There is no run folder below "),
    ],
)
def test_both_doors_say_the_same_of_a_wrong_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        module.run(**options)
    assert str(error.value).startswith(message)
    app = typer.Typer()
    app.command()(module.main)
    words: list[str] = []
    for name, value in options.items():
        words += [] if (module, name) == (report, "run") else [f"--{name.replace('_', '-')}"]
        words.append(str(value[0] if isinstance(value, list) else value))
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UserError) and str(done.exception) == str(error.value)


def test_a_value_of_another_type_is_said_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^progress must be true or false, but got 'loud'\.$"):
        search.run(progress="loud")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^--space must be text, a path or a function, but got 5\.$"):
        search.run(space=5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^--run must be a Run, text or a path, but got 5\.$"):
        final.run(5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^--minutes must be a finite number, but got inf\.$"):
        final.run(minutes=float("inf"))


def test_a_path_is_taken_where_the_command_reads_text() -> None:
    given = {
        "dataset": Path("photos"),
        "space": Path("x.py"),
        "storage": Path("/mnt/runs"),
        "resume": Path("results/a"),
    }
    asked = doors.asked(search.run, given)
    assert (asked.dataset, asked.space, asked.storage) == ("photos", "x.py", "/mnt/runs")
    assert asked.resume == Path("results/a") and set(asked.given) == set(given)
    assert doors.asked(search.run, {"start_from": Path("one,two")}).start_from == Path("one,two")
    assert doors.asked(final.run, {"run": Path("results/old")}).run == Path("results/old")
    run = run_folder.Run(Path("results/old"))
    assert doors.asked(final.run, {"run": run}).run is run and doors.asked(search.run, {"resume": run}).resume is run
    assert doors.asked(search.run, {"labels_leave_out": "a"}).labels_leave_out == ["a"]


def test_what_is_passed_counts_as_given_where_it_is_the_default_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[doors.Asked] = []

    def keep(asked: doors.Asked, *more: Any, **others: Any) -> Any:
        found.append(asked)
        raise UserError("far enough")

    monkeypatch.setattr(search, "_search", keep)
    monkeypatch.setattr(final, "_retrained", keep)
    for call in (
        lambda: search.run(space="resnet", seed=0, sampler=None, dashboard=False),
        lambda: final.run("latest", top_k=3, minutes=20, compare=False),
        lambda: final.run(),
    ):
        with pytest.raises(UserError, match="far enough"):
            call()
    assert [set(asked.given) for asked in found] == [{"space", "seed"}, {"run", "top_k", "minutes", "compare"}, set()]
    assert (found[0].space, found[2].run, found[2].top_k) == ("resnet", "latest", 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sample'"):
        search.run(sample=3)  # type: ignore[call-arg]


def test_a_configuration_takes_no_options_of_a_run_from_python_either(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--top-k must be used with a run, but got --config"):
        final.run(config="resnet8-5-minutes", top_k=3, model_dir=tmp_path)


def test_the_folder_of_the_user_is_found_where_no_shell_writes_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = doors.asked(final.run, {"config": "~/one.yaml", "model_dir": Path("~/model"), "run": "~/results/one"})
    assert (asked.config, asked.model_dir) == (f"{tmp_path}/one.yaml", tmp_path / "model")
    assert doors.asked(final.run, {"config": "resnet8-5-minutes"}).config == "resnet8-5-minutes"
    assert doors.asked(search.run, {"start_from": "one,two"}).start_from == "one,two"
    (tmp_path / "results" / "one").mkdir(parents=True)
    (tmp_path / "results" / "one" / "meta.json").write_text("{}")
    assert run_folder.load("~/results/one").path == tmp_path / "results" / "one"
    assert run_folder.load("~/results/latest").name == "one"
    (tmp_path / "space.py").write_text((files.SPACES / "smoke.py").read_text())
    assert load_space("~/space.py").source == (files.SPACES / "smoke.py").read_text()
    with pytest.raises(UserError, match=f"There must be a trained model in {tmp_path}/none, but"):
        predict.load("~/none")


LONG = "a" * 300


@pytest.mark.parametrize(
    ("asking", "name"),
    [
        (lambda: doors.asked(search.run, {"data_dir": LONG}), LONG),
        (lambda: doors.asked(search.run, {"model": Path(LONG)}), LONG),
        (lambda: doors.asked(final.run, {"config": LONG}), LONG),
        (lambda: doors.asked(final.run, {"model_dir": f"{LONG}/model"}), f"{LONG}/model"),
        (lambda: doors.asked(report.run, {"out": f"{LONG}.html"}), f"{LONG}.html"),
        (lambda: explore.main(out=Path(f"{LONG}.png")), f"{LONG}.png"),
        (lambda: predict.load(LONG), LONG),
        (lambda: load_space(f"{LONG}.py"), f"{LONG}.py"),
        (lambda: load_space(LONG), f"{LONG}.py"),
        (lambda: Source(LONG).is_own, LONG),
        (lambda: storage.absolute(LONG), LONG),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_said_wherever_one_is_taken(asking: Callable[[], Any], name: str) -> None:
    with pytest.raises(UserError, match=rf"^'{name}' cannot be looked at: File name too long\. Check the path\.$"):
        asking()


def test_several_runs_to_start_from_are_no_path_that_is_too_long() -> None:
    runs = ",".join(f"2026-11-23-fashion-mnist-{i}" for i in range(20))
    assert doors.asked(search.run, {"start_from": runs}).start_from == runs


def options_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> doors.Asked:
    """Returns what the command of a search asks for."""
    found: list[doors.Asked] = []

    def settle(asked: doors.Asked, stack: Any, *, dry_run: bool) -> None:
        found.append(asked)
        raise UserError("far enough")

    monkeypatch.setattr(search, "settle", settle)
    app = typer.Typer()
    app.command()(search.main)
    done = CliRunner().invoke(app, words)
    if not found and done.exception is not None:
        raise done.exception
    return found[0]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_options_come_from_a_file_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    values = {"samples": 7, "train-images": 900, "max_failures": 0, "dashboard": True, "storage": None}
    write: Callable[[Any], str] = yaml.safe_dump if suffix == ".yaml" else json.dumps
    (tmp_path / f"options{suffix}").write_text(write(values))
    asked = options_of(["--config", str(tmp_path / f"options{suffix}"), "--samples", "3"], monkeypatch)
    assert (asked.samples, asked.train_images, asked.max_failures, asked.dashboard) == (3, 900, 0, True)
    assert set(asked.given) == {"samples", "train_images", "max_failures", "dashboard"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample: 3", r"options\.yaml: Option must be one of .*, but got 'sample'\. Did you mean 'samples'\?"),
        ("config: other.yaml", r"options\.yaml: Option must be one of .*, but got 'config'\."),
        ("samples: 0", r"--samples must be at least 1, but got 0\."),
        ("- samples", r"options\.yaml must hold a mapping of options, but got list\."),
        (
            "settings: {space: smoke}\nsamples: 3\ncost: bad",
            r"options\.yaml must have its options below settings or beside it, but got both: beside it are samples, "
            r"cost\. Move them all to one place\.",
        ),
        ("time_budget: true", r"--time-budget must be a duration such as 90s, 30m or 1h30m, but got 'true'\."),
        ("time_budget: 1:30", r"--time-budget must be a duration such as 90s, 30m or 1h30m, but got '1:30'\."),
        ("samples: 3\nsamples: 4", r"options\.yaml must be a YAML file, .* parsed: 'samples' is there twice\."),
        (
            "train-images: 9\ntrain_images: 8",
            r"options\.yaml: train-images and train_images are one option\. Leave one",
        ),
        ("samples: [", r"options\.yaml must be a YAML file, but it cannot be parsed"),
    ],
)
def test_a_wrong_file_of_options_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.yaml").write_text(text)
    app = typer.Typer()
    app.command()(search.main)
    done = CliRunner().invoke(app, ["--config", "options.yaml"])
    with pytest.raises(UserError, match=message):
        raise done.exception or AssertionError(done.output)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("samples: 2.5", "samples must be a whole number, but got '2.5'."),
        ("samples: 1e1", "samples must be a whole number, but got '1e1'."),
        ("samples: [1, 2]", "samples must be a whole number, but got ['1', '2']."),
        ("seed: true", "seed must be a whole number, but got 'true'."),
        ("dashboard: 7", "dashboard must be true or false, but got '7'."),
        ("quiet: 3", "quiet must be true or false, but got '3'."),
        ("until-converged: maybe", "until-converged must be true or false, but got 'maybe'."),
        ("verbose: {a: 1}", "verbose must be true or false, but got {'a': '1'}."),
        ("data_dir: [a, b]", "data_dir must be a path, but got ['a', 'b']."),
        ("space: [smoke, resnet]", "space must be text, but got ['smoke', 'resnet']."),
        ("labels_leave_out: [[a]]", "labels_leave_out must be a list of texts, but got [['a']]."),
        ("labels_leave_out: [no, null]", "labels_leave_out must be a list of texts, but got ['no', None]."),
    ],
)
def test_the_types_of_a_file_are_those_of_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        options_of(["--config", "options.yaml"], monkeypatch)
    assert str(error.value) == f"options.yaml: {message}"


def test_nothing_is_no_run_to_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "options.yaml").write_text("start_from: [a, ~]\n")
    with pytest.raises(UserError, match=r"start_from must be .*, but got \['a', None\]"):
        options_of(["--config", str(tmp_path / "options.yaml")], monkeypatch)


def test_what_a_file_of_options_merges_may_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "settings:\n  <<: &b {run: null, metric: ~, samples: 3, storage: }\n  seed: 4\n"
    (tmp_path / "options.yaml").write_text(text)
    asked = options_of(["--config", str(tmp_path / "options.yaml")], monkeypatch)
    assert set(asked.given) == {"samples", "seed"} and (asked.samples, asked.run, asked.storage) == (3, None, None)


def test_a_file_of_options_is_read_as_the_same_words_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "options.YML").write_text(
        "run: 2026-11-31\nlabels_leave_out: [no, 007, 1.10, 'null']\nlabel_column: on\nstorage: null\ngroup_column: ~\n"
        "time_budget: 90\nmetric:\nimage_column: 1_000\ndashboard: yes\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["search"])
    asked = options_of(["--config=~/options.YML"], monkeypatch)
    assert (asked.run, asked.label_column, asked.image_column) == ("2026-11-31", "on", "1_000")
    assert asked.labels_leave_out == ["no", "007", "1.10", "null"]
    assert (asked.storage, asked.group_column, asked.time_budget, asked.metric) == (None, None, "90s", "accuracy")
    assert asked.dashboard is True


def test_true_is_no_number() -> None:
    with pytest.raises(UserError, match=r"^--samples must be a whole number, but got True\.$"):
        doors.asked(search.run, {"samples": True})
    with pytest.raises(UserError, match=r"^--labels-leave-out must be a list of texts, but got \[1\]\.$"):
        doors.asked(search.run, {"labels_leave_out": [1]})


def test_a_bare_text_of_a_file_is_a_list_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "options.yaml").write_text("labels_leave_out: a")
    asked = options_of(["--config", str(tmp_path / "options.yaml")], monkeypatch)
    assert asked.labels_leave_out == ["a"]


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (predict, ["x.png", "--top", "abc"], "--top must be a whole number, but got 'abc'."),
        (predict, ["x.png", "--invert", "alway"], "--invert must be one of auto, no, yes, but got 'alway'."),
        (results, ["--limit", "0"], "--limit must be at least 1, but got 0."),
        (explore, ["--seed", str(2**32)], f"--seed must be at most 4,294,967,295, but got {2**32}."),
    ],
)
def test_commands_without_a_door_in_python_say_a_wrong_value_alike(
    module: Any, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tuning", *words])
    with pytest.raises(SystemExit, match="2"):
        run_command(module.main)
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("form", ["meta.json", "resumed.json", "settings.yaml", "options.yaml", "options.json"])
def test_the_recorded_settings_of_a_run_ask_for_the_same_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    import contextlib
    from dataclasses import asdict

    monkeypatch.chdir(tmp_path)
    asked = doors.asked(
        search.run, {"samples": 3, "space": "smoke", "time_budget": "1h30m", "minimize": "n_parameters"}
    )
    with contextlib.ExitStack() as stack:
        before = settling.settle(asked, stack, dry_run=True).settings
    settings = json.loads(json.dumps(asdict(before)))
    match form:
        case "settings.yaml":
            (tmp_path / form).write_text(yaml.safe_dump({"settings": settings}))
        case "meta.json":
            (tmp_path / form).write_text(json.dumps({"schema": 1, "settings": settings, "id": "4f1c"}))
        case "resumed.json":
            begun = {"begun_slots": {name: settings[name] for name in vars(before.slots)}}
            here = settings | {"concurrency": 1, "cpus_per_trial": 0.5}
            (tmp_path / form).write_text(json.dumps({"schema": 1, "settings": here, "id": "4f1c", **begun}))
        case "options.yaml":
            (tmp_path / form).write_text(yaml.safe_dump(settings))
        case _:
            (tmp_path / form).write_text(json.dumps(settings))
    with monkeypatch.context() as patch:
        again = options_of(["--config", form], patch)
    with contextlib.ExitStack() as stack:
        assert settling.settle(again, stack, dry_run=True).settings == before


def test_on_a_cluster_the_concurrency_that_was_asked_for_is_the_option() -> None:
    recorded = {"address": "auto", "concurrency": 12, "limit": None, "time_budget": 90.0}
    assert as_options(recorded) == {"address": "auto", "concurrency": None, "time_budget": "90.000000s"}
    assert as_options({"samples": 3, "concurrency": 2}) == {"samples": 3, "concurrency": 2}
    assert as_options({"time-budget": 10**400, "time_budget": True}) == {
        "time-budget": f"{10**400}s",
        "time_budget": True,
    }


RATES = (1e-3, 1.0)


def rate(trial: Any) -> Any:
    return trial.suggest_float("learning_rate", *RATES, log=True)


def drawn(trial: Any) -> dict[str, Any]:
    return {"learning_rate": rate(trial), "weight_decay": float(np.float32(0.5))}


def test_a_function_is_kept_with_what_it_reads() -> None:
    place: dict[str, Any] = {}
    exec(compile(module_of(drawn), "space.py", "exec"), place)
    assert place["RATES"] == RATES and place["np"] is np

    class Trial:
        def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
            return low + high

    assert place["space"](Trial()) == {"learning_rate": 1.001, "weight_decay": 0.5}


def test_what_lies_beside_a_function_as_beside_a_space_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drawn.__globals__, "FIRST", [{"width": 12}])
    monkeypatch.setitem(drawn.__globals__, "GPU_ONLY", {"network": ["resnet18"]})
    place: dict[str, Any] = {}
    exec(compile(module_of(drawn), "space.py", "exec"), place)
    assert (place["FIRST"], place["GPU_ONLY"]) == ([{"width": 12}], {"network": ["resnet18"]})
    monkeypatch.setitem(drawn.__globals__, "FIRST", [{"width": object()}])
    with pytest.raises(UserError, match=r"^FIRST of search space drawn must have texts, .* but 'width' is <object"):
        module_of(drawn)
    monkeypatch.setitem(drawn.__globals__, "FIRST", ({"learning_rate": np.float64(0.1)},))
    exec(compile(module_of(drawn), "space.py", "exec"), place)
    assert place["FIRST"] == [{"learning_rate": 0.1}] and type(place["FIRST"][0]["learning_rate"]) is float


@pytest.mark.parametrize("value", [None, np.float32, print, {"width": 12}, [12], object()])
def test_what_else_is_called_as_a_part_of_a_space_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    notes, place = list[str](), dict[str, Any]()
    for name in ("FIRST", "GPU_ONLY"):
        monkeypatch.setitem(drawn.__globals__, name, value)
    exec(compile(module_of(drawn, notes.append), "space.py", "exec"), place)
    assert not {"FIRST", "GPU_ONLY"} & set(place)
    assert notes == [
        "FIRST beside drawn is not a list of points {name: value}, and no part of the search space.",
        "GPU_ONLY beside drawn is not {name: [choice, ...]}, and no part of the search space.",
    ]


FIRST = 16


def own_first(trial: Any) -> dict[str, Any]:
    return {"width": trial.suggest_categorical("width", [FIRST])}


def test_a_function_that_reads_what_a_space_has_for_itself_is_refused() -> None:
    said = (
        r"^own_first must read nothing called 'FIRST', which is a list of points .* but got 16\. Give it another name"
    )
    with pytest.raises(UserError, match=said):
        module_of(own_first)


def test_a_function_that_reads_something_called_space_is_refused() -> None:
    space = (0.1, 0.2)

    def make(trial: Any) -> dict[str, Any]:
        return {"learning_rate": trial.suggest_float("learning_rate", *space)}

    with pytest.raises(UserError, match=r"^make must read nothing called 'space', which its run calls make itself"):
        module_of(make)


def test_a_function_within_another_is_kept_with_the_values_around_it() -> None:
    width, data = 4, object()

    def space(trial: Any) -> dict[str, Any]:
        return {"width": width}

    def wrong(trial: Any) -> dict[str, Any]:
        return {"width": data}

    place: dict[str, Any] = {}
    exec(compile(module_of(space), "space.py", "exec"), place)
    assert place["space"](None) == {"width": 4}
    with pytest.raises(UserError, match=r"space must read only what its run can keep, but wrong reads 'data'\. Define"):
        module_of(wrong)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Returns what writes a module of the user's and returns it, imported; none stays so."""
    import importlib

    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> Any:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return write


RATE = "def rate(trial):\n    return scale(trial) * trial.suggest_float('rate', 0.001, 0.01)\n"
BATCH = "def space(trial):\n    return {'learning_rate': rate(trial), 'batch_size': scale(trial)}\n"


@pytest.mark.parametrize(
    ("there", "here", "reader"),
    [
        ("def scale(trial):\n    return 10.0\n", "def scale(trial):\n    return 128\n", "space"),
        ("scale = float\n", "def scale(trial):\n    return 128\n", "space"),
        ("def scale(trial):\n    return 10.0\n", "class scale(int):\n    pass\n", "space"),
        ("def scale(trial):\n    return max(trial)\ndef max(trial):\n    return 10.0\n", "scale = max\n", "space"),
    ],
)
def test_two_things_of_one_name_are_refused(
    written: Callable[[str, str], Any], there: str, here: str, reader: str
) -> None:
    written("those", there + RATE)
    module = written("these", f"from those import rate\n{here}{BATCH}")
    with pytest.raises(UserError, match=rf"^space must read one thing called 'scale', but {reader} reads another\."):
        module_of(module.space)


def test_one_function_that_two_modules_read_is_kept_once(written: Callable[[str, str], Any]) -> None:
    written("those", f"FACTOR = 10.0\ndef scale(trial):\n    return FACTOR\n{RATE}")
    body = BATCH.replace("scale(trial)", "scale(trial) * FACTOR")
    module = written("these", f"from those import rate, scale\nFACTOR = 10.0\n{body}")
    text = module_of(module.space)
    assert (text.count("def scale"), text.count("FACTOR = 10.0")) == (1, 1)


@pytest.mark.parametrize("own", ["", "max = 3\n"])
def test_what_is_pythons_in_one_module_and_the_users_in_another_is_refused(
    written: Callable[[str, str], Any], own: str
) -> None:
    written("those", f"{own}def rate(trial):\n    return max\n")
    theirs = "" if own else "def max(*numbers):\n    return 7\n"
    body = "def space(trial):\n    return {'batch_size': max(8, 64), 'learning_rate': rate(trial)}\n"
    module = written("these", f"from those import rate\n{theirs}{body}")
    with pytest.raises(UserError, match=r"^space must read one thing called 'max', but rate reads another\."):
        module_of(module.space)


def test_a_function_under_whose_name_it_finds_another_is_refused(written: Callable[[str, str], Any]) -> None:
    text = "def deep(n):\n    return deep(n - 1) if n else 1\nfirst = deep\ndef deep(n):\n    return 2\n"
    module = written("these", text)
    with pytest.raises(UserError, match=r"^space must read one thing called 'deep', but deep reads another\."):
        module_of(module.first)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda trial: {}, r"^space must be a function that `def` defines, a name or a file, but got <function"),
        (dict, r"^space must be a function that `def` defines"),
        (eval("exec('def f(trial): return {}') or locals()['f']", {}), r"^The source of f cannot be had: .*FILE\.py"),
    ],
)
def test_a_function_that_cannot_be_kept_is_refused(function: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        module_of(function)


WIDTH = 8


def with_a_default(trial: Any, width: int = WIDTH, *, batch_size: int = 2**5) -> dict[str, Any]:
    return {"width": width, "batch_size": batch_size}


def test_a_default_that_would_be_another_one_now_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    place: dict[str, Any] = {}
    exec(compile(module_of(with_a_default), "space.py", "exec"), place)
    assert place["space"](None) == {"width": 8, "batch_size": 32}
    monkeypatch.setitem(with_a_default.__globals__, "WIDTH", 16)
    with pytest.raises(UserError, match="The default WIDTH of with_a_default has another value now than when"):
        module_of(with_a_default)


def test_annotations_that_only_a_type_checker_can_read_are_kept_as_they_are(
    written: Callable[[str, str], Any], tmp_path: Path
) -> None:
    begins = (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import optuna\n"
    )
    data = "from dataclasses import dataclass\n@dataclass\nclass Sizes:\n    batch: int = 32\n"
    body = "def drawn(trial: optuna.Trial) -> dict[str, float]:\n    return {'batch_size': Sizes().batch}\n"
    text = module_of(written("these", begins + data + body).drawn)
    assert text.startswith("from __future__ import annotations\n")
    (tmp_path / "kept.py").write_text(text)
    assert load_space(str(tmp_path / "kept.py")).define(None) == {"batch_size": 32}
    assert "__future__" not in module_of(written("those", "def space(trial: object):\n    return {}\n").space)


def test_submodules_that_a_function_reads_are_imported(written: Callable[[str, str], Any]) -> None:
    code = (
        "import sys\nfrom tuning.sampling.function_source import module_of\nfrom these import space\n"
        "text = module_of(space)\nfor name in [name for name in sys.modules if name.startswith('xml')]:\n"
        "    del sys.modules[name]\nplace = {}\nexec(text, place)\nprint(place['space'](None))\n"
    )
    written("those", "import xml.dom.minidom\ndef width(text):\n    return xml.dom.minidom.parseString(text)\n")
    body = "import xml.etree.ElementTree\nfrom those import width\ndef space(trial):\n    width('<a/>')\n"
    module = written("these", f"{body}    return {{'width': len(xml.etree.ElementTree.fromstring('<a><b/></a>'))}}\n")
    folder = str(Path(module.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "{'width': 1}\n", done.stderr


def noted(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@noted
def decorated(trial: Any) -> dict[str, Any]:
    return {}


def test_decorators_are_refused() -> None:
    with pytest.raises(UserError, match="space must be made of plain functions, but decorated has a decorator"):
        module_of(decorated)


def test_an_interrupted_search_raises_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupted(settings: Any, path: Path, *given: Any, resumed: bool) -> None:
        files.write_json(path / "meta.json", run_folder.Run(path).meta | {"stopped_by": "interrupt"})

    monkeypatch.setattr(loading, "load", lambda settings, source, progress, own: (settings, None, space_of(source)))
    monkeypatch.setattr(session, "search", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^Interrupted\. Resume it with: search\.run\(resume='one'\)$"):
        search.run(space="smoke", run="one", progress=False)


def test_where_ray_does_not_start_the_run_stays_and_how_it_is_resumed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def too_busy(*given: Any, resumed: bool) -> None:
        raise local_ray.StartError("Ray did not start.")

    monkeypatch.setattr(loading, "load", lambda settings, source, progress, own: (settings, None, space_of(source)))
    monkeypatch.setattr(session, "search", too_busy)
    said = r"^Ray did not start\. The run folder results/one stays\. Resume it with: search\.run\(resume='one'\)$"
    with pytest.raises(UserError, match=said):
        search.run(space="smoke", run="one", progress=False)
    assert (tmp_path / "results" / "one" / "meta.json").exists()


def space_of(source: str) -> Any:
    from tuning.sampling.spaces import load_space

    return load_space(source)


@pytest.mark.parametrize("shape", [(3, 9, 8), (3, 2, 10, 8), (10, 8)])
def test_images_of_another_form_are_said(tmp_path: Path, shape: tuple[int, ...]) -> None:
    from test_predict import write_model

    best = predict.load(write_model(tmp_path / "m"))
    with pytest.raises(UserError, match=r"^images must be uint8 \(N, 1, 10, 8\), but got uint8 \("):
        best.predict(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=r"but got float64 \(3, 10, 8\)\.$"):
        best.predict(np.zeros((3, 10, 8)))  # type: ignore[arg-type]


def test_arrays_and_files_are_predicted_alike(tmp_path: Path) -> None:
    from PIL import Image
    from test_predict import shape_on, write_model

    best = predict.load(write_model(tmp_path / "m"))
    pixels = np.stack([shape_on(0), shape_on(40)])
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    by_file = best.predict([str(tmp_path / "0.png"), tmp_path / "1.png"])
    by_array = best.predict(pixels)
    assert [each.probability for each in by_file] == pytest.approx([each.probability for each in by_array])
    assert by_array == best.predict(pixels[:, None]) and by_array[0].path is None
    [alone] = best.predict(tmp_path / "0.png")
    assert (alone.path, alone.class_name) == (tmp_path / "0.png", by_file[0].class_name)
    assert best.predict([]) == best.predict(pixels[:0]) == []


def test_progress_can_be_silent_and_has_one_output_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown.Progress(2, silent=True) as progress:
        progress.note("a note")
    assert capsys.readouterr().out == ""
    pictures: list[dict[str, str]] = []

    class Handle:
        def update(self, picture: dict[str, str], *, raw: bool) -> None:
            pictures.append(picture)

    def display(picture: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        pictures.append(picture)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(shown, "_in_notebook", lambda: True)
    with shown.Progress(2, console=Console(file=io.StringIO(), force_jupyter=False)) as progress:
        row = {"trial": 0, "state": "running", "epochs": 0, "config/architecture": "resnet8", "config/epochs": 2}
        progress.started(row)
        progress.ended(row | {"state": "complete", "valid_accuracy": 0.5, "epochs": 2})
    assert "1/2 trials" in pictures[-1]["text/plain"] and "50.00%" in pictures[-1]["text/html"]


def test_options_of_typer_that_python_alone_has_are_left_out_of_the_command() -> None:
    def run(*, samples: Annotated[int, typer.Option(min=1, help="So many.")] = 3, progress: bool = True) -> None:
        """Runs."""

    @doors.over(run)
    def main(asked: doors.Asked, *, quiet: Annotated[bool, typer.Option("--quiet")] = False) -> None:
        """Run."""
        print(asked.samples, sorted(asked.given), quiet)

    app = typer.Typer()
    app.command()(main)
    assert CliRunner().invoke(app, ["--samples", "3", "--quiet"]).output == "3 ['samples'] True\n"
    assert CliRunner().invoke(app, []).output == "3 [] False\n"
    assert CliRunner().invoke(app, ["--progress"]).exit_code == 2


@pytest.mark.slow
def test_a_script_goes_from_a_search_to_its_winner_and_searches_in_another_thread(tmp_path: Path) -> None:
    """Without a guard of its main module, as a notebook has none."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("quiet so far\nRun results/mine: 1 sample, ")

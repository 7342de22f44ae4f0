"""The recorder of learning curves and its reader: what is on disk after a kill, and what a replayed search reads."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import portfolio
import pytest
import record_curves
import recording
import search_quality
import tables
from conftest import patterned_images
from methods import METHODS, named
from recording import Recording
from simulation import Method, Ours, simulate

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import SCHEDULERS
from tuning.images.splitting import Splits
from tuning.sampling.spaces import Space, load_space

SPACE = """
GPU_ONLY = {"network": ["resnet8-64"]}


def space(trial):
    network = trial.suggest_categorical("network", ["resnet8-4", "resnet8-8", "resnet8-64"])
    architecture, _, width = network.partition("-")
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    config = {"architecture": architecture, "width": int(width), "optimizer": optimizer, "batch_size": 32}
    if optimizer == "sgd":
        config["learning_rate"] = trial.suggest_float("learning_rate_sgd", 1e-3, 1e-1, log=True)
        config["momentum"] = trial.suggest_float("momentum", 0.0, 0.9)
    else:
        config["learning_rate"] = trial.suggest_float("learning_rate_adamw", 1e-4, 1e-2, log=True)
    config["schedule"] = trial.suggest_categorical("schedule", ["onecycle", "plateau"])
    return config
"""
FACTS: dict[str, Any] = {
    **{"dataset": "patterns", "split_hash": "0123456789ab", "space": "small", "epochs": 3, "metric": "accuracy"},
    **{"left_out": {"network": ["resnet8-64"]}, "precision": "fp32", "device": "cpu", "seed": 0},
}
SESSION = {"hardware": {"cpu": "one", "gpus": []}}


@pytest.fixture
def space(tmp_path: Path) -> Space:
    file = tmp_path / "small.py"
    file.write_text(SPACE)
    return load_space(str(file)).without(FACTS["left_out"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image-classifiers" / "patterns.csv"


def rows_of(number: int, repeat: int = 0, accuracies: tuple[float, ...] = (0.5, 0.8, 0.7)) -> list[dict[str, Any]]:
    """Returns the rows of a training whose epochs take `number + 1` seconds; NaN is where it diverges."""
    rows = []
    for epoch, accuracy in enumerate(accuracies, start=1):
        diverged = math.isnan(accuracy)
        finished = "diverged" if diverged else "length" if epoch == len(accuracies) else ""
        row = {"configuration": number, "repeat": repeat, "seed": 1, "epoch": epoch, "session": 0}
        row |= {"seconds": 9.0, "cpu_seconds": number + 1.0, "finished": finished}
        rows.append(row if diverged else row | {"valid_accuracy": accuracy, "valid_loss": 1.0})
    return rows


def record(path: Path, space: Space, trainings: list[list[dict[str, Any]]], **facts: Any) -> None:
    with Recording(path, FACTS | facts) as opened:
        opened.begin(space, 8, SESSION)
        for rows in trainings:
            opened.append(rows)


def test_a_point_depends_on_the_seed_and_its_number_alone(space: Space) -> None:
    points = [recording.draw(space, 0, number, 3) for number in range(20)]
    assert [recording.draw(space, 0, number, 3) for number in (7, 3)] == [points[7], points[3]]
    assert recording.draw(space, 1, 3, 3) != points[3]
    assert len({json.dumps(point) for point in points}) == 20
    assert {point["network"] for point in points} == {"resnet8-4", "resnet8-8"}  # Without the one for GPUs.
    assert recording.config_of(space, points[0], 3).epochs == 3


def test_each_configuration_is_trained_once_before_any_is_repeated() -> None:
    assert recording.planned(3, 2, 3) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert recording.planned(1, 50, 2) == [(0, 0), (0, 1)]
    assert len({recording.training_seed(0, job) for job in recording.planned(3, 2, 3)}) == 7


def test_a_recording_goes_on_with_its_points_and_its_space(path: Path, space: Space) -> None:
    record(path, space, [rows_of(0), rows_of(1)])
    facts, frame = recording.read(path)
    other = replace(space, source="")
    with Recording(path, FACTS) as opened:
        assert opened.done == {(0, 0), (1, 0)}
        assert opened.begin(other, 9, SESSION) == 1
        opened.append(rows_of(2, accuracies=(0.5, math.nan)))
    again, longer = recording.read(path)
    assert again["points"][:8] == facts["points"] == [recording.draw(space, 0, number, 3) for number in range(8)]
    assert len(again["points"]) == 9 and len(again["sessions"]) == 2
    assert recording.space_file(path).read_text() == SPACE
    pd.testing.assert_frame_equal(longer[:6], frame)
    assert longer["finished"].tolist() == ["", "", "length"] * 2 + ["", "diverged"]
    assert longer["valid_accuracy"].tolist()[:3] == [0.5, 0.8, 0.7] and math.isnan(longer["valid_accuracy"].iloc[-1])


@pytest.mark.parametrize("lost", [1, 20, 60])
def test_a_torn_training_is_cut_off_and_trained_again(lost: int, path: Path, space: Space) -> None:
    record(path, space, [rows_of(0)])
    whole = path.read_bytes()
    record(path, space, [rows_of(1)])
    both = path.read_bytes()
    path.write_bytes(both[:-lost])
    assert len(recording.read(path)[1]) == 3  # A reader passes over it.
    with Recording(path, FACTS) as opened:
        assert opened.done == {(0, 0)} and path.read_bytes() == whole
        opened.append(rows_of(1))
    assert path.read_bytes() == both


@pytest.mark.parametrize("left", [0, 1, 30])
def test_a_recording_that_was_killed_at_its_first_line_begins_anew(left: int, path: Path, space: Space) -> None:
    record(path, space, [])
    header = path.read_bytes()
    path.write_bytes(header[:left])
    record(path, space, [])
    assert path.read_bytes() == header


def test_a_recording_that_was_begun_in_another_way_is_refused(path: Path, space: Space) -> None:
    record(path, space, [])
    with pytest.raises(UserError, match=r"^epochs must be 3, as .*patterns\.csv was begun with, but got 6\. Ch"):
        record(path, space, [], epochs=6)
    with pytest.raises(UserError, match=r"^left_out must be \{'network': "):
        record(path, space, [], left_out={})
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"patterns\.csv must be a recording of this version, but its first line is"):
        record(path, space, [])


def test_two_processes_do_not_record_into_one_file(path: Path, space: Space) -> None:
    with Recording(path, FACTS), pytest.raises(UserError, match=r"patterns\.csv is in use: another process records"):
        Recording(path, FACTS)
    Recording(path, FACTS).__exit__(None, None, None)


def test_noise_is_pooled_over_configurations_with_several_seeds(path: Path, space: Space) -> None:
    values = {(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.6, (1, 1): 0.6, (1, 2): 0.9, (2, 0): 0.1, (3, 0): 0.4}
    trainings = [rows_of(*job, accuracies=(0.1, value)) for job, value in values.items()]
    record(path, space, [*trainings, rows_of(3, 1, (0.4, math.nan))])  # Of 3 one has diverged, 2 has no other.
    found = recording.finals(recording.read(path)[1], "valid_accuracy")
    assert found["value"].tolist()[:3] == [0.5, 0.7, 0.6] and found["value"].isna().sum() == 1
    assert recording.noise(found) == pytest.approx(math.sqrt((1 * 0.02 + 2 * 0.03) / 3))
    assert math.isnan(recording.noise(found[found["repeat"] == 0]))


def test_machines_of_several_kinds_are_told_apart() -> None:
    other = {"hardware": {"cpu": "two", "gpus": []}}
    assert not recording.mixed([SESSION, SESSION]) and recording.mixed([SESSION, other])


def test_curves_are_replayed_with_their_seconds_and_schedules(path: Path, space: Space) -> None:
    early = rows_of(2, accuracies=(0.6, 0.5))  # Ended by itself before its length.
    record(path, space, [rows_of(0), rows_of(0, 1), rows_of(1, accuracies=(0.4, math.nan)), early])
    points = recording.read(path)[0]["points"]
    assert tables.names(path.parent.parent) == {"patterns": "image-classifiers"}
    task = tables.load(path.parent.parent, "image-classifiers", "patterns")
    whole, diverged, shorter = (task.curve(points[number]) for number in range(3))
    np.testing.assert_allclose(whole.values, [0.5, 0.8, 0.8])
    np.testing.assert_allclose(whole.costs, [1, 2, 3])
    np.testing.assert_allclose(diverged.values, [0.4, math.nan, math.nan])
    np.testing.assert_allclose(diverged.costs, [2, 4, 6])
    np.testing.assert_allclose(shorter.values, [0.6, 0.6])
    assert (task.epochs, task.best, task.median, task.cost) == (3, 0.8, 0.6, 6)
    assert task.known(points[1])["schedule"] == points[1]["schedule"] and task.known(points[1])["epochs"] == 3
    trials = simulate(task, Method(named("random"), SCHEDULERS.load("none")), slots=1, samples=3, seed=0)
    assert sorted((trial.state, trial.epochs) for trial in trials) == [("complete", 2), ("complete", 3), ("failed", 2)]
    with pytest.raises(UserError, match="--samples must be at most the 3 configurations of patterns, but got more"):
        simulate(task, Method(named("random"), SCHEDULERS.load("none")), slots=1, samples=4, seed=0)


def test_a_table_without_a_training_is_refused(path: Path, space: Space) -> None:
    record(path, space, [])
    with pytest.raises(UserError, match=r"patterns\.csv must have the trainings of .*, but has none yet\. Run"):
        tables.load(path.parent.parent, "image-classifiers", "patterns")


def test_of_a_loss_the_merit_is_replayed_and_on_a_gpu_the_clock(path: Path, space: Space) -> None:
    rows = [row | {"valid_score": score} for row, score in zip(rows_of(0), (2.0, 1.0, 1.5), strict=True)]
    record(path, space, [rows, rows_of(1)], metric="log_loss", device="cuda")
    task = tables.load(path.parent.parent, "image-classifiers", "patterns")
    curve = task.curve(recording.read(path)[0]["points"][0])
    np.testing.assert_allclose(curve.values, np.exp([-2.0, -1.0, -1.0]))
    np.testing.assert_allclose(curve.costs, [9, 18, 27])


@pytest.fixture
def recorded(path: Path, space: Space) -> tables.Task:
    """A table of 40 configurations: AdamW is the better the nearer its rate is to 1e-3, SGD is worse."""
    with Recording(path, FACTS) as opened:
        opened.begin(space, 40, SESSION)
        for number, point in enumerate(opened.facts["points"]):
            away = abs(math.log10(point.get("learning_rate_adamw", 1e-5)) + 3)
            opened.append(rows_of(number, accuracies=tuple(0.9 - 0.1 * away - 0.2 / epoch for epoch in (1, 2, 3))))
    return tables.load(path.parent.parent, "image-classifiers", "patterns")


def test_the_nearest_configuration_answers_and_the_optimizer_counts_most(path: Path, recorded: tables.Task) -> None:
    points = recording.read(path)[0]["points"]
    assert recorded.snap is not None
    asked = next(point for point in points if point["optimizer"] == "adamw")
    of_adamw = sum(point["optimizer"] == "adamw" for point in points)
    taken: set[int] = set()
    answers = [recorded.snap({**asked, "learning_rate_adamw": 2e-3}, taken)[0] for _ in points]
    assert len({json.dumps(answer) for answer in answers}) == len(points)
    assert {answer["optimizer"] for answer in answers[:of_adamw]} == {"adamw"}
    assert {answer["optimizer"] for answer in answers[of_adamw:]} == {"sgd"}
    alike = [
        a
        for a in answers[:of_adamw]
        if (a["network"], a["schedule"]) == (answers[0]["network"], answers[0]["schedule"])
    ]
    away = [abs(math.log10(answer["learning_rate_adamw"] / 2e-3)) for answer in alike]
    assert away == sorted(away) and len(away) > 2
    taken = set()
    assert recorded.snap(asked, taken)[1] == asked


def test_a_replay_may_begin_with_the_first_points_of_the_space_of_today(
    path: Path, recorded: tables.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = recording.read(path)[0]["points"]
    assert recorded.first == []
    first = [points[7], {**points[7], "network": "resnet8-64"}, points[3]]  # Of which one needs a GPU.
    today = replace(load_space("smoke"), first=first)
    monkeypatch.setattr("tables.image_classifiers.space_names", lambda: ["small"])
    monkeypatch.setattr(
        "tables.image_classifiers.load_space", lambda name: today if name == "small" else load_space(name)
    )
    task = tables.load(path.parent.parent, "image-classifiers", "patterns")
    assert task.first == [points[7], points[3]]
    trials = simulate(task, METHODS["ours, first points"], slots=1, samples=5, seed=0)
    curves = [task.curve(dict(point)) for point in task.first]
    values = [max(curve.values) for curve in curves]
    assert [trial.value for trial in trials[:2]] == values and len(trials) == 5
    beside = replace(METHODS["ours, first points"], interleaved=True)
    trials = simulate(task, beside, slots=1, samples=5, seed=0)
    assert [trials[1].value, trials[3].value] == values


@pytest.mark.parametrize("name", ["ours", "tpe + asha", "stock"])
def test_the_study_of_a_replayed_search_has_the_recorded_points(path: Path, recorded: tables.Task, name: str) -> None:
    points, told = recording.read(path)[0]["points"], []
    method = METHODS[name]

    class Told(method.told):  # type: ignore[name-defined, misc]
        @staticmethod
        def end(study: Any, number: int, values: list[float], finished: bool) -> None:
            told.append(study.get_trials()[number])
            method.told.end(study, number, values, finished)

    trials = simulate(recorded, replace(method, told=Told), slots=2, samples=30, seed=0)
    assert all(trial.params in points and trial.distributions.keys() == trial.params.keys() for trial in told)
    assert len({json.dumps(trial.params, sort_keys=True) for trial in told}) == 30
    assert all(trial.user_attrs["config"]["schedule"] == trial.params["schedule"] for trial in told)
    offered = {trial.distributions["network"] for trial in told}
    assert offered == {optuna.distributions.CategoricalDistribution(("resnet8-4", "resnet8-8"))}
    assert min(trial.regret for trial in trials) == 0


def test_trials_of_a_replay_are_compared_with_those_of_their_schedule(recorded: tables.Task) -> None:
    shown: dict[str, set[str]] = {}

    class Asked:
        def __init__(self, epochs: int, seed: int) -> None:
            self._scheduler: Any = SCHEDULERS.load("asha")(epochs, seed)

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def asked(controller: Any, stand_in: Any, *given: Any) -> Any:
                shown.setdefault(stand_in.config["config"]["schedule"], set()).add(
                    id(self._scheduler._of(stand_in))  # type: ignore[arg-type]
                )
                return getattr(self._scheduler, name)(controller, stand_in, *given)

            return asked

    simulate(recorded, Method(named("random"), Asked, Ours), slots=2, samples=20, seed=0)
    assert len(shown["onecycle"]) == len(shown["plateau"]) == 1 and shown["onecycle"] != shown["plateau"]


def test_a_benchmark_of_search_quality_has_a_row_a_trial(path: Path, recorded: tables.Task) -> None:
    one = search_quality.Search("patterns", "ours", slots=2, seed=0)
    rows = search_quality.run(path.parent.parent, "image-classifiers", one, samples=5)
    ends = [row["trial"] for row in rows if row["state"] != "shown"]
    assert ends == list(range(5)) and {row["task"] for row in rows} == {"patterns"}


def test_a_training_is_a_row_an_epoch_and_ends_where_it_diverges(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"splits": splits, "device": "cpu", "metric": "macro_f1"}.items():
        monkeypatch.setitem(record_curves._worker, name, value)
    rows = record_curves.train(tiny.model_copy(update={"epochs": 2}), (4, 1), 7, 3)
    assert [(row["epoch"], row["finished"]) for row in rows] == [(1, ""), (2, "length")]
    assert {(row["configuration"], row["repeat"], row["seed"], row["session"]) for row in rows} == {(4, 1, 7, 3)}
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 and 0 < row["valid_score"] < 1 for row in rows)

    # Weight decay of 1 at a learning rate of 10 multiplies the weights by -9 a step.
    values = {"learning_rate": 10.0, "weight_decay": 1.0, "momentum": 0.0, "schedule": "constant", "batch_size": 8}
    [row] = record_curves.train(tiny.model_copy(update=values), (4, 1), 7, 3)
    assert (row["epoch"], row["finished"]) == (1, "diverged") and row["seconds"] > 0
    assert "valid_accuracy" not in row


def command(folder: Path, *more: str) -> list[str]:
    script = str(Path(record_curves.__file__))
    options = "--epochs 2 --precision fp32 --configurations 4 --repeats 2 --seeds 2 --processes 1"
    images = ["--dataset", str(folder / "patterns.npz"), "--space", str(folder / "small.py")]
    return [sys.executable, script, "--out", str(folder / "tables" / "patterns.csv"), *images, *options.split(), *more]


@pytest.mark.slow
def test_a_killed_recording_goes_on_and_a_search_is_replayed_on_it(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    found = patterned_images(400)
    np.savez(tmp_path / "patterns.npz", images=found.images, labels=found.labels)
    table = tmp_path / "tables" / "patterns.csv"
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(command(tmp_path), cwd=tmp_path, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 300
            while not (table.exists() and b"length" in table.read_bytes()):
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "log.txt").read_text()
                time.sleep(0.02)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    known = table.read_text()
    before = known[: known.rfind("length,0\n") + len("length,0\n")]
    while any(_trains(int(child)) for child in children):  # They end with the process that began them.
        assert time.monotonic() < until
        time.sleep(0.02)
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command(tmp_path, "--minutes", "0"), check=True, **run)  # type: ignore[call-overload]
    assert "of 6 trainings are recorded" in done.stdout and table.read_text() == before
    (tmp_path / "small.py").write_text(SPACE.replace("1e-4", "1e-3"))
    done = subprocess.run(command(tmp_path), check=True, **run)  # type: ignore[call-overload]
    assert re.search(r"^6 of 6: configuration 1, repeat 1: valid_accuracy [01]\.\d{4}, 2 epochs in", done.stdout, re.M)
    assert "On a CPU the space" in done.stdout and "leaves out: network resnet8-64" in done.stdout
    assert "has changed since" in done.stdout and "cores of" in done.stdout
    assert table.read_text().startswith(before)
    facts, frame = recording.read(table)
    assert frame.groupby(["configuration", "repeat"]).size().tolist() == [2] * 6
    assert facts["points"] == [recording.draw(space, 0, number, 2) for number in range(4)]
    assert str(tmp_path) not in recording.facts_file(table).read_text()
    with table.open(newline="") as file:
        assert next(csv.reader(file)) == list(recording.COLUMNS)
    table.parent.rename(tmp_path / "image-classifiers")
    task = tables.load(tmp_path, "image-classifiers", "patterns")
    trials = simulate(task, METHODS["ours"], slots=1, samples=4, seed=0)
    assert max(trial.value for trial in trials) == pytest.approx(frame[frame["repeat"] == 0]["valid_accuracy"].max())


def _trains(pid: int) -> bool:
    """Returns whether a process is alive."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_the_command_cannot_take_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        record_curves.main(["--out", str(tmp_path / "x.csv"), "--image-size", "32"])
    assert ended.value.code == 2
    assert "error: --image-size must be used with images of your own, but got --dataset" in capsys.readouterr().err


def test_a_portfolio_is_chosen_on_other_data_sets_than_it_is_judged_on(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a and b configuration 2 is best; on c it is the median, and 5 is best, which is second everywhere."""
    values = {
        "a": [0.1, 0.2, 0.9, 0.3, 0.4, 0.8, 0.5],
        "b": [0.2, 0.1, 0.9, 0.4, 0.3, 0.8, math.nan],
        "c": [0.8, 0.1, 0.5, 0.2, 0.6, 0.9, 0.3],
    }
    for name, reached in values.items():
        trainings = [rows_of(number, accuracies=(value,)) for number, value in enumerate(reached)]
        record(tmp_path / "image-classifiers" / f"{name}.csv", space, trainings)
    known, points = portfolio.regrets(tmp_path, "small")
    assert known.shape == (7, 3) and known.loc[2].tolist() == [0.0, 0.0, 1.0]
    assert known.loc[6, "b"] == pytest.approx(portfolio.WORST)
    assert points == [recording.draw(space, 0, number, 3) for number in range(8)]
    assert portfolio.chosen(known.to_numpy(), 2) == [5, 2] and portfolio.chosen(known[["a", "b"]].to_numpy(), 1) == [2]
    rows = {row["data_set"]: row for row in portfolio.left_out(known, 2)}
    assert [rows["c"][name] for name in ("first 1", "first 2", "worth")] == pytest.approx([1.0, 0.0, 7])
    out = tmp_path / "table.csv"
    monkeypatch.setattr(sys, "argv", ["portfolio.py", "--tables", str(tmp_path), "--space", "small", "--out", str(out)])
    portfolio.main()
    assert pd.read_csv(out)["first 1"].tolist()[2] == pytest.approx(1.0)
    monkeypatch.setattr(portfolio, "SAMPLES", 4)
    monkeypatch.setattr(portfolio, "READ_AT", (1, 4))
    found = portfolio.searches(tmp_path, known, points, size=1, seeds=1).set_index(["data_set", "method"])
    for name in "abc":
        (row,) = portfolio.chosen(known.drop(columns=name).to_numpy(), 1)
        assert found.loc[(name, portfolio.BEGUN), "after 1 trials"] == pytest.approx(known.loc[row, name])


def test_the_best_of_some_random_configurations_is_that_of_many_draws() -> None:
    regret, generator = np.random.default_rng(0).random(12), np.random.default_rng(1)
    drawn = [regret[generator.choice(12, 5, replace=False)].min() for _ in range(4000)]
    assert portfolio.of_random(regret, 5) == pytest.approx(np.mean(drawn), abs=0.005)
    assert portfolio.of_random(regret, 12) == pytest.approx(regret.min())


def test_recordings_that_have_other_configurations_or_are_alone_make_no_portfolio(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["portfolio.py", "--tables", str(tmp_path), "--space", "small"]
    monkeypatch.setattr(sys, "argv", command)
    for seed, said in enumerate(["but small has one: 0", "1.json must have the configurations of 0: record it with"]):
        record(tmp_path / "image-classifiers" / f"{seed}.csv", space, [rows_of(n) for n in range(3)], seed=seed)
        with pytest.raises(SystemExit):
            portfolio.main()
        assert said in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--space", "large"])
    with pytest.raises(SystemExit):
        portfolio.main()
    assert "--space must be one that" in capsys.readouterr().err

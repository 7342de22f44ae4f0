"""Another metric than the accuracy, everywhere: search, ranking, frames, `final`, tables, pictures and pages."""

import io
import json
import re
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import studies
from conftest import patterned_images
from matplotlib.figure import Figure
from rich.console import Console

from tuning import final, results
from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import ACCURACY, METRICS, OBJECTIVES, SCHEDULERS
from tuning.figures import importances, model_charts, run_charts, run_figures, run_page
from tuning.images import datasets, splitting
from tuning.images.datasets import Labelled
from tuning.images.splitting import Splits, imbalance, make_splits
from tuning.retraining import candidates, contest, opening, seeds
from tuning.retraining.candidates import Entry, Plan
from tuning.runs import analysis, beginnings, compare, final_models, run_folder, schema, summaries
from tuning.runs.beginnings import EarlierRun, EarlierTrial
from tuning.runs.verdicts import headline, verdicts
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy
from tuning.training import jobs
from tuning.training import metrics as metrics_of
from tuning.trials import audit
from tuning.trials.progress import Progress
from tuning.trials.schedulers import METRIC, StandIn, replay
from tuning.trials.settings import check_names
from tuning.trials.slots import Slots

pytestmark = pytest.mark.usefixtures("unrendered")

OTHERS = [name for name in METRICS if name != "accuracy"]
SLOTS = Slots("cpu", concurrency=1)
TINY = TrainConfig(width=4, batch_size=32, epochs=3, precision="fp32", learning_rate=0.05)


def value(name: str, good: float) -> float:
    """Returns a value of a metric that is better the greater `good`, in [0, 1], is."""
    return good if METRICS[name].greater_is_better else 2.0 * (1 - good)


def result(epoch: int, name: str, good: float, accuracy: float, finished: str = "") -> dict[str, Any]:
    row = studies.epoch(epoch, accuracy, finished)
    return row | {"valid_score": accuracy if name == "accuracy" else value(name, good), "valid_error": 0.01}


# What each of four trials has after each epoch: how good it is in the metric, and its accuracy, which says the reverse.
GOOD = {0: [0.2, 0.3, 0.25], 1: [0.5, 0.9, 0.6], 2: [0.3, 0.4, 0.6], 3: [0.1, 0.1, 0.2]}
ACCURACIES = {0: [0.7, 0.8, 0.9], 1: [0.2, 0.1, 0.3], 2: [0.3, 0.4, 0.5], 3: [0.8, 0.8, 0.8]}


def make_run(path: Path, name: str, minimize: str | None = None) -> run_folder.Run:
    """Returns a run of four trials that nobody trained; the last was stopped after its second epoch."""
    path.mkdir(parents=True)
    kept = {"seed": 0, "concurrency": 1, "epochs": 3, "space": "smoke", "dataset": "fashion-mnist", "sampler": "random"}
    meta = {"settings": kept | {"metric": name, "minimize": minimize}, "dataset": "fashion-mnist", "split_hash": "af0c"}
    files.write_json(path / "meta.json", meta | {"started": "2026-11-23T10:00:00+00:00"})
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = RunStudy(path, load_space("smoke"), sampler, epochs=3, seed=0, metric=name, minimize=minimize)
    for number in GOOD:
        proposal = studies.ask(study)
        n = 2 if number == 3 else 3
        for epoch in range(1, n + 1):
            good, accuracy = GOOD[number][epoch - 1], ACCURACIES[number][epoch - 1]
            row = result(epoch, name, good, accuracy, "length" * (epoch == 3))
            study.report(proposal.number, row | {"n_parameters": 1000 - 100 * number})
        study.finish(proposal.number, "scheduler")
    study.close(None)
    return run_folder.Run(path)


@pytest.fixture(params=METRICS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(tmp_path: Path, name: str) -> run_folder.Run:
    return make_run(tmp_path / "results" / "r", name)


def winner(name: str) -> int:
    """Returns the trial that is the best in a metric."""
    return 0 if name == "accuracy" else 1


# The search.


def test_the_sampler_maximises_the_merit(run: run_folder.Run, name: str) -> None:
    database = f"sqlite:///{run.path}/study.db"
    study = optuna.load_study(study_name=None, storage=database)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    [called] = study.metric_names or []
    expected = {"accuracy": "valid_accuracy", "log_loss": "exp(-valid_log_loss)"}.get(name, f"valid_{name}")
    assert called == expected
    metric = METRICS[name]
    for trial in study.trials:
        scores = run.epochs.loc[run.epochs["trial"] == trial.number, "valid_score"]
        assert list(trial.intermediate_values.values()) == pytest.approx([metric.merit(v) for v in scores])
        assert all(0 <= merit <= 1 for merit in trial.intermediate_values.values())
    assert study.best_trial.number == winner(name)
    assert study.best_value == pytest.approx(max(study.trials[winner(name)].intermediate_values.values()))


def test_the_frames_have_the_score_of_the_best_epoch(run: run_folder.Run, name: str) -> None:
    trials, epochs, metric = run.trials.set_index("trial"), run.epochs, METRICS[name]
    for number, rows in epochs.groupby("trial"):
        best = rows.iloc[int((metric.sign * rows["valid_score"]).argmax())]
        told = trials.loc[number]
        assert told["best_epoch"] == best["epoch"]
        for column in ("valid_score", "valid_accuracy", "valid_loss"):
            assert told[column] == best[column], column
    if name == "accuracy":
        assert (trials["valid_score"] == trials["valid_accuracy"]).all()
        assert (epochs["valid_score"] == epochs["valid_accuracy"]).all()
    assert run.metric is metric and run.best["trial"] == winner(name)
    ranked = run_folder.rank_trials(run.trials, run.path, metric)["trial"].tolist()
    assert ranked == ([0, 3, 2, 1] if name == "accuracy" else [1, 2, 0, 3])


@pytest.mark.parametrize("scheduler", [name for name, known in SCHEDULERS.items() if known.stops_trials])
def test_the_scheduler_stops_what_is_behind_in_the_metric(scheduler: str, name: str) -> None:
    def decision(good: float) -> str:
        built, metric = SCHEDULERS.load(scheduler)(9, 0), METRICS[name]
        before = {}
        for i in range(8):  # Those that are good in another metric have a poor accuracy.
            good_here, accuracy = 0.4 + i / 20, (0.4 + i / 20 if name == "accuracy" else 0.9 - i / 20)
            before[i] = ({"epochs": 9}, [result(epoch, name, good_here, accuracy) for epoch in range(1, 10)])
        replay(built, before, metric)
        trial: Any = StandIn("new", {"config": {"epochs": 9}, "trial": 8})
        controller: Any = SimpleNamespace(get_live_trials=lambda: [trial])
        built.on_trial_add(controller, trial)
        for epoch in range(1, 9):
            row = {"epoch": epoch, METRIC: metric.merit(value(name, good))}
            stopped = built.on_trial_result(controller, trial, row) == "STOP"
            if stopped and not (SCHEDULERS[scheduler].pauses_trials and built.promoted() == 8):
                return "STOP"
        return "CONTINUE"

    assert decision(0.1) == "STOP"
    assert decision(0.95) == "CONTINUE"


def test_a_front_is_that_of_the_metric(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "r", name, OBJECTIVES.default)
    front = run.trials.loc[run.trials["pareto"].fillna(False), "trial"].tolist()
    # Later trials are smaller: of those that are complete, 2 is the smallest, and beside it only who is better.
    assert front == ([0, 2] if name == "accuracy" else [1, 2])
    (ax,) = run_figures.pareto(run.trials, OBJECTIVES.default, run.metric).axes
    assert ax.get_ylabel() == f"validation {run.metric.title}"


def test_balanced_accuracy_and_accuracy_choose_different_winners(tmp_path: Path) -> None:
    chosen = {}
    for name in ("accuracy", "balanced_accuracy"):
        run = make_run(tmp_path / name, name)
        run_folder.write_best(run)
        best = json.loads((run.path / "best.json").read_text())
        chosen[name] = best["trial"]
        plan = candidates.from_run(str(run.path), top_k=1, n_seeds=1, compare=False)
        assert plan.metric == best["metric"] == name and plan.entries[0].trial == best["trial"]
        assert plan.entries[0].searched(METRICS[name]) == best[METRICS[name].column]
        assert plan.job(plan.entries[0], 1).metric == name
        assert best["why"].startswith(f"the best {METRICS[name].called} of 4 finished trials, in its epoch ")
    assert chosen == {"accuracy": 0, "balanced_accuracy": 1}


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    listed = ", ".join(sorted(METRICS))
    with pytest.raises(UserError, match=f"^--metric must be one of {listed}, but got 'f1'"):
        check_names("smoke", None, None, None, "f1")
    run = make_run(tmp_path / "r", "top5")
    meta = files.read_json(run.path / "meta.json")
    files.write_json(run.path / "meta.json", meta | {"settings": meta["settings"] | {"metric": "f2"}})
    with pytest.raises(UserError, match=rf"^The metric of .*r must be one of {listed}, but got 'f2'"):
        _ = run.metric
    with pytest.raises(UserError, match=r"^--metric must be used with --config, because a run keeps its own"):
        final.run(str(run.path), metric="top5", model_dir=tmp_path / "m", progress=False)
    (run.path / "meta.json").write_text("{")
    assert run.metric is ACCURACY and len(run.trials) == 4  # The frames can be read all the same.


def test_frames_of_version_0_2_0_have_their_accuracy_as_their_score(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "accuracy")
    for name in schema.FRAMES:
        old = pd.read_csv(run.path / name).drop(columns="valid_score")
        old.to_csv(run.path / name, index=False)
    assert (run.trials["valid_score"] == run.trials["valid_accuracy"]).all() and len(run.trials) == 4
    assert (run.epochs["valid_score"] == run.epochs["valid_accuracy"]).all() and len(run.epochs) == 11
    rows = schema.whole_rows(run.path / "epochs.csv")
    assert [row["valid_score"] for row in rows] == run.epochs["valid_accuracy"].tolist()


def test_a_study_of_version_0_2_0_is_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "accuracy")
    before = run.trials
    with sqlite3.connect(run.path / "study.db") as database:  # It wrote neither score nor error with an epoch.
        rows = database.execute("SELECT trial_user_attribute_id, value_json FROM trial_user_attributes").fetchall()
        for row_id, text in rows:
            if "valid_score" in text and isinstance(kept := json.loads(text), dict):
                kept = {k: v for k, v in kept.items() if k not in ("valid_score", "valid_error")}
                changed = (json.dumps(kept), row_id)
                sql = "UPDATE trial_user_attributes SET value_json = ? WHERE trial_user_attribute_id = ?"
                database.execute(sql, changed)
    for name in schema.FRAMES:
        pd.read_csv(run.path / name).drop(columns="valid_score").to_csv(run.path / name, index=False)
    study = RunStudy(run.path, load_space("smoke"), optuna.samplers.RandomSampler(seed=1), epochs=3, seed=0)
    proposal = studies.ask(study)
    studies.train(study, proposal, [0.95], "length")
    study.finish(proposal.number, "scheduler")
    study.close(None)
    pd.testing.assert_frame_equal(run.trials[:4], before)
    assert run.best["trial"] == proposal.number and run.best["valid_score"] == 0.95
    assert "valid_score" in pd.read_csv(run.path / "epochs.csv").columns
    assert run.epochs["valid_score"].notna().all()


# What is said and drawn.


def test_progress_and_tables_show_the_metric_under_its_name(
    run: run_folder.Run, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = METRICS[name]
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    progress = Progress(4, metric=metric, console=console)
    row = schema.plain(run.trials.iloc[1].to_dict())
    progress.started(row | {"state": "running"})
    progress.epoch(row | {"state": "running"}, result(1, name, 0.4, 0.3))
    progress.ended(row)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{metric.label} {metric.said(0.3 if name == 'accuracy' else value(name, 0.4))}  2.0 s" in printed
    assert f"{metric.label} {metric.said(row[metric.column])}  (1/4 done, best" in printed
    console.print(progress.view())
    assert f"{metric.label}  " in console.file.getvalue()  # type: ignore[attr-defined]
    results.print_trials(run)
    table = capsys.readouterr().out
    heading = "valid accuracy" if name == "accuracy" else metric.label
    assert heading in table
    first = next(line for line in table.splitlines() if re.match(r"\s+\d+ ", line))
    assert first.split()[:2] == [str(winner(name)), metric.said(float(run.best[metric.column]))]


def test_pictures_and_charts_are_of_the_metric(run: run_folder.Run, name: str) -> None:
    metric, trials, epochs = METRICS[name], run.trials, run.epochs
    frame = analysis.best_so_far(trials, run.clock, metric)
    assert frame["best"].iloc[-1] == run.best[metric.column]
    best = int(run.best["trial"])
    pictures = [
        run_figures.best_so_far(frame, metric),
        run_figures.learning_curves(epochs, trials, metric),
    ]
    for picture in pictures:
        (ax,) = picture.axes
        assert ax.get_ylabel() == f"validation {metric.title}"
        low, high = ax.get_ylim()
        assert low <= float(run.best[metric.column]) <= high
        picture.savefig(io.BytesIO(), format="png", dpi=40)
    bar = run_figures.parallel_coordinates(trials, metric).axes[1]
    assert bar.get_ylabel() == f"validation {metric.title}"
    curve = run_figures.learning_curve(epochs[epochs["trial"] == best], metric)
    labels = curve.axes[1].get_legend_handles_labels()[1]
    number = int(run.best["best_epoch"])
    assert any(label.startswith(f"best epoch {number}: ") for label in labels)
    charts = [
        run_charts.best_so_far(frame, trials, metric),
        run_charts.learning_curves(epochs, trials, best, metric),
    ]
    for chart in charts:
        assert chart.layout.yaxis.title.text == f"validation {metric.title}"
        assert ("%" in chart.layout.yaxis.tickformat) == metric.in_per_cent
    [lines] = run_charts.parallel_coordinates(trials, metric).data
    assert lines.dimensions[-1].label == f"valid<br>{metric.title}"
    assert bool(lines.line.reversescale) == (not metric.greater_is_better)
    values = importances.equal_budget_values(trials, epochs, metric)
    assert values.idxmax() == (0 if name == "accuracy" else 1) or values.idxmax() == 3


def test_the_page_says_the_metric(run: run_folder.Run, name: str) -> None:
    metric = METRICS[name]
    page = run_page.render(run, None)
    assert f"Best validation {metric.title}</h2>" in page
    assert f">{metric.said(float(run.best[metric.column]))}</data>" in page
    assert f"The validation {metric.title} of every trial by epoch." in page
    if name != "accuracy":
        assert f">{metric.label}</button>" in page and ">valid accuracy</button>" in page
        assert "validation accuracy" not in page.lower().partition("<script")[0]


def test_runs_are_compared_by_the_metric_that_they_share(tmp_path: Path, name: str) -> None:
    pair = [make_run(tmp_path / "results" / each, name) for each in "ab"]
    frame = compare.at_equal_cost(pair)
    metric = METRICS[name]
    best = value(name, 0.9) if name != "accuracy" else 0.9
    assert frame[f"best_{name}"].tolist() == pytest.approx([best] * 4)
    assert compare.curves(pair)["best"].iloc[-1] == pytest.approx(best)
    (ax,) = run_figures.best_so_far_of(compare.curves(pair), metric).axes
    assert ax.get_ylabel() == f"best validation {metric.title} so far"
    listed = compare.list_runs(tmp_path / "results")
    assert ("best_score" in listed) == (name != "accuracy")
    if name != "accuracy":
        assert listed["best_score"].tolist() == [f"{metric.title} {metric.said(best)}"] * 2


def test_runs_of_different_metrics_are_compared_by_the_accuracy(tmp_path: Path) -> None:
    pair = [make_run(tmp_path / each, each) for each in ("log_loss", "accuracy")]
    assert "best_accuracy" in compare.at_equal_cost(pair)
    [sentence] = [each for each in compare.caveats(pair) if "metric" in each]
    assert sentence.startswith("These runs have different metrics. They are compared by the accuracy")
    assert compare.caveats([pair[1], make_run(tmp_path / "old", "accuracy")]) == []


def test_an_audit_is_of_the_metric(run: run_folder.Run, name: str) -> None:
    metric = METRICS[name]
    ends = [result(epoch, name, 0.95, 0.95) | {"trial": 3} for epoch in (1, 2, 3)]
    found = audit.summarise(run, pd.DataFrame(ends))
    gained = abs(ends[-1][metric.column] - float(run.best[metric.column]))
    assert found["loss"] == pytest.approx(gained) and found["loss"] > 0
    said = summaries.audit_text(found, metric)
    assert f"reached {metric.said(ends[-1][metric.column])}" in said
    assert f"lost {metric.gap(found['loss'], '')}{metric.unit}." in said and f"final {metric.title}:" in said
    worse = [result(epoch, name, 0.01, 0.01) | {"trial": 3} for epoch in (1, 2, 3)]
    assert audit.summarise(run, pd.DataFrame(worse))["loss"] == 0


def test_noise_and_imbalance_are_said(run: run_folder.Run, name: str, splits: Splits) -> None:
    metric = METRICS[name]
    assert summaries.noise_text(run) == ""
    meta = files.read_json(run.path / "meta.json")
    files.write_json(run.path / "meta.json", meta | {"noise": {"valid_images": 1234, "half_width": 0.021}})
    known = "2.10 points" if metric.in_per_cent else "0.0210"
    text = f"The valid {metric.title} of a trial is known to ± {known} (95 %): there are 1,234 valid images."
    assert summaries.noise_text(run) == text and text in run_page.render(run, None)
    trials = [EarlierTrial(0, "PRUNED", {}, {}, {1: 0.5}, 0.5, {}, {})]
    beginnings.write(run.path, [EarlierRun("other", "1f", "kmnist", None, 2, name, tuple(trials))])
    files.write_json(run.path / "meta.json", meta | {"begun_with": [{"name": "other"}]})
    began = beginnings.text(run)
    assert began.startswith("Began with other (1 trial on kmnist). The best of its first ")
    assert began in run_page.render(run, None)
    assert imbalance(splits) is None
    images = patterned_images(400)
    kept = np.concatenate([np.flatnonzero(images.labels == 0)[:8], np.flatnonzero(images.labels != 0)])
    part = make_splits(Labelled(images.images[kept], images.labels[kept]), "uneven", splits.class_names)
    said = imbalance(part)
    counts = np.bincount(part.train.labels)
    assert said == (
        f"The largest class has {counts.max() / counts.min():.3g} times as many train images as the smallest; "
        "--metric balanced_accuracy counts each class alike."
    )


# `final`.


def planted(folder: Path, name: str, goods: dict[int, list[float]]) -> tuple[Plan, dict[tuple[str, int], jobs.Result]]:
    """Returns a plan of candidates and what came of each on three seeds: its accuracies say the reverse."""
    entries = [
        Entry("candidate", TINY.model_copy(update={"batch_size": 32 + i}), i, i, 0.5, 1, search_score=value(name, 0.97))
        for i in goods
    ]
    plan = Plan("run", "run", tuple(entries), (11, 12, 13), folder, "patterns", metric=name)
    done = {}
    for entry in entries:
        for seed, good in zip(plan.seeds, goods[entry.rank or 0], strict=True):
            accuracy = good if name == "accuracy" else 1 - good
            scores = [value(name, good)] * 3
            found = jobs.Result("x", *[accuracy] * 3, 1, 1, 60.0, (), "", 1, *scores, valid_error=0.1)
            done[entry.config.hash(), seed] = found
    return plan, done


def test_the_contest_is_won_in_the_metric(
    tmp_path: Path, name: str, splits: Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = METRICS[name]
    plan, done = planted(tmp_path, name, {1: [0.72, 0.74, 0.73], 2: [0.74, 0.75, 0.76], 3: [0.2, 0.2, 0.2]})
    trained = []

    def train(job: jobs.Job, *given: Any) -> Any:
        trained.append(job.metric)
        job.path.mkdir(parents=True)
        found = replace(done[job.config.hash(), job.seed], split_hash=splits.split_hash)
        files.write_json(job.path / jobs.RESULT, asdict(found))
        return iter(())

    monkeypatch.setattr(jobs, "train", train)
    held = contest.hold(plan, splits, SLOTS)
    assert held.winner.trial == 2 and set(trained) == {name} and len(trained) == 7
    rows = held.table.set_index("trial")
    assert rows["state"].to_dict() == {1: "complete", 2: "complete", 3: "dropped"}
    assert rows.loc[2, f"{metric.column}_mean"] == pytest.approx(value(name, 0.75))
    assert rows.loc[1, "difference"] == pytest.approx(abs(value(name, 0.75) - value(name, 0.73)))
    assert rows.loc[1, "difference"] < rows.loc[3, "difference"] and rows.loc[2, "difference"] == 0
    if name == "accuracy":
        assert held.shrinkage is not None and held.shrinkage.value < 0
    else:
        assert held.shrinkage is not None and held.shrinkage.value > 0  # The search's values were better.
    contest.show(held)
    printed = capsys.readouterr().out
    assert printed.startswith(f"Valid {metric.title} over 3 fresh seeds")
    assert metric.said(value(name, 0.75)) in printed
    assert held.facts["metric"] == name
    assert ("The fresh means minus the search's values: +" in printed) == (not metric.greater_is_better)


@pytest.mark.parametrize("name", OTHERS)
def test_the_best_sentence_of_a_verdict_names_the_metric(name: str) -> None:
    metric = METRICS[name]
    facts = {"metric": name, "default_difference": 0.0312, "default_difference_interval": [0.01, 0.05]}
    [(word, sentence)] = verdicts(facts)
    assert word == "Yes"
    assert f"{metric.gap(0.0312, '')}{metric.unit} better than the default configuration in {metric.title}" in sentence


def test_far_behind_by_errors_of_the_values_is_dropped() -> None:
    values = pd.DataFrame({1: [-0.5, -0.52, -0.9], 2: np.nan, 3: np.nan}, index=["a", "b", "c"])
    errors = pd.Series(0.03, index=["a", "b", "c"])
    assert seeds.dropped(values, "a", errors) == {"c"}
    assert seeds.dropped(values, "a", errors * 20) == set()


@pytest.mark.parametrize("name", ["macro_f1", "log_loss", "top5"])
def test_final_tests_and_writes_the_metric(
    tmp_path: Path, name: str, splits: Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **how: file.write(b"a picture"))
    monkeypatch.setattr(splitting, "load_splits", lambda *args, **kwargs: splits)
    monkeypatch.setattr(datasets, "load_test", lambda *args: patterned_images(200, seed=9))
    run = make_run(tmp_path / "results" / "run", name)
    metric = METRICS[name]
    configs = [TINY.model_copy(update={"batch_size": 32 + i}) for i in range(2)]
    scores = run.trials.set_index("trial")["valid_score"]
    entries = tuple(Entry("candidate", c, i + 1, i, 0.5, 3, search_score=scores[i]) for i, c in enumerate(configs))
    plan = Plan("a test", run.name, entries, (1, 2), tmp_path / "jobs", "patterns", identity=run.identity, metric=name)
    model_dir = tmp_path / "best_model"
    metrics = opening.retrain_and_test(plan, SLOTS, threads=1, model_dir=model_dir)
    assert metrics["metric"] == name
    low, high = metrics["test_score_interval"]
    assert low <= metrics["test_score"] <= high and 0 <= metrics["test_accuracy"] <= 1
    outputs = np.load(model_dir / "test_outputs.npz")
    again = metrics_of.score(name, np.log(outputs["probabilities"].astype(np.float64)), outputs["labels"])
    assert metrics["test_score"] == pytest.approx(again, rel=1e-5)
    shown = headline(json.loads((model_dir / "metrics.json").read_text()))
    assert shown.metric is metric and shown.test == metrics["test_score"]
    assert shown.search == scores[metrics["trial"]]
    table = pd.read_csv(model_dir / "final.csv")
    means = metric.sign * table["valid_score_mean"]
    assert table["chosen"].sum() == 1 and means[table["chosen"]].item() == means.max()
    text = (model_dir / "scores.txt").read_text()
    assert f"metric             {metric.title}\n" in text
    assert f"test               {metric.said(metrics['test_score'])} (95 % interval {metric.said(low)} to" in text
    assert f"test accuracy      {metrics['test_accuracy']:.2%} (95 % interval" in text
    card = (model_dir / "model_card.md").read_text()
    of = "Wilson" if name == "top5" else "bootstrap"
    assert f"- Test {metric.title} of this model: {metric.said(metrics['test_score'])} (95 % {of} interval" in card
    log = [json.loads(line) for line in (model_dir / "test_log.jsonl").read_text().splitlines()]
    assert log[-1]["metric"] == name and log[-1]["test_score"] == metrics["test_score"]
    page = run_page.render(run, final_models.load(run, model_dir))
    assert f"<h2>Test {metric.title}</h2>" in page and f">{metric.said(metrics['test_score'])}</data>" in page
    [*_, chart] = [model_charts.seeds(table, metric)]
    assert chart.layout.xaxis.title.text == f"validation {metric.title}"
    side = "high" if metric.greater_is_better else "low"
    assert f"figures is too {side} by up to" in opening.opened_again(metrics | {"test_opened": 2})
    assert f"(test {metric.title} {metric.said(metrics['test_score'])}) will be replaced" in final.replaced(
        model_dir, replace(plan, run="another", identity="another")
    )

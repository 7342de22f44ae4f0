"""Distillation after a contest: who teaches whom, on which seeds, and what is said where nobody can."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import patterned_images
from test_ensemble import hasty
from test_final import SLOTS, TINY, make_plan, opened, train  # noqa: F401

from tuning import final, predict
from tuning.base import files
from tuning.base.errors import UserError
from tuning.base.registries import METRICS
from tuning.images.splitting import Splits
from tuning.retraining import contest, distilled, ensemble, verdict
from tuning.retraining.contest import Contest
from tuning.retraining.distilled import Distilled
from tuning.retraining.ensemble import Ensemble
from tuning.retraining.seeds import Estimate
from tuning.runs import openings
from tuning.training import jobs
from tuning.training.jobs import Job
from tuning.trials import worker

pytestmark = pytest.mark.usefixtures("unrendered")


def held(tmp_path: Path, splits: Splits) -> tuple[Contest, Ensemble]:
    found = contest.hold(hasty(tmp_path), splits, SLOTS, threads=1)
    together = ensemble.choose(found)
    assert together is not None
    return found, together


def test_all_members_teach_on_seeds_that_nothing_had_yet(tmp_path: Path, splits: Splits) -> None:
    found, together = held(tmp_path, splits)
    students = distilled.students(found, together)
    assert len(students) == len(found.plan.seeds) and all(part is splits for part in students.values())
    assert {job.config.hash() for job in students} == {found.winner.config.hash()}
    assert not {job.seed for job in students} & set(found.plan.seeds)
    assert {(job.teachers, job.weights) for job in students} == {(together.jobs, together.weights)}
    assert distilled.students(found, together) == students  # Resumed, it is the same.


def test_the_four_best_teach_and_no_more(tmp_path: Path, splits: Splits) -> None:
    found, together = held(tmp_path, splits)
    more = tuple(replace(together.jobs[0], seed=90 + i) for i in range(6))
    students = distilled.students(found, replace(together, jobs=more, weights=(1 / 6,) * 6))
    assert {(job.teachers, job.weights) for job in students} == {(more[:4], (0.25,) * 4)}


def test_students_of_a_fold_learn_from_members_of_that_fold_alone(tmp_path: Path, splits: Splits) -> None:
    parts = {seed: replace(splits, split_hash=str(seed)) for seed in (1, 2)}
    plan = replace(make_plan(tmp_path, (1, 2)), folds=2)
    found = contest.hold(plan, parts, SLOTS, threads=1)
    together = ensemble.choose(found)
    assert together is not None and len(together.jobs) == 2
    students = distilled.students(found, together)
    for (job, part), seed in zip(students.items(), plan.seeds, strict=True):
        assert part is parts[seed] and job.fold == plan.job(plan.entries[0], seed).fold
        assert [each.seed for each in job.teachers] == [seed] and job.weights == (1.0,)


def test_students_are_trained_compared_with_the_winner_and_not_trained_again(tmp_path: Path, splits: Splits) -> None:
    found, together = held(tmp_path, splits)
    said: list[str] = []
    taught = distilled.train(found, together, SLOTS, 1, said.append)
    assert taught is not None and len(taught.results) == 2 and taught.n_teachers == len(together.jobs)
    assert said[0].startswith("Distilling: 2 networks of the winner's configuration learn from ")
    assert any(line.startswith("distilled, seed 2  epoch") for line in said)
    means = [
        sum(result.valid_accuracy or 0 for result in results) / 2
        for results in (taught.results.values(), found.won.values())
    ]
    assert taught.lead.value == pytest.approx(means[0] - means[1])
    assert said[-1].startswith("Distilled: valid accuracy ") and "over 2 fresh seeds" in said[-1]
    assert distilled.as_metrics(taught)["valid_accuracy_mean"] == pytest.approx(means[0])
    again: list[str] = []
    assert distilled.train(found, together, SLOTS, 1, again.append) == taught
    assert not any("epoch" in line for line in again)


def test_students_that_all_fail_are_said_and_cost_nothing_else(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, together = held(tmp_path, splits)

    def fail(*given: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(jobs, "_train", fail)
    said: list[str] = []
    assert distilled.train(found, together, SLOTS, 1, said.append) is None
    assert said[-1].startswith("No network could be distilled. The last error was: RuntimeError: no room")


def test_where_less_is_better_a_lower_value_is_called_better() -> None:
    results = {Job(TINY, 1, Path("jobs")): jobs.Result("x", valid_score=0.25)}
    found = Distilled(results, {}, 2, METRICS["log_loss"], Estimate(0.01, -0.002, 0.022))
    said = "Distilled: valid log loss 0.2500 over 1 fresh seed, 0.0100 better than the winner (95% interval -0.0020 to"
    assert distilled.described(found, "seed") == f"{said} +0.0220)"
    worse = replace(found, lead=Estimate(-0.01, math.nan, math.nan))
    assert distilled.described(worse, "fold").endswith("over 1 fold, 0.0100 worse than the winner")


@pytest.mark.parametrize("folds", [0, 2])
def test_where_one_of_them_fails_the_winners_mean_is_over_all_seeds_or_over_the_same_folds(
    tmp_path: Path, splits: Splits, folds: int
) -> None:
    found, together = held(tmp_path, splits)
    found = replace(found, plan=replace(found.plan, folds=folds))
    together = replace(together, jobs=tuple(found.models), weights=(0.5, 0.5))
    results = [result.valid_accuracy or 0 for result in found.won.values()]
    planned = list(distilled.students(found, together))
    lead = distilled._lead(found, planned, {planned[1]: jobs.Result("x", valid_accuracy=0.5)})
    assert results[0] != results[1]
    assert lead.value == pytest.approx(0.5 - (results[1] if folds else sum(results) / 2))
    assert lead.low < lead.value < lead.high and lead.high - lead.value == pytest.approx(lead.value - lead.low)


def test_the_fold_that_is_written_has_its_own_number_where_one_before_it_failed(tmp_path: Path, splits: Splits) -> None:
    found = contest.hold(replace(make_plan(tmp_path, (1, 2)), folds=2), splits, SLOTS, threads=1)
    [of_first, of_second] = found.models
    taught = replace(of_second, seed=9, teachers=(of_first,), weights=(1.0,))
    chosen = replace(verdict.choose(found), job=taught, models={taught: found.models[of_second]})
    described = verdict.describe(found, chosen, splits)
    assert (described["fold"], described["seed"], described["seeds"]) == (2, 9, [9])


def test_a_student_that_is_run_again_in_smaller_parts_is_the_same_one(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `train_all` runs one again whose worker the system has killed."""

    def train_all(next_job: Any, splits: Any, slots: Any) -> Any:
        for job in iter(next_job, None):
            again = replace(job, accumulation=2)
            yield from ((again, row) for row in jobs.train(again, splits[job.seed], "cpu", 1))

    found, together = held(tmp_path, splits)
    monkeypatch.setattr(worker, "train_all", train_all)
    said: list[str] = []
    taught = distilled.train(found, together, replace(SLOTS, concurrency=2), 1, said.append)
    assert taught is not None and [result.accumulation for result in taught.results.values()] == [2, 2]
    assert any(line.startswith("distilled, seed 2  epoch") for line in said)


def test_what_cannot_be_taught_is_said(tmp_path: Path, splits: Splits) -> None:
    found, together = held(tmp_path, splits)
    assert distilled.reason_against(found, together) == ""
    assert "nothing can teach" in distilled.reason_against(found, None)
    entries = [replace(e, config=e.config.model_copy(update={"train": "head"})) for e in found.plan.entries]
    heads = replace(found, plan=replace(found.plan, entries=tuple(entries)))
    assert "head alone was trained" in distilled.reason_against(heads, together)


@pytest.mark.parametrize("better", [True, False])
def test_what_was_distilled_is_written_where_it_is_better_and_tested_in_either_case(
    tmp_path: Path,
    opened: list[str],  # noqa: F811
    splits: Splits,
    monkeypatch: pytest.MonkeyPatch,
    better: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(distilled.Distilled, "is_better", better)
    folder = tmp_path / "model"
    metrics = train(folder, hasty(tmp_path / "jobs"), ship="distilled")
    found, text = metrics["distilled"], (folder / "scores.txt").read_text()
    assert opened == ["patterns"] and found["networks"] == 2 and found["teachers"] >= 2
    assert metrics["shipped"] == ("distilled" if better else "single")
    assert (found["test_accuracy_mean"] == metrics["test_accuracy_mean"]) is better
    best, test = predict.load(folder), patterned_images(200, seed=9)
    shown = [row.class_name for row in best.predict(test.images)]
    right = np.mean([splits.class_names[label] == name for label, name in zip(test.labels, shown, strict=True)])
    assert right == metrics["test_accuracy"]
    said = capsys.readouterr().out
    if better:
        assert not set(metrics["seeds"]) & {1, 2} and metrics["seed"] in metrics["seeds"]
        assert metrics["single"]["test_accuracy_mean"] != metrics["test_accuracy_mean"]
        assert f"distilled from {found['teachers']} models" in text and "winner, mean " in text
        card = (folder / "model_card.md").read_text()
        assert (
            "It has learned from" in card and "The same configuration, taught alike, trained on 2 fresh seeds" in card
        )
        assert text.count(" over 2 fresh seeds, distilled\n") == 2
        assert [line["shipped"] for line in openings.read(folder)] == ["distilled"] * 2
    else:
        assert "What was distilled is not better on the valid images" in said
        assert "distilled, mean " in text and metrics["seeds"] == [1, 2] and "single" not in metrics
    assert "all together " in text
    taken = [files.read_json(path)["seconds"] for path in (tmp_path / "jobs").rglob(jobs.RESULT)]
    assert len(taken) == 8 and metrics["seconds_total"] == pytest.approx(sum(taken))  # Six of the contest.


def test_where_nothing_can_teach_the_single_model_is_written(
    tmp_path: Path,
    opened: list[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = train(tmp_path, make_plan(tmp_path), ship="distilled")
    assert metrics["shipped"] == "single" and metrics["distilled"] is None
    assert "so nothing can teach. The single model is written." in capsys.readouterr().out


@pytest.mark.parametrize("ship", ["ensemble", "distilled"])
def test_what_begins_with_several_models_is_refused_before_a_single_training(ship: str, tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("architecture: resnet8")
    with pytest.raises(UserError, match=rf"--ship {ship} needs two trainings or more, .*Give --seeds 2 or more"):
        final.run(config=file, ship=ship, model_dir=tmp_path / "model", progress=False)
    assert not (tmp_path / "model").exists()

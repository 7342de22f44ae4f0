"""Earlier runs that a search begins with: what is taken of them, what is refused, and what a sampler gets."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import write_run
from optuna.trial import TrialState
from studies import ask, epoch, told, train

from tuning.base import files
from tuning.base.errors import UserError
from tuning.base.registries import METRICS
from tuning.runs import beginnings
from tuning.runs.run_folder import Run
from tuning.sampling import earlier, origins, samplers
from tuning.sampling.spaces import Space, load_space, point_of
from tuning.sampling.study import RunStudy

SMOKE = load_space("smoke")
ACCURACY = METRICS["accuracy"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run of nine trials, of which every third was stopped."""
    return write_run(tmp_path_factory.mktemp("searched") / "one", 9, seed=5).path


def read(*paths: Path, metric: str = "accuracy") -> tuple[beginnings.EarlierRun, ...]:
    return earlier.read([Run(path) for path in paths], METRICS[metric], print)


def test_what_is_taken_of_a_run_is_what_its_study_knows(searched: Path) -> None:
    [found] = read(searched)
    frame = Run(searched).trials
    assert (found.name, found.dataset, found.epochs, found.metric) == ("one", "fashion-mnist", 4, "accuracy")
    assert [t.state for t in found.trials] == ["COMPLETE", "COMPLETE", "PRUNED"] * 3
    assert [t.score for t in found.trials] == frame["valid_accuracy"].tolist()
    assert [t.config["learning_rate"] for t in found.trials] == frame["config/learning_rate"].tolist()
    made = earlier.trials_of(found)
    assert [len(t.intermediate_values) for t in made] == frame["epochs"].tolist()
    assert made[0].params == found.trials[0].params and made[0].distributions.keys() == made[0].params.keys()


def test_a_run_that_is_named_twice_is_taken_once(searched: Path) -> None:
    assert len(read(searched, searched)) == 1


def test_of_copies_the_one_that_went_on_is_taken_and_two_runs_of_one_old_name_are_two(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [found] = read(searched)
    copy = Path(shutil.copytree(searched, tmp_path / "copy"))
    study = RunStudy(copy, SMOKE, samplers.make("random", 1, 8), epochs=4, seed=0)
    train(study, proposal := ask(study), [0.5], "length")
    study.finish(proposal.number, "scheduler")
    study.close(None)
    for runs in ((searched, copy), (copy, searched)):
        [taken] = read(*runs)
        assert (taken.name, len(taken.trials)) == ("copy", len(found.trials) + 1)
        assert "one is a copy of copy with 9 trials, and is left out.\n" in capsys.readouterr().out
    other = write_run(tmp_path / "other" / "one", 4, seed=6)
    meta = {name: value for name, value in other.meta.items() if name not in ("id", "schema")}
    for place in (other.path, copy):
        files.write_json(place / "meta.json", meta | {"folder": "one"})
    assert len({Run(place).identity for place in (other.path, copy)}) == 1
    assert [len(one.trials) for one in read(copy, other.path)] == [len(found.trials) + 1, 4]


def test_a_loss_becomes_a_merit_and_other_metrics_of_one_direction_are_said(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Path(shutil.copytree(searched, tmp_path / "loss")))
    for metric, wanted in (("log_loss", "log_loss"), ("macro_f1", "accuracy")):
        files.write_json(run.path / "meta.json", run.meta | {"settings": run.settings | {"metric": metric}})
        [found] = read(run.path, metric=wanted)
        assert found.metric == metric
        assert list(found.trials[0].curve.values()) == [
            METRICS[metric].merit(row) for row in run.epochs.query("trial == 0")["valid_score"]
        ]
    assert capsys.readouterr().out == "The trials of loss count by their macro F1, which is what it searched for.\n"


def test_a_run_of_another_direction_is_refused(searched: Path) -> None:
    said = (
        r"^--start-from must name runs whose metric goes the same way as log_loss, but got 'one', which has accuracy "
        r"\(more is better\)\. Name another run, or choose --metric accuracy\.$"
    )
    with pytest.raises(UserError, match=said):
        read(searched, metric="log_loss")


def open_study(path: Path, space: Space = SMOKE, sampler: Any = None) -> RunStudy:
    path.mkdir(exist_ok=True)
    sampler = sampler or optuna.samplers.RandomSampler(seed=3)
    return RunStudy(path, space, sampler, epochs=4, seed=7)


def as_run(study: RunStudy, path: Path, **settings: Any) -> Path:
    study.close(None)
    files.write_json(path / "meta.json", {"settings": {"epochs": 4, **settings}, "dataset": "kmnist"})
    return path


def test_a_run_without_a_finished_trial_is_refused(tmp_path: Path) -> None:
    study = open_study(tmp_path / "none")
    study.fail(ask(study).number, "Training loss is not finite.")
    ask(study)
    said = (
        r"^--start-from must name runs with a finished trial, but got 'none', which has 2 trials and none that has "
        r"finished\. Leave it out, or resume it first\.$"
    )
    with pytest.raises(UserError, match=said):
        read(as_run(study, tmp_path / "none"))


def test_what_a_trial_has_shown_decides_whether_it_is_taken(tmp_path: Path) -> None:
    study = open_study(tmp_path / "some")
    train(study, whole := ask(study), [0.3, 0.6], "length")
    study.finish(whole.number, "scheduler")
    study.fail(ask(study).number, "Training loss is not finite.")
    train(study, ask(study), [0.4])  # Still runs.
    ask(study)  # So does this one, and it has shown nothing.
    study.finish(ask(study).number, "time budget")  # Neither has this one.
    [found] = read(as_run(study, tmp_path / "some"))
    assert [(t.number, t.state) for t in found.trials] == [(0, "COMPLETE"), (1, "FAIL"), (2, "PRUNED"), (4, "FAIL")]
    assert [t.state for t in earlier.trials_of(found)] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]


OWN = """
def space(trial):
    kind = trial.suggest_categorical("kind", ["a", "b"])
    return {"width": 4 if kind == "a" else 8}
"""


def own_space(folder: Path, source: str = OWN) -> Space:
    (folder / "own.py").write_text(source)
    return load_space(str(folder / "own.py"))


def test_what_a_run_and_a_space_share_is_said(searched: Path, tmp_path: Path) -> None:
    [found] = read(searched)
    n = len(found.trials[0].params)
    said = [f"Begins with one (9 trials on fashion-mnist): {n} of {n} hyperparameters in common."]
    assert earlier.shared([found], SMOKE, 4) == said
    # "width" is none of what was searched, but all configurations have it.
    source = OWN.replace("}", ', "momentum": trial.suggest_float("momentum", 0.5, 0.99)}')
    sentences = earlier.shared([found], own_space(tmp_path, source), 4)
    assert sentences == ["Begins with one (9 trials on fashion-mnist): 1 of 2 hyperparameters in common."]


def test_a_run_that_shares_no_hyperparameter_is_refused(searched: Path, tmp_path: Path) -> None:
    said = (
        r"^--start-from must name runs that share a hyperparameter with the space own, but got 'one', which searched "
        r".*learning_rate.*\. Name another run, or choose its --space\.$"
    )
    with pytest.raises(UserError, match=said):
        earlier.shared(read(searched), own_space(tmp_path), 4)


def test_a_sampler_that_reads_no_curves_says_how_many_points_it_takes(searched: Path) -> None:
    said = "The sampler tpe begins with their best 5 points, and learns nothing else of them."
    assert earlier.taken(read(searched), SMOKE, 4, "tpe") == said


def test_a_run_without_a_point_of_the_space_is_refused_for_such_a_sampler(searched: Path, tmp_path: Path) -> None:
    source = OWN.replace("}", ', "momentum": trial.suggest_float("momentum", 0.5, 0.99)}')
    said = (
        r"^--start-from must name runs with a point of the space own where the sampler is tpe, which begins with the "
        r"best of their points, but got 'one': none of its 9 trials has all hyperparameters of the space within their "
        r"ranges\. Leave it out, or choose --sampler curves, which learns from those in common\.$"
    )
    with pytest.raises(UserError, match=said):
        earlier.taken(read(searched), own_space(tmp_path, source), 4, "tpe")


@pytest.fixture
def folder(searched: Path, tmp_path: Path) -> Path:
    """The folder of a new run that begins with the one that was searched."""
    (tmp_path / "new").mkdir()
    beginnings.write(tmp_path / "new", read(searched))
    return tmp_path / "new"


def first_points(folder: Path, sampler: str, space: Space, n: int) -> tuple[list[Any], RunStudy]:
    """Returns the parameters of the first trials of a search, and its study."""
    made = samplers.make(sampler, 0, 8)
    study = open_study(folder, earlier.begin(folder, made, space, 4), made)
    found = []
    for _ in range(n):
        train(study, proposal := ask(study), [0.5], "length")
        study.finish(proposal.number, "scheduler")
        found.append(told(study, proposal.number).params)
    return found, study


FIRST = [{"learning_rate": 0.1, "momentum": 0.9}, {"learning_rate": 0.05, "momentum": 0.8}]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_other_samplers_begin_with_the_best_points_and_then_with_those_of_the_space(
    folder: Path, searched: Path, sampler: str
) -> None:
    ranked = Run(searched).trials.sort_values("valid_accuracy", ascending=False)["config/learning_rate"].tolist()
    found, study = first_points(folder, sampler, replace(SMOKE, first=FIRST), 8)
    assert [point["learning_rate"] for point in found[:5]] == ranked[:5]
    assert found[5:7] == FIRST
    study.close(None)
    assert origins.given_points(folder) == {5, 6}
    assert origins.drawn_at_random(folder, sampler, 8) == {7}


def test_a_resumed_search_goes_on_with_its_points(folder: Path, searched: Path) -> None:
    found, study = first_points(folder, "random", SMOKE, 3)
    study.close(None)
    more, study = first_points(folder, "random", SMOKE, 3)
    ranked = Run(searched).trials.sort_values("valid_accuracy", ascending=False)["config/learning_rate"].tolist()
    assert [point["learning_rate"] for point in [*found, *more]][:5] == ranked[:5]
    study.close(None)
    assert origins.drawn_at_random(folder, "random", 8) == {5}


def test_the_sampler_of_curves_learns_and_the_points_of_the_space_take_every_second_trial(
    folder: Path, searched: Path
) -> None:
    best = Run(searched).best["config/learning_rate"]
    found, study = first_points(folder, "curves", replace(SMOKE, first=FIRST), 5)
    assert [point in FIRST for point in found] == [False, True, False, True, False]
    assert found[0]["learning_rate"] == pytest.approx(best, rel=1.0)
    study.close(None)
    assert origins.given_points(folder) == {1, 3}
    # It draws one in ten at random, and says which; the number of a trial says nothing here.
    made = {t.number: t.user_attrs.get("origin") for t in study.study.get_trials()}
    assert set(made.values()) <= {"space", "model", "random"}
    assert origins.drawn_at_random(folder, "curves", 8) == {n for n, origin in made.items() if origin == "random"}


def test_of_the_first_trials_beside_earlier_runs_a_third_is_random(folder: Path) -> None:
    _, study = first_points(folder, "curves", SMOKE, 9)
    made = [t.user_attrs.get("origin") for t in study.study.get_trials()]
    assert made[:2] == ["model", "random"] and made.count("random") >= 3 and made.count("model") >= 4
    study.close(None)


def test_points_of_the_space_that_an_earlier_run_has_had_are_left_out_but_for_the_first(
    searched: Path, tmp_path: Path
) -> None:
    had = [dict(t.params) for t in earlier.trials_of(read(searched)[0])[:2]]
    beginnings.write(tmp_path, read(searched))
    for sampler in ("curves", "tpe"):
        space = replace(SMOKE, first=[*had, FIRST[0]])
        assert earlier.begin(tmp_path, samplers.make(sampler, 0, 8), space, 4).first == [had[0], FIRST[0]]


def test_of_several_runs_each_gives_its_best_in_turn_as_far_as_they_are_points_of_the_space(tmp_path: Path) -> None:
    def trials(*rates: float) -> list[Any]:
        study = optuna.create_study(direction="maximize")
        for i, rate in enumerate(rates):
            one = optuna.trial.create_trial(
                value=1.0 - 0.1 * i,
                params={"learning_rate": rate},
                distributions={"learning_rate": optuna.distributions.FloatDistribution(1e-5, 10)},
                intermediate_values={1: 1.0 - 0.1 * i},
                user_attrs={"config": {"momentum": 0.9, "learning_rate": 1.0}},
            )
            study.add_trial(one)
        return study.get_trials()

    points = earlier.best_points([trials(0.01, 9.0, 0.02, 0.03), trials(0.04, 0.01, 0.05)], SMOKE, 4, n=4)
    # 9.0 is out of range, and the second 0.01 is no second point.
    assert [point["learning_rate"] for point in points] == [0.01, 0.04, 0.02, 0.05]
    assert all(point == point_of(SMOKE, point, 4) for point in points)


def test_a_copy_of_earlier_runs_that_is_damaged_is_said(folder: Path) -> None:
    content = json.loads((folder / beginnings.FILE).read_text())
    content["runs"][0]["trials"][0]["distributions"] = {"learning_rate": "{}"}
    (folder / beginnings.FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"took from earlier runs, is missing or damaged \(.*\)\. Put back a copy"):
        earlier.begin(folder, samplers.make("curves", 0, 8), SMOKE, 4)


def test_a_run_of_two_objectives_has_curves_in_its_epochs(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    study = RunStudy(tmp_path / "two", SMOKE, samplers.make("tpe", 0, 8), epochs=4, seed=0, minimize="n_parameters")
    proposal = ask(study)
    study.report(proposal.number, epoch(1, 0.4))
    study.report(proposal.number, epoch(2, 0.6, "length"))
    study.finish(proposal.number, "scheduler")
    [found] = read(as_run(study, tmp_path / "two"))
    assert found.trials[0].curve == {1: 0.4, 2: 0.6} and found.dataset == "kmnist"

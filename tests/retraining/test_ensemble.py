"""Ensembles: what is selected, what the network is the mean of, and that it is shipped as a single one is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import patterned_images
from test_final import SLOTS, TINY, make_plan, opened, train  # noqa: F401

from tuning import final, predict
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import METRICS
from tuning.images.splitting import Splits
from tuning.models.architectures import build_model
from tuning.models.ensemble import Ensemble
from tuning.retraining import contest, ensemble, opening, verdict
from tuning.retraining.candidates import Plan
from tuning.runs import openings
from tuning.training import jobs
from tuning.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("unrendered")


def hasty(folder: Path, n: int = 2) -> Plan:
    """Returns a plan whose models have learned too little to be right alone."""
    plan = make_plan(folder, (1, 2), n=n)
    entries = [
        replace(e, config=e.config.model_copy(update={"epochs": 1, "width": 4 + i})) for i, e in enumerate(plan.entries)
    ]
    return replace(plan, entries=tuple(entries), default=entries[-1].config.hash())


def outputs(right: "np.ndarray[Any, Any]", labels: "np.ndarray[Any, Any]", sure: float) -> "np.ndarray[Any, Any]":
    """Returns log-probabilities of three classes; where it is wrong, the next class is taken."""
    taken = np.where(right, labels, (labels + 1) % 3)
    return np.log(np.full((len(labels), 3), (1 - sure) / 2) + (sure - (1 - sure) / 2) * np.eye(3)[taken])


def test_models_that_err_elsewhere_are_averaged_and_those_that_do_not_help_are_left_out() -> None:
    labels, places = np.arange(300) % 3, np.arange(300)
    a, b, c = (outputs(places % 3 != i, labels, 0.6) for i in range(3))  # Each errs on a third of its own.
    poor = outputs(places < 100, labels, 0.9)
    assert sorted(ensemble.select([poor, a, b, c], labels, METRICS["accuracy"])) == [1, 2, 3]
    assert ensemble.select([a, a], labels, METRICS["accuracy"]) == [0]
    assert ensemble.select([poor, outputs(places >= 0, labels, 0.9)], labels, METRICS["accuracy"]) == [1]


def test_models_count_alike_unless_one_is_clearly_worse_or_the_selected_mean_clearly_better() -> None:
    draw, metric = np.random.default_rng(0), METRICS["accuracy"]
    labels = np.arange(3000) % 3
    alike = [outputs(draw.random(3000) < 0.9, labels, 0.6) for _ in range(5)]
    poor = outputs(draw.random(3000) < 0.3, labels, 0.6)
    weights = ensemble.weigh([poor, *alike], labels, metric)
    assert weights == dict.fromkeys([1, 2, 3, 4, 5], 0.2)
    selected = ensemble.select([poor, *alike], labels, metric)
    assert len({selected.count(i) for i in range(1, 6)}) > 1  # By luck.
    right = [float((each.argmax(1) == labels).mean()) for each in alike]
    assert list(weights) == sorted(weights, key=lambda i: -right[i - 1])  # The best first.

    # A weak one that knows just what the others do not.
    hard = np.arange(3000) % 5 == 0
    strong = outputs(~hard, labels, 0.5)
    weak = np.where(hard[:, None], outputs(hard, labels, 0.9), np.log(1 / 3))
    weights = ensemble.weigh([strong, weak], labels, metric)
    assert set(weights) == {0, 1} and sum(weights.values()) == pytest.approx(1)
    assert ensemble.mean([strong, weak], weights).argmax(1).tolist() == labels.tolist()


def test_a_model_may_count_twice() -> None:
    labels = np.arange(300) % 3
    good = outputs(np.arange(300) >= 30, labels, 0.8)
    rest = outputs(np.arange(300) < 100, labels, 0.9)
    taken = ensemble.select([good, rest], labels, METRICS["log_loss"])
    assert taken.count(0) > 1 and taken.count(1) >= 1


def test_the_network_is_the_mean_of_what_its_members_say(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = [build_model(TrainConfig(width=4, architecture=name), 1, 4).eval() for name in ("resnet8", "resnet14")]
    means, stds, weights = [(0.3,), (0.4,)], [(0.2,), (0.25,)], (0.75, 0.25)
    images = torch.rand(5, 1, 12, 12)
    together = Ensemble(networks, weights, means, stds).eval()
    with torch.inference_mode():
        found, features = together((images - means[0][0]) / stds[0][0])
        each = [net((images - m[0]) / s[0]) for net, m, s in zip(networks, means, stds, strict=True)]
    expected = sum(w * logits.softmax(1) for w, (logits, _) in zip(weights, each, strict=True))
    assert torch.allclose(found.exp(), expected, atol=1e-5) and torch.allclose(features, each[0][1], atol=1e-5)
    assert not set(together.state_dict()) - {f"members.{i}.{k}" for i in (0, 1) for k in networks[i].state_dict()}


def test_final_says_what_its_models_have_together_and_writes_the_single_one(
    tmp_path: Path,
    opened: list[str],  # noqa: F811
) -> None:
    metrics = train(tmp_path, hasty(tmp_path))
    assert opened == ["patterns"] and metrics["shipped"] == "single"
    found = metrics["ensemble"]
    assert found["models"] >= 2 and found["n_parameters"] > metrics["n_parameters"]
    assert found["test_interval"][0] < found["test_accuracy"] <= found["test_interval"][1]
    assert (
        found["valid_accuracy"]
        >= metrics["valid_accuracy_plain" if "valid_accuracy_plain" in metrics else "valid_accuracy_mean"]
    )
    assert found["times_single"] > 1
    text = (tmp_path / "scores.txt").read_text()
    assert f"all together       {found['test_accuracy']:.2%} (95 % interval" in text
    assert "--ship ensemble writes it" in text
    assert "members" not in json.loads((tmp_path / "config.json").read_text())


def test_a_single_training_has_no_ensemble(tmp_path: Path, opened: list[str], capsys: Any) -> None:  # noqa: F811
    metrics = train(tmp_path, make_plan(tmp_path), ship="ensemble")
    assert metrics["ensemble"] is None and metrics["shipped"] == "single"
    assert "No ensemble of what was trained is better on the valid images" in capsys.readouterr().out
    assert "together" not in (tmp_path / "scores.txt").read_text()


@pytest.mark.slow
def test_a_shipped_ensemble_predicts_exports_and_scores_as_it_was_tested(
    tmp_path: Path,
    opened: list[str],  # noqa: F811
    splits: Splits,
) -> None:
    plan = hasty(tmp_path / "jobs")
    metrics = train(tmp_path / "model", plan, ship="ensemble", formats=("onnx", "pt2", "safetensors"))
    found, test = metrics["ensemble"], patterned_images(200, seed=9)
    assert metrics["shipped"] == "ensemble" and metrics["test_accuracy"] == found["test_accuracy"]
    assert metrics["n_parameters"] == found["n_parameters"] and metrics["averaging"] == "none"
    assert {"test_accuracy", "test_accuracy_plain", "averaging"} <= set(metrics["single"])
    assert "test_accuracy_mean" in metrics and "test_accuracy_plain" not in metrics
    assert [line["shipped"] for line in openings.read(tmp_path / "model")] == ["ensemble"] * 2
    best = predict.load(tmp_path / "model")
    shown = [row.class_name for row in best.predict(test.images)]
    right = np.mean([splits.class_names[label] == name for label, name in zip(test.labels, shown, strict=True)])
    assert right == metrics["test_accuracy"]
    with np.load(tmp_path / "model" / "test_outputs.npz") as kept:
        probabilities = np.array(
            [[dict(row.ranking)[name] for name in best.class_names] for row in best.predict(test.images)]
        )
        assert np.allclose(kept["probabilities"], probabilities, atol=1e-4)
    text = (tmp_path / "model" / "scores.txt").read_text()
    assert f"ensemble of {found['models']} models of" in text and "single model       " in text
    assert "over 2 fresh seeds of the winner alone" in text
    assert "Ensemble of" in (tmp_path / "model" / "model_card.md").read_text()
    assert {f"model.{name}" for name in ("onnx", "pt2", "safetensors")} <= {
        f.name for f in (tmp_path / "model").iterdir()
    }


def test_of_folds_all_models_of_a_configuration_are_taken_each_with_its_own_normalisation(
    tmp_path: Path, splits: Splits
) -> None:
    parts = {seed: replace(splits, mean=(0.4 + 0.05 * seed,), split_hash=str(seed)) for seed in (1, 2)}
    plan = replace(make_plan(tmp_path, (1, 2)), folds=2)
    held = contest.hold(plan, parts, SLOTS, threads=1)
    together = ensemble.choose(held)
    assert together is not None and together.weights == (0.5, 0.5) and together.n_configurations == 1
    outcomes = [
        evaluate(jobs.load_model(plan.job(plan.entries[0], seed), part, "cpu"), splits.valid, part)[0].exp()
        for seed, part in parts.items()
    ]
    first = parts[together.jobs[0].seed]
    found, _ = evaluate(ensemble.build(together, held, "cpu"), splits.valid, first)
    assert torch.allclose(found.exp(), sum(outcomes) / 2, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_ensemble_of_folds_is_the_model_that_was_tested(
    tmp_path: Path,
    opened: list[str],  # noqa: F811
    splits: Splits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fold has its own mean: the saved network must want images as it is then given them."""
    plan = replace(hasty(tmp_path / "jobs", 1), folds=2)
    parts = {seed: replace(splits, mean=(0.1 + 0.3 * seed,), split_hash=str(seed)) for seed in plan.seeds}
    monkeypatch.setattr(opening.folds, "load", lambda plan: parts)
    monkeypatch.setattr(opening.suspects, "write", lambda *given: [])
    metrics = train(tmp_path / "model", plan, ship="ensemble")
    assert metrics["shipped"] == "ensemble" and metrics["ensemble"]["models"] >= 2
    best, test = predict.load(tmp_path / "model"), patterned_images(200, seed=9)
    with np.load(tmp_path / "model" / "test_outputs.npz") as kept:
        shown = np.array([[dict(row.ranking)[name] for name in best.class_names] for row in best.predict(test.images)])
        assert np.allclose(kept["probabilities"], shown, atol=1e-4)


def test_an_ensemble_that_the_flip_averaged_winner_beats_is_not_shipped(tmp_path: Path, splits: Splits) -> None:
    held = contest.hold(hasty(tmp_path), splits, SLOTS, threads=1)
    together, chosen = ensemble.choose(held), verdict.choose(held)
    assert together is not None and ensemble.is_better(together, held, replace(chosen, valid_score=0.0))
    assert not ensemble.is_better(together, held, replace(chosen, valid_score=together.valid_score))
    folds = replace(held, plan=replace(held.plan, folds=2))
    alone = np.mean([result.valid_accuracy_plain for result in held.won.values()])
    several = replace(
        together, valid_score=float(alone) - 0.01, jobs=(replace(together.jobs[0], config=TINY), *together.jobs)
    )
    assert several.n_configurations > 1 and not ensemble.is_better(several, folds, replace(chosen, averaging="none"))
    assert ensemble.is_better(replace(several, jobs=together.jobs[:1]), folds, chosen)


def test_networks_that_see_large_images_keep_their_small_batches() -> None:
    small, large = (build_model(TrainConfig(width=4, image_size=side), 1, 4) for side in (16, None))
    for members, side in (((small, small), 16), ((small, large), 0)):
        assert Ensemble(members, (0.5, 0.5), [(0.1,)] * 2, [(1.0,)] * 2).side == side


def test_models_of_version_0_2_0_have_no_outputs_and_are_left_out(tmp_path: Path, splits: Splits) -> None:
    plan = make_plan(tmp_path, (1, 2))
    held = contest.hold(plan, splits, SLOTS, threads=1)
    (plan.job(plan.entries[0], 2).path / jobs.VALID_OUTPUTS).unlink()
    assert ensemble.choose(held) is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ship": "both"}, r"--ship must be one of distilled, ensemble, single, but got 'both'"),
        ({"ship": "ensemble", "train_on": "train+valid"}, r"--ship ensemble must be used with --train-on train, .*got"),
    ],
)
def test_what_cannot_be_shipped_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        final.run(**options)

"""Trials of a study that nobody trained: asked for, reported epoch by epoch, looked up."""

from typing import Any

import optuna

from tuning.sampling.study import Proposal, RunStudy


def ask(study: RunStudy) -> Proposal:
    proposal = study.ask()
    assert proposal is not None
    return proposal


def epoch(number: int, accuracy: float, finished: str = "") -> dict[str, Any]:
    row = {"epoch": number, "train_loss": 1.0, "train_accuracy": 0.5, "valid_loss": 1 - accuracy, "lr": 0.1}
    row |= {"valid_accuracy": accuracy, "epoch_seconds": 2.0, "images_per_second": 100.0}
    row |= {"n_parameters": 5142, "seconds_per_image": 1e-4, "device": "cpu", "precision": "fp32"}
    return row | {"finished": finished}


def train(study: RunStudy, proposal: Proposal, accuracies: list[float], finished: str = "") -> None:
    for i, accuracy in enumerate(accuracies, start=1):
        study.report(proposal.number, epoch(i, accuracy, finished if i == len(accuracies) else ""))


def told(study: RunStudy, number: int) -> optuna.trial.FrozenTrial:
    return study.study.get_trials(deepcopy=False)[number]

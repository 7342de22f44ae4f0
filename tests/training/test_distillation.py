"""Distillation: the distance to a teacher, that a student comes near it, and a training taught by others' models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tuning.base.config import TrainConfig
from tuning.images.batches import Batch
from tuning.images.splitting import Splits
from tuning.models.architectures import build_model
from tuning.training import checkpoints, jobs
from tuning.training.distillation import SHARE, TEMPERATURE, Lessons, Teacher, distance
from tuning.training.fit import Training, fit
from tuning.training.jobs import Job
from tuning.training.losses import Loss, class_weights


def test_the_distance_is_zero_where_both_say_the_same_and_its_gradient_is_that_of_soft_labels() -> None:
    torch.manual_seed(0)
    taught = torch.randn(5, 4).log_softmax(1)
    assert torch.allclose(distance(taught + 3.0, taught), torch.zeros(5), atol=1e-6)
    logits = torch.randn(5, 4, requires_grad=True)
    distance(logits, taught).sum().backward()
    soft = (taught / TEMPERATURE).softmax(1)
    expected = TEMPERATURE * ((logits.detach() / TEMPERATURE).softmax(1) - soft)
    assert logits.grad is not None and torch.allclose(logits.grad, expected, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_a_batch_is_that_of_its_parts(weighted: bool) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0, 0])
    teacher, student = (build_model(TrainConfig(width=4), 1, 4).eval() for _ in range(2))
    lessons = Lessons(Teacher(teacher, "some"), "fp32")
    weights = class_weights(labels, 4, "balanced") if weighted else None
    loss, whole = Loss(weights, 0.1, lessons), Batch(images, labels)
    logits = student(images)[0]
    at_once = loss(logits, images, whole, whole)
    parts = sum(loss(logits[i : i + 2], images[i : i + 2], Batch(images, labels[i : i + 2]), whole) for i in (0, 2, 4))
    assert torch.allclose(at_once, torch.as_tensor(parts))
    alone = Loss(weights, 0.1)(logits, images, whole, whole)
    counts = torch.ones(6) if weights is None else weights[labels]
    soft = (distance(logits, teacher(images)[0].log_softmax(1)) * counts).sum() / counts.sum()
    assert torch.allclose(at_once, SHARE * soft + (1 - SHARE) * alone, atol=1e-6)


def test_mixed_labels_share_the_weights_of_their_classes() -> None:
    torch.manual_seed(0)
    images, labels, others = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), torch.tensor([3, 0, 1, 2])
    teacher, student = (build_model(TrainConfig(width=4), 1, 4).eval() for _ in range(2))
    weights = torch.tensor([0.4, 0.8, 1.2, 1.6])
    loss, batch = Loss(weights, 0.0, Lessons(Teacher(teacher, "some"), "fp32")), Batch(images, labels, others, 0.7)
    logits = student(images)[0]
    apart = distance(logits, teacher(images)[0].log_softmax(1)) * (0.7 * weights[labels] + 0.3 * weights[others])
    hard = Loss(weights, 0.0)(logits, images, batch, batch)
    assert torch.allclose(loss(logits, images, batch, batch), SHARE * apart.sum() / 4 + (1 - SHARE) * hard, atol=1e-6)


def test_a_student_says_what_its_teacher_says_also_where_the_labels_say_another_thing(
    tiny: TrainConfig, splits: Splits
) -> None:
    teacher = Training(tiny, splits, seed=1)
    list(fit(teacher))
    shuffled = np.random.default_rng(0).permutation(splits.train.labels)
    other = replace(splits, train=replace(splits.train, labels=shuffled), split_hash="other")
    accuracies = []
    for taught_by in (Teacher(teacher.best_model(), "it"), None):
        student = Training(tiny, other, seed=2, teacher=taught_by)
        list(fit(student))
        accuracies.append(student.best["valid_accuracy"])
    assert accuracies[0] > accuracies[1] + 0.2


def test_a_job_learns_from_others_resumes_to_the_same_numbers_and_is_another_one_than_without(
    tmp_path: Path, tiny: TrainConfig, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = tuple(Job(tiny, seed, tmp_path) for seed in (1, 2))
    for each in teachers:
        list(jobs.train(each, splits, "cpu", 1))
    student = replace(Job(tiny, 3, tmp_path), teachers=teachers, weights=(0.75, 0.25))
    assert student.path not in {
        replace(student, teachers=(), weights=()).path,
        replace(student, weights=(0.5, 0.5)).path,
    }
    whole = list(jobs.train(student, splits, "cpu", 1))
    assert [row["epoch"] for row in whole] == [1, 2, 3]

    again, save = replace(student, folder=tmp_path / "again"), checkpoints.save

    def save_and_stop(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        list(jobs.train(again, splits, "cpu", 1))
    monkeypatch.setattr(checkpoints, "save", save)
    rest = list(jobs.train(again, splits, "cpu", 1))
    assert [row["train_loss"] for row in rest] == [row["train_loss"] for row in whole[1:]]


def test_a_teacher_does_not_learn(tiny: TrainConfig, splits: Splits) -> None:
    model = build_model(tiny, 1, 4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Training(tiny, splits, seed=1, teacher=Teacher(model, "it")).run_epoch()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_teacher_of_images_cannot_teach_a_head_of_features(tiny: TrainConfig, splits: Splits) -> None:
    config = tiny.model_copy(update={"train": "head"})
    model = build_model(tiny, 1, 4)
    with pytest.raises(ValueError, match="teacher must be None where the head alone is trained, but got one"):
        Training(config, splits, seed=0, teacher=Teacher(model, "it"))

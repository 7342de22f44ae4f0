"""The loss of a training step: cross entropy with the labels, and with a teacher the distance to it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tuning.images.batches import Batch
from tuning.training.distillation import SHARE, Lessons, distance


@dataclass(frozen=True)
class Loss:
    """What a part of a batch adds to the mean loss of the whole batch.

    Attributes:
        class_weights: What an image of each class counts, float32 (n_classes,); None where all count alike.
        label_smoothing: In [0, 0.5]; of the labels' cross entropy alone.
        lessons: What a teacher says of the images; None without one.
    """

    class_weights: Tensor | None
    label_smoothing: float
    lessons: Lessons | None = None

    def __call__(self, logits: Tensor, images: Tensor, part: Batch, whole: Batch) -> Tensor:
        """Returns the loss, of no dimension.

        Args:
            logits: Of the part, (B, n_classes).
            images: Of the part, normalised, (B, C, H, W).
            part: Its labels, and those that are mixed in.
            whole: The batch that it is a part of.
        """
        loss = self._cross_entropy(logits, part.labels, whole.labels)
        if part.others is not None and whole.others is not None:
            loss = part.share * loss + (1 - part.share) * self._cross_entropy(logits, part.others, whole.others)
        if self.lessons is None:
            return loss
        distances = distance(logits, self.lessons(images))
        apart = self._weighted(distances, part.labels, whole.labels)
        if part.others is not None and whole.others is not None:
            others = self._weighted(distances, part.others, whole.others)
            apart = part.share * apart + (1 - part.share) * others
        return SHARE * apart + (1 - SHARE) * loss

    def _weighted(self, losses: Tensor, labels: Tensor, whole: Tensor) -> Tensor:
        """Returns what images with these labels, whose losses are (B,), add to the mean of the whole batch."""
        return weighted_mean(losses, labels, whole, self.class_weights)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, whole: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        return self._weighted(losses, labels, whole)


def weighted_mean(losses: Tensor, labels: Tensor, whole: Tensor, weights: Tensor | None) -> Tensor:
    """Returns what some images add to the mean loss of all, each image counting as its class does.

    The weights of torch's own `cross_entropy` are those of the classes that an image is compared with: with label
    smoothing, they have a network prefer the rare classes for the images of the frequent ones, too.

    Args:
        losses: Of the images, (B,).
        labels: Theirs, int64 (B,).
        whole: Labels of all, (N,).
        weights: What an image of each class counts, (n_classes,); None: all alike.
    """
    if weights is None:
        return losses.sum() / len(whole)
    return (losses * weights[labels]).sum() / weights[whole].sum()


def class_weights(labels: Tensor, n_classes: int, how: str) -> Tensor | None:
    """Returns what an image of each class counts in the train loss, float32 (n_classes,); None where all count alike.

    Args:
        labels: Of the train split, int64 (N,); of a class that it has not, the weight is 0.
        n_classes: At least as many as there are labels.
        how: As `TrainConfig.class_weights`.
    """
    if how == "none":
        return None
    counts = torch.bincount(labels, minlength=n_classes).double()
    weights = counts.clamp(min=1) ** (-1.0 if how == "balanced" else -0.5) * (counts > 0)
    return (weights * (len(labels) / (weights * counts).sum())).float()

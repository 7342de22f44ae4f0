"""What a network learns from a teacher: the probabilities that the teacher gives to the same augmented images.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015). That the teacher sees each image as the
student does, cropped, mirrored and erased alike, is from Beyer et al., Knowledge distillation: A good teacher is
patient and consistent (2022).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tuning.training.acceleration import Logits

# Softens both: a teacher is nearly certain of images that it was trained on, and says little else of them.
TEMPERATURE = 2.0
# Of the loss; the rest is that of the labels. ResNet-8 on 10,000 images of Fashion-MNIST for 8 epochs, taught by three
# like it: 90.9 % with a half (three seeds), 90.7 % with nine tenths (two), 90.2 % without a teacher (three). At a
# temperature of 1 there was no gain, and 4 was no better than 2 (one seed each).
SHARE = 0.5


@dataclass(frozen=True)
class Teacher:
    """A network that another one learns from.

    Attributes:
        model: Returns logits (N, n_classes) and features of images (N, C, H, W), which are normalised as the student's
            are; on the student's device.
        name: Says which it is: the state of a training that has one belongs to no other.
    """

    model: nn.Module
    name: str


class Lessons(nn.Module):
    """What a teacher has to say of a batch.

    Args:
        teacher: Its weights stay as they are.
        precision: "bf16" or "fp32", of its forward pass.
    """

    def __init__(self, teacher: Teacher, precision: str) -> None:
        super().__init__()
        self._logits = Logits(teacher.model.eval().requires_grad_(False), precision)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Returns log-probabilities float32 (B, n_classes) of normalised images (B, C, H, W)."""
        log_probabilities: Tensor = self._logits(images).log_softmax(1)
        return log_probabilities


def distance(logits: Tensor, taught: Tensor) -> Tensor:
    """Returns how far a student is from its teacher on each image, float32 (B,): 0 where they say the same.

    It is the Kullback-Leibler divergence at `TEMPERATURE`, times its square, so that gradients are as large as those of
    the labels' cross entropy.

    Args:
        logits: Of the student, (B, n_classes).
        taught: Log-probabilities of the teacher, (B, n_classes).
    """
    softened = (taught / TEMPERATURE).log_softmax(1)
    student = (logits / TEMPERATURE).log_softmax(1)
    return TEMPERATURE**2 * functional.kl_div(student, softened, reduction="none", log_target=True).sum(1)

"""A model whose body stays as it is, and its head by itself, which is trained on features."""

import torch
from torch import Tensor, nn

from tuning.models.architectures import head_of


class OnFeatures(nn.Module):
    """A model's head, for features in the place of images: (N, D, 1, 1) -> logits (N, n_classes), features (N, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head = head_of(model)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and the features."""
        rows = features.flatten(1)
        return self.head(rows), rows


def freeze_body(model: nn.Module) -> None:
    """Takes the gradients from all weights but the head's."""
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)


def train_head(model: nn.Module) -> None:
    """Puts a model with a frozen body into training mode: normalisation and dropout in the body stay as they are."""
    model.eval()
    head_of(model).train()


def head_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Returns the weights of the head."""
    return set(head_of(model).parameters())


def with_head(model: nn.Module, head: dict[str, Tensor]) -> None:
    """Gives a model the weights of an `OnFeatures`' state dict."""
    with torch.no_grad():
        for name, value in head_of(model).named_parameters():
            value.copy_(head[f"head.{name}"])

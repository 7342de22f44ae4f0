"""Several networks as one: their probabilities are averaged."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The weighted mean of its members' probabilities, as a network that the rest of the project takes as any other.

    Images reach it normalised as its first member wants them; each other member gets them as its own train images were.

    Args:
        members: Networks that return logits (N, n_classes) and features, the first of which gives its features.
        weights: One a member, positive; they add up to 1.
        means: Per channel, of pixels in [0, 1], one tuple a member.
        stds: The same for the standard deviation.
    """

    scales: Tensor
    shifts: Tensor
    log_weights: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Sequence[float],
        means: Sequence[Sequence[float]],
        stds: Sequence[Sequence[float]],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        sides = [int(getattr(member, "side", 0)) for member in members]
        self.side = max(sides) if all(sides) else 0  # 0: a member sees the images as large as they are.
        mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, :, None, None] for each in (means, stds))
        # (x * std[0] + mean[0] - mean[i]) / std[i]
        self.register_buffer("scales", (std[0] / std).float(), persistent=False)
        self.register_buffer("shifts", ((mean[0] - mean) / std).float(), persistent=False)
        self.register_buffer("log_weights", torch.tensor(weights).log(), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities (N, n_classes) and the first member's features (N, D), of images (N, C, H, W)."""
        logs, features = [], None
        for i, member in enumerate(self.members):
            logits, of_member = member(images * self.scales[i] + self.shifts[i])
            logs.append(logits.log_softmax(1) + self.log_weights[i])
            features = of_member if features is None else features
        assert features is not None
        return torch.stack(logs).logsumexp(0), features

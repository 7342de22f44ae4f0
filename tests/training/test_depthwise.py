"""`tuning.training.depthwise`: the same convolutions, their gradients computed in fp32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuning.training import depthwise
from tuning.training.acceleration import Logits, autocast
from tuning.training.depthwise import has_groups, quick_depthwise

CPU = torch.device("cpu")


class Small(nn.Module):
    """Returns logits and features, as the project's networks do; `make` is its depthwise convolution."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.depthwise, self.head = nn.Conv2d(3, 8, 1), make(), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.depthwise(self.first(images)).mean((2, 3))
        return self.head(features), features


def gradients(model: nn.Module, precision: str) -> tuple[Tensor, ...]:
    images = torch.randn(6, 3, 13, 13, generator=torch.Generator().manual_seed(1)).requires_grad_()
    model.zero_grad()
    Logits(model, precision)(images).square().sum().backward()
    assert images.grad is not None
    return images.grad, *(p.grad for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"stride": 2, "bias": False}, {"dilation": 2, "padding": (2, 1)}, {"padding": "same"}],
    ids=str,
)
def test_gradients_are_those_of_fp32_within_bf16s_rounding(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Small(lambda: nn.Conv2d(8, 8, 3, groups=8, **options))
    quick, exact = gradients(model, "bf16"), gradients(model, "fp32")
    assert len(quick) == len(exact)
    for one, other in zip(quick, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * other.norm()


def test_the_forward_pass_is_autocasts_own() -> None:
    torch.manual_seed(0)
    model, images = Small(lambda: nn.Conv2d(8, 8, 3, groups=8)), torch.randn(4, 3, 9, 9)
    with autocast(CPU, "bf16"):
        expected = model(images)[0].float()
    assert torch.equal(Logits(model, "bf16")(images), expected)


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_frozen_weights_get_no_gradient(trained: tuple[bool, bool]) -> None:
    model = Small(lambda: nn.Conv2d(8, 8, 3, groups=8))
    model.depthwise.weight.requires_grad_(trained[0])  # type: ignore[operator, union-attr]
    model.depthwise.bias.requires_grad_(trained[1])  # type: ignore[operator, union-attr]
    gradients(model, "bf16")
    assert (model.depthwise.weight.grad is not None, model.depthwise.bias.grad is not None) == trained


@pytest.mark.parametrize(
    ("groups", "precision", "device"), [(1, "bf16", "cpu"), (8, "fp32", "cpu"), (8, "bf16", "cuda")]
)
def test_others_are_left_alone(groups: int, precision: str, device: str) -> None:
    grouped = has_groups(nn.Sequential(nn.Conv2d(8, 8, 3, groups=groups)))
    context = quick_depthwise(grouped, torch.device(device), precision)
    assert not isinstance(context, depthwise._Mode)


def test_of_a_grouped_network_only_depthwise_convolutions_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    apply = depthwise._Depthwise.apply
    monkeypatch.setattr(depthwise._Depthwise, "apply", lambda *given: (seen.append(given[3][3]), apply(*given))[1])
    model = Small(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8)))
    gradients(model, "bf16")
    assert seen == [8]

"""`tuning.training.acceleration`: a quicker step gives the same, or is not used; the GPU's own calls are stand-ins."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuning.base.config import TrainConfig
from tuning.models.architectures import build_model
from tuning.training import acceleration
from tuning.training.acceleration import Logits, accelerate, faster_precision

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


def made(precision: str = "fp32", device: str = "cpu") -> tuple[Logits, Tensor]:
    """Returns a small network in training mode, and a batch for it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(TrainConfig(width=8), channels=1, n_classes=4).to(device)
        images = torch.randn(24, 1, 12, 12, device=device).contiguous(memory_format=torch.channels_last)
    return Logits(model, precision).train(), images


def steps(logits: Logits, forward: Callable[[Tensor], Tensor], images: Tensor, n: int = 3) -> list[Tensor]:
    """Returns the scores of some steps of training, and all weights and buffers after them."""
    optimizer, scores = torch.optim.SGD(logits.parameters(), lr=0.05, momentum=0.9), []
    for _ in range(n):
        optimizer.zero_grad(set_to_none=True)
        logits_now = forward(images)
        nn.functional.cross_entropy(logits_now, torch.arange(len(images), device=images.device) % 4).backward()
        optimizer.step()
        scores.append(logits_now.detach().clone())  # The next replay of a graph writes into the same memory.
    return [*scores, *(value.clone() for value in logits.state_dict().values())]


def assert_leaves_all_as_it_was(logits: Logits, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in logits.state_dict().items())
    assert all(p.grad is None for p in logits.parameters())


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_step_gives_the_same_within_tolerance(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    logits, images = made(precision, "cuda")
    before = {name: value.clone() for name, value in logits.state_dict().items()}
    forward = accelerate(logits, images)
    assert forward is not logits
    assert_leaves_all_as_it_was(logits, before)
    captured = steps(logits, forward, images)
    for one, other in zip(steps(*made(precision, "cuda")[:1] * 2, images), captured, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 if precision == "fp32" else 0.05)


def broken(reason: str) -> Callable[[Tensor], Tensor]:
    def forward(images: Tensor) -> Tensor:
        raise RuntimeError(reason)

    return forward


@pytest.mark.parametrize(
    ("quicker", "message"),
    [
        (lambda logits: broken("out of memory\non device 0"), "out of memory$"),
        (lambda logits: broken(""), "RuntimeError$"),
        (lambda logits: lambda images: -logits(images), "its gradient differs by .* of its norm$"),
        (lambda logits: lambda images: logits(images) * torch.nan, "its gradient differs by nan of its norm$"),
    ],
)
def test_what_cannot_be_captured_or_gives_another_gradient_is_not_used(
    monkeypatch: pytest.MonkeyPatch, quicker: Callable[[Logits], Any], message: str
) -> None:
    logits, images = made()
    before = {name: value.clone() for name, value in logits.state_dict().items()}
    monkeypatch.setattr(acceleration, "_captured", lambda logits, images: quicker(logits))
    with pytest.warns(UserWarning, match=f"^The step could not be captured and runs as it is: {message}"):
        assert accelerate(logits, images) is logits
    assert_leaves_all_as_it_was(logits, before)


class Counting(nn.Module):
    """Assigns its buffer anew in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(144, 4)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and features."""
        self.count = self.count + 1
        return self.linear(images.flatten(1)), images


def test_a_network_that_assigns_its_buffers_anew_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replayed graph runs none of its Python: each step would count from the same number."""

    def capture(logits: Logits, images: Tensor) -> Logits:
        logits(images)
        return Logits(logits.model, logits.precision)

    logits, images = Logits(Counting(), "fp32").train(), made()[1]
    monkeypatch.setattr(acceleration, "_captured", capture)
    with pytest.warns(UserWarning, match="runs as it is: the network assigns a buffer anew"):
        assert accelerate(logits, images) is logits
    assert logits.model.count == 0
    logits(images)
    assert logits.model.count == 1


def test_what_is_captured_is_a_module_of_its_own_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_graphed_callables(module: nn.Module, sample: tuple[Tensor, ...]) -> nn.Module:
        given.append((module, *sample))
        module.forward = lambda images: 2 * images  # type: ignore[method-assign]  # As torch does it, in place.
        return module

    given: list[Any] = []
    logits, images = made("bf16")
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    captured = acceleration._captured(logits, images)
    [(module, sample)] = given
    assert module.training and module is captured and module is not logits
    assert all(one is other for one, other in zip(module.parameters(), logits.parameters(), strict=True))
    assert torch.equal(captured(images), 2 * images) and logits(images).shape == (24, 4)
    assert torch.equal(sample, images) and sample.stride() == images.stride()
    assert sample.data_ptr() != images.data_ptr()  # Each step's images are copied to where these are.


def test_logits_are_float32_in_either_precision() -> None:
    for precision in ("fp32", "bf16"):
        logits, images = made(precision)
        assert logits(images).dtype == torch.float32


def test_faster_precision_is_measured_once() -> None:
    faster_precision.cache_clear()
    assert faster_precision("cpu") in ("bf16", "fp32")
    assert faster_precision("cpu") == faster_precision("cpu")
    assert faster_precision.cache_info().misses == 1


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_of_a_gpu_is_what_it_has_whatever_runs_beside_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    faster_precision.cache_clear()
    assert faster_precision("cuda") == precision
    faster_precision.cache_clear()


def test_the_precision_is_chosen_by_the_processors_time_and_not_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other work the clock says anything; a worker that fell for it trained in fp32, 1.65 times as long."""
    before = faster_precision.__wrapped__("cpu")
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: 1000.0 * (next(jumps) ** 2 % 7))
    assert [faster_precision.__wrapped__("cpu") for _ in range(3)] == [before] * 3

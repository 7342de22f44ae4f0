"""`tuning.models.norm` and `tuning.models.shortcut`: the kernels give what torch gives; where they cannot, it does."""

import copy
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuning.base.config import TrainConfig
from tuning.models import kernels, norm
from tuning.models.architectures import build_model
from tuning.models.norm import Norm
from tuning.models.shortcut import convolve_both

TYPES = list(kernels.DEFINES)
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def batch(dtype: torch.dtype, *shape: int, offset: float = 0.0, seed: int = 0) -> Tensor:
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset
    return numbers.to(dtype).to(memory_format=torch.channels_last).requires_grad_()


def used(layer: Norm, *given: Any, **options: Any) -> Tensor:
    """Returns the result; it must come from the kernels."""
    result: Tensor = layer(*given, **options)
    assert type(result.grad_fn).__name__ == "_FusedBackward"
    return result


def plain(layer: nn.BatchNorm2d, x: Tensor, added: Tensor | None, relu: bool) -> Tensor:
    """Returns the same in float32 operations of torch."""
    y = nn.BatchNorm2d.forward(layer, x.float())
    y = y if added is None else y + added.float()
    return y.relu() if relu else y


@needs_compiler
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_added", [True, False])
@pytest.mark.parametrize("shape", [(8, 16, 6, 6), (3, 24, 5, 5), (2, 320, 2, 2), (5, 3, 1, 7), (2, 512, 1, 1)])
@pytest.mark.parametrize("dtype", TYPES)
def test_values_gradients_and_running_statistics_are_those_of_torch(
    dtype: torch.dtype, shape: tuple[int, ...], with_added: bool, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = [], []
    assert kernels.trusted(dtype, norm.deviation) is not None
    forward = norm._Fused.forward
    monkeypatch.setattr(norm._Fused, "forward", staticmethod(lambda *given: (calls.append(1), forward(*given))[1]))
    for fused in (True, False):
        layer = Norm(shape[1])
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 2, shape[1]))
            layer.bias.copy_(torch.linspace(1, -1, shape[1]))
        x, other = batch(dtype, *shape, offset=3), batch(dtype, *shape, seed=1)
        gradient = batch(dtype, *shape, seed=2).detach()
        given = other if with_added else None
        y = used(layer, x, given, relu=relu) if fused else plain(layer, x, given, relu)
        y.backward(gradient.to(y.dtype))
        layer.eval()
        with torch.no_grad():
            evaluated = layer(x, given, relu=relu) if fused else plain(layer, x, given, relu)
        results = [y, evaluated, x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var]
        found.append([*results, *([other.grad] if with_added else []), layer.num_batches_tracked])
    assert len(calls) == 2  # In training and in evaluation.
    # A number next to zero may be let through by one ReLU and not by the other, so few numbers may differ by more.
    for own, theirs in zip(*found, strict=True):
        assert own is not None and theirs is not None and own.shape == theirs.shape
        off = ~((own.float() - theirs.float()).abs() <= kernels.TOLERANCE[dtype] * theirs.float().abs().max())
        assert off.float().mean() <= (0.01 if dtype == torch.bfloat16 and relu else 0)


@needs_compiler
def test_numbers_far_from_zero_keep_their_variance() -> None:
    x = batch(torch.float32, 64, 16, 8, 8, offset=1000)
    y = used(Norm(16), x)
    torch.testing.assert_close(y.var(dim=(0, 2, 3)), torch.ones(16), rtol=1e-3, atol=0)
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(16), rtol=0, atol=1e-2)


@needs_compiler
def test_long_sums_keep_their_digits() -> None:
    """As they do not in torch's own normalisation of these numbers, whose gradients by x are off by 4e-4."""
    x, gradient = batch(torch.float32, 128, 16, 28, 28, offset=0.7), batch(torch.float32, 128, 16, 28, 28, seed=1)
    found = []
    for dtype in (torch.float32, torch.float64):
        layer, given = Norm(16).to(dtype), x.detach().to(dtype).requires_grad_()
        y = used(layer, given) if dtype == torch.float32 else layer(given)
        y.backward(gradient.detach().to(dtype))
        found.append([y, given.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var])
    for own, exact in zip(*found, strict=True):
        assert own is not None and exact is not None
        assert (own - exact).norm() <= 1e-6 * exact.norm()


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_finite_stays_so(dtype: torch.dtype, bad: float) -> None:
    """A training that diverges must be noticed: ReLU must not make 0 of it."""
    x = batch(dtype, 4, 16, 6, 6).detach()
    x[1, 2, 3, 4] = bad
    y = used(Norm(16), x.requires_grad_(), relu=True)
    assert not y[:, 2].isfinite().any() and y[:, [0, 1, *range(3, 16)]].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("side", [(6, 6), (5, 8), (1, 3)])
@pytest.mark.parametrize("dtype", TYPES)
def test_two_convolutions_of_stride_2_are_those_of_torch(
    dtype: torch.dtype, side: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(kernels, "trusted", lambda dtype, deviation: None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = nn.Conv2d(3, 8, 3, 2, padding=1, bias=False), nn.Conv2d(3, 8, 1, 2, bias=False)
        x = batch(dtype, 4, 3, *side)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            y, short = convolve_both(x, *layers)
        assert type(y.grad_fn).__name__ == ("_BothBackward" if fused else "ConvolutionBackward0")
        by_y, by_short = (batch(dtype, *y.shape, seed=seed).detach() for seed in (1, 2))
        torch.autograd.backward((y, short), (by_y, by_short))
        found.append([y, short, x.grad, *(layer.weight.grad for layer in layers)])
    for own, theirs in zip(*found, strict=True):
        assert own is not None and theirs is not None and own.dtype == theirs.dtype
        assert kernels.largest([own], [theirs]) <= (1e-2 if dtype == torch.bfloat16 else 1e-6)


def nodes(result: Tensor) -> Counter[str]:
    """Returns how many operations of each kind there are in the graph of a result."""
    seen, found, rest = set(), Counter[str](), [result.grad_fn]
    while rest:
        node = rest.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found[type(node).__name__] += 1
            rest += [before for before, _ in node.next_functions]
    return found


@needs_compiler
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("architecture", ["resnet8", "resnet14"])
def test_a_network_has_the_same_gradients_and_state_dict(
    architecture: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = batch(torch.float32, 16, 1, 12, 12).detach()
    found = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(kernels, "trusted", lambda dtype, deviation: None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_model(TrainConfig(architecture=architecture), channels=1, n_classes=4).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits, _ = model(images)
        loss = nn.functional.cross_entropy(logits.float(), torch.arange(16) % 4)
        made = nodes(loss)
        blocks = {"resnet8": 3, "resnet14": 6}[architecture]
        assert (made["_FusedBackward"], made["_BothBackward"]) == ((1 + 2 * blocks + 2, 2) if fused else (0, 0))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((gradient, dict(model.state_dict())))
    (own, state), (theirs, other) = found
    assert (own - theirs).norm() <= (0.05 if precision == "bf16" else 1e-4) * theirs.norm()
    assert state.keys() == other.keys()
    tolerance = 0.02 if precision == "bf16" else 1e-5
    assert all(
        torch.allclose(state[name].float(), other[name].float(), rtol=tolerance, atol=tolerance) for name in state
    )


def unlike(layer: Norm, **attributes: Any) -> Norm:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


@needs_compiler
@pytest.mark.parametrize(
    ("layer", "change"),
    [
        (Norm(16), lambda x: torch.set_num_threads(2)),
        (Norm(16).eval(), lambda x: None),
        (Norm(16), lambda x: x.detach().contiguous()),
        (Norm(16, affine=False), lambda x: None),
        (Norm(16, track_running_stats=False), lambda x: None),
        (unlike(Norm(16), momentum=None), lambda x: None),
        (Norm(16).bfloat16(), lambda x: x.detach().bfloat16()),
        (Norm(16).double(), lambda x: x.detach().double()),
        (Norm(16), lambda x: x.detach()[:, :, :1].expand(4, 16, 6, 6)),
    ],
    ids=[
        "two threads",
        "evaluation with gradients",
        "channels first",
        "no weights",
        "no running statistics",
        "mean of all batches",
        "bf16 weights",
        "double",
        "expanded",
    ],
)
def test_what_the_kernels_do_not_do_torch_does(layer: Norm, change: Any) -> None:
    x = batch(torch.float32, 4, 16, 6, 6)
    changed = change(x)
    x = x if changed is None else changed.requires_grad_()
    twin = copy.deepcopy(layer)
    y = layer(x, x, relu=True)
    assert type(y.grad_fn).__name__ == "ReluBackward0"
    assert torch.equal(y, (nn.BatchNorm2d.forward(twin, x) + x).relu())
    with torch.no_grad():  # Only here the kernels evaluate.
        y = layer.eval()(x)
        assert torch.allclose(y, nn.BatchNorm2d.forward(twin.eval(), x), atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    ("added", "x"),
    [
        (batch(torch.bfloat16, 4, 16, 6, 6), batch(torch.float32, 4, 16, 6, 6)),
        (batch(torch.float32, 4, 16, 6, 6), batch(torch.bfloat16, 4, 16, 6, 6)),
        (batch(torch.float32, 4, 16, 1, 1), batch(torch.float32, 4, 16, 6, 6)),
        (batch(torch.float32, 4, 16, 6, 6).detach().contiguous(), batch(torch.float32, 4, 16, 6, 6)),
    ],
    ids=["narrower", "wider", "broadcast", "channels first"],
)
def test_what_is_added_may_be_of_another_kind(added: Tensor, x: Tensor) -> None:
    y = Norm(16)(x, added)
    assert type(y.grad_fn).__name__ == "AddBackward0"
    assert torch.equal(y, nn.BatchNorm2d(16)(x) + added)


@needs_compiler
@pytest.mark.parametrize("shape", [(4, 32, 6, 6), (1, 16, 1, 1)], ids=["channels", "one number a channel"])
def test_what_torch_refuses_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"should contain 32 elements|more than 1 value per channel"):
        Norm(16)(batch(torch.float32, *shape))


def convolutions(channels: int = 16, **options: Any) -> tuple[nn.Conv2d, nn.Conv2d]:
    short = {name: value for name, value in options.items() if name != "padding"}
    both = {"stride": 2, "bias": False}
    wide = nn.Conv2d(channels, 16, 3, **({"padding": 1} | both | options))
    return wide, nn.Conv2d(channels, 16, 1, **(both | short))


@needs_compiler
@pytest.mark.parametrize(
    ("layers", "change"),
    [
        (convolutions(), lambda x: torch.set_num_threads(2)),
        (convolutions(), lambda x: x.detach().requires_grad_(False)),
        (convolutions(), lambda x: x.detach().contiguous().requires_grad_()),
        (tuple(layer.eval() for layer in convolutions()), lambda x: None),
        (convolutions(bias=True), lambda x: None),
        (convolutions(stride=1), lambda x: None),
        (convolutions(stride=(2, 1)), lambda x: None),
        (convolutions(padding=0), lambda x: None),
        (convolutions(groups=2), lambda x: None),
    ],
    ids=[
        "two threads",
        "no gradients",
        "channels first",
        "evaluation",
        "bias",
        "stride 1",
        "two strides",
        "padding",
        "groups",
    ],
)
def test_convolutions_of_another_kind_are_torchs(layers: tuple[nn.Conv2d, nn.Conv2d], change: Any) -> None:
    x = batch(torch.float32, 4, 16, 6, 6)
    changed = change(x)
    x = x if changed is None else changed
    results = convolve_both(x, *layers)
    assert type(results[0].grad_fn).__name__ == "ConvolutionBackward0"
    assert all(torch.equal(result, layer(x)) for result, layer in zip(results, layers, strict=True))


DIES = """
import torch
from tuning.models.architectures import Block
torch.set_num_threads(2)
block = Block(4, 8, 2).to(memory_format=torch.channels_last)
x = torch.randn(13, 4, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
for _ in range(600):
    block(x).square().mean().backward()
    torch.randn(100)
"""


def test_a_narrow_block_is_trained_on_two_threads_without_harm() -> None:
    """Where torch strides its 1x1 convolution, memory is overwritten, which the allocator makes fatal here."""
    environ = os.environ | {"MALLOC_PERTURB_": "85"}
    done = subprocess.run([sys.executable, "-c", DIES], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]


@pytest.mark.parametrize("channels", [3, 16])
def test_on_several_threads_a_narrow_shortcut_is_the_same_convolution(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layers = convolutions(channels)
    x = batch(torch.float32, 4, channels, 5, 8)
    results = convolve_both(x, *layers)
    assert (type(results[1].grad_fn.next_functions[0][0]).__name__ == "CloneBackward0") == (channels < 16)
    for result, layer in zip(results, layers, strict=True):
        torch.testing.assert_close(result, layer(x))


@needs_compiler
def test_a_wider_type_than_autocasts_is_narrowed_first() -> None:
    x, layers = batch(torch.float32, 4, 16, 6, 6), convolutions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = convolve_both(x, *layers)
    assert [result.dtype for result in results] == [torch.bfloat16] * 2
    with pytest.raises(RuntimeError, match="type"):
        convolve_both(batch(torch.bfloat16, 4, 16, 6, 6), *layers)

"""`models.architectures`: what every architecture keeps, by its name in the registry."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import ARCHITECTURES
from tuning.models.architectures import build_model, count_parameters, head_ends, head_of

# Hyperparameters that only some architectures use, and a value that is not the default.
OTHER: dict[str, Any] = {"width": 8, "stem": "small"}


def needs(architecture: str) -> None:
    """Skips a test where the packages of an architecture are not installed."""
    if ARCHITECTURES[architecture].extra:
        pytest.importorskip("timm")


def least(architecture: str) -> dict[str, Any]:
    """Returns what lets an architecture take images of 16 x 12 pixels."""
    size = ARCHITECTURES[architecture].least_size
    return {"image_size": size} if size > 1 else {}


def build(
    channels: int = 1, n_classes: int = 5, seed: int = 0, load_pretrained: bool = True, **values: Any
) -> nn.Module:
    """Returns the model of a configuration, its weights drawn from the seed."""
    needs(values.get("architecture", "resnet8"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(TrainConfig(**values), channels, n_classes, load_pretrained)


def random_images(n: int, channels: int = 1, height: int = 16, width: int = 16) -> Tensor:
    """Returns normalised images, float32 (n, channels, height, width)."""
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, channels, height, width, generator=generator).contiguous(memory_format=torch.channels_last)


def outputs(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits and features as at evaluation."""
    with torch.inference_mode():
        logits, features = model.eval()(images)
    return logits, features


@pytest.mark.parametrize("hyperparameter", OTHER)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_hyperparameter_changes_the_architectures_that_use_it_and_no_others(
    architecture: str, hyperparameter: str
) -> None:
    default, other = (
        outputs(build(architecture=architecture, **least(architecture), **values), random_images(1))[0]
        for values in ({}, {hyperparameter: OTHER[hyperparameter]})
    )
    assert torch.equal(default, other) == (hyperparameter not in ARCHITECTURES[architecture].uses)


def test_all_hyperparameters_that_only_some_architectures_use_are_tried() -> None:
    assert {used for known in ARCHITECTURES.values() for used in known.uses} <= set(OTHER)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_features_have_their_shapes(architecture: str, channels: int) -> None:
    model = build(channels, architecture=architecture, width=4, **least(architecture))
    logits, features = outputs(model, random_images(3, channels, 16, 12))
    assert logits.shape == (3, 5)
    assert head_ends(model)
    head = head_of(model)
    assert isinstance(head, nn.Linear)
    assert features.shape == (3, head.in_features)
    assert features.std(0).max() > 0
    torch.testing.assert_close(head(features.clone()), logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_steps_lower_the_loss_and_reach_every_weight(architecture: str) -> None:
    model = build(architecture=architecture, width=8, **least(architecture)).train()
    for module in model.modules():  # Chance would tell whether the loss of a few steps falls.
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.eval()
    images, labels = random_images(16), torch.arange(16) % 5
    library = bool(ARCHITECTURES[architecture].weights)
    adamw, sgd = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.optim.SGD(model.parameters(), lr=0.02)
    optimizer = adamw if library else sgd
    losses = []
    for _ in range(5):
        loss = functional.cross_entropy(model(images)[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_global_seed_decides_the_weights(architecture: str) -> None:
    first, again, other = (build(seed=seed, architecture=architecture, width=4).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if name.endswith("weight") and first[name].ndim > 1]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_channels_last_and_one_image_does_not_depend_on_the_others(architecture: str) -> None:
    model = build(3, architecture=architecture, width=8, **least(architecture))
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)
    images = random_images(4, 3)
    torch.testing.assert_close(outputs(model, images)[0][:1], outputs(model, images[:1])[0], rtol=1e-4, atol=1e-5)


def test_resnet8_has_the_published_number_of_parameters() -> None:
    model = build(n_classes=10, architecture="resnet8", width=16)
    assert count_parameters(model) == 77_754
    model.head.requires_grad_(False)  # type: ignore[operator, union-attr]
    assert count_parameters(model) == 77_754 - 650


def test_twice_the_width_is_four_times_the_convolutions() -> None:
    def convolutions(width: int) -> int:
        model = build(architecture="resnet8", width=width)
        return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))

    stem = 3 * 3 * 1
    assert convolutions(16) - stem * 16 == 4 * (convolutions(8) - stem * 8)
    assert outputs(build(width=32), random_images(1))[1].shape == (1, 128)


@pytest.mark.parametrize(("architecture", "depth"), [("resnet8", 8), ("resnet14", 14), ("resnet20", 20)])
def test_the_small_family_is_as_deep_as_its_name_and_halves_the_image_twice(architecture: str, depth: int) -> None:
    model = build(architecture=architecture, width=4)
    kernels = [module.kernel_size for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert kernels.count((3, 3)) + 1 == depth
    assert kernels.count((1, 1)) == 2
    sizes: list[torch.Size] = []
    for stage in model.stages:  # type: ignore[union-attr]
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1:]))
    outputs(model, random_images(1, 1, 12, 16))
    per_stage = (depth - 2) // 6
    assert sizes == [(4, 12, 16)] * per_stage + [(8, 6, 8)] * per_stage + [(16, 3, 4)] * per_stage


def test_a_new_block_is_its_shortcut() -> None:
    images = random_images(2, 4)
    stages = build(architecture="resnet14", width=4).eval().stages
    for block in (stages[0], stages[2]):  # type: ignore[index, union-attr]
        torch.testing.assert_close(block(images), functional.relu(block.shortcut(images)))


@pytest.mark.parametrize(
    ("stem", "kernel", "stride", "side"), [("imagenet", (7, 7), (2, 2), 1), ("small", (3, 3), (1, 1), 4)]
)
def test_resnet18_has_either_stem(stem: str, kernel: tuple[int, int], stride: tuple[int, int], side: int) -> None:
    model = build(architecture="resnet18", stem=stem)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert (first.in_channels, first.kernel_size, first.stride) == (1, kernel, stride)
    sizes: list[torch.Size] = []
    model.network.layer4.register_forward_hook(  # type: ignore[operator, union-attr]
        lambda module, inputs, output: sizes.append(output.shape)
    )
    outputs(model, random_images(1, 1, 32, 32))
    assert sizes == [(1, 512, side, side)]
    # Drawn as He et al. 2015: std = sqrt(2 / (64 k k)).
    assert first.weight.std().item() == pytest.approx((2 / (64 * kernel[0] ** 2)) ** 0.5, rel=0.15)


@pytest.mark.parametrize("architecture", ["resnet8", "resnet18"])
def test_image_size_resizes_before_the_network(architecture: str) -> None:
    plain, resized = (build(architecture=architecture, width=4, image_size=size) for size in (None, 24))
    images = random_images(2, 1, 12, 16)
    expected = functional.interpolate(images, (24, 24), mode="bilinear", antialias=True)
    for got, wanted in zip(outputs(resized, images), outputs(plain, expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert count_parameters(resized) == count_parameters(plain)


def test_images_that_a_network_cannot_take_are_refused_with_the_size_that_it_can() -> None:
    config = TrainConfig(architecture="convnext_tiny")
    expected = r"^convnext_tiny needs images of 32 pixels a side at least, but got 28\. Set image_size to 32 or more\.$"
    with pytest.raises(UserError, match=expected):
        build_model(config, 1, 5, size=(40, 28))
    with pytest.raises(UserError, match=r"but got 16\."):
        build_model(config.model_copy(update={"image_size": 16}), 1, 5, size=(40, 40))

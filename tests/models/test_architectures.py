"""`models.architectures`: what every architecture keeps; ImageNet weights through torch's cache, never the network."""

import hashlib
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import ARCHITECTURES
from tuning.models.architectures import build_model, count_parameters, fold_channels

WEIGHTS = "resnet18-f37072fd.pth"
# Hyperparameters that only some architectures use, and a value that is not the default.
OTHER: dict[str, Any] = {"width": 8, "stem": "small"}


def build(
    channels: int = 1, n_classes: int = 5, seed: int = 0, load_pretrained: bool = True, **values: Any
) -> nn.Module:
    """Returns the model of a configuration, its weights drawn from the seed."""
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
        outputs(build(architecture=architecture, **values), random_images(1))[0]
        for values in ({}, {hyperparameter: OTHER[hyperparameter]})
    )
    assert torch.equal(default, other) == (hyperparameter not in ARCHITECTURES[architecture].uses)


def test_all_hyperparameters_that_only_some_architectures_use_are_tried() -> None:
    assert {used for known in ARCHITECTURES.values() for used in known.uses} <= set(OTHER)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_features_have_their_shapes(architecture: str, channels: int) -> None:
    model = build(channels, architecture=architecture, width=4)
    logits, features = outputs(model, random_images(3, channels, 16, 12))
    assert logits.shape == (3, 5)
    head = model.head
    assert isinstance(head, nn.Linear)
    assert features.shape == (3, head.in_features)
    assert features.std(0).max() > 0
    torch.testing.assert_close(head(features.clone()), logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_steps_lower_the_loss_and_reach_every_weight(architecture: str) -> None:
    model = build(architecture=architecture, width=8).train()
    images, labels = random_images(16), torch.arange(16) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
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
    model = build(3, architecture=architecture, width=8)
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


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_folded_channels_answer_a_grey_image_as_three_colours_do(channels: int) -> None:
    weight = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(0)).expand(8, 3, 3, 3)
    folded = fold_channels(weight, channels)
    assert folded.shape == (8, channels, 3, 3)
    torch.testing.assert_close(folded.sum(1), weight.sum(1))


def test_folded_channels_keep_sum_or_repeat_the_colours() -> None:
    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fold_channels(weight, 3), weight)
    torch.testing.assert_close(fold_channels(weight, 1)[:, 0], weight[:, 0] + weight[:, 1] + weight[:, 2])
    torch.testing.assert_close(fold_channels(weight, 4), weight[:, [0, 1, 2, 0]] * 0.75)
    torch.testing.assert_close(fold_channels(weight, 2), weight[:, :2] * 1.5)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The file of ResNet-18's weights (random ones here) in a cache like torch's, and the weights."""
    home = tmp_path_factory.mktemp("torch")
    (home / "hub/checkpoints").mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        weights = resnet18().state_dict()
    torch.save(weights, home / "weights")
    digest = hashlib.sha256((home / "weights").read_bytes()).hexdigest()
    return (home / "weights").rename(home / f"hub/checkpoints/resnet18-{digest[:8]}.pth"), weights


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Gives torch an empty cache and no network."""

    def refuse(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no network in a test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.fixture
def cached(imagenet: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights that are now in torch's cache."""
    path, weights = imagenet
    monkeypatch.setenv("TORCH_HOME", str(path.parents[2]))
    monkeypatch.setattr("tuning.base.downloads.RESNET18", path.name)
    return weights


def test_pretrained_weights_are_taken_but_for_the_last_layer(cached: dict[str, Tensor]) -> None:
    model = build(3, architecture="resnet18", pretrained=True)
    loaded = model.network.state_dict()  # type: ignore[operator, union-attr]
    assert set(cached) - set(loaded) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(loaded[name], cached[name]) for name in loaded)
    assert outputs(model, random_images(2, 3))[0].shape == (2, 5)


def test_one_channel_gets_the_sum_over_colour(cached: dict[str, Tensor]) -> None:
    model = build(1, architecture="resnet18", pretrained=True)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    torch.testing.assert_close(first.weight.detach(), cached["conv1.weight"].sum(1, keepdim=True))


def test_the_small_stem_is_the_filters_centre_at_the_same_size(cached: dict[str, Tensor]) -> None:
    model = build(3, architecture="resnet18", pretrained=True, stem="small")
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d)).weight.detach()
    filters = cached["conv1.weight"]
    assert first.norm().item() == pytest.approx(filters.norm().item(), rel=1e-5)
    torch.testing.assert_close(first / first.norm(), filters[..., 2:5, 2:5] / filters[..., 2:5, 2:5].norm())


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_a_grey_image_gives_the_features_of_red_green_and_blue_alike(cached: dict[str, Tensor], stem: str) -> None:
    grey, colour = (build(n, architecture="resnet18", pretrained=True, stem=stem) for n in (1, 3))
    images = random_images(2)
    features = outputs(grey, images)[1]
    torch.testing.assert_close(features, outputs(colour, images.expand(2, 3, 16, 16))[1], rtol=1e-3, atol=1e-4)
    unpretrained = build(1, architecture="resnet18", stem=stem)
    assert not torch.allclose(features, outputs(unpretrained, images)[1], rtol=1e-2)


def test_pretrained_weights_that_cannot_be_had_name_the_next_step(tmp_path: Path) -> None:
    expected = (
        rf"^Pretrained ResNet-18 weights must be in {re.escape(str(tmp_path))}/hub/checkpoints or be downloadable, "
        r"but got <urlopen error no network in a test>\. Choose pretrained: false, or put torchvision's "
        rf"{WEIGHTS} there\.$"
    )
    with pytest.raises(UserError, match=expected):
        build(architecture="resnet18", pretrained=True)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other first layer", "a layer missing", "a list"])
def test_damaged_pretrained_weights_name_the_next_step(
    imagenet: tuple[Path, dict[str, Tensor]], tmp_path: Path, damage: str
) -> None:
    stored, weights = imagenet
    path = tmp_path / "hub/checkpoints" / WEIGHTS
    path.parent.mkdir(parents=True)
    if damage == "other first layer":
        torch.save({**weights, "conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    elif damage == "a layer missing":
        torch.save({name: value for name, value in weights.items() if "layer4" not in name}, path)
    elif damage == "a list":
        torch.save([1, 2], path)
    else:
        whole = stored.read_bytes()
        path.write_bytes({"cut": whole[:100_000], "text": b"<html>not found</html>", "empty": b""}[damage])
    with pytest.raises(UserError, match=r"^Pretrained ResNet-18 weights must be in .* put torchvision's .* there\.$"):
        build(architecture="resnet18", pretrained=True)


@pytest.mark.slow
def test_a_model_that_only_takes_a_state_dict_needs_no_pretrained_weights(cached: dict[str, Tensor]) -> None:
    trained = build(1, architecture="resnet18", pretrained=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", "/nowhere")
        empty = build(1, architecture="resnet18", pretrained=True, load_pretrained=False)
    empty.load_state_dict(trained.state_dict())
    images = random_images(2)
    torch.testing.assert_close(outputs(empty, images), outputs(trained, images))

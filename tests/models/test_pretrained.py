"""`models.pretrained`: networks of libraries with their ImageNet weights, through torch's cache or a package."""

import hashlib
import re
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_architectures import build, outputs, random_images
from torch import Tensor, nn
from torchvision import models
from torchvision.models import resnet18

from tuning.base import downloads
from tuning.base.config import TrainConfig, parse_config
from tuning.base.errors import UserError
from tuning.base.registries import ARCHITECTURES, IMAGENET, Normalisation
from tuning.models.architectures import build_model, head_of, inner
from tuning.models.pretrained import fold_channels
from tuning.models.trying import check_network

WEIGHTS = "resnet18-f37072fd.pth"
OF_TORCHVISION = [name for name, known in ARCHITECTURES.items() if known.weights and not known.package]
OF_PACKAGES = [name for name, known in ARCHITECTURES.items() if known.package]


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
    monkeypatch.setitem(ARCHITECTURES, "resnet18", replace(ARCHITECTURES["resnet18"], weights=path.name))
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
        rf"^Pretrained resnet18 weights must be in {re.escape(str(tmp_path))}/hub/checkpoints or be downloadable, "
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
    with pytest.raises(UserError, match=r"^Pretrained resnet18 weights must be in .* put torchvision's .* there\.$"):
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


def first_layer(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_the_file_of_every_network_of_torchvision_is_its_own(name: str) -> None:
    urls = [weights.url for weights in models.get_model_weights(name)]
    assert downloads.MIRROR + ARCHITECTURES[name].weights in urls


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OF_TORCHVISION if name != "resnet18"])
def test_every_network_of_torchvision_takes_its_weights_and_gives_what_torchvision_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs = models.get_model(name)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "weights")
    digits = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()[:8]
    (tmp_path / "weights").rename(tmp_path / f"hub/checkpoints/any-{digits}.pth")
    monkeypatch.setitem(ARCHITECTURES, name, replace(ARCHITECTURES[name], weights=f"any-{digits}.pth"))
    path = [path for path, module in theirs.named_modules() if isinstance(module, nn.Linear)][-1]
    theirs.set_submodule(path, nn.Identity())
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = [torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std)]
    with torch.inference_mode():
        expected = theirs.eval()((pixels - wanted[0]) / wanted[1])
    # However the data set's images are normalised, the weights see them as ImageNet's were.
    seen = Normalisation((0.3, 0.5, 0.1), (0.2, 0.1, 0.4))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (seen.mean, seen.std))
    config = TrainConfig(architecture=name, pretrained=True)
    features = outputs(build_model(config, 3, 5, seen=seen), (pixels - mean) / std)[1]
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs(build_model(config, 3, 5), pixels)[1], expected, rtol=1e-3, atol=1e-3)
    grey = build_model(config, 1, 5)
    assert first_layer(grey).in_channels == 1
    torch.testing.assert_close(first_layer(grey).weight, first_layer(theirs).weight.sum(1, keepdim=True))
    # A state dict has the normalisation, too: whoever loads it need not know that of the data set.
    again = build_model(config, 3, 5, load_pretrained=False)
    again.load_state_dict(build_model(config, 3, 5, seen=seen).state_dict())
    torch.testing.assert_close(outputs(again, (pixels - mean) / std)[1], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", OF_PACKAGES)
def test_weights_of_a_package_fit_timms_network_and_know_what_they_see(name: str) -> None:
    pytest.importorskip("timm")
    assert downloads.weights_file(name).name == ARCHITECTURES[name].weights
    model = build(3, architecture=name, pretrained=True)
    weights = torch.load(downloads.weights_file(name), weights_only=True)
    network = inner(model).network
    loaded = list(network.state_dict().values())  # type: ignore[operator, union-attr]
    assert all(torch.equal(own, theirs) for own, theirs in zip(loaded, weights.values(), strict=False))
    assert len(loaded) == len(weights) - 2
    pixels = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    features = outputs(model, pixels.expand(4, 3, 64, 64))[1]
    assert features.shape == (4, 1280) and features.std(0).mean() > 0.01
    torch.testing.assert_close(
        outputs(build(1, architecture=name, pretrained=True), pixels)[1], features, rtol=1e-3, atol=1e-3
    )


def test_the_classes_of_the_weights_are_found_in_a_picture() -> None:
    """The whole network of the package, classifier included, is sure of what a plain picture shows."""
    pytest.importorskip("timm")
    weights = torch.load(downloads.weights_file("efficientnet_lite0"), weights_only=True)
    model = build(3, n_classes=1000, architecture="efficientnet_lite0", pretrained=True)
    head_of(model).load_state_dict({"weight": weights["_fc.weight"], "bias": weights["_fc.bias"]})
    y, x = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij")
    stripes = (x // 14 + y // 14) % 2  # A board of squares: "crossword puzzle" is class 918, "chain mail" 490.
    probabilities = outputs(model, stripes.float().expand(1, 3, 224, 224))[0].softmax(1)[0]
    assert probabilities.max() > 0.2


@pytest.mark.parametrize("damage", ["missing", "cut", "no file"])
def test_weights_of_a_package_that_cannot_be_had_name_the_next_step(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ARCHITECTURES["efficientnet_lite0"]
    if damage != "missing":
        (tmp_path / "lite_package").mkdir()
        (tmp_path / "lite_package/__init__.py").touch()
        if damage == "cut":
            (tmp_path / "lite_package" / known.weights).write_bytes(b"cut")
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ARCHITECTURES, "efficientnet_lite0", replace(known, package="lite_package"))
    expected = {
        "missing": r"^Pretrained efficientnet_lite0 weights need the package lite-package, which is not installed\.",
        "cut": rf"^The .* of efficientnet_lite0, .*lite_package.{known.weights}, .* is damaged \(3 bytes\)\. Run",
        "no file": rf"^The .* of efficientnet_lite0, .*lite_package.{known.weights}, .* is missing\. Run",
    }
    with pytest.raises(UserError, match=expected[damage]):
        downloads.weights_file("efficientnet_lite0")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm:resnet10t"])
def test_without_timm_its_networks_say_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "find_spec", lambda package: None)
    expected = (
        rf"^The architecture {name} needs the package timm, which is not installed\. "
        r"Run `python -m pip install -e '\.\[photos\]'`\.$"
    )
    for check in (downloads.check_installed, downloads.check_weights):
        with pytest.raises(UserError, match=expected):
            check(name)
    with pytest.raises(UserError, match=expected):
        build_model(TrainConfig(architecture=name), 1, 5)
    downloads.check_installed("resnet50")


def test_any_network_of_timm_goes_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    config = parse_config({"architecture": "timm:resnet10t", "width": 8}, "space.py")
    model = build_model(config, 1, 5)
    assert first_layer(model).in_channels == 1
    logits, features = outputs(model, random_images(2))
    torch.testing.assert_close(head_of(model)(features.clone()), logits)
    check_network(config, 1, 5, (16, 12))


def test_an_unknown_network_of_timm_names_the_closest() -> None:
    pytest.importorskip("timm")
    expected = (
        r"^architecture must be the name of a network of timm, but got 'timm:resnet5'\. The closest are timm:resnet"
    )
    with pytest.raises(UserError, match=expected):
        downloads.check_installed("timm:resnet5")


def test_a_network_that_cannot_take_the_images_is_refused_before_any_trial() -> None:
    pytest.importorskip("timm")
    config = TrainConfig(architecture="timm:vit_tiny_patch16_224")
    expected = r"^timm:vit_tiny_patch16_224 cannot take images of 28 x 28 pixels: .*28.*\. Set image_size\.$"
    with pytest.raises(UserError, match=expected):
        check_network(config, 1, 5, (28, 28))
    check_network(config.model_copy(update={"image_size": 224}), 1, 5, (28, 28))


@pytest.mark.parametrize("name", ["timm:", "timm:a b", "tim:resnet18", "own:xyz", "own:0123456789ab0"])
def test_other_forms_of_a_name_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"architecture must be one of .*, but got '{name}'"):
        parse_config({"architecture": name}, "space.py")

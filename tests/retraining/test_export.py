"""The exported models give the model's probabilities; what cannot be exported is said before anything is trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_predict import CLASSES, write_model

from tuning.base import own_model
from tuning.base.averagings import AVERAGINGS
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.models.architectures import build_model
from tuning.retraining import export
from tuning.retraining.best_model import load_best_model, probabilities

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 1, 10, 8), dtype=np.uint8)
# What torch's exporters warn of in their own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.slow
@pytest.mark.parametrize("averaging", AVERAGINGS)
@pytest.mark.parametrize("name", export.FORMATS)
def test_each_format_gives_the_models_probabilities(tmp_path: Path, name: str, averaging: str) -> None:
    folder = write_model(tmp_path, averaging=averaging)
    [line] = export.export(folder, [name], IMAGES)
    assert line.startswith(f"Exported: {folder}/model.{name}; run on 20 images")
    assert (folder / f"model.{name}").stat().st_size > 10_000


@pytest.mark.slow
def test_an_onnx_file_is_run_without_torch_or_this_project(tmp_path: Path) -> None:
    import onnxruntime

    folder = write_model(tmp_path)
    export.export(folder, ["onnx"], IMAGES)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(["probabilities"], {"images": IMAGES[:7]})
    assert found == pytest.approx(probabilities(load_best_model(folder), IMAGES[:7]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "load"), [("onnx", "run_onnx"), ("pt2", "run_pt2")])
def test_the_average_is_in_a_file_that_is_run_for_any_number_of_images(tmp_path: Path, name: str, load: str) -> None:
    folder = write_model(tmp_path, averaging="flip+shift")
    export.export(folder, [name], IMAGES)
    run, best = globals()[load](folder / f"model.{name}"), load_best_model(folder)
    plain = probabilities(replace(best, averaging="none"), IMAGES)
    for n in (1, 2, 7):
        assert run(IMAGES[:n]) == pytest.approx(probabilities(best, IMAGES[:n]), abs=1e-5)
        assert np.abs(run(IMAGES[:n]) - plain[:n]).max() > 1e-3


def test_safetensors_name_the_average_that_is_not_in_the_weights(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = write_model(tmp_path, averaging="shift")
    export.export(folder, ["safetensors"], IMAGES)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["averaging"] == "shift"


MODELS = {
    "larger images": {"architecture": "resnet8", "width": 4, "image_size": 16},
    "smaller images": {"architecture": "resnet14", "width": 4, "image_size": 8},
    "resnet18": {"architecture": "resnet18", "stem": "small"},
    "resnet18 of larger images": {"architecture": "resnet18", "image_size": 24},
}
# One with layer normalisation, and that which the space `photos` begins with. Others take long to export here.
PHOTO_MODELS = {
    "convnext_tiny": ({"architecture": "convnext_tiny", "image_size": 32}, 3),
    "efficientnet_lite0": ({"architecture": "efficientnet_lite0", "image_size": 32}, 3),
}


def run_onnx(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def run_pt2(path: Path) -> Any:
    program = torch.export.load(path).module()
    return lambda images: program(torch.from_numpy(images)).detach().numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "load"), [("onnx", run_onnx), ("pt2", run_pt2)])
@pytest.mark.parametrize("model", MODELS)
def test_a_file_gives_the_models_probabilities_for_any_number_of_images(
    tmp_path: Path, model: str, name: str, load: Any
) -> None:
    """Of networks that resize their images, too, and of resnet18, whose weights are not the small networks'."""
    config = TrainConfig(**MODELS[model])
    folder = write_model(tmp_path, config=config.model_dump())
    torch.manual_seed(1)
    torch.save(build_model(config, 1, len(CLASSES)).state_dict(), folder / "model.pth")
    export.export(folder, [name], IMAGES)
    run, best = load(folder / f"model.{name}"), load_best_model(folder)
    for n in (1, 2, 1000):
        images = np.random.default_rng(n).integers(0, 256, (n, 1, 10, 8), dtype=np.uint8)
        found = run(images)
        assert found.shape == (n, len(CLASSES)) and np.abs(found - probabilities(best, images)).max() < 1e-4
        assert np.ptp(found) > 0.003  # Not of all images and classes the same.


@pytest.mark.slow
@pytest.mark.parametrize("model", PHOTO_MODELS)
def test_an_onnx_file_of_a_network_for_photos_gives_its_probabilities(tmp_path: Path, model: str) -> None:
    values, channels = PHOTO_MODELS[model]
    if values["architecture"].startswith("efficientnet_lite"):
        pytest.importorskip("timm")
    config = TrainConfig(**values)
    folder = write_model(tmp_path, channels, config=config.model_dump())
    torch.manual_seed(1)
    network = build_model(config, channels, len(CLASSES), load_pretrained=False, size=(10, 8))
    with torch.no_grad():
        for name, value in network.named_buffers():
            if name.endswith("running_var"):
                value.mul_(0.5)  # So that what is folded into the weights is no identity.
    torch.save(network.state_dict(), folder / "model.pth")
    images = np.random.default_rng(0).integers(0, 256, (20, channels, 10, 8), dtype=np.uint8)
    export.export(folder, ["onnx"], images)
    found = run_onnx(folder / "model.onnx")(images[:3])
    assert np.abs(found - probabilities(load_best_model(folder), images[:3])).max() < 1e-4


def test_an_export_that_differs_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(best: Any, path: Path, example: Any) -> Any:
        path.write_text("a model")
        return lambda images: probabilities(best, images) + 0.01

    monkeypatch.setitem(export.FORMATS, "pt2", (wrong, ()))
    with pytest.raises(UserError, match=r"--export pt2 must give the model's probabilities to 0.0001, but got 0\.01"):
        export.export(write_model(tmp_path), ["pt2"], IMAGES)
    assert not (tmp_path / "model.pt2").exists()


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, n_classes):
        super().__init__()
        self.first = nn.Linear(80 * channels, 80 * channels)
        self.second = nn.Linear(80 * channels, 80 * channels)
        self.second.weight = self.first.weight
        self.head = nn.Linear(80 * channels, n_classes)
    def forward(self, x):
        x = self.second(self.first(x.flatten(1)).relu())
        if x.sum() > 0:
            x = x.relu()
        return self.head(x)

def model(config, channels, n_classes, image_size):
    return Net(channels, n_classes)
"""


def write_own(folder: Path) -> Path:
    """Writes a model with tied weights, whose forward pass branches on what it sees."""
    (folder / "own.py").write_text(OWN)
    config = TrainConfig(architecture=own_model.read(folder / "own.py").architecture)
    folder = write_model(folder, config=config.model_dump())
    torch.manual_seed(1)
    torch.save(build_model(config, 1, len(CLASSES), size=(10, 8)).state_dict(), folder / "model.pth")
    return folder


def test_safetensors_hold_weights_that_share_memory(tmp_path: Path) -> None:
    [line] = export.export(write_own(tmp_path), ["safetensors"], IMAGES)
    assert line.startswith("Exported: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_what_torch_cannot_export_is_said_with_the_way_on(tmp_path: Path, name: str) -> None:
    expected = rf"^--export {name} cannot write this model: .+\. Run the same command without --export {name}: "
    with pytest.raises(UserError, match=expected + r"nothing is trained again\.$") as caught:
        export.export(write_own(tmp_path), [name], IMAGES)
    assert "data-dependent" in str(caught.value) and "step 1/3" not in str(caught.value)


def test_an_unknown_format_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--export must be one of onnx, pt2, safetensors, but got 'onx'. Did you mean"):
        export.check_formats(["onx"])
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else name)
    export.check_formats(["safetensors", "pt2"])
    with pytest.raises(
        UserError, match=r"--export onnx needs the package onnxruntime, which is not installed\. Run `python -m pip"
    ):
        export.check_formats(["onnx"])

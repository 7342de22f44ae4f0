"""What a search leaves out because weights or packages are missing, and what it refuses before the first trial."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tuning.base import downloads
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.images import datasets
from tuning.images.source import Source
from tuning.models import trying
from tuning.sampling.spaces import check_space, load_space
from tuning.trials import loading, settling
from tuning.trials.loading import usable_space

SETTINGS: Any = SimpleNamespace(device="cpu", epochs=2, space="mine", model=None)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said; no weights of torchvision can be had, and timm is not installed."""
    said: list[str] = []

    def missing(architecture: str) -> Path:
        raise UserError(f"no weights of {architecture}")

    monkeypatch.setattr(downloads, "weights_file", missing)
    monkeypatch.setattr(downloads, "find_spec", lambda package: None)
    return said


def usable(tmp_path: Path, source: str, notes: list[str]) -> Any:
    (tmp_path / "mine.py").write_text(f"def space(trial):\n    {source}\n")
    return usable_space(load_space(str(tmp_path / "mine.py")), SETTINGS, SimpleNamespace(note=notes.append))  # type: ignore[arg-type]


def test_weights_that_cannot_be_had_are_left_out(tmp_path: Path, notes: list[str]) -> None:
    source = "return {'architecture': 'resnet34', 'pretrained': trial.suggest_categorical('pretrained', [True, False])}"
    space, configs = usable(tmp_path, source, notes)
    assert notes == ["The space leaves out pretrained=True: no weights of resnet34"]
    assert not any(config.pretrained for config in configs)
    assert not any(config.pretrained for _, config in check_space(space, 2))


def test_what_is_no_choice_is_not_said_to_be_left_out(tmp_path: Path, notes: list[str]) -> None:
    source = "return {'width': trial.suggest_int('width', 8, 16)}\nGPU_ONLY = {'width': [15, 16]}"
    with pytest.raises(UserError, match=r"GPU_ONLY of search space mine must have parameters of suggest_categorical"):
        usable(tmp_path, source, notes)
    assert notes == []


def test_networks_whose_package_is_not_installed_are_left_out(tmp_path: Path, notes: list[str]) -> None:
    names = "['efficientnet_lite0', 'timm:resnet10t', 'resnet8']"
    source = f"return {{'architecture': trial.suggest_categorical('network', {names}), 'pretrained': False}}"
    _, configs = usable(tmp_path, source, notes)
    assert {config.architecture for config in configs} == {"resnet8"}
    assert len(notes) == 2
    assert all("needs the package timm, which is not installed" in note for note in notes)


def test_a_space_of_which_nothing_is_left_is_refused(tmp_path: Path, notes: list[str]) -> None:
    with pytest.raises(UserError, match=r"^no weights of resnet50$"):
        usable(tmp_path, "return {'architecture': 'resnet50', 'pretrained': True}", notes)
    only = "return {'architecture': trial.suggest_categorical('network', ['timm:a', 'efficientnet_lite1'])}"
    with pytest.raises(UserError, match=r"This machine can do none of the choices of 'network'"):
        usable(tmp_path, only, notes)


@pytest.mark.parametrize("name", ["photos", "scans"])
def test_photos_have_networks_from_scratch_where_the_pretrained_body_is_not_installed(
    name: str, notes: list[str]
) -> None:
    space, configs = usable_space(load_space(name), SETTINGS, SimpleNamespace(note=notes.append))  # type: ignore[arg-type]
    assert {config.architecture for config in configs} == {"resnet8", "resnet14"}
    assert sorted(note.partition(":")[0] for note in notes) == [
        "The space leaves out way='fine-tune'",
        "The space leaves out way='head'",
        "The space leaves out way='head-first'",
    ]
    assert [point["way"] for point in space.first] == ["scratch"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 64, 90), "photos"), ((3, 63, 90), "resnet"), ((1, 64, 64), "scans"), ((1, 63, 64), "resnet")],
)
def test_the_space_of_ones_own_images_follows_from_their_channels_and_size(
    shape: tuple[int, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = SimpleNamespace(rest=SimpleNamespace(shape=(5, *shape)))
    monkeypatch.setattr(datasets, "load_own", lambda images, device: own)
    assert settling._space_for(Source("photos/"), "cpu") == expected


def test_a_network_is_tried_for_each_way_in_which_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[TrainConfig] = []
    monkeypatch.setattr(trying, "check_network", lambda config, *_: tried.append(config))
    ways = [("all", 1.0), ("head", 1.0), ("all", 0.1), ("all", 0.2)]
    configs = [TrainConfig(architecture="own:0123456789ab", train=a, body_lr_factor=b) for a, b in ways]  # type: ignore[arg-type]
    splits: Any = SimpleNamespace(train=SimpleNamespace(images=np.zeros((4, 1, 8, 8))), channels=1, n_classes=3)
    loading._check_networks(configs, splits)
    assert [(config.train, config.body_lr_factor) for config in tried] == [("all", 1.0), ("head", 1.0), ("all", 0.2)]


def test_how_long_trials_may_train_is_said_as_the_space_has_it(tmp_path: Path) -> None:
    def said(source: str, epochs: int) -> str:
        (tmp_path / "mine.py").write_text(f"def space(trial):\n    return {{'width': 4, {source}}}\n")
        configs = [config for _, config in check_space(load_space(str(tmp_path / "mine.py")), epochs)]
        return loading.lengths(configs, SimpleNamespace(epochs=epochs, space="mine"))  # type: ignore[arg-type]

    assert said("", 6) == "Trials train for at most 6 epochs."
    assert said("'epochs': 6", 6) == "Trials train for at most 6 epochs."
    both = "The space mine has trials train for at most {} epochs; --epochs {} counts where it sets none."
    assert said("'epochs': 20", 6) == both.format(20, 6)
    assert said("'epochs': trial.suggest_int('epochs', 2, 3)", 6) == both.format("2 to 3", 6)

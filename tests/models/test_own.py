"""`models.own` and `base.own_model`: a user's own network, with everything that can be wrong in its file."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuning.base import own_model
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.models.architectures import build_model, head_ends, head_of, inner
from tuning.models.trying import check_network

GOOD = """
import torch
from torch import nn

def model(config, channels, n_classes, image_size):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, n_classes))
"""
PAIR = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, n_classes):
        super().__init__()
        self.body = nn.Conv2d(channels, 6, 3)
        self.classes = nn.Conv2d(6, n_classes, 1)
    def forward(self, x):
        y = self.body(x).relu()
        return self.classes(y).mean((2, 3)), y.mean((2, 3))

def model(config, channels, n_classes, image_size):
    return Net(channels, n_classes)
"""
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, n_classes):
        super().__init__()
        self.body, self.pool, self.fc = nn.Conv2d(channels, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(6, n_classes)
    def forward(self, x):
        {}

def model(config, channels, n_classes, image_size):
    return Net(channels, n_classes)
"""
VIEW = NET.replace("nn.Linear(6,", "nn.Linear(288,").format(
    "x = self.body(x)\n        return self.fc(x.view(x.size(0), -1))"
)
# A squeeze-and-excitation block is the last linear layer, and a convolution the classifier.
EXCITED = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, n_classes):
        super().__init__()
        self.body, self.excite = nn.Conv2d(channels, 6, 3), nn.Linear(6, 6)
        self.classes = nn.Conv2d(6, n_classes, 1)
    def forward(self, x):
        y = self.body(x).relu()
        y = y * self.excite(y.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.classes(y).mean((2, 3))

def model(config, channels, n_classes, image_size):
    return Net(channels, n_classes)
"""
SOFTMAX = "return nn.Sequential(nn.Flatten(), nn.Linear(160, 5), nn.LogSoftmax(1))"
BODY = "from torch import nn\ndef model(config, channels, n_classes, image_size):\n    {}\n"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Lets no test know the files of others."""
    before = own_model.known()
    own_model._known.clear()
    yield
    own_model._known.clear()
    own_model.know(before)


def read(tmp_path: Path, source: str) -> TrainConfig:
    """Returns the configuration of a file with this text."""
    (tmp_path / "mine.py").write_text(source)
    return TrainConfig(architecture=own_model.read(tmp_path / "mine.py").architecture)


def images(n: int = 3, channels: int = 2) -> Tensor:
    return torch.randn(n, channels, 10, 8, generator=torch.Generator().manual_seed(n))


def build(config: TrainConfig, channels: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(config, channels, 5, size=(10, 8))


def test_logits_are_enough_and_the_features_are_what_enters_the_last_linear_layer(tmp_path: Path) -> None:
    model = build(read(tmp_path, GOOD)).eval()
    logits, features = model(images())
    assert logits.shape == (3, 5) and features.shape == (3, 16) and features.min() == 0
    assert head_ends(model) and torch.equal(head_of(model)(features), logits)
    assert torch.equal(inner(model).network(images()), logits)  # type: ignore[operator, union-attr]
    assert all(not module._forward_pre_hooks for module in model.modules())
    again = copy.deepcopy(model)
    nn.init.zeros_(head_of(model).weight)
    assert torch.equal(again(images())[0], logits)


def test_the_seed_decides_the_weights_and_a_state_dict_restores_them(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    first, again = build(config), build(config)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    other = build_model(config, 2, 5, load_pretrained=False, size=(10, 8))
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.eval()(images())[0], first.eval()(images())[0])
    assert all(name.startswith("network.") for name in first.state_dict())


def test_features_may_be_given_beside_the_logits_and_no_layer_be_linear(tmp_path: Path) -> None:
    config = read(tmp_path, PAIR)
    logits, features = build(config)(images())
    assert logits.shape == (3, 5) and features.shape == (3, 6)
    check_network(config, 2, 5, (10, 8))


def test_a_tuple_of_logits_alone_is_logits(tmp_path: Path) -> None:
    config = read(tmp_path, NET.format("return (self.fc(self.pool(self.body(x)).flatten(1)),)"))
    logits, features = build(config)(images())
    assert logits.shape == (3, 5) and features.shape == (3, 6)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("side", [None, 12])
def test_a_network_that_views_maps_as_rows_is_trained_in_the_layout_that_it_needs(
    tmp_path: Path, channels: int, side: int | None
) -> None:
    source = VIEW.replace("288", "600") if side else VIEW
    config = read(tmp_path, source).model_copy(update={"image_size": side})
    check_network(config, channels, 5, (10, 8))
    model = build(config, channels)
    again = build_model(config, channels, 5, load_pretrained=False, size=(10, 8))
    again.load_state_dict(model.state_dict())
    seen = images(3, channels).contiguous(memory_format=torch.channels_last)
    for each in (model, copy.deepcopy(model), again):
        logits, features = each(seen)
        logits.sum().backward()
        assert features.shape == (3, 600 if side else 288)
        assert torch.equal(logits, model(images(3, channels))[0])
    reshaped = build(read(tmp_path, source.replace(".view(", ".reshape(")).model_copy(update={"image_size": side}))
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in reshaped.parameters() if p.ndim == 4)


@pytest.mark.parametrize("source", [EXCITED, PAIR])
@pytest.mark.parametrize(
    ("values", "named", "instead"),
    [
        ({"train": "head"}, "train: head", "train: all"),
        ({"train": "head_first"}, "train: head_first", "train: all"),
        ({"body_lr_factor": 0.1}, "body_lr_factor: 0.1", "body_lr_factor: 1"),
    ],
)
def test_a_network_whose_last_linear_layer_is_not_the_classifier_has_no_head(
    tmp_path: Path, source: str, values: dict[str, Any], named: str, instead: str
) -> None:
    config = read(tmp_path, source)
    check_network(config, 2, 5, (10, 8))
    expected = rf"^{named} needs a network whose .*, and {config.architecture} is none\. Use {instead}\.$"
    with pytest.raises(UserError, match=expected):
        check_network(config.model_copy(update=values), 2, 5, (10, 8))


def test_a_head_with_something_after_it_may_be_trained_alone_and_not_be_fitted_first(tmp_path: Path) -> None:
    config = read(tmp_path, BODY.format(SOFTMAX))
    for values in ({"train": "head"}, {"body_lr_factor": 0.1}):
        check_network(config.model_copy(update=values), 2, 5, (10, 8))
    with pytest.raises(UserError, match=r"^train: head_first needs a network whose logits are what its last linear"):
        check_network(config.model_copy(update={"train": "head_first"}), 2, 5, (10, 8))


def test_what_a_network_of_ones_own_raises_later_is_not_said_to_be_the_size(tmp_path: Path) -> None:
    source = NET.format("assert x.any(), 'black'\n        return self.fc(self.pool(self.body(x)).flatten(1))")
    with pytest.raises(UserError, match=r"^own:\w+ cannot take images of 10 x 8 pixels: black\.$"):
        check_network(read(tmp_path, source), 2, 5, (10, 8))


@pytest.mark.parametrize(
    ("body", "features"),
    [
        (SOFTMAX, 160),
        ("return nn.Sequential(nn.Flatten(2), nn.Linear(80, 5), nn.AdaptiveAvgPool2d((1, None)), nn.Flatten())", 80),
        ("return nn.Sequential(nn.Flatten(), nn.LazyLinear(n_classes))", 160),
    ],
)
def test_what_comes_after_the_last_linear_layer_stays(tmp_path: Path, body: str, features: int) -> None:
    model = build(read(tmp_path, BODY.format(body))).eval()
    logits, found = model(images())
    assert logits.shape == (3, 5) and found.shape == (3, features)
    assert head_ends(model) == ("Lazy" in body)


def test_the_function_gets_the_configuration_and_the_size(tmp_path: Path) -> None:
    told = (
        "print(config.width, channels, n_classes, image_size)\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))"
    )
    config = read(tmp_path, BODY.format(told))
    for size, image_size, expected in (((10, 8), None, (10, 8)), ((8, 8), None, 8), ((10, 8), 12, 12)):
        capture = []
        text = BODY.format(told).replace("print(", "SEEN.append((").replace("image_size)\n    r", "image_size))\n    r")
        config = read(tmp_path, "SEEN = []\n" + text)
        build_model(config.model_copy(update={"width": 9, "image_size": image_size}), 2, 5, size=size)
        from tuning.models import own

        capture = own._functions(own_model.find(config.architecture))["SEEN"]
        assert capture.pop() == (9, 2, 5, expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def model(:", r"--model must be a file of Python, but .*mine\.py cannot be parsed: .*\(line 1\)\."),
        ("x = 1", r"mine\.py must define model\(config, channels, n_classes, image_size\) -> nn\.Module, but has no"),
        ("model = 3", r"mine\.py must define model\(config, .*, but has no such function\."),
        ("import nonsense_module\ndef model(): ...", r"must import without an error, but line 1 raised ModuleNotFound"),
        (BODY.format("return 3"), r"mine\.py: model\(config, .*\) must return an nn\.Module, but got int\."),
        (BODY.format("raise ValueError('no')"), r"must return an nn\.Module, but line 3 raised ValueError: no\."),
        ("def model(config): ...", r"must return an nn\.Module, but it raised TypeError: model\(\) takes 1 positional"),
        (
            BODY.format("return nn.Sequential(nn.Flatten(), nn.Linear(160, 7))"),
            r"must return logits \(N, 5\) for images \(N, 2, 10, 8\), but for two images it returned torch\.float32 of "
            r"shape \(2, 7\)\.",
        ),
        (
            BODY.format("return nn.Linear(3, 5)"),
            r"for images \(N, 2, 10, 8\), but for two images it raised RuntimeError: mat1 and mat2",
        ),
        (
            BODY.format("return nn.Sequential(nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())"),
            r"the model must have a linear layer \(nn\.Linear\), whose input is taken for the features, but none ran\.",
        ),
        (
            PAIR.replace(", y.mean((2, 3))", ", y"),
            r"alone or with features \(N, D\), but for two images what stood beside them is no \(N, D\)\.",
        ),
        (
            NET.format("return self.fc(self.pool(self.body(x)).squeeze())"),
            r"must return logits \(N, 5\) .*, but for one image it returned torch\.float32 of shape \(5,\)\. Use "
            r"\.flatten\(1\) in the place of \.squeeze\(\)",
        ),
        (
            NET.format("return self.fc(self.pool(self.body(x)).squeeze()).view(len(x), -1)"),
            r"mine\.py: for one image the last linear layer must see \(N, D\), but got \(6,\)\. Use \.flatten\(1\)",
        ),
        (
            NET.format("y = self.pool(self.body(x)).squeeze()\n        return self.fc(y).sum(1)[:, None].repeat(1, 5)"),
            r"for images \(N, 2, 10, 8\), but for one image line 10 raised IndexError",
        ),
        (
            PAIR.replace("y.mean((2, 3))\n", "y.mean((2, 3)).squeeze()\n"),
            r"alone or with features \(N, D\), but for one image what stood beside them is no \(N, D\)\. Use \.flat",
        ),
        (
            "from pathlib import Path\nPLACE = Path(__file__)\ndef model(): ...",
            r"must import without an error, but line 2 raised NameError: name '__file__' is not defined\. A run keeps "
            r"the text of this one file, and no other file beside it\. Name others by their whole path\.$",
        ),
        (
            BODY.format("return open(__file__ + '.pt')"),
            r"must return an nn\.Module, but line 3 raised NameError: name '__file__' is not defined\. A run keeps",
        ),
        (
            "import other\ndef model(): ...",
            r"must be complete, because a run keeps this one file, but it imports 'other'",
        ),
        ("from . import other\ndef model(): ...", r"but it imports 'other', which lies beside it\. Put what it needs"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_expected(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "other.py").touch()
    with pytest.raises(UserError, match=message):
        build(read(tmp_path, source))


@pytest.mark.parametrize(
    "source", [f"{GOOD}\nimport sys\nsys.exit()", f"{GOOD}\ndef model(*_):\n    raise SystemExit(0)"]
)
def test_a_file_that_ends_the_program_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match=r"mine\.py.* line \d+ raised SystemExit"):
        build(read(tmp_path, source))


def test_a_file_that_cannot_be_read_or_was_not_named_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--model must be a readable \.py file, but got '.*nowhere\.py': "):
        own_model.read(tmp_path / "nowhere.py")
    expected = r"^The architecture 'own:0123456789ab' is a file of the user's\. Name it with --model FILE"
    with pytest.raises(UserError, match=expected + r"\. A run keeps a copy as model\.py\.$"):
        build(TrainConfig(architecture="own:0123456789ab"))
    other = read(tmp_path, GOOD).architecture
    with pytest.raises(UserError, match=expected + rf", but got another file \({other}\)\."):
        build(TrainConfig(architecture="own:0123456789ab"))


def test_a_folder_beside_the_file_that_only_has_the_name_of_a_package_is_no_module(tmp_path: Path) -> None:
    for name in ("optuna", "ray", "mine_too"):
        (tmp_path / name).mkdir()
    (tmp_path / "ray" / "__init__.py").touch()
    read(tmp_path, "import optuna\n" + GOOD)
    for name in ("ray", "mine_too"):
        with pytest.raises(UserError, match=rf"but it imports '{name}', which lies beside it\."):
            read(tmp_path, f"import {name}.part\n{GOOD}")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    (tmp_path / "mine.py").write_text(GOOD, encoding="utf-8-sig")
    assert own_model.read(tmp_path / "mine.py").architecture == config.architecture


def test_each_version_of_a_file_has_a_hash_and_its_configurations_have_others(tmp_path: Path) -> None:
    first, second = read(tmp_path, GOOD), read(tmp_path, GOOD + "\n")
    assert re.fullmatch(r"own:[0-9a-f]{12}", first.architecture)
    assert first.architecture != second.architecture and first.hash() != second.hash()
    assert read(tmp_path, GOOD) == first


def test_a_kept_file_is_known_again_when_the_users_is_gone(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    (tmp_path / "run").mkdir()
    own_model.keep(config.architecture, tmp_path / "run")
    own_model.keep("resnet8", tmp_path / "run")
    (tmp_path / "mine.py").unlink()
    own_model._known.clear()
    assert own_model.of_folder(tmp_path) is None
    found = own_model.of_folder(tmp_path / "run")
    assert found is not None and found.architecture == config.architecture
    build(config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("source", [GOOD, PAIR])
def test_it_can_be_exported_with_its_features(tmp_path: Path, source: str) -> None:
    model = build(read(tmp_path, source)).eval()
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    for got, wanted in zip(program(images(7)), model(images(7)), strict=True):
        torch.testing.assert_close(got, wanted)

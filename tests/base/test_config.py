"""`tuning.base.config`: what is accepted, and every message that a wrong configuration gives."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tuning.base.config import Limits, TrainConfig, limits, parse_config, read_config
from tuning.base.errors import UserError
from tuning.base.registries import ARCHITECTURES, LR_SCHEDULES, OPTIMIZERS

OUT_OF_RANGE = [
    ("width", 3, "greater than or equal to 4"),
    ("width", 257, "less than or equal to 256"),
    ("image_size", 7, "greater than or equal to 8"),
    ("image_size", 513, "less than or equal to 512"),
    ("learning_rate", 0.0, "greater than 0"),
    ("learning_rate", -0.1, "greater than 0"),
    ("learning_rate", 10.5, "less than or equal to 10"),
    ("momentum", -0.1, "greater than or equal to 0"),
    ("momentum", 1.0, "less than 1"),
    ("weight_decay", -1e-4, "greater than or equal to 0"),
    ("weight_decay", 1.5, "less than or equal to 1"),
    ("batch_size", 7, "greater than or equal to 8"),
    ("batch_size", 4097, "less than or equal to 4096"),
    ("epochs", 0, "greater than or equal to 1"),
    ("epochs", 1001, "less than or equal to 1000"),
    ("warmup_epochs", -1.0, "greater than or equal to 0"),
    ("warmup_epochs", 101.0, "less than or equal to 100"),
    ("plateau_patience", -1, "greater than or equal to 0"),
    ("plateau_patience", 101, "less than or equal to 100"),
    ("plateau_factor", 0.0, "greater than 0"),
    ("plateau_factor", 1.0, "less than 1"),
    ("patience", 0, "greater than or equal to 1"),
    ("patience", 1001, "less than or equal to 1000"),
    ("min_delta", -0.1, "greater than or equal to 0"),
    ("min_delta", 1.1, "less than or equal to 1"),
    ("label_smoothing", -0.1, "greater than or equal to 0"),
    ("label_smoothing", 0.6, "less than or equal to 0.5"),
    ("crop_padding", -1, "greater than or equal to 0"),
    ("crop_padding", 17, "less than or equal to 16"),
    ("erase", -0.1, "greater than or equal to 0"),
    ("erase", 1.0, "less than 1"),
    ("ema_decay", -0.1, "greater than or equal to 0"),
    ("ema_decay", 1.0, "less than 1"),
    ("crop_scale", 0.0, "greater than 0"),
    ("crop_scale", 1.1, "less than or equal to 1"),
    ("jitter", -0.1, "greater than or equal to 0"),
    ("jitter", 1.1, "less than or equal to 1"),
    ("mixup", -0.1, "greater than or equal to 0"),
    ("mixup", 10.5, "less than or equal to 10"),
    ("cutmix", -0.1, "greater than or equal to 0"),
    ("cutmix", 10.5, "less than or equal to 10"),
    ("body_lr_factor", 0.0, "greater than 0"),
    ("body_lr_factor", 1.5, "less than or equal to 1"),
]

IN_RANGE = [
    ("width", (4, 256)),
    ("image_size", (8, 512, None)),
    ("learning_rate", (1e-6, 10.0)),
    ("momentum", (0.0, 0.99)),
    ("weight_decay", (0.0, 1.0)),
    ("batch_size", (8, 4096)),
    ("epochs", (1, 1000)),
    ("warmup_epochs", (0.0, 100.0)),
    ("plateau_patience", (0, 100)),
    ("plateau_factor", (0.01, 0.99)),
    ("patience", (1, 1000, None)),
    ("min_delta", (0.0, 1.0)),
    ("label_smoothing", (0.0, 0.5)),
    ("crop_padding", (0, 16)),
    ("erase", (0.0, 0.99)),
    ("ema_decay", (0.0, 0.9999)),
    ("crop_scale", (0.01, 1.0)),
    ("jitter", (0.0, 1.0)),
    ("mixup", (0.0, 10.0)),
    ("cutmix", (0.0, 10.0)),
    ("body_lr_factor", (0.01, 1.0)),
]


CHANGES: list[tuple[str, Any]] = [
    ("architecture", "resnet18"),
    ("width", 32),
    ("stem", "small"),
    ("image_size", 32),
    ("optimizer", "adamw"),
    ("learning_rate", 0.2),
    ("momentum", 0.8),
    ("weight_decay", 0.0),
    ("batch_size", 64),
    ("epochs", 16),
    ("schedule", "cosine"),
    ("warmup_epochs", 2.0),
    ("plateau_patience", 2),
    ("plateau_factor", 0.5),
    ("patience", None),
    ("min_delta", 0.1),
    ("label_smoothing", 0.1),
    ("crop_padding", 2),
    ("flip", True),
    ("erase", 0.5),
    ("ema_decay", 0.99),
    ("precision", "fp32"),
    ("crop_scale", 0.5),
    ("jitter", 0.4),
    ("trivial_augment", True),
    ("mixup", 0.2),
    ("cutmix", 1.0),
    ("train", "head"),
    ("body_lr_factor", 0.1),
    ("class_weights", "sqrt"),
]


@pytest.mark.parametrize(("name", "value", "rule"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_named_with_its_rule(name: str, value: float, rule: str) -> None:
    message = f"space.py: {name} must be {rule}, but got {value!r}."
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        parse_config({name: value}, "space.py")


@pytest.mark.parametrize(("name", "values"), IN_RANGE)
def test_the_ends_of_a_range_are_accepted_and_kept(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert getattr(parse_config({name: value}, "space.py"), name) == value


def test_every_bounded_number_is_in_both_tables() -> None:
    numbers = {name for name, field in TrainConfig.model_fields.items() if re.search(r"int|float", str(field))}
    assert numbers == {name for name, _ in IN_RANGE} == {name for name, _, _ in OUT_OF_RANGE}


@pytest.mark.parametrize(
    ("name", "value", "choices", "closest"),
    [
        ("architecture", "resnet18s", ", ".join(sorted(ARCHITECTURES)), "resnet18"),
        ("stem", "smal", "imagenet, small", "small"),
        ("optimizer", "adamww", ", ".join(sorted(OPTIMIZERS)), "adamw"),
        ("schedule", "cosin", ", ".join(sorted(LR_SCHEDULES)), "cosine"),
        ("precision", "bf_16", "auto, bf16, fp32", "bf16"),
        ("train", "heads", "all, head, head_first", "head"),
    ],
)
def test_an_unknown_choice_lists_the_known_ones_and_the_closest(
    name: str, value: str, choices: str, closest: str
) -> None:
    message = f"space.py: {name} must be one of {choices}, but got '{value}'. Did you mean '{closest}'?"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        parse_config({name: value}, "space.py")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("width", "wide", "a valid integer"),
        ("width", 16.5, "a valid integer"),
        ("width", None, "a valid integer"),
        ("epochs", [3], "a valid integer"),
        ("learning_rate", "fast", "a valid number"),
        ("learning_rate", float("nan"), "a finite number"),
        ("learning_rate", float("inf"), "a finite number"),
        ("flip", "perhaps", "a valid boolean"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_in_good_grammar(name: str, value: Any, rule: str) -> None:
    with pytest.raises(UserError, match=rf"^space\.py: {name} must be {rule}\b.* but got {re.escape(repr(value))}\.$"):
        parse_config({name: value}, "space.py")


def test_an_unknown_name_lists_the_known_ones_and_the_closest() -> None:
    expected = (
        r"^space\.py: Hyperparameter must be one of architecture, batch_size, .*, width, "
        r"but got 'learning_rat'\. Did you mean 'learning_rate'\?$"
    )
    with pytest.raises(UserError, match=expected):
        parse_config({"width": 8, "learning_rat": 0.1}, "space.py")


@pytest.mark.parametrize("name", ["zzz", 7])
def test_an_unknown_name_that_is_like_no_other_gets_no_hint(name: Any) -> None:
    with pytest.raises(UserError, match=f"but got '{name}'\\.$"):
        parse_config({name: 1}, "space.py")


def test_pretrained_is_for_architectures_with_weights_only() -> None:
    expected = r"^space\.py: pretrained must be false unless architecture is resnet18, .* or timm:NAME, but got '{}'\.$"
    with pytest.raises(UserError, match=expected.format("own:0123456789ab")):
        parse_config({"architecture": "own:0123456789ab", "pretrained": True}, "space.py")
    assert parse_config({"architecture": "timm:any", "pretrained": True}, "space.py").pretrained
    expected = expected.format("resnet14")
    with pytest.raises(UserError, match=expected):
        parse_config({"architecture": "resnet14", "pretrained": True}, "space.py")
    assert parse_config({"architecture": "resnet18", "pretrained": True}, "space.py").pretrained


def test_a_configuration_cannot_be_changed_or_take_an_unknown_name() -> None:
    config = TrainConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.width = 32  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        TrainConfig(widht=32)  # type: ignore[call-arg]


def test_what_is_left_out_takes_its_default() -> None:
    assert parse_config({}, "space.py") == TrainConfig()
    assert parse_config({"width": 32}, "space.py") == TrainConfig(width=32)


def test_every_hyperparameter_is_documented() -> None:
    documented = re.findall(r"^        (\w+): ", TrainConfig.__doc__ or "", flags=re.MULTILINE)
    assert documented == list(TrainConfig.model_fields)


def test_equal_configurations_have_equal_hashes_and_others_do_not() -> None:
    config = TrainConfig(learning_rate=1, epochs=15)  # type: ignore[arg-type]
    assert config.hash() == TrainConfig(learning_rate=1.0).hash()
    assert re.fullmatch("[0-9a-f]{12}", config.hash())
    changed = [TrainConfig(**{name: value}) for name, value, *_ in CHANGES]
    assert {name for name, _ in CHANGES} == set(TrainConfig.model_fields) - {"pretrained"}
    hashes = {TrainConfig().hash(), *(other.hash() for other in changed)}
    hashes |= {TrainConfig(architecture="resnet18", pretrained=pretrained).hash() for pretrained in (True, False)}
    assert len(hashes) == 1 + len(CHANGES) + 1  # The unpretrained resnet18 is among the changes.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"architecture": "resnet14", "learning_rate": 0.001, "flip": true, "patience": null}'),
        ("c.yaml", "architecture: resnet14\nlearning_rate: 1e-3\nflip: true\npatience: null\n"),
        (
            "c.yml",
            "# YAML 1.1 reads 1e-3 as text\n{architecture: resnet14, learning_rate: 0.001, flip: yes, patience: }",
        ),
    ],
)
def test_json_and_yaml_files_are_read(tmp_path: Path, name: str, text: str) -> None:
    expected = TrainConfig(architecture="resnet14", learning_rate=0.001, flip=True, patience=None)
    for encoding in ("utf-8", "utf-8-sig"):  # Editors of Windows write a byte order mark.
        (tmp_path / name).write_text(text, encoding=encoding)
        assert read_config(tmp_path / name) == expected


def test_a_written_configuration_reads_the_same(tmp_path: Path) -> None:
    config = TrainConfig(architecture="resnet20", image_size=32, learning_rate=0.1 + 0.2, patience=None)
    (tmp_path / "c.json").write_text(json.dumps(config.model_dump()))
    assert read_config(tmp_path / "c.json") == config


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", b'{"width": 8', r"c\.json must be a JSON file, but it cannot be parsed: Expecting .*column \d+"),
        ("c.json", b"", r"c\.json must be a JSON file, but it cannot be parsed: Expecting value"),
        ("c.json", b"[1, 2]", r"c\.json must hold a mapping of hyperparameters, but got list\."),
        ("c.json", b"\xff\xfe", r"Configuration file must be readable, but got '.*c\.json': .*can't decode"),
        ("c.json", b'{"width": 2}', r"c\.json: width must be greater than or equal to 4, but got 2\."),
        ("c.json", b'{"erase": NaN}', r"c\.json: erase must be .*finite number, but got nan\."),
        ("c.yaml", b"width: [8", r"c\.yaml must be a YAML file, but it cannot be parsed: (.|\n)*line \d+, column \d+"),
        ("c.yaml", b"", r"c\.yaml must hold a mapping of hyperparameters, but got NoneType\."),
        ("c.yaml", b"resnet8", r"c\.yaml must hold a mapping of hyperparameters, but got str\."),
        ("c.json", b'{"width": 8, "width": 16}', r"c\.json must be a JSON file, .* parsed: 'width' is there twice\."),
        ("c.yaml", b"width: 8\nwidth: 16", r"c\.yaml must be a YAML file, .* parsed: 'width' is there twice\."),
        ("c.yaml", b"width: 2026-11-31", r"c\.yaml must be a YAML file, but it cannot be parsed: day .* month"),
        (
            "c.json",
            b'{"width": ' + b"1" * 5000 + b"}",
            r"c\.json must be a JSON file, but it cannot be parsed: Exceeds",
        ),
        ("c.txt", b"width: 8", r"c\.txt must be a \.json, \.yaml or \.yml file, but it cannot be parsed: Expecting"),
        ("c.YAML", b"width: 2", r"c\.YAML: width must be greater than or equal to 4, but got 2\."),
        ("c.yaml", b"mixup: yes", r"c\.yaml: mixup must be a number, but got True\."),
        ("c.json", b'{"patience": true}', r"c\.json: patience must be a number, but got True\."),
        ("c.yaml", b"depth: 8", r"c\.yaml: Hyperparameter must be one of .* but got 'depth'\."),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / name)


@pytest.mark.parametrize(("name", "reason"), [("absent.json", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    with pytest.raises(UserError, match=rf"^Configuration file must be readable, but got '{path}': .*{reason}.*\.$"):
        read_config(path)


def test_the_limits_are_those_that_a_configuration_is_held_to() -> None:
    assert limits()["learning_rate"] == Limits(0, 10, low_is_open=True)
    assert limits()["momentum"] == Limits(0, 1, high_is_open=True)
    assert limits()["image_size"] == Limits(8, 512)
    assert "flip" not in limits() and "optimizer" not in limits()
    assert limits()["momentum"].allow(0) and not limits()["momentum"].allow(1)
    assert not limits()["learning_rate"].allow(0) and limits()["learning_rate"].allow(10)

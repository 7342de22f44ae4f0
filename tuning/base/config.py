"""`TrainConfig`: every hyperparameter of a training run, typed and bounded; unknown names are refused.

What is *not* here: the data set's files, the seed and the device. They are how a configuration is run, not what it is.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, ValidationError, model_validator
from pydantic_core import core_schema

from tuning.base.errors import UserError, unknown_name
from tuning.base.registries import ARCHITECTURES, LR_SCHEDULES, OPTIMIZERS, TIMM, Registry

MOST_EPOCHS = 1000
# Hyperparameter -> the registry that has its choices.
NAMED: Mapping[str, Registry[Any]] = {
    "architecture": ARCHITECTURES,
    "optimizer": OPTIMIZERS,
    "schedule": LR_SCHEDULES,
}


# Architectures beside those of the registry; whether there is such a network is asked where it is to be built.
_UNLISTED = re.compile(rf"{TIMM}[\w.-]+|own(:[0-9a-f]{{12}})?")


def _name_in(registry: Registry[Any], unlisted: re.Pattern[str] | None = None) -> GetPydanticSchema:
    """Returns the annotation of a hyperparameter that must be a name in a registry, or of the form `unlisted`."""

    def checked(value: Any, listed: Callable[[Any], Any]) -> Any:
        return value if unlisted and isinstance(value, str) and unlisted.fullmatch(value) else listed(value)

    names = core_schema.literal_schema(list(registry))
    schema = core_schema.no_info_wrap_validator_function(checked, names) if unlisted else names
    return GetPydanticSchema(lambda source, handler: schema)


# The hyperparameters of version 0.2.0, whose runs, checkpoints and retrainings know no others.
OF_0_2 = (
    *("architecture", "width", "pretrained", "stem", "image_size", "optimizer", "learning_rate", "momentum"),
    *("weight_decay", "batch_size", "epochs", "schedule", "warmup_epochs", "plateau_patience", "plateau_factor"),
    *("patience", "min_delta", "label_smoothing", "crop_padding", "flip", "erase", "ema_decay", "precision"),
)


class TrainConfig(BaseModel):
    """One training run's hyperparameters.

    Attributes:
        architecture: A name in `ARCHITECTURES`; "timm:NAME", a network of the package timm; or a user's own file:
            "own", which the command makes "own:" and 12 digits of the file's SHA-256.
        width: Channels of the first stage, 4 to 256; only where the architecture uses it (resnet18 has its own 64).
        pretrained: Start from ImageNet weights; only where the architecture has them.
        stem: First layers of resnet18, resnet34 and resnet50: "imagenet" (7x7, stride 2, max-pool) or "small" (3x3,
            stride 1, no pooling).
        image_size: Side in pixels to which images are resized before the network, 8 to 512; None keeps their own.
        optimizer: A name in `OPTIMIZERS`.
        learning_rate: Peak learning rate, in (0, 10].
        momentum: In [0, 1); only where the optimizer uses it.
        weight_decay: In [0, 1]; not applied to biases and normalisation layers. With SGD it is multiplied by the
            learning rate, as in torch.
        batch_size: Images a step, 8 to 4096.
        epochs: Passes over the train split at most, 1 to 1000.
        schedule: A name in `LR_SCHEDULES`.
        warmup_epochs: Linear warm-up of schedules that use it, in epochs, 0 to 100 (at most half of `epochs` is used).
        plateau_patience: Epochs without a lower valid_loss before the learning rate drops, 0 to 100.
        plateau_factor: What the learning rate is multiplied by when it drops, in (0, 1).
        patience: Early stopping: epochs without a lower valid_loss before training ends, 1 to 1000; None never. Where
            the learning rate is annealed, those count in which it has come down to a tenth of its peak.
        min_delta: By how much valid_loss must fall to count as lower, in [0, 1]; for plateau, too.
        label_smoothing: In [0, 0.5].
        crop_padding: Random crop: pixels that an image may shift by, 0 to 16.
        flip: Random horizontal flip.
        erase: Side of a random square that is blanked (cutout, DeVries & Taylor 2017), as a share of the image's.
        ema_decay: Decay a step of the weights' exponential moving average (EMA), which is validated and kept; 0: none.
        precision: "bf16" autocast, "fp32", or "auto": bf16 where it was measured to be faster on the device.
        crop_scale: Random resized crop: least share of the area that is kept, in (0, 1]; 1: none.
        jitter: Colour jitter, in [0, 1]: brightness, contrast and saturation change by up to this share, hue by up to a
            quarter of it, in turns; gray images have brightness and contrast alone.
        trivial_augment: One random operation of random strength an image (Müller & Hutter 2021).
        mixup: Images and labels are mixed in pairs, by a share from Beta(mixup, mixup), 0 to 10; 0: none.
        cutmix: A rectangle of another image is pasted in, and labels are mixed by its area, whose share is from
            Beta(cutmix, cutmix), 0 to 10; 0: none. With mixup, too, each batch has one of them at random.
        train: "all" weights; the "head" alone: the last linear layer, on the features of a body that stays as it is; or
            "head_first": all, after the head was fitted to the features (Kumar et al. 2022).
        body_lr_factor: What the learning rate is multiplied by for all weights but the head's, in (0, 1].
        class_weights: What an image counts in the train loss: "none" all alike, "balanced" in inverse proportion to the
            train images of its class, "sqrt" to the square root of that. Over the train images the mean is 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: Annotated[str, _name_in(ARCHITECTURES, _UNLISTED)] = ARCHITECTURES.default
    width: Annotated[int, Field(ge=4, le=256)] = 16
    pretrained: bool = False
    stem: Literal["imagenet", "small"] = "imagenet"
    image_size: Annotated[int, Field(ge=8, le=512)] | None = None
    optimizer: Annotated[str, _name_in(OPTIMIZERS)] = OPTIMIZERS.default
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    batch_size: Annotated[int, Field(ge=8, le=4096)] = 128
    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = 15
    schedule: Annotated[str, _name_in(LR_SCHEDULES)] = LR_SCHEDULES.default
    warmup_epochs: Annotated[float, Field(ge=0, le=100)] = 1.0
    plateau_patience: Annotated[int, Field(ge=0, le=100)] = 1
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.2
    patience: Annotated[int, Field(ge=1, le=1000)] | None = 5
    min_delta: Annotated[float, Field(ge=0, le=1)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    crop_padding: Annotated[int, Field(ge=0, le=16)] = 0
    flip: bool = False
    erase: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    trivial_augment: bool = False
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=10)] = 0.0
    train: Literal["all", "head", "head_first"] = "all"
    body_lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    class_weights: Literal["none", "balanced", "sqrt"] = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = ARCHITECTURES.get(self.architecture)
        has_weights = known.pretrained if known else self.architecture.startswith(TIMM)
        if self.pretrained and not has_weights:
            able = ", ".join(name for name, entry in ARCHITECTURES.items() if entry.pretrained) + f" or {TIMM}NAME"
            raise ValueError(f"pretrained must be false unless architecture is {able}, but got {self.architecture!r}")
        return self

    def hash(self) -> str:
        """Returns 12 hexadecimal digits that are equal for equal configurations, in any version that has them."""
        return hashlib.sha256(self.model_dump_json(exclude=self._idle_later()).encode()).hexdigest()[:12]

    def described(self) -> dict[str, Any]:
        """Returns the hyperparameters by name; one that 0.2.0 did not have is left out where it is at its default."""
        return self.model_dump(exclude=self._idle_later())

    def _idle_later(self) -> set[str]:
        fields = type(self).model_fields
        return {name for name in fields if name not in OF_0_2 and getattr(self, name) == fields[name].default}


# Hyperparameter -> another one, and the choices of that with which it does nothing.
IDLE_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    used: (decider, tuple(name for name, entry in registry.items() if used not in entry.uses))
    for decider, registry in NAMED.items()
    for used in (used for entry in registry.values() for used in entry.uses)
}


@dataclass(frozen=True)
class Limits:
    """What a number among the hyperparameters may be.

    Attributes:
        low: At least this, or more than this where `low_is_open`; -inf without a limit.
        high: At most this, or less than this where `high_is_open`; inf without a limit.
    """

    low: float = -math.inf
    high: float = math.inf
    low_is_open: bool = False
    high_is_open: bool = False

    def allow(self, value: float) -> bool:
        """Returns whether a value is within the limits."""
        above = value > self.low if self.low_is_open else value >= self.low
        return above and (value < self.high if self.high_is_open else value <= self.high)


@functools.cache
def limits() -> Mapping[str, Limits]:
    """Returns the limits of each hyperparameter that is a number, by its name."""
    found = {}
    for name, schema in TrainConfig.model_json_schema()["properties"].items():
        for one in schema.get("anyOf", [schema]):
            if one.get("type") in ("number", "integer"):
                found[name] = Limits(
                    one.get("minimum", one.get("exclusiveMinimum", -math.inf)),
                    one.get("maximum", one.get("exclusiveMaximum", math.inf)),
                    "exclusiveMinimum" in one,
                    "exclusiveMaximum" in one,
                )
    return found


def network(architecture: str, width: object) -> str:
    """Returns the name of an architecture with its width, if it uses one: "resnet8-16"."""
    known = ARCHITECTURES.get(architecture)
    return f"{architecture}-{width}" if width is not None and known and "width" in known.uses else architecture


def parse_config(values: Mapping[str, Any], source: str) -> TrainConfig:
    """Returns the checked configuration.

    Args:
        values: Hyperparameter names and values; those left out take their defaults.
        source: Where the values come from, for the error, e.g. "space.py".

    Raises:
        UserError: A name is unknown (the closest is named) or a value is out of range.
    """
    unknown = [name for name in values if name not in TrainConfig.model_fields]
    if unknown:
        raise UserError(f"{source}: {unknown_name('Hyperparameter', str(unknown[0]), TrainConfig.model_fields)}")
    for name in limits():
        if isinstance(values.get(name), bool):
            raise UserError(f"{source}: {name} must be a number, but got {values[name]!r}.")
    try:
        return TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        if not problem["loc"]:
            raise UserError(f"{source}: {problem['ctx']['error']}.") from error
        name = str(problem["loc"][0])
        if problem["type"] == "literal_error":
            allowed = NAMED.get(name) or get_args(TrainConfig.model_fields[name].annotation)
            raise UserError(f"{source}: {unknown_name(name, str(values[name]), allowed)}") from error
        rule = problem["msg"].removeprefix("Input should be ").split(", unable")[0].split(", got")[0]
        raise UserError(f"{source}: {name} must be {rule}, but got {values[name]!r}.") from error


def read_config(path: Path) -> TrainConfig:
    """Returns the configuration in a JSON or YAML file: a mapping of hyperparameters.

    Raises:
        UserError: The file cannot be read, is damaged, or holds anything but known hyperparameters in range.
    """
    return parse_config(read_mapping(path, "hyperparameters"), str(path))


def read_mapping(path: Path, what: str, *, words: bool = False) -> dict[str, Any]:
    """Returns the values by name in a JSON or YAML file.

    Args:
        path: The file.
        what: What the values are, for the error.
        words: YAML's values are texts as they stand there, and not what YAML takes them for; null is None.

    Raises:
        UserError: The file cannot be read, is damaged, holds no mapping, or has a name twice.
    """
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    form = "YAML" if is_yaml else "JSON"
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = _of_yaml(text, words=words) if is_yaml else json.loads(text, object_pairs_hook=_each_once)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Configuration file must be readable, but got {str(path)!r}: {error}.") from error
    except ValueError as error:
        rule = f"a {form} file" if is_yaml or path.suffix.lower() == ".json" else "a .json, .yaml or .yml file"
        raise UserError(f"{path} must be {rule}, but it cannot be parsed: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of {what}, but got {type(values).__name__}.")
    return values


def _each_once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Returns a mapping; raises ValueError where a name is there twice, of which only one would count."""
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is there twice")
        found[name] = value
    return found


def _of_yaml(text: str, *, words: bool) -> Any:
    """Returns what a YAML text holds; raises ValueError where it cannot be parsed, or a mapping has a name twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            written = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            _each_once((name, None) for tag, name in written if tag != "tag:yaml.org,2002:merge")
            return super().construct_mapping(node, deep)

    if words:
        kept = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:null")
        resolvers = yaml.SafeLoader.yaml_implicit_resolvers.items()
        Loader.yaml_implicit_resolvers = {
            first: [(tag, form) for tag, form in each if tag in kept] for first, each in resolvers
        }
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error

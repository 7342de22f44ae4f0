"""What `final` ships, read back: the model of a folder, and what it predicts for images."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tuning.base import files, own_model
from tuning.base.averagings import NONE, named_in
from tuning.base.config import TrainConfig, parse_config
from tuning.base.errors import UserError, unknown_name
from tuning.images.source import Resize
from tuning.retraining import inputs
from tuning.retraining.given_images import Images, arrays_or_paths, looks_inverted, named, read_image
from tuning.runs import replacing, schema

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn


AT_ONCE = 500  # Images.
Invert = Literal["auto", "yes", "no"]


class NotFiniteError(UserError):
    """The outputs of a model are not finite for an image."""


@dataclass(frozen=True)
class BestModel:
    """A trained model and what its images must look like.

    Attributes:
        model: In evaluation mode, on the CPU; gives logits (N, n_classes) and features.
        mean: Per channel, of pixels in [0, 1].
        std: The same for the standard deviation.
        channels: 1 (grey) or 3 (RGB).
        height: Of an image, in pixels.
        width: Of an image, in pixels.
        averaging: A name in `AVERAGINGS`: which views of an image the probabilities are the mean over.
        resize: How files are brought to height and width, "crop", "pad" or "stretch", as the images that it was
            trained on were; None: stretched, and gray ones that look inverted are turned round.
        bits: Of a pixel in files with more than 8.
    """

    model: "nn.Module"
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    height: int
    width: int
    averaging: str = NONE
    resize: Resize | None = None
    bits: int = 8

    def predict(self, images: "Images", invert: Invert | None = None) -> list["Prediction"]:
        """Returns the prediction for each image; `pd.DataFrame` makes a frame of them.

        Args:
            images: uint8 (N, H, W) or (N, C, H, W) of the height and width that the model was trained on: an array, a
                tensor, or a list of those of single images. Or files, folders of them and tables that list them, as
                the command takes them; files are resized: PNG and JPEG, for a model of one's own images all that a
                search reads. Or an image of Pillow's, or a list of them, which are taken as files.
            invert: Whether images are turned from dark on bright into bright on dark: "auto" where `looks_inverted`;
                None is "auto" for files and "no" for arrays. Of a model for one's own images "auto" turns none.

        Raises:
            UserError: A file cannot be read, an array has another shape or type, or `invert` is none of the three.
            NotFiniteError: The outputs of the model are NaN or infinite for an image.
        """
        if invert is not None and invert not in get_args(Invert):
            raise unknown_name("invert", str(invert), get_args(Invert))
        found = arrays_or_paths(images)
        if isinstance(found, list):
            paths = [each for each in found if isinstance(each, Path)]
            return predict_files(self, inputs.expanded(paths) if paths else found, invert or "auto") if found else []
        pixels = found[:, None] if found.ndim == 3 else found
        if found.dtype != np.uint8 or pixels.shape[1:] != (self.channels, self.height, self.width):
            form = f"(N, {self.channels}, {self.height}, {self.width})"
            raise UserError(f"images must be uint8 {form}, but got {found.dtype} {found.shape}.")
        return _predicted(self, [None] * len(pixels), list(pixels), invert or "no") if len(pixels) else []


@dataclass(frozen=True)
class Prediction:
    """The class of one image: the most probable, the runner-up, and whether it was inverted first; its file, if any.

    `ranking` has all classes with their probabilities, the most probable first.
    """

    path: Path | None
    class_name: str
    probability: float
    runner_up: str
    runner_up_probability: float
    inverted: bool
    ranking: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Winner:
    """What `final` chose, tested and wrote.

    Attributes:
        path: The folder of the model, absolute.
        metrics: What `metrics.json` holds.
        config: The winner's hyperparameters.
        candidates: A row a configuration that was compared, as in `final.csv`.
        digest: Of the model's files, which another `final` may replace.
    """

    path: Path
    metrics: Mapping[str, Any]
    config: TrainConfig
    candidates: "pd.DataFrame"
    digest: str = field(repr=False)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Returns the winner that a folder holds.

        Raises:
            UserError: A file is missing or damaged.
        """
        config = parse_config(_read_description(folder / "config.json").config, str(folder / "config.json"))
        metrics, candidates = files.read_json(folder / "metrics.json"), schema.read_named(folder / "final.csv")
        return cls(folder.absolute(), metrics, config, candidates, _digest(folder))

    @property
    def intervals(self) -> dict[str, tuple[float, float] | None]:
        """The 95 % intervals by the name of what they are of, e.g. "test"; None where there is too little to tell."""
        ends = {name: value for name, value in self.metrics.items() if name.endswith("_interval")}
        return {name.removesuffix("_interval"): value and (value[0], value[1]) for name, value in ends.items()}

    @cached_property
    def model(self) -> BestModel:
        """The model, read from the folder once.

        Raises:
            UserError: The folder is gone, or has another model now.
        """
        model = load_best_model(self.path)
        if _digest(self.path) != self.digest:  # After it was read, so that none can come between.
            raise UserError(
                f"{self.path} has another model now than that of this winner: a later `final` wrote it. Give each "
                "`final.run` a `model_dir` of its own to keep both."
            )
        return model

    def predict(self, images: Images, invert: Invert | None = None) -> list[Prediction]:
        """Returns the prediction for each image, as `BestModel.predict` does."""
        return self.model.predict(images, invert)


def _digest(folder: Path) -> str:
    """Returns a hash of the model in a folder: 0.1 s for 100 MB."""
    whole = hashlib.sha256()
    for name in ("config.json", "model.pth"):
        try:
            with (folder / name).open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError as error:
            raise _missing(folder / name) from error
        except PermissionError as error:
            raise _locked(folder / name, error) from error
    return whole.hexdigest()


class _Member(BaseModel):
    """What best_model/config.json must hold of each network of an ensemble."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    config: dict[str, Any]
    weight: Annotated[float, Field(gt=0, le=1)]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class _Description(BaseModel):
    """What best_model/config.json must hold; more is allowed."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    config: dict[str, Any]
    class_names: Annotated[tuple[str, ...], Field(min_length=2)]
    channels: Literal[1, 3]
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    averaging: str | None = None
    flip_averaging: bool = False  # Version 0.2.0 wrote that alone.
    resize: Resize | None = None
    bits: Annotated[int, Field(ge=8, le=16)] = 8
    members: tuple[_Member, ...] = ()

    @model_validator(mode="after")
    def _a_value_a_channel(self) -> "_Description":
        for part in (self, *self.members):
            for name in ("mean", "std"):
                if (n_values := len(getattr(part, name))) != self.channels:
                    raise ValueError(f"{name} must have {self.channels} values, one a channel, but got {n_values}")
        return self


def load_best_model(folder: Path, own: Path | None = None) -> BestModel:
    """Returns the model in the folder, ready to predict.

    Args:
        folder: As `final` wrote it. No code in it is run.
        own: The file of a user's own network, whose code is run.

    Raises:
        UserError: The folder, config.json or model.pth is missing or damaged, or they do not fit each other; or the
            network is a user's own, and its file was not named.
    """
    from tuning.models.weights import load_weights

    replacing.end(folder)
    path = folder / "model.pth"
    description, weights = _read_description(folder / "config.json"), _read_weights(path)
    while (now := _read_description(folder / "config.json")) != description:  # `final` has replaced it meanwhile.
        description, weights = now, _read_weights(path)
    averaging = named_in(description.model_dump(), str(folder / "config.json"))
    model, called = _build(description, folder, own)
    try:
        load_weights(model, weights)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path} must hold the weights of the {called} in config.json, but got others: "
            f"{_first_line(error)} Run `python -m tuning.final` again."
        ) from error
    values = description.model_dump(exclude={"config", "members", "averaging", "flip_averaging"})
    return BestModel(model.eval(), averaging=averaging, **values)


def _build(description: _Description, folder: Path, own: Path | None) -> "tuple[nn.Module, str]":
    """Returns the network that config.json describes, without its weights, and what it is called."""
    from tuning.models.architectures import build_model
    from tuning.models.ensemble import Ensemble

    described = [member.config for member in description.members] or [description.config]
    configs = [parse_config(each, str(folder / "config.json")) for each in described]
    _check_own(folder, [config.architecture for config in configs], own)
    channels, n_classes = description.channels, len(description.class_names)
    size = (description.height, description.width)
    networks = [build_model(config, channels, n_classes, load_pretrained=False, size=size) for config in configs]
    if not (members := description.members):
        return networks[0], configs[0].architecture
    weights, means, stds = zip(*((each.weight, each.mean, each.std) for each in members), strict=True)
    return Ensemble(networks, weights, means, stds), f"{len(members)} networks"


def _check_own(folder: Path, architectures: Sequence[str], own: Path | None) -> None:
    """Raises UserError where a network is a user's own and its file was not named, or the named one is another."""
    named = None if own is None else own_model.read(own).architecture
    architecture = next(filter(own_model.is_own, architectures), architectures[0])
    if not own_model.is_own(architecture):
        if named is not None:
            raise UserError(f"--model must be left out for the {architecture} in {folder}, but got {own}.")
        return
    copy = folder / own_model.KEPT
    if named not in (None, architecture):
        raise UserError(
            f"--model must be the file that the model in {folder} was trained with ({architecture}), but {own} is "
            f"{named}. A copy is {copy}."
        )
    if architecture not in {each.architecture for each in own_model.known()}:
        raise UserError(
            f"The network in {folder} is code of its user's ({architecture}), and no code there is run unasked. Read "
            f"{copy}, then name it: --model {files.as_typed(copy)}."
        )


def predict_files(
    best: BestModel, paths: Sequence[Path | bytes], invert: Invert = "auto", skip: Callable[[str], None] | None = None
) -> list[Prediction]:
    """Returns the prediction for each file; so many are decoded at once as are labelled at once.

    Args:
        best: The model.
        paths: PNG or JPEG files; for a model of one's own images all that a search reads. Bytes are a file's content.
        invert: Whether images are turned from dark on bright into bright on dark: "auto" where `looks_inverted`.
        skip: Receives why a file cannot be read, and the others are labelled; None makes it an error.

    Raises:
        UserError: A file, or with `skip` every file, cannot be read.
        NotFiniteError: The outputs of the model are NaN or infinite for an image.
    """
    predictions: list[Prediction] = []
    for start in range(0, len(paths), AT_ONCE):
        found, images = list[Path | None](), []
        for path in paths[start : start + AT_ONCE]:
            try:
                images.append(_prepared(best, path))
            except UserError as error:
                if skip is None or len(paths) == 1:
                    raise
                skip(str(error))
            else:
                found.append(None if isinstance(path, bytes) else path)
        if found:
            predictions += _predicted(best, found, images, invert, first=start)
    if paths and not predictions:
        raise UserError(f"IMAGE must be readable image files, but none of {len(paths):,} can be read.")
    return predictions


def _prepared(best: BestModel, path: Path | bytes) -> npt.NDArray[np.uint8]:
    """Returns an image as those that the model was trained on were read and stored: uint8 (C, H, W)."""
    from tuning.images.decoding import BrokenImageError, Preparation, depth_of, own_limits, prepare, read_pixels

    if best.resize is None:
        return read_image(path, best.channels, best.height, best.width)
    try:
        with own_limits():
            pixels = read_pixels(path)
            # Of a model that has seen 8 bits alone, the depth of deeper files is not known: it is the file's own.
            bits = best.bits if best.bits > 8 else depth_of(int(pixels.max(initial=0)))
            return prepare(pixels, Preparation(best.height, best.width, best.channels, best.resize, bits))
    except BrokenImageError as error:
        raise UserError(f"IMAGE must be a readable image file, but got {named(path)}: {error}.") from error


def _predicted(
    best: BestModel,
    paths: Sequence[Path | None],
    images: Sequence[npt.NDArray[np.uint8]],
    invert: Invert,
    *,
    first: int = 0,
) -> list[Prediction]:
    """Returns the prediction for each image, uint8 (C, H, W), whose file is at the same place of `paths`.

    `first` is the place of the first one among all images.
    """
    looks = invert == "auto" and best.resize is None  # Of one's own images none is turned unasked.
    inverted = [invert == "yes" or (looks and looks_inverted(image)) for image in images]
    images = [255 - image if inverse else image for image, inverse in zip(images, inverted, strict=True)]
    predictions = []
    rows = np.concatenate(
        [probabilities(best, np.stack(images[i : i + AT_ONCE])) for i in range(0, len(images), AT_ONCE)]
    )
    _check_finite(
        rows, [f"the image at index {first + i}" if path is None else named(path) for i, path in enumerate(paths)]
    )
    for path, row, inverse in zip(paths, rows, inverted, strict=True):
        order = np.argsort(row, kind="stable")[::-1]
        ranking = tuple((best.class_names[label], float(row[label])) for label in order)
        predictions.append(Prediction(path, *ranking[0], *ranking[1], inverted=inverse, ranking=ranking))
    return predictions


def _check_finite(rows: npt.NDArray[np.float32], names: Sequence[str]) -> None:
    """Raises NotFiniteError where the probabilities of an image, (N, n_classes), are none."""
    wrong = [name for name, row in zip(names, rows, strict=True) if not np.isfinite(row).all()]
    if not wrong:
        return
    if len(wrong) == len(names):
        which = wrong[0] if len(wrong) == 1 else f"all of {len(wrong):,} images, the first of them {wrong[0]}"
        way = "Its training may have diverged, or model.pth may be damaged. Run `python -m tuning.final` again."
    else:
        which = f"{len(wrong):,} of {len(names):,} images, the first of them {wrong[0]}"
        way = "Leave such images out, or run `python -m tuning.final` again."
    raise NotFiniteError(f"The outputs of the model are not finite (NaN or infinite) for {which}. {way}")


def probabilities(best: BestModel, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Returns the probability of each class, float32 (N, n_classes), for images uint8 (N, C, H, W)."""
    from functools import partial

    import torch

    from tuning.training.evaluation import averaged, predict

    apply = partial(predict, best.model, mean=best.mean, std=best.std)
    log_probabilities, _ = averaged(apply, torch.from_numpy(images), (best.averaging,))[best.averaging]
    result: npt.NDArray[np.float32] = log_probabilities.exp().numpy()
    return result


def _read_weights(path: Path) -> "dict[str, Tensor]":
    import torch

    try:
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except PermissionError as error:
        raise _locked(path, error) from error
    except Exception as error:  # Damage shows as whatever the zip reader or the restricted unpickler stumbles over.
        raise UserError(
            f"{path} must be a state dict (tensors only, no code), but it cannot be read as one: {_first_line(error)} "
            "Run `python -m tuning.final` again."
        ) from error
    return weights


def _read_description(path: Path) -> _Description:
    try:
        return _Description.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except PermissionError as error:
        raise _locked(path, error) from error
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        wrong = f"{name or 'its content'} is wrong: {problem['msg']}"
        said = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else wrong
        raise UserError(f"{path}: {said}. Run `python -m tuning.final` again.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} must be a JSON file, but it cannot be read: {error}. Run `python -m tuning.final` again."
        ) from error


def _missing(path: Path) -> UserError:
    place = "" if path.parent == Path("best_model") else f" --model-dir {files.as_typed(path.parent)}"
    return UserError(
        f"There must be a trained model in {path.parent}, but {path} is missing. Run `python -m tuning.final{place}` "
        "first."
    )


def _locked(path: Path, error: PermissionError) -> UserError:
    return UserError(f"{path} cannot be read ({error.strerror}). Change its permissions.")


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line.rstrip(".: ") + "."

"""The final model for elsewhere: ONNX, safetensors and torch.export files, each run once and compared.

Nothing here opens a data set: the images come from whoever calls.
"""

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tuning.base import files
from tuning.base.averagings import AVERAGINGS
from tuning.base.errors import UserError, unknown_name
from tuning.retraining.best_model import BestModel, load_best_model, probabilities

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 1e-4
IMAGES_TO_COMPARE = 64

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _onnx(best: BestModel, path: Path, example: Images) -> Callable[[Images], Floats]:
    """Writes an ONNX file; input `images` uint8 (N, C, H, W), output `probabilities` float32 (N, n_classes)."""
    import onnxruntime
    import torch

    program = torch.onnx.export(
        _whole(best),
        (torch.from_numpy(example),),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    files.write_bytes(path, program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"images": images})[0])


def _pt2(best: BestModel, path: Path, example: Images) -> Callable[[Images], Floats]:
    """Writes a `torch.export` program of the same input and output as the ONNX file."""
    import io

    import torch

    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(_whole(best), (torch.from_numpy(example),), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    files.write_bytes(path, buffer.getvalue())
    loaded = torch.export.load(path).module()
    return lambda images: np.asarray(loaded(torch.from_numpy(images)).detach())


def _safetensors(best: BestModel, path: Path, example: Images) -> Callable[[Images], Floats]:
    """Writes the weights; the metadata's `config` is config.json, from which `build_model` makes the network.

    The average over views is not in the weights: config.json names it, as `averaging`.
    """
    from dataclasses import replace

    import torch
    from safetensors.torch import load_file, save

    # Copies: the format has no tensors that share memory, as tied weights do.
    tensors = best.model.state_dict().items()
    weights = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors}
    described = json.dumps(files.read_json(path.parent / "config.json"))
    files.write_bytes(path, save(weights, {"config": described}))
    model = load_best_model(path.parent).model
    for value in model.state_dict().values():
        value.zero_()
    model.load_state_dict(load_file(path))
    return lambda images: probabilities(replace(best, model=model), images)


# Format -> what writes it and returns how to run it, and the packages that it needs.
FORMATS: dict[str, tuple[Callable[[BestModel, Path, Images], Callable[[Images], Floats]], tuple[str, ...]]] = {
    "onnx": (_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "pt2": (_pt2, ()),
    "safetensors": (_safetensors, ("safetensors",)),
}


def check_formats(names: Sequence[str]) -> None:
    """Raises UserError for a format that is unknown, or whose packages are not installed."""
    for name in names:
        if name not in FORMATS:
            raise unknown_name("--export", name, FORMATS)
        if missing := [package for package in FORMATS[name][1] if find_spec(package) is None]:
            raise UserError(
                f"--export {name} needs the package {missing[0]}, which is not installed. Run `python -m pip install "
                f"{' '.join(missing)}`."
            )


def export(folder: Path, names: Sequence[str], images: Images, *, shown: Path | None = None) -> list[str]:
    """Writes `model.<format>` beside `model.pth`, runs each and compares its outputs; returns a line for each.

    Args:
        folder: Where `tuning.final` wrote the model.
        names: In `FORMATS`.
        images: uint8 (N, C, H, W), at least 3, to compare on.
        shown: The folder that the lines name, where the files are moved to; None is `folder`.

    Raises:
        UserError: A format cannot hold the model, or gives other probabilities.
    """
    best, lines = load_best_model(folder), []
    images = np.ascontiguousarray(images[:IMAGES_TO_COMPARE])
    expected = probabilities(best, images)
    for name in names:
        path = folder / f"model.{name}"
        without = f"Run the same command without --export {name}: nothing is trained again."
        try:
            worst = float(np.abs(FORMATS[name][0](best, path, images[:2])(images) - expected).max())
        except UserError:
            raise
        except Exception as error:  # Whatever the libraries raise for a network that they cannot take.
            raise UserError(f"--export {name} cannot write this model: {_reason(error)}. {without}") from error
        if not worst <= TOLERANCE:
            path.unlink()
            raise UserError(
                f"--export {name} must give the model's probabilities to {TOLERANCE}, but got {worst:.2g}. {without}"
            )
        lines.append(
            f"Exported: {(shown or folder) / path.name}; run on {len(images)} images, its probabilities differ by "
            f"{worst:.1g} at most"
        )
    return lines


def _reason(error: BaseException) -> str:
    """Returns the first line of what an error says, or of what caused it: an exporter says only where it stopped."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _whole(best: BestModel) -> "nn.Module":
    """Returns a module from images uint8 (N, C, H, W) to probabilities float32 (N, n_classes), as `tuning.predict`.

    The average over views is in it.
    """
    import copy

    import torch
    from torch import Tensor, nn

    from tuning.training.evaluation import mean_probability, seen_as

    views = AVERAGINGS[best.averaging].views

    class Whole(nn.Module):
        mean: Tensor
        std: Tensor

        def __init__(self) -> None:
            super().__init__()
            # A program's file takes no other layout without a warning.
            self.model = copy.deepcopy(best.model).to(memory_format=torch.contiguous_format)
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(getattr(best, name)).view(1, -1, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            # The views are one batch, so that the file has the network once.
            seen = torch.cat([seen_as(images, view) for view in views]) if len(views) > 1 else images
            logits, _ = self.model((seen.float() / 255 - self.mean) / self.std)
            return mean_probability(logits.log_softmax(1).view(len(views), images.shape[0], -1)).exp()

    return Whole().eval()

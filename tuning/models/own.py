"""A user's own network, built from the text of its file: what it must give, and what it says where it does not.

Logits are enough: the features are what enters its last linear layer. Nothing here reads the file.
"""

import functools
import linecache
import sys
import traceback
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tuning.base import own_model
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.own_model import SIGNATURE, OwnModel

Size = tuple[int, int]
NO_PLACE = "A run keeps the text of this one file, and no other file beside it. Name others by their whole path"


class Own(nn.Module):
    """A user's network with features beside its logits; its state dict has the names `network.*`.

    Args:
        network: Gives logits (N, n_classes), or these and features (N, D).
        head: Where in the network its last linear layer is; "" has none.
        ends: The network's logits are what that layer gives for the features, and nothing comes after it.
        classifies: That layer gives a value a class.
    """

    def __init__(self, network: nn.Module, head: str, *, ends: bool, classifies: bool) -> None:
        super().__init__()
        self.network, self._head, self.ends, self.classifies = network, head, ends, classifies
        self.layout = torch.channels_last

    @property
    def head(self) -> nn.Linear:
        """The last linear layer; `check_head` says beforehand where there is none."""
        if not self._head:
            raise ValueError("The network has no linear layer.")
        layer: Any = self.network.get_submodule(self._head)
        return layer  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, n_classes) and features (N, D) of images (N, C, H, W)."""
        if self.layout is not torch.channels_last:
            # `contiguous` would leave the strides of images with one channel, which decide those of all that follows.
            images = images.clone(memory_format=self.layout)
        if not self._head:
            logits, features = self.network(images)
            return logits, features
        seen: list[Tensor] = []
        # Taken away again, so that a copy of the model, a graph or a saved program has nothing to forget.
        handle = self.head.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
        try:
            logits, *rest = _parts(self.network(images))
        finally:
            handle.remove()
        return logits, rest[0] if rest else _rows(seen[-1])


def own_network(config: TrainConfig, channels: int, n_classes: int, size: Size | None) -> nn.Module:
    """Returns the network "own:HASH", tried on two images and on one.

    Args:
        config: Its architecture; the network's function gets all of it.
        channels: Of an image.
        n_classes: Length of the logits.
        size: Height and width of the images that the network sees.

    Raises:
        UserError: This process was not told the file, or the network does not do what it must.
    """
    file = own_model.find(config.architecture)
    if size is None:
        raise ValueError("size must be given for a user's own model, but got None.")
    image_size = size[0] if size[0] == size[1] else size
    try:
        network = _functions(file)["model"](config, channels, n_classes, image_size)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # The user's code: whatever it raises is for the user to mend.
        raise UserError(f"{file.file}: {SIGNATURE} must return an nn.Module, but {_raised(error, file)}.") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{file.file}: {SIGNATURE} must return an nn.Module, but got {type(network).__name__}.")
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    return _tried(file, network, images, n_classes)


def _tried(file: OwnModel, network: nn.Module, images: Tensor, n_classes: int) -> Own:
    """Returns the network with its last linear layer and its layout found out; raises UserError without logits.

    The weights are brought into that layout: channels last, unless the network then fails, as it does where it takes
    maps as rows by `view`.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            logits, features, head = _seen(file, network, images, n_classes)
            _seen(file, network, images[:1], n_classes)
            last = network.get_submodule(head) if head else None
            ends = last is not None and features.ndim == 2 and _gives(last, features, logits)
            classifies = ends or getattr(last, "out_features", None) == n_classes
            model = Own(network, head, ends=ends, classifies=classifies)
            try:
                model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
            except Exception:
                model.layout = torch.contiguous_format
                model.to(memory_format=model.layout)
    finally:
        network.train(was_training)
    return model


def _seen(file: OwnModel, network: nn.Module, images: Tensor, n_classes: int) -> tuple[Tensor, Tensor, str]:
    """Returns logits, features as they come, and where the last linear layer is, "" for none.

    Raises:
        UserError: These are not what they must be for so many images.
    """
    ran: list[tuple[str, Tensor]] = []

    def note(path: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        ran.append((path, given[0]))

    n, some = len(images), "one image" if len(images) == 1 else "two images"
    hint = ""
    if n == 1 and ".squeeze(" in file.source:
        hint = " Use .flatten(1) in the place of .squeeze(), which also removes the N of one image."
    linear = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(functools.partial(note, path)) for path, layer in linear]
    wanted = f"{file.file}: the model must return logits (N, {n_classes}) for images {('N', *images.shape[1:])}"
    wanted = wanted.replace("'", "")
    try:
        found = network(images)
    except Exception as error:
        raise UserError(f"{wanted}, but for {some} {_raised(error, file)}.{hint}") from error
    finally:
        for handle in handles:
            handle.remove()
    logits, *rest = _parts(found)
    if not isinstance(logits, Tensor) or logits.shape != (n, n_classes) or not logits.is_floating_point():
        got = f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{wanted}, but for {some} it returned {got}.{hint}")
    if rest and not (len(rest) == 1 and isinstance(rest[0], Tensor) and rest[0].ndim == 2 and len(rest[0]) == n):
        raise UserError(
            f"{wanted}, alone or with features (N, D), but for {some} what stood beside them is no (N, D).{hint}"
        )
    if not ran and not rest:
        raise UserError(
            f"{file.file}: the model must have a linear layer (nn.Linear), whose input is taken for the features, but "
            "none ran. Add one at its end, or return logits and features."
        )
    if ran and (ran[-1][1].ndim < 2 or len(ran[-1][1]) != n) and not rest:
        raise UserError(
            f"{file.file}: for {some} the last linear layer must see (N, D), but got {tuple(ran[-1][1].shape)}.{hint}"
        )
    return (logits, rest[0] if rest else ran[-1][1], ran[-1][0]) if ran else (logits, rest[0], "")


def _parts(found: Any) -> tuple[Any, ...]:
    """Returns what a network returned as logits and what may stand beside them."""
    return found if isinstance(found, tuple) else (found,)


def _gives(layer: nn.Module, features: Tensor, logits: Tensor) -> bool:
    """Returns whether a layer makes the logits of the features."""
    if features.shape[1] != getattr(layer, "in_features", None):
        return False
    made: Tensor = layer(features)
    return made.shape == logits.shape and torch.allclose(made, logits, rtol=1e-4, atol=1e-5)


def _rows(features: Tensor) -> Tensor:
    """Returns features (N, D) of a layer's input (N, ..., D): the mean over what is between."""
    return features if features.ndim == 2 else features.flatten(1, -2).mean(1)


@functools.cache
def _functions(file: OwnModel) -> dict[str, Any]:
    """Returns the names that the file defines; its text runs once a process."""
    name = _filename(file)
    module = ModuleType(f"own_model_{file.architecture.rpartition(':')[2]}")  # Without `__file__`: it has no place.
    sys.modules[module.__name__] = module  # Dataclasses look for their module there.
    linecache.cache[name] = (len(file.source), None, file.source.splitlines(keepends=True), name)
    try:
        exec(compile(file.source, name, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise UserError(f"{file.file} must import without an error, but {_raised(error, file)}.") from error
    if not callable(module.__dict__.get("model")):
        raise UserError(f"{file.file} must define {SIGNATURE} -> nn.Module, but has no such function.")
    return module.__dict__


def _filename(file: OwnModel) -> str:
    """Returns what tracebacks call the text, which need not be what the file holds by now."""
    return f"<{file.file}, {file.architecture}>"


def _raised(error: BaseException, file: OwnModel) -> str:
    """Returns what the user's code raised, and in which line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == _filename(file)]
    said = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ").rstrip(".")
    if isinstance(error, NameError) and error.name == "__file__":
        said += f". {NO_PLACE}"
    return f"line {lines[-1]} raised {said}" if lines else f"it raised {said}"

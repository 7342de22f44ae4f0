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


class Own(nn.Module):
    """A user's network with features beside its logits; its state dict has the names `network.*`.

    Args:
        network: Gives logits (N, n_classes), or these and features (N, D).
        head: Where in the network its last linear layer is; "" has none.
        ends: The network's logits are what that layer gives for the features, and nothing comes after it.
    """

    def __init__(self, network: nn.Module, head: str, *, ends: bool) -> None:
        super().__init__()
        self.network, self._head, self.ends = network, head, ends

    @property
    def head(self) -> nn.Linear:
        """The last linear layer.

        Raises:
            UserError: There is none.
        """
        if not self._head:
            raise UserError("train must be all for a model without a linear layer, but got 'head'.")
        layer: Any = self.network.get_submodule(self._head)
        return layer  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, n_classes) and features (N, D) of images (N, C, H, W)."""
        if not self._head:
            logits, features = self.network(images)
            return logits, features
        seen: list[Tensor] = []
        # Taken away again, so that a copy of the model, a graph or a saved program has nothing to forget.
        handle = self.head.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
        try:
            found = self.network(images)
        finally:
            handle.remove()
        return (found[0], found[1]) if isinstance(found, tuple) else (found, _rows(seen[-1]))


def own_network(config: TrainConfig, channels: int, n_classes: int, size: Size | None) -> nn.Module:
    """Returns the network "own:HASH", tried on two images.

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
    except Exception as error:  # The user's code: whatever it raises is for the user to mend.
        raise UserError(f"{file.file}: {SIGNATURE} must return an nn.Module, but {_raised(error, file)}.") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{file.file}: {SIGNATURE} must return an nn.Module, but got {type(network).__name__}.")
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    return _tried(file, network, images, n_classes)


def _tried(file: OwnModel, network: nn.Module, images: Tensor, n_classes: int) -> Own:
    """Returns the network with its last linear layer found; raises UserError where it gives no logits."""
    ran: list[tuple[str, Tensor]] = []

    def note(path: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        ran.append((path, given[0]))

    linear = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(functools.partial(note, path)) for path, layer in linear]
    wanted = f"{file.file}: the model must return logits (N, {n_classes}) for images {('N', *images.shape[1:])}"
    wanted = wanted.replace("'", "")
    was_training = network.training
    try:
        with torch.no_grad():
            found = network.eval()(images)
    except Exception as error:
        raise UserError(f"{wanted}, but {_raised(error, file)}.") from error
    finally:
        for handle in handles:
            handle.remove()
        network.train(was_training)
    logits, *rest = found if isinstance(found, tuple) else (found,)
    if not isinstance(logits, Tensor) or logits.shape != (2, n_classes) or not logits.is_floating_point():
        got = f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{wanted}, but for two images it returned {got}.")
    if rest and not (len(rest) == 1 and isinstance(rest[0], Tensor) and rest[0].ndim == 2 and len(rest[0]) == 2):
        raise UserError(f"{wanted}, alone or with features (N, D), but what stood beside them is no (N, D).")
    if not ran and not rest:
        raise UserError(
            f"{file.file}: the model must have a linear layer (nn.Linear), whose input is taken for the features, but "
            "none ran. Add one at its end, or return logits and features."
        )
    if ran and (ran[-1][1].ndim < 2 or len(ran[-1][1]) != 2) and not rest:
        raise UserError(f"{file.file}: the last linear layer must see (N, D), but got {tuple(ran[-1][1].shape)}.")
    head, features = (ran[-1][0], rest[0] if rest else ran[-1][1]) if ran else ("", logits)
    ends = bool(head) and features.ndim == 2 and _gives(network.get_submodule(head), features, logits)
    return Own(network, head, ends=ends)


def _gives(layer: nn.Module, features: Tensor, logits: Tensor) -> bool:
    """Returns whether a layer makes the logits of the features."""
    if features.shape[1] != getattr(layer, "in_features", None):
        return False
    with torch.no_grad():
        made: Tensor = layer(features)
    return made.shape == logits.shape and torch.allclose(made, logits, rtol=1e-4, atol=1e-5)


def _rows(features: Tensor) -> Tensor:
    """Returns features (N, D) of a layer's input (N, ..., D): the mean over what is between."""
    return features if features.ndim == 2 else features.flatten(1, -2).mean(1)


@functools.cache
def _functions(file: OwnModel) -> dict[str, Any]:
    """Returns the names that the file defines; its text runs once a process."""
    name = _filename(file)
    module = ModuleType(f"own_model_{file.architecture.rpartition(':')[2]}")
    module.__file__ = name
    sys.modules[module.__name__] = module  # Dataclasses look for their module there.
    linecache.cache[name] = (len(file.source), None, file.source.splitlines(keepends=True), name)
    try:
        exec(compile(file.source, name, "exec"), module.__dict__)
    except Exception as error:
        raise UserError(f"{file.file} must import without an error, but {_raised(error, file)}.") from error
    if not callable(module.__dict__.get("model")):
        raise UserError(f"{file.file} must define {SIGNATURE} -> nn.Module, but has no such function.")
    return module.__dict__


def _filename(file: OwnModel) -> str:
    """Returns what tracebacks call the text, which need not be what the file holds by now."""
    return f"<{file.file}, {file.architecture}>"


def _raised(error: Exception, file: OwnModel) -> str:
    """Returns what the user's code raised, and in which line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == _filename(file)]
    said = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ").rstrip(".")
    return f"line {lines[-1]} raised {said}" if lines else f"it raised {said}"

"""Features of a body that stays as it is: computed once for all trials of a machine, and kept in the user's cache.

They are trained on in the place of images where nothing but the head is trained and nothing is done to the images. A
file is known by what the features follow from: images, weights, size, precision. Nothing here trains.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.images import cache
from tuning.images.batches import Tensors
from tuning.images.splitting import Splits
from tuning.models.architectures import head_ends, head_of

# Hyperparameters that do nothing to an image. With another one that is not at its default no features are kept.
NOT_OF_IMAGES = {
    *("architecture", "width", "pretrained", "stem", "image_size", "optimizer", "learning_rate", "momentum"),
    *("weight_decay", "batch_size", "epochs", "schedule", "warmup_epochs", "plateau_patience", "plateau_factor"),
    *("patience", "min_delta", "label_smoothing", "class_weights", "ema_decay", "precision", "train", "body_lr_factor"),
}
LARGEST_IN_ALL = 4_000_000_000  # Bytes of the cache; the files that were not used for longest go first.


@dataclass(frozen=True)
class Features:
    """What a body makes of the images.

    Attributes:
        train: float32 (N, D, 1, 1), as images are.
        valid: The same of the valid split.
        seconds_per_image: Seconds that the body took for one.
    """

    train: Tensor
    valid: Tensor
    seconds_per_image: float


def leaves_images(config: TrainConfig) -> bool:
    """Returns whether a training sees each image as it is, in every epoch."""
    fields = type(config).model_fields
    return all(name in NOT_OF_IMAGES or getattr(config, name) == field.default for name, field in fields.items())


def can_be_used(config: TrainConfig, model: nn.Module) -> bool:
    """Returns whether the head of a model may be trained on features that were computed once."""
    return config.train == "head" and leaves_images(config) and head_ends(model)


def computed(apply: Callable[[Tensors], Tensor], train: Tensors, valid: Tensors) -> Features:
    """Returns the features of two parts; `apply` returns them as float32 (N, D)."""
    start = time.perf_counter()
    of_train, of_valid = (apply(part).cpu()[:, :, None, None] for part in (train, valid))
    return Features(of_train, of_valid, (time.perf_counter() - start) / (len(train) + len(valid)))


def key_of(model: nn.Module, config: TrainConfig, splits: Splits, device: str, precision: str) -> str:
    """Returns what features follow from, as 32 hexadecimal digits: images, body, size, precision."""
    digest = hashlib.sha256()
    head = {id(value) for value in head_of(model).state_dict(keep_vars=True).values()}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in head:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    images = [splits.split_hash, len(splits.train), len(splits.valid), *splits.train.images.shape[1:]]
    digest.update(f"{images} {config.architecture} {config.stem} {config.image_size}".encode())
    digest.update(f"{device} {precision} {torch.__version__} {cache.VERSION}".encode())
    return digest.hexdigest()[:32]


def shared(key: str, compute: Callable[[], Features]) -> Features:
    """Returns the features of a key: from the cache, or computed and written there; by one process at a time.

    Where the cache cannot be written, or is damaged, they are computed.
    """
    path = files.cache_dir("features") / f"{key}.pt"
    with _alone(path):
        found = _read(path)
        if found is None:
            found = compute()
            _write(path, found)
    return found


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets other processes that want the same file wait; the kernel frees the lock of one that dies."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.with_suffix(".lock").open("a", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> Features | None:
    if not path.exists():
        return None
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = Features(**values)
    except Exception:  # A damaged file raises whatever the reader met.
        return None
    with contextlib.suppress(OSError):  # It is another user's.
        os.utime(path)
    return found


def _write(path: Path, features: Features) -> None:
    """Writes a file whole or not at all, and removes leftovers and the oldest ones; where it cannot, there is none."""
    temporary = files.beside(path)
    try:
        cache.remove_leftovers(path.parent, ".*.pt.*")
        with files.create(temporary) as file:
            torch.save(vars(features), file)
        os.replace(temporary, path)
        kept = sorted(path.parent.glob("*.pt"), key=lambda each: each.stat().st_mtime, reverse=True)
        size = 0
        for each in kept:
            size += each.stat().st_size
            if size > LARGEST_IN_ALL and each != path:
                each.unlink(missing_ok=True)
                each.with_suffix(".lock").unlink(missing_ok=True)
    except BaseException as error:  # An interrupt, too, must leave nothing hidden.
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError | RuntimeError):  # torch's writer turns a full disk into a RuntimeError.
            raise

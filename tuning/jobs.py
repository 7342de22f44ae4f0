"""A retraining: one configuration on one seed, in a folder of its own; killed at any moment, it goes on where it was.

What has ended is a `result.json` and the weights; it is not trained again. Nothing here knows Ray or the test split.
"""

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import files
from tuning.config import TrainConfig
from tuning.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from tuning.data import Splits
    from tuning.training import Training

RESULT, WEIGHTS, ERROR = "result.json", "weights.pt", "error.log"


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        folder: Of all jobs; this one's is below it.
        length: Train exactly this many epochs and keep the last one's weights; None: stop early, and keep the best's.
        lrs: Learning rate of each epoch, instead of a "plateau" schedule's.
    """

    config: TrainConfig
    seed: int
    folder: Path
    length: int | None = None
    lrs: tuple[float, ...] | None = None

    @property
    def path(self) -> Path:
        """The job's own folder."""
        return self.folder / f"{self.config.hash()}-{self.seed}{'' if self.length is None else f'-{self.length}'}"


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Attributes:
        split_hash: Of what it was trained on.
        valid_accuracy: Of the epoch whose weights were kept, as a search measures it.
        valid_accuracy_plain: The same weights in fp32.
        valid_accuracy_flip_averaging: The same, averaged with each image's mirror image.
        best_epoch: The epoch whose weights were kept.
        seconds: Of all epochs.
        epochs: A row an epoch.
        error: Why it failed for good; "" where it did not.
    """

    split_hash: str
    valid_accuracy: float | None = None
    valid_accuracy_plain: float | None = None
    valid_accuracy_flip_averaging: float | None = None
    best_epoch: int | None = None
    n_parameters: int | None = None
    seconds: float = 0.0
    epochs: Sequence[dict[str, Any]] = ()
    error: str = ""


def read(job: Job, split_hash: str) -> Result | None:
    """Returns the result of a job that has ended; None where it has not, or was trained on other images."""
    path = job.path / RESULT
    found = Result(**files.read_json(path)) if path.exists() else None
    return found if found is not None and found.split_hash == split_hash else None


def train(job: Job, splits: "Splits", device: str, threads: int) -> Iterator[dict[str, Any]]:
    """Trains a job to its end and yields a row an epoch; one that has ended yields nothing, one that fails its `error`.

    A loss that is not finite would come again, so it is the job's result; after another failure it can be gone on with.

    Raises:
        UserError: The disk is full.
    """
    from tuning import checkpoints
    from tuning.training import NonFiniteLossError, Training, fit, prepare

    if read(job, splits.split_hash) is not None:
        return
    try:
        files.make_folder(job.path, exist_ok=True)
        prepare(threads)
        training = Training(job.config, splits, seed=job.seed, device=device, lrs=job.lrs)
        rows = checkpoints.load(job.path, training)
        length = job.length or job.config.epochs
        for epoch in islice(fit(training), max(0, length - training.epoch)):
            rows.append(asdict(epoch))
            checkpoints.save(job.path, training, rows)
            yield rows[-1]
        _finish(job, training, rows, splits)
    except UserError:
        raise
    except NonFiniteLossError as error:
        files.write_json(job.path / RESULT, asdict(Result(splits.split_hash, error=str(error))))
        yield {"error": str(error)}
    except Exception as error:  # One failure must not end the jobs beside it.
        files.write_text(job.path / ERROR, traceback.format_exc())
        yield {"error": f"{type(error).__name__}: {error} (traceback: {job.path / ERROR})"}


def load_model(job: Job, splits: "Splits", device: str) -> "nn.Module":
    """Returns the model of a job that has ended, ready to evaluate."""
    import torch

    from tuning.models import build_model

    model = build_model(job.config, splits.channels, splits.n_classes, load_pretrained=False)
    model.load_state_dict(torch.load(job.path / WEIGHTS, map_location="cpu", weights_only=True))
    return model.to(device).eval()


def save_weights(path: Path, model: "nn.Module") -> None:
    """Writes a model's state dict, whole or not at all."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, buffer)
    files.write_bytes(path, buffer.getvalue())


def _finish(job: Job, training: "Training", rows: list[dict[str, Any]], splits: "Splits") -> None:
    """Writes weights and result, and removes the checkpoints."""
    from tuning import checkpoints
    from tuning.training import evaluate

    model = training.best_model() if job.length is None else training.evaluated_model.eval()
    kept = rows[-1]["best_epoch"] if job.length is None else rows[-1]["epoch"]

    def accuracy(flip_averaging: bool) -> float:
        device = training.device.type
        scores, _ = evaluate(model, splits.valid, splits, device=device, flip_averaging=flip_averaging)
        return float((scores.argmax(1).numpy() == splits.valid.labels).mean())

    result = Result(
        split_hash=splits.split_hash,
        valid_accuracy=rows[kept - 1]["valid_accuracy"],
        valid_accuracy_plain=accuracy(flip_averaging=False),
        valid_accuracy_flip_averaging=accuracy(flip_averaging=True),
        best_epoch=kept,
        n_parameters=training.n_parameters,
        seconds=sum(row["epoch_seconds"] for row in rows),
        epochs=rows,
    )
    save_weights(job.path / WEIGHTS, model)
    files.write_json(job.path / RESULT, asdict(result))
    checkpoints.remove(job.path)

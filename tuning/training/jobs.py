"""A retraining: one configuration on one seed, in a folder of its own; killed at any moment, it goes on where it was.

What has ended is a `result.json` and the weights; it is not trained again. Nothing here knows Ray or the test split.
"""

import gc
import hashlib
import io
import json
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuning.base import files, own_model
from tuning.base.averagings import AVERAGINGS, NONE
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError, survive_encoding
from tuning.base.masking import masked
from tuning.base.registries import METRICS, Metric

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from tuning.images.splitting import Splits
    from tuning.training.distillation import Teacher
    from tuning.training.fit import Training

RESULT, WEIGHTS, ERROR = "result.json", "weights.pt", "error.log"
VALID_OUTPUTS = "valid_outputs.npz"  # Log-probabilities of the valid images, float32 (N, n_classes).
VALID_INFLUENCES = "valid_influences.npz"  # By averaging: what each valid image adds to the job's metric, float32 (N,).
SMALLEST_PART = 2  # Images: batch normalisation needs more than one.
# As torch says it of a GPU and Python of itself, by a class; and torch of the host and of CUDA, by a text alone.
OUT_OF_MEMORY = re.compile(r"OutOfMemory|CUDA (error: )?out of memory|MemoryError|can't allocate memory")


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        folder: Of all jobs; this one's is below it.
        length: Train exactly this many epochs and keep the last one's weights; None: stop early, and keep the best's.
        lrs: Learning rate of each epoch, instead of that of a schedule which drops on a plateau.
        accumulation: Parts that each batch is cut into from the start, because a whole one was too much in the search.
        metric: A name in `METRICS`: what the epoch whose weights are kept is best in.
        fold: Which of the splits it is trained on, e.g. "fold-2-of-5"; None: the one that the search had.
        teachers: Jobs that have ended, whose models' mean it learns from; none: it learns from the labels alone.
        weights: One a teacher; they add up to 1.
    """

    config: TrainConfig
    seed: int
    folder: Path
    length: int | None = None
    lrs: tuple[float, ...] | None = None
    accumulation: int = 1
    metric: str = METRICS.default
    fold: str | None = None
    teachers: tuple["Job", ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def taught_by(self) -> str | None:
        """Twelve hexadecimal digits that say by which models it is taught; None: by none."""
        if not self.teachers:
            return None
        parts = [f"{job.path.name} {weight:.6f}" for job, weight in zip(self.teachers, self.weights, strict=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    @property
    def path(self) -> Path:
        """The job's own folder."""
        metric = None if self.metric == METRICS.default else self.metric
        taught = self.taught_by and f"taught-{self.taught_by}"
        parts = (self.config.hash(), self.seed, self.length, metric, self.fold, taught)
        return self.folder / "-".join(str(part) for part in parts if part is not None)


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Attributes:
        split_hash: Of what it was trained on.
        valid_accuracy: Of the epoch whose weights were kept, as a search measures it.
        valid_accuracy_plain: The same weights in fp32.
        valid_accuracy_flip_averaging: The same, averaged with each image's mirror image; so for the averagings below.
        valid_score: As valid_accuracy, but of the job's metric; version 0.2.0 wrote none of these. So for the next two.
        valid_error: The standard error of `valid_score`, as the valid images are a sample.
        best_epoch: The epoch whose weights were kept.
        seconds: Of all epochs.
        epochs: A row an epoch.
        error: Why it failed for good; "" where it did not.
        accumulation: Parts that each batch was cut into in the end.
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
    accumulation: int = 1
    valid_score: float | None = None
    valid_score_plain: float | None = None
    valid_score_flip_averaging: float | None = None
    valid_error: float | None = None
    valid_accuracy_shift_averaging: float | None = None
    valid_accuracy_flip_shift_averaging: float | None = None
    valid_score_shift_averaging: float | None = None
    valid_score_flip_shift_averaging: float | None = None

    def averagings(self, metric: Metric) -> set[str]:
        """Returns the averagings whose value on the valid split is known; see `average`. Version 0.2.0 knew two."""
        return {name for name, each in AVERAGINGS.items() if getattr(self, f"{metric.column}{each.end}") is not None}

    def on_valid(self, metric: Metric, how: str = "") -> float:
        """Returns the metric's value on the valid split; `how` as the ends of the attributes are.

        Raises:
            ValueError: The training failed.
        """
        value = getattr(self, f"{metric.column}{how}")
        if value is None:
            raise ValueError(f"Only a training that succeeded has a {metric.title}, but got one that failed.")
        return float(value)


def read(job: Job, split_hash: str) -> Result | None:
    """Returns the result of a job that has ended; None where it has not, or was trained on other images.

    A damaged result counts for nothing, and this is printed: it is kept under another name, and the job is trained
    again. What a later version has added to a result is passed over.

    Raises:
        UserError: The file is there, but cannot be read now.
    """
    path = job.path / RESULT
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path}, the result of a retraining, cannot be read ({error.strerror}). Run the command again when "
            "it can: nothing is lost."
        ) from error
    try:
        known = {each.name for each in fields(Result)}
        found = Result(**{name: value for name, value in json.loads(content).items() if name in known})
    except (ValueError, TypeError, AttributeError) as error:
        kept = path.with_name(f"{RESULT}.damaged")
        print(f"{path} is damaged, so it is kept as {kept.name}, and trained again: {error}", flush=True)
        path.replace(kept)  # Else it is said each time that somebody looks.
        return None
    return found if found.split_hash == split_hash else None


def read_valid(job: Job) -> "npt.NDArray[np.float32] | None":
    """Returns what the kept weights of a job make of its valid images: log-probabilities, float32 (N, n_classes).

    None where they are missing, as with version 0.2.0, or damaged: whatever needs them can do without.
    """
    return _read_arrays(job.path / VALID_OUTPUTS).get("log_probabilities")


def read_influences(job: Job) -> "dict[str, npt.NDArray[np.float32]]":
    """Returns by averaging what each valid image adds to the job's metric, float32 (N,), as `metrics.influence` does.

    Nothing where that was not measured (see `average`), or is damaged.
    """
    return _read_arrays(job.path / VALID_INFLUENCES)


def train(
    job: Job,
    splits: "Splits",
    device: str,
    threads: int,
    *,
    alone: bool = True,
    own_models: Sequence[own_model.OwnModel] = (),
) -> Iterator[dict[str, Any]]:
    """Trains a job to its end and yields a row an epoch; one that has ended yields nothing, one that fails its `error`.

    A loss that is not finite would come again, so it is the job's result; after another failure it can be resumed.
    Out of memory, a job that is alone goes on from its last epoch with its batches cut into twice as many parts, and
    yields a `note` of it; beside others its failure has `out_of_memory`, and it is worth another try alone.
    `own_models` are users' own networks that another process has read.

    Raises:
        UserError: The disk is full.
    """
    from tuning.training.fit import NonFiniteLossError, prepare

    if read(job, splits.split_hash) is not None:
        return
    own_model.know(own_models)
    survive_encoding()  # A worker prints, too, and a path may have letters that a terminal's encoding lacks.
    parts = job.accumulation
    while True:
        try:
            files.make_folder(job.path, exist_ok=True)
            prepare(threads)
            yield from _train(job, splits, device, parts)
            return
        except UserError:
            raise
        except NonFiniteLossError as error:
            files.write_json(job.path / RESULT, asdict(Result(splits.split_hash, error=str(error))))
            yield {"error": str(error)}
            return
        except Exception as error:  # One failure must not end the jobs beside it.
            failure = masked(f"{type(error).__name__}: {error}")
            no_memory = OUT_OF_MEMORY.search(failure) is not None
            files.write_text(job.path / ERROR, masked(traceback.format_exc()))
            if not (no_memory and alone and 2 * parts <= job.config.batch_size // SMALLEST_PART):
                yield {"error": f"{failure} (traceback: {job.path / ERROR})", "out_of_memory": no_memory}
                return
        parts *= 2
        gc.collect()  # The traceback held the model; `prepare` gives back what a GPU then has free.
        yield {"note": f"{failure.splitlines()[0][:200]} It is resumed with each batch in {parts} parts."}


def load_model(job: Job, splits: "Splits", device: str) -> "nn.Module":
    """Returns the model of a job that has ended, ready to evaluate.

    Raises:
        UserError: Its weights are missing or damaged.
    """
    import torch

    from tuning.models.weights import load_weights
    from tuning.training.fit import new_model

    model, path = new_model(job.config, splits, load_pretrained=False), job.path / WEIGHTS
    try:
        load_weights(model, torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # Damage shows as whatever the zip reader or the restricted unpickler stumbles over.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"The weights of a retraining in {path} cannot be read ({reason.rstrip('. ')}). Remove the folder "
            f"{job.path} and run the command again: this one is then trained again."
        ) from error
    return model.to(device).eval()


def save_weights(path: Path, model: "nn.Module", *, durable: bool = False) -> None:
    """Writes a model's state dict, whole or not at all; `durable` as in `files.write_bytes`."""
    import torch

    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, buffer)
    files.write_bytes(path, buffer.getvalue(), durable=durable)


def _train(job: Job, splits: "Splits", device: str, parts: int) -> Iterator[dict[str, Any]]:
    """Trains a job from its last checkpoint to its end, each batch in so many parts; yields a row an epoch."""
    from tuning.training import checkpoints
    from tuning.training.fit import Training, fit

    training = Training(
        job.config,
        splits,
        seed=job.seed,
        device=device,
        lrs=job.lrs,
        accumulation=parts,
        metric=job.metric,
        teacher=_teacher(job, splits, device),
    )
    rows = checkpoints.load(job.path, training)
    length = job.length or job.config.epochs
    for epoch in islice(fit(training), max(0, length - training.epoch)):
        rows.append(asdict(epoch))
        checkpoints.save(job.path, training, rows)
        yield rows[-1]
    _finish(job, training, rows, splits)


def _teacher(job: Job, splits: "Splits", device: str) -> "Teacher | None":
    """Returns the mean of a job's teachers, which were trained on the same split; None where it has none."""
    from tuning.models.ensemble import Ensemble
    from tuning.training.distillation import Teacher

    if job.taught_by is None:
        return None
    members = [load_model(each, splits, "cpu") for each in job.teachers]
    n = len(members)
    mean = Ensemble(members, job.weights, [splits.mean] * n, [splits.std] * n)
    return Teacher(mean.to(device), job.taught_by)


def _finish(job: Job, training: "Training", rows: list[dict[str, Any]], splits: "Splits") -> None:
    """Writes weights and result, waits until the disk has them, and removes the checkpoints."""
    from tuning.training import checkpoints
    from tuning.training.evaluation import evaluate

    model = training.best_model() if job.length is None else training.last_model()
    kept = rows[-1]["best_epoch"] if job.length is None else rows[-1]["epoch"]

    scores, _ = evaluate(model, splits.valid, splits, device=training.device.type)
    _write_arrays(job.path / VALID_OUTPUTS, {"log_probabilities": scores.numpy()})
    (job.path / VALID_INFLUENCES).unlink(missing_ok=True)  # Of weights that were lost.
    result = Result(
        split_hash=splits.split_hash,
        valid_accuracy=rows[kept - 1]["valid_accuracy"],
        valid_score=rows[kept - 1].get("valid_score", rows[kept - 1]["valid_accuracy"]),
        valid_error=rows[kept - 1].get("valid_error"),
        best_epoch=kept,
        n_parameters=training.n_parameters,
        seconds=sum(row["epoch_seconds"] for row in rows),
        epochs=rows,
        accumulation=training.accumulation,
        **_figures(job, {NONE: scores.numpy()}, splits.valid.labels),
    )
    save_weights(job.path / WEIGHTS, model, durable=True)
    files.write_json(job.path / RESULT, asdict(result), durable=True)
    checkpoints.remove(job.path)


def average(job: Job, result: Result, splits: "Splits", device: str) -> Result:
    """Returns the result of a job that has ended with the values of all averagings on its valid images.

    They are measured once, and kept with the job: ten views of each image take their time, and only of what may be
    saved somebody wants to know.

    Raises:
        UserError: The weights are missing or damaged, or the disk is full.
    """
    from tuning.training import metrics
    from tuning.training.evaluation import evaluate_each

    if set(read_influences(job)) >= set(AVERAGINGS) <= result.averagings(METRICS[job.metric]):
        return result
    found = evaluate_each(load_model(job, splits, device), splits.valid, splits, list(AVERAGINGS), device=device)
    outputs, labels = {name: scores.numpy() for name, (scores, _) in found.items()}, splits.valid.labels
    influences = {name: metrics.influence(job.metric, scores, labels) for name, scores in outputs.items()}
    _write_arrays(job.path / VALID_INFLUENCES, influences)
    _write_arrays(job.path / VALID_OUTPUTS, {"log_probabilities": outputs[NONE]})  # Version 0.2.0 wrote none.
    result = replace(result, **_figures(job, outputs, labels))
    files.write_json(job.path / RESULT, asdict(result), durable=True)
    return result


def _figures(
    job: Job, outputs: "Mapping[str, npt.NDArray[np.float32]]", labels: "npt.NDArray[np.int64]"
) -> dict[str, Any]:
    """Returns the values on the valid split as `Result` has them, given log-probabilities by averaging."""
    from tuning.training import metrics

    return {
        f"valid_{column}{AVERAGINGS[name].end}": metrics.score(metric, scores, labels)
        for metric, column in ((METRICS.default, "accuracy"), (job.metric, "score"))
        for name, scores in outputs.items()
    }


def _write_arrays(path: Path, arrays: "Mapping[str, npt.NDArray[np.floating[Any]]]") -> None:
    """Writes arrays as float32, whole or not at all."""
    buffer = io.BytesIO()
    single: dict[str, Any] = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez_compressed(buffer, **single)
    files.write_bytes(path, buffer.getvalue(), durable=True)


def _read_arrays(path: Path) -> "dict[str, npt.NDArray[np.float32]]":
    """Returns what `_write_arrays` has written; nothing where that is missing or damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as found:
            return {name: np.asarray(found[name], dtype=np.float32) for name in found.files}
    except files.DAMAGE:
        return {}

"""`fit`: a generator that yields one `EpochResult` an epoch. Early stopping lives here.

Nothing here prints, and nothing here knows Ray or Optuna. `Training` holds all that changes while a model trains; saved
between any two epochs and loaded again, it goes on to the same numbers.
"""

import copy
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tuning.base.config import TrainConfig
from tuning.base.registries import LR_SCHEDULES, METRICS, Normalisation
from tuning.images.batches import Batch, Tensors, normalise, to_tensors, train_batches
from tuning.images.splitting import Splits
from tuning.models.architectures import build_model, check_head, count_parameters, head_of
from tuning.models.frozen import OnFeatures, freeze_body, train_head, with_head
from tuning.models.weights import load_weights
from tuning.training import acceleration, features, metrics
from tuning.training.acceleration import Logits, faster_precision
from tuning.training.distillation import Lessons, Teacher
from tuning.training.ema import RunningMean
from tuning.training.evaluation import predict
from tuning.training.head_first import fit_head
from tuning.training.losses import Loss, class_weights
from tuning.training.optimizers import make_optimizer
from tuning.training.schedules import make_schedule

LATE = 0.1  # Of its peak: an annealed rate that is higher is still to fall, and the loss with it.
# What `Training` keeps from epoch to epoch beside the states of others; each is replaced as a whole, never changed.
_COUNTS = ("epoch", "best", "finished", "_lowest_loss", "_epochs_without_lower", "_best_weights")


class NonFiniteLossError(ArithmeticError):
    """The training loss became infinite or not a number."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave.

    Attributes:
        epoch: From 1.
        train_loss: Mean cross entropy of the epoch's augmented batches; label smoothing, class weights and mixed labels
            included, and with a teacher the distance to it.
        train_accuracy: Share of the augmented train images that were labelled rightly while training, in [0, 1]; of a
            mixed image the label with the larger share counts.
        valid_loss: Mean cross entropy of the valid split after the epoch, without label smoothing.
        valid_accuracy: In [0, 1].
        valid_score: The value of the training's metric on the valid split.
        valid_error: The standard error of `valid_score`, as the valid images are a sample.
        lr: The learning rate of the epoch's last step.
        epoch_seconds: Wall time, validation included.
        images_per_second: Train images a second of training, validation not included.
        seconds_per_image: Seconds that it took to label one valid image, in batches of 500.
        best_epoch: The epoch with the best valid_score so far (of equal ones, that with the lower valid_loss).
        finished: Why training ends with this epoch: "length" or "early stopping"; "" while it goes on.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
    valid_score: float
    valid_error: float
    lr: float
    epoch_seconds: float
    images_per_second: float
    seconds_per_image: float
    best_epoch: int
    finished: str


def fit(training: "Training") -> Iterator[EpochResult]:
    """Yields one result an epoch until the training's length is reached or early stopping ends it.

    Between two items `training.state_dict()` holds everything that is needed to go on; a finished training yields
    nothing.

    Raises:
        NonFiniteLossError: Names epoch and step.
    """
    while not training.finished:
        yield training.run_epoch()


class Training:
    """A model in training: weights, their EMA, optimizer, schedule, random state, and the best weights so far.

    Args:
        config: Every hyperparameter.
        splits: Train and valid images.
        seed: Of the initial weights, the order of the images and the augmentation.
        device: Where it runs, e.g. "cpu" or "cuda".
        accumulation: Parts that a batch is cut into, one forward and backward pass each, where a whole one takes too
            much memory; fewer where a part would have less than two images. The gradient is that of the whole batch,
            but for batch normalisation, which sees the parts.
        lrs: Learning rate of each epoch, instead of that of a schedule which drops on a plateau: there are no fresh
            images to judge by where the valid ones are trained on.
        accelerated: Whether the step is captured by `acceleration.accelerate`; None: on a GPU.
        metric: A name in `METRICS`: what the best epoch is best in.
        teacher: What half of the loss is the distance to; see `tuning.training.distillation`.

    Raises:
        ValueError: There is a teacher, and the head alone is trained: on features, of which no teacher knows.
        UserError: Pretrained weights were asked for and cannot be had, or the head cannot be trained as it is to be.
    """

    def __init__(
        self,
        config: TrainConfig,
        splits: Splits,
        *,
        seed: int,
        device: str = "cpu",
        accumulation: int = 1,
        lrs: Sequence[float] | None = None,
        accelerated: bool | None = None,
        metric: str = METRICS.default,
        teacher: Teacher | None = None,
    ) -> None:
        if teacher is not None and config.train == "head":
            raise ValueError("teacher must be None where the head alone is trained, but got one.")
        self.config = config
        self.metric = METRICS.find(metric)
        self.accumulation = accumulation
        self.device = torch.device(device)
        self.precision = config.precision if config.precision != "auto" else faster_precision(self.device.type)
        self.mean, self.std = splits.mean, splits.std
        self._seed = seed
        self._belongs_to: dict[str, Any] = {"config": config.described(), "seed": seed, "split_hash": splits.split_hash}
        if metric != METRICS.default:  # Earlier versions knew no other.
            self._belongs_to["metric"] = metric
        if teacher is not None:
            self._belongs_to["teacher"] = teacher.name
        self._train = to_tensors(splits.train, self.device)
        self._valid = to_tensors(splits.valid, self.device)
        self._valid_labels = splits.valid.labels
        weights = class_weights(self._train.labels, splits.n_classes, config.class_weights)
        lessons = None if teacher is None else Lessons(teacher, self.precision)
        self._loss = Loss(weights, config.label_smoothing, lessons)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.model = new_model(config, splits).to(self.device)
        check_head(self.model, config)
        self.n_parameters = count_parameters(self.model)
        self._body: nn.Module | None = None  # Where the head is trained on features, the whole model.
        self._body_seconds = 0.0
        if config.train == "head":
            freeze_body(self.model)
            if features.can_be_used(config, self.model):
                self._use_features(splits)
        elif config.train == "head_first":
            self._fit_head(splits)
        if accelerated is None:
            accelerated = self.device.type == "cuda" and accumulation == 1
        self._logits = Logits(self.model, self.precision)
        # Made in the first epoch: loading a state comes before.
        self._whole_batch: Callable[[Tensor], Tensor] | None = None if accelerated else self._logits
        self._generator = torch.Generator().manual_seed(seed)
        self._averaged = RunningMean(self.model, config.ema_decay) if config.ema_decay else None
        self._optimizer = make_optimizer(self.model, config)
        self._schedule = make_schedule(self._optimizer, config, self._steps_per_epoch(), lrs)
        self.epoch = 0
        worst = -self.metric.sign * math.inf
        self.best: dict[str, float] = {
            "epoch": 0,
            "valid_accuracy": -1.0,
            "valid_loss": math.inf,
            "valid_score": worst,
        }
        self.finished = ""
        self._lowest_loss, self._epochs_without_lower = math.inf, 0
        self._best_weights: dict[str, Tensor] = {}

    def run_epoch(self) -> EpochResult:
        """Trains one epoch, validates, keeps the weights if they are the best, and returns the result."""
        start = time.perf_counter()
        self.epoch += 1
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            # Dropout draws from torch's own generator: each epoch has a seed of its own, whatever ran before.
            torch.manual_seed(self._seed * 1_000_003 + self.epoch)
            train_loss, train_accuracy, n_seen = self._train_epoch()
        trained = time.perf_counter()
        lr = float(self._last_lr)
        logits, _ = predict(self.evaluated_model, self._valid, self.mean, self.std, self.precision)
        valid_loss = functional.cross_entropy(logits, self._valid.labels).item()
        labelled = time.perf_counter()
        valid_accuracy = (logits.argmax(1) == self._valid.labels).sum().item() / len(logits)
        scores = logits.cpu().numpy()
        known = {"accuracy": valid_accuracy, "log_loss": valid_loss}.get(self.metric.name)
        valid_score = metrics.score(self.metric.name, scores, self._valid_labels) if known is None else known
        self._after_epoch(valid_loss, valid_accuracy, valid_score)
        return EpochResult(
            epoch=self.epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            valid_score=valid_score,
            valid_error=metrics.standard_error(self.metric.name, scores, self._valid_labels),
            lr=lr,
            epoch_seconds=time.perf_counter() - start,
            images_per_second=n_seen / (trained - start),
            seconds_per_image=(labelled - trained) / len(logits) + self._body_seconds,
            best_epoch=int(self.best["epoch"]),
            finished=self.finished,
        )

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated: the EMA of the weights where there is one."""
        return self._averaged.model if self._averaged is not None else self.model

    def best_model(self) -> nn.Module:
        """Returns a copy of the model with the weights of the best epoch, ready to evaluate."""
        model = copy.deepcopy(self.evaluated_model)
        load_weights(model, self._best_weights)
        return self._whole(model).eval()

    def last_model(self) -> nn.Module:
        """Returns the model as it is validated now, ready to evaluate."""
        return self._whole(self.evaluated_model).eval()

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that changes in training; loads with `torch.load(..., weights_only=True)`."""
        return {
            "belongs_to": self._belongs_to,
            "model": self.model.state_dict(),
            "averaged": self._averaged.model.state_dict() if self._averaged is not None else None,
            "averaged_steps": self._averaged.n_steps if self._averaged is not None else 0,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._generator.get_state(),
            **{name.removeprefix("_"): getattr(self, name) for name in _COUNTS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes on the state that `state_dict` gave for the same configuration, seed and splits.

        Raises:
            ValueError: It belongs to others.
        """
        if state["belongs_to"] != self._belongs_to:
            raise ValueError(f"The state must belong to {self._belongs_to}, but got one of {state['belongs_to']}.")
        load_weights(self.model, state["model"])
        if self._averaged is not None:
            self._averaged.load_state_dict(state["averaged"], state["averaged_steps"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"].cpu())
        for name in _COUNTS:
            setattr(self, name, state[name.removeprefix("_")])
        self.best = {"valid_score": self.best["valid_accuracy"], **self.best}  # Version 0.2.0 kept no score.

    def _train_epoch(self) -> tuple[float, float, int]:
        """Returns mean loss, accuracy and number of images of one pass over the train split."""
        self._logits.train()
        if self.config.train == "head":
            train_head(self.model)
        if self._whole_batch is None:
            images = normalise(self._train.at(slice(self.config.batch_size)), self.mean, self.std)
            self._whole_batch = acceleration.accelerate(self._logits, images)
        optimizer, by_epoch = self._optimizer, isinstance(self._schedule, ReduceLROnPlateau)
        losses: list[Tensor] = []
        n_right, n_seen = torch.zeros((), dtype=torch.int64, device=self.device), 0
        for step, batch in enumerate(train_batches(self._train, self.config, self._generator), start=1):
            optimizer.zero_grad(set_to_none=True)
            loss, right = self._gradients(batch)
            losses.append(loss)
            if self.device.type == "cpu" and not math.isfinite(loss.item()):
                raise self._non_finite(step, loss.item())
            optimizer.step()
            self._last_lr = optimizer.param_groups[0]["lr"]
            if not by_epoch:
                self._schedule.step()
            if self._averaged is not None:
                self._averaged.update()
            n_right += right
            n_seen += len(batch.labels)
        values = torch.stack(losses).tolist()
        for step, value in enumerate(values, start=1):
            if not math.isfinite(value):
                raise self._non_finite(step, value)
        return sum(values) / len(values), n_right.item() / n_seen, n_seen

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Adds a batch's gradients to the parameters'; returns its mean loss and how many were labelled rightly."""
        n_images, losses, rights = len(batch.labels), [], []
        # Another size, as the last batch may have, would have to be captured, too.
        whole = n_images == self.config.batch_size and self.accumulation == 1
        forward = self._whole_batch if whole and self._whole_batch is not None else self._logits
        for part in batch.parts(self.accumulation):
            images = normalise(part.images, self.mean, self.std)
            logits = forward(images)
            loss = self._loss(logits, images, part, batch)
            loss.backward()
            losses.append(loss.detach())
            rights.append((logits.detach().argmax(1) == part.labels).sum())
        return torch.stack(losses).sum(), torch.stack(rights).sum()

    def _non_finite(self, step: int, value: float) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"Training loss must be finite, but got {value} in epoch {self.epoch}, step {step} "
            f"(learning rate {self._optimizer.param_groups[0]['lr']:.3g}). A lower learning_rate may help."
        )

    def _after_epoch(self, valid_loss: float, valid_accuracy: float, valid_score: float) -> None:
        """Keeps the best weights, counts towards early stopping and lowers a plateau's learning rate."""
        if not math.isfinite(valid_loss):
            raise NonFiniteLossError(
                f"Validation loss must be finite, but got {valid_loss} after epoch {self.epoch}. "
                "A lower learning_rate may help."
            )
        sign = self.metric.sign
        if (sign * valid_score, -valid_loss) > (sign * self.best["valid_score"], -self.best["valid_loss"]):
            self.best = {
                "epoch": self.epoch,
                "valid_accuracy": valid_accuracy,
                "valid_loss": valid_loss,
                "valid_score": valid_score,
            }
            self._best_weights = {name: value.clone() for name, value in self.evaluated_model.state_dict().items()}
        if valid_loss < self._lowest_loss - self.config.min_delta:
            self._lowest_loss, self._epochs_without_lower = valid_loss, 0
        elif not self._is_still_to_fall():
            self._epochs_without_lower += 1
        if isinstance(self._schedule, ReduceLROnPlateau):
            self._schedule.step(valid_loss)
        if self.epoch >= self.config.epochs:
            self.finished = "length"
        elif self.config.patience is not None and self._epochs_without_lower >= self.config.patience:
            self.finished = "early stopping"

    def _is_still_to_fall(self) -> bool:
        """Returns whether the rate is annealed, and still high or to rise: the loss falls with it, at the end."""
        group = self._optimizer.param_groups[-1]
        warms_up = self.epoch <= min(self.config.warmup_epochs, self.config.epochs / 2)
        return LR_SCHEDULES[self.config.schedule].annealed and (warms_up or group["lr"] > LATE * group["initial_lr"])

    def _features(self, splits: Splits) -> features.Features:
        """Returns the features of all images as they are; those of pretrained weights are shared."""
        body = self.model

        def apply(images: Tensors) -> Tensor:
            return predict(body, images, self.mean, self.std, self.precision)[1]

        compute = functools.partial(features.computed, apply, self._train, self._valid)
        if not self.config.pretrained:
            return compute()
        key = features.key_of(body, self.config, splits, self.device.type, self.precision)
        return features.shared(key, compute)

    def _use_features(self, splits: Splits) -> None:
        """Has the head trained on the features of all images in their place."""
        found = self._features(splits)
        self._body, self._body_seconds, self.model = self.model, found.seconds_per_image, OnFeatures(self.model)
        self._train = Tensors(found.train.to(self.device), self._train.labels)
        self._valid = Tensors(found.valid.to(self.device), self._valid.labels)
        self.mean, self.std = (0.0,), (1 / 255,)  # `normalise` leaves the features as they are.

    def _fit_head(self, splits: Splits) -> None:
        """Fits the head to the features of the train images, before all weights are trained."""
        found, weights = self._features(splits).train.flatten(1).to(self.device), self._loss.class_weights
        fit_head(head_of(self.model), found, self._train.labels, weights, self.config.label_smoothing)

    def _whole(self, model: nn.Module) -> nn.Module:
        """Returns a model with its body, where the head was trained alone."""
        if self._body is None:
            return model
        whole = copy.deepcopy(self._body)
        with_head(whole, model.state_dict())
        return whole

    def _steps_per_epoch(self) -> int:
        n, batch_size = len(self._train), self.config.batch_size
        return max(1, n // batch_size + (n % batch_size * 2 >= batch_size))


def new_model(config: TrainConfig, splits: Splits, load_pretrained: bool = True) -> nn.Module:
    """Returns the network of a configuration for the images of these splits; see `build_model`."""
    seen, (height, width) = Normalisation(splits.mean, splits.std), splits.train.images.shape[2:]
    return build_model(config, splits.channels, splits.n_classes, load_pretrained, seen=seen, size=(height, width))


def prepare(threads: int) -> None:
    """Sets what torch keeps for the whole process: threads on a CPU, denormal numbers flushed to zero; frees a GPU."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if torch.cuda.is_initialized():  # By a trial before, in the same worker.
        gc.collect()
        torch.cuda.empty_cache()

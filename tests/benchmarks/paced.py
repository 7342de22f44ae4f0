"""Trainings for `tricks.py`: epochs of a share of the images or at another size, and tricks that the product lacks."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tuning.base.config import TrainConfig
from tuning.images.batches import Batch, Tensors
from tuning.images.splitting import Splits
from tuning.training.fit import EpochResult, Training
from tuning.training.muon import Muon, orthogonal
from tuning.training.optimizers import make_optimizer
from tuning.training.schedules import make_schedule, warmed_up

SIDE = 28


@dataclass(frozen=True)
class Trick:
    """What a trick does; by default nothing.

    Attributes:
        changes: To the configuration of the base.
        share: Of the images, in each epoch of the first half.
        side: Of the images in the first half, in pixels.
        alternate: Each image is mirrored in every other epoch, in place of at random.
        lookahead: Steps between two of the slow weights (Zhang et al. 2019, half of the way); 0: none.
        norm_bias_rate: What the learning rate of the normalisations' biases is multiplied by.
        whiten: The first layer's filters are those that whiten patches of the train images, and stay as they are.
        decay_share: Of all steps, at the end, in which the rate falls; before, it is constant. 0: as scheduled.
        newton_schulz: Steps of Muon's iteration; None: as it comes.
        muon_share: Muon's learning rate as a share of SGD's; None: as it comes.
        first_plain: The first layer has SGD in place of Muon.
        head_plain: The last layer has SGD in place of Muon.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    side: int = SIDE
    alternate: bool = False
    lookahead: int = 0
    norm_bias_rate: float = 1.0
    whiten: bool = False
    decay_share: float = 0.0
    newton_schulz: int | None = None
    muon_share: float | None = None
    first_plain: bool = False
    head_plain: bool = False


class Paced(Training):
    """A training whose epochs each have a share of the images, at a side in pixels; its schedule spans them all."""

    def __init__(
        self, config: TrainConfig, splits: Splits, plan: Sequence[tuple[float, int]], trick: Trick, *, seed: int
    ) -> None:
        config = config.model_copy(update={"epochs": len(plan)})
        super().__init__(config, splits, seed=seed, accelerated=False)
        self._all, self._plan, self._side, self._trick = self._train, plan, SIDE, trick
        if trick.whiten:
            _whiten(_first_layer(self.model), self._all, self.mean, self.std)
        self._optimizer = _optimizer(self.model, config, trick)
        n_steps = sum(math.ceil(share * len(splits.train) / config.batch_size) for share, _ in plan)
        if config.schedule != "plateau":
            whole = config.model_copy(update={"epochs": 1, "warmup_epochs": min(0.5, config.warmup_epochs / len(plan))})
            if trick.decay_share:
                self._schedule = warmed_up(self._optimizer, whole, n_steps, _Trapezoid(trick.decay_share))
            else:
                self._schedule = make_schedule(self._optimizer, whole, n_steps)
        if trick.lookahead:
            self._averaged = _Lookahead(self.model, trick.lookahead)  # type: ignore[assignment]
        self._mirrored = torch.rand(len(self._all), generator=torch.Generator().manual_seed(seed)) < 0.5

    def run_epoch(self) -> EpochResult:
        """As `Training`'s, on this epoch's images."""
        share, self._side = self._plan[self.epoch]
        n = len(self._all)
        if share < 1:
            chosen = torch.randperm(n, generator=self._generator)[: round(share * n)]
            self._train = Tensors(self._all.at(chosen), self._all.labels[chosen])
        else:
            chosen, self._train = torch.arange(n), self._all
        if self._trick.alternate:
            mirrored = (self._mirrored if self.epoch % 2 else ~self._mirrored)[chosen]
            images = self._train.at(slice(None)).clone()
            images[mirrored] = images[mirrored].flip(3)
            self._train = Tensors(images, self._train.labels)
        return super().run_epoch()

    def timed_epoch(self) -> tuple[float, int]:
        """Returns the processor's seconds of an epoch's steps, and the images in it."""
        self.epoch += 1
        share, self._side = self._plan[self.epoch - 1]
        chosen = torch.randperm(len(self._all), generator=self._generator)[: round(share * len(self._all))]
        self._train = Tensors(self._all.at(chosen), self._all.labels[chosen])
        begin = time.process_time()
        self._train_epoch()
        return time.process_time() - begin, len(chosen)

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._side != SIDE:
            images = functional.interpolate(batch.images.float(), size=self._side, mode="area").round().to(torch.uint8)
            batch = batch._replace(images=images.contiguous(memory_format=torch.channels_last))
        return super()._gradients(batch)


class _Trapezoid:
    """The share of the peak learning rate: 1 until the last `decay_share` of the steps, then down to 0."""

    def __init__(self, decay_share: float) -> None:
        self.decay_share = decay_share

    def __call__(self, progress: float) -> float:
        return min(1.0, (1 - progress) / self.decay_share)


class _Lookahead:
    """Slow weights that go half of the way to the fast ones every few steps, and from which the fast ones go on."""

    def __init__(self, model: nn.Module, every: int) -> None:
        self.model, self.every, self.n_steps = model, every, 0
        self._fast = [p for p in model.parameters() if p.requires_grad]
        self._slow = [p.detach().clone() for p in self._fast]

    @torch.no_grad()
    def update(self) -> None:
        self.n_steps += 1
        if self.n_steps % self.every == 0:
            torch._foreach_lerp_(self._slow, self._fast, 0.5)
            torch._foreach_copy_(self._fast, self._slow)


class _Muon(Muon):
    """Muon with another number of steps of its iteration."""

    newton_schulz = 3

    def _orthogonal(self, updates: list[Tensor]) -> list[Tensor]:
        return orthogonal(updates, self.newton_schulz)


def _optimizer(model: nn.Module, config: TrainConfig, trick: Trick) -> torch.optim.Optimizer:
    optimizer = make_optimizer(model, config)
    if trick.norm_bias_rate != 1:
        biases = {id(module.bias): module.bias for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in biases]
        rate = trick.norm_bias_rate * config.learning_rate
        like = {key: value for key, value in optimizer.param_groups[-1].items() if key != "params"}
        own = {"params": list(biases.values()), "lr": rate, "weight_decay": 0.0}
        optimizer.add_param_group({**like, **own, **({"orthogonal": False} if "orthogonal" in like else {})})
    groups = optimizer.param_groups
    orthogonal_groups = [group for group in groups if group.get("orthogonal")]
    if trick.muon_share is not None:
        for group in orthogonal_groups:
            group["lr"] = trick.muon_share * config.learning_rate
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    for wanted, layers in ((trick.first_plain, [_first_layer(model)]), (trick.head_plain, heads)):
        if wanted:
            [weight] = [layer.weight for layer in layers]
            for group in orthogonal_groups:
                group["params"] = [p for p in group["params"] if p is not weight]
            plain = next(group for group in groups if not group["orthogonal"] and group["weight_decay"] > 0)
            plain["params"].append(weight)
    if trick.newton_schulz is not None:
        optimizer.__class__ = type("Muon", (_Muon, type(optimizer)), {"newton_schulz": trick.newton_schulz})
    return optimizer


def _first_layer(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def _whiten(layer: nn.Conv2d, images: Tensors, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Gives the first layer the filters that whiten patches, then their negatives, as far as it has filters."""
    pixels = images.at(slice(5000)).float() / 255
    pixels = (pixels - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    side = layer.kernel_size[0]
    patches = functional.unfold(pixels, side).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors.T / (values + 5e-4).sqrt()[:, None]).flip(0).reshape(-1, *layer.weight.shape[1:])
    n = len(layer.weight)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([filters, -filters]).repeat(math.ceil(n / (2 * len(filters))), 1, 1, 1)[:n])
    layer.weight.requires_grad_(False)

"""The kinds of trials that a search space can give, by what their training costs."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuning.base.config import TrainConfig
from tuning.base.registries import LR_SCHEDULES

if TYPE_CHECKING:
    from tuning.sampling.spaces import Space

DRAWS = 400


@dataclass(frozen=True)
class Cost:
    """What an epoch of one kind of trial costs.

    Attributes:
        share: Of the space's random points, in [0, 1].
        epoch_seconds: Of the whole train and valid splits.
        peak_bytes: Memory of the worker on a CPU; on a GPU what it takes of the GPU's, CUDA's own included.
        checkpoint_bytes: Of a checkpoint file; a running trial has two at most.
    """

    config: TrainConfig
    share: float
    epoch_seconds: float
    peak_bytes: int
    checkpoint_bytes: int


def kinds(space: "Space", epochs: int) -> tuple[list[tuple[TrainConfig, float]], list[TrainConfig]]:
    """Returns a configuration of each kind that the space gives, with the kind's share of random points; and the first.

    These are the configurations of the points that a search of the space begins with. Each has its kind among the
    others; one that no random point had has the share 0.
    """
    import optuna

    study = optuna.create_study(sampler=space.possible(optuna.samplers.RandomSampler(seed=0)))
    drawn = [space.sample(study.ask(), epochs) for _ in range(DRAWS)]
    for point in space.first:
        study.enqueue_trial(dict(point))
    first = [space.sample(study.ask(), epochs).model_copy(update={"pretrained": False}) for _ in space.first]
    one: dict[tuple[Any, ...], TrainConfig] = {}
    count: Counter[tuple[Any, ...]] = Counter()
    for config in drawn:
        one.setdefault(kind_of(config), config.model_copy(update={"pretrained": False}))
        count[kind_of(config)] += 1
    for config in first:
        one.setdefault(kind_of(config), config)
    return [(config, count[kind] / DRAWS) for kind, config in one.items()], first


def kind_of(config: TrainConfig) -> tuple[Any, ...]:
    """Returns what a step costs (`step_kind`), how long a trial is and whether its learning rate is annealed."""
    return (*step_kind(config), config.epochs, LR_SCHEDULES[config.schedule].annealed)


def step_kind(config: TrainConfig) -> tuple[Any, ...]:
    """Returns what the cost of a step depends on; kinds in which it is equal are measured once."""
    network = config.architecture, config.width, config.stem, config.image_size, config.batch_size
    if config.train != "head":
        return network
    from tuning.training.features import leaves_images

    return (*network, config.train, leaves_images(config))

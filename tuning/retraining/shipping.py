"""What is written as the model: the single winner, the ensemble of all that was trained, or what it has taught.

All of them are chosen on the valid images, and whichever is written, the others are said beside it. The test split has
no place here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import machine
from tuning.base.averagings import NONE, recorded
from tuning.retraining import averaging, distilled, ensemble
from tuning.retraining.contest import Contest
from tuning.retraining.distilled import Distilled
from tuning.retraining.ensemble import Ensemble
from tuning.retraining.verdict import TRAIN_ON, Chosen, choose, describe, train_on_everything
from tuning.training import jobs
from tuning.training.jobs import Job, Result
from tuning.trials.slots import Slots

if TYPE_CHECKING:
    from torch import nn

    from tuning.images.splitting import Splits

SINGLE, ENSEMBLE, DISTILLED = SHIPPED = ("single", "ensemble", "distilled")


@dataclass(frozen=True)
class Shipment:
    """What is written as the model, and what it is said beside.

    Attributes:
        held: The contest.
        winner: Its winner's model.
        together: The best ensemble of all that was trained; None where that is a single model.
        taught: The networks that the ensemble has taught; None where none was asked for, or none could be trained.
        student: The best of them; None without them.
        kind: What is written: "single", "ensemble" or "distilled".
    """

    held: Contest
    winner: Chosen
    together: Ensemble | None = None
    taught: Distilled | None = None
    student: Chosen | None = None
    kind: str = SINGLE

    @property
    def chosen(self) -> Chosen:
        """The single network that is written; of an ensemble, the winner."""
        return self.student if self.kind == DISTILLED and self.student is not None else self.winner

    @property
    def members(self) -> Ensemble | None:
        """The ensemble, where it is written."""
        return self.together if self.kind == ENSEMBLE else None

    @property
    def splits(self) -> "Splits":
        """What the model was trained on; an ensemble wants its images normalised as its first member does."""
        return self.splits_of(self.members.jobs[0] if self.members else self.chosen.job)

    def splits_of(self, job: Job) -> "Splits":
        """Returns what a training was trained and judged on."""
        return (self.taught.splits if job.teachers and self.taught else self.held.splits)[job.seed]

    def load(self, device: str) -> "nn.Module":
        """Returns what is written, ready to evaluate.

        Raises:
            UserError: Its weights cannot be read.
        """
        if self.members is not None:
            return ensemble.build(self.members, self.held, device)
        return jobs.load_model(self.chosen.job, self.splits, device)

    @property
    def trainings(self) -> dict[Path, Job]:
        """All whose models are tested, by their folders."""
        of_students = (self.taught.results,) if self.taught else ()
        found = [self.winner.job, *(job for models in (self.winner.models, *of_students) for job in models)]
        return {job.path: job for job in (*found, *(self.together.jobs if self.together else ()))}

    def describe(self) -> dict[str, Any]:
        """Returns what is known before the test split is opened, as in `metrics.json`."""
        found = describe(self.held, self.chosen, self.splits) | {
            "n_parameters": self.chosen.result.n_parameters,
            "shipped": self.kind,
            "distilled": self.taught and distilled.as_metrics(self.taught),
            "ensemble": None,
        }
        if self.taught is not None:
            found["seconds_total"] += self.taught.seconds
        if self.together is None:
            return found
        found["ensemble"] = ensemble.as_metrics(self.together)
        if self.members is None:
            return found
        names = ("valid_accuracy", "valid_score", "n_parameters")
        return found | {name: found["ensemble"][name] for name in names} | recorded(NONE)


def settle(
    held: Contest, slots: Slots, *, threads: int | None, train_on: str, ship: str, say: Callable[[str], None]
) -> Shipment:
    """Chooses what is written, and trains what that needs.

    Where what was asked for is no better on the valid images than the single winner, this is said, and that is written.

    Raises:
        UserError: A training failed for good, or the disk is full.
    """
    winner, together = _best(held, held.models, held.splits, slots.device), ensemble.choose(held)
    say(averaging.explain(winner.averaging, winner.gains, held.metric))
    if train_on != TRAIN_ON[0]:
        splits = held.splits[winner.job.seed]
        winner = train_on_everything(winner, splits, slots.device, threads or machine.cores(), say)
    found = Shipment(held, winner, together)
    if ship == ENSEMBLE:
        if together is not None and ensemble.is_better(together, held, winner):
            return replace(found, kind=ENSEMBLE)
        say("No ensemble of what was trained is better on the valid images: the single model is written.")
    elif ship == DISTILLED:
        return _distilled(found, slots, threads, say)
    return found


def _distilled(found: Shipment, slots: Slots, threads: int | None, say: Callable[[str], None]) -> Shipment:
    """Returns the shipment with what the ensemble has taught."""
    held, together = found.held, found.together
    against = distilled.reason_against(held, together)
    taught = None if against or together is None else distilled.train(held, together, slots, threads, say)
    if taught is None:
        say(f"{against} The single model is written.".lstrip())
        return found
    student = _best(held, taught.results, taught.splits, slots.device)
    say(averaging.explain(student.averaging, student.gains, held.metric))
    if not taught.is_better:
        say("What was distilled is not better on the valid images: the single model is written.")
    return replace(found, taught=taught, student=student, kind=DISTILLED if taught.is_better else SINGLE)


def _best(held: Contest, models: Mapping[Job, Result], splits: "Mapping[int, Splits]", device: str) -> Chosen:
    """Returns the best of one configuration's models, with the averaging that all of them choose."""
    return choose(held, {job: jobs.average(job, result, splits[job.seed], device) for job, result in models.items()})

"""Whose turn a free slot is: a trial that goes on, a new one, or nobody's for now.

Nothing here knows Ray: `tuning.trials.recorder` asks for turns when Ray asks for trials.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuning.runs import convergence
from tuning.trials.local_ray import TakenSlots
from tuning.trials.settings import Settings

if TYPE_CHECKING:
    from tuning.sampling.study import Proposal, RunStudy


@dataclass(frozen=True)
class Turn:
    """A trial that takes a slot.

    Attributes:
        proposal: What to run.
        device: Of the slot.
    """

    proposal: "Proposal"
    device: str


class Turns:
    """What takes the slots of a search, from its first trial to its last.

    A slot goes to the trial that the scheduler has go on, if it pauses trials and has one to go on; else to one that
    was interrupted, or to a new one. While a trial waits for a whole device nothing takes a slot, and while it has one
    nothing takes that device's.

    Args:
        settings: Of the search.
        study: Its trials.
        note: Receives what a person should know.

    Attributes:
        slots: Those that are taken.
        to_begin: How many trials may still be begun, those included that were interrupted.
        scheduler: The scheduler, if it pauses trials; else None.
        are_held: Nothing takes a slot any more, because the search was interrupted.
        are_over: Whether no trial will take a slot any more, as of the last call of `next`.
        converged_after: How many trials had been tried when nothing was left to gain; None until then.
    """

    def __init__(self, settings: Settings, study: "RunStudy", note: Callable[[str], None]) -> None:
        self.settings, self._study, self._note = settings, study, note
        self.slots = TakenSlots(settings.slots)
        self.to_begin: float = math.inf
        self.scheduler: Any = None
        self.are_held = False
        self.are_over = False
        self.converged_after: int | None = None
        self._waiting_alone: set[int] = set()
        self._rests = False  # Nothing is to be begun, as far as is known until the next trial ends or pauses.

    def watch_slots(self) -> None:
        """Says which nodes of a cluster came and went."""
        for note in self.slots.watch():
            self._note(note)

    def next(self) -> Turn | None:
        """Returns the trial whose turn it is, which takes a slot; None where there is none, for now or for good."""
        if self._waiting_alone or self.are_held:
            return None
        self.watch_slots()
        device = self.slots.free()
        if device is None:
            return None
        proposal = self._gone_on() or self._begun()
        if proposal is None:
            # What those that run come to decides who goes on where trials pause, and whether nothing is left to gain.
            converged = self.settings.until_converged and self.converged_after is not None and self.to_begin > 0
            self.are_over = not self.slots.by_trial or not (converged or self.scheduler is not None)
            return None
        self.slots.take(proposal.number, device)
        if proposal.alone and self.settings.slots.whole_device:
            self._waiting_alone.add(proposal.number)
        return Turn(proposal, device)

    def _gone_on(self) -> "Proposal | None":
        """Returns the paused trial that the scheduler has go on, if there is one."""
        number = None if self.scheduler is None else self.scheduler.promoted()
        return None if number is None else self._study.go_on(number)

    def _begun(self) -> "Proposal | None":
        """Returns an interrupted trial, or else a new one, if one is to be begun and the space has one."""
        if self._rests:
            return None
        if self._has_converged() and self.settings.until_converged and not self._study.trials.has_interrupted:
            self._rests = True
            return None
        if self.to_begin <= 0:
            self._rests = True
            return None
        proposal = self._study.ask()
        if proposal is None:
            n = self._study.trials.n_tried
            self._note(f"The space has nothing new after {n} trials and those that run; they end it.")
            self.to_begin = 0
            return None
        self.to_begin -= 1
        return proposal

    def _has_converged(self) -> bool:
        """Returns whether nothing is left to gain, and says so the first time."""
        found = self._study.has_converged
        if not found:
            self.converged_after = None
        elif self.converged_after is None:
            self.converged_after = self._study.trials.n_tried
            perfect = self._study.is_perfect
            ends = f" The search ends with the trials that run{'' if perfect else ', unless one is better'}."
            said = convergence.said(self.converged_after, perfect=perfect)
            self._note(f"{said}{ends if self.settings.until_converged else ''}")
        return found

    def wait_alone(self, number: int) -> Mapping[str, float]:
        """Has nothing take a slot until a trial runs that is to be alone; returns the resources of its device."""
        self._waiting_alone.add(number)
        return self.settings.slots.whole_device

    def began(self, number: int) -> None:
        """Notes that a trial runs: it has what it waited for, and keeps its device to itself."""
        if number in self._waiting_alone:
            self._waiting_alone.discard(number)
            self.slots.alone.add(number)

    def has_paused(self, number: int) -> bool:
        """Returns whether the scheduler, which has a trial stopped, may have it go on later."""
        paused = self.scheduler is not None and self.scheduler.has_paused(number)
        return paused and not self._study.trials[number].has_finished

    def paused(self, number: int) -> None:
        """Frees the slot of a trial that waits to go on."""
        self._rests = False
        self._waiting_alone.discard(number)  # It may have failed before it began.
        self.slots.give_back(number)

    def ended(self, number: int) -> None:
        """Frees the slot of a trial that has ended, and will not go on."""
        self.paused(number)
        if self.scheduler is not None:
            self.scheduler.ended(number)

    def outcome(self, reason: str | None) -> dict[str, Any]:
        """Returns why the search ended, and after how many trials there was nothing left to gain, for `meta.json`.

        Args:
            reason: Why it ended before its samples were done, if it did.
        """
        # The last trials may have been better, or the first after which nothing is left to gain.
        was_said = self.converged_after is not None
        after = (
            (self.converged_after if was_said else self._study.trials.n_tried) if self._study.has_converged else None
        )
        ended_so = self.settings.until_converged and was_said and after is not None and reason is None
        return {"stopped_by": "converged" if ended_so else reason, "converged": after}

"""How long a plan takes, and what of it fits into so many minutes: `final --minutes`.

A plan depends on the run, the options and this machine's slots alone, not on the time or on what has been trained, so
that the same command plans the same after a kill. Nothing here trains.
"""

import bisect
import functools
import heapq
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuning.base import machine
from tuning.base.errors import UserError, counted
from tuning.retraining import race
from tuning.retraining.candidates import LENGTHENING, Entry, Plan
from tuning.retraining.shipping import DISTILLED
from tuning.retraining.verdict import TRAIN_ON
from tuning.runs import run_folder
from tuning.trials.slots import Slots

# Two cores of an EPYC, five folds of photos of 100 x 100: a `final` takes 53 s beside all trainings, from the command
# to the last file.
FINAL_SECONDS = 53.0
# With four teachers, each of which takes 0.28 (ResNet-14) to 0.38 (ResNet-8) of a training step for a batch.
DISTILLED_COST = 2.3
AFTER = (TRAIN_ON[1], DISTILLED)
SIZES = {"top_k": "--top-k", "n_seeds": "--seeds", "folds": "--folds", "compare": "--compare", "epochs": "--epochs"}


@dataclass(frozen=True)
class Pace:
    """How fast this machine trains, by the times of a search.

    Attributes:
        n_slots: Trainings side by side.
        slower: How many times as long as in the search an epoch takes.
        after: What follows on the contest: "", "train+valid" (the winner is trained once more) or "distilled" (as many
            networks as there are seeds, each for `DISTILLED_COST` times as long as the longest candidate).
        elsewhere: The search ran on another machine.
    """

    n_slots: int
    slower: float = 1.0
    after: str = ""
    elsewhere: bool = False


def planned(
    make: Callable[..., Plan],
    sizes: Mapping[str, Any],
    slots: Slots,
    *,
    minutes: float | None = None,
    given: Collection[str] = (),
    threads: int | None = None,
    after: str = "",
) -> Plan:
    """Returns the plan of these sizes, or what of it fits into `minutes`; its last note says how long it takes.

    What must fit is each configuration on the first seed, and one of them on all; the race gives others more seeds as
    far as the time allows (`Plan.slot_seconds`). What is given up, in this order, until that fits: seeds down to two,
    candidates down to two, the comparisons, the second seed, the second candidate, then the length, down to the
    search's. What turns out to fit all the same is taken back. Folds are not given up.

    Args:
        make: Returns a plan of sizes, as `candidates.from_run` takes them.
        sizes: The arguments of `make` in `SIZES`.
        slots: Where it is trained.
        minutes: Above 0; None is no limit.
        given: The sizes that the user has asked for, which are not reduced.
        threads: As `contest.hold` takes it.
        after: As in `Pace`.

    Raises:
        UserError: Not even the least fits, the times are of another device, or `make` raises it.
    """
    whole = make(**sizes)
    told = _pace(whole, slots, threads, after)
    if isinstance(told, str):
        if minutes is None:
            return whole
        raise UserError(f"--minutes needs the times of the search, but {told}. Leave it out.")
    if minutes is None:
        return _with_note(whole, _said(whole, told))

    def fits(plan: Plan) -> bool:
        return seconds(plan, told, least=True) <= 60 * minutes

    plan = _fitting(functools.cache(make), sizes, whole, given, fits)
    if not fits(plan):
        raise _too_few(plan, minutes, seconds(plan, told, least=True), _restricting(sizes, given))
    if seconds(plan, told) > 60 * minutes:
        plan = replace(plan, slot_seconds=_slot_seconds(plan, told, minutes))
    less = _given_up(whole, plan) + ["nothing to distil from"] * _teaches_nothing(plan, told)
    less += [f"later {plan.repeat}s as far as the time allows"] * (plan.slot_seconds is not None)
    start = f"For {minutes:g} minutes: {', '.join(less)}." if less else f"{minutes:g} minutes are enough for all."
    return _with_note(plan, f"{start} {_said(plan, told, minutes)}")


def seconds(plan: Plan, pace: Pace, *, least: bool = False) -> float:
    """Returns how long a plan takes, from the command to the model: what the race trains, in its order, on the slots.

    Args:
        plan: Each of its entries must have `epoch_seconds`.
        pace: Of this machine.
        least: One configuration is trained on all seeds, the slowest that may win, and the others on the first alone;
            and the best is not trained as it was. Otherwise nothing is dropped.
    """
    taken = {entry.config.hash(): _training_seconds(entry, pace) for entry in plan.entries}
    waiting = _in_order(plan, least=least)
    may_win = [entry for entry in plan.entries if plan.may_win(entry)]
    ahead = None if least and len(may_win) > 1 else plan.entries[0].config.hash()  # Another one may win.
    n_slots = min(pace.n_slots, len(waiting))
    free, first_ends, end = [0.0] * n_slots, dict[str, float](), 0.0
    while waiting:
        now = heapq.heappop(free)
        job = next((each for each in waiting if each[1] == 0 or _may_begin(each[0], ahead, first_ends, now)), None)
        if job is None:  # The slot is empty until a first seed ends.
            heapq.heappush(free, min(each for each in first_ends.values() if each > now))
            continue
        waiting.remove(job)
        ends = now + taken[job[0]]
        if job[1] == 0:
            first_ends[job[0]] = ends
        heapq.heappush(free, ends)
        end = max(end, ends)
    return end + _besides(plan, pace)


def _may_begin(config_hash: str, ahead: str | None, first_ends: Mapping[str, float], now: float) -> bool:
    """Returns whether a configuration gets a later seed; the one ahead does, too, while nothing has ended."""
    if first_ends.get(config_hash, math.inf) <= now:
        return True
    return config_hash == ahead and now < min(first_ends.values(), default=math.inf)


def _besides(plan: Plan, pace: Pace) -> float:
    """Returns the seconds of a plan beside those of its race."""
    after = max(_training_seconds(entry, pace) for entry in plan.entries if plan.may_win(entry))
    if pace.after == DISTILLED:
        after *= DISTILLED_COST * math.ceil(len(plan.seeds) / pace.n_slots)
    return FINAL_SECONDS + (after if pace.after and not _teaches_nothing(plan, pace) else 0.0)


def _slot_seconds(plan: Plan, pace: Pace, minutes: float) -> float:
    """Returns what the slots have together for a plan's race, if at its end all but one wait for the longest."""
    longest = max(_training_seconds(entry, pace) for entry in plan.entries)
    return pace.n_slots * (60 * minutes - _besides(plan, pace)) - (pace.n_slots - 1) * longest


def _teaches_nothing(plan: Plan, pace: Pace) -> bool:
    """Returns whether there is to be distilled, but a single training makes no ensemble that could teach."""
    return pace.after == DISTILLED and len(plan.entries) * len(plan.seeds) == 1


def _training_seconds(entry: Entry, pace: Pace) -> float:
    return race.AROUND + pace.slower * entry.expected_seconds


def _in_order(plan: Plan, *, least: bool) -> list[tuple[str, int]]:
    """Returns hashes and indices of seeds as `Race` trains them where the candidates come in as the search has them."""
    longest = sorted(plan.entries, key=lambda entry: entry.expected_seconds, reverse=True)
    first, later = longest, list(plan.entries)
    if least:
        first = [entry for entry in longest if entry.config.hash() != plan.unchanged]
        later = [entry for entry in first if plan.may_win(entry)][:1]
    found = [(entry.config.hash(), 0) for entry in first]
    for index in range(1, len(plan.seeds)):
        found += [(entry.config.hash(), index) for entry in later]
    return found


def _fitting(
    make: Callable[..., Plan],
    sizes: Mapping[str, Any],
    whole: Plan,
    given: Collection[str],
    fits: Callable[[Plan], bool],
) -> Plan:
    """Returns the plan that has given up as little as it must; where nothing fits, the one that has given up all.

    What was given up first may fit again when more had to go: it is then taken back, the last of it first.
    """
    n_seeds, n_candidates = len(whole.seeds), _n_candidates(whole)
    compare = sizes["compare"]
    size: dict[str, Any] = {**sizes, "top_k": n_candidates, "lengthening": LENGTHENING}
    size["compare"] = sizes["top_k"] * n_seeds > 1 if compare is None else compare
    if not whole.folds:
        size["n_seeds"] = n_seeds
    kept = {*given, *(["n_seeds"] if whole.folds else [])}
    before = []
    for name, value in _concessions(n_seeds, n_candidates):
        if fits(make(**size)):
            break
        if name not in kept:
            before.append({name: size[name]})
            size[name] = value
    if "epochs" not in given and not fits(make(**size)):
        lengths = [tenths / 10 for tenths in range(10, 10 * LENGTHENING)]
        n_fitting = bisect.bisect_left(lengths, x=True, key=lambda each: not fits(make(**size | {"lengthening": each})))
        size["lengthening"] = lengths[max(0, n_fitting - 1)]
    for earlier in reversed(before):
        if fits(make(**size | earlier)):
            size |= earlier
    return make(**size)


def _concessions(n_seeds: int, n_candidates: int) -> Iterator[tuple[str, Any]]:
    """Yields what is given up before the length, in this order, and to what it is reduced; see `planned`."""
    yield from (("n_seeds", n) for n in range(n_seeds - 1, 1, -1))
    yield from (("top_k", n) for n in range(n_candidates - 1, 1, -1))
    yield "compare", False
    yield "n_seeds", 1
    yield "top_k", 1


def _pace(plan: Plan, slots: Slots, threads: int | None, after: str) -> Pace | str:
    """Returns how fast this machine trains by the times of the plan's search; or why they do not tell."""
    run = run_folder.Run(Path(plan.source))
    settings, before = run.settings, run.meta.get("hardware") or {}
    device = settings.get("device", slots.device)
    if device != slots.device:
        return f"those of {plan.source} are of {device}, and not of {slots.device}"
    if unknown := [entry.name for entry in plan.entries if not entry.expected_seconds]:
        return f"{plan.source} has none for {unknown[0]}"
    if device == "cuda":
        had, has = settings.get("gpus_per_trial"), slots.gpus_per_trial
    else:
        had = settings.get("cpus_per_trial")
        has = slots.cpus_per_trial if slots.concurrency > 1 else float(threads or machine.cores())
    slower = max(1.0, had / has) if had and has else 1.0
    here = machine.hardware()
    elsewhere = any(before.get(name, here[name]) != here[name] for name in ("cpu", "gpus"))
    return Pace(slots.concurrency, slower, after, elsewhere)


def _n_candidates(plan: Plan) -> int:
    return sum(entry.role == "candidate" for entry in plan.entries)


def _given_up(whole: Plan, plan: Plan) -> list[str]:
    """Returns what a plan has less than the whole one, in the order in which it is given up."""
    found = []
    if len(plan.seeds) < len(whole.seeds):
        found.append(f"{counted(len(plan.seeds), 'seed')} in the place of {len(whole.seeds)}")
    if (n := _n_candidates(plan)) < _n_candidates(whole):
        found.append(f"{counted(n, 'candidate')} in the place of {_n_candidates(whole)}")
    if len(plan.entries) == _n_candidates(plan) and len(whole.entries) > _n_candidates(whole):
        found.append("no comparisons")
    if whole.entries[0].regularised and not plan.entries[0].regularised:
        found.append("no more regularisation")
    was, now = (each.entries[0].config.epochs for each in (whole, plan))
    if now < was:
        found.append(f"{counted(now, 'epoch')} in the place of {was}")
    return found


def _said(plan: Plan, pace: Pace, limit: float = math.inf) -> str:
    """Returns a sentence on how long a plan takes at least and at most, with a limit in minutes."""
    least, most = (_minutes(min(seconds(plan, pace, least=each), 60 * limit)) for each in (True, False))
    whose = "those of the search, which ran on another machine" if pace.elsewhere else "those of the search"
    if least == most:
        return f"This takes about {most} minute{'' if most == '1' else 's'} if the times are {whose}."
    return f"This takes {least} to {most} minutes if the times are {whose}: the sooner some are dropped, the less."


def _minutes(seconds: float) -> str:
    """Returns seconds as minutes for a person: below ten with a decimal, which counts there."""
    return f"{round(seconds / 60, 1 if seconds < 600 else 0):g}"


def _with_note(plan: Plan, note: str) -> Plan:
    return replace(plan, notes=(*plan.notes, note))


def _restricting(sizes: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """Returns the options of the user that ask for more than the least."""
    least = {"top_k": 1, "n_seeds": 1, "folds": 0, "compare": False}
    return [option for name, option in SIZES.items() if name in given and sizes[name] != least.get(name)]


def _too_few(plan: Plan, minutes: float, least: float, given: list[str]) -> UserError:
    """Returns the error for minutes into which not even the last plan fits."""
    fewest, end = f"--minutes must be at least {math.ceil(least / 6) / 10:g}", f"but got {minutes:g}"
    if given:
        options = " and ".join(given)
        return UserError(
            f"{fewest} with {options}, by the times of the search, {end}. Give it more, or ask for less with {options}."
        )
    [entry] = plan.entries
    epochs = counted(entry.config.epochs, "epoch")
    many = len(plan.seeds) > 1
    on = f" on {counted(len(plan.seeds), plan.repeat)}" if many else ""
    advice = "take fewer --folds" if many else "choose a smaller network with --max-parameters"
    return UserError(
        f"{fewest}, which {entry.name} with {epochs}{on} takes by the times of the search, {end}. Give it more, or "
        f"{advice}."
    )

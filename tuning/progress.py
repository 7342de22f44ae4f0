"""What a person watches while a search runs: in a terminal one live view, elsewhere one line an event.

Nothing is decided or recorded here. All events come from one thread; the live view's own thread only reads.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

Row = Mapping[str, Any]

_STATES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}
_SPARKS = "▁▂▃▄▅▆▇█"
_CURVE_SPAN = 0.16  # At most two points of accuracy a step: a trial that diverged must not flatten all the others.
_REFRESHES_A_SECOND = 2  # A refresh takes about 3 ms of a core (two-core AVX512 machine) that could train.
_MAX_WIDTH = 120
_N_BEST, _N_FAILED = 5, 2
# What gives way first where the terminal is low: a section, and the rows that it keeps at this step.
_SHRINK = [("running", 4), ("failed", 1), ("best", 3), ("running", 2), ("failed", 0), ("best", 0), ("running", 0)]


@dataclass(frozen=True)
class _Trial:
    """A trial as it was last heard of; times are the clock's, in seconds."""

    row: Row
    curve: tuple[float | None, ...] = ()  # valid_accuracy by epoch; None where it is not known.
    began: float | None = None  # None for a trial of an earlier session.
    ended: float | None = None
    epoch_ended: float = 0.0
    epoch_seconds: float = 0.0

    @property
    def accuracy(self) -> float | None:
        return _number(self.row.get("valid_accuracy"))

    @property
    def length(self) -> int:
        return int(_number(self.row.get("config/epochs")) or 0)

    @property
    def network(self) -> str:
        kind = _text(self.row.get("config/architecture"))
        if kind == "resnet18":
            return f"{kind}-pre" if self.row.get("config/pretrained") is True else kind
        return f"{kind}-{_text(self.row.get('config/width'))}"

    def seconds_to_full_length(self, now: float) -> float:
        to_come = max(0, self.length - int(self.row.get("epochs") or 0)) * self.epoch_seconds
        return max(0.0, to_come - (now - self.epoch_ended))


class Progress:
    """Shows what happens to the trials of a search.

    Args:
        n_samples: Trials that the search will run.
        n_done: Those that have ended already; `seed` shows them, too.
        quiet: Print nothing but notes.
        verbose: In a terminal print the line an event, too, above the live view.
        time_budget: Seconds after which the search ends anyway; None is no limit.
        console: Where to print; None is stdout.
        clock: Gives seconds.
    """

    def __init__(
        self,
        n_samples: int,
        n_done: int = 0,
        quiet: bool = False,
        verbose: bool = False,
        *,
        time_budget: float | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if console is None:  # FORCE_COLOR and the like must not bring control codes into a file.
            terminal = None if sys.stdout.isatty() else False
            console = Console(file=sys.stdout, highlight=False, force_terminal=terminal)
        self._console, self._clock, self._start = console, clock, clock()
        self._n_samples, self._n_before, self._time_budget = n_samples, n_done, time_budget
        self._slots = 1
        self._trials: dict[int, _Trial] = {}  # Replaced as a whole, never changed: the view's thread reads it.
        in_terminal = console.is_interactive and console.encoding.startswith("utf")
        self._lines = not quiet and (verbose or not in_terminal)
        self._live: Live | None = None
        if in_terminal and not quiet:
            self._live = Live(console=console, get_renderable=self.view, refresh_per_second=_REFRESHES_A_SECOND)

    def __enter__(self) -> Self:
        """Begins; the live view appears with the first trial, so that downloads before it can show their own."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends; the live view's last state stays."""
        if self._live is not None and self._live.is_started:
            self._live.stop()

    def seed(self, trials: Iterable[Row], epochs: Iterable[Row] = ()) -> None:
        """Takes in what an interrupted run has done: the rows of `trials.csv` and, for the curves, `epochs.csv`."""
        curves: dict[int, dict[int, float | None]] = {}
        for epoch in epochs:
            curves.setdefault(epoch["trial"], {})[epoch["epoch"]] = _number(epoch["valid_accuracy"])
        seeded = {}
        for row in trials:
            curve = curves.get(row["trial"], {})
            seeded[row["trial"]] = _Trial(row, tuple(curve.get(i + 1) for i in range(max(curve, default=0))))
        self._trials = self._trials | seeded
        self._n_before = max(0, self._n_before - sum(t.row["state"] != "running" for t in seeded.values()))

    def note(self, text: str) -> None:
        """Prints what is no event of a trial."""
        self._print("\n".join(_plain(line) for line in text.splitlines()))

    def started(self, row: Row) -> None:
        """Shows that a trial began, or began again."""
        old = self._trials.get(row["trial"], _Trial(row))
        now = self._clock()
        began = now if old.began is None else old.began
        self._set(replace(old, row=row, began=began, epoch_ended=now))
        self._slots = max(self._slots, len(_running(self._trials)))
        names = ("architecture", "width", "optimizer", "learning_rate", "batch_size", "schedule")
        self._line(row, " ".join(["started", *(_text(row.get(f"config/{name}")) for name in names)]))
        if self._live is not None and not self._live.is_started:
            self._live.start()

    def epoch(self, row: Row, result: Mapping[str, Any]) -> None:
        """Shows an epoch of a trial."""
        old = self._trials.get(row["trial"], _Trial(row, began=self._clock()))
        accuracy = _number(result.get("valid_accuracy"))
        before = (*old.curve, *[None] * result["epoch"])[: result["epoch"] - 1]
        seconds = _number(result.get("epoch_seconds")) or 0.0
        self._set(replace(old, row=row, curve=(*before, accuracy), epoch_ended=self._clock(), epoch_seconds=seconds))
        speed = f"{seconds:.1f} s, {_number(result.get('images_per_second')) or 0:,.0f} images/s"
        self._line(row, f"epoch {result['epoch']}  valid {_percent(accuracy)}  {speed}")

    def ended(self, row: Row) -> None:
        """Shows that a trial ended, and the best so far."""
        old = self._trials.get(row["trial"], _Trial(row))
        self._set(replace(old, row=row, ended=self._clock()))
        if row["state"] == "failed":
            self._line(row, f"failed: {_first_line(row)}")
            return
        best = _percent(max((t.accuracy or 0.0 for t in _finished(self._trials)), default=None))
        n_ended = self._n_before + len(self._trials) - len(_running(self._trials))
        done = f"{n_ended}/{self._n_samples} done, best {best}"
        accuracy = _percent(_number(row.get("valid_accuracy")))
        self._line(row, f"{row['state']} after {row.get('epochs')} epochs  valid {accuracy}  ({done})")

    def seconds_left(self) -> float | None:
        """Returns about how long the search will go on; None until two trials of this session have ended.

        A trial to come takes the mean of those that ended, pruned ones included. A running one takes the same, or
        where it has taken more already, all its epochs. (On simulated ASHA searches of 20 to 200 trials this was off
        by 13 to 24 % of the whole duration; counting slot time a trial, as a bar of samples does, by 20 to 40 %.)
        """
        now, trials = self._clock(), self._trials
        seconds = [t.ended - t.began for t in trials.values() if t.ended is not None and t.began is not None]
        if len(seconds) < 2:
            return None
        mean = sum(seconds) / len(seconds)
        running = []
        for trial in _running(trials):
            spent = now - (trial.began if trial.began is not None else now)
            running.append(mean - spent if spent < mean else trial.seconds_to_full_length(now))
        to_come = max(0, self._n_samples - self._n_before - len(trials)) * mean
        left = max([(to_come + sum(running)) / self._slots, *running])
        return left if self._time_budget is None else min(left, max(0.0, self._start + self._time_budget - now))

    def view(self) -> Group:
        """Returns what the live view shows now, no larger than the console."""
        size = self._console.size
        width, height = min(size.width, _MAX_WIDTH), size.height - 1  # A line for the shell, and for notes to pass.
        trials = self._trials
        times = f"elapsed {_clock_text(self._clock() - self._start)}  left {_about(self.seconds_left())}"
        n_by_state = {"earlier": self._n_before} | {
            state: sum(t.row["state"] == state for t in trials.values()) for state in _STATES
        }
        n_by_state["to come"] = max(0, self._n_samples - sum(n_by_state.values()))
        n_ended = sum(n_by_state[state] for state in ("earlier", "complete", "pruned", "failed"))
        lines = _head(f"{n_ended}/{self._n_samples} trials", times, n_by_state, width)
        lines += _sections(trials, width, height - len(lines))
        for line in lines:
            line.no_wrap = True
            line.truncate(width, overflow="ellipsis")
        return Group(*lines[:height])

    def _set(self, trial: _Trial) -> None:
        self._trials = self._trials | {trial.row["trial"]: trial}

    def _line(self, row: Row, text: str) -> None:
        if self._lines:
            minutes, seconds = divmod(int(self._clock() - self._start), 60)
            self._print(f"{minutes:3}:{seconds:02}  trial {row['trial']:>3}  {_plain(text)}")

    def _print(self, text: str) -> None:
        encoding = self._console.encoding
        self._console.print(Text(text.encode(encoding, "replace").decode(encoding)), soft_wrap=True)


def sparkline(values: Sequence[float | None], length: int, width: int, low: float, high: float) -> str:
    """Returns a curve in `width` characters at most: a block an epoch, "·" for those to come, " " for unknown ones.

    Args:
        values: By epoch.
        length: Epochs in all.
        width: Characters; a longer curve is thinned out.
        low: The value of the lowest block, which also stands for anything below.
        high: The value of the highest.
    """
    total = max(length, len(values))
    n_cells = min(width, total)
    cells = ""
    for i in range(n_cells):
        epoch = (i + 1) * total // n_cells - 1
        value = values[epoch] if epoch < len(values) else None
        if value is None:
            cells += "·" if epoch >= len(values) else " "
        else:
            share = (value - low) / (high - low) if high > low else 0.5
            cells += _SPARKS[round(min(1.0, max(0.0, share)) * (len(_SPARKS) - 1))]
    return cells


def _head(title: str, times: str, n_by_state: Mapping[str, int], width: int) -> list[Text]:
    """Returns title and times in a line, a bar with a piece a state, and the counts that explain its colours."""
    times = times if cell_len(title + times) < width else times.replace("elapsed ", "")
    first = Text.assemble((title, "bold"), " " * (width - cell_len(title + times)), times)
    bar, counts, n, total = Text(), [Text()], 0, max(1, sum(n_by_state.values()))
    for state, count in n_by_state.items():
        begin, n = round(width * n / total), n + count
        style = _STATES.get(state, "dim")
        bar.append(("─" if state == "to come" else "━") * (round(width * n / total) - begin), style)
        if count:
            piece = Text.assemble((f"{count}", style), f" {state}")
            if counts[-1] and counts[-1].cell_len + 3 + piece.cell_len > width:
                counts.append(Text())
            counts[-1] = Text("   ").join([counts[-1], piece]) if counts[-1] else piece
    return [first, bar, *counts]


def _sections(trials: Mapping[int, _Trial], width: int, height: int) -> list[Text]:
    """Returns the trials that run, the best and the latest that failed: as many as fit, a blank line before each part."""
    shown = {
        "running": _running(trials),
        "best": sorted(_finished(trials), key=lambda t: (-(t.accuracy or 0), t.row["state"], t.row["trial"]))[:_N_BEST],
        "failed": [t for t in trials.values() if t.row["state"] == "failed"][-_N_FAILED:],
    }
    n_running = len(shown["running"])
    for name, least in _SHRINK:
        while sum(2 + len(part) for part in shown.values() if part) > height and len(shown[name]) > least:
            shown[name] = shown[name][-_N_FAILED:][1:] if name == "failed" else shown[name][:-1]
    hidden = n_running - len(shown["running"])
    if hidden and shown["running"]:
        del shown["running"][-1]
    names, rows = _table([*shown["running"], *shown["best"]], width)
    lines = []
    for name, part in shown.items():
        if not part:
            continue
        lines += [
            Text(),
            Text.assemble((f"{name:7}", "bold " + _STATES.get(name, "green")), names if name != "failed" else ""),
        ]
        names = Text()
        for i, trial in enumerate(part):
            line = Text(f"{trial.row['trial']:>7}", "bold green" if name == "best" and i == 0 else "")
            line.append(f"  {trial.network}  {_first_line(trial.row)}") if name == "failed" else line.append_text(
                rows.pop(0)
            )
            lines.append(line)
        if name == "running" and hidden:
            lines.append(Text(f"{'':7}  +{hidden + 1} more", "dim"))
    return lines

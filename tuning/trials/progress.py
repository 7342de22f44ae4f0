"""What a person watches while a search runs: in a terminal one live view, elsewhere one line an event.

Nothing is decided or recorded here. All events come from one thread; the live view's own thread only reads.
"""

import io
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Self

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.text import Text

from tuning.base import interrupts
from tuning.base.config import network
from tuning.base.errors import counted
from tuning.base.masking import masked
from tuning.base.registries import ACCURACY, Metric
from tuning.base.tables import encodable
from tuning.runs import schema
from tuning.trials.remaining import Timed, seconds_left

Row = Mapping[str, Any]

_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "paused": "blue", "running": "cyan"}
_ENDED = ("complete", "pruned", "failed")
_SPARKS = "▁▂▃▄▅▆▇█"
_POINTS_A_BLOCK = 0.02  # Of merit; a fixed scale, so that a trial that diverged does not flatten the others.
_MAX_WIDTH, _INDENT, _N_BEST, _N_FAILED = 110, len("running"), 5, 2
_UNKNOWN = "–"  # noqa: RUF001
_CELL = ConsoleDimensions(_MAX_WIDTH, 40)
_HTML = '<pre style="white-space: pre; overflow-x: auto; line-height: normal">{code}</pre>'
# What gives way, one after the other, where the terminal is low: a part of the view, and the rows that it keeps.
_SHRINK = [("running", 4), ("failed", 1), ("best", 3), ("running", 2), ("failed", 0), ("best", 0), ("running", 0)]


@dataclass(frozen=True)
class _Trial:
    """A trial as it was last heard of. Times are the clock's; `began` is None where this session has not run it.

    `spent` are the seconds that it had trained in this session when it paused, and `first` its epochs before that.
    """

    row: Row
    curve: tuple[float | None, ...] = ()  # The metric's merit by epoch; None where it is not known.
    began: float | None = None
    ended: float | None = None
    spent: float = 0.0
    first: int = 0
    epoch_ended: float = 0.0

    @property
    def state(self) -> str:
        return "to come" if self.row["state"] == "running" and self.began is None else str(self.row["state"])

    @property
    def length(self) -> int:
        return int(self.row.get("config/epochs") or 0)

    def timed(self, now: float) -> Timed:
        """Returns what is known of its time."""
        epochs, taken = int(self.row["epochs"]), self.spent
        running = self.began is not None and self.row["state"] == "running"
        if self.began is not None:
            taken += (self.epoch_ended if running else self.ended or now) - self.began
        here = epochs - self.first
        known = taken / here if here > 0 and taken > 0 else None
        return Timed(epochs, max(1, self.length, epochs), known, running, now - self.epoch_ended if running else 0.0)

    @property
    def network(self) -> str:
        name = network(_cell(self.row.get("config/architecture")), self.row.get("config/width"))
        return f"{name}-pre" if self.row.get("config/pretrained") else name

    @property
    def error(self) -> str:
        return _plain(masked(next(iter(str(self.row.get("error") or "").strip().splitlines()), "unknown error")))


class _Cell:
    """The live view in a notebook: one output of the cell, replaced at events, at most twice a second."""

    def __init__(self, view: Callable[[], Group]) -> None:
        self._view, self._shown_at = view, 0.0
        self._handle: Any = None

    def start(self) -> None:
        """Begins, where it has not begun."""
        if self._handle is None:
            from IPython.display import display

            self._handle = display(self._picture(), raw=True, display_id=True)

    def refresh(self) -> None:
        """Shows the present state, unless that was done a moment ago."""
        if self._handle is not None and time.monotonic() - self._shown_at > 0.5:
            self.stop()

    def stop(self) -> None:
        """Shows the present state, which stays."""
        if self._handle is not None:
            self._handle.update(self._picture(), raw=True)
            self._shown_at = time.monotonic()

    def _picture(self) -> dict[str, str]:
        """Returns the view as HTML and as plain text."""
        console = Console(file=io.StringIO(), record=True, width=_CELL.width, force_jupyter=False)
        console.print(self._view())
        page = console.export_html(inline_styles=True, clear=False, code_format=_HTML)
        return {"text/html": page, "text/plain": console.export_text()}


class _Console(Console):
    """A console whose reader may go, as `head` does; whatever prints goes on, unseen."""

    def on_broken_pipe(self) -> None:
        """Drops what nobody reads; rich would end the process."""
        interrupts.drop_closed_output()


class Progress:
    """Shows what happens to the trials of a search.

    Args:
        n_samples: Trials that the search will run.
        n_done: Those that have ended already.
        quiet: Print nothing but notes.
        silent: Print not even notes.
        verbose: In a terminal, too, print a line an event, above the live view.
        time_budget: Seconds after which the search ends in any case; None is no limit.
        metric: The run's.
        console: Where to print; None is stdout.
    """

    def __init__(
        self,
        n_samples: int,
        n_done: int = 0,
        quiet: bool = False,
        verbose: bool = False,
        *,
        silent: bool = False,
        time_budget: float | None = None,
        metric: Metric = ACCURACY,
        console: Console | None = None,
    ) -> None:
        self._metric = metric
        if console is None:  # Not even FORCE_COLOR may bring control codes into a file.
            terminal = None if sys.stdout.isatty() else False
            console = _Console(
                file=sys.stdout, highlight=False, force_terminal=terminal, force_jupyter=False, quiet=silent
            )
        quiet = quiet or silent
        self._console, self._start = console, time.monotonic()
        self._n_samples, self._n_before, self._time_budget = n_samples, n_done, time_budget
        self._slots = 1
        self._trials: dict[int, _Trial] = {}  # Replaced as a whole, never changed: the view's thread reads it.
        in_terminal, in_notebook = console.is_interactive and console.encoding.startswith("utf"), _in_notebook()
        self._lines = not quiet and (verbose or not (in_terminal or in_notebook))
        self._live: Live | _Cell | None = None
        if in_notebook and not quiet:
            self._live = _Cell(self.view)
        elif in_terminal and not quiet:
            self._live = Live(console=console, get_renderable=self.view, refresh_per_second=4)

    def __enter__(self) -> Self:
        """Begins; the live view comes with the first trial, so that a download before it can show its own."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends; the last state of the live view stays."""
        if self._live is not None:
            self._live.stop()

    def seed(self, trials: Iterable[Mapping[Any, Any]], epochs: Iterable[Mapping[Any, Any]] = ()) -> None:
        """Takes in the rows of the frames of a run that is resumed; the epochs are for the curves."""
        curves: dict[int, tuple[float | None, ...]] = {}
        for row in epochs:
            curves[row["trial"]] = (*curves.get(row["trial"], ()), self._metric.merit(row[self._metric.column]))
        for row in map(schema.plain, trials):
            self._set(_Trial(row, curves.get(row["trial"], ())))
            self._n_before = max(0, self._n_before - (row["state"] not in schema.MAY_GO_ON))

    def note(self, text: str) -> None:
        """Prints what is no event of a trial."""
        self._print("\n".join(_plain(line) for line in text.splitlines()))

    def started(self, row: Row) -> None:
        """Shows that a trial began, or began again."""
        old, now = self._trials.get(row["trial"], _Trial(row)), time.monotonic()
        trial = replace(old, row=row, began=now if old.began is None else old.began, epoch_ended=now)
        if old.began is None and not old.spent:
            trial = replace(trial, first=int(row["epochs"]))
        self._set(trial)
        self._slots = max(self._slots, len(_in_state(self._trials, "running")))
        names = ("optimizer", "learning_rate", "batch_size", "schedule")
        began = f"goes on after epoch {len(trial.curve)}" if trial.curve else "started"
        self._line(row, " ".join([began, trial.network, *(_cell(row.get(f"config/{name}")) for name in names)]))
        if self._live is not None:
            self._live.start()

    def epoch(self, row: Row, result: Mapping[str, Any]) -> None:
        """Shows an epoch of a trial."""
        old, now = self._trials.get(row["trial"], _Trial(row, began=time.monotonic())), time.monotonic()
        known = (*old.curve, *[None] * result["epoch"])[: result["epoch"] - 1]
        value = result[self._metric.column]
        curve = (*known, None if value is None else self._metric.merit(value))
        self._set(replace(old, row=row, curve=curve, epoch_ended=now))
        speed = f"{result['epoch_seconds']:.1f} s, {result['images_per_second']:,.0f} images/s"
        self._line(row, f"epoch {result['epoch']}  {self._metric.label} {self._said(value)}  {speed}")

    def paused(self, row: Row) -> None:
        """Shows that a trial waits until the scheduler has it go on, or until the search ends."""
        trial, now = self._trials.get(row["trial"], _Trial(row)), time.monotonic()
        spent = trial.spent + (0.0 if trial.began is None else now - trial.began)
        self._set(replace(trial, row={**row, "state": "paused"}, began=None, spent=spent))
        self._line(row, f"paused after {counted(row['epochs'], 'epoch')}")

    def ended(self, row: Row) -> None:
        """Shows that a trial ended, and the best so far."""
        trial = replace(self._trials.get(row["trial"], _Trial(row)), row=row, ended=time.monotonic())
        self._set(trial)
        text = f"failed: {trial.error}"
        if trial.state != "failed":
            n_ended = self._n_before + len(_in_state(self._trials, *_ENDED))
            column = self._metric.column
            best = next((t.row[column] for t in _ranked(self._trials, self._metric)), None)
            valid = f"{self._metric.label} {self._said(row.get(column))}"
            text = f"{trial.state} after {counted(row['epochs'], 'epoch')}  {valid}"
            text += f"  ({n_ended}/{self._n_samples} done, best {self._said(best)})"
        self._line(row, text)

    def seconds_left(self) -> float | None:
        """Returns about how long the search will go on; None until an epoch of this session has ended."""
        now, trials = time.monotonic(), self._trials
        known = _in_state(trials, "running", "paused", *_ENDED)
        n_to_come = max(0, self._n_samples - self._n_before - len(known))
        left = seconds_left([trial.timed(now) for trial in known], n_to_come, self._slots)
        if left is None or self._time_budget is None:
            return left
        return min(left, max(0.0, self._start + self._time_budget - now))

    def view(self) -> Group:
        """Returns what the live view shows now; it leaves a line of the console free and is at most 110 wide."""
        size = _CELL if isinstance(self._live, _Cell) else self._console.size
        trials = self._trials
        width, height = min(size.width, _MAX_WIDTH), max(1, size.height - 1)
        counts = {"earlier": self._n_before, **{state: len(_in_state(trials, state)) for state in _STYLES}}
        counts["to come"] = max(0, self._n_samples - sum(counts.values()))
        bar, legend, n, n_all = Text(), [Text()], 0, max(1, sum(counts.values()))
        for state, count in counts.items():
            style, begin, n = _STYLES.get(state, "bright_black"), round(width * n / n_all), n + count
            bar.append(("─" if state == "to come" else "━") * (round(width * n / n_all) - begin), style)
            if count:
                if legend[-1] and legend[-1].cell_len + len(f"   {count} {state}") > width:
                    legend.append(Text())
                legend[-1].append(f"{'   ' if legend[-1] else ''}{count} {state}", style)
        title = f"{sum(counts[state] for state in ('earlier', *_ENDED))}/{self._n_samples} trials"
        left = f"   left {_about(self.seconds_left())}" if counts["running"] + counts["to come"] else ""
        times = f"elapsed {self._elapsed()}{left}"
        if len(title) + len(times) >= width:
            times = times.removeprefix("elapsed ")
        times = times.rjust(width - len(title))
        lines = [*[Text()] * (height > 20), Text.assemble((title, "bold"), times), bar, *legend]
        lines += _parts(trials, width, height - len(lines), self._metric)
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return Group(*lines[:height])

    def _said(self, value: float | None) -> str:
        return _value(value, self._metric)

    def _elapsed(self) -> timedelta:
        return timedelta(seconds=int(time.monotonic() - self._start))

    def _set(self, trial: _Trial) -> None:
        self._trials = self._trials | {trial.row["trial"]: trial}
        if isinstance(self._live, _Cell):
            self._live.refresh()

    def _line(self, row: Row, text: str) -> None:
        if self._lines:
            self._print(f"{self._elapsed()}  trial {row['trial']:>3}  {text}")

    def _print(self, text: str) -> None:
        text = encodable(masked(text), self._console.encoding)
        self._console.print(Text(text), soft_wrap=self._live is None)


def _in_notebook() -> bool:
    """Returns whether a notebook's kernel runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _parts(trials: Mapping[int, _Trial], width: int, height: int, metric: Metric) -> list[Text]:
    """Returns the trials that run, the best and the last that failed, as many as fit; each part after a blank line."""
    running, failed = _in_state(trials, "running"), _in_state(trials, "failed")
    parts = {"running": running, "best": _ranked(trials, metric)[:_N_BEST], "failed": failed[: -_N_FAILED - 1 : -1]}
    n_running = len(running)
    for name, least in _SHRINK:
        while sum(2 + len(part) for part in parts.values() if part) > height and len(parts[name]) > least:
            parts[name].pop()
    more = 1 < len(running) < n_running and running.pop()  # Whose line says how many are not shown.
    header, *rows = _table([*running, *parts["best"]], width, metric)
    lines = []
    for name, part in parts.items():
        color = _STYLES.get(name, "green")
        if part:
            lines += [Text(), Text.assemble((f"{name:{_INDENT}}", f"bold {color}"), (header, "dim"))]
            header = ""
        for trial in part:
            rest = f"  {trial.network}  {trial.error}" if name == "failed" else rows.pop(0)
            style = "bold" if name == "best" and trial is part[0] else ""
            lines.append(Text(f"{trial.row['trial']:>{_INDENT}}{rest}", style))
            lines[-1].highlight_regex(f"[{_SPARKS}]+", color)
            lines[-1].highlight_regex("·+", "bright_black")
        if name == "running" and more:
            lines.append(Text(f"{'':{_INDENT}}  +{n_running - len(running)} more", "dim"))
    return lines


def _table(trials: Sequence[_Trial], width: int, metric: Metric) -> list[str]:
    """Returns a line of names and one a trial, of the columns that fit; the curve has what is left of the width."""
    config = {"optimizer": "optimizer", "lr": "learning_rate", "schedule": "schedule", "batch": "batch_size"}
    cells = {
        "network": [t.network for t in trials],
        "epoch": [f"{t.row['epochs']}/{t.length or '?'}" for t in trials],
        metric.label: [_value(t.row.get(metric.column), metric) for t in trials],
        "curve": [""] * len(trials),
        **{name: [_cell(t.row.get(f"config/{key}")) for t in trials] for name, key in config.items()},
    }
    names, gap = list(cells)[: 4 if width < 76 else 7 if width < 96 else 8], 1 if width < 60 else 2
    widths = {name: max(map(len, [name, *cells[name]])) for name in names}
    room = width - _INDENT - sum(widths.values()) - gap * len(names) + widths["curve"]
    longest = max((max(t.length, len(t.curve)) for t in trials), default=0)
    widths["curve"] = max(widths["curve"], min(longest, room))
    high = max((merit for t in trials for merit in t.curve if merit is not None), default=1.0)
    cells["curve"] = [sparkline(t.curve, t.length, widths["curve"], high) for t in trials]
    lines = [""] * (1 + len(trials))
    for name in names:
        side = ">" if name in ("epoch", metric.label, "lr", "batch") else "<"
        for i, cell in enumerate([name, *cells[name]]):
            lines[i] += f"{'':{gap}}{cell:{side}{widths[name]}}"
    return lines


def sparkline(values: Sequence[float | None], length: int, width: int, high: float) -> str:
    """Returns a curve with a block an epoch, or at most `width` evenly chosen ones; "·" is an epoch without a value."""
    total, blocks = max(length, len(values)), ""
    for i in range(min(width, total)):
        epoch = (i + 1) * total // min(width, total) - 1
        value = values[epoch] if epoch < len(values) else None
        blocks += "·" if value is None else _SPARKS[max(0, min(7, 7 - round((high - value) / _POINTS_A_BLOCK)))]
    return blocks


def _in_state(trials: Mapping[int, _Trial], *states: str) -> list[_Trial]:
    return [trial for trial in trials.values() if trial.state in states]


def _ranked(trials: Mapping[int, _Trial], metric: Metric) -> list[_Trial]:
    """Returns the trials that ended with a value, the best first, in the order of `results.rank_trials`."""
    known = [t for t in _in_state(trials, *schema.HAVE_RESULTS) if t.row.get(metric.column) is not None]
    return sorted(known, key=lambda t: (-metric.sign * t.row[metric.column], t.state, t.row["trial"]))


def _value(value: float | None, metric: Metric) -> str:
    return _UNKNOWN if value is None else metric.said(value)


def _cell(value: Any, form: str = ".2g") -> str:
    return _UNKNOWN if value is None else format(value, form) if isinstance(value, float) else _plain(str(value))


def _plain(line: str) -> str:
    """Returns the text of a line without colours and other control codes (Ray's errors have some)."""
    return "".join(c if c.isprintable() else " " for c in Text.from_ansi(line).plain)


def _about(seconds: float | None) -> str:
    """Returns a duration as roughly as it is known."""
    if seconds is None:
        return _UNKNOWN
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 59.5:
        return f"~{minutes:.0f} min" if minutes >= 1 else "<1 min"
    return f"~{hours:.0f} h" if hours >= 9.95 else f"~{hours:.1f} h"

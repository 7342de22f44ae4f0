"""The figures of `search_quality.py`, in the house style."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from comparison import GRID, average_ranks, critical_difference, per_task
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator, NullLocator

from tuning.figures import style

# The first colours of the house are for classes side by side; lines need dark ones.
COLOURS = ("#4563de", "#8d1100", "#333333", "#d3430b", "#905c83", "#0b8a6a", "#a88b00", "#639fff", "#520047", "#e6888c")
DASHES = ("-", "--", ":")
BANDS = 2  # as many methods get their quartiles drawn: more would hide each other
REGRETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
TIMES = (0.3, 0.5, 1, 2, 5, 10, 20, 50, 100)


def colours(methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns how each method's line looks."""
    return {
        method: {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i // len(COLOURS) % len(DASHES)]}
        for i, method in enumerate(methods)
    }


def regret(frame: pd.DataFrame, by_cost: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Returns regret against samples and against cost: medians over tasks and seeds, of the first two quartiles too."""
    slots = sorted(frame["slots"].unique())
    figure = Figure(figsize=(5.2 * len(slots), 7.4), layout="constrained")
    axes = figure.subplots(2, len(slots), squeeze=False, sharey=True)
    for column, n_slots in enumerate(slots):
        samples = frame[frame["slots"] == n_slots].pivot_table(
            index=["method", "task", "seed"], columns="samples", values="regret"
        )
        costs = by_cost[by_cost["slots"] == n_slots].set_index(["method", "task", "seed"])[list(GRID)]
        last = frame[frame["slots"] == n_slots].groupby(["method", "task", "seed"])["cost"].max()
        for i, method in enumerate(methods):
            ends = last[method].median()
            shown = [cost for cost in GRID if min(TIMES[0], ends) <= cost <= ends]  # All may have ended before.
            costs_shown = costs.loc[method].loc[:, shown or [GRID[0]]]
            _band(axes[0, column], samples.loc[method], method, methods, i < BANDS)
            _band(axes[1, column], costs_shown, method, methods, i < BANDS)
        axes[0, column].set_title(f"{n_slots} slots", fontsize=style.TITLE)
        axes[0, column].set_xlabel("samples", fontsize=style.LABEL)
        axes[1, column].set_xlabel("time, in full trainings of a typical configuration", fontsize=style.LABEL)
        axes[1, column].set_xscale("log")
        _plain_ticks(axes[1, column].xaxis, TIMES)
    low = min(line.get_ydata().min() for ax in axes.flat for line in ax.lines)
    for ax in axes.flat:
        style.dress(ax)
        ax.set_yscale("log")
        ax.set_ylim(0.8 * low, 1.1)
        _plain_ticks(ax.yaxis, REGRETS)
    for ax in axes[:, 0]:
        ax.set_ylabel("regret (0: best of the table, 1: median)", fontsize=style.LABEL)
    _legend(figure, axes[0, 0], len(methods))
    return figure


def _band(ax: Axes, regrets: pd.DataFrame, method: str, methods: Sequence[str], band: bool) -> None:
    x = regrets.columns.to_numpy(dtype=float)
    low, middle, high = np.quantile(regrets.to_numpy().clip(1e-3), [0.25, 0.5, 0.75], axis=0)
    look = colours(methods)[method]
    ax.plot(x, middle, label=method, lw=1.8, **look)
    if band:
        ax.fill_between(x, low, high, color=look["color"], alpha=0.09, lw=0)
        for edge in (low, high):
            ax.plot(x, edge, color=look["color"], alpha=0.5, lw=0.6)


def _plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    """Puts ticks of a logarithmic axis where they say something, as plain numbers."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def ranks(frame: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Returns average ranks over tasks against samples."""
    slots = sorted(frame["slots"].unique())
    figure = Figure(figsize=(5.2 * len(slots), 4.2), layout="constrained")
    axes = figure.subplots(1, len(slots), squeeze=False, sharey=True)
    for ax, n_slots in zip(axes.flat, slots, strict=True):
        group = frame[frame["slots"] == n_slots]
        shown = range(1, group["samples"].max() + 1)
        found = pd.DataFrame({n: average_ranks(per_task(group, n)) for n in shown})
        for method in methods:
            ax.plot(found.columns, found.loc[method], label=method, lw=1.6, **colours(methods)[method])
        style.dress(ax)
        ax.set_title(f"{n_slots} slots", fontsize=style.TITLE)
        ax.set_xlabel("samples", fontsize=style.LABEL)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("average rank over tasks", fontsize=style.LABEL)
    axes[0, 0].yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, axes[0, 0], len(methods))
    return figure


def critical_differences(frame: pd.DataFrame, methods: Sequence[str], read_at: Sequence[int]) -> Figure:
    """Returns critical-difference diagrams (Demsar 2006), a row a number of samples, a column a number of slots."""
    slots = sorted(frame["slots"].unique())
    height = 0.9 + 0.2 * len(methods)
    figure = Figure(figsize=(6.4 * len(slots), height * len(read_at)), layout="constrained")
    axes = figure.subplots(len(read_at), len(slots), squeeze=False)
    for row, samples in enumerate(read_at):
        for column, n_slots in enumerate(slots):
            regrets = per_task(frame[frame["slots"] == n_slots], samples)[list(methods)]
            axes[row, column].set_title(
                f"{n_slots} slots, {samples} samples, {len(regrets)} tasks", fontsize=style.TITLE
            )
            _diagram(axes[row, column], regrets)
    return figure


def _diagram(ax: Axes, regrets: pd.DataFrame) -> None:
    """Draws average ranks on an axis, best at the left; bars join methods that the test cannot tell apart."""
    found = average_ranks(regrets).sort_values()
    difference = critical_difference(len(found), len(regrets))
    n, half = len(found), (len(found) + 1) // 2
    bars = cliques(found.to_numpy(), difference)
    below = 0.5 + 0.45 * len(bars)
    ax.set_xlim(0.2 - 0.42 * n, n + 0.8 + 0.42 * n)
    ax.set_ylim(-(below + half + 0.2), 2.0)
    ax.set_axis_off()
    ax.plot([1, n], [0, 0], color=style.INK, lw=1)
    for rank in range(1, n + 1):
        ax.plot([rank, rank], [0, 0.2], color=style.INK, lw=1)
        ax.text(rank, 0.3, str(rank), ha="center", va="bottom", fontsize=style.TICK)
    ax.plot([1, 1 + difference], [1.45, 1.45], color=style.INK, lw=1.5, marker="|")
    ax.text(1 + difference + 0.1, 1.45, f"critical difference {difference:.2f}", va="center", fontsize=style.TICK)
    for i, (low, high) in enumerate(bars):
        y = -0.4 - 0.45 * i
        ax.plot([low - 0.04, high + 0.04], [y, y], color=style.INK, lw=3, solid_capstyle="butt")
    for i, (method, rank) in enumerate(found.items()):
        left = i < half
        y = -(below + (i if left else n - 1 - i) + 0.3)
        edge = 0.5 if left else n + 0.5
        ax.plot([rank, rank, edge], [0, y, y], color=style.INK, lw=0.8)
        text = f"{method}  {rank:.2f}" if left else f"{rank:.2f}  {method}"
        ax.text(edge + (-0.08 if left else 0.08), y, text, ha="right" if left else "left", va="center", fontsize=9)


def cliques(ordered: "np.ndarray[tuple[int], np.dtype[np.float64]]", difference: float) -> list[tuple[float, float]]:
    """Returns first and last rank of each largest set of methods that lie within the critical difference."""
    found: list[tuple[float, float]] = []
    for low in ordered:
        high = ordered[ordered <= low + difference].max()
        if high > low and (not found or high > found[-1][1]):
            found.append((low, high))
    return found


def _legend(figure: Figure, ax: Axes, n: int) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(n, 6), frameon=False, fontsize=style.LABEL)

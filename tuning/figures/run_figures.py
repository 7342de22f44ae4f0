"""Figures of a run from its frames: each function returns a matplotlib `Figure`.

What must never live here: the numbers themselves (`analysis`, `importances`), the reading of runs (`results`), and how
a figure looks and is written (`style`). A frame with no rows gives a figure that says so.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from tuning.base.numerals import apart, rounded
from tuning.base.registries import ACCURACY, OBJECTIVES, Metric
from tuning.figures.style import (
    BEST,
    FAINT,
    INK,
    LABEL,
    STATE_COLOURS,
    TICK,
    Apart,
    accuracy_limits,
    class_style,
    dress,
    epoch_axis,
    legend_above,
    legend_name,
    nothing,
    plain,
    said,
    score_axis,
    score_limits,
    share_axis,
    single,
)
from tuning.runs import schema
from tuning.runs.analysis import active, varying

LOG_SCALED = ("learning_rate", "weight_decay")
MISSING_HEIGHT = -0.09  # where the parallel coordinates put a value that their axis cannot show


def best_so_far(frame: pd.DataFrame, metric: Metric = ACCURACY) -> Figure:
    """Returns each finished trial as a dot and the best value so far as a step line, against minutes.

    The dot of a trial that was stopped early is hollow. The axis leaves out trials far worse than the others; a
    triangle on its edge stands for each of them.

    Args:
        frame: trial, state, ended_seconds, the metric's column and best, from `analysis.best_so_far`.
        metric: The run's.
    """
    figure, ax = single(7.0, 4.2)
    if frame.empty:
        return nothing(figure, ax, "No trial has finished yet.")
    minutes, values = frame["ended_seconds"] / 60, frame[metric.column]
    low, high = score_limits(values, metric)
    edge, side, triangle = (low, "below", "v") if metric.greater_is_better else (high, "above", "^")
    shown = metric.sign * values >= metric.sign * edge
    ax.step(minutes, frame["best"], where="post", color=INK, lw=1.8, label="best so far")
    for state, inside in (("complete", STATE_COLOURS["complete"]), ("pruned", "none"), ("paused", FAINT)):
        chosen = shown & (frame["state"] == state)
        if chosen.any():
            x, y, rim = minutes[chosen], values[chosen], STATE_COLOURS["complete"]
            ax.scatter(x, y, s=26, facecolors=inside, edgecolors=rim, lw=1.2, zorder=3, label=f"a {state} trial")
    if not shown.all():
        floor = np.full(int((~shown).sum()), edge)
        label = f"a trial {side} the axis"
        ax.scatter(minutes[~shown], floor, s=34, marker=triangle, color=FAINT, clip_on=False, label=label)
    last = frame.iloc[int((metric.sign * values).argmax())]
    text = f"trial {last['trial']:.0f}: {said(metric, last['best'])}"
    x = last["ended_seconds"] / 60
    left = x < (minutes.min() + minutes.max()) / 2
    align, shift = ("left", 4) if left else ("right", -4)
    up = 7 if metric.greater_is_better else -14
    ax.annotate(text, (x, last["best"]), (shift, up), textcoords="offset points", ha=align, fontsize=LABEL, color=BEST)
    ax.set_ylim(low, high)
    ax.set_xlim(left=0)
    score_axis(ax, metric)
    ax.set_xlabel("minutes since the search began", fontsize=LABEL)
    legend_above(ax, ncols=4)
    return figure


def best_so_far_of(curves: pd.DataFrame, metric: Metric = ACCURACY) -> Figure:
    """Returns the best value so far of several runs as step lines against their cost, a marker at the end of each.

    A dotted line stands at the cost that all of them reached.

    Args:
        curves: run, slot_minutes and best, from `compare.curves`.
        metric: What they are compared by.
    """
    figure, ax = single(7.0, 4.6)
    known = curves[curves["best"].notna()]
    best = "max" if metric.greater_is_better else "min"
    if known.empty:
        return nothing(figure, ax, "No epoch has finished yet.")
    for number, (name, curve) in enumerate(known.groupby("run", sort=False)):
        colour, marker = class_style(number)
        label = legend_name(f"{name}: {said(metric, curve['best'].agg(best))}")
        x, y = curve["slot_minutes"], curve["best"]
        ax.step(x, y, where="post", color=colour, lw=1.8, marker=marker, ms=7, markevery=[-1], label=label)
    common = float(curves.groupby("run")["slot_minutes"].max().min())
    ax.axvline(common, color=INK, lw=1.0, ls=":", zorder=1, label=f"equal cost: {rounded(common)} slot minutes")
    # Where a run ended is to be seen of each, however poor.
    ends = metric.sign * known.groupby("run")["best"].agg(best)
    ax.set_ylim(*score_limits(known["best"], metric, least=metric.sign * float(ends.min())))
    ax.set_xlim(left=0)
    score_axis(ax, metric, f"best validation {metric.title} so far")
    ax.set_xlabel("slot minutes (training time, summed over the trials)", fontsize=LABEL)
    ax.legend(loc=_corner(metric), fontsize=TICK, framealpha=0.9, edgecolor="none")
    return figure


def _corner(metric: Metric) -> Literal["lower right", "upper right"]:
    """Returns where curves that get better leave room for a legend."""
    return "lower right" if metric.greater_is_better else "upper right"


def pareto(trials: pd.DataFrame, minimized: str, metric: Metric = ACCURACY) -> Figure:
    """Returns the metric against what was minimized beside it: a dot a complete trial, and the front as a step line.

    Args:
        trials: A run's trials, with `pareto`.
        minimized: A name in `OBJECTIVES`.
        metric: The run's.
    """
    figure, ax = single(7.0, 4.6)
    done = trials[(trials["state"] == "complete") & trials[minimized].notna()]
    if done.empty:
        return nothing(figure, ax, "No trial is complete yet.")
    front = done[done["pareto"]].sort_values(minimized)
    ax.set_xscale("log")
    x, y = done[minimized].astype(float), done[metric.column]
    ax.scatter(x, y, s=26, color=STATE_COLOURS["complete"], alpha=0.8, lw=0, label="a trial", zorder=3)
    x, y = front[minimized].astype(float), front[metric.column]
    ax.step(x, y, where="post", color=INK, lw=1.8, marker="o", ms=6, label="no trial is better in both", zorder=4)
    for trial, at_x, at_y in zip(front["trial"], x, y, strict=True):
        ax.annotate(f"{trial}", (at_x, at_y), (5, -11), textcoords="offset points", fontsize=TICK, color=BEST)
    score_axis(ax, metric)
    ax.set_xlabel(OBJECTIVES[minimized].summary, fontsize=LABEL)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(Apart())
    ax.xaxis.set_minor_formatter("")
    legend_above(ax, ncols=2)
    return figure


def learning_curves(epochs: pd.DataFrame, trials: pd.DataFrame, metric: Metric = ACCURACY) -> Figure:
    """Returns the metric on the valid split by epoch, a line a trial in the colour of its state, the best one on top.

    Args:
        epochs: A run's epochs.
        trials: The same run's trials.
        metric: The run's.
    """
    figure, ax = single(7.0, 4.6)
    column, top = metric.column, "max" if metric.greater_is_better else "min"
    rows = epochs[epochs[column].notna()].sort_values(["trial", "epoch"])
    if rows.empty:
        return nothing(figure, ax, "No epoch has finished yet.")
    states = dict(zip(trials["trial"], trials["state"], strict=True))
    finished = trials[trials["state"].isin(schema.HAVE_RESULTS) & trials[column].notna()]
    best = None if finished.empty else int(finished["trial"].iloc[int((metric.sign * finished[column]).argmax())])
    n_trials = rows["trial"].nunique()
    for number, curve in rows.groupby("trial"):
        state = states.get(number, "running")
        marker = "o" if len(curve) == 1 else ""
        colour, width, layer = (BEST, 2.4, 4) if number == best else (STATE_COLOURS[state], 1.2, 2)
        alpha = 1.0 if number == best else 0.85 if n_trials <= 30 else 0.5
        x, y = curve["epoch"], curve[column]
        ax.plot(x, y, marker=marker, ms=4, color=colour, lw=width, alpha=alpha, zorder=layer)
    handles = [
        Line2D([], [], color=colour, lw=2, label=f"{state} ({count})")
        for state, colour in STATE_COLOURS.items()
        if (count := sum(states.get(number, "running") == state for number in rows["trial"].unique()))
    ]
    if best is not None and (rows["trial"] == best).any():
        value = rows.loc[rows["trial"] == best, column].agg(top)
        text = f"best: trial {best}, {said(metric, value)}"
        handles.insert(0, Line2D([], [], color=BEST, lw=2.4, label=text))
    low, high = score_limits(rows[column], metric, reach=4.0)
    ax.set_ylim(low, high)
    edge, side = (low, "below") if metric.greater_is_better else (high, "above")
    reached = rows.groupby("trial")[column].agg(top)
    if hidden := int((metric.sign * reached < metric.sign * edge).sum()):
        handles.append(Line2D([], [], ls="none", label=f"{side} the axis: {hidden}"))
    score_axis(ax, metric)
    epoch_axis(ax)
    ax.legend(handles=handles, loc=_corner(metric), fontsize=TICK, framealpha=0.9, edgecolor="none")
    return figure


def parallel_coordinates(trials: pd.DataFrame, metric: Metric = ACCURACY) -> Figure:
    """Returns a line a trial through its hyperparameters (those that vary), the darker the better.

    `learning_rate` and `weight_decay` are on a log scale. A missing value, or one that does nothing in its trial, is
    drawn below its axis, and so is a 0 on a log scale; a trial without a value is grey.

    Args:
        trials: A run's trials; the columns config/<name> are its hyperparameters.
        metric: The run's.
    """
    trials = active(trials)
    columns = varying(trials)
    figure, ax = single(max(6.0, 1.15 * len(columns) + 2.2), 4.6)
    if not columns:
        return nothing(figure, ax, "No hyperparameter varies yet.")
    heights = np.column_stack([_draw_coordinate(ax, x, trials[name]) for x, name in enumerate(columns)])
    values = trials[metric.column].to_numpy(dtype=float, na_value=np.nan)
    known = np.isfinite(values)
    segments = [np.column_stack([np.arange(len(columns)), row]) for row in heights]
    if len(columns) == 1:  # a line needs two ends
        segments = [np.array([[-0.12, row[0]], [0.12, row[0]]]) for row in heights]
    grey = [segments[i] for i in np.flatnonzero(~known)]
    ax.add_collection(LineCollection(grey, colors=FAINT, linewidths=1.0, zorder=1))
    if known.any():
        low, high = score_limits(pd.Series(values[known]), metric, reach=2.5)
        if metric.greater_is_better:
            high = max(float(values[known].max()), low + 1e-9)
        else:
            low = min(float(values[known].min()), high - 1e-9)
        norm = Normalize(low, high)
        order = [i for i in np.argsort(metric.sign * values, kind="stable") if known[i]]
        ramp = "viridis_r" if metric.greater_is_better else "viridis"
        ends = (0.15, 1.0) if metric.greater_is_better else (0.0, 0.85)
        shades = LinearSegmentedColormap.from_list("values", colormaps[ramp](np.linspace(*ends, 64)))
        colours = shades(norm(values[order]))  # The palest ones cannot be seen as thin lines.
        widths = 0.7 + 1.8 * np.linspace(0, 1, len(order)) ** 3  # the best stand out
        ax.add_collection(
            LineCollection([segments[i] for i in order], colors=colours, linewidths=widths, alpha=0.85, zorder=2)
        )
        extend = "min" if values[known].min() < low else "max" if values[known].max() > high else "neither"
        bar = figure.colorbar(ScalarMappable(norm, shades), ax=ax, pad=0.02, aspect=30, extend=extend)
        if metric.in_per_cent:
            share_axis(bar.ax.yaxis, 1)
        bar.ax.tick_params(labelsize=TICK)
        bar.set_label(f"validation {metric.title}", fontsize=LABEL)
    ax.set_xlim(-0.6, len(columns) - 0.4)
    ax.set_ylim(-0.13 if (heights < 0).any() else -0.04, 1.04)
    ax.set_yticks([])
    names = [name.removeprefix("config/").replace("_", "\n") for name in columns]
    ax.set_xticks(range(len(columns)), names, fontsize=LABEL, color=INK)
    ax.tick_params(axis="x", length=0, pad=4)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return figure


def importances(frame: pd.DataFrame) -> Figure:
    """Returns the importance of each hyperparameter as a mark a method on its interval, the largest mean on top.

    Args:
        frame: method, parameter, importance, low and high, from `importances.assess`.
    """
    figure, ax = single(6.8, 1.6 + 0.36 * max(3, frame["parameter"].nunique()))
    if frame.empty:
        return nothing(figure, ax, "Too few finished trials to tell what matters.")
    means = frame.groupby("parameter")["importance"].mean().sort_values(ascending=False, kind="stable")
    place = {name: row for row, name in enumerate(means.index)}
    methods = list(frame["method"].unique())
    for number, method in enumerate(methods):
        rows = frame[frame["method"] == method]
        colour, marker = class_style(2 * number)
        y = rows["parameter"].map(place) + 0.26 * (number - (len(methods) - 1) / 2)
        ax.hlines(y, rows["low"], rows["high"], color=colour, lw=1.6, alpha=0.55)
        ax.plot(rows["importance"], y, ls="none", marker=marker, ms=6, color=colour, label=method)
    ax.set_yticks(range(len(place)), [plain(str(name)) for name in place])
    ax.set_ylim(len(place) - 0.5, -0.5)
    ax.set_xlim(left=-0.01)
    share_axis(ax.xaxis)
    ax.set_xlabel("importance (share of the method's sum; line: 95 % interval over trials)", fontsize=LABEL)
    ax.tick_params(axis="y", length=0, labelsize=LABEL)
    ax.spines["left"].set_visible(False)
    legend_above(ax, ncols=3)
    return figure


def learning_curve(epochs: pd.DataFrame, metric: Metric = ACCURACY) -> Figure:
    """Returns one model's loss and accuracy (train and valid) and, below them, its learning rate, by epoch.

    Train is measured on augmented images, against smoothed labels and without EMA, so valid may be better.
    The epoch of the best value of the metric is marked, and where that is neither loss nor accuracy, it is drawn among
    the accuracies.

    Args:
        epochs: The epochs of a single trial or of the final model.
        metric: What the best epoch is best in.
    """
    figure = Figure(figsize=(7.0, 6.4), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 1.3))
    loss, accuracy, rate = panels
    for ax in panels:
        dress(ax)
    if epochs.empty:
        for ax in (loss, rate):
            ax.set_visible(False)
        return nothing(figure, accuracy, "No epoch has finished yet.")
    rows = epochs.sort_values("epoch")
    marker = "o" if len(rows) <= 30 else ""
    for ax, what in ((loss, "loss"), (accuracy, "accuracy")):
        for split, colour, label in (
            ("train", STATE_COLOURS["pruned"], "train (augmented)"),
            ("valid", STATE_COLOURS["complete"], "valid"),
        ):
            ax.plot(rows["epoch"], rows[f"{split}_{what}"], color=colour, lw=1.8, marker=marker, ms=3.5, label=label)
    rate.plot(rows["epoch"], rows["lr"], color=INK, lw=1.0, marker="o" if len(rows) == 1 else "", ms=3)
    own = [rows[metric.column]] if metric is not ACCURACY and metric.in_per_cent else []
    for values in own:
        accuracy.plot(rows["epoch"], values, color=BEST, lw=1.2, marker=marker, ms=3, label=metric.label)
    if rows[metric.column].notna().any():
        # Of equal ones that of the lower loss, as in training.
        ranked = rows.assign(worse=-metric.sign * rows[metric.column])
        best = ranked.sort_values(["worse", "valid_loss"], kind="stable").iloc[0]
        label = f"best epoch {best['epoch']:.0f}: {said(metric, best[metric.column])}"
        for ax in panels:
            ax.axvline(best["epoch"], color=BEST, lw=1.0, ls="--", zorder=1, label=label)
    both = pd.concat([rows["train_accuracy"], rows["valid_accuracy"], *own])
    if both.notna().any():
        accuracy.set_ylim(*accuracy_limits(both, reach=10.0))
    score_axis(accuracy, ACCURACY, "accuracy")
    loss.set_ylabel("loss", fontsize=LABEL)
    legend_above(loss, *accuracy.get_legend_handles_labels(), ncols=3)
    rate.set_ylabel("learning\nrate", fontsize=LABEL)
    rate.set_ylim(0, 1.15 * float(rows["lr"].max()))
    rate.yaxis.set_major_locator(MaxNLocator(2))
    epoch_axis(rate)
    figure.align_ylabels(panels)
    return figure


def coordinate(values: "pd.Series[Any]") -> tuple[npt.NDArray[np.float64], list[tuple[float, str]]]:
    """Returns the height of each value on an axis of parallel coordinates, float64 (N,), and the ticks of the axis.

    Heights are in [0, 1], or `MISSING_HEIGHT` for a value that the axis cannot show. A tick is a height and a text.
    """
    below = "none"
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        log = str(values.name).removeprefix("config/") in LOG_SCALED
        if log and (numbers == 0).any():
            below, numbers = "0", np.where(numbers == 0, np.nan, numbers)
        heights, ticks = _scale(numbers, log)
    else:
        names = sorted(values.dropna().astype("str").unique(), key=lambda name: (len(name), name))  # resnet8, resnet14
        ticks = [((i + 0.5) / len(names), name) for i, name in enumerate(names)]
        place = {name: height for height, name in ticks}
        heights = np.array([np.nan if pd.isna(value) else place[str(value)] for value in values])
    if np.isnan(heights).any():
        ticks.append((MISSING_HEIGHT, below))
    return np.where(np.isnan(heights), MISSING_HEIGHT, heights), ticks


def _draw_coordinate(ax: Axes, x: int, values: "pd.Series[Any]") -> npt.NDArray[np.float64]:
    """Draws one axis of the parallel coordinates with its ticks and returns the height of each trial on it, (N,)."""
    heights, ticks = coordinate(values)
    ax.plot([x, x], [0, 1], color=INK, lw=0.9, zorder=3)
    halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    for height, label in ticks:
        ax.plot([x - 0.03, x + 0.03], [height, height], color=INK, lw=0.9, zorder=3)
        ax.text(x - 0.06, height, plain(label), ha="right", va="center", fontsize=TICK, color=INK, bbox=halo, zorder=5)
    return heights


def _scale(numbers: npt.NDArray[np.float64], log: bool) -> tuple[npt.NDArray[np.float64], list[tuple[float, str]]]:
    """Returns the numbers' heights in [0, 1] (NaN stays) and the ticks of their axis: height and text."""
    present = np.unique(numbers[~np.isnan(numbers)])
    if present.size < 2:
        return np.where(np.isnan(numbers), np.nan, 0.5), [(0.5, rounded(number)) for number in present]
    ends = np.log10(present[[0, -1]]) if log else present[[0, -1]]

    def height(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(((np.log10(value) if log else value) - ends[0]) / (ends[1] - ends[0]))

    decades = log and ends[1] - ends[0] >= 1
    locator = LogLocator(numticks=6) if decades else MaxNLocator(5, steps=[1, 2, 5, 10])
    levels = present if present.size <= 5 else np.asarray(locator.tick_values(present[0], present[-1]))
    levels = levels[(levels >= present[0]) & (levels <= present[-1])]
    shown: dict[float, float] = {}
    for at, level in zip(height(levels).tolist(), levels.tolist(), strict=True):
        if not shown or at - max(shown) > 0.07:  # else the texts overlap
            shown[at] = level
    return height(numbers), list(zip(shown, apart(shown.values()), strict=True))

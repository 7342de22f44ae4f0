"""The interactive figures of a run on its page: each function returns a Plotly `Figure` from frames.

`model_charts` has those of the final model. Colours are names that the page's style sheet gives a value in light and in
dark (`var(--ink)`). Plotly reads texts as HTML: whatever comes from a file goes through `as_text`. The numbers are
`analysis`', the files and the page `report`'s.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tuning.base.numerals import rounded
from tuning.base.registries import ACCURACY, OBJECTIVES, Metric
from tuning.figures.run_figures import coordinate
from tuning.figures.style import score_limits
from tuning.runs.analysis import varying

INK, MUTED, GRID, ACCENT, SECOND = (f"var(--{name})" for name in ("ink", "muted", "grid", "complete", "pruned"))
UNSEEN = "\u200b\u200c\u200d\u2060"  # Letters without width.
RAMP = [[i / 4, f"var(--ramp-{i})"] for i in range(5)]


def as_text(value: object) -> str:
    """Returns a text that Plotly, which reads HTML, shows as it is; it does not know the entity of a quote."""
    return escape(str(value), quote=False)


def described(trials: pd.DataFrame) -> dict[int, str]:
    """Returns trial -> the hyperparameters in which it may differ from others, as escaped lines for a hover text."""
    names, texts = varying(trials), {}
    labels = [name.removeprefix("config/").replace("_", " ") for name in names]
    for trial, *values in trials[["trial", *names]].itertuples(index=False, name=None):
        known = [
            f"{label} {rounded(value) if isinstance(value, float) else value}"
            for label, value in zip(labels, values, strict=True)
            if pd.notna(value)
        ]
        lines = [", ".join(known[i : i + 3]) for i in range(0, len(known), 3)]
        texts[int(trial)] = "<br>".join(as_text(line) for line in lines)
    return texts


def share_of(metric: Metric, axes: str) -> str:
    """Returns the axes that are in per cent, of those that have a metric's values."""
    return axes if metric.in_per_cent else ""


def form(metric: Metric) -> str:
    """Returns how a hover text writes a metric's value, as Plotly has it."""
    return ".2%" if metric.in_per_cent else ".4f"


def best_so_far(frame: pd.DataFrame, trials: pd.DataFrame, metric: Metric = ACCURACY) -> go.Figure:
    """Returns each finished trial as a dot, hollow if it was stopped, and the best so far as a step line, by minutes.

    Args:
        frame: From `analysis.best_so_far`.
        trials: A run's trials, which say what each dot is.
        metric: The run's.
    """
    texts = described(trials)
    dots, marker = [], {"color": ACCENT, "size": 8, "opacity": 0.85, "line": {"width": 1.4, "color": ACCENT}}
    for state, symbol in (("complete", "circle"), ("pruned", "circle-open"), ("paused", "circle-open-dot")):
        chosen = frame[frame["state"] == state]
        dots.append(
            go.Scatter(
                x=chosen["ended_seconds"] / 60,
                y=chosen[metric.column],
                text=[f"<b>trial {trial}</b> ({state})<br>{texts[trial]}" for trial in chosen["trial"]],
                hovertemplate=f"%{{text}}<br>%{{y:{form(metric)}}} after %{{x:.1f}} minutes<extra></extra>",
                mode="markers",
                marker=marker | {"symbol": symbol},
                name=f"a {state} trial",
                visible=len(chosen) > 0,
            )
        )
    steps = {"color": INK, "width": 2, "shape": "hv"}
    minutes = frame["ended_seconds"] / 60
    line = go.Scatter(x=minutes, y=frame["best"], mode="lines", line=steps, name="best so far", hoverinfo="skip")
    limits, y = score_limits(frame[metric.column], metric), f"validation {metric.title}"
    share = share_of(metric, "y")
    return figure_of([line, *dots], x="minutes since the search began", y=y, share=share, limits=limits)


def learning_curves(
    epochs: pd.DataFrame, trials: pd.DataFrame, best: int | None, metric: Metric = ACCURACY
) -> go.Figure:
    """Returns the metric by epoch, a line a trial in the colour of its state, the best one on top."""
    texts, states = described(trials), dict(zip(trials["trial"], trials["state"], strict=True))
    rows = epochs[epochs[metric.column].notna() & epochs["trial"].isin(states)].sort_values(["trial", "epoch"])
    curves, seen = [], set()
    for trial, curve in sorted(rows.groupby("trial"), key=lambda item: item[0] == best):
        group = "best" if trial == best else states[trial]
        curves.append(
            go.Scatter(
                x=curve["epoch"],
                y=curve[metric.column],
                meta=f"<b>trial {trial}</b> ({as_text(states[trial])})<br>{texts[int(str(trial))]}",
                hovertemplate=f"%{{meta}}<br>epoch %{{x}}: %{{y:{form(metric)}}}<extra></extra>",
                mode="lines+markers",
                marker={"size": 6 if len(curve) == 1 else 4},
                line={"color": INK if group == "best" else f"var(--{group})", "width": 3 if group == "best" else 1.4},
                opacity=1 if group == "best" else 0.8,
                name=f"best: trial {best}" if group == "best" else str(group),
                legendgroup=str(group),
                showlegend=group not in seen,
                legendrank=1 if group == "best" else 1000,
            )
        )
        seen.add(group)
    limits, y = score_limits(rows[metric.column], metric, reach=4.0), f"validation {metric.title}"
    figure = figure_of(curves, x="epoch", y=y, share=share_of(metric, "y"), limits=limits, height=440)
    return figure.update_xaxes(tickformat="d", dtick=math.ceil(rows["epoch"].max() / 12))


def parallel_coordinates(trials: pd.DataFrame, metric: Metric = ACCURACY) -> go.Figure:
    """Returns a line a trial through the hyperparameters that vary to its value; a range of an axis can be brushed.

    A value that its axis cannot show (missing, or a 0 on a log scale) is drawn below it.
    """
    known = trials[np.isfinite(trials[metric.column])]
    values = known[metric.column].to_numpy(dtype=float)
    dimensions = []
    for name in varying(known):
        heights, ticks = coordinate(known[name])
        # On an axis with ticks of its own, a brush catches ticks: so each value is one, of a text that nobody sees. The
        # texts must differ.
        texts = {height: _unseen(i) for i, height in enumerate(heights, start=1)} | dict(ticks)
        dimensions.append(
            {
                "label": "<br>".join(as_text(word) for word in name.removeprefix("config/").split("_")),
                "values": heights,
                "range": [min(0.0, heights.min()), 1],
                "tickvals": sorted(texts),
                "ticktext": [texts[height] for height in sorted(texts)],
            }
        )
    tickformat = ".1%" if metric.in_per_cent else ".3f"
    dimensions.append({"label": f"valid<br>{metric.title}", "values": values, "tickformat": tickformat})
    low, high = score_limits(known[metric.column], metric, reach=2.5)
    if metric.greater_is_better:
        line = {"color": values, "colorscale": RAMP, "cmin": low, "cmax": max(values.max(), low + 1e-9)}
    else:
        shades = {"colorscale": RAMP, "reversescale": True}
        line = {"color": values, **shades, "cmin": min(values.min(), high - 1e-9), "cmax": high}
    fonts = {"labelfont": font(12, INK), "tickfont": font(11), "rangefont": {"size": 1, "color": "rgba(0,0,0,0)"}}
    lines = go.Parcoords(dimensions=dimensions, line=line, unselected={"line": {"opacity": 0.06}}, **fonts)
    return figure_of([lines], height=420, margin={"l": 64, "r": 44, "t": 64, "b": 24})


def _unseen(number: int) -> str:
    """Returns a text of letters without width that no other number has; it is as long as the number to base 4."""
    return (_unseen(number // len(UNSEEN)) if number >= len(UNSEEN) else "") + UNSEEN[number % len(UNSEEN)]


def importances(frame: pd.DataFrame) -> go.Figure:
    """Returns the importance of each hyperparameter as a bar, by method and with its interval where the frame has them.

    Args:
        frame: parameter and importance, and perhaps method, low and high.
    """
    bars = []
    methods = frame.groupby("method", sort=False) if "method" in frame else [("importance", frame)]
    for (method, rows), colour in zip(methods, (ACCENT, SECOND, MUTED), strict=False):
        value = rows["importance"]
        error = interval(value, rows["low"], rows["high"], color=INK, width=3) if "low" in rows else None
        names = [as_text(str(name).replace("_", " ")) for name in rows["parameter"]]
        hover = "%{y}: %{x:.1%}<extra></extra>"
        name = as_text(method)
        bar = go.Bar(x=value, y=names, orientation="h", marker={"color": colour}, error_x=error, name=name)
        bars.append(bar.update(hovertemplate=hover, showlegend="method" in frame))
    height = 120 + 34 * frame["parameter"].nunique()
    figure = figure_of(bars, x="share of the importance", share="x", height=height, hovermode="closest")
    order = {"autorange": "reversed", "showgrid": False, "type": "category", "ticklabelstandoff": 6}
    return figure.update_yaxes(**order).update_layout(bargap=0.35, bargroupgap=0.1)


def pareto(trials: pd.DataFrame, goal: str, metric: Metric = ACCURACY) -> go.Figure:
    """Returns the complete trials by the metric and a second goal, which is to be small, and the front of them.

    Args:
        trials: A run's trials, with a column `pareto` that is True on the front.
        goal: A name in `OBJECTIVES`.
        metric: The run's.
    """
    texts, done = described(trials), trials["state"] == "complete"
    known = trials[done & trials[metric.column].notna() & trials[goal].notna()]
    front = known["pareto"].fillna(False).astype("bool")
    marks = []
    for name, rows, mode, colour in (
        ("dominated", known[~front], "markers", MUTED),
        ("Pareto front", known[front].sort_values(goal), "lines+markers", ACCENT),
    ):
        marks.append(
            go.Scatter(
                x=rows[goal],
                y=rows[metric.column],
                text=[f"<b>trial {trial}</b><br>{texts[trial]}" for trial in rows["trial"]],
                hovertemplate=f"%{{text}}<br>%{{y:{form(metric)}}} at %{{x:,}}<extra></extra>",
                mode=mode,
                marker={"size": 8},
                line={"color": colour, "shape": "hv"},
                name=name,
            )
        )
    y = f"validation {metric.title}"
    figure = figure_of(marks, x=OBJECTIVES[goal].summary, y=y, share=share_of(metric, "y"))
    wide = known[goal].max() >= 10 * known[goal].min()
    return figure.update_xaxes(type="log", **({"dtick": "D2"} if wide else {}))


def figure_of(
    traces: Sequence[Any],
    *,
    x: str = "",
    y: str = "",
    share: str = "",
    limits: tuple[float, float] | None = None,
    **layout: Any,
) -> go.Figure:
    """Returns the traces in the house style; `share` names the axes in per cent, `limits` are the y axis'."""
    style = {
        "template": go.layout.Template(),
        "height": 380,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": font(12),
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "var(--panel)", "bordercolor": GRID, "font": font(12, INK), "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": font(12)},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GRID, "activecolor": MUTED},
        "uirevision": 1,
        "xaxis": axis(x, "x" in share),
        "yaxis": axis(y, "y" in share) | ({} if limits is None else {"range": limits}),
    }
    return go.Figure(traces, style | layout)


def interval(value: "pd.Series[Any]", low: "pd.Series[Any]", high: "pd.Series[Any]", **look: Any) -> dict[str, Any]:
    """Returns the error bars from `low` to `high` about some values."""
    return {"type": "data", "array": high - value, "arrayminus": value - low, "thickness": 1.2} | look


def axis(title: str, share: bool = False) -> dict[str, Any]:
    """Returns an axis in the house style; `share` has it in per cent."""
    return {
        "title": {"text": title, "font": font(12), "standoff": 10},
        "tickformat": ".1~%" if share else "",
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
    }


def font(size: int, colour: str = MUTED) -> dict[str, Any]:
    """Returns a font of the page; the size is in pixels."""
    return {"family": "system-ui, sans-serif", "size": size, "color": colour}

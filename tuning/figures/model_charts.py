"""The interactive figures of a final model on its run's page: fresh seeds, confusion, calibration, features.

As in `run_charts`: texts that come from a file go through `as_text`, and colours are names of the page's style sheet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from tuning.base.errors import counted
from tuning.base.registries import ACCURACY, Metric
from tuning.figures.run_charts import ACCENT, INK, MUTED, SECOND, as_text, axis, figure_of, form, interval, share_of
from tuning.figures.style import MOST_CONFUSED, class_look, shortened
from tuning.runs import analysis

# Plotly's names of `style.CLASS_MARKERS`, so that a class looks the same in both.
SYMBOLS = (
    *("circle", "square", "triangle-up", "diamond", "triangle-down"),
    *("cross", "x", "triangle-left", "triangle-right", "pentagon"),
)

MOST_LETTERS, FEW_CLASSES = 28, 12  # Of a name at an axis; classes for which the matrix has large cells.

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


def seeds(final: pd.DataFrame, metric: Metric = ACCURACY) -> go.Figure:
    """Returns each configuration's fresh seeds, their mean with its interval, and what the search had said.

    Args:
        final: `final.csv`.
        metric: What decided.
    """
    column, hover = metric.column, f"%{{text}}, %{{fullData.name}}: %{{x:{form(metric)}}}<extra></extra>"
    names = [configuration_name(row) for row in final.to_dict("records")]
    mean, low, high = (final[f"{column}_{name}"] for name in ("mean", "low", "high"))
    columns = final.filter(regex=r"^(?:seed|fold)_\d+$")
    error = interval(mean, low, high, color=INK, thickness=1.4, width=5)
    # The search's value and the seeds lie a little beside the mean, so that neither hides the other.
    at, marks = np.arange(len(final)), {"mode": "markers", "text": names, "hovertemplate": hover}
    shown = [
        go.Scatter(x=mean, y=at, marker={"color": INK, "size": 10, "symbol": "diamond"}, error_x=error, name="mean"),
        go.Scatter(
            x=final[f"search_{column}"],
            y=at - 0.2,
            marker={"color": SECOND, "size": 10, "symbol": "circle-open", "line": {"width": 2}},
            name="in the search",
        ),
        *(
            go.Scatter(
                x=columns[name],
                y=at + 0.2,
                marker={"color": ACCENT, "size": 7},
                name="a fold" if str(name).startswith("fold") else "a fresh seed",
                legendgroup="seed",
                showlegend=number == 0,
            )
            for number, name in enumerate(columns)
        ),
    ]
    traces, x = [trace.update(**marks) for trace in shown], f"validation {metric.title}"
    figure = figure_of(traces, x=x, share=share_of(metric, "x"))
    figure.update_layout(height=130 + 58 * len(final))
    ticks = {"tickvals": at, "ticktext": names, "range": [len(final) - 0.4, -0.6], "showgrid": False}
    return figure.update_yaxes(**ticks)


def configuration_name(row: Mapping[Any, Any]) -> str:
    """Returns what the page calls a row of `final.csv`, escaped."""
    if row["role"] == "default":
        return "default"
    name = f"trial {row['trial']}" if pd.notna(row["trial"]) else str(row["config_hash"])
    return as_text(name if row["role"] == "candidate" else f"{name} ({row['role']})")


def confusion_width(class_names: Sequence[str]) -> int:
    """Returns the pixels that the confusion matrix needs at least, so that its names and counts can be read."""
    shown = min(len(class_names), MOST_CONFUSED)
    return 40 + 7 * min(MOST_LETTERS, max(map(len, class_names))) + 20 * shown


def confusion(counts: pd.DataFrame) -> go.Figure:
    """Returns the confusion matrix: counts as text, shaded by the square root of their share of the true class.

    Of more than a hundred classes, those are shown that are most often confused.

    Args:
        counts: Rows truth and columns prediction, from `analysis.confusion`.
    """
    places = analysis.most_confused(counts, MOST_CONFUSED)
    n_images = counts.sum(axis=1).to_numpy(dtype=float)[places, None]
    counts = counts.iloc[places, places]
    values = counts.to_numpy(dtype=float)
    shares = values / np.maximum(n_images, 1)
    ticks = [as_text(shortened(str(name), MOST_LETTERS)) for name in counts.columns]
    at = list(range(len(ticks)))
    heat = go.Heatmap(
        x=at,
        y=at,
        z=np.sqrt(shares).round(4),
        zmin=0,
        zmax=1,
        text=np.where(values > 0, values.astype(int).astype(str), "").tolist(),
        texttemplate="%{text}",
        hovertemplate="truth %{y}<br>prediction %{x}<br>images %{text}<extra></extra>",  # The names are the ticks'.
        colorscale=[[0, "var(--panel)"], [1, "var(--deep)"]],
        showscale=False,
        xgap=1,
        ygap=1,
    )
    figure = figure_of(
        [heat], x="prediction", y="truth", height=190 + (36 if len(ticks) <= FEW_CLASSES else 26) * len(ticks)
    )
    axis = {"tickvals": at, "ticktext": ticks, "showgrid": False, "showline": False, "ticks": ""}
    return figure.update_xaxes(**axis, tickangle=-45).update_yaxes(**axis, autorange="reversed", ticklabelstandoff=4)


def reliability(bins: pd.DataFrame) -> go.Figure:
    """Returns accuracy against confidence, with the interval of each bin, over the count of images in it.

    Args:
        bins: From `analysis.calibration`.
    """
    filled = bins[bins["count"] > 0]
    perfect = {"color": MUTED, "dash": "dot", "width": 1.2}
    traces = [
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=perfect, hoverinfo="skip", name="perfect"),
        go.Scatter(
            x=filled["confidence"],
            y=filled["accuracy"],
            error_y=interval(filled["accuracy"], filled["accuracy_low"], filled["accuracy_high"], width=0),
            customdata=filled["count"],
            hovertemplate="confidence %{x:.1%}, accuracy %{y:.1%}, %{customdata:,} images<extra></extra>",
            mode="lines+markers",
            line={"color": ACCENT, "width": 1.6},
            marker={"size": 7},
            name="model",
        ),
        go.Bar(
            x=(bins["lower"] + bins["upper"]) / 2,
            y=bins["count"],
            marker={"color": MUTED, "opacity": 0.6},
            hovertemplate="%{y:,} images<extra></extra>",
            yaxis="y2",
            showlegend=False,
        ),
    ]
    figure = figure_of(traces, x="confidence", y="accuracy", share="xy", limits=(-0.02, 1.02), height=440)
    counts = axis("images") | {"domain": [0, 0.2], "type": "log", "nticks": 4, "rangemode": "tozero"}
    return figure.update_layout(yaxis_domain=[0.28, 1], xaxis={"range": [0, 1.01], "anchor": "y2"}, yaxis2=counts)


def features(
    points: Floats,
    explained: Floats,
    labels: Integers,
    texts: Sequence[str],
    class_names: Sequence[str],
    *,
    numbers: Mapping[int, int],
) -> go.Figure:
    """Returns the images on two principal components, a trace a class; a point's `customdata` is the image's number.

    Classes that are not named are one grey trace.

    Args:
        points: float (N, 2).
        explained: float (2,), shares of the variance.
        labels: int (N,).
        texts: What to say of each image; the page shows it as text, so it is not escaped.
        class_names: The classes' names.
        numbers: Class -> its number for `style.class_look`, of those that are named.
    """
    present = np.unique(labels).tolist()
    others = [number for number in present if number not in numbers]
    marks: list[tuple[list[int], str, dict[str, Any]]] = []
    if others:
        marks.append((others, counted(len(others), "other"), {"color": MUTED, "symbol": "circle", "opacity": 0.4}))
    for number in present:
        if number in numbers:
            colour, marker = class_look(numbers[number])
            look: dict[str, Any] = {"color": f"var(--class-{colour})", "symbol": SYMBOLS[marker]}
            marks.append(([number], as_text(class_names[number]), look))
    classes = []
    for members, name, look in marks:
        chosen = np.flatnonzero(np.isin(labels, members)).tolist()
        classes.append(
            go.Scatter(
                x=points[chosen, 0],
                y=points[chosen, 1],
                customdata=chosen,
                text=[texts[i] for i in chosen],
                hoverinfo="none",
                mode="markers",
                marker={"size": 7, "line": {"color": "var(--rim)", "width": 0.7}} | look,
                name=name,
            )
        )
    titles = [
        f"{name} principal component ({share:.1%})" for name, share in zip(("first", "second"), explained, strict=True)
    ]
    return figure_of(classes, x=titles[0], y=titles[1], height=560 + 5 * max(0, len(classes) - 10))

"""`tuning.figures.run_figures`: what is drawn is what the frames hold; no frame is too small or too odd to be drawn."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tuning.base.config import TrainConfig
from tuning.figures import run_figures, style
from tuning.runs import analysis

START = pd.Timestamp("2026-11-23T10:00:00", tz="UTC")
STATES = ("complete", "pruned", "failed", "running")


def clock(moments: "pd.Series[Any]") -> "pd.Series[float]":
    return (moments - START).dt.total_seconds()


def _run(n_trials: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the trials and epochs of a run with all four states; failed trials have no accuracy."""
    generator = np.random.default_rng(0)
    trials: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    for number in range(n_trials):
        state = STATES[number % 4]
        config = TrainConfig(
            learning_rate=10 ** generator.uniform(-3, 0),
            weight_decay=0.0 if number == 1 else 10 ** generator.uniform(-5, -2),
            schedule=("onecycle", "cosine")[number % 2],
            patience=None if number == 2 else 4,
            flip=number % 3 == 0,
        )
        curve = [
            0.92 - 0.3 * 0.6**epoch - 0.001 * number for epoch in range(0 if state == "failed" else 3 + number % 4)
        ]
        for epoch, accuracy in enumerate(curve, 1):
            row = {"trial": number, "epoch": epoch, "valid_accuracy": accuracy, "valid_loss": 1 - accuracy, "lr": 0.1}
            epochs.append({**row, "train_accuracy": accuracy + 0.01, "train_loss": 0.9 - accuracy})
        ended = pd.NaT if state == "running" else START + pd.Timedelta(minutes=number + 1)
        result = {"trial": number, "state": state, "valid_accuracy": max(curve, default=np.nan)}
        trials.append(
            {
                **result,
                "started": START,
                "ended": ended,
                **{f"config/{name}": value for name, value in config.model_dump().items()},
            }
        )
    frame = pd.DataFrame(trials)
    frame = frame.astype({"config/patience": "Int64", "config/image_size": "Int64", "config/flip": "boolean"})
    return frame, pd.DataFrame(epochs)


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.fixture(scope="module")
def run() -> tuple[pd.DataFrame, pd.DataFrame]:
    return _run(12)


def test_best_so_far_steps_and_dots(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    frame = analysis.best_so_far(run[0], clock)
    (ax,) = run_figures.best_so_far(frame).axes
    assert "minutes" in ax.get_xlabel()
    assert ax.get_ylabel() == "validation accuracy"
    assert ax.lines[0].get_drawstyle() == "steps-post"
    assert np.asarray(ax.lines[0].get_ydata()).tolist() == frame["best"].tolist()
    assert np.asarray(ax.lines[0].get_xdata()).tolist() == (frame["ended_seconds"] / 60).tolist()
    assert ax.texts[0].get_text() == f"trial 1: {100 * frame['best'].max():.2f} %"


def test_best_so_far_is_not_squashed_by_a_poor_first_trial() -> None:
    accuracy = pd.Series([0.1, *np.linspace(0.9, 0.93, 19)])
    frame = pd.DataFrame({"trial": range(20), "ended_seconds": np.arange(20) * 60.0, "valid_accuracy": accuracy})
    states = ["complete"] * 13 + ["pruned"] * 7
    (ax,) = run_figures.best_so_far(frame.assign(best=accuracy.cummax(), state=states)).axes
    assert ax.get_ylim()[0] > 0.8
    complete, pruned, triangles = (c for c in ax.collections if isinstance(c, PathCollection))
    assert len(np.asarray(complete.get_offsets())) == 12 and len(complete.get_facecolor()) == 1
    assert len(np.asarray(pruned.get_offsets())) == 7 and len(pruned.get_facecolor()) == 0  # Hollow.
    assert np.asarray(triangles.get_offsets()).tolist() == [[0.0, ax.get_ylim()[0]]]


def test_runs_of_any_name_are_in_the_legend() -> None:
    curves = pd.DataFrame({"run": ["_a", "$b$", "c"] * 2, "slot_minutes": [0.0] * 3 + [1234.5] * 3, "best": 0.9})
    figure = run_figures.best_so_far_of(curves)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [" _a: 90.00 %", r"\$b\$: 90.00 %", "c: 90.00 %", "equal cost: 1234 slot minutes"]


def test_choices_with_dollar_signs_are_no_mathematics() -> None:
    trials = pd.DataFrame({"valid_accuracy": [0.9, 0.8], "config/stem": ["$a$", "b"]})
    assert r"\$a\$" in _texts(run_figures.parallel_coordinates(trials))


def test_pareto_joins_the_front_and_shows_the_rest() -> None:
    trials = pd.DataFrame({"trial": range(4), "state": ["complete"] * 3 + ["pruned"]})
    trials = trials.assign(
        valid_accuracy=[0.9, 0.8, 0.7, 0.95], n_parameters=[500, 100, 300, 1], pareto=[True, True, False, False]
    )
    figure = run_figures.pareto(trials, "n_parameters")
    ax = figure.axes[0]
    assert ax.get_xlabel() == "trainable parameters"
    assert len(np.asarray(ax.collections[0].get_offsets())) == 3
    assert list(ax.lines[0].get_xdata()) == [100, 500]
    assert {"0", "1"} <= set(_texts(figure)) and "2" not in _texts(figure)


def test_learning_curves_one_line_a_trial_by_state_and_the_best_in_black(
    run: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    trials, epochs = run
    (ax,) = run_figures.learning_curves(epochs, trials).axes
    assert len(ax.lines) == epochs["trial"].nunique() == 9
    colours = [to_hex(line.get_color()) for line in ax.lines]
    assert colours.count(style.BEST) == 1
    assert colours.count(style.STATE_COLOURS["running"]) == 3
    assert colours.count(style.STATE_COLOURS["pruned"]) == 2  # the best was pruned
    assert colours.count(style.STATE_COLOURS["complete"]) == 3
    legend = ax.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    finished = trials[trials["state"].isin(["complete", "pruned"])]
    best = finished.iloc[int(finished["valid_accuracy"].argmax())]
    assert labels[0] == f"best: trial {best['trial']}, {100 * best['valid_accuracy']:.2f} %"
    assert labels[1:] == ["complete (3)", "pruned (3)", "running (3)"]
    assert ax.lines[colours.index(style.BEST)].get_ydata()[-1] == best["valid_accuracy"]


def test_learning_curves_say_how_many_are_too_low_to_be_seen(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    trials, epochs = run
    lost = epochs["valid_accuracy"].mask(epochs["trial"] == 4, 0.2)
    (ax,) = run_figures.learning_curves(epochs.assign(valid_accuracy=lost), trials).axes
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_texts()[-1].get_text() == "below the axis: 1"


def test_parallel_coordinates_draw_what_varies(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    figure = run_figures.parallel_coordinates(run[0])
    ax = figure.axes[0]
    names = [label.get_text().replace("\n", "_") for label in ax.get_xticklabels()]
    assert names == ["learning_rate", "weight_decay", "schedule", "patience", "flip"]
    grey, coloured = (c for c in ax.collections if isinstance(c, LineCollection))
    assert len(grey.get_segments()) == 3  # the failed trials
    assert len(coloured.get_segments()) == 9
    heights = np.stack([np.asarray(segment)[:, 1] for segment in coloured.get_segments() + grey.get_segments()])
    assert (heights[:, 1] == run_figures.MISSING_HEIGHT).sum() == 1  # weight_decay 0 is not on a log scale
    assert (heights[:, 3] == run_figures.MISSING_HEIGHT).sum() == 1  # patience None
    assert {"0", "none", "onecycle", "True", "0.01"} <= set(_texts(figure))


def test_parallel_coordinates_put_what_does_nothing_below_the_axis() -> None:
    trials = pd.DataFrame({"valid_accuracy": [0.9, 0.8, 0.7], "config/optimizer": ["sgd", "sgd", "adamw"]})
    segments = (
        run_figures.parallel_coordinates(trials.assign(**{"config/momentum": [0.8, 0.9, 0.9]})).axes[0].collections[1]
    ).get_segments()
    assert sorted(segment[1, 1] for segment in segments) == [run_figures.MISSING_HEIGHT, 0, 1]


def test_parallel_coordinates_put_learning_rates_on_a_log_scale() -> None:
    trials = pd.DataFrame({"valid_accuracy": [0.9, 0.8, 0.7], "config/learning_rate": [0.001, 0.01, 0.1]})
    for name, middle in (("config/learning_rate", 0.5), ("config/momentum", 9 / 99)):
        figure = run_figures.parallel_coordinates(trials.set_axis(["valid_accuracy", name], axis=1))
        segments = figure.axes[0].collections[1].get_segments()
        assert sorted(segment[0, 1] for segment in segments) == pytest.approx([0, middle, 1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([512.0, 1024.0, 2048.0, 4096.0], ["512", "1024", "2048", "4096"]),
        ([1000.0, 1004.0], ["1000", "1004"]),
        ([0.9, 0.99, 0.9999], ["0.9", "0.99", "0.9999"]),
        ([0.12341, 0.12344], ["0.12341", "0.12344"]),
    ],
)
def test_ticks_are_what_the_values_are_and_differ(values: list[float], expected: list[str]) -> None:
    _, ticks = run_figures.coordinate(pd.Series(values, name="config/width"))
    assert [text for _, text in ticks] == expected


def test_an_axis_of_tiny_seconds_has_no_tick_twice() -> None:
    trials = pd.DataFrame({"trial": range(6), "state": "complete", "pareto": True, "valid_accuracy": 0.9})
    figure = run_figures.pareto(trials.assign(seconds_per_image=np.linspace(2.1e-5, 2.6e-5, 6)), "seconds_per_image")
    figure.draw_without_rendering()
    texts = [label.get_text() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len(texts) > 2 and len(set(texts)) == len(texts) and "2.2e-05" in texts


def test_importances_are_a_mark_on_its_interval_for_each_method() -> None:
    rows = [("PED-ANOVA", "rate", 0.5, 0.1, 0.9), ("PED-ANOVA", "width", 0.5, 0.2, 0.4)]
    rows += [("fANOVA", "width", 0.8, 0.6, 1.0), ("fANOVA", "rate", 0.2, 0.0, 0.5)]
    frame = pd.DataFrame(rows, columns=["method", "parameter", "importance", "low", "high"])
    (ax,) = run_figures.importances(frame).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["width", "rate"]  # by their means
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
    legend = ax.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["PED-ANOVA", "fANOVA"]
    intervals = [c for c in ax.collections if isinstance(c, LineCollection)]
    for marks, lines, (_, own) in zip(ax.lines, intervals, frame.groupby("method", sort=False), strict=True):
        assert np.asarray(marks.get_xdata()).tolist() == own["importance"].tolist()
        heights = np.asarray(marks.get_ydata())
        assert heights.round().tolist() == [{"width": 0, "rate": 1}[name] for name in own["parameter"]]
        ends = np.array([np.asarray(segment) for segment in lines.get_segments()])
        assert ends[:, :, 0].tolist() == own[["low", "high"]].to_numpy().tolist()
        assert (ends[:, :, 1] == heights[:, None]).all()
    assert not set(np.asarray(ax.lines[0].get_ydata())) & set(np.asarray(ax.lines[1].get_ydata()))


def test_learning_curve_marks_the_best_epoch(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    epochs = run[1].query("trial == 0").copy()
    epochs.loc[epochs["epoch"] == 2, "valid_accuracy"] = 0.95
    figure = run_figures.learning_curve(epochs)
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "accuracy", "learning\nrate"]
    assert figure.axes[2].get_xlabel() == "epoch"
    for ax in figure.axes:
        marks = [line for line in ax.lines if str(line.get_label()).startswith("best epoch")]
        assert [np.asarray(line.get_xdata()).tolist() for line in marks] == [[2, 2]]
        assert marks[0].get_label() == "best epoch 2: 95.00 %"
    assert np.asarray(figure.axes[1].lines[1].get_ydata()).tolist() == epochs["valid_accuracy"].tolist()


def test_of_equal_epochs_the_one_of_the_lower_loss_is_marked(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    epochs = run[1].query("trial == 0").copy()
    epochs["valid_accuracy"], last = 0.9, int(epochs["epoch"].max())
    epochs["valid_loss"] = 1.0 / epochs["epoch"]
    labels = [str(line.get_label()) for line in run_figures.learning_curve(epochs).axes[0].lines]
    assert f"best epoch {last}: 90.00 %" in labels


def _empty_and_tiny() -> dict[str, Figure]:
    trials, epochs = _run(1)
    nothing, none = trials.iloc[:0], epochs.iloc[:0]
    importance = pd.DataFrame({"method": "fANOVA", "parameter": ["width"], "importance": 1.0, "low": 1.0, "high": 1.0})
    lone = trials.assign(**{"config/width": pd.Series([pd.NA], dtype="Int64")})
    return {
        "best, empty": run_figures.best_so_far(analysis.best_so_far(nothing, clock)),
        "best, one": run_figures.best_so_far(analysis.best_so_far(trials, clock)),
        "curves, empty": run_figures.learning_curves(none, nothing),
        "curves, one epoch": run_figures.learning_curves(epochs.head(1), trials),
        "curves, no such trial": run_figures.learning_curves(epochs, nothing),
        "parallel, empty": run_figures.parallel_coordinates(nothing),
        "parallel, one": run_figures.parallel_coordinates(trials),
        "parallel, no accuracy": run_figures.parallel_coordinates(_run(6)[0].assign(valid_accuracy=np.nan)),
        "parallel, one column": run_figures.parallel_coordinates(pd.concat([trials, lone])),
        "importances, empty": run_figures.importances(importance.iloc[:0]),
        "importances, one": run_figures.importances(importance),
        "curve, empty": run_figures.learning_curve(none),
        "curve, one epoch": run_figures.learning_curve(epochs.head(1)),
        "curve, diverged": run_figures.learning_curve(epochs.assign(valid_accuracy=np.nan, train_accuracy=np.nan)),
    }


def test_empty_and_tiny_frames_give_figures() -> None:
    for name, figure in _empty_and_tiny().items():
        figure.canvas.draw()
        assert figure.axes, name
        says_so = any(text.startswith(("No ", "Too few")) for text in _texts(figure))
        assert says_so == (name.endswith(", empty") or name == "parallel, one"), name

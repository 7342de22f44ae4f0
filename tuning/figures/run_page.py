"""The page of a run: one HTML file that needs nothing else."""

import io
import json
import numbers
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files, masking
from tuning.base.errors import UserError, each_alone
from tuning.base.registries import ACCURACY, OBJECTIVES, Metric
from tuning.runs import beginnings, convergence, openings, run_folder, schema, summaries
from tuning.runs.run_folder import MODEL_DIR, Run, is_of
from tuning.runs.verdicts import averaging_of, headline, luck, metric_of, repeats, verdicts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from markupsafe import Markup

MIN_TRIALS_FOR_COORDINATES = 2
NOTHING = "\N{EN DASH}"
_TIME = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d.*\+00:00$")
_HEADINGS = {
    "n_parameters": "parameters",
    **{f"search_{column}": "search" for column in ("valid_accuracy", "valid_score")},
    **{f"valid_accuracy_{name}": name for name in ("mean", "std", "low", "high")},
    **{f"valid_score_{name}": name for name in ("mean", "std", "low", "high")},
    **{f"difference_{name}": name for name in ("low", "high")},
}
_NOTES = ("seconds_per_image", "pareto", "stopped_by", "error")
# Of metrics.json: without these there is no final model to show.
_METRICS = (
    *("test_accuracy", "test_accuracy_mean", "test_accuracy_std", "test_interval", "test_opened", "seeds", "ece"),
    *("search_valid_accuracy", "valid_accuracy_mean", "shrinkage"),
)
_TRIAL_COLUMNS = ("trial", "state", "valid_accuracy", "epochs", "seconds", "n_parameters")


@dataclass(frozen=True)
class Final:
    """What `python -m tuning.final` left behind for a run.

    Attributes:
        metrics: `metrics.json`.
        class_names: Of the data set.
        configurations: `final.csv`; None where there is none.
        report: `classification_report.csv`; None where there is none.
        outputs: `test_outputs.npz` by name; empty where there is none.
        log: A row a line of `test_log.jsonl`.
        suspects: `suspects.csv`; None where there is none.
        suspect_images: Of its rows, uint8 (N, C, H, W); None where there are none.
        is_own: The images are one's own: gray ones are photos, and no drawings whose paper may be dark.
        epochs: Full length of its training; None where that is not on record.
    """

    metrics: dict[str, Any]
    class_names: tuple[str, ...]
    configurations: "pd.DataFrame | None"
    report: "pd.DataFrame | None"
    outputs: "dict[str, npt.NDArray[Any]]"
    log: "pd.DataFrame"
    suspects: "pd.DataFrame | None" = None
    suspect_images: "npt.NDArray[np.uint8] | None" = None
    is_own: bool = False
    epochs: int | None = None


def load_final(run: Run, model_dir: Path) -> Final | None:
    """Returns what is known of a run's final model, or None where `model_dir` holds none or that of another run.

    Raises:
        UserError: A file is damaged.
    """
    import pandas as pd

    if not (model_dir / "metrics.json").exists():
        return None
    metrics = files.read_json(model_dir / "metrics.json")
    try:
        identity = run.identity
    except UserError:  # Of a run of 0.2.0 whose study is damaged: its name is all there is.
        identity = None
    if not is_of(metrics, run.name, identity):
        return None
    if missing := [name for name in _METRICS if name not in metrics]:
        raise UserError(
            f"{model_dir / 'metrics.json'} has no {missing[0]}: it is damaged, or another version wrote it. "
            "Run `python -m tuning.final` again."
        )
    try:
        described = files.read_json(model_dir / "config.json")
        return Final(
            metrics=metrics,
            class_names=tuple(described["class_names"]),
            configurations=_read_csv(model_dir / "final.csv"),
            report=_read_csv(model_dir / "classification_report.csv"),
            outputs=_read_arrays(model_dir / "test_outputs.npz"),
            log=pd.DataFrame(openings.read(model_dir)),
            suspects=_read_csv(model_dir / "suspects.csv"),
            suspect_images=_read_arrays(model_dir / "suspects.npz").get("images"),
            is_own="resize" in described,
            epochs=described.get("config", {}).get("epochs"),
        )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{model_dir} must hold what `python -m tuning.final` writes, but got: {error}.") from error


def write(
    run: Run,
    model_dir: Path = MODEL_DIR,
    importances: "pd.DataFrame | None" = None,
    *,
    out: Path | None = None,
    tell: Callable[[str], None] = print,
) -> Path:
    """Writes a run's `report.html`, whole or not at all, and returns its path.

    Args:
        run: Finished, or still going.
        model_dir: Where the final model is; what it holds is shown if it is this run's.
        importances: From `importances.of_run`; None has them computed.
        out: Where the page is written; None is `report.html` in the run's folder.
        tell: Is told what is left out, and why.

    Raises:
        UserError: A file of the run is damaged, the page cannot be written there, or the disk is full.
    """
    path = out or run.path / "report.html"
    try:
        final = load_final(run, model_dir)
    except UserError as error:
        tell(f"The final model is left out of the page: {error}")
        final = None
    page = render(run, final, importances, tell=tell)
    try:
        files.write_text(path, page)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). `python -m tuning.report {run.path} --out FILE.html` writes "
            "the page elsewhere."
        ) from error
    return path


def render(
    run: Run,
    final: Final | None,
    importances: "pd.DataFrame | None" = None,
    *,
    tell: Callable[[str], None] = lambda text: None,
) -> str:
    """Returns the page; arguments as in `write`. A picture that cannot be drawn is named, and the others are drawn."""
    import jinja2
    import pandas as pd
    import plotly.offline
    from markupsafe import Markup

    from tuning.figures import model_charts, thumbnails
    from tuning.figures.style import CLASS_COLOURS, STATE_COLOURS
    from tuning.runs import analysis

    trials, meta, metric = analysis.active(run.trials), masking.masked_all(run.meta), run.metric
    winner = _winner(run, trials, final)
    draw = _run_figures(run, trials, importances, tell) | ({} if final is None else _final_figures(final))
    made = each_alone({f"The figure {name}": partial(_as_json, make) for name, make in draw.items()}, tell)
    others: dict[str, Callable[[], Any]] = {"The edges": lambda: _edges(run)}
    if meta.get("audit"):
        others["The audit"] = lambda: summaries.audit_text(meta["audit"], metric)
    if meta.get("begun_with"):
        others["What the search began with"] = lambda: beginnings.worth(run)
    if final is not None and final.outputs:
        others["The gallery"] = lambda: thumbnails.pictures(final.outputs, final.class_names)
    if final is not None and final.suspects is not None and final.suspect_images is not None:
        suspects, pixels = final.suspects, final.suspect_images
        others["The gallery of labels to check"] = lambda: thumbnails.suspects(suspects, pixels)
    made |= each_alone(others, tell)
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("tuning.figures"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page.globals |= {
        "exact": exact,
        "percent": percent,
        "said": partial(said, metric),
        "spread": partial(spread, metric),
        "gap": partial(gap, metric),
        "table": partial(table, metric=metric),
        "spoken": partial(spoken, metric=metric),
        "luck": partial(luck, metric=metric),
        "frame": pd.DataFrame,
        "confusion_width": model_charts.confusion_width,
    }
    return page.get_template("report.html.j2").render(
        run=run,
        meta=meta,
        trials=trials,
        final=final,
        metrics=None if final is None else final.metrics,
        metric=metric,
        shown=None if final is None else headline(final.metrics),
        averaging=None if final is None else averaging_of(final.metrics),
        repeats=None if final is None else repeats(final.metrics),
        fresh="folds" if final is not None and final.metrics.get("folds") else "fresh seeds",
        noise=summaries.noise_text(run),
        converged=convergence.text(run),
        began=made.get("What the search began with"),
        winner=winner,
        searched=[] if winner is None else _told_apart(trials, winner),
        minutes=summaries.minutes(run) if len(trials) else 0.0,
        audited=made.get("The audit"),
        edges=made.get("The edges"),
        verdicts=[] if final is None else verdicts(final.metrics),
        shown_trials=_shown_trials(trials, metric),
        images=made.get("The gallery"),
        suspects=made.get("The gallery of labels to check"),
        figures={name: made[f"The figure {name}"] for name in draw if f"The figure {name}" in made},
        run_trials=run_folder.ran(run.trials),
        called=files.called(run.path),
        interrupted=meta.get("stopped_by") == "interrupt",
        ended="ended" in meta and bool(run_folder.have_ended(trials).all()),
        colours=STATE_COLOURS | {f"class-{i}": colour for i, colour in enumerate(CLASS_COLOURS)},
        plotlyjs=Markup(plotly.offline.get_plotlyjs()),
    )


def table(frame: "pd.DataFrame", metric: Metric = ACCURACY) -> dict[str, Any]:
    """Returns a frame for the page: `columns` (heading, whether numeric) and `rows` of cells (text, full value)."""
    import pandas as pd

    columns = [
        {
            "heading": _heading(str(name), metric),
            "numeric": pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column),
        }
        for name, column in frame.items()
    ]
    rows = [
        [
            (text := spoken(value, str(name), metric), "" if text == NOTHING else str(value))
            for name, value in zip(frame, row, strict=True)
        ]
        for row in frame.itertuples(index=False, name=None)
    ]
    return {"columns": columns, "rows": rows}


def exact(value: Any, text: str | None = None) -> Any:
    """Returns a number as HTML: rounded for the eye, whole in the element's `value` and `title`."""
    from markupsafe import Markup

    if value is None:
        return NOTHING
    return Markup('<data value="{0}" title="{0}">{1}</data>').format(
        str(value), spoken(value) if text is None else text
    )


def percent(value: float | None, digits: int = 2) -> Any:
    """Returns a share as HTML, in per cent."""
    return exact(value, None if value is None else f"{100 * value:.{digits}f}%")


def said(metric: Metric, value: float | None) -> Any:
    """Returns a metric's value as HTML."""
    return exact(value, None if value is None else metric.said(value))


def spread(metric: Metric, value: float) -> Any:
    """Returns a standard deviation of a metric's values as HTML, without the sign of a per cent."""
    return exact(value, metric.gap(value, ""))


def gap(metric: Metric, value: float | None) -> Any:
    """Returns a difference of a metric's values as HTML, with a sign: shares in points of a per cent."""
    return exact(value, None if value is None else metric.gap(value))


def _heading(name: str, metric: Metric) -> str:
    known = _HEADINGS.get(name, metric.label if name == "valid_score" else name)
    return known.removeprefix("config/").replace("_", " ")


def spoken(value: Any, name: str = "", metric: Metric = ACCURACY) -> str:
    """Returns a value of a frame or of a JSON file, rounded for the eye as its name asks for."""
    import pandas as pd

    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if pd.isna(value):
        return NOTHING
    if isinstance(value, float):
        if "difference" in name:
            return metric.gap(value)
        if "valid_score" in name or name.startswith(("seed_", "fold_", "second_")):
            return metric.said(value)
        if "accuracy" in name or name.startswith(("precision", "recall", "f1")):
            return f"{value:.2%}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}" if int(value) >= 10_000 and "seed" not in name else str(value)
    return _TIME.sub(r"\1 \2 UTC", str(value))


def _as_json(make: Callable[[], Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(make().to_json())
    return found


def _read_arrays(path: Path) -> "dict[str, npt.NDArray[Any]]":
    import numpy as np

    # numpy leaves a damaged file open.
    return dict(np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)) if path.exists() else {}


def _read_csv(path: Path) -> "pd.DataFrame | None":
    return schema.read_named(path) if path.exists() else None


def _edges(run: Run) -> dict[str, Any] | None:
    """Returns the ends of ranges at which the best trials lie: each with its sentence, and what to do; None without."""
    from tuning.runs import edges

    found = run.edges
    if found.empty:
        return None
    rows = [schema.plain({str(name): row[name] for name in row}) for row in found.to_dict("records")]
    return {"rows": list(zip(edges.said(found), rows, strict=True)), "next": _with_code(edges.next_step(run))}


def _with_code(text: str) -> "Markup":
    """Returns a text whose parts between backticks are shown as code; all else stays text."""
    from markupsafe import Markup

    parts = [Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(text.split("`"))]
    return Markup("").join(parts)


def _winner(run: Run, trials: "pd.DataFrame", final: Final | None) -> dict[str, Any] | None:
    """Returns the row of the trial that `final` chose, or else of the best one so far; None where none has finished.

    What `final` has changed of the trial's configuration stands in it.
    """
    finished = trials["state"].isin(schema.HAVE_RESULTS)
    if not finished.any():
        return None
    chosen = trials[trials["trial"] == (None if final is None else final.metrics.get("trial"))]
    rows = trials[trials["trial"] == run.best["trial"]] if chosen.empty else chosen
    changed: dict[str, Any] = {}
    if final is not None and not chosen.empty:
        changed = final.metrics.get("regularised", {}) | ({"epochs": final.epochs} if final.epochs else {})
    row = schema.plain({str(name): value for name, value in rows.iloc[0].items()})
    return row | {f"config/{name}": value for name, value in changed.items()}


def _told_apart(trials: "pd.DataFrame", winner: dict[str, Any]) -> list[str]:
    """Returns the hyperparameters in which trials differ, and those in which the winner does from all of them."""
    from tuning.runs import analysis

    any_one = schema.plain({str(name): value for name, value in trials.iloc[0].items()})
    differ = [*analysis.varying(trials)]
    differ += [n for n in winner if n.startswith("config/") and n not in differ and winner[n] != any_one.get(n)]
    return [name.removeprefix("config/") for name in differ]


def _shown_trials(trials: "pd.DataFrame", metric: Metric) -> "pd.DataFrame":
    """Returns the trials as the page lists them: the best first, columns that say nothing left out."""
    from tuning.runs import analysis

    notes = [name for name in _NOTES if name in trials and trials[name].notna().any()]
    columns = dict.fromkeys([*_TRIAL_COLUMNS[:2], metric.column, *_TRIAL_COLUMNS[2:]])
    shown = trials[[*columns, *analysis.varying(trials), *notes]]
    order = [not metric.greater_is_better, True]
    return shown.sort_values([metric.column, "trial"], ascending=order, na_position="last")


def _run_figures(
    run: Run, trials: "pd.DataFrame", importance: "pd.DataFrame | None", tell: Callable[[str], None]
) -> dict[str, Callable[[], Any]]:
    """Returns what draws each figure of the run that there is something to draw for."""
    from tuning.figures import run_charts
    from tuning.runs import analysis

    epochs, metric = run.epochs, run.metric
    draw: dict[str, Callable[[], Any]] = {}
    finished = trials["state"].isin(schema.HAVE_RESULTS) & trials[metric.column].notna()
    if finished.any():
        draw["best_so_far"] = lambda: run_charts.best_so_far(
            analysis.best_so_far(trials, run.clock, metric), trials, metric
        )
    if epochs[metric.column].notna().any():
        best = int(run.best["trial"]) if finished.any() else None
        draw["learning_curves"] = lambda: run_charts.learning_curves(epochs, trials, best, metric)
    if trials[metric.column].notna().sum() >= MIN_TRIALS_FOR_COORDINATES and analysis.varying(trials):
        draw["parallel_coordinates"] = lambda: run_charts.parallel_coordinates(trials, metric)
    if importance is None and finished.any() and (run.path / "study.db").exists():
        from tuning.figures import importances

        importance = each_alone({"The importances": lambda: importances.of_run(run)}, tell).get("The importances")
    if importance is not None and len(importance):
        draw["importances"] = lambda: run_charts.importances(importance)
    if "pareto" in trials and trials["pareto"].any():
        minimized = run.settings.get("minimize") or OBJECTIVES.default
        draw["pareto"] = lambda: run_charts.pareto(trials, minimized, metric)
    return draw


def _final_figures(final: Final) -> dict[str, Callable[[], Any]]:
    """Returns what draws each figure of the final model that there is something to draw for."""
    from tuning.figures import model_charts, thumbnails
    from tuning.runs import analysis

    configurations, metric = final.configurations, metric_of(final.metrics)
    draw = {} if configurations is None else {"seeds": lambda: model_charts.seeds(configurations, metric)}
    if not final.outputs:
        return draw
    outputs, names = final.outputs, final.class_names
    labels, probabilities = outputs["labels"], outputs["probabilities"]

    def features() -> Any:
        shown = thumbnails.thinned(outputs["images"])
        said = [thumbnails.caption(int(i), labels[i], probabilities[i], names) for i in shown]
        return model_charts.features(outputs["points"][shown], outputs["explained"], labels[shown], said, names)

    return draw | {
        "confusion": lambda: model_charts.confusion(analysis.confusion(labels, probabilities.argmax(axis=1), names)),
        "reliability": lambda: model_charts.reliability(analysis.calibration(labels, probabilities)[1]),
        "features": features,
    }

"""The page of a run: one HTML file that needs nothing else."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files, masking
from tuning.base.errors import UserError, counted, each_alone
from tuning.base.registries import OBJECTIVES, Metric
from tuning.figures.page_text import exact, gap, percent, said, spent, spoken, spread, table, with_code
from tuning.runs import beginnings, convergence, final_models, run_folder, schema, summaries
from tuning.runs.final_models import Final
from tuning.runs.run_folder import Run
from tuning.runs.verdicts import averaging_of, headline, luck, metric_of, repeats, verdicts

if TYPE_CHECKING:
    import pandas as pd

MIN_TRIALS_FOR_COORDINATES = 2
_NOTES = ("seconds_per_image", "pareto", "stopped_by", "error")
_TRIAL_COLUMNS = ("trial", "state", "valid_accuracy", "epochs", "seconds", "n_parameters")


def write(
    run: Run,
    model_dir: Path | None = None,
    importances: "pd.DataFrame | None" = None,
    *,
    out: Path | None = None,
    tell: Callable[[str], None] = print,
) -> Path:
    """Writes a run's `report.html`, whole or not at all, and returns its path.

    Args:
        run: Finished, or still going.
        model_dir: Where the final model is, shown if it is this run's; None is where `final` wrote it last.
        importances: From `importances.of_run`; None has them computed.
        out: Where the page is written; None is `report.html` in the run's folder.
        tell: Is told what is left out, and why.

    Raises:
        UserError: A file of the run is damaged, the page cannot be written there, or the disk is full.
    """
    path = out or run.path / "report.html"
    try:
        folder = model_dir or final_models.folder_of(run)
        final = final_models.load(run, folder)
        if final is None and model_dir is None and final_models.remembered(run.path) is not None:
            tell(
                f"The final model is left out of the page: {folder}, to which `final` wrote it, has it no more. "
                "`python -m tuning.report --model-dir` names the folder in which it is now."
            )
    except UserError as error:
        tell(f"The final model is left out of the page: {error}")
        final = None
    page = render(run, final, importances, tell=tell)
    try:
        files.write_text(path, page)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). `python -m tuning.report {files.quoted(run.path)} --out "
            "FILE.html` writes the page elsewhere."
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
    from tuning.figures.style import CLASS_COLOURS, MOST_CONFUSED, STATE_COLOURS
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
        "most_confused": MOST_CONFUSED,
        "counted": counted,
        "spent": spent,
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
        goal=OBJECTIVES[_minimized(run)].summary,
        searched=[] if winner is None else _told_apart(trials, winner),
        minutes=summaries.minutes(run) if len(trials) else 0.0,
        audited=made.get("The audit"),
        edges=made.get("The edges"),
        verdicts=[] if final is None else verdicts(final.metrics),
        shown_trials=_shown_trials(run_folder.ran(trials), metric),
        images=made.get("The gallery"),
        suspects=made.get("The gallery of labels to check"),
        figures={name: made[f"The figure {name}"] for name in draw if f"The figure {name}" in made},
        run_trials=run_folder.ran(run.trials),
        called=files.quoted(run.path),
        interrupted=meta.get("stopped_by") == "interrupt",
        ended="ended" in meta and bool(run_folder.have_ended(trials).all()),
        colours=STATE_COLOURS | {f"class-{i}": colour for i, colour in enumerate(CLASS_COLOURS)},
        plotlyjs=Markup(plotly.offline.get_plotlyjs()),
    )


def _as_json(make: Callable[[], Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(make().to_json())
    return found


def _edges(run: Run) -> dict[str, Any] | None:
    """Returns the ends of ranges at which the best trials lie: each with its sentence, and what to do; None without."""
    from tuning.runs import edges

    found = run.edges
    if found.empty:
        return None
    rows = [schema.plain({str(name): row[name] for name in row}) for row in found.to_dict("records")]
    return {"rows": list(zip(edges.said(found), rows, strict=True)), "next": with_code(edges.next_step(run))}


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
    """Returns the trials as the page lists them: the best first, failed ones last, no columns that say nothing."""
    from tuning.runs import analysis

    notes = [name for name in _NOTES if name in trials and trials[name].notna().any()]
    columns = dict.fromkeys([*_TRIAL_COLUMNS[:2], metric.column, *_TRIAL_COLUMNS[2:]])
    place = 2 * (trials["state"] == "failed") + ~trials["state"].isin([*schema.HAVE_RESULTS, "failed"])
    order = [True, not metric.greater_is_better, True]
    ranked = trials.assign(place=place).sort_values(["place", metric.column, "trial"], ascending=order)
    return ranked[[*columns, *analysis.varying(trials), *notes]]


def _minimized(run: Run) -> str:
    """Returns the second objective of a run; where it has none, that which its front would be of."""
    name = run.meta.get("settings", {}).get("minimize")
    return name if name in OBJECTIVES else OBJECTIVES.default


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
        draw["pareto"] = lambda: run_charts.pareto(trials, _minimized(run), metric)
    return draw


def _final_figures(final: Final) -> dict[str, Callable[[], Any]]:
    """Returns what draws each figure of the final model that there is something to draw for."""
    from tuning.figures import model_charts, thumbnails
    from tuning.figures.style import named_classes
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
        points, numbers = outputs["points"][shown], named_classes(labels, len(names))
        return model_charts.features(points, outputs["explained"], labels[shown], said, names, numbers=numbers)

    return draw | {
        "confusion": lambda: model_charts.confusion(analysis.confusion(labels, probabilities.argmax(axis=1), names)),
        "reliability": lambda: model_charts.reliability(analysis.calibration(labels, probabilities)[1]),
        "features": features,
    }

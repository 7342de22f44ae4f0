"""One page of a run and its final model: results/<run>/report.html, which opens anywhere, offline.

    python -m tuning.report [RUN] [--model-dir best_model]

It takes some seconds; the page is 5 to 8 MB, of which 4.8 are plotly.js. `search` and `final` write it at their end. It
shows what the files say, and leaves out what they do not say (yet). The test images are not opened here: `final` kept
what its model made of them. Whatever comes from a file is escaped.
"""

import io
import json
import math
import numbers
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning import files, masking, results
from tuning.errors import UserError, run_command
from tuning.results import Run

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

MODEL_DIR = Path("best_model")
MIN_TRIALS_FOR_COORDINATES = 2
NOTHING = "\N{EN DASH}"
_TIME = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d.*\+00:00$")
_HEADINGS = {
    "n_parameters": "parameters",
    "search_valid_accuracy": "search",
    **{f"valid_accuracy_{name}": name for name in ("mean", "std", "low", "high")},
    **{f"difference_{name}": name for name in ("low", "high")},
}
_NOTES = ("seconds_per_image", "pareto", "stopped_by", "error")
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
    """

    metrics: dict[str, Any]
    class_names: tuple[str, ...]
    configurations: "pd.DataFrame | None"
    report: "pd.DataFrame | None"
    outputs: "dict[str, npt.NDArray[Any]]"
    log: "pd.DataFrame"


def load_final(run: Run, model_dir: Path) -> Final | None:
    """Returns what is known of a run's final model, or None where `model_dir` holds none or that of another run.

    Raises:
        UserError: A file is damaged.
    """
    import numpy as np
    import pandas as pd

    if not (model_dir / "metrics.json").exists():
        return None
    metrics = files.read_json(model_dir / "metrics.json")
    if metrics.get("run") != run.name:
        return None
    arrays, log = model_dir / "test_outputs.npz", model_dir / "test_log.jsonl"
    try:
        # numpy leaves a damaged file open.
        outputs = dict(np.load(io.BytesIO(arrays.read_bytes()), allow_pickle=False)) if arrays.exists() else {}
        lines = log.read_text().splitlines() if log.exists() else []
        return Final(
            metrics=metrics,
            class_names=tuple(files.read_json(model_dir / "config.json")["class_names"]),
            configurations=_read_csv(model_dir / "final.csv"),
            report=_read_csv(model_dir / "classification_report.csv"),
            outputs=outputs,
            log=pd.DataFrame([json.loads(line) for line in lines]),
        )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{model_dir} must hold what `python -m tuning.final` writes, but got: {error}.") from error


def write(run: Run, model_dir: Path = MODEL_DIR, importances: "pd.DataFrame | None" = None) -> Path:
    """Writes a run's `report.html`, whole or not at all, and returns its path.

    Args:
        run: Finished, or still going.
        model_dir: Where the final model is; what it holds is shown if it is this run's.
        importances: From `importances.of_run`; None has them computed.

    Raises:
        UserError: A file is damaged, or the disk is full.
    """
    path = run.path / "report.html"
    files.write_text(path, render(run, load_final(run, model_dir), importances))
    return path


def render(run: Run, final: Final | None, importances: "pd.DataFrame | None" = None) -> str:
    """Returns the page; arguments as in `write`."""
    import jinja2
    import pandas as pd
    import plotly.offline
    from markupsafe import Markup

    from tuning import analysis, audit, thumbnails
    from tuning.style import CLASS_COLOURS, STATE_COLOURS

    trials, meta = analysis.active(run.trials), masking.masked_all(run.meta)
    winner = _winner(run, trials, final)
    figures = _run_figures(run, trials, importances) | ({} if final is None else _final_figures(final))
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("tuning"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page.globals |= {
        "exact": exact,
        "percent": percent,
        "points": points,
        "table": table,
        "spoken": spoken,
        "frame": pd.DataFrame,
    }
    return page.get_template("report.html.j2").render(
        run=run,
        meta=meta,
        trials=trials,
        final=final,
        metrics=None if final is None else final.metrics,
        winner=winner,
        searched=[name.removeprefix("config/") for name in analysis.varying(trials)],
        minutes=results.minutes(run) if len(trials) else 0.0,
        audited=audit.text(meta["audit"]) if meta.get("audit") else None,
        verdicts=[] if final is None else verdicts(final.metrics),
        shown_trials=_shown_trials(trials),
        images=None if final is None or not final.outputs else thumbnails.pictures(final.outputs, final.class_names),
        figures={name: json.loads(figure.to_json()) for name, figure in figures.items()},
        colours=STATE_COLOURS | {f"class-{i}": colour for i, colour in enumerate(CLASS_COLOURS)},
        plotlyjs=Markup(plotly.offline.get_plotlyjs()),
    )


def verdicts(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns a word and a sentence for each thing that the winner was compared with: was the search worth it?"""
    found = []
    for name, other in (("random", "the best of the points drawn at random"), ("default", "the default configuration")):
        value = metrics.get(f"{name}_difference")
        if value is None:
            continue
        low, high = metrics.get(f"{name}_difference_interval") or (math.nan, math.nan)
        if value == low == high == 0:  # No two configurations are as equal as that.
            found.append(("No", f"The winner is {other} itself."))
            continue
        side = "better" if value >= 0 else "worse"
        interval = "" if math.isnan(low) else f" (95% interval {100 * low:+.2f} to {100 * high:+.2f})"
        chance = "" if low > 0 or high < 0 else ", which may be chance"
        word = "Yes" if low > 0 else "No" if high < 0 else "Not shown"
        found.append((word, f"{abs(100 * value):.2f} points {side} than {other}{interval}{chance}."))
    return found


def table(frame: "pd.DataFrame") -> dict[str, Any]:
    """Returns a frame for the page: `columns` (heading, whether numeric) and `rows` of cells (text, full value)."""
    import pandas as pd

    columns = [
        {
            "heading": _HEADINGS.get(str(name), str(name)).removeprefix("config/").replace("_", " "),
            "numeric": pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column),
        }
        for name, column in frame.items()
    ]
    said = [
        [(spoken(value, str(name)), str(value)) for name, value in zip(frame, row, strict=True)]
        for row in frame.itertuples(index=False, name=None)
    ]
    rows = [[(text, "" if text == NOTHING else value) for text, value in row] for row in said]
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


def points(value: float | None) -> Any:
    """Returns a difference of shares as HTML, in points of a per cent with a sign."""
    return exact(value, None if value is None else f"{100 * value:+.2f}")


def spoken(value: Any, name: str = "") -> str:
    """Returns a value of a frame or of a JSON file, rounded for the eye as its name asks for."""
    import pandas as pd

    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if pd.isna(value):
        return NOTHING
    if isinstance(value, float):
        if "difference" in name:
            return f"{100 * value:+.2f}"
        if "accuracy" in name or name.startswith(("precision", "recall", "f1", "seed_")):
            return f"{value:.2%}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}" if int(value) >= 10_000 and "seed" not in name else str(value)
    return _TIME.sub(r"\1 \2 UTC", str(value))


def _read_csv(path: Path) -> "pd.DataFrame | None":
    import pandas as pd

    whole = {"rank": "Int64", "trial": "Int64", "config_hash": "str", "class": "str"}
    return pd.read_csv(path, dtype=whole) if path.exists() else None


def _winner(run: Run, trials: "pd.DataFrame", final: Final | None) -> dict[str, Any] | None:
    """Returns the row of the trial that `final` chose, or else of the best one so far; None where none has finished."""
    finished = trials["state"].isin(["complete", "pruned"])
    if not finished.any():
        return None
    chosen = trials[trials["trial"] == (None if final is None else final.metrics.get("trial"))]
    rows = trials[trials["trial"] == run.best["trial"]] if chosen.empty else chosen
    return results.plain({str(name): value for name, value in rows.iloc[0].items()})


def _shown_trials(trials: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the trials as the page lists them: the best first, columns that say nothing left out."""
    from tuning import analysis

    notes = [name for name in _NOTES if name in trials and trials[name].notna().any()]
    shown = trials[[*_TRIAL_COLUMNS, *analysis.varying(trials), *notes]]
    return shown.sort_values(["valid_accuracy", "trial"], ascending=[False, True], na_position="last")


def _run_figures(run: Run, trials: "pd.DataFrame", importance: "pd.DataFrame | None") -> dict[str, Any]:
    from tuning import analysis, charts

    epochs, figures = run.epochs, {}
    finished = trials["state"].isin(analysis.FINISHED) & trials["valid_accuracy"].notna()
    if finished.any():
        figures["best_so_far"] = charts.best_so_far(analysis.best_so_far(trials, run.clock), trials)
    if epochs["valid_accuracy"].notna().any():
        best = int(run.best["trial"]) if finished.any() else None
        figures["learning_curves"] = charts.learning_curves(epochs, trials, best)
    if trials["valid_accuracy"].notna().sum() >= MIN_TRIALS_FOR_COORDINATES and analysis.varying(trials):
        figures["parallel_coordinates"] = charts.parallel_coordinates(trials)
    if importance is None and finished.any() and (run.path / "study.db").exists():
        from tuning import importances

        importance = importances.of_run(run)
    if importance is not None and len(importance):
        figures["importances"] = charts.importances(importance)
    if "pareto" in trials and trials["pareto"].any():
        figures["pareto"] = charts.pareto(trials, run.meta["settings"].get("minimize") or "n_parameters")
    return figures


def _final_figures(final: Final) -> dict[str, Any]:
    from tuning import analysis, model_charts, thumbnails

    figures = {} if final.configurations is None else {"seeds": model_charts.seeds(final.configurations)}
    if not final.outputs:
        return figures
    outputs, names = final.outputs, final.class_names
    labels, probabilities = outputs["labels"], outputs["probabilities"]
    shown = thumbnails.thinned(outputs["images"])
    said = [thumbnails.caption(int(i), labels[i], probabilities[i], names) for i in shown]
    return figures | {
        "confusion": model_charts.confusion(analysis.confusion(labels, probabilities.argmax(axis=1), names)),
        "reliability": model_charts.reliability(analysis.calibration(labels, probabilities)[1]),
        "features": model_charts.features(outputs["points"][shown], outputs["explained"], labels[shown], said, names),
    }


def main(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder, or 'latest'.")] = "latest",
    model_dir: Annotated[Path, typer.Option(help="Where the final model and its scores are.")] = MODEL_DIR,
) -> None:
    """Write a run and its final model as one page that opens offline: results/<run>/report.html."""
    found = results.load(run)
    path = write(found, model_dir)
    results.send(found)
    print(f"Written: {path} ({path.stat().st_size / 1e6:.1f} MB). Open it in a browser.")


if __name__ == "__main__":
    run_command(main)

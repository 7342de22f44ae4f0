"""A run folder as typed data frames: `results.load("latest").trials`.

    python -m tuning.results [RUN]                      the best trials, the run in a line, what to do next (under 2 s)
    python -m tuning.results list | compare RUN RUN...  all runs | what differs, the metric at equal cost, a picture

This module needs neither torch nor Ray. Rows come from the search; here they are read and given fixed dtypes.
"""

from pathlib import Path
from typing import Annotated

import typer

from tuning.base import files, rim
from tuning.base.errors import UserError, run_command
from tuning.base.registries import OBJECTIVES
from tuning.base.tables import print_frame
from tuning.runs import beginnings, schema
from tuning.runs.run_folder import RESULTS, Run, last_error, load, ran, rank_trials
from tuning.runs.summaries import next_step, summary_line

LIMIT, OUT = 10, RESULTS / "compare.png"  # Trials of a run, and the picture of a comparison, if nothing else is said.


def print_trials(run: Run, limit: int = LIMIT) -> None:
    """Prints the best trials as a table: the metric, length, cost and the hyperparameters that differ.

    Where none has finished, that is printed, and why the last one failed.
    """
    trials = ran(run.trials)
    if not trials["state"].isin(schema.HAVE_RESULTS).any():
        print(f"No trial has finished.{last_error(trials)}")
        return
    metric = run.metric
    best = rank_trials(trials, run.path, metric).head(limit)
    config = [c for c in best.filter(like="config/") if best[c].nunique(dropna=False) > 1 and c != "config/epochs"]
    endings = {"complete": "", "pruned": " (stopped)", "paused": " (paused)"}
    epochs = best["epochs"].astype("str") + best["state"].map(endings)
    values = {metric.called: best[metric.column], "valid_accuracy": best["valid_accuracy"]}
    shown = best[["trial"]].assign(**values, epochs=epochs, minutes=best["seconds"] / 60)
    if best["pareto"].any():
        shown = shown.join(best[[*OBJECTIVES, "pareto"]])
    print_frame(shown.join(best[config]), f"Best trials of {run.name}", said={metric.called: metric.said})


def print_edges(run: Run) -> None:
    """Prints at which ends of their ranges the best trials lie, if any do, and which lines of the space say so."""
    from tuning.runs import edges

    try:
        said = edges.text(run)
    except UserError as error:
        said = f"Whether the best trials lie at an end of a range is not known: {error}"
    if said:
        print(said)


def _print_comparison(runs: list[Run], out: Path) -> None:
    from tuning.runs import compare

    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out must end in .png, .pdf or .svg, but got {str(out)!r}.")
    differences, accuracies = compare.differences(runs).reset_index(), compare.at_equal_cost(runs)
    print_frame(differences, "What differs")
    metric = compare.metric_of(runs)
    said = {f"{which}_{metric.name}": metric.said for which in ("best", "median")}
    print_frame(accuracies, "Best, and median of the trials, at the cost that all runs reached", said=said)
    print("\n".join(compare.caveats(runs)))
    if not rim.usable("figures", "The picture is", print):
        return
    from tuning.figures import run_figures, style

    try:
        style.save(run_figures.best_so_far_of(compare.curves(runs), metric), out)
    except UserError as error:
        raise UserError(f"{error} Name another place with --out FILE.png.") from error
    print(f"Best-so-far curves: {out}")


def main(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="RUN|list|compare RUN RUN", help="RUN: a name or a folder.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"How many of the best trials of RUN to print (default: {LIMIT}).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=f"The picture that compare draws (default: {OUT}).")] = None,
) -> None:
    """Print the best trials of a run (the latest) and what to do next; or list the runs; or compare some of them."""
    words = words or ["latest"]
    if out is not None and words[0] != "compare":
        raise UserError(f"--out must be left out with {words[0]!r}: it is the picture that compare draws.")
    if limit is not None and words[0] in ("list", "compare"):
        raise UserError(f"--limit must be left out with {words[0]!r}: it is how many trials of one run are printed.")
    match words:
        case ["list"]:
            from tuning.runs.compare import HOW, list_runs

            listed = list_runs()
            equal = [name for name in HOW if listed[name].nunique(dropna=False) == 1]
            print_frame(listed, f"Runs below {RESULTS}/", least=list(dict.fromkeys([*equal, *reversed(HOW)])))
        case ["compare", *names]:
            _print_comparison([load(name) for name in names], files.expanded(out or OUT))
        case [name]:
            found = load(name)
            print(summary_line(found))
            if began := beginnings.text(found):
                print(began)
            print_trials(found, limit or LIMIT)
            print_edges(found)
            frames = [str(path) for name in ("trials.csv", "epochs.csv") if (path := found.path / name).exists()]
            where = f"Frames: {', '.join(frames)}. " if frames else ""
            print(f"{where}Next: {next_step(found)}")
        case several:
            raise UserError(f"The command must be a run, list, or compare RUN RUN..., but got {' '.join(several)!r}.")


if __name__ == "__main__":
    run_command(main)

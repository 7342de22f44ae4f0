"""Search hyperparameters with Ray Tune and Optuna; trials train on the train split and are judged on the valid split.

    python -m tuning.search --samples 20
    python -m tuning.search --config FILE.yaml              options from a file; meta.json of a run is one, too

The same from Python: `search.run(samples=20)`. The run folder holds everything: the study, the frames, the
checkpoints. The test split is not opened.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning.base import doors, files, interrupts
from tuning.base.config import read_mapping
from tuning.base.errors import UserError, counted, run_command
from tuning.base.own_model import SIGNATURE
from tuning.base.registries import METRICS, OBJECTIVES, SAMPLERS, SCHEDULERS
from tuning.images import options
from tuning.images.catalogue import DATASETS
from tuning.runs import beginnings, convergence, run_folder, schema, summaries
from tuning.runs.run_folder import Run
from tuning.trials import record
from tuning.trials.settings import BEGUN_SLOTS, as_options, fitting
from tuning.trials.settling import Settled, settle

if TYPE_CHECKING:
    from tuning.trials.progress import Progress

# The defaults with --minimize.
[OTHER_SAMPLER, *_], [OTHER_SCHEDULER, *_] = fitting(two_objectives=True)


@doors.passed
def run(
    *,
    samples: Annotated[int | None, typer.Option(help="Trials to run in all (default: 20).")] = None,
    space: Annotated[
        str | Path | Callable[[Any], Mapping[str, Any]],
        typer.Option(
            help=f"A search space: {', '.join(files.space_names())}, or FILE.py (default: resnet; "
            "for your own images from 64 pixels on photos, or scans if they are gray)."
        ),
    ] = "resnet",
    model: Annotated[
        Path | str | None,
        typer.Option(help=f"A network of yours: FILE.py with {SIGNATURE} (then --space is own by default)."),
    ] = None,
    dataset: Annotated[
        str | Path, typer.Option(help=f"Images of your own, a folder or a file; or {DATASETS.listed}.")
    ] = DATASETS.default,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Length of a full trial, where the space sets none (default: 6; on GPUs 18)."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=doors.LARGEST_SEED, help="Chooses the valid split, the points and the trials' seeds."),
    ] = 0,
    run: Annotated[
        str | None, typer.Option(help="Name of the run folder below results/ (default: date-dataset-n).")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help=f"{SAMPLERS.listed} (default: {SAMPLERS.default}; {OTHER_SAMPLER} with --minimize)."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help=f"{SCHEDULERS.listed}: what stops trials early (default: {SCHEDULERS.default}; {OTHER_SCHEDULER} with "
            "--minimize)."
        ),
    ] = None,
    start_from: Annotated[
        str | Path | Run | list[Any] | None,
        typer.Option(
            metavar="RUN[,RUN]",
            help="Begin with what these runs have found, of this data set or another; or latest.",
        ),
    ] = None,
    cost: Annotated[
        str,
        typer.Option(help="epochs or seconds: with seconds, what promises most a second of its training is tried."),
    ] = "epochs",
    minimize: Annotated[
        str | None, typer.Option(help=f"{OBJECTIVES.listed}: beside the metric, without a scheduler.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help=f"{METRICS.listed}: what counts on the valid split, in the search and in `final`.")
    ] = METRICS.default,
    address: Annotated[
        str | None, typer.Option(help="Run on this Ray cluster: auto or HOST:PORT, from a node of it; with --storage.")
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve Ray's dashboard, to this machine only.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: cuda where there is one); on a cluster also any.")
    ] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(min=0.1, help="CPU cores a trial (default: 1).")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0, help="GPUs, or a share of one, a trial.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials side by side (default: as many as fit).")] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="End after e.g. 30m; what runs then counts as stopped.")
    ] = None,
    until_converged: Annotated[
        bool | None, typer.Option(help="End when there is nothing left to gain; --samples is then the most.")
    ] = None,
    data_dir: Annotated[Path | str | None, typer.Option(help="A folder that holds the data set's files.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Train on this many images only, stratified.")] = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    group_pattern: options.GroupPattern = None,
    labels_leave_out: options.LabelsLeaveOut = None,
    min_images: options.MinImages = None,
    skip_broken: options.SkipBroken = False,
    image_size: options.ImageSize = None,
    resize: options.HowResized = None,
    storage: Annotated[
        str | Path | None,
        typer.Option(help="Keep the run in this place, too: s3://BUCKET/FOLDER, gs://… or a shared folder."),
    ] = None,
    mlflow: Annotated[str | None, typer.Option(help="Log each trial to this MLflow tracking URI, too.")] = None,
    audit: Annotated[
        int | None,
        typer.Option(min=0, help="Train so many stopped trials to their end afterwards, to see what stopping lost."),
    ] = None,
    max_failures: Annotated[int, typer.Option(min=0, help="Retries of a trial that fails, from its last epoch.")] = 2,
    resume: Annotated[
        str | Path | Run | None, typer.Option(help="Resume this run, or 'latest'; more --samples extend it.")
    ] = None,
    progress: bool = True,
) -> Run:
    """Searches, and returns the run: `run.trials`, `run.epochs`, `run.best` and its folder `run.path`.

    The options are those of `python -m tuning.search --help`. Ctrl-C, or interrupting a notebook's kernel, ends the
    search when the running epochs have ended, after 10 s at most, as in the command; what there is stays in the run
    folder, and `search.run(resume="latest")` resumes it. A second one, a second later, ends the search at once.

    Args:
        samples: Trials to run in all; None is 20.
        space: A search space's name, a file, or a function that returns the hyperparameters of a trial. The run keeps
            the function's source, and what that reads. The default is "resnet"; for your own images from 64
            pixels on it is "photos", or "scans" if they are gray.
        model: A file with a network of yours, which configurations with the architecture "own" have. The run keeps its
            text. None is none; else the space is "own" by default.
        dataset: The path of your own images, a folder or a file; or a data set's name.
        epochs: Length of a full trial, at least 1; None is 6, on GPUs 18.
        seed: From 0 to 2**32 - 1; chooses the valid split, the points and the trials' seeds.
        run: Name of the run folder below `results/`; None is date-dataset-n.
        sampler: Proposes the points.
        scheduler: Stops trials early.
        start_from: Runs, or their names; the search begins with what they have found. None is none.
        cost: "epochs" or "seconds": what a training is taken to cost. With "seconds" the sampler, which must be
            "curves", learns what configurations take, and tries what promises most a second.
        minimize: A second objective, beside the metric.
        metric: What counts on the valid split.
        address: Of a Ray cluster.
        dashboard: Serve Ray's dashboard.
        device: "cpu" or "cuda", on a cluster also "any"; None is cuda where there is one.
        cpus_per_trial: CPU cores a trial; None is 1.
        gpus_per_trial: GPUs, or a share of one, a trial.
        concurrency: Trials side by side; None is as many as fit.
        time_budget: A duration such as "30m", after which the search ends.
        until_converged: End when the sampler, which must be "curves", expects nothing more; `samples` is then the most.
            None is no, or as a run was begun that is resumed without `samples`.
        data_dir: A folder that holds the data set's files.
        train_images: Train on this many images only.
        image_column: The column of a table that has each image's file or id; None finds it by its name.
        label_column: The column that has its label.
        split_column: The column that says train, valid or test.
        group_column: The column of groups, none of which lies on two sides of a split.
        group_pattern: A regular expression for the group in an image's path.
        labels_leave_out: Labels that are left out.
        min_images: Classes with fewer images are left out, at least 1.
        skip_broken: Leave out images that cannot be read.
        image_size: Side in pixels to which images are brought, at least 8; None follows from their own sizes.
        resize: How: "crop", "pad" or "stretch"; None is what did best on the sets that it was measured on.
        storage: A second place for the run.
        mlflow: The URI of an MLflow tracking server.
        audit: So many stopped trials are trained to their end afterwards; None is none, or as a resumed run was begun.
        max_failures: Retries of a trial that fails.
        resume: A run, or its name, folder or URI, or "latest", to be resumed with its own options. Of others only
            samples, until_converged, time_budget, data_dir, audit, address and dashboard may be passed.
        progress: Show the live view in a terminal or a notebook, else a line an event; False prints nothing.

    Raises:
        UserError: An option cannot be taken, or what the command would print as `error: ...`.
        KeyboardInterrupt: The search was interrupted; the text says how to resume it.
    """
    return _from_python(locals())


def _from_python(options: Mapping[str, Any]) -> Run:
    """Does what `run` says with its parameters, one of which has its name."""
    asked = doors.asked(run, options)
    words = {
        name: getattr(value, "__name__", repr(value)) for name, value in vars(asked).items() if name in asked.given
    }
    given = ", ".join(f"{name}={word}" for name, word in words.items())
    found = _search(asked, silent=not asked.progress, command=f"search.run({given})")
    if found.meta.get("stopped_by") == "interrupt":
        raise interrupts.Interrupted(f"Interrupted. {_resume_in_python(found.path)}")
    return found


def _search(asked: doors.Asked, *, command: str | None = None, **shown: Any) -> Run:
    """Settles what is asked for, announces it and runs it; returns the run, which may have been interrupted."""
    with ExitStack() as stack:
        settled = settle(asked, stack, dry_run=False)
        settings, path = settled.settings, settled.path
        progress = stack.enter_context(_announced(settled, "Run", **shown))
        with interrupts.importing():  # Not before: who asks for help, or errs, waits for none of it.
            from tuning.sampling import samplers  # noqa: F401
            from tuning.trials import loading, local_ray, session
        settings, splits, space = loading.load(settings, settled.source, progress, settled.own)
        if not settled.resumed and (left := record.begin(path, settings, space, command, settled.earlier)):
            progress.note(left)
        resume = _resume(path) if command is None else _resume_in_python(path)
        stack.enter_context(interrupts.resumable(resume))
        if settings.mlflow is not None:
            from tuning.remote import tracking

            stack.enter_context(tracking.logged(settings.mlflow, path, progress.note))
        try:
            session.search(settings, path, splits, space, progress, resumed=settled.resumed)
        except local_ray.StartError as error:
            raise UserError(f"{error} The run folder {path} stays. {resume}") from error
    return Run(path)


def _resume(path: Path) -> str:
    return f"Resume it with: python -m tuning.search --resume {files.quoted(path)}"


def _resume_in_python(path: Path) -> str:
    return f"Resume it with: search.run(resume={files.called(path)!r})"


def _announced(settled: Settled, what: str, **shown: Any) -> "Progress":
    """Returns what shows the trials, those of earlier sessions included, and has said what is going to happen."""
    from tuning.trials.progress import Progress

    settings, n_done = settled.settings, _n_done(settled)
    metric = METRICS[settings.metric]
    progress = Progress(settings.samples, n_done, time_budget=settings.time_budget, metric=metric, **shown)
    if settled.resumed:
        before = Run(settled.path)
        progress.seed(run_folder.ran(before.trials).to_dict("records"), before.epochs.to_dict("records"))
    progress.note(
        f"{what} {settled.path}: {counted(settings.samples, 'sample')}, {settings.concurrency} side by side on "
        f"{settings.device}"
    )
    for note in settled.notes:
        progress.note(note)
    return progress


def _n_done(settled: Settled) -> int:
    """Returns how many trials earlier sessions have ended; the folder of a new run need not be there."""
    return int(run_folder.have_ended(run_folder.ran(Run(settled.path).trials)).sum()) if settled.resumed else 0


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Has the command take its options from a file, e.g. the `meta.json` of a run."""
    if path is not None:
        path = files.expanded(path)
        values = read_mapping(path, "options", words=True)
        recorded = values.get("settings")
        if isinstance(recorded, dict):
            beside = [str(name) for name in values if name != "settings"]
            if beside and not {"id", "command"} & values.keys():  # A record has these, which are no options.
                raise UserError(
                    f"{path} must have its options below settings or beside it, but got both: beside it are "
                    f"{', '.join(beside)}. Move them all to one place."
                )
            begun = values.get(BEGUN_SLOTS)  # Of a resumed run: the slots that it had before, maybe on another machine.
            values = {**recorded, **(begun if isinstance(begun, dict) else {})}
        doors.read_options(context, main, as_options(values), path)
    return path


@doors.over(run)
def main(
    asked: doors.Asked,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            is_eager=True,
            callback=_read_config,
            help="Take options from this YAML or JSON file; those of the command line win.",
        ),
    ] = None,
    dry_run_only: Annotated[
        bool,
        typer.Option("--dry-run", help="Time a few steps of each kind of trial, say what the search takes, and end."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print notes and the result only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="In a terminal, print a line an event, too.")] = False,
) -> None:
    """Search architecture, learning rate, batch size and the rest; print the best configurations."""
    if not dry_run_only:
        _print_outcome(_search(asked, quiet=quiet, verbose=verbose))
        return
    from tuning.trials import estimate, loading

    with ExitStack() as stack:
        settled = settle(asked, stack, dry_run=True)
        settings = settled.settings
        progress = stack.enter_context(_announced(settled, "Dry run of", quiet=quiet, verbose=verbose))
        settings, splits, space = loading.load(settings, settled.source, progress, settled.own)
        choose_slots = settled.slots_are_open and settings.device == "cuda"
        print(estimate.dry_run(settings, splits, space, n_done=_n_done(settled), choose_slots=choose_slots))


def _page(found: Run) -> Path | None:
    """Returns the page of a run, if it has all trials: one that could not be written stays as it was."""
    page, trials = found.path / "report.html", found.path / "trials.csv"
    if not page.exists() or (trials.exists() and page.stat().st_mtime_ns < trials.stat().st_mtime_ns):
        return None
    return page


def _print_outcome(found: Run) -> None:
    """Prints the best trials and what to do next.

    Raises:
        typer.Exit: The search was interrupted.
        UserError: No trial has a result.
    """
    from tuning import results

    print(summaries.summary_line(found))
    if began := beginnings.text(found):
        print(began)
    has_results = found.trials["state"].isin(schema.HAVE_RESULTS).any()
    if has_results:
        results.print_trials(found, limit=5)
        if noise := summaries.noise_text(found):
            print(noise)
        if converged := convergence.text(found):
            print(converged)
        results.print_edges(found)
    if page := _page(found):
        print(f"Page: {page}")
    if found.meta.get("stopped_by") == "interrupt":
        print(f"Interrupted. {_resume(found.path)}")
        raise typer.Exit(interrupts.EXIT_CODE)
    if found.meta["estimate"]:
        print(summaries.estimate_line(found))
    if found.meta.get("audit"):
        print(summaries.audit_text(found.meta["audit"], found.metric))
    if not has_results:
        error = run_folder.last_error(found.trials)
        raise UserError(f"No trial of {found.path} has a result.{error} Next: {summaries.next_step(found)}")
    print(f"Run folder: {found.path}. Next: {summaries.next_step(found)}")


if __name__ == "__main__":
    run_command(main)

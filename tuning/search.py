"""Search hyperparameters with Ray Tune and Optuna; trials train on the train split and are judged on the valid split.

    python -m tuning.search --samples 20

The run folder holds everything: the study, the frames, the checkpoints. The test split is not opened.
"""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tuning import results
from tuning.base import files, interrupts, locks, rim
from tuning.base.errors import UserError, counted, run_command
from tuning.base.registries import OBJECTIVES, SAMPLERS, SCHEDULERS
from tuning.images.catalogue import DATASETS
from tuning.runs import run_folder
from tuning.trials import local_ray, record
from tuning.trials.session import dry_run, load, search
from tuning.trials.settings import (
    DEFAULT_EPOCHS,
    Settings,
    check_names,
    check_resumed,
    fitting,
    of_run,
    parse_duration,
    placed,
    plan_slots,
)
from tuning.trials.slots import Asked

# The defaults with --minimize.
[OTHER_SAMPLER, *_], [OTHER_SCHEDULER, *_] = fitting(two_objectives=True)


def _newest(name: str) -> run_folder.Run:
    """Returns the run to go on with: as it is here, or in its storage, if it has gone on elsewhere since."""
    if "://" not in name and (found := run_folder.load(name)).settings.get("storage") is None:
        return found
    rim.need("remote", "A run with a storage")
    from tuning.remote import stored_runs

    return stored_runs.newest(name)


def main(
    context: typer.Context,
    samples: Annotated[int | None, typer.Option(help="Trials to run in all (default: 20).")] = None,
    space: Annotated[
        str, typer.Option(help=f"A search space: {', '.join(files.space_names())}, or FILE.py.")
    ] = "resnet",
    dataset: Annotated[str, typer.Option(help=f"{DATASETS.listed}: the data set.")] = DATASETS.default,
    epochs: Annotated[int | None, typer.Option(min=1, help="Length of a full trial (default: 6; on GPUs 18).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the valid split, the points and the trials' seeds.")] = 0,
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
    minimize: Annotated[
        str | None, typer.Option(help=f"{OBJECTIVES.listed}: beside accuracy, without a scheduler.")
    ] = None,
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
    data_dir: Annotated[Path | None, typer.Option(help="A folder that holds the data set's files.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Train on this many images only, stratified.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Keep the run in this place, too: s3://BUCKET/FOLDER, gs://… or a shared folder.")
    ] = None,
    mlflow: Annotated[str | None, typer.Option(help="Log each trial to this MLflow tracking URI, too.")] = None,
    audit: Annotated[
        int,
        typer.Option(min=0, help="Train so many stopped trials to their end afterwards, to see what stopping lost."),
    ] = 0,
    max_failures: Annotated[int, typer.Option(min=0, help="Retries of a trial that fails, from its last epoch.")] = 2,
    resume: Annotated[
        str | None, typer.Option(help="Go on with this run, or 'latest'; more --samples extend it.")
    ] = None,
    dry_run_only: Annotated[
        bool,
        typer.Option("--dry-run", help="Time a few steps of each kind of trial, say what the search takes, and end."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print notes and the result only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="In a terminal, print a line an event, too.")] = False,
) -> None:
    """Search architecture, learning rate, batch size and the rest; print the best configurations."""
    from tuning.trials.progress import Progress

    for option, value in (("--address", address), ("--storage", storage), ("--mlflow", mlflow)):
        if value is not None:
            rim.need("remote", option)
    if samples is not None and samples < 1:
        raise UserError(f"--samples must be at least 1, but got {samples}.")
    budget = None if time_budget is None else parse_duration(time_budget)
    open_slots, trials_a_gpu, password, changed = False, None, "", ""
    if resume is not None:
        found = _newest(resume)
        if not dry_run_only:
            context.with_resource(locks.hold(found.path, "search"))
            run_folder.mend(found, print)
        settings = replace(of_run(found), time_budget=budget)
        settings = replace(settings, samples=samples or settings.samples, audit=audit or settings.audit)
        if "://" in resume:
            from tuning.remote.storage import split

            settings = replace(settings, storage=split(resume)[0])
        if settings.mlflow is not None:  # Version 0.2.0 wrote its password down.
            rim.need("remote", "--mlflow")
            from tuning.remote import tracking

            settings = replace(settings, mlflow=tracking.without_secret(settings.mlflow))
        settings = replace(settings, dashboard=dashboard)
        check_resumed(context, found, samples)
        settings, changed = placed(settings, address or settings.address or "local", found.meta.get("hardware"))
        if data_dir is not None:
            settings = replace(settings, data_dir=str(data_dir))
        elif settings.data_dir is not None and not Path(settings.data_dir).is_dir():
            changed = (
                f"{changed} The folder {settings.data_dir} is not here; the images are looked for elsewhere.".strip()
            )
            settings = replace(settings, data_dir=None)
        if dry_run_only and settings.device == "any":
            raise UserError(f"--dry-run must be of a run on cpu or cuda, but got {found.name}, which is on any.")
        source, path = str(found.path / "space.py"), found.path
        if not Path(source).exists():
            raise UserError(f"{source}, the search space of the run, is missing. Put back a copy of it to resume.")
    else:
        sampler, scheduler = check_names(space, dataset, sampler, scheduler, minimize)
        taken: Collection[str] = ()
        if storage is not None:
            from tuning.remote.storage import Store, usable

            storage = usable(storage)
            taken = Store(storage).runs()
        source, path = space, record.new_path(run, dataset, taken=taken)
        if mlflow is not None:
            from tuning.remote import tracking

            recorded = tracking.check(mlflow)
            password, mlflow = "" if recorded == mlflow else tracking.needed(recorded), recorded
        if dashboard:
            local_ray.check_dashboard(address)
        if device == "any" and (address is None or dry_run_only):
            raise UserError(
                f"--device must be cpu or cuda {'with --dry-run' if address else 'on one machine'}, but got 'any'."
            )
        from tuning.sampling.spaces import load_space
        from tuning.trials import estimate

        open_slots = address is None and concurrency is None and gpus_per_trial is None and device != "cpu"
        trials_a_gpu = estimate.recall_slots(load_space(space).source, dataset) if open_slots else None
        asked = Asked(device, cpus_per_trial, gpus_per_trial, concurrency)
        slots = plan_slots(address, storage, asked, trials_a_gpu)
        settings = Settings(
            samples=samples or 20,
            space=space,
            dataset=dataset,
            epochs=epochs or DEFAULT_EPOCHS["cuda" if slots.device == "cuda" else "cpu"],
            seed=seed,
            sampler=sampler,
            scheduler=scheduler,
            train_images=train_images,
            data_dir=None if data_dir is None else str(data_dir),
            max_failures=max_failures,
            time_budget=budget,
            minimize=minimize,
            mlflow=mlflow,
            audit=audit,
            dashboard=dashboard,
            storage=storage,
            **vars(slots),
        )
        if not dry_run_only:
            path = context.with_resource(record.claimed(run, dataset, storage))
    before = run_folder.Run(path)
    trials = before.trials[before.trials["attempt"].fillna(1) != 0]  # Those that were run.
    n_done = int((trials["state"] != "running").sum())
    with Progress(settings.samples, n_done, quiet=quiet, verbose=verbose, time_budget=budget) as progress:
        progress.seed(trials.to_dict("records"), before.epochs.to_dict("records"))
        progress.note(
            f"{'Dry run of' if dry_run_only else 'Run'} {path}: {counted(settings.samples, 'sample')} "
            f"of at most {counted(settings.epochs, 'epoch')}, "
            f"{settings.concurrency} side by side on {settings.device}"
        )
        if password:
            progress.note(password)
        if changed:
            progress.note(changed)
        if trials_a_gpu is not None:
            progress.note(f"Trials on each GPU: {trials_a_gpu}, as the dry run of this space found to pay.")
        splits, found_space = load(settings, source, progress)
        if dry_run_only:
            print(dry_run(settings, splits, found_space, choose_slots=open_slots and settings.device == "cuda"))
            return
        if resume is None and (left := record.begin(path, settings, found_space)):
            progress.note(left)
        resume_it = interrupts.resumable(f"Resume it with: python -m tuning.search --resume {files.called(path)}")
        with resume_it, ExitStack() as stack:
            if settings.mlflow is not None:
                from tuning.remote import tracking

                stack.enter_context(tracking.logged(settings.mlflow, path, progress.note))
            search(settings, path, splits, found_space, progress, resumed=resume is not None)
    found = run_folder.Run(path)
    print(run_folder.summary_line(found))
    if found.trials["state"].isin(["complete", "pruned"]).any():
        results.print_trials(found, limit=5)
        if (page := found.path / "report.html").exists():
            print(f"Page: {page}")
    if found.meta.get("stopped_by") == "interrupt":
        print(f"Interrupted. Resume it with: python -m tuning.search --resume {files.called(found.path)}")
        raise typer.Exit(130)
    if found.meta["estimate"]:
        print(run_folder.estimate_line(found))
    if found.meta.get("audit"):
        print(run_folder.audit_text(found.meta["audit"]))
    print(f"Run folder: {found.path}. Next: {run_folder.next_step(found)}")


if __name__ == "__main__":
    run_command(main)

"""Retrain the best configurations of a run on fresh seeds, choose on the valid split, then open the test split once.

    python -m tuning.final [--run RUN] [--top-k 3] [--seeds 3]
    python -m tuning.final --top-k 1 --seeds 1                    the quick way: the best one, once, without comparisons
    python -m tuning.final --config FILE.json|FILE.yaml

Everything lands in `best_model/`; `best_model/test_log.jsonl` says each time that the test split was opened. Killed and
started again, it goes on from the last epochs.
"""

import contextlib
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tuning.base import files, interrupts, locks, rim
from tuning.base.errors import UserError, counted, run_command, unknown_name
from tuning.images.catalogue import DATASETS
from tuning.retraining import candidates, export
from tuning.retraining.candidates import Plan
from tuning.retraining.opening import opened_again, retrain_and_test, written
from tuning.retraining.verdict import TRAIN_ON
from tuning.runs import run_folder
from tuning.trials.slots import Asked, Slots, plan_slots

MODEL_DIR = run_folder.MODEL_DIR


def _summary(plan: Plan) -> str:
    """Returns in a line what is to be trained, and for how long where the search tells."""
    lengths = sorted({entry.config.epochs for entry in plan.entries})
    epochs = " to ".join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))
    names = ", ".join(f"{entry.name} ({entry.config.architecture})" for entry in plan.entries)
    return f"{names}; {counted(len(plan.seeds), 'seed')}, {epochs} {'epoch' if epochs == '1' else 'epochs'} at most"


def replaced(model_dir: Path, plan: Plan) -> str:
    """Returns a line on the model of another run that is in the folder; nothing where there is none."""
    file = model_dir / "metrics.json"
    if not file.exists():
        return ""
    try:
        old = files.read_json(file)
    except UserError as error:
        return f"The model in {model_dir}/ will be replaced; --model-dir DIR keeps it. {error}\n"
    if run_folder.is_of(old, plan.run, plan.identity):
        return ""
    if plan.run is None and old.get("run") is None and old.get("config_hash") == plan.entries[0].config.hash():
        return ""
    accuracy = old.get("test_accuracy")
    scored = f" (test accuracy {accuracy:.2%})" if isinstance(accuracy, float) else ""
    return (
        f"The model of {old.get('source', 'another run')} in {model_dir}/{scored} will be replaced; "
        "--model-dir DIR keeps it.\n"
    )


def _check_test_files(dataset: str, data_dir: Path | None) -> None:
    """Raises UserError where the files of the test split are missing or damaged; no image of them is looked at."""
    from tuning.images.datasets import hash_test

    hash_test(dataset, data_dir)


def _write_page(run: run_folder.Run, model_dir: Path) -> None:
    """Writes the run's page and sends it to the storage; what cannot be is said, as the model is there already."""
    if not rim.usable("figures", "The page is", print):
        return
    from tuning.figures import run_page

    try:
        print(f"Page: {run_page.write(run, model_dir)}")
        if run.settings.get("storage") is not None and rim.usable("remote", "The storage is", print):
            from tuning.remote import stored_runs

            stored_runs.send(run)
    except (UserError, OSError) as error:
        print(f"The page is not written: {error} `python -m tuning.report {files.called(run.path)}` writes it later.")


def main(
    run: Annotated[str, typer.Option(help="The run whose best configurations are retrained.")] = "latest",
    config: Annotated[
        Path | None, typer.Option(help="A JSON or YAML file, or original-resnet8: train that, without a search.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many of the run's best configurations.")] = 3,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Fresh seeds for each configuration (default: 3; with --config 1).")
    ] = None,
    max_parameters: Annotated[
        int | None, typer.Option(help="Take the best configurations of this size at most.")
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            help="Retrain the default configuration and the best random point of the run, too "
            "(default: yes; not with --top-k 1 --seeds 1)."
        ),
    ] = None,
    train_on: Annotated[
        str, typer.Option(help="train; or train+valid: train the winner once more on both, as the model to ship.")
    ] = "train",
    formats: Annotated[
        list[str] | None,
        typer.Option("--export", help="Write the model as onnx, safetensors or pt2, too; may be given again."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Full length (default: twice the search's; with --config its own).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The first seed; the others follow it (default: derived from the run).")
    ] = None,
    dataset: Annotated[str, typer.Option(help=f"{DATASETS.listed}: the data set, with --config.")] = DATASETS.default,
    data_dir: Annotated[Path | None, typer.Option(help="A folder that holds the data set's files.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda where there is one).")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trainings side by side (default: as many as fit).")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of a training that has the machine (default: all cores).")
    ] = None,
    model_dir: Annotated[Path, typer.Option(help="Where the model and its scores are written.")] = MODEL_DIR,
) -> None:
    """Retrain the best configurations on fresh seeds, test the winner once, and write best_model/."""
    if train_on not in TRAIN_ON:
        raise unknown_name("--train-on", train_on, TRAIN_ON)
    export.check_formats(formats or [])
    if config is None:
        n_seeds = 3 if seeds is None else seeds
        wanted = top_k * n_seeds > 1 if compare is None else compare
        plan = candidates.from_run(
            run,
            top_k=top_k,
            n_seeds=n_seeds,
            epochs=epochs,
            seed=seed,
            compare=wanted,
            max_parameters=max_parameters,
        )
    elif compare:
        raise UserError(f"--compare must be used with a run, but got --config {config}. Leave one of them out.")
    else:
        plan = candidates.from_file(config, model_dir, dataset, n_seeds=seeds or 1, epochs=epochs, seed=seed)
    slots = plan_slots(Asked(device, concurrency=concurrency))
    files.make_folder(model_dir, exist_ok=True)
    _check_test_files(plan.dataset, data_dir)
    with contextlib.ExitStack() as held:
        # Two at once would train everything twice, and open the test split twice.
        for folder in (*([] if plan.run is None else [Path(plan.source)]), model_dir):
            held.enter_context(locks.hold(folder, "final"))
        base = None if plan.run is None else run_folder.Run(Path(plan.source)).settings.get("storage")
        if base is not None and rim.usable("remote", "The storage is", print):
            from tuning.remote import leases, stored_runs

            uri = stored_runs.stored_at(base, Path(plan.source))
            try:
                held.enter_context(leases.leased(uri, "final", print, _end_for))
            except locks.InUseError:
                raise
            except UserError as error:  # The run is here, so that it need not be reached.
                print(f"The storage cannot be asked whether another machine does the same: {error}")
        carry_out(
            plan,
            slots,
            threads=threads,
            train_on=train_on,
            formats=formats or [],
            data_dir=data_dir,
            model_dir=model_dir,
        )


def _end_for(other: UserError) -> None:
    """Ends this process in order, as Ctrl-C does: another one works on the same, and both would open the test split.

    If it is open here, the result is written first.
    """
    print(other, file=sys.stderr)
    signal.raise_signal(signal.SIGTERM)


def carry_out(plan: Plan, slots: Slots, *, model_dir: Path, **asked: Any) -> None:
    """Retrains, tests, writes the model and the run's page, and prints what came of it; `asked` as in the command.

    Raises:
        UserError: As `retrain_and_test`.
    """
    print(f"Retraining {plan.source}: {_summary(plan)}", flush=True)
    print("".join(f"{note}\n" for note in plan.notes) + replaced(model_dir, plan), end="", flush=True)
    metrics = retrain_and_test(plan, slots, model_dir=model_dir, **asked)
    with interrupts.resumable(written(plan, model_dir)):
        print((model_dir / "scores.txt").read_text(encoding="utf-8"), end="")
        if plan.run is not None:
            _write_page(run_folder.load(plan.source), model_dir)
        if metrics["test_opened"] > 1:
            print(opened_again(metrics))
    where = "" if model_dir == MODEL_DIR else f" --model-dir {model_dir}"
    print(f"Written: {model_dir}/. Next: python -m tuning.predict{where} IMAGE")


if __name__ == "__main__":
    run_command(main)

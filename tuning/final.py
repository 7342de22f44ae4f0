"""Retrain the best configurations of a run on fresh seeds, choose on the valid split, then open the test split once.

    python -m tuning.final [--run RUN] [--top-k 3] [--seeds 3]
    python -m tuning.final --top-k 1 --seeds 1                    the quick way: the best one, once, without comparisons
    python -m tuning.final --config FILE.json|FILE.yaml

The same from Python: `final.run(run, top_k=3, seeds=3)`. Everything lands in `best_model/`;
`best_model/test_log.jsonl` says each time that the test split was opened. Killed and started again, it goes on from the
last epochs.
"""

import _thread
import contextlib
import functools
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tuning.base import doors, files, interrupts, locks, machine, own_model, rim
from tuning.base.errors import UserError, counted, run_command, unknown_name
from tuning.base.masking import masked
from tuning.base.registries import METRICS
from tuning.images import options
from tuning.images.catalogue import DATASETS
from tuning.images.source import Source
from tuning.retraining import artefacts, candidates
from tuning.retraining import export as export_formats
from tuning.retraining import minutes as minutes_of
from tuning.retraining.best_model import Winner
from tuning.retraining.candidates import Plan
from tuning.retraining.opening import opened_again, retrain_and_test, written
from tuning.retraining.shipping import SHIPPED, SINGLE
from tuning.retraining.verdict import TRAIN_ON
from tuning.runs import final_models, replacing, run_folder
from tuning.runs.verdicts import headline
from tuning.trials.slots import SlotRequest, Slots, plan_slots

MODEL_DIR = run_folder.MODEL_DIR
# What only a configuration without a run has, and only a run.
OF_CONFIG = ("model", "metric", "train_images", "dataset", *options.READING)
OF_RUN = ("run", "top_k", "max_parameters", "compare", "minutes")


def _summary(plan: Plan) -> str:
    """Returns in a line what is to be trained; a note of the plan says for how long where the search tells."""
    lengths = sorted({entry.config.epochs for entry in plan.entries})
    epochs = " to ".join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))
    names = ", ".join(f"{entry.name} ({entry.config.architecture})" for entry in plan.entries)
    return (
        f"{names}; {counted(len(plan.seeds), plan.repeat)}, {epochs} {'epoch' if epochs == '1' else 'epochs'} at most"
    )


def replaced(model_dir: Path, plan: Plan) -> str:
    """Returns a line on the model of another run that is in the folder; nothing where there is none."""
    file = model_dir / "metrics.json"
    if not file.exists():
        return ""
    try:
        old = files.read_json(file)
    except UserError as error:
        return f"The model in {model_dir}/ will be replaced; --model-dir DIR keeps it. {error}\n"
    source = Path(plan.source)
    if run_folder.is_of(old, plan.run, plan.identity) and (
        not (source / "meta.json").exists() or final_models.is_model_of(run_folder.Run(source), old)
    ):
        return ""
    if plan.run is None and old.get("run") is None and old.get("config_hash") == plan.entries[0].config.hash():
        return ""
    shown = headline(old)
    scored = f" (test {shown.metric.title} {shown.metric.said(shown.test)})" if isinstance(shown.test, float) else ""
    return (
        f"The model of {old.get('source', 'another run')} in {model_dir}/{scored} will be replaced; "
        "--model-dir DIR keeps it.\n"
    )


def _check_test_files(source: Source) -> None:
    """Raises UserError where the files of the test split are missing or damaged; no image of them is looked at."""
    from tuning.images.datasets import hash_test

    hash_test(source)


def _write_page(run: run_folder.Run, model_dir: Path, say: Callable[[str], None]) -> str:
    """Writes the run's page and sends it to the storage; returns where it is, or why it is not written."""
    if not rim.usable("figures", "The page is", say):
        return ""
    from tuning.figures import run_page

    try:
        said = f"Page: {run_page.write(run, model_dir)}"
        if run.settings.get("storage") is not None and rim.usable("remote", "The storage is", say):
            from tuning.remote import stored_runs

            stored_runs.send(run, say)
    except (UserError, OSError) as error:
        return f"The page is not written: {error} `python -m tuning.report {files.quoted(run.path)}` writes it later."
    return said


@doors.passed
def run(
    run: Annotated[
        run_folder.Run | str | Path, typer.Option(help="The run whose best configurations are retrained.")
    ] = "latest",
    *,
    config: Annotated[
        Path | str | None,
        typer.Option(help="A JSON or YAML file, or a name such as resnet8-5-minutes: train that, without a search."),
    ] = None,
    model: Annotated[
        Path | str | None, typer.Option(help="A network of yours, for --config; a run keeps its own copy.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many of the run's best configurations.")] = 3,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Fresh seeds for each configuration (default: 3; with --config 1).")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Train on so many splits of your own images, each valid in one, in the place of --seeds; 0 for none "
            "(default: 5 for fewer than 5,000 images without a valid split, where --seeds is not given).",
        ),
    ] = None,
    max_parameters: Annotated[
        int | None, typer.Option(help="Take the best configurations of this size at most.")
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            help="Retrain the original project's recipe (for your own images the space's first point) and the best "
            "random point, too, and regularise candidates that need it (default: yes; not with --top-k 1 --seeds 1)."
        ),
    ] = None,
    train_on: Annotated[
        str, typer.Option(help="train; or train+valid: train the winner once more on both, as the model to ship.")
    ] = "train",
    ship: Annotated[
        str,
        typer.Option(
            help="single; ensemble: the mean of the best of all models that were trained; or distilled: one network "
            "that learned from that mean, which takes longer to train."
        ),
    ] = "single",
    export: Annotated[
        list[str] | None,
        typer.Option("--export", help="Write the model as onnx, safetensors or pt2, too; may be given again."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Full length (default: twice the search's; with --config its own).")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=doors.LARGEST_SEED,
            help="The first seed; the others follow it (default: derived from the run).",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Plan what fits into so many minutes, by the times of the search (default: all)."),
    ] = None,
    dataset: Annotated[
        str | Path, typer.Option(help=f"With --config: images of your own, a folder or a file; or {DATASETS.listed}.")
    ] = DATASETS.default,
    train_images: Annotated[
        int | None, typer.Option(help="With --config: train on this many images only, stratified.")
    ] = None,
    data_dir: Annotated[Path | str | None, typer.Option(help="A folder that holds the data set's files.")] = None,
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
    metric: Annotated[
        str | None,
        typer.Option(help=f"What counts, with --config: {METRICS.listed} (default: accuracy; of a run its own)."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda where there is one).")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trainings side by side (default: as many as fit).")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of a training that has the machine (default: all cores).")
    ] = None,
    model_dir: Annotated[Path | str, typer.Option(help="Where the model and its scores are written.")] = MODEL_DIR,
    progress: bool = True,
) -> Winner:
    """Retrains the best configurations on fresh seeds, tests the winner once, and returns it.

    The options are those of `python -m tuning.final --help`. Interrupted, it goes on from the last epochs when it is
    called again with the same options.

    Args:
        run: A run, or its name, folder or URI.
        config: A JSON or YAML file of hyperparameters, in the place of a run.
        model: A file with a network of yours, with a `config` of the architecture "own".
        top_k: So many of the run's best configurations, at least 1.
        seeds: Fresh seeds for each configuration, at least 1; None is 3, with `config` 1.
        folds: Splits of one's own images, each of which is valid in one, in the place of `seeds`; 0 is none. None is 5
            for fewer than 5,000 images that have no valid split of their own, where `seeds` is None, and else 0.
        max_parameters: Of a configuration.
        compare: Retrain the original project's recipe, for one's own images the first point of the space, and the best
            random point, too, and give candidates more regularisation if they need it; None is yes if several are
            trained.
        train_on: "train", or "train+valid" to train the winner once more on both.
        ship: "single"; "ensemble" to write the best mean of all models that were trained; or "distilled" to train
            networks of the winner's configuration that learn from that mean, and to write the best of them. Where the
            valid images say that this is no better, the single model is written.
        export: Formats in which the model is written, too: "onnx", "safetensors", "pt2".
        epochs: Full length, at least 1; None is twice the search's.
        seed: The first seed, from 0 to 2**32 - 1; None derives it from the run.
        minutes: Plan what fits into so many, at least 0.1, by the times of the search; None is no limit.
        dataset: The path of your own images, or a data set's name, with `config`.
        train_images: Train on this many images only, with `config`; None is all. A run has its own.
        data_dir: A folder that holds the data set's files.
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
        metric: What counts, with `config`; None is the accuracy. A run has its own.
        device: "cpu" or "cuda"; None is cuda where there is one.
        concurrency: Trainings side by side; None is as many as fit.
        threads: CPU threads of a training that has the machine, at least 1; None is all cores.
        model_dir: Where the model and its scores are written.
        progress: Print a line an epoch, and how the configurations compare; False prints nothing.

    Raises:
        UserError: An option cannot be taken, or what the command would print as `error: ...`.
        KeyboardInterrupt: It was interrupted.
    """
    return _from_python(locals())


def _from_python(options: Mapping[str, Any]) -> Winner:
    """Does what `run` says with its parameters, one of which has its name."""
    asked = doors.asked(run, options)
    with interrupts.raised(command=False):
        winner, page = _retrained(asked, _say if asked.progress else _ignore)
    if page and not page.startswith("Page: "):
        warnings.warn(page, stacklevel=4)
    if winner.metrics["test_opened"] > 1:
        warnings.warn(opened_again(winner.metrics), stacklevel=4)
    return winner


def _say(text: str) -> None:
    print(text, flush=True)


def _ignore(text: str) -> None:
    """Says nothing."""


def _retrained(asked: doors.Asked, say: Callable[[str], None]) -> tuple[Winner, str]:
    """Settles what is asked for and carries it out; returns the winner, and a sentence on the run's page."""
    slots = plan_slots(SlotRequest(asked.device, concurrency=asked.concurrency))
    plan = _planned(asked, slots)
    if asked.ship != SINGLE and len(plan.entries) * len(plan.seeds) == 1:
        more = "more --minutes" if asked.minutes else "--seeds 2 or more"
        raise UserError(
            f"--ship {asked.ship} needs two trainings or more, because it begins with the mean of several models, but "
            f"{plan.source} would be trained once. Give {more}, or leave --ship out."
        )
    model_dir = files.expanded(asked.model_dir)
    artefacts.check_folder(model_dir)
    files.make_folder(model_dir, exist_ok=True)
    _check_test_files(plan.images)
    with contextlib.ExitStack() as held:
        _keep_others_out(plan, model_dir, held, say)
        if replacing.end_held(model_dir) and not replaced(model_dir, plan):
            say(
                f"An earlier command has tested the model of {plan.source}, and was killed while it moved the files. "
                f"They are in {model_dir}/ now, so the test split is not opened again. To test once more, run the same "
                "command again."
            )
            return Winner.of(model_dir), _page_of(plan, model_dir, say)
        page = carry_out(
            plan,
            slots,
            model_dir=model_dir,
            say=say,
            threads=asked.threads,
            train_on=asked.train_on,
            ship=asked.ship,
            formats=asked.export or [],
        )
        return Winner.of(model_dir), page


def _planned(asked: doors.Asked, slots: Slots) -> Plan:
    """Returns what is to be trained.

    Raises:
        UserError: An option cannot be taken.
    """
    if asked.train_on not in TRAIN_ON:
        raise unknown_name("--train-on", asked.train_on, TRAIN_ON)
    if asked.ship not in SHIPPED:
        raise unknown_name("--ship", asked.ship, SHIPPED)
    if asked.ship != SINGLE and asked.train_on != TRAIN_ON[0]:
        raise UserError(
            f"--ship {asked.ship} must be used with --train-on train, because valid images choose its models, but got "
            f"--train-on {asked.train_on}. Leave one of them out."
        )
    export_formats.check_formats(asked.export or [])
    lengths = {"epochs": asked.epochs, "n_seeds": asked.seeds, "folds": asked.folds}
    if asked.metric is not None:
        METRICS.find(asked.metric, "--metric")
    _refuse_what_is_not_read(asked)
    if asked.config is None:
        sizes = lengths | {"top_k": asked.top_k, "compare": asked.compare}
        where = None if asked.data_dir is None else files.expanded(asked.data_dir)
        return minutes_of.planned(
            functools.partial(
                candidates.from_run, asked.run, data_dir=where, max_parameters=asked.max_parameters, seed=asked.seed
            ),
            sizes,
            slots,
            minutes=asked.minutes,
            given={"n_seeds" if name == "seeds" else name for name in asked.given},
            threads=asked.threads,
            after=next((each for each in (asked.train_on, asked.ship) if each in minutes_of.AFTER), ""),
        )
    from tuning.images.datasets import with_size

    device = asked.device or ("cuda" if machine.gpu_memory() else "cpu")
    file, model_dir = Path(asked.config), Path(asked.model_dir)
    model = None if asked.model is None else Path(asked.model)
    return candidates.from_file(
        file,
        model_dir,
        with_size(options.source_of(asked), device),
        model=model,
        metric=asked.metric or METRICS.default,
        seed=asked.seed,
        train_images=asked.train_images,
        **lengths,
    )


def _refuse_what_is_not_read(asked: doors.Asked) -> None:
    """Raises UserError for an option of a run beside --config, or of a configuration's images without it."""
    for name in OF_CONFIG if asked.config is None else OF_RUN:
        value, option = getattr(asked, name), f"--{name.replace('_', '-')}"
        if name not in asked.given or value is None or value is False:
            continue
        if asked.config is None:
            raise UserError(
                f"{option} must be used with --config, because a run keeps its own, but got {value}. Leave it out, or "
                "search with it."
            )
        place = "without --config" if name == "run" else "with a run"
        raise UserError(f"{option} must be used {place}, but got --config {asked.config}. Leave one of them out.")


def _keep_others_out(plan: Plan, model_dir: Path, held: contextlib.ExitStack, say: Callable[[str], None]) -> None:
    """Has nobody else do the same: two at once would train everything twice, and open the test split twice."""
    for folder in (*([] if plan.run is None else [Path(plan.source)]), model_dir):
        held.enter_context(locks.hold(folder, "final", say))
    run = None if plan.run is None else run_folder.Run(Path(plan.source))
    if run is not None and run.settings.get("storage") is not None and rim.usable("remote", "The storage is", say):
        from tuning.remote import leases, stored_runs

        uri, is_behind = stored_runs.stored_at(stored_runs.base_of(run) or "", run.path), False
        try:
            held.enter_context(leases.leased(uri, "final", say, _end_for))
            is_behind = stored_runs.is_behind(run)
        except locks.InUseError:
            raise
        except UserError as error:  # The run is here, so that it need not be reached.
            say(f"The storage cannot be asked whether another machine does the same: {error}")
        if is_behind:
            raise UserError(
                f"{plan.source} is behind {masked(uri)}, where the search has gone on. Fetch that first with `--run "
                f"{masked(uri)}`."
            )


def _end_for(other: UserError) -> None:
    """Ends what is done in order, as Ctrl-C does: another one works on the same, and both would open the test split.

    If it is open here, the result is written first.
    """
    print(other, file=sys.stderr)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # Called in a thread, which sets no handlers.
        _thread.interrupt_main()
    else:
        signal.raise_signal(signal.SIGTERM)


def carry_out(plan: Plan, slots: Slots, *, model_dir: Path, say: Callable[[str], None] = _say, **asked: Any) -> str:
    """Announces, retrains, tests, and writes the model and the run's page; returns a sentence on that, or "".

    `asked` is as in `retrain_and_test`.

    Raises:
        UserError: As `retrain_and_test`.
    """
    say(f"Retraining {plan.source}: {_summary(plan)}")
    for note in filter(None, (*plan.notes, replaced(model_dir, plan).rstrip("\n"))):
        say(note)
    retrain_and_test(plan, slots, model_dir=model_dir, say=say, shows_contest=say is not _ignore, **asked)
    with interrupts.resumable(written(plan, model_dir)):
        return _page_of(plan, model_dir, say)


def _page_of(plan: Plan, model_dir: Path, say: Callable[[str], None]) -> str:
    return "" if plan.run is None else _write_page(run_folder.load(plan.source), model_dir, say)


@doors.over(run)
def main(asked: doors.Asked) -> None:
    """Retrain the best configurations on fresh seeds, test the winner once, and write best_model/."""
    winner, page = _retrained(asked, _say)
    folder, metrics = Path(asked.model_dir), winner.metrics
    print((folder / "scores.txt").read_text(encoding="utf-8"), end="")
    if page:
        print(page)
    if metrics["test_opened"] > 1:
        print(opened_again(metrics))
    where = "" if folder == MODEL_DIR else f" --model-dir {files.as_typed(folder)}"
    if (folder / own_model.KEPT).exists():
        where += f" --model {files.as_typed(folder / own_model.KEPT)}"
    print(f"Written: {folder}/. Next: python -m tuning.predict{where} IMAGE")


if __name__ == "__main__":
    run_command(main)

"""From the options of a search to what it will do: its settings, its folder, its space, and what to say beforehand.

Everything that can be refused is refused here, before torch or Ray is imported.
"""

import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuning.base import files, interrupts, locks, machine, own_model, rim
from tuning.base.doors import Asked
from tuning.base.errors import UserError, counted
from tuning.base.registries import METRICS, SAMPLERS
from tuning.images.options import READING, source_of
from tuning.images.source import Source
from tuning.runs import run_folder, schema
from tuning.runs.beginnings import EarlierRun
from tuning.trials import record
from tuning.trials import slots as slot_plans
from tuning.trials.settings import (
    DEFAULT_EPOCHS,
    N_STARTUP,
    Settings,
    begun_slots,
    check_audit,
    check_names,
    check_resumed,
    check_sampler_can,
    of_run,
    parse_duration,
    placed,
    plan_slots,
)

COLOUR = 3  # Channels.
LEAST_SIDE = 64  # Pixels; of smaller images a body that halves them five times leaves a map of a single pixel.


@dataclass(frozen=True)
class Settled:
    """What a search will do.

    Attributes:
        path: The run's folder.
        source: The name of the search space, or its file.
        resumed: The run was begun earlier.
        notes: What a person should know before it begins, a paragraph each.
        slots_are_open: A dry run may choose how many trials share a GPU.
        earlier: What a new run takes from earlier ones.
        own: What a configuration calls the user's own network; "" where there is none.
    """

    settings: Settings
    path: Path
    source: str
    resumed: bool
    notes: tuple[str, ...]
    slots_are_open: bool = False
    own: str = ""
    earlier: tuple[EarlierRun, ...] = ()


def settle(asked: Asked, stack: ExitStack, *, dry_run: bool) -> Settled:
    """Returns what a search will do; unless it is a dry run, `stack` keeps its folder for it.

    Raises:
        UserError: An option cannot be taken, or the run to be resumed is damaged or in use.
    """
    for option in ("address", "storage", "mlflow"):
        if getattr(asked, option) is not None:
            rim.need("remote", f"--{option}")
    if asked.samples is not None and asked.samples < 1:
        raise UserError(f"--samples must be at least 1, but got {asked.samples}.")
    budget = None if asked.time_budget is None else parse_duration(asked.time_budget)
    return (_new if asked.resume is None else _resumed)(asked, budget, stack, dry_run=dry_run)


def _resumed(asked: Asked, budget: float | None, stack: ExitStack, *, dry_run: bool) -> Settled:
    """Returns how a run is resumed: as it was begun, except for what any session may choose."""
    found, notes = _newest(asked.resume), list[str]()
    if not dry_run:
        stack.enter_context(locks.hold(found.path, "search", notes.append))
        run_folder.mend(found, notes.append)
    try:
        if not dry_run and any(run_folder.is_missing(found.path / name) for name in schema.FRAMES):
            from tuning.sampling.missing_frames import write_missing

            write_missing(found)
        settings, changed = _of_resumed(asked, found, budget, dry_run=dry_run)
    except UserError as error:  # What was mended is said all the same.
        raise UserError(" ".join([str(error), *notes])) from error
    kept = own_model.of_folder(found.path)
    own = "" if kept is None else kept.architecture
    said = (*notes, *filter(None, [changed, _too_few_samples(settings)]))
    return Settled(settings, found.path, str(found.path / "space.py"), True, said, own=own)


def _of_resumed(asked: Asked, found: run_folder.Run, budget: float | None, *, dry_run: bool) -> tuple[Settings, str]:
    """Returns the settings of a run that is resumed, and what is another than before, in a sentence or two."""
    before = of_run(found)
    kept = before.until_converged and asked.samples is None  # Who says how many trials there are to be has said it.
    settings = replace(
        before,
        time_budget=budget,
        samples=asked.samples or before.samples,
        audit=before.audit if asked.audit is None else asked.audit,
        until_converged=kept if asked.until_converged is None else asked.until_converged,
        dashboard=asked.dashboard,
    )
    if settings.storage is not None:
        from tuning.remote import stored_runs

        settings = replace(settings, storage=stored_runs.base_of(found))
    if settings.mlflow is not None:  # Version 0.2.0 wrote its password down.
        rim.need("remote", "--mlflow")
        from tuning.remote import tracking

        settings = replace(settings, mlflow=tracking.without_secret(settings.mlflow))
    check_resumed(asked.given, found, asked.samples)
    check_sampler_can(
        settings.sampler,
        until_converged=settings.until_converged,
        cost=settings.cost,
        two_objectives=settings.minimize is not None,
    )
    check_audit(asked.audit, settings.scheduler)
    address = asked.address or settings.address or "local"
    if asked.dashboard:
        from tuning.trials import local_ray

        local_ray.check_dashboard(None if address == "local" else address)
    settings, changed = placed(settings, address, begun_slots(found), found.meta.get("hardware"))
    if before.time_budget is not None and budget is None:
        was = "The time budget was that of the earlier session; this one has none, unless --time-budget gives it one."
        changed = f"{changed} {was}".strip()
    if asked.data_dir is not None:
        settings = replace(settings, data_dir=str(files.expanded(asked.data_dir).absolute()))
    elif settings.data_dir is not None and not os.path.exists(settings.data_dir):
        changed = f"{changed} {settings.data_dir} is not here; the images are looked for elsewhere.".strip()
        settings = replace(settings, data_dir=None)
    if dry_run and settings.device == "any":
        raise UserError(f"--dry-run must be of a run on cpu or cuda, but got {found.name}, which is on any.")
    source = found.path / "space.py"
    if not source.exists():
        raise UserError(f"{source}, the search space of the run, is missing. Put back a copy of it to resume.")
    if settings.model is not None and not (found.path / own_model.KEPT).exists():
        raise UserError(
            f"{found.path / own_model.KEPT}, the network of the run, is missing. Put back a copy of it to resume."
        )
    return settings, changed


def _new(asked: Asked, budget: float | None, stack: ExitStack, *, dry_run: bool) -> Settled:
    """Returns what a new run is to be; its folder is made unless it is a dry run."""
    own = ""
    if asked.model is not None:
        own = own_model.read(Path(asked.model)).architecture
        if "space" not in asked.given:
            asked.space = "own"
    images = source_of(asked)
    if images.is_own and asked.model is None and "space" not in asked.given:
        asked.space = _space_for(images, asked.device)
    beside = list[str]()
    source = _space_file(asked.space, stack, beside.append)
    sampler, scheduler = check_names(source, asked.sampler, asked.scheduler, asked.minimize, asked.metric)
    check_sampler_can(
        sampler, until_converged=bool(asked.until_converged), cost=asked.cost, two_objectives=asked.minimize is not None
    )
    check_audit(asked.audit, scheduler)
    start_from, earlier, begins = _earlier(asked, source, own, sampler)
    taken: Collection[str] = ()
    storage = asked.storage
    if storage is not None:
        from tuning.remote.storage import Store, usable

        storage = usable(storage)
        taken = Store(storage).taken()
    path = record.new_path(asked.run, images.name, taken=taken)
    mlflow, password = asked.mlflow, ""
    if mlflow is not None:
        from tuning.remote import tracking

        mlflow = tracking.check(asked.mlflow)
        password = "" if mlflow == asked.mlflow else tracking.needed(mlflow)
    if asked.dashboard:
        from tuning.trials import local_ray

        local_ray.check_dashboard(asked.address)
    if asked.device == "any" and (asked.address is None or dry_run):
        where = "with --dry-run" if asked.address else "on one machine"
        raise UserError(f"--device must be cpu or cuda {where}, but got 'any'.")
    dataset = str(images.path.absolute()) if images.is_own else asked.dataset
    shared, slots_are_open = _trials_a_gpu(asked, source, dataset)
    wanted = slot_plans.SlotRequest(asked.device, asked.cpus_per_trial, asked.gpus_per_trial, asked.concurrency)
    slots = plan_slots(asked.address, storage, wanted, shared)
    if not dry_run:
        path = stack.enter_context(record.claimed(asked.run, images.name, storage))
    settings = Settings(
        samples=asked.samples or 20,
        # A function is kept in the run folder, whose file other searches may be given.
        space=source if isinstance(asked.space, str) else str(path / "space.py"),
        dataset=dataset,
        reading={"name": images.name} | {name: getattr(asked, name) for name in READING} if images.is_own else None,
        epochs=asked.epochs or DEFAULT_EPOCHS["cuda" if slots.device == "cuda" else "cpu"],
        seed=asked.seed,
        sampler=sampler,
        scheduler=scheduler,
        train_images=asked.train_images,
        data_dir=None if images.data_dir is None else str(images.data_dir.absolute()),
        max_failures=asked.max_failures,
        time_budget=budget,
        minimize=asked.minimize,
        metric=asked.metric,
        mlflow=mlflow,
        audit=asked.audit or 0,
        dashboard=asked.dashboard,
        storage=storage,
        model=None if asked.model is None else str(asked.model),
        start_from=start_from,
        until_converged=bool(asked.until_converged),
        cost=asked.cost,
        **vars(slots),
    )
    said = "" if shared is None else f"Trials on each GPU: {shared}, as the dry run of this space found to pay."
    notes = (*filter(None, [*beside, password, said, _too_few_samples(settings)]), *begins)
    return Settled(settings, path, source, False, notes, slots_are_open, own, earlier)


def _too_few_samples(settings: Settings) -> str:
    """Returns what to say of `--until-converged` where it can end nothing; "" where it can, or is not asked for.

    A sampler that knows earlier runs says from its first proposals on what it expects of them, but for its doubts.
    """
    if not settings.until_converged:
        return ""
    with interrupts.importing():
        from tuning.sampling.convergence import PROPOSALS
        from tuning.sampling.curve_sampler import DOUBTS
    begins = settings.start_from is not None
    others = len(range(1, DOUBTS * N_STARTUP, 3)) if begins else N_STARTUP
    if settings.samples > others + PROPOSALS:
        return ""
    after = f"beside {others} trials that look whether an earlier run misleads"
    after = after if begins else f"after the first {others} trials"
    return (
        f"--until-converged cannot end this search before its {counted(settings.samples, 'sample')}, unless a trial is "
        f"perfect: it judges {PROPOSALS} proposals of the sampler in a row, which come {after}. Take more than "
        f"{others + PROPOSALS} --samples."
    )


def _earlier(
    asked: Asked, source: str, own: str, sampler: str
) -> tuple[list[str] | None, tuple[EarlierRun, ...], list[str]]:
    """Returns the names of the runs that a search begins with, what it takes from them, and what to say of that."""
    if asked.start_from is None or asked.start_from == []:
        return None, (), []
    with interrupts.importing():
        from tuning.sampling import earlier, spaces

    runs, notes = list(_runs_named(asked.start_from)), list[str]()
    found = earlier.read(runs, METRICS[asked.metric], notes.append)
    space = replace(spaces.load_space(source), own=own)
    epochs = asked.epochs or DEFAULT_EPOCHS["cpu"]
    notes += earlier.shared(found, space, epochs)
    if not SAMPLERS[sampler].reads_earlier:
        notes.append(earlier.taken(found, space, epochs, sampler))
    here = run_folder.run_names()
    return [run.name if files.called(run.path) in here else str(run.path.absolute()) for run in runs], found, notes


def _runs_named(start_from: Any) -> Iterator[run_folder.Run]:
    """Yields the runs that `--start-from` names, or that Python gives."""
    for each in start_from if isinstance(start_from, list) else [start_from]:
        if isinstance(each, run_folder.Run):
            yield each
            continue
        names = [name.strip() for name in each.split(",")] if isinstance(each, str) else [each]
        if not all(names) or not isinstance(each, str | Path):
            raise UserError(f"--start-from must be names of runs with commas between them, but got {each!r}.")
        for name in names:
            try:
                yield run_folder.load(name)
            except UserError as error:
                raise UserError(f"--start-from names a run that cannot be read. {error}") from error


def _space_for(images: Source, device: str | None) -> str:
    """Returns the space that is searched for one's own images where none was asked for."""
    from tuning.images.datasets import load_own

    device = device or ("cuda" if machine.gpu_memory() else "cpu")
    _, channels, *sides = load_own(images, device=device).rest.shape
    if min(sides) < LEAST_SIDE:
        return "resnet"
    return "photos" if channels == COLOUR else "scans"


def _newest(name: str | Path | run_folder.Run) -> run_folder.Run:
    """Returns the run to be resumed: as it is here, or in its storage, if it has been resumed elsewhere since."""
    if "://" not in str(name) and (found := run_folder.load(name)).settings.get("storage") is None:
        return found
    rim.need("remote", "A run with a storage")
    from tuning.remote import stored_runs

    return stored_runs.newest(name)


def _space_file(space: Any, stack: ExitStack, note: Callable[[str], None]) -> str:
    """Returns the name of a space, or its file; that of a function is written, and `stack` removes it."""
    if isinstance(space, str):
        return space
    from tuning.sampling.function_source import module_of

    text = module_of(space, note)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tuning-function-"))
    file = Path(folder, f"{space.__name__}.py")
    files.write_text(file, text)
    return str(file)


def _trials_a_gpu(asked: Asked, source: str, dataset: str) -> tuple[int | None, bool]:
    """Returns how many trials a GPU an earlier dry run of the space found to pay, and whether one may choose that."""
    limits = (asked.address, asked.concurrency, asked.gpus_per_trial)
    if asked.device == "cpu" or any(limit is not None for limit in limits):
        return None, False
    from tuning.sampling.spaces import load_space
    from tuning.trials import estimate

    return estimate.recall_slots(load_space(source).source, dataset), True

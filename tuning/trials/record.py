"""What a search writes beside study and frames: `meta.json`, and at the end pictures and the page."""

import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files, locks, machine, own_model, rim
from tuning.base.errors import UserError, disk_full, each_alone
from tuning.base.masking import masked, masked_all
from tuning.runs import beginnings, run_folder, schema
from tuning.runs.run_folder import LATER_HARDWARE
from tuning.trials.settings import BEGUN_SLOTS, Settings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from tuning.sampling.spaces import Space

SCHEMA = 1  # Of `meta.json`; version 0.2.0 wrote none.


@contextmanager
def claimed(name: str | None, dataset: str, storage: str | None) -> Iterator[Path]:
    """Makes the folder of a new run, which is this search's alone; removes it where nothing came of it.

    No other search can take the name from then on, on this machine or on another one with the same storage. A folder
    that a search made before it was killed, and that has no record yet, is taken over.

    Args:
        name: Of the run; None gives <date>-<dataset>-<number>, the next number where another search was quicker.
        dataset: For the name.
        storage: Whose runs' names are taken, too.

    Raises:
        UserError: The name is taken, or no name; or another process that begins with it, which may be dead, lives.
    """
    made_parent = not run_folder.RESULTS.exists()
    with ExitStack() as stack:
        path = _claim(name, dataset, storage, stack)
        try:
            yield path
        finally:
            if not (path / "meta.json").exists():
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):
                    if made_parent:
                        path.parent.rmdir()


def _claim(name: str | None, dataset: str, storage: str | None, stack: ExitStack) -> Path:
    """Returns the folder that `claimed` yields; `stack` ends the claim."""
    if storage is not None:
        from tuning.remote import leases
        from tuning.remote import storage as storages

        if storages.is_folder(storage, run_folder.RESULTS):
            storage = None
    taken: set[str] = set()
    while True:
        path = new_path(name, dataset, taken={*taken, *(storages.Store(storage).taken() if storage else ())})
        with ExitStack() as claim:
            files.make_folder(path.parent, exist_ok=True)
            try:
                path.mkdir(exist_ok=name is not None)
            except OSError as error:
                if name is None and isinstance(error, FileExistsError):  # Another search made it a moment ago.
                    taken.add(path.name)
                    continue
                raise (
                    disk_full(path, error) or UserError(f"{path} must be a folder that can be made: {error}.")
                ) from error
            claim.enter_context(locks.hold(path, "search"))
            try:
                uri = "" if storage is None else storages.joined(storage, path.name)
                if not uri or claim.enter_context(leases.claimed(uri, wait=name is not None)):
                    if storage is not None and name is not None:  # Who was waited for may have run it, and ended.
                        new_path(name, dataset, taken=storages.Store(storage).taken())
                    stack.push(claim.pop_all())
                    return path
            except UserError:
                shutil.rmtree(path, ignore_errors=True)
                raise
        taken.add(path.name)
        shutil.rmtree(path, ignore_errors=True)


def new_path(name: str | None, dataset: str, root: Path | None = None, *, taken: Collection[str] = ()) -> Path:
    """Returns where a new run's folder is to be.

    Args:
        name: Letters, digits, ".", "_" and "-"; None gives <date>-<dataset>-<number>.
        dataset: For the name.
        root: Where the run folders are; None is `results/`.
        taken: Names that are taken elsewhere.

    Raises:
        UserError: The name has other characters, or exists.
    """
    root = run_folder.RESULTS if root is None else root
    if name is None:
        stem = f"{date.today().isoformat()}-{dataset}-"
        names = [*(path.name for path in root.glob(f"{stem}*")), *taken]
        numbers = [name.removeprefix(stem) for name in names if name.startswith(stem)]
        name = f"{stem}{max((int(number) for number in numbers if number.isdigit()), default=0) + 1}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in run_folder.WORDS:
        raise UserError(
            f"--run must be letters, digits, '.', '_' and '-' (and none of {run_folder.WORDS}), but got {name!r}."
        )
    try:
        is_taken = (root / name).exists() and not _is_beginning(root / name)
    except OSError as error:
        raise UserError(
            f"--run must be a name that this file system can have below {root}/, but got {name!r}: {error.strerror}."
        ) from error
    if is_taken:
        there = root / name / "meta.json"
        other = f"Resume that run with --resume {files.quoted(root / name)}, or choose another name."
        raise UserError(
            f"--run must be a new name, but got {name!r}, and {root / name} exists. "
            f"{other if there.exists() else 'Choose another.'}"
        )
    if name in taken:
        raise UserError(f"--run must be a new name, but got {name!r}, and the storage has it. Choose another.")
    return root / name


def _is_beginning(path: Path) -> bool:
    """Returns whether a folder has only what a search writes before its record, as one that was killed then has."""
    return path.is_dir() and {file.name for file in path.iterdir()} <= {
        ".search.lock",
        ".claim",
        "space.py",
        "space.zip",
        "model.py",
        beginnings.FILE,
    }


def begin(
    path: Path,
    settings: Settings,
    space: "Space",
    command: str | None = None,
    earlier: Sequence[beginnings.EarlierRun] = (),
) -> str:
    """Writes `space.py` and `meta.json` of a new run; returns what of the space cannot be kept, or "".

    `command` is the call in Python that began the run; None is the command line of this process. What it takes from
    `earlier` runs is written, too.
    """
    from tuning.trials import estimate

    files.make_folder(path, exist_ok=True)
    files.write_text(path / "space.py", space.source)
    if space.own:
        own_model.keep(space.own, path)
    left = space.surroundings.keep(path) if space.surroundings else ""
    begun_with = {}
    if earlier:
        beginnings.write(path, earlier)
        named = [{"name": one.name, "id": one.identity, "dataset": one.dataset} for one in earlier]
        begun_with = {"begun_with": named}
    update_meta(
        path,
        settings,
        schema=SCHEMA,
        id=secrets.token_hex(6),
        stored_as=path.name,
        dataset=settings.source.name,
        seed=settings.seed,
        command=masked(command or shlex.join(["python", "-m", "tuning.search", *masked_all(sys.argv[1:])])),
        started=now(),
        estimate=estimate.recall(asdict(settings)),
        versions=machine.versions(),
        hardware=machine.hardware(),
        git_commit=machine.git_commit(),
        **begun_with,
    )
    return left


def go_on(path: Path, settings: Settings, last: str | None, now: str) -> None:
    """Writes into `meta.json` for how long nothing happened in a run, by its own record: no time that the search took.

    The slots that the run was begun with stay beside those of this session, for a session on another machine. Such a
    machine is written down beside the first one.

    Args:
        path: The run folder.
        settings: Those of this session.
        last: The last moment that the record holds; None if there is none.
        now: The first of this session, not before the last.
    """
    meta = files.read_json(path / "meta.json")
    pauses = meta.get("pauses", [])
    if last is not None:  # A session in which nothing happened is part of the pause.
        pauses = [*(pause for pause in pauses if pause[0] != last), [last, now]]
    had = meta["settings"]
    varied = {"slots_varied": True} if had.get("concurrency") != settings.concurrency else {}
    begun = meta.get(BEGUN_SLOTS) or {name: had[name] for name in vars(settings.slots) if name in had}
    here, later = machine.hardware(), meta.get(LATER_HARDWARE, [])
    known = [(one.get("cpu"), one.get("gpus")) for one in [meta.get("hardware") or here, *later]]
    moved = {} if (here["cpu"], here["gpus"]) in known else {LATER_HARDWARE: [*later, here]}
    update_meta(path, settings, pauses=pauses, **varied, **moved, **{BEGUN_SLOTS: begun})


def update_meta(path: Path, settings: Settings, **values: Any) -> None:
    """Writes the settings and some values into `meta.json`, beside what it has."""
    file = path / "meta.json"
    meta = files.read_json(file) if file.exists() else {}
    files.write_json(file, meta | {"settings": asdict(settings)} | values, durable=True)


def now() -> str:
    """Returns the time in UTC, as the record has it."""
    return datetime.now(UTC).isoformat()


def conclude(run: run_folder.Run, tell: Callable[[str], None] = print) -> None:
    """Writes the run's page and, if a trial has finished, its pictures and `best.json`; keeps no loser's checkpoint.

    What cannot be drawn is named, and the rest is drawn.

    Raises:
        UserError: The disk is full.
    """
    from tuning.runs.run_folder import trial_folder
    from tuning.training import checkpoints

    trials = run.trials
    has_results = trials["state"].isin(schema.HAVE_RESULTS).any()
    if has_results:
        best = run.best["trial"]
        for number in trials.loc[run_folder.have_ended(trials), "trial"]:
            if number != best:
                checkpoints.remove(trial_folder(run.path, number))
        run_folder.write_best(run)
    if not rim.usable("figures", "Pictures and page are", tell):
        return
    from tuning.figures import run_page

    importance = _draw(run, tell) if has_results else None
    each_alone({"The page": lambda: run_page.write(run, importances=importance, tell=tell)}, tell)


def _draw(run: run_folder.Run, tell: Callable[[str], None]) -> "pd.DataFrame":
    """Writes the pictures of a run with results; returns how much each hyperparameter matters, empty if not known."""
    import pandas as pd

    from tuning.figures import importances, run_figures, style
    from tuning.runs import analysis

    trials, epochs, metric = run.trials, run.epochs, run.metric
    found = each_alone({"The importances": lambda: importances.of_run(run)}, tell)
    importance = found.get("The importances", pd.DataFrame(columns=list(importances.COLUMNS)))
    draw: dict[str, Callable[[], Figure]] = {
        "best_so_far": lambda: run_figures.best_so_far(analysis.best_so_far(trials, run.clock, metric), metric),
        "learning_curves": lambda: run_figures.learning_curves(epochs, trials, metric),
        "parallel_coordinates": lambda: run_figures.parallel_coordinates(trials, metric),
    }
    if found:
        draw["importances"] = lambda: run_figures.importances(importance)
    else:
        (run.path / "importances.png").unlink(missing_ok=True)  # Of fewer trials.
    if (minimized := run.settings.get("minimize")) is not None:
        draw["pareto"] = lambda: run_figures.pareto(trials, minimized, metric)
    style.save_each(draw, run.path, tell)
    return importance

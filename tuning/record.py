"""What a search writes into its run folder beside study and frames: `meta.json`, and at the end pictures and the page.

Where a run has a storage, what is in its folder goes there from here.
"""

import secrets
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import files, machine, mirror, results
from tuning import storage as storages
from tuning.errors import UserError
from tuning.settings import Settings

if TYPE_CHECKING:
    from tuning.progress import Progress
    from tuning.spaces import Space


def begin(path: Path, settings: Settings, space: "Space") -> str:
    """Makes the run folder, with `space.py` and `meta.json`; returns what of the space cannot be kept, or ""."""
    from tuning import estimate

    files.make_folder(path)
    files.write_text(path / "space.py", space.source)
    left = space.surroundings.keep(path) if space.surroundings else ""
    update_meta(
        path,
        settings,
        id=secrets.token_hex(6),
        dataset=settings.dataset,
        seed=settings.seed,
        command=shlex.join(["python", "-m", "tuning.search", *map(storages.masked, sys.argv[1:])]),
        started=now(),
        estimate=estimate.recall(asdict(settings)),
        versions=machine.versions(),
        hardware=machine.hardware(),
        git_commit=machine.git_commit(),
    )
    return left


def go_on(path: Path, settings: Settings) -> None:
    """Writes into `meta.json` for how long nothing was written to the frames: no time that the search took."""
    last = max(
        (path / name).stat().st_mtime for name in ("trials.csv", "epochs.csv", "meta.json") if (path / name).exists()
    )
    pauses = files.read_json(path / "meta.json").get("pauses", [])
    update_meta(path, settings, pauses=[*pauses, [datetime.fromtimestamp(last, UTC).isoformat(), now()]])


def update_meta(path: Path, settings: Settings, **values: Any) -> None:
    """Writes the settings and some values into `meta.json`, beside what it has."""
    file = path / "meta.json"
    meta = files.read_json(file) if file.exists() else {}
    files.write_json(file, meta | {"settings": asdict(settings)} | values)


def now() -> str:
    """Returns the time in UTC, as the record has it."""
    return datetime.now(UTC).isoformat()


def newest(name: str) -> results.Run:
    """Returns the run to go on with: as it is here, or in its storage, if it has gone on elsewhere since."""
    uri, root = name, results.RESULTS
    if "://" not in name:
        found = results.load(name)
        base = found.meta["settings"].get("storage")
        if base is None:
            return found
        uri, root = storages.joined(base, found.name), root if storages.is_at(base, found.path) else found.path.parent
    storages.usable(storages.split(uri)[0])
    return results.Run(mirror.fetch(uri, root, retrained=True))


@contextmanager
def mirrored(settings: Settings, path: Path, progress: "Progress") -> Iterator[None]:
    """Sends the run folder to its storage, if it has one, while something is going on in it."""
    from tuning import checkpoints

    if settings.storage is None:
        yield
        return
    with mirror.Mirror(path, stored_at(settings, path), progress.note, skip=checkpoints.NAMES) as sending:
        try:
            yield
        finally:
            sending.finish()


def stored_at(settings: Settings, path: Path) -> str:
    """Returns the URI of a run in its storage."""
    return storages.joined(settings.storage or "", path.name)


def conclude(run: results.Run) -> None:
    """Writes the run's pictures, page and `best.json`, if a trial has finished; of the losers no checkpoint is kept."""
    from tuning import analysis, checkpoints, importances, plots, report, style
    from tuning.trainable import trial_folder

    trials, epochs = run.trials, run.epochs
    if not trials["state"].isin(["complete", "pruned"]).any():
        return
    best = run.best["trial"]
    for number in trials.loc[trials["state"] != "running", "trial"]:
        if number != best:
            checkpoints.remove(trial_folder(run.path, number))
    results.write_best(run)
    importance = importances.of_run(run)
    figures = {
        "best_so_far": plots.best_so_far(analysis.best_so_far(trials, run.clock)),
        "learning_curves": plots.learning_curves(epochs, trials),
        "parallel_coordinates": plots.parallel_coordinates(trials),
        "importances": plots.importances(importance),
    }
    if (minimized := run.meta["settings"]["minimize"]) is not None:
        figures["pareto"] = plots.pareto(trials, minimized)
    for name, figure in figures.items():
        style.save(figure, run.path / f"{name}.png")
    report.write(run, importances=importance)


def conclude_stored(run: results.Run, uri: str, progress: "Progress") -> None:
    """Removes the losers' checkpoints from the storage, and brings the winner's best one into the run folder."""
    from tuning import checkpoints
    from tuning.trainable import trial_folder

    trials = run.trials
    if not trials["state"].isin(["complete", "pruned"]).any():
        return
    store, best = storages.Store(uri), run.best["trial"]
    losers = {f"{number:04d}" for number in trials.loc[trials["state"] != "running", "trial"] if number != best}
    try:
        stored = [name.split("/") for name in store.names("trials")]
        lost = ["/".join(name) for name in stored if name[1] in losers and name[-1] in checkpoints.NAMES]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(store.remove, lost))
        folder = trial_folder(run.path, best)
        if checkpoint := store.read(f"trials/{folder.name}/{checkpoints.BEST}"):
            files.write_bytes(folder / checkpoints.BEST, checkpoint)
    except UserError as error:
        progress.note(f"The losers' checkpoints stay in the storage: {error}. {mirror.sent_by(run.name)}")

"""A run that is kept in a storage, too: which record is the later one, and what is sent when."""

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tuning.base import files
from tuning.base.errors import UserError
from tuning.base.masking import masked
from tuning.remote import leases, mirror, records, storage
from tuning.runs import schema
from tuning.runs.run_folder import RESULTS, Run, first_name, have_ended, load, trial_folder


def newest(name: str | Path | Run) -> Run:
    """Returns the run to be resumed: as it is here, or in its storage, if it was resumed elsewhere since."""
    uri, root = str(name), RESULTS
    if "://" not in uri:
        found = load(name)
        base = base_of(found)
        if base is None:
            return found
        try:
            storage.usable(base)
        except UserError as error:
            address = "ADDRESS" if "://" in base else "file:///FOLDER"
            raise UserError(
                f"{error} The run {found.name} is kept there, too, and may have gone on there. If that place has "
                f"another address now, resume it from there: --resume {address}/{_name_in_storage(found)}."
            ) from error
        if base != (before := storage.absolute(found.settings["storage"])):
            print(f"{before} is not here. {found.path} is the stored run, and is kept in {base} from now on.")
        if storage.is_at(base, found.path):
            return found
        uri = stored_at(base, found.path)
        return Run(mirror.fetch(uri, root, path=found.path, retrained=True))
    mirror.refuse_storage(uri)
    storage.usable(storage.split(uri)[0])
    return Run(mirror.fetch(uri, root, retrained=True, resumed=True))


@contextmanager
def mirrored(
    base: str,
    path: Path,
    *,
    skip: Sequence[str],
    note: Callable[[str], None],
    on_lost: Callable[[UserError], None],
) -> Iterator[leases.Lease]:
    """Sends the run folder to its storage, and yields the lease by which a search has the run to itself there.

    Args:
        base: The storage.
        path: The run folder.
        skip: Names of files that are not sent.
        note: Receives what a person should know.
        on_lost: Called when another process has taken the run over in the storage, because this one seemed dead.

    Raises:
        UserError: Another process works on the run in the storage.
    """
    uri = stored_at(base, path)
    with leases.leased(uri, "search", note, on_lost) as lease:
        if storage.is_at(base, path):  # What is written there is stored.
            yield lease
            return
        store = storage.Store(uri)
        if store.read(storage.META) is not None and records.stored_is_newer(store, path, lambda text: None):
            raise UserError(f"{masked(uri)} has gone on meanwhile. Run the command again, which fetches it.")
        with mirror.Mirror(path, uri, note, skip=skip, lease=lease) as sending:
            try:
                yield lease
            finally:
                sending.finish()


def stored_at(base: str, path: Path) -> str:
    """Returns the URI of a run in its storage: under the name that it was begun with, whatever its folder's is now."""
    if storage.is_at(base, path):
        return storage.joined(base, path.resolve().name)
    return storage.joined(base, _name_in_storage(Run(path)))


def _name_in_storage(run: Run) -> str:
    return run.meta.get("stored_as") or first_name(run)


def base_of(run: Run) -> str | None:
    """Returns the storage of a run; None where it has none.

    A shared folder may be mounted elsewhere than its record says, or have been moved. Where that place is missing, a
    folder with the run's name there, which is in no `results/`, is the stored run, and its parent the storage.
    """
    base = run.settings.get("storage")
    if base is None:
        return None
    base, path = storage.absolute(base), run.path.resolve()
    if "://" in base or Path(base).is_dir() or path.name != _name_in_storage(run):
        return base
    in_results = path.parent == RESULTS.resolve() or (path.parent.name == RESULTS.name != Path(base).name)
    return base if in_results else str(path.parent)


def is_behind(run: Run) -> bool:
    """Returns whether a run has gone on elsewhere, so that its storage has a later record than its folder.

    Raises:
        UserError: The storage cannot be reached, or has a record that has diverged.
    """
    base = base_of(run)
    if base is None or storage.is_at(base, run.path):
        return False
    store = storage.Store(stored_at(base, run.path))
    return store.read(storage.META) is not None and records.stored_is_newer(store, run.path, lambda text: None)


def conclude(
    run: Run,
    uri: str,
    note: Callable[[str], None],
    *,
    checkpoints: Collection[str],
    best: str,
    lease: leases.Lease | None = None,
) -> None:
    """Removes the losers' checkpoints from the storage, and brings the winner's best one into the run folder.

    Does neither where another process has taken the run over in the storage.

    Args:
        run: The run.
        uri: Of the run in the storage.
        note: Receives what could not be done.
        checkpoints: The names of all checkpoints of a trial.
        best: The name of the best one.
        lease: That of this process on the run in the storage.
    """
    trials = run.trials
    if not trials["state"].isin(schema.HAVE_RESULTS).any() or (lease is not None and lease.is_lost()):
        return
    store, winner = storage.Store(uri), run.best["trial"]
    losers = {f"{number:04d}" for number in trials.loc[have_ended(trials), "trial"] if number != winner}
    try:
        stored = [name.split("/") for name in store.infos("trials")]
        lost = ["/".join(name) for name in stored if name[1] in losers and name[-1] in checkpoints]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(store.remove, lost))
        folder = trial_folder(run.path, winner)
        if checkpoint := store.read(f"trials/{folder.name}/{best}"):
            files.make_folder(folder, exist_ok=True)  # The trial may have ended on another machine.
            files.write_bytes(folder / best, checkpoint)
    except UserError as error:
        note(f"The losers' checkpoints stay in the storage: {error}. {mirror.sent_by(run.path)}")


def send(run: Run, say: Callable[[str], None] = print) -> None:
    """Sends the page, and what `final` has trained, to the run's storage, if it has one; says what it cannot."""
    base = base_of(run)
    if base is None or storage.is_at(base, run.path):
        return
    uri = stored_at(base, run.path)
    with mirror.Mirror(run.path, uri, say, part="final") as sending:
        sending.finish()
    try:
        if is_behind(run):
            say(f"The page stays here: {masked(uri)} has gone on elsewhere, and has a later one or will have.")
            return
        storage.Store(uri).write("report.html", (run.path / "report.html").read_bytes())
    except UserError as error:
        say(f"Not in the storage yet: report.html. {error}. {mirror.sent_by(run.path)}")

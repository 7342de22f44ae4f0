"""A machine that plays the user: searches, kills, full disks, other machines, in any order; nothing that ended is lost.

    python tests/test_nothing_lost.py --sequences 10000      (about a second a sequence; the tests run 60)

Trials are replayed, not trained: what a worker would report, the test makes up. All else is the search's own code. A
process that is killed writes nothing more; its open files are what it had written by then.
"""

import argparse
import contextlib
import errno
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import optuna
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tuning.base import files, locks
from tuning.base.errors import DISK_FULL, UserError
from tuning.remote import leases, mirror, storage, stored_runs
from tuning.runs import run_folder, schema, study_file, summaries
from tuning.sampling import study, study_storage
from tuning.sampling.spaces import Space, load_space
from tuning.training import checkpoints
from tuning.trials import record, session
from tuning.trials import settings as search_settings
from tuning.trials.session import Session
from tuning.trials.settings import Settings

SPACE = """
GPU_ONLY = {"width": [32, 64]}
FIRST = [{"width": 64, "lr": 0.1, "pretrained": False}, {"width": 8, "lr": 0.2, "pretrained": False}]
def space(trial):
    return {
        "width": trial.suggest_categorical("width", [8, 16, 32, 64]),
        "learning_rate": trial.suggest_float("lr", 1e-3, 1.0, log=True),
        "flip": trial.suggest_categorical("pretrained", [True, False]),
    }
"""
EPOCHS = 3
HEAD: dict[str, str] = {}  # What Optuna says is its newest revision of its tables.
READ_FRAME = schema.read_frame
FRAMES: dict[tuple[str, tuple[str, ...]], pd.DataFrame] = {}  # By the text of a frame and its columns.
SPLITS: Any = SimpleNamespace(split_hash="s", valid_hash="v", valid=range(5000))


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


class Disk:
    """Every write of the process goes through here: it may be cut in the middle, fail, or be the last one.

    Attributes:
        fault: "kill", "cut" (killed in the middle of a write), "full" or "".
        left: Writes until it happens.
        dead: The process was killed, and writes no more.
    """

    def __init__(self) -> None:
        self.fault, self.left, self.dead, self.happened = "", 0, False, False
        self.storages: list[optuna.storages.RDBStorage] = []

    def plan(self, fault: str, left: int) -> None:
        self.fault, self.left, self.dead, self.happened = fault, left, False, False
        self.storages.clear()

    def before_a_write(self, write_half: Callable[[], object] = lambda: None, *, full: Exception | None = None) -> None:
        if self.dead:
            raise Killed
        self.left -= 1
        if self.left >= 0 or not self.fault:
            return
        self.happened = True
        if self.fault == "full":
            write_half()
            raise full or OSError(errno.ENOSPC, "No space left on device")
        self.dead = True
        if self.fault == "cut":
            write_half()
        raise Killed

    @contextlib.contextmanager
    def spared(self) -> Iterator[None]:
        """Lets another process write, whose disk is another one."""
        fault, left, self.fault = self.fault, self.left, ""
        try:
            yield
        finally:
            self.fault, self.left = fault, left

    def install(self, patch: pytest.MonkeyPatch) -> None:
        disk, write, swap, unlink, stored = self, files.write, files.replace, Path.unlink, study_storage.storage

        def writes(file: Any, content: bytes) -> None:
            def half() -> None:
                file.write(content[: len(content) // 2])
                file.flush()

            disk.before_a_write(half)
            write(file, content)

        def replaces(temporary: str, path: Path) -> None:
            disk.before_a_write()
            swap(temporary, path)

        def unlinks(path: Path, missing_ok: bool = False) -> None:
            if disk.dead:
                raise Killed
            unlink(path, missing_ok)

        class Connection(study_storage.Connection):
            def commit(self) -> None:
                disk.before_a_write(full=sqlite3.OperationalError("database or disk is full"))
                super().commit()

        def opened(folder: Path) -> optuna.storages.RDBStorage:
            disk.storages.append(stored(folder))
            return disk.storages[-1]

        patch.setattr(files, "write", writes)
        patch.setattr(files, "replace", replaces)
        patch.setattr(Path, "unlink", unlinks)
        patch.setattr(study_storage, "Connection", Connection)
        patch.setattr(study_storage, "storage", opened)

    def bury(self, folders: list[Path]) -> None:
        """Closes what a dead process had open, with its files as it left them: SQLite would tidy them up."""
        was_dead, self.dead, self.fault = self.dead, False, ""
        left = {path: path.read_bytes() for folder in folders for path in folder.glob("study.db*")}
        for each in self.storages:
            each.remove_session()
            each.engine.dispose()
        if was_dead:
            for folder in folders:
                for path in [*folder.glob("study.db*")]:
                    path.unlink()
            for path, content in left.items():
                if not path.name.endswith("-shm"):
                    path.write_bytes(content)


class AtOnce(mirror.Mirror):
    """A mirror without a thread: it sends when it is told to, so that a sequence can be played again."""

    living: ClassVar[list["AtOnce"]] = []

    def __enter__(self) -> "AtOnce":
        AtOnce.living.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        AtOnce.living.remove(self)

    def look(self) -> list[str]:
        try:
            self._send()
        except (UserError, OSError, sqlite3.Error) as error:
            return [str(error)]
        return []

    def finish(self, patience: float = 0.0) -> list[str]:
        return self.look()


class StillLease(leases.Lease):
    """A lease without a thread: `time.sleep` of whoever waits for it renews it, if its process lives."""

    living: ClassVar[list["StillLease"]] = []

    def take(self, note: Callable[[str], None], patience: float | None = None) -> None:
        self._thread = SimpleNamespace(start=lambda: StillLease.living.append(self), ident=None)  # type: ignore[assignment]
        super().take(note, patience)

    def release(self) -> None:
        if self in StillLease.living:
            StillLease.living.remove(self)
        super().release()


class User(RuleBasedStateMachine):
    """What a user does with a run, on two machines with one storage between them."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="user-"))
        self.patch = pytest.MonkeyPatch()
        self.disk = Disk()
        self.random = random.Random(0)
        self.steps: list[str] = []
        self.folder: dict[str, Path] = {}
        self.samples, self.able, self.offset = 3, {"gpu", "weights"}, 0.0
        self.known: dict[Path, dict[int, tuple[Any, ...]]] = {}
        self.old: dict[Path, bytes] = {}
        self.checked: dict[Path, list[tuple[str, int, int]]] = {}

    @initialize(stored=st.booleans(), seed=st.integers(0, 2**16), able=st.sets(st.sampled_from(["gpu", "weights"])))
    def begin(self, stored: bool, seed: int, able: set[str]) -> None:
        self.random, self.able = random.Random(seed), able
        self.storage = self.root / "storage" if stored else None
        (self.root / "storage").mkdir()
        (self.root / "space.py").write_text(SPACE)
        for name in ("a", "b"):
            (self.root / name / "results").mkdir(parents=True)
        self._install()

    def _install(self) -> None:
        patch, user = self.patch, self

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) + timedelta(seconds=user.offset)

        def sleep(seconds: float) -> None:
            for lease in StillLease.living:
                lease.beat(storage.Store(lease._uri, patience=0.0))

        # Optuna reads its own tables' history at each opening: twice the time of all else.
        manager: Any = optuna.storages._rdb.storage._VersionManager
        head = manager.get_head_version
        patch.setattr(manager, "get_head_version", lambda each: HEAD.get("is") or HEAD.setdefault("is", head(each)))
        patch.setattr(manager, "check_table_schema_compatibility", lambda each: None)
        patch.setattr(run_folder, "read_frame", read_once)  # The name that runs are read by.
        patch.setattr(study, "datetime", Clock)
        patch.setattr(record, "datetime", Clock)
        patch.setattr(storage, "PATIENCE", 0.0)
        patch.setattr(storage.Store.__init__, "__defaults__", (0.0,))
        patch.setattr(mirror, "Mirror", AtOnce)
        patch.setattr(leases, "Lease", StillLease)
        patch.setattr(leases, "LEASE_SECONDS", 0.001)
        patch.setattr("tuning.base.locks.time.sleep", sleep)
        patch.setattr(Session, "run_trials", lambda search, n_trials: self.replay(search, n_trials))
        patch.setattr(record, "conclude", conclude)
        patch.setattr(mirror, "scratch", lambda run_id: self._scratch(run_id))
        self.disk.install(patch)

    def _scratch(self, run_id: str) -> Path:
        folder = self.root / self.here / f"tuning-{run_id}"
        folder.mkdir(exist_ok=True)
        return folder

    def teardown(self) -> None:
        self.patch.undo()
        AtOnce.living.clear()
        StillLease.living.clear()
        shutil.rmtree(self.root)

    # What the search's workers would do.

    def replay(self, search: Session, n_trials: int) -> None:
        """Stands in for `Session.run_trials`: two slots, epochs in any order, the checkpoint before the report."""
        settings, path, run = search.settings, search.path, search.study
        running: dict[int, tuple[study.Proposal, int, Path]] = {}
        begun, run_id = 0, files.read_json(path / "meta.json")["id"]
        interrupt_at = self.random.choice([None, None, self.random.randrange(12)])
        try:
            for step in range(1000):
                if interrupt_at == step:
                    search.reason = "interrupt"
                if search.should_end():
                    break
                while len(running) < 2 and begun < n_trials and (proposal := run.ask()) is not None:
                    folder = (self._scratch(run_id) if settings.storage else path) / "trials" / f"{proposal.number:04d}"
                    folder.mkdir(parents=True, exist_ok=True)
                    running[proposal.number], begun = (
                        (proposal, self._behind(settings, path, proposal, folder), folder),
                        begun + 1,
                    )
                if not running:
                    break
                number = self.random.choice(sorted(running))
                self._train(settings, path, run, running, number)
                if self.random.random() < 0.4:
                    for each in list(AtOnce.living):
                        each.look()
                if self.random.random() < 0.1:
                    self.two_at_once(path)
        except Exception as error:
            search.on_problem(error)

    def _behind(self, settings: Settings, path: Path, proposal: study.Proposal, folder: Path) -> int:
        """Returns the epochs that the trial's checkpoint holds, fetched from the storage where it has more."""
        own = mirror._epochs(_read(folder / mirror.PROGRESS))
        if settings.storage and proposal.epochs > max(own, 0):
            with contextlib.suppress(UserError):
                store = storage.Store(stored_runs.stored_at(settings.storage, path))
                own = max(own, mirror._epochs(store.read(f"trials/{folder.name}/{mirror.PROGRESS}")))
        return max(own, 0)

    def _train(
        self,
        settings: Settings,
        path: Path,
        run: study.RunStudy,
        running: dict[int, tuple[study.Proposal, int, Path]],
        number: int,
    ) -> None:
        proposal, behind, folder = running[number]
        for epoch in range(1, behind + 1):  # What the checkpoint holds is told first.
            run.report(number, result(proposal, epoch))
        length = 1 + proposal.seed % EPOCHS
        if behind < length:
            files.write_bytes(folder / checkpoints.LATEST, f"{number} {behind + 1}".encode())
            files.write_json(folder / mirror.PROGRESS, {"epochs": behind + 1})
            behind += 1
            run.report(number, result(proposal, behind))
            running[number] = (proposal, behind, folder)
            if settings.storage and self.random.random() < 0.5:
                root = folder.parent.parent
                part = folder.relative_to(root).as_posix()
                AtOnce(root, stored_runs.stored_at(settings.storage, path), print, part=part).look()
        if behind >= length:
            if proposal.seed % 11 == 0:
                run.fail(number, "made up")
            else:
                run.finish(number, "scheduler")
            del running[number]

    def two_at_once(self, path: Path) -> None:
        """Resumes what is being searched, on this machine and, from the storage, on another one: neither may work."""
        with pytest.raises(UserError, match="is in use"), locks.hold(path, "search"):
            pass
        if self.storage is not None and self.storage.exists() and StillLease.living:
            uri = stored_runs.stored_at(str(self.storage), path)
            with pytest.raises(UserError, match="is in use"), self.disk.spared():
                StillLease(uri, "search", print).take(lambda text: None)

    # What a user does.

    def _space(self) -> Space:
        space = load_space(str(self.root / "space.py"))
        if "gpu" not in self.able:
            space = space.without(space.gpu_only)
        return space if "weights" in self.able else space.without({"pretrained": [True]})

    def _settings(self) -> Settings:
        place = None if self.storage is None else str(self.storage)
        return Settings(
            samples=self.samples, space="x", dataset="d", epochs=EPOCHS, seed=0, sampler="random", scheduler="none",
            device="cpu", concurrency=2, cpus_per_trial=1.0, gpus_per_trial=0.0, train_images=None, data_dir=None,
            max_failures=0, time_budget=None, storage=place,
        )  # fmt: skip

    @rule(here=st.sampled_from(["a", "a", "b"]))
    def work(self, here: str) -> None:
        """Begins the run, or resumes it, and nothing goes wrong."""
        self._work(here, "", 0)

    @rule(
        here=st.sampled_from(["a", "a", "b"]),
        fault=st.sampled_from(["kill", "kill", "cut", "full"]),
        left=st.integers(0, 60),
    )
    def begin_work(self, here: str, fault: str, left: int) -> None:
        """Begins the run, or resumes it, and something happens soon."""
        self._work(here, fault, left)

    @rule(here=st.sampled_from(["a", "a", "b"]), fault=st.sampled_from(["kill", "cut"]), left=st.integers(20, 200))
    def work_for_longer(self, here: str, fault: str, left: int) -> None:
        """Begins the run, or resumes it, and is killed later, if it has not ended by then."""
        self._work(here, fault, left)

    def _work(self, here: str, fault: str, left: int, *, allowed: tuple[str, ...] = ()) -> None:
        """Begins the run, or resumes it on a machine; on the other one only from the storage."""
        if here == "b" and (self.storage is None or not self.known):
            here = "a"
        self.here = here
        before = {path: {(number, told[-1]) for number, told in known.items()} for path, known in self.known.items()}
        notes: list[str] = []
        progress: Any = SimpleNamespace(note=notes.append)
        self.disk.plan(fault, left)
        said = ""
        try:
            with contextlib.ExitStack() as stack:
                path, resumed = self._open(here, stack)
                session.search(self._resumed(path, resumed), path, SPLITS, self._space(), progress, resumed=resumed)
        except Killed:
            said = "killed"
        except UserError as error:
            said = str(error)
        finally:
            folders = [*self.folder.values(), *(self.root / here / "results").glob("*")]
            self.disk.bury([folder for folder in set(folders) if folder.is_dir()])
            AtOnce.living.clear()
            StillLease.living.clear()
        for path in (self.root / here / "results").glob("*/meta.json"):
            self.folder[here] = path.parent
        self.steps.append(f"{here} {fault}@{left}: {said or 'ended'}")
        self._judge(here, said, before, allowed)

    def _open(self, here: str, stack: contextlib.ExitStack) -> tuple[Path, bool]:
        """Does what `search.main` does before it loads the data."""
        root = self.root / here / "results"
        self.patch.setattr(run_folder, "RESULTS", root)
        if not self.known:
            self.patch.chdir(self.root / here)
            path = stack.enter_context(record.claimed(None, "d", None if self.storage is None else str(self.storage)))
            path = self.root / here / path
            record.begin(path, self._settings(), self._space())
            return path, False
        name = str(self.folder[here]) if here in self.folder else self._uri()
        if "://" in name or here not in self.folder:
            found = run_folder.Run(mirror.fetch(name, root, retrained=True))
        else:
            found = stored_runs.newest(name)
        self.folder[here] = found.path
        stack.enter_context(locks.hold(found.path, "search"))
        run_folder.mend(found, lambda text: None)
        return found.path, True

    def _uri(self) -> str:
        return str(next((self.storage or self.root).glob("*/meta.json"), self.root / "storage" / "none").parent)

    def _resumed(self, path: Path, resumed: bool) -> Settings:
        if not resumed:
            return self._settings()
        return replace(search_settings.of_run(run_folder.Run(path)), samples=self.samples)

    @rule(here=st.sampled_from(["a", "b"]), how=st.sampled_from(["missing", "cut", "stale"]))
    def damage_the_study(self, here: str, how: str) -> None:
        """Resumes a run whose study is gone, cut, or older than its frames: that is refused, or the storage has it."""
        path = self.folder.get(here)
        if path is None or not (path / "study.db").exists() or (self.root / "away").exists():
            return
        kept = {file: file.read_bytes() for file in path.glob("[!.]*") if file.is_file()}
        whole = study_file.snapshot(path / "study.db")
        old = self.old.setdefault(path, whole)
        for file in path.glob("study.db*"):
            file.unlink()
        if how != "missing":
            (path / "study.db").write_bytes(old if how == "stale" else whole[: len(whole) // 2])
        frames = {name: kept.get(path / name) for name in ("trials.csv", "epochs.csv")}
        try:
            refusals = ("is missing or empty", "is damaged", "trial more", "trials more", "have diverged")
            self._work(here, "", 0, allowed=refusals)
        finally:
            if "ended" not in self.steps[-1]:
                assert {name: _read(path / name) for name in frames} == frames, self.steps
                for file in path.glob("study.db*"):
                    file.unlink()
                for file, content in kept.items():
                    file.write_bytes(content)

    @rule(more=st.integers(1, 2))
    def extend(self, more: int) -> None:
        self.samples = min(self.samples + more, 12)

    @rule(able=st.sets(st.sampled_from(["gpu", "weights"])))
    def change_abilities(self, able: set[str]) -> None:
        self.able = able

    @rule(seconds=st.sampled_from([-7200.0, -1.0, 86400.0]))
    def move_the_clock(self, seconds: float) -> None:
        self.offset += seconds

    @rule()
    def take_the_storage_away_or_bring_it_back(self) -> None:
        away = self.root / "away"
        if away.exists():
            away.rename(self.root / "storage")
        elif self.storage is not None and self.storage.exists():
            self.storage.rename(away)

    @rule(here=st.sampled_from(["a", "b"]), name=st.sampled_from(["other", "ü #1 50%?", "x y"]))
    def rename(self, here: str, name: str) -> None:
        if here in self.folder and not (target := self.folder[here].with_name(name)).exists():
            self.folder[here].rename(target)
            self.known[target] = self.known.pop(self.folder[here], {})
            self.checked[target] = self.checked.pop(self.folder[here], [])
            self.old.pop(self.folder[here], None)
            self.folder[here] = target

    # What must hold.

    def _judge(self, here: str, said: str, before: dict[Path, set[tuple[int, Any]]], also: tuple[str, ...]) -> None:
        allowed = (
            *also,
            "killed",
            DISK_FULL,
            "--storage must be",  # It is away.
            "has no runs in it",  # Nothing of it has reached the storage yet.
            "have diverged",
            "cannot be written any more",
        )
        assert not said or any(text in said for text in allowed), self.steps
        if "have diverged" in said and not also:  # A trial is another one if it began at another time.
            assert before[self.folder[here]] - before.get(Path(self._uri()), set()), self.steps
        if not said:
            path = self.folder[here]
            trials = run_folder.Run(path).trials
            ran = trials[trials["attempt"] != 0]
            if files.read_json(path / "meta.json")["stopped_by"] is None:
                waiting = ran["state"] == "running"
                most = max(self.samples, len(before.get(path, ())) + waiting.sum())
                assert self.samples <= len(ran) <= most, self.steps
                known = study_file.facts(study_file.snapshot(path / "study.db"))[0]
                epochs = run_folder.Run(path).epochs
                assert set(zip(epochs["trial"], epochs["epoch"], strict=True)) >= {
                    pair for pair in known if pair[0] in set(ran["trial"])
                }, self.steps
                with sqlite3.connect(path / "study.db") as connection:
                    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                connection.close()

    @invariant()
    def nothing_is_lost(self) -> None:
        places = [*self.folder.values()]
        stored = self.root / "storage"
        if self.storage is not None and stored.exists():
            places += [path.parent for path in stored.glob("*/meta.json")]
        for path in places:
            seen = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(path.glob("[!.]*"))]
            if not (path / "meta.json").exists() or self.checked.get(path) == seen:
                continue
            self.checked[path] = seen
            now = finished(path)
            for number, outcome in self.known.get(path, {}).items():
                assert now.get(number) == outcome, (path, number, outcome, now.get(number), self.steps)
            self.known[path] = now
            check_frames(path, self.steps)


def read_once(path: Path, dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Stands in for `schema.read_frame`, half of the time of all else: equal text is parsed once in a while."""
    key = (files.whole_lines(path), tuple(dtypes))
    if key not in FRAMES:
        FRAMES[key] = READ_FRAME(path, dtypes)
        if len(FRAMES) > 32:
            del FRAMES[next(iter(FRAMES))]
    return FRAMES[key].copy()


def finished(path: Path) -> dict[int, tuple[Any, ...]]:
    """Returns what is known of the trials of a run that have ended, by the study: as the sampler sees them."""
    if not (path / "study.db").exists():
        return {}
    with contextlib.closing(sqlite3.connect(":memory:")) as copy:
        copy.deserialize(study_file.snapshot(path / "study.db"))
        if not copy.execute("SELECT 1 FROM sqlite_master WHERE name = 'trial_intermediate_values'").fetchone():
            return {}
        rows = copy.execute(
            "SELECT number, state, (SELECT value FROM trial_values v WHERE v.trial_id = t.trial_id), "
            "(SELECT COUNT(*) FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id), "
            "(SELECT group_concat(value_json) FROM trial_user_attributes u WHERE u.trial_id = t.trial_id "
            "AND key IN ('seed', 'started') ORDER BY key) FROM trials t WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL')"
        ).fetchall()
    return {number: told for number, *told in rows}


def check_frames(path: Path, steps: list[str]) -> None:
    """Every reader works, no epoch is there twice, and the frames know nothing that the study does not."""
    run = run_folder.Run(path)
    epochs, trials = run.epochs, run.trials
    known, states = (
        study_file.facts(study_file.snapshot(path / "study.db")) if (path / "study.db").exists() else ({}, {})
    )
    text = files.whole_lines(path / "epochs.csv").splitlines()[1:]
    pairs = Counter(tuple(line.split(",")[:2]) for line in text)
    assert not pairs or max(pairs.values()) == 1, (path, pairs, steps)
    assert set(zip(epochs["trial"], epochs["epoch"], strict=True)) <= set(known), (path, steps)
    assert set(trials["trial"]) <= set(states), (path, steps)
    assert list(trials["trial"]) == sorted(set(trials["trial"])), (path, steps)
    for row in trials[["trial", "state", "attempt"]].to_dict("records"):
        if row["state"] == "complete" and row["attempt"]:
            assert states[row["trial"]][0] == "COMPLETE", (path, row, steps)
    if len(trials) and sum(pairs.values()) % 4 == 0:  # These read the frames six times.
        assert summaries.minutes(run) >= 0 and summaries.summary_line(run)


def conclude(run: run_folder.Run, tell: Callable[[str], None]) -> None:
    """Stands in for `record.conclude`: `best.json` without the pictures."""
    trials = run.trials
    if trials["state"].isin(["complete", "pruned"]).any() and len(trials) % 4 == 0:
        run_folder.write_best(run)


def result(proposal: study.Proposal, epoch: int) -> dict[str, Any]:
    """Returns what a worker would report: the same for the same trial and epoch, whoever trains it."""
    accuracy = round(random.Random(proposal.seed).random() * (1 - 0.5**epoch), 6)
    row = {"train_loss": 1.0, "train_accuracy": 0.5, "valid_loss": 1 - accuracy, "valid_accuracy": accuracy, "lr": 0.1}
    row |= {"epoch": epoch, "epoch_seconds": 2.0, "images_per_second": 100.0, "seconds_per_image": 1e-4}
    row |= {"n_parameters": 10, "device": "cpu", "precision": "fp32"}
    return row | {"finished": "length" if epoch == 1 + proposal.seed % EPOCHS and proposal.seed % 5 else ""}


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with contextlib.redirect_stdout(None):
        yield


def play(n: int, *, steps: int = 12, derandomize: bool = True, shrink: bool = True) -> None:
    """Plays so many sequences of so many steps at most; the first that loses something is shown, as short as can be."""
    with quiet():
        run_state_machine_as_test(
            User,
            settings=settings(
                max_examples=n,
                stateful_step_count=steps,
                deadline=None,
                derandomize=derandomize,
                database=None,
                report_multiple_bugs=False,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])),
            ),
        )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_whatever_a_user_does_nothing_that_ended_is_lost() -> None:
    play(60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    play(given.sequences, steps=given.steps, derandomize=False)
    print(f"{given.sequences} sequences of up to {given.steps} steps: nothing lost", file=sys.stderr)

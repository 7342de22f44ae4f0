"""What a search space uses from beside its file: modules and files, kept with the run so that it resumes anywhere.

A space file may import a module that lies beside it, and open a file there. Both are noticed while its code runs, and
kept in the run folder as `space.zip`; a resumed run unpacks that and runs the space from there. Modules of one space
are never seen by another one in the same process.
"""

import builtins
import io
import os
import shutil
import sys
import sysconfig
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from tuning.base import files
from tuning.base.errors import UserError

KEPT = "space.zip"
LARGEST = 20_000_000  # Bytes of one file: what is larger is data, which is not a part of the record.
LARGEST_IN_ALL = 50 * LARGEST  # Bytes of all files of a run's archive, unpacked.
_ENTRY = "tuning-space.txt"  # In the archive: where in it the space's own file is, and the working directory.
_STAMP = (1980, 1, 1, 0, 0, 0)  # The same files make the same archive.
_OPENED: list[tuple[int, list[str]]] = []  # The thread whose files are noted, and where; the last one counts.
_hooked = False
# Folders and files that may hold a key. Kubernetes mounts its secrets as links into "..data" and "..2026_11_28...".
_SECRET_FOLDERS = {".aws", ".config", ".docker", ".gnupg", ".kube", ".ssh"}
_SECRET_FILES = (
    *(".env*", ".netrc", ".pypirc", ".npmrc", ".pgpass", ".htpasswd", ".git-credentials", "credentials"),
    *("id_rsa", "id_ed25519", "id_ecdsa", "id_dsa", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore"),
    *("kubeconfig", "kubeconfig.*", "*.kubeconfig", "service-account*.json", "service_account*.json"),
    *("*credentials*.json", "secrets.toml", "secrets.yaml", "secrets.yml", "secrets.json"),
)


class Surroundings:
    """Where a space's file lies, and what its code has used there.

    Args:
        file: The space's file.
        work: The working directory that relative paths are from; of a resumed run the one that it was begun in.
        unpacked: The folder into which a run's archive was unpacked, which goes with this object; None is a file of
            the user's.
    """

    def __init__(self, file: Path, work: Path, unpacked: Path | None = None) -> None:
        self.file, self._work = Path(os.path.abspath(file)), work
        # A container's working directory is often the root of all files, or a home: what is there is not the space's.
        unwanted = {Path(work.anchor), Path(os.path.expanduser("~"))} - {self.file.parent}
        self._roots = [self.file.parent, *([] if work in unwanted else [work])]
        self._base = Path(os.path.commonpath(self._roots))
        self._unpacked = unpacked
        if unpacked is not None:
            weakref.finalize(self, shutil.rmtree, unpacked, ignore_errors=True)
        self._source = ""
        self._modules: dict[str, ModuleType] = {}
        self._used: dict[str, bytes | None] = {}
        self._run: Path | None = None
        self._active = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Lets the space's code find what is beside it, and notes what it uses; all is as before at the end."""
        if self._active:
            yield
            return
        path, others = list(sys.path), {name: sys.modules.pop(name, None) for name in self._modules}
        before, opened = set(sys.modules), list[str]()
        sys.path.insert(0, str(self.file.parent))
        if self._unpacked is not None:
            sys.path.insert(1, str(self._work))
        sys.modules.update(self._modules)
        self._active = True
        try:
            with _noting(opened), self._relative_files():
                yield
        finally:
            self._active = False
            sys.path[:] = path
            new = {name: sys.modules[name] for name in set(sys.modules) - before if name in sys.modules}
            self._modules |= {name: module for name, module in new.items() if self._is_own(_origin(module))}
            for name in self._modules:
                sys.modules.pop(name, None)
                if (other := others.get(name)) is not None:
                    sys.modules[name] = other
            self._note([*opened, *map(_origin, self._modules.values())])

    def execute(self, source: str) -> dict[str, Any]:
        """Returns the names that the space's module defines; raises whatever its code raises."""
        self._source, name = source, self.file.stem
        if name in sys.stdlib_module_names or name in sys.modules:
            name = f"{name}_space"
        module = ModuleType(name)
        module.__file__ = str(self.file)
        self._modules[name] = module  # Dataclasses look for their module there.
        with self.active():
            exec(compile(source, str(self.file), "exec"), module.__dict__)
        return module.__dict__

    def keep(self, run: Path) -> str:
        """Writes what the space has used into the run folder; returns what of it cannot be kept, in a line, or "".

        What is used for the first time later on is kept when that happens.
        """
        self._run = run
        if self._unpacked is None and any(content is not None for content in self._used.values()):
            self._write(run / KEPT)
        left = sorted(name for name, content in self._used.items() if content is None)
        return (
            f"The run keeps no copy of {', '.join(left)}, which the space reads: a file of more than "
            f"{LARGEST / 1e6:.0f} MB, what is beyond {LARGEST_IN_ALL / 1e6:,.0f} MB in all, or a file that may hold a "
            "key, must be there when the run is resumed."
            if left
            else ""
        )

    def _write(self, path: Path) -> None:
        content = io.BytesIO()
        own = self.file.relative_to(self._base).as_posix()
        work = Path(os.path.relpath(self._work, self._base)).as_posix()
        entries = {**self._used, own: self._source.encode(), _ENTRY: f"{own}\n{work}\n".encode()}
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(entries.items()):
                if data is not None:
                    archive.writestr(zipfile.ZipInfo(name, _STAMP), data, zipfile.ZIP_DEFLATED)
        files.write_bytes(path, content.getvalue())

    def _note(self, opened: list[str]) -> None:
        """Takes in the files that are the space's own."""
        new = False
        for given in opened:
            path = Path(os.path.abspath(given))
            if path == self.file or not self._is_own(given):
                continue
            name = path.relative_to(self._base).as_posix()
            if name not in self._used:
                try:
                    self._used[name] = path.read_bytes() if self._is_kept(path, name) else None
                except OSError:  # It was opened and is gone: a temporary file.
                    continue
                new = True
        if new and self._run is not None and self._unpacked is None:
            self._write(self._run / KEPT)

    def _is_kept(self, path: Path, name: str) -> bool:
        """Returns whether a run may keep a copy of the space's file `path`, which is `name` in the archive."""
        size, kept = path.stat().st_size, sum(len(content) for content in self._used.values() if content is not None)
        fits = size <= LARGEST and kept + size <= LARGEST_IN_ALL - LARGEST  # The space's own file comes to it.
        linked, base = path.resolve(), self._base.resolve()
        there = linked.relative_to(base) if linked.is_relative_to(base) else linked
        return fits and not _may_be_secret(name) and not _may_be_secret(there.as_posix())

    def _is_own(self, file: str) -> bool:
        """Returns whether a file lies beside the space's or in the working directory, and is no installed code."""
        path = Path(os.path.abspath(file)) if file else Path()
        if not any(path.is_relative_to(root) for root in self._roots) or not path.is_file():
            return False
        installed = [
            files.PACKAGE,
            *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
        ]
        if sys.prefix != sys.base_prefix:  # An environment, which may lie in the user's folder.
            installed.append(Path(sys.prefix))
        if path.suffix in (".py", ".pyc", ".so"):
            installed.append(files.SPACES)
        parts = path.relative_to(self._base).parts
        return not any(path.is_relative_to(folder) for folder in installed) and not (
            {"site-packages", "dist-packages", "__pycache__", ".git"} & set(parts)
        )

    @contextmanager
    def _relative_files(self) -> Iterator[None]:
        """Lets a resumed space open by a relative path what was there in the working directory when it began."""
        if self._unpacked is None:
            yield
            return
        original = io.open

        def kept(file: Any, *given: Any, **named: Any) -> Any:
            path = os.fspath(file) if isinstance(file, os.PathLike) else file
            if isinstance(path, str) and not os.path.isabs(path) and not os.path.exists(path):
                there = self._work / path
                file = there if there.exists() else file
            return original(file, *given, **named)

        builtins.open = io.open = kept
        try:
            yield
        finally:
            builtins.open = io.open = original


def _may_be_secret(name: str) -> bool:
    """Returns whether a file may hold a key, by its path: what a run keeps goes into its storage, too."""
    path = Path(name.lower())
    folders = path.parts[:-1]
    mounted = path.suffix != ".py" and any(folder.startswith("..") and folder != ".." for folder in folders)
    return (
        mounted
        or bool(_SECRET_FOLDERS & set(path.parts))
        or ("run", "secrets") in pairwise(folders)
        or any(fnmatchcase(path.name, pattern) for pattern in _SECRET_FILES)
    )


def of_run(space_file: Path) -> Surroundings | None:
    """Returns the unpacked surroundings of the `space.py` of a run folder; None where the run keeps none.

    The file itself is the one in the run folder, where a user may have changed it.

    Raises:
        UserError: The archive is damaged, or too large to be one of a search.
    """
    archive = space_file.with_name(KEPT)
    if space_file.name != "space.py" or not archive.is_file():
        return None
    folder = Path(tempfile.mkdtemp(prefix="tuning-space-"))
    try:
        file, work = _unpack(archive, folder)
        if space_file.is_file():
            file.write_bytes(space_file.read_bytes())
    except files.DAMAGE as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"{archive}, which holds what the search space uses, is damaged: {error}. Copy it anew from the storage, "
            "or remove it to run space.py by itself."
        ) from error
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Surroundings(file, work, folder)


def _unpack(archive: Path, folder: Path) -> tuple[Path, Path]:
    """Unpacks a run's archive into `folder`; returns the space's file there, and the working directory.

    Nothing is written outside of `folder`, whatever the names in the archive: `zipfile` takes ".." and a leading "/"
    out of them. It also stops at the size that is declared of a file, so that the sum of these is the most there is.

    Raises:
        UserError: The files are larger than those of any search.
        ValueError: It is not what a search wrote, or or another of `files.DAMAGE`.
    """
    with zipfile.ZipFile(archive) as kept:
        size = sum(entry.file_size for entry in kept.infolist())
        if size > LARGEST_IN_ALL:
            raise UserError(
                f"{archive} must hold at most {LARGEST_IN_ALL / 1e6:,.0f} MB of files, but got {size / 1e6:,.0f} MB: "
                "no search wrote it. Copy it anew from the storage, or remove it to run space.py by itself."
            )
        kept.extractall(folder)
    own, work = (folder / _ENTRY).read_text(encoding="utf-8").splitlines()
    file = Path(os.path.normpath(folder / own))
    if not file.is_relative_to(folder):
        raise ValueError(f"{own} is outside of it")
    return file, Path(os.path.normpath(folder / work))


@contextmanager
def _noting(opened: list[str]) -> Iterator[None]:
    """Adds to `opened` the path of each file that this thread opens to read."""
    global _hooked
    if not _hooked:  # It can never be taken away again, so it is added where a space runs, and looks at once.
        sys.addaudithook(_hook)
        _hooked = True
    entry = (threading.get_ident(), opened)
    _OPENED.append(entry)
    try:
        yield
    finally:
        _OPENED.remove(entry)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _OPENED:
        return
    thread, opened = _OPENED[-1]
    path, mode, flags = arguments
    reads = not set(mode) & set("wax+") if isinstance(mode, str) else not flags & (os.O_WRONLY | os.O_RDWR)
    if reads and thread == threading.get_ident() and isinstance(path, str | bytes | os.PathLike):
        opened.append(os.path.abspath(os.fsdecode(path)))


def _origin(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or "")

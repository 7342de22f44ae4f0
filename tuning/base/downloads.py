"""Downloads, with a progress bar and a limit to how slow they may be; and ResNet-18's weights, which are one.

What must never live here: what is in the files, and anything that imports torch.
"""

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
from pathlib import Path
from typing import IO

from tuning.base import files
from tuning.base.errors import UserError

# torchvision's IMAGENET1K_V1; the name ends with the first digits of the SHA-256.
RESNET18_MIRROR, RESNET18 = "https://download.pytorch.org/models/", "resnet18-f37072fd.pth"
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


def resnet18_weights() -> Path:
    """Returns the file of ResNet-18's ImageNet weights in torch's cache; they are downloaded where they are not there.

    Whoever has to know only whether they can be had need not import torch.

    Raises:
        UserError: They are in no cache and cannot be downloaded, or are damaged.
    """
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    path = Path(home).expanduser() / "hub/checkpoints" / RESNET18
    try:
        raw = path.read_bytes() if path.exists() else download(RESNET18_MIRROR + RESNET18)
        if not hashlib.sha256(raw).hexdigest().startswith(RESNET18[-12:-4]):
            raise SourceError(f"a damaged file ({len(raw)} bytes)")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(path, raw)
    except (OSError, SourceError) as error:
        raise UserError(
            f"Pretrained ResNet-18 weights must be in {path.parent} or be downloadable, but got {error}. "
            f"Choose pretrained: false, or put torchvision's {RESNET18} there."
        ) from error
    return path

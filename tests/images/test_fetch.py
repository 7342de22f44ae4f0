"""`tuning.images.fetch` against a mirror on loopback and stand-ins for apt-get and dpkg-deb; no network."""

import errno
import gzip
import hashlib
import http.server
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from tuning.base import downloads
from tuning.base.downloads import weights_file
from tuning.base.errors import UserError
from tuning.base.files import cache_dir
from tuning.base.registries import ARCHITECTURES
from tuning.images import fetch
from tuning.images.catalogue import DATASETS, FileSet
from tuning.images.fetch import parse_idx, read_files

CONTENTS = {"images": b"the images " * 2000, "labels": b"the labels " * 20}
NAMES = tuple(CONTENTS)
FILES = FileSet(name="toy", sha256={name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()})


@dataclass
class Mirror:
    """An HTTP server that serves `bodies` by file name and keeps what it was asked for."""

    url: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    shorter: int = 0


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A mirror on loopback that serves the right files."""
    state = Mirror(bodies={f"{name}.gz": gzip.compress(content) for name, content in CONTENTS.items()})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            state.asked.append(name)
            if name not in state.bodies:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.bodies[name])))
            self.end_headers()
            self.wfile.write(state.bodies[name][: len(state.bodies[name]) - state.shorter])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_address[1]}/"
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own; a proxy must not come between the test and loopback."""
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache" / "toy"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of an empty folder, for stand-ins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def write_files(folder: Path, *, gzipped: bool = True) -> Path:
    """Returns the folder, which now holds the right files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENTS.items():
        (folder / (f"{name}.gz" if gzipped else name)).write_bytes(gzip.compress(content) if gzipped else content)
    return folder


def write_command(folder: Path, name: str, script: str) -> None:
    """Puts a shell script into the folder that also logs its arguments; it sees the usual PATH."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nPATH={os.defpath}\necho "$@" >> {folder}/{name}.log\n{script}\n')
    path.chmod(0o755)


@pytest.mark.parametrize("gzipped", [True, False])
def test_data_dir_is_first_and_leaves_no_cache(
    tmp_path: Path, mirror: Mirror, cache: Path, gzipped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    files = replace(FILES, mirrors=(mirror.url,), system_dir=write_files(tmp_path / "system"))
    assert read_files(files, NAMES, write_files(tmp_path / "given", gzipped=gzipped)) == CONTENTS
    assert (mirror.asked, cache.exists(), capsys.readouterr().err) == ([], False, "")


def test_only_what_is_named_is_read(tmp_path: Path) -> None:
    given = write_files(tmp_path / "given")
    (given / "images.gz").write_bytes(b"damaged")
    assert read_files(FILES, ["labels"], given) == {"labels": CONTENTS["labels"]}


def test_sources_are_asked_in_order(tmp_path: Path, mirror: Mirror, cache: Path) -> None:
    files = replace(FILES, mirrors=(mirror.url,), system_dir=tmp_path / "system")
    assert read_files(files, NAMES) == CONTENTS
    assert mirror.asked == ["images.gz", "labels.gz"]
    for path in cache.iterdir():
        path.unlink()
    write_files(tmp_path / "system")
    assert read_files(files, NAMES) == CONTENTS
    assert len(mirror.asked) == 2  # The system's folder came before the mirror,
    write_files(cache)
    (tmp_path / "system" / "images.gz").write_bytes(b"damaged")
    assert read_files(files, NAMES) == CONTENTS  # and the cache before the system's folder.


def test_each_source_is_asked_for_what_is_missing(tmp_path: Path, mirror: Mirror) -> None:
    given = write_files(tmp_path / "given")
    (given / "labels.gz").unlink()
    assert read_files(replace(FILES, mirrors=(mirror.url,)), NAMES, given) == CONTENTS
    assert mirror.asked == ["labels.gz"]


def test_cache_is_used_again(mirror: Mirror, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = replace(FILES, mirrors=(mirror.url,))
    assert read_files(files, NAMES) == CONTENTS
    assert re.search(rf"^Downloading {mirror.url}images\.gz \.\.\.$", capsys.readouterr().err, re.MULTILINE)
    assert sorted(path.name for path in cache.iterdir()) == ["images.gz", "labels.gz"]
    mirror.bodies.clear()
    assert read_files(files, NAMES) == CONTENTS


def test_download_shows_its_progress_on_a_terminal(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    read_files(replace(FILES, mirrors=(mirror.url,)), NAMES)
    shown = capsys.readouterr()
    assert "images.gz" in shown.err and "100%" in shown.err and "Downloading" not in shown.err
    assert shown.out == ""


DAMAGES = {
    "other content": (
        gzip.compress(b"other"),
        "must have the SHA-256 [0-9a-f]{64} .uncompressed., but got [0-9a-f]{64}",
    ),
    "truncated": (gzip.compress(CONTENTS["images"])[:-9], "must be a whole gzip file, but got: Compressed file ended"),
    "no gzip": (b"<html>log in</html>", "must be a whole gzip file, but got: Not a gzipped file"),
    "bad block": (gzip.compress(b"")[:10] + b"\xff" * 20, "must be a whole gzip file, but got: Error -3"),
}


@pytest.mark.parametrize(("body", "rule"), DAMAGES.values(), ids=DAMAGES)
class TestDamage:
    """What each source does with a damaged file."""

    def test_in_data_dir_is_an_error(self, tmp_path: Path, mirror: Mirror, body: bytes, rule: str) -> None:
        given = write_files(tmp_path / "given")
        (given / "images.gz").write_bytes(body)
        match = rf"given/images\.gz {rule}.*\. Replace the file, or leave --data-dir out\.$"
        with pytest.raises(UserError, match=match):
            read_files(replace(FILES, mirrors=(mirror.url,)), NAMES, given)

    def test_in_cache_is_said_and_fetched_again(
        self, mirror: Mirror, cache: Path, body: bytes, rule: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (write_files(cache) / "images.gz").write_bytes(body)
        files = replace(FILES, mirrors=(mirror.url,))
        assert read_files(files, NAMES) == CONTENTS
        assert re.search(rf"warning: .*toy/images\.gz {rule}.*\. Passed over\.", capsys.readouterr().err)
        assert mirror.asked == ["images.gz"]
        assert read_files(files, NAMES) == CONTENTS
        assert capsys.readouterr().err == ""

    def test_from_a_mirror_is_not_kept(self, mirror: Mirror, cache: Path, body: bytes, rule: str) -> None:
        mirror.bodies["images.gz"] = body
        with pytest.raises(UserError, match=rf"mirror {mirror.url}: {mirror.url}images\.gz {rule}"):
            read_files(replace(FILES, mirrors=(mirror.url,)), NAMES)
        assert not cache.exists()


def test_damaged_plain_file_in_cache_gives_way(mirror: Mirror, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_files(cache, gzipped=False) / "images").write_bytes(b"damaged")
    files = replace(FILES, mirrors=(mirror.url,))
    read_files(files, NAMES)
    capsys.readouterr()
    assert read_files(files, NAMES) == CONTENTS
    assert capsys.readouterr().err == ""


def test_data_dir_without_the_files_is_said_once(
    tmp_path: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nowhere").mkdir()
    read_files(replace(FILES, mirrors=(mirror.url,)), NAMES, tmp_path / "nowhere")
    said = [line for line in capsys.readouterr().err.splitlines() if "--data-dir" in line]
    assert said == [f"--data-dir {tmp_path}/nowhere has no undamaged images, labels; looking elsewhere."]


def test_second_mirror_is_asked_when_the_first_fails(mirror: Mirror) -> None:
    assert read_files(replace(FILES, mirrors=(f"{mirror.url}gone/", mirror.url)), NAMES) == CONTENTS
    assert mirror.asked == ["gone/images.gz", "images.gz", "labels.gz"]


def test_error_names_every_source(tmp_path: Path, mirror: Mirror, cache: Path, commands: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        mirror.bodies.clear()
        files = replace(
            FILES, mirrors=(mirror.url, refusing), debian_package="dataset-toy", system_dir=tmp_path / "system"
        )
        lines = [
            "^Data set toy must be in a folder or downloadable, but no source has images, labels:",
            f"  --data-dir {tmp_path}/given: has no undamaged images, labels",
            f"  cache {cache}: has no undamaged images, labels",
            f"  system {tmp_path}/system: has no undamaged images, labels",
            rf"  mirror {mirror.url}: images\.gz: HTTP Error 404: Not Found",
            rf"  mirror {refusing}: images\.gz: <urlopen error .* Connection refused>",
            "  Debian package dataset-toy: apt-get and dpkg-deb not installed",
            r"Put images, labels \(each plain or \.gz\) into a folder and pass it as --data-dir\.$",
        ]
        (tmp_path / "given").mkdir()
        with pytest.raises(UserError, match="\n".join(lines)):
            read_files(files, NAMES, tmp_path / "given")


def test_a_data_dir_that_is_not_there_is_refused(tmp_path: Path, mirror: Mirror) -> None:
    with pytest.raises(
        UserError, match=r"--data-dir must be a folder, but got '.*/none'\. Leave it out to look elsewhere"
    ):
        read_files(replace(FILES, mirrors=(mirror.url,)), NAMES, tmp_path / "none")
    assert mirror.asked == []


def test_silent_mirror_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(UserError, match=rf"mirror {url}: images\.gz: timed out"):
            read_files(replace(FILES, mirrors=(url,)), NAMES)


HEAD = b"HTTP/1.0 200 OK\r\nContent-Length: 4422102\r\n\r\n"
# What a mirror sends at once, and what it then sends a byte at a time.
DRIPS = {
    "content": (HEAD, b"x"),
    "headers": (b"HTTP/1.0 200 OK\r\nX: ", b"x"),
    "nothing at first": (b"", b"H"),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
}


@pytest.fixture
def dripping() -> Iterator[Callable[[bytes, bytes], str]]:
    """Makes a server that never stalls for long and never ends; returns its URL."""
    stop, servers = threading.Event(), []

    def serve(server: socket.socket, first: bytes, then: bytes) -> None:
        while not stop.is_set():
            try:
                with server.accept()[0] as connection:
                    connection.sendall(first)
                    while not stop.wait(0.05):
                        connection.sendall(then)
            except OSError:
                continue

    def start(first: bytes, then: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(0.1)
        servers.append((server, threading.Thread(target=serve, args=(server, first, then))))
        servers[-1][1].start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/"

    yield start
    stop.set()
    for server, thread in servers:
        thread.join()
        server.close()


@pytest.mark.parametrize(("first", "then"), DRIPS.values(), ids=DRIPS)
def test_a_mirror_that_sends_a_byte_at_a_time_is_given_up(
    mirror: Mirror,
    dripping: Callable[[bytes, bytes], str],
    first: bytes,
    then: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(downloads, "SLOWEST_SECONDS", 0.3)
    slow = dripping(first, then)
    with pytest.raises(UserError, match=rf"mirror {slow}: images\.gz: too slow: \d+ bytes in 0 s"):
        read_files(replace(FILES, mirrors=(slow,)), NAMES)
    assert read_files(replace(FILES, mirrors=(slow, mirror.url)), NAMES) == CONTENTS


def test_a_download_has_an_overall_limit(
    dripping: Callable[[bytes, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "LONGEST_SECONDS", 0.3)
    with pytest.raises(UserError, match=r"images\.gz: too slow: [\d,]+ bytes in 0 s"):
        read_files(replace(FILES, mirrors=(dripping(HEAD, b"x" * 50_000),)), NAMES)


def test_a_mirror_that_ends_too_soon_is_said(mirror: Mirror) -> None:
    mirror.shorter = 7
    with pytest.raises(UserError, match=r"images\.gz: ended after \d+ of \d+ bytes"):
        read_files(replace(FILES, mirrors=(mirror.url,)), NAMES)


def test_slow_weights_are_given_up(
    dripping: Callable[[bytes, bytes], str], pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "SLOWEST_SECONDS", 0.3)
    monkeypatch.setattr(downloads, "MIRROR", dripping(HEAD, b"x"))
    with pytest.raises(UserError, match=r"or be downloadable, but got too slow: \d+ bytes in 0 s\. Choose pretrained"):
        weights_file("resnet18")


def test_cache_that_cannot_be_written_is_said(mirror: Mirror, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert read_files(replace(FILES, mirrors=(mirror.url,)), NAMES) == CONTENTS
    match = r"warning: cannot keep .*toy/images\.gz \(Not a directory\)\. Set TUNING_CACHE to another folder\."
    assert re.search(match, capsys.readouterr().err)


def test_full_disk_is_an_error(mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(file: IO[bytes], content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", file.name)

    monkeypatch.setattr("tuning.base.files.write", write)
    with pytest.raises(UserError, match=rf"No space left on the disk while writing {cache}/images\.gz"):
        read_files(replace(FILES, mirrors=(mirror.url,)), NAMES)
    assert list(cache.iterdir()) == []


class TestDebian:
    """The last source, with scripts in the place of apt-get and dpkg-deb."""

    FILES = replace(FILES, debian_package="dataset-toy")

    def test_is_fetched_without_root_and_kept(
        self, tmp_path: Path, cache: Path, commands: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        package = write_files(tmp_path / "package" / "usr/share")
        write_command(commands, "apt-get", 'case "$*" in *"download dataset-toy") touch toy_1_all.deb;; esac')
        write_command(commands, "dpkg-deb", f'test -f "$2" && cp -r {package.parents[1]} "$3"')
        assert read_files(self.FILES, NAMES) == CONTENTS
        assert "Fetching the Debian package dataset-toy with apt-get (no root needed) ..." in capsys.readouterr().err
        assert sorted(path.name for path in cache.iterdir()) == ["images.gz", "labels.gz"]
        update, download = (commands / "apt-get.log").read_text().splitlines()
        assert update.endswith(" update") and download.endswith(" download dataset-toy")
        folders = re.findall(r"Dir::(?:State|State::lists|Cache)=(\S+)", update)
        assert len(folders) == 3 and all("/tuning-" in folder for folder in folders)
        assert not Path(folders[0]).exists()
        assert read_files(self.FILES, NAMES) == CONTENTS
        assert len((commands / "apt-get.log").read_text().splitlines()) == 2

    @pytest.mark.parametrize(
        ("apt", "dpkg", "reason"),
        [
            (
                "echo W: old >&2; echo E: no such package >&2; exit 100",
                "",
                "apt-get failed with exit code 100: E: no su",
            ),
            ("exit 7", "", "apt-get failed with exit code 7: no message"),
            ("touch toy.deb", "echo not an archive >&2; exit 2", "dpkg-deb failed with exit code 2: not an archive"),
            ("touch toy.deb", "mkdir unpacked", "has no undamaged images, labels"),
            ("touch toy.deb", "mkdir unpacked; echo other > unpacked/images", "images must have the SHA-256 "),
            ("exec sleep 5", "", "apt-get took more than 0.2 s"),
        ],
    )
    def test_failure_is_a_reason(
        self, commands: Path, monkeypatch: pytest.MonkeyPatch, apt: str, dpkg: str, reason: str
    ) -> None:
        write_command(commands, "apt-get", apt)
        write_command(commands, "dpkg-deb", dpkg)
        if "sleep" in apt:
            monkeypatch.setattr(fetch, "COMMAND_SECONDS", 0.2)
        with pytest.raises(UserError, match=f"Debian package dataset-toy: {reason}"):
            read_files(self.FILES, NAMES)


@pytest.fixture
def pretrained(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch would have weights that the mirror serves; their name has their hash, as torchvision's names do."""
    content = b"weights " * 100
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    mirror.bodies[name] = content
    monkeypatch.setitem(ARCHITECTURES, "resnet18", replace(ARCHITECTURES["resnet18"], weights=name))
    monkeypatch.setattr(downloads, "MIRROR", mirror.url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints" / name


def test_pretrained_weights_are_downloaded_once_to_where_torch_looks_for_them(mirror: Mirror, pretrained: Path) -> None:
    assert weights_file("resnet18") == weights_file("resnet18") == pretrained
    assert pretrained.read_bytes() == mirror.bodies[pretrained.name] and mirror.asked == [pretrained.name]


@pytest.mark.parametrize("damage", ["download", "cache", "none"])
def test_pretrained_weights_that_cannot_be_had_are_said(mirror: Mirror, pretrained: Path, damage: str) -> None:
    if damage == "cache":
        pretrained.parent.mkdir(parents=True)
        pretrained.write_bytes(b"weigh")
    elif damage == "download":
        mirror.bodies[pretrained.name] = b"weigh"
    else:
        mirror.bodies.clear()
    said = "HTTP Error 404: Not Found" if damage == "none" else r"a damaged file \(5 bytes\)"
    with pytest.raises(
        UserError,
        match=rf"^Pretrained resnet18 weights must be in {pretrained.parent} or be downloadable, but got {said}\. "
        rf"Choose pretrained: false, or put torchvision's {pretrained.name} there\.$",
    ):
        weights_file("resnet18")
    assert pretrained.exists() == (damage == "cache")


def test_pretrained_weights_are_torchvisions_and_where_torch_looks_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch.hub
    from torchvision.models import ResNet18_Weights

    name = ARCHITECTURES["resnet18"].weights
    assert ResNet18_Weights.IMAGENET1K_V1.url == downloads.MIRROR + name
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr(downloads, "download", lambda url: pytest.fail("is to be looked for first"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"must be in {path.parent} or be downloadable, but got a damaged file"):
        weights_file("resnet18")


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNING_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache_dir("toy") == Path("/a/toy")
    monkeypatch.delenv("TUNING_CACHE")
    assert cache_dir("toy") == Path("/b/tuning/toy")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_dir("toy") == Path("/c/.cache/tuning/toy")


IDX = b"\x00\x00\x08\x03" + np.array([2, 3, 4], ">u4").tobytes() + bytes(range(24))


def test_parse_idx_gives_the_array() -> None:
    np.testing.assert_array_equal(parse_idx(IDX, "x"), np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"^x must begin with an IDX header of unsigned bytes \(00 00 08\), but got b''\.$"),
        (b"\x00\x00\x0d" + IDX[3:], r"^x must begin with an IDX header .* but got b'.x00.x00.r.x03'\.$"),
        (IDX[:10], "^x must begin with an IDX header"),
        (b"\x00\x00\x08\x00", "^x must begin with an IDX header"),
        (IDX[:-1], r"^x must hold 2 x 3 x 4 bytes after its header, but got 23\.$"),
        (IDX + b"1", r"^x must hold 2 x 3 x 4 bytes after its header, but got 25\.$"),
    ],
)
def test_parse_idx_says_what_is_wrong(content: bytes, match: str) -> None:
    with pytest.raises(UserError, match=match):
        parse_idx(content, "x")


def test_fashion_mnist_is_the_protocols() -> None:
    files = DATASETS["fashion-mnist"].files
    assert isinstance(files, FileSet) and files.name == "fashion-mnist"
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    assert tuple(files.sha256) == (*files.train, *files.test) == names
    assert {len(value) for value in files.sha256.values()} == {64}
    assert [value[:8] for value in files.sha256.values()] == ["c59f468a", "bad3541b", "5b4141f0", "0402a96d"]
    assert str(files.system_dir) == "/usr/share/datasets/fashion-mnist"
    assert files.debian_package == "dataset-fashion-mnist"

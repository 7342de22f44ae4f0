"""`tuning.images.torchvision_sets` on small archives of the right form, served on loopback; no network."""

import errno
import functools
import gzip
import hashlib
import http.server
import io
import pickle
import re
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
from torchvision import datasets as theirs

from tuning.base.errors import UserError
from tuning.images import datasets, splitting, torchvision_sets
from tuning.images.catalogue import DATASETS, TorchvisionSet
from tuning.images.source import Source

NAMES = [name for name, known in DATASETS.items() if isinstance(known.files, TorchvisionSet)]
N_TRAIN, N_TEST = 4, 1  # Images a class.
Part = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


@dataclass
class Made:
    """Archives of a data set, and what they hold.

    Attributes:
        bodies: File name -> content, as they are served.
        train: Images, uint8 (N, C, H, W), upright, and their labels.
        test: The same.
        asked: File names, in the order in which they were asked for.
    """

    train: Part
    test: Part
    bodies: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


def idx(values: npt.NDArray[Any]) -> bytes:
    """Returns the values as a gzipped file of the IDX format."""
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(head + values.astype(np.uint8).tobytes(), mtime=0)


def pickled(values: dict[str, Any]) -> bytes:
    """Returns what Python 2 would have pickled: numpy's old types say whether they are aligned by a number."""
    return pickle.dumps(values, protocol=2).replace(b"\x89\x88\x87R", b"K\x00K\x01\x87R")


def md5(content: bytes) -> str:
    """Returns the checksum as torchvision has it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def part(n_classes: int, n: int, shape: tuple[int, ...], seed: int) -> Part:
    """Returns random images, n of each class."""
    labels = np.repeat(np.arange(n_classes), n)
    return np.random.default_rng(seed).integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels


def make(name: str, url: str, patch: pytest.MonkeyPatch) -> Made:
    """Returns the archives of a data set; torchvision's class now has their URLs and checksums."""
    known = DATASETS[name]
    assert isinstance(known.files, TorchvisionSet)
    kind, n_classes = getattr(theirs, known.files.name), len(known.class_names)
    shape = (3, 32, 32) if name in ("cifar10", "cifar100", "svhn") else (1, 28, 28)
    made = Made(part(n_classes, N_TRAIN, shape, 0), part(n_classes, N_TEST, shape, 1))
    both = {"train": made.train, "test": made.test}
    if name == "svhn":
        for which, (images, labels) in both.items():
            file = io.BytesIO()
            digits = np.where(labels == 0, 10, labels).astype(np.uint8)
            scipy.io.savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": digits[:, None]})
            made.bodies[f"{which}_32x32.mat"] = file.getvalue()
        listed = {
            key: [f"{url}{key}_32x32.mat", f"{key}_32x32.mat", md5(made.bodies[f"{key}_32x32.mat"])] for key in both
        }
        patch.setattr(kind, "split_list", listed)
    elif name.startswith("cifar"):
        key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
        files = {kind.meta["filename"]: pickled({kind.meta["key"]: list(known.class_names)})}
        for listed, (images, labels) in ((kind.train_list, made.train), (kind.test_list, made.test)):
            for (file_name, _), rows in zip(listed, np.array_split(np.arange(len(labels)), len(listed)), strict=True):
                files[file_name] = pickled({"data": images[rows].reshape(len(rows), -1), key: labels[rows].tolist()})
        for which in ("train_list", "test_list"):
            patch.setattr(kind, which, [[file_name, md5(files[file_name])] for file_name, _ in getattr(kind, which)])
        patch.setattr(kind, "meta", kind.meta | {"md5": md5(files[kind.meta["filename"]])})
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            for file_name, content in files.items():
                entry = tarfile.TarInfo(f"{kind.base_folder}/{file_name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        made.bodies[kind.filename] = file.getvalue()
        patch.setattr(kind, "url", f"{url}{kind.filename}")
        patch.setattr(kind, "tgz_md5", md5(file.getvalue()))
    elif name.startswith("emnist"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for which, (images, labels) in both.items():
                lying = images[:, 0].swapaxes(1, 2)
                archive.writestr(f"gzip/emnist-balanced-{which}-images-idx3-ubyte.gz", idx(lying))
                archive.writestr(f"gzip/emnist-balanced-{which}-labels-idx1-ubyte.gz", idx(labels))
                archive.writestr(f"gzip/emnist-byclass-{which}-images-idx3-ubyte.gz", b"not even gzip: nobody reads it")
        made.bodies["gzip.zip"] = file.getvalue()
        patch.setattr(kind, "url", f"{url}gzip.zip")
        patch.setattr(kind, "md5", md5(file.getvalue()))
    else:
        for which, (images, labels) in {"train": made.train, "t10k": made.test}.items():
            made.bodies[f"{which}-images-idx3-ubyte.gz"] = idx(images[:, 0])
            made.bodies[f"{which}-labels-idx1-ubyte.gz"] = idx(labels)
        patch.setattr(kind, "mirrors", [url])
        patch.setattr(kind, "resources", [(file_name, md5(made.bodies[file_name])) for file_name, _ in kind.resources])
    return made


Make = Callable[[str], Made]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Returns what makes a data set's archives and serves them on loopback; the cache is empty, and the test's own."""
    monkeypatch.setenv("TUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    sets: list[Made] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            for made in sets:
                made.asked.append(name)
            body = next((made.bodies[name] for made in sets if name in made.bodies), None)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()

        def serve(name: str) -> Made:
            sets.append(make(name, f"http://127.0.0.1:{server.server_address[1]}/", monkeypatch))
            return sets[-1]

        yield serve
        server.shutdown()
        thread.join()


def same(found: datasets.Labelled, expected: Part) -> bool:
    """Returns whether images and labels are those that are expected, to the bit."""
    images, labels = expected
    return (
        (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)
        and np.array_equal(found.images, images)
        and np.array_equal(found.labels, labels)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_downloaded_once_and_has_upright_images(
    name: str, served: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = served(name)
    assert same(datasets.load_train(name), made.train)
    assert made.asked == list(made.bodies) if name != "svhn" else sorted(made.asked) == sorted(made.bodies)
    assert same(datasets.load_test(name), made.test)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("Downloading http://127.0.0.1") == len(made.bodies)
    assert len(made.asked) == len(made.bodies)
    assert [path.name for path in (tmp_path / "cache" / name).iterdir()] == ["unpacked"]


@pytest.mark.parametrize("name", NAMES)
def test_load_splits_and_hash_test_of_a_set(name: str, served: Make) -> None:
    made = served(name)
    splits = splitting.load_splits(Source(name), seed=1)
    n_classes, n_train = len(DATASETS[name].class_names), len(made.train[1])
    assert splits.class_names == DATASETS[name].class_names and splits.dataset == name
    assert (len(splits.train) + len(splits.valid), splits.channels) == (n_train, made.train[0].shape[1])
    assert np.bincount(splits.valid.labels, minlength=n_classes).min() >= 1
    test = datasets.hash_test(name)
    assert test.digests.tolist() == datasets.image_digests(made.test[0]).tolist()
    assert test.counts.tolist() == [N_TEST] * n_classes and test.shape == made.test[0].shape


@pytest.mark.parametrize("name", NAMES)
def test_class_names_are_torchvisions_where_it_has_them(name: str, served: Make, tmp_path: Path) -> None:
    served(name)
    datasets.load_train(name)
    known = DATASETS[name]
    assert isinstance(known.files, TorchvisionSet)
    found = getattr(theirs, known.files.name)(str(tmp_path / "cache" / name / "unpacked"), **known.files.test)
    if name != "svhn":
        classes = [text.partition(" - ")[0] for text in found.classes]
        assert classes == list(known.class_names)
    assert known.licence.endswith(".") and len(set(known.class_names)) == len(known.class_names)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "emnist-balanced"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_a_folder_with_torchvisions_files_is_read_without_a_network(
    name: str, unpacked: bool, served: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = served(name)
    given = tmp_path / "given"
    if unpacked:
        datasets.load_train(name)
        (tmp_path / "cache" / name / "unpacked").rename(given)
        made.asked.clear()
        capsys.readouterr()
    else:
        given.mkdir()
        for file_name, body in made.bodies.items():
            (given / file_name).write_bytes(body)
    before = sorted(given.rglob("*"))
    assert same(datasets.load_train(name, given), made.train)
    assert same(datasets.load_test(Source(name, given)), made.test)
    assert (made.asked, sorted(given.rglob("*")), capsys.readouterr()) == ([], before, ("", ""))


def test_a_folder_without_the_files_is_said_once(
    served: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = served("kmnist")
    (tmp_path / "given").mkdir()
    assert same(datasets.load_train("kmnist", tmp_path / "given"), made.train)
    said = [line for line in capsys.readouterr().err.splitlines() if "--data-dir" in line]
    assert said == [f"--data-dir {tmp_path}/given has no undamaged kmnist (Dataset not found); looking elsewhere."]
    with pytest.raises(UserError, match=r"^--data-dir must be a folder, but got '.*/none'\. Leave it out to look else"):
        datasets.load_train("kmnist", tmp_path / "none")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_a_damaged_cache_is_said_and_fetched_again(
    name: str, served: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = served(name)
    datasets.load_train(name)
    kept = tmp_path / "cache" / name / "unpacked"
    cut = {"mnist": "MNIST/raw/train-images-idx3-ubyte", "cifar10": "cifar-10-batches-py/data_batch_2"}
    path = kept / cut.get(name, "train_32x32.mat")
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    assert same(datasets.load_train(name), made.train)
    assert re.search(
        rf"^cache {kept} has no undamaged {name} \(.+\); looking elsewhere\.$", capsys.readouterr().err, re.M
    )
    assert same(datasets.load_train(name), made.train)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_checksum_names_the_set_the_reason_and_the_way_out(name: str, served: Make, tmp_path: Path) -> None:
    made = served(name)
    file_name = next(iter(made.bodies))
    made.bodies[file_name] = made.bodies[file_name][:-9]
    match = (
        rf"^Data set {name} must be in a folder or downloadable, but no source has {file_name}:\n"
        rf"  {tmp_path}/cache/{name}: has no undamaged {file_name}\n"
        rf"  http://127\.0\.0\.1:\d+/{file_name}: the MD5 must be [0-9a-f]{{32}}, which torchvision knows, but is "
        rf"another \([\d,]+ bytes\)\nPut torchvision's files \(.*{file_name}.*\) into a folder and pass it as "
        r"--data-dir\.$"
    )
    with pytest.raises(UserError, match=match):
        splitting.load_splits(name)
    assert not (tmp_path / "cache" / name / "unpacked").exists()
    assert not [path for path in (tmp_path / "cache" / name).iterdir() if path.name.startswith(".")]


def test_a_damaged_archive_in_the_folder_is_said_and_passed_over(
    served: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = served("cifar100")
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half of it")
    assert same(datasets.load_train("cifar100", tmp_path), made.train)
    match = (
        r"^warning: .*/cifar-100-python\.tar\.gz: the MD5 must be \w{32}, which torchvision knows, but is another\. Pas"
    )
    assert re.search(match, capsys.readouterr().err, re.M)


def test_a_mirror_that_cannot_be_reached_names_the_set_the_reason_and_the_way_out(
    served: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    served("mnist")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        monkeypatch.setattr(theirs.MNIST, "mirrors", [f"{theirs.MNIST.mirrors[0]}gone/", refusing])
        match = (
            r"^Data set mnist must be .*\n.*\n  http.*/gone/train-images-idx3-ubyte\.gz: HTTP Error 404: Not Found\n"
            rf"  {refusing}train-images-idx3-ubyte\.gz: <urlopen error .* Connection refused>\nPut .*--data-dir\.$"
        )
        with pytest.raises(UserError, match=match):
            datasets.load_train("mnist")


def test_the_second_mirror_is_asked_and_what_came_is_not_fetched_again(
    served: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = served("mnist")
    labels = made.bodies.pop("t10k-labels-idx1-ubyte.gz")
    monkeypatch.setattr(theirs.MNIST, "mirrors", [f"{theirs.MNIST.mirrors[0]}gone/", *theirs.MNIST.mirrors])
    with pytest.raises(UserError, match=r"no source has t10k-labels-idx1-ubyte\.gz"):
        datasets.load_train("mnist")
    assert len(made.asked) == 8
    made.bodies["t10k-labels-idx1-ubyte.gz"] = labels
    assert same(datasets.load_train("mnist"), made.train)
    assert made.asked[8:] == ["gone/t10k-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]


def full(*_: object, **__: object) -> None:
    """Fails as on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


FULL = (
    r"^Data set cifar10 cannot be unpacked\. No space left on the disk while writing .*/cache/cifar10\. Free some "
    r"space, or set TUNING_CACHE to a folder elsewhere\. Or put .*torchvision\.datasets\.CIFAR10, into .* --data-dir\.$"
)


@pytest.mark.parametrize("moment", ["download", "unpacking"])
def test_a_full_disk_names_the_set_and_the_way_out_and_leaves_no_half_of_it(
    moment: str, served: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = served("cifar10")
    with monkeypatch.context() as patch:
        if moment == "unpacking":
            patch.setattr(tarfile.TarFile, "extractall", full)
        else:
            opened = Path.open

            def open_full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> IO[Any]:
                is_download = ".download-" in str(path) and mode == "wb"
                return opened(Path("/dev/full") if is_download else path, mode, *args, **kwargs)

            patch.setattr(Path, "open", open_full)
        with pytest.raises(UserError, match=FULL):
            datasets.load_train("cifar10")
    left = [path.name for path in (tmp_path / "cache" / "cifar10").iterdir()]
    assert left == (["cifar-10-python.tar.gz"] if moment == "unpacking" else [])
    assert same(datasets.load_train("cifar10"), made.train)


def test_a_cache_that_cannot_be_written_names_the_set_and_the_way_out(served: Make, tmp_path: Path) -> None:
    served("mnist")
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    match = r"^Data set mnist cannot be unpacked\. .*/cache/mnist cannot be used: .*Not a directory.*TUNING_CACHE"
    with pytest.raises(UserError, match=match):
        datasets.load_train("mnist")


def test_another_process_that_was_quicker_is_no_error(
    served: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = served("mnist")
    datasets.load_train("mnist")
    ready, kept = tmp_path / "ready", tmp_path / "cache" / "mnist" / "unpacked"
    kept.rename(ready)
    rename = Path.rename

    def slower(path: Path, target: Path) -> Path:
        if target == kept:
            rename(ready, kept)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", slower)
    assert same(datasets.load_train("mnist"), made.train)
    assert not ready.exists()


def test_labels_that_no_class_has_are_refused(served: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = served("mnist")
    datasets.load_train("mnist")
    given = tmp_path / "given"
    (tmp_path / "cache" / "mnist" / "unpacked").rename(given)
    labels = given / "MNIST/raw/train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    for archive in (given / "MNIST/raw").glob("*.gz"):
        archive.unlink()
    assert same(datasets.load_train("mnist", given), made.train)
    assert "(40 images have 40 labels, the greatest 10); looking elsewhere." in capsys.readouterr().err


def test_the_downloads_patience_is_that_of_all_downloads(served: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    served("svhn")
    monkeypatch.setattr("tuning.base.downloads.CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        listed = {
            key: [f"http://127.0.0.1:{silent.getsockname()[1]}/{name}", name, digest]
            for key, (_, name, digest) in theirs.SVHN.split_list.items()
        }
        monkeypatch.setattr(theirs.SVHN, "split_list", listed)
        with pytest.raises(UserError, match=r"train_32x32\.mat: timed out"):
            datasets.load_train("svhn")


def test_the_real_urls_and_checksums_are_torchvisions() -> None:
    readers = {
        name: torchvision_sets.Reader(name, known.files, len(known.class_names))
        for name, known in DATASETS.items()
        if isinstance(known.files, TorchvisionSet)
    }
    found = {name: [archive.name for archive in reader.archives] for name, reader in readers.items()}
    assert found["svhn"] == ["train_32x32.mat", "test_32x32.mat"]
    assert found["emnist-balanced"] == ["gzip.zip"]
    assert found["cifar10"] == ["cifar-10-python.tar.gz"] and len(found["mnist"]) == len(found["kmnist"]) == 4
    archives = functools.reduce(list.__add__, (list(reader.archives) for reader in readers.values()))
    assert all(re.fullmatch("[0-9a-f]{32}", each.md5) for each in archives)
    assert all(url.startswith("http") and url.endswith(each.name) for each in archives for url in each.urls)

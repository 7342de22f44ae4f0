"""Files in a storage, a folder and a real S3 server; and a search that outlives its machine by it."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_run
from test_search import check_record, processes

from tuning.base import masking
from tuning.base.errors import UserError
from tuning.remote import mirror, storage, stored_runs
from tuning.remote.storage import Store
from tuning.runs import run_folder


class S3:
    """An S3 server on the loopback address, that can be stopped and started again with what it holds."""

    def __init__(self) -> None:
        from moto.moto_server.threaded_moto_server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._new, self.port = ThreadedMotoServer, 0
        self.start()

    def start(self) -> None:
        self._server = self._new(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """Returns the server, with the buckets `bucket` and `locked`, which refuses everybody; the environment names it."""
    import boto3

    server = S3()
    names = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (names | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}).items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        for name in ("bucket", "locked"):
            client.create_bucket(Bucket=name)
        everything = '"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::locked/*"'
        client.put_bucket_policy(
            Bucket="locked", Policy=f'{{"Version": "2012-10-17", "Statement": [{{{everything}}}]}}'
        )
        client.close()
        yield server
    server.stop()


@pytest.mark.parametrize("place", ["folder", "S3", "S3 by its address"])
def test_files_go_there_and_come_back(tmp_path: Path, s3: S3, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(tmp_path)
    if place != "folder":
        base = "s3://bucket/kept"
    if place == "S3 by its address":
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        base = f"s3://bucket/other?endpoint_override=127.0.0.1:{s3.port}&scheme=http"
    store = Store(storage.joined(base, "one"))
    assert store.infos() == {} and store.read("meta.json") is None
    large = os.urandom(12 << 20)  # Which S3 gets in parts.
    for name, data in (("meta.json", b"1"), ("meta.json", b"2"), ("trials/0000/latest.pt", large), ("empty", b"")):
        store.write(name, data)
    assert (store.read("meta.json"), store.read("trials/0000/latest.pt"), store.read("empty")) == (b"2", large, b"")
    assert set(store.infos()) == {"meta.json", "trials/0000/latest.pt", "empty"}
    assert all(abs(info.mtime.timestamp() - time.time()) < 60 for info in store.infos().values())
    assert set(store.infos("trials")) == {"trials/0000/latest.pt"}
    for _ in range(2):
        store.remove("trials/0000/latest.pt")
        assert set(store.infos()) == {"meta.json", "empty"}
    Store(storage.joined(base, "no-run")).write("x", b"")
    assert list(Store(base).runs()) == ["one"]


def test_the_address_of_a_bucket_alone_names_its_runs(tmp_path: Path, s3: S3) -> None:
    for name in ("alone", "later"):
        Store(f"s3://bucket/{name}").write("meta.json", f'{{"started": "{name}", "settings": {{}}}}'.encode())
    for call in (lambda uri: mirror.fetch(uri, tmp_path), stored_runs.newest):
        with pytest.raises(UserError, match=r"^s3://bucket is a storage\. Name .*: s3://bucket/RUN, .* alone,"):
            call("s3://bucket")
    assert mirror.fetch("s3://bucket/latest", tmp_path).name == "later"


class Failing:
    """A file system whose first requests fail."""

    type_name = "s3"

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def delete_file(self, path: str) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Returns a list of the seconds that were slept; the clock goes on by them at once."""
    slept: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", slept.append)
    monkeypatch.setattr(storage.time, "monotonic", lambda: sum(slept))
    return slept


def test_what_fails_for_a_while_is_tried_again_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, waited: list[float]
) -> None:
    away = Failing(*[OSError("AWS Error NETWORK_CONNECTION")] * 4)
    monkeypatch.setattr(storage, "_open", lambda uri: (away, "bucket"))
    Store("s3://bucket/runs").remove("x")
    assert not away.errors and len(waited) == 4
    for longest, pause in zip((0.5, 1, 2, 4), waited, strict=True):
        assert longest / 2 <= pause <= longest
    away.errors = [OSError("AWS Error NETWORK_CONNECTION\nmore")] * 99
    with pytest.raises(UserError, match=r"^--storage must be a place that can be read and written, but got .*ION$"):
        Store("s3://bucket/runs").remove("x")
    assert len(away.errors) > 90


def test_what_will_not_go_away_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, waited: list[float]) -> None:
    for error in (OSError("AWS Error ACCESS_DENIED during PutObject"), PermissionError(13, "no")):
        monkeypatch.setattr(storage, "_open", lambda uri, error=error: (Failing(error), "bucket"))
        with pytest.raises(UserError, match=r"read and written, but got 's3://bucket/runs': .*(ACCESS_DENIED|no)"):
            Store("s3://bucket/runs").remove("x")
    assert waited == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s4://bucket/runs", r"--storage must be a folder, or s3:// or gs:// .*, but got 's4://bucket/runs': Unrec"),
        ("s3:///runs", r"--storage must be a folder, or s3:// or gs:// .*, but got 's3:///runs': Missing bucket name"),
        ("nowhere", r"--storage must be a folder that is there, but got '/.*/nowhere'. Make it first, or mount it"),
        ("file:///nowhere", r"--storage must be a folder that is there, but got '/nowhere'"),
        ("s3://me:hidden@bucket/x", r"must hold no secret, for it is written down .*, but got 's3://\*\*\*@bucket/x'"),
        ("s3://bucket/x?secret_key=hidden", r"--storage must hold no secret, .*, but got 's3://bucket/x\?\*\*\*'. Put"),
    ],
)
def test_bad_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        storage.usable(uri)
    assert "hidden" not in str(raised.value)


def test_a_place_that_can_be_used_is_absolute_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert storage.usable("runs") == storage.usable(f"file://{tmp_path}/runs") == str(tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


def test_uris_are_put_together_and_taken_apart() -> None:
    for base in ("s3://bucket/runs", "s3://bucket/runs?endpoint_override=host:1&scheme=http", "/shared/runs"):
        assert storage.split(storage.joined(base, "one")) == (base, "one")
    assert storage.joined("gs://bucket/", "one") == "gs://bucket/one"
    assert storage.split("s3://bucket/runs/one/") == ("s3://bucket/runs", "one")
    for uri in ("s3://bucket", "s3://bucket/", "s3://"):
        with pytest.raises(UserError, match=rf"^A run in a storage must be named as STORAGE/RUN, but got '{uri}'\.$"):
            storage.split(uri)


def test_a_folder_is_one_storage_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my runs?" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    base = str(tmp_path / "my runs?")
    for name in (base, "my runs?", (tmp_path / "my runs?").as_uri(), f"file://localhost{tmp_path}/my%20runs%3F"):
        assert storage.absolute(name) == storage.usable(name) == Store(name).uri == base
        assert storage.joined(name, "one") == f"{base}/one"
        assert storage.split(storage.joined(name, "one")) == (base, "one")
        assert storage.is_at(name, tmp_path / "my runs?" / "one")
    assert storage.split("/one") == ("/", "one") and storage.joined("/", "one") == "/one"


class Closed:
    """The local file system, with a folder that this user may not enter."""

    def __init__(self, folder: Path) -> None:
        from pyarrow import fs

        self.folder, self.system, self.type_name = str(folder), fs.LocalFileSystem(), "local"

    def get_file_info(self, wanted: Any) -> Any:
        if isinstance(wanted, list) and any(path.startswith(self.folder) for path in wanted):
            raise PermissionError(13, "Permission denied")
        return self.system.get_file_info(wanted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.system, name)


def test_a_folder_that_may_not_be_entered_is_no_run_and_hides_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "lost+found", "two"):
        Store(str(tmp_path)).write(f"{name}/meta.json", b"{}")
    (tmp_path / "no run").mkdir()
    monkeypatch.setattr(storage, "_open", lambda uri: (Closed(tmp_path / "lost+found"), str(tmp_path)))
    store = Store(str(tmp_path))
    assert set(store.runs()) == {"one", "two"} and store.taken() == {"one", "two", "lost+found"}


def machine(folder: Path, *arguments: str, module: str = "search") -> tuple[list[str], dict[str, Any]]:
    """Returns command and options that run a command as on a machine of its own: nothing is there but its folder."""
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": f"{folder}:{ROOT}",
        "TMPDIR": str(folder / "scratch"),
        "RAY_TMPDIR": "/tmp",
    }
    return [sys.executable, "-m", f"tuning.{module}", *arguments], {"cwd": folder, "env": environment, "text": True}


def run(folder: Path, *arguments: str, module: str = "search") -> subprocess.CompletedProcess[str]:
    command, options = machine(folder, *arguments, module=module)
    return subprocess.run(command, capture_output=True, timeout=600, check=False, **options)


def wait_until(condition: Callable[[], object], state: Callable[[], str], seconds: float = 240) -> None:
    """Waits until the condition holds; fails with what the state is where that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited for {seconds} s; now: {state()}")
        time.sleep(0.2)


@pytest.mark.slow
def test_a_bucket_that_is_missing_or_refuses_ends_the_command(tmp_path: Path, s3: S3) -> None:
    for bucket, reason in (("missing", "NO_SUCH_BUCKET"), ("locked", "ACCESS_DENIED")):
        done = run(tmp_path, "--storage", f"s3://{bucket}/runs")
        assert done.returncode == 2
        message = f"error: --storage must be a place that can be read and written, but got 's3://{bucket}/runs': "
        assert done.stderr.startswith(message) and reason in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_killed_search_goes_on_elsewhere_through_an_outage_and_is_read_from_the_storage(
    tmp_path: Path, s3: S3
) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    store, uri = Store("s3://bucket/runs/one"), "s3://bucket/runs/one"
    size = ["--samples", "3", "--epochs", "8", "--scheduler", "none", "--space", "smoke", "--train-images", "24000"]
    command, options = machine(first, "--run", "one", "--storage", "s3://bucket/runs", *size)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)

    def is_half_stored() -> bool:
        """Whether a trial's checkpoint and some of its epochs, but not the last two, are in the storage."""
        epochs = [line.split(b",")[0] for line in (store.read("epochs.csv") or b"").splitlines()[1:]]
        return (
            bool(epochs)
            and epochs.count(epochs[-1]) <= 6
            and f"trials/{int(epochs[-1]):04d}/latest.pt" in store.infos()
        )

    wait_until(is_half_stored, lambda: f"{process.poll()}, {sorted(store.infos())}")
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not processes(first), lambda: str(processes(first)))
    shutil.rmtree(first)

    command, options = machine(second, "--resume", uri)
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, **options)

    def said() -> str:
        return (tmp_path / "out").read_text()

    wait_until(lambda: "epoch" in said().partition("started")[2] or process.poll() is not None, said)
    s3.stop()
    wait_until(lambda: "Storage cannot be reached" in said() or process.poll() is not None, said)
    time.sleep(2)  # A second try fails, too.
    s3.start()
    wait_until(lambda: process.poll() is not None, said)
    text = said()
    assert process.returncode == 0 and text.startswith(f"Fetched into results/one: {uri}\n"), text
    assert "goes on after epoch" in text
    assert text.count("Storage cannot be reached: 's3://bucket/runs/one': ") == 1
    assert text.count("Storage s3://bucket/runs/one is back, and what was missing is sent.") == 1
    assert "Not in the storage yet" not in text
    path = second / "results" / "one"
    trials = check_record(path, 3)
    assert trials["attempt"].max() == 2 and not list((second / "scratch").glob("tuning-*"))
    winner = f"{trials['valid_accuracy'].idxmax():04d}"
    names = set(store.infos())
    assert {name for name in names if name.endswith(".pt")} == {
        f"trials/{winner}/{kind}.pt" for kind in ("best", "latest")
    }
    assert (path / "trials" / winner / "best.pt").read_bytes() == store.read(f"trials/{winner}/best.pt")
    for name in ("meta.json", "epochs.csv", "trials.csv", "best.json", "report.html", "best_so_far.png"):
        assert store.read(name) == (path / name).read_bytes(), name
    for number in range(3):
        log = (store.read(f"trials/{number:04d}/trial.log") or b"").decode()
        # Each epoch was trained once, here or there, except one that was cut off or not sent yet.
        assert log.count("EpochResult(") <= 8 + 2 * log.count("Going on after epoch")
        assert ("Going on after epoch" in log) == (trials["attempt"][number] == 2) and "EpochResult(epoch=1," in log
    assert not any(path.stat().st_mode & 0o002 for path in second.rglob("*"))

    for module, arguments in {
        "results": [uri],
        "report": ["s3://bucket/runs/latest"],
        "final": ["--run", uri, "--top-k", "1", "--seeds", "1", "--epochs", "1"],
    }.items():
        before = {name: (info.mtime, info.size) for name, info in store.infos().items()}
        done = run(third, *arguments, module=module)
        assert done.returncode == 0, done.stderr
        after = {name: (info.mtime, info.size) for name, info in store.infos().items()}
        written = {name for name in after if before.get(name) != after[name]}
        assert {name.split("/")[0] for name in written} == {
            "results": set(),
            "report": {"report.html"},
            "final": {"report.html", "final"},
        }[module]
    assert len(run_folder.load(third / "results" / "one").trials) == 3


@pytest.mark.parametrize(
    "text",
    [
        "http://bob:hunter2@host:5000/x",
        "http://bob:hunt@er2@host",
        "http://bob:hunter2/hunter2@host/x",
        "http://:hunter2@host",
        "https://hunter2@host/x",
        "https://account.blob.core.windows.net/c?sv=1&sig=hunter2&se=1",
        "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=hunter2",
        "https://bucket/x?AWSAccessKeyId=hunter2&Signature=hunter2",
        "s3://bucket/x?access_key=hunter2&secret_key=hunter2",
        "https://host/#access_token=hunter2",
        "error at 'http://bob:hunter2@host': no answer",
        "Authorization: Basic hunter2",
        "{'Authorization': 'Bearer hunter2'}",
        "AWS_SECRET_ACCESS_KEY=hunter2 and more",
        "password=hunter2",
        "the server said hunter2 again",  # which is in the environment
    ],
)
def test_a_secret_is_masked_in_any_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "again" in text:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    assert "hunt" not in masking.masked(text) and "er2" not in masking.masked(text)
    assert "***" in masking.masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/a@b/c",
        "gs://bucket/a@b",
        "/shared/me@work/runs",
        "s3://bucket/runs?endpoint_override=host:1&scheme=http",
        "sqlite:////tmp/x.db",
        "12 monkeys? keys=3 are no parameter",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masking.masked(text) == text


def test_what_an_earlier_version_wrote_down_is_masked_wherever_it_is() -> None:
    meta = {"settings": {"mlflow": "http://bob:hunter2@host", "seed": 3}, "command": ["x", "http://bob:hunter2@host"]}
    expected = {"settings": {"mlflow": "http://***@host", "seed": 3}, "command": ["x", "http://***@host"]}
    assert masking.masked_all(meta) == expected


def test_the_door_of_every_command_masks_what_it_says() -> None:
    program = (
        "from tuning.base.errors import *\ndef main() -> None:\n    'Fail.'\n"
        "    raise UserError('no answer from http://bob:hunter2@host')\nrun_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (2, "error: no answer from http://***@host\n")


def test_the_page_and_the_comparison_mask_what_an_earlier_version_wrote_down(tmp_path: Path) -> None:
    from tuning.base import files
    from tuning.figures import run_page
    from tuning.runs import compare, run_folder

    runs = [write_run(tmp_path / name, 3) for name in ("one", "two")]
    meta = runs[0].meta
    meta["settings"]["mlflow"] = "http://bob:hunter2@host"
    files.write_json(runs[0].path / "meta.json", meta | {"command": "search --mlflow http://bob:hunter2@host"})
    page = run_page.write(run_folder.Run(runs[0].path)).read_text(encoding="utf-8")
    assert "http://***@host" in page and "hunter2" not in page
    differing = compare.differences(runs).to_csv()
    assert "http://***@host" in differing and "hunter2" not in differing

"""What every test may use: small learnable splits, a tiny configuration, and one thread for torch."""

import functools
import io
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import alembic.util
import numpy as np
import pytest
from PIL import Image

from tuning.base import files, threads
from tuning.base.config import TrainConfig
from tuning.images.datasets import Labelled
from tuning.images.splitting import Splits, make_splits
from tuning.runs import run_folder

ROOT = Path(__file__).parent.parent
CLASS_NAMES = ("rows", "columns", "checks", "spot")


CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
# What is costly to make and shared: tests with one of these run in one process, which makes it once.
SHARED = ("wheel", "searched", "s3", "browser")


def pytest_configure(config: pytest.Config) -> None:
    """Lets threads that wait sleep: commands with a thread a core, two beside each other, else take twice the time.

    Of several processes that test, each has a core: a search then starts one worker, and not one a core, which took
    17 s of processor time in place of 11. Tests of what runs side by side ask for `every_core`.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[int(worker.removeprefix("gw")) % len(CORES)]})


def pytest_report_header() -> list[str]:
    """Says which versions the tests saw, and which of them are not those of `tuning/constraints.txt`."""
    pins = (line.partition("==") for line in (ROOT / "tuning" / "constraints.txt").read_text("utf-8").splitlines())
    pinned = {name: version for name, _, version in pins if version}
    found = {name: metadata.version(name) for name in ("torch", "torchvision", "ray", "optuna", "pandas", "numpy")}
    installed = {each.name: each.version for each in metadata.distributions()}
    others = [f"{name} {installed[name]}, not {v}" for name, v in pinned.items() if installed.get(name, v) != v]
    return [
        "versions: " + ", ".join(f"{name} {version}" for name, version in found.items()),
        f"other than in tuning/constraints.txt: {'; '.join(others) or 'none'}",
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs slow tests first, so that no process is left with a long one at the end; see `SHARED`."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        for name in SHARED:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(name))


def patterned_images(n: int, *, channels: int = 1, side: int = 12, seed: int = 0) -> Labelled:
    """Returns noisy images of four patterns, as many of each; mirrored or shifted, they keep their class."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    rows, columns = (y // 2 % 2).astype(float), (x // 2 % 2).astype(float)
    spot = np.hypot(y - (side - 1) / 2, x - (side - 1) / 2) < side / 4
    patterns = np.stack([rows, columns, (rows + columns) % 2, spot])
    labels = draw.permutation(np.arange(n) % len(CLASS_NAMES))
    images = 70 + 70 * patterns[labels][:, None] + draw.normal(0, 40, (n, channels, side, side))
    return Labelled(images=images.clip(0, 255).astype(np.uint8), labels=labels.astype(np.int64))


def write_run(path: Path, n_trials: int, *, seed: int = 0, best: float = -1.5) -> run_folder.Run:
    """Returns a run of the smoke space that nobody trained: a trial is good where its learning rate is near 10**best.

    Every third trial was stopped after two of four epochs, though what it had so far was as good as that of the others.
    """
    import optuna

    from tuning.sampling.spaces import load_space
    from tuning.sampling.study import RunStudy

    path.mkdir(parents=True)
    settings = {"seed": 0, "concurrency": 1, "epochs": 4, "space": "smoke", "dataset": "fashion-mnist"}
    started = "2026-11-23T10:00:00+00:00"
    meta = {"settings": settings, "dataset": "fashion-mnist", "split_hash": "af0cffd9f750", "started": started}
    files.write_json(path / "meta.json", meta)
    study = RunStudy(path, load_space("smoke"), optuna.samplers.RandomSampler(seed=seed), epochs=4, seed=seed)
    for number in range(n_trials):
        proposal = study.ask()
        assert proposal is not None
        for epoch in range(1, 3 if number % 3 == 2 else 5):
            accuracy = 0.6 + 0.05 * epoch - 0.1 * abs(math.log10(proposal.config.learning_rate) - best)
            row = {"valid_accuracy": accuracy, "train_accuracy": accuracy + 0.02, "finished": "length" * (epoch == 4)}
            row |= {"train_loss": 0.9 - accuracy, "valid_loss": 1 - accuracy, "lr": proposal.config.learning_rate}
            row |= {"epoch_seconds": 20.0, "images_per_second": 2000.0, "seconds_per_image": 1e-4}
            study.report(number, row | {"epoch": epoch})
        study.finish(number, "scheduler")
    return run_folder.Run(path)


def copy_project(folder: Path) -> Path:
    """Returns the folder, which now has the project's files as a clone with the changes of the day would have them."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Returns an environment in which the project is installed from its wheel, and no checkout is on the path."""
    base = tmp_path_factory.mktemp("wheel")
    quiet = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*quiet, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(base), "."]
    subprocess.run(build, cwd=copy_project(base / "project"), check=True, capture_output=True, timeout=600)
    [file] = base.glob("tuning-*.whl")
    install = [*quiet, "install", "--no-deps", "--no-index", "--target", str(base / "installed"), str(file)]
    subprocess.run(install, check=True, capture_output=True, timeout=600)
    shutil.rmtree(base / "project")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(base / "installed")}


@pytest.fixture(scope="session")
def splits() -> Splits:
    """480 train and 120 valid images, uint8 (N, 1, 12, 12), of four classes that a tiny network learns in seconds."""
    return make_splits(patterned_images(600), "patterns", CLASS_NAMES, valid_images=120)


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """A configuration that trains the splits in a blink; 15 steps an epoch."""
    return TrainConfig(architecture="resnet8", width=4, batch_size=32, epochs=3, precision="fp32")


@pytest.fixture(scope="session", autouse=True)
def migrations_that_are_read_once() -> Iterator[None]:
    """Reads the files of Optuna's migrations once a process: at each opening of a study they took 0.2 s of its 0.25."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alembic.util, "load_python_file", functools.cache(alembic.util.load_python_file))
        yield


@pytest.fixture
def every_core() -> Iterator[None]:
    """Gives a test, and what it starts, all cores."""
    if not CORES:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    yield
    os.sched_setaffinity(0, own)


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has pictures made and written, but blank: with tiny networks two thirds of a `final` went into their rendering.

    What they show, `tests/figures` tests, and the commands of the pages draw all of them.
    """
    blank = io.BytesIO()
    Image.new("L", (8, 8), 255).save(blank, "PNG")

    class Canvas:
        def __init__(self, figure: object) -> None:
            pass

        def print_png(self, file: io.BytesIO) -> None:
            file.write(blank.getvalue())

    monkeypatch.setattr("tuning.figures.style.FigureCanvasAgg", Canvas)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keeps BLAS, and torch where it is imported, to one thread: more wait for each other on tiny matrices and images.

    A test of a sampler took 25 s instead of one beside another busy process.
    """
    with threads.one_thread():
        yield


@pytest.fixture(autouse=True)
def a_log_of_openings_for_each_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the openings of test images in the project of one test: all of them work with the same few images."""
    monkeypatch.setattr("tuning.runs.openings.PROJECT", tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def a_disk_that_is_quick_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a study write `trials.csv` at every change, as it does where the disk does not make it wait too long.

    Nor is the disk waited for: that is for power cuts alone. Commands that are started beside the tests do wait.
    """
    monkeypatch.setattr("tuning.sampling.study_frames._SECONDS_OF_WRITES", math.inf)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

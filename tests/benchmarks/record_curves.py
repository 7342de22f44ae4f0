"""Records the learning curves of random configurations of a space, for `search_quality.py` to replay searches on.

    python tests/benchmarks/record_curves.py --out FILE.csv [--dataset NAME or DIR] [--train-images 10000]
        [--space resnet] [--epochs 6] [--precision bf16] [--configurations 300] [--repeats 50 --seeds 3] [--minutes N]

Each configuration is a random point of the space, which depends on --seed and its number alone, and is trained to its
end by the project's own `fit`, on the splits and with the seed that a search's trial would have. The first --repeats of
them are then trained on further seeds, for the noise. Options of the images are those of `python -m tuning.search`.
As many processes as there are cores train side by side, with one thread each (--processes).

Each training that has ended is on disk at once; the same command goes on where it was, after --minutes, Ctrl-C, or a
kill. FILE.csv has a row an epoch, FILE.json hardware, versions and the configurations, FILE.space.py the space, which
is taken from there when the recording goes on. `seconds` are those of the clock and `cpu_seconds` those of the
processor, from the end of the epoch before; the first epoch's begin with the making of the network. Features that all
trainings share are computed before. A training that diverges ends with a row without values.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import recording
from common import CORES, report
from recording import DIVERGED, Job, Recording

from tuning.base import interrupts, machine
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import METRICS
from tuning.images import options
from tuning.images.splitting import Splits, load_splits
from tuning.sampling.spaces import Space, load_space
from tuning.trials import loading
from tuning.trials.settings import DEFAULT_EPOCHS, Settings

PRECISIONS = ("auto", "bf16", "fp32")
WARMED_WITH = 64  # Images.
_worker: dict[str, Any] = {}  # Of a process that trains: its splits, device and metric.
_computed: set[tuple[Any, ...]] = set()  # The features that it has in its cache, by what they follow from.


def begin_worker(settings: Settings) -> None:
    """Loads the images and what torch loads at its first step; has the process end with the one that began it."""
    from tuning.training.fit import Training, prepare

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the recorder, which ends this process.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(threads=1)
    splits = load_splits(
        settings.source, seed=settings.seed, train_images=settings.train_images, device=settings.device
    )
    _worker.update(splits=splits, device=settings.device, metric=settings.metric)
    few = replace(splits, train=_first(splits.train), valid=_first(splits.valid))
    for precision in ("fp32", "bf16"):
        warm = TrainConfig(architecture="resnet8", batch_size=WARMED_WITH // 2, epochs=1, precision=precision)
        Training(warm, few, seed=0, device=settings.device).run_epoch()


def train(config: TrainConfig, job: Job, seed: int, session: int) -> list[dict[str, Any]]:
    """Returns the rows of a training, one an epoch."""
    from tuning.training.fit import NonFiniteLossError, Training, fit, prepare

    splits, device, metric = (_worker[name] for name in ("splits", "device", "metric"))
    prepare(threads=1)
    features = (config.architecture, config.stem, config.image_size, config.precision)
    if config.train != "all" and config.pretrained and features not in _computed:
        Training(config, splits, seed=seed, device=device, metric=metric)  # It computes them, or waits for who does.
        _computed.add(features)
    fixed = {"configuration": job[0], "repeat": job[1], "seed": seed, "session": session}
    rows: list[dict[str, Any]] = []
    before = time.perf_counter(), time.process_time()

    def add(**values: Any) -> None:
        nonlocal before
        now = time.perf_counter(), time.process_time()
        rows.append({**fixed, "seconds": now[0] - before[0], "cpu_seconds": now[1] - before[1], **values})
        before = now

    training = Training(config, splits, seed=seed, device=device, metric=metric)
    try:
        for result in fit(training):
            add(**vars(result))
            if metric == METRICS.default:
                rows[-1]["valid_score"] = None  # It is the accuracy.
    except NonFiniteLossError:
        add(epoch=training.epoch, finished=DIVERGED)
    return rows


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _first(part: Any) -> Any:
    return part.at(np.arange(min(WARMED_WITH, len(part))))


class Recorder:
    """Trains what a recording lacks, some trainings side by side.

    Args:
        opened: The recording.
        settings: As of a search: the images, seed, epochs, device and metric.
        space: The space.
        given: What the command was given.
        precision: Of each configuration that has none of its own.
    """

    def __init__(self, opened: Recording, settings: Settings, space: Space, given: Namespace, precision: str) -> None:
        self._opened, self._settings, self._precision = opened, settings, precision
        self._processes, self._minutes = given.processes, given.minutes
        self._jobs = recording.planned(given.configurations, given.repeats, given.seeds)
        self._total = len(self._jobs)
        self._jobs = [job for job in self._jobs if job not in opened.done]
        self._session = opened.begin(space, given.configurations, _session(given.processes))
        points, epochs = opened.facts["points"], settings.epochs
        self._configs = [self._config(recording.config_of(space, point, epochs)) for point in points]
        self._seconds: list[float] = []  # Of each training of this session.

    def run(self) -> None:
        """Trains until nothing is missing, or the minutes are over; what has ended is on disk."""
        self._began = time.monotonic()
        print(f"{self._total - len(self._jobs)} of {self._total} trainings are recorded.", flush=True)
        if not self._jobs:
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._processes, context, begin_worker, (self._settings,)) as pool:
            running: set[Future[list[dict[str, Any]]]] = set()
            try:
                while True:
                    while self._jobs and len(running) < self._processes and self._has_time():
                        running.add(self._start(pool, self._jobs.pop(0)))
                    if not running:
                        break
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        self._append(future.result(), len(running))
            except BaseException:
                for child in multiprocessing.active_children():
                    child.terminate()
                raise

    def _config(self, config: TrainConfig) -> TrainConfig:
        precision = self._precision if config.precision == "auto" else config.precision
        return config.model_copy(update={"precision": precision})

    def _start(self, pool: ProcessPoolExecutor, job: Job) -> Future[list[dict[str, Any]]]:
        seed = recording.training_seed(self._settings.seed, job)
        return pool.submit(train, self._configs[job[0]], job, seed, self._session)

    def _has_time(self) -> bool:
        """Returns whether a training that begins now would end within the minutes."""
        typical = float(np.mean(self._seconds)) if self._seconds else 0.0
        return self._minutes is None or time.monotonic() - self._began + typical < 60 * self._minutes

    def _append(self, rows: list[dict[str, Any]], n_running: int) -> None:
        """Records a training and says so, and how long the others will take."""
        self._opened.append(rows)
        self._seconds.append(sum(row["seconds"] for row in rows))
        metric, first = METRICS[self._settings.metric], rows[0]
        left = len(self._jobs) + n_running
        hours = left * float(np.mean(self._seconds)) / self._processes / 3600
        values = [row[metric.column] for row in rows if row["finished"] != DIVERGED]
        best = f"{metric.called} {max(values, key=lambda v: metric.sign * v):.4f}" if values else "nothing"
        print(
            f"{self._total - left} of {self._total}: configuration {first['configuration']}, repeat {first['repeat']}: "
            f"{best}{' before it diverged' * (rows[-1]['finished'] == DIVERGED)}, {len(rows)} epochs in "
            f"{self._seconds[-1]:.0f} s; about {hours:.1f} hours are left",
            flush=True,
        )


def _session(processes: int) -> dict[str, Any]:
    """Returns what is said of a session: when and on what it was recorded."""
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "processes": processes,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "commit": machine.git_commit(),
    }


def settings_of(given: Namespace) -> Settings:
    """Returns what a search of the space on these images would be set to."""
    images = options.source_of(SimpleNamespace(**vars(given)))
    return Settings(
        samples=given.configurations,
        space=given.space,
        dataset=str(Path(given.dataset).absolute()) if images.is_own else given.dataset,
        reading={"name": images.name, **{n: getattr(given, n) for n in options.READING}} if images.is_own else None,
        epochs=given.epochs or DEFAULT_EPOCHS[given.device],
        seed=given.seed,
        sampler="random",
        scheduler="none",
        device=given.device,
        concurrency=given.processes,
        cpus_per_trial=1.0,
        gpus_per_trial=0.0,
        train_images=given.train_images,
        data_dir=given.data_dir,
        max_failures=0,
        time_budget=None,
        metric=METRICS.find(given.metric, "--metric").name,
    )


def facts_of(settings: Settings, splits: Splits, space: Space, precision: str) -> dict[str, Any]:
    """Returns how curves are recorded, as JSON has it; no path of this machine."""
    reading = {name: value for name, value in (settings.reading or {}).items() if value not in (None, False)}
    facts = {
        "dataset": splits.dataset,
        "reading": reading,
        "images": {"train": len(splits.train), "valid": len(splits.valid), "shape": splits.train.shape[1:]},
        "classes": splits.n_classes,
        "split_hash": splits.split_hash,
        "space": Path(settings.space).stem,
        "left_out": space.left_out,
        "epochs": settings.epochs,
        "metric": settings.metric,
        "precision": precision,
        "device": settings.device,
        "seed": settings.seed,
    }
    found: dict[str, Any] = json.loads(json.dumps(facts))
    return found


def summarise(path: Path) -> None:
    """Prints what a recording has."""
    facts, frame = recording.read(path)
    if frame.empty:
        return
    metric = METRICS[facts["metric"]]
    trainings = recording.finals(frame.assign(merit=frame[metric.column].map(metric.merit)), "merit")
    first = trainings[trainings["repeat"] == 0]
    row = {
        "configurations": len(first),
        "trainings": len(trainings),
        "diverged": int(trainings["value"].isna().sum()),
        "best": float(first["value"].max()),
        "median": float(first["value"].fillna(0.0).median()),
        "worst": float(first["value"].min()),
        "sd_over_seeds": recording.noise(trainings),
        "seconds_a_training": float(trainings["seconds"].mean()),
        "kB": path.stat().st_size // 1000,
    }
    what = "" if metric.name == METRICS.default else f", {metric.title}"
    report(f"{path.name}: {facts['space']} on {facts['dataset']}, {facts['epochs']} epochs{what}", [row], None)
    if recording.mixed(facts["sessions"]):
        print("It was recorded on several kinds of machines, whose seconds cannot be compared.")


def parser() -> ArgumentParser:
    """Returns what the command understands."""
    made = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, help="FILE.csv of the recording, which is begun, or goes on")
    add("--dataset", default="fashion-mnist")
    add("--data-dir")
    for option in ("--image-column", "--label-column", "--split-column", "--group-column", "--group-pattern"):
        add(option)
    add("--labels-leave-out", action="append", help="may be given again")
    add("--min-images", type=int)
    add("--skip-broken", action="store_true")
    add("--image-size", type=int)
    add("--resize")
    add("--train-images", type=int)
    add("--space", default="resnet", help="its name, or FILE.py")
    add("--epochs", type=int, help="of configurations that have no length of their own (default: as a search's)")
    add("--metric", default=METRICS.default)
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--precision", choices=PRECISIONS, default="auto", help="of configurations that have none (default: auto)")
    add("--seed", type=int, default=0, help="chooses the valid split, the points and the trainings' seeds")
    add("--configurations", type=int, default=300, help="random points of the space (default: 300)")
    add("--repeats", type=int, default=50, help="of these are trained on all seeds (default: 50)")
    add("--seeds", type=int, default=3, help="default: 3")
    add("--processes", type=int, default=CORES, help="side by side, of one thread each (default: one a core)")
    add("--minutes", type=float, help="begin no training that would not end by then")
    return made


def run(given: Namespace) -> None:
    """Records what is missing."""
    settings = settings_of(given)
    known = recording.space_file(given.out)
    machine.tune_malloc()
    notes: Any = SimpleNamespace(note=lambda text: print(text, flush=True))
    source = str(known) if known.exists() else given.space
    if known.exists() and load_space(given.space).source != known.read_text(encoding="utf-8"):
        notes.note(f"The space {given.space} has changed since; {known} is what it was, and is used.")
    settings, splits, space = loading.load(settings, source, notes)
    precision = given.precision
    if precision == "auto":
        from tuning.training.acceleration import faster_precision

        precision = faster_precision(given.device)
    with Recording(given.out, facts_of(settings, splits, space, precision)) as opened:
        Recorder(opened, settings, space, given, precision).run()
    summarise(given.out)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    try:
        with interrupts.raised():
            run(given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. Run the same command again to go on.") from None


if __name__ == "__main__":
    main()

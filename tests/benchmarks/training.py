"""Images per second of `fit`, beside the plain loop and beside what hardware and network allow.

    python tests/benchmarks/training.py [--all] [--seconds 3] [--rounds 1] [--only TEXT] [--out FILE.csv]

Prints a row a measurement. `plain`: a `DataLoader` over PIL images, Adam, fp32, no augmentation, batch 64. `fit`: ours,
with crop, flip and erase, and an evaluation after each epoch on a valid split of a full epoch's proportion; reporting
and checkpoints are not in it. `fit, torch`: the same without our kernels. `ceiling`: the same network and optimizer on
one batch in memory, and nothing else. All but `plain` have huge pages, as trials do.
`matrix product`: torch's, 4096 x 4096. Processes that run side by side begin together and keep working until the last
of them has its figure; their figures are added. Shares are of the time of `fit`; `times_plain` compares with the
fastest plain row of the network; GFLOP/s count two operations a multiply-add, forward and backward, as torch's
`FlopCounterMode` does. Under five minutes on two cores by default; far longer with `--all` (every network, batch,
precision and arrangement).
"""

import functools
import multiprocessing
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from itertools import product
from typing import Any

import torch
from common import CORES, parser, report
from plain import ItemByItem, plain_epoch, plain_model
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from tuning.base import machine
from tuning.base.config import TrainConfig
from tuning.images.batches import normalise
from tuning.images.catalogue import DATASETS
from tuning.images.datasets import Labelled, load_train
from tuning.images.splitting import Splits, make_splits
from tuning.models import kernels
from tuning.models.architectures import build_model
from tuning.training import fit as loop_of_ours
from tuning.training.optimizers import make_optimizer

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet8": {"architecture": "resnet8"},
    "resnet8 of width 32": {"architecture": "resnet8", "width": 32},
    "resnet18, imagenet stem": {"architecture": "resnet18", "stem": "imagenet"},
    "resnet18, small stem": {"architecture": "resnet18", "stem": "small"},
}
AUGMENTATION: dict[str, Any] = {"crop_padding": 2, "flip": True, "erase": 0.3}
BATCHES, PRECISIONS = (64, 128, 256, 512), ("fp32", "bf16")
SIDE_BY_SIDE, TOGETHER = (CORES, 1), (1, CORES)
TRAIN_IMAGES_PER_VALID_IMAGE = 11
MATRIX_SIDE = 4096


@dataclass(frozen=True)
class Job:
    """One measurement: which loop, on what, in how many processes of how many threads each."""

    loop: str
    network: str
    batch: int
    precision: str
    processes: int
    threads: int
    workers: int | None = None

    @property
    def config(self) -> TrainConfig:
        """The configuration; it trains on until it is stopped."""
        return TrainConfig(
            **NETWORKS[self.network],
            **AUGMENTATION,
            batch_size=self.batch,
            precision=self.precision,
            learning_rate=0.01,
            schedule="constant",
            epochs=1000,
            patience=None,
        )


def jobs(everything: bool) -> Iterator[Job]:
    """Yields the measurements of a round."""
    arrangements = (SIDE_BY_SIDE, TOGETHER)
    if everything:
        for network, arrangement, workers in product(NETWORKS, arrangements, (0, 2, 4)):
            yield Job("plain", network, 64, "fp32", *arrangement, workers)
        yield from _matrix_products(arrangements)
        for args in product(NETWORKS, BATCHES, PRECISIONS, arrangements, ("ceiling", "fit")):
            network, batch, precision, arrangement, loop = args
            yield Job(loop, network, batch, precision, *arrangement)
        return
    small, *others = NETWORKS
    for arrangement, workers in ((TOGETHER, 0), (TOGETHER, 2), (TOGETHER, 4), (SIDE_BY_SIDE, 0)):
        yield Job("plain", small, 64, "fp32", *arrangement, workers)
    for network in others:
        yield Job("plain", network, 64, "fp32", *TOGETHER, 2)
    yield from _matrix_products(arrangements)
    ours = [(small, batch, "bf16", SIDE_BY_SIDE) for batch in BATCHES]
    ours += [(small, 128, "bf16", TOGETHER), (small, 128, "fp32", SIDE_BY_SIDE), (small, 128, "fp32", TOGETHER)]
    ours += [(network, 128, "bf16", SIDE_BY_SIDE) for network in others]
    for (network, batch, precision, arrangement), loop in product(ours, ("ceiling", "fit")):
        yield Job(loop, network, batch, precision, *arrangement)
    for batch in BATCHES:
        yield Job("fit, torch", small, batch, "bf16", *SIDE_BY_SIDE)


def _matrix_products(arrangements: tuple[tuple[int, int], ...]) -> Iterator[Job]:
    for precision, arrangement in product(PRECISIONS, arrangements):
        yield Job("matrix product", "", MATRIX_SIDE, precision, *arrangement)


class Clock:
    """Seconds by name, spent in functions of `tuning.training.fit` that are replaced by timed ones.

    A call within a timed call counts for the outer one.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._busy = False

    def watch(self) -> None:
        batches = loop_of_ours.train_batches
        loop_of_ours.train_batches = lambda *args: iter(
            self._timed("augment", functools.partial(next, batches(*args), None)), None
        )
        loop_of_ours.normalise = self._timed("normalise", loop_of_ours.normalise)
        loop_of_ours.predict = self._timed("evaluate", loop_of_ours.predict)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            if self._busy:
                return function(*args, **options)
            self._busy, start = True, time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[name] += time.perf_counter() - start
                self._busy = False

        return timed


# A loop yields once when it is warm, then what it has done since: images, or for the matrix product operations.


def matrix_product(job: Job, seconds: float, clock: Clock) -> Iterator[float]:
    torch.set_num_threads(job.threads)
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    a, b = torch.rand(2, job.batch, job.batch).to(dtype)
    while True:
        torch.mm(a, b)
        yield 2 * job.batch**3


def plain(job: Job, seconds: float, clock: Clock) -> Iterator[float]:
    torch.set_num_threads(job.threads)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # More than cores, as many do.
    model = plain_model(job.config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = ItemByItem(load_train("fashion-mnist"))
    loader = DataLoader(images, job.batch, shuffle=True, num_workers=job.workers or 0)
    while True:
        yield from plain_epoch(model, loader, optimizer)


def fit(job: Job, seconds: float, clock: Clock) -> Iterator[float]:
    clock.watch()
    loop_of_ours.prepare(job.threads)
    everything = load_train("fashion-mnist")
    part = _part(everything, 2 * job.batch)
    if job.loop == "fit, torch":
        kernels.trusted = lambda dtype, deviation: None
    probe = loop_of_ours.Training(job.config.model_copy(update={"epochs": 3}), part, seed=0)
    images_per_second = list(loop_of_ours.fit(probe))[-1].images_per_second
    n_batches = min(max(2, round(images_per_second * seconds / 2 / job.batch)), 50_000 // job.batch)
    trained = loop_of_ours.Training(job.config, _part(everything, n_batches * job.batch), seed=0)
    epochs = loop_of_ours.fit(trained)
    clock.seconds.clear()
    yield 0
    for _ in epochs:
        yield n_batches * job.batch


def ceiling(job: Job, seconds: float, clock: Clock) -> Iterator[float]:
    loop_of_ours.prepare(job.threads)
    model = build_model(job.config, channels=1, n_classes=10).train()
    optimizer = make_optimizer(model, job.config)
    images = normalise(torch.randint(256, (job.batch, 1, 28, 28), dtype=torch.uint8), (0.3,), (0.3,))
    labels = torch.randint(10, (job.batch,))
    while True:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.precision == "bf16"):
            logits, _ = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield job.batch


LOOPS = {"matrix product": matrix_product, "plain": plain, "fit": fit, "fit, torch": fit, "ceiling": ceiling}


def _part(everything: Labelled, n: int) -> Splits:
    """Returns splits with `n` train images, and valid images in the proportion of the whole data set."""
    n_valid = n // TRAIN_IMAGES_PER_VALID_IMAGE
    some = Labelled(everything.images[: n + n_valid], everything.labels[: n + n_valid])
    return make_splits(some, "fashion-mnist", DATASETS["fashion-mnist"].class_names, valid_images=n_valid)


def measure(job: Job, seconds: float) -> dict[str, float]:
    """Returns the rate of all processes together, and the mean shares of their time."""
    # A process has the huge pages that it was started with. The plain loops come first, without.
    context: Any = multiprocessing.get_context("spawn")
    if job.loop != "plain":
        machine.tune_malloc()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torchvision.transforms", "tuning.training.fit", "tuning.images.splitting"])
    barrier, n_ended, figures = context.Barrier(job.processes), context.Value("i", 0), context.SimpleQueue()
    args = (job, seconds, barrier, n_ended, figures)
    processes = [context.Process(target=_measure_one, args=args) for _ in range(job.processes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{job} failed; see above.")
    each = [figures.get() for _ in processes]
    shares = {name: statistics.mean(one[name] for one in each) for name in each[0]}
    return {**shares, "rate": sum(one["rate"] for one in each)}


def _measure_one(job: Job, seconds: float, barrier: Any, n_ended: Any, figures: Any) -> None:
    clock, amount, elapsed = Clock(), 0.0, 0.0
    try:
        ticks = LOOPS[job.loop](job, seconds, clock)
        warm = time.perf_counter() + seconds / 3
        next(ticks)
        while not job.loop.startswith("fit") and time.perf_counter() < warm:
            next(ticks)
        barrier.wait()
        start = time.perf_counter()
        while elapsed < seconds:
            amount += next(ticks)
            elapsed = time.perf_counter() - start
        figures.put({"rate": amount / elapsed, **{name: value / elapsed for name, value in clock.seconds.items()}})
    except BaseException:
        barrier.abort()
        raise
    finally:
        with n_ended.get_lock():
            n_ended.value += 1
    while n_ended.value < job.processes:  # The others still measure, and are to find this core as busy as before.
        next(ticks)
    ticks.close()


@functools.cache
def flop_per_image(network: str) -> float:
    """Returns the operations of one image, forward and backward."""
    model = build_model(TrainConfig(**NETWORKS[network]), channels=1, n_classes=10)
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(8, 1, 28, 28))[0].sum().backward()
    return counter.get_total_flops() / 8


def table(measured: dict[Job, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Returns a row a job: its median over the rounds, and how it compares with the others."""
    rates = {job: statistics.median(one["rate"] for one in rounds) for job, rounds in measured.items()}
    rows = []
    for job, rate in rates.items():
        matrix = job.loop == "matrix product"
        flop = rate if matrix else rate * flop_per_image(job.network)
        peak = [r for j, r in rates.items() if j.loop == "matrix product" and j.precision == job.precision]
        plains = [r for j, r in rates.items() if j.loop == "plain" and j.network == job.network]
        ours = job.loop.startswith("fit")
        above = rates.get(Job("ceiling", *astuple(job)[1:])) if ours else None
        each = [one["rate"] for one in measured[job]]
        shares = {
            name: statistics.median(one[name] for one in measured[job]) if ours else None
            for name in ("augment", "normalise", "evaluate")
        }
        rows.append(
            {
                "loop": job.loop if job.workers is None else f"{job.loop}, {job.workers} workers",
                "network": job.network,
                "batch": job.batch,
                "precision": job.precision,
                "processes x threads": f"{job.processes} x {job.threads}",
                "images/s": None if matrix else rate,
                **({"spread": (max(each) - min(each)) / rate} if len(each) > 1 else {}),
                "times_plain": rate / max(plains) if plains else None,
                "of_ceiling": rate / above if above else None,
                "GFLOP/s": flop / 1e9,
                "of_peak": flop / max(peak) if peak else None,
                **shares,
            }
        )
    return rows


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--all", action="store_true", help="the full grid")
    args.add_argument("--seconds", type=float, default=3.0, help="length of a measurement, after a warm-up")
    args.add_argument("--rounds", type=int, default=1, help="rounds over all measurements; the median counts")
    args.add_argument("--only", default="", help="only measurements with this text in what is printed while they run")
    given = args.parse_args()
    measured: dict[Job, list[dict[str, float]]] = {}
    for _ in range(given.rounds):
        for job in jobs(given.all):
            if given.only in str(job):
                measured.setdefault(job, []).append(measure(job, given.seconds))
                print(f"{job}: {measured[job][-1]['rate']:,.0f}/s", file=sys.stderr)
    if not measured:
        raise SystemExit(f"--only must be part of a measurement's name, but got {given.only!r}.")
    report("Training throughput", table(measured), given.out)


if __name__ == "__main__":
    main()

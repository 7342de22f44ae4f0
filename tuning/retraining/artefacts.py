"""What lies in best_model/: the model, its figures, what it made of each test image, pictures and a model card.

Files are written, each whole or not at all; no data set is opened here and nothing is trained.
"""

import errno
import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tuning.base import averagings, files, machine, own_model, rim
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError, counted, disk_full
from tuning.base.registries import ACCURACY, Metric
from tuning.retraining.best_model import load_best_model, probabilities
from tuning.retraining.export import FORMATS
from tuning.retraining.model_card import CARD, model_card, scores
from tuning.retraining.suspects import PICTURE, PIXELS, SUSPECTS
from tuning.runs import replacing, schema
from tuning.runs.openings import LOG
from tuning.training import jobs

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from tuning.images.datasets import Labelled
    from tuning.images.splitting import Splits

IMAGES_TO_TIME = 1000
THUMBNAIL = 64  # Pixels.
PICTURES = ("confusion", "calibration", "pca", "mistakes", "learning_curve")
ROOM, OUTPUTS, SEPARABILITY = ".room", "test_outputs.npz", "separability.csv"
# What may lie in a model's folder and is not of each model: it must not stay beside the files of another one.
_OF_SOME = (
    own_model.KEPT,
    *(f"model.{name}" for name in FORMATS),
    *(f"{name}.png" for name in PICTURES),
    SEPARABILITY,
    *(SUSPECTS, PIXELS, PICTURE),
    CARD,
)
_OF_EACH = (
    *("model.pth", "config.json", "metrics.json", "scores.txt", "final.csv", "epochs.csv"),
    *("classification_report.csv", OUTPUTS),
)
OF_A_MODEL = (*_OF_EACH, *_OF_SOME)


@dataclass(frozen=True)
class Outcome:
    """A split's labels, log-probabilities (N, n_classes) and features (N, D) as the final model gives them."""

    labels: Any
    log_probabilities: Any
    features: Any

    def first(self, n: int) -> "Outcome":
        """Returns that of the first n images."""
        return Outcome(self.labels[:n], self.log_probabilities[:n], self.features[:n])

    @property
    def predictions(self) -> Any:
        """The likeliest class of each image, (N,)."""
        return self.log_probabilities.argmax(1)

    @property
    def probabilities(self) -> Any:
        """float32 (N, n_classes)."""
        return np.exp(self.log_probabilities)

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return float((self.predictions == self.labels).mean())

    def score(self, metric: Metric) -> float:
        """Returns a metric's value."""
        from tuning.training import metrics

        return metrics.score(metric.name, self.log_probabilities, self.labels)

    def score_interval(self, metric: Metric) -> tuple[float, float]:
        """Returns its 95 % interval: Wilson's of a share of the images, by the bootstrap of any other metric."""
        from tuning.runs import analysis
        from tuning.training import metrics

        if not metric.share_of_images:
            return metrics.bootstrapped(metric.name, self.log_probabilities, self.labels)
        low, high = analysis.wilson_interval(round(self.score(metric) * len(self.labels)), len(self.labels))
        return float(low), float(high)


def reserve(staging: Path, n_images: int, n_rehearsed: int) -> None:
    """Takes room on the disk for what is written after the test split was opened; `give_back` frees it.

    Args:
        staging: Holds what `n_rehearsed` images took.
        n_images: Of the test split, at most.
        n_rehearsed: At least 1.

    Raises:
        UserError: There is not so much room.
    """
    sizes = {path.name: path.stat().st_size for path in staging.iterdir()}
    outputs = sizes[OUTPUTS] * max(1.0, n_images / n_rehearsed)
    size = int(2 * outputs) + 2 * max(sizes.values()) + 2**20  # A file is whole before the one of its name goes.
    try:
        with (staging / ROOM).open("wb") as file:
            _fill(file, size)
    except OSError as error:
        (staging / ROOM).unlink(missing_ok=True)
        if error.errno == errno.EFBIG:  # One file of it all is too large, which says nothing of each.
            return
        place = f"{staging} ({size / 1e6:.0f} MB are needed)"
        raise disk_full(place, error) or replacing.unwritable(staging, error) from error


def _fill(file: IO[bytes], size: int) -> None:
    """Has a new file take so many bytes of the disk; by zeros where the system or the file system cannot reserve."""
    allocate = getattr(os, "posix_fallocate", None)  # macOS has none.
    if allocate is not None:
        try:
            allocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if disk_full("", error):
                raise
    for start in range(0, size, 2**20):
        file.write(bytes(min(2**20, size - start)))


def give_back(staging: Path) -> None:
    """Frees the room that `reserve` took."""
    (staging / ROOM).unlink(missing_ok=True)


def check_replaceable(staging: Path, folder: Path) -> None:
    """Raises UserError where one of the files cannot take its place in the model's folder."""
    for path in staging.iterdir():
        if (folder / path.name).is_dir():
            raise UserError(f"{folder / path.name} must be a file, but got a folder. Move it away.")


def publish(staging: Path, folder: Path) -> None:
    """Moves the files into the model's folder; what only the model before had is removed."""
    replacing.publish(staging, folder, _OF_SOME)


def check_folder(folder: Path) -> None:
    """Raises UserError where a model's folder has files that are not of a model and would be replaced or removed."""
    if folder.is_dir() and any((folder / name).exists() for name in ("meta.json", "study.db")):
        raise UserError(
            f"--model-dir must be a folder for a model, but {str(folder)!r} is that of a run, whose files would be "
            f"replaced. Give a folder in it, such as {folder / 'model'}."
        )
    if _is_of_a_model(folder) or any((folder / name).exists() for name in (LOG, replacing.STAGING)):
        return
    if found := [name for name in OF_A_MODEL if (folder / name).exists()]:
        raise UserError(
            f"--model-dir must be an empty folder or that of a model, but got {str(folder)!r} with {found[0]}, which "
            "would be replaced or removed. Name another folder."
        )


def _is_of_a_model(folder: Path) -> bool:
    """Returns whether a folder has the metrics that `final` writes: a file of that name may be of anything."""
    try:
        return "config_hash" in files.read_json(folder / "metrics.json")
    except UserError:
        return False


def write_model(
    folder: Path,
    model: "nn.Module",
    config: TrainConfig,
    splits: "Splits",
    metrics: Mapping[str, Any],
    members: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Writes `model.pth`, `config.json`, `metrics.json` and `scores.txt`; of a user's own network `model.py`, too.

    `members` describes those of an ensemble, as `ensemble.described` does.
    """
    jobs.save_weights(folder / "model.pth", model)
    for architecture in {config.architecture, *(member["config"]["architecture"] for member in members or ())}:
        own_model.keep(architecture, folder)
    _, channels, height, width = splits.train.shape
    described = {
        "config": config.model_dump(),
        "dataset": splits.dataset,
        "class_names": splits.class_names,
        **averagings.recorded(averagings.named_in(metrics)),
    }
    if splits.resize is not None:
        described |= {"resize": splits.resize, "bits": splits.bits}
    if members:
        described["members"] = members
    shape = {"channels": channels, "height": height, "width": width, "mean": splits.mean, "std": splits.std}
    files.write_json(folder / "config.json", described | shape)
    files.write_json(folder / "metrics.json", metrics)
    files.write_text(folder / "scores.txt", scores(metrics, config.architecture))


def write_outcome(
    folder: Path,
    test: Outcome,
    images: "Labelled",
    splits: "Splits",
    rows: Sequence[Mapping[str, Any]],
    metric: Metric = ACCURACY,
) -> list[str]:
    """Writes `test_outputs.npz`, `epochs.csv`, `classification_report.csv` and the pictures.

    A picture that cannot be drawn is left out, and none of other images stays in its place.

    Returns:
        A sentence for each picture that could not be drawn.

    Raises:
        UserError: The disk is full.
    """
    import pandas as pd

    from tuning.runs import analysis

    components, epochs = analysis.pca(test.features), pd.DataFrame([dict(row) for row in rows])
    shown, class_names = thumbnails(images), splits.class_names
    if splits.resize is not None and shown.shape[1] == 1:
        shown = 255 - shown  # Pictures draw one channel as ink on paper; gray photos are to look as they are.
    report = analysis.classification_report(test.labels, test.predictions, class_names)
    files.write_text(folder / "classification_report.csv", report.to_csv(index=False))
    files.write_text(folder / "epochs.csv", epochs.to_csv(index=False))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        labels=test.labels,
        probabilities=test.probabilities,
        points=components.points,
        explained=components.explained,
        images=shown,
    )
    files.write_bytes(folder / OUTPUTS, buffer.getvalue())
    problems: list[str] = []
    for name in PICTURES:
        (folder / f"{name}.png").unlink(missing_ok=True)
    if not rim.usable("figures", "The model's pictures are", problems.append):
        return problems
    from tuning.figures import model_figures, run_figures, style

    draw = model_figures.drawings_of_model(test.labels, test.probabilities, shown, class_names, components)
    draw |= {"learning_curve": lambda: run_figures.learning_curve(epochs, metric)}
    style.save_each(draw, folder, problems.append)
    return problems


def thumbnails(images: "Labelled") -> "npt.NDArray[np.uint8]":
    """Returns the images uint8 (N, C, h, w) as pictures and page show them: means of squares, 64 pixels at most."""
    n, channels, height, width = images.shape
    square = math.ceil(max(height, width) / THUMBNAIL)
    if square == 1:
        return images.pixels()
    rows, columns = height // square, width // square
    small = np.empty((n, channels, rows, columns), np.uint8)
    for start in range(0, n, IMAGES_TO_TIME):
        part = images.pixels(slice(start, start + IMAGES_TO_TIME))[:, :, : rows * square, : columns * square]
        squares = part.reshape(len(part), channels, rows, square, columns, square)
        small[start : start + len(part)] = squares.mean(axis=(3, 5)).round()
    return small


def check_drawn(folder: Path, problems: Sequence[str]) -> None:
    """Raises UserError where none of the pictures could be drawn; `problems` as `write_outcome` returns them."""
    if rim.is_there("figures") and not any((folder / f"{name}.png").exists() for name in PICTURES):
        raise UserError(f"No picture can be drawn. {problems[0]} Is the package matplotlib installed and whole?")


def probe_images(part: "Labelled") -> "Labelled":
    """Returns as many images, drawn at random, as the linear probe is fitted on at most."""
    from tuning.runs.analysis import PROBE_IMAGES

    index = np.random.default_rng(0).permutation(len(part))[:PROBE_IMAGES]
    return part.at(index)


def write_separability(folder: Path, train: Outcome, test: Outcome) -> list[str]:
    """Writes `separability.csv`: how well the classes of the test split separate in the features.

    Returns:
        A sentence where it is left out, because the images are too few or all of one class.

    Raises:
        UserError: The disk is full.
    """
    from tuning.runs import analysis

    try:
        frame = analysis.separability(train.features, train.labels, test.features, test.labels)
    except ValueError as error:
        return [f"{SEPARABILITY} cannot be made from {counted(len(test.labels), 'image')} and is left out: {error}"]
    files.write_text(folder / SEPARABILITY, frame.to_csv(index=False))
    return []


def images_per_second(folder: Path, images: "npt.NDArray[np.uint8]") -> float:
    """Returns how many images `tuning.predict` labels in a second, once the model is loaded."""
    best = load_best_model(folder)
    images = images[:IMAGES_TO_TIME]
    probabilities(best, images[:50])  # The first call warms up.
    start = time.perf_counter()
    probabilities(best, images)
    return len(images) / (time.perf_counter() - start)


def write_card(folder: Path, images: Any) -> None:
    """Writes `model_card.md` from what lies in the folder, and how fast `tuning.predict` labels these images."""
    speed = images_per_second(folder, images)
    with np.load(folder / OUTPUTS) as outputs:
        text = model_card(
            files.read_json(folder / "metrics.json"),
            files.read_json(folder / "config.json"),
            report=schema.read_named(folder / "classification_report.csv"),
            labels=outputs["labels"],
            test_probabilities=outputs["probabilities"],
            speed=f"`tuning.predict` labels {speed:,.0f} images a second on {machine.hardware()['cpu']}.",
        )
    files.write_text(folder / CARD, text)

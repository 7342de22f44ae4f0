"""What `python -m tuning.final` left behind for a run, and where: the run remembers the folder of its final model."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files
from tuning.base.errors import UserError
from tuning.runs import openings, replacing, schema
from tuning.runs.run_folder import MODEL_DIR, RESULTS, Run, is_of, run_names

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

# In a run folder: the path from there to the folder of its final model, so that both can be moved together.
PLACE = "final_model.json"
SAME = 1e-9
# Of metrics.json: without these there is no final model to show.
_METRICS = (
    *("test_accuracy", "test_accuracy_mean", "test_accuracy_std", "test_interval", "test_opened", "seeds", "ece"),
    *("search_valid_accuracy", "valid_accuracy_mean", "shrinkage"),
)


@dataclass(frozen=True)
class Final:
    """What `python -m tuning.final` left behind for a run.

    Attributes:
        metrics: `metrics.json`.
        class_names: Of the data set.
        configurations: `final.csv`; None where there is none.
        report: `classification_report.csv`; None where there is none.
        outputs: `test_outputs.npz` by name; empty where there is none.
        log: A row a line of `test_log.jsonl`.
        suspects: `suspects.csv`; None where there is none.
        suspect_images: Of its rows, uint8 (N, C, H, W); None where there are none.
        is_own: The images are one's own: gray ones are photos, and no drawings whose paper may be dark.
        epochs: Full length of its training; None where that is not on record.
    """

    metrics: dict[str, Any]
    class_names: tuple[str, ...]
    configurations: "pd.DataFrame | None"
    report: "pd.DataFrame | None"
    outputs: "dict[str, npt.NDArray[Any]]"
    log: "pd.DataFrame"
    suspects: "pd.DataFrame | None" = None
    suspect_images: "npt.NDArray[np.uint8] | None" = None
    is_own: bool = False
    epochs: int | None = None


def remember(run: Path, model_dir: Path) -> None:
    """Writes down in a run folder where its final model is.

    Raises:
        OSError: It cannot be written.
    """
    files.write_json(run / PLACE, {"model_dir": os.path.relpath(model_dir.resolve(), run.resolve())})


def remembered(run: Path) -> Path | None:
    """Returns where `final` wrote the model of a run folder last; None where that is not known."""
    try:
        there = Path(os.path.normpath(run.resolve() / files.read_json(run / PLACE)["model_dir"]))
    except (UserError, KeyError, TypeError):
        return None
    return there.relative_to(Path.cwd()) if there.is_relative_to(Path.cwd()) else there


def folder_of(run: Run) -> Path:
    """Returns where `final` wrote the run's model last, or `best_model` where that is not known."""
    return remembered(run.path) or MODEL_DIR


def folders() -> list[Path]:
    """Returns the folders of models that are known here: `best_model`, and those that the runs remember."""
    found = [remembered(RESULTS / name) for name in run_names()]
    return [MODEL_DIR, *(folder for folder in found if folder is not None)]


def metrics_of(run: Run, model_dir: Path) -> dict[str, Any] | None:
    """Returns the `metrics.json` of a run's final model; None where the folder has none, or that of another run.

    Raises:
        UserError: It is damaged, or cannot be read.
    """
    try:
        replacing.end(model_dir)
        if not (model_dir / "metrics.json").exists():
            return None
    except OSError as error:  # The folder of somebody else.
        raise UserError(f"{model_dir} cannot be read ({error.strerror}).") from error
    metrics = files.read_json(model_dir / "metrics.json")
    return metrics if is_model_of(run, metrics) else None


def is_model_of(run: Run, metrics: Mapping[str, Any]) -> bool:
    """Returns whether a `metrics.json` is of a run.

    A copy of a run that has gone on by itself has the same identity, and other trials of the same numbers.
    """
    try:
        identity = run.identity
        name = None if "schema" in run.meta else run.name  # Since 0.2.0 a run has an identity that is no name.
    except UserError:  # Of a run of 0.2.0 whose study is damaged: its name is all there is.
        identity, name = None, run.name
    if not is_of(metrics, name, identity):
        return False
    try:
        trials, column = run.trials, run.metric.column
    except UserError:
        return True
    then = metrics.get(f"search_{column}")
    now = trials.loc[trials["trial"] == metrics.get("trial"), column]
    return then is None or now.empty or bool(abs(float(now.iloc[0]) - float(then)) < SAME)


def load(run: Run, model_dir: Path) -> Final | None:
    """Returns what is known of a run's final model, or None where `model_dir` holds none or that of another run.

    Raises:
        UserError: A file is damaged.
    """
    import pandas as pd

    metrics = metrics_of(run, model_dir)
    if metrics is None:
        return None
    if missing := [name for name in _METRICS if name not in metrics]:
        raise UserError(
            f"{model_dir / 'metrics.json'} has no {missing[0]}: it is damaged, or another version wrote it. "
            "Run `python -m tuning.final` again."
        )
    try:
        described = files.read_json(model_dir / "config.json")
        return Final(
            metrics=metrics,
            class_names=tuple(described["class_names"]),
            configurations=_read_csv(model_dir / "final.csv"),
            report=_read_csv(model_dir / "classification_report.csv"),
            outputs=_read_arrays(model_dir / "test_outputs.npz"),
            log=pd.DataFrame(openings.read(model_dir)),
            suspects=_read_csv(model_dir / "suspects.csv"),
            suspect_images=_read_arrays(model_dir / "suspects.npz").get("images"),
            is_own="resize" in described,
            epochs=described.get("config", {}).get("epochs"),
        )
    except files.DAMAGE as error:
        raise UserError(f"{model_dir} must hold what `python -m tuning.final` writes, but got: {error}.") from error


def _read_arrays(path: Path) -> "dict[str, npt.NDArray[Any]]":
    import numpy as np

    # numpy leaves a damaged file open.
    return dict(np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)) if path.exists() else {}


def _read_csv(path: Path) -> "pd.DataFrame | None":
    return schema.read_named(path) if path.exists() else None

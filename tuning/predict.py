"""`python -m tuning.predict IMAGE...`: the class of image files, by the model in best_model/. About 3 s.

The same from Python: `predict.load("best_model").predict(images)`.

Nothing in best_model/ is run: the weights are read as tensors only, so a model from someone else does no harm. Only a
network that was a file of its user's needs that file, named with `--model FILE`; then that code is run.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning.base import files
from tuning.base.errors import UserError, run_command
from tuning.base.tables import print_frame
from tuning.images.formats.listing import to_stderr
from tuning.retraining.artefacts import OF_A_MODEL
from tuning.retraining.best_model import BestModel, Invert, NotFiniteError, Prediction, load_best_model, predict_files
from tuning.retraining.inputs import expanded
from tuning.runs.openings import LOG

if TYPE_CHECKING:
    import pandas as pd


def load(folder: str | Path = "best_model", model: str | Path | None = None) -> BestModel:
    """Returns the model that `final` wrote into a folder; its `predict` takes arrays and files.

    Args:
        folder: Nothing in it is run.
        model: The file of a user's own network, which is run; only for a model of such a network.

    Raises:
        UserError: The folder, config.json or model.pth is missing or damaged, or they do not fit each other; or no path
            was given.
    """
    for name, path in (("folder", folder), ("model", model)):
        if not isinstance(path, str | Path) and (name, path) != ("model", None):
            raise UserError(f"{name} must be a path, but got {path!r}.")
    return load_best_model(files.expanded(folder), None if model is None else files.expanded(model))


def frame(predictions: Sequence[Prediction], top: int = 2) -> "pd.DataFrame":
    """Returns a row an image: its file, and the most probable classes with their probabilities in [0, 1]."""
    import pandas as pd

    rows = []
    for found in predictions:
        row: dict[str, Any] = {"file": _name(found)}
        for place, (name, probability) in enumerate(found.ranking[:top], start=1):
            row |= {f"class {place}": name, f"probability {place}": probability}
        rows.append(row | {"inverted": found.inverted})
    return pd.DataFrame(rows)


def print_predictions(predictions: Sequence[Prediction], top: int = 2) -> None:
    """Prints a row a file."""
    import pandas as pd

    rows = []
    for found in predictions:
        others = [f"{name} {probability:.1%}" for name, probability in found.ranking[1:top]]
        names = ["runner-up"] if top == 2 else [f"class {place}" for place in range(2, top + 1)]
        row = {"file": _name(found), "class": found.class_name, "probability": f"{found.probability:.1%}"}
        rows.append(row | dict(zip(names, others, strict=False)))
        if any(each.inverted for each in predictions):
            rows[-1]["inverted"] = "yes" if found.inverted else "no"
    print_frame(pd.DataFrame(rows), "The most probable classes")


def _name(found: Prediction) -> str:
    """Returns the file of a prediction; bytes of its name that are no UTF-8 are escaped, as in a search."""
    return str(found.path).encode(errors="backslashreplace").decode()


def main(
    images: Annotated[
        list[Path], typer.Argument(help="Image files, folders of them, or a table that lists them.", metavar="IMAGE...")
    ],
    model_dir: Annotated[Path, typer.Option(help="Folder with model.pth and config.json.")] = Path("best_model"),
    model: Annotated[
        Path | None, typer.Option(help="The file of a user's own network, whose code is run; else none is.")
    ] = None,
    invert: Annotated[
        Invert,
        typer.Option(
            help="Turn dark-on-bright images round; auto: gray ones with a border brighter than the rest, not for a "
            "model of your own images."
        ),
    ] = "auto",
    top: Annotated[int, typer.Option(min=1, help="How many classes to show for each image.")] = 2,
    image_column: Annotated[str | None, typer.Option(help="The column of a table that has each image's file.")] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out images that cannot be read, and name them.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the predictions to this CSV file, too.")] = None,
) -> None:
    """Print the most probable class of each image and the runner-up."""
    best = load(model_dir, model)
    if top > len(best.class_names):
        raise UserError(f"--top must be at most {len(best.class_names)}, the number of classes, but got {top}.")
    skip = to_stderr if skip_broken else None
    if csv is not None:
        csv = _writable(csv)
    paths = expanded(images, image_column, skip=skip)
    if csv is not None:
        of_model = [model_dir / name for name in (*OF_A_MODEL, LOG)]
        _check_own(csv, [*map(files.with_home, [*images, *of_model, *filter(None, [model])]), *paths])
    try:
        predictions = predict_files(best, paths, invert, skip)
    except NotFiniteError:
        raise
    except UserError as error:
        way = "" if skip_broken or len(paths) == 1 else " --skip-broken leaves out what cannot be read."
        raise UserError(f"{error}{way}") from error
    print_predictions(predictions, top)
    if csv is not None:
        try:
            files.write_text(csv, frame(predictions, top).to_csv(index=False))
        except OSError as error:
            raise UserError(f"--csv must be a file that can be written, but got {str(csv)!r}: {error}.") from error
        print(f"Written: {csv}")


def _writable(csv: Path) -> Path:
    """Returns where the predictions are written, whose folder is made; raises UserError where that cannot be.

    Before the predictions, which may take long.
    """
    csv = files.expanded(csv)
    if csv.is_dir():
        raise UserError(f"--csv must be a file, but got the folder {str(csv)!r}. Name a file in it.")
    files.make_folder(csv.parent, exist_ok=True)
    return csv


def _check_own(csv: Path, others: Sequence[Path]) -> None:
    """Raises UserError where the predictions would take the place of a file that is read, or of the model."""
    if os.path.exists(csv) and any(os.path.exists(each) and os.path.samefile(csv, each) for each in others):
        raise UserError(
            f"--csv must be a file of its own, but {str(csv)!r} is one that is read, or of the model. Name another."
        )


if __name__ == "__main__":
    run_command(main)

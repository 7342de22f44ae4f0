"""`python -m tuning.predict IMAGE...`: the class of PNG and JPEG files, by the model in best_model/. About 3 s.

The same from Python: `predict.load("best_model").predict(images)`.

Nothing in best_model/ is run: the weights are read as tensors only, so a model from someone else does no harm. Only a
network that was a file of its user's needs that file, named with `--model FILE`; then that code is run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tuning.base.errors import run_command
from tuning.base.tables import print_frame
from tuning.retraining.best_model import BestModel, Invert, Prediction, load_best_model, predict_files


def load(folder: str | Path = "best_model", model: str | Path | None = None) -> BestModel:
    """Returns the model that `final` wrote into a folder; its `predict` takes arrays and files.

    Args:
        folder: Nothing in it is run.
        model: The file of a user's own network, which is run; only for a model of such a network.

    Raises:
        UserError: The folder, config.json or model.pth is missing or damaged, or they do not fit each other.
    """
    return load_best_model(Path(folder), None if model is None else Path(model))


def print_predictions(predictions: Sequence[Prediction]) -> None:
    """Prints a row a file."""
    import pandas as pd

    rows = [
        {
            "file": str(found.path),
            "class": found.class_name,
            "probability": f"{found.probability:.1%}",
            "runner-up": f"{found.runner_up} {found.runner_up_probability:.1%}",
            "inverted": "yes" if found.inverted else "no",
        }
        for found in predictions
    ]
    print_frame(pd.DataFrame(rows), "The most probable classes")


def main(
    images: Annotated[list[Path], typer.Argument(help="PNG or JPEG files.", metavar="IMAGE...")],
    model_dir: Annotated[Path, typer.Option(help="Folder with model.pth and config.json.")] = Path("best_model"),
    model: Annotated[
        Path | None, typer.Option(help="The file of a user's own network, whose code is run; else none is.")
    ] = None,
    invert: Annotated[
        Invert,
        typer.Option(help="Turn dark-on-bright images round; auto: grey ones with a border brighter than the rest."),
    ] = "auto",
) -> None:
    """Print the most probable class of each image and the runner-up."""
    print_predictions(predict_files(load_best_model(model_dir, model), images, invert))


if __name__ == "__main__":
    run_command(main)

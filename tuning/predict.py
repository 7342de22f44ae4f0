"""`python -m tuning.predict IMAGE...`: the class of PNG and JPEG files, by the model in best_model/. About 3 s.

The same from Python: `predict.load("best_model").predict(images)`.

Nothing in best_model/ is run: the weights are read as tensors only, so a model from someone else does no harm.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tuning.base.errors import run_command
from tuning.retraining.best_model import BestModel, Invert, Prediction, load_best_model, predict_files


def load(folder: str | Path = "best_model") -> BestModel:
    """Returns the model that `final` wrote into a folder; its `predict` takes arrays and files.

    Raises:
        UserError: The folder, config.json or model.pth is missing or damaged, or they do not fit each other.
    """
    return load_best_model(Path(folder))


def print_predictions(predictions: Sequence[Prediction]) -> None:
    """Prints a row a file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("file", overflow="fold")
    for name in ("class", "probability", "runner-up", "inverted"):
        table.add_column(name, justify="right" if name == "probability" else "left", no_wrap=True)
    for found in predictions:
        runner_up = f"{found.runner_up} {found.runner_up_probability:.1%}"
        inverted = "yes" if found.inverted else "no"
        table.add_row(str(found.path), found.class_name, f"{found.probability:.1%}", runner_up, inverted)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def main(
    images: Annotated[list[Path], typer.Argument(help="PNG or JPEG files.", metavar="IMAGE...")],
    model_dir: Annotated[Path, typer.Option(help="Folder with model.pth and config.json.")] = Path("best_model"),
    invert: Annotated[
        Invert,
        typer.Option(help="Turn dark-on-bright images round; auto: grey ones with a border brighter than the rest."),
    ] = "auto",
) -> None:
    """Print the most probable class of each image and the runner-up."""
    print_predictions(predict_files(load_best_model(model_dir), images, invert))


if __name__ == "__main__":
    run_command(main)

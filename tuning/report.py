"""One page of a run and its final model: results/<run>/report.html, which opens anywhere, offline.

    python -m tuning.report [RUN] [--model-dir DIR]

The same from Python: `report.run(run)`. It takes some seconds; the page is 5 to 8 MB, of which 4.8 are plotly.js.
`search` and `final` write it at their end. It shows what the files say, and leaves out what they do not say (yet). The
test images are not opened here: `final` kept what its model made of them. Whatever comes from a file is escaped.
"""

from pathlib import Path
from typing import Annotated

import typer

from tuning.base import doors, files, rim
from tuning.base.errors import UserError, run_command
from tuning.runs import final_models, run_folder
from tuning.runs.run_folder import Run


def run(
    run: Annotated[
        Run | str | Path, typer.Argument(metavar="RUN", help="A run's name or folder, or 'latest'.")
    ] = "latest",
    *,
    model_dir: Annotated[
        Path | str | None,
        typer.Option(help="Where the run's final model and its scores are (default: where `final` wrote them)."),
    ] = None,
    out: Annotated[
        Path | str | None,
        typer.Option(help="Write the page to this file; the run's folder is only read (default: into it)."),
    ] = None,
) -> Path:
    """Writes a run and its final model as one page, and returns the file.

    Args:
        run: A run, or its name, folder or URI.
        model_dir: Where the run's final model and its scores are; None is where `final` wrote them last.
        out: The file; None is `report.html` in the run's folder.

    Raises:
        UserError: There is no such run, the folder has no model of it, or the file is no .html or cannot be written.
    """
    rim.need("figures", "The page of a run")
    from tuning.figures.run_page import write

    model_dir, out = (None if given is None else files.expanded(given) for given in (model_dir, out))
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out must end in .html or .htm, but got {str(out)!r}.")
    found = run_folder.load(run)
    if model_dir is not None:
        _check(found, model_dir)
    path = write(found, model_dir, out=out)
    stored = out is None and found.settings.get("storage") is not None
    if stored and rim.usable("remote", "The storage is", print):
        from tuning.remote import stored_runs

        stored_runs.send(found)
    return path


def _check(found: Run, model_dir: Path) -> None:
    """Raises UserError where a folder holds no final model of a run; one that is damaged is left to the page."""
    file = model_dir / "metrics.json"
    try:
        if final_models.metrics_of(found, model_dir) is not None:
            return
        holds = f"has that of {files.read_json(file).get('source', 'another run')}" if file.exists() else "has none"
    except UserError:
        return
    raise UserError(
        f"--model-dir must be a folder to which `final` has written the model of {found.path}, but {str(model_dir)!r} "
        f"{holds}. Leave it out for the model that `final` wrote last."
    )


@doors.over(run)
def main(asked: doors.Asked) -> None:
    """Write a run and its final model as one page that opens offline: results/<run>/report.html."""
    path = run(asked.run, model_dir=asked.model_dir, out=asked.out)
    print(f"Written: {path} ({path.stat().st_size / 1e6:.1f} MB). Open it in a browser.")


if __name__ == "__main__":
    run_command(main)

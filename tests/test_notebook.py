"""The notebook runs from top to bottom, beside runs that it has not seen, and is kept without outputs."""

import ast
import base64
import os
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import write_run
from matplotlib.figure import Figure
from matplotlib.text import Text
from nbclient import NotebookClient

from tuning.runs import run_folder

NOTEBOOK = Path(__file__).parent.parent / "results" / "inspect.ipynb"

SLOW_OR_OF_JUPYTER = ("%matplotlib", "importances.of_run", "frame.pivot")

# Interrupts itself as the button does, when the first epoch has been trained.
INTERRUPTED = (
    """
import os, signal, threading, time
from pathlib import Path
from tuning import results, search
before = signal.getsignal(signal.SIGINT)
def press():
    file = Path("results/one/epochs.csv")
    while not file.exists() or file.read_bytes().count(b"\\n") < 2:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press, daemon=True).start()
search.run(samples=1, space="smoke", train_images=6000, epochs=400, run="one")
""",
    """
assert signal.getsignal(signal.SIGINT) is before
trials = results.load("one").trials
print((trials["state"] == "running").sum(), "trial left")
""",
)


def execute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[bytes]]:
    """Returns what a copy of the notebook in `folder`/results prints and draws."""
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    shutil.copy(NOTEBOOK, folder / "results")
    notebook = nbformat.read(folder / "results" / NOTEBOOK.name, as_version=4)
    place = {"metadata": {"path": str(folder / "results")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output["data"] for output in outputs if "data" in output]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    printed = [output["text"] for output in outputs if output["output_type"] == "stream"]
    pictures = [base64.b64decode(shown["image/png"]) for shown in data if "image/png" in shown]
    return "\n".join(printed + [shown["text/plain"] for shown in data]), pictures


@pytest.mark.slow
def test_the_notebook_searches_and_shows_what_came_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "results" / "first", 3, seed=1)
    text, pictures = execute(tmp_path, monkeypatch)
    run = run_folder.load("latest", tmp_path / "results")
    assert "10/10 trials" in text and "started" not in text  # The live view, and not a line an event.
    assert f"{run.name}: fashion-mnist, 10 trials" in text and run.meta["command"].startswith("search.run(samples=10,")
    assert f"{run.best['valid_accuracy']:.6f}" in text
    assert all(word in text for word in ("config/learning_rate", "PED-ANOVA", "equal cost"))
    assert len(pictures) == 5
    assert all(len(picture) > 5_000 for picture in pictures)


@pytest.mark.slow
def test_interrupting_the_kernel_stops_a_search_and_its_handlers_are_put_back(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in INTERRUPTED]
    environment = os.environ | {"PYTHONPATH": str(NOTEBOOK.parent.parent)}
    place = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place, allow_errors=True)
    client.execute(env=environment)
    said = ["".join(str(output) for output in cell["outputs"]) for cell in notebook.cells]
    assert "KeyboardInterrupt" in said[0] or "Interrupted" in said[0], said[0]
    assert "Resume it with: search.run(resume='one')" in said[0]
    assert "1 trial left" in said[1], said[1]


def test_the_notebook_shows_a_run_by_its_own_metric_and_passes_over_damaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_metric import make_run

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "damaged"):
        make_run(tmp_path / "results" / name, "macro_f1")
    (tmp_path / "results" / "damaged" / "epochs.csv").write_text("no frame\n")
    monkeypatch.setattr("tuning.search.run", lambda **options: run_folder.load("a"))
    shown: list[Any] = []
    place: dict[str, Any] = {"display": lambda *values: shown.extend(values)}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and not any(name in cell.source for name in SLOW_OR_OF_JUPYTER):
            *lines, last = ast.parse(cell.source).body
            exec(compile(ast.Module(lines, []), "cell", "exec"), place)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), place))
            else:
                exec(compile(ast.Module([last], []), "cell", "exec"), place)
    assert place["trials"]["trial"].iloc[0] == 1 and "valid_score" in shown[1]  # By the accuracy it is trial 0.
    figures = [each for each in shown if isinstance(each, Figure)]
    labels = [[text.get_text() for text in figure.findobj(Text)] for figure in figures]
    assert len(figures) == 4 and all(any("macro F1" in label for label in each) for each in labels)
    assert "damaged is left out. results/damaged/epochs.csv is damaged: " in capsys.readouterr().out


def test_the_notebook_is_kept_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None

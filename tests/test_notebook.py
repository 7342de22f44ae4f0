"""The notebook runs from top to bottom, beside runs that it has not seen, and is kept without outputs."""

import base64
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import write_run
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "results" / "inspect.ipynb"


def execute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[bytes]]:
    """Returns what a copy of the notebook in `folder`/results prints and draws."""
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    shutil.copy(NOTEBOOK, folder / "results")
    notebook = nbformat.read(folder / "results" / NOTEBOOK.name, as_version=4)
    place = {"metadata": {"path": str(folder / "results")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output["data"] for output in outputs if "data" in output]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    printed = [output["text"] for output in outputs if output["output_type"] == "stream"]
    pictures = [base64.b64decode(shown["image/png"]) for shown in data if "image/png" in shown]
    return "\n".join(printed + [shown["text/plain"] for shown in data]), pictures


@pytest.mark.slow
def test_the_notebook_shows_the_latest_of_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "results" / "first", 3, seed=1)
    latest = write_run(tmp_path / "results" / "second", 10)
    text, pictures = execute(tmp_path, monkeypatch)
    assert "second: fashion-mnist, 10 trials (7 complete, 3 pruned)" in text
    assert f"{latest.best['valid_accuracy']:.6f}" in text
    assert all(word in text for word in ("config/learning_rate", "PED-ANOVA", "equal cost"))
    assert len(pictures) == 5
    assert all(len(picture) > 5_000 for picture in pictures)


@pytest.mark.slow
def test_the_notebook_shows_a_single_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "results" / "only", 2)
    text, pictures = execute(tmp_path, monkeypatch)
    assert "There is one run only." in text
    assert len(pictures) == 4


def test_the_notebook_is_kept_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None

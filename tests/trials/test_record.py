"""What a search writes beside its study: each picture by itself, and the page with what there is."""

from pathlib import Path
from typing import Any

import pytest
from conftest import write_run

from tuning.base.errors import UserError
from tuning.figures import importances, run_figures, run_page
from tuning.trials import record

PICTURES = {"best_so_far", "learning_curves", "parallel_coordinates", "importances"}


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no font")


@pytest.mark.parametrize(
    ("module", "function", "said", "lost"),
    [
        (run_figures, "best_so_far", "The picture best_so_far.png", {"best_so_far.png"}),
        (run_figures, "importances", "The picture importances.png", {"importances.png"}),
        (importances, "of_run", "The importances", {"importances.png"}),
        (run_page, "render", "The page", {"report.html"}),
    ],
)
def test_what_cannot_be_made_is_said_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, said: str, lost: set[str]
) -> None:
    run = write_run(tmp_path / "run", 9)
    for name in lost - {"report.html"}:
        (run.path / name).write_bytes(b"of fewer trials")
    monkeypatch.setattr(module, function, broken)
    told: list[str] = []
    record.conclude(run, told.append)
    assert f"{said} cannot be made: RuntimeError: no font" in told
    wanted = {f"{name}.png" for name in PICTURES} | {"report.html", "best.json"}
    assert {path.name for path in run.path.iterdir()} & wanted == wanted - lost


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise UserError("No space left on the disk while writing x.")

    run = write_run(tmp_path / "run", 4)
    monkeypatch.setattr(run_figures, "best_so_far", full)
    with pytest.raises(UserError, match="No space left on the disk"):
        record.conclude(run)


def test_a_setting_that_an_earlier_version_did_not_know_is_not_needed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 4)
    told: list[str] = []
    record.conclude(run, told.append)
    assert told == [] and (run.path / "report.html").exists()


def test_a_run_without_a_result_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 0)
    told: list[str] = []
    record.conclude(run, told.append)
    assert told == [] and "none yet" in (run.path / "report.html").read_text()
    assert not list(run.path.glob("*.png")) and not (run.path / "best.json").exists()


@pytest.mark.parametrize("name", [None, "one"])
@pytest.mark.parametrize("results", ["file", "link"])
def test_a_folder_of_runs_that_cannot_be_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, results: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if results == "file":
        Path("results").write_text("no folder")
    else:
        Path("results").symlink_to("nowhere")
    said = r"^results must be a folder that can be made: .* exists: 'results'\.$"
    with pytest.raises(UserError, match=said), record.claimed(name, "fashion-mnist", None):
        pass


def test_a_name_that_a_dangling_link_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/one").symlink_to("nowhere")
    said = r"^results/one must be a folder that can be made: "
    with pytest.raises(UserError, match=said), record.claimed("one", "fashion-mnist", None):
        pass


def test_a_folder_that_another_search_made_a_moment_ago_costs_its_number_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Path.mkdir

    def too_late(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name.endswith("-1"):
            made(path)
        made(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", too_late)
    with record.claimed(None, "any", None) as path:
        assert path.name.endswith("-any-2")

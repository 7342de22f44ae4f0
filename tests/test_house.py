"""The house: who may import whom, who may name the test split, and what the commands say of themselves."""

import ast
import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tuning.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
ROOMS = {path.stem: path for path in (ROOT / "tuning").glob("*.py") if not path.stem.startswith("__")}
# From the ground up: a room imports only from rooms above it in this list.
ORDER = [
    *(
        "interrupts",
        "temporary",
        "masking",
        "errors",
        "names",
        "config",
        "machine",
        "threads",
        "files",
        "database",
        "openings",
        "storage",
        "locks",
        "mirror",
        "fetch",
        "data",
        "kernels",
        "norm",
        "shortcut",
        "models",
        "acceleration",
        "training",
        "checkpoints",
        "tables",
        "results",
        "analysis",
        "importances",
        "compare",
        "style",
        "plots",
        "pictures",
        "charts",
        "model_charts",
        "thumbnails",
        "seeds",
        "jobs",
        "audit",
    ),
    *(
        "surroundings",
        "suggestions",
        "possible",
        "spaces",
        "study",
        "report",
        "gaussian_process",
        "curves",
        "schedulers",
        "progress",
        "tracking",
        "cluster",
        "trainable",
        "estimate",
        "settings",
        "stopping",
        "record",
        "search",
    ),
    *("candidates", "contest", "predict", "export", "best_model", "final", "explore"),
]
# What a person calls may show, imported when asked to, what the rooms below make of its frames.
COMMAND_MAY_IMPORT = {"results": {"compare", "plots", "style"}}
MAY_NAME_RAY = {"cluster", "trainable", "schedulers", "estimate", "search"}
MAY_NAME_OPTUNA = {
    "database",
    "possible",
    "suggestions",
    "spaces",
    "study",
    "curves",
    "schedulers",
    "estimate",
    "search",
    "importances",
}


def imported(path: Path) -> set[str]:
    """Returns the names of all modules that a file imports, wherever in it; `from tuning import x` gives `tuning.x`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "tuning":
            names |= {f"tuning.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_text_files_are_read_and_written_as_utf_8() -> None:
    """Whatever the locale says; `files.write_text` encodes by itself."""
    lacking = []
    for room, path in ROOMS.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            mode = "".join(str(arg.value) for arg in node.args[:2] if isinstance(arg, ast.Constant))
            text = name in ("read_text", "write_text") or (
                name == "open" and "b" not in mode and owner not in ("os", "Image")
            )
            named = {keyword.arg for keyword in node.keywords}
            encodes = owner == "files" or room == "files"  # Its own `write_text` encodes by itself.
            if text and not encodes and mode != "a" and not named & {"encoding", "timeout", "formats"}:
                lacking.append(f"{room}:{node.lineno}")
    assert lacking == []


def test_every_room_is_in_the_order() -> None:
    assert set(ORDER) == set(ROOMS)


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_from_above_itself(room: str) -> None:
    below = set(ORDER[ORDER.index(room) :]) - COMMAND_MAY_IMPORT.get(room, set())
    assert not {name.removeprefix("tuning.") for name in imported(ROOMS[room])} & below


@pytest.mark.parametrize(("library", "allowed"), [("ray", MAY_NAME_RAY), ("optuna", MAY_NAME_OPTUNA)])
def test_only_some_rooms_name_ray_and_optuna(library: str, allowed: set[str]) -> None:
    naming = {room for room, path in ROOMS.items() if library in {name.split(".")[0] for name in imported(path)}}
    assert naming == allowed


def test_only_final_names_the_function_that_opens_the_test_split() -> None:
    naming = {room for room, path in ROOMS.items() if "load_test" in path.read_text()}
    assert naming == {"data", "final"}


def test_search_spaces_import_nothing() -> None:
    for path in (ROOT / "search_spaces").glob("*.py"):
        assert not imported(path), path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("tuning.results", {"ray", "torch", "optuna", "pandas"}),
        ("tuning.final", {"ray", "torch", "optuna"}),
        ("tuning.predict", {"ray", "torch", "optuna"}),
        ("tuning.report", {"ray", "torch", "optuna", "pandas", "plotly"}),
        ("tuning.explore", {"ray", "torch", "optuna", "matplotlib"}),
        ("tuning.search", {"ray", "torch", "optuna", "pandas"}),
    ],
)
def test_commands_start_without_what_they_do_not_need(module: str, absent: set[str]) -> None:
    program = f"import sys, {module}; print(*{absent!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_retraining_needs_no_ray() -> None:
    program = (
        "import sys\nclass Absent:\n    def find_spec(self, name, *args):\n"
        "        if name.split('.')[0] in ('ray', 'optuna'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import tuning.final, tuning.training.fit, tuning.models.architectures, tuning.predict\n"
        "import tuning.figures.run_figures, tuning.figures.model_figures"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_list_of_commands_has_each_with_what_it_does() -> None:
    done = subprocess.run([sys.executable, "-m", "tuning"], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        assert f"python -m tuning.{command}" in done.stdout
    with_main = {room for room, path in ROOMS.items() if "run_command(main)" in path.read_text()} - {"errors"}
    assert set(COMMANDS) == with_main


def test_a_command_can_be_named_without_its_dot_and_a_mistyped_one_is_said() -> None:
    wrong = subprocess.run([sys.executable, "-m", "tuning", "serach"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.endswith("but got 'serach'. Did you mean 'search'?\n")
    done = subprocess.run(
        [sys.executable, "-m", "tuning", "results", "--limit", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "--limit" in done.stderr


@pytest.mark.parametrize("command", ["search", "final"])
def test_ctrl_c_while_a_command_is_imported_shows_no_traceback(command: str) -> None:
    program = (
        "import os, signal, sys\nclass Sends:\n    def find_spec(self, name, *args):\n"
        "        if name == 'tuning.base.errors': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Sends())\nsys.argv[:] = ['-m', '--help']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # It may be ignored in the background.
        f"import runpy; runpy.run_module('tuning.{command}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT and done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_names_each_option_with_a_sentence(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tuning.{command}", "--help"], capture_output=True, text=True, check=True
    )
    assert f"python -m tuning.{command}" in done.stdout
    assert importlib.import_module(f"tuning.{command}").main.__doc__.split("\n")[0][:40] in done.stdout
    assert "(default: above)" not in done.stdout


def test_the_commands_names_of_what_can_be_chosen_are_in_the_help() -> None:
    done = subprocess.run([sys.executable, "-m", "tuning.search", "--help"], capture_output=True, text=True, check=True)
    for name in ("curves", "tpe", "gp", "random", "qmc", "asha", "hyperband", "median", "none", "smoke"):
        assert name in done.stdout


def test_nothing_names_a_registry_or_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = ["py" + "pi.org", "python" + "hosted", "deb" + "ian.org"]
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".sh", ".yaml", ".ipynb"):
            assert not [host for host in hosts if host in path.read_text()], name

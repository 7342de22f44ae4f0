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
PACKAGE = ROOT / "tuning"
FILES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.stem.startswith("__")
}
# The law: which rooms a room may import at the top of a file. Commands stand above all of them.
ARROWS = {
    "base": "",
    "images": "base",
    "models": "base",
    "runs": "base",
    "training": "images models base",
    "sampling": "runs base",
    "trials": "sampling training images models runs base",
    "retraining": "trials sampling training images models runs base",
    "figures": "sampling runs base",
    "remote": "runs base",
}
# The rim: the core imports it inside functions only, so that it can be deleted with what it does.
RIM = {"figures", "remote"}
INSIDE = {"trials": RIM, "retraining": RIM, "runs": {"remote"}}


def room_of(module: str) -> str:
    """Returns the room of a module such as `tuning.base.files`; that of a command is ""."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def arrows(path: Path) -> dict[bool, set[str]]:
    """Returns the rooms that a file imports: at its top (True), and inside functions or for types (False)."""
    found: dict[bool, set[str]] = {True: set(), False: set()}

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            below = top and not typing and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "tuning":
                modules = (
                    [child.module] if child.module != "tuning" else [f"tuning.{name.name}" for name in child.names]
                )
                found[below] |= {room_of(str(module)) for module in modules}
            visit(child, below)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


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
    for room, path in FILES.items():
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
            encodes = owner == "files" or room == "base/files"  # Its own `write_text` encodes by itself.
            if text and not encodes and mode != "a" and not named & {"encoding", "timeout", "formats"}:
                lacking.append(f"{room}:{node.lineno}")
    assert lacking == []


def test_every_folder_has_its_place_in_the_plan_and_says_what_it_is() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders == set(ARROWS)
    for room in ARROWS:
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) and len(tree.body) == 1


@pytest.mark.parametrize("name", FILES)
def test_imports_between_rooms_run_one_way(name: str) -> None:
    room = name.split("/")[0] if "/" in name else ""
    found = arrows(FILES[name])
    if not room:
        assert found[True] <= set(ARROWS) - RIM | {""} | ({"figures"} if name == "report" else set())
        return
    allowed = {room, *ARROWS[room].split()}
    assert found[True] <= allowed
    assert found[False] <= allowed | INSIDE.get(room, set())


@pytest.mark.parametrize(
    ("library", "rooms", "files"),
    [
        ("ray", {"trials", "remote"}, set()),
        ("optuna", {"sampling"}, {"figures/importances", "trials/estimate", "trials/session"}),
    ],
)
def test_only_some_rooms_name_ray_and_optuna(library: str, rooms: set[str], files: set[str]) -> None:
    naming = {name for name, path in FILES.items() if library in {each.split(".")[0] for each in imported(path)}}
    assert {name.split("/")[0] for name in naming - files} == rooms


def test_torch_is_imported_at_the_top_of_models_and_training_alone() -> None:
    for name, path in FILES.items():
        top = {
            alias.name.split(".")[0]
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
        }
        assert not {"torch", "torchvision"} & top or name.split("/")[0] in ("models", "training"), name


def test_only_final_names_the_function_that_opens_the_test_split() -> None:
    naming = {name for name, path in FILES.items() if "load_test" in path.read_text()}
    assert naming == {"images/datasets", "images/splitting", "retraining/opening"}


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
    with_main = {name for name, path in FILES.items() if "run_command(main)" in path.read_text()} - {"base/errors"}
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


def test_nothing_names_a_registry_or_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = ["py" + "pi.org", "python" + "hosted", "deb" + "ian.org"]
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".sh", ".yaml", ".ipynb"):
            assert not [host for host in hosts if host in path.read_text()], name

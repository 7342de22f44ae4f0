"""The house: who may import whom, who may name the test split, and what the commands say of themselves.

python tests/test_house.py      prints each room with its lines, and with the rooms that it imports
"""

import ast
import importlib
import os
import signal
import subprocess
import sys
from collections import Counter
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


# What these files are for: each says why no public name does, and a test of its own misses the name when it is gone.
INTERNALS = {"trials/ray_internals", "remote/cluster_internals"}
# Name with an underscore -> the only file that may use it elsewhere, and why.
PRIVATE = {
    "_exit": ("base/interrupts", "documented: how a process ends at once"),
    "_thread": ("final", "documented: a module of Python with the one way to interrupt the main thread"),
}


def private_names(path: Path) -> set[str]:
    """Returns what a file names with one underscore before it and does not define: modules, attributes, arguments."""

    def private(name: str) -> bool:
        return name.startswith("_") and not name.startswith("__")

    tree, found = ast.parse(path.read_text(encoding="utf-8")), set[str]()
    own = {
        getattr(node, "name", getattr(node, "attr", getattr(node, "id", "")))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        or (isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found |= {node.attr}
        elif isinstance(node, ast.Call):
            found |= {keyword.arg or "" for keyword in node.keywords}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = "" if isinstance(node, ast.Import) else str(node.module)
            found |= {part for alias in node.names for part in [*module.split("."), *alias.name.split(".")]}
    return {name for name in found - own if private(name)}


@pytest.mark.parametrize("name", sorted(set(FILES) - INTERNALS))
def test_no_file_uses_a_private_name_of_another_library(name: str) -> None:
    allowed = {private for private, (file, _) in PRIVATE.items() if file == name}
    assert private_names(FILES[name]) <= allowed, f"{name} must use public names, or {sorted(INTERNALS)}"


def test_the_law_on_private_names_sees_each_way_to_use_one(tmp_path: Path) -> None:
    written = "import ray._a\nfrom ray._b import c\nfrom ray import _d\nray.e._f(_g=1)\nclass H(ray.H):\n"
    written += "    def _i(self): self._j = self._i() + self._k + self.__dict__\n"
    (tmp_path / "file.py").write_text(written)
    assert private_names(tmp_path / "file.py") == {"_a", "_b", "_d", "_f", "_g", "_k"}


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
        ("optuna", {"sampling"}, {"figures/importances", "trials/kinds", "trials/loading"}),
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


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("tuning sea", {"search"}),
        ("tuning search --train", {"--train-images"}),
        ("tuning final --t", {"--top-k", "--threads", "--train-images", "--train-on"}),
    ],
)
def test_the_shell_completes_commands_and_options(line: str, known: set[str]) -> None:
    variables = {"_TUNING_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    command = [sys.executable, "-m", "tuning"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == known


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


def plan() -> str:
    """Returns the rooms in order of their floors: lines, rooms imported at the top of a file, inside functions."""
    found: dict[str, tuple[set[str], set[str]]] = {room: (set(), set()) for room in ("", *ARROWS)}
    lines: Counter[str] = Counter()
    for name, path in FILES.items():
        room = name.split("/")[0] if "/" in name else ""
        lines[room] += len(path.read_text(encoding="utf-8").splitlines())
        for top, rooms in arrows(path).items():
            found[room][0 if top else 1].update(rooms - {room, ""})
    order = sorted(found, key=lambda room: (room == "", len(ARROWS.get(room, "").split()), room))
    rows = [f"{'room':<11} {'lines':>6}  imports at the top -> (inside functions)"]
    for room in order:
        top, inside = (" ".join(sorted(rooms)) for rooms in (found[room][0], found[room][1] - found[room][0]))
        rows.append(f"{room or 'commands':<11} {lines[room]:>6}  -> {top}{f' ({inside})' if inside else ''}".rstrip())
    return "\n".join([*rows, f"{'all':<11} {lines.total():>6}"])


def test_the_plan_names_each_room_and_what_it_imports() -> None:
    lines = plan().splitlines()
    assert {line.split()[0] for line in lines[1:]} == {*ARROWS, "commands", "all"}
    assert next(line for line in lines if line.startswith("base ")).endswith("->")


if __name__ == "__main__":
    print(plan())

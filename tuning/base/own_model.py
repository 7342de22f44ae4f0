"""A user's own network: a file with `def model(config, channels, n_classes, image_size)`, as text and by its hash.

A configuration names it "own:" and 12 digits of the text's SHA-256. A process that may build it receives the text
beforehand, so that a run does not need the file once it has begun, and a worker on another machine never does. What
must never live here: anything that runs the text, or imports torch.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tuning.base import files
from tuning.base.errors import UserError
from tuning.base.registries import OWN

KEPT = "model.py"  # In a run folder, and beside the weights of a trained model.
SIGNATURE = "model(config, channels, n_classes, image_size)"
_known: dict[str, "OwnModel"] = {}


@dataclass(frozen=True)
class OwnModel:
    """The text of a file with a network.

    Attributes:
        file: As the user named it, for messages.
        source: The text.
    """

    file: str
    source: str

    @property
    def architecture(self) -> str:
        """What a configuration calls it: equal for equal texts."""
        return f"{OWN}:{hashlib.sha256(self.source.encode()).hexdigest()[:12]}"


def read(path: Path, option: str = "--model") -> OwnModel:
    """Returns the network of a file, which this process may build from now on.

    Raises:
        UserError: It cannot be read or parsed, has no `model`, or imports what lies beside it.
    """
    try:
        source = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} must be a readable .py file, but got {str(path)!r}: {error}.") from error
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{option} must be a file of Python, but {path} cannot be parsed: {error}{line}.") from error
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = {name.id for node in tree.body for name in ast.walk(node) if isinstance(name, ast.Name)}
    if "model" not in defined | assigned:
        raise UserError(f"{path} must define {SIGNATURE} -> nn.Module, but has no such function.")
    for name in _imported(tree):
        if name not in sys.stdlib_module_names | {files.PACKAGE.name} and _lies_beside(path.parent / name):
            raise UserError(
                f"{path} must be complete, because a run keeps this one file, but it imports {name!r}, which lies "
                "beside it. Put what it needs into the file."
            )
    found = OwnModel(str(path), source)
    know([found])
    return found


def know(models: Iterable[OwnModel]) -> None:
    """Lets this process build networks that another one has read."""
    _known.update({each.architecture: each for each in models})


def known() -> tuple[OwnModel, ...]:
    """Returns the networks that this process may build, for another one."""
    return tuple(_known.values())


def is_own(architecture: str) -> bool:
    """Returns whether an architecture is a user's own file."""
    return architecture == OWN or architecture.startswith(f"{OWN}:")


def find(architecture: str) -> OwnModel:
    """Returns a network by what a configuration calls it.

    Raises:
        UserError: Its file was not named in this process.
    """
    if architecture not in _known:
        others = f", but got another file ({', '.join(sorted(_known))})" if _known else ""
        raise UserError(
            f"The architecture {architecture!r} is a file of the user's. Name it with --model FILE{others}. A run "
            f"keeps a copy as {KEPT}."
        )
    return _known[architecture]


def of_folder(folder: Path) -> OwnModel | None:
    """Returns the network that a run folder keeps, which this process may build from now on; None where it has none."""
    return read(folder / KEPT) if (folder / KEPT).is_file() else None


def keep(architecture: str, folder: Path) -> None:
    """Writes the file of a configuration's network into a folder, if it is a user's own."""
    if is_own(architecture):
        files.write_text(folder / KEPT, find(architecture).source)


def _lies_beside(module: Path) -> bool:
    """Returns whether a module lies in a folder, given its path there without a suffix.

    A folder without `__init__.py` may only have the name of an installed package, which Python then imports.
    """
    if module.with_name(f"{module.name}.py").is_file() or (module / "__init__.py").is_file():
        return True
    return module.is_dir() and not _is_installed(module)


def _is_installed(folder: Path) -> bool:
    """Returns whether there is a package of a folder's name elsewhere."""
    try:
        found = find_spec(folder.name)
    except (ImportError, ValueError):  # As of a module that was made by hand.
        return False
    if found is None or found.origin is not None:
        return found is not None
    return any(Path(place).resolve() != folder.resolve() for place in found.submodule_search_locations or ())


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yields the top names of the modules that a file imports; those of relative imports, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)

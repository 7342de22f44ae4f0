"""A search space that is given as a function, as a file: what the run keeps, so that it can be resumed.

The file is the function's source and that of what it reads: values that can be written down, functions and classes
of the user's, and imports. What cannot be kept is refused.
"""

import __future__

import ast
import builtins
import dis
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any

from tuning.base.errors import UserError

# The part that stands first: annotations are not evaluated, as they may name what only a type checker imports.
_FUTURE = "__future__"
_INSTEAD = 'Define it in the function, or write the space to a file, and pass space="FILE.py".'


def module_of(function: Callable[..., Any], note: Callable[[str], None] = print) -> str:
    """Returns the text of a module whose `space` does what the function does.

    Args:
        function: The search space.
        note: Receives what lies beside the function under a name that a space's file has, and is none of it.

    Raises:
        UserError: The function's source cannot be had, or it reads what cannot be kept; or a first point beside it has
            what a study cannot record.
    """
    from tuning.sampling import spaces

    called = getattr(function, "__name__", "")
    if not inspect.isfunction(function) or not called.isidentifier():
        raise UserError(f"space must be a function that `def` defines, a name or a file, but got {function!r}.")
    parts: dict[str, str] = {}
    known: dict[str, Any] = {}
    _keep(called, function, parts, known)
    of_file: dict[str, tuple[Callable[[Any], bool], Callable[[Any, str], Any], str]] = {
        "FIRST": (spaces.are_points, spaces.first_points, "a list of points {name: value}"),
        "GPU_ONLY": (spaces.are_choices, spaces.gpu_choices, "{name: [choice, ...]}"),
    }
    for name, (is_one, read, form) in of_file.items():  # What lies beside a space is of it, as in a file.
        if name not in function.__globals__:
            continue
        value = function.__globals__[name]
        if name in known:
            if not is_one(known[name]):
                raise UserError(
                    f"{called} must read nothing called {name!r}, which is {form} of a space, but got "
                    f"{known[name]!r}. Give it another name."
                )
        elif is_one(value):
            _keep(name, read(value, called), parts, known, f"the run of {called}")
        else:
            note(f"{name} beside {called} is not {form}, and no part of the search space.")
    if called != "space" and "space" in parts:
        raise UserError(f"{called} must read nothing called 'space', which its run calls {called} itself. {_INSTEAD}")
    alias = "" if called == "space" else f"\n\nspace = {called}\n"
    return "\n".join([*([parts.pop(_FUTURE)] if _FUTURE in parts else []), *parts.values()]) + alias


def _keep(name: str, value: Any, parts: dict[str, str], known: dict[str, Any], reader: str = "") -> None:
    """Adds what defines a name to the parts, after what that reads itself.

    Args:
        name: What the value is called.
        value: What it stands for.
        parts: The text of each name that has been kept.
        known: What each name stands for, also those that are being kept and those of Python itself.
        reader: The function or class that reads the name.

    Raises:
        UserError: It cannot be written down, or a name stands for two things: the file has a single one.
    """
    known[name] = value
    text = _written(name, value)
    if text is None:
        own = inspect.isfunction(value) or inspect.isclass(value)
        if not own or value.__name__ != name:
            raise UserError(f"space must read only what its run can keep, but {reader} reads {name!r}. {_INSTEAD}")
        try:
            text = textwrap.dedent(inspect.getsource(value))
            tree, flags = ast.parse(text), _future(value)
            code = compile(tree, "<space>", "exec", flags)
        except (OSError, TypeError, SyntaxError) as error:
            raise UserError(f"The source of {name} cannot be had: {error}. {_INSTEAD}") from error
        around = _around(value)
        if flags:
            parts[_FUTURE] = "from __future__ import annotations\n"
        if inspect.isfunction(value):
            _check_bound(name, value, text, around)
        for read in sorted(set(_loads(code))):
            if read.startswith("__") or (read not in around and not hasattr(builtins, read)):
                continue
            meant = around[read] if read in around else getattr(builtins, read)
            if read in known:
                if not _is_same(read, known[read], meant):
                    raise UserError(f"space must read one thing called {read!r}, but {name} reads another. {_INSTEAD}")
            elif read in around:
                _keep(read, meant, parts, known, name)
            else:
                known[read] = meant
        for module in _submodules(tree, around):  # `import a.b` gives the name `a`.
            parts[module] = f"import {module} as _{module.replace('.', '_')}\n"
    parts[name] = text


def _future(value: Any) -> int:
    """Returns the flag of `from __future__ import annotations` where the module of a function or class has that."""
    flag = __future__.annotations.compiler_flag
    if inspect.isfunction(value):
        return value.__code__.co_flags & flag
    return flag if _around(value).get("annotations") is __future__.annotations else 0


def _submodules(tree: ast.Module, around: Mapping[str, Any]) -> list[str]:
    """Returns the modules that are read as attributes of other ones, and were imported."""
    found = set()
    for node in ast.walk(tree):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names, node = [node.attr, *names], node.value
        module = around.get(node.id) if isinstance(node, ast.Name) else None
        for name in names:
            called = f"{module.__name__}.{name}" if isinstance(module, ModuleType) else ""
            module = getattr(module, name, None)
            if not isinstance(module, ModuleType) or sys.modules.get(called) is not module:
                break
            found.add(called)
    return sorted(found)


def _is_same(name: str, one: Any, other: Any) -> bool:
    """Returns whether two values of a name are one thing, or are written down alike."""
    return one is other or ((text := _written(name, one)) is not None and text == _written(name, other))


def _check_bound(name: str, function: Any, text: str, around: Mapping[str, Any]) -> None:
    """Raises UserError where a function has decorators, or defaults that its source would not give again now."""
    [definition] = ast.parse(text).body
    if not isinstance(definition, ast.FunctionDef) or definition.decorator_list:
        raise UserError(f"space must be made of plain functions, but {name} has a decorator. {_INSTEAD}")
    written = [*definition.args.defaults, *filter(None, definition.args.kw_defaults)]
    bound = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for default, value in zip(written, bound, strict=True):
        try:
            same = bool(eval(compile(ast.Expression(default), "<space>", "eval"), dict(around)) == value)
        except Exception:
            same = False
        if not same:
            what = ast.unparse(default)
            raise UserError(
                f"The default {what} of {name} has another value now than when {name} was defined. {_INSTEAD}"
            )


def _written(name: str, value: Any) -> str | None:
    """Returns an import or an assignment of what is installed, or can be written down; None for anything else."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}\n" if _is_installed(value.__name__) else None
    home, own_name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if isinstance(home, str) and own_name.isidentifier() and _is_installed(home):
        return f"from {home} import {own_name} as {name}\n"
    try:
        return f"{name} = {value!r}\n" if ast.literal_eval(repr(value)) == value else None
    except (ValueError, SyntaxError, TypeError):
        return None


def _is_installed(module: str) -> bool:
    """Returns whether a module comes with Python or was installed, so that another process can import it."""
    top = module.partition(".")[0]
    if top == "__main__":
        return False
    file = str(getattr(sys.modules.get(top), "__file__", None) or "")
    return top in sys.stdlib_module_names or top == "tuning" or "site-packages" in file or "dist-packages" in file


def _around(value: Any) -> Mapping[str, Any]:
    """Returns what a function or class can read, by name."""
    module = sys.modules.get(value.__module__)
    if not inspect.isfunction(value):
        return vars(module) if module else {}
    return {**value.__globals__, **inspect.getclosurevars(value).nonlocals}


def _loads(code: CodeType) -> Iterator[str]:
    """Yields the global names that a module's code reads, those of its functions included."""
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield each.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _loads(constant)

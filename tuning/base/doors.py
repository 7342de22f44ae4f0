"""One definition of a command's options: the signature of its `run`, which Python calls and the command is made from.

A parameter that typer cannot fill (a function, a switch for Python alone) is left out of the command, which may have
options of its own. Both doors check their values here, so that both say the same of a wrong one.
"""

import copy
import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Union, cast, get_args, get_origin

import typer
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tuning.base.errors import UserError, unknown_name
from tuning.base.files import expanded

_PARSED = (str, int, float, bool, Path)


class Asked(SimpleNamespace):
    """The options of a `run` by name, checked, with their defaults; `given` has the names of those that were given."""

    given: tuple[str, ...]


def asked(run: Callable[..., Any], values: Mapping[str, Any], given: Iterable[str] | None = None) -> Asked:
    """Returns the options of `run`.

    Args:
        run: Has them as parameters.
        values: By name; what is missing has its default.
        given: Which of them were given; None is those that are not the default.

    Raises:
        UserError: A value is of another type, or less than its option allows.
    """
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(run).parameters.items():
        found[name] = parameter.default
        if name in values and values[name] is not parameter.default:
            found[name] = _checked(parameter, values[name])
    if given is None:
        given = [n for n, parameter in inspect.signature(run).parameters.items() if found[n] != parameter.default]
    return Asked(**found, given=tuple(given))


def option(parameter: inspect.Parameter) -> str:
    """Returns what the command calls a parameter, e.g. "--train-images"."""
    names = [word for info in _infos(parameter) for word in (info.default, *(info.param_decls or ()))]
    said = [name for name in names if isinstance(name, str)]
    return said[0] if said else f"--{parameter.name.replace('_', '-')}"


def over(run: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that makes `main(asked, *, ...)` a command with the options of `run` and those of its own."""

    def decorate(main: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(main).parameters.values())[1:]
        shared = [each for each in map(_parsed, inspect.signature(run).parameters.values()) if each is not None]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

        @functools.wraps(main)
        def command(*, context: typer.Context | None = None, **values: Any) -> None:
            given = values if context is None else set(_given(context))
            mine = {each.name: values.pop(each.name) for each in own if each.name in values}
            main(asked(run, values, [name for name in values if name in given]), **mine)

        parameters = [context, *(each.replace(kind=context.kind) for each in [*shared, *own])]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def read_options(context: typer.Context, values: Mapping[str, Any], source: Path) -> None:
    """Has the command take options from a file; those of the command line win.

    Args:
        context: Of the command; the option that names the file must be eager.
        values: Names of options, with "-" or "_", and what they are; None is as if it were not there.
        source: The file, for the error.

    Raises:
        UserError: A name is no option of the command.
    """
    names = {str(name).replace("-", "_"): name for name in values}
    parameters = {str(each.name): each for each in context.command.params}
    called = {each.opts[0].removeprefix("--").replace("-", "_"): name for name, each in parameters.items()}
    known = called | {name: name for name in parameters}
    found: dict[str, Any] = {}
    for plain, name in names.items():
        if plain not in known or plain == "config":
            raise UserError(f"{source}: {unknown_name('Option', str(name), sorted({*called} - {'config', 'help'}))}")
        # As words, which are then read as those of the command line are: `2.5` is no number of samples.
        value = values[name]
        if value is not None:
            found[known[plain]] = [*map(str, value)] if isinstance(value, list) else str(value)
    context.default_map = found


def _infos(parameter: inspect.Parameter) -> list[Any]:
    extra = get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()
    return [each for each in extra if isinstance(each, typer.models.ParameterInfo)]


def _members(annotation: Any) -> tuple[Any, ...]:
    base = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return get_args(base) if get_origin(base) in (Union, types.UnionType) else (base,)


def _parsed(parameter: inspect.Parameter) -> inspect.Parameter | None:
    """Returns a parameter as typer can fill it; None for one that is for Python alone.

    The least value is checked in `asked`, for both doors.
    """
    for info in _infos(parameter):
        members = _members(parameter.annotation)
        kept = [each for each in members if each in _PARSED or get_origin(each) is list][:1]
        hint: Any = functools.reduce(operator.or_, [*kept, *(each for each in members if each is types.NoneType)])
        least = getattr(info, "min", None)
        if least is not None:
            info = _without_least(info, least)
        return parameter.replace(annotation=cast(Any, Annotated)[hint, info])
    return None


def _without_least(info: Any, least: float) -> Any:
    changed = copy.copy(info)
    changed.min, changed.help = None, f"{info.help} At least {least}."
    return changed


def _given(context: typer.Context) -> Iterator[str]:
    for name in context.params:
        if str(context.get_parameter_source(name)).endswith(("COMMANDLINE", "DEFAULT_MAP")):
            yield name


def _checked(parameter: inspect.Parameter, value: Any) -> Any:
    members, infos = _members(parameter.annotation), _infos(parameter)
    try:
        hint: Any = functools.reduce(operator.or_, members)
        value = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Input should be ").split(", ")[0]
        name = option(parameter) if infos else parameter.name
        raise UserError(f"{name} must be {rule}, but got {value!r}.") from error
    for least in (info.min for info in infos if getattr(info, "min", None) is not None):
        if value is not None and value < least:
            raise UserError(f"{option(parameter)} must be at least {least}, but got {value}.")
    if Path in members and isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(expanded(value))
    return value

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
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

import typer
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tuning.base.errors import UserError, unknown_name
from tuning.base.files import expanded

_PARSED = (str, int, float, bool, Path)
_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    list: "a list of texts",
    Callable: "a function",
}
LARGEST_SEED = 2**32 - 1  # A training draws from `seed * 1_000_003 + epoch`, for which torch has 64 bits.
MISSING: Any = object()  # What a caller has not passed.

P = ParamSpec("P")
R = TypeVar("R")


class Asked(SimpleNamespace):
    """The options of a `run` by name, checked, with their defaults; `given` has the names of those that were given."""

    given: tuple[str, ...]


def asked(run: Callable[..., Any], values: Mapping[str, Any], given: Iterable[str] | None = None) -> Asked:
    """Returns the options of `run`.

    Args:
        run: Has them as parameters.
        values: By name; what is missing there, or is MISSING, has its default.
        given: Which of them were given; None is all that are in `values`, whatever they are, but for None and for a
            switch that is off, which no command can say.

    Raises:
        UserError: A value is of another type, or not within the bounds of its option.
    """
    found: dict[str, Any] = {}
    told = []
    for name, parameter in inspect.signature(run).parameters.items():
        found[name], value = parameter.default, values.get(name, MISSING)
        if value is MISSING:
            continue
        if value is not parameter.default:
            found[name] = _checked(parameter, value)
        if value is not None and not (value is False and parameter.default is False):
            told.append(name)
    return Asked(**found, given=tuple(told if given is None else given))


def passed(run: Callable[P, R]) -> Callable[P, R]:
    """Returns `run` with a body that finds MISSING in each parameter that was not passed; `asked` knows it.

    So a value that is passed counts as given where it is the default, too, as in the command.
    """
    names = [*inspect.signature(run).parameters]

    @functools.wraps(run)
    def door(*args: P.args, **kwargs: P.kwargs) -> R:
        return run(*args, **cast(Any, dict.fromkeys(names[len(args) :], MISSING) | kwargs))

    return door


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


def worded(main: Callable[..., None]) -> inspect.Signature:
    """Returns the signature of a command with which typer says of a wrong value what Python says.

    typer's own sentences name neither the value nor, where it comes from a file, the option as the file has it.
    """
    signature = inspect.signature(main)
    return signature.replace(parameters=[_parsed(each) or each for each in signature.parameters.values()])


def read_options(context: typer.Context, main: Callable[..., None], values: Mapping[str, Any], source: Path) -> None:
    """Has the command take options from a file; those of the command line win.

    Args:
        context: Of the command; the option that names the file must be eager.
        main: The command.
        values: Names of options, with "-" or "_", and what they are; None is as if it were not there.
        source: The file, for the error.

    Raises:
        UserError: A name is no option of the command, or a value is of another type.
    """
    parameters = inspect.signature(main).parameters
    called = {option(each).removeprefix("--").replace("-", "_"): name for name, each in parameters.items()}
    known = called | {name: name for name in parameters}
    for name in ("context", "config"):
        known.pop(name), called.pop(name)
    found: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in values.items():
        plain = str(name).replace("-", "_")
        if plain not in known:
            raise UserError(f"{source}: {unknown_name('Option', str(name), sorted(called))}")
        if (other := names.setdefault(known[plain], name)) != name:
            raise UserError(f"{source}: {other} and {name} are one option. Leave one of them out.")
        if value is not None:
            found[known[plain]] = _of_file(parameters[known[plain]], value, f"{source}: {name}")
    context.default_map = found


def _of_file(parameter: inspect.Parameter, value: Any, called: str) -> Any:
    """Returns a value of a file, read as the same words on the command line are: `2.5` is no number of samples."""
    takes_list = any(get_origin(each) is list for each in _members(parameter.annotation))
    parts = value if takes_list and isinstance(value, list) else [value]
    if any(isinstance(each, list | dict | types.NoneType) for each in parts):
        raise _wrong(parameter, value, called)
    words = [*map(str, parts)]
    return _checked(parameter, words if takes_list else words[0], called)


def _infos(parameter: inspect.Parameter) -> list[Any]:
    extra = get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()
    return [each for each in extra if isinstance(each, typer.models.ParameterInfo)]


def _members(annotation: Any) -> tuple[Any, ...]:
    base = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return get_args(base) if get_origin(base) in (Union, types.UnionType) else (base,)


def _parsed(parameter: inspect.Parameter) -> inspect.Parameter | None:
    """Returns a parameter as typer can fill it; None for one that is for Python alone.

    Its numbers and their bounds are checked here, for both doors.
    """
    for info in _infos(parameter):
        members = _members(parameter.annotation)
        kept = [each for each in members if each in _PARSED or get_origin(each) in (list, Literal)][:1]
        hint: Any = functools.reduce(operator.or_, [*kept, *(each for each in members if each is types.NoneType)])
        if info.parser is None and (kept[0] in (int, float) or get_origin(kept[0]) is Literal):
            info = _with_parser(parameter, info, getattr(kept[0], "__name__", "text"))
        return parameter.replace(annotation=cast(Any, Annotated)[hint, info])
    return None


def _with_parser(parameter: inspect.Parameter, info: Any, name: str) -> Any:
    def parser(value: Any) -> Any:
        return _checked(parameter, value)

    parser.__name__ = name  # Earlier versions of typer show it in `--help`.
    changed = copy.copy(info)
    bounds = [
        f"{word} {bound:,}." for word, bound in (("At least", info.min), ("At most", info.max)) if bound is not None
    ]
    changed.min = changed.max = None
    changed.parser, changed.help = parser, " ".join(filter(None, [info.help, *bounds]))
    return changed


def _given(context: typer.Context) -> Iterator[str]:
    for name in context.params:
        if str(context.get_parameter_source(name)).endswith(("COMMANDLINE", "DEFAULT_MAP")):
            yield name


def _checked(parameter: inspect.Parameter, value: Any, called: str = "") -> Any:
    """Returns a value as its parameter takes it; `called` is what an error calls that.

    A path is text where the command reads text, and a bare text is a list of one.
    """
    members, infos = _members(parameter.annotation), _infos(parameter)
    called = called or (option(parameter) if infos else parameter.name)
    if isinstance(value, str) and get_origin(members[0]) is list:
        value = [value]
    if isinstance(value, bool) and bool not in members and {int, float} & set(members):
        raise _wrong(parameter, value, called)  # Python takes it for 0 or 1.
    try:
        hint: Any = functools.reduce(operator.or_, members)
        form = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        value = TypeAdapter(hint, config=form).validate_python(value)
    except ValidationError as error:
        is_endless = any(each["type"] == "finite_number" for each in error.errors())
        raise _wrong(parameter, value, called, "a finite number" if is_endless else "") from error
    for info in infos:
        least, most = getattr(info, "min", None), getattr(info, "max", None)
        if value is not None and least is not None and value < least:
            raise UserError(f"{called} must be at least {least:,}, but got {value}.")
        if value is not None and most is not None and value > most:
            raise UserError(f"{called} must be at most {most:,}, but got {value}.")
    if isinstance(value, str | Path) and (members[0] is Path or (Path in members and str(value).startswith("~"))):
        value = type(value)(expanded(value))
    return str(value) if isinstance(value, Path) and _is_text(members) else value


def _is_text(members: tuple[Any, ...]) -> bool:
    """Returns whether a parameter is text, which Python may give as a path; a class of ours tells the two apart."""
    others = [each for each in members if isinstance(each, type) and each not in (str, Path, types.NoneType)]
    return str in members and not others and members.index(str) < members.index(Path)


def _wrong(parameter: inspect.Parameter, value: Any, called: str, rule: str = "") -> UserError:
    """Returns the error for a value that breaks a rule: by default the types of its parameter."""
    members = [each for each in _members(parameter.annotation) if each is not types.NoneType]
    for each in members:
        if get_origin(each) is Literal:
            return unknown_name(called, str(value), get_args(each))
    words = [*dict.fromkeys(_WORDS.get(get_origin(each) or each) or f"a {each.__name__}" for each in members)]
    either = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return UserError(f"{called} must be {rule or either}, but got {value!r}.")

"""The line of a search space's source where a range ends, and the same line with another end.

A space is parsed and never run: its code may need what only the searching process had. What the source does not show,
as a name or an end that is computed, has no line. What must never live here: which range is to be changed.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

_SUGGEST = ("suggest_float", "suggest_int")
_ENDS = {"low": 1, "high": 2}  # The place among the arguments.
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}


@dataclass(frozen=True)
class Line:
    """A line of a space in which a range ends.

    Attributes:
        number: Of the line, from 1.
        text: The line, without the blanks around it.
        changed: The same with the other end.
    """

    number: int
    text: str
    changed: str


def line_of(source: str, parameter: str, end: str, value: float, other: float, *, whole: bool = False) -> Line | None:
    """Returns the line of a space's source that ends the range of a parameter; None where the source does not tell.

    That is the line of the number: in the call of `suggest_float` or `suggest_int`, or where the module gives the
    number a name that the call has.

    Args:
        source: The text of the module.
        parameter: The name that the call has; `f"lr_{optimizer}"` stands for each name that it may become.
        end: "low" or "high".
        value: The number there: with another one the space was changed, or the call is not the one.
        other: The number that is wanted.
        whole: Both are integers.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    given = [each for each in (_end(call, end) for call in _calls(tree, parameter)) if each is not None]
    numbers = [_named(tree, each) if isinstance(each, ast.Name) else each for each in given]
    fitting = [each for each in numbers if each is not None and _is(each, value)]
    if len(given) != 1 or len(fitting) != 1:
        return None
    [number] = fitting
    lines = re.split(r"\r\n|\r|\n", source)  # What Python takes for the end of a line; others are characters of it.
    if number.end_lineno != number.lineno or number.end_col_offset is None:
        return None
    line = lines[number.lineno - 1].encode()  # Columns are counted in bytes.
    changed = line[: number.col_offset] + written(other, whole=whole).encode() + line[number.end_col_offset :]
    return Line(number.lineno, line.decode().strip(), changed.decode().strip())


def written(value: float, *, whole: bool = False) -> str:
    """Returns a number as a person writes it in Python: 1e-5, 0.25, 4.0; 4 where it is an integer."""
    if whole:
        return str(round(value))
    text = re.sub(r"e([+-])0*(?=\d)", lambda found: "e" + found[1].replace("+", ""), f"{value:.6g}")
    return text if "." in text or "e" in text else f"{text}.0"


def _calls(tree: ast.AST, parameter: str) -> list[ast.Call]:
    """Returns the calls that suggest a number of this name: those with the name itself, or else those that may have."""
    exact, possible = [], []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SUGGEST):
            continue
        name = _argument(node, "name", 0)
        if isinstance(name, ast.Constant) and name.value == parameter:
            exact.append(node)
        elif isinstance(name, ast.JoinedStr) and re.fullmatch(_pattern(name), parameter):
            possible.append(node)
    return exact or possible


def _pattern(name: ast.JoinedStr) -> str:
    """Returns the regular expression of the texts that an f-string may become."""
    parts = (re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in name.values)
    return "".join(parts)


def _argument(call: ast.Call, keyword: str, place: int) -> ast.expr | None:
    named = (each.value for each in call.keywords if each.arg == keyword)
    return next(named, call.args[place] if len(call.args) > place else None)


def _end(call: ast.Call, end: str) -> ast.expr | None:
    return _argument(call, end, _ENDS[end])


def _named(tree: ast.Module, name: ast.Name) -> ast.expr | None:
    """Returns what a module assigns to a name, if it does so once and on its top level, and nothing else does."""
    stored = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name.id]
    if sum(isinstance(node.ctx, ast.Store) for node in stored) != 1:
        return None
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if isinstance(statement, ast.Assign | ast.AnnAssign) and any(target in stored for target in targets):
            return statement.value
    return None


def _is(node: ast.expr, value: float) -> bool:
    found = _number(node)
    return found is not None and math.isclose(found, value, rel_tol=1e-9)


def _number(node: ast.expr) -> float | None:
    """Returns the number that an expression of numbers stands for, e.g. 10**-4; None for any other expression."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand)
            return None if inner is None else -inner
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            first, second = _number(left), _number(right)
            try:
                return None if first is None or second is None else _OPERATORS[type(op)](first, second)
            except (ArithmeticError, ValueError):
                return None
    return None

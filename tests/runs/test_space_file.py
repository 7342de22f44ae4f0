"""`tuning.runs.space_file`: the line that ends a range is found in each way to write it, and no other line is."""

import pytest

from tuning.base import files
from tuning.runs import space_file

HEAD = "def space(trial):\n    "


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ('lr = trial.suggest_float("lr", 1e-4, 5e-2, log=True)', 'lr = trial.suggest_float("lr", 1e-4, 0.2, log=True)'),
        ('return {"learning_rate": trial.suggest_float("lr", 1e-4, high=0.05)}', "high=0.2)}"),
        ("x = trial.suggest_float(name='lr', low=1e-4, high=5 * 10**-2)  # ü", "high=0.2)  # ü"),
        ('x = ["ü", trial.suggest_float("lr", 1e-4, 0.05)]', 'x = ["ü", trial.suggest_float("lr", 1e-4, 0.2)]'),
        ('x = trial.suggest_float(f"l{r}", 1e-4, 0.05)', 'x = trial.suggest_float(f"l{r}", 1e-4, 0.2)'),
    ],
)
def test_the_line_of_an_end_and_the_same_with_another_end(line: str, changed: str) -> None:
    found = space_file.line_of(HEAD + line, "lr", "high", 0.05, 0.2)
    assert found is not None and (found.number, found.text) == (2, line)
    assert found.changed.endswith(changed) and compile(HEAD + found.changed, "space", "exec")


@pytest.mark.parametrize("character", ["\f", "\u2028", "\x1c", "\x85"])
def test_a_character_that_ends_no_line_of_python_ends_none(character: str) -> None:
    source = (
        f"# {character}\r\n#\r{character if character == chr(12) else ''}{HEAD}" + 'x = trial.suggest_int("w", 8, 64)'
    )
    assert space_file.line_of(source, "w", "low", 8, 4, whole=True) == space_file.Line(
        4, 'x = trial.suggest_int("w", 8, 64)', 'x = trial.suggest_int("w", 4, 64)'
    )


def test_each_end_has_its_line_where_a_call_has_several() -> None:
    source = HEAD + 'x = trial.suggest_int(\n        "width",\n        8,\n        64,  # most\n    )'
    low, high = (
        space_file.line_of(source, "width", end, value, other, whole=True)
        for end, value, other in [("low", 8.0, 4.0), ("high", 64.0, 96.0)]
    )
    assert low == space_file.Line(4, "8,", "4,")
    assert high == space_file.Line(5, "64,  # most", "96,  # most")


def test_a_number_with_a_name_is_changed_where_it_gets_the_name() -> None:
    call = 'def space(trial):\n    return {"learning_rate": trial.suggest_float("lr", 1e-4, HIGH)}'
    assert space_file.line_of(f"HIGH = -1\n{call}", "lr", "high", 0.05, 0.2) is None
    for given, changed in [("HIGH = 0.05", "HIGH = 0.2"), ("HIGH: float = 0.05", "HIGH: float = 0.2")]:
        assert space_file.line_of(f"{given}\n{call}", "lr", "high", 0.05, 0.2) == space_file.Line(1, given, changed)
    twice = f"HIGH = 0.05\nif 1:\n    HIGH = 0.05\n{call}"
    assert space_file.line_of(twice, "lr", "high", 0.05, 0.2) is None


@pytest.mark.parametrize(
    "line",
    [
        'x = trial.suggest_float("other", 1e-4, 0.05)',
        'x = trial.suggest_float("lr", 1e-4, 0.06)',  # It was changed since.
        'x = trial.suggest_float("lr", 1e-4, 0.05 if deep else 0.1)',
        'x = trial.suggest_float("lr", 1e-4, limit())',
        'x = trial.suggest_float("lr", 1e-4, 2 / 0)',
        'x = trial.suggest_float("lr", 1e-4, True)',
        'x = trial.suggest_float("lr", 1e-4, 0.05); y = trial.suggest_float("lr", 1e-3, 0.05)',
        'x = trial.suggest_float("lr", 1e-4, 0.05',  # No Python.
        'x = trial.suggest_float("lr")',
        'x = suggest_float("lr", 1e-4, 0.05)',
        'x = trial.suggest_categorical("lr", [1e-4, 0.05])',
        "x = trial.suggest_float(NAME, 1e-4, 0.05)",
    ],
)
def test_a_source_that_does_not_tell_has_no_line(line: str) -> None:
    assert space_file.line_of(HEAD + line, "lr", "high", 0.05, 0.2) is None


def test_a_name_is_found_before_one_that_is_put_together() -> None:
    source = HEAD + 'x = trial.suggest_float(f"lr_{x}", 0.1, 0.5)\n    y = trial.suggest_float("lr_sgd", 0.1, 0.5)'
    assert (found := space_file.line_of(source, "lr_sgd", "high", 0.5, 2.0)) is not None and found.number == 3
    assert (found := space_file.line_of(source, "lr_adamw", "high", 0.5, 2.0)) is not None and found.number == 2
    assert space_file.line_of(source, "momentum", "high", 0.5, 2.0) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-5"), (2.5e-7, "2.5e-7"), (0.25, "0.25"), (4.0, "4.0"), (1e10, "1e10"), (0.0001, "0.0001")],
)
def test_numbers_are_written_as_people_do(value: float, text: str) -> None:
    assert space_file.written(value) == text and float(text) == value
    assert space_file.written(4.0, whole=True) == "4"


@pytest.mark.parametrize("name", files.space_names())
def test_the_lines_of_the_spaces_of_the_project_are_found(name: str) -> None:
    """Every number that they suggest, at both ends."""
    import ast

    source = (files.SPACES / f"{name}.py").read_text(encoding="utf-8")
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("suggest_float", "suggest_int")
    ]
    assert calls
    for call in calls:
        parameter, low, high = (ast.literal_eval(argument) for argument in call.args)
        for end, value in (("low", low), ("high", high)):
            found = space_file.line_of(source, parameter, end, float(value), 77.0, whole=True)
            assert found is not None and found.number == call.lineno and "77" in found.changed, parameter

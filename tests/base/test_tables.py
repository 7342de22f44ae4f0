"""Tables in terminals of any width: numbers stay whole, columns give way and are named, and nothing needs UTF-8."""

import io
import re

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from tuning.base import tables
from tuning.base.tables import Column, encodable, fitting, show

# As the final table of a default search.
BEST = pd.DataFrame(
    {
        "trial": pd.Series([17, 19, 11, 104], dtype="int64"),
        "valid_accuracy": [0.9408, 0.9344, 0.9332, 0.9],
        "epochs": pd.Series(["6", "6", "6", "3 (stopped)"], dtype="str"),
        "minutes": [5.5, 5.0, 5.5, 123.4],
        "config/architecture": pd.Series(["resnet14", "resnet20", "resnet8", "resnet18"], dtype="str"),
        "config/optimizer": pd.Series(["adamw", "sgd", "adamw", "adamw"], dtype="str"),
        "config/learning_rate": [0.0164, 0.02, 0.0157, 1.05e-4],
        "config/weight_decay": [1.69e-06, 1.3e-06, 0.000926, 0.00123],
        "config/batch_size": pd.Series([64, 128, 64, None], dtype="Int64"),
        "config/label_smoothing": [0.0759, 0.0924, 0.0414, 0.05],
        "config/crop_padding": pd.Series([0, 0, 1, 2], dtype="Int64"),
        "config/erase": [0.0356, 0.038, 0.0654, 0.1],
    }
)
# As that of `final`.
FINAL = pd.DataFrame(
    {
        "role": pd.Series(["candidate", "default"], dtype="str"),
        "rank": pd.Series([1, None], dtype="Int64"),
        "mean_accuracy": [0.9409, 0.8708],
        "behind": pd.Series(["+0.08 (-0.21 to +0.37)", "+7.08 (+6.57 to +7.59)"], dtype="str"),
        "note": pd.Series(
            ["cannot be told from the winner by these seeds", "dropped after its first seed"], dtype="str"
        ),
    }
)


def printed(
    frame: pd.DataFrame,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    encoding: str = "utf-8",
    least: tuple[str, ...] = (),
) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=True, color_system=None, markup=False)
    monkeypatch.setattr("rich.console.Console", lambda **given: console)
    tables.print_frame(frame, "Best trials of 2026-11-26-fashion-mnist-1 …", least=least)
    file.seek(0)
    return file.read().splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 130, 200])
@pytest.mark.parametrize("frame", [BEST, FINAL], ids=["search", "final"])
def test_no_number_is_cut_and_what_is_left_out_is_named(
    frame: pd.DataFrame, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    title, *lines = printed(frame, width, monkeypatch)
    assert title == "Best trials of 2026-11-26-fashion-mnist-1 …"
    text = "\n".join(lines)
    left = re.search(r"A wider terminal shows more columns: (.*)\.$", " ".join(text.split()))
    names = left[1].split(", ") if left else []
    assert max(map(cell_len, lines)) <= width
    for name, column in frame.items():
        heading = str(name).removeprefix("config/").replace("_", " ")
        if heading not in names and name != "note":
            for value in column:
                assert re.search(rf"(?<!\S){re.escape(tables._cell(value, str(name)))}(?!\S)", text), (name, value)
    assert len(names) < len(frame.columns)
    assert bool(names) == (width < (120 if frame is BEST else 80))


def test_a_row_is_a_line_where_it_has_no_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (40, 60, 80, 100, 130):
        rows = [line for line in printed(BEST, width, monkeypatch) if re.match(r"\s+(17|19|11|104)\s", line)]
        assert len(rows) == 4


def test_the_least_important_columns_give_way_first_and_then_the_last() -> None:
    columns = {name: Column(name, ["1234567890"]) for name in "abcd"}
    assert [fitting(columns, width) for width in (99, 40, 30, 20, 5)] == [
        ["a", "b", "c", "d"],
        ["a", "b", "c"],
        ["a", "b"],
        ["a"],
        ["a"],
    ]
    assert [fitting(columns, width, ["b", "a"]) for width in (40, 30, 20)] == [["a", "c", "d"], ["c", "d"], ["c"]]


def test_a_long_text_gives_way_before_a_column_does(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(FINAL, 80, monkeypatch)
    assert not any("A wider terminal" in line for line in lines)
    assert any("seeds" in line and "candidate" not in line for line in lines)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_utf_8_gets_the_table_too(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = BEST.assign(note=pd.Series(["±", "…", "網", "ü"], dtype="str"))
    text = "\n".join(printed(frame, 200, monkeypatch, encoding=encoding))
    assert "94.08%" in text and "1.69e-06" in text
    assert text.isascii() or encoding != "ascii"


def test_encodable_writes_what_it_can() -> None:
    assert encodable("93.61% ± 0.10% … · –", "ascii") == "93.61% +- 0.10% ... . -"  # noqa: RUF001
    assert encodable("網ü", "ascii") == "??"
    assert encodable("93.61% ± …", "utf-8") == "93.61% ± …"


def test_an_empty_frame_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_frame(BEST.head(0), "Runs below results/")
    assert capsys.readouterr().out == "Runs below results/: nothing\n"


def test_markup_in_a_cell_is_text() -> None:
    console = Console(file=io.StringIO(), width=60)
    show("[bold]title[/]", {"a": Column("[red]a", ["[link=x]y"], text=True)}, console)
    assert all(part in console.file.getvalue() for part in ("[bold]title[/]", "[red]a", "[link=x]y"))


def test_a_time_says_where_it_is_that(monkeypatch: pytest.MonkeyPatch) -> None:
    times = pd.to_datetime(pd.Series(["2026-11-24T10:00:00+00:00"]), utc=True)
    assert any("started (UTC)" in line for line in printed(pd.DataFrame({"started": times}), 80, monkeypatch))


def test_a_number_just_below_1_is_not_shown_as_1(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(pd.DataFrame({"config/ema_decay": [0.9999], "config/size": [1024.0]}), 80, monkeypatch)
    assert "0.9999" in "".join(lines) and "1024" in "".join(lines)

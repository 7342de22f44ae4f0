import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from tuning.base import files
from tuning.runs import run_folder, schema
from tuning.trials.progress import _ENDED, Progress, _about, sparkline
from tuning.trials.remaining import Timed, seconds_left

SIZES = [(80, 24), (40, 24), (200, 60), (76, 12), (40, 6), (30, 3)]
CONTROL_CODES = re.compile("[\x00-\x09\x0b-\x1f\x7f]")


class Clock:
    """Seconds that pass when a test says so."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tuning.trials.progress.time", clock)
    return clock


def make_console(width: int = 80, height: int = 24, terminal: bool = True) -> Console:
    environ = {"TERM": "xterm-256color"}
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=terminal, _environ=environ)


def printed(console: Console) -> str:
    return console.file.getvalue()


def make_row(trial: int, state: str = "running", epochs: int = 0, accuracy: float | None = None, **more: Any) -> dict:
    config = {"architecture": "resnet8", "width": 16, "pretrained": False, "optimizer": "sgd", "learning_rate": 0.1234}
    config |= {"batch_size": 128, "schedule": "cosine", "epochs": 8}
    row = {f"config/{name}": value for name, value in config.items()}
    return row | {"trial": trial, "state": state, "epochs": epochs, "valid_accuracy": accuracy} | more


def make_result(epoch: int, accuracy: float | None = 0.8) -> dict[str, Any]:
    return {"epoch": epoch, "valid_accuracy": accuracy, "epoch_seconds": 50.0, "images_per_second": 1100.0}


def view(progress: Progress, width: int = 80, height: int = 24) -> list[str]:
    """Returns the lines of the live view as plain text, without blanks at their ends."""
    progress._console = console = make_console(width, height, terminal=False)
    console.print(progress.view(), end="")
    return [line.rstrip() for line in printed(console).splitlines()]


def nothing(progress: Progress) -> None:
    """A search whose trials have not begun."""


def first_trials(progress: Progress) -> None:
    for trial in range(2):
        progress.started(make_row(trial))


def accuracies_missing(progress: Progress) -> None:
    for trial in range(3):
        progress.started(make_row(trial))
        progress.epoch(make_row(trial, epochs=1), make_result(1, None))
    progress.ended(make_row(0, "complete", 8))
    progress.ended(make_row(1, "pruned", 2, error=None))


def long_texts(progress: Progress) -> None:
    for trial in range(5):
        progress.started(make_row(trial))
        error = "RuntimeError: 画像が大きすぎます " * 30 + "\nsecond line"
        progress.ended(make_row(trial, "failed", error=error, **{"config/architecture": "網" * 30}))


def many(progress: Progress) -> None:
    for trial in range(464):
        progress.started(make_row(trial))
        progress.epoch(make_row(trial, epochs=1, accuracy=0.8), make_result(1, 0.5 + trial / 2000))
    for trial in range(400):
        state = _ENDED[trial % 3]
        progress.ended(make_row(trial, state, 8, 0.5 + trial / 1000, error="boom" if state == "failed" else None))


SEARCHES = [(nothing, 20), (first_trials, 20), (accuracies_missing, 20), (long_texts, 20), (many, 1000), (many, 9)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(("search", "n_samples"), SEARCHES)
def test_view_fits_the_terminal(search: Callable[..., None], n_samples: int, width: int, height: int) -> None:
    progress = Progress(n_samples, n_done=3, console=make_console(width, height), quiet=True)
    search(progress)
    lines = view(progress, width, height)
    assert 1 <= len(lines) < height
    assert max(map(cell_len, lines)) <= width


def test_view_of_a_search() -> None:
    progress = Progress(20, console=make_console(), quiet=True)
    for trial in range(3):
        progress.started(make_row(trial))
    for epoch, accuracy in enumerate([0.78, 0.84, 0.9], start=1):
        progress.epoch(make_row(0, epochs=epoch, accuracy=accuracy), make_result(epoch, accuracy))
    progress.ended(make_row(0, "pruned", 3, 0.9))
    more = {"config/architecture": "resnet18", "config/pretrained": True, "config/optimizer": "adamw"}
    progress.epoch(make_row(1, epochs=1, accuracy=0.88, **more), make_result(1, 0.88))
    progress.ended(make_row(2, "failed", error="NonFiniteLossError: Training loss must be finite\nTraceback"))
    assert view(progress) == [
        "",
        "2/20 trials" + "elapsed 0:00:00   left –".rjust(69),  # noqa: RUF001
        "━" * 12 + "─" * 68,
        "1 pruned   1 failed   1 running   17 to come",
        "",
        "running  network       epoch   valid  curve     optimizer    lr  schedule",
        "      1  resnet18-pre    1/8  88.00%  ▇·······  adamw      0.12  cosine",
        "",
        "best",
        "      0  resnet8-16      3/8  90.00%  ▂▅█·····  sgd        0.12  cosine",
        "",
        "failed",
        "      2  resnet8-16  NonFiniteLossError: Training loss must be finite",
    ]


def test_view_shows_the_running_trials_that_fit_and_counts_the_others() -> None:
    progress = Progress(1000, console=make_console(), quiet=True)
    many(progress)
    lines = view(progress)
    assert lines[1].startswith("400/1000 trials")
    assert lines[3] == "134 complete   133 pruned   133 failed   64 running   536 to come"
    first, last = (
        lines.index(next(line for line in lines if line.startswith("running"))),
        lines.index("         +59 more"),
    )
    assert [line.split()[0] for line in lines[first + 1 : last]] == ["400", "401", "402", "403", "404"]


def test_best_are_ranked_as_in_the_results() -> None:
    progress = Progress(20, console=make_console(), quiet=True)
    states = ["pruned", "complete", "failed", "complete", "complete", "pruned", "complete", "complete"]
    accuracies = [0.9, 0.9, 0.99, 0.8, None, 0.92, 0.1, 0.85]
    for trial, (state, accuracy) in enumerate(zip(states, accuracies, strict=True)):
        progress.started(make_row(trial))
        progress.ended(make_row(trial, state, 8, accuracy))
    lines = view(progress)
    best = lines[next(i for i, line in enumerate(lines) if line.startswith("best")) + 1 :][:5]
    assert [line.split()[0] for line in best] == ["5", "1", "0", "7", "3"]  # Complete before pruned


def test_view_of_what_is_over_says_nothing_of_time_left(clock: Clock) -> None:
    progress = Progress(1, console=make_console(), quiet=True)
    progress.started(make_row(0))
    clock.seconds = 3661
    progress.ended(make_row(0, "complete", 8, 0.9))
    assert view(progress)[1] == "1/1 trials" + "elapsed 1:01:01".rjust(70)


def test_columns_follow_the_width() -> None:
    progress = Progress(20, console=make_console(), quiet=True)
    first_trials(progress)
    names = {width: view(progress, width)[5].split() for width in (40, 80, 120)}
    assert names[40] == ["running", "network", "epoch", "valid", "curve"]
    assert names[80] == [*names[40], "optimizer", "lr", "schedule"]
    assert names[120] == [*names[80], "batch"]


def test_seconds_left(clock: Clock) -> None:
    progress = Progress(10, console=make_console(), quiet=True)
    progress.started(make_row(0))
    progress.started(make_row(1))
    clock.seconds = 60
    assert progress.seconds_left() is None
    assert view(progress)[1].endswith("left –")  # noqa: RUF001
    progress.epoch(make_row(0, epochs=1, accuracy=0.8), make_result(1))
    progress.ended(make_row(0, "pruned", 1, 0.8))
    progress.started(make_row(2))
    clock.seconds = 120
    progress.epoch(make_row(1, epochs=2, accuracy=0.9), make_result(2))
    clock.seconds = 130
    begun = Timed(0, 8, None, running=True, since=70.0)
    known = [Timed(2, 8, 60.0, running=True, since=10.0), begun, Timed(1, 8, 60.0)]
    assert progress.seconds_left() == pytest.approx(seconds_left(known, 7, 2))
    assert view(progress)[1].endswith("elapsed 0:02:10   left ~13 min")


def test_seconds_left_does_not_count_the_time_in_which_trials_have_paused(clock: Clock) -> None:
    progress = Progress(6, console=make_console(), quiet=True)
    for trial in range(3):
        progress.started(make_row(trial))
        clock.seconds += 10
        progress.epoch(make_row(trial, epochs=1), make_result(1))
        progress.paused(make_row(trial, epochs=1))
    paused = Timed(1, 8, 10.0)
    assert progress.seconds_left() == seconds_left([paused] * 3, 3, 1)  # Those that have paused may go on or not.
    clock.seconds = 100
    progress.started(make_row(2, epochs=1))  # It goes on.
    clock.seconds = 170
    progress.epoch(make_row(2, epochs=8), make_result(8))
    progress.ended(make_row(2, "complete", 8, 0.9))
    assert progress.seconds_left() == seconds_left([paused, paused, Timed(8, 8, 10.0)], 3, 1)
    for trial in range(3, 6):
        progress.started(make_row(trial))
        progress.paused(make_row(trial, epochs=1))
    assert progress.seconds_left() == 0
    assert "5 paused" in " ".join(view(progress))


def test_seconds_left_is_at_most_the_budget(clock: Clock) -> None:
    progress = Progress(3, console=make_console(), quiet=True, time_budget=400)
    progress.started(make_row(0))
    clock.seconds = 150
    progress.epoch(make_row(0, epochs=1, accuracy=0.9), make_result(1))
    assert progress.seconds_left() == 250


def test_seconds_left_counts_no_time_of_an_earlier_session(clock: Clock) -> None:
    progress = Progress(6, n_done=2, console=make_console(), quiet=True)
    progress.seed([make_row(0, "complete", 8, 0.9), make_row(1, "failed", error="boom"), make_row(2, "running", 4)])
    assert progress.seconds_left() is None
    progress.started(make_row(2, epochs=4))
    clock.seconds = 40
    progress.epoch(make_row(2, epochs=6), make_result(6))
    known = [Timed(8, 8, None), Timed(0, 8, None), Timed(6, 8, 20.0, running=True)]
    assert progress.seconds_left() == seconds_left(known, 3, 1)


ABOUT = {0: "<1 min", 59: "<1 min", 60: "~1 min", 730: "~12 min", 3560: "~59 min", 3600: "~1.0 h", 5000: "~1.4 h"}
ABOUT |= {35900: "~10 h", 400000: "~111 h", None: "–"}  # noqa: RUF001


@pytest.mark.parametrize(("seconds", "text"), ABOUT.items())
def test_durations_are_about_right(seconds: float | None, text: str) -> None:
    assert _about(seconds) == text


def test_sparkline() -> None:
    assert sparkline([0.78, 0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.92], 8, 8, 0.92) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.1, None, 0.92], 5, 8, 0.92) == "▁·█··"
    assert sparkline([0.1, 0.92, 0.1, 0.9, 0.1, 0.88], 12, 6, 0.92) == "█▇▆···"
    assert sparkline([], 3, 8, 1.0) == "···"
    assert sparkline([], 0, 8, 1.0) == ""


def run_small_search(progress: Progress, clock: Clock) -> None:
    with progress:
        progress.note("Run [results]: 2 samples :warning:")
        progress.started(make_row(0))
        progress.started(make_row(1))
        clock.seconds = 61.9
        progress.epoch(make_row(0, epochs=1, accuracy=0.8), make_result(1))
        progress.ended(make_row(0, "pruned", 1, 0.8))
        clock.seconds = 3700
        progress.note("note 2")
        error = "\x1b[36mray::ImplicitFunc.train()\x1b[39m [bold]out of memory[/bold] :boom: " + "x" * 200
        progress.ended(make_row(1, "failed", error=f"\n{error}\nsecond line"))


LINES = [
    "Run [results]: 2 samples :warning:",
    "0:00:00  trial   0  started resnet8-16 sgd 0.12 128 cosine",
    "0:00:00  trial   1  started resnet8-16 sgd 0.12 128 cosine",
    "0:01:01  trial   0  epoch 1  valid 80.00%  50.0 s, 1,100 images/s",
    "0:01:01  trial   0  pruned after 1 epoch  valid 80.00%  (1/2 done, best 80.00%)",
    "note 2",
    "1:01:40  trial   1  failed: ray::ImplicitFunc.train() [bold]out of memory[/bold] :boom: " + "x" * 200,
]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [20, 80])
def test_without_a_terminal_an_event_is_a_line(clock: Clock, width: int, verbose: bool) -> None:
    console = make_console(width, terminal=False)
    run_small_search(Progress(2, verbose=verbose, console=console), clock)
    assert printed(console).splitlines() == LINES
    assert not CONTROL_CODES.search(printed(console))


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"])
def test_stdout_that_is_no_terminal_gets_no_control_codes(
    clock: Clock, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "1")
    run_small_search(Progress(2), clock)
    assert capsys.readouterr().out.splitlines() == LINES


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_prints_notes_only(clock: Clock, terminal: bool) -> None:
    console = make_console(terminal=terminal)
    run_small_search(Progress(2, quiet=True, verbose=True, console=console), clock)
    assert printed(console).splitlines() == ["Run [results]: 2 samples :warning:", "note 2"]


@pytest.mark.parametrize("verbose", [False, True])
def test_terminal_has_a_live_view_below_notes_and_with_verbose_below_events(clock: Clock, verbose: bool) -> None:
    console = make_console(300)
    run_small_search(Progress(2, verbose=verbose, console=console), clock)
    output = printed(console)
    before, _, live = output.partition("\x1b[?25l")  # The cursor is hidden
    live, _, after = live.partition("\x1b[?25h")  # and comes back.
    assert LINES[0] in before and "0/2 trials" not in before
    assert live and not after.strip()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", live)
    assert "2/2 trials" in text[text.rindex("note 2") :]  # The last state stays, below the last note.
    assert "failed \n      1  resnet8-16  ray::ImplicitFunc.train() [bold]out of memory[/bold] :boom: xxx" in text
    assert [line in before + live for line in LINES[1:5]] == [verbose] * 4


def test_terminal_that_cannot_do_it_gets_lines(clock: Clock) -> None:
    dumb = Console(file=io.StringIO(), width=400, force_terminal=True, _environ={"TERM": "dumb"})
    run_small_search(Progress(2, console=dumb), clock)
    assert printed(dumb).splitlines() == LINES
    latin = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="latin-1"), width=400, force_terminal=True)
    progress = Progress(2, console=latin)
    progress.ended(make_row(0, "failed", error="Größe …"))
    latin.file.seek(0)
    assert latin.file.read() == "0:00:00  trial   0  failed: Größe ...\n"


def test_seed_takes_in_the_frames_of_a_run(tmp_path: Path) -> None:
    rows = [make_row(0, "complete", 2, 0.91), make_row(1, "failed", error="boom"), make_row(2, "running", 1, 0.8)]
    files.write_rows(tmp_path / "trials.csv", schema.TRIAL_COLUMNS, rows)
    for trial, epoch, accuracy in [(0, 1, 0.85), (2, 1, 0.81), (0, 2, 0.91)]:
        row = dict.fromkeys(schema.EPOCH_COLUMNS, 0.5) | make_result(epoch, accuracy) | {"trial": trial}
        files.append_row(tmp_path / "epochs.csv", schema.EPOCH_COLUMNS, row)
    run = run_folder.Run(tmp_path)
    progress = Progress(20, n_done=3, console=make_console(), quiet=True)  # One more than the frames know.
    progress.seed(run.trials.to_dict("records"), run.epochs.to_dict("records"))
    lines = view(progress)
    assert lines[1].startswith("3/20 trials")
    assert lines[3] == "1 earlier   1 complete   1 failed   17 to come"
    assert [line.split() for line in lines[6:7]] == [
        ["0", "resnet8-16", "2/8", "91.00%", "▅█······", "sgd", "0.12", "cosine"]
    ]
    assert lines[-1] == "      1  resnet8-16  boom"
    progress.started(make_row(2, epochs=1, accuracy=0.8))  # What was interrupted goes on, with its curve.
    assert view(progress)[3] == "1 earlier   1 complete   1 failed   1 running   16 to come"
    assert view(progress)[6].split()[:5] == ["2", "resnet8-16", "1/8", "80.00%", "▃·······"]


def test_a_line_says_that_a_trial_goes_on() -> None:
    console = make_console(300, terminal=False)
    progress = Progress(2, console=console)
    progress.seed([make_row(0, "running", 1, 0.8)], [make_result(1, 0.8) | {"trial": 0}])
    progress.started(make_row(0, epochs=1, accuracy=0.8))
    assert "trial   0  goes on after epoch 1 resnet8-16" in printed(console)


def test_trial_that_is_tried_again_keeps_its_curve() -> None:
    progress = Progress(2, console=make_console(), quiet=True)
    progress.started(make_row(0))
    progress.epoch(make_row(0, epochs=1, accuracy=0.9), make_result(1, 0.9))
    progress.started(make_row(0, epochs=1, accuracy=0.9, attempt=2))
    assert "1/8  90.00%  █·······" in view(progress)[6]
    assert view(progress)[3] == "1 running   1 to come"


def test_a_password_in_a_note_or_an_error_is_masked() -> None:
    console = make_console(width=120, terminal=False)
    progress = Progress(2, console=console)
    progress.note("No answer from http://bob:hunter2@host")
    progress.ended(make_row(0, "failed", error="OSError: http://bob:hunter2@host"))
    assert printed(console).count("http://***@host") == 2 and "hunter2" not in printed(console)
    assert "hunter2" not in "".join(view(progress, 120))


def test_a_reader_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    code = """
import os, sys
from tuning.trials.progress import Progress
progress = Progress(3)
progress.note("one")
os.read(read, 1)
os.close(read)
for _ in range(20):
    progress.note("more " * 50)
print("the end", file=sys.stderr)
"""
    code = code.replace("import os, sys", "import os, sys\nread, write = os.pipe()\nos.dup2(write, 1)\nos.close(write)")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "the end\n")

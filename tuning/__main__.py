"""`tuning`, or `python -m tuning`, lists the commands; `tuning NAME` runs one of them.

tuning --install-completion      has the shell complete commands and options
"""

import importlib
import os
import runpy
import sys
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

COMMANDS = ("search", "final", "report", "results", "predict", "explore")


def summary(command: str) -> str:
    """Returns the first line of what a command says it does, without importing it."""
    spec = find_spec(f"tuning.{command}")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    _, _, main = source.partition("\ndef main(")
    return main.partition('"""')[2].partition('"""')[0].split("\n")[0]


def complete() -> None:
    """Answers the shell that completes a line, or shows or installs what it needs for that."""
    import typer

    app = typer.Typer()
    for command in COMMANDS:
        app.command(command)(importlib.import_module(f"tuning.{command}").main)
    app(prog_name="tuning")


def main() -> None:
    """Runs the command that is named first, or prints each with what it does."""
    if "_TUNING_COMPLETE" in os.environ or {"--install-completion", "--show-completion"} & set(sys.argv[1:2]):
        complete()
        return
    if len(sys.argv) > 1 and sys.argv[1] not in ("--help", "-h"):
        name = sys.argv.pop(1)
        if name not in COMMANDS:
            close = get_close_matches(name, COMMANDS, 1)
            guess = f" Did you mean {close[0]!r}?" if close else ""
            print(f"error: The command must be one of {', '.join(COMMANDS)}, but got {name!r}.{guess}", file=sys.stderr)
            sys.exit(2)
        runpy.run_module(f"tuning.{name}", run_name="__main__", alter_sys=True)
        return
    print("Commands (each has --help):\n")
    for command in COMMANDS:
        print(f"  python -m tuning.{command:<9} {summary(command)}")


if __name__ == "__main__":
    main()

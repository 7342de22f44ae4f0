"""`python -m tuning` lists the commands."""

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


def main() -> None:
    """Prints each command with what it does."""
    print("Commands (each has --help):\n")
    for command in COMMANDS:
        print(f"  python -m tuning.{command:<9} {summary(command)}")


if __name__ == "__main__":
    main()

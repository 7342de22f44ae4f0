"""What a user did wrong, said clearly: `UserError`, closest names, and the door that every command leaves through.

Bugs keep their tracebacks, without passwords; only a `UserError` is turned into `error: …` and exit code 2.
"""

import codecs
import difflib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tuning.base.masking import mask_tracebacks, masked

DISK_FULL = "No space left on the disk"
Made = TypeVar("Made")
_PLAIN = {"\u00b1": "+-", "\u2192": "->", "\u2013": "-", "\u2014": "-", "\u2026": "...", "\u00d7": "x", "\u00b2": "^2"}


class UserError(Exception):
    """A mistake that the user can mend; its text names the value and the next step."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a name that is in no registry, with the closest match first.

    Args:
        kind: What the name stands for, e.g. "search space".
        name: The name that was given.
        known: The names that would have been right.
    """
    known = sorted(known)
    if not known:
        return UserError(f"{kind} must be one that there is, but got {name!r}, and there is none.")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(f"{kind} must be one of {', '.join(known)}, but got {name!r}.{hint}")


def counted(n: int, noun: str) -> str:
    """Returns a count with its noun: "1 trial", "1,000 trials"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def disk_full(path: Path | str, error: OSError) -> UserError | None:
    """Returns the error for a full disk that names what was being written, or None if `error` is something else."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return UserError(f"{DISK_FULL} while writing {path}. Free some space, then run the command again.")


def each_alone(makers: Mapping[str, Callable[[], Made]], tell: Callable[[str], None]) -> dict[str, Made]:
    """Returns what each of the makers returns, by name; one that fails is named and left out.

    Raises:
        UserError: The disk is full: no other would fare better.
    """
    made = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except Exception as error:  # A library's many ways to fail on what it did not expect.
            if isinstance(error, UserError) and DISK_FULL in str(error):
                raise
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            tell(f"{name} cannot be made: {said}")
    return made


def survive_encoding() -> None:
    """Has stdout and stderr write what their encoding lacks in plain letters, instead of failing on it.

    UTF-8 lacks the bytes of a file's name that is none.
    """
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        utf = isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().startswith("utf")
        if isinstance(stream, io.TextIOWrapper) and (not utf or stream.errors == "strict"):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def run_command(main: Callable[..., None]) -> None:
    """Runs `main` as a typer command; a `UserError` prints `error: …` to stderr and exits with code 2.

    A signal that asks it to end prints a sentence to stderr and exits with code 130.
    """
    import typer  # Here, so that training needs nothing but torch, numpy and pydantic.

    from tuning.base import doors, interrupts, temporary

    survive_encoding()
    has_begun = False

    @functools.wraps(main)
    def command(*args: Any, **kwargs: Any) -> None:
        nonlocal has_begun
        try:
            has_begun = True
            mask_tracebacks()  # Here, because typer replaces what was set before.
            main(*args, **kwargs)
        except KeyboardInterrupt as interrupt:  # Here, because typer would say "Aborted!" and exit with 1.
            print(str(interrupt) or "Interrupted. Run the same command again to go on.", file=sys.stderr)
            interrupts.forget()
            raise typer.Exit(interrupts.EXIT_CODE) from None

    signature = doors.worded(main)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    # Whatever the shell says: nothing that a command writes is everybody's to change.
    os.umask(os.umask(0o077) | 0o002)
    temporary.provide_home()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command()(command)
    try:
        with interrupts.raised():
            app()
    except KeyboardInterrupt:  # Before typer has made the command: it builds what `--help` shows in 0.2 s.
        print("Interrupted. Run the same command again to go on.", file=sys.stderr)
        interrupts.forget()
        sys.exit(interrupts.EXIT_CODE)
    except SystemExit as end:
        if end.code == interrupts.EXIT_CODE and not has_begun:  # While typer read the arguments; it says nothing.
            print("Interrupted. Run the same command again to go on.", file=sys.stderr)
        raise
    except UserError as error:
        print(f"error: {masked(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        full = disk_full(error.filename or "a file", error)
        if full is None:
            raise
        print(f"error: {full}", file=sys.stderr)
        sys.exit(2)

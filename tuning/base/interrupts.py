"""Signals that ask a command to end: Ctrl-C, SIGTERM (systemd, Slurm, timeout) and SIGHUP (the terminal closes).

All three are one: the first ends the command in order, another one, a second or more later, ends it at once. Nothing
here knows what the command does.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

EXIT_CODE = 130
# `timeout` and a closing terminal send their signal twice, a moment apart; that is one wish, not two.
SECONDS_OF_ONE_WISH = 1.0
_is_command = False  # Whether this process is a command's, which may end it; else it is a notebook's, or a script's.
_is_due = False  # Whether a signal has raised KeyboardInterrupt, which ends what runs in `raised` unless it gets lost.


def is_command() -> bool:
    """Returns whether this process is a command's, and not a notebook's or a script's."""
    return _is_command


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end; the text says what there is, and how to go on."""


def numbers() -> list[signal.Signals]:
    """Returns the signals that ask a command to end; not SIGHUP where `nohup` has it ignored."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ignored = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in found if not (ignored and number == signal.SIGHUP)]


@contextlib.contextmanager
def caught(act: Callable[[int], None], again: Callable[[int], None] | None = None) -> Iterator[None]:
    """Has the first signal call `act` with its number, and another one a second later end the process at once.

    `again`, where there is one, is called instead of that end. If the process is not a command's (`raised`), another
    one raises KeyboardInterrupt.

    In a thread other than the main one, which gets no signals, it does nothing.

    Raises:
        KeyboardInterrupt: As `check`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    check()
    first: float | None = None

    def handle(number: int, frame: object) -> None:
        nonlocal first
        drop_closed_output()
        if first is None:
            first = time.monotonic()
            act(number)
        elif time.monotonic() - first > SECONDS_OF_ONE_WISH:
            leave() if again is None else again(number)

    old = {number: signal.getsignal(number) for number in numbers()}
    try:
        for number in old:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def raised(*, command: bool = True) -> Iterator[None]:
    """Has a signal raise KeyboardInterrupt, as Ctrl-C does; another one ends the process if it is a command's.

    An exception gets lost in some places: `check` raises it again.
    """
    global _is_command, _is_due

    def interrupt(number: int) -> NoReturn:
        global _is_due
        _is_due = True
        raise KeyboardInterrupt

    def unraisable(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)

    before, hook = (_is_command, _is_due), sys.unraisablehook
    _is_command, _is_due = command, False
    try:
        with caught(interrupt):
            sys.unraisablehook = unraisable
            yield
    finally:
        _is_command, _is_due = before
        sys.unraisablehook = hook


def check() -> None:
    """Raises KeyboardInterrupt if that of a signal got lost in `raised`, so that what was to end still runs.

    Compiled modules drop exceptions while they are imported, numpy's among them, and Python those of destructors and
    of callbacks. It is called before anything that takes long or cannot be taken back, and does nothing while an
    exception is handled.
    """
    if _is_due and sys.exc_info()[1] is None:
        raise KeyboardInterrupt


@contextlib.contextmanager
def resumable(next_step: str) -> Iterator[None]:
    """Has an interrupt of what is done meanwhile say how to go on, e.g. "Go on with: python -m …"."""
    try:
        check()
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. {next_step}") from None


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Has signals wait until the end; processes that are started meanwhile never get SIGTERM and SIGHUP.

    What ends a whole process group or control group would end them first, before the command can end in order. They
    still die of SIGKILL, which is what a parent sends that wants them gone.
    """
    waiting: list[int] = []
    with contextlib.ExitStack() as stack:
        if hasattr(signal, "pthread_sigmask"):  # A child inherits the mask, and keeps it whatever it runs.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        # The mask holds nothing back from this process: its other threads, numpy's among them, take the signal.
        stack.enter_context(caught(waiting.append))
        try:
            yield
        finally:
            stack.close()
            for number in waiting:
                signal.raise_signal(number)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Has signals wait until what is imported meanwhile is there: an exception within C++ code aborts the process."""
    waiting: list[int] = []
    try:
        with caught(waiting.append):
            yield
    finally:
        for number in waiting[:1]:
            signal.raise_signal(number)


def forget() -> None:
    """Has a KeyboardInterrupt that was handled leave no trace in the exit code.

    Where one passed through code that an extension runs, CPython 3.11 ends by SIGINT whatever was caught since, unless
    such code is run again.
    """
    import ctypes

    ctypes.pythonapi.PyRun_SimpleString(b"pass")


@contextlib.contextmanager
def postponed(said: str, next_step: str) -> Iterator[None]:
    """Has every signal wait until the end, which what is done meanwhile reaches in seconds; each writes `said`.

    Not even a second one ends the process: what would be lost cannot be had again. At the end the first one counts, and
    an interrupt says `next_step`. If what is done fails, that error ends the command, and the signals are dropped.
    In a thread other than the main one it does nothing. Processes that are started meanwhile get their signals.
    """
    waiting: list[int] = []

    def wait(number: int) -> None:
        waiting.append(number)
        with contextlib.suppress(OSError):  # Not by print: the signal may have come while something was printed.
            os.write(2, f"{said}\n".encode(errors="replace"))

    with caught(wait, again=wait):
        yield
    with resumable(next_step):
        for number in waiting[:1]:
            signal.raise_signal(number)


def drop_closed_output() -> None:
    """Points stdout and stderr to nowhere if nobody can read them any more, so that printing to them fails nothing."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            watched = select.poll()
            watched.register(descriptor, 0)  # Errors and hang-ups are always told.
            if any(event & (select.POLLHUP | select.POLLERR) for _, event in watched.poll(0)):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def leave() -> NoReturn:
    """Ends the process at once if it is a command's; raises KeyboardInterrupt in any other."""
    if not _is_command:
        raise KeyboardInterrupt("Interrupted again: ended at once.")
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # The live view hides the cursor.
        os.write(2, b"\nInterrupted again: ended at once.\n")
    os._exit(EXIT_CODE)

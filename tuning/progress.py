"""What a person watches while a search runs: one line an event, and a bar over the samples in a terminal."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console


class Progress:
    """Prints what happens to the trials of a search.

    Args:
        n_samples: Trials that the search will run.
        n_done: Those that have ended already.
        quiet: Print nothing but notes.
    """

    def __init__(self, n_samples: int, n_done: int = 0, quiet: bool = False) -> None:
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._n_samples, self._n_done, self._quiet = n_samples, n_done, quiet
        self._best = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        """Begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends."""

    def note(self, text: str) -> None:
        """Prints a line that is no event of a trial."""
        self._console.print(text, markup=False)

    def started(self, row: Mapping[str, Any]) -> None:
        """Shows that a trial began."""
        names = ("architecture", "width", "optimizer", "learning_rate", "batch_size", "schedule")
        values = [f"{row[f'config/{n}']:.3g}" if n == "learning_rate" else str(row[f"config/{n}"]) for n in names]
        self._line(row, "started " + " ".join(values))

    def epoch(self, row: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Shows an epoch of a trial."""
        speed = f"{result['epoch_seconds']:.1f} s, {result['images_per_second']:,.0f} images/s"
        self._line(row, f"epoch {result['epoch']}  valid {result['valid_accuracy']:.2%}  {speed}")

    def ended(self, row: Mapping[str, Any]) -> None:
        """Shows that a trial ended, and the best so far."""
        self._n_done += 1
        if row["state"] == "failed":
            self._line(row, f"failed: {row['error']}")
            return
        self._best = max(self._best, row["valid_accuracy"])
        done = f"{self._n_done}/{self._n_samples} done, best {self._best:.2%}"
        self._line(row, f"{row['state']} after {row['epochs']} epochs  valid {row['valid_accuracy']:.2%}  ({done})")

    def _line(self, row: Mapping[str, Any], text: str) -> None:
        if not self._quiet:
            seconds = time.monotonic() - self._start
            self._console.print(
                f"{seconds // 60:3.0f}:{seconds % 60:02.0f}  trial {row['trial']:>3}  {text}", markup=False
            )

"""`one_thread`: the linear algebra of the search's own process on one thread, while its trials train on all cores.

What must never live here: the threads of a trial, which `training.prepare` sets in the trial's worker.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits BLAS, OpenMP and, where it is imported, torch to one thread; restores their numbers at the end.

    A pool with a thread a core waits at every small product for a core that a trial has: with both of two cores busy, a
    proposal of `curves` after 150 trials took 5 to 11 s, and takes 0.1 s on one thread.

    It also serves as a decorator: `@one_thread()`.
    """
    torch = sys.modules.get("torch")
    n_torch = None if torch is None else torch.get_num_threads()
    with _pools(len(sys.modules)).limit(limits=1):
        if torch is not None:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch is not None:
                torch.set_num_threads(n_torch)


@functools.lru_cache(maxsize=1)
def _pools(n_modules: int) -> ThreadpoolController:
    """Returns the libraries that are loaded; looking for them takes 3 ms, so only after an import is it done again."""
    return ThreadpoolController()

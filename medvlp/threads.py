"""Threads of numerical libraries on a machine that is shared with others.

Guarantee: what a user has set in the environment is left as it is; nothing here changes a result beyond the last bits
that another number of threads may change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4", "KMP_BLOCKTIME": "0"}
"""Read when OpenMP, OpenBLAS or Intel's OpenMP is loaded: a thread that waits for others sleeps. Spinning threads of
several commands on the same cores keep each other from work: ten times the time, and three times the CPU."""
NUMBERS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ALONE_BELOW = 2**24
"""Numbers in a matrix below which a solver's products are quicker by one thread, whatever else the machine does."""


def wait_asleep() -> None:
    """Let waiting threads of this process, and of those that it starts, sleep; call it before numpy is imported."""
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)


@contextmanager
def children_with(threads: int) -> Iterator[None]:
    """Let the processes that are started meanwhile use so many threads; a lower number of the user's is kept."""
    before = {name: os.environ.get(name) for name in (*NUMBERS, *WAITING)}
    for name in NUMBERS:
        given = before[name] or ""
        os.environ[name] = str(min(threads, int(given)) if given.isdigit() and int(given) else threads)
    wait_asleep()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def few_threads(numbers: int) -> Iterator[None]:
    """Run small solvers by one thread of the linear-algebra library; large ones as they are.

    Args:
        numbers: Of the matrix that is worked on.
    """
    if numbers >= ALONE_BELOW:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    """Return what controls the libraries that are loaded, looked up once: that takes milliseconds."""
    import threadpoolctl  # type: ignore[import-untyped]

    return threadpoolctl.ThreadpoolController()

"""Tasks done by processes of one machine.

Guarantee: a failure in one process stops the others after their current task and reaches the caller; processes end when
the one that started them does, also if it was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from medvlp.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def cpu_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(
    function: Callable[[T], R],
    tasks: Sequence[T],
    num_workers: int,
    start_worker: Callable[[], None] | None,
    where: Path,
) -> Iterator[tuple[T, R]]:
    """Yield each task with its result, in the order of completion.

    Args:
        function: Can be pickled by its name.
        tasks: Its arguments.
        num_workers: Processes; with one, or one task, the work is done in this process.
        start_worker: Called once in each new process.
        where: What is worked on, for messages.

    Raises:
        UserError: A process died.
    """
    workers = min(num_workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield task, function(task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (start_worker,)) as pool:
        waiting = {pool.submit(function, task): task for task in tasks}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "A worker process died, perhaps because the memory was full.",
                where,
                "Run the same command again with a smaller num_workers; what is finished is kept.",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(start_worker: Callable[[], None] | None) -> None:
    """Leave interrupts to the parent and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start_worker is not None:
        start_worker()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

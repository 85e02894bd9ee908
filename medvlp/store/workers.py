"""Shards written by several processes.

Guarantee: one process writes one whole shard, so no two ever touch the same file; a failure in one stops the others
after their current shard and reaches the caller; workers end when the process that started them does, also if it was
killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from medvlp.errors import UserError
from medvlp.store.shards import ShardTask, write_shard


def cpu_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_shards(tasks: Sequence[ShardTask], num_workers: int) -> Iterator[tuple[ShardTask, dict[str, Any]]]:
    """Write shards and yield each with its record, in the order of completion.

    Args:
        tasks: The shards to write.
        num_workers: Processes; 0 takes one per core; 1 works in this process.

    Raises:
        UserError: A shard cannot be written, or a worker died.
    """
    workers = min(num_workers or cpu_count(), len(tasks))
    if workers <= 1:
        for task in tasks:
            yield task, write_shard(task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        waiting = {pool.submit(write_shard, task): task for task in tasks}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "A worker process died, perhaps because the memory was full.",
                tasks[0].out,
                "Run the same command again with a smaller num_workers; finished shards are kept.",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave interrupts to the parent, end with it, and keep to one core."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Work in many pieces, done by processes of this command or by jobs of a batch system, behind one function.

Guarantee: `run_tasks` yields the result of every task once, in the order of completion, or raises; which kind of
cluster did the work changes nothing in the results. Importing this package imports no batch system.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

from medvlp.cluster.pool import cpu_count, run_in_processes
from medvlp.config.cluster import ClusterConfig

T = TypeVar("T")
R = TypeVar("R")

__all__ = ["cpu_count", "run_tasks"]


def run_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    config: ClusterConfig,
    folder: Path,
    *,
    num_workers: int = 0,
    start_worker: Callable[[], None] | None = None,
    finished: Callable[[T], R | None] | None = None,
) -> Generator[tuple[T, R]]:
    """Call `function` once for each task and yield each task with its result, in the order of completion.

    A task must be idempotent and must leave its result in files that all machines see, whole or not at all: a job that
    is lost is submitted again, so a task may be started more than once. Close the iterator (`contextlib.closing`) to
    cancel what has not ended; leaving it, an interrupt and a termination do so too.

    Args:
        function: A function of a module that jobs can import.
        tasks: Its arguments, one for each call; pickled for other processes.
        config: Where the work is done.
        folder: For job files and logs, seen by all machines, and of this work alone: jobs that an earlier command for
            the same folder has left behind are cancelled.
        num_workers: Processes without a cluster; 0 takes one per core, 1 works in this process.
        start_worker: Called once in each process that works beside others.
        finished: Returns the result of a task that has left it behind, else None; then a job that is lost midway costs
            only what it had not finished, and results are seen while their job goes on.

    Raises:
        UserError: The function raised it; a worker died; the batch system refuses the jobs; or jobs failed
            `config.attempts` times (after all others have ended; the log is named).
    """
    if config.kind == "none":
        yield from run_in_processes(function, tasks, num_workers or cpu_count(), start_worker, folder)
        return
    from medvlp.cluster.jobs import run_as_jobs

    yield from run_as_jobs(function, tasks, config, folder, start_worker, finished)

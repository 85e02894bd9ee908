"""Cells as jobs of a batch system, one task of `medvlp.cluster` each.

Guarantee: a job does a cell as the command itself would, with the same locks, limits and records; the results are the
same whichever machine did which cell. Cells whose jobs are lost too often become failures with the reason.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medvlp.bench.cells import OK, status_of
from medvlp.bench.failures import Failure
from medvlp.bench.pool import Pool
from medvlp.bench.queue import Queue, settled_status
from medvlp.bench.schedule import Planned
from medvlp.bench.work import Bench, Workplace
from medvlp.cluster import run_tasks
from medvlp.cluster.jobs import LostTasksError
from medvlp.config.cluster import ClusterConfig

JOBS = "jobs"
"""Folder of job files and logs in the results."""


@dataclass(frozen=True)
class CellJob:
    """One cell; `since` is when the command began, so that its failures are told from those of earlier commands."""

    bench: Bench
    planned: Planned
    since: float
    timeout_minutes: float | None


def run_jobs(
    queue: Queue, place: Workplace, cluster: ClusterConfig, timeout_minutes: float | None
) -> Iterator[tuple[Planned, bool]]:
    """Run what a queue has as jobs; yield each cell when it has a result, and whether it was run by this command.

    Raises:
        UserError: The batch system refuses the jobs, or the disk takes no more files.
    """
    yield from queue.settled()
    bench, tasks = queue.bench, [CellJob(queue.bench, one, queue.since, timeout_minutes) for one in queue.left]
    # Of this command alone: jobs of another one into the same results go on beside, and share the cells.
    folder = bench.out / JOBS / f"{place.locks.me.name}-{int(queue.since)}"
    try:
        done = run_tasks(run_cell_job, tasks, cluster, folder, finished=finished_job)
        with contextlib.closing(done):
            for job, status in done:
                queue.left.remove(job.planned)
                yield job.planned, status == OK
    except LostTasksError as error:
        for planned in list(queue.left):
            place.fail(planned, Failure("died", error.what, error.where, error.fix), queue.since)
            queue.left.remove(planned)
            yield planned, True
    else:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
    finally:
        close_places()


def finished_job(job: CellJob) -> str | None:
    """Return the status of a job's cell; None while it has no result, or a failure of an earlier command alone."""
    return settled_status(job.bench.folder(job.planned), job.since)


def run_cell_job(job: CellJob) -> str | None:
    """Run a cell, unless another run does; return its status."""
    bench, limit = job.bench, job.timeout_minutes
    if bench.out not in _PLACES:
        place = Workplace(bench)
        _PLACES[bench.out] = place, None if limit is None else Pool(bench, 1, limit, place)
    place, pool = _PLACES[bench.out]
    queue = Queue(bench, [job.planned], place.locks, job.since)
    for _ in place.run_all(queue) if pool is None else pool.run(queue):
        pass
    return status_of(bench.folder(job.planned))


_PLACES: dict[Path, tuple[Workplace, Pool | None]] = {}
"""Of this process: a job does several cells, which share samples, encoder and features."""


@atexit.register
def close_places() -> None:
    """Give the locks and scratch folders of this process back."""
    for place, pool in _PLACES.values():
        if pool is not None:
            pool.close()
        place.close()
    _PLACES.clear()

"""Tasks as jobs: batches are submitted, followed, submitted again when they are lost, and cancelled at the end.

Guarantee: every task's result is yielded once. A job that is killed, times out, loses its node or breaks costs what it
had not finished; that is submitted again, apart from the tasks beside it if the job had finished nothing. Tasks whose
jobs end `attempts` times without having finished anything are named at the end, after all others have been done. When
the iterator is left, for whatever reason, no job of it is left running.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from medvlp.cluster.backends import Backend, Job, Phase, Sight, make_backend
from medvlp.cluster.batch import Batch, Mistake
from medvlp.config.cluster import ClusterConfig
from medvlp.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

GRACE_SECONDS = 60.0
"""How long the result of an ended job may take to appear on a network file system."""
JOBS_EACH = 4
"""Jobs made for each that runs at a time, where nothing else is said: small losses, and even ends."""


class LostTasksError(UserError):
    """Some tasks could not be done, however often they were tried; all others are done."""


def run_as_jobs(
    function: Callable[[T], R],
    tasks: Sequence[T],
    config: ClusterConfig,
    folder: Path,
    start_worker: Callable[[], None] | None,
    finished: Callable[[T], R | None] | None,
) -> Iterator[tuple[T, R]]:
    """Yield each task with its result, in the order of completion; see `medvlp.cluster.run_tasks`.

    Raises:
        UserError: As `medvlp.cluster.run_tasks`.
    """
    if not tasks:
        return
    logs = (config.logs or folder).absolute() / f"{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}"
    backend = make_backend(config, logs, folder)
    batches = make_batches(function, tasks, config, backend, start_worker, folder)
    followed = _Followed(backend, config, finished, deque(batches), logs)
    with _end_signals_raise():
        try:
            yield from followed.run()
        finally:
            backend.cancel([entry.job for entry in followed.active])


def make_batches(
    function: Callable[[T], R],
    tasks: Sequence[T],
    config: ClusterConfig,
    backend: Backend,
    start_worker: Callable[[], None] | None,
    where: Path,
) -> list[Batch[T, R]]:
    """Return neighbouring tasks in batches, one for each job.

    Raises:
        UserError: There would be more jobs than the batch system takes.
    """
    most = backend.max_batches
    size = config.tasks_per_job
    if size is None:
        size = math.ceil(len(tasks) / (JOBS_EACH * backend.max_jobs))
        size = max(size, math.ceil(len(tasks) / most)) if most else size
    count = math.ceil(len(tasks) / size)
    if most and count > most:
        raise UserError(
            f"{len(tasks):,} tasks make {count:,} jobs, more than the {most:,} of one array.",
            f"cluster.tasks_per_job = {size}",
            f"Set it to {math.ceil(len(tasks) / most)} or more, or leave it out.",
        )
    return [
        Batch(
            function=function,
            tasks=tuple(tasks[first : first + size]),
            places=tuple(range(first, min(first + size, len(tasks)))),
            processes=config.cpus_per_task,
            start_worker=start_worker,
            where=where,
        )
        for first in range(0, len(tasks), size)
    ]


@dataclasses.dataclass
class _Active(Generic[T, R]):
    """A job that was submitted. `open` holds the tasks not yet yielded, by their places."""

    job: Job
    batch: Batch[T, R]
    open: dict[int, T]
    ended: float | None = None


class _Followed(Generic[T, R]):
    def __init__(
        self,
        backend: Backend,
        config: ClusterConfig,
        finished: Callable[[T], R | None] | None,
        waiting: deque[Batch[T, R]],
        logs: Path,
    ) -> None:
        self.backend = backend
        self.config = config
        self.finished = finished
        self.waiting = waiting
        self.logs = logs
        self.active: list[_Active[T, R]] = []
        self.failed: list[tuple[_Active[T, R], str]] = []
        self._reasons: set[str] = set()
        self._some_ran = time.monotonic()

    def run(self) -> Iterator[tuple[T, R]]:
        """Yield results until nothing is left."""
        if self.backend.holds_back:
            self._submit(len(self.waiting))
        while self.waiting or self.active:
            self._submit(self.backend.max_jobs - len(self.active))
            moved = False
            sights = self.backend.look([entry.job for entry in self.active])
            for entry in list(self.active):
                for result in self._take(entry, None if sights is None else sights[entry.job.job_id]):
                    moved = True
                    yield result
            if sights is not None:
                self._watch_queue(list(sights.values()))
            if not moved and self.active:
                time.sleep(self.backend.poll_seconds)
        if self.failed:
            raise self._failure()

    def _submit(self, room: int) -> None:
        batches = [self.waiting.popleft() for _ in range(min(max(room, 0), len(self.waiting)))]
        if not batches:
            return
        jobs = self.backend.submit(batches)
        for job, batch in zip(jobs, batches, strict=True):
            self.active.append(_Active(job, batch, dict(zip(batch.places, batch.tasks, strict=True))))

    def _take(self, entry: _Active[T, R], sight: Sight | None) -> Iterator[tuple[T, R]]:
        """Yield what a job has newly finished; see to it if it has ended."""
        if sight is not None and sight.phase is not Phase.ENDED:
            entry.ended = None
            if sight.phase is not Phase.RUNNING:
                return
        try:
            outcome, word = self.backend.result(entry.job), "" if sight is None else sight.word
        except Exception as error:  # whatever the function raised, or a result file that cannot be read
            logger.debug("job %s: %s", entry.job.job_id, error)
            outcome, word, sight = None, "an error in the work", Sight(Phase.ENDED, settled=True)
        if isinstance(outcome, Mistake):
            raise UserError(outcome.what, outcome.where, outcome.fix)
        for place, value in outcome or ():
            if place in entry.open:
                yield entry.open.pop(place), value
        if outcome is not None:
            self.active.remove(entry)
            return
        for place, task, done in self._records(entry, sight is not None and sight.phase is Phase.ENDED):
            del entry.open[place]
            yield task, done
        if sight is not None and sight.phase is Phase.ENDED and self._is_lost(entry, sight):
            self._lose(entry, word)

    def _records(self, entry: _Active[T, R], ended: bool) -> Iterator[tuple[int, T, R]]:
        """Yield what a job has left behind on the disk. A job that goes on takes its tasks in their order."""
        misses = 0
        for place, task in list(entry.open.items()) if self.finished is not None else ():
            done = self.finished(task)  # type: ignore[misc]
            if done is not None:
                yield place, task, done
                continue
            misses += 1
            if not ended and misses >= entry.batch.processes:
                return  # the others have not been begun: a shared disk need not be asked for each at every look

    def _is_lost(self, entry: _Active[T, R], sight: Sight) -> bool:
        now = time.monotonic()
        entry.ended = now if entry.ended is None else entry.ended
        grace = self.backend.settle_seconds if sight.settled else GRACE_SECONDS
        return not entry.open or now - entry.ended >= grace

    def _lose(self, entry: _Active[T, R], word: str) -> None:
        """Put what a job has not finished back in the queue, unless that was tried often enough."""
        self.active.remove(entry)
        if not entry.open:
            return
        self.backend.cancel([entry.job])
        batch = entry.batch
        places, tasks = tuple(entry.open), tuple(entry.open.values())
        if len(entry.open) < len(batch.tasks):
            again = [dataclasses.replace(batch, places=places, tasks=tasks, attempt=1)]
        elif batch.attempt < self.config.attempts:
            again = [
                dataclasses.replace(batch, places=(place,), tasks=(task,), attempt=batch.attempt + 1)
                for place, task in entry.open.items()
            ]
        else:
            again = []
            self.failed.append((entry, word))
        self.waiting.extend(again)
        logger.warning(
            "Job %s has ended (%s) with %d of %d tasks unfinished; %s.",
            entry.job.job_id,
            word or "no reason known",
            len(tasks),
            len(batch.tasks),
            "they are submitted again" if again else f"given up after attempt {batch.attempt}",
        )

    def _watch_queue(self, sights: Sequence[Sight]) -> None:
        """Say why jobs wait, and give up where they never start."""
        doomed = [sight.word for sight in sights if sight.phase is Phase.DOOMED]
        if doomed:
            raise UserError(
                f"The jobs will never start: {doomed[0]}.",
                "cluster",
                "Correct cluster.partition, cluster.account, cluster.minutes or cluster.sbatch.",
            )
        waits = [sight.word for sight in sights if sight.phase is Phase.WAITING]
        for reason in dict.fromkeys(waits):
            if reason not in self._reasons | {"", "None"}:
                logger.info("Jobs wait: %s", reason)
                self._reasons.add(reason)
        if len(waits) < len(sights) or not waits:
            self._some_ran = time.monotonic()
        limit = self.config.start_minutes
        if limit is not None and time.monotonic() - self._some_ran > 60 * limit:
            raise UserError(
                f"No job has started for {limit:g} minutes. The batch system says: {waits[0] or 'nothing'}.",
                "cluster.start_minutes",
                "Run the same command again later, in another partition, or with a larger start_minutes.",
            )

    def _failure(self) -> LostTasksError:
        entry, word = self.failed[0]
        count = sum(len(failed.open) for failed, _ in self.failed)
        log = entry.job.paths.stderr
        kept = log if log.exists() else self.logs
        return LostTasksError(
            f"{count} task{'s' if count > 1 else ''} failed {self.config.attempts} times as jobs; the last end of the "
            f"first was: {word or 'no reason known'}. All others are done.",
            kept,
            "Read the log. Give the jobs more cluster.memory_gb or cluster.minutes if it ends without a reason; then "
            "run the same command again, it does only what is missing.",
        )


@contextmanager
def _end_signals_raise() -> Iterator[None]:
    """Let a termination or a closed terminal unwind the stack as an interrupt does, so that jobs are cancelled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    # What is ignored stays ignored: nohup means that a closed terminal ends nothing.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

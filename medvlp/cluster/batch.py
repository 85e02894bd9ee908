"""What one job does: a batch of tasks, in as many processes as it has cores.

Guarantee: a user's mistake comes back as data and not as a traceback; a job that is told to end ends at once; one on
the machine of the command that submitted it ends with that command, also if that was killed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from medvlp.cluster.pool import run_in_processes
from medvlp.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine; a later one with the same number has another start."""

    number: int
    start: float

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        import psutil

        return cls(os.getpid(), psutil.Process().create_time())

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        import psutil

        try:
            process = psutil.Process(self.number)
            return process.create_time() == self.start and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class Batch(Generic[T, R]):
    """The tasks of one job. `places` are their numbers in the whole list; `owner` is watched where it is given."""

    function: Callable[[T], R]
    tasks: tuple[T, ...]
    places: tuple[int, ...]
    processes: int
    start_worker: Callable[[], None] | None
    where: Path
    attempt: int = 1
    owner: Process | None = None


@dataclass(frozen=True, slots=True)
class Mistake:
    """A `UserError` on its way back from a job."""

    what: str
    where: str
    fix: str


def run_batch(batch: Batch[T, R]) -> list[tuple[int, R]] | Mistake:
    """Do the tasks of a batch and return their places with their results, in the order of completion."""
    if batch.owner is not None:
        threading.Thread(target=_end_with, args=(batch.owner,), daemon=True).start()
    if batch.start_worker is not None:
        batch.start_worker()
    try:
        done = run_in_processes(_call, _numbered(batch), batch.processes, batch.start_worker, batch.where)
        return [(number, result) for (_, number, _), result in done]
    except UserError as error:
        return Mistake(error.what, error.where, error.fix)


def run_job(batch: Batch[T, R]) -> list[tuple[int, R]] | Mistake:
    """As `run_batch`, in a process of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return run_batch(batch)


def _numbered(batch: Batch[T, R]) -> list[tuple[Callable[[T], R], int, T]]:
    return [(batch.function, place, task) for place, task in zip(batch.places, batch.tasks, strict=True)]


def _call(numbered: tuple[Callable[[T], R], int, T]) -> R:
    function, _, task = numbered
    return function(task)


def _end_with(owner: Process, every_seconds: float = 1.0) -> None:
    while owner.alive:
        time.sleep(every_seconds)
    os._exit(1)

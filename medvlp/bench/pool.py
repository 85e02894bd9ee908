"""Cells run by processes of this machine, several at a time on one device.

Guarantee: a cell that takes too long, or whose process dies, becomes a failure with its reason; its process is replaced
and the others go on. The time in which features are computed, or another run is waited for, is not counted as the
cell's. No process outlives the one that started it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from medvlp.bench.failures import Failure, lost_disk
from medvlp.bench.locks import POLL_SECONDS
from medvlp.bench.queue import Queue
from medvlp.bench.schedule import Planned
from medvlp.bench.work import Bench, Workplace
from medvlp.cluster import cpu_count
from medvlp.errors import UserError
from medvlp.threads import children_with

END_SECONDS = 10.0
START_SECONDS = 600.0
"""Until a new process has said its first word; then the time of its cell begins."""
START = "spawn"
"""How processes start; forked ones could hang on the threads of libraries."""
_ALIVE, _DONE, _DISK = "alive", "done", "disk"


class Pool:
    """Processes that run cells.

    Args:
        bench: The suite and where its results go.
        jobs: How many at a time.
        timeout_minutes: Time for one cell; None: no limit.
        place: Where failures are recorded that a process cannot record itself.
    """

    def __init__(self, bench: Bench, jobs: int, timeout_minutes: float | None, place: Workplace) -> None:
        self.bench, self.timeout_minutes, self.place = bench, timeout_minutes, place
        self.threads = max(1, cpu_count() // jobs)
        self.workers = [_Worker(bench, self.threads) for _ in range(jobs)]

    def run(self, queue: Queue) -> Iterator[tuple[Planned, bool]]:
        """Run what the queue has; yield each cell when it has a result, and whether it was run here.

        Raises:
            UserError: The disk takes no more files.
        """
        while True:
            for place, worker in enumerate(self.workers):
                if worker.planned is None and (planned := queue.take(worker.encoder)) is not None:
                    self._give(place, planned)
            yield from queue.settled()
            busy = [worker for worker in self.workers if worker.planned is not None]
            if not busy and not queue.left:
                return
            self._wait(busy, queue)

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.end()

    def _give(self, place: int, planned: Planned) -> None:
        try:
            self.workers[place].start(planned)
        except OSError:  # it has died while it had nothing to do
            self.workers[place].end()
            self.workers[place] = _Worker(self.bench, self.threads)
            self.workers[place].start(planned)

    def _wait(self, busy: list[_Worker], queue: Queue) -> None:
        """Wait until a process says something, dies or runs out of time, or it is time to look at the queue again."""
        if not busy:
            time.sleep(POLL_SECONDS)
            return
        idle = len(busy) < len(self.workers) and queue.left
        left = min(map(self._deadline, busy)) - time.monotonic()
        ready = wait([worker.connection for worker in busy], max(min(left, POLL_SECONDS if idle else 60.0), 0.0))
        for worker in busy:
            if worker.connection in ready:
                self._hear(worker, queue)
            elif time.monotonic() >= self._deadline(worker):
                self._fail(worker, self._lateness(worker), queue)

    def _lateness(self, worker: _Worker) -> Failure:
        if worker.is_new or self.timeout_minutes is None:
            return Failure.unborn(START_SECONDS)
        return Failure.timeout(self.timeout_minutes)

    def _deadline(self, worker: _Worker) -> float:
        if worker.is_new:
            return worker.heard + START_SECONDS
        return float("inf") if self.timeout_minutes is None else worker.heard + 60 * self.timeout_minutes

    def _hear(self, worker: _Worker, queue: Queue) -> None:
        try:
            word, *rest = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(END_SECONDS)
            self._fail(worker, Failure.died(worker.process.exitcode), queue)
            return
        worker.heard, worker.is_new = time.monotonic(), False
        if word == _DISK:
            number, text = rest
            raise OSError(number, text)
        if word == _DONE:
            self._settle(worker, queue)

    def _fail(self, worker: _Worker, failure: Failure, queue: Queue) -> None:
        assert worker.planned is not None
        worker.end()
        if not queue.is_settled(worker.planned):
            self.place.fail(worker.planned, failure, worker.began)
        self._settle(worker, queue)
        self.workers[self.workers.index(worker)] = _Worker(self.bench, self.threads)

    @staticmethod
    def _settle(worker: _Worker, queue: Queue) -> None:
        assert worker.planned is not None
        queue.give_back(worker.planned)
        worker.planned = None


class _Worker:
    """A process and what it is at. It is started with its first cell, since starting takes seconds."""

    def __init__(self, bench: Bench, threads: int) -> None:
        context: Any = multiprocessing.get_context(START)
        self._threads = threads
        self.connection, self._theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self._theirs, bench, threads), name="medvlp-cells")
        self.planned: Planned | None = None
        self.encoder, self.is_new = "", True
        self.heard = self.began = 0.0

    def start(self, planned: Planned) -> None:
        """Give the process a cell."""
        self.heard, self.began = time.monotonic(), time.time()
        if self.process.pid is None:
            with children_with(self._threads):
                self.process.start()
            self._theirs.close()
        self.connection.send(planned)
        self.planned, self.encoder = planned, planned.judged.hash

    def end(self) -> None:
        """End the process, and what it has started."""
        import psutil

        if self.process.pid is not None and self.process.is_alive():
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    child.kill()
            self.process.kill()
            self.process.join()
        self.connection.close()


def _serve(connection: Connection, bench: Bench, threads: int) -> None:
    """Run cells as they come in, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logger = logging.getLogger("medvlp")
    logger.setLevel(logging.WARNING)  # no bars beside that of the command
    import torch

    torch.set_num_threads(threads)

    def say(*words: Any) -> None:
        connection.send(words)

    place = Workplace(bench, alive=lambda: say(_ALIVE))
    say(_ALIVE)
    try:
        while True:
            planned: Planned = connection.recv()
            try:
                place.run(planned)
                say(_DONE)
            except (UserError, OSError) as error:
                lost = lost_disk(error)
                if lost is None:
                    raise
                say(_DISK, lost.errno, lost.strerror)
    except (EOFError, ConnectionError):
        return
    finally:
        place.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

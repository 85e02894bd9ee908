"""What each kind of batch system can do for us: take jobs, say how they are, give their results, cancel them.

Guarantee: nothing here decides what happens to a lost job; that is `medvlp.cluster.jobs`, the same for all kinds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from medvlp.cluster.batch import Batch, Mistake, Process, run_batch, run_job
from medvlp.cluster.pool import cpu_count
from medvlp.config.cluster import ClusterConfig
from medvlp.errors import UserError

Outcome = list[tuple[int, Any]] | Mistake
"""What a job brings back: places of tasks with their results, or the user's mistake that ended it."""


class Phase(Enum):
    """Where a job is on its way."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    DOOMED = "doomed"
    """It waits, and will never start."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A job as the batch system sees it. `word` is the system's own; `settled` says that no result can still appear."""

    phase: Phase
    word: str = ""
    settled: bool = False


class Job(Protocol):
    """What is used of a submitit job."""

    @property
    def job_id(self) -> str:
        """Its number in the batch system."""

    @property
    def paths(self) -> Any:
        """Its files: `stderr`, `stdout`, `result_pickle`."""

    def result(self) -> Any:
        """Return what the job's function returned."""


class Backend(Protocol):
    """A batch system."""

    @property
    def max_jobs(self) -> int:
        """Jobs that run at a time."""

    @property
    def holds_back(self) -> bool:
        """Whether it keeps to `max_jobs` itself, so that all jobs can be given to it at once."""

    @property
    def max_batches(self) -> int | None:
        """Most jobs that it takes, where there is a limit."""

    @property
    def poll_seconds(self) -> float:
        """Seconds between two looks."""

    @property
    def settle_seconds(self) -> float:
        """How long a job must be seen as ended before it is: one that is put back in the queue looks so for a while."""

    def submit(self, batches: Sequence[Batch[Any, Any]]) -> Sequence[Job]:
        """Start a job for each batch.

        Raises:
            UserError: The system refuses them.
        """

    def look(self, jobs: Sequence[Job]) -> Mapping[str, Sight] | None:
        """Return each job's state by its id; None if the system does not answer."""

    def result(self, job: Job) -> Outcome | None:
        """Return what a job brought back, None if there is nothing yet.

        Raises:
            Exception: The job failed.
        """

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End jobs, and wait until they have ended."""


def new_folder(folder: Path) -> Path:
    """Return a new folder for the files of one submission: job numbers used again must not meet old results."""
    for number in itertools.count():
        new = folder / f"jobs_{number:03d}"
        try:
            new.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"The jobs' folder cannot be written: {error.strerror}.",
                new,
                "Name another one with cluster.logs; all nodes must see it.",
            ) from error
        return new
    raise AssertionError


class LocalBackend:
    """Jobs as processes of this machine, through submitit's local executor."""

    holds_back = False
    max_batches = None
    poll_seconds = 0.2
    settle_seconds = 0.0

    def __init__(self, config: ClusterConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.max_jobs = config.max_jobs or max(1, cpu_count() // config.cpus_per_task)
        self._owner = Process.current()

    def submit(self, batches: Sequence[Batch[Any, Any]]) -> Sequence[Job]:
        """Start a process for each batch."""
        import submitit

        executor = submitit.LocalExecutor(new_folder(self.folder))
        executor.update_parameters(timeout_min=self.config.minutes)
        return [executor.submit(run_job, dataclasses.replace(batch, owner=self._owner)) for batch in batches]

    def look(self, jobs: Sequence[Any]) -> Mapping[str, Sight]:
        """Ask each process."""
        return {job.job_id: self._sight(job) for job in jobs}

    @staticmethod
    def _sight(job: Any) -> Sight:
        state = job.state
        return Sight(Phase.RUNNING) if state == "RUNNING" else Sight(Phase.ENDED, state, settled=True)

    def result(self, job: Any) -> Outcome | None:
        """Read the job's result file once its process has ended."""
        return job.result() if job.done() and job.paths.result_pickle.exists() else None

    def cancel(self, jobs: Sequence[Any]) -> None:
        """Interrupt the processes and wait for them."""
        import psutil

        running = [job for job in jobs if not job.done()]
        for job in running:
            job.cancel()
        processes = []
        for job in running:
            try:
                processes.append(psutil.Process(int(job.job_id)))
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            for child in [*process.children(recursive=True), process]:
                child.kill()


class DebugBackend:
    """Jobs one after another inside this process, through submitit's debug executor: an error opens the debugger."""

    holds_back = False
    max_batches = None
    max_jobs = 1
    poll_seconds = 0.0
    settle_seconds = 0.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def submit(self, batches: Sequence[Batch[Any, Any]]) -> Sequence[Job]:
        """Keep the batches for `look`."""
        import submitit

        executor = submitit.DebugExecutor(new_folder(self.folder))
        return [executor.submit(run_batch, batch) for batch in batches]

    def look(self, jobs: Sequence[Any]) -> Mapping[str, Sight]:
        """Do the work: an error passes through to the caller."""
        for job in jobs:
            job.wait()
        return {job.job_id: Sight(Phase.ENDED, settled=True) for job in jobs}

    def result(self, job: Any) -> Outcome | None:
        """Return what was computed."""
        return job.result()

    def cancel(self, jobs: Sequence[Any]) -> None:
        """Forget the batches that are left."""
        for job in jobs:
            job.cancel()


def make_backend(config: ClusterConfig, folder: Path, work: Path) -> Backend:
    """Return the batch system of a configuration.

    Args:
        config: The configuration.
        folder: For job files and logs.
        work: The folder that the work is known by.

    Raises:
        UserError: This machine has no such system.
    """
    if config.kind == "local":
        return LocalBackend(config, folder)
    if config.kind == "debug":
        return DebugBackend(folder)
    from medvlp.cluster.slurm import SlurmBackend

    return SlurmBackend(config, folder, work)

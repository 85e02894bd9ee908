"""SLURM job arrays through submitit; states from `squeue`, since many clusters keep no accounting that `sacct` asks.

Guarantee: only jobs of this user and of this work (by their name) are ever looked at or cancelled. A cluster whose
controller does not answer for a while costs nothing but that while.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlp.cluster.backends import Job, Outcome, Phase, Sight, new_folder
from medvlp.cluster.batch import Batch, run_job
from medvlp.config.cluster import ClusterConfig
from medvlp.errors import UserError

logger = logging.getLogger(__name__)

MAX_ARRAY = 1000
"""Jobs of one array: SLURM's MaxArraySize is 1001 unless a cluster changes it."""
COMMAND_SECONDS = 120
CANCEL_SECONDS = 60
SETTLE_SECONDS = 3.0

_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_NEVER = {
    "AccountNotAllowed",
    "BadConstraints",
    "DependencyNeverSatisfied",
    "InvalidAccount",
    "InvalidQOS",
    "PartitionTimeLimit",
    "QOSNotAllowed",
}
_LAUNCH_FAILED = "launch failed requeued held"


class SlurmBackend:
    """A SLURM cluster.

    Raises:
        UserError: SLURM's commands are missing here.
    """

    holds_back = True
    max_batches = MAX_ARRAY
    settle_seconds = SETTLE_SECONDS

    def __init__(self, config: ClusterConfig, folder: Path, work: Path) -> None:
        missing = [command for command in ("sbatch", "squeue", "scancel", "srun") if shutil.which(command) is None]
        if missing:
            raise UserError(
                f"This machine has no SLURM: {', '.join(missing)} cannot be found.",
                "cluster.kind",
                "Start the command on a login node of the cluster, or leave cluster=slurm out.",
            )
        self.config = config
        self.folder = folder
        self.max_jobs = config.max_jobs or 100
        self.poll_seconds = config.poll_seconds
        self.name = f"medvlp-{hashlib.sha256(str(work.resolve()).encode()).hexdigest()[:12]}"
        self._answers = True
        self._cancel_leftovers()

    def submit(self, batches: Sequence[Batch[Any, Any]]) -> Sequence[Job]:
        """Submit one array."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = submitit.SlurmExecutor(new_folder(self.folder), max_num_timeout=0)
        executor.update_parameters(**self._parameters())
        try:
            jobs: Sequence[Job] = executor.map_array(run_job, list(batches))
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            raise UserError(
                f"SLURM refuses the jobs: {_reason(str(error))}",
                "cluster",
                "Correct cluster.partition, cluster.account, cluster.minutes or cluster.sbatch; `sinfo` and "
                "`sacctmgr show assoc` tell what is allowed.",
            ) from error
        first = jobs[0].job_id.split("_")[0]
        logger.info("%d SLURM jobs submitted as %s; logs: %s", len(jobs), first, executor.folder)
        return jobs

    def _parameters(self) -> dict[str, Any]:
        config = self.config
        wanted = {
            "job_name": self.name,
            "partition": config.partition,
            "account": config.account,
            "time": config.minutes,
            "mem": None if config.memory_gb is None else f"{round(config.memory_gb * 1024)}M",
            "cpus_per_task": config.cpus_per_task,
            "array_parallelism": self.max_jobs,
            "setup": list(config.setup) or None,
            "additional_parameters": {name.lstrip("-"): value for name, value in config.sbatch.items()} or None,
        }
        # One process a job; started from within another job, srun would stumble over that job's environment.
        fixed: dict[str, Any] = {"use_srun": False, "wckey": None}
        return {name: value for name, value in wanted.items() if value is not None} | fixed

    def look(self, jobs: Sequence[Job]) -> Mapping[str, Sight] | None:
        """Ask `squeue`; a job that it does not know any more has ended."""
        listed = self._squeue()
        if listed is None:
            return None
        return {job.job_id: listed.get(job.job_id, Sight(Phase.ENDED, "no longer known to SLURM")) for job in jobs}

    def _squeue(self) -> dict[str, Sight] | None:
        command = ["squeue", "--noheader", "--array", "--states=all", f"--name={self.name}", f"--user={os.getuid()}"]
        output = _run([*command, "--format=%i|%T|%r|%N"])
        if output is None:
            if self._answers:
                logger.warning("SLURM does not answer (squeue); waiting until it does.")
            self._answers = False
            return None
        if not self._answers:
            logger.warning("SLURM answers again.")
        self._answers = True
        return parse_squeue(output)

    def result(self, job: Any) -> Outcome | None:
        """Read the job's result file."""
        _refresh(job.paths.folder)
        return job.result() if job.paths.result_pickle.exists() else None

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel jobs and wait until they have ended."""
        if not jobs:
            return
        _run(["scancel", *{job.job_id for job in jobs}])
        until = time.monotonic() + CANCEL_SECONDS
        while time.monotonic() < until:
            seen = self.look(jobs)
            if seen is None or all(sight.phase is Phase.ENDED for sight in seen.values()):
                return
            time.sleep(min(self.poll_seconds, 1.0))
        logger.warning("Some jobs have not ended yet: look with `squeue --name=%s`.", self.name)

    def _cancel_leftovers(self) -> None:
        """End the jobs of an earlier command for the same work that could not cancel them itself."""
        listed = self._squeue() or {}
        left = [job_id for job_id, sight in listed.items() if sight.phase is not Phase.ENDED]
        if left:
            logger.warning("%d jobs of an earlier command for the same work are cancelled.", len(left))
            self.cancel([_Leftover(job_id) for job_id in left])


class _Leftover:
    """A job that is known by its id alone."""

    paths = None

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id

    def result(self) -> Any:
        """There is none."""
        return None


def parse_squeue(output: str) -> dict[str, Sight]:
    """Return the state of each job from lines `id|state|reason|nodes`."""
    sights: dict[str, Sight] = {}
    for line in output.splitlines():
        job_id, state, reason, node = (line.strip().split("|") + [""] * 4)[:4]
        if not job_id:
            continue
        if state in _WAITING:
            held = _LAUNCH_FAILED in reason.replace("_", " ").lower()
            never = reason in _NEVER
            phase = Phase.ENDED if held else Phase.DOOMED if never else Phase.WAITING
            sights[job_id] = Sight(phase, reason, settled=held)
        elif state in _RUNNING:
            sights[job_id] = Sight(Phase.RUNNING, state)
        else:
            word = state + (f" on {node}" if node else "")
            sights[job_id] = Sight(Phase.ENDED, word, settled=state != "COMPLETED")
    return sights


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        logger.debug("%s: %s", command[0], getattr(error, "stderr", None) or error)
        return None
    return done.stdout


def _refresh(folder: Path) -> None:
    """Make a network file system look again for new files in a folder."""
    try:
        folder.chmod(folder.stat().st_mode)
    except OSError as error:
        logger.debug("%s: %s", folder.name, error)


def _reason(text: str) -> str:
    lines = [line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith("Try ")]
    return "; ".join(dict.fromkeys(said)) or "no reason given"

"""Where work in many pieces is done: in processes of this command, or as jobs of a batch system.

Guarantee: a setting that the chosen kind does not use is a mistake, never silently without effect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config
from medvlp.config.tree import Tree

_JOBS = ("minutes", "cpus_per_task", "max_jobs", "attempts")
_SLURM = ("partition", "account", "memory_gb", "sbatch", "setup", "poll_seconds", "start_minutes")
_WITHOUT_EFFECT = {
    "none": (*_SLURM, *_JOBS, "tasks_per_job", "logs"),
    "debug": (*_SLURM, *_JOBS),
    "local": _SLURM,
    "slurm": (),
}
_OWN_SBATCH = {
    "account": "cluster.account",
    "array": "cluster.tasks_per_job and cluster.max_jobs",
    "chdir": "the folder in which the command is started",
    "cpus-per-task": "cluster.cpus_per_task",
    "error": "cluster.logs",
    "job-name": "nothing: jobs are found again by their name",
    "mem": "cluster.memory_gb",
    "nodes": "nothing: a job runs on one node",
    "ntasks": "cluster.cpus_per_task",
    "output": "cluster.logs",
    "partition": "cluster.partition",
    "time": "cluster.minutes",
}


class ClusterConfig(Config):
    """Jobs of a batch system; its kind alone may stand in its place, as in `cluster=slurm`."""

    kind: Literal["none", "local", "debug", "slurm"] = Field(
        "none",
        description="none: processes of this command; slurm: a SLURM job array; local: the same jobs as processes on "
        "this machine; debug: the same jobs one after another inside this command, with a debugger on errors.",
    )
    partition: str | None = Field(None, description="SLURM partition; null takes the default one.")
    account: str | None = Field(None, description="SLURM account that is charged.")
    minutes: int = Field(240, ge=1, description="Time limit of one job.")
    memory_gb: float | None = Field(None, gt=0, description="Memory of one job in GiB; null takes the partition's.")
    cpus_per_task: int = Field(1, ge=1, description="Cores of one job; each works on its own task.")
    max_jobs: int | None = Field(
        None, ge=1, description="Jobs that run at a time; null is 100 on SLURM, and as many as the cores allow locally."
    )
    tasks_per_job: int | None = Field(
        None, ge=1, description="Tasks (shards, cells) of one job; null makes four jobs for each that runs at a time."
    )
    attempts: int = Field(3, ge=1, description="How often a job is tried that ends without having finished anything.")
    sbatch: dict[str, Any] = Field(
        default_factory=dict, description="Further options of sbatch by their long names, e.g. {qos: long}."
    )
    setup: tuple[str, ...] = Field((), description="Shell lines at the start of a job, e.g. module load python.")
    logs: Path | None = Field(
        None, description="Folder for the jobs' logs, seen by all nodes; null keeps them with the unfinished work."
    )
    poll_seconds: float = Field(10.0, gt=0, le=600, description="Seconds between two questions to SLURM.")
    start_minutes: float | None = Field(
        None, gt=0, description="Give up when no job has started for so long; null waits for the queue."
    )

    @model_validator(mode="before")
    @classmethod
    def _by_kind_alone(cls, given: Any) -> Any:
        return {"kind": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> ClusterConfig:
        fields = type(self).model_fields
        idle = [
            name
            for name in _WITHOUT_EFFECT[self.kind]
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        ]
        if idle:
            kinds = [kind for kind in _WITHOUT_EFFECT if not set(idle) & set(_WITHOUT_EFFECT[kind])]
            raise ValueError(
                f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect with kind {self.kind}; "
                f"write cluster={' or cluster='.join(kinds)}, or leave it out"
            )
        for name in self.sbatch:
            own = _OWN_SBATCH.get(name.lstrip("-").replace("_", "-"))
            if own is not None:
                raise ValueError(f"sbatch.{name} is set by medvlp: change {own}")
        return self


class OnCluster(Config):
    """Where the work of a command is done that has no other configuration."""

    cluster: ClusterConfig = ClusterConfig()


def expand_cluster(tree: Tree) -> Tree:
    """Return the tree with a cluster that is given by its kind alone as a mapping, so that other settings are kept."""
    kind = tree.get("cluster")
    return {**tree, "cluster": {"kind": kind}} if isinstance(kind, str) else tree

"""Shards written by several processes, on this machine or as jobs of a cluster.

Guarantee: one process writes one whole shard, so no two ever touch the same file at a time but to write the same bytes;
a shard counts as done by its record on the disk, so what a lost job had finished is kept.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from medvlp.cluster import run_tasks
from medvlp.config.prepare import PrepareConfig
from medvlp.store.shards import PROGRESS, ShardTask, finished, write_shard


def run_shards(tasks: Sequence[ShardTask], config: PrepareConfig) -> Generator[tuple[ShardTask, dict[str, Any]]]:
    """Write shards and yield each with its record, in the order of completion.

    Args:
        tasks: The shards to write; none has a record.
        config: Where the work is done: `cluster`, or `num_workers` processes.

    Raises:
        UserError: A shard cannot be written, a worker died, or jobs of a cluster failed.
    """
    yield from run_tasks(
        write_shard,
        tasks,
        config.cluster,
        config.out / PROGRESS / "jobs",
        num_workers=config.num_workers,
        start_worker=_start_worker,
        finished=finished,
    )


def _start_worker() -> None:
    """Keep to one core: there is a process for each."""
    import cv2

    cv2.setNumThreads(1)

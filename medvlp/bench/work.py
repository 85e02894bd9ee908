"""The place of one process that runs cells: samples, the encoder in memory, features and images serve all of them.

Guarantee: whatever goes wrong in a cell is recorded in its folder and stops no other; only a disk that takes no more
files ends the work. A cell is never run with another encoder than the one it is named after. A training that was
stopped goes on from its checkpoint, which is removed with its result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.bench.cells import OK, RUN, as_json, run_cell, status_of
from medvlp.bench.failures import Failure, lost_disk, write_failure
from medvlp.bench.features import FeatureCache
from medvlp.bench.judged import EncoderSlot
from medvlp.bench.locks import POLL_SECONDS, Locks
from medvlp.bench.plan import Cell, Judged
from medvlp.bench.reuse import KeptPredictions
from medvlp.bench.schedule import Planned, Schedule
from medvlp.bench.suite import Suite
from medvlp.errors import UserError
from medvlp.store.files import write_atomic
from medvlp.tasks.base import Subject

if TYPE_CHECKING:
    from medvlp.bench.queue import Queue
    from medvlp.store.array_store import Store
    from medvlp.zoo import Encoder

logger = logging.getLogger(__name__)

SCRATCH, LOCKS, CHECKPOINTS = ".tmp", "locks", "checkpoints"
GOES_ON = ("memory", "timeout", "died")
"""Kinds of failures after which the same training may go on from its checkpoint."""


@dataclass(frozen=True)
class Bench:
    """What every process that runs cells of a suite must know."""

    suite: Suite
    out: Path
    device: str
    """A torch device, or `auto` for what the machine has that runs a cell."""
    facts: dict[str, Any]
    """Versions and git hash, recorded with every cell."""

    def folder(self, planned: Planned) -> Path:
        """Return where the cell of a plan is kept."""
        assert planned.cell is not None
        return self.out / "cells" / planned.cell.hash


class Workplace:
    """Runs cells in this process; close it at the end.

    Args:
        bench: The suite and where its results go.
        schedule: Tasks and samples, where they have been made already.
        slot: Where encoders are loaded, likewise.
        alive: Called while features are computed, so that their time is not taken for that of a cell.
    """

    def __init__(
        self,
        bench: Bench,
        schedule: Schedule | None = None,
        slot: EncoderSlot | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        from medvlp.models.device import resolve_device

        self.bench = bench
        self.device = resolve_device(bench.device)
        self.locks = Locks(bench.out / LOCKS)
        self.scratch = own_scratch(bench.out, self.locks)
        self.schedule = schedule or Schedule(bench.suite)
        self.slot = slot or EncoderSlot(self.device)
        self.kept = KeptPredictions(bench.out)
        self.features = FeatureCache(bench.out / "features", self.scratch, self.locks, alive)

    def close(self) -> None:
        """Remove the scratch folder and what finished cells need no more, and give all locks back."""
        for folder in (self.bench.out / CHECKPOINTS).glob("*"):
            if status_of(self.bench.out / "cells" / folder.name) == OK:
                remove_checkpoints(folder)
        remove_scratch(self.bench.out, self.scratch, self.locks)
        self.locks.close()

    def run_all(self, queue: Queue) -> Iterator[tuple[Planned, bool]]:
        """Run what a queue has; yield each cell when it has a result, and whether it was run here.

        Raises:
            UserError, OSError: The disk takes no more files.
        """
        encoder = ""
        while True:
            planned = queue.take(encoder)
            yield from queue.settled()
            if planned is None and not queue.left:
                return
            if planned is None:
                time.sleep(POLL_SECONDS)
                continue
            encoder = planned.judged.hash
            self.run(planned)
            queue.give_back(planned)
            yield from queue.settled()

    def run(self, planned: Planned) -> None:
        """Run a cell and leave its numbers, or why it has none, in its folder.

        Raises:
            UserError, OSError: The disk takes no more files.
        """
        assert planned.cell is not None
        started = time.time()
        try:
            self._run(planned, planned.cell)
        except Exception as error:
            if lost_disk(error):
                raise
            failure = Failure.of(error)
            if failure.kind == "error":
                logger.exception("cell %s failed", planned.shown)
            if failure.kind == "memory":
                self.slot.clear()
            if failure.kind not in GOES_ON:
                remove_checkpoints(self._checkpoints(planned.cell))
            self.fail(planned, failure, started)

    def fail(self, planned: Planned, failure: Failure, started: float) -> None:
        """Record that a cell failed."""
        assert planned.cell is not None
        logger.warning("cell %s failed: %s", planned.shown, failure.reason)
        task = self.schedule.task(planned.key, planned.judged)
        config = {"task": task.config.resolved(), "settings": self.schedule.settings(task, planned.cell.protocol)}
        write_failure(
            planned.cell,
            failure,
            config=config,
            facts=self.bench.facts,
            started=started,
            out=self.bench.out,
            scratch=self.scratch,
        )

    def _run(self, planned: Planned, cell: Cell) -> None:
        task = self.schedule.task(planned.key, planned.judged)
        samples = self.schedule.samples(planned.key)
        train = self.schedule.subset(planned.key, planned.amount)
        split = self.bench.out / "splits" / f"{cell.hashes['split'][:24]}.json"
        if not split.exists():
            ids = {"train": train.sample_ids} | {name: samples[name].sample_ids for name in ("val", "test")}
            about = {key: planned.about[key] for key in ("task", "fraction", "shots", "draw")}
            write_atomic(split, json.dumps(about | {"sha256": cell.hashes["split"]} | ids).encode(), self.scratch)
        before = self.features.seconds
        checkpoints = self._checkpoints(cell)
        finished = run_cell(
            cell,
            task=task,
            subject=self._subject(planned.judged, self.bench.suite.store_of(task.config), checkpoints),
            train=train,
            val=samples["val"],
            test=samples["test"],
            suite=self.bench.suite.config,
            settings=self.schedule.settings(task, cell.protocol),
            facts=self.bench.facts,
            kept=self.kept,
            out=self.bench.out,
            scratch=self.scratch,
        )
        remove_checkpoints(checkpoints)
        times = json.loads((finished.folder / RUN).read_text(encoding="utf-8"))
        times["features_seconds"] = round(self.features.seconds - before, 3)
        write_atomic(finished.folder / RUN, as_json(times).encode(), self.scratch)

    def _checkpoints(self, cell: Cell) -> Path:
        return self.bench.out / CHECKPOINTS / cell.hash

    def _subject(self, one: Judged, store: Store, checkpoints: Path) -> Subject:
        if one.kind == "baseline":
            return Subject(one.name, store, lambda: self.features.of_baseline(one.spec, one.hash, store))

        def load() -> Encoder:
            encoder = self.slot.get(one.spec, one.seed, store)
            if encoder.hash != one.hash:
                raise UserError(
                    f"The encoder '{one.name}' is not the one that the cell was planned for.",
                    "its files or medvlp changed in between",
                    "Run the same command again.",
                )
            return encoder

        def features() -> Any:
            return self.features.of_encoder(load, one.hash, store, one.name)

        return Subject(one.name, store, features, load, self.device, checkpoints)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of one cell, and the folder around them if nothing is left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def ended(folder: Path) -> float:
    """Return when a cell's run ended, in seconds since 1970; 0 where that is not known."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        return float(run.get("ended", run["started"] + run["seconds"]))
    except (OSError, ValueError, KeyError):
        return 0.0


def own_scratch(out: Path, locks: Locks) -> Path:
    """Return a scratch folder of this process, after removing those of runs that have ended."""
    _sweep(out, locks)
    name = f"{locks.me.name}-{uuid.uuid4().hex[:8]}"
    locks.acquire(f"scratch-{name}")
    return out / SCRATCH / name


def remove_scratch(out: Path, scratch: Path, locks: Locks) -> None:
    """Remove a scratch folder, those of runs that have ended, and the folder around them if nothing is left in it."""
    shutil.rmtree(scratch, ignore_errors=True)
    _sweep(out, locks)
    with contextlib.suppress(OSError):
        scratch.parent.rmdir()


def _sweep(out: Path, locks: Locks) -> None:
    for folder in (out / SCRATCH).glob("*"):
        if locks.holder(f"scratch-{folder.name}") is None:
            shutil.rmtree(folder, ignore_errors=True)

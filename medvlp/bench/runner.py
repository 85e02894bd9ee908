"""Runs a suite cell by cell.

Guarantee: a cell that exists is not run again; a failed cell stops no other and is written down with reason and next
step; a run that is killed at any moment and started again leaves the same results as one that was not (times aside,
which are in `run.json`); several runs may write into one folder of results at a time.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medvlp.bench.cells import RESULT, Finished, as_json, run_cell
from medvlp.bench.features import FeatureCache
from medvlp.bench.judged import EncoderSlot, judge, shown_spec
from medvlp.bench.plan import Cell, Judged, not_applicable
from medvlp.bench.schedule import Planned, Schedule
from medvlp.bench.suite import Suite, resolve_suite
from medvlp.bench.summary import COLUMNS, append_failure, sum_up
from medvlp.bench.tracking import SuiteTracker
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.errors import UserError
from medvlp.html.private import public
from medvlp.progress import progress_bar
from medvlp.store.files import write_atomic
from medvlp.tasks.base import Subject
from medvlp.track import run_record

if TYPE_CHECKING:
    from medvlp.store.array_store import Store

logger = logging.getLogger(__name__)

SCRATCH = ".tmp"
_LOST_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True)
class BenchSummary:
    """What a run did. `rows` are the macro means of all settings of the suite, as printed, under `columns`."""

    out: Path
    planned: int
    done: int
    kept: int
    failed: int
    not_applicable: int
    seconds: float
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def run_suite(
    suite: SuiteConfig,
    *,
    stores: Sequence[Path],
    encoders: Sequence[str],
    out: Path,
    track: TrackConfig,
    protocols: Sequence[str] | None = None,
    fractions: Sequence[float] | None = None,
    device: str = "auto",
) -> BenchSummary:
    """Run what is missing of a suite and sum up all of it.

    Args:
        suite: The suite.
        stores: Prepared stores, one per data set of its tasks.
        encoders: Specs as in `medvlp.load_encoder`.
        out: Folder of the results, new or of an earlier run.
        track: Tracking in MLflow.
        protocols: Only these protocols; None runs all.
        fractions: Only these label fractions; None runs all.
        device: Torch device, or `auto`.

    Raises:
        UserError: Tasks and stores do not fit, a filter matches nothing, there is no such device, or the folder cannot
            be written.
    """
    started = time.time()
    from medvlp.models.device import resolve_device

    run = _Run(resolve_suite(suite, stores), Path(out), resolve_device(device))
    try:
        return run.run(encoders, track, protocols, fractions, started)
    except OSError as error:
        if error.errno not in _LOST_DISK:
            raise
        raise UserError(
            f"The results cannot be written: {error.strerror}.",
            out,
            "Free some space or make the folder writable, then run the same command again; what is done is kept.",
        ) from error
    finally:
        run.clean()


class _Run:
    """One run into one folder of results."""

    def __init__(self, suite: Suite, out: Path, device: str) -> None:
        self.suite, self.out, self.device = suite, out, device
        self.scratch = _own_scratch(out)
        self.schedule = Schedule(suite)
        self.slot = EncoderSlot(device)
        self.features = FeatureCache(out / "features", self.scratch)
        self.facts = {key: value for key, value in run_record().items() if key in ("versions", "git")}

    def run(
        self,
        specs: Sequence[str],
        track: TrackConfig,
        protocols: Sequence[str] | None,
        fractions: Sequence[float] | None,
        started: float,
    ) -> BenchSummary:
        """Run the suite; see `run_suite`."""
        known = self._known_encoders()
        judged, failures = judge(self.suite, specs, self.slot, known)
        plan = list(self.schedule.plan(judged))
        wanted = [
            planned
            for planned in plan
            if (not protocols or planned.about["protocol"] in protocols)
            and (not fractions or planned.about["fraction"] in fractions)
        ]
        if not wanted and not failures:
            raise UserError(
                "Nothing of the suite matches the filters.",
                f"suite {self.suite.config.name}, protocols {protocols}, fractions {fractions}",
                "Leave the filters out, or name protocols and fractions that the suite has.",
            )
        encoders = self._write_suite(judged, known)
        tracker = SuiteTracker(track, self.out, self.suite, self.facts)
        status: Literal["FINISHED", "KILLED"] = "KILLED"
        done = kept = 0
        try:
            with progress_bar(f"suite {self.suite.config.name}", len(wanted), "cells") as advance:
                for planned in wanted:
                    finished, failure, is_new = self._one(planned)
                    done, kept = done + is_new, kept + (finished is not None and not is_new)
                    if finished is not None:
                        tracker.cell(finished)
                    if failure is not None:
                        failures.append(failure)
                        append_failure(self.out, failure)
                    advance(1, failed=len(failures))
            rows = sum_up(self.out, self.scratch, self.schedule, plan, judged, encoders, failures)
            tracker.parent.log({"cells": done + kept, "failed": len(failures)}, done + kept + len(failures))
            status = "FINISHED"
        finally:
            tracker.parent.finish(status)
        skipped = not_applicable(self.suite.config, self.schedule.tasks, judged)
        seconds = time.time() - started
        return BenchSummary(self.out, len(wanted), done, kept, len(failures), len(skipped), seconds, COLUMNS, rows)

    def _one(self, planned: Planned) -> tuple[Finished | None, dict[str, Any] | None, bool]:
        """Return the cell, or why it failed, and whether it was run now."""
        cell = planned.cell
        if cell is None:
            error = planned.reason or UserError("The cell could not be planned.")
            return None, _failure(planned.about, error.what, error.where, error.fix), False
        folder = self.out / "cells" / cell.hash
        if (folder / RESULT).exists():
            return Finished.read(folder), None, False
        try:
            return self._run_cell(planned, cell), None, True
        except Exception as error:
            # On a full or lost disk every further cell would fail too: the run ends.
            cause = error.__cause__ if isinstance(error, UserError) else error
            if isinstance(cause, OSError) and cause.errno in _LOST_DISK:
                raise
            if isinstance(error, UserError):
                logger.warning("cell %s failed: %s", _shown(planned.about), error.what)
                failure = _failure(planned.about, error.what, error.where, error.fix)
            else:
                logger.exception("cell %s failed", _shown(planned.about))
                fix = "See the log; run the same command again to try it once more."
                failure = _failure(planned.about, f"{type(error).__name__}: {error}", "", fix)
        return None, failure | {"hash": cell.hash}, False

    def _run_cell(self, planned: Planned, cell: Cell) -> Finished:
        task, one = self.schedule.tasks[planned.key], planned.judged
        samples = self.schedule.samples(planned.key)
        train = self.schedule.subset(planned.key, planned.amount)
        split = self.out / "splits" / f"{cell.hashes['split'][:24]}.json"
        if not split.exists():
            ids = {"train": train.sample_ids} | {name: samples[name].sample_ids for name in ("val", "test")}
            about = {key: planned.about[key] for key in ("task", "fraction", "shots", "draw")}
            write_atomic(split, json.dumps(about | {"sha256": cell.hashes["split"]} | ids).encode(), self.scratch)
        return run_cell(
            cell,
            task=task,
            subject=self._subject(one, self.suite.store_of(task.config)),
            train=train,
            val=samples["val"],
            test=samples["test"],
            suite=self.suite.config,
            settings=self.schedule.settings(task, cell.protocol),
            facts=self.facts,
            out=self.out,
            scratch=self.scratch,
        )

    def _subject(self, one: Judged, store: Store) -> Subject:
        if one.kind == "baseline":
            return Subject(one.name, store, lambda: self.features.of_baseline(one.spec, one.hash, store))

        def load() -> Any:
            return self.slot.get(one.spec, one.seed, store)

        def features() -> Any:
            return self.features.of_encoder(load, one.hash, store, one.name)

        return Subject(one.name, store, features, load, self.device)

    def _known_encoders(self) -> list[dict[str, Any]]:
        path = self.out / "suite.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["encoders"]
        except (OSError, ValueError, KeyError):
            return []
        return [entry for entry in found if {"name", "hash", "kind", "dataset"} <= set(entry)]

    def _write_suite(self, judged: Sequence[Judged], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write `suite.json`, with the encoders of earlier runs into this folder; return all its encoders."""
        entries = [asdict(one) | {"spec": shown_spec(one.spec)} for one in judged if one.kind != "baseline"]
        new = {(entry["name"], entry["hash"], entry["dataset"]) for entry in entries}
        kept = [entry for entry in known if (entry["name"], entry["hash"], entry["dataset"]) not in new]
        record = {
            **self.suite.resolved(),
            "stores": {
                name: {"hash": store.hash, "path": store.path.name} for name, store in self.suite.stores.items()
            },
            "encoders": kept + entries,
            **self.facts,
        }
        write_atomic(self.out / "suite.json", as_json(record).encode(), self.scratch)
        return kept + entries

    def clean(self) -> None:
        """Remove the scratch folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.scratch.parent.is_dir() and not any(self.scratch.parent.iterdir()):
            self.scratch.parent.rmdir()


def _own_scratch(out: Path) -> Path:
    """Return a scratch folder of this process, after removing those of processes that were killed on this machine."""
    host = socket.gethostname()
    for folder in (out / SCRATCH).glob(f"{host}-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdigit() and int(pid) != os.getpid() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    return out / SCRATCH / f"{host}-{os.getpid()}"


def _alive(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))


def _failure(about: dict[str, Any], reason: str, where: str, fix: str) -> dict[str, Any]:
    return {"cell": about} | public({"reason": reason, "where": where, "next": fix})


def _shown(about: dict[str, Any]) -> str:
    return " ".join(str(about[key]) for key in ("task", "protocol", "fraction", "shots", "encoder", "seed", "draw"))

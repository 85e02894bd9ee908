"""Runs a suite: what is planned and has no result yet is run here, by processes, or by jobs of a cluster.

Guarantee: a cell that exists is not run again; a failed cell stops no other and is kept with reason and next step; a
run that is killed at any moment and started again leaves the same results as one that was not (times aside, which are
in `run.json`); several runs into one folder of results share the work and disturb nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medvlp.bench.cells import OK, Finished, as_json, read_result, status_of
from medvlp.bench.encoder_records import EncoderRecords
from medvlp.bench.failures import lost_disk
from medvlp.bench.gates import Marks, audit_once, write_leaks
from medvlp.bench.jobs import run_jobs
from medvlp.bench.judged import judge, shown_spec
from medvlp.bench.plan import Judged, not_applicable
from medvlp.bench.pool import Pool
from medvlp.bench.provenance import trainings_of
from medvlp.bench.queue import Queue
from medvlp.bench.schedule import Planned, Schedule
from medvlp.bench.suite import Suite, resolve_suite
from medvlp.bench.summary import COLUMNS, append_failure, sum_up
from medvlp.bench.tracking import SuiteTracker
from medvlp.bench.work import Bench, Workplace
from medvlp.config.cluster import ClusterConfig
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.errors import UserError
from medvlp.html.private import public
from medvlp.progress import progress_bar
from medvlp.store.files import write_atomic
from medvlp.track import run_record


@dataclass(frozen=True)
class Selection:
    """A part of a suite; a field of None takes all. What is left out is shown as not run, and keeps its hashes."""

    protocols: Sequence[str] | None = None
    fractions: Sequence[float] | None = None
    seeds: Sequence[int] | None = None
    draws: Sequence[int] | None = None
    tasks: Sequence[str] | None = None

    def takes(self, planned: Planned) -> bool:
        """Return whether a cell belongs to the part."""
        about = planned.about
        asked = [(self.protocols, "protocol"), (self.fractions, "fraction"), (self.seeds, "seed")]
        asked += [(self.draws, "draw"), (self.tasks, "task")]
        return all(wanted is None or about[key] in wanted for wanted, key in asked)

    def __str__(self) -> str:
        given = [f"{name} {', '.join(map(str, value))}" for name, value in asdict(self).items() if value is not None]
        return "; ".join(given) or "all"


@dataclass(frozen=True)
class How:
    """How cells are run.

    Args:
        jobs: Processes that run cells, side by side on one device; 0 runs them in this process.
        timeout_minutes: Time for one cell, not counting features that it computes for others too; None: no limit.
        cluster: A batch system that runs the cells.

    Raises:
        UserError: A setting has no effect beside the others.
    """

    jobs: int = 0
    timeout_minutes: float | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.jobs and self.cluster.kind != "none":
            raise UserError(
                "Jobs of a cluster and processes of this machine exclude each other.",
                f"jobs = {self.jobs}, cluster = {self.cluster.kind}",
                "Leave --jobs out; cluster.max_jobs says how many run at a time.",
            )
        if self.timeout_minutes is not None and not self.jobs and self.cluster.kind == "none":
            raise UserError(
                "A cell that runs in the command's own process cannot be stopped.",
                f"timeout = {self.timeout_minutes:g} minutes",
                "Give --jobs 1 or more.",
            )


EVERYTHING, HERE = Selection(), How()


@dataclass(frozen=True)
class BenchSummary:
    """What a run did. `rows` are the macro means of all settings of the suite, as printed, under `columns`."""

    out: Path
    planned: int
    done: int
    kept: int
    failed: int
    no_store: int
    not_applicable: int
    leaked: int
    """Cells that a leak touches."""
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
    only: Selection = EVERYTHING,
    how: How = HERE,
    device: str = "auto",
    missing_stores: bool = False,
    audit: bool = True,
) -> BenchSummary:
    """Run what is missing of a suite and sum up all of it.

    Args:
        suite: The suite.
        stores: Prepared stores, one per data set of its tasks.
        encoders: Specs as in `medvlp.load_encoder`.
        out: Folder of the results, new or of an earlier run.
        track: Tracking in MLflow.
        only: Which part of the suite is run.
        how: In which processes, and how long a cell may take.
        device: Torch device, or `auto`.
        missing_stores: Go on without a store for a data set; its cells are shown as missing.
        audit: Audit the stores before, once for each set of them, and mark the cells that a leak touches.

    Raises:
        UserError: Tasks and stores do not fit, the selection matches nothing, there is no such device, or the folder
            cannot be written.
    """
    started = time.time()
    run = _Run(resolve_suite(suite, stores, missing=missing_stores), Path(out).absolute(), device, how)
    try:
        return run.run(encoders, track, only, started, audit)
    except (OSError, UserError) as error:
        lost = lost_disk(error)
        if lost is None:
            raise
        raise UserError(
            f"The results cannot be written: {lost.strerror}.",
            out,
            "Free some space or make the folder writable, then run the same command again; what is done is kept.",
        ) from error
    finally:
        run.place.close()


class _Run:
    """One run into one folder of results."""

    def __init__(self, suite: Suite, out: Path, device: str, how: How) -> None:
        self.suite, self.out, self.how = suite, out, how
        facts = {key: value for key, value in run_record().items() if key in ("versions", "git")}
        self.bench = Bench(suite, out, device, facts)
        self.schedule = Schedule(suite)
        # The machine that submits jobs need not have their device.
        here = self.bench if how.cluster.kind in ("none", "debug") else Bench(suite, out, "cpu", facts)
        self.place = Workplace(here, self.schedule)

    def run(
        self, specs: Sequence[str], track: TrackConfig, only: Selection, started: float, audit: bool
    ) -> BenchSummary:
        """Run the suite; see `run_suite`."""
        known = self._known_encoders()
        records = EncoderRecords(self.out, self.place.scratch)
        judged, failures = judge(self.suite, specs, self.place.slot, known, records)
        plan = list(self.schedule.plan(judged))
        wanted = [one for one in plan if only.takes(one) and one.about["dataset"] in self.suite.stores]
        if not wanted and not failures:
            raise UserError(
                "Nothing of the suite matches the selection.",
                f"suite {self.suite.config.name}: {only}",
                "Leave the selection out, or name protocols, fractions, seeds, draws and tasks that the suite has.",
            )
        encoders = self._write_suite(judged)
        leaks = self._audit(judged, plan) if audit else {}
        tracker = SuiteTracker(track, self.out, self.suite, self.bench.facts, self.place.locks)
        status: Literal["FINISHED", "KILLED"] = "KILLED"
        done = kept = 0
        unplanned = [_unplanned(planned) for planned in wanted if planned.cell is None]
        failures += unplanned
        try:
            with progress_bar(f"suite {self.suite.config.name}", len(wanted), "cells") as advance:
                advance(len(unplanned), failed=len(failures))
                for planned, is_new in self._cells([planned for planned in wanted if planned.cell is not None]):
                    folder = self.bench.folder(planned)
                    if status_of(folder) == OK:
                        done, kept = done + is_new, kept + (not is_new)
                        tracker.cell(Finished.read(folder))
                    else:
                        failures.append(failed_cell(planned.about, folder))
                        append_failure(self.out, failures[-1])
                    advance(1, failed=len(failures))
            rows = sum_up(self.out, self.place.scratch, self.schedule, plan, judged, encoders, failures, leaks)
            tracker.parent.log({"cells": done + kept, "failed": len(failures)}, done + kept + len(failures))
            status = "FINISHED"
        finally:
            tracker.parent.finish(status)
        return BenchSummary(
            self.out,
            planned=len(wanted),
            done=done,
            kept=kept,
            failed=len(failures),
            no_store=sum(one.about["dataset"] in self.suite.missing for one in plan),
            leaked=len(leaks),
            not_applicable=len(not_applicable(self.suite.config, self.schedule.tasks, judged)),
            seconds=time.time() - started,
            columns=COLUMNS,
            rows=rows,
        )

    def _audit(self, judged: Sequence[Judged], plan: Sequence[Planned]) -> dict[str, list[str]]:
        """Audit the stores and return the leaks that touch each cell."""
        encoders = dict.fromkeys((one.name, one.spec) for one in judged if one.kind == "encoder")
        trainings, further = trainings_of(encoders)
        stores = list(self.suite.stores.values())
        found = audit_once(stores, further, self.out, self.place.scratch, self.place.locks)
        marks = Marks(found, self.schedule, trainings)
        return write_leaks(self.out, self.place.scratch, self.place.locks, marks, plan)

    def _cells(self, planned: Sequence[Planned]) -> Iterator[tuple[Planned, bool]]:
        """Yield every cell when it has a result, and whether it was run by this command."""
        how, queue = self.how, Queue(self.bench, planned, self.place.locks)
        if how.cluster.kind != "none":
            yield from run_jobs(queue, self.place, how.cluster, how.timeout_minutes)
        elif how.jobs:
            self.place.slot.clear()
            pool = Pool(self.bench, how.jobs, how.timeout_minutes, self.place)
            try:
                yield from pool.run(queue)
            finally:
                pool.close()
        else:
            yield from self.place.run_all(queue)

    def _known_encoders(self) -> list[dict[str, Any]]:
        path = self.out / "suite.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["encoders"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [entry for entry in found if {"name", "hash", "kind", "dataset"} <= set(entry)]

    def _write_suite(self, judged: Sequence[Judged]) -> list[dict[str, Any]]:
        """Write `suite.json`, with the encoders of other runs into this folder; return all its encoders."""
        entries = [asdict(one) | {"spec": shown_spec(one.spec)} for one in judged if one.kind != "baseline"]
        new = {(entry["name"], entry["hash"], entry["dataset"]) for entry in entries}
        with self.place.locks.waited_for("suite"):
            known = self._known_encoders()
            kept = [entry for entry in known if (entry["name"], entry["hash"], entry["dataset"]) not in new]
            record = {
                **self.suite.resolved(),
                "stores": {
                    name: {"hash": store.hash, "path": store.path.name} for name, store in self.suite.stores.items()
                },
                "encoders": kept + entries,
                "current": sorted(self.schedule.current),
                **self.bench.facts,
            }
            write_atomic(self.out / "suite.json", as_json(record).encode(), self.place.scratch)
        return kept + entries


def failed_cell(about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the line of `failures.jsonl` of a cell that failed."""
    failure = read_result(folder)["failure"]
    return {"cell": about, **failure, "hash": folder.name}


def _unplanned(planned: Planned) -> dict[str, Any]:
    error = planned.reason or UserError("The cell could not be planned.")
    said = {"kind": "input", "reason": error.what, "where": error.where, "next": error.fix}
    return {"cell": planned.about} | public(said)

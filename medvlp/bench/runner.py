"""Runs a suite cell by cell.

Guarantee: a cell that exists is not run again; a failed cell stops no other and is written down with reason and next
step; a run that is killed at any moment and started again leaves the same results as one that was not (times aside,
which are in `run.json`); several runs may write into one folder of results at a time.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.bench import stats
from medvlp.bench.cells import RESULT, Finished, as_json, run_cell
from medvlp.bench.examples import write_examples
from medvlp.bench.features import FeatureCache
from medvlp.bench.judged import EncoderSlot, judge, shown_spec
from medvlp.bench.plan import Amount, Cell, Judged, not_applicable, settings_of
from medvlp.bench.results import finished_cells
from medvlp.bench.suite import Suite, resolve_suite
from medvlp.bench.tracking import SuiteTracker
from medvlp.config.base import json_sha256
from medvlp.config.schema import SuiteConfig, TrackConfig
from medvlp.errors import UserError
from medvlp.progress import progress_bar
from medvlp.store.files import write_atomic
from medvlp.tasks import TASKS
from medvlp.tasks.base import Samples, Subject, Task
from medvlp.track import run_record

if TYPE_CHECKING:
    from medvlp.store.array_store import Store

logger = logging.getLogger(__name__)

SCRATCH = ".tmp"
COLUMNS = ("task", "protocol", "labels", "encoder", "AUROC", "95 % interval", "n", "cells")


@dataclass(frozen=True)
class BenchSummary:
    """What a run did. `rows` are the macro AUROCs of all settings of the suite, as printed, under `columns`."""

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
        UserError: Tasks and stores do not fit, a filter matches nothing, or the folder cannot be written.
    """
    started = time.time()
    resolved = resolve_suite(suite, stores)
    run = _Run(resolved, Path(out), _device(device))
    try:
        return run.run(encoders, track, protocols, fractions, started)
    finally:
        run.clean()


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class _Planned:
    """A cell of the plan with what it needs; `cell` is None where planning failed, for `reason`."""

    about: dict[str, Any]
    setting: tuple[str, str, float, int, str]
    version: int
    judged: Judged
    key: str
    amount: Amount
    cell: Cell | None
    reason: UserError | None = None


class _Run:
    """One run into one folder of results."""

    def __init__(self, suite: Suite, out: Path, device: str) -> None:
        self.suite, self.out, self.device = suite, out, device
        self.scratch = _own_scratch(out)
        self.tasks: dict[str, Task] = {key: TASKS.get(task.type)(task) for key, task in suite.tasks.items()}
        self.slot = EncoderSlot(device)
        self.features = FeatureCache(out / "features", self.scratch)
        self.facts = {key: value for key, value in run_record().items() if key in ("versions", "git")}
        self._samples: dict[str, dict[str, Samples] | UserError] = {}
        self._subsets: dict[tuple[str, Amount], Samples] = {}

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
        plan = list(self._plan(judged))
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
        status = "KILLED"
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
                        self._append_failure(failure)
                    advance(1, failed=len(failures))
            status = "FINISHED"
            rows = self._sum_up(plan, encoders, judged, failures)
            tracker.parent.log({"cells": done + kept, "failed": len(failures)}, done + kept + len(failures))
        finally:
            tracker.parent.finish(status)  # type: ignore[arg-type]
        skipped = not_applicable(self.suite.config, dict(self.suite.tasks), judged)
        seconds = time.time() - started
        return BenchSummary(self.out, len(wanted), done, kept, len(failures), len(skipped), seconds, COLUMNS, rows)

    def _one(self, planned: _Planned) -> tuple[Finished | None, dict[str, Any] | None, bool]:
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
        except UserError as error:
            logger.warning("cell %s failed: %s", _shown(planned.about), error.what)
            failure = _failure(planned.about, error.what, error.where, error.fix)
        except OSError as error:
            # A full or lost disk fails every further cell: stop with its name.
            raise UserError(
                f"The results cannot be written: {error.strerror or error}.",
                self.out,
                "Free some space or make the folder writable, then run the same command again; what is done is kept.",
            ) from error
        except Exception as error:
            logger.exception("cell %s failed", _shown(planned.about))
            reason = f"{type(error).__name__}: {error}"
            failure = _failure(
                planned.about, reason, "", "See the log; run the same command again to try it once more."
            )
        return None, failure | {"hash": cell.hash}, False

    def _run_cell(self, planned: _Planned, cell: Cell) -> Finished:
        task, one = self.tasks[planned.key], planned.judged
        samples = self._task_samples(planned.key)
        train = self._subset(planned.key, planned.amount)
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

    def _task_samples(self, key: str) -> dict[str, Samples]:
        if key not in self._samples:
            task = self.tasks[key]
            try:
                self._samples[key] = task.samples(self.suite.store_of(task.config))
            except UserError as error:
                logger.warning("task %s: %s", task.config.name, error.what)
                self._samples[key] = error
        found = self._samples[key]
        if isinstance(found, UserError):
            raise found
        return found

    def _subset(self, key: str, amount: Amount) -> Samples:
        if (key, amount) not in self._subsets:
            train = self._task_samples(key)["train"]
            self._subsets[key, amount] = self.tasks[key].training_subset(
                train, fraction=amount.fraction, shots=amount.shots, draw=amount.draw
            )
        return self._subsets[key, amount]

    def _plan(self, judged: Sequence[Judged]) -> Iterator[_Planned]:
        """Yield every cell once, encoder by encoder."""
        config = self.suite.config
        seen: set[str] = set()
        for key, _, protocol, amount, seed, one in settings_of(config, dict(self.suite.tasks), judged):
            task = self.tasks[key]
            about: dict[str, Any] = {
                "task": task.config.name,
                "task_version": task.config.version,
                "dataset": task.config.dataset,
                "encoder": one.name,
                "protocol": protocol,
                "fraction": amount.fraction,
                "seed": seed,
                "draw": amount.draw,
                "shots": amount.shots,
            }
            setting = (task.config.name, protocol, amount.fraction, amount.shots, one.name)
            planned = _Planned(about, setting, task.config.version, one, key, amount, None)
            try:
                samples = self._task_samples(key)
                parts = [self._subset(key, amount), samples["val"], samples["test"]]
            except UserError as error:
                yield replace(planned, reason=error)
                continue
            hashes = {
                "store": self.suite.store_of(task.config).hash,
                "split": json_sha256([part.sha256 for part in parts]),
                "encoder": one.hash,
                "task": task.config.sha256(),
                "config": self._config_hash(task, protocol),
            }
            cell = Cell(**about, hashes=hashes)
            if cell.hash not in seen:
                seen.add(cell.hash)
                yield replace(planned, cell=cell)

    def _config_hash(self, task: Task, protocol: str) -> str:
        suite = self.suite.config
        bootstrap = {"resamples": suite.bootstrap_resamples, "seed": suite.bootstrap_seed, "alpha": suite.alpha}
        return json_sha256(task.settings(protocol) | {"bootstrap": bootstrap})

    def _known_encoders(self) -> list[dict[str, Any]]:
        path = self.out / "suite.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["encoders"]
        except (OSError, ValueError, KeyError):
            return []
        return [entry for entry in found if {"name", "hash", "kind", "dataset"} <= set(entry)]

    def _write_suite(self, judged: Sequence[Judged], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write `suite.json`, with the encoders of earlier runs into this folder; return all its encoders."""
        entries = [{**one.__dict__, "spec": shown_spec(one.spec)} for one in judged if one.kind != "baseline"]
        new = {(entry["name"], entry["hash"], entry["dataset"]) for entry in entries}
        kept = [entry for entry in known if (entry["name"], entry["hash"], entry["dataset"]) not in new]
        record = {
            "suite": self.suite.config.resolved(),
            "tasks": {task.name: task.resolved() for task in self.suite.tasks.values()},
            "stores": {
                name: {"hash": store.hash, "path": store.path.name} for name, store in self.suite.stores.items()
            },
            "encoders": kept + entries,
            **self.facts,
        }
        write_atomic(self.out / "suite.json", as_json(record).encode(), self.scratch)
        return kept + entries

    def _current(self) -> list[Finished]:
        """Return the cells in the folder that belong to this suite as it is now, of this and of earlier runs."""
        wanted = {
            (self.suite.store_of(task.config).hash, task.config.sha256(), self._config_hash(task, protocol))
            for task in self.tasks.values()
            for protocol in ("linear_probe", "knn", "few_shot", "fine_tune", "zero_shot")
        }
        if not (self.out / "cells").is_dir():
            return []
        return [
            cell
            for cell in finished_cells(self.out)
            if tuple(cell.record["hashes"][key] for key in ("store", "task", "config")) in wanted
        ]

    def _sum_up(
        self,
        plan: Sequence[_Planned],
        encoders: list[dict[str, Any]],
        judged: Sequence[Judged],
        failures: list[dict[str, Any]],
    ) -> list[tuple[Any, ...]]:
        """Write aggregate, comparisons, examples and failures; return the rows of the summary."""
        suite = self.suite.config
        cells = self._current()
        rows = stats.aggregate(cells, suite.alpha)
        versions = {task.name: task.version for task in self.suite.tasks.values()}
        planned = [(one.setting, one.version, self._reason(one, failures)) for one in plan]
        planned += [
            ((task, protocol, 1.0, 0, encoder), versions[task], "not applicable: the encoder has no text side")
            for task, protocol, encoder in not_applicable(suite, dict(self.suite.tasks), judged)
        ]
        rows += stats.missing_rows(planned, {cell.setting for cell in cells})
        write_atomic(self.out / "aggregate.json", as_json(rows).encode(), self.scratch)
        order = list(dict.fromkeys([entry["name"] for entry in encoders] + [one.name for one in judged]))
        compared = stats.compare(cells, order, suite.alpha)
        write_atomic(self.out / "comparisons.json", as_json(compared).encode(), self.scratch)
        self._write_examples()
        self._write_failures(failures, cells)
        return _summary_rows(rows, order)

    @staticmethod
    def _reason(planned: _Planned, failures: list[dict[str, Any]]) -> str:
        for failure in failures:
            about = failure.get("cell", {})
            if all(
                about.get(key) == planned.about[key] for key in ("task", "protocol", "fraction", "shots", "encoder")
            ):
                return f"failed: {failure['reason']}"
        return "not run"

    def _write_examples(self) -> None:
        if (self.out / "examples" / "index.json").exists():
            return
        stores = []
        for dataset, store in self.suite.stores.items():
            keys = [key for key, task in self.suite.tasks.items() if task.dataset == dataset]
            found = [self._samples.get(key) for key in keys]
            tests = [samples["test"] for samples in found if isinstance(samples, dict)]
            if tests:
                stores.append((store, tests))
        write_examples(stores, self.out / "examples", self.scratch)

    def _append_failure(self, failure: dict[str, Any]) -> None:
        with (self.out / "failures.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(failure, ensure_ascii=False) + "\n")

    def _write_failures(self, failures: list[dict[str, Any]], cells: Sequence[Finished]) -> None:
        """Write the failures of now, and those of earlier runs that are neither mended nor tried again."""
        path = self.out / "failures.jsonl"
        records = list(failures)
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    records.append(json.loads(line))
                except ValueError:
                    continue
        mended = {cell.folder.name for cell in cells}
        kept: dict[str, dict[str, Any]] = {}
        for record in records:
            if record.get("hash") not in mended:
                kept.setdefault(json_sha256([record.get("cell"), record.get("encoder")]), record)
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept.values())
        write_atomic(path, text.encode(), self.scratch)

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
        if pid.isdigit() and int(pid) != os.getpid() and not Path(f"/proc/{pid}").exists() and Path("/proc").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    return out / SCRATCH / f"{host}-{os.getpid()}"


def _failure(about: dict[str, Any], reason: str, where: str, fix: str) -> dict[str, Any]:
    return {"cell": about, "reason": reason, "where": where, "next": fix}


def _shown(about: dict[str, Any]) -> str:
    return " ".join(str(about[key]) for key in ("task", "protocol", "fraction", "shots", "encoder", "seed", "draw"))


def _summary_rows(rows: list[dict[str, Any]], order: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the macro AUROC of every setting, best encoder of a setting first."""
    chosen = [row for row in rows if row["metric"] == "auroc" and row["label"] == "macro"]
    rank = {name: i for i, name in enumerate(order)}

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        value = -2.0 if row["value"] is None or row["value"] != row["value"] else row["value"]
        return row["task"], row["protocol"], row["fraction"], row["shots"], -value, rank.get(row["encoder"], 0)

    shown = []
    for row in sorted(chosen, key=key):
        labels = f"{row['shots']} per class" if row["shots"] else f"{100 * row['fraction']:g} %"
        if row["protocol"] == "zero_shot":
            labels = "none"
        scored = row["value"] is not None and row["value"] == row["value"]
        shown.append(
            (
                row["task"],
                row["protocol"],
                labels,
                row["encoder"],
                round(row["value"], 3) if scored else row["status"],
                f"{row['low']:.3f} to {row['high']:.3f}" if scored else "",
                row["n"] if scored else "",
                len(row.get("cells", ())),
            )
        )
    return shown

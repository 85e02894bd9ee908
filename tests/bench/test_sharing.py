"""Several runs, processes and jobs at one folder of results; what goes wrong in a cell, and on the disk."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import psutil
import pytest

from medvlp.bench import work
from medvlp.bench.features import FeatureCache
from medvlp.bench.locks import Holder, Locks
from medvlp.bench.results import failed_cells, finished_cells
from medvlp.bench.runner import BenchSummary, How, Selection, run_suite
from medvlp.config.cluster import ClusterConfig
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.errors import UserError
from medvlp.zoo.encoder import Encoder

KNN, PROBE = {"protocols": ["knn"]}, {"protocols": ["linear_probe"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_store.make_store(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def _forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    # A forked worker has the patches of its test, and is there at once.
    monkeypatch.setattr("medvlp.bench.pool.START", "fork")


def suite_of(folder: Path, *entries: dict[str, Any], **changes: Any) -> SuiteConfig:
    return bench_store.suite(folder, list(entries), **changes).model_copy(update={"baselines": ("majority",)})


def run(suite: SuiteConfig, store: Path, out: Path, **more: Any) -> BenchSummary:
    options: dict[str, Any] = {"track": TrackConfig(mlflow=False), "device": "cpu", "audit": False}
    return run_suite(suite, stores=[store], encoders=[bench_store.RANDOM], out=out, **options | more)


def forked(function: Callable[[], None]) -> int:
    """Run a function in a process of its own and return how it ended."""
    pid = os.fork()
    if not pid:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def content(root: Path) -> dict[str, Any]:
    """Return everything in a folder of results that is not a time or a curve."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and "track" not in p.parts and p.name != "run.json"):
        name = str(path.relative_to(root))
        found[name] = json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
    return found


def failures(out: Path) -> dict[str, dict[str, Any]]:
    return {cell["protocol"]: cell["failure"] for cell in failed_cells(out)}


# Locks


def test_a_lock_is_held_by_one_and_named(tmp_path: Path) -> None:
    first, second = Locks(tmp_path), Locks(tmp_path)
    assert first.acquire("cell")
    assert not second.acquire("cell")
    holder = second.holder("cell")
    assert (holder.pid, holder.host) == (os.getpid(), Holder.current().host)
    second.release("cell")  # not its own: stays
    assert not second.acquire("cell")
    first.release("cell")
    assert second.acquire("cell")
    second.close()
    assert not list(tmp_path.glob("*"))


def test_a_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    assert forked(lambda: os.kill(os.getpid(), signal.SIGKILL) if Locks(tmp_path).acquire("cell") else None) == -9
    assert [path.name for path in tmp_path.glob("*")] == ["cell.lock"]
    locks = Locks(tmp_path)
    assert locks.holder("cell") is None
    assert locks.acquire("cell")
    locks.close()


def other_machine(locks: Locks, name: str, age: float) -> Path:
    path = locks.folder / f"{name}.lock"
    locks.folder.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": "node7", "space": "x", "pid": 1, "start": 0.0, "token": "theirs"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_lock_of_another_machine_is_taken_over_when_it_has_not_beaten_for_long(tmp_path: Path) -> None:
    locks = Locks(tmp_path, stale_seconds=100)
    other_machine(locks, "beating", age=50)
    other_machine(locks, "silent", age=150)
    assert not locks.acquire("beating")
    assert locks.acquire("silent")
    half = tmp_path / "half.lock"
    half.write_text('{"host": "no')  # killed while it wrote its name
    assert not locks.acquire("half")
    os.utime(half, (time.time() - 150,) * 2)
    assert locks.acquire("half")
    locks.close()
    assert [path.name for path in tmp_path.glob("*.lock")] == ["beating.lock"]


def test_a_held_lock_beats(tmp_path: Path) -> None:
    locks = Locks(tmp_path, beat_seconds=0.05)
    locks.acquire("cell")
    path = tmp_path / "cell.lock"
    os.utime(path, (0, 0))
    end = time.monotonic() + 20
    while path.stat().st_mtime == 0:
        assert time.monotonic() < end, "no beat"
        time.sleep(0.02)
    locks.close()


def test_whoever_takes_over_too_late_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = Locks(tmp_path, stale_seconds=1)
    path = other_machine(locks, "cell", age=10)
    rename = Path.rename

    def slow(self: Path, target: Path) -> Path:
        # Between look and rename another run has taken the lock over.
        self.write_text(json.dumps({"host": "node8", "space": "x", "pid": 2, "start": 0.0, "token": "newer"}))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slow)
    assert not locks.acquire("cell")
    assert json.loads(path.read_text())["host"] == "node8"
    locks.close()


# Several at a time


def test_two_runs_share_the_cells_and_leave_the_same_results(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(tmp_path, PROBE | {"fractions": [0.5, 1.0], "draws": 3}, KNN)
    monkeypatch.setattr("medvlp.bench.features.PART_IMAGES", 8)
    run(suite, store, tmp_path / "alone")
    log, run_cell = tmp_path / "log", work.run_cell

    def logged(cell: Any, **more: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {cell.hash}\n")
        time.sleep(0.2)  # so that neither is through before the other has begun
        return run_cell(cell, **more)

    parts, save = tmp_path / "parts", FeatureCache._save

    def saved(self: FeatureCache, path: Path, table: np.ndarray) -> None:
        with parts.open("a") as file:
            file.write(f"{path.relative_to(self.folder)}\n")
        time.sleep(0.1)
        save(self, path, table)

    monkeypatch.setattr(work, "run_cell", logged)
    monkeypatch.setattr(FeatureCache, "_save", saved)
    out = tmp_path / "both"
    processes = [multiprocessing.get_context("fork").Process(target=run, args=(suite, store, out)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len({pid for pid, _ in lines}) == 2, "one of them did everything"
    assert sorted(cell for _, cell in lines) == sorted(cell.folder.name for cell in finished_cells(tmp_path / "alone"))
    computed = [line for line in parts.read_text().splitlines() if "/parts/" in line]
    assert len(computed) == len(set(computed)) == 8, "60 images in parts of 8, each computed once"
    assert content(out) == content(tmp_path / "alone")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}


def test_runs_of_different_suites_into_one_folder_share_what_they_have_in_common(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = suite_of(tmp_path / "a", PROBE | {"fractions": [0.5, 1.0]}, KNN)
    two = suite_of(
        tmp_path / "b", PROBE | {"fractions": [1.0], "seeds": [0]}, {"protocols": ["few_shot"], "shots": [3]}
    )
    log, run_cell = tmp_path / "log", work.run_cell

    def logged(cell: Any, **more: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{cell.hash}\n")
        time.sleep(0.2)
        return run_cell(cell, **more)

    out = tmp_path / "both"
    with monkeypatch.context() as patch:
        patch.setattr(work, "run_cell", logged)
        runs = [
            multiprocessing.get_context("fork").Process(target=run, args=(suite, store, out)) for suite in (one, two)
        ]
        for process in runs:
            process.start()
        for process in runs:
            process.join()
    assert [process.exitcode for process in runs] == [0, 0]
    lines = log.read_text().splitlines()
    assert len(lines) == len(set(lines)) == len(finished_cells(out)), "a cell of both was run once"
    for suite, name in ((one, "one"), (two, "two")):
        summary = run(suite, store, out)
        assert (summary.done, summary.failed) == (0, 0)
        alone = run(suite, store, tmp_path / name)
        assert set(alone.rows) <= set(summary.rows), "tables hold the suite that was run last, whole"
    assert not list(out.glob("locks/*"))


CLUSTERS = {
    "debug": ClusterConfig(kind="debug"),
    "local": ClusterConfig(kind="local", max_jobs=1, tasks_per_job=9),
}


@pytest.mark.parametrize(
    "how", [How(jobs=2), *(How(cluster=kind) for kind in CLUSTERS.values())], ids=["jobs", *CLUSTERS]
)
def test_processes_and_jobs_leave_the_same_results(store: Path, tmp_path: Path, how: How) -> None:
    suite = suite_of(tmp_path, PROBE | {"fractions": [0.5, 1.0], "draws": 2}, KNN)
    run(suite, store, tmp_path / "here")
    summary = run(suite, store, tmp_path / "other", how=how)
    assert (summary.done, summary.failed) == (7, 0)
    assert content(tmp_path / "other") == content(tmp_path / "here")
    assert not list((tmp_path / "other").glob("locks/*"))
    assert run(suite, store, tmp_path / "other", how=how).kept == 7


def test_a_command_that_is_killed_takes_its_processes_along_and_is_gone_on_with(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(tmp_path, PROBE | {"fractions": [0.5, 1.0], "draws": 3}, KNN)
    run(suite, store, tmp_path / "whole")
    out, workers, run_cell = tmp_path / "out", tmp_path / "workers", work.run_cell

    def slow(cell: Any, **more: Any) -> Any:
        with workers.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return run_cell(cell, **more)

    def until(ready: Callable[[], object]) -> None:
        end = time.monotonic() + 200
        while not ready():
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.05)

    with monkeypatch.context() as patch:
        patch.setattr(work, "run_cell", slow)
        for kills in range(1, 3):
            pid = os.fork()
            if not pid:
                run(suite, store, out, how=How(jobs=2))
                os._exit(0)
            until(lambda: len(list(out.glob("cells/*/result.json"))) >= kills)  # noqa: B023
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    until(lambda: not any(is_alive(int(line)) for line in workers.read_text().split()))
    before = len(finished_cells(out))
    summary = run(suite, store, out)
    assert (summary.kept, summary.done) == (before, 9 - before)
    assert content(out) == content(tmp_path / "whole")


def test_settings_of_processes_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        How(jobs=2, cluster=ClusterConfig(kind="local"))
    with pytest.raises(UserError, match="cannot be stopped"):
        How(timeout_minutes=1)


# Failures


def test_a_cell_that_takes_too_long_or_dies_stops_no_other(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(tmp_path, PROBE, KNN)
    how, out = How(jobs=1, timeout_minutes=0.02), tmp_path / "out"
    run(suite, store, out, only=Selection(protocols=["linear_probe"]))  # however slow the machine
    with monkeypatch.context() as patch:
        patch.setattr("medvlp.tasks.classification.nearest_neighbours", lambda *_: time.sleep(600))
        summary = run(suite, store, out, how=how)
    assert (summary.kept, summary.failed) == (2, 1)
    assert failures(out)["knn"]["kind"] == "timeout"
    assert "after 0.02 minutes" in failures(out)["knn"]["reason"]
    rows = json.loads((out / "aggregate.json").read_text())
    assert any(row["status"].startswith("failed: The cell was stopped") for row in rows)
    with monkeypatch.context() as patch:
        patch.setattr("medvlp.tasks.classification.nearest_neighbours", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        summary = run(suite, store, out, how=How(jobs=2))
    assert (summary.done, summary.kept, summary.failed) == (0, 2, 1)
    assert failures(out)["knn"]["kind"] == "memory"
    assert "signal 9" in (out / "failures.jsonl").read_text()
    assert run(suite, store, out).done == 1
    assert (failed_cells(out), (out / "failures.jsonl").read_text()) == ([], "")
    assert not (out / ".tmp").exists()
    assert not (out / "locks").exists()


def test_a_process_that_never_starts_is_given_up(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvlp.bench.pool._serve", lambda *_: time.sleep(600))
    monkeypatch.setattr("medvlp.bench.pool.START_SECONDS", 0.2)
    summary = run(suite_of(tmp_path, KNN), store, tmp_path / "out", how=How(jobs=1))
    assert (summary.done, summary.failed) == (0, 2)
    assert {cell["failure"]["kind"] for cell in failed_cells(tmp_path / "out")} == {"died"}
    assert "did not start" in (tmp_path / "out" / "failures.jsonl").read_text()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")], ids=["cpu", "gpu"]
)
def test_missing_memory_is_told_apart(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("medvlp.tasks.classification.nearest_neighbours", full)
    run(suite_of(tmp_path, PROBE, KNN), store, tmp_path / "out")
    assert {name: found["kind"] for name, found in failures(tmp_path / "out").items()} == {"knn": "memory"}


def test_an_encoder_that_gives_nan_fails_its_cells_and_leaves_no_table(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Encoder.encode_stored

    def broken(self: Encoder, pixels: np.ndarray) -> Any:
        found = encode(self, pixels)
        pooled = found.pooled.clone()
        pooled[-1, 0] = float("nan")
        return replace(found, pooled=pooled)

    monkeypatch.setattr(Encoder, "encode_stored", broken)
    summary = run(suite_of(tmp_path, PROBE, KNN), store, tmp_path / "out")
    assert (summary.done, summary.failed) == (1, 2)
    found = failures(tmp_path / "out")
    assert {name: failure["kind"] for name, failure in found.items()} == {
        "linear_probe": "not_finite",
        "knn": "not_finite",
    }
    assert "1 of 60 images are not finite" in found["knn"]["reason"]
    assert len(list((tmp_path / "out").glob("features/*/features.npy"))) == 1, "that of the baseline"


def test_a_head_that_gives_nan_fails_its_cell(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "medvlp.tasks.classification.nearest_neighbours",
        lambda *_: (lambda features: np.full((len(features), 1), np.nan), {}),
    )
    run(suite_of(tmp_path, KNN), store, tmp_path / "out")
    assert failures(tmp_path / "out")["knn"]["kind"] == "not_finite"


def test_a_draw_without_positives_of_a_label_says_so_and_a_task_without_any_fails(store: Path, tmp_path: Path) -> None:
    rare = [
        {"name": "Pneumonia", "positive": "Pneumonia", "negative": "No Finding"},
        {"name": "Hernia", "positive": "Hernia"},
    ]
    run(suite_of(tmp_path, PROBE, labels=rare), store, tmp_path / "some")
    (cell,) = [cell for cell in finished_cells(tmp_path / "some") if cell.record["encoder"] != "majority"]
    assert cell.result["best_params"]["Hernia"] == {"constant": 0.0}
    value = {(row["metric"], row["label"]): row["value"] for row in cell.result["scores"]}
    assert value["auroc", "Hernia"] is None
    assert value["auroc", "macro"] == value["auroc", "Pneumonia"]
    run(suite_of(tmp_path, PROBE, labels=rare[1:], name="none"), store, tmp_path / "none")
    text = (tmp_path / "none" / "failures.jsonl").read_text()
    assert "both positives and negatives" in text


def test_a_failure_never_takes_the_place_of_numbers(store: Path, tmp_path: Path) -> None:
    from medvlp.bench.cells import write_folder

    out = tmp_path / "out"
    run(suite_of(tmp_path, KNN), store, out)
    cell = finished_cells(out)[0]
    before = (cell.folder / "result.json").read_bytes()
    failed = {"result.json": lambda path: path.write_text('{"status": "failed"}')}
    write_folder(cell.folder, failed, tmp_path / ".tmp")
    assert (cell.folder / "result.json").read_bytes() == before


# The disk


def test_a_limit_of_file_size_ends_the_run_and_leaves_nothing_half_written(store: Path, tmp_path: Path) -> None:
    suite, out = suite_of(tmp_path, PROBE, KNN), tmp_path / "out"
    said = tmp_path / "said"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        try:
            run(suite, store, out)
        except UserError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
            said.write_text(str(error)[:500])

    assert forked(limited) == 0
    assert "cannot be written" in said.read_text()
    assert "what is done is kept" in said.read_text()
    assert not (out / ".tmp").exists()
    assert not (out / "locks").exists()
    for cell in out.glob("cells/*"):
        assert {"cell.json", "result.json", "run.json", "predictions.parquet"} <= {path.name for path in cell.iterdir()}
    assert run(suite, store, out).failed == 0


@pytest.mark.parametrize("how", [How(), How(jobs=1)], ids=["here", "jobs"])
def test_a_full_disk_ends_the_run_also_in_a_process(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: How
) -> None:
    suite, out, calls = suite_of(tmp_path, PROBE, KNN), tmp_path / "out", []
    write = os.fsync

    def full(descriptor: int) -> None:
        calls.append(1)
        if len(list(out.glob("cells/*"))) == 1 and ".tmp" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left") as caught:
            run(suite, store, out, how=how)
    assert "what is done is kept" in caught.value.fix
    assert len(finished_cells(out)) == 1
    assert not (out / ".tmp").exists()
    summary = run(suite, store, out)
    assert (summary.done, summary.kept, summary.failed) == (2, 1, 0)

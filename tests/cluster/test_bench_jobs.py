"""A suite as a SLURM job array gives the results of the same suite in one process, also when a job is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_store
import psutil
import pytest
import slurm_node

from medvlp.bench.results import finished_cells
from medvlp.bench.runner import How, run_suite
from medvlp.config.cluster import ClusterConfig
from medvlp.config.train import TrackConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    lacks = slurm_node.missing()
    if lacks:
        message = f"no SLURM can be started: {lacks}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with slurm_node.slurm(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


def kill_one_job(out: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any("submitit" in word for word in words) and any(str(out) in word for word in words):
                process.send_signal(signal.SIGKILL)
                return
        time.sleep(0.05)


def test_a_suite_as_a_job_array(slurm_conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    store = bench_store.make_store(tmp_path)
    entries = [{"protocols": ["linear_probe"], "fractions": [0.5, 1.0], "draws": 2}, {"protocols": ["knn"]}]
    suite = bench_store.suite(tmp_path, entries).model_copy(update={"baselines": ("majority",)})
    options: dict[str, Any] = {"track": TrackConfig(mlflow=False), "device": "cpu", "audit": False}
    options |= {"stores": [store], "encoders": [bench_store.RANDOM]}
    run_suite(suite, out=tmp_path / "here", **options)
    cluster = ClusterConfig(kind="slurm", poll_seconds=0.2, tasks_per_job=3, max_jobs=2)
    killer = threading.Thread(target=kill_one_job, args=(tmp_path / "jobs",))
    killer.start()
    summary = run_suite(suite, out=tmp_path / "jobs", how=How(cluster=cluster), **options)
    killer.join()
    assert (summary.done, summary.failed) == (7, 0)
    found, expected = (
        {cell.folder.name: json.loads((cell.folder / "result.json").read_text()) for cell in finished_cells(folder)}
        for folder in (tmp_path / "jobs", tmp_path / "here")
    )
    assert found == expected
    assert not (tmp_path / "jobs" / "jobs").exists()

"""Results hold cells of several definitions of a task: a page shows those of the suite as it was last run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import bench_store

from medvlp.bench.exports import write_exports
from medvlp.bench.report_data import Results
from medvlp.bench.report_notes import warnings
from medvlp.bench.runner import run_suite
from medvlp.config.train import TrackConfig

ENTRY = {"protocols": ["linear_probe"], "fractions": [0.5], "draws": 2}


def test_cells_of_another_task_definition_are_left_out_and_counted(tmp_path: Path) -> None:
    store, out = bench_store.make_store(tmp_path / "store"), tmp_path / "out"

    def run(**task: Any) -> list[str]:
        suite = bench_store.suite(tmp_path, [ENTRY], **task)
        given: dict[str, Any] = {"track": TrackConfig(mlflow=False), "audit": False, "device": "cpu"}
        run_suite(suite, stores=[store], encoders=[bench_store.RANDOM], out=out, **given)
        rows = json.loads((out / "aggregate.json").read_text())
        return sorted({name for row in rows for name in row["cells"]})

    before = run(linear_probe_c=[1.0])
    now = run(linear_probe_c=[0.01])
    assert len(before) == len(now) > 2
    assert not set(before) & set(now)
    results = Results.read(out)
    assert sorted(cell.hash for cell in results.cells) == now
    assert results.stale == len(before)
    assert any(f"{len(before)} cells have another store" in text for _, text in warnings(results))
    assert len(list(write_exports(out, {"csv": tmp_path / "scores.csv"}))) == 1
    with (tmp_path / "scores.csv").open() as file:
        named = {name for row in csv.DictReader(file) for name in row["cells"].split()}
    assert named == set(now)
    assert run(linear_probe_c=[1.0]) == before
    assert sorted(cell.hash for cell in Results.read(out).cells) == before

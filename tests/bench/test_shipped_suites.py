"""The suites on the phantom run as they are shipped, on a tiny store and with a tiny encoder that has a text side."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import bench_store
import phantom_store
import pytest

from medvlp.bench.cells import Finished
from medvlp.bench.results import finished_cells
from medvlp.bench.runner import run_suite
from medvlp.bench.suite import load_suite
from medvlp.config.train import TrackConfig

FEW_STEPS = [
    "entries.*.set.fine_tune.steps=2",
    "entries.*.set.fine_tune.input_size=32",
    "entries.*.set.fine_tune.batch_size=4",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped")
    phantom_store.make_store(folder, 60)
    bench_store.make_run(folder / "run")
    return folder


def run(place: Path, name: str, *changes: str) -> tuple[Any, list[Finished]]:
    suite = load_suite(f"benchmarks/suites/{name}.yaml", list(changes))
    options = {"track": TrackConfig(mlflow=False), "device": "cpu", "audit": False}
    summary = run_suite(
        suite, stores=[place / "store"], encoders=[str(place / "run"), bench_store.RANDOM], out=place / name, **options
    )
    return summary, finished_cells(place / name)


def test_smoke_goes_the_whole_way(place: Path) -> None:
    summary, cells = run(place, "smoke")
    assert (summary.failed, summary.done) == (0, len(cells))
    asked = {cell.setting[:2] for cell in cells if cell.setting[4] == "run"}
    assert asked == {
        *(("phantom_findings", protocol) for protocol in ("linear_probe", "knn", "zero_shot")),
        ("phantom_retrieval", "zero_shot"),
        ("phantom_grounding", "zero_shot"),
    }
    assert {cell.setting[4] for cell in cells} == {"run", bench_store.RANDOM, "metadata", "majority"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_phantom_has_numbers_of_every_kind_of_task(place: Path) -> None:
    small = [
        "entries.phantom_segmentation.set.segmentation.channels=16",
        "entries.phantom_reports.set.reports.max_tokens=12",
    ]
    summary, cells = run(place, "phantom", *FEW_STEPS, *small, "bootstrap_resamples=20", "permutations=100")
    assert (summary.failed, summary.done) == (0, len(cells))
    kinds = Counter((cell.result["config"]["task"]["type"], cell.setting[4]) for cell in cells)
    types = {kind for kind, _ in kinds}
    assert types == {"classification", "segmentation", "report_generation", "retrieval", "grounding", "vqa"}
    assert {(kind, "run") for kind in types} <= kinds.keys()
    # Random weights answer where no text side is needed; baselines where features or places are an answer.
    assert {kind for kind, name in kinds if name == bench_store.RANDOM} == types - {"retrieval", "grounding"}
    assert {kind for kind, name in kinds if name == "metadata"} >= {"classification", "report_generation"}
    assert {kind for kind, name in kinds if name == "location_prior"} == {"segmentation", "grounding"}
    rows = json.loads((place / "phantom" / "aggregate.json").read_text())
    assert {row["status"].partition(":")[0] for row in rows} == {"ok", "not applicable"}

"""The table in BenchX's own form: mean and population deviation over seeds in per cent, published numbers marked."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import fake_results
import numpy as np
import pytest

from medvlp.bench.published import Published
from medvlp.bench.report import write_report
from medvlp.bench.report_benchx import as_benchx
from medvlp.bench.report_data import Results
from medvlp.bench.report_scores import Cell
from medvlp.metrics.benchx import mean_and_deviation

SEEDS = (42, 0, 1)
F1 = {0.01: (0.60004, 0.62006, 0.61), 1.0: (0.7, 0.7, 0.71)}


def cells(task: str, metric: str, values: dict[float, tuple[float | None, ...]]) -> list[Cell]:
    found = []
    for fraction, own in values.items():
        for seed, value in zip(SEEDS, own, strict=False):
            about = {
                "task": task,
                "protocol": "fine_tune",
                "fraction": fraction,
                "shots": 0,
                "encoder": "mrm",
                "hashes": {},
            }
            rows = [{"metric": name, "label": "macro", "value": value, "n": 5} for name in ("auroc", metric)]
            name = f"{task} {fraction} {seed}"
            found.append(Cell(name, Path(), about | {"seed": seed, "draw": 0}, {"scores": rows}))
    return found


def results(own: list[Cell], published: list[Published] | None = None) -> Results:
    return Results(Path(), {}, {}, {}, [{"name": "mrm"}], {}, own, published=published or [])


def of_paper(task: str, metric: str, fraction: float, value: float) -> Published:
    numbers: dict[str, Any] = dict.fromkeys(("low", "high", "sd", "runs", "n"))
    return Published("MRM", task, "fine_tune", fraction, 0, metric, "macro", value, source="BenchX", **numbers)


def test_population_deviation() -> None:
    values = [60.0, 62.01, 61.0]
    assert mean_and_deviation(values) == (pytest.approx(np.mean(values)), pytest.approx(statistics.pstdev(values)))
    assert mean_and_deviation(values)[1] == pytest.approx(math.sqrt(2 / 3) * statistics.stdev(values))


def test_f1_is_rounded_by_run_and_told_as_mean_and_deviation() -> None:
    paper = [of_paper("t", "argmax_f1", 0.01, 0.626)]
    (table,) = as_benchx(results(cells("t", "argmax_f1", F1), paper))
    assert table["amounts"] == ["1 %", "100 %"]
    measured, published = table["rows"]
    deviations = [statistics.pstdev(values) for values in ((60.0, 62.01, 61.0), (70.0, 70.0, 71.0))]
    assert measured.cells == [f"61.0 ± {deviations[0]:.2f}", f"70.3 ± {deviations[1]:.2f}"]
    assert (published.name, published.source, published.cells) == ("MRM", "BenchX", ["62.6", ""])


def test_a_single_seed_has_no_deviation_and_a_missing_one_no_mean() -> None:
    (table,) = as_benchx(results(cells("t", "legacy_auroc", {1.0: (0.8,), 0.1: (0.8, None, 0.7)})))
    assert table["rows"][0].cells == ["", "80.0"]
    assert "AUROC" in table["metric"]


def test_other_tasks_have_no_such_table() -> None:
    assert not list(as_benchx(results(cells("t", "pooled_dice", {1.0: (0.8, 0.7, 0.9)}))))


def test_the_table_stands_in_the_page(tmp_path: Path) -> None:
    root = fake_results.write_results(tmp_path / "results")
    write_report(root, tmp_path / "without.html")
    assert 'id="benchx"' not in (tmp_path / "without.html").read_text()
    like = next(path.parent for path in sorted(root.glob("cells/*/predictions.parquet")))
    info, result = (json.loads((like / f"{name}.json").read_text()) for name in ("cell", "result"))
    for number, cell in enumerate(cells("nih_pneumonia", "argmax_f1", F1)):
        folder = root / "cells" / f"{number:024d}"
        folder.mkdir()
        (folder / "cell.json").write_text(json.dumps(info | cell.info))
        (folder / "result.json").write_text(json.dumps(result | cell.result))
    write_report(root, tmp_path / "with.html")
    page = (tmp_path / "with.html").read_text()
    assert 'id="benchx"' in page
    assert 'href="#benchx"' in page
    assert "61.0 ± 0.82" in page

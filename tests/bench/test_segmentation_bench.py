"""A suite of segmentation end to end: cells, what is kept, fractions, the location prior, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pandas as pd
import phantom_store
import pytest
import yaml
from browser import open_page, overflow

from medvlp.bench.report import write_report
from medvlp.bench.report_outlines import contours
from medvlp.bench.results import finished_cells, load_results
from medvlp.bench.runner import BenchSummary, run_suite
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.metrics.scoring import SCORINGS

TASK: dict[str, Any] = {
    "kind": "task",
    "name": "outlines",
    "version": 1,
    "type": "segmentation",
    "dataset": "phantom",
    "views": ["PA", "AP"],
    "labels": [
        {"name": "Effusion", "positive": "Pleural Effusion", "regions": ["effusion"]},
        {"name": "Heart", "positive": "Cardiomegaly", "regions": ["cardiomegaly"]},
    ],
    "segmentation": {"channels": 16},
    "fine_tune": {"steps": 6, "validate_every": 3, "batch_size": 4, "warmup_steps": 1, "lr": 0.003},
}
RESNET = "random:resnet18@64"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchSummary]:
    folder = tmp_path_factory.mktemp("outlines")
    store = phantom_store.make_store(folder, 60)
    (folder / "outlines.yaml").write_text(yaml.safe_dump(TASK))
    entry = {"task": str(folder / "outlines.yaml"), "protocols": ["frozen"], "fractions": [0.5, 1.0]}
    suite = SuiteConfig.model_validate({"name": "s", "version": 1, "entries": [entry], "bootstrap_resamples": 40})
    options: dict[str, Any] = {
        "out": folder / "out",
        "track": TrackConfig(mlflow=False),
        "device": "cpu",
        "audit": False,
    }
    vit = str(bench_store.make_run(folder / "vit"))
    return folder / "out", run_suite(suite, stores=[store], encoders=[RESNET, vit], **options)


def test_every_encoder_has_its_cells_and_the_location_prior_stands_beside(finished: tuple[Path, BenchSummary]) -> None:
    out, summary = finished
    assert summary.failed == 0
    cells = load_results(out).drop_duplicates("cell")
    found = {(row.encoder, row.protocol, row.fraction) for row in cells.itertuples()}
    assert found == {(name, "frozen", share) for name in (RESNET, "vit", "location_prior") for share in (0.5, 1.0)}
    assert {row[4] for row in summary.rows} == {"dice"}


def test_every_number_follows_from_the_kept_masks(finished: tuple[Path, BenchSummary]) -> None:
    scoring = SCORINGS.get("segmentation")()
    for cell in finished_cells(finished[0]):
        kept = scoring.read(pd.read_parquet(cell.folder / "predictions.parquet"))
        assert len(kept.labels) == len(set(zip(kept.sample_ids, kept.labels, strict=True)))
        for score, row in zip(scoring.scores(kept, {}), cell.result["scores"], strict=True):
            assert (score.metric, score.label, score.n) == (row["metric"], row["label"], row["n"])
            assert row["value"] is None if np.isnan(score.value) else row["value"] == pytest.approx(score.value)
        assert (cell.folder / "predictions.parquet").stat().st_size < 100_000
        if cell.record["encoder"] != "location_prior":
            assert {entry["step"] for entry in cell.result["best_params"]["history"]} == {3, 6}


def test_the_page_shows_both_outlines_told_apart_by_their_lines(
    finished: tuple[Path, BenchSummary], tmp_path: Path
) -> None:
    write_report(finished[0], tmp_path / "report.html")
    examples = json.loads((finished[0] / "examples" / "places.json").read_text())
    assert [entry["finding"] for entry in examples] == ["Effusion", "Heart"]
    with open_page(tmp_path / "report.html") as page:
        pictures = page.locator("#outlines svg[role=img]")
        assert pictures.count() == 2 * 3
        for i in range(pictures.count()):
            label = pictures.nth(i).get_attribute("aria-label")
            assert "Dice" in label
            box = pictures.nth(i).bounding_box()
            assert box["width"] > 100
            assert abs(box["width"] - box["height"]) < 2
            assert pictures.nth(i).locator("use.of-reference").count() == 1
        dashes = page.eval_on_selector_all(
            "#outlines .of-reference, #outlines .of-prediction",
            "all => all.map(each => [each.classList[0], getComputedStyle(each).strokeDasharray])",
        )
        assert {name for name, dash in dashes if dash == "none"} == {"of-reference"}
        assert {name for name, dash in dashes if dash != "none"} == {"of-prediction"}
        assert page.locator("#outlines figcaption svg").first.bounding_box()["width"] < 60, "a swatch, no picture"
        names = page.locator("#outlines figcaption .name").all_inner_texts()
        assert {name.replace("\u200b", "") for name in names} == {RESNET, "vit", "location_prior"}
        assert "solid" in page.locator("#outlines .about").inner_text()
        text = page.locator("#methods").inner_text()
        assert "UPerNet" in text
        heads = page.locator("#all thead").first.inner_text()
        assert "HD95 (pixels)" in heads
        for width in (400, 1280):
            assert overflow(page, width) <= 0


def test_an_outline_runs_along_the_edges_of_the_pixels() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:7] = True
    assert contours(np.zeros((8, 8), bool)) == ""
    path = contours(mask)
    points = np.array([[float(x) for x in point.split()] for point in path.strip("MZ").split("L")])
    assert points.min(axis=0).tolist() == [3.25, 2.25]
    assert points.max(axis=0).tolist() == [6.75, 4.75]
    mask[7, 0] = True
    assert contours(mask).count("M") == 2
    assert contours(mask & (np.arange(8)[:, None] == 7)).count("L") == 3, "a single pixel is a square"

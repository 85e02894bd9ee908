"""A suite of classification, grounding and retrieval: what is planned, kept, compared and shown."""

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
from medvlp.bench.report_data import Results
from medvlp.bench.results import finished_cells, load_results
from medvlp.bench.runner import BenchSummary, run_suite
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.errors import UserError
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.intervals import interval
from medvlp.metrics.scoring import SCORINGS

PROMPTS = {"positive": ["effusion"], "negative": ["no effusion"]}
LABELS = [{"name": "Effusion", "positive": "Pleural Effusion", "prompts": PROMPTS}]
TASKS: dict[str, dict[str, Any]] = {
    "findings": {"type": "classification", "labels": LABELS, "linear_probe_c": [0.1]},
    "places": {"type": "grounding", "labels": LABELS, "views": ["PA", "AP"]},
    "reports": {"type": "retrieval", "views": ["PA", "AP"]},
}
OTHERS = {"metadata", "image_statistics:mean", "image_statistics:histogram", "image_statistics:pixels16", "majority"}


def suite_of(folder: Path, **protocols: list[str]) -> SuiteConfig:
    entries = []
    for name, wanted in protocols.items():
        file = folder / f"{name}.yaml"
        file.write_text(
            yaml.safe_dump({"kind": "task", "name": name, "version": 1, "dataset": "phantom", **TASKS[name]})
        )
        entries.append({"task": str(file), "protocols": wanted})
    return SuiteConfig.model_validate({"name": "kinds", "version": 1, "entries": entries, "bootstrap_resamples": 40})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchSummary]:
    folder = tmp_path_factory.mktemp("kinds")
    store = phantom_store.make_store(folder)
    suite = suite_of(folder, findings=["linear_probe", "zero_shot"], places=["zero_shot"], reports=["zero_shot"])
    runs = [str(bench_store.make_run(folder / name)) for name in ("one", "two")]
    options: dict[str, Any] = {"out": folder / "out", "track": TrackConfig(mlflow=False), "device": "cpu"}
    summary = run_suite(suite, stores=[store], encoders=[*runs, bench_store.RANDOM], **options)
    return folder / "out", summary


def test_each_kind_has_its_cells_and_its_baselines(finished: tuple[Path, BenchSummary]) -> None:
    out, summary = finished
    cells = load_results(out).drop_duplicates("cell")
    found = {(row.task, row.protocol, row.encoder) for row in cells.itertuples()}
    expected = {("findings", "linear_probe", name) for name in OTHERS | {"one", "two", bench_store.RANDOM}}
    expected |= {(task, "zero_shot", name) for task in TASKS for name in ("one", "two")}
    assert found == expected | {("places", "zero_shot", "location_prior")}
    assert (summary.failed, summary.not_applicable) == (0, 3)
    reasons = {
        (row["task"], row["status"])
        for row in json.loads((out / "aggregate.json").read_text())
        if row["status"] != "ok"
    }
    assert reasons == {(task, "not applicable: the encoder has no text side") for task in TASKS}


def test_every_number_follows_from_the_kept_predictions(finished: tuple[Path, BenchSummary]) -> None:
    kinds = {"findings": "classification", "places": "grounding", "reports": "retrieval"}
    for cell in finished_cells(finished[0]):
        scoring = SCORINGS.get(kinds[cell.record["task"]])()
        test, val = (
            scoring.read(pd.read_parquet(cell.folder / f"{name}.parquet")) for name in ("predictions", "validation")
        )
        thresholds = scoring.thresholds(val)
        assert cell.result["thresholds"] == pytest.approx(thresholds, nan_ok=True)
        resamples = Resamples.draw(test.patient_ids, 40, 0, cell.record["dataset"])
        values, without = (
            scoring.resampled(test, each, thresholds) for each in (resamples, Resamples.jackknife(test.patient_ids))
        )
        columns = [*test.label_names, "macro"]
        for score, row in zip(scoring.scores(test, thresholds), cell.result["scores"], strict=True):
            assert (score.metric, score.label) == (row["metric"], row["label"])
            if row["value"] is None:
                assert np.isnan(score.value)
                continue
            assert row["value"] == pytest.approx(score.value, abs=1e-6)
            own, left = (part[score.metric][:, columns.index(score.label)] for part in (values, without))
            if row["low"] is not None:
                bounds = interval(score.value, own, left, 0.05, row["support"], row["metric"] == "ece")
                assert [row["low"], row["high"]] == pytest.approx([bounds.low, bounds.high], abs=1e-6)


def test_each_kind_leads_with_its_own_metric(finished: tuple[Path, BenchSummary]) -> None:
    out, summary = finished
    leading = {"findings": "auroc", "places": "pointing", "reports": "recall_at_10"}
    assert {(row[0], row[4]) for row in summary.rows} == set(leading.items())
    compared = json.loads((out / "comparisons.json").read_text())
    assert {(row["task"], row["metric"]) for row in compared} == set(leading.items())
    places = [row for row in compared if row["task"] == "places" and row["label"] == "Effusion"]
    assert {(row["a"], row["b"]) for row in places} == {
        ("one", "two"),
        ("one", "location_prior"),
        ("two", "location_prior"),
    }
    row = next(row for row in places if row["b"] == "two")
    assert (row["difference"], row["p"]) == (0.0, 1.0), "the same weights twice"
    assert row["test"] == "permutation of patients"
    aggregated = json.loads((out / "aggregate.json").read_text())
    chances = {
        row["task"]: row["chance"] for row in aggregated if row["metric"] in set(leading.values()) and row.get("chance")
    }
    assert 0 < chances["places"] < 1
    assert 0 < chances["reports"] < 1


def test_the_report_shows_every_kind_with_its_chance_and_its_metrics(
    finished: tuple[Path, BenchSummary], tmp_path: Path
) -> None:
    write_report(finished[0], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "location prior is the mean region" in text
    assert "Equal similarities count by expectation" in text
    with open_page(tmp_path / "report.html") as page:
        headings = page.locator("#headline h3").all_inner_texts()
        assert any(heading.startswith("places: Zero-shot") for heading in headings)
        tables = page.locator("#all table")
        assert tables.count() == 3
        heads = [tables.nth(i).locator("thead").inner_text() for i in range(3)]
        assert sum("AUROC" in head for head in heads) == 1
        assert sum("Recall@5" in head for head in heads) == 1
        assert sum("Dice" in head for head in heads) == 1
        assert overflow(page, 1280) <= 0
        names = page.locator("#places figcaption .name").all_inner_texts()
        assert [name.replace("\u200b", "") for name in names] == ["one", "two", "location_prior"]
        captions = page.locator("#places figcaption").all_inner_texts()
        assert all(caption.split(": ")[1] in ("hit", "miss") or "0." in caption for caption in captions)
    assert Results.read(finished[0]).primary("places") == "pointing"


def test_a_protocol_that_a_kind_does_not_have_starts_nothing(
    tmp_path: Path, finished: tuple[Path, BenchSummary]
) -> None:
    suite = suite_of(tmp_path, places=["linear_probe"])
    store = finished[0].parent / "store"
    with pytest.raises(UserError, match="type grounding, which has no linear_probe") as caught:
        run_suite(suite, stores=[store], encoders=[], out=tmp_path / "out", track=TrackConfig(mlflow=False))
    assert caught.value.fix == "Use: zero_shot."
    assert not (tmp_path / "out").exists()

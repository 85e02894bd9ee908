"""New metrics from kept predictions: what a run would have given, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pandas as pd
import pytest

from medvlp.bench.cells import STAMP
from medvlp.bench.rescore import rescore
from medvlp.bench.results import finished_cells
from medvlp.bench.runner import run_suite
from medvlp.config.train import TrackConfig
from medvlp.errors import UserError
from medvlp.metrics.classification import ClassificationScoring
from medvlp.metrics.scoring import Score


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rescore")
    store = bench_store.make_store(folder)
    entries = [{"protocols": ["linear_probe"], "fractions": [0.5], "draws": 2}, {"protocols": ["knn"]}]
    suite = bench_store.suite(folder, entries).model_copy(update={"baselines": ("majority",)})
    options: dict[str, Any] = {"track": TrackConfig(mlflow=False), "device": "cpu", "audit": False}
    run_suite(suite, stores=[store], encoders=[bench_store.RANDOM], out=folder / "out", **options)
    return folder / "out"


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "results")


def with_new_metric(patch: pytest.MonkeyPatch) -> None:
    """A later medvlp: classification has one metric more, the mean probability of the positives."""
    scores, resampled = ClassificationScoring.scores, ClassificationScoring.resampled

    def more_scores(self: Any, predictions: Any, thresholds: Mapping[str, float]) -> list[Score]:
        value = float(predictions.scores[predictions.labels[:, 0] == 1, 0].mean())
        n = len(predictions.sample_ids)
        new = [Score("mean_positive", name, value, n, n) for name in (*predictions.label_names, "macro")]
        return scores(self, predictions, thresholds) + new

    def more_values(self: Any, predictions: Any, resamples: Any, thresholds: Mapping[str, float]) -> dict[str, Any]:
        found = resampled(self, predictions, resamples, thresholds)
        weights = resamples.counts[:, resamples.patient_of_sample] * (predictions.labels[:, 0] == 1)
        values = (weights * predictions.scores[:, 0]).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
        return found | {"mean_positive": np.stack([values, values], axis=1)}

    patch.setattr(ClassificationScoring, "scores", more_scores)
    patch.setattr(ClassificationScoring, "resampled", more_values)
    patch.setattr(ClassificationScoring, "metrics", (*ClassificationScoring.metrics, "mean_positive"))


def test_a_new_metric_is_computed_from_kept_predictions(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {cell.folder.name: cell for cell in finished_cells(results)}
    old_files = {path: path.read_bytes() for path in results.glob("cells/*/*.json")}
    with_new_metric(monkeypatch)
    found = rescore(results, "mean_positive")
    assert (found.done, found.kept) == (5, 0)
    for cell in finished_cells(results):
        frame = pd.read_parquet(cell.folder / "predictions.parquet")
        (row,) = [r for r in cell.result["scores"] if (r["metric"], r["label"]) == ("mean_positive", "Pneumonia")]
        assert row["value"] == pytest.approx(frame.loc[frame["label:Pneumonia"] == 1, "score:Pneumonia"].mean())
        assert row["low"] <= row["value"] <= row["high"]
        assert cell.bootstrap["mean_positive"].shape == (50, 2)
        old = before[cell.folder.name].result["scores"]
        assert cell.result["scores"][: len(old)] == old
    assert {path: path.read_bytes() for path in old_files} == old_files
    rows = json.loads((results / "aggregate.json").read_text())
    pooled = [row for row in rows if row["metric"] == "mean_positive" and row["label"] == "macro"]
    assert {(row["protocol"], row["draws"]) for row in pooled} == {("linear_probe", 2), ("knn", 1)}
    assert rescore(results, "mean_positive").kept == 5
    assert not (results / ".tmp").exists()


def test_a_metric_that_is_there_changes_nothing(results: Path) -> None:
    before = json.loads((results / "aggregate.json").read_text())
    assert rescore(results, "auroc").kept == 5
    assert not list(results.glob("cells/*/rescored"))
    assert json.loads((results / "aggregate.json").read_text()) == before


def test_unknown_metrics_are_refused(results: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'auroc'"):
        rescore(results, "auroq")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 0}, "format 0 instead of 1"),
        ({"kind": "grounding"}, "kind grounding instead of classification"),
        ({"cell": "another"}, "cell another instead of"),
        ({"file": "validation.parquet"}, "file validation.parquet instead of predictions.parquet"),
        (None, "do not say which version"),
    ],
    ids=["format", "kind", "cell", "split", "none"],
)
def test_predictions_of_another_version_are_refused_before_anything_is_written(
    results: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any] | None, said: str
) -> None:
    cell = finished_cells(results)[-1]
    path = cell.folder / "predictions.parquet"
    frame = pd.read_parquet(path)
    frame.attrs = {} if change is None else {STAMP: frame.attrs[STAMP] | change}
    frame.to_parquet(path, index=False)
    with_new_metric(monkeypatch)
    with pytest.raises(UserError, match=said) as caught:
        rescore(results, "mean_positive")
    assert caught.value.where == str(path)
    assert not list(results.glob("cells/*/rescored"))


def test_broken_predictions_and_another_rule_of_intervals_are_refused(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = finished_cells(results)[0]
    (cell.folder / "validation.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match="cannot be read"):
        rescore(results, "auroc")
    shutil.rmtree(cell.folder)
    monkeypatch.setattr("medvlp.bench.rescore.RULE", "another rule")
    with pytest.raises(UserError, match="follow another rule"):
        rescore(results, "auroc")

"""Metrics of published models in resamples of patients, against the metric of the repeated samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score
from transformers import BertConfig

from medvlp.errors import UserError
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.clinical import models
from medvlp.metrics.clinical.chexbert import CheXbert, cosine
from medvlp.metrics.clinical.models import MODEL_METRICS, ModelScoring
from medvlp.tasks.report_generation import Reports
from tests.metrics.clinical.released import WORDS, write_chexbert

CONFIG = BertConfig(
    vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
)
GENERATED = ["mild edema", "no effusion", "the heart is normal", "opacity seen", "clear lungs", "small effusions"]
REFERENCES = ["edema seen", "left effusion", "the heart is normal in size", "no pneumothorax", "clear", "mild edema"]
REPORTS = Reports(list("abcdef"), ["p", "p", "q", "r", "s", "s"], GENERATED, REFERENCES, "sentences")


def repeated(resamples: Resamples) -> list[np.ndarray]:
    return [np.repeat(np.arange(len(GENERATED)), row) for row in resamples.weights()]


@pytest.mark.parametrize("metric", ["chexbert_f1_micro", "chexbert_similarity"])
def test_values_are_those_of_the_repeated_samples(tmp_path: Path, metric: str) -> None:
    model = CheXbert(write_chexbert(tmp_path, CONFIG))
    made, said = (np.isin(model.labels(texts), (1, -1)) for texts in (GENERATED, REFERENCES))
    near = cosine(model.embeddings(GENERATED), model.embeddings(REFERENCES))

    def slow(rows: np.ndarray) -> float:
        if not len(rows):  # a resample may draw no patient
            return np.nan
        if metric == "chexbert_similarity":
            return float(near[rows].mean())
        return float(f1_score(said[rows].ravel(), made[rows].ravel(), zero_division=np.nan))

    rule = ModelScoring(metric, tmp_path)
    (score,) = rule.scores(REPORTS, {})
    assert (score.metric, score.label, score.n) == (metric, "macro", 6)
    assert score.value == pytest.approx(slow(np.arange(6)), abs=1e-9)
    assert 0 < score.value < 1
    resamples = Resamples.draw(REPORTS.patient_ids, 30, 0)
    found = rule.resampled(REPORTS, resamples, {})[metric]
    assert found.shape == (30, 15)
    assert np.isnan(found[:, :-1]).all()
    np.testing.assert_allclose(found[:, -1], [slow(rows) for rows in repeated(resamples)], atol=1e-9)
    assert len(set(found[:, -1].round(6))) > 3


def test_a_pair_without_a_value_enters_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values, asked = np.array([1.0, np.nan, 0.5, np.nan, 0.0, 0.25]), []

    def load(folder: Path, device: str) -> models.Judge:
        def judge(generated: models.Texts, references: models.Texts) -> np.ndarray:
            asked.append((list(generated), list(references)))
            return models._each(values)

        return judge

    monkeypatch.setitem(MODEL_METRICS, "green", load)
    rule = ModelScoring("green", tmp_path)
    (score,) = rule.scores(REPORTS, {})
    assert (score.value, score.n, score.positives) == (pytest.approx(1.75 / 4), 6, 4)
    resamples = Resamples.draw(REPORTS.patient_ids, 40, 1)
    found = rule.resampled(REPORTS, resamples, {})["green"][:, -1]
    wanted = [np.nanmean(values[rows]) if np.isfinite(values[rows]).any() else np.nan for rows in repeated(resamples)]
    np.testing.assert_allclose(found, wanted)
    assert asked == [(GENERATED, REFERENCES)], "each pair is read once"


@pytest.mark.parametrize("metric", sorted(MODEL_METRICS))
def test_a_folder_without_the_model_is_told(metric: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        ModelScoring(metric, tmp_path).scores(REPORTS, {})

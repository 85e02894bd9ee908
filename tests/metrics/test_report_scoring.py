"""Scores of generated reports: against scikit-learn and the text metrics, and resamples as repeated samples."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from medvlp.metrics import report_generation
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.report.pairs import TextPairs
from medvlp.metrics.report.statistics import ReportStatistics
from medvlp.metrics.report_generation import WORDS, ReportScoring
from medvlp.metrics.scoring import SCORINGS
from medvlp.tasks.report_generation import Reports
from medvlp.text.labeler import FINDINGS, label_report
from medvlp.text.report_words import simple_text

STATED = (
    "There is a left pleural effusion.",
    "No pleural effusion.",
    "Possible pneumonia.",
    "The heart is enlarged. No edema.",
    "Cardiomegaly with pulmonary edema.",
    "The lungs are clear.",
)


@pytest.fixture(autouse=True)
def without_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR reads its tables anew for every set of texts; `tests/metrics/report` tests it."""
    monkeypatch.setattr(report_generation, "computable", lambda: tuple(name for name in WORDS if name != "meteor"))


def reports(samples: int = 12) -> Reports:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(STATED, size=2, replace=False)) for _ in range(2 * samples)]
    patients = [f"p{number}" for number in rng.integers(0, 5, samples)]
    return Reports([f"s{i}" for i in range(samples)], patients, texts[:samples], texts[samples:], "simple")


def repeated(kept: Reports, times: np.ndarray) -> Reports:
    at = np.repeat(np.arange(len(times)), times)
    columns = (kept.sample_ids, kept.patient_ids, kept.generated, kept.references)
    return Reports(*([column[i] for i in at] for column in columns), kept.words)


def by_name(kept: Reports) -> dict[tuple[str, str], float]:
    return {(score.metric, score.label): score.value for score in ReportScoring().scores(kept, {})}


def test_findings_are_scored_as_by_scikit_learn() -> None:
    kept, found = reports(), by_name(reports())
    written, there = (
        np.array([[label_report(text)[name] in (1, -1) for name in FINDINGS] for text in texts])
        for texts in (kept.generated, kept.references)
    )
    present = there.any(axis=0)
    own = f1_score(there, written, average=None, zero_division=0)
    for name, value, counted in zip(FINDINGS, own, present, strict=True):
        assert found["finding_f1", name] == (pytest.approx(value) if counted else pytest.approx(np.nan, nan_ok=True))
    assert found["finding_f1", "macro"] == pytest.approx(own[present].mean())
    assert found["finding_f1_micro", "macro"] == pytest.approx(f1_score(there, written, average="micro"))
    assert ("bleu_4", "Edema") not in found


def test_words_are_scored_as_split_by_the_rule() -> None:
    kept, found = reports(), by_name(reports())
    pairs = TextPairs([simple_text(t) for t in kept.generated], [[simple_text(t)] for t in kept.references])
    wanted = ("bleu_1", "bleu_4", "rouge_l", "cider_d")
    for metric, value in ReportStatistics(pairs, wanted).corpus().items():
        assert found[metric, "macro"] == pytest.approx(value)
    other = Reports(kept.sample_ids, kept.patient_ids, kept.generated, kept.references, "r2gen")
    assert by_name(other)["bleu_4", "macro"] != pytest.approx(found["bleu_4", "macro"])


def test_a_resample_is_the_score_of_its_repeated_samples() -> None:
    kept = reports()
    resamples = Resamples.draw(kept.patient_ids, 20, 0)
    values = ReportScoring().resampled(kept, resamples, {})
    columns = [*FINDINGS, "macro"]
    counted = {name for name in FINDINGS if not np.isnan(by_name(kept)["finding_f1", name])}
    checked = 0
    for r, times in enumerate(resamples.weights()):
        if not times.sum():
            continue
        own = by_name(repeated(kept, times))
        lacking = any(np.isnan(own["finding_f1", name]) for name in counted)
        for (metric, label), value in own.items():
            if label == "macro" and metric.startswith("finding") and metric != "finding_f1_micro" and lacking:
                assert np.isnan(values[metric][r, -1])
                continue
            assert values[metric][r, columns.index(label)] == pytest.approx(value, abs=1e-9, nan_ok=True)
            checked += 1
    assert checked > 100


def test_equal_texts_score_all_and_empty_ones_nothing() -> None:
    kept = reports()
    same = by_name(Reports(kept.sample_ids, kept.patient_ids, kept.references, kept.references, "simple"))
    assert same["finding_f1", "macro"] == same["finding_f1_micro", "macro"] == 1
    assert same["bleu_4", "macro"] == pytest.approx(1)
    silent = by_name(Reports(kept.sample_ids, kept.patient_ids, [""] * len(kept.generated), kept.references, "simple"))
    assert silent["finding_f1", "macro"] == silent["finding_f1_micro", "macro"] == 0
    assert silent["bleu_4", "macro"] == silent["rouge_l", "macro"] == 0


def test_without_its_files_meteor_has_no_value_and_the_others_have() -> None:
    kept = reports()
    found, values = by_name(kept), ReportScoring().resampled(kept, Resamples.draw(kept.patient_ids, 3, 0), {})
    assert np.isnan(found["meteor", "macro"])
    assert np.isnan(values["meteor"]).all()
    assert not np.isnan(found["cider_d", "macro"])


def test_the_task_names_this_rule_and_kept_tables_come_back() -> None:
    scoring = SCORINGS.get("report_generation")()
    assert scoring.metrics[0] == "finding_f1_micro"
    assert scoring.read(reports().to_frame()) == reports()

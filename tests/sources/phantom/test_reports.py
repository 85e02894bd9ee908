"""Reports agree with what is in the patient, and a labeler that reads only their words agrees with their truth."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import pytest

from medvlp.sources.cards import load_card
from medvlp.sources.phantom.findings import CHEXPERT, NAMES, Finding, sample_findings, sickness
from medvlp.sources.phantom.patient import Patient, Visit, sample_patient, sample_posture, visit
from medvlp.sources.phantom.reports import Report, write_report

STUDIES = 1200


@cache
def sample(index: int) -> tuple[Visit, Patient, list[Finding], list[Finding], Report]:
    who = visit(11, index)
    patient = sample_patient(11, who.patient)
    findings, before = sample_findings(11, who.patient, patient, who.number)
    posture = sample_posture(11, index, sickness(findings))
    return who, patient, findings, before, write_report(11, who, patient, posture, findings, before)


def test_statements_agree_with_the_patient() -> None:
    doubts = Counter()
    for index in range(STUDIES):
        _, _, findings, _, report = sample(index)
        there = {(finding.anatomy, finding.name) for finding in findings}
        names = {finding.name for finding in findings}
        for triplet in report.triplets:
            if triplet.value == 1:
                assert (triplet.anatomy, triplet.finding) in there
            elif triplet.value == 0:
                assert triplet.finding not in names
            else:
                doubts[(triplet.anatomy, triplet.finding) in there] += 1
    assert doubts[True] > 2 * doubts[False] > 0


def test_image_labels_are_the_findings() -> None:
    card = load_card("phantom")
    for index in range(STUDIES):
        _, _, findings, _, report = sample(index)
        assert tuple(report.image_labels) == card.labels
        expected = {label for finding in findings for label in CHEXPERT[finding.name]}
        assert {name for name, value in report.image_labels.items() if value == 1} - {"No Finding"} == expected
        assert set(report.image_labels.values()) <= {0.0, 1.0}
        ill = any(finding.name != "device" for finding in findings)
        assert report.image_labels["No Finding"] == (not ill)


def test_report_labels_never_contradict_the_patient() -> None:
    for index in range(STUDIES):
        report = sample(index)[-1]
        for name, value in report.labels.items():
            if name != "No Finding" and value in (0.0, 1.0) and name != "Lung Opacity":
                assert report.image_labels[name] == value, (name, report.text)


def test_prevalences_are_learnable() -> None:
    found = Counter(name for index in range(STUDIES) for name in {finding.name for finding in sample(index)[2]})
    for name in NAMES:
        assert 0.07 < found[name] / STUDIES < 0.27, name
    normal = sum(not sample(index)[2] for index in range(STUDIES)) / STUDIES
    assert 0.15 < normal < 0.3


def test_styles_sections_and_variety() -> None:
    styles = Counter(sample(index)[-1].style for index in range(STUDIES))
    assert min(styles[style] for style in ("terse", "prose", "structured", "list")) > 0.1 * STUDIES
    texts = {sample(index)[-1].text for index in range(STUDIES)}
    assert len(texts) > 0.93 * STUDIES
    structured = next(sample(index)[-1] for index in range(STUDIES) if sample(index)[-1].style == "structured")
    assert {"indication", "comparison", "findings", "impression"} <= set(structured.sections)
    assert "FINDINGS: " in structured.text
    for index in range(STUDIES):
        text = sample(index)[-1].text
        assert text
        assert not set("{}|") & set(text)
        assert "  " not in text
        assert "None" not in text.replace("COMPARISON: None", "")


def test_comparison_is_true() -> None:
    """A finding called unchanged or larger was there before; one called new was not."""
    changes = Counter()
    for index in range(STUDIES):
        who, _, findings, before, report = sample(index)
        old = {finding.key: finding for finding in before}
        for finding in findings:
            changes[finding.change] += 1
            if who.number == 0:
                assert finding.change is None
            elif finding.change == "new":
                assert finding.name not in {other.name for other in before}
            elif finding.change == "unchanged":
                assert old[finding.key].severity == finding.severity
            elif finding.change == "worse":
                assert old[finding.key].severity <= finding.severity
            else:
                assert old[finding.key].severity >= finding.severity
        if "resolved" in report.text:
            assert before
        if who.number == 0:
            assert "unchanged" not in report.text
            assert "prior study" not in report.text
    assert min(changes[change] for change in ("new", "unchanged", "worse", "improved")) > 5


def test_patients_come_back_and_stay_in_their_split() -> None:
    visits = [visit(11, index) for index in range(600)]
    splits: dict[str, set[str]] = {}
    for one in visits:
        splits.setdefault(one.patient_id, set()).add(one.split)
    assert all(len(found) == 1 for found in splits.values())
    counts = Counter(one.split for one in visits)
    assert 0.6 < counts["train"] / 600 < 0.8
    assert counts["val"] > 30
    assert counts["test"] > 60
    assert max(one.number for one in visits) == 2
    small = {visit(0, index).split for index in range(20)}
    assert small == {"train", "val", "test"}, "a small phantom has every split"


def test_rule_labeler_agrees() -> None:
    labeler = pytest.importorskip("medvlp.text.labeler")
    hit, wrong, missed = Counter(), Counter(), Counter()
    for index in range(400):
        report = sample(index)[-1]
        got = labeler.label_report(report.text)
        for name, value in report.labels.items():
            for kind in (1.0, 0.0, -1.0):
                hit[kind] += value == kind and got[name] == kind
                wrong[kind] += value != kind and got[name] == kind
                missed[kind] += value == kind and got[name] != kind
        assert not any(
            math.isnan(value) and name == "No Finding" and got[name] == 0 for name, value in report.labels.items()
        )
    for kind in (1.0, 0.0, -1.0):
        assert 2 * hit[kind] / (2 * hit[kind] + wrong[kind] + missed[kind]) >= 0.95

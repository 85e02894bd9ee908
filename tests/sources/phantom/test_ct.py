"""The phantom as CT: reports speak of a CT and are true, label maps and lesions lie where the findings are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.io.masks import read_volume_labels
from medvlp.sources.phantom.findings import sample_findings, sickness
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.sources.phantom.patient import sample_patient, sample_posture, visit
from medvlp.sources.phantom.reports import write_report
from medvlp.sources.phantom.wording_ct import CT
from medvlp.sources.phantom_ct import PhantomCt

RADIOGRAPHIC = re.compile(
    r"radiograph|silhouette|angle|project|overl|blunt|\bview|frontal|\bAP\b|\bPA\b|portable|hyperinflat|contour of the",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ct") / "raw"
    write_layout("phantom_ct", out, 24, seed=5, size=48)
    return out


def test_no_sentence_speaks_of_a_radiograph() -> None:
    tables = (CT.present, CT.uncertain, CT.absent, CT.technique)
    sentences = [text for table in tables for texts in table.values() for text in texts] + [*CT.normal, CT.prior]
    assert not [text for text in sentences if RADIOGRAPHIC.search(text)]


def test_reports_are_true_to_the_patient() -> None:
    for index in range(400):
        who = visit(11, index)
        patient = sample_patient(11, who.patient)
        findings, before = sample_findings(11, who.patient, patient, who.number)
        posture = sample_posture(11, index, sickness(findings))
        report = write_report(11, who, patient, posture, findings, before, CT)
        assert not RADIOGRAPHIC.search(report.text), report.text
        there, names = {(f.anatomy, f.name) for f in findings}, {f.name for f in findings}
        for triplet in report.triplets:
            assert triplet.value != 1 or (triplet.anatomy, triplet.finding) in there
            assert triplet.value != 0 or triplet.finding not in names


def test_label_maps_and_lesions_agree(raw: Path) -> None:
    source = PhantomCt(raw)
    findings = source.card.structures[source.card.adapter["organs"] :]
    seen: set[str] = set()
    for study in source.studies():
        volume = read_volume(raw / study.images[0].path, facts=study.images[0].facts)
        labels, names = read_volume_labels(raw, study.masks, volume)
        present = {names[value] for value in np.unique(labels) if value}
        assert present - set(findings) == set(source.card.structures) - set(findings)
        told = {name for label, name in source.card.phantom.items() if study.labels[label] == 1}
        assert present & set(findings) <= told
        seen |= present & set(findings)
        for lesion in study.lesions:
            corners = np.argwhere(labels == list(names.values()).index(lesion.label) + 1)
            if len(corners) and lesion.label in ("nodule", "mass"):
                at = np.linalg.inv(volume.affine) @ [*lesion.centre_mm, 1]
                nearest = np.linalg.norm((corners - at[:3]) * volume.spacing_mm, axis=1).min()
                assert nearest < 1.5 * max(volume.spacing_mm), (study.study_id, lesion)
    assert {"effusion", "consolidation", "nodule"} <= seen
    assert not source.problems


def test_organs_alone_are_whole(raw: Path) -> None:
    for both, whole in zip(PhantomCt(raw).studies(), PhantomCt(raw, {"masks": "organs"}).studies(), strict=True):
        volume = read_volume(raw / both.images[0].path, facts=both.images[0].facts)
        painted, names = read_volume_labels(raw, both.masks, volume)
        organs, own = read_volume_labels(raw, whole.masks, volume)
        assert len(own) == 6
        assert list(names.values())[:6] == list(own.values())
        kept = (painted > 0) & (painted <= 6)
        assert np.array_equal(organs[kept], painted[kept])
        assert (organs[~kept] > 0).any() or set(np.unique(painted)) <= set(range(7))


def test_lungs_are_air_and_the_heart_is_not(raw: Path) -> None:
    study = next(s for s in PhantomCt(raw).studies() if not any(s.labels.values()))
    volume = read_volume(raw / study.images[0].path, facts=study.images[0].facts)
    labels, _ = read_volume_labels(raw, study.masks, volume)
    assert np.median(volume.array[(labels >= 1) & (labels <= 5)]) < -700
    assert 0 < np.median(volume.array[labels == 6]) < 100
    right = np.argwhere(labels == 3)[:, 2].mean()
    left = np.argwhere(labels == 5)[:, 2].mean()
    assert right > left  # w runs to the patient's right


def test_rows_that_cannot_be_used_are_named(raw: Path, tmp_path: Path) -> None:
    rows = (raw / "studies.jsonl").read_text().splitlines()
    lost = json.loads(rows[0]) | {"study_id": "s999999"}
    other = json.loads(rows[1]) | {"labels": {"Cold": 1}}
    (tmp_path / "studies.jsonl").write_text("\n".join([json.dumps(lost), json.dumps(other), "{"]))
    (tmp_path / "phantom_ct.json").write_text((raw / "phantom_ct.json").read_text())
    source = PhantomCt(tmp_path)
    assert not list(source.studies())
    assert [problem.path for problem in source.problems] == [
        "volumes/s999999.nii.gz",
        "studies.jsonl:2",
        "studies.jsonl:3",
    ]


@pytest.mark.parametrize("marker", ["{}", '{"format": 2}', "nonsense"])
def test_another_folder_is_refused(marker: str, tmp_path: Path) -> None:
    (tmp_path / "studies.jsonl").write_text("")
    (tmp_path / "phantom_ct.json").write_text(marker)
    with pytest.raises(UserError, match="phantom"):
        list(PhantomCt(tmp_path).studies())

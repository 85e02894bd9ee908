"""The rule labeler against official pairs, sentences with known reading, hand labels and the phantom's truth."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.text import labeler
from medvlp.text.labeler import FINDINGS, label_report, label_sentence, label_sentences
from medvlp.text.rules import compile_rules

SHORT = dict(
    zip(["NF", "EC", "CM", "LO", "LL", "ED", "CO", "PN", "AT", "PT", "PE", "PO", "FR", "SD"], FINDINGS, strict=True)
)


def shown(labels: dict[str, float], leave_out: tuple[str, ...] = ("NF",)) -> str:
    return " ".join(
        f"{short}{int(labels[name]):+d}"
        for short, name in SHORT.items()
        if short not in leave_out and not math.isnan(labels[name])
    )


def mention_f1(pairs: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, float]:
    """F1 of mentions (finding and value) against the truth: one figure a value, and the micro average."""
    counts: dict[float, list[int]] = {value: [0, 0, 0] for value in (1.0, 0.0, -1.0)}
    for got, want in pairs:
        for name in FINDINGS:
            g, w = got[name], want[name]
            if g == w:
                counts[g][0] += 1
                continue
            if not math.isnan(g):
                counts[g][1] += 1
            if not math.isnan(w):
                counts[w][2] += 1
    rows = {str(int(value)): row for value, row in counts.items()}
    rows["micro"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    return {key: 2 * tp / max(2 * tp + fp + fn, 1) for key, (tp, fp, fn) in rows.items()}


def test_official_pairs(oracles: Path) -> None:
    with (oracles / "metrics" / "chexpert_labels" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        want = {name: float(row[name]) if row[name] else math.nan for name in FINDINGS}
        assert shown(label_report(row["Reports"]), ()) == shown(want, ())


SENTENCES = [
    ("No evidence of pneumothorax, effusion or consolidation.", "CO+0 PT+0 PE+0"),
    ("No change in the effusion.", "PE+1"),
    ("No new effusion.", "PE+0"),
    ("Pneumonia cannot be excluded.", "PN-1"),
    ("Pneumonia is not excluded.", "PN-1"),
    ("Cannot rule out pneumonia.", "PN-1"),
    ("Left basilar opacity, atelectasis versus pneumonia.", "LO+1 PN-1 AT-1"),
    ("Opacity in the left base may represent atelectasis or pneumonia.", "LO+1 PN-1 AT-1"),
    ("The effusion has resolved.", "PE+0"),
    ("The effusion has not resolved.", "PE+1"),
    ("Lungs are free of focal airspace disease.", "LO+0"),
    ("Negative for pneumonia, pneumothorax.", "PN+0 PT+0"),
    ("No pneumothorax, small left effusion.", "PT+0 PE+1"),
    ("No pneumothorax and stable cardiomegaly.", "CM+1 PT+0"),
    ("No focal consolidation, large pleural effusion, or pneumothorax.", "CO+0 PT+0 PE+0"),
    ("Heart size is normal and the mediastinum is widened.", "EC+1 CM+0"),
    ("Heart size and mediastinal contours are within normal limits.", "EC+0 CM+0"),
    ("The cardiac silhouette is enlarged.", "CM+1"),
    ("Heart size is at the upper limits of normal.", "CM-1"),
    ("Stable cardiomediastinal silhouette.", "EC-1"),
    ("Stable cardiomediastinal silhouette with normal heart size.", "EC-1 CM+0"),
    ("The heart is not significantly enlarged.", "CM+0"),
    ("Normal heart size and mediastinal contours.", "EC+0 CM+0"),
    ("Cardiac and mediastinal contours are within normal limits.", "EC+0 CM+0"),
    ("Heart size is stable, mildly enlarged.", "CM+1"),
    ("Without evidence of cardiac silhouette enlargement.", "CM+0"),
    ("No acute cardiopulmonary abnormality.", ""),
    ("Mild cardiomegaly without pulmonary edema.", "CM+1 ED+0"),
    ("No findings suspicious for pneumonia.", "PN+0"),
    ("Effusion is unlikely.", "PE+0"),
    ("Possible small left effusion.", "PE-1"),
    ("There are no XXXX of a pleural effusion.", "PE+0"),
    ("Interval removal of the chest tube.", "SD+0"),
    ("Interval resolution of left effusion.", "PE+0"),
    ("No increase in the size of the pneumothorax.", "PT+1"),
    ("Pneumothorax is no longer seen.", "PT+0"),
    ("There is a pneumothorax which is not significantly changed.", "PT+1"),
    ("Heart is mildly enlarged but stable.", "CM+1"),
    ("Small bilateral pleural effusions with bibasilar atelectasis and/or airspace disease.", "LO-1 AT-1 PE+1"),
    ("Atelectasis is seen in the left base, likely due to effusion.", "AT+1 PE-1"),
    ("Bibasilar opacities, likely secondary to atelectasis with small effusion.", "LO+1 AT-1 PE+1"),
    ("Consider CT to exclude an underlying mass.", "LL-1"),
    ("No displaced rib fractures.", "FR+0"),
    ("The opacity and effusion have resolved.", "LO+0 PE+0"),
    ("Heart size within normal limits, mild aortic ectasia.", "CM+0"),
    ("Calcified granuloma in the right lung.", ""),
    ("Stable calcified nodule.", ""),
    ("Increased interstitial markings suggest edema.", "LO+1 ED-1"),
    ("Difficult to exclude a superimposed pneumonia.", "PN-1"),
    ("No pneumonia, effusions, edema, pneumothorax, adenopathy, nodules or masses.", "LL+0 ED+0 PN+0 PT+0 PE+0"),
    ("Heart size normal, lungs are clear, no effusion or pneumothorax, prominent epicardial fat.", "CM+0 PT+0 PE+0"),
    ("The heart size and pulmonary vascularity appear within normal limits.", "CM+0"),
    ("Neither effusion nor pneumothorax.", "PT+0 PE+0"),
    ("No pneumothorax but there is a small effusion.", "PT+0 PE+1"),
    ("Opacity may have resolved.", "LO-1"),
    ("Pneumothorax: none.", "PT+0"),
    ("Lungs are clear without effusion.", "PE+0"),
    ("No significant change in left base airspace disease and small effusion.", "LO+1 PE+1"),
    ("Although the heart is not enlarged, effusion is present.", "CM+0 PE+1"),
    ("A pacemaker with leads over the right heart, unchanged.", "SD+1"),
    ("No doubt there is a pneumothorax.", "PT+1"),
    ("Not without effusion.", "PE+1"),
    ("Massive pericardial effusion.", ""),
    ("Mediastinum is widened.", "EC+1"),
    ("The cardiomediastinal silhouette is normal in size and contour.", "EC+0"),
    ("Evaluate for pneumonia.", ""),
    ("Pneumothoraces are absent.", "PT+0"),
    ("The penumonia has cleared.", "PN+0"),
    ("Old granulomatous disease with a calcified granuloma.", ""),
    ("Surgical clips in the right upper quadrant.", ""),
    ("Chest tube has been removed.", "SD+0"),
    ("Findings are suspicious for a 2.0 cm mass.", "LL-1"),
    ("No focal consolidation to suggest pneumonia.", "CO+0 PN+0"),
    ("Findings may be secondary to pulmonary edema.", "ED-1"),
    ("No evidence of consolidation, large pleural effusion/pneumothorax.", "CO+0 PT+0 PE+0"),
    ("Opacity which may be compatible with pneumonia.", "LO+1 PN-1"),
    ("Atypical infection is another consideration.", "PN-1"),
    ("Sequela of prior tuberculosis.", ""),
    ("The heart size and pulmonary vascular engorgement appear within limits of normal.", "CM+0"),
    ("Changes of mitral valve surgery.", ""),
    ("Mitral valve replacement.", "SD+1"),
    ("Persistent effusion, no longer loculated.", "PE+1"),
]


@pytest.mark.parametrize(("sentence", "reading"), SENTENCES)
def test_sentence(sentence: str, reading: str) -> None:
    assert set(shown(label_sentence(sentence)).split()) == set(reading.split())


def test_indication_states_nothing() -> None:
    labels = label_report("INDICATION: Rule out pneumonia. Known effusion.\nFINDINGS: No pneumothorax.")
    assert shown(labels, ()) == "NF+1 PT+0"


def test_present_before_uncertain_before_absent() -> None:
    assert label_report("No effusion. Possible effusion.")["Pleural Effusion"] == -1
    assert label_report("Small effusion. No effusion. Possible effusion.")["Pleural Effusion"] == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Clear lungs.", 1.0),
        ("Chest tube in place. Lungs are clear.", 1.0),
        ("Mild scoliosis.", math.nan),
        ("Possible effusion.", math.nan),
        ("", math.nan),
        ("INDICATION: Cough.", math.nan),
    ],
)
def test_no_finding(text: str, value: float) -> None:
    assert label_report(text)["No Finding"] == pytest.approx(value, nan_ok=True)


def test_no_finding_of_a_sentence_needs_a_statement() -> None:
    assert math.isnan(label_sentence("Comparison with XXXX.")["No Finding"])
    assert label_sentence("No acute cardiopulmonary abnormality.")["No Finding"] == 1
    assert label_sentence("No effusion.")["No Finding"] == 1


def test_label_sentences_keeps_order_and_text() -> None:
    result = label_sentences(
        "INDICATION: Cough.\nFINDINGS: Lungs are clear.No effusion.\nIMPRESSION: 1. Mild cardiomegaly."
    )
    assert [sentence for sentence, _ in result] == ["Lungs are clear.", "No effusion.", "Mild cardiomegaly."]
    assert [shown(labels) for _, labels in result] == ["", "PE+0", "CM+1"]


def test_white_space_and_case_do_not_matter() -> None:
    assert shown(label_report("NO  PLEURAL\n effusion OR\tPneumothorax.")) == "PT+0 PE+0"


def test_hand_labels(test_data: Path) -> None:
    from medvlp.sources.iu_xray_reports import IuXrayReports

    studies = {s.study_id: s for s in IuXrayReports(test_data / "iu_xray_reports" / "NLMCXR_reports.tgz").studies()}
    with (Path(__file__).with_name("iu_hand_labels.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    assert all(any(row[name] in ("1", "-1") for row in rows) for name in FINDINGS)
    pairs = [
        (
            label_report(studies[row["study_id"]].report or ""),
            {name: float(row[name]) if row[name] else math.nan for name in FINDINGS},
        )
        for row in rows
    ]
    scores = mention_f1(pairs)
    assert scores["micro"] >= 0.97, scores
    assert min(scores.values()) >= 0.95, scores


def test_phrase_file_mistakes_are_named() -> None:
    import yaml

    data = yaml.safe_load((Path(labeler.__file__).with_name("phrases.yaml")).read_text(encoding="utf-8"))
    data["findings"]["Edema"]["mention"].append("(unclosed")
    with pytest.raises(UserError, match="Edema"):
        compile_rules(data)
    data["findings"]["Edema"]["mention"][-1] = ""
    with pytest.raises(UserError, match="empty"):
        compile_rules(data)
    data["findings"]["Oedema"] = data["findings"].pop("Edema")
    with pytest.raises(UserError, match="Oedema"):
        compile_rules(data)
    del data["findings"]["Oedema"]
    with pytest.raises(UserError, match="Missing: Edema"):
        compile_rules(data)


def test_agreement_with_the_truth_of_the_phantom() -> None:
    from medvlp.sources.phantom.findings import sample_findings, sickness
    from medvlp.sources.phantom.patient import sample_patient, sample_posture, visit
    from medvlp.sources.phantom.reports import write_report

    pairs = []
    for index in range(500):
        who = visit(3, index)
        patient = sample_patient(3, who.patient)
        drawn, before = sample_findings(3, who.patient, patient, who.number)
        report = write_report(3, who, patient, sample_posture(3, index, sickness(drawn)), list(drawn), before)
        pairs.append((label_report(report.text), report.labels))
    scores = mention_f1(pairs)
    assert min(scores.values()) >= 0.98, scores

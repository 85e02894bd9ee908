"""Agreement and counts of the rule labeler: `python benchmarks/labeler.py --reports NLMCXR_reports.tgz`.

Guarantee: writes `benchmarks/results/labeler.json` and the tables between the markers of `docs/explanation/labeler.md`;
the labels are the same on every machine, the speed is not.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from medvlp.sources.iu_xray_reports import IuXrayReports
from medvlp.sources.phantom.findings import sample_findings, sickness
from medvlp.sources.phantom.patient import sample_patient, sample_posture, visit
from medvlp.sources.phantom.reports import write_report
from medvlp.text.labeler import FINDINGS, label_report
from medvlp.text.statements import read_sentence

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "labeler.json"
PAGE = ROOT / "docs" / "explanation" / "labeler.md"
BEGIN, END = "<!-- begin: benchmarks/labeler.py -->", "<!-- end -->"
VALUES = {"present": 1.0, "absent": 0.0, "uncertain": -1.0}
Labels = dict[str, float]


def phantom_reports(seed: int, studies: int) -> Iterable[tuple[str, Labels]]:
    """Yield (report, its true labels) of phantom patients, without making their images."""
    for index in range(studies):
        who = visit(seed, index)
        patient = sample_patient(seed, who.patient)
        drawn, before = sample_findings(seed, who.patient, patient, who.number)
        posture = sample_posture(seed, index, sickness(drawn))
        report = write_report(seed, who, patient, posture, list(drawn), before)
        yield report.text, report.labels


def agreement(pairs: list[tuple[Labels, Labels]]) -> dict[str, object]:
    """Compare labels with the truth over mentions (finding and value), by value, by finding and over all."""

    def score(rows: list[tuple[float, float]]) -> dict[str, float | int]:
        hit = sum(g == w for g, w in rows)
        extra = sum(g != w and not math.isnan(g) for g, w in rows)
        missed = sum(g != w and not math.isnan(w) for g, w in rows)
        total = 2 * hit + extra + missed
        return {"agree": hit, "extra": extra, "missed": missed, "f1": round(2 * hit / total, 4) if total else math.nan}

    every = [(name, got[name], want[name]) for got, want in pairs for name in FINDINGS]
    nan = math.nan
    by_value = {
        kind: score([(g if g == value else nan, w if w == value else nan) for _, g, w in every])
        for kind, value in VALUES.items()
    }
    by_finding = {finding: score([(g, w) for name, g, w in every if name == finding]) for finding in FINDINGS}
    return {
        "reports": len(pairs),
        "micro": score([(g, w) for _, g, w in every]),
        "by_value": by_value,
        "by_finding": {name: row for name, row in by_finding.items() if not math.isnan(row["f1"])},
    }


def hand_labels(path: Path, reports: dict[str, str]) -> list[tuple[Labels, Labels]]:
    """Return (our labels, hand labels) of the reports in a file of hand labels."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        (label_report(reports[row["study_id"]]), {n: float(row[n]) if row[n] else math.nan for n in FINDINGS})
        for row in rows
    ]


def tables(result: dict) -> str:
    """Return the Markdown tables of a result."""
    reports = result["counts"]["reports"]
    lines = [f"Labels of the {reports:,} reports of `iu_xray_reports`:", ""]
    lines += ["| finding | present | absent | uncertain | not mentioned |", "|---|---:|---:|---:|---:|"]
    for name in FINDINGS:
        row = result["counts"]["labels"][name]
        rest = reports - sum(row.values())
        lines.append(f"| {name} | {row['present']:,} | {row['absent']:,} | {row['uncertain']:,} | {rest:,} |")
    lines += ["", "Agreement over mentions (F1; a mention is a finding with its value):", ""]
    lines += ["| reports | n | present | absent | uncertain | all |", "|---|---:|---:|---:|---:|---:|"]
    for key, title in (("phantom", "phantom"), ("hand", "read by hand"), ("held_out", "read by hand, held out")):
        row = result[key]
        values = " | ".join(f"{row['by_value'][kind]['f1']:.3f}" for kind in VALUES)
        lines.append(f"| {title} | {row['reports']:,} | {values} | {row['micro']['f1']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, then write the result and the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reports", type=Path, required=True, help="NLMCXR_reports.tgz or the folder of its XML files")
    parser.add_argument("--phantom-studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    reports = {study.study_id: study.report or "" for study in IuXrayReports(arguments.reports).studies()}
    label_report("No effusion.")  # compile the phrases outside the clock
    read_sentence.cache_clear()
    started = time.process_time()
    labels = [label_report(text) for text in reports.values()]
    seconds = time.process_time() - started
    counts = {name: {k: sum(row[name] == v for row in labels) for k, v in VALUES.items()} for name in FINDINGS}
    truth = list(phantom_reports(arguments.seed, arguments.phantom_studies))
    hand = ROOT / "tests" / "text"
    result = {
        "counts": {"reports": len(reports), "labels": counts},
        "reports_per_second_one_core": round(len(reports) / seconds),
        "phantom": {"seed": arguments.seed, **agreement([(label_report(text), want) for text, want in truth])},
        "hand": agreement(hand_labels(hand / "iu_hand_labels.csv", reports)),
        "held_out": agreement(hand_labels(hand / "iu_hand_labels_held_out.csv", reports)),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{tables(result)}\n{END}{after}", encoding="utf-8")
    sys.stdout.write(f"{tables(result)}\n{result['reports_per_second_one_core']} reports a second on one core\n")


if __name__ == "__main__":
    main()

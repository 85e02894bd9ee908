"""Triplets against the phantom's truth and sentences read by hand: `python benchmarks/triplets.py --reports FILE`.

Guarantee: writes `benchmarks/results/triplets.json` and the table between the markers of
`docs/explanation/knowledge.md`; agreement is the same on every machine, speed is not.
"""

from __future__ import annotations

import argparse
import bisect
import csv
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from medvlp.sources.iu_xray_reports import IuXrayReports
from medvlp.sources.phantom.findings import sample_findings, sickness
from medvlp.sources.phantom.patient import sample_patient, sample_posture, visit
from medvlp.sources.phantom.reports import write_report
from medvlp.text.sections import sentence_spans
from medvlp.text.statements import normalise
from medvlp.text.triplets import Mention, cells_of, read_mentions, read_sentence_triplets

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "triplets.json"
PAGE = ROOT / "docs" / "explanation" / "knowledge.md"
BEGIN, END = "<!-- begin: benchmarks/triplets.py -->", "<!-- end -->"
VALUES = {"present": 1.0, "absent": 0.0, "uncertain": -1.0}
Fact = tuple[str, str, float]

PHANTOM_FINDING = {
    "effusion": "effusion", "pneumothorax": "pneumothorax", "opacity": "consolidation",
    "consolidation": "consolidation", "pneumonia": "consolidation", "atelectasis": "atelectasis",
    "collapse": "atelectasis", "cardiomegaly": "cardiomegaly", "edema": "edema", "nodule": "nodule", "mass": "mass",
    "emphysema": "emphysema", "bulla": "emphysema", "fibrosis": "fibrosis", "interstitial disease": "fibrosis",
    "reticular opacity": "fibrosis", "fracture": "fracture", "pacemaker": "device", "port": "device",
    "chest wall port": "device", "picc": "device", "central line": "device", "endotracheal tube": "device",
    "enteric tube": "device", "chest tube": "device",
}  # fmt: skip
"""What the phantom calls a finding; it has one name where reports have several."""
SIGNS = {"opacity", "collapse", "reticular opacity"}
"""Words for what is seen; beside a word for what it is, in one sentence, they say no more."""
PHANTOM_PLACE = {"svc": "superior vena cava", "lung": "lungs"}
WHOLE_LUNG = {"edema", "emphysema", "fibrosis"}
"""Findings that the phantom knows only in both lungs, whatever part its sentence names."""


def phantom_reports(seed: int, studies: int) -> Iterable[tuple[str, set[Fact]]]:
    """Yield (report, its true triplets) of phantom patients, without making their images."""
    for index in range(studies):
        who = visit(seed, index)
        patient = sample_patient(seed, who.patient)
        drawn, before = sample_findings(seed, who.patient, patient, who.number)
        posture = sample_posture(seed, index, sickness(drawn))
        report = write_report(seed, who, patient, posture, list(drawn), before)
        yield report.text, {(t.anatomy, t.finding, t.value) for t in report.triplets}


def in_phantom_words(text: str) -> set[Fact]:
    """Return what medvlp reads from a report, in the phantom's words."""
    starts = [start for start, _ in sentence_spans(text)]
    sentences: dict[int, list[Mention]] = {}
    for mention in read_mentions(text):
        if mention.finding in PHANTOM_FINDING:
            sentences.setdefault(bisect.bisect_right(starts, mention.start), []).append(mention)
    facts = set()
    for mentions in sentences.values():
        named = {m.finding for m in mentions} - SIGNS
        lung = {"consolidation", "atelectasis", "edema", "fibrosis", "nodule", "emphysema"}
        explained = any(PHANTOM_FINDING[name] in lung for name in named)
        facts |= {_fact(m) for m in mentions if not (explained and m.finding in SIGNS)}
    return facts


def _fact(mention: Mention) -> Fact:
    finding = PHANTOM_FINDING[mention.finding]
    place = PHANTOM_PLACE.get(mention.place, mention.place)
    if finding in WHOLE_LUNG:
        place = "lungs"
    elif finding in ("consolidation", "atelectasis"):
        place = place.replace("lung base", "lower lobe")
    elif finding == "fracture" and place in ("bones", "rib"):
        place = "ribs"
    elif mention.finding == "enteric tube":
        place = "esophagus"
    return place, finding, mention.value


def hand_read(path: Path, reports: dict[str, str]) -> list[tuple[set[Fact], set[Fact]]]:
    """Return (ours, by hand) of the sentences in a file of hand-read triplets, in words of the two books."""
    pairs = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sentence = reports[row["study_id"]][int(row["start"]) : int(row["end"])]
            cells = cells_of(read_sentence_triplets(normalise(sentence)))
            triplets = (item.split(":") for item in row["triplets"].split())
            truth = {(place, finding, float(value)) for place, finding, value in triplets}
            pairs.append(({(c.anatomy, c.finding, c.value) for c in cells}, truth))
    return pairs


def agreement(pairs: list[tuple[set[Fact], set[Fact]]]) -> dict[str, object]:
    """Return precision, recall and F1 over all triplets, by value, and by finding."""

    def score(rows: list[tuple[set[Fact], set[Fact]]]) -> dict[str, float | int]:
        hit = sum(len(got & want) for got, want in rows)
        extra, missed = sum(len(g - w) for g, w in rows), sum(len(w - g) for g, w in rows)
        return {
            "agree": hit, "extra": extra, "missed": missed, "precision": round(hit / max(hit + extra, 1), 4),
            "recall": round(hit / max(hit + missed, 1), 4), "f1": round(2 * hit / max(2 * hit + extra + missed, 1), 4),
        }  # fmt: skip

    def only(place: int, value: object) -> list[tuple[set[Fact], set[Fact]]]:
        return [({f for f in g if f[place] == value}, {f for f in w if f[place] == value}) for g, w in pairs]

    findings = sorted({fact[1] for _, want in pairs for fact in want})
    return {
        "texts": len(pairs),
        "all": score(pairs),
        "by_value": {kind: score(only(2, value)) for kind, value in VALUES.items()},
        "by_finding": {name: score(only(1, name)) for name in findings},
    }


def table(result: dict) -> str:
    """Return the Markdown table of a result."""
    lines = ["| texts | n | triplets | precision | recall | F1 | present | absent | uncertain |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    titles = {"phantom": "phantom reports", "hand": "sentences read by hand", "held_out": "the same, held out"}
    for key, title in titles.items():
        row, over = result[key], result[key]["all"]
        values = " | ".join(f"{row['by_value'][kind]['f1']:.3f}" for kind in VALUES)
        triplets = over["agree"] + over["missed"]
        figures = f"{over['precision']:.3f} | {over['recall']:.3f} | {over['f1']:.3f}"
        lines.append(f"| {title} | {row['texts']:,} | {triplets:,} | {figures} | {values} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, then write the result and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reports", type=Path, required=True, help="NLMCXR_reports.tgz or the folder of its XML files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103], help="Seeds not looked at before.")
    parser.add_argument("--phantom-studies", type=int, default=500, help="For each seed.")
    arguments = parser.parse_args()
    reports = {study.study_id: study.report or "" for study in IuXrayReports(arguments.reports).studies()}
    read_sentence_triplets(normalise("No effusion."))  # compile the lexicon outside the clock
    read_sentence_triplets.cache_clear()
    started = time.process_time()
    count = sum(len(read_mentions(text)) for text in reports.values())
    seconds = time.process_time() - started
    truth = [pair for seed in arguments.seeds for pair in phantom_reports(seed, arguments.phantom_studies)]
    hand = ROOT / "tests" / "text"
    result = {
        "reports": len(reports),
        "mentions": count,
        "reports_per_second_one_core": round(len(reports) / seconds),
        "phantom": {
            "seeds": arguments.seeds,
            **agreement([(in_phantom_words(text), want) for text, want in truth]),
        },
        "hand": agreement(hand_read(hand / "iu_hand_triplets.csv", reports)),
        "held_out": agreement(hand_read(hand / "iu_hand_triplets_held_out.csv", reports)),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{after}", encoding="utf-8")
    sys.stdout.write(f"{table(result)}\n{result['reports_per_second_one_core']} reports a second on one core\n")


if __name__ == "__main__":
    main()

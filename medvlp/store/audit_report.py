"""What an audit found, as data, as tables and as plain sentences.

Guarantee: a report is plain values only; `to_dict` is valid JSON. The sentences name leaks first, then shortcuts, the
worst first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from medvlp.store.shortcuts import Probe

SHORTCUT_AUROC, SHORTCUT_LOW = 0.6, 0.55
"""A predictor that reaches this AUROC, with at least this lower end of its interval, is named as a shortcut."""
EXAMPLES = 10
"""Examples listed per leak in tables; `to_dict` holds them all."""

KINDS = ("Leak", "Overlap", "Conflict", "Duplicates", "Identifiers", "False negatives", "Shortcut")
"""What a sentence can be about, in the order of listing."""
ACROSS_SPLITS, ACROSS_STORES, WITHIN_SPLIT = "across splits", "across data sets", "within a split"
PREDICTORS = {
    "view": "view",
    "age": "age",
    "sex": "sex",
    "image_size": "image size",
    "mean_brightness": "mean brightness",
    "histogram": "histogram",
    "pixels_16x16": "16×16 pixels",
}


@dataclass(frozen=True)
class Table:
    """A table to show: cells are text or numbers."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class AuditReport:
    """What an audit found.

    Attributes:
        stores: Name, data set, hash and size of each store.
        leaks: Patients in more than one split of their data set: dataset, patient, splits, images.
        identical: Pairs of images with the same file or the same pixels, with `kind` (across splits, across data sets,
            within a split).
        near_duplicates: The same for near-identical images, with their `correlation`.
        label_counts: Studies per store, label and split: present, absent, uncertain, not_mentioned.
        probes: Shortcut probes.
        overlaps: Published overlaps of the data sets (the leak map) and what of them was found.
        exposures: Test images that training on the others would have shown, with what shows them and why.
        conflicts: Labels on which data sets disagree about the same picture.
        repeated_texts: How many studies of a store share their report or caption.
        text_identifiers: Kinds of possible identifiers in reports, with counts.
        divided_questions: Test questions whose image, or whose other wording, is asked about in training, too.
        burnt_in: Images with candidates for burnt-in text.
        header_identifiers: Personal attributes that are filled in raw DICOM files.
        findings: Plain sentences, worst first.
    """

    stores: list[dict[str, Any]]
    leaks: list[dict[str, Any]]
    identical: list[dict[str, Any]]
    near_duplicates: list[dict[str, Any]]
    label_counts: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    overlaps: list[dict[str, Any]] = field(default_factory=list)
    exposures: list[dict[str, Any]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    repeated_texts: list[dict[str, Any]] = field(default_factory=list)
    text_identifiers: list[dict[str, Any]] = field(default_factory=list)
    divided_questions: list[dict[str, Any]] = field(default_factory=list)
    burnt_in: list[dict[str, Any]] = field(default_factory=list)
    header_identifiers: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    @property
    def has_leaks(self) -> bool:
        """Whether a test image or patient is also in another split, or one picture in two data sets."""
        pairs = [*self.identical, *self.near_duplicates]
        tied = any(row["tied_by_id"] for row in self.overlaps)
        known = self.leaks or self.exposures or self.divided_questions
        return bool(known or tied or any(pair["kind"] != WITHIN_SPLIT for pair in pairs))

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as JSON types (None for a missing number)."""
        return asdict(self) | {"has_leaks": self.has_leaks}

    def to_tables(self) -> list[Table]:
        """Return the report as tables for a terminal or a page, lists of examples cut short."""
        tables = [
            Table(
                "Stores", ["store", "data set", "images", "studies", "hash"], [list(s.values()) for s in self.stores]
            ),
            _label_table(self.label_counts),
        ]
        if self.leaks:
            rows = [[x["dataset"], x["patient_id"], ", ".join(x["splits"]), x["images"]] for x in self.leaks]
            title = _cut_title("Patients in more than one split", rows)
            tables.append(Table(title, ["data set", "patient", "splits", "images"], rows[:EXAMPLES]))
        for title, pairs in (("Identical images", self.identical), ("Near-identical images", self.near_duplicates)):
            if pairs:
                rows = [[x["kind"], x["a"], x["b"], x["correlation"]] for x in pairs]
                columns = ["kind", "image", "other image", "correlation"]
                tables.append(Table(_cut_title(title, rows), columns, rows[:EXAMPLES]))
        return [*tables, *_further_tables(self), *_probe_tables(self.probes)]


def _further_tables(report: AuditReport) -> list[Table]:
    """Return the tables of exposures, overlaps, conflicts, texts and identifiers that have rows."""
    made = [
        (
            "Test images that other images expose",
            ["test image", "by", "seen as", "times"],
            [[x["image"], ", ".join(x["by"]), ", ".join(x["seen_as"][:3]), x["count"]] for x in report.exposures],
        ),
        (
            "Published overlaps",
            ["outer", "inner", "share", "both here", "tied by id", "same picture", "names of outer", "note"],
            [
                [x["outer"], x["inner"], x["share"], "yes" if x["both_here"] else "no", x["tied_by_id"],
                 x["same_picture"], x["names_of_outer"], x["note"]]
                for x in report.overlaps
            ],
        ),
        (
            "Labels that contradict each other on the same picture",
            ["data set", "other data set", "finding", "compared", "conflicts", "example"],
            [[x[name] for name in ("a", "b", "finding", "compared", "conflicts", "example")] for x in report.conflicts],
        ),
        (
            "Reports and captions that say the same",
            ["store", "texts", "distinct", "shared", "most frequent", "across splits", "alike in a batch of 256"],
            [list(x.values()) for x in report.repeated_texts],
        ),
        (
            "Questions divided between splits",
            ["store", "test questions", "images also in training", "their test questions", "rephrased in training"],
            [list(x.values()) for x in report.divided_questions],
        ),
        (
            "Possible identifiers in texts",
            ["store", "kind", "texts", "studies, for example"],
            [[x["store"], x["kind"], x["texts"], ", ".join(x["studies"][:3])] for x in report.text_identifiers],
        ),
        (
            "Personal attributes in DICOM headers",
            ["folder", "attribute", "kind", "files", "different values"],
            [[x[name] for name in ("root", "attribute", "kind", "files", "values")] for x in report.header_identifiers],
        ),
        (
            "Images with candidates for burnt-in text",
            ["store", "image", "characters"],
            [[x["store"], x["image"], x["characters"]] for x in report.burnt_in],
        ),
    ]  # fmt: skip
    whole = {"Published overlaps", "Personal attributes in DICOM headers"}
    return [
        Table(_cut_title(title, rows), columns, rows if title in whole else rows[:EXAMPLES])
        for title, columns, rows in made
        if rows
    ]


def _label_table(counts: list[dict[str, Any]]) -> Table:
    columns = ["store", "label", "split", "present", "absent", "uncertain", "not mentioned"]
    return Table("Labels per split (studies)", columns, [list(row.values()) for row in counts])


def _cut_title(title: str, rows: list[list[Any]]) -> str:
    return f"{title}: {len(rows)}" + (f", the first {EXAMPLES}" if len(rows) > EXAMPLES else "")


def _probe_tables(results: list[dict[str, Any]]) -> list[Table]:
    """Return one row per question, one column per predictor, the strongest first; then what could not be measured."""
    questions: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for probe in results:
        questions.setdefault((probe["dataset"], probe["label"], probe["against"]), {})[probe["predictor"]] = probe
    measured, missing = [], []
    for (dataset, label, against), own in questions.items():
        values = [probe for probe in own.values() if probe["auroc"] is not None]
        if not values:
            missing.append([dataset, label, against, next(iter(own.values()))["reason"]])
            continue
        first = values[0]
        row = [dataset, label, against, first["n"], first["positives"], *(_cell(own.get(name)) for name in PREDICTORS)]
        measured.append((max(probe["low"] for probe in values), row))
    measured.sort(key=lambda item: -item[0])
    columns = ["store", "label", "against", "n", "positive", *PREDICTORS.values()]
    tables = []
    if measured:
        title = "AUROC of a label from one thing alone (95 % interval)"
        tables.append(Table(title, columns, [row for _, row in measured]))
    if missing:
        tables.append(Table("Labels that cannot be probed", ["store", "label", "against", "reason"], missing))
    return tables


def _cell(probe: dict[str, Any] | None) -> str:
    if probe is None or probe["auroc"] is None:
        return "–"
    return f"{probe['auroc']:.2f} ({probe['low']:.2f}–{probe['high']:.2f})"


def findings(report: AuditReport, probes: Sequence[Probe]) -> list[str]:
    """Return what the report means, in plain sentences: leaks, then shortcuts, the worst first."""
    found = [*_leaks(report), *_exposed(report), *_identifiers(report), *_texts(report), *_shortcuts(probes)]
    found.sort(key=lambda sentence: KINDS.index(sentence.split(":")[0]))
    if not any(probe["auroc"] is not None for probe in report.probes):
        none = "" if found else "No leak between splits or stores was found. "
        return [*found, f"{none}Shortcuts could not be looked for: no label has enough images of both kinds."]
    return found or ["No leak between splits or stores and no shortcut was found."]


def _leaks(report: AuditReport) -> list[str]:
    found = []
    for dataset in sorted({leak["dataset"] for leak in report.leaks}):
        own = [leak for leak in report.leaks if leak["dataset"] == dataset]
        stand = "patient stands" if len(own) == 1 else "patients stand"
        images, some = sum(leak["images"] for leak in own), ", ".join(leak["patient_id"] for leak in own[:3])
        found.append(
            f"Leak: {len(own)} {stand} in more than one split of {dataset} ({images} images; for example {some})."
        )
    found += [
        f"Leak: {row['questions']} of {row['test_questions']} test questions of {row['store']} are about images that "
        f"training asks about, too ({row['images']} images); {row['rephrased']} of them it asks in other words."
        for row in report.divided_questions
    ]
    for kind in (ACROSS_SPLITS, ACROSS_STORES, WITHIN_SPLIT):
        for adjective, pairs in (("identical", report.identical), ("near-identical", report.near_duplicates)):
            own = [pair for pair in pairs if pair["kind"] == kind]
            if own:
                head, detail = ("Duplicates", " but of different patients") if kind == WITHIN_SPLIT else ("Leak", "")
                count = "1 pair" if len(own) == 1 else f"{len(own)} pairs"
                example = f"for example {own[0]['a']} and {own[0]['b']}"
                found.append(f"{head}: {count} of {adjective} images {kind}{detail}, {example}.")
    return found


def _exposed(report: AuditReport) -> list[str]:
    found = []
    for store in sorted({row["store"] for row in report.exposures}):
        own = [row for row in report.exposures if row["store"] == store]
        reasons = Counter(reason for row in own for reason in row["by"])
        listed = ", ".join(f"{count} by {reason}" for reason, count in sorted(reasons.items()))
        count = "1 test image" if len(own) == 1 else f"{len(own)} test images"
        example = f"for example {own[0]['image']}, seen as {own[0]['seen_as'][0]}"
        found.append(f"Leak: training on the other images shows {count} of {store} ({listed}), {example}.")
    for row in report.overlaps:
        if row["both_here"] and (row["tied_by_id"] or row["same_picture"]):
            found.append(
                f"Leak: {row['inner']} shares images with {row['outer']}, as published: {row['tied_by_id']} tied by "
                f"id, {row['same_picture']} the same picture. {row['note']}"
            )
        elif row["names_of_outer"]:
            found.append(
                f"Overlap: {row['names_of_outer']} images of {row['inner']} have names of {row['outer']}, which "
                f"{'does not hold them here' if row['both_here'] else 'is not examined here'}. {row['note']}"
            )
    if report.conflicts:
        worst, total = report.conflicts[0], sum(row["conflicts"] for row in report.conflicts)
        found.append(
            f"Conflict: data sets disagree {total} times about a label of the same picture, most about "
            f"{worst['finding']} ({worst['conflicts']} of {worst['compared']} in {worst['a']} and {worst['b']})."
        )
    return found


def _identifiers(report: AuditReport) -> list[str]:
    found = []
    for kind, what in (("person", "personal attributes"), ("free", "attributes that can hold anything")):
        rows = [row for row in report.header_identifiers if row["kind"] == kind]
        if rows:
            names = ", ".join(row["attribute"] for row in rows[:5])
            found.append(f"Identifiers: {len(rows)} {what} are filled in raw DICOM headers ({names}).")
    for store in sorted({row["store"] for row in report.text_identifiers}):
        own = [row for row in report.text_identifiers if row["store"] == store]
        listed = ", ".join(f"{row['kind']} in {row['texts']}" for row in own)
        found.append(f"Identifiers: texts of {store} may hold some ({listed}); prepare it with identifiers.text=rules.")
    if report.burnt_in:
        count = len(report.burnt_in)
        subject = "1 image has" if count == 1 else f"{count} images have"
        found.append(f"Identifiers: {subject} text burnt in, for example {report.burnt_in[0]['image']}; look at them.")
    return found


def _texts(report: AuditReport) -> list[str]:
    return [
        f"False negatives: {row['shared']} of {row['texts']} texts of {row['store']} are shared with another study; a "
        f"batch of 256 holds {row['false_negatives']:.1f} others that say the same as a given one."
        for row in report.repeated_texts
        if row["false_negatives"] >= 1
    ]


def _shortcuts(probes: Sequence[Probe]) -> list[str]:
    questions: dict[tuple[str, str, str], list[Probe]] = {}
    for probe in probes:
        if probe.auroc >= SHORTCUT_AUROC and probe.low >= SHORTCUT_LOW:
            questions.setdefault((probe.dataset, probe.label, probe.against), []).append(probe)
    found = []
    for (dataset, label, against), own in sorted(questions.items(), key=lambda item: -max(p.low for p in item[1])):
        own.sort(key=lambda probe: -probe.auroc)
        what = label if against == "absent" else f"{label} against {against}"
        listed = ", ".join(f"{PREDICTORS[p.predictor]} {p.auroc:.2f} ({p.low:.2f} to {p.high:.2f})" for p in own)
        found.append(f"Shortcut: {what} in {dataset} is predicted without looking for disease; AUROC by {listed}.")
    return found

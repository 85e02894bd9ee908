"""Radiology reports of phantom patients, with the statements they make.

Guarantee: a report never states as present what is not in the patient, nor denies what is. Doubtful words
("possible", "cannot be excluded") are mostly about what is there, seldom about what is not, as in real reports.
Triplets and labels are derived from the statements made, not from the text, and apart from them stands what is in the
patient (`image_labels`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from medvlp.sources.phantom.findings import NAMES, Finding, image_labels
from medvlp.sources.phantom.patient import Patient, Posture, Visit, stream
from medvlp.sources.phantom.wording import (
    BONES,
    CHANGE,
    DEFAULT,
    DEGREES,
    DENIED,
    INDICATION,
    LUNGS_CLEAR,
    MEDIASTINUM,
    RADIOGRAPH,
    RESOLVED,
    Wording,
)
from medvlp.types import ABSENT as NO
from medvlp.types import NOT_MENTIONED, Triplet
from medvlp.types import PRESENT as YES
from medvlp.types import UNCERTAIN as PERHAPS

_DENIED_AT = {
    "effusion": "pleural space",
    "pneumothorax": "pleural space",
    "cardiomegaly": "heart",
    "fracture": "ribs",
}
_DOUBT_FALSELY = {"effusion": 0.02, "consolidation": 0.025, "atelectasis": 0.02, "nodule": 0.012, "edema": 0.01}
_TELL = {"atelectasis": 0.93, "emphysema": 0.95, "fracture": 0.95, "nodule": 0.95, "cardiomegaly": 0.97}
"""Chance that a finding is mentioned, below 1 for what is often left out."""
_ORDER = ("device", "consolidation", "atelectasis", "edema", "fibrosis", "emphysema", "nodule", "mass", "effusion",
          "pneumothorax", "cardiomegaly", "fracture")  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """One sentence and what it says: triplets, and the CheXpert names its words speak of, all with one value."""

    text: str
    about: str
    value: float
    triplets: tuple[Triplet, ...] = ()
    names: tuple[str, ...] = ()
    finding: Finding | None = None


@dataclass(frozen=True)
class Report:
    """A report with its truth.

    Args:
        text: The whole report.
        sections: Lower-case section name -> text; a report without headings has `findings` only.
        style: terse, prose, structured or list.
        triplets: What it states, finding by place: 1 present, 0 absent, -1 uncertain.
        labels: CheXpert names as the report speaks of them: 1, 0, -1, NaN not mentioned.
        image_labels: CheXpert names as they are in the patient: 1 or 0.
    """

    text: str
    sections: dict[str, str]
    style: str
    triplets: tuple[Triplet, ...]
    labels: dict[str, float]
    image_labels: dict[str, float]


@cache
def _label_names() -> tuple[str, ...]:
    from medvlp.sources.cards import load_card

    return load_card("phantom").labels


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ordinal(number: int) -> str:
    words = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
    return words[number - 1] if number <= len(words) else f"{number}th"


def _degree(finding: Finding) -> str:
    low, middle, high = DEGREES.get(finding.name, ("", "", ""))
    return low if finding.severity < 0.35 else middle if finding.severity < 0.7 else high


def _group(finding: Finding) -> str:
    if finding.kind and finding.name in ("device", "fracture", "atelectasis", "nodule"):
        return f"{finding.name} {finding.kind}"
    return finding.name


def _fill(template: str, finding: Finding, rng: np.random.Generator) -> str:
    degree, side, lobe = _degree(finding), finding.side or "", finding.lobe or ""
    size = ""
    if finding.size_mm:
        size = f"{finding.size_mm / 10:.1f} cm" if rng.random() < 0.5 else f"{finding.size_mm:.0f} mm"
    values = {
        "side": side, "Side": _capital(side), "lobe": lobe, "Lobe": _capital(lobe), "degree": degree,
        "Degree": _capital(degree), "size": size, "rib": _ordinal(finding.rib or 1),
    }  # fmt: skip
    return _capital(template.format(**values).replace("  ", " ").strip())


def _statement(template: str, finding: Finding, value: float, rng: np.random.Generator) -> Statement:
    words, _, names = template.partition("|")
    spoken = tuple(name.strip() for name in names.split(",")) if names else DEFAULT[finding.name]
    triplet = Triplet(finding.anatomy, finding.name, value)
    return Statement(_fill(words, finding, rng), finding.name, value, (triplet,), spoken, finding)


def _options(finding: Finding, value: float, words: Wording) -> tuple[str, ...]:
    group = _group(finding)
    table = words.uncertain if value == PERHAPS else words.present
    options = table.get(group) or table.get(finding.name, ())
    if finding.change not in (None, "new"):
        options = tuple(option for option in options if not option.startswith("New "))
    return options


def _reworded(statement: Statement, words: Wording, rng: np.random.Generator) -> Statement:
    """Say the same again, in other words where there are some."""
    if statement.finding is None or rng.random() < 0.3:
        return statement
    again = _statement(
        _pick(rng, _options(statement.finding, statement.value, words)), statement.finding, statement.value, rng
    )
    return _with_change(again, statement.finding, rng) if statement.value == YES else again


def _with_change(statement: Statement, finding: Finding, rng: np.random.Generator) -> Statement:
    """Add how the finding stands against the study before."""
    if finding.change is None or rng.random() < 0.25:
        return statement
    options = CHANGE[finding.change]
    phrase = _pick(rng, options)
    stem = statement.text.rstrip(".")
    text = f"{stem}, {phrase}."
    return replace(statement, text=text)


def _positive(findings: list[Finding], words: Wording, rng: np.random.Generator) -> list[Statement]:
    made = []
    for finding in sorted(findings, key=lambda f: _ORDER.index(f.name)):
        tell, doubt = rng.random(), rng.random()
        if tell > _TELL.get(finding.name, 1.0) + 0.1 * (finding.severity > 0.3):
            continue
        options = _options(finding, PERHAPS, words)
        if options and doubt < 0.22 * (1.25 - finding.severity):
            made.append(_statement(_pick(rng, options), finding, PERHAPS, rng))
            continue
        told = _statement(_pick(rng, _options(finding, YES, words)), finding, YES, rng)
        made.append(_with_change(told, finding, rng))
    return made


def _negative(findings: list[Finding], wording: Wording, rng: np.random.Generator, spare: float) -> list[Statement]:
    there = {finding.name for finding in findings}
    deny = {}
    for name in NAMES:
        chance = rng.random()
        if name not in there and chance < wording.deny.get(name, 0) * spare:
            deny[name] = True
    made = []

    def add(options: tuple[str, ...], names: tuple[str, ...]) -> None:
        words, _, labels = _pick(rng, options).partition("|")
        spoken = tuple(n.strip() for n in labels.split(",")) if labels else tuple(n for k in names for n in DENIED[k])
        triplets = tuple(Triplet(_DENIED_AT.get(name, "lungs"), name, NO) for name in names)
        made.append(Statement(words.strip(), names[0], NO, triplets, spoken))

    both = {"effusion", "pneumothorax"}
    if both <= deny.keys() and rng.random() < 0.7:
        add(wording.absent["effusion and pneumothorax"], ("effusion", "pneumothorax"))
        deny = {name: True for name in deny if name not in both}
    for name in deny:
        if name == "cardiomegaly" and rng.random() < 0.3:
            made.append(Statement(_pick(rng, MEDIASTINUM), "mediastinum", NO, (), ("Enlarged Cardiomediastinum",)))
        add(wording.absent[name], (name,))
    for name, chance in _DOUBT_FALSELY.items():
        hit = rng.random() < chance
        side = "right" if rng.random() < 0.5 else "left"
        group = "atelectasis plate" if name == "atelectasis" else name
        option = _pick(rng, wording.uncertain[group])
        if hit and name not in there and name not in deny and not any(s.about == name for s in made):
            lobe = None if name in ("effusion", "edema") else f"{side} lower lobe"
            kind = "plate" if name == "atelectasis" else None
            ghost = Finding(name, 0.1, 0, side=side, lobe=lobe, size_mm=8 if name == "nodule" else None, kind=kind)
            made.append(_statement(option, ghost, PERHAPS, rng))
    return made


def _resolved(before: list[Finding], findings: list[Finding], rng: np.random.Generator) -> list[Statement]:
    made = []
    there = {finding.name for finding in findings}
    for finding in before:
        if finding.name in RESOLVED and finding.name not in there and rng.random() < 0.5:
            there.add(finding.name)
            words = _fill(_pick(rng, RESOLVED[finding.name]), finding, rng)
            triplet = Triplet(finding.anatomy, finding.name, NO)
            made.append(Statement(words, finding.name, NO, (triplet,), DEFAULT[finding.name]))
    return made


def labels_of(statements: list[Statement], names: tuple[str, ...]) -> dict[str, float]:
    """Return what statements say about each name: present wins over uncertain, uncertain over absent.

    No Finding is 1 where nothing but devices is present or uncertain, and otherwise not mentioned, as CheXpert has it.
    """
    labels = dict.fromkeys(names, NOT_MENTIONED)
    for value in (NO, PERHAPS, YES):
        for statement in statements:
            if statement.value == value:
                labels.update(dict.fromkeys(statement.names, value))
    ill = [s for s in statements if s.value != NO and s.about != "device"]
    if not ill:
        labels["No Finding"] = YES
    return labels


def _compose(
    style: str,
    told: list[Statement],
    denied: list[Statement],
    filler: list[str],
    head: dict[str, str],
    closing: str,
    rng: np.random.Generator,
) -> dict[str, str]:
    body = [s.text for s in told]
    rest = [s.text for s in denied] + filler
    rng.shuffle(rest)
    lead = rng.random() < 0.65
    findings = " ".join(body + rest if lead else rest + body)
    if style == "terse":
        return {"findings": findings or closing}
    if style == "prose":
        return {"findings": f"{findings} {closing}".strip()}
    sections = dict(head) if style == "structured" else {}
    sections["findings"] = findings or closing
    sections["impression"] = closing
    return sections


def write_report(
    seed: int,
    who: Visit,
    patient: Patient,
    posture: Posture,
    findings: list[Finding],
    before: list[Finding],
    wording: Wording = RADIOGRAPH,
) -> Report:
    """Write the report of a study.

    Args:
        seed: Seed of the data set.
        who: Study and patient.
        patient: For the wording of the indication.
        posture: Views, for the technique.
        findings: What is in the patient.
        before: What was there at the visit before.
        wording: Sentences of the modality.
    """
    rng = stream(seed, "report", who.index)
    names = _label_names()
    style = ("terse", "prose", "structured", "list")[int(rng.choice(4, p=[0.18, 0.17, 0.45, 0.2]))]
    told = _positive(findings, wording, rng)
    denied = _resolved(before, findings, rng)
    gone = {statement.about for statement in denied}
    spare = 0.55 if style == "terse" else 1.0
    more = _negative(findings, wording, rng, spare)
    doubts = [s for s in more if s.value == PERHAPS and s.about not in gone]
    told += doubts
    denied += [s for s in more if s.value == NO and not {t.finding for t in s.triplets} & gone]
    statements = told + denied
    lungs = {"consolidation", "atelectasis", "edema", "nodule", "mass", "emphysema", "fibrosis"}
    ill = {finding.name for finding in findings} | {s.about for s in told}
    filler = []
    if not ill & lungs and rng.random() < 0.4:
        filler.append(_pick(rng, LUNGS_CLEAR))
    if "fracture" not in ill and style != "terse" and rng.random() < 0.3:
        filler.append(_pick(rng, BONES))
    serious = [s for s in told if s.about != "device"]
    if serious:
        number = min(len(serious), 3)
        chosen = [_reworded(serious[k], wording, rng) for k in sorted(rng.permutation(len(serious))[:number])]
        closing = " ".join(f"{k}. {s.text}" for k, s in enumerate(chosen, 1)) if number > 1 else chosen[0].text
        if style in ("terse", "prose"):
            closing = ""
        else:
            statements += chosen
    else:
        closing = _pick(rng, wording.normal[:3] if ill else wording.normal)
    head = {"indication": _pick(rng, INDICATION[_reason(findings, rng)])}
    compared = who.number > 0
    head["comparison"] = wording.prior if compared else _pick(rng, ("None.", "None available."))
    views = posture.view + (" LATERAL" if posture.lateral else "")
    head["technique"] = _pick(rng, wording.technique[views])
    if rng.random() < 0.3:
        del head["technique"]
    if rng.random() < 0.3:
        years = {"M": "male", "F": "female"}[patient.sex]
        head["indication"] = f"{patient.age}-year-old {years}. {head['indication']}"
    sections = _compose(style, told, denied, filler, head, closing, rng)
    if style in ("terse", "prose"):
        text = sections["findings"]
    else:
        text = "\n".join(f"{name.upper()}: {body}" for name, body in sections.items())
    triplets = tuple(dict.fromkeys(triplet for s in statements for triplet in s.triplets))
    return Report(text, sections, style, triplets, labels_of(statements, names), image_labels(findings, names))


def _reason(findings: list[Finding], rng: np.random.Generator) -> str:
    if not findings or rng.random() < 0.25:
        return ""
    return findings[int(rng.integers(len(findings)))].name

"""Sections and sentences of a radiology report, with character offsets.

Guarantee: nothing is lost. The sections cover the report: every character that belongs to no heading lies in exactly
one section. Every non-blank character of a text lies in exactly one sentence or in a list marker ("2.", "-") before
one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

BODY_SECTIONS = ("preamble", "findings", "impression", "recommendation", "addendum")
"""Sections that state what was seen; the others say why and how the examination was made."""

_HEADINGS = {
    "findings": r"findings?(?:\s*(?:and|/|&)\s*impressions?)?|observations?|interpretation",
    "impression": r"impressions?(?:\s*(?:and|/|&)\s*(?:plan|recommendations?))?|conclusions?|opinion|summary",
    "indication": r"(?:clinical\s+)?indications?(?:\s*(?:and|/|&)\s*(?:clinical\s+)?history)?"
    r"(?:\s+for\s+(?:exam(?:ination)?|study))?"
    r"|reasons?\s+for\s+(?:the\s+)?(?:exam(?:ination)?|study|referral|visit)|clinical\s+(?:question|statement|data|details)",
    "comparison": r"comparisons?(?:\s+(?:stud(?:y|ies)|exams?|films?))?|prior\s+stud(?:y|ies)",
    "technique": r"(?:imaging\s+)?techniques?|procedure|exam(?:ination)?(?:\s+(?:type|performed))?|protocol",
    "history": r"(?:(?:brief\s+|past\s+)?(?:clinical|medical|patient)\s+)?history|clinical\s+(?:information|context)",
    "recommendation": r"recommendations?",
    "addendum": r"addend(?:um|a)",
}
_NAMES = "|".join(f"(?P<{section}>{names})" for section, names in _HEADINGS.items())
_HEADING = re.compile(
    rf"(?<![\w-])(?P<mark>[*#_]{{1,4}}[ \t]*)?(?P<name>{_NAMES})[*_]{{0,2}}"
    r"(?:[ \t]*(?P<colon>:)(?!\d)[*_]{0,2}|(?P<alone>[ \t]*)(?=\n|\Z)|(?P<dash>[ \t]+[-\u2013](?=\s)))",
    re.IGNORECASE,
)
_LINE_START = re.compile(r"(?:\A|\n)[ \t]*\Z")
_SENTENCE_START = re.compile(r"(?:\A|\n|[.!?;:)\]])\s*\Z")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: `heading_start:start` is its heading (empty where there is none), `start:end` its text."""

    name: str
    heading_start: int
    start: int
    end: int


def _is_heading(report: str, match: re.Match[str]) -> bool:
    before = report[max(0, match.start() - 40) : match.start()]
    if match[
        "colon"
    ]:  # in running text only capitals ("... None. FINDINGS: ..."), so that "compared with prior findings:" stays
        return match["name"].isupper() or _SENTENCE_START.search(before) is not None
    return _LINE_START.search(before) is not None


def find_sections(report: str) -> list[Section]:
    """Return the sections in order; they cover the report without gap or overlap.

    A heading is one of the usual names, in any case, at the start of a line or of a sentence and followed by a colon
    (or a dash, at the start of a line), alone on a line, or in capitals with a colon anywhere. Subheadings such as
    "LUNGS:" are text. Text before the first heading is the section `preamble`; a report without any heading is one
    section, `findings`.
    """
    marks = [match for match in _HEADING.finditer(report) if _is_heading(report, match)]
    if not marks:
        return [Section("findings", 0, 0, len(report))]
    sections = [Section("preamble", 0, 0, marks[0].start())] if report[: marks[0].start()].strip() else []
    first = 0 if not sections else marks[0].start()  # blank text before the first heading goes with the heading
    for k, match in enumerate(marks):
        name = next(section for section in _HEADINGS if match[section] is not None)
        end = marks[k + 1].start() if k + 1 < len(marks) else len(report)
        sections.append(Section(name, first if k == 0 else match.start(), match.end(), end))
    return sections


def split_sections(report: str) -> dict[str, str]:
    """Return section name (lower case) -> its text without surrounding blanks.

    A section that occurs twice is joined by a newline. Names: findings, impression, indication, comparison,
    technique, history, recommendation, addendum and preamble (see `find_sections`). Empty sections are left out, so
    an empty report gives an empty dictionary.
    """
    sections: dict[str, str] = {}
    for section in find_sections(report):
        text = report[section.start : section.end].strip()
        if text:
            sections[section.name] = f"{sections[section.name]}\n{text}" if section.name in sections else text
    return sections


def body_text(report: str) -> str:
    """Return what the report says about the images: its `BODY_SECTIONS` in their order, joined by newlines."""
    parts = (report[s.start : s.end].strip() for s in find_sections(report) if s.name in BODY_SECTIONS)
    return "\n\n".join(part for part in parts if part)


_ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+", "dr mr mrs ms prof st vs approx appx cf etc fig figs incl dept lt rt eg ie e.g i.e a.p p.a resp no"
    )
)
_BREAK = re.compile(r"[.!?]+[\"')\]]*|\n")
_MARKER = re.compile(r"(?:\(?\d{1,2}[.)](?!\d)|[-*\u2022\u2013])[ \t]*(?=\S)")
_INLINE_MARKER = re.compile(r"(?:(?<=[\s.;:,])|\A)(\d{1,2})[.)](?=\s*[A-Z])(?![A-Z]{1,2}[.)])")
_WORD_BEFORE = re.compile(r"[A-Za-z.]*\Z")
_OPEN_LINE = re.compile(
    r"(?:,|\b(?:the|a|an|of|in|and|or|with|without|to|at|is|are|for|by|no|on|from|than|per|xxxx))[ \t]*\Z",
    re.IGNORECASE,
)


def _ends_sentence(text: str, match: re.Match[str], start: int) -> bool:
    """Say whether the full stop (or line break) ends the sentence that began at `start`."""
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 2]
    if match.group() == "\n":
        rest = text[match.end() :].lstrip(" \t")
        if not rest or rest[0] == "\n" or _MARKER.match(rest):
            return True
        return rest[0].isupper() and not rest.startswith("XXXX") and not _OPEN_LINE.search(text[start : match.start()])
    if not after.strip() or match.group()[0] in "!?":
        return not after or after[0].isspace()
    if match.group() == ".":
        word = _WORD_BEFORE.search(text[max(start, match.start() - 12) : match.start()])
        found = word.group().lower() if word else ""
        if found in _ABBREVIATIONS and found != "no":
            return False
        if found == "no" and re.match(r"\s*\d", text[match.end() : match.end() + 4]):
            return False
        if re.fullmatch(r"(?:[a-z]\.)+[a-z]", found) and text[match.end() :].lstrip()[:1].islower():
            return False  # "U.S. film"
        if len(found) == 1 and word and word.group().isupper() and not after[0].isspace():
            return False  # "U.S."
    if after[0].isspace():
        return not (before.isspace() and after[0].isdigit())
    if match.group()[0] == "." and after[0].isdigit() and (before.isdigit() or not before.strip()):
        return False  # 1.5 cm, .5 cm
    return after[0].isupper() and (before.islower() or before.isdigit() or before in ")X" or len(match.group()) > 1)


def _cuts(text: str) -> Iterator[int]:
    """Yield every position at which a sentence ends."""
    markers = {m.start(): int(m.group(1)) for m in _INLINE_MARKER.finditer(text)}
    expected = 1
    stops = set()  # the full stops of inline markers end no sentence
    for position in sorted(markers):
        at_start = _SENTENCE_START.search(text[max(0, position - 8) : position]) is not None
        if at_start or markers[position] == expected != 1:  # "... 2. No effusion" after "1."; "measures 3. No" is none
            expected = markers[position] + 1
            stops.add(position + len(str(markers[position])))
            yield position
    start = 0
    for match in _BREAK.finditer(text):
        if match.start() in stops:
            continue
        lead = _MARKER.match(text, start + len(text[start:]) - len(text[start:].lstrip()))
        if lead and match.start() < lead.end():
            continue  # the full stop of "1."
        if _ends_sentence(text, match, start):
            start = match.end()
            yield match.end()


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of every sentence, in order, without surrounding blanks and without list markers ("2.", "-").

    A full stop inside a number, after an abbreviation ("Dr.", "vs.") or an initial ends no sentence; one without a
    blank after it ("clear.The heart") does. A numbered or dashed item and a new paragraph begin a sentence; a wrapped
    line does not.
    """
    spans: list[tuple[int, int]] = []
    begin = 0
    for cut in [*sorted(set(_cuts(text))), len(text)]:
        piece = text[begin:cut]
        start = begin + len(piece) - len(piece.lstrip())
        marker = _MARKER.match(text, start, cut)
        if marker:
            start = marker.end()
        end = start + len(text[start:cut].rstrip())
        if any(char.isalnum() for char in text[start:end]):
            spans.append((start, end))
        elif spans and end > start:
            spans[-1] = (spans[-1][0], end)  # stray punctuation stays with the sentence before it
        elif end > start:
            continue  # nor is punctuation before the first word lost
        begin = cut
    return spans or (
        [(begin + len(text[begin:]) - len(text[begin:].lstrip()), len(text.rstrip()))] if text.strip() else []
    )


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text; see `sentence_spans` for where a sentence ends."""
    return [text[start:end] for start, end in sentence_spans(text)]

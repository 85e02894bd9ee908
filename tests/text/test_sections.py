"""Sections and sentences: styles of headings, awkward full stops, and that no character is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp.text.sections import body_text, find_sections, sentence_spans, split_sections, split_sentences


@pytest.mark.parametrize(
    ("report", "sections"),
    [
        ("FINDINGS: Clear.\nIMPRESSION: Normal.", {"findings": "Clear.", "impression": "Normal."}),
        ("Findings :\nClear.\n\nimpression:\n1. Normal.", {"findings": "Clear.", "impression": "1. Normal."}),
        ("FINDINGS\nClear.\nIMPRESSION\nNormal.", {"findings": "Clear.", "impression": "Normal."}),
        ("**Findings:** Clear.\n## Impression\nNormal.", {"findings": "Clear.", "impression": "Normal."}),
        (
            "Comparison: none. FINDINGS: Clear IMPRESSION: Ok",
            {"comparison": "none.", "findings": "Clear", "impression": "Ok"},
        ),
        ("The lungs are clear.", {"findings": "The lungs are clear."}),
        ("Compared with prior findings: no change.", {"findings": "Compared with prior findings: no change."}),
        ("FINAL REPORT\nFINDINGS: Clear.", {"preamble": "FINAL REPORT", "findings": "Clear."}),
        ("FINDINGS: Clear.\nIMPRESSION:\n", {"findings": "Clear."}),
        ("FINDINGS: A.\nIMPRESSION: B.\nFINDINGS: C.", {"findings": "A.\nC.", "impression": "B."}),
        ("FINDINGS:\nLUNGS: Clear.\nHEART: Normal.", {"findings": "LUNGS: Clear.\nHEART: Normal."}),
        (
            "CLINICAL HISTORY: Cough.\nREASON FOR EXAM: r/o\nTECHNIQUE: PA.\nCONCLUSION: Ok.",
            {"history": "Cough.", "indication": "r/o", "technique": "PA.", "impression": "Ok."},
        ),
        ("", {}),
        ("  \n ", {}),
    ],
)
def test_split_sections(report: str, sections: dict[str, str]) -> None:
    assert split_sections(report) == sections


PIECES = [
    "FINDINGS:",
    "Impression :",
    "\n",
    " ",
    "\n\n",
    "1. ",
    "2. ",
    "No effusion",
    "1.5 cm",
    ".The",
    "..",
    "Dr. X",
    "XXXX",
    "HISTORY\n",
    "- ",
    "?",
    "vs.",
    "clear.",
    "é",
    "comparison:",
    "**",
    ".",
]
REPORTS = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))


@settings(deadline=None)
@given(REPORTS)
def test_sections_cover_the_report(report: str) -> None:
    sections = find_sections(report)
    position = 0
    for section in sections:
        assert section.heading_start == position
        assert section.heading_start <= section.start <= section.end
        heading = report[section.heading_start : section.start]
        assert not heading.strip() or len(heading.split()) <= 7
        position = section.end
    assert position == len(report)
    kept = "".join(report[s.start : s.end] for s in sections)
    assert "".join("".join(split_sections(report).values()).split()) in ("".join(kept.split()), *_grouped(report))


def _grouped(report: str) -> list[str]:
    """The text in the order of the dictionary, in which a repeated section stands where it stood first."""
    parts: dict[str, str] = {}
    for s in find_sections(report):
        if report[s.start : s.end].strip():
            parts[s.name] = parts.get(s.name, "") + report[s.start : s.end]
    return ["".join("".join(parts.values()).split())]


@settings(deadline=None)
@given(REPORTS)
def test_sentences_lose_nothing_but_list_markers(text: str) -> None:
    position, between = 0, []
    for start, end in sentence_spans(text):
        assert position <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        between.append(text[position:start])
        position = end
    between.append(text[position:])
    for gap in between:
        assert not any(char.isalpha() for char in gap)
        assert len("".join(gap.split())) <= 4 * max(1, len(gap.split()))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Nodule of 1.5 cm. No effusion.", ["Nodule of 1.5 cm.", "No effusion."]),
        ("Size .5 cm. Clear.", ["Size .5 cm.", "Clear."]),
        ("Dr. Smith was called. Done.", ["Dr. Smith was called.", "Done."]),
        ("Atelectasis vs. pneumonia. Clear.", ["Atelectasis vs. pneumonia.", "Clear."]),
        ("XXXX. XXXX opacity. Clear.", ["XXXX.", "XXXX opacity.", "Clear."]),
        ("Heart size normal.The lungs clear.", ["Heart size normal.", "The lungs clear."]),
        ("No edema..No effusion..", ["No edema..", "No effusion.."]),
        ("1. No PTX 2. Stable heart 3.No effusion", ["No PTX", "Stable heart", "No effusion"]),
        ("1. One.\n\n2. Two.", ["One.", "Two."]),
        ("- one\n- two", ["one", "two"]),
        ("seen in the\nright lung. Clear.", ["seen in the\nright lung.", "Clear."]),
        ("No effusion\nNo pneumothorax", ["No effusion", "No pneumothorax"]),
        ("Seen at T12. The end", ["Seen at T12.", "The end"]),
        ("Is it? No! Yes", ["Is it?", "No!", "Yes"]),
        ("U.S. film. Clear.", ["U.S. film.", "Clear."]),
        ("...", ["..."]),
        ("", []),
    ],
)
def test_split_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_body_text_leaves_out_why_and_how() -> None:
    report = "INDICATION: Rule out pneumonia.\nTECHNIQUE: PA.\nFINDINGS: Clear.\nIMPRESSION: Normal."
    assert body_text(report) == "Clear.\n\nNormal."

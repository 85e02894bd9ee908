"""Findings in place: what is marked is what the labeler counts, and no character is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medvlp.text.labeler import FINDINGS, label_report
from medvlp.text.marks import marked
from medvlp.types import ABSENT, PRESENT, UNCERTAIN

REPORT = (
    "INDICATION: Pneumothorax.\n\nFINDINGS: The heart is enlarged.  Small LEFT\npleural effusion; "
    "no pneumothorax. Possible pneumonia.\nIMPRESSION: Emphysema."
)


def test_what_is_affirmed_denied_and_left_open_is_marked_where_it_stands() -> None:
    pieces = marked(REPORT)
    assert "".join(piece.text for piece in pieces) == REPORT
    found = [(piece.text.lower(), piece.finding, piece.value) for piece in pieces if piece.finding]
    assert ("pneumothorax", "Pneumothorax", ABSENT) in found
    assert ("pneumonia", "Pneumonia", UNCERTAIN) in found
    assert any(
        text.endswith("effusion") and value == PRESENT for text, name, value in found if name == "Pleural Effusion"
    )
    assert any(name == "Cardiomegaly" and value == PRESENT for _, name, value in found)
    assert any(name == "another abnormality" for _, name, _ in found)
    assert [text for text, name, _ in found if name == "Pneumothorax"] == ["pneumothorax"], "no indication is marked"


def test_marks_and_labels_agree() -> None:
    labels = label_report(REPORT)
    for name in FINDINGS[1:]:
        values = {piece.value for piece in marked(REPORT) if piece.finding == name}
        assert values == (set() if labels[name] != labels[name] else {labels[name]})


def test_a_text_without_findings_is_one_piece_and_an_empty_one_none() -> None:
    assert [piece.text for piece in marked("Good inspiration.")] == ["Good inspiration."]
    assert marked("") == []


@given(
    st.lists(st.sampled_from(["no", "effusion", "edema,", "possible", "heart", "large.", "\n", "İ", "FINDINGS:", "of"]))
)
def test_no_character_is_lost(words: list[str]) -> None:
    text = " ".join(words)
    assert "".join(piece.text for piece in marked(text)) == text

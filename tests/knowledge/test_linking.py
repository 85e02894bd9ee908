"""Entity linking: spans, status, tokens; and the readers of foreign linkers and of RadGraph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_ontology import write

from medvlp.errors import UserError
from medvlp.knowledge.concepts import ConceptBook
from medvlp.knowledge.linking import Linker, Span, token_spans
from medvlp.knowledge.umls import read_umls, to_book
from medvlp.text.tokenizer import Tokenizer


@pytest.fixture
def book(tmp_path: Path) -> ConceptBook:
    return ConceptBook.from_files([write(tmp_path)])


@pytest.fixture
def linker(book: ConceptBook) -> Linker:
    return Linker.from_book(book)


def shown(text: str, spans: list[Span]) -> list[tuple[str, str, float | None]]:
    return [(text[span.start : span.end], span.concept_id, span.value) for span in spans]


def test_the_longest_name_counts_and_spelling_does_not(linker: Linker) -> None:
    text = "Bacterial\npneumonias; a Lung-Infection, pulmonary edema and oedema of  the lungs."
    assert shown(text, linker.link(text)) == [
        ("Bacterial\npneumonias", "D:4", 1.0),
        ("Lung-Infection", "D:3", 1.0),
        ("pulmonary edema", "D:5", 1.0),
        ("lungs", "A:1", 1.0),
    ]
    neighbours = "lung pneumonia lung lung disease"
    assert [span.concept_id for span in linker.link(neighbours)] == ["A:1", "D:3", "A:1", "D:2"]


def test_no_part_of_a_word_is_a_name(linker: Linker) -> None:
    assert linker.link("Bronchopneumonia, lungfish and pneumoniae-like.") == []
    assert linker.link("") == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Pneumonia.", 1.0),
        ("No evidence of pneumonia.", 0.0),
        ("Possible pneumonia.", -1.0),
        ("Pneumonia cannot be excluded.", -1.0),
        ("Rule out pneumonia.", None),
        ("The pneumonia has resolved.", 0.0),
        ("Opacity. No effusion, but pneumonia.", 1.0),
    ],
)
def test_status_follows_the_statement_rules(linker: Linker, text: str, value: float | None) -> None:
    assert [span.value for span in linker.link(text)] == [value]


def test_alternatives_are_uncertain(linker: Linker) -> None:
    assert [span.value for span in linker.link("Pneumonia versus pulmonary edema.")] == [-1.0, -1.0]


def test_reports_are_read_where_they_state_what_was_seen(linker: Linker) -> None:
    report = "INDICATION: pneumonia?\nFINDINGS: The lungs are clear.\nIMPRESSION: No  pneumonia."
    spans = linker.link_report(report)
    assert shown(report, spans) == [("lungs", "A:1", 1.0), ("pneumonia", "D:3", 0.0)]


def test_a_name_of_two_concepts_goes_to_its_main_owner() -> None:
    linker = Linker({"B": ["effusion"], "A": ["fluid", "effusion"], "C": ["fluid"]})
    assert [s.concept_id for s in linker.link("Effusion, fluid.")] == ["B", "A"]


def test_short_numeric_and_excluded_names_are_not_looked_for(book: ConceptBook) -> None:
    linker = Linker(
        {"A": ["ALL"], "B": ["12345"], "C": ["lung disease"], "D": ["scar tissue"]}, exclude=["Lung-Diseases"]
    )
    assert [s.concept_id for s in linker.link("all 12345 lung disease scar tissue")] == ["D"]
    with pytest.raises(UserError, match="no name"):
        Linker({"A": ["ALL"]})


def test_tokens_of_spans(linker: Linker) -> None:
    text = "Bacterial pneumonia of the lung."
    tokenizer = Tokenizer.train([text, "Bacterial", "lung"], 120)
    ids, _, _ = tokenizer.encode([text], 64)
    found = token_spans(tokenizer, text, linker.link(text), 64)
    words = ["".join(t.removeprefix("##") for t in tokenizer.tokens(ids[0, a:b].tolist())) for _, (a, b) in found]
    assert words == ["bacterialpneumonia", "lung"]
    assert found[0][1][0] == 1  # token 0 is the class token
    assert len(token_spans(tokenizer, text, linker.link(text), found[0][1][1] + 1)) == 1


@pytest.mark.data
def test_real_names_in_plain_sentences(test_data: Path) -> None:
    folder = test_data / "ontology"
    book = ConceptBook.from_files([folder / "doid_ncit_subset.obo", folder / "uberon_efo_slim.obo"])
    linker = Linker.from_book(book)
    text = "Chronic obstructive pulmonary disease. No pneumonia. Possible sarcoidosis of the left lung. Hiatal hernias."
    named = [(book[s.concept_id].name, s.value) for s in linker.link(text)]
    assert ("chronic obstructive pulmonary disease", 1.0) in named
    assert ("pneumonia", 0.0) in named
    assert ("sarcoidosis", -1.0) in named
    assert ("hiatus hernia", 1.0) in named


def test_umls_output_in_its_forms(tmp_path: Path, book: ConceptBook) -> None:
    text = "pneumonia of lung"
    entities = [
        {"start": 0, "end": 9, "kb_ents": [["C0032285", 0.99], ["C0000001", 0.97]]},
        {"start_char": 13, "end_char": 17, "cui": "C0024109", "score": 0.9},
    ]
    expected = [Span("UMLS:C0032285", 0, 9, None, 0.99)]
    entry = {"text": text, "ents": entities}
    forms = {
        "list.json": json.dumps([{**entry, "id": "a"}]),
        "lines.jsonl": json.dumps({**entry, "id": "a"}) + "\n\n",
        "dict.json": json.dumps({"a": {"text": text, "entities": entities}}),
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        (linked,) = read_umls(tmp_path / name)
        assert (linked.key, linked.text, list(linked.spans)) == ("a", text, expected)
    (loose,) = read_umls(tmp_path / "list.json", min_score=0.5)
    assert [span.concept_id for span in loose.spans] == ["UMLS:C0032285", "UMLS:C0024109"]
    assert [span.concept_id for span in to_book(loose.spans, book)] == ["D:3"]


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '[{"ents": []}]', '[{"text": "a", "ents": [{"start": 0, "end": 9}]}]',
     '[{"text": "abc", "ents": [{"start": "x", "end": 2}]}]'],
)  # fmt: skip
def test_umls_output_that_breaks_the_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match="linked entities cannot be read"):
        list(read_umls(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("COLD and a common cold.", ["COLD"]),
        ("Feels cold, the gist of it.", []),
        ("COLD ABSCESS OF THE CHEST.", []),  # among capitals nobody can tell
        ("COLD.", ["COLD"]),
        ("ASTHMA and asthma.", ["ASTHMA", "asthma"]),  # a word that a file shouts once, and names plainly too
    ],
)
def test_abbreviations_count_only_in_capitals(text: str, found: list[str]) -> None:
    linker = Linker({"A": ["obstructive lung disease", "COLD"], "B": ["GIST"], "C": ["ASTHMA", "asthma"]})
    assert [text[span.start : span.end] for span in linker.link(text)] == found


@pytest.mark.parametrize(
    "text",
    [
        "\u0130stanbul: Bacterial\r\n  pneumonia \u2014 \ufb01brosis of the na\u00efve lung-disease, \U0001fac1 Lung.",
        "no-lung / lung,lung;LUNG\tpneumonias\u00a0lung\u200blung",
        "x" * 300 + " lung " + "pneumonia " * 40,
    ],
)
@pytest.mark.parametrize("max_tokens", [3, 8, 17, 512])
def test_tokens_and_characters_name_the_same_words(linker: Linker, text: str, max_tokens: int) -> None:
    tokenizer = Tokenizer.train([text, "bacterial pneumonia lung disease"], 200)
    ids, mask, _ = tokenizer.encode([text], max_tokens)
    spans = linker.link(text)
    assert spans
    kept = token_spans(tokenizer, text, spans, max_tokens)
    for span, (first, last) in kept:
        assert 1 <= first < last <= int(mask.sum()) - 1  # neither class nor end token
        words = "".join(tokenizer.tokens(ids[0, first:last].tolist())).replace("##", "")
        assert words == "".join(text[span.start : span.end].lower().split())
    if max_tokens == 512:
        assert len(kept) == len(spans)

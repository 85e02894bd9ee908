"""Ontology files: real ones, small ones with each fault, and files that are none."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

import pytest
from tiny_ontology import HEAD, TINY, terms, write

from medvlp.errors import UserError
from medvlp.knowledge.concepts import ConceptBook
from medvlp.knowledge.ontology import Synonym, normal_xref, read_ontology

OWL = """<?xml version="1.0"?>
<rdf:RDF xmlns="http://x/o#" xml:base="http://x/o" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:owl="http://www.w3.org/2002/07/owl#" xmlns:rdfs="http://www.w3.org/2000/01/rdf-schema#"
 xmlns:oboInOwl="http://www.geneontology.org/formats/oboInOwl#">
<owl:Ontology rdf:about="http://purl.obolibrary.org/obo/t.owl">
  <owl:imports rdf:resource="http://example.invalid/other.owl"/></owl:Ontology>
<owl:Class rdf:about="http://purl.obolibrary.org/obo/T_1"><rdfs:label>lung</rdfs:label>
  <oboInOwl:hasExactSynonym>pulmo</oboInOwl:hasExactSynonym></owl:Class>
<owl:Class rdf:about="http://purl.obolibrary.org/obo/T_2"><rdfs:label>lobe</rdfs:label>
  <rdfs:subClassOf rdf:resource="http://purl.obolibrary.org/obo/T_1"/></owl:Class>
</rdf:RDF>"""


def test_a_term_is_read_with_all_it_says(tmp_path: Path) -> None:
    concept = {c.id: c for c in read_ontology(write(tmp_path)).concepts}["D:3"]
    assert concept.name == "pneumonia"
    assert concept.definition == "An infection of the lung."
    assert concept.synonyms == (Synonym("lung infection", "EXACT"), Synonym("chest infection", "RELATED"))
    assert concept.parents == ("D:2",)
    assert concept.relations == (("located_in", "A:1"),)
    assert concept.xrefs == ("NCIT:C3333", "UMLS:C0032285")
    assert concept.alternate_ids == ("D:30",)
    assert concept.source == "tiny.obo"


def test_cross_references_have_one_name_for_each_database() -> None:
    given = ["UMLS_CUI:C1", "NCI:C2", "SNOMEDCT_US_2025_09_01:3", "MSH:D4", "MESH:D4", "Wikipedia:Lung", "bare"]
    assert [normal_xref(x) for x in given] == [
        "UMLS:C1", "NCIT:C2", "SNOMEDCT_US:3", "MESH:D4", "MESH:D4", "Wikipedia:Lung", "bare",
    ]  # fmt: skip


def test_owl_is_read_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    book = ConceptBook.from_files([write(tmp_path, OWL, "t.owl")])
    assert {name: (c.name, c.parents) for name, c in book.items()} == {"T:1": ("lung", ()), "T:2": ("lobe", ("T:1",))}
    with_import = terms("id: D:1\nname: a").replace("ontology: tiny", "import: http://example.invalid/x.obo")
    assert len(read_ontology(write(tmp_path, with_import)).concepts) == 1


def test_a_parent_that_an_owl_file_does_not_hold_costs_only_its_link(tmp_path: Path) -> None:
    lost = OWL.replace(
        'rdf:resource="http://purl.obolibrary.org/obo/T_1"', 'rdf:resource="http://purl.obolibrary.org/obo/T_9"'
    )
    book = ConceptBook.from_files([write(tmp_path, lost, "t.owl")])
    assert {name: concept.parents for name, concept in book.items()} == {"T:1": (), "T:2": ()}
    assert any("T:2 is_a T:9, which is in no file" in problem.reason for problem in book.problems)


FAULTS = {
    "a line that breaks the grammar": (
        terms("id: D:1\nname: a\nxref: http://x/Category\\:Y\nsynonym: \"b\" EXACT []"),
        "breaks the OBO grammar",
        {"D:1": ()},
    ),
    "a parent that is not there": (terms("id: D:1\nname: a\nis_a: D:9"), "is_a D:9, which is in no file", {"D:1": ()}),
    "a term twice": (terms("id: D:1\nname: a", "id: D:1\nname: b"), "given to 2 terms", {"D:1": ()}),
    "a term without a name": (terms("id: D:1\nname: a", "id: D:2"), "D:2 has no name", {"D:1": ()}),
    "a circle of two": (
        terms("id: D:1\nname: a\nis_a: D:2", "id: D:2\nname: b\nis_a: D:1"),
        "closes a circle of 2 terms",
        {"D:1": ("D:2",), "D:2": ()},
    ),
    "a circle of three beside a good link": (
        terms("id: D:1\nname: a\nis_a: D:2", "id: D:2\nname: b\nis_a: D:3", "id: D:3\nname: c\nis_a: D:1\nis_a: D:4",
              "id: D:4\nname: d"),
        "closes a circle of 3 terms",
        {"D:1": ("D:2",), "D:2": ("D:3",), "D:3": ("D:4",), "D:4": ()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_recorded_and_the_rest_is_used(name: str, tmp_path: Path) -> None:
    text, reason, parents = FAULTS[name]
    book = ConceptBook.from_files([write(tmp_path, text)])
    assert {concept: book[concept].parents for concept in book} == parents
    assert len(book.problems) == 1
    assert reason in book.problems[0].reason
    assert book.problems[0].path.startswith("tiny.obo")


def test_the_line_of_a_fault_is_named(tmp_path: Path) -> None:
    text = TINY.replace("is_a: D:3\n", "is_a: D:3\nsynonym: broken\n")
    number = text.split("\n").index("synonym: broken") + 1
    assert read_ontology(write(tmp_path, text)).problems[0].path == f"tiny.obo:{number}"


def test_undeclared_relations_and_synonym_types_are_taken(tmp_path: Path) -> None:
    body = 'id: D:1\nname: a\nsynonym: "b" EXACT OMO:0003012 []\nrelationship: part_of D:2\nrelationship: in_taxon X:9'
    book = ConceptBook.from_files([write(tmp_path, terms(body, "id: D:2\nname: c"))])
    assert book.names("D:1") == ("a", "b")
    assert book["D:1"].relations == (("part_of", "D:2"),)
    assert not book.problems


BROKEN = {
    "empty": "",
    "no ontology": "some text\n",
    "no term": HEAD,
    "cut OWL": OWL[:400],
    "half of the terms broken": terms(*["id: D:1\nname: a", "name: b", "id\nname: c", "id: D:4 x\nname"]),
    "JSON": "{}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_ontology_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_ontology(write(tmp_path, BROKEN[name]))
    assert "tiny.obo" in caught.value.where
    assert caught.value.fix
    assert "object at 0x" not in caught.value.what


def test_damaged_files_are_read_or_refused_and_never_crash(tmp_path: Path) -> None:
    rng = random.Random(0)
    for number in range(160):
        content = bytearray((TINY if number % 2 else OWL).encode())
        first, last = sorted((rng.randrange(len(content)), rng.randrange(len(content))))
        if number % 3 == 0:
            content = content[:last]
        elif number % 3 == 1:
            for _ in range(5):
                content[rng.randrange(len(content))] = rng.randrange(256)
        else:
            del content[first:last]
        path = tmp_path / "x.obo"
        path.write_bytes(bytes(content))
        with contextlib.suppress(UserError):
            book = ConceptBook.from_files([path])
            assert all(book.path(name)[-1] == name for name in book)


def test_bytes_that_are_no_text_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.obo"
    path.write_bytes(b"format-version: 1.2\n\xff\xfe\n")
    with pytest.raises(UserError, match="UTF-8"):
        read_ontology(path)
    with pytest.raises(UserError, match="no ontology file"):
        read_ontology(tmp_path / "missing.obo")


def test_windows_line_ends_and_a_byte_order_mark_make_no_difference(tmp_path: Path) -> None:
    plain = read_ontology(write(tmp_path)).concepts
    path = tmp_path / "tiny.obo"
    path.write_bytes(b"\xef\xbb\xbf" + TINY.replace("\n", "\r\n").encode())
    assert read_ontology(path).concepts == plain


@pytest.mark.data
def test_the_real_ontologies(test_data: Path) -> None:
    folder = test_data / "ontology"
    book = ConceptBook.from_files([folder / "doid_ncit_subset.obo", folder / "uberon_efo_slim.obo"])
    text = (folder / "doid_ncit_subset.obo").read_text() + (folder / "uberon_efo_slim.obo").read_text()
    stanzas = [stanza for stanza in text.split("\n\n") if stanza.startswith("[Term]")]
    obsolete = [stanza for stanza in stanzas if "\nis_obsolete: true" in stanza]
    assert len(book) == len(stanzas) - len(obsolete) == 5361
    assert [p.path for p in book.problems] == ["uberon_efo_slim.obo:1876"]
    assert book["UBERON:0002048"].name == "lung"
    assert book.by_xref["UMLS:C0024109"] == ("UBERON:0002048",)
    assert [book[name].name for name in book.path("DOID:0001816")] == [
        "disease", "cancer", "cardiovascular cancer", "vascular cancer", "angiosarcoma",
    ]  # fmt: skip
    assert book.resolve("DOID:267") == "DOID:0001816"
    assert sum(len(book[name].parents) for name in book) == sum(s.count("\nis_a: ") for s in stanzas)

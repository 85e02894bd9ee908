"""Joining of concepts, old ids, and the hierarchy, against a few lines of plain Python."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest
from tiny_ontology import terms, write

from medvlp.errors import UserError
from medvlp.knowledge.concepts import ConceptBook
from medvlp.knowledge.ontology import Concept


@pytest.fixture
def book(tmp_path: Path) -> ConceptBook:
    return ConceptBook.from_files([write(tmp_path)])


def test_two_files_give_one_concept_by_id_and_never_by_name(tmp_path: Path) -> None:
    other = terms(
        'id: D:3\nname: Pneumonitis\ndef: "Other words." [x:1]\nsynonym: "lung fire" EXACT []\n'
        "xref: UMLS_CUI:C9\nis_a: D:7",
        "id: D:7\nname: fire",
        "id: D:8\nname: lung disease",
    )
    first, second = write(tmp_path), write(tmp_path, other, "other.obo")
    book = ConceptBook.from_files([first, second])
    joined = book["D:3"]
    assert joined.name == "pneumonia"
    assert joined.definition == "An infection of the lung."
    assert joined.parents == ("D:2", "D:7")
    assert {"UMLS:C0032285", "UMLS:C9"} <= set(joined.xrefs)
    assert set(book.names("D:3")) == {"pneumonia", "lung infection", "lung fire", "Pneumonitis"}
    assert [p.reason for p in book.problems] == ["D:3 is named 'Pneumonitis' here and 'pneumonia' in tiny.obo"]
    assert {"D:2", "D:8"} <= set(book)
    assert ConceptBook.from_files([second, first])["D:3"].name == "Pneumonitis"


def test_old_ids_lead_to_what_is_in_force(book: ConceptBook) -> None:
    assert "D:6" not in book
    assert [book.resolve(name) for name in ("D:6", "D:30", "D:3", "D:99")] == ["D:3", "D:3", "D:3", None]
    assert book.require("D:6").name == "pneumonia"
    assert dict(book.aliases) == {"D:6": "D:3", "D:30": "D:3"}
    with pytest.raises(UserError, match=r"There is no concept 'D:99'"):
        book.require("D:99")


def test_replacements_that_run_in_a_circle_lead_nowhere() -> None:
    ring = [Concept("A", "a", obsolete=True, replaced_by=("B",)), Concept("B", "b", obsolete=True, replaced_by=("A",))]
    fork = Concept("C", "c", obsolete=True, replaced_by=("D", "E"))
    book = ConceptBook([*ring, fork, Concept("D", "d"), Concept("E", "e")])
    assert [book.resolve(name) for name in "ABC"] == [None, None, None]


def test_a_parent_that_was_replaced_is_followed() -> None:
    old = Concept("OLD", "old", obsolete=True, replaced_by=("NEW",))
    book = ConceptBook([Concept("X", "x", parents=("OLD",)), old, Concept("NEW", "new")])
    assert book["X"].parents == ("NEW",)
    assert not book.problems


def test_the_hierarchy_is_that_of_the_links(book: ConceptBook) -> None:
    def above(name: str) -> set[str]:
        return {p for parent in book[name].parents for p in ({parent} | above(parent))}

    for name in book:
        assert book.ancestors(name) == above(name)
        assert book.descendants(name) == {other for other in book if name in above(other)}
    assert book.path("D:4") == ("D:1", "D:2", "D:3", "D:4")
    assert book.path("D:1") == ("D:1",)
    assert book.roots == ("A:1", "D:1")
    assert book.orphans == ("A:1",)


def test_circles_that_share_a_link_are_all_cut() -> None:
    links = {"A": ("B",), "B": ("A", "C"), "C": ("A",), "D": ("C",)}
    book = ConceptBook(Concept(name, name.lower(), parents=parents) for name, parents in links.items())
    assert nx.is_directed_acyclic_graph(book.graph)
    left = {(name, parent) for name in book for parent in book[name].parents}
    given = {(name, parent) for name, parents in links.items() for parent in parents}
    assert left < given
    assert len(given - left) == len(book.problems) <= 2


def test_of_two_paths_the_shorter_is_told() -> None:
    links = {"R": (), "A": ("R",), "B": ("A",), "X": ("A", "B")}
    book = ConceptBook(Concept(name, name.lower(), parents=parents) for name, parents in links.items())
    assert book.path("X") == ("R", "A", "X")


def test_the_order_of_concepts_changes_nothing(book: ConceptBook) -> None:
    again = ConceptBook(list(reversed(list(book.values()))))
    assert dict(again) == dict(book)
    assert list(again) == sorted(book)

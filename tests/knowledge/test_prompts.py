"""Hierarchy captions and semantic groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_ontology import write

from medvlp.errors import UserError
from medvlp.knowledge.concepts import ConceptBook
from medvlp.knowledge.groups import relation_matrix, semantic_groups
from medvlp.knowledge.prompts import TEMPLATE_COUNT, hierarchy_caption, templates, top_concepts


@pytest.fixture
def book(tmp_path: Path) -> ConceptBook:
    return ConceptBook.from_files([write(tmp_path)])


def captions(book: ConceptBook, concept: str, number: int = 400, **options: object) -> set[str]:
    return {hierarchy_caption(book, concept, np.random.default_rng(seed), **options) for seed in range(number)}  # type: ignore[arg-type]


def test_there_are_22_different_templates() -> None:
    assert len(set(templates())) == TEMPLATE_COUNT == 22
    assert all(template.count("{}") == 1 for template in templates())


def test_a_caption_is_a_function_of_the_generator(book: ConceptBook) -> None:
    def draw(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        return [hierarchy_caption(book, "D:4", rng) for _ in range(20)]

    assert draw(1) == draw(1) != draw(2)


def test_captions_tell_the_leaf_or_the_path_with_synonyms(book: ConceptBook) -> None:
    leaf = captions(book, "D:3", path_share=0.0)
    assert len(leaf) == 2 * TEMPLATE_COUNT  # two exact names, each in each template
    assert all("pneumonia" in c.lower() or "lung infection" in c.lower() for c in leaf)
    assert not any("chest infection" in c for c in leaf)
    path = captions(book, "D:4", path_share=1.0, exclude=frozenset())
    assert "An image of disease, lung disease, lung infection, bacterial pneumonia." in path
    assert all("isease, lung disease, " in c for c in path)
    without_top = captions(book, "D:4", path_share=1.0, exclude=top_concepts(book))
    assert not any("isease, lung disease" in c for c in without_top)
    assert captions(book, "D:4", path_share=1.0) == without_top
    share = np.mean([", " in hierarchy_caption(book, "D:4", np.random.default_rng(k)) for k in range(1000)])
    assert share == pytest.approx(0.5, abs=0.05)


def test_the_concept_itself_is_told_even_if_it_is_a_top(book: ConceptBook) -> None:
    assert all("isease" in caption for caption in captions(book, "D:1", 30, exclude=top_concepts(book)))
    assert hierarchy_caption(book, "D:6", np.random.default_rng(0)) in captions(book, "D:3")
    with pytest.raises(UserError, match="D:99"):
        hierarchy_caption(book, "D:99", np.random.default_rng(0))


def test_tops_by_depth(book: ConceptBook) -> None:
    assert top_concepts(book, 0) == frozenset()
    assert top_concepts(book, 1) == {"A:1", "D:1"}
    assert top_concepts(book, 2) == {"A:1", "D:1", "D:2"}


def test_groups_hold_the_most_special_concept(book: ConceptBook) -> None:
    shown = {"b": ["D:3", "D:4", "D:99"], "a": ["D:30"], "c": ["D:5", "D:3"], "d": []}
    assert semantic_groups(shown, book) == {"D:3": ("a", "c"), "D:4": ("b",), "D:5": ("c",)}
    assert semantic_groups(shown, book, min_size=2) == {"D:3": ("a", "c")}


def test_related_groups_are_those_on_one_path(book: ConceptBook) -> None:
    ids = ["D:3", "D:4", "D:5", "D:2", "D:3", "D:30", "unknown", "unknown"]
    matrix = relation_matrix(book, ids)
    on_one_path = {("D:3", "D:4"), ("D:2", "D:3"), ("D:2", "D:4"), ("D:2", "D:5")}
    for i, first in enumerate(ids):
        for j, second in enumerate(ids):
            a, b = (book.resolve(name) for name in (first, second))
            known = a is not None and b is not None
            expected = i == j or (known and (a == b or tuple(sorted((str(a), str(b)))) in on_one_path))
            assert matrix[i, j] == expected, (first, second)
    assert relation_matrix(book, []).shape == (0, 0)

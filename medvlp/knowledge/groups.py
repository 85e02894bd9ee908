"""Semantic groups: samples that show one concept, and which groups must not count as each other's negatives (KEEP).

Guarantee: two groups are related where their concepts are the same or one lies above the other in the ontology. A
group of a concept that the book does not hold is related to itself alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from medvlp.knowledge.concepts import ConceptBook

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool


def semantic_groups(
    concepts: Mapping[str, Iterable[str]], book: ConceptBook, min_size: int = 1
) -> dict[str, tuple[str, ...]]:
    """Return concept -> the samples that show it, both in order.

    A sample that shows a concept and one above it belongs to the more special group alone.

    Args:
        concepts: Sample (study or image) -> its concepts; alternate ids are resolved, unknown ones left out.
        book: The concept book.
        min_size: Smaller groups are left out.
    """
    groups: dict[str, list[str]] = {}
    for sample in sorted(concepts):
        known = {found for name in concepts[sample] if (found := book.resolve(name)) is not None}
        above = frozenset[str]().union(*(book.ancestors(name) for name in known))
        for name in sorted(known - above):
            groups.setdefault(name, []).append(sample)
    return {name: tuple(groups[name]) for name in sorted(groups) if len(groups[name]) >= min_size}


def relation_matrix(book: ConceptBook, concept_ids: Sequence[str]) -> Bool[np.ndarray, "g g"]:
    """Return where two groups are related: same concept, or ancestor and descendant; the diagonal is True.

    Args:
        book: The concept book.
        concept_ids: The concept of each of `g` groups.
    """
    import numpy as np

    resolved = [book.resolve(name) for name in concept_ids]
    above = {name: book.ancestors(name) for name in resolved if name is not None}
    related = np.eye(len(resolved), dtype=bool)
    for i, first in enumerate(resolved):
        for j in range(i):
            second = resolved[j]
            if first is None or second is None:
                continue
            related[i, j] = related[j, i] = first == second or first in above[second] or second in above[first]
    return related

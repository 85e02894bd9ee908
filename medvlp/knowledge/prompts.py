"""Hierarchy captions: a concept's name, or its path from the general to the special, in a sentence (KEEP).

Guarantee: a caption is a function of the concept and the random generator given. It holds names of the concept and of
its ancestors only; the most general concepts ("disease") are left out of paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from medvlp.knowledge.concepts import ConceptBook

TEMPLATE_COUNT = 22


@cache
def templates() -> tuple[str, ...]:
    """Return the caption templates; each holds one `{}`."""
    import yaml

    return tuple(yaml.safe_load(Path(__file__).with_name("templates.yaml").read_text(encoding="utf-8")))


def top_concepts(book: ConceptBook, depth: int = 1) -> frozenset[str]:
    """Return the concepts that lie less than `depth` links below a root: too general to describe an image."""
    import networkx as nx

    below = book.graph.reverse(copy=False)
    found: set[str] = set()
    for root in book.roots:
        found |= set(nx.single_source_shortest_path_length(below, root, cutoff=depth - 1)) if depth > 0 else set()
    return frozenset(found)


def hierarchy_caption(
    book: ConceptBook,
    concept_id: str,
    rng: np.random.Generator,
    exclude: frozenset[str] | None = None,
    path_share: float = 0.5,
    scopes: Sequence[str] = ("EXACT",),
) -> str:
    """Return a caption of a concept.

    Args:
        book: The concept book.
        concept_id: The concept; an alternate id is resolved.
        rng: Source of randomness: template, synonyms, and whether the path is told.
        exclude: Concepts left out of the path (see `top_concepts`); None leaves out the roots.
        path_share: Probability that the path from the root is told instead of the concept alone.
        scopes: Synonyms that may stand for a name.

    Raises:
        UserError: The concept is not in the book.
    """
    leaf = book.require(concept_id).id
    told = book.path(leaf) if rng.random() < path_share else (leaf,)
    general = frozenset(book.roots) if exclude is None else exclude
    kept = [name for name in told if name == leaf or name not in general]
    words = []
    for name in kept:
        options = book.names(name, scopes)
        words.append(options[int(rng.integers(len(options)))])
    template = templates()[int(rng.integers(len(templates())))]
    text = template.format(", ".join(words))
    return text[:1].upper() + text[1:]

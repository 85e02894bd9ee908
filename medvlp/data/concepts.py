"""Which concepts the texts of a training corpus name, and where.

Guarantee: with a knowledge bank concepts are those of its ontologies, found by its linker; without one they are the 75
findings, found by the rules that read triplets. Row i of the table is concept i of every batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError
from medvlp.knowledge.table import ConceptTable

if TYPE_CHECKING:
    from medvlp.data.token_table import Mention
    from medvlp.knowledge.bank import KnowledgeBank
    from medvlp.knowledge.linking import Linker

NamedAt = tuple[int, int, str]


def linker_of(bank: KnowledgeBank) -> Linker:
    """Return the linker that a bank was built with."""
    from medvlp.knowledge.linking import Linker

    settings = bank.meta["made_from"]["settings"]["linking"]
    return Linker.from_book(bank.book, settings["scopes"], settings["min_characters"], settings["exclude"])


def find_concepts(
    texts: Sequence[str], bank: KnowledgeBank | None, min_count: int = 1
) -> tuple[ConceptTable, list[list[Mention]]]:
    """Return the concepts that occur in the texts, and the mentions of each text.

    Args:
        texts: The texts.
        bank: Knowledge bank, or None for the 75 findings.
        min_count: Concepts in fewer texts are left out.

    Raises:
        UserError: No text names a concept often enough.
    """
    found = [_linked(text) for text in texts] if bank is None else _by_bank(texts, bank)
    counts = Counter(name for row in found for name in {name for _, _, name in row})
    ids = sorted(name for name, count in counts.items() if count >= min_count)
    if not ids:
        raise UserError(
            f"No concept is named in {min_count} texts or more.",
            "data.knowledge",
            "Lower data.min_concept_count, or build the bank from ontologies with the names that the reports use.",
        )
    rows = {name: row for row, name in enumerate(ids)}
    mentions = [[(start, end, rows[name]) for start, end, name in row if name in rows] for row in found]
    return _table(ids, rows, bank), mentions


def _linked(text: str) -> list[NamedAt]:
    from medvlp.text.triplets import read_mentions

    spans = {(mention.start, mention.end): mention.cells[0][1] for mention in read_mentions(text)}
    return [(start, end, name) for (start, end), name in sorted(spans.items())]


def _by_bank(texts: Sequence[str], bank: KnowledgeBank) -> list[list[NamedAt]]:
    linker = linker_of(bank)
    return [[(span.start, span.end, span.concept_id) for span in linker.link(text)] for text in texts]


def _table(ids: Sequence[str], rows: dict[str, int], bank: KnowledgeBank | None) -> ConceptTable:
    if bank is None:
        return ConceptTable(tuple(ids), np.zeros((2, 0), dtype=np.int64))
    from medvlp.knowledge.bank import GRAPH

    graph = bank.graph
    heads, tails = graph.triples[:, 0], graph.triples[:, 2]
    pairs = [
        (rows[graph.nodes[head]], rows[graph.nodes[tail]])
        for head, tail in zip(heads, tails, strict=True)
        if graph.nodes[head] in rows and graph.nodes[tail] in rows
    ]
    vectors = None
    if GRAPH in bank.meta["files"]:
        place = {name: number for number, name in enumerate(graph.nodes)}
        vectors = bank.node_vectors[[place[name] for name in ids]]
    return ConceptTable(tuple(ids), np.array(pairs, dtype=np.int64).reshape(-1, 2).T, vectors)

"""The concept graph as arrays: triples for embeddings, edge index for a graph network (ARL).

Guarantee: nodes are in the order of the concept book, relations in the order of their names, edges sorted; equal books
give equal arrays. A node without any edge is kept and has its self-loop in the edge index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError
from medvlp.knowledge.concepts import ConceptBook

if TYPE_CHECKING:
    from jaxtyping import Int

IS_A = "is_a"


@dataclass(frozen=True)
class ConceptGraph:
    """Nodes, relations, and edges [e 3] as (head, relation, tail): head "is a" tail."""

    nodes: tuple[str, ...]
    relations: tuple[str, ...]
    triples: Int[np.ndarray, "e 3"]

    def edge_index(self, both_ways: bool = True, self_loops: bool = True) -> Int[np.ndarray, "2 e"]:
        """Return (source, target) of every link, each once, sorted: what a graph attention network takes.

        Args:
            both_ways: Let messages run from child to parent and back.
            self_loops: Give every node a link to itself, so that none is without a message.
        """
        pairs = self.triples[:, [0, 2]]
        if both_ways:
            pairs = np.concatenate([pairs, pairs[:, ::-1]])
        if self_loops:
            loops = np.arange(len(self.nodes), dtype=pairs.dtype)
            pairs = np.concatenate([pairs, np.stack([loops, loops], axis=1)])
        return np.ascontiguousarray(np.unique(pairs, axis=0).T)


def build_graph(book: ConceptBook, keep: Iterable[str] | None = None, other_relations: bool = True) -> ConceptGraph:
    """Return the graph of a concept book.

    Args:
        book: The concept book.
        keep: Only these concepts and all above them, e.g. those that occur in the reports; None keeps all.
        other_relations: Take `part_of` and the like too, not only `is_a`.

    Raises:
        UserError: No concept is left.
    """
    chosen = set(book)
    if keep is not None:
        found = {known for name in keep if (known := book.resolve(name)) is not None}
        chosen = found.union(*(book.ancestors(name) for name in found)) if found else set()
    if not chosen:
        raise UserError("The graph has no concept.", fix="Give concepts that are in the ontologies.")
    nodes = tuple(name for name in book if name in chosen)
    links = {(name, IS_A, parent) for name in nodes for parent in book[name].parents if parent in chosen}
    if other_relations:
        links |= {(name, kind, other) for name in nodes for kind, other in book[name].relations
                  if other in chosen and other != name}  # fmt: skip
    relations = tuple(sorted({kind for _, kind, _ in links} | {IS_A}))
    at, of = {name: k for k, name in enumerate(nodes)}, {name: k for k, name in enumerate(relations)}
    rows = sorted((at[head], of[kind], at[tail]) for head, kind, tail in links)
    return ConceptGraph(nodes, relations, np.array(rows, dtype=np.int64).reshape(-1, 3))

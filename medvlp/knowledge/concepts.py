"""The concept book: concepts of one or several ontologies with their names, definitions, parents and references.

Guarantee: `is_a` has no circle and every parent is in the book; what had to be left out for that is in `problems`. One
id is one concept: where two files give it, name and definition are those of the file named first, and names, parents
and references are joined. Concepts with different ids are never joined by their names. Obsolete terms are no concepts;
their ids, and alternate ids, lead to what replaced them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp.errors import UserError, nearest
from medvlp.knowledge.ontology import Concept, read_ontology
from medvlp.sources.base import Problem

if TYPE_CHECKING:
    import networkx as nx

_CIRCLE_FIX = "Nothing to do: the link is left out. Tell the ontology's keepers."


class ConceptBook(Mapping[str, Concept]):
    """Concepts by id, in the order of their ids. Build it with `from_files` or from concepts.

    Args:
        concepts: Perhaps several of one id; the order decides which name wins.
        problems: What was already found wrong.
    """

    def __init__(self, concepts: Iterable[Concept], problems: Iterable[Problem] = ()) -> None:
        self.problems = list(problems)
        merged: dict[str, Concept] = {}
        for concept in concepts:
            before = merged.get(concept.id)
            merged[concept.id] = concept if before is None else self._merge(before, concept)
        self._aliases = _aliases(merged)
        alive = {name: concept for name, concept in sorted(merged.items()) if not concept.obsolete and concept.name}
        self._concepts = self._without_circles(self._with_known_parents(alive))

    @classmethod
    def from_files(cls, paths: Sequence[str | Path]) -> ConceptBook:
        """Read ontology files and join them.

        Raises:
            UserError: A file cannot be read.
        """
        files = [read_ontology(path) for path in paths]
        return cls(
            (concept for file in files for concept in file.concepts),
            (problem for file in files for problem in file.problems),
        )

    def __getitem__(self, concept_id: str) -> Concept:
        return self._concepts[concept_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._concepts)

    def __len__(self) -> int:
        return len(self._concepts)

    def resolve(self, concept_id: str) -> str | None:
        """Return the id in force: itself, that of the term with it as alternate id, or what replaced it; else None."""
        seen: set[str] = set()
        while concept_id not in self._concepts:
            if concept_id in seen or concept_id not in self._aliases:
                return None
            seen.add(concept_id)
            concept_id = self._aliases[concept_id]
        return concept_id

    def require(self, concept_id: str) -> Concept:
        """Return the concept of an id, also an alternate or replaced one.

        Raises:
            UserError: There is none.
        """
        found = self.resolve(concept_id)
        if found is None:
            raise UserError(
                f"There is no concept '{concept_id}'.{nearest(concept_id, list(self))}",
                fix="Use an id of the ontologies in the book.",
            )
        return self[found]

    @property
    def aliases(self) -> Mapping[str, str]:
        """Alternate and replaced ids -> the id that they stand for."""
        return {name: found for name in sorted(self._aliases) if (found := self.resolve(name)) is not None}

    @cached_property
    def graph(self) -> nx.DiGraph[str]:
        """Directed acyclic graph with an edge from each concept to each of its parents."""
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(self)
        graph.add_edges_from((name, parent) for name, concept in self.items() for parent in concept.parents)
        return graph

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Concepts without a parent."""
        return tuple(name for name, concept in self.items() if not concept.parents)

    @property
    def orphans(self) -> tuple[str, ...]:
        """Concepts without parent and child: they are in the book, but no path leads to them."""
        return tuple(name for name in self.roots if self.graph.in_degree(name) == 0)

    def ancestors(self, concept_id: str) -> frozenset[str]:
        """Return all concepts above one, without itself."""
        import networkx as nx

        return frozenset(nx.descendants(self.graph, concept_id))

    def descendants(self, concept_id: str) -> frozenset[str]:
        """Return all concepts below one, without itself."""
        import networkx as nx

        return frozenset(nx.ancestors(self.graph, concept_id))

    def path(self, concept_id: str) -> tuple[str, ...]:
        """Return the shortest path from a root to a concept, both included; of several, the first by their ids."""
        import networkx as nx

        best: list[str] | None = None
        reached = nx.single_source_shortest_path(self.graph, concept_id)
        for root in sorted(set(reached) & set(self.roots)):
            if best is None or len(reached[root]) < len(best):
                best = reached[root]
        return tuple(reversed(best or [concept_id]))

    def names(self, concept_id: str, scopes: Sequence[str] = ("EXACT",)) -> tuple[str, ...]:
        """Return the name of a concept and its synonyms of these scopes, each once, the name first."""
        concept = self[concept_id]
        others = (synonym.text for synonym in concept.synonyms if synonym.scope in scopes)
        return tuple(dict.fromkeys((concept.name, *others)))

    @cached_property
    def by_xref(self) -> Mapping[str, tuple[str, ...]]:
        """Cross reference ("UMLS:C0018923") -> the concepts that give it."""
        found: dict[str, list[str]] = {}
        for name, concept in self.items():
            for reference in concept.xrefs:
                found.setdefault(reference, []).append(name)
        return {reference: tuple(names) for reference, names in sorted(found.items())}

    def _merge(self, first: Concept, second: Concept) -> Concept:
        if first.name and second.name and first.name.lower() != second.name.lower():
            self.problems.append(
                Problem(second.source, f"{first.id} is named '{second.name}' here and '{first.name}' in {first.source}",
                        "Nothing to do: the first name is kept, the other is a synonym.")
            )  # fmt: skip
        from medvlp.knowledge.ontology import Synonym

        other = (Synonym(second.name, "EXACT"),) if second.name and second.name != first.name else ()
        alive = [concept for concept in (first, second) if not concept.obsolete]
        return replace(
            first if first.name else second,
            synonyms=tuple(dict.fromkeys((*first.synonyms, *second.synonyms, *other))),
            definition=first.definition or second.definition,
            parents=tuple(sorted({*first.parents, *second.parents})),
            relations=tuple(sorted({*first.relations, *second.relations})),
            xrefs=tuple(sorted({*first.xrefs, *second.xrefs})),
            alternate_ids=tuple(sorted({*first.alternate_ids, *second.alternate_ids})),
            obsolete=not alive,
            replaced_by=tuple(sorted({*first.replaced_by, *second.replaced_by})),
        )

    def _with_known_parents(self, concepts: dict[str, Concept]) -> dict[str, Concept]:
        """Lead every link to a concept of the book, through replaced ids where need be, and drop the others."""
        self._concepts = concepts
        result = {}
        for name, concept in concepts.items():
            found = {parent: self.resolve(parent) for parent in concept.parents}
            for parent in (parent for parent, known in found.items() if known is None):
                self.problems.append(
                    Problem(concept.source, f"{name} is_a {parent}, which is in no file",
                            "Add the ontology that holds it, or do nothing: the link is left out.")
                )  # fmt: skip
            parents = tuple(sorted({known for known in found.values() if known is not None} - {name}))
            links = {(kind, known) for kind, other in concept.relations if (known := self.resolve(other)) is not None}
            result[name] = replace(concept, parents=parents, relations=tuple(sorted(links)))
        return result

    def _without_circles(self, concepts: dict[str, Concept]) -> dict[str, Concept]:
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_edges_from((name, parent) for name, concept in concepts.items() for parent in concept.parents)
        for group in sorted(sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1):
            part = graph.subgraph(group).copy()
            while not nx.is_directed_acyclic_graph(part):
                circle = nx.find_cycle(part, min(part)) if min(part) in part else nx.find_cycle(part)
                child, parent = max(circle)[:2]
                part.remove_edge(child, parent)
                concept = concepts[child]
                concepts[child] = replace(concept, parents=tuple(p for p in concept.parents if p != parent))
                self.problems.append(
                    Problem(
                        concept.source, f"{child} is_a {parent} closes a circle of {len(circle)} terms", _CIRCLE_FIX
                    )
                )
        return concepts


def _aliases(concepts: Mapping[str, Concept]) -> dict[str, str]:
    """Return alternate and obsolete ids -> the id to use; a term that something replaced by several has none."""
    aliases = {other: name for name, concept in sorted(concepts.items()) for other in concept.alternate_ids}
    for name, concept in concepts.items():
        if concept.obsolete and len(concept.replaced_by) == 1:
            aliases[name] = concept.replaced_by[0]
    return {name: target for name, target in aliases.items() if name not in concepts or concepts[name].obsolete}

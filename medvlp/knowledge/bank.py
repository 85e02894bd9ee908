"""The knowledge bank: a folder with the concept book, the two books, graph embeddings and linked reports.

Guarantee: what is read back equals what was built. Study ids are those of the store that the reports came from; no text
of a report is in a bank. Layout: docs/explanation/knowledge.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.errors import UserError, nearest
from medvlp.knowledge.books import anatomy_book, finding_book
from medvlp.knowledge.concepts import ConceptBook
from medvlp.knowledge.graph import ConceptGraph, build_graph
from medvlp.knowledge.linking import Span
from medvlp.knowledge.ontology import Concept, Synonym
from medvlp.types import PRESENT, Triplet

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from jaxtyping import Float, Int8

FORMAT_VERSION = 1
META, CONCEPTS, RELATIONS, ALIASES = "bank.json", "concepts.parquet", "relations.parquet", "aliases.json"
ANATOMY, FINDINGS, GRAPH, PROBLEMS, REPORTS = (
    "anatomy.json",
    "findings.json",
    "graph.safetensors",
    "problems.jsonl",
    "reports",
)
PROGRESS = ".progress"


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What was read from the report of one study."""

    study_id: str
    spans: tuple[Span, ...]
    triplets: tuple[Triplet, ...]
    cells: tuple[Triplet, ...]


class KnowledgeBank:
    """A finished bank. Tables are read when they are asked for. Open one with `open`."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path, self.meta = path, meta

    @classmethod
    def open(cls, path: str | Path) -> KnowledgeBank:
        """Open a bank.

        Raises:
            UserError: There is none, it is unfinished, damaged, or of another format version.
        """
        folder = Path(path)
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            version, files = meta["format_version"], meta["files"]
        except (FileNotFoundError, NotADirectoryError):
            again = (folder / PROGRESS).is_dir()
            what = "The knowledge bank is not finished." if again else "There is no knowledge bank."
            fix = "Run the same command again; it goes on." if again else "Make one with `medvlp knowledge build`."
            raise UserError(what, folder, fix) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"The knowledge bank is damaged: {error!r}.", folder / META, "Build it again.") from None
        if version != FORMAT_VERSION:
            raise UserError(
                f"The bank has format version {version}; this medvlp reads version {FORMAT_VERSION}.",
                folder,
                "Build it again in another folder.",
            )
        missing = sorted(name for name in files if not (folder / name).is_file())
        if missing:
            raise UserError(f"The bank lacks: {', '.join(missing)}.", folder, "Build it again in another folder.")
        return cls(folder, meta)

    def verify(self) -> None:
        """Compare every file with its SHA-256.

        Raises:
            UserError: A file was changed or damaged.
        """
        for name, digest in self.meta["files"].items():
            if hashlib.sha256((self.path / name).read_bytes()).hexdigest() != digest:
                raise UserError("A file of the bank is not what was written.", self.path / name, "Build it again.")

    @cached_property
    def book(self) -> ConceptBook:
        """The concept book."""
        import pyarrow.parquet as pq

        rows = pq.read_table(self.path / CONCEPTS).to_pylist()
        aliases = json.loads((self.path / ALIASES).read_text(encoding="utf-8"))
        relations: dict[str, list[tuple[str, str]]] = {}
        for row in pq.read_table(self.path / RELATIONS).to_pylist():
            relations.setdefault(row["head"], []).append((row["relation"], row["tail"]))
        concepts = [concept_of(row, relations.get(row["id"], [])) for row in rows]
        concepts += [Concept(id=old, name="", obsolete=True, replaced_by=(new,)) for old, new in aliases.items()]
        return ConceptBook(concepts)

    @property
    def anatomy(self) -> list[dict[str, Any]]:
        """The 51 places: name, description, prompt, prompt_medklip."""
        entries: list[dict[str, Any]] = json.loads((self.path / ANATOMY).read_text(encoding="utf-8"))
        return entries

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The 75 findings: name, definition, appearance."""
        entries: list[dict[str, Any]] = json.loads((self.path / FINDINGS).read_text(encoding="utf-8"))
        return entries

    @cached_property
    def graph(self) -> ConceptGraph:
        """The concept graph; its nodes are the rows of `node_vectors`."""
        return build_graph(self.book, other_relations=self.meta["graph"]["other_relations"])

    @cached_property
    def node_vectors(self) -> Float[np.ndarray, "n d"]:
        """Embeddings of the concepts, in the order of the graph's nodes.

        Raises:
            UserError: The bank was built without them.
        """
        return self._vectors()["nodes"]

    @cached_property
    def relation_vectors(self) -> Float[np.ndarray, "r d"]:
        """Embeddings of the graph's relations, in their order.

        Raises:
            UserError: The bank was built without them.
        """
        return self._vectors()["relations"]

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the report stores that were read."""
        return tuple(self.meta["reports"])

    def reports(self, store: str | None = None) -> dict[str, ReadReport]:
        """Return study id -> what was read from its report.

        Args:
            store: Name of the store (see `stores`); None where the bank has one.

        Raises:
            UserError: There is no such store, or none is named and there are several.
        """
        rows = (
            row for part in self._parts(store, ["study_id", "spans", "triplets", "cells"]) for row in part.to_pylist()
        )
        return {row["study_id"]: read_report_of(row) for row in rows}

    def present_concepts(self, store: str | None = None) -> dict[str, tuple[str, ...]]:
        """Return study id -> concepts that its report says are present, in the order of the text, each once.

        Args:
            store: As in `reports`.
        """
        return {
            study: tuple(dict.fromkeys(span.concept_id for span in report.spans if span.value == PRESENT))
            for study, report in self.reports(store).items()
        }

    def matrices(self, store: str | None = None) -> tuple[list[str], Int8[np.ndarray, "n 51 75"]]:
        """Return study ids and their ternary matrices: 1 present, 0 absent, -1 not mentioned.

        Args:
            store: As in `reports`.
        """
        import numpy as np

        shape = (len(anatomy_book()), len(finding_book()))
        ids: list[str] = []
        rows: list[Int8[np.ndarray, "n 51 75"]] = []
        for part in self._parts(store, ["study_id", "matrix"]):
            ids += part["study_id"].to_pylist()
            rows += [np.frombuffer(b"".join(part["matrix"].to_pylist()), dtype=np.int8).reshape(-1, *shape)]
        return ids, np.concatenate(rows)

    def _parts(self, store: str | None, columns: list[str]) -> Iterator[pa.Table]:
        import pyarrow.parquet as pq

        if store is None and len(self.stores) == 1:
            store = self.stores[0]
        if store not in self.meta["reports"]:
            raise UserError(
                f"The bank has no reports of '{store}'.{nearest(str(store), list(self.stores))}",
                self.path,
                f"Name one of: {', '.join(self.stores) or 'none; build it with --reports'}.",
            )
        for name in self.meta["reports"][store]["files"]:
            yield pq.read_table(self.path / name, columns=columns)

    def _vectors(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load_file

        if GRAPH not in self.meta["files"]:
            raise UserError("The bank has no graph embeddings.", self.path, "Build it with graph.method=transe.")
        return load_file(self.path / GRAPH)


def concept_row(concept: Concept) -> dict[str, Any]:
    """Return a concept as a row of `concepts.parquet`; lists are JSON."""
    return {
        "id": concept.id,
        "name": concept.name,
        "definition": concept.definition,
        "synonyms": json.dumps([[s.text, s.scope] for s in concept.synonyms], ensure_ascii=False),
        "parents": json.dumps(concept.parents),
        "xrefs": json.dumps(concept.xrefs, ensure_ascii=False),
        "alternate_ids": json.dumps(concept.alternate_ids),
        "source": concept.source,
    }


def concept_of(row: Mapping[str, Any], relations: Sequence[tuple[str, str]]) -> Concept:
    """Inverse of `concept_row`."""
    return Concept(
        id=row["id"],
        name=row["name"],
        synonyms=tuple(Synonym(text, scope) for text, scope in json.loads(row["synonyms"])),
        definition=row["definition"],
        parents=tuple(json.loads(row["parents"])),
        relations=tuple((kind, other) for kind, other in relations if kind != "is_a"),
        xrefs=tuple(json.loads(row["xrefs"])),
        alternate_ids=tuple(json.loads(row["alternate_ids"])),
        source=row["source"],
    )


def report_row(report: ReadReport, matrix: Int8[np.ndarray, "51 75"]) -> dict[str, Any]:
    """Return what was read from a report as a row of a part; spans and triplets are JSON."""
    return {
        "study_id": report.study_id,
        "spans": json.dumps([[s.concept_id, s.start, s.end, s.value] for s in report.spans]),
        "triplets": json.dumps([[t.anatomy, t.finding, t.value] for t in report.triplets]),
        "cells": json.dumps([[t.anatomy, t.finding, t.value] for t in report.cells]),
        "matrix": matrix.tobytes(),
    }


def read_report_of(row: Mapping[str, Any]) -> ReadReport:
    """Inverse of `report_row`, without the matrix."""
    return ReadReport(
        study_id=row["study_id"],
        spans=tuple(Span(*span) for span in json.loads(row["spans"])),
        triplets=tuple(Triplet(*triplet) for triplet in json.loads(row["triplets"])),
        cells=tuple(Triplet(*triplet) for triplet in json.loads(row["cells"])),
    )


def book_entries() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the anatomy and the finding book as they stand in a bank."""
    places = [
        {**asdict(note), "prompt": note.prompt(), "prompt_medklip": note.prompt(trailing=False)}
        for note in anatomy_book()
    ]
    return places, [asdict(note) for note in finding_book()]

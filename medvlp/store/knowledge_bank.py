"""Ontologies and the reports of prepared stores -> knowledge bank.

Guarantee: as for a store. The work may be stopped at any moment, and the same command finishes it with the same files;
a finished bank is not written again; one made from other input, settings or rules is never mixed with or overwritten.
`bank.json` is written last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.config.knowledge import KnowledgeConfig
from medvlp.errors import UserError
from medvlp.knowledge import bank
from medvlp.knowledge.books import BOOKS
from medvlp.knowledge.concepts import ConceptBook
from medvlp.knowledge.graph import build_graph
from medvlp.knowledge.linking import Linker
from medvlp.knowledge.matrix import ternary_matrix
from medvlp.progress import progress_bar
from medvlp.store import manifest
from medvlp.store.array_store import read_meta
from medvlp.store.files import file_sha256, locked, remove_folder, write_atomic, write_json
from medvlp.store.plan import differences
from medvlp.store.remote import is_remote, place, read_bytes
from medvlp.text.lexicon import LEXICON
from medvlp.text.rules import PHRASES
from medvlp.text.triplets import cells_of, read_mentions, triplets_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

PLAN = "plan.json"
LANGUAGES = (None, "en")
"""Languages of reports that the rules can read; None is taken for English, as most data sets do not say it."""


@dataclass(frozen=True)
class BankSummary:
    """What a run left behind: counts, and whether there was nothing to do."""

    bank: Path
    concepts: int
    relations: int
    problems: int
    reports: int
    spans: int
    triplets: int
    hash: str
    already_complete: bool = False


@dataclass(frozen=True)
class _Reports:
    name: str
    path: Path
    meta: dict[str, Any]


def build_bank(config: KnowledgeConfig) -> BankSummary:
    """Build the bank that a configuration describes, or finish it, or find that it is complete.

    Raises:
        UserError: An ontology or store cannot be read, a store has no report that can be read, `out` holds something
            else, or another bank was begun there.
    """
    _check_target(config.out)
    stores = _stores(config.reports)
    plan = _plan(config, stores)
    complete = _check_same(plan, config.out)
    if complete:
        logger.info("%s is complete: nothing to do", config.out)
    else:
        with locked(config.out / bank.PROGRESS):
            _check_same(plan, config.out)
            _write(plan, stores, config)
            remove_folder(config.out / bank.PROGRESS)
    meta = bank.KnowledgeBank.open(config.out).meta
    return BankSummary(bank=config.out, hash=meta["hash"], already_complete=complete, **meta["counts"])


def _check_target(out: Path) -> None:
    if is_remote(place(out)):
        raise UserError("A bank is built on a local disk.", place(out), "Choose a folder for --out.")
    if out.exists() and not out.is_dir():
        raise UserError("The bank must be a folder, but there is a file of this name.", out, "Choose another --out.")
    known = (out / bank.META).exists() or (out / bank.PROGRESS).exists()
    if out.is_dir() and not known and any(out.iterdir()):
        raise UserError("The folder is not empty and holds no bank.", out, "Choose an empty or new folder for --out.")


def _stores(paths: Sequence[Path]) -> list[_Reports]:
    """Return the stores with a name for each: the data set's, numbered where two have the same."""
    found: list[_Reports] = []
    for path in map(place, paths):
        meta = read_meta(path)
        dataset = str(meta["dataset"])
        same = sum(store.meta["dataset"] == dataset for store in found)
        found.append(_Reports(f"{dataset}-{same + 1}" if same else dataset, path, meta))
    return found


def _plan(config: KnowledgeConfig, stores: Sequence[_Reports]) -> dict[str, Any]:
    for path in config.ontologies:
        if not path.is_file():
            raise UserError("There is no ontology file.", path, "Give a file in OBO or in OWL as RDF/XML.")
    return {
        "format_version": bank.FORMAT_VERSION,
        "settings": config.model_dump(mode="json", exclude={"ontologies", "reports", "out", "kind"}),
        "ontologies": [f"{path.name} {file_sha256(path)}" for path in config.ontologies],
        "reports": {store.name: store.meta["hash"] for store in stores},
        "rules": {path.name: file_sha256(path) for path in (LEXICON, PHRASES, *BOOKS)},
    }


def _check_same(plan: dict[str, Any], out: Path) -> bool:
    """Refuse to go on with another bank; return whether this one is complete."""
    complete = (out / bank.META).exists() and not (out / bank.PROGRESS).exists()
    if (out / bank.META).exists():
        before, verb = bank.KnowledgeBank.open(out).meta["made_from"], "was made"
    else:
        try:
            before, verb = json.loads((out / bank.PROGRESS / PLAN).read_text(encoding="utf-8")), "was begun"
        except FileNotFoundError:
            return False
    found = [line.replace(" in the store, ", " in the bank, ") for line in differences(before, plan)]
    if found:
        raise UserError(
            f"The bank {verb} with other settings or from other files:\n    " + "\n    ".join(found),
            out,
            "Use the former ones, choose another --out, or remove the bank to make it anew.",
        )
    return complete


def _write(plan: dict[str, Any], stores: Sequence[_Reports], config: KnowledgeConfig) -> None:
    out, scratch = config.out, config.out / bank.PROGRESS / "tmp"
    remove_folder(scratch)
    write_json(out / bank.PROGRESS / PLAN, plan, scratch)
    book = ConceptBook.from_files(config.ontologies)
    for problem in book.problems[:3]:
        logger.info("%s: %s", problem.path, problem.reason)
    files = _write_book(book, out, scratch)
    graph = build_graph(book, other_relations=config.graph.other_relations)
    if config.graph.method == "transe":
        files.append(_write_vectors(book, config, scratch))
    linking = config.linking
    linker = Linker.from_book(book, linking.scopes, linking.min_characters, linking.exclude) if stores else None
    counts = {"concepts": len(book), "relations": len(graph.triples), "problems": len(book.problems)}
    totals = {"reports": 0, "spans": 0, "triplets": 0}
    reports = {}
    for store in stores:
        assert linker is not None
        reports[store.name] = _read_store(store, linker, config, scratch)
        files += reports[store.name]["files"]
        for key in totals:
            totals[key] += reports[store.name]["counts"][key]
    hashes = {name: file_sha256(out / name) for name in sorted(files)}
    meta = {
        "format_version": bank.FORMAT_VERSION,
        "counts": {**counts, **totals},
        "roots": len(book.roots),
        "orphans": len(book.orphans),
        "graph": {"relations": list(graph.relations), "other_relations": config.graph.other_relations},
        "reports": reports,
        "made_from": plan,
        "versions": _versions(),
        "files": hashes,
        "hash": hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
    }
    write_json(out / bank.META, meta, scratch)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("medvlp", "pronto", "networkx", "ahocorasick-rs", "torch")}


def _write_book(book: ConceptBook, out: Path, scratch: Path) -> list[str]:
    graph = build_graph(book)
    concepts = [bank.concept_row(concept) for concept in book.values()]
    links = [
        {"head": graph.nodes[head], "relation": graph.relations[kind], "tail": graph.nodes[tail]}
        for head, kind, tail in graph.triples.tolist()
    ]
    columns = dict.fromkeys(concepts[0], "string")
    tables = {
        bank.CONCEPTS: manifest.table(concepts, columns),
        bank.RELATIONS: manifest.table(links, dict.fromkeys(("head", "relation", "tail"), "string")),
    }
    for name, table in tables.items():
        write_atomic(out / name, manifest.parquet_bytes(table), scratch)
    places, findings = bank.book_entries()
    write_json(out / bank.ALIASES, dict(book.aliases), scratch)
    write_json(out / bank.ANATOMY, places, scratch)
    write_json(out / bank.FINDINGS, findings, scratch)
    lines = "".join(json.dumps(dataclasses.asdict(problem), ensure_ascii=False) + "\n" for problem in book.problems)
    write_atomic(out / bank.PROBLEMS, lines.encode(), scratch)
    return [*tables, bank.ALIASES, bank.ANATOMY, bank.FINDINGS, bank.PROBLEMS]


def _write_vectors(book: ConceptBook, config: KnowledgeConfig, scratch: Path) -> str:
    if not (config.out / bank.GRAPH).exists():
        from safetensors.numpy import save

        from medvlp.knowledge.transe import train_transe

        graph = build_graph(book, other_relations=config.graph.other_relations)
        embedding = train_transe(graph, config.graph)
        facts = {"epochs": config.graph.epochs, "final_loss": round(embedding.losses[-1], 6)}
        metadata = {"training": json.dumps(facts)}  # one entry: the library writes several in an order of chance
        data = save({"nodes": embedding.nodes, "relations": embedding.relations}, metadata=metadata)
        write_atomic(config.out / bank.GRAPH, data, scratch)
    return bank.GRAPH


def _read_store(store: _Reports, linker: Linker, config: KnowledgeConfig, scratch: Path) -> dict[str, Any]:
    """Read a store's reports, part by part; parts that are there already are kept."""
    import pyarrow.parquet as pq

    studies = io.BytesIO(read_bytes(store.path / manifest.STUDIES))
    table = pq.read_table(studies, columns=["study_id", "report", "language"])
    rows = [row for row in table.to_pylist() if row["report"]]
    readable = [row for row in rows if row["language"] in LANGUAGES]
    if not readable:
        other = f"; {len(rows)} are in a language that the rules cannot read" if rows else ""
        raise UserError(f"The store has no report that can be read{other}.", store.path, "Leave it out of --reports.")
    names = []
    counts = {"reports": 0, "spans": 0, "triplets": 0, "without_report": len(table) - len(rows),
              "other_language": len(rows) - len(readable)}  # fmt: skip
    with progress_bar(f"read {store.name}", len(readable), "reports") as advance:
        for number, first in enumerate(range(0, len(readable), config.shard_reports)):
            part = readable[first : first + config.shard_reports]
            name = f"{bank.REPORTS}/{store.name}/part-{number:05d}.parquet"
            if not (config.out / name).exists():
                write_atomic(config.out / name, manifest.parquet_bytes(_part(part, linker)), scratch)
            for row in pq.read_table(config.out / name, columns=["spans", "triplets"]).to_pylist():
                counts["reports"] += 1
                counts["spans"] += len(json.loads(row["spans"]))
                counts["triplets"] += len(json.loads(row["triplets"]))
            names.append(name)
            advance(len(part))
    return {"dataset": store.meta["dataset"], "hash": store.meta["hash"], "counts": counts, "files": names}


def _part(rows: Sequence[dict[str, Any]], linker: Linker) -> pa.Table:
    import pyarrow as pa

    made = list(_read_rows(rows, linker))
    text = {name: pa.array([row[name] for row in made], pa.string()) for name in made[0] if name != "matrix"}
    size = len(made[0]["matrix"])
    return pa.table({**text, "matrix": pa.array([row["matrix"] for row in made], pa.binary(size))})


def _read_rows(rows: Sequence[dict[str, Any]], linker: Linker) -> Iterator[dict[str, Any]]:
    for row in rows:
        mentions = read_mentions(row["report"])
        cells = cells_of(mentions)
        spans = tuple(linker.link_report(row["report"]))
        yield bank.report_row(
            bank.ReadReport(row["study_id"], spans, triplets_of(mentions), cells), ternary_matrix(cells)
        )

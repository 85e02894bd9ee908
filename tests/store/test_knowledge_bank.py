"""Building a knowledge bank: what is read back, stopping midway, the same command again, other input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_ontology import terms, write

from medvlp.config.knowledge import KnowledgeConfig
from medvlp.errors import UserError
from medvlp.knowledge.bank import KnowledgeBank
from medvlp.knowledge.books import anatomy_names, finding_names
from medvlp.knowledge.counts import concept_counts, finding_counts
from medvlp.knowledge.linking import Linker
from medvlp.knowledge.matrix import ternary_matrix
from medvlp.store import knowledge_bank
from medvlp.store.array_store import read_meta
from medvlp.store.knowledge_bank import build_bank
from medvlp.text.triplets import cells_of, read_mentions, report_triplets

GRAPH = {"dim": 8, "epochs": 2, "negatives": 2}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared store of 12 phantom studies with reports; study 3 has none, study 4 a Spanish one."""
    from medvlp.config.prepare import PrepareConfig
    from medvlp.sources.phantom.write import write_phantom
    from medvlp.store.prepare import prepare

    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder / "raw", 12, 0, size=32, num_workers=1)
    options: dict[str, Any] = {"image": {"size": 32}, "num_workers": 1}
    prepare(PrepareConfig(source="phantom", root=folder / "raw", out=folder / "store", **options))
    file = folder / "store" / "studies.parquet"
    studies = pd.read_parquet(file)
    studies.loc[3, "report"] = None
    studies.loc[4, "language"] = "es"
    studies.loc[5, "report"] = "FINDINGS: Right upper lobe pneumonia. No lung infection. IMPRESSION: Pneumonia."
    studies.to_parquet(file)
    return folder / "store"


def config(folder: Path, *stores: Path, **changes: Any) -> KnowledgeConfig:
    tree: dict[str, Any] = {"ontologies": (write(folder),), "reports": stores, "out": folder / "bank", "graph": GRAPH,
                            "shard_reports": 4}  # fmt: skip
    return KnowledgeConfig.model_validate(tree | changes)


def content(bank: Path) -> dict[str, bytes]:
    return {p.relative_to(bank).as_posix(): p.read_bytes() for p in sorted(bank.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, phantom: Path) -> KnowledgeConfig:
    made = config(tmp_path_factory.mktemp("built"), phantom)
    build_bank(made)
    return made


def test_what_is_read_back_is_what_reports_and_ontologies_say(built: KnowledgeConfig, phantom: Path) -> None:
    bank = KnowledgeBank.open(built.out)
    bank.verify()
    book = bank.book
    assert list(book) == ["A:1", "D:1", "D:2", "D:3", "D:4", "D:5"]
    assert book["D:3"].relations == (("located_in", "A:1"),)
    assert book["D:3"].synonyms[0].text == "lung infection"
    assert book.resolve("D:6") == book.resolve("D:30") == "D:3"
    assert [entry["name"] for entry in bank.anatomy] == list(anatomy_names())
    assert [entry["name"] for entry in bank.findings] == list(finding_names())
    assert bank.anatomy[0]["prompt"] == bank.anatomy[0]["prompt_medklip"] + ". "
    assert bank.node_vectors.shape == (6, 8)
    assert bank.relation_vectors.shape == (2, 8)
    assert bank.graph.nodes == tuple(book)
    linker = Linker.from_book(book)
    studies = pd.read_parquet(phantom / "studies.parquet")
    reports = {row.study_id: row.report for k, row in enumerate(studies.itertuples()) if k not in (3, 4)}
    read = bank.reports()
    ids, matrices = bank.matrices()
    assert list(read) == ids == list(reports)
    for study, matrix in zip(ids, matrices, strict=True):
        cells = cells_of(read_mentions(reports[study]))
        assert read[study].triplets == report_triplets(reports[study])
        assert read[study].cells == cells
        assert list(read[study].spans) == linker.link_report(reports[study])
        assert np.array_equal(matrix, ternary_matrix(cells))


def test_counts_are_of_reports(built: KnowledgeConfig, phantom: Path) -> None:
    bank = KnowledgeBank.open(built.out)
    meta = bank.meta["reports"]["phantom"]
    assert meta["counts"] == {
        "reports": 10, "without_report": 1, "other_language": 1,
        "spans": sum(len(r.spans) for r in bank.reports().values()),
        "triplets": sum(len(r.triplets) for r in bank.reports().values()),
    }  # fmt: skip
    assert meta["hash"] == read_meta(phantom)["hash"]
    assert len(meta["files"]) == 3
    named = {row[0]: row[2] for row in concept_counts(bank)}
    assert named["D:3"] == sum(any(s.concept_id == "D:3" for s in r.spans) for r in bank.reports().values()) > 0
    stated = {row[0]: row[1:] for row in finding_counts(bank)}
    _, matrices = bank.matrices()
    for k, name in enumerate(finding_names()):
        assert stated.get(name, (0, 0, 0))[0] == int((matrices[:, :, k] == 1).any(axis=1).sum())


def test_present_concepts_are_those_affirmed(built: KnowledgeConfig, phantom: Path) -> None:
    study = pd.read_parquet(phantom / "studies.parquet")["study_id"][5]
    report = KnowledgeBank.open(built.out).reports()[study]
    assert [(span.concept_id, span.value) for span in report.spans] == [("D:3", 1.0), ("D:3", 0.0), ("D:3", 1.0)]
    present = KnowledgeBank.open(built.out).present_concepts()
    assert present[study] == ("D:3",)
    assert set(present) == set(KnowledgeBank.open(built.out).reports())


def test_no_text_of_a_report_is_in_the_bank(built: KnowledgeConfig, phantom: Path) -> None:
    reports = [r for r in pd.read_parquet(phantom / "studies.parquet")["report"] if isinstance(r, str)]
    bank = KnowledgeBank.open(built.out)
    stored = json.dumps([str(report) for report in bank.reports().values()]) + json.dumps(bank.meta)
    sentences = {s for report in reports for s in report.split(". ") if len(s.split()) > 3}
    assert not [sentence for sentence in sentences if sentence in stored]


def test_the_same_command_again_has_nothing_to_do(
    built: KnowledgeConfig, monkeypatch: pytest.MonkeyPatch, phantom: Path
) -> None:
    before = content(built.out)
    monkeypatch.setattr(knowledge_bank, "_write", lambda *_: pytest.fail("written again"))
    summary = build_bank(built)
    assert summary.already_complete
    assert summary.reports == 10
    assert content(built.out) == before


def test_a_stopped_run_goes_on_and_ends_the_same(
    built: KnowledgeConfig, tmp_path: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path, phantom)
    real, calls = knowledge_bank._part, []

    def stopping(rows: Any, linker: Linker) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(rows, linker)

    monkeypatch.setattr(knowledge_bank, "_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_bank(made)
    with pytest.raises(UserError, match="not finished"):
        KnowledgeBank.open(made.out)
    with pytest.raises(UserError, match=r"settings.graph.seed: 0 in the bank, 9 now"):
        build_bank(config(tmp_path, phantom, graph={**GRAPH, "seed": 9}))
    build_bank(made)
    assert calls == [4, 4, 4, 2]  # the finished part is not read again
    assert content(made.out) == content(built.out)


@pytest.mark.parametrize("change", ["ontology", "settings", "reports"])
def test_other_input_is_refused(change: str, built: KnowledgeConfig, tmp_path: Path, phantom: Path) -> None:
    before = content(built.out)
    other = {
        "ontology": {"ontologies": (write(tmp_path, terms("id: D:1\nname: disease")),)},
        "settings": {"linking": {"min_characters": 9}},
        "reports": {"reports": ()},
    }[change]
    with pytest.raises(UserError, match="with other settings or from other files"):
        build_bank(KnowledgeConfig.model_validate(built.model_dump() | other))
    assert content(built.out) == before


def test_a_bank_without_reports_and_without_vectors(tmp_path: Path) -> None:
    summary = build_bank(config(tmp_path, graph={"method": "none"}))
    assert (summary.concepts, summary.relations, summary.reports) == (6, 5, 0)
    bank = KnowledgeBank.open(tmp_path / "bank")
    assert bank.stores == ()
    with pytest.raises(UserError, match="no graph embeddings"):
        bank.node_vectors  # noqa: B018
    with pytest.raises(UserError, match="no reports"):
        bank.reports()


def test_two_stores_of_one_data_set_have_names_of_their_own(tmp_path: Path, phantom: Path) -> None:
    import shutil

    copy = shutil.copytree(phantom, tmp_path / "copy")
    build_bank(config(tmp_path, phantom, copy, graph={"method": "none"}))
    bank = KnowledgeBank.open(tmp_path / "bank")
    assert bank.stores == ("phantom", "phantom-2")
    with pytest.raises(UserError, match="no reports of 'None'"):
        bank.reports()
    assert bank.reports("phantom") == bank.reports("phantom-2")


def test_ontologies_of_one_file_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = write(tmp_path), write(tmp_path / "other", terms("id: E:1\nname: rib"))
    made = config(tmp_path, graph={"method": "none"}, ontologies=(first, second))
    build_bank(made)
    write(tmp_path, terms("id: D:1\nname: changed"))
    with pytest.raises(UserError, match="from other files"):
        build_bank(made)


def test_reports_of_a_store_behind_a_url_are_read(tmp_path: Path, phantom: Path) -> None:
    from upath import UPath

    there = UPath("memory://bank-test/store")
    for name in ("store.json", "studies.parquet"):
        (there / name).write_bytes((phantom / name).read_bytes())
    build_bank(config(tmp_path, phantom, graph={"method": "none"}, out=tmp_path / "here"))
    build_bank(config(tmp_path, Path("memory://bank-test/store"), graph={"method": "none"}, out=tmp_path / "there"))
    assert content(tmp_path / "there") == content(tmp_path / "here")
    with pytest.raises(UserError, match="no prepared store"):
        build_bank(config(tmp_path, Path("memory://bank-test/none"), out=tmp_path / "x"))
    with pytest.raises(UserError, match="local disk"):
        build_bank(config(tmp_path, out=Path("memory://bank-test/bank")))


def test_what_cannot_be_built_is_refused(tmp_path: Path, phantom: Path) -> None:
    with pytest.raises(UserError, match="no ontology file"):
        build_bank(config(tmp_path, ontologies=(tmp_path / "missing.obo",)))
    with pytest.raises(UserError, match="no prepared store"):
        build_bank(config(tmp_path, tmp_path))
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds no bank"):
        build_bank(config(tmp_path, out=full))
    with pytest.raises(UserError, match="must be a folder"):
        build_bank(config(tmp_path, out=full / "mine.txt"))
    assert [p.name for p in full.iterdir()] == ["mine.txt"]


def test_a_store_without_readable_reports_is_refused(tmp_path: Path, phantom: Path) -> None:
    import shutil

    store = shutil.copytree(phantom, tmp_path / "store")
    studies = pd.read_parquet(store / "studies.parquet")
    studies["language"] = "es"
    studies.to_parquet(store / "studies.parquet")
    with pytest.raises(UserError, match=r"no report that can be read; 11 are in a language"):
        build_bank(config(tmp_path, store, graph={"method": "none"}))


def test_a_damaged_bank_is_noticed(built: KnowledgeConfig, tmp_path: Path) -> None:
    import shutil

    bank = shutil.copytree(built.out, tmp_path / "bank")
    (bank / "findings.json").write_text("[]")
    with pytest.raises(UserError, match="not what was written"):
        KnowledgeBank.open(bank).verify()
    (bank / "findings.json").unlink()
    with pytest.raises(UserError, match=r"lacks: findings.json"):
        KnowledgeBank.open(bank)
    (bank / "bank.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        KnowledgeBank.open(bank)
    (bank / "bank.json").write_text('{"format_version": 99, "files": {}}')
    with pytest.raises(UserError, match="version 99"):
        KnowledgeBank.open(bank)
    with pytest.raises(UserError, match="no knowledge bank"):
        KnowledgeBank.open(tmp_path / "nowhere")


def test_the_configuration_refuses_the_same_file_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names a path twice"):
        config(tmp_path, ontologies=(write(tmp_path),) * 2)

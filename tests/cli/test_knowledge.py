"""`medvlp knowledge`: what it prints, and how a mistake ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import called
from tiny_ontology import terms, write


def test_build_says_what_it_wrote_and_what_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write(tmp_path), write(tmp_path, terms("id: E:1\nname: rib\nis_a: E:9"), "second.obo")
    command = ["knowledge", "build", "--ontology", first, "--ontology", second, "--out", tmp_path / "bank"]
    status, said = called(monkeypatch, capsys, *command, "graph.method=none")
    assert status == 0, said
    assert f"7 concepts with 5 links are in {tmp_path / 'bank'}" in said
    assert "1 lines or links of the ontologies were left out" in said
    assert f"Next: medvlp knowledge show {tmp_path / 'bank'}" in said
    status, said = called(monkeypatch, capsys, *command, "graph.method=none")
    assert status == 0
    assert "nothing to do" in said
    status, said = called(monkeypatch, capsys, "knowledge", "show", tmp_path / "bank")
    assert status == 0
    assert "concepts" in said


def test_mistakes_end_without_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path)
    broken = write(tmp_path, "nonsense", "broken.obo")
    cases = [
        (["build", "--ontology", tmp_path / "no.obo", "--out", tmp_path / "b"], "There is no ontology file."),
        (["build", "--ontology", broken, "--out", tmp_path / "b"], "neither OBO"),
        (["build", "--ontology", good, "--out", tmp_path / "b", "graph.epoch=3"], "Did you mean 'epochs'"),
        (["show", tmp_path / "b"], "not finished"),
        (["show", tmp_path / "c"], "There is no knowledge bank."),
    ]
    for arguments, what in cases:
        status, said = called(monkeypatch, capsys, "knowledge", *arguments)
        assert status == 1, said
        assert what in said
        assert "Traceback" not in said

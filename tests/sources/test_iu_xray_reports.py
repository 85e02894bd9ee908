"""Open-i reports from the archive and from folders: counts, text, and what broken or hostile input does."""

from __future__ import annotations

import io
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources._openi import parse_xml
from medvlp.sources.iu_xray_reports import IuXrayReports
from medvlp.text.sections import split_sections

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><Abstract>
<AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION"> Cough &amp; fever </AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract><MeSH><major>normal</major></MeSH><parentImage id="CXR{number}_1"/></eCitation>"""
BOMB = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<eCitation><uId id="CXR9"/><AbstractText Label="FINDINGS">&b;</AbstractText></eCitation>"""


def xml(number: int, findings: str = "Clear.", impression: str = "Normal.") -> str:
    return XML.format(number=number, findings=findings, impression=impression)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "ecgen-radiology"
    root.mkdir()
    for number in (10, 2, 1):
        (root / f"{number}.xml").write_text(xml(number))
    return tmp_path


def pack(path: Path, members: dict[str, str], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def test_the_real_archive(test_data: Path) -> None:
    path = test_data / "iu_xray_reports" / "NLMCXR_reports.tgz"
    source = SOURCES.get("iu_xray_reports")(path)
    studies = list(source.studies())
    assert source.summary()["mismatch"] == []
    assert source.summary()["found"] == {
        "reports": 3955, "images": 7470, "empty_findings": 530, "empty_impression": 34, "empty_both": 28,
    }  # fmt: skip
    assert len(studies) == len({study.study_id for study in studies}) == 3955
    assert len(source.problems) == 28
    assert all("neither findings" in problem.reason for problem in source.problems)
    assert [int(s.study_id[3:]) for s in studies] == sorted(int(s.study_id[3:]) for s in studies)
    # Independent route: unpacked in memory and parsed with the standard library's tree.
    with tarfile.open(path) as archive:
        for study in studies[::500]:
            content = archive.extractfile(f"ecgen-radiology/{study.study_id[3:]}.xml")
            assert content is not None
            fields = {e.get("Label"): (e.text or "").strip() for e in ET.parse(content).iter("AbstractText")}
            names = ("INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION")
            assert study.report == "\n".join(f"{name}: {fields[name]}" for name in names if fields[name])
    assert list(IuXrayReports(path.parent).studies()) == studies  # a folder with the archive in it


def test_study_from_a_folder(folder: Path) -> None:
    source = IuXrayReports(folder)
    studies = list(source.studies())
    assert [study.study_id for study in studies] == ["CXR1", "CXR2", "CXR10"]
    first = studies[0]
    assert first.report == "INDICATION: Cough & fever\nFINDINGS: Clear.\nIMPRESSION: Normal."
    assert (first.patient_id, first.images, first.labels, first.split) == ("CXR1", (), {}, None)
    assert split_sections(first.report)["findings"] == "Clear."
    summary = source.summary()
    assert summary["found"]["reports"] == 3
    assert summary["declared"]["reports"] == 3955
    assert "reports" in summary["mismatch"]
    assert list(source.studies()) == studies  # reading again neither changes the result nor doubles the problems
    assert source.problems == []


def test_archive_and_folder_agree(folder: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "part.tgz", {f"ecgen-radiology/{n}.xml": xml(n) for n in (2, 10, 1)})
    assert list(IuXrayReports(archive).studies()) == list(IuXrayReports(folder).studies())


def test_report_without_a_body_is_kept_and_listed(folder: Path) -> None:
    (folder / "ecgen-radiology" / "3.xml").write_text(xml(3, "", " "))
    source = IuXrayReports(folder)
    studies = {study.study_id: study for study in source.studies()}
    assert studies["CXR3"].report == "INDICATION: Cough & fever"
    (problem,) = source.problems
    assert (problem.path, problem.study_id) == ("ecgen-radiology/3.xml", "CXR3")
    assert problem.fix


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<eCitation><uId", "no well-formed XML"),
        ("", "no well-formed XML"),
        (BOMB, "document type"),
        ("<eCitation/>", "no report id"),
        (xml(7).replace("COMPARISON", "SECRETS"), "unknown section 'SECRETS'"),
        (xml(7, "x" * 1_000_001), "more than 1000000"),
    ],
)
def test_a_bad_file_is_a_problem_and_the_others_go_on(folder: Path, content: str, reason: str) -> None:
    (folder / "ecgen-radiology" / "7.xml").write_text(content)
    source = IuXrayReports(folder)
    assert len(list(source.studies())) == 3
    (problem,) = source.problems
    assert problem.path == "ecgen-radiology/7.xml"
    assert reason in problem.reason
    assert problem.fix


def test_entities_are_refused_not_expanded() -> None:
    with pytest.raises(ValueError, match="document type"):
        parse_xml(BOMB.encode())
    with pytest.raises(ValueError, match="document type"):
        parse_xml(b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>')


def test_an_id_used_twice(folder: Path) -> None:
    (folder / "ecgen-radiology" / "a_copy_of_1.xml").write_text(xml(1))
    (folder / "ecgen-radiology" / "other_2.xml").write_text(xml(2, "Large effusion."))
    source = IuXrayReports(folder)
    assert [study.study_id for study in source.studies()] == ["CXR1", "CXR10"]
    assert sorted((p.study_id, p.path.split("/")[-1]) for p in source.problems) == [
        ("CXR1", "a_copy_of_1.xml"),
        ("CXR2", "2.xml"),
        ("CXR2", "other_2.xml"),
    ]


def test_hostile_members_are_problems(tmp_path: Path) -> None:
    archive = pack(
        tmp_path / "part.tgz",
        {"../evil.xml": xml(1), "/abs.xml": xml(2), "ok.xml": xml(3), "._ok.xml": "junk", "notes.txt": "junk"},
        links={"link.xml": "/etc/passwd"},
    )
    source = IuXrayReports(archive)
    assert [study.study_id for study in source.studies()] == ["CXR3"]
    assert {problem.path for problem in source.problems} == {"../evil.xml", "/abs.xml", "link.xml"}
    assert {path.name for path in tmp_path.iterdir()} == {"part.tgz"}


def test_an_incomplete_official_archive_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    archive = pack(tmp_path / "NLMCXR_reports.tgz", {"ecgen-radiology/1.xml": xml(1)})
    with pytest.raises(UserError, match=r"holds 1 reports, the card declares 3955"):
        list(IuXrayReports(archive).studies())


def test_a_cut_archive_is_an_error(test_data: Path, tmp_path: Path) -> None:
    whole = (test_data / "iu_xray_reports" / "NLMCXR_reports.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 10])
    with pytest.raises(UserError, match=r"broken after \d+ reports"):
        list(IuXrayReports(tmp_path / "cut.tgz").studies())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no reports"):
        list(IuXrayReports(tmp_path).studies())
    with pytest.raises(UserError):
        IuXrayReports(tmp_path / "none")

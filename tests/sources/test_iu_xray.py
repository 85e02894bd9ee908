"""IU X-Ray with images in its three editions, by hand-written expectation and on the real reports."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.types import Study

XML = """<eCitation><uId id="{id}"/><AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION"/><MeSH><major>Cardiomegaly/mild</major><major>Lung/hypoinflation</major></MeSH>
{images}</eCitation>"""


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def xml(root: Path, name: str, *images: str, file: str = "", findings: str = "Clear.") -> None:
    parents = "".join(f'<parentImage id="{image}"/>' for image in images)
    put(root / f"ecgen-radiology/{file or name}.xml", XML.format(id=name, findings=findings, images=parents))


def read(root: Path, edition: str = "openi") -> tuple[dict[str, Study], Source]:
    source = SOURCES.get("iu_xray")(root, {"edition": edition})
    return {study.study_id: study for study in source.studies()}, source


@pytest.mark.data
def test_the_real_reports_name_their_images(test_data: Path, tmp_path: Path) -> None:
    archive = test_data / "iu_xray_reports" / "NLMCXR_reports.tgz"
    (tmp_path / "NLMCXR_reports.tgz").symlink_to(archive.resolve())
    with tarfile.open(archive) as members:
        texts = [members.extractfile(member).read().decode() for member in members if member.isfile()]  # type: ignore[union-attr]
    named = [[part.split('"')[0] for part in text.split('<parentImage id="')[1:]] for text in texts]
    for names in named:
        for name in names:
            put(tmp_path / f"NLMCXR_png/{name}.png")
    studies, source = read(tmp_path)
    assert not source.problems
    assert len(studies) == 3955
    found = Counter(len(study.images) for study in studies.values())
    assert found == Counter(map(len, named))
    assert (found[0], found[1], found[2]) == (104, 446, 3208)
    assert sum(len(study.images) for study in studies.values()) == 7470
    assert source.summary()["edition"] == "full: 3,955"
    assert source.counts["reports that name no image"] == 104
    assert source.counts["reports without findings and impression"] == 28
    first = studies["CXR1"]
    assert [image.path for image in first.images] == [
        "NLMCXR_png/CXR1_1_IM-0001-3001.png", "NLMCXR_png/CXR1_1_IM-0001-4001.png",
    ]  # fmt: skip
    assert (first.patient_id, first.images[0].view, first.attributes) == ("CXR1", None, {"mesh": "normal"})


def test_openi_names_what_is_missing(tmp_path: Path) -> None:
    xml(tmp_path, "CXR2", "CXR2_IM-1", "CXR2_IM-2")
    xml(tmp_path, "CXR3", "CXR3_IM-1")
    xml(tmp_path, "CXR10")
    xml(tmp_path, "CXR4", "CXR4_IM-1", file="one")
    xml(tmp_path, "CXR4", "CXR4_IM-1", file="two", findings="Effusion.")
    for name in ("CXR2_IM-2", "stray"):
        put(tmp_path / f"NLMCXR_png/{name}.png")
    studies, source = read(tmp_path)
    assert list(studies) == ["CXR2", "CXR10"]
    assert [image.image_id for image in studies["CXR2"].images] == ["CXR2_IM-2"]
    assert studies["CXR10"].images == ()
    assert studies["CXR2"].attributes == {"mesh": "Cardiomegaly/mild|Lung/hypoinflation"}
    assert studies["CXR2"].report == "FINDINGS: Clear."
    reasons = sorted(problem.reason for problem in source.problems)
    assert [reason for reason in reasons if "row without image" in reason] == [
        "row without image: CXR2_IM-1 is in no folder", "row without image: CXR3_IM-1 is in no folder",
    ]  # fmt: skip
    assert "the image is not in any report" in reasons
    assert sum("in contradiction" in reason for reason in reasons) == 2


def item(number: int, split: str, report: str = "Clear.", **changed: object) -> dict[str, object]:
    name = f"CXR{number}_IM-{number:04d}"
    images = [f"{name}/0.png", f"{name}/1.png"]
    return {"id": name, "report": report, "image_path": images, "split": split, **changed}


def r2gen(root: Path, **lists: list[object]) -> Path:
    put(root / "annotation.json", json.dumps({"train": [], "val": [], "test": [], **lists}))
    for number in range(1, 6):
        for place in (0, 1):
            put(root / f"images/CXR{number}_IM-{number:04d}/{place}.png")
    return root


def test_r2gen(tmp_path: Path) -> None:
    good = {"train": [item(2, "train"), item(1, "train")], "val": [item(3, "val")], "test": [item(4, "test")]}
    r2gen(tmp_path, **good, **{"other": []})
    studies, source = read(tmp_path, "r2gen")
    assert [(name, study.split) for name, study in studies.items()] == [
        ("CXR1_IM-0001", "train"), ("CXR2_IM-0002", "train"), ("CXR3_IM-0003", "val"), ("CXR4_IM-0004", "test"),
    ]  # fmt: skip
    study = studies["CXR2_IM-0002"]
    assert (study.patient_id, study.report) == ("CXR2", "FINDINGS: Clear.")
    assert [(image.path, image.view) for image in study.images] == [
        ("images/CXR2_IM-0002/0.png", None), ("images/CXR2_IM-0002/1.png", None),
    ]  # fmt: skip
    assert [problem.reason for problem in source.problems] == ["the image is not in annotation.json"] * 2  # CXR5


def test_r2gen_names_one_report_with_a_number_more(tmp_path: Path) -> None:
    # the images of report 1 are CXR1_1_IM-0001-3001 and -4001, and R2Gen's id is made of them
    odd = item(1, "train", id="CXR1_1_IM-0001", image_path=["CXR1_1_IM-0001/0.png", "CXR1_1_IM-0001/1.png"])
    put(tmp_path / "annotation.json", json.dumps({"train": [odd], "val": [], "test": []}))
    for place in (0, 1):
        put(tmp_path / f"images/CXR1_1_IM-0001/{place}.png")
    studies, source = read(tmp_path, "r2gen")
    assert not source.problems
    assert [(study.study_id, study.patient_id) for study in studies.values()] == [("CXR1_1_IM-0001", "CXR1")]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (item(2, "test"), "the item says split test, but is in the list train"),
        (item(2, "train", id="2"), "no CXR<number>_IM-<number>"),
        (item(2, "train", report=None), "its report is no text"),
        ({"id": "CXR2_IM-0002"}, "lacks id, report, image_path or split"),
        (item(3, "train"), "stands 2 times"),
        (item(2, "train", image_path=["../x/0.png"]), "row without image: .._x_0"),
    ],
)
def test_r2gen_bad_items(tmp_path: Path, wrong: dict[str, object], reason: str) -> None:
    r2gen(tmp_path, train=[item(1, "train"), wrong], val=[item(3, "val")])
    studies, source = read(tmp_path, "r2gen")
    assert "CXR1_IM-0001" in studies
    assert len(studies) == 1 + ("stands" not in reason)
    assert any(reason in problem.reason for problem in source.problems), source.problems


def test_r2gen_layout_and_leaks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="both test and train"):
        read(r2gen(tmp_path, train=[item(1, "train")], test=[item(2, "test", id="CXR1_IM-0009")]), "r2gen")
    put(tmp_path / "annotation.json", "[]")
    with pytest.raises(UserError, match="no lists train, val, test"):
        read(tmp_path, "r2gen")
    put(tmp_path / "annotation.json", "{")
    with pytest.raises(UserError, match="no JSON"):
        read(tmp_path, "r2gen")


def test_kaggle(tmp_path: Path) -> None:
    put(
        tmp_path / "indiana_reports.csv",
        "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
        '10,normal,normal,PA,,,"Heart, normal.",Normal.\n2,A;B,A,PA,Pain,None.,,Edema.\n',
    )
    put(
        tmp_path / "indiana_projections.csv",
        "uid,filename,projection\n2,2_IM-1.dcm.png,Frontal\n2,2_IM-2.dcm.png,Lateral\n7,7_IM-1.dcm.png,Frontal\n",
    )
    for name in ("2_IM-1", "2_IM-2", "7_IM-1"):
        put(tmp_path / f"images/images_normalized/{name}.dcm.png")
    studies, source = read(tmp_path, "kaggle")
    assert list(studies) == ["CXR2", "CXR10"]
    two = studies["CXR2"]
    assert two.report == "INDICATION: Pain\nCOMPARISON: None.\nIMPRESSION: Edema."
    assert [(image.image_id, image.view) for image in two.images] == [("2_IM-1.dcm", None), ("2_IM-2.dcm", "LATERAL")]
    assert two.attributes == {"mesh": "A;B", "problems": "A"}
    assert studies["CXR10"].images == ()
    assert [problem.reason for problem in source.problems] == [
        "the image belongs to report 7, which is not in indiana_reports.csv"
    ]


def test_nothing_there(tmp_path: Path) -> None:
    for edition, message in (("openi", "no reports"), ("r2gen", "annotation"), ("kaggle", "indiana_reports")):
        with pytest.raises(UserError, match=message):
            read(tmp_path, edition)


@pytest.mark.parametrize(("edition", "file"), [("r2gen", "annotation.json"), ("kaggle", "indiana_reports.csv")])
def test_files_of_another_edition_are_named_with_its_option(tmp_path: Path, edition: str, file: str) -> None:
    put(tmp_path / file)
    with pytest.raises(UserError, match=f"edition {edition}") as error:
        read(tmp_path)
    assert error.value.fix == f"Set options.edition={edition}."
    xml(tmp_path, "CXR2", "CXR2_IM-1")  # both editions side by side: the option decides
    put(tmp_path / "NLMCXR_png/CXR2_IM-1.png")
    assert list(read(tmp_path)[0]) == ["CXR2"]

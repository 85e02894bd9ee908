"""MIMIC-CXR in both editions: traps of the tables and reports, by hand-written expectation."""

from __future__ import annotations

import gzip
import math
import zipfile
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.cards import load_card
from medvlp.text.sections import split_sections
from medvlp.types import Study

LABELS = load_card("mimic_cxr_jpg").labels
IDS = [  # dicom_id, subject, study
    ("a1", "10000001", "50000002"),
    ("a2", "10000001", "50000002"),
    ("b1", "10000001", "50000001"),
    ("c1", "10000002", "50000003"),
    ("d1", "12000003", "50000004"),
]
TIMES = {"a1": "213014.531", "a2": "93014.531", "b1": "5.0", "c1": "", "d1": "120000"}
VIEWS = {"a1": "PA", "a2": "LL", "b1": "AP", "c1": "SWIMMERS", "d1": ""}


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def path_of(dicom: str, subject: str, study: str, suffix: str = ".jpg") -> str:
    return f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}{suffix}"


def jpg(root: Path, **tables: str) -> Path:
    """Five images of four studies of three patients; `tables` replaces or extends (a leading +) a table."""
    split = {"10000001": "train", "10000002": "validate", "12000003": "test"}
    made = {
        "metadata": "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns,StudyDate,StudyTime\n"
        + "".join(f"{d},{p},{s},{VIEWS[d]},3056,2544,21800506,{TIMES[d]}\n" for d, p, s in IDS),
        "split": "dicom_id,study_id,subject_id,split\n" + "".join(f"{d},{s},{p},{split[p]}\n" for d, p, s in IDS),
        "chexpert": "subject_id,study_id," + ",".join(reversed(LABELS)) + "\n"
        "10000001,50000001,,1.0,,-1.0,0.0,,,,,,,,,\n10000001,50000002" + "," * 14 + "\n"
        "10000002,50000003" + ",0.0" * 14 + "\n12000003,50000004" + ",1.0" * 14 + "\n",
    }
    for name, text in tables.items():
        made[name] = made[name] + text[1:] if text.startswith("+") else text
    for name, text in made.items():
        put(root / f"mimic-cxr-2.0.0-{name}.csv.gz", text)
    for ids in IDS:
        put(root / path_of(*ids), "")
    return root


def read(root: Path, name: str = "mimic_cxr_jpg", **options: object) -> tuple[dict[str, Study], Source]:
    source = SOURCES.get(name)(root, options)
    return {study.study_id: study for study in source.studies()}, source


def test_jpg_edition_by_hand(tmp_path: Path) -> None:
    studies, source = read(jpg(tmp_path))
    assert not source.problems
    assert list(studies) == ["50000001", "50000002", "50000003", "50000004"]
    assert [study.split for study in studies.values()] == ["train", "train", "val", "test"]
    one, two = studies["50000001"], studies["50000002"]
    assert [image.image_id for image in two.images] == ["a1", "a2"]
    assert two.images[1].path == "files/p10/p10000001/s50000002/a2.jpg"
    assert [image.view for image in two.images] == ["PA", "LATERAL"]
    assert studies["50000003"].images[0].view is None
    assert source.counts["view SWIMMERS, read as unknown"] == 1
    # times are numbers without their leading zeros; a study has that of its first image
    assert two.attributes["study_time"] == "093014"
    assert one.attributes["study_time"] == "000005"
    assert "study_time" not in studies["50000003"].attributes
    assert one.date == "21800506"
    # columns are found by name although their order is another; blank, 0 and -1 stay apart
    assert (one.labels["Pneumothorax"], one.labels["Pleural Other"]) == (1.0, -1.0)
    assert one.labels["Pleural Effusion"] == 0.0
    assert math.isnan(one.labels["Support Devices"])
    assert tuple(one.labels) == LABELS
    assert all(math.isnan(value) for value in two.labels.values())


def test_a_radiologists_labels_replace_those_of_the_labeler(tmp_path: Path) -> None:
    jpg(tmp_path)
    names = ["Airspace Opacity" if name == "Lung Opacity" else name for name in LABELS]
    cells = ",".join("1.0" if name == "Airspace Opacity" else "0.0" for name in names)
    put(tmp_path / "mimic-cxr-2.1.0-test-set-labeled.csv", f"study_id,{','.join(names)}\n50000004,{cells}\n")
    studies, source = read(tmp_path, test_labels="radiologist")
    study = studies["50000004"]
    assert source.counts["studies with a radiologist's labels"] == 1
    assert {name for name, value in study.labels.items() if value == 1} == {"Lung Opacity"}
    assert study.attributes["label_source"] == "radiologist"
    automatic = read(tmp_path)[0]["50000004"]
    assert set(automatic.labels.values()) == {1.0}
    assert automatic.attributes["label_source"] == "chexpert"


@pytest.mark.parametrize(
    ("tables", "missing", "reason"),
    [
        ({"metadata": "+e1,10000001,50000009,PA,1,1,21800506,1\n"}, "", "no official split"),
        ({"split": "+x,1,1,train\na1,50000009,10000001,train\n"}, "50000002:a1", "no official split"),
        ({"chexpert": "+10000001,50000009,2.0" + "," * 13 + "\n"}, "", "a label is 2.0"),
        ({"metadata": "+a1,10000002,50000003,PA,1,1,,\n"}, "50000002:a1", "duplicated id: a1"),
        ({"metadata": "+e1,999,50000009,PA,1,1,,\n"}, "", "no ids of a patient"),
    ],
)
def test_what_tables_do_not_agree_on_is_named(
    tmp_path: Path, tables: dict[str, str], missing: str, reason: str
) -> None:
    studies, source = read(jpg(tmp_path, **tables))
    assert any(reason in problem.reason for problem in source.problems), source.problems
    kept = {f"{study.study_id}:{image.image_id}" for study in studies.values() for image in study.images}
    assert kept == {f"{study}:{dicom}" for dicom, _, study in IDS} - {missing}


def test_images_without_rows_and_rows_without_images(tmp_path: Path) -> None:
    jpg(tmp_path)
    put(tmp_path / path_of("zz", "10000001", "50000002"), "")
    (tmp_path / path_of(*IDS[3])).unlink()
    (tmp_path / path_of(*IDS[2])).rename(tmp_path / path_of("b1", "10000001", "50000002"))
    studies, source = read(tmp_path)
    assert list(studies) == ["50000002", "50000004"]
    reasons = sorted(problem.reason.split(":")[0] for problem in source.problems)
    assert len(reasons) == 3
    assert reasons[0].startswith("row without image")
    assert reasons[1].startswith("the image is at files/p10/p10000001/s50000002/b1.jpg")
    assert reasons[2].startswith("the image is not in mimic-cxr-2.0.0-metadata")


def test_a_patient_in_two_splits_stops_the_run(tmp_path: Path) -> None:
    split = "dicom_id,study_id,subject_id,split\n" + "".join(
        f"{d},{s},{p},{'test' if d == 'b1' else 'train'}\n" for d, p, s in IDS
    )
    with pytest.raises(UserError, match="both test and train"):
        read(jpg(tmp_path, split=split))


def test_missing_tables_and_columns(tmp_path: Path) -> None:
    jpg(tmp_path, chexpert="subject_id,study_id,Atelectasis\n")
    with pytest.raises(UserError, match="no column 'Cardiomegaly'"):
        read(tmp_path)
    assert read(tmp_path, labels="none")[0]["50000001"].labels == {}
    with pytest.raises(UserError, match=r"negbio\.csv\.gz is missing") as error:
        read(tmp_path, labels="negbio")
    assert "options.labels=none" in error.value.fix
    (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(UserError, match=r"split\.csv\.gz is missing") as error:
        read(tmp_path, labels="none")
    assert "options.split" not in error.value.fix  # this edition cannot do without
    assert "beside files/" in error.value.fix


def test_the_dicom_release_says_where_its_missing_tables_are(tmp_path: Path) -> None:
    dicom(tmp_path)
    (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(UserError) as error:
        read(tmp_path, "mimic_cxr")
    assert error.value.fix == "Copy it there from MIMIC-CXR-JPG, or set options.split=none."


def test_ids_that_match_nothing_stop_the_run(tmp_path: Path) -> None:
    jpg(tmp_path)
    labels, ids = tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", [study for _, _, study in IDS]
    text = gzip.decompress(labels.read_bytes()).decode()
    for study in ids:
        text = text.replace(f",{study},", f",{study}.0,")  # as a table of floats is saved
    put(labels, text)
    with pytest.raises(UserError, match=r"No study finds its labels: the ids of mimic-cxr-2\.0\.0-chexpert"):
        read(tmp_path)
    assert len(read(tmp_path, labels="none")[0]) == 4
    with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("files/p19/p19999999/s59999999.txt", REPORT)
    with pytest.raises(UserError, match="No study finds its report"):
        read(tmp_path, labels="none")
    assert len(read(tmp_path, labels="none", reports="none")[0]) == 4


def test_tables_by_content_and_tables_cut_off(tmp_path: Path) -> None:
    expected = read(jpg(tmp_path))[0]
    table = tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz"
    text = gzip.decompress(table.read_bytes()).decode()
    table.write_text(text, encoding="utf-8")  # as a browser leaves it
    assert repr(read(tmp_path)[0]) == repr(expected)
    table.write_text(text.rstrip("\n"), encoding="utf-8")
    assert repr(read(tmp_path)[0]) == repr(expected)
    table.write_text(text.rstrip("\n")[:-16], encoding="utf-8")  # 12000003 loses its last four labels
    with pytest.raises(UserError, match="ends in the middle of a row: line 5 has only 12 cells"):
        read(tmp_path)


REPORT = "WET READ: ___\n Clear.\n          FINAL REPORT\n EXAMINATION:  CHEST\n\n IMPRESSION:  \n \n No pneumonia.\n"


def dicom(root: Path) -> Path:
    jpg(root)
    rows = "".join(f"{p},{s},{d},{path_of(d, p, s, '.dcm')}\n" for d, p, s in IDS)
    put(root / "cxr-record-list.csv.gz", "subject_id,study_id,dicom_id,path\n" + rows)
    for ids in IDS:
        (root / path_of(*ids)).rename(root / path_of(*ids, ".dcm"))
    return root


def test_dicom_edition_with_zipped_and_unpacked_reports(tmp_path: Path) -> None:
    dicom(tmp_path)
    with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("files/p10/p10000001/s50000001.txt", REPORT)
        archive.writestr("files/p10/p10000001/s50000002.txt", b"\xff\xfe broken")
    studies, source = read(tmp_path, "mimic_cxr")
    text = studies["50000001"].report
    assert text is not None
    assert "FINAL REPORT" not in text
    assert split_sections(text)["impression"] == "No pneumonia."
    assert studies["50000002"].report is None
    assert [(problem.study_id, problem.reason) for problem in source.problems] == [
        ("50000002", "the report cannot be read (UnicodeDecodeError)")
    ]
    assert source.counts["studies without a report"] == 3
    assert source.summary()["reports"] == "full"

    (tmp_path / "mimic-cxr-reports.zip").unlink()
    assert read(tmp_path, "mimic_cxr")[1].summary()["reports"] == "none"
    with pytest.raises(UserError, match="no reports"):
        read(tmp_path, "mimic_cxr", reports="full")
    put(tmp_path / "files/p10/p10000001/s50000001.txt", REPORT)
    assert read(tmp_path, "mimic_cxr")[0]["50000001"].report == text
    (tmp_path / "mimic-cxr-reports.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="cannot be opened"):
        read(tmp_path, "mimic_cxr")


def test_sections_that_users_make(tmp_path: Path) -> None:
    dicom(tmp_path)
    put(
        tmp_path / "mimic_cxr_sectioned.csv",
        "study,impression,findings,last_paragraph,comparison\n"
        's50000001,"No change,\nstill.",Clear.,ignored,None.\ns50000003,,,Lungs are clear.,\n',
    )
    studies, _ = read(tmp_path, "mimic_cxr", reports="sectioned")
    assert studies["50000001"].report == "COMPARISON: None.\nFINDINGS: Clear.\nIMPRESSION: No change,\nstill."
    assert studies["50000003"].report == "Lungs are clear."
    assert studies["50000002"].report is None


def test_a_wrong_path_in_the_record_list_is_named(tmp_path: Path) -> None:
    dicom(tmp_path)
    rows = "".join(f"{p},{s},{d},{path_of(d, '10000009', s, '.dcm')}\n" for d, p, s in IDS[:1])
    put(tmp_path / "cxr-record-list.csv.gz", "subject_id,study_id,dicom_id,path\n" + rows)
    studies, source = read(tmp_path, "mimic_cxr")
    assert not studies
    assert "is not that of the ids" in source.problems[-1].reason


def test_a_full_edition_must_have_the_split_sizes_of_the_card(tmp_path: Path) -> None:
    jpg(tmp_path)
    source = SOURCES.get("mimic_cxr_jpg")(tmp_path)
    counts = {"images": 5, "train images": 3, "validate images": 1, "test images": 2}
    source.card = type(source.card).model_validate(source.card.resolved() | {"counts": counts})
    with pytest.raises(UserError, match="test images: 1 found, 2 declared"):
        list(source.studies())

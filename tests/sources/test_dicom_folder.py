"""A hospital's export: how rows find their files, and everything that must not be joined."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.phantom.abdomen import abdomen_volume
from medvlp.sources.phantom.layouts._dicom import ct_series, radiograph_file
from medvlp.text.known_names import without_known
from medvlp.types import Study

PIXELS = np.zeros((8, 6), np.uint16)


def film(root: Path, path: str, study: str, patient: str, **more: Any) -> None:
    """Write a radiograph whose ids follow from its path, study and patient."""
    ids = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.{len(path)}", "PatientID": patient}
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(radiograph_file(PIXELS, f"1.9.{sum(map(ord, path))}", **{**ids, **more}))


def read(root: Path, **options: Any) -> tuple[list[Study], list[str], Source]:
    source = SOURCES.get("dicom_folder")(root, options)
    studies = list(source.studies())
    return studies, [f"{problem.path}: {problem.reason}" for problem in source.problems], source


def three(root: Path) -> None:
    """Write examinations 1.1 (two films), 1.2 and 1.3 of two patients."""
    film(
        root, "x/a", "1.1", "P1", AccessionNumber="007", PatientName="Doe^Jane", ViewPosition="PA", StudyDate="20200203"
    )
    film(root, "x/b", "1.1", "P1", AccessionNumber="007", PatientName="Doe^Jane", ViewPosition="LL")
    film(root, "a", "1.2", "P1", AccessionNumber="008", Modality="DX", PatientAge="061Y", PatientSex="F")
    film(root, "b", "1.3", "P2", AccessionNumber="009")


def test_rows_by_accession_number_and_reports_by_study(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text(
        "\ufeffAccession Number;PatientID;age;Effusion;Edema;remark;split\n"
        "007;P1;61;1;;x;train\n008;P1;61;-1;0;;train\n009;P2;5;0;1;;test\n"
    )
    (tmp_path / "reports.csv").write_text(
        'study_id,Findings,Impression\n1.1,"Jane Doe: clear, no effusion.",Normal.\n1.2,,\n1.3,x,\n'
    )
    studies, problems, source = read(tmp_path, labels="labels.csv", reports="reports.csv")
    assert problems == []
    assert [study.study_id for study in studies] == ["1.1", "1.2", "1.3"]
    one, two, three_ = studies
    assert str(one.labels) == "{'Effusion': 1.0, 'Edema': nan}"
    assert (two.labels, three_.labels) == ({"Effusion": -1.0, "Edema": 0.0}, {"Effusion": 0.0, "Edema": 1.0})
    assert source.label_columns == ("Effusion", "Edema")
    assert one.report == "FINDINGS: Jane Doe: clear, no effusion.\nIMPRESSION: Normal."
    assert one.identifiers == ("Doe^Jane", "P1", "007")
    assert two.report is None
    assert [(image.path, image.view) for image in one.images] == [("x/a", "PA"), ("x/b", "LATERAL")]
    assert (one.date, two.age, two.sex, three_.split, source.kind) == ("20200203", 61.0, "F", "test", "image")
    summary = source.summary()
    assert summary["table of labels: tied to files by the accession"] == "Accession Number"
    assert summary["table of labels: labels"] == "Effusion, Edema"
    assert summary["table of labels: not used"] == "age, remark"
    assert summary["table of reports: tied to files by the study"] == "study_id"


def test_people_of_headers_and_tables_are_named_for_removal(tmp_path: Path) -> None:
    film(tmp_path, "a", "1.2", "P1", AccessionNumber="008", PatientName="Anon^7", OperatorsName="Hall^Ada\\Ek^Bo",
         ReferringPhysicianName="House^Gregory")  # fmt: skip
    (tmp_path / "reports.csv").write_text("AccessionNumber,Patient Name,Radiologist,report\n008,Jane Doe,A. Turing,x\n")
    (study,), _, source = read(tmp_path, reports="reports.csv")
    people = {"Anon^7", "Hall^Ada", "Ek^Bo", "House^Gregory", "Jane Doe", "A. Turing", "P1", "008"}
    assert set(study.identifiers) == people
    film(tmp_path, "a", "1.2", "P1", InstitutionName="Heart Clinic", InstitutionAddress="1 High Street")
    (study,), _, _ = read(tmp_path)
    text = "Seen at HEART  CLINIC, 1 High Street. The heart is of high normal size."
    assert without_known(text, study.identifiers) == "Seen at [REMOVED]. The heart is of high normal size."
    assert source.summary()["table of reports: names of people, removed from reports"] == "Patient Name, Radiologist"
    assert "table of reports: not used" not in source.summary()


def test_a_study_column_that_holds_accession_numbers(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text("study_id,Effusion\n007,1\n008,0\n009,0\n")
    studies, problems, source = read(tmp_path, labels="labels.csv")
    assert problems == []
    assert studies[0].labels == {"Effusion": 1.0}
    assert source.summary()["table of labels: tied to files by the accession"] == "study_id"


def test_labels_by_file_make_every_image_a_study(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text("filename,class\nx/a,sick|old\nx/b,\n")
    studies, problems, _ = read(tmp_path, labels="labels.csv")
    assert len(studies) == 4
    labels = {study.images[0].path: study.labels for study in studies}
    assert labels["x/a"] == {"old": 1.0, "sick": 1.0}
    assert str(labels["x/b"]) == "{'old': nan, 'sick': nan}"
    assert problems == ["labels.csv: no row of the table of labels belongs to this examination"] * 2


def test_rows_that_must_not_be_joined(tmp_path: Path) -> None:
    three(tmp_path)
    rows = ["007,P2,1", "008,P1,1", "008,P1,0", "009,P2,1", "009,P2,1", "010,P2,0"]
    (tmp_path / "labels.csv").write_text("\n".join(["AccessionNumber,PatientID,Effusion", *rows, ""]))
    studies, problems, _ = read(tmp_path, labels="labels.csv")
    assert [study.labels for study in studies] == [{}, {}, {"Effusion": 1.0}]
    assert problems == [
        "labels.csv:2: PatientID of the row is another patient than the header of the file",
        "labels.csv:7: the row belongs to no usable file",
        "labels.csv: no row of the table of labels belongs to this examination",
        "labels.csv:3: lines 3, 4 contradict each other; none is used",
        "labels.csv:6: the row repeats line 5; the first is used",
    ]


def test_a_patient_with_two_examinations_is_ambiguous(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text("PatientID,Effusion\nP1,1\nP2,1\n")
    studies, problems, _ = read(tmp_path, labels="labels.csv")
    assert [study.labels for study in studies] == [{}, {}, {"Effusion": 1.0}]
    assert problems[0] == "labels.csv:2: the patient of the row has several examinations, and it does not say which"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "AccessionNumber,Effusion\n7,1\n8,1\n",
            "no cell of AccessionNumber is an id that the files have. 2 rows would",
        ),
        ("number,Effusion\n007,1\n", "no column is named like an id"),
        ("AccessionNumber,Edema,Edema\n007,1,1\n", "occurs twice or holds a comma: Edema"),
        ('AccessionNumber,"Edema, mild",x\n007,1,1\n', "holds a comma: Edema, mild"),
    ],
    ids=["leading zeros", "no id", "two columns of one name", "a comma in a name"],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path, labels="labels.csv")


def test_tables_as_excel_writes_them(tmp_path: Path) -> None:
    three(tmp_path)
    table = 'sep=;\r\nAccession Number;Erguß;Ödem\r\n="007";positiv;0\r\n="008";negativ;1\r\n="009";?;\r\n'
    (tmp_path / "labels.csv").write_bytes(table.encode("windows-1252"))
    with pytest.raises(UserError, match="not encoded as utf-8: byte 0xdf") as refused:
        read(tmp_path, labels="labels.csv")
    assert "options.encoding" in refused.value.fix
    words = {"Positiv": 1, "negativ": 0, "?": -1}
    studies, problems, source = read(tmp_path, labels="labels.csv", encoding="windows-1252", label_values=words)
    assert problems == []
    assert [study.labels["Erguß"] for study in studies] == [1.0, 0.0, -1.0]
    (tmp_path / "labels.csv").write_bytes(table.replace(";", "\t").encode("utf-16"))
    studies, problems, source = read(tmp_path, labels="labels.csv")
    assert (problems, source.label_columns) == ([], ("Ödem",))
    said = source.summary()["table of labels: Erguß is no label"]
    assert str(said).startswith("3 of its 3 cells are none of 1, 0, -1 and blank; options.label_values")
    with pytest.raises(UserError, match="'klingon' is no known encoding"):
        read(tmp_path, labels="labels.csv", encoding="klingon")


@pytest.mark.parametrize("words", [{"yes": 2}, {"yes": "no"}, "yes", {"yes": True, "no": [0]}])
def test_words_mean_labels_and_nothing_else(tmp_path: Path, words: Any) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text("AccessionNumber,Effusion\n007,yes\n008,no\n009,\n")
    with pytest.raises(UserError, match="A word can mean 1, 0, -1 or null"):
        read(tmp_path, labels="labels.csv", label_values=words)


def test_yes_and_no_are_words_although_yaml_reads_truth_values(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text("AccessionNumber,Effusion\n007,Yes\n008,no\n009,unread\n")
    with pytest.raises(UserError, match="No column of the table of labels holds labels: AccessionNumber, Effusion"):
        read(tmp_path, labels="labels.csv")
    words = {True: 1, False: 0, "unread": None}
    studies, problems, _ = read(tmp_path, labels="labels.csv", label_values=words)
    assert (problems, str([study.labels["Effusion"] for study in studies])) == ([], "[1.0, 0.0, nan]")


def test_a_number_without_its_zeros_is_not_taken_for_another_one(tmp_path: Path) -> None:
    three(tmp_path)
    film(tmp_path, "c", "1.4", "P3", AccessionNumber="7")
    (tmp_path / "labels.csv").write_text("AccessionNumber,Effusion\n7,1\n8,1\n9,1\n")
    with_loss, problems, _ = read(tmp_path, labels="labels.csv")
    assert all(not study.labels for study in with_loss)
    assert problems[0] == "labels.csv:2: the id of the row could be several once its leading zeros are lost"
    (tmp_path / "labels.csv").write_text("AccessionNumber,Effusion\n7,1\n008,1\n009,1\n")
    studies, problems, _ = read(tmp_path, labels="labels.csv")
    assert [study.labels for study in studies] == [{}, *[{"Effusion": 1.0}] * 3]


def test_patients_who_are_not_compared_are_named(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text("AccessionNumber,PatientID,Effusion\n007,1,1\n008,1,1\n009,2,1\n")
    summary = read(tmp_path, labels="labels.csv")[2].summary()
    name = "table of labels: patient, NOT compared: it holds none of the ids in the headers"
    assert summary[name] == "PatientID"


@pytest.mark.parametrize("cells", [[f"Anna Berger {chr(65 + k // 2)}" for k in range(44)], ["12345678"] * 44])
def test_names_and_numbers_of_people_do_not_become_classes(tmp_path: Path, cells: list[str]) -> None:
    for k in range(44):
        film(tmp_path, "a" * (k + 1), f"1.{k}", f"P{k}")
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{'a' * (k + 1)},{cells[k]}\n" for k in range(44)))
    with pytest.raises(UserError, match="The cells of the column label do not look like classes") as refused:
        read(tmp_path, labels="labels.csv")
    assert not any(cell in str(refused.value) for cell in cells)
    studies, problems, source = read(tmp_path, labels="labels.csv", label_columns=["label"])
    assert (problems, source.label_columns) == ([], tuple(sorted(set(cells))))
    assert studies[0].labels[cells[0]] == 1.0


def test_declared_columns_and_their_bad_cells(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text(
        "AccessionNumber,Effusion,grade,split\n007,1,3,train\n008,1,0,train\n009,1,1,later\n"
    )
    studies, problems, _ = read(tmp_path, labels="labels.csv", label_columns=["grade"])
    assert [study.labels for study in studies] == [{}, {"grade": 0.0}, {"grade": 1.0}]
    assert problems[0] == "labels.csv:2: grade is none of 1, 0, -1 and blank"
    assert problems[1].startswith("labels.csv:4: the split is none of train, training")
    with pytest.raises(UserError, match=r"names 'Effusions', which is no column\. Did you mean 'Effusion'"):
        read(tmp_path, labels="labels.csv", label_columns=["Effusions"])


def test_patients_across_splits_stop_the_run(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "labels.csv").write_text("AccessionNumber,Effusion,split\n007,1,train\n008,1,test\n009,1,val\n")
    with pytest.raises(UserError, match="in both test and train"):
        read(tmp_path, labels="labels.csv")


def test_headers_that_contradict_each_other(tmp_path: Path) -> None:
    three(tmp_path)
    film(tmp_path, "c", "1.3", "P1")
    film(tmp_path, "d", "", "P1", SeriesInstanceUID="1.7")
    film(tmp_path, "e", "1.4", "", PatientSex="F")
    (tmp_path / "f").write_bytes((tmp_path / "e").read_bytes()[:-20].replace(b"CS\x02\x00F ", b"CS\x02\x00M "))
    (tmp_path / "note.txt").write_text("no image")
    studies, problems, _ = read(tmp_path)
    assert [(study.study_id, study.patient_id) for study in studies] == [("1.1", "P1"), ("1.2", "P1")]
    assert sorted(problem.split(":")[0] for problem in problems) == ["b", "c", "d", "e", "f"]
    assert "b: The files of the examination name several patients" in problems
    assert "e: Several files that differ have one SOPInstanceUID; none is kept" in problems


def test_series_of_ct_become_volumes_and_one_kind_must_be_chosen(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "ct").mkdir()
    volume = abdomen_volume(0, 0, 32)
    ids = {"StudyInstanceUID": "1.1", "PatientID": "P1", "AccessionNumber": "007"}
    for place, (_, data) in enumerate(ct_series(volume, "1.5", **ids)):
        (tmp_path / "ct" / f"{31 - place:03d}").write_bytes(data)
    scout = radiograph_file(
        PIXELS, "1.8", Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.6"
    )
    (tmp_path / "ct" / "scout").write_bytes(scout)
    (tmp_path / "labels.csv").write_text("AccessionNumber,Effusion\n007,1\n")
    with pytest.raises(UserError, match=r"several kinds \(CR: 3, CT: 1\)"):
        read(tmp_path)
    (study,), problems, source = read(tmp_path, labels="labels.csv", modality="CT")
    assert (problems, source.kind, study.labels) == ([], "volume", {"Effusion": 1.0})
    (image,) = study.images
    assert (image.image_id, image.modality, image.files[0], len(image.files)) == ("1.5", "CT", "ct/031", 32)
    assert source.summary()["series of another kind (CR), left out"] == 3
    assert source.summary()["The file is a localiser: files left out"] == 1
    assert source.summary()["files that are no DICOM, passed over"] == 1  # labels.csv
    with pytest.raises(UserError, match="No MR: CR: 3, CT: 1"):
        read(tmp_path, modality="MR")


@pytest.mark.data
def test_a_real_segmentation_is_the_mask_of_its_series(tmp_path: Path, test_data: Path) -> None:
    root = tmp_path / "raw"
    shutil.copytree(test_data / "ct_series_abdomen_3slice", root)
    (study,), problems, _ = read(root)
    assert problems == []
    (mask,) = study.masks
    assert (mask.path, mask.values, mask.label.lower()) == ("liver_seg.dcm", (1,), "liver")
    assert mask.image_id == study.images[0].image_id
    shutil.copy(root / "liver_seg.dcm", root / "second.dcm")
    (study,), problems, source = read(root)
    assert study.masks == (mask,)
    assert problems == ["second.dcm: segment 1: the segment has the name of another one of its series"]
    assert source.kind == "volume"


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no DICOM radiograph or volume"):
        read(tmp_path)


def test_the_command_with_both_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from medvlp.cli import main

    three(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("AccessionNumber,Effusion\n007,1\n008,0\n009,\n")
    Path("reports.csv").write_text("AccessionNumber,report\n007,Jane Doe is well.\n008,b\n009,c\n")
    command = ["data", "prepare", "dicom_folder", "--root", "raw", "--labels", "labels.csv", "--reports", "reports.csv"]
    monkeypatch.setenv("MEDVLP_SALT", str(tmp_path / "salt"))
    monkeypatch.setattr("sys.argv", ["medvlp", *command, "--out", "store", "num_workers=1", "image.size=16"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None), capsys.readouterr()
    assert "table of labels: tied to files by the accession: AccessionNumber" in capsys.readouterr().err
    meta = json.loads(Path("store/store.json").read_text())
    assert meta["labels"] == ["Effusion"]
    kept = b"".join(path.read_bytes() for path in Path("store").rglob("*") if path.is_file())
    import pyarrow.parquet as pq

    rows = pq.read_table("store/studies.parquet").to_pylist()
    assert sorted(str(row["label:Effusion"]) for row in rows) == ["0.0", "1.0", "nan"]
    assert {row["report"] for row in rows} == {"[REMOVED] is well.", "b", "c"}
    kept += str(rows).encode()
    assert all(secret not in kept for secret in (b"Jane", b"Doe", b'"P1"', bytes(tmp_path)))
    monkeypatch.setattr("sys.argv", ["medvlp", *[w.replace("dicom_folder", "btcv") for w in command], "--out", "other"])
    with pytest.raises(SystemExit):
        main()
    assert "options.labels is no option of btcv" in capsys.readouterr().err

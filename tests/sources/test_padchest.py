"""PadChest: list cells, named faults, photometric interpretation and translations, by hand-written expectation."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.cards import load_card
from medvlp.types import Study

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
ROW = {
    "ImageID": "a.png",
    "ImageDir": "0",
    "StudyDate_DICOM": "20150622",
    "StudyID": "s1",
    "PatientID": "p1",
    "PatientBirth": "1930.0",
    "PatientSex_DICOM": "F",
    "Projection": "PA",
    "PhotometricInterpretation_DICOM": "MONOCHROME2",
    "ReportID": "7",
    "Report": "sin cambi .",
    "MethodLabel": "Physician",
    "Labels": "['pneumonia ', 'unchanged']",
    "LabelsLocalizationsBySentence": "[['pneumonia', 'loc basal'], ['normal']]",
    "labelCUIS": "['C0032285' 'C4273001' '' 'C0016542']",
}


def put(root: Path, *rows: dict[str, str], images: tuple[str, ...] = ("a.png",)) -> Path:
    with (root / TABLE).open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", *ROW])
        writer.writeheader()
        writer.writerows(ROW | row for row in rows)
    (root / "0").mkdir(exist_ok=True)
    for name in images:
        (root / "0" / name).touch()
    return root


def read(root: Path, **options: object) -> tuple[dict[str, Study], Source]:
    source = SOURCES.get("padchest")(root, options)
    return {study.study_id: study for study in source.studies()}, source


def present(study: Study) -> set[str]:
    return {name for name, value in study.labels.items() if value == 1}


def test_a_row_by_hand(tmp_path: Path) -> None:
    studies, source = read(put(tmp_path, {}))
    assert not source.problems
    study = studies["s1"]
    assert present(study) == {"pneumonia", "unchanged"}
    assert set(study.labels.values()) == {0.0, 1.0}
    assert (study.age, study.sex, study.date, study.split, study.language) == (85.0, "F", "20150622", None, "es")
    assert study.report == "sin cambi ."
    # codes have no commas between them: a list parser would join them into one text
    assert study.attributes["label_cuis"] == "C0032285|C4273001|C0016542"
    assert study.attributes["method_label"] == "Physician"
    assert (study.images[0].image_id, study.images[0].path, study.images[0].view) == ("a", "0/a.png", "PA")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("['normal']", {"normal"}),
        ("['normal', 'unchanged']", {"normal", "unchanged"}),
        ("['normal', 'nodule']", {"nodule"}),
        ("['pseudonodule', 'soft tissue mass']", {"pseudonodule", "soft tissue mass"}),
        ("[' cardiomegaly', '', 'cardiomegaly']", {"cardiomegaly"}),
    ],
)
def test_labels_are_whole_terms(tmp_path: Path, cell: str, expected: set[str]) -> None:
    assert present(read(put(tmp_path, {"Labels": cell}))[0]["s1"]) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"Labels": ""}, "no label is given"),
        ({"Labels": "nan"}, "no label is given"),
        ({"Labels": "[]"}, "no label is given"),
        ({"Labels": "['nodul']"}, "unknown label 'nodul'. Did you mean 'nodule'?"),
        ({"Labels": "__import__('os')"}, "are no list"),
        ({"Labels": "[1]"}, "are no list"),
        ({"Projection": "EXCLUDE"}, "exclude the image"),
        ({"Projection": "X"}, "unknown projection 'X'"),
        ({"PatientID": ""}, "names no study or no patient"),
        ({"PhotometricInterpretation_DICOM": "MONOCHROME1"}, "nobody says whether its PNG is inverted"),
        ({"ImageID": load_card("padchest").adapter["corrupt"][0]}, "known to be broken"),
        ({"ImageID": load_card("padchest").adapter["missing"][0]}, "known to be missing"),
        ({"ImageID": "other.png"}, "row without image: other.png"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, str], reason: str) -> None:
    good = {"ImageID": "b.png", "StudyID": "s2"}
    images = ("b.png", *(["a.png"] if "ImageID" not in row else []))
    broken = [row["ImageID"]] if "broken" in reason else []
    studies, source = read(put(tmp_path, row, good, images=(*images, *broken)))
    assert list(studies) == ["s2"]
    assert len(source.problems) == 1
    assert reason in source.problems[0].reason


@pytest.mark.parametrize(
    ("cell", "fix"),
    [("nan", "Nothing to do"), ("['nodul']", "Correct the spelling"), ("[1]", "Download the table again")],
)
def test_the_next_step_is_one_that_helps(tmp_path: Path, cell: str, fix: str) -> None:
    problems = read(put(tmp_path, {"Labels": cell}))[1].problems
    assert [problem.fix.startswith(fix) for problem in problems] == [True]


def test_monochrome1_is_kept_only_on_request(tmp_path: Path) -> None:
    put(tmp_path, {"PhotometricInterpretation_DICOM": "MONOCHROME1"})
    study = read(tmp_path, monochrome1="keep")[0]["s1"]
    assert study.attributes["photometric_interpretation"] == "MONOCHROME1"


def test_images_of_a_study_must_agree(tmp_path: Path) -> None:
    lateral = {"ImageID": "b.png", "Projection": "L"}
    studies, _ = read(put(tmp_path, {}, lateral, images=("a.png", "b.png")))
    assert [image.view for image in studies["s1"].images] == ["PA", "LATERAL"]
    studies, source = read(put(tmp_path, {}, {**lateral, "Labels": "['normal']"}))
    assert not studies
    assert [problem.reason for problem in source.problems] == [
        "the rows of study s1 differ in Labels; none is kept"
    ] * 2


def test_impossible_ages_are_unknown(tmp_path: Path) -> None:
    studies, source = read(put(tmp_path, {"PatientBirth": "1830"}))
    assert studies["s1"].age is None
    assert source.counts["ages impossible, read as unknown"] == 1


def test_translations_from_a_file_or_a_column(tmp_path: Path) -> None:
    put(tmp_path, {}, {"ImageID": "b.png", "StudyID": "s2", "ReportID": "8"}, images=("a.png", "b.png"))
    with pytest.raises(UserError, match="English reports are missing"):
        read(tmp_path, language="en")
    (tmp_path / "reports_en.csv").write_text("ReportID,Report\n7,No change.\n")
    studies, source = read(tmp_path, language="en")
    assert (studies["s1"].report, studies["s1"].language) == ("No change.", "en")
    assert (studies["s2"].report, studies["s2"].language) == (None, None)  # never the Spanish one in its place
    assert source.counts["studies without a report"] == 1
    (tmp_path / "reports_en.csv").write_text("ReportID,Report\n7.0,No change.\n")
    with pytest.raises(UserError, match=r"the ids of reports_en\.csv are others"):
        read(tmp_path, language="en")
    assert read(tmp_path, language="en", translation="MethodLabel")[0]["s2"].report == "Physician"
    with pytest.raises(UserError, match="no column 'English'"):
        read(tmp_path, language="en", translation="English")

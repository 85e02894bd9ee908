"""VinDr-CXR: three readers, agreements, boxes and spellings, by hand-written expectation."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.cards import load_card
from medvlp.types import UNKNOWN_PATIENT, Study

CARD = load_card("vindr_cxr")
NORMAL = "No finding"
Reading = tuple[str, str, set[str]]
READINGS: list[Reading] = [
    ("aa", "R1", {"Cardiomegaly", "Nodule/Mass"}),
    ("aa", "R8", {"Cardiomegaly", "Other diseases"}),
    ("aa", "R9", {"Cardiomegaly", "Other diseases"}),
    ("bb", "R1", {NORMAL}),
    ("bb", "R2", {NORMAL}),
    ("bb", "R3", {"ILD"}),
    ("cc", "R1", {NORMAL}),
    ("cc", "R2", {NORMAL}),
    ("cc", "R3", {NORMAL}),
]
BOXES = [
    ["aa", "R9", "Cardiomegaly", "691.0", "1375.5", "1653.0", "1831.0"],
    ["aa", "R1", "Nodule/Mass", "10", "20", "30", "50"],
    ["bb", "R1", NORMAL, "", "", "", ""],
]


def put(root: Path, name: str, rows: list[list[str]]) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    with (root / "annotations" / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def cells(found: set[str]) -> list[str]:
    return [str(int(name in found)) for name in CARD.label_columns]


def made(root: Path, readings: list[Reading] = READINGS, boxes: list[list[str]] = BOXES) -> Path:
    rows = [[image, reader, *cells(found)] for image, reader, found in readings]
    put(root, "image_labels_train", [["image_id", "rad_id", *CARD.label_columns], *rows])
    names = ["Other disease" if name == "Other diseases" else name for name in CARD.label_columns]
    put(root, "image_labels_test", [["image_id", *names], ["dd", *cells({"Other diseases"})]])
    header = ["image_id", "rad_id", "class_name", "x_min", "y_min", "x_max", "y_max"]
    put(root, "annotations_train", [header, *boxes])
    put(root, "annotations_test", [["", "image_id", *header[2:]], ["0", "dd", "Other disease", "1", "2", "4", "8"]])
    for name in ("train/aa", "train/bb", "train/cc", "test/dd"):
        path = root / f"{name}.dicom"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return root


def read(root: Path, **options: object) -> tuple[dict[str, Study], Source]:
    source = SOURCES.get("vindr_cxr")(root, options)
    return {study.study_id: study for study in source.studies()}, source


def present(study: Study) -> set[str]:
    return {name for name, value in study.labels.items() if value == 1}


def uncertain(study: Study) -> set[str]:
    return {name for name, value in study.labels.items() if value == -1}


@pytest.mark.parametrize(
    ("agreement", "aa", "bb", "doubtful"),
    [
        ("majority", {"Cardiomegaly", "Other diseases"}, {NORMAL}, [set(), set()]),
        ("union", {"Cardiomegaly", "Other diseases", "Nodule/Mass"}, {"ILD"}, [set(), set()]),
        ("all", {"Cardiomegaly"}, set(), [{"Other diseases", "Nodule/Mass"}, {NORMAL, "ILD"}]),
    ],
)
def test_agreements(tmp_path: Path, agreement: str, aa: set[str], bb: set[str], doubtful: list[set[str]]) -> None:
    studies, source = read(made(tmp_path), agreement=agreement)
    assert not source.problems
    assert list(studies) == ["aa", "bb", "cc", "dd"]
    assert [present(studies["aa"]), present(studies["bb"])] == [aa, bb]
    assert [uncertain(studies["aa"]), uncertain(studies["bb"])] == doubtful
    assert present(studies["cc"]) == {NORMAL}
    assert present(studies["dd"]) == {"Other diseases"}  # the test table spells it otherwise
    assert tuple(studies["dd"].labels) == CARD.label_columns
    votes = studies["aa"].values
    assert (votes["votes Cardiomegaly"], votes["votes Other diseases"], votes["votes Edema"]) == (3, 2, 0)
    assert studies["bb"].values["votes No finding"] == 2
    assert not studies["dd"].values
    assert set(votes) == set(CARD.measurements)
    assert {study.patient_id for study in studies.values()} == {UNKNOWN_PATIENT}
    assert [study.split for study in studies.values()] == ["train", "train", "train", "test"]


def test_boxes_keep_their_reader_and_become_width_and_height(tmp_path: Path) -> None:
    studies, source = read(made(tmp_path))
    first, second = studies["aa"].boxes
    assert (first.label, first.x, first.y, first.width, first.height) == ("Cardiomegaly", 691, 1375.5, 962, 455.5)
    assert (first.reader, second.reader, second.label) == ("R9", "R1", "Nodule/Mass")
    (box,) = studies["dd"].boxes
    assert (box.label, box.reader, box.width, box.height) == ("Other diseases", None, 3, 6)
    assert studies["bb"].boxes == ()
    assert source.counts["train boxes"] == 2


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (["aa", "R1", "ILD", "5", "5", "5", "9"], "box without an area"),
        (["aa", "R1", "ILD", "9", "5", "5", "9"], "box without an area"),
        (["aa", "R1", "ILD", "", "", "", ""], "box with a value that is no number"),
        (["aa", "R1", "ILD", "-1", "5", "5", "9"], "box outside the image"),
        (["aa", "R1", "Nodule", "1", "2", "3", "4"], "box of unknown label 'Nodule'"),
        (["zz", "R1", "ILD", "1", "2", "3", "4"], "box of an image that is not in image_labels_train.csv"),
        (BOXES[0], "stands twice"),
    ],
)
def test_bad_boxes_are_named(tmp_path: Path, box: list[str], reason: str) -> None:
    studies, source = read(made(tmp_path, boxes=[*BOXES, box]))
    assert len(studies) == 4
    assert len(studies["aa"].boxes) == 2
    assert len(source.problems) == 1
    assert reason in source.problems[0].reason
    assert source.problems[0].path == "annotations/annotations_train.csv:5"


@pytest.mark.parametrize(
    ("readings", "reason"),
    [
        (READINGS[1:], "2 readings in place of 3"),
        ([*READINGS, ("aa", "R4", set())], "4 readings in place of 3"),
        ([*READINGS, ("aa", "R1", {"ILD"})], "2 readings in place of 3"),
        ([("aa", "R1", {NORMAL, "ILD"}), *READINGS[1:]], "stands together with ILD"),
    ],
)
def test_bad_readings_leave_the_image_out(tmp_path: Path, readings: list[Reading], reason: str) -> None:
    studies, source = read(made(tmp_path, readings))
    assert list(studies) == ["bb", "cc", "dd"]
    assert any(reason in problem.reason for problem in source.problems)


def test_images_and_columns(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "train/aa.dicom").rename(tmp_path / "train/ee.dicom")
    studies, source = read(tmp_path)
    assert "aa" not in studies
    assert [problem.path for problem in source.problems] == ["train/ee.dicom", "annotations/image_labels_train.csv:2"]
    path = tmp_path / "annotations/image_labels_test.csv"
    path.write_text(path.read_text().replace("Other disease", "Something"))
    with pytest.raises(UserError, match="no column 'Other diseases'"):
        read(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="image_labels_test"):
        read(tmp_path)


def test_a_full_edition_has_three_rows_an_image(tmp_path: Path) -> None:
    source = SOURCES.get("vindr_cxr")(made(tmp_path))
    counts = {"train images": 3, "train rows": 10, "test images": 1}
    source.card = CARD.model_validate(CARD.resolved() | {"counts": counts})
    with pytest.raises(UserError, match="train rows: 9 found, 10 declared"):
        list(source.studies())

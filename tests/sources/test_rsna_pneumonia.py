"""The RSNA adapter on hand-written tables: repeats, contradictions, patients by the mapping, adjudication."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raw import put, read, reasons

from medvlp.errors import UserError
from medvlp.types import UNKNOWN_PATIENT

LABELS, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
ADJUDICATED = "pneumonia-challenge-annotations-adjudicated-kaggle_2018.json"
ROWS = ("a,264.0,152.0,213.0,379.0,1", "a,562.0,152.0,256.0,453.0,1", "b,,,,,0", "c,,,,,0")
CLASS_ROWS = ("a,Lung Opacity", "a,Lung Opacity", "b,No Lung Opacity / Not Normal", "c,Normal")


def small(
    root: Path,
    rows: tuple[str, ...] = ROWS,
    classes: tuple[str, ...] = CLASS_ROWS,
    names: str = "abc",
    more: Any = None,
) -> Path:
    put(root, [f"stage_2_train_images/{name}.dcm" for name in names] + ["stage_2_test_images/t.dcm"])
    put(root, {LABELS: "\n".join(["patientId,x,y,width,height,Target", *rows])})
    return put(root, {CLASSES: "\n".join(["patientId,class", *classes]), **(more or {})})


def mapped(**images: str) -> dict[str, str]:
    entries = [{"subset_img_id": key, "img_id": name, "StudyInstanceUID": f"1.{key}"} for key, name in images.items()]
    return {MAPPING: json.dumps(entries)}


def test_repeated_rows_of_both_tables_give_each_box_once(tmp_path: Path) -> None:
    studies, problems, source = read("rsna_pneumonia", small(tmp_path))
    assert problems == []
    assert [study.labels for study in studies.values()] == [
        {"Pneumonia": 1, "Normal": 0}, {"Pneumonia": 0, "Normal": 0}, {"Pneumonia": 0, "Normal": 1},
    ]  # fmt: skip
    boxes = [(box.x, box.y, box.width, box.height) for box in studies["a"].boxes]
    assert boxes == [(264, 152, 213, 379), (562, 152, 256, 453)]
    assert {study.patient_id for study in studies.values()} == {UNKNOWN_PATIENT}
    assert studies["b"].attributes == {"class": "No Lung Opacity / Not Normal"}
    assert source.summary()["edition"] == "subset: 3 of 26,684"
    assert source.summary()["images of stage_2_test_images left out"] == 1


def test_the_mapping_gives_the_patients_of_nih(tmp_path: Path) -> None:
    more = mapped(a="00000017_003.png", b="00000017_004.png", t="00000018_000.png")
    studies, problems, source = read("rsna_pneumonia", small(tmp_path, more=more), test_images=True)
    assert problems == []
    assert [study.patient_id for study in studies.values()] == ["17", "17", UNKNOWN_PATIENT, "18"]
    assert studies["a"].attributes["nih_image"] == "00000017_003.png"
    assert source.counts["images that the mapping file lacks"] == 1
    assert studies["t"].labels == {}


def test_a_mapping_that_contradicts_itself_leaves_the_patient_unknown(tmp_path: Path) -> None:
    entries = [{"subset_img_id": "a", "img_id": f"0000001{n}_000.png"} for n in (1, 2)]
    studies, problems, _ = read("rsna_pneumonia", small(tmp_path, more={MAPPING: json.dumps(entries)}))
    assert studies["a"].patient_id == UNKNOWN_PATIENT
    assert "two NIH images" in reasons(problems)["a"]


@pytest.mark.parametrize(
    ("rows", "classes", "reason"),
    [
        ((*ROWS, "b,1,2,3,4,1"), CLASS_ROWS, "Target is 0 and 1"),
        (("a,,,,,0", *ROWS[2:]), CLASS_ROWS, "Target 0 contradicts the class Lung Opacity"),
        ((*ROWS[:2], "b,1,2,3,4,0", ROWS[3]), CLASS_ROWS, "Target is 0, but there is a box"),
        (ROWS, (*CLASS_ROWS, "c,Lung Opacity"), "the class is Lung Opacity and Normal"),
        (ROWS, (*CLASS_ROWS[:3], "c,normal"), "the class is normal; exactly one of"),
    ],
)
def test_images_whose_rows_contradict_each_other_are_left_out(
    tmp_path: Path, rows: tuple[str, ...], classes: tuple[str, ...], reason: str
) -> None:
    studies, problems, _ = read("rsna_pneumonia", small(tmp_path, rows, classes))
    assert len(studies) == 2
    assert len(problems) == 1
    assert reason in problems[0].reason


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ("1,2,0,4", "without an area"),
        ("-1,2,3,4", "outside"),
        (",,,", "no number"),
        ("264,152,213,379", "the same box occurs twice"),
    ],
)
def test_bad_boxes_are_left_out_and_the_image_kept(tmp_path: Path, box: str, reason: str) -> None:
    studies, problems, _ = read("rsna_pneumonia", small(tmp_path, (*ROWS, f"a,{box},1")))
    assert [reason in problem.reason for problem in problems] == [True]
    assert len(studies["a"].boxes) == 2


def test_rows_without_image_and_images_without_row(tmp_path: Path) -> None:
    _, problems, _ = read("rsna_pneumonia", small(tmp_path, names="abd"))
    assert reasons(problems) == {
        "c": "row without image: c.dcm is not in stage_2_train_images",
        "d": "the image has no label",
    }


def test_a_study_of_two_images_gives_neither_its_adjudicated_label(tmp_path: Path) -> None:
    labels = [{"id": name, "name": name} for name in ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")]
    annotations = [{"StudyInstanceUID": uid, "labelId": "Normal", "data": None} for uid in ("1.a", "1.2", "")]
    content = {"labelGroups": [{"name": "Calculated", "labels": labels}], "datasets": [{"annotations": annotations}]}
    entries = [
        {"subset_img_id": name, "img_id": "00000017_003.png", "StudyInstanceUID": uid}
        for name, uid in (("a", "1.a"), ("b", "1.2"), ("c", "1.2"), ("t", ""))
    ]
    more = {MAPPING: json.dumps(entries), ADJUDICATED: json.dumps(content)}
    studies, problems, source = read("rsna_pneumonia", small(tmp_path, more=more), labels="adjudicated")
    assert list(studies) == ["a"]
    assert sum("unknown study" in problem.reason for problem in problems) == 2
    assert source.counts["images whose study is not theirs alone, without adjudicated labels"] == 3


def test_adjudicated_labels_take_the_calculated_group_only(tmp_path: Path) -> None:
    groups = [
        {"name": "Reader", "labels": [{"id": "R", "name": "Lung Opacity"}]},
        {"name": "Calculated", "labels": [
            {"id": "N", "name": "Normal"}, {"id": "M", "name": "No Lung Opacity / Not Normal"},
            {"id": "O", "name": "Lung Opacity"},
        ]},
    ]  # fmt: skip
    box = {"x": 10, "y": 20, "width": 30, "height": 40}
    annotations = [
        {"StudyInstanceUID": "1.a", "labelId": "N", "data": None},
        {"StudyInstanceUID": "1.a", "labelId": "R", "data": box},
        {"StudyInstanceUID": "1.b", "labelId": "M", "data": None},
        {"StudyInstanceUID": "1.b", "labelId": "O", "data": box},
        {"StudyInstanceUID": "1.t", "labelId": "O", "data": box},
        {"StudyInstanceUID": "1.x", "labelId": "O", "data": box},
    ]
    content = json.dumps({"labelGroups": groups, "datasets": [{"annotations": annotations}]})
    more = mapped(a="00000017_003.png", b="00000017_004.png", t="00000018_000.png")
    root = small(tmp_path, more={**more, ADJUDICATED: content})
    studies, problems, source = read("rsna_pneumonia", root, labels="adjudicated", test_images=True)
    assert {name: dict(study.labels) for name, study in studies.items()} == {
        "a": {"Pneumonia": 0, "Normal": 1}, "t": {"Pneumonia": 1, "Normal": 0},
    }  # fmt: skip
    assert [box.x for box in studies["t"].boxes] == [10]
    assert studies["a"].boxes == ()
    assert source.counts["annotations of single readers, left out"] == 1
    assert {problem.reason.split(":")[0] for problem in problems} == {
        "annotation of an unknown study",
        "the adjudicated classes contradict each other",
        "the image has no label",
    }
    (root / MAPPING).unlink()
    with pytest.raises(UserError, match=r"mappings_2018\.json is missing"):
        read("rsna_pneumonia", root, labels="adjudicated")

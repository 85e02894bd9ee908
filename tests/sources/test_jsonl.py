"""JSON Lines: every form of a field, and lines that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, Box, Study


def read(root: Path, *lines: object, **options: Any) -> tuple[list[Study], list[str], Source]:
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(b"")
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / "x.jsonl").write_text("\n".join([*texts, ""]))
    source = SOURCES.get("jsonl")(root, options)
    studies = list(source.studies())
    return studies, [f"{problem.path}: {problem.reason}" for problem in source.problems], source


def test_forms_of_a_line(tmp_path: Path) -> None:
    box = {"label": "Nodule", "x": 1, "y": 2.5, "width": 3, "height": 4}
    lines = [
        {"image": "a.png", "caption": "A nodule.", "labels": ["Nodule"], "boxes": box, "source": "web"},
        "",
        {"study_id": 7, "subject_id": 12, "findings": "Clear.", "impression": "Normal.", "split": "validation"},
        {"id": "z", "images": ["a.png", {"path": "./b.png", "view": "LL", "modality": "DX"}], "label": "Edema"},
        {"id": "n", "labels": {"Edema": 0, "Nodule": None, "Mass": -1.0}, "age": "061Y", "sex": "female"},
    ]
    (one, two, three, four), problems, source = read(tmp_path, *lines, modality="CR")
    assert problems == []
    assert (one.study_id, one.patient_id, one.report, one.labels) == (
        "a.png",
        UNKNOWN_PATIENT,
        "A nodule.",
        {"Nodule": 1.0},
    )
    assert one.boxes == (Box("a.png", "Nodule", 1.0, 2.5, 3.0, 4.0),)
    assert (two.study_id, two.patient_id, two.split) == ("7", "12", "val")
    assert two.report == "FINDINGS: Clear.\nIMPRESSION: Normal."
    assert [(i.path, i.view, i.modality) for i in three.images] == [("a.png", None, "CR"), ("b.png", "LATERAL", "DX")]
    assert str(four.labels) == "{'Edema': 0.0, 'Nodule': nan, 'Mass': -1.0}"
    assert (four.age, four.sex) == (61.0, "F")
    assert source.label_columns == ("Nodule", "Edema", "Mass")
    assert source.summary() == {"lines with the field source, not used": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "Jane Doe"', "the line is no JSON: Expecting ',' delimiter at column 18"),
        ([1], "the line is no JSON object"),
        ("[" * 100000, "the line is nested too deeply"),
        ({"text": "x"}, "the line has neither an id nor an image"),
        ({"image": "c.png"}, "the file of an image is missing"),
        ({"image": "../x/a.png"}, "the path of an image leaves the folder"),
        ({"image": "/etc/passwd"}, "the path of an image leaves the folder"),
        ({"images": ["a.png", "a.png"]}, "an image is named twice"),
        (
            {"images": [{"path": "a.png", "frame": 3}]},
            "an image is a path, or has path, view and modality; found frame",
        ),
        ({"image": "a.png", "path": "b.png"}, "image and path mean the same; give one of them"),
        ({"id": 1, "text": "x", "findings": "y"}, "the line has a text and sections of a report; give one of them"),
        ({"id": 1, "labels": {"Edema": 2}}, "the label Edema is none of 1, 0, -1 and null"),
        ({"id": 1, "labels": {"Edema": "yes"}}, "the label Edema is none of 1, 0, -1 and null"),
        ({"id": 1, "labels": [1]}, "labels are an object with 1, 0, -1 or null, or a list of names"),
        ({"id": 1, "patient": {"name": "Doe"}}, "patient is no text"),
        ({"id": 1, "split": "later"}, "the split is none of train"),
        ({"id": 1, "language": "Jane Doe"}, "language is no code"),
        ({"images": [{"path": "a.png", "modality": "of Doe"}]}, "modality is no code"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path: Path, line: object, reason: str) -> None:
    studies, (problem,), _ = read(tmp_path, {"id": "good"}, line)
    assert [study.study_id for study in studies] == ["good"]
    assert problem.startswith(f"x.jsonl:2: {reason}")
    assert "Doe" not in problem


def test_separators_of_lines_inside_a_text_end_no_line(tmp_path: Path) -> None:
    text = "Clear.\u2028No effusion.\x85Normal.\x0bEnd."
    (study,), problems, _ = read(tmp_path, json.dumps({"id": "a", "text": text}, ensure_ascii=False))
    assert (study.report, problems) == (text, [])


def test_the_name_of_a_patient_is_for_removal_alone(tmp_path: Path) -> None:
    (study,), problems, _ = read(tmp_path, {"id": "a", "text": "x", "patient_name": "Doe, Jane", "language": "de-AT"})
    assert (study.identifiers, study.language, problems) == (("Doe, Jane",), "de-AT", [])


def test_names_of_people_do_not_become_labels(tmp_path: Path) -> None:
    lines = [{"id": k, "labels": [f"Anna Berger {chr(65 + k)}"]} for k in range(24)]
    with pytest.raises(UserError, match="The labels do not look like classes: 24 different names"):
        read(tmp_path, *lines)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 0}, "box without an area"),
        ({"x": -1}, "box outside the image"),
        ({"x": "left"}, "box with a value that is no number"),
        ({"image": "c.png"}, "the image of a box is none of the line's"),
        ({"x2": 5}, "a box has label, x, y, width, height and perhaps image"),
    ],
)
def test_bad_boxes_leave_the_study(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    box = {"label": "Nodule", "x": 1, "y": 2, "width": 3, "height": 4}
    (study,), problems, _ = read(tmp_path, {"image": "a.png", "boxes": [box, {**box, **change}]})
    assert len(study.boxes) == 1
    assert problems == [f"x.jsonl:1: {reason}"]


def test_a_box_among_several_images_must_name_its_own(tmp_path: Path) -> None:
    box = {"label": "Nodule", "x": 1, "y": 2, "width": 3, "height": 4}
    line = {"id": 1, "images": ["a.png", "b.png"], "boxes": [box, {**box, "image": "b.png"}]}
    (study,), problems, _ = read(tmp_path, line)
    assert [item.image_id for item in study.boxes] == ["b.png"]
    assert problems == ["x.jsonl:1: the image of a box is none of the line's"]


def test_repeated_ids_and_patients_across_splits(tmp_path: Path) -> None:
    same, other = {"id": "a", "text": "x"}, {"id": "b", "text": "x"}
    studies, problems, _ = read(tmp_path, same, same, other, {**other, "text": "y"})
    assert [study.study_id for study in studies] == ["a"]
    assert problems == [
        "x.jsonl:2: duplicated id: lines 1, 2 agree; the first is kept",
        "x.jsonl:3: duplicated id: lines 3, 4 differ; none is kept",
        "x.jsonl:4: duplicated id: lines 3, 4 differ; none is kept",
    ]
    with pytest.raises(UserError, match="in both test and train"):
        read(tmp_path, {"id": 1, "patient": "p", "split": "train"}, {"id": 2, "patient": "p", "split": "test"})


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.jsonl file"):
        list(SOURCES.get("jsonl")(tmp_path).studies())

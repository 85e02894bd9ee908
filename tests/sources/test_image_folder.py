"""A folder of pictures: names that could mean several files, rows that disagree, classes by folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, Study


def pictures(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def read(root: Path, **options: Any) -> tuple[list[Study], list[str], Source]:
    source = SOURCES.get("image_folder")(root, options)
    studies = list(source.studies())
    return studies, [f"{problem.path}: {problem.reason}" for problem in source.problems], source


def test_names_in_every_spelling_and_what_columns_mean(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png", "a/2.png", "b/3.jpg", "b/4.jpeg")
    rows = ["path;patient;class;mild;severe;score;text", "a/1.png;P1;x|y;1;;2;clear", "C:\\data\\b\\2.png;P1;x;0;-1;3;"]
    (tmp_path / "list.csv").write_text("\n".join([*rows, "/data/3.jpg;;;;0;4;", "4;P2;y;NA;;5;sick", ""]))
    studies, problems, source = read(tmp_path, modality="US")
    assert problems == []
    assert source.label_columns == ("mild", "severe", "x", "y")
    assert [str(list(study.labels.values())) for study in studies] == [
        "[1.0, nan, 1.0, 1.0]", "[0.0, -1.0, 1.0, 0.0]", "[nan, 0.0, nan, nan]", "[nan, nan, 0.0, 1.0]"
    ]  # fmt: skip
    assert [study.patient_id for study in studies] == ["P1", "P1", UNKNOWN_PATIENT, "P2"]
    assert [study.report for study in studies] == ["clear", None, None, "sick"]
    assert studies[1].images[0].path == "a/2.png"
    assert studies[0].images[0].modality == "US"
    assert source.summary()["table: not used"] == "score"
    assert read(tmp_path, label_columns=["severe"])[2].label_columns == ("severe",)


def test_names_of_people_are_no_labels_and_go_out_of_the_report(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png")
    (tmp_path / "list.csv").write_text("image;Nachname;Vorname;text\n1.png;Berger;Anna;Frau Berger hustet\n")
    (study,), _, _ = read(tmp_path)
    assert (study.identifiers, study.labels) == (("Berger", "Anna"), {})


@pytest.mark.parametrize(
    ("cells", "expected", "unread"),
    [
        (("M", "F", "male"), ["M", "F", "M"], 0),
        (("H", "M", "mujer"), ["M", "F", "F"], 0),
        (("M", "M", "V"), ["F", "F", "M"], 0),
        (("m", "w", "weiblich"), ["M", "F", "F"], 0),
        (("m", "?", ""), ["M", None, None], 1),
    ],
)
def test_sexes_in_three_languages(tmp_path: Path, cells: tuple[str, ...], expected: list[str], unread: int) -> None:
    pictures(tmp_path, "0.png", "1.png", "2.png")
    rows = [f"{k}.png,{cell},{k}0 y" for k, cell in enumerate(cells)]
    (tmp_path / "list.csv").write_text("\n".join(["image,sex,age", *rows, ""]))
    studies, _, source = read(tmp_path)
    assert [study.sex for study in studies] == expected
    assert source.summary().get("cells of sex that cannot be read, unknown", 0) == unread
    assert "cells of age that cannot be read, unknown" not in source.summary()


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png", "b/1.png", "2.png", "3.png", "4.png", "5.png")
    rows = [
        "image,sick,split",
        "1.png,1,train",
        "2.png,1,train",
        "2.png,0,train",
        "3.png,1,",
        "3.png,1,",
        "9.png,1,test",
    ]
    (tmp_path / "list.csv").write_text("\n".join([*rows, "4.png,1,later", ""]))
    studies, problems, _ = read(tmp_path)
    assert [study.study_id for study in studies] == ["3.png"]
    assert problems == [
        "list.csv:2: the name could be 2 pictures; give their paths",
        "list.csv:7: there is no such picture",
        "list.csv:8: the split is none of train, training, val, valid, validate, validation, dev, test, testing",
        "5.png: the picture is not in the table",
        "a/1.png: the picture is not in the table",
        "b/1.png: the picture is not in the table",
        "list.csv:3: lines 3, 4 contradict each other; none is used",
        "list.csv:4: lines 3, 4 contradict each other; none is used",
        "list.csv:6: the picture is on a row before that says the same; the first is kept",
    ]


def test_pictures_of_one_study_are_joined_if_they_agree(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png", "2.png", "3.png", "4.png")
    rows = [
        "filename,study_id,patient,view,sick",
        "2.png,S1,P,PA,1",
        "1.png,S1,P,LL,1",
        "3.png,S2,P,,1",
        "4.png,S2,Q,,1",
    ]
    (tmp_path / "list.csv").write_text("\n".join([*rows, ""]))
    (study,), problems, _ = read(tmp_path)
    assert [(image.path, image.view) for image in study.images] == [("1.png", "LATERAL"), ("2.png", "PA")]
    assert problems == [f"list.csv:{line}: lines 4, 5 contradict each other; none is used" for line in (4, 5)]


def test_one_picture_with_two_views(tmp_path: Path) -> None:
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "list.csv").write_text("filename,view,sick\n1.png,PA,1\n1.png,AP,1\n2.png,PA,1\n")
    studies, problems, _ = read(tmp_path)
    assert [study.study_id for study in studies] == ["2.png"]
    assert problems == [f"list.csv:{line}: lines 2, 3 contradict each other; none is used" for line in (2, 3)]


def test_classes_by_folder(tmp_path: Path) -> None:
    pictures(tmp_path, "train/sick/1.png", "train/well/1.png", "valid/well/2.png", "test/3.png")
    pictures(tmp_path, "train/.x/._1.png", ".thumbs/1.png")
    studies, problems, source = read(tmp_path)
    assert source.label_columns == ("sick", "well")
    assert [(study.study_id, study.labels["sick"], study.split) for study in studies] == [
        ("train/sick/1.png", 1.0, "train"), ("train/well/1.png", 0.0, "train"), ("valid/well/2.png", 0.0, "val")
    ]  # fmt: skip
    assert problems == ["test/3.png: the picture is not in a folder of its class"]
    pictures(tmp_path / "other", "sick/1.png", "test/1.png")
    studies, _, source = read(tmp_path / "other")
    assert (source.label_columns, {study.split for study in studies}) == (("sick", "test"), {None})
    pictures(tmp_path / "flat", "1.png")
    assert [study.labels for study in read(tmp_path / "flat")[0]] == [{}]


def test_folders_of_patients_are_not_taken_for_classes(tmp_path: Path) -> None:
    people = [f"Berger_Anna_{chr(65 + k)}" for k in range(24)]
    pictures(tmp_path, *[f"{name}/{view}.png" for name in people for view in ("pa", "lat")])
    with pytest.raises(UserError, match="names of the folders do not look like classes: 24 different names") as refused:
        read(tmp_path)
    assert "Berger" not in str(refused.value)
    studies, problems, source = read(tmp_path, label_columns=[people[0]])
    assert (len(studies), len(problems), source.label_columns) == (2, 46, (people[0],))
    pictures(tmp_path / "numbers", *[f"numbers/12.03.1950/{k}.png" for k in range(9)], "numbers/covid19/1.png")
    with pytest.raises(UserError, match="1 of them hold numbers"):
        read(tmp_path / "numbers" / "numbers")
    pictures(tmp_path / "fine", *[f"covid{k}/{n}.png" for k in range(24) for n in range(3)])
    assert len(read(tmp_path / "fine")[0]) == 72


def test_what_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image in PNG or JPEG files"):
        read(tmp_path)
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "a.csv").write_text("image,patient,split\n1.png,P,train\n2.png,P,test\n")
    with pytest.raises(UserError, match="in both test and train"):
        read(tmp_path)
    (tmp_path / "b.csv").write_text("who\n1.png\n")
    with pytest.raises(UserError, match=r"several \*\.csv in the folder: a\.csv, b\.csv"):
        read(tmp_path)
    with pytest.raises(UserError, match="no column of pictures"):
        read(tmp_path, table="b.csv")


def test_volumes_are_found_by_the_modality_and_by_names_with_two_suffixes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii", "c.mhd", "c.raw", "d.png", "e.csv.gz"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.csv").write_text("image,label\na,sick\nb,well\nc.mhd,well\n")
    source = SOURCES.get("image_folder")(tmp_path, {"modality": "CT"})
    found = list(source.studies())
    assert source.kind == "volume"
    assert [study.images[0].path for study in found] == ["a.nii.gz", "b.nii", "c.mhd"]
    assert {study.images[0].modality for study in found} == {"CT"}
    assert not source.problems

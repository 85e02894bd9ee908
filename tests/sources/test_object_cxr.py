"""The Object-CXR adapter: shapes, both spellings of the name column, and a test table without names."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw import put, read, reasons

from medvlp.errors import UserError


def small(root: Path, train: list[str], **tables: str) -> Path:
    put(root, ["train/00001.jpg", "train/00002.jpg", "dev/08001.jpg"])
    put(
        root,
        {"train.csv": "\n".join(["image_name,annotation", *train]), "dev.csv": "image_path,annotation\n08001.jpg,\n"},
    )
    return put(root, {f"{name}.csv": text for name, text in tables.items()})


def test_shapes_are_kept_as_they_were_drawn(tmp_path: Path) -> None:
    root = small(tmp_path, ["00001.jpg,0 10 20 40 60;1 1 2 5 8;2 5 5 15 5 10 25", "00002.jpg,"])
    studies, problems, source = read("object_cxr", root)
    assert problems == []
    rectangle, ellipse, polygon = studies["00001"].boxes
    assert (rectangle.shape, rectangle.x, rectangle.y, rectangle.width, rectangle.height) == (
        "rectangle",
        10,
        20,
        30,
        40,
    )
    assert (ellipse.shape, ellipse.x, ellipse.y, ellipse.width, ellipse.height) == ("ellipse", 1, 2, 4, 6)
    assert (polygon.shape, polygon.x, polygon.y, polygon.width, polygon.height) == ("polygon", 5, 5, 10, 20)
    assert polygon.points == ((5, 5), (15, 5), (10, 25))
    assert ellipse.points == rectangle.points == ()
    assert [(study.split, study.labels["Foreign object"]) for study in studies.values()] == [
        ("train", 1), ("train", 0), ("val", 0),
    ]  # fmt: skip
    assert source.summary()["boxes"] == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3 1 2 3 4", "object of unknown type 3"),
        ("0 10 20 10 60", "without an area"),
        ("0 40 60 10 20", "without an area"),
        ("1 1 2 3", "ellipse with 3 coordinates"),
        ("2 1 2 3 4", "polygon with 4 coordinates"),
        ("0 1 2 x 4", "no number"),
        ("0 -5 2 3 4", "outside"),
    ],
)
def test_a_broken_object_is_left_out_and_the_label_stays(tmp_path: Path, text: str, reason: str) -> None:
    studies, problems, _ = read("object_cxr", small(tmp_path, [f"00001.jpg,{text};1 1 2 5 8", "00002.jpg,"]))
    assert reason in reasons(problems)["00001"]
    assert [box.shape for box in studies["00001"].boxes] == ["ellipse"]
    assert studies["00001"].labels["Foreign object"] == 1


def test_a_table_without_names_is_matched_by_order(tmp_path: Path) -> None:
    root = small(tmp_path, ["00001.jpg,", "00002.jpg,"], test="annotation\n\n0 1 2 3 4\n\n")
    put(root, [f"test/0900{n}.jpg" for n in (3, 1, 2)])
    studies, problems, source = read("object_cxr", root)
    assert problems == []
    assert [len(studies[f"0900{n}"].boxes) for n in (1, 2, 3)] == [0, 1, 0]
    assert source.counts["rows of test.csv matched to images by order"] == 3
    (root / "test/09003.jpg").unlink()
    with pytest.raises(UserError, match="3 rows for 2 images"):
        read("object_cxr", root)


def test_missing_tables_rows_and_images(tmp_path: Path) -> None:
    root = put(small(tmp_path, ["00001.jpg,", "00003.jpg,"]), ["test/09001.jpg"])
    studies, problems, source = read("object_cxr", root)
    assert list(studies) == ["00001", "08001"]
    assert reasons(problems) == {
        "00003": "row without image: 00003 is not in train/",
        "00002": "the image is not in train.csv",
    }
    assert source.counts["images of test/ without a table, left out"] == 1
    (root / "train.csv").write_text("picture,marks\n1,\n")
    with pytest.raises(UserError, match=r"no column of names \(image_name or image_path\); it has: picture, marks"):
        read("object_cxr", root)
    (root / "train.csv").unlink()
    with pytest.raises(UserError, match=r"train.csv is missing, but there are 2 images in train/"):
        read("object_cxr", root)


@pytest.mark.parametrize("table", ["train", "test"])
def test_names_under_another_heading_are_never_taken_for_an_order(tmp_path: Path, table: str) -> None:
    """The rows are shuffled: matched by order, every label would be that of another image."""
    root = put(small(tmp_path, ["00001.jpg,", "00002.jpg,"]), ["test/00001.jpg", "test/00002.jpg"])
    put(root, {f"{table}.csv": "file,annotation\n00002.jpg,0 1 2 3 4\n00001.jpg,\n"})
    with pytest.raises(UserError, match=rf"{table}.csv has no column of names .* it has: file, annotation"):
        read("object_cxr", root)


def test_train_needs_names_even_where_the_number_of_rows_fits(tmp_path: Path) -> None:
    root = put(small(tmp_path, ["00001.jpg,"]), {"train.csv": "annotation\n0 1 2 3 4\n\n"})
    with pytest.raises(UserError, match=r"Only test.csv can do without"):
        read("object_cxr", root)


def test_row_numbers_do_not_keep_a_test_table_from_being_matched(tmp_path: Path) -> None:
    root = put(small(tmp_path, ["00001.jpg,", "00002.jpg,"], test=",annotation\n0,\n1,0 1 2 3 4\n"), ["test/09002.jpg"])
    studies, problems, _ = read("object_cxr", put(root, ["test/09001.jpg"]))
    assert problems == []
    assert [len(studies[name].boxes) for name in ("09001", "09002")] == [0, 1]

"""Traps of TotalSegmentator: two versions, a byte order mark, cases that lack the file of a structure."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.cards import load_card
from medvlp.types import Study

CARD = load_card("totalsegmentator")
HEADER = "image_id;age;gender;institute;study_type;split"


def write(root: Path, rows: list[str], structures: tuple[str, ...], cases: tuple[str, ...] = ("s0001",)) -> None:
    (root / "meta.csv").write_text("\ufeff" + "\n".join([HEADER, *rows, ""]))
    for case in cases:
        (root / case / "segmentations").mkdir(parents=True)
        (root / case / "ct.nii.gz").write_bytes(b"")
        for structure in structures:
            (root / case / "segmentations" / f"{structure}.nii.gz").write_bytes(b"")


def read(root: Path, version: str = "v2") -> tuple[list[Study], list[str]]:
    source = SOURCES.get("totalsegmentator")(root, {"version": version})
    return list(source.studies()), [f"{problem.path}: {problem.reason}" for problem in source.problems]


def test_both_lists_have_the_official_numbers() -> None:
    assert len(CARD.structures) == len(set(CARD.structures)) == 117
    first = CARD.adapter["v1"]
    assert len(first) == len(set(first)) == 104
    numbers = {2: "kidney_right", 10: "lung_upper_lobe_left", 27: "vertebrae_L5", 51: "heart", 65: "iliac_artery_left"}
    numbers |= {79: "spinal_cord", 91: "skull", 103: "rib_left_12", 115: "rib_right_12", 117: "costal_cartilages"}
    assert {value: CARD.structures[value - 1] for value in numbers} == numbers
    numbers = {7: "aorta", 44: "heart_myocardium", 57: "colon", 93: "face", 104: "urinary_bladder"}
    assert {value: first[value - 1] for value in numbers} == numbers


def test_a_row_and_its_masks_in_the_order_of_painting(tmp_path: Path) -> None:
    write(tmp_path, ["s0001;61;m;A;ct thorax;train"], CARD.structures)
    (tmp_path / "s0001" / "segmentations" / "._liver.nii.gz").write_bytes(b"")
    (study,), problems = read(tmp_path)
    assert problems == []
    assert (study.age, study.sex, study.site, study.split) == (61.0, "M", "A", "train")
    assert study.attributes == {"study_type": "ct thorax"}
    assert [mask.label for mask in study.masks] == list(CARD.structures)
    assert study.masks[4].path == "s0001/segmentations/liver.nii.gz"


def test_a_table_with_other_separators_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["s0001;61;m;A;ct thorax;train"], CARD.structures)
    text = (tmp_path / "meta.csv").read_text()
    (tmp_path / "meta.csv").write_text(text.replace(";", ","))
    with pytest.raises(UserError, match="has no column 'image_id'"):
        read(tmp_path)


def test_the_other_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["s0001;61;m;A;ct thorax;train"], tuple(CARD.adapter["v1"]))
    with pytest.raises(UserError, match="structures of version 1") as caught:
        read(tmp_path)
    assert caught.value.fix == "Set options.version=v1."
    assert len(read(tmp_path, "v1")[0][0].masks) == 104


def test_an_absent_structure_is_not_read_as_background(tmp_path: Path) -> None:
    write(tmp_path, ["s0001;61;m;A;ct thorax;train"], CARD.structures[1:])
    (study,), problems = read(tmp_path)
    assert study.masks == ()
    assert problems == ["s0001/segmentations: 1 of 117 structures have no file (the first: spleen)"]


def test_rows_and_folders_that_do_not_match(tmp_path: Path) -> None:
    rows = [
        "s0001;61;m;A;ct thorax;train",
        "s0002;50;f;A;ct thorax;test",
        "s0003;;;;;training",
        "s0001;61;m;A;ct thorax;val",
    ]
    write(tmp_path, rows, CARD.structures, ("s0001", "s0003", "s0004"))
    studies, problems = read(tmp_path)
    assert studies == []
    assert problems == [
        "meta.csv:2: duplicated id: s0001 is on lines 2, 5, which differ; none is kept",
        "meta.csv:5: duplicated id: s0001 is on lines 2, 5, which differ; none is kept",
        "s0004: the folder is not in meta.csv",
        "meta.csv:3: row without volume: there is no s0002",
        "meta.csv:4: unknown split 'training'",
    ]


def test_a_file_of_one_structure_holds_one_value(tmp_path: Path) -> None:
    write(tmp_path, ["s0001;61;m;A;ct thorax;train"], CARD.structures)
    (study,), _ = read(tmp_path)
    assert study.images[0].facts is not None
    assert study.images[0].facts.label_values == (1,)  # a label map of all structures is no liver

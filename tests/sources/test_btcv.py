"""Traps of BTCV: gaps in the numbers, the common validation cases, hidden test labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.types import Study


def read(root: Path, **options: str) -> tuple[list[Study], list[str], Source]:
    source = SOURCES.get("btcv")(root, options)
    return list(source.studies()), [f"{problem.path}: {problem.reason}" for problem in source.problems], source


def write(root: Path, training: list[int], testing: list[int]) -> None:
    for folder, name, numbers in (
        ("Training", "img", training),
        ("Training", "label", training),
        ("Testing", "img", testing),
    ):
        (root / folder / name).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            (root / folder / name / f"{name}{number:04d}.nii.gz").write_bytes(b"")


def test_a_full_edition_and_its_splits(tmp_path: Path) -> None:
    write(tmp_path, [*range(1, 11), *range(21, 41)], [*range(61, 81)])
    studies, problems, source = read(tmp_path)
    assert problems == []
    assert source.summary()["edition"] == "full: 50"
    splits = {study.study_id: study.split for study in studies}
    assert [number for number, split in splits.items() if split == "val"] == [f"00{n}" for n in range(35, 41)]
    assert [list(splits.values()).count(split) for split in ("train", "val", "test")] == [24, 6, 20]
    assert {study.split for study in read(tmp_path, val="none")[0]} == {"train", "test"}
    by_value = {mask.values[0]: mask.label for mask in studies[0].masks}
    assert (by_value[2], by_value[3], by_value[9], by_value[10]) == (
        "right kidney", "left kidney", "inferior vena cava", "portal and splenic veins"
    )  # fmt: skip
    assert all(not study.masks for study in studies if study.split == "test")


def test_numbers_that_the_data_set_does_not_have(tmp_path: Path) -> None:
    write(tmp_path, [1, 15], [40])
    (tmp_path / "Training" / "label" / "label0001.nii.gz").unlink()
    (tmp_path / "Training" / "label" / "label0002.nii.gz").write_bytes(b"")
    studies, problems, _ = read(tmp_path)
    assert [study.study_id for study in studies] == ["0001"]
    assert studies[0].masks == ()
    assert problems == [
        "Training/label/label0002.nii.gz: a label map without volume",
        "Training/img/img0001.nii.gz: the volume has no label map",
        "Training/img/img0015.nii.gz: the number is none of the training cases",
        "Testing/img/img0040.nii.gz: the number is none of the testing cases",
    ]


def test_an_empty_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no volume"):
        read(tmp_path)

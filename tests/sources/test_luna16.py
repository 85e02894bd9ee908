"""LUNA16: LPS to RAS against SimpleITK, nodules that are wrong, folds, masks and patients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.phantom.layouts._metaimage import metaimage
from medvlp.types import Lesion, Mask, Study

AFFINE = np.array([[0, 0, 0.75, -100.5], [0, 0.5, 0, 20.25], [2.0, 0, 0, -300], [0, 0, 0, 1]])
ANNOTATIONS = [
    "seriesuid,coordX,coordY,coordZ,diameter_mm",
    "1.2.1,-50.1,10.2,-80.3,4.2",
    "1.2.9,1,2,3,4",
]


def write(root: Path, annotations: list[str] = ANNOTATIONS, inner: str = "") -> Path:
    for name, fold in (("1.2.1", "subset0"), ("1.2.2", "subset9")):
        folder = root / fold / (fold if inner else "")
        folder.mkdir(parents=True)
        (folder / f"{name}.mhd").touch()
        (folder / f"{name}.raw").touch()
    (root / "CSVFILES").mkdir()
    (root / "CSVFILES/annotations.csv").write_text("\n".join(annotations))
    return root


def read(root: Path, **options: Any) -> tuple[list[Study], Source]:
    source = SOURCES.get("luna16")(root, options)
    return list(source.studies()), source


@pytest.mark.parametrize("inner", ["", "nested"])
def test_nodules_and_folds(tmp_path: Path, inner: str) -> None:
    (one, two), source = read(write(tmp_path, inner=inner))
    assert one.lesions == (Lesion("1.2.1", "nodule", (50.1, -10.2, -80.3), 4.2),)
    assert (one.labels, two.labels, two.lesions) == ({"nodule": 1.0}, {"nodule": 0.0}, ())
    assert (one.subsets, two.subsets, one.split, one.patient_id) == (("subset0",), ("subset9",), None, "unknown")
    facts = source.summary()
    assert facts["rows of annotations.csv whose scan is not there"] == 1
    assert facts["scans without a mask of the lungs"] == 2
    assert facts["edition"] == "subset: 2 of 888"
    assert not source.problems


def test_a_nodule_lies_in_the_voxel_that_simpleitk_finds(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    root = write(tmp_path)
    array = np.zeros((5, 6, 7), np.int16)
    array[1, 2, 3] = 900
    header, data = metaimage(array, AFFINE, "1.2.1.raw")
    (root / "subset0/1.2.1.mhd").write_bytes(header)
    (root / "subset0/1.2.1.raw").write_bytes(data)
    image = sitk.ReadImage(str(root / "subset0/1.2.1.mhd"))
    k, j, i = (int(place[0]) for place in np.nonzero(sitk.GetArrayFromImage(image)))
    x, y, z = image.TransformIndexToPhysicalPoint((i, j, k))
    (root / "CSVFILES/annotations.csv").write_text(f"{ANNOTATIONS[0]}\n1.2.1,{x},{y},{z},5")
    (one, _), _ = read(root)
    assert np.allclose(one.lesions[0].centre_mm, (AFFINE @ [1, 2, 3, 1])[:3])


@pytest.mark.parametrize(
    "row", ["1.2.2,1,2,3,-1", "1.2.2,1,2,3,0", "1.2.2,1,2,3,", "1.2.2,x,2,3,4", "1.2.2,1,2,inf,4", "1.2.2,1,2,nan,4"]
)
def test_a_broken_nodule_is_no_lesion_but_the_scan_is_not_without_one(tmp_path: Path, row: str) -> None:
    (_, two), source = read(write(tmp_path, [*ANNOTATIONS, row]))
    assert two.lesions == ()
    assert two.labels == {"nodule": 1.0}
    assert [problem.path for problem in source.problems] == ["annotations.csv:4"]


def test_candidates(tmp_path: Path) -> None:
    root = write(tmp_path)
    with pytest.raises(UserError, match=r"candidates_V2.csv is missing"):
        read(root, candidates="v2")
    (root / "candidates_V2.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,class\n1.2.1,1,2,3,0\n1.2.2,4,5,6,1\n1.2.2,7,8,9,2"
    )
    (one, two), source = read(root, candidates="v2")
    assert one.lesions[1] == Lesion("1.2.1", "candidate_other", (-1.0, -2.0, 3.0))
    assert two.lesions == (Lesion("1.2.2", "candidate_nodule", (-4.0, -5.0, 6.0)),)
    assert two.labels == {"nodule": 0.0}
    assert source.problems[0].reason == "candidate of the class '2'"


def test_masks_and_missing_data_files(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "seg-lungs-LUNA16").mkdir()
    for name in ("1.2.1.mhd", "1.2.1.zraw", "1.2.2.mhd"):
        (root / "seg-lungs-LUNA16" / name).touch()
    (one, two), _ = read(root)
    path = "seg-lungs-LUNA16/1.2.1.mhd"
    assert one.masks == (Mask("1.2.1", "lungs", path, (3, 4)), Mask("1.2.1", "trachea", path, (5,)))
    assert two.masks == ()
    (root / "subset0/1.2.1.raw").unlink()
    (only,), source = read(root)
    assert only.study_id == "1.2.2"
    assert "neither .raw nor .zraw" in source.problems[0].reason


def test_a_scan_in_two_subsets_keeps_the_first(tmp_path: Path) -> None:
    root = write(tmp_path)
    for suffix in (".mhd", ".raw"):
        (root / f"subset9/1.2.1{suffix}").touch()
    (one, _), source = read(root)
    assert one.subsets == ("subset0",)
    assert source.problems[0].path == "subset9/1.2.1.mhd"


def test_patients_come_from_a_named_table(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "tcia.csv").write_text("Subject ID,Series UID\nLIDC-IDRI-0001,1.2.1\nLIDC-IDRI-0001,1.2.2\n")
    studies, source = read(root, patients="tcia.csv")
    assert [study.patient_id for study in studies] == ["LIDC-IDRI-0001"] * 2
    assert source.summary()["patients in several subsets"] == 1
    (root / "tcia.csv").write_text("seriesuid,patient_id\n1.2.1,a\n1.2.1,b\n")
    with pytest.raises(UserError, match="two patients for one series"):
        read(root, patients="tcia.csv")
    (root / "tcia.csv").write_text("uid,patient\n1.2.1,a\n")
    with pytest.raises(UserError, match="lacks the columns"):
        read(root, patients="tcia.csv")


@pytest.mark.parametrize("name", ["1.2.2.mhd", "", "subset9/1.2.2"])
def test_a_nodule_of_no_series_stops_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"Line 4: '{name}' is no series UID"):
        read(write(tmp_path, [*ANNOTATIONS, f"{name},1,2,3,4"]))


def test_a_nodule_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    studies, source = read(write(tmp_path, [*ANNOTATIONS, ANNOTATIONS[1]]))
    assert len(studies[0].lesions) == 1
    assert [problem.reason for problem in source.problems] == ["the row repeats line 2; the first is used"]

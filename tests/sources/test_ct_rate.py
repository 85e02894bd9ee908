"""CT-RATE: the version is named, never guessed; geometry agrees with SimpleITK; every known fault is caught."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.cards import load_card
from medvlp.types import Study

Tables = dict[str, dict[str, dict[str, str]]]
META = {
    "RescaleSlope": "1",
    "RescaleIntercept": "-1024",
    "XYSpacing": "[0.75, 0.75]",
    "ZSpacing": "1.5",
    "ImagePositionPatient": "[-150.5, -120.25, 80]",
    "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
    "GantryDetectorTilt": "0",
    "PatientAge": "050Y",
    "PatientSex": "F",
    "StudyDate": "20200102",
    "Manufacturer": "Philips",
    "ConvolutionKernel": "YA",
}
REPORT = {
    "ClinicalInformation_EN": "Not given.",
    "Technique_EN": "Non-contrast.",
    "Findings_EN": "Heart is normal.",
    "Impressions_EN": "not given",
}
FILES = {
    "metadata": "metadata/validation_metadata.csv",
    "reports": "radiology_text_reports/validation_reports.csv",
    "labels": "multi_abnormality_labels/valid_predicted_labels.csv",
}


def tables(*names: str) -> Tables:
    labels = dict.fromkeys(load_card("ct_rate").labels, "0") | {"Lung nodule": "1"}
    rows = {"metadata": META, "reports": REPORT, "labels": labels}
    return {table: {name: dict(row) for name in names} for table, row in rows.items()}


def write(root: Path, made: Tables, folder: str = "valid", no_chest: str = "") -> Path:
    for name in made["labels"]:
        path = root / "dataset" / folder / name.rsplit("_", 2)[0] / name.rsplit("_", 1)[0] / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for table, rows in made.items():
        path = root / "dataset" / FILES[table]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["VolumeName", *next(iter(rows.values()))])
            writer.writeheader()
            writer.writerows({"VolumeName": f"{name}.nii.gz", **row} for name, row in rows.items())
    (root / "dataset/metadata/no_chest_valid.txt").write_text(no_chest)
    return root


def read(root: Path, version: str = "v1", **options: Any) -> tuple[list[Study], Source]:
    source = SOURCES.get("ct_rate")(root, {"version": version, **options})
    return list(source.studies()), source


def test_the_version_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"options.version must be given; one of v1, v2"):
        SOURCES.get("ct_rate")(tmp_path)


@pytest.mark.parametrize(("version", "folder", "other"), [("v1", "valid_fixed", "v2"), ("v2", "valid", "v1")])
def test_folders_of_the_other_version_stop_the_run(tmp_path: Path, version: str, folder: str, other: str) -> None:
    write(tmp_path, tables("valid_1_a_1"), folder)
    with pytest.raises(UserError, match=f"version {other} .dataset/{folder}., but options.version is {version}"):
        read(tmp_path, version)


def test_v2_gets_neither_scale_nor_geometry(tmp_path: Path) -> None:
    ((study,), _) = read(write(tmp_path, tables("valid_1_a_1"), "valid_fixed"), "v2")
    facts = study.images[0].facts
    assert facts is not None
    assert (facts.intensity, facts.slope, facts.intercept, facts.affine) == ("hu", None, None, None)


def test_v1_has_the_size_of_the_table_where_it_gives_one(tmp_path: Path) -> None:
    made = tables("valid_1_a_1", "valid_2_a_1")
    for row in made["metadata"].values():
        row |= {"Rows": "512", "Columns": "768", "NumberofSlices": "301.0"}
    made["metadata"]["valid_2_a_1"]["Rows"] = ""
    studies, source = read(write(tmp_path, made))
    assert [study.images[0].facts.size for study in studies] == [(768, 512, 301), None]  # type: ignore[union-attr]
    assert source.summary()["volumes whose size the table does not give"] == 1


def test_dates_that_a_table_of_reals_holds(tmp_path: Path) -> None:
    made = tables("valid_1_a_1", "valid_2_a_1")
    made["metadata"]["valid_1_a_1"]["StudyDate"] = "20200102.0"
    made["metadata"]["valid_2_a_1"]["StudyDate"] = "20200102.5"
    studies, _ = read(write(tmp_path, made))
    assert [study.date for study in studies] == ["20200102", None]


def test_v1_geometry_equals_that_of_simpleitk(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    made = tables("valid_1_a_1")
    across, down = [0.8, 0.6, 0.0], [-0.6, 0.8, 0.0]
    made["metadata"]["valid_1_a_1"] |= {"ImageOrientationPatient": str(across + down), "RescaleIntercept": "-8192"}
    ((study,), _) = read(write(tmp_path, made))
    facts = study.images[0].facts
    assert facts is not None
    assert facts.affine is not None
    assert (facts.slope, facts.intercept) == (1.0, -8192.0)
    image = sitk.Image(8, 8, 8, sitk.sitkInt16)
    image.SetOrigin((-150.5, -120.25, 80))
    image.SetSpacing((0.75, 0.75, 1.5))
    image.SetDirection(np.stack([across, down, np.cross(across, down)], axis=1).ravel().tolist())
    for index in ((0, 0, 0), (7, 0, 0), (0, 5, 0), (1, 2, 6)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        assert np.allclose(np.array(facts.affine) @ [*index, 1], [-x, -y, z, 1])


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"RescaleSlope": ""}, "slope '' and intercept '-1024' give no HU"),
        ({"RescaleIntercept": "nan"}, "give no HU"),
        ({"XYSpacing": "[0.75, 0.5]"}, "nothing says which is which"),
        ({"XYSpacing": "0.75"}, "no list of 2 numbers"),
        ({"ZSpacing": "0"}, "voxels of"),
        ({"ZSpacing": "nan"}, "voxels of"),
        ({"ImagePositionPatient": ""}, "no list of 3 numbers"),
        ({"ImageOrientationPatient": "[1, 0, 0, 0, 0.5, 0]"}, "right angles"),
        ({"ImageOrientationPatient": "[1, 0, 0, 1, 0, 0]"}, "right angles"),
        ({"GantryDetectorTilt": "12.5"}, "gantry tilt 12.5"),
    ],
)
def test_v1_invents_no_geometry(tmp_path: Path, cells: dict[str, str], reason: str) -> None:
    made = tables("valid_1_a_1", "valid_1_a_2")
    made["metadata"]["valid_1_a_2"] |= cells
    (study,), source = read(write(tmp_path, made))
    assert [image.image_id for image in study.images] == ["valid_1_a_1"]
    assert len(source.problems) == 1
    assert reason in source.problems[0].reason


def test_one_study_per_scan_in_the_order_of_numbers(tmp_path: Path) -> None:
    names = ("valid_10_a_1", "valid_2_b_1", "valid_2_a_10", "valid_2_a_9", "valid_2_aa_1")
    studies, source = read(write(tmp_path, tables(*names)))
    assert [study.study_id for study in studies] == ["valid_2_a", "valid_2_b", "valid_2_aa", "valid_10_a"]
    assert [image.image_id for image in studies[0].images] == ["valid_2_a_9", "valid_2_a_10"]
    assert {study.patient_id for study in studies} == {"valid_2", "valid_10"}
    assert source.summary()["edition"] == "subset: 5 of 50,188"
    assert source.summary()["split train: no folder, left out"] == 1
    first = studies[0]
    assert first.report == "TECHNIQUE: Non-contrast.\nFINDINGS: Heart is normal."
    assert (first.age, first.sex, first.date, first.split) == (50.0, "F", "20200102", "test")
    assert list(first.labels) == list(source.card.labels)
    assert [name for name, value in first.labels.items() if value == 1] == ["Lung nodule"]
    studies, source = read(tmp_path, reconstructions="first")
    assert [image.image_id for image in studies[0].images] == ["valid_2_a_9"]
    assert source.summary()["reconstructions left out: not the first"] == 1


@pytest.mark.parametrize("line", ["valid_1_a_2.nii.gz", "valid_1_a_2", "a/b/valid_1_a_2.nii.gz"])
def test_no_chest_lists_hold_names_or_paths(tmp_path: Path, line: str) -> None:
    (study,), source = read(write(tmp_path, tables("valid_1_a_1", "valid_1_a_2"), no_chest=f"{line}\n\n"))
    assert [image.image_id for image in study.images] == ["valid_1_a_1"]
    assert source.summary()["volumes left out: on a no_chest list"] == 1
    assert not source.problems


def drop(table: str) -> Callable[[Path, Tables], None]:
    return lambda root, made: made[table].pop("valid_1_a_2") and None


def remove_file(root: Path, made: Tables) -> None:
    (root / "dataset/valid/valid_1/valid_1_a/valid_1_a_2.nii.gz").unlink()


def misplace_file(root: Path, made: Tables) -> None:
    folder = root / "dataset/valid/valid_1"
    (folder / "valid_1_b").mkdir()
    (folder / "valid_1_a/valid_1_a_2.nii.gz").rename(folder / "valid_1_b/valid_1_a_2.nii.gz")


def strange_label(root: Path, made: Tables) -> None:
    made["labels"]["valid_1_a_2"]["Emphysema"] = "2"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop("metadata"), "no (or no unambiguous) row in validation_metadata.csv"),
        (drop("reports"), "row in validation_reports.csv"),
        (drop("labels"), "row in valid_predicted_labels.csv"),
        (remove_file, "row without volume"),
        (misplace_file, "folder of another scan"),
        (strange_label, "a label is 2"),
    ],
)
def test_bad_volumes_are_named(tmp_path: Path, change: Callable[[Path, Tables], None], reason: str) -> None:
    made = tables("valid_1_a_1", "valid_1_a_2")
    write(tmp_path, made)
    change(tmp_path, made)
    for table, rows in made.items():
        write(tmp_path / "again", {**tables(*made["labels"]), table: rows})
        (tmp_path / "again/dataset" / FILES[table]).replace(tmp_path / "dataset" / FILES[table])
    (study,), source = read(tmp_path)
    assert [image.image_id for image in study.images] == ["valid_1_a_1"]
    assert [problem.study_id for problem in source.problems] == ["valid_1_a_2"]
    assert reason in source.problems[0].reason


def test_contradicting_reconstructions_keep_no_scan(tmp_path: Path) -> None:
    made = tables("valid_1_a_1", "valid_1_a_2", "valid_2_a_1")
    made["reports"]["valid_1_a_2"]["Findings_EN"] = "Something else."
    studies, source = read(write(tmp_path, made))
    assert [study.study_id for study in studies] == ["valid_2_a"]
    assert "different reports or labels" in source.problems[0].reason


def test_unusable_volumes_are_refused(tmp_path: Path) -> None:
    made = tables("train_1267_a_3", "train_1267_a_4")
    root = write(tmp_path, made, "train")
    for table, name in (("metadata", "train_metadata"), ("reports", "train_reports")):
        path = root / "dataset" / FILES[table]
        path.rename(path.with_name(f"{name}.csv"))
    folder = root / "dataset/multi_abnormality_labels"
    (folder / "valid_predicted_labels.csv").rename(folder / "train_predicted_labels.csv")
    (root / "dataset/metadata/no_chest_valid.txt").rename(root / "dataset/metadata/no_chest_train.txt")
    (study,), source = read(root)
    assert [image.image_id for image in study.images] == ["train_1267_a_3"]
    assert "unusable" in source.problems[0].reason


def test_missing_lists_and_columns_stop_the_run(tmp_path: Path) -> None:
    root = write(tmp_path, tables("valid_1_a_1"))
    (root / "dataset/metadata/no_chest_valid.txt").unlink()
    with pytest.raises(UserError, match=r"no_chest_valid.txt is missing"):
        read(root)
    table = root / "dataset" / FILES["metadata"]
    table.write_text(table.read_text().replace("RescaleIntercept", "Intercept"))
    (root / "dataset/metadata/no_chest_valid.txt").touch()
    with pytest.raises(UserError, match="no column 'RescaleIntercept'"):
        read(root)


def test_rows_of_volumes_that_are_not_there_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path, tables("valid_1_a_1", "valid_9_a_1"))
    (root / "dataset/valid/valid_9/valid_9_a/valid_9_a_1.nii.gz").unlink()
    path = root / "dataset" / FILES["metadata"]
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "valid_9" not in line))
    _, source = read(root)
    assert source.counts["rows of validation_reports.csv without a volume"] == 1
    assert source.counts["rows of valid_predicted_labels.csv without a volume"] == 1

"""RAD-ChestCT: findings over locations, the sixteen without the copied column, geometry that nobody invents."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.cards import load_card
from medvlp.types import Study

FINDINGS = load_card("rad_chestct").labels
SUBSETS = {"trn": "imgtrain", "val": "imgvalid_a", "tst": "imgtest_c"}
TABLES = {"trn": "imgtrain", "val": "imgvalid", "tst": "imgtest"}
COLUMNS = [f"{finding}*{location}" for finding in FINDINGS for location in ("heart", "left_upper")]


class Made:
    """Three volumes of three patients; tests change the tables before they are written."""

    def __init__(self) -> None:
        self.names = ["trn00001", "val00002", "tst00003"]
        self.patients = {name: f"mrn{number}" for number, name in enumerate(self.names)}
        self.subsets = {name: SUBSETS[name[:3]] for name in self.names}
        self.spacing = dict.fromkeys(self.names, "[0.8, 0.8, 0.8]")
        self.present: dict[str, dict[str, str]] = {name: {} for name in self.names}
        self.columns = list(COLUMNS)
        self.files = list(self.names)

    def write(self, root: Path) -> Path:
        for name in self.files:
            (root / f"{name}.npz").touch()
        table(root / "Summary_3630.csv", ["MRN_DEID", "NoteAcc_DEID", "Set_Assigned", "Subset_Assigned"],
              [[self.patients[name], name, "set", self.subsets[name]] for name in self.names])  # fmt: skip
        table(root / "CT_Scan_Metadata_Complete_35747.csv", ["NoteAcc_DEID", "MRN_DEID", "final_spacing"],
              [[name, self.patients[name], self.spacing[name]] for name in self.spacing])  # fmt: skip
        for start, prefix in TABLES.items():
            rows = [
                [name, *(self.present[name].get(column, "0.0") for column in self.columns)]
                for name in self.present
                if name.startswith(start)
            ]
            table(root / f"{prefix}_Abnormality_and_Location_Labels.csv", ["NoteAcc_DEID", *self.columns], rows)
        return root


def table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read(root: Path, **options: Any) -> tuple[dict[str, Study], Source]:
    source = SOURCES.get("rad_chestct")(root, options)
    return {study.study_id: study for study in source.studies()}, source


def test_a_finding_is_present_where_any_location_has_it(tmp_path: Path) -> None:
    made = Made()
    made.present["trn00001"] = {"nodule*left_upper": "1.0", "mass*heart": "1", "cyst*heart": "", "clip*heart": "0"}
    studies, source = read(made.write(tmp_path))
    first = studies["trn00001"]
    assert {label for label, value in first.labels.items() if value == 1} == {"nodule", "mass"}
    assert {label for label, value in first.labels.items() if math.isnan(value)} == {"cyst"}
    assert list(first.labels) == list(source.card.labels)
    assert len(first.labels) == 84
    assert [(study.split, study.patient_id) for study in studies.values()] == [
        ("train", "mrn0"), ("test", "mrn2"), ("val", "mrn1")
    ]  # fmt: skip
    assert studies["tst00003"].subsets == ("set", "imgtest_c")
    assert not source.problems


def test_the_sixteen_findings_are_made_from_the_84(tmp_path: Path) -> None:
    made = Made()
    made.present["trn00001"] = {"pleural_effusion*heart": "1.0", "pacemaker_or_defib*heart": "1.0"}
    made.present["val00002"] = {"pericardial_effusion*heart": "1.0", "staple*left_upper": "1.0"}
    made.present["tst00003"] = {"nodulegr1cm*heart": "1.0", "bronchial_wall_thickening*heart": "1.0"}
    studies, source = read(made.write(tmp_path), labels=16)
    present = {name: {label for label, value in study.labels.items() if value == 1} for name, study in studies.items()}
    assert present == {
        "trn00001": {"Pleural effusion"},
        "val00002": {"Pericardial effusion", "Medical material"},
        "tst00003": {"Peribronchial thickening"},
    }
    assert source.card.label_columns == tuple(studies["trn00001"].labels)
    ct_rate = [label for label in load_card("ct_rate").labels if label != "Mosaic attenuation pattern"]
    merged = ["Calcification" if "calcification" in label else label for label in ct_rate]
    assert list(source.card.labels) == list(dict.fromkeys(merged))


def test_axes_run_towards_inferior_posterior_and_left(tmp_path: Path) -> None:
    made = Made()
    made.spacing["trn00001"] = "0.75"
    studies, _ = read(made.write(tmp_path))
    facts = studies["trn00001"].images[0].facts
    assert facts is not None
    assert facts.slope is None
    column, row, place = 1, 2, 4
    right, anterior, superior = (np.array(facts.affine) @ [column, row, place, 1])[:3]
    assert (right, anterior, superior) == (-0.75, -1.5, -3.0)


@pytest.mark.parametrize("cell", ["", "[0.8, 0.8, 0.7]", "[0.8, 0.8]", "0", "unknown", "-0.8"])
def test_a_volume_without_a_distance_is_left_out(tmp_path: Path, cell: str) -> None:
    made = Made()
    made.spacing["trn00001"] = cell
    studies, source = read(made.write(tmp_path))
    assert "trn00001" not in studies
    assert [problem.study_id for problem in source.problems] == ["trn00001"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda made: made.files.remove("trn00001"), "row without volume"),
        (lambda made: made.spacing.pop("trn00001"), "no (or no unambiguous) row in CT_Scan"),
        (lambda made: made.present.pop("trn00001"), "row in imgtrain_Abnormality"),
        (lambda made: made.subsets.update(trn00001="imgtest_a"), "do not go together"),
        (lambda made: made.present["trn00001"].update({"mass*heart": "-1"}), "neither 1 nor 0"),
        (lambda made: made.files.append("trn00009"), "not in Summary"),
    ],
)
def test_bad_volumes_are_named(tmp_path: Path, change: Any, reason: str) -> None:
    made = Made()
    change(made)
    _, source = read(made.write(tmp_path))
    assert any(reason in problem.reason for problem in source.problems)
    assert {problem.study_id for problem in source.problems} <= {"trn00001", "trn00009"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.columns.append("nodul*heart"), "unknown finding 'nodul'. Did you mean 'nodule'"),
        (lambda made: made.columns.__setitem__(slice(0, 2), []), "no column of air_trapping"),
        (lambda made: made.patients.update(trn00001="mrn9", tst00003="mrn9"), "in both test and train"),
    ],
)
def test_what_stops_the_run(tmp_path: Path, change: Any, message: str) -> None:
    made = Made()
    change(made)
    with pytest.raises(UserError, match=message):
        read(made.write(tmp_path))


def test_repeated_label_rows(tmp_path: Path) -> None:
    root = Made().write(tmp_path)
    path = root / "imgtrain_Abnormality_and_Location_Labels.csv"
    header, row = path.read_text().splitlines()
    path.write_text("\n".join([header, row, row]))
    studies, source = read(root)
    assert "trn00001" in studies
    assert "agree; the first is kept" in source.problems[0].reason
    path.write_text("\n".join([header, row, row.replace("0.0", "1.0", 1)]))
    studies, source = read(root)
    assert "trn00001" not in studies
    assert "differ; none is kept" in source.problems[0].reason


def test_a_patient_that_differs_between_the_tables_leaves_the_volume_out(tmp_path: Path) -> None:
    root = Made().write(tmp_path)
    path = root / "CT_Scan_Metadata_Complete_35747.csv"
    path.write_text(path.read_text().replace("trn00001,mrn0", "trn00001,mrn7"))
    studies, source = read(root)
    assert "trn00001" not in studies
    assert "another patient" in source.problems[0].reason


def test_labels_come_from_the_table_of_the_split(tmp_path: Path) -> None:
    made = Made()
    root = made.write(tmp_path)
    train, test = (root / f"{TABLES[start]}_Abnormality_and_Location_Labels.csv" for start in ("trn", "tst"))
    test.write_text(test.read_text() + train.read_text().splitlines()[1].replace("0.0", "1.0") + "\n")
    assert set(read(root)[0]["trn00001"].labels.values()) == {0.0}


def test_a_volume_without_a_patient_is_left_out(tmp_path: Path) -> None:
    made = Made()
    made.patients["trn00001"] = ""
    studies, source = read(made.write(tmp_path))
    assert list(studies) == ["tst00003", "val00002"]
    assert "no patient" in source.problems[0].reason

"""CheXpert and CheXpert Plus: their traps, by hand-written expectation."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.cards import load_card
from medvlp.types import Study

LABELS = load_card("chexpert").labels
HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
BATCH = "CheXpert-v1.0 batch 1 (validate & csv)"
PLUS = "df_chexpert_plus_240401.csv"


def put(path: Path, rows: list[list[str]] | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        if isinstance(rows, str):
            file.write(rows)
        else:
            csv.writer(file).writerows(rows)


def row(path: str, *facts: str, **labels: str) -> list[str]:
    return [path, *facts, *(labels.get(name.replace(" ", "_"), "") for name in LABELS)]


def read(root: Path, name: str = "chexpert", **options: object) -> tuple[dict[str, Study], Source]:
    source = SOURCES.get(name)(root, options)
    return {study.study_id: study for study in source.studies()}, source


def full(root: Path, extra: list[list[str]] | None = None) -> Path:
    """The full edition as its batches unpack: paths in the tables are none of those on the disk."""
    train = [
        HEADER,
        row("CheXpert-v1.0/train/patient00002/study2/view1_frontal.jpg", "Female", "87", "Frontal", "AP",
            Lung_Opacity="-1.0", Lung_Lesion="1.0", Edema="0.0"),
        row("CheXpert-v1.0/train/patient00002/study2/view2_lateral.jpg", "Female", "87", "Lateral", "",
            Lung_Opacity="-1.0", Lung_Lesion="1.0", Edema="0.0"),
        row("CheXpert-v1.0/train/patient00002/study10/view1_frontal.jpg", "Unknown", "0", "Frontal", "LL"),
        *(extra or []),
    ]  # fmt: skip
    put(root / BATCH / "train.csv", train)
    put(root / BATCH / "valid.csv", [HEADER, row("CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg", "Male",
                                                 "50", "Frontal", "PA", No_Finding="1.0")])  # fmt: skip
    for name in ("study2/view1_frontal", "study2/view2_lateral", "study10/view1_frontal"):
        put(root / f"CheXpert-v1.0 batch 2 (train 1)/patient00002/{name}.jpg", "")
    put(root / BATCH / "valid/patient64541/study1/view1_frontal.jpg", "")
    return root


def test_batches_of_the_full_edition(tmp_path: Path) -> None:
    studies, source = read(full(tmp_path))
    assert not source.problems
    assert list(studies) == ["patient00002_study2", "patient00002_study10", "patient64541_study1"]
    two, ten, valid = studies.values()
    assert [image.path for image in two.images] == [
        "CheXpert-v1.0 batch 2 (train 1)/patient00002/study2/view1_frontal.jpg",
        "CheXpert-v1.0 batch 2 (train 1)/patient00002/study2/view2_lateral.jpg",
    ]
    assert [image.view for image in two.images] == ["AP", "LATERAL"]
    assert (two.age, two.sex, two.split, two.patient_id) == (87.0, "F", "train", "patient00002")
    assert (ten.age, ten.sex, ten.images[0].view) == (None, None, None)
    assert source.counts["ages of 0, read as unknown"] == 1
    assert source.counts["frontal view LL, read as unknown"] == 1
    assert (valid.split, valid.labels["No Finding"]) == ("val", 1.0)
    assert source.summary()["edition"] == "subset: 3 of 223,414"


def test_opacity_stands_before_lesion_and_columns_go_by_name(tmp_path: Path) -> None:
    labels = read(full(tmp_path))[0]["patient00002_study2"].labels
    assert list(labels)[3:5] == ["Lung Opacity", "Lung Lesion"]
    assert (labels["Lung Opacity"], labels["Lung Lesion"], labels["Edema"]) == (-1.0, 1.0, 0.0)
    assert math.isnan(labels["Fracture"])
    path = tmp_path / BATCH / "train.csv"
    with path.open(newline="") as file:
        rows = [[cells[0], *reversed(cells[1:])] for cells in csv.reader(file)]
    put(path, rows)
    again = read(tmp_path)[0]["patient00002_study2"].labels
    assert repr(again) == repr(labels)


def test_test_labels_name_one_image_and_no_demographics(tmp_path: Path) -> None:
    full(tmp_path)
    put(tmp_path / "groundtruth.csv", [["Path", *LABELS], ["test/patient64741/study1/view1_frontal.jpg", *["0"] * 14]])
    for view in ("view1_frontal", "view2_lateral"):
        put(tmp_path / f"test/patient64741/study1/{view}.jpg", "")
    studies, source = read(tmp_path)
    study = studies["patient64741_study1"]
    assert (study.split, study.age, study.sex, len(study.images)) == ("test", None, None, 1)
    assert study.images[0].view is None
    assert set(study.labels.values()) == {0.0}
    assert [problem.path for problem in source.problems] == ["test/patient64741/study1/view2_lateral.jpg"]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (
            row("CheXpert-v1.0/train/patient00002/study2/view3_frontal.jpg", "", "", "Frontal", "AP"),
            "row without image",
        ),
        (row("CheXpert-v1.0/valid/patient00002/study3/view1_frontal.jpg", "", "", "Frontal", "AP"), "is not in train/"),
        (row("CheXpert-v1.0/train/patient00002/study3/view1_frontal.jpg", "", "", "", "", Edema="2"), "a label is 2"),
        (row("CheXpert-v1.0/train/view1_frontal.jpg", "", "", "", ""), r"is no patient*/study*/view*"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, extra: list[str], reason: str) -> None:
    studies, source = read(full(tmp_path, [extra]))
    assert len(studies) == 3
    assert len(source.problems) == 1
    assert reason in source.problems[0].reason


def test_a_study_whose_rows_differ_in_labels_is_left_out(tmp_path: Path) -> None:
    again = row("CheXpert-v1.0/train/patient00002/study10/view2_lateral.jpg", "", "", "Lateral", "", Edema="1.0")
    full(tmp_path, [again])
    put(tmp_path / "CheXpert-v1.0 batch 2 (train 1)/patient00002/study10/view2_lateral.jpg", "")
    studies, source = read(tmp_path)
    assert "patient00002_study10" not in studies
    assert [problem.reason for problem in source.problems] == [
        "the rows of patient00002_study10 have different labels; none is kept"
    ] * 2


def test_two_editions_side_by_side_and_missing_tables_stop_the_run(tmp_path: Path) -> None:
    full(tmp_path)
    with pytest.raises(UserError, match=r"train_cheXbert\.csv, the table of the train images, is missing"):
        read(tmp_path, labels="chexbert")
    put(tmp_path / "CheXpert-v1.0-small/train.csv", [HEADER])
    with pytest.raises(UserError, match="2 tables of the same images"):
        read(tmp_path)


def test_a_patient_in_two_splits_stops_the_run(tmp_path: Path) -> None:
    full(tmp_path, [row("CheXpert-v1.0/train/patient64541/study2/view1_frontal.jpg", "", "", "Frontal", "AP")])
    put(tmp_path / "CheXpert-v1.0 batch 2 (train 1)/patient64541/study2/view1_frontal.jpg", "")
    with pytest.raises(UserError, match="both train and val"):
        read(tmp_path)


def plus(root: Path, rows: list[dict[str, str]], lines: list[object]) -> Path:
    names = ["path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "section_narrative", "section_findings"]
    names += ["section_impression", "section_accession_number", "race", "recent_bmi", "age", "sex", "split"]
    given = {"frontal_lateral": "Frontal", "ap_pa": "PA", "deid_patient_id": "patient00007", "split": "train"}
    put(root / PLUS, [names, *([(given | own).get(name, "") for name in names] for own in rows)])
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    put(root / "chexbert_labels/report_fixed.json", text + "\n")
    for own in rows:
        put(root / "PNG/PNG" / own["path_to_image"].replace(".jpg", ".png"), "")
    return root


IMAGE = "train/patient00007/study5/view1_frontal.jpg"
OTHER = "train/patient00007/study5/view2_lateral.jpg"
NULLS = dict.fromkeys(LABELS)


def test_chexpert_plus_json_lines_and_sections(tmp_path: Path) -> None:
    cells = {"section_impression": "1. Edema.", "section_accession_number": "SECRET1", "race": "Asian", "age": "41"}
    rows = [
        {"path_to_image": IMAGE, **cells, "recent_bmi": "24.5"},
        {"path_to_image": OTHER, **cells, "frontal_lateral": "Lateral", "ap_pa": "", "recent_bmi": "25"},
        {"path_to_image": "train/patient00007/study6/view1_frontal.jpg", "section_narrative": "One view."},
    ]
    lines = [{"path_to_image": rows[k]["path_to_image"], **NULLS, "Edema": 1.0, "Fracture": -1.0} for k in (0, 1)]
    studies, source = read(plus(tmp_path, rows, lines), "chexpert_plus")
    assert not source.problems
    five, six = studies.values()
    assert [image.path for image in five.images] == [
        "PNG/PNG/train/patient00007/study5/view1_frontal.png",
        "PNG/PNG/train/patient00007/study5/view2_lateral.png",
    ]
    assert five.report == "IMPRESSION: 1. Edema."
    assert six.report == "One view."
    assert (five.labels["Edema"], five.labels["Fracture"]) == (1.0, -1.0)
    assert math.isnan(five.labels["Cardiomegaly"])
    assert five.attributes == {"race": "Asian"}
    assert math.isnan(five.values["recent_bmi"])  # its two rows differ
    assert source.counts["images without a line of labels"] == 1
    assert source.counts["rows of split train"] == 3
    assert all(math.isnan(value) for value in six.labels.values())


@pytest.mark.parametrize(
    ("row", "line", "reason", "kept"),
    [
        ({"deid_patient_id": "patient00008"}, {}, "deid_patient_id says patient00008", 0),
        ({"split": "test"}, {}, "unknown split 'test'", 0),
        ({}, "[no json", "no labels of an image (JSONDecodeError", 1),
        ({}, {"Edema": 3}, "a label is 3", 1),
        ({}, {"path_to_image": IMAGE, "Edema": 0}, "differ from those of an earlier line", 1),
    ],
)
def test_chexpert_plus_bad_rows_and_lines(
    tmp_path: Path, row: dict[str, str], line: dict[str, object] | str, reason: str, kept: int
) -> None:
    first = {"path_to_image": IMAGE, **NULLS, "Edema": 1}
    second = line if isinstance(line, str) else {"path_to_image": OTHER, **NULLS, **line}
    studies, source = read(plus(tmp_path, [{"path_to_image": IMAGE, **row}], [first, second]), "chexpert_plus")
    assert len(studies) == kept
    assert len(source.problems) == 1
    assert reason in source.problems[0].reason
    if "earlier line" in reason:
        assert math.isnan(studies["patient00007_study5"].labels["Edema"])


@pytest.mark.parametrize("lines", [["[{}]"], []])
def test_chexpert_plus_without_a_readable_label_stops(tmp_path: Path, lines: list[object]) -> None:
    plus(tmp_path, [{"path_to_image": IMAGE}], lines)
    with pytest.raises(UserError, match=r"No line of chexbert_labels/report_fixed\.json"):
        read(tmp_path, "chexpert_plus")
    assert list(read(tmp_path, "chexpert_plus", labels="none")[0]) == ["patient00007_study5"]


def test_chexpert_plus_sizes_of_splits_that_nobody_documents_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plus(tmp_path, [{"path_to_image": IMAGE, "split": "valid"}], [{"path_to_image": IMAGE, **NULLS}])
    source = SOURCES.get("chexpert_plus")(tmp_path)
    monkeypatch.setitem(source.card.counts, "images", 1)
    assert [study.split for study in source.studies()] == ["val"]
    assert source.summary()["edition"] == "full: 1"
    assert source.counts["rows of split valid"] == 1


def test_chexpert_plus_labels_of_other_images_stop(tmp_path: Path) -> None:
    plus(tmp_path, [{"path_to_image": IMAGE}], [{"path_to_image": OTHER, **NULLS}])
    with pytest.raises(UserError, match="No image of df_chexpert_plus_240401"):
        read(tmp_path, "chexpert_plus")


def test_chexpert_plus_takes_nan_as_not_mentioned(tmp_path: Path) -> None:
    line = json.dumps({"path_to_image": IMAGE, **dict.fromkeys(LABELS, math.nan), "Edema": 1.0})
    assert "NaN" in line  # Python writes and reads this, JSON knows only null
    studies, source = read(plus(tmp_path, [{"path_to_image": IMAGE}], [line]), "chexpert_plus")
    assert not source.problems
    labels = studies["patient00007_study5"].labels
    assert labels["Edema"] == 1
    assert math.isnan(labels["Fracture"])


def test_chexpert_plus_reports_of_one_study_must_agree(tmp_path: Path) -> None:
    rows = [
        {"path_to_image": IMAGE, "section_findings": "Clear."},
        {"path_to_image": OTHER, "section_findings": "Edema."},
    ]
    studies, source = read(plus(tmp_path, rows, []), "chexpert_plus", labels="none")
    assert not studies
    assert "different reports" in source.problems[0].reason

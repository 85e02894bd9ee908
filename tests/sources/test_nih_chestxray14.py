"""The NIH adapter against an independent reading of the real CSV, and every kind of bad input."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import nih_layout as nih
import pandas as pd
import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Problem, Source
from medvlp.types import Study


def read(root: Path) -> tuple[list[Study], list[Problem], Source]:
    source = SOURCES.get("nih_chestxray14")(root)
    return list(source.studies()), source.problems, source


def only_problem(layout: nih.Layout, root: Path) -> tuple[list[Study], Problem]:
    studies, problems, _ = read(layout.write(root))
    assert len(problems) == 1, problems
    assert problems[0].fix
    assert str(root) not in problems[0].path
    return studies, problems[0]


@pytest.mark.data
def test_real_subset_equals_an_independent_reading(test_data: Path) -> None:
    root = test_data / "nih_chestxray14_mini"
    studies, problems, source = read(root)
    assert problems == []
    assert source.summary()["edition"] == "subset: 755 of 112,120"

    lines = (root / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1:]
    cells = sorted(line.split(",") for line in lines)
    test = set((root / "test_list.txt").read_text().split())
    assert [study.images[0].path for study in studies] == [f"images/{cell[0]}" for cell in cells]
    assert [study.patient_id for study in studies] == [cell[3] for cell in cells]
    assert [study.age for study in studies] == [float(cell[4]) for cell in cells]
    assert [study.sex for study in studies] == [cell[5] for cell in cells]
    assert [study.images[0].view for study in studies] == [cell[6] for cell in cells]
    assert [study.split for study in studies] == ["test" if cell[0] in test else "train" for cell in cells]
    for study, cell in zip(studies, cells, strict=True):
        assert {label for label, value in study.labels.items() if value == 1} == set(cell[1].split("|"))
        assert set(study.labels.values()) <= {0.0, 1.0}
        assert len(study.labels) == 15

    boxes = [box for study in studies for box in study.boxes]
    raw = [line.split(",") for line in (root / "BBox_List_2017.csv").read_text().splitlines()[1:]]
    assert len(boxes) == len(raw) == 38
    expected = Counter((r[0][:-4], r[1].replace("Infiltrate", "Infiltration"), *map(float, r[2:6])) for r in raw)
    assert Counter((b.image_id, b.label, b.x, b.y, b.width, b.height) for b in boxes) == expected


def test_labels_come_from_the_card_in_the_official_order(tmp_path: Path) -> None:
    studies, _, source = read(nih.small().write(tmp_path))
    assert list(studies[0].labels)[:3] == ["Atelectasis", "Cardiomegaly", "Effusion"]
    assert tuple(studies[0].labels) == source.card.label_columns
    assert studies[0].labels["Pneumonia"] == 1
    assert studies[0].labels["No Finding"] == 0
    assert studies[1].labels["No Finding"] == 1
    assert studies[1].labels["Pneumonia"] == 0


def test_order_of_the_csv_does_not_matter(tmp_path: Path) -> None:
    layout = nih.small()
    one = read(layout.write(tmp_path / "one"))[0]
    layout.rows.reverse()
    assert read(layout.write(tmp_path / "two"))[0] == one


@pytest.mark.parametrize(
    "header",
    [
        nih.HEADER.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"'),
        nih.HEADER.replace(",", " , ").replace("Width , Height", "Width,Height"),
        nih.HEADER + ",",
        "\ufeff" + nih.HEADER,
    ],
    ids=["quoted", "blanks", "trailing comma", "byte order mark"],
)
def test_dialects_of_the_header(tmp_path: Path, header: str) -> None:
    layout = nih.small()
    layout.header = header
    studies, problems, _ = read(layout.write(tmp_path))
    assert len(studies) == 12
    assert problems == []
    assert studies[0].age == 58


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    layout = nih.small()
    frame = pd.DataFrame([line.split(",")[:7] for line in layout.rows], columns=nih.HEADER.split(",")[:7])
    layout.header, *layout.rows = frame[frame.columns[::-1]].to_csv(index=False).splitlines()
    studies, problems, _ = read(layout.write(tmp_path))
    assert problems == []
    assert [study.patient_id for study in studies] == [str(number) for number in range(1, 13)]


def test_twelve_folders_and_the_older_table(tmp_path: Path) -> None:
    layout = nih.small(patients=14)
    layout.numbered_folders, layout.table = True, "Data_Entry_2017.csv"
    layout.rows = [line.replace(",58,", ",058Y,") for line in layout.rows]
    studies, problems, _ = read(layout.write(tmp_path))
    assert problems == []
    assert studies[0].age == 58
    assert studies[11].images[0].path == "images_012/images/00000012_000.png"
    assert studies[12].images[0].path == "images_001/images/00000013_000.png"


@pytest.mark.parametrize(
    ("cell", "age"), [("006M", 0.5), ("000D", 0.0), ("120", 120.0), ("411", None), ("155Y", None), ("", None)]
)
def test_ages_are_years_and_impossible_ones_unknown(tmp_path: Path, cell: str, age: float | None) -> None:
    layout = nih.small()
    layout.rows[0] = nih.row(1, labels="Pneumonia", age=cell)
    studies, problems, source = read(layout.write(tmp_path))
    assert studies[0].age == age
    assert problems == []
    counted = {name: value for name, value in source.summary().items() if name.startswith("ages")}
    reason = "ages impossible, read as unknown" if cell else "ages not given"
    assert counted == ({} if age is not None else {reason: 1})


def test_a_csv_without_a_column_names_it_and_the_nearest(tmp_path: Path) -> None:
    layout = nih.small()
    layout.header = nih.HEADER.replace("Finding Labels", "Findings Label")
    with pytest.raises(UserError, match=r"no column 'Finding Labels'\. Did you mean 'Findings Label'") as caught:
        read(layout.write(tmp_path))
    assert "Data_Entry_2017_v2020.csv" in caught.value.where
    assert "Patient Age" in caught.value.fix


@pytest.mark.parametrize("content", ["", nih.HEADER + "\n"], ids=["nothing", "header only"])
def test_an_empty_csv(tmp_path: Path, content: str) -> None:
    root = nih.small().write(tmp_path)
    (root / "Data_Entry_2017_v2020.csv").write_text(content)
    with pytest.raises(UserError, match=r"is empty|has no rows"):
        read(root)


@pytest.mark.parametrize("missing", ["Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt", "images"])
def test_missing_parts_stop_the_run(tmp_path: Path, missing: str) -> None:
    root = nih.small().write(tmp_path / "raw")
    (root / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=re.escape(missing)) as caught:
        read(root)
    assert caught.value.fix


def test_a_root_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("names", [[], ["00000099_000.png"]], ids=["empty list", "names nothing of the CSV"])
def test_an_empty_split_stops_the_run(tmp_path: Path, names: list[str]) -> None:
    layout = nih.small()
    layout.lists["test_list.txt"] = names
    with pytest.raises(UserError, match=r"split (would be|is) empty"):
        read(layout.write(tmp_path))


def test_patients_in_both_lists_stop_the_run(tmp_path: Path) -> None:
    layout = nih.small(images_each=2)
    moved = [nih.name(1, 1), nih.name(2, 1)]
    layout.lists["train_val_list.txt"] = [n for n in layout.lists["train_val_list.txt"] or [] if n not in moved]
    layout.lists["test_list.txt"] = [*(layout.lists["test_list.txt"] or []), *moved]
    with pytest.raises(UserError, match=r"^2 patients are in both official lists \(the first: 1\)"):
        read(layout.write(tmp_path))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (nih.row(1, labels="Pnuemonia"), r"unknown label 'Pnuemonia'\. Did you mean 'Pneumonia'\?"),
        (nih.row(1, labels="No Finding|Edema"), "'No Finding' stands together with a finding"),
        (nih.row(1, labels=""), "no label is given"),
        (nih.row(1).replace(",1,58", ",7,58"), "belongs to another patient than Patient ID 7"),
        (nih.row(1).replace(",1,58", ",abc,58"), "Patient ID 'abc' is no number"),
    ],
)
def test_bad_rows_are_left_out_and_named(tmp_path: Path, line: str, reason: str) -> None:
    layout = nih.small()
    layout.rows[0] = line
    studies, problem = only_problem(layout, tmp_path)
    assert re.search(reason, problem.reason)
    assert problem.path == "Data_Entry_2017_v2020.csv:2"
    assert problem.study_id == "00000001_000"
    assert len(studies) == 11


def test_a_substring_of_a_label_is_no_label(tmp_path: Path) -> None:
    layout = nih.small()
    layout.rows[0] = nih.row(1, labels="Pleural_Thickening")
    studies, _, _ = read(layout.write(tmp_path))
    assert [label for label, value in studies[0].labels.items() if value] == ["Pleural_Thickening"]


def test_identical_duplicates_keep_the_first_and_name_the_others(tmp_path: Path) -> None:
    layout = nih.small()
    layout.rows.append(layout.rows[0])
    studies, problem = only_problem(layout, tmp_path)
    assert len(studies) == 12
    assert problem.path == "Data_Entry_2017_v2020.csv:14"
    assert re.search("duplicated id.*lines 2, 14, which agree; the first is kept", problem.reason)


def test_contradicting_duplicates_keep_none(tmp_path: Path) -> None:
    layout = nih.small()
    layout.rows.append(nih.row(1, labels="Mass"))
    studies, problems, _ = read(layout.write(tmp_path))
    assert [problem.path.split(":")[1] for problem in problems] == ["2", "14"]
    assert all("which differ; none is kept" in problem.reason for problem in problems)
    assert "00000001_000" not in {study.study_id for study in studies}


def test_an_image_that_is_not_in_the_csv(tmp_path: Path) -> None:
    layout = nih.small()
    layout.images.append("00000099_000.png")
    studies, problem = only_problem(layout, tmp_path)
    assert (problem.path, problem.reason) == ("images/00000099_000.png", "not in the CSV")
    assert len(studies) == 12


def test_a_row_without_image(tmp_path: Path) -> None:
    layout = nih.small()
    layout.images.remove("00000003_000.png")
    studies, problem = only_problem(layout, tmp_path)
    assert "row without image: 00000003_000.png" in problem.reason
    assert len(studies) == 11


def test_an_image_in_two_folders(tmp_path: Path) -> None:
    layout = nih.small()
    root = layout.write(tmp_path)
    (root / "images_001" / "images").mkdir(parents=True)
    (root / "images_001" / "images" / "00000001_000.png").write_bytes(b"")
    studies, problems, _ = read(root)
    assert [problem.reason for problem in problems] == ["the image is also at images/00000001_000.png"]
    assert studies[0].images[0].path == "images/00000001_000.png"


def test_an_image_in_no_list_or_in_both(tmp_path: Path) -> None:
    layout = nih.small()
    train, test = layout.lists["train_val_list.txt"] or [], layout.lists["test_list.txt"] or []
    both, no_list = train[1], train.pop(0)
    test.append(both)
    studies, problems, _ = read(layout.write(tmp_path))
    assert {problem.study_id: problem.reason for problem in problems} == {
        no_list[:-4]: f"{no_list} is in no official list",
        both[:-4]: f"{both} is in both official lists",
    }
    assert len(studies) == 10


@pytest.mark.parametrize("header", [nih.BOX_HEADER, "Image Index,Finding Label,Bbox [x,y,w,h]"], ids=["9", "6"])
def test_boxes_with_both_headers(tmp_path: Path, header: str) -> None:
    layout = nih.small()
    layout.box_header = header
    layout.boxes = [f"{nih.name(11)},Infiltrate,1.5,2.5,3.5,4.5", f"{nih.name(77)},Mass,1,2,3,4"]
    studies, problems, source = read(layout.write(tmp_path))
    assert problems == []
    (box,) = studies[10].boxes
    assert (box.image_id, box.label, box.x, box.y, box.width, box.height) == (
        "00000011_000", "Infiltration", 1.5, 2.5, 3.5, 4.5
    )  # fmt: skip
    assert source.summary()["boxes of images that are not in the CSV"] == 1


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ("Infiltration_,1,2,3,4", "unknown label 'Infiltration_'. Did you mean 'Infiltration'?"),
        ("Mass,1,2,0,4", "without an area"),
        ("Mass,1,two,3,4", "no number"),
        ("Mass,1,2,nan,4", "no number"),
        ("Mass,-1,2,3,4", "outside the image"),
    ],
)
def test_bad_boxes_are_left_out_and_the_study_kept(tmp_path: Path, box: str, reason: str) -> None:
    layout = nih.small()
    layout.boxes = [f"{nih.name(11)},{box}"]
    studies, problem = only_problem(layout, tmp_path)
    assert reason in problem.reason
    assert len(studies) == 12
    assert studies[10].boxes == ()


def test_a_full_edition_must_have_the_counts_of_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medvlp.sources.nih_chestxray14 import NihChestXray14

    def with_counts(**changed: int) -> tuple[list[Study], Source]:
        source = NihChestXray14(tmp_path)
        counts = {"images": 12, "patients": 12, "view_PA": 4, "view_AP": 8, "label_No_Finding": 6}
        sizes = {"train_val": {"images": 8, "patients": 8}, "test": {"images": 4, "patients": 4}}
        fields = source.card.resolved() | {"counts": counts | changed, "splits": sizes}
        source.card = type(source.card).model_validate(fields)
        return list(source.studies()), source

    nih.small().write(tmp_path)
    studies, source = with_counts()
    assert len(studies) == 12
    assert source.summary()["edition"] == "full: 12"
    with pytest.raises(UserError, match=r"view_PA: 4 found, 5 declared"):
        with_counts(view_PA=5)
    assert with_counts(images=13)[1].summary()["edition"] == "subset: 12 of 13"

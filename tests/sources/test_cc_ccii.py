"""CC-CCII: classes by name, slices in the order of their numbers, scans that are not whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.types import Study

HEADER = "zip_file,label,patient_id,scan_id,n_slice"
ROWS = ["NCP-1.zip,NCP,12,1001,3", "CP-2.zip,CP,2,10,2", "CP-2.zip,CP,2,9,1", "Normal-1.zip,Normal,700,5,1"]
SLICES = {
    "COVID19/12/1001": ["0.png", "10.png", "2.png"],
    "CP/2/10": ["0001.jpg", "0002.jpg"],
    "CP/2/9": ["1.jpeg"],
    "Normal/700/5": ["7.png", ".DS_Store", "Thumbs.db"],
}


def write(root: Path, rows: list[str] = ROWS) -> Path:
    for folder, names in SLICES.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    (root / "unzip_filenames.csv").write_text("\n".join([HEADER, *rows]))
    return root


def read(root: Path) -> tuple[list[Study], Source]:
    source = SOURCES.get("cc_ccii")(root)
    return list(source.studies()), source


def test_classes_slices_and_order(tmp_path: Path) -> None:
    studies, source = read(write(tmp_path))
    assert [study.study_id for study in studies] == ["CP_2_9", "CP_2_10", "NCP_12_1001", "Normal_700_5"]
    covid = studies[2]
    assert covid.labels == {"CP": 0, "NCP": 1, "Normal": 0}
    assert covid.images[0].files == tuple(f"COVID19/12/1001/{name}" for name in ("0.png", "2.png", "10.png"))
    assert covid.images[0].facts is not None
    assert (covid.images[0].facts.intensity, covid.images[0].facts.affine) == ("stored", None)
    assert (covid.split, covid.age, covid.values, covid.subsets) == (None, None, {}, ())
    assert studies[3].labels == {"CP": 0, "NCP": 0, "Normal": 1}
    assert source.summary()["edition"] == "subset: 4 of 4,178"
    assert not source.problems


def test_metadata_and_lesions(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "metadata.csv").write_text(
        "patient_id,scan_id,Age,Sex(Male1/Female2),Critical_illness,Liver_function,Lung_function,Progression (Days)\n"
        "12,1001,63,2,1,,3,12.5\n2,9,,,,,,\n"
    )
    (root / "lesions_slices.csv").write_text(
        "imgpath\nNCP/12/1001/10.png\nNCP\\12\\1001\\2.png\nNCP/12/1001/2.png\nNCP/2.png\n"
    )
    studies, source = read(root)
    covid = studies[2]
    assert (covid.age, covid.sex) == (63.0, "F")
    assert covid.values == {
        "Critical_illness": 1, "Lung_function": 3, "Progression (Days)": 12.5, "lesion_slices": 2
    }  # fmt: skip
    assert covid.attributes == {"lesion_slices": "2 10"}
    assert (studies[0].age, studies[0].sex, studies[0].values) == (None, None, {})
    assert [problem.path for problem in source.problems] == ["lesions_slices.csv:5"]


@pytest.mark.parametrize(
    ("rows", "kept", "reason"),
    [
        (["NCP-1.zip,NCP,12,1001,4", *ROWS[1:]], 3, "n_slice is '4', but the folder holds 3"),
        (["NCP-1.zip,NCP,12,1001,", *ROWS[1:]], 3, "n_slice is ''"),
        ([*ROWS, "NCP-13.zip,NCP,1,2,3"], 4, "row without scan: NCP_1_2 has no folder (archive NCP-13.zip)"),
        (ROWS[1:], 3, "the scan is not in unzip_filenames.csv"),
        ([*ROWS, "x.zip,Norml,1,2,3"], 4, "unknown class 'Norml'. Did you mean 'Normal'"),
        ([*ROWS, ROWS[1]], 4, "agree; the first is kept"),
        ([*ROWS, "CP-2.zip,CP,2,10,9"], 3, "differ; none is kept"),
        ([*ROWS, "NCP-1.zip,NCP,2,10,2"], 3, "the scan is listed in the classes CP and NCP; none is kept"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[str], kept: int, reason: str) -> None:
    studies, source = read(write(tmp_path, rows))
    assert len(studies) == kept
    assert any(reason in problem.reason for problem in source.problems)


@pytest.mark.parametrize(
    ("add", "reason", "kept"),
    [
        ("1.png", "two slices have the number 1: 1.jpeg and 1.png", 3),
        ("01.jpg", "two slices have the number 1", 3),
        ("cover.png", "the name of the picture is no number", 4),
    ],
)
def test_slices_are_never_ordered_by_guess(tmp_path: Path, add: str, reason: str, kept: int) -> None:
    root = write(tmp_path)
    (root / "CP/2/9" / add).touch()
    studies, source = read(root)
    assert len(studies) == kept
    assert reason in source.problems[0].reason


def test_one_text_before_all_numbers_is_allowed(tmp_path: Path) -> None:
    root = write(tmp_path)
    for number in (1, 2):
        (root / f"CP/2/10/000{number}.jpg").rename(root / f"CP/2/10/IM{11 - number}.PNG")
    (root / "Normal/700/5/7.png").rename(root / "Normal/700/5/IM7.png")
    (root / "Normal/700/5/XX8.png").touch()
    studies, source = read(root)
    named = {study.study_id: study.images[0].files for study in studies}
    assert named["CP_2_10"] == ("CP/2/10/IM9.PNG", "CP/2/10/IM10.PNG")
    assert "Normal_700_5" not in named  # two texts: nobody says which of them are the scan
    assert [problem.reason for problem in source.problems] == ["the folder holds no numbered picture"]


def test_a_list_of_lesions_with_another_header(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "lesions_slices.csv").write_text("imgs\nNCP/12/1001/10.PNG\n")
    studies, source = read(root)
    assert studies[2].attributes == {"lesion_slices": "10"}
    (root / "lesions_slices.csv").write_text("img,x\nNCP/12/1001/10.png,1\n")
    studies, source = read(root)
    assert (studies[2].attributes, source.counts["lesions_slices.csv: no column imgpath, not read"]) == ({}, 1)


def test_scans_that_covidx_ct_removed_are_marked(tmp_path: Path) -> None:
    root = write(tmp_path, [*ROWS, "NCP-3.zip,NCP,328,1805,1"])
    (root / "NCP/328/1805").mkdir(parents=True)
    (root / "NCP/328/1805/0.png").touch()
    studies, _ = read(root)
    marked: dict[str, Any] = {study.study_id: study.subsets for study in studies if study.subsets}
    assert marked == {"NCP_328_1805": ("covidx_ct_removed",)}


def test_a_root_without_scans_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "unzip_filenames.csv").write_text("\n".join([HEADER, *ROWS]))
    with pytest.raises(UserError, match="There is no scan in CP"):
        read(tmp_path)

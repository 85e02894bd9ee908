"""The Shenzhen adapter: readings in many spellings, labels by file name, masks of other hands."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw import put, read, reasons

from medvlp.errors import UserError
from medvlp.sources._nlm_tb import parse_reading

CHINA = "ChinaSet_AllFiles"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("male 45yrs\n\nnormal\n", ("M", 45, "normal")),
        ("Female , 27 yrs\nright PTB", ("F", 27, "right PTB")),
        ("female35yrs\n1. left PTB\n2. left pleuritis\n", ("F", 35, "1. left PTB\n2. left pleuritis")),
        ("femal, 31 years old\nSTB", ("F", 31, "STB")),
        ("Male, 5 months\nnormal", ("M", 5 / 12, "normal")),
        ("male, 15 days normal", ("M", 15 / 365.25, "normal")),
        ("Patient's Sex: F\nPatient's Age: 024Y\nnormal\n", ("F", 24, "normal")),
        ("Patient's Sex: M\r\nPatient's Age: 031Y\r\nimproved, cavity 20 mm in the RUL.", ("M", 31, None)),
        ("normal", (None, None, "normal")),
        ("male\nnormal", ("M", None, "normal")),
        ("64 yrs\nfibrosis of 3 m", (None, 64, "fibrosis of 3 m")),
        ("male\nstable since 3 years", ("M", None, "stable since 3 years")),
        ("male\n3 months ago fever", ("M", None, "3 months ago fever")),
        ("45yrs male\nnormal", ("M", 45, "normal")),
        ("male 450yrs\nnormal", ("M", None, "normal")),
        ("male\uff0c45yrs\uff0c\nPTB", ("M", 45, "PTB")),
        ("Patient's Sex: O\nPatient's Age: 004M\nnormal", (None, 4 / 12, "normal")),
        ("", (None, None, "")),
    ],
)
def test_readings(text: str, expected: tuple[str | None, float | None, str | None]) -> None:
    sex, age, rest = parse_reading(text)
    assert sex == expected[0]
    assert age == (pytest.approx(expected[1]) if expected[1] is not None else None)
    assert rest == (expected[2] if expected[2] is not None else "improved, cavity 20 mm in the RUL.")


def test_shenzhen_takes_the_label_from_the_file_name_and_counts_contradictions(tmp_path: Path) -> None:
    names = ("CHNCXR_0001_0", "CHNCXR_0327_1", "CHNCXR_0328_1", "CHNCXR_0400_0", "CHNCXR_0400_1", "CHNCXR_5")
    put(tmp_path, [f"{CHINA}/CXR_png/{name}.png" for name in names] + [f"{CHINA}/CXR_png/Thumbs.db"])
    put(tmp_path, {f"{CHINA}/ClinicalReadings/CHNCXR_0001_0.txt": "male 45yrs\nnormal",
                   f"{CHINA}/ClinicalReadings/CHNCXR_0327_1.txt": "female 20yrs\nNormal.",
                   f"{CHINA}/ClinicalReadings/CHNCXR_0009_0.txt": "male 1yr\nnormal"})  # fmt: skip
    put(tmp_path, ["mask/CHNCXR_0001_0_mask.png", "mask/CHNCXR_0099_0_mask.png"])
    studies, problems, source = read("shenzhen", tmp_path)
    assert {name: (study.patient_id, study.labels, study.report, study.sex) for name, study in studies.items()} == {
        "CHNCXR_0001_0": ("CHNCXR_0001", {"Tuberculosis": 0, "Normal": 1}, "FINDINGS: normal", "M"),
        "CHNCXR_0327_1": ("CHNCXR_0327", {"Tuberculosis": 1, "Normal": 0}, "FINDINGS: Normal.", "F"),
        "CHNCXR_0328_1": ("CHNCXR_0328", {"Tuberculosis": 1, "Normal": 0}, None, None),
    }
    assert [(mask.label, mask.path) for mask in studies["CHNCXR_0001_0"].masks] == [
        ("lungs", "mask/CHNCXR_0001_0_mask.png")
    ]
    assert studies["CHNCXR_0327_1"].masks == ()
    assert source.counts["readings that contradict the file name"] == 1
    assert source.counts["images without a reading"] == 1
    found = reasons(problems)
    assert "normal and as tuberculosis" in found["CHNCXR_0400_0"]
    assert "normal and as tuberculosis" in found["CHNCXR_0400_1"]
    assert "is not CHNCXR_<number>_<0 or 1>.png" in found["CHNCXR_5"]
    assert found["CHNCXR_0009_0"] == "reading without image"
    assert found["CHNCXR_0099_0"] == "mask without image"


def test_a_root_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image in ChinaSet_AllFiles/CXR_png/"):
        read("shenzhen", tmp_path)

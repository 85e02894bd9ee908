"""The Montgomery adapter: one mask for each lung, never half a pair, and readings that cannot be read."""

from __future__ import annotations

from pathlib import Path

from raw import put, read, reasons

COUNTY = "MontgomerySet"


def test_montgomery_keeps_left_and_right_apart_and_no_half_pair(tmp_path: Path) -> None:
    names = ("MCUCXR_0001_0", "MCUCXR_0002_1")
    put(tmp_path, [f"CXR_png/{name}.png" for name in names])
    put(tmp_path, [f"ManualMask/leftMask/{name}.png" for name in names] + ["ManualMask/rightMask/MCUCXR_0001_0.png"])
    studies, problems, source = read("montgomery", tmp_path)
    assert [(mask.label, mask.path) for mask in studies["MCUCXR_0001_0"].masks] == [
        ("left lung", "ManualMask/leftMask/MCUCXR_0001_0.png"),
        ("right lung", "ManualMask/rightMask/MCUCXR_0001_0.png"),
    ]
    assert studies["MCUCXR_0002_1"].masks == ()
    assert "mask of the left lung only" in reasons(problems)["MCUCXR_0002_1"]
    assert source.summary()["edition"] == "subset: 2 of 138"


def test_an_unreadable_reading_leaves_the_image(tmp_path: Path) -> None:
    put(tmp_path, [f"{COUNTY}/CXR_png/MCUCXR_0001_0.png"])
    (tmp_path / COUNTY / "ClinicalReadings").mkdir()
    (tmp_path / COUNTY / "ClinicalReadings" / "MCUCXR_0001_0.txt").write_bytes(b"\xff\xfe\x00male")
    studies, problems, _ = read("montgomery", tmp_path)
    assert studies["MCUCXR_0001_0"].report is None
    assert "utf-8" in reasons(problems)["MCUCXR_0001_0"]

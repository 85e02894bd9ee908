"""Traps of EchoNet-Dynamic: names with and without .avi, the long axis, which frame is diastole, broken outlines."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.echonet_dynamic import polygon_area
from medvlp.types import Study

HEADER = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"
AXIS = "10,2,10,98"


def box(width: int) -> list[str]:
    """Chords of a rectangle of this width and height 40, from above to below."""
    return [f"20,{y},{20 + width},{y}" for y in (30, 50, 70)]


def write(root: Path, rows: list[str], tracings: list[str], videos: tuple[str, ...] = ("0X1A",)) -> None:
    (root / "Videos").mkdir()
    for video in videos:
        (root / "Videos" / f"{video}.avi").write_bytes(b"")
    (root / "FileList.csv").write_text("\n".join([HEADER, *rows, ""]))
    (root / "VolumeTracings.csv").write_text("\n".join(["FileName,X1,Y1,X2,Y2,Frame", *tracings, ""]))


def traced(name: str, frame: object, lines: list[str]) -> list[str]:
    return [f"{name},{line},{frame}" for line in lines]


def read(root: Path) -> tuple[list[Study], list[str], dict[str, object]]:
    source = SOURCES.get("echonet_dynamic")(root)
    studies = list(source.studies())
    return studies, [f"{problem.path}: {problem.reason}" for problem in source.problems], source.summary()


def test_the_outline_leaves_the_axis_out_and_the_larger_area_is_diastole(tmp_path: Path) -> None:
    lines = traced("0X1A.avi", 5, [AXIS, *box(60)]) + traced("0X1A.avi", 30, [AXIS, *box(40)])
    write(tmp_path, ["0X1A,60.0,40.0,100.0,112,112,50,200,TRAIN"], lines)
    (study,), problems, _ = read(tmp_path)
    assert problems == []
    assert (study.patient_id, study.split, study.images[0].modality) == ("0X1A", "train", "US")
    assert study.values == {"EF": 60.0, "ESV": 40.0, "EDV": 100.0, "frame_ED": 5.0, "frame_ES": 30.0}
    assert study.masks[0].points == ((20, 30), (20, 50), (20, 70), (80, 70), (80, 50), (80, 30))
    assert [(mask.frame, polygon_area(mask.points)) for mask in study.masks] == [(5, 2400.0), (30, 1600.0)]


def test_diastole_after_systole(tmp_path: Path) -> None:
    lines = traced("0X1A", 5, [AXIS, *box(30)]) + traced("0X1A", 30, [AXIS, *box(40)])
    write(tmp_path, ["0X1A.avi,60,40,100,112,112,50,200,VAL"], lines)
    (study,), _, _ = read(tmp_path)
    assert (study.values["frame_ED"], study.values["frame_ES"], study.split) == (30.0, 5.0, "val")


def test_broken_outlines_leave_the_loop(tmp_path: Path) -> None:
    lines = traced("0X1A.avi", 200, [AXIS, *box(60)]) + traced("0X1A.avi", 7, [AXIS, *box(60)[:2]])
    lines += traced("0X1A.avi", "No Systolic", [AXIS, *box(60)]) + traced("0X9.avi", 1, [AXIS])
    write(tmp_path, ["0X1A,60.0,40.0,100.0,112,112,50,200,TRAIN"], lines)
    (study,), problems, _ = read(tmp_path)
    assert study.masks == ()
    assert problems == [
        "VolumeTracings.csv: outlines of a loop that FileList.csv does not list",
        "VolumeTracings.csv:2: an outline of frame 200, and the loop has 200",
        "VolumeTracings.csv:6: the outline of frame 7 has fewer than three chords, chords that do not follow each "
        "other along the long axis, or a value that is no number",
        "VolumeTracings.csv:9: an outline of frame 'No Systolic', which is no number",
    ]
    assert "frame_ED" not in study.values


def test_rows_that_cannot_be_used_and_values_that_do_not_agree(tmp_path: Path) -> None:
    rows = [
        "0X1A,60.0,40.0,100.0,112,112,50,200,TRAIN",
        "0X1A,60.0,40.0,100.0,112,112,50,200,TEST",
        "0X1B,160.0,40.0,100.0,112,112,50,200,TRAIN",
        "0X1C,50.0,40.0,100.0,112,112,50,200,HOLDOUT",
        "0X1D,50.0,40.0,100.0,112,112,50,200,TRAIN",
        "0X1E,55.0,40.0,100.0,112,112,50,200,TEST",
        "0X1F,,40.0,100.0,112,112,50,200,TEST",
    ]
    write(tmp_path, rows, ["0X1E.avi,1,1,1,1,1"], ("0X1A", "0X1B", "0X1C", "0X1E", "0X1F", "0X20"))
    studies, problems, summary = read(tmp_path)
    assert [study.study_id for study in studies] == ["0X1E", "0X1F"]
    assert str(studies[1].values["EF"]) == "nan"
    assert [problem.split(": ", 1)[1][:36] for problem in problems] == [
        "duplicated id: 0X1A is on lines 2, 3",
        "duplicated id: 0X1A is on lines 2, 3",
        "impossible values: EF 160.0, ESV 40.",
        "unknown split 'HOLDOUT'",
        "row without loop: there is no Videos",
        "the outline of frame 1 has fewer tha",
        "the image is not in FileList.csv",
    ]
    assert summary["loops whose EF is not that of their volumes, by more than 1 %"] == 1
    assert summary["loops that lack EF, ESV or EDV"] == 1


def test_no_loops(tmp_path: Path) -> None:
    write(tmp_path, ["0X1A,60.0,40.0,100.0,112,112,50,200,TRAIN"], [], ())
    with pytest.raises(UserError, match="no image in Videos/"):
        read(tmp_path)


@pytest.mark.parametrize(
    "lines",
    [[AXIS, *box(60)] * 2, [AXIS, *(line for line in box(60) for _ in range(2))], [*box(60), AXIS]],
    ids=["all rows twice", "each chord twice", "axis last"],
)
def test_an_outline_that_would_cross_itself_is_none(tmp_path: Path, lines: list[str]) -> None:
    write(tmp_path, ["0X1A,60.0,40.0,100.0,112,112,50,200,TRAIN"], traced("0X1A.avi", 7, lines))
    (study,), problems, _ = read(tmp_path)
    assert study.masks == ()
    assert "do not follow each other along the long axis" in problems[0]

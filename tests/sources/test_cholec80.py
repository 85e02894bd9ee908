"""Traps of Cholec80: phases by name, pictures from 1 and tables from 0, rates of extraction, gaps."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.types import Study

TOOLS = "Frame\tGrasper\tBipolar\tHook\tScissors\tClipper\tIrrigator\tSpecimenBag"


def write(root: Path, name: str, phases: list[str], tools: list[str], pictures: int | None = None) -> None:
    """Write tables, and a video or extracted pictures."""
    for folder in ("phase_annotations", "tool_annotations", "videos", f"frames/{name}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows = [f"{frame}\t{phase}" for frame, phase in enumerate(phases)]
    (root / "phase_annotations" / f"{name}-phase.txt").write_text("\n".join(["Frame\tPhase", *rows, ""]))
    (root / "tool_annotations" / f"{name}-tool.txt").write_text("\n".join([TOOLS, *tools, ""]))
    (root / "videos" / f"{name}.mp4").write_bytes(b"")
    for number in range(1, (pictures or 0) + 1):
        (root / "frames" / name / f"{name}_{number:06d}.png").write_bytes(b"")


def read(root: Path, **options: object) -> tuple[list[Study], list[str], dict[str, object]]:
    source = SOURCES.get("cholec80")(root, options)
    studies = list(source.studies())
    return studies, [f"{problem.path}: {problem.reason}" for problem in source.problems], source.summary()


def present(study: Study) -> list[str]:
    return [name for name, value in study.labels.items() if value == 1]


def test_every_25th_frame_with_phase_and_instruments(tmp_path: Path) -> None:
    phases = ["Preparation"] * 25 + ["GallbladderPackaging"] * 25 + ["GallbladderRetraction"] * 10
    write(tmp_path, "video33", phases, ["0\t1\t0\t0\t0\t0\t0\t0", "25\t0\t0\t1\t0\t0\t0\t1"], pictures=3)
    studies, problems, summary = read(tmp_path)
    assert problems == []
    assert [(study.study_id, study.images[0].frame, study.split) for study in studies] == [
        ("video33_000000", 0, "train"), ("video33_000025", 25, "train"), ("video33_000050", 50, "train")
    ]  # fmt: skip
    assert [present(study) for study in studies] == [
        ["Preparation", "Grasper"], ["GallbladderPackaging", "Hook", "SpecimenBag"], ["GallbladderRetraction"]
    ]  # fmt: skip
    assert str(studies[2].labels["Hook"]) == "nan"
    assert studies[1].labels["Grasper"] == 0
    assert summary["frames without instruments in the table, not mentioned"] == 1
    assert {study.split for study in read(tmp_path, split="32/8/40")[0]} == {"val"}


def test_pictures_count_from_1(tmp_path: Path) -> None:
    write(tmp_path, "video80", ["Preparation"] * 60, ["0\t0\t0\t0\t0\t0\t0\t0"], pictures=3)
    studies, problems, _ = read(tmp_path, edition="frames")
    assert problems == []
    assert [study.images[0].path for study in studies] == [f"frames/video80/video80_00000{n}.png" for n in (1, 2, 3)]
    assert studies[0].split == "test"
    studies, problems, _ = read(tmp_path, edition="frames", frames_per_second=25)
    assert studies == []
    assert "3 pictures where 25 a second make 60: labels would be shifted in time" in problems[0]
    write(tmp_path, "video80", ["Preparation"] * 60, ["0\t0\t0\t0\t0\t0\t0\t0"], pictures=60)
    studies, _, _ = read(tmp_path, edition="frames", frames_per_second=25)
    assert [study.images[0].path[-10:] for study in studies] == ["000001.png", "000026.png", "000051.png"]


def test_gaps_unknown_phases_and_bad_instruments(tmp_path: Path) -> None:
    write(tmp_path, "video01", ["Preparation"] * 26 + ["6"] * 25, ["0\t2\t0\t0\t0\t0\t0\t0", "24\t0\t0\t0\t0\t0\t0\t0"])
    write(tmp_path, "video02", ["Preparation"] * 60, ["0\t0\t0\t0\t0\t0\t0\t0"])
    table = tmp_path / "phase_annotations" / "video02-phase.txt"
    table.write_text(table.read_text().replace("30\tPreparation\n", ""))
    write(tmp_path, "video81", ["Preparation"], ["0\t0\t0\t0\t0\t0\t0\t0"])
    write(tmp_path, "video03", ["Preparation"], ["0\t0\t0\t0\t0\t0\t0\t0"])
    (tmp_path / "videos" / "video03.mp4").rename(tmp_path / "videos" / "video04.mp4")
    (tmp_path / "tool_annotations" / "video81-tool.txt").unlink()
    studies, problems, _ = read(tmp_path)
    assert [study.study_id for study in studies] == ["video01_000000", "video01_000025"]
    assert str(studies[0].labels["Grasper"]) == "nan"
    assert problems == [
        "videos/video04.mp4: a video without phases",
        "tool_annotations/video01-tool.txt:2: instruments are 0 or 1, found 2",
        "tool_annotations/video01-tool.txt:3: frame '24' is no further multiple of 25",
        "phase_annotations/video01-phase.txt:52: unknown phase '6'.",
        "phase_annotations/video02-phase.txt: line 32 breaks the count of frames from 0",
        "phase_annotations/video03-phase.txt: phases without a video in videos",
        "tool_annotations/video81-tool.txt: the table of instruments is missing",
        "phase_annotations/video81-phase.txt: video81 is none of the 80 videos",
    ]


def test_an_empty_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing in videos/"):
        read(tmp_path)


def test_instruments_that_contradict_each_other_are_not_mentioned(tmp_path: Path) -> None:
    rows = ["0\t1\t0\t0\t0\t0\t0\t0", "25\t0\t0\t0\t0\t0\t0\t0", "0\t0\t0\t0\t0\t0\t0\t0", "50\t0\t0\t0\t0\t0\t0\t0"]
    write(tmp_path, "video01", ["Preparation"] * 50, rows)
    studies, problems, summary = read(tmp_path)
    assert [str(study.labels["Grasper"]) for study in studies] == ["nan", "0.0"]
    assert problems == [
        f"tool_annotations/video01-tool.txt:{line}: frame 0 has several rows that differ; none is used"
        for line in (2, 4)
    ]
    assert summary["rows of instruments beyond the phases, not used"] == 1

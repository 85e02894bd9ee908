"""M3D-Cap: slices by number and of one size, captions as the authors cut them, cases in one split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.m3d_cap import caption
from medvlp.types import Study


def picture(path: Path, height: int = 4, width: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width), np.uint8)).save(path)


def case(root: Path, name: str = "ct_case/000014", text: str = "study_findings: A large mass.") -> Path:
    folder = root / "M3D_Cap" / name
    for series in ("Sagittal", "Axial_lung_window"):
        for number in (1, 2, 10):
            picture(folder / series / f"{number}.png")
    (folder / "text.txt").write_text(text)
    return folder


def read(root: Path, edition: str = "raw") -> tuple[list[Study], Source]:
    source = SOURCES.get("m3d_cap")(root, {"edition": edition})
    return list(source.studies()), source


def test_a_case_is_a_study_with_its_series(tmp_path: Path) -> None:
    case(tmp_path)
    case(tmp_path, "ct_quizze/000002")
    (study, quiz), source = read(tmp_path)
    assert (study.study_id, quiz.study_id) == ("ct_case_000014", "ct_quizze_000002")
    assert study.report == "A large mass."
    assert (study.patient_id, study.split, study.language) == ("unknown", None, "en")
    assert study.attributes == {
        "series": "Axial_lung_window | Sagittal",
        "planes": "axial | sagittal",
        "windows": "lung | unknown",
    }
    axial = study.images[0]
    assert axial.path == "M3D_Cap/ct_case/000014/Axial_lung_window"
    assert axial.image_id == "ct_case_000014/Axial_lung_window"
    assert axial.facts is not None
    assert (axial.facts.intensity, axial.facts.affine) == ("stored", None)
    assert source.summary()["edition"] == "subset: 4 of 120,092"
    assert not source.problems


def test_odd_slices_are_left_out_and_the_others_named_in_order(tmp_path: Path) -> None:
    folder = case(tmp_path) / "Sagittal"
    picture(folder / "3.png", 4, 6)
    picture(folder / "cover.png")
    (folder / "11.jpeg").write_bytes(b"no picture")
    (study,), source = read(tmp_path)
    where = "M3D_Cap/ct_case/000014/Sagittal"
    assert study.images[1].files == tuple(f"{where}/{number}.png" for number in (1, 2, 10))
    assert study.images[0].files == ()
    assert [problem.path for problem in source.problems] == [
        f"{where}/cover.png", f"{where}/3.png", f"{where}/11.jpeg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: x\nstudy_findings: Mass in\n the liver.", ("Mass in the liver.", "study_findings:")),
        ("discussion: About masses.\nstudy_findings: A mass.\n", ("A mass.", "study_findings:")),
        ("discussion: About masses.\nstudy_findings: \n", ("About masses.", "discussion:")),
        ("study_findings:\ndiscussion: About masses.", ("About masses.", "discussion:")),
        ("study_findings: n/a\ndiscussion: About masses.", ("n/a discussion: About masses.", "study_findings:")),
        ("study_findings: -\n", ("study_findings: -", None)),
        ("A mass.", ("A mass.", None)),
    ],
)
def test_captions(text: str, expected: tuple[str, str | None]) -> None:
    assert caption(text) == expected


def test_texts_that_are_no_findings_are_counted(tmp_path: Path) -> None:
    for number, text in enumerate(
        ("study_findings: A mass.", "discussion: On masses.\nstudy_findings:", "Title:Quiz 17")
    ):
        case(tmp_path, f"ct_case/00000{number}", text)
    studies, source = read(tmp_path)
    assert [study.report for study in studies] == ["A mass.", "On masses.", "Title:Quiz 17"]
    summary = source.summary()
    assert summary["texts that are a discussion"] == 1
    assert summary["texts that are neither findings nor discussion, kept whole"] == 1


@pytest.mark.parametrize(("text", "reason"), [(None, "missing or cannot be read"), (" \n", "the text is empty")])
def test_a_case_without_text_is_left_out(tmp_path: Path, text: str | None, reason: str) -> None:
    folder = case(tmp_path, text=text or "")
    if text is None:
        (folder / "text.txt").unlink()
    studies, source = read(tmp_path)
    assert studies == []
    assert reason in source.problems[0].reason
    assert str(tmp_path) not in str(source.problems)


def test_two_slices_of_one_number_leave_the_series_out(tmp_path: Path) -> None:
    picture(case(tmp_path) / "Sagittal/02.png")
    (study,), source = read(tmp_path)
    assert [image.image_id for image in study.images] == ["ct_case_000014/Axial_lung_window"]
    assert "two slices have the number 2" in source.problems[0].reason


def prepared(root: Path, listed: Any) -> Path:
    for name in ("ct_case/000001", "ct_case/000002"):
        folder = root / "M3D_Cap_npy" / name
        folder.mkdir(parents=True)
        (folder / "text.txt").write_text("A mass\nis seen.")
        for series in ("Axial", "Coronal"):
            (folder / f"{series}.npy").touch()
    (root / "M3D_Cap_npy/M3D_Cap.json").write_text(json.dumps(listed))
    return root


def entry(name: str, prefix: str = "M3D_Cap_npy/") -> dict[str, str]:
    return {"image": f"{prefix}{name}.npy", "text": f"{prefix}{name.rsplit('/', 1)[0]}/text.txt"}


def test_the_prepared_edition(tmp_path: Path) -> None:
    listed = {
        "train": [entry("ct_case/000002/Coronal"), entry("ct_case/000002/Axial")],
        "validation": [entry("ct_case/000001/Axial", "")],
        "test": [],
    }
    (one, two), source = read(prepared(tmp_path, listed), "prepared")
    assert (one.study_id, one.split, one.report) == ("ct_case_000001", "val", "A mass is seen.")
    assert not any("texts" in name for name in source.summary())
    assert [image.path for image in two.images] == [
        "M3D_Cap_npy/ct_case/000002/Axial.npy", "M3D_Cap_npy/ct_case/000002/Coronal.npy"
    ]  # fmt: skip
    facts = two.images[0].facts
    assert facts is not None
    assert (facts.intensity, facts.slope, facts.intercept) == ("stored", 255.0, 0.0)
    assert not source.problems


@pytest.mark.parametrize(
    ("listed", "kept", "reason"),
    [
        ({"train": [entry("ct_case/000001/Axial")], "test": [entry("ct_case/000001/Coronal")]}, 0, "test and train"),
        ({"train": [entry("ct_case/000001/Axial")] * 2}, 1, "occurs twice"),
        ({"train": [entry("ct_case/000001/Axial"), entry("ct_case/000001/Oblique")]}, 1, "is missing"),
        ({"train": [entry("../../000001/Axial")]}, 0, "below the root"),
        ({"train": [{"image": "/etc/a/b/c.npy", "text": "x"}]}, 0, "below the root"),
        ({"train": ["Axial.npy"]}, 0, "below the root"),
        (
            {"train": [entry("ct_case/000001/Axial") | {"text": entry("ct_case/000002/Axial")["text"]}]},
            0,
            "that of another case",
        ),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, listed: Any, kept: int, reason: str) -> None:
    studies, source = read(prepared(tmp_path, listed), "prepared")
    assert len(studies) == kept
    assert any(reason in problem.reason for problem in source.problems)


def test_what_stops_the_run(tmp_path: Path) -> None:
    prepared(tmp_path, {"train": {}, "dev": []})
    with pytest.raises(UserError, match="no object with the lists"):
        read(tmp_path, "prepared")
    with pytest.raises(UserError, match=r"no folder M3D_Cap. The other edition is there"):
        read(tmp_path, "raw")

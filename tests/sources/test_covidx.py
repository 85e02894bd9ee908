"""The COVIDx adapter: lists without a header, names that differ by suffix or folder alone, and shared patients."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw import put, read, reasons

from medvlp.errors import UserError

TRAIN = ["419639-001464 MIDRC-RICORD-1C-419639-001464-39871-0.png positive ricord", "3 CR.png negative cohen"]


def small(root: Path, train: list[str] = TRAIN, test: list[str] | None = None, images: tuple[str, ...] = ()) -> Path:
    lists = {"train": train, "val": ["9 CR.png positive sirm"], "test": test or ["3 CR.jpg negative rsna"]}
    paths = [
        f"{split}/{' '.join(line.split()[1:-2])}"
        for split, lines in lists.items()
        for line in lines
        if len(line.split()) > 3
    ]
    put(root, dict.fromkeys([*paths, *images], ""))
    return put(root, {f"{split}.txt": "\n".join(lines) + "\n" for split, lines in lists.items()})


def test_the_first_line_is_data_and_patients_belong_to_their_source(tmp_path: Path) -> None:
    studies, problems, source = read("covidx", small(tmp_path))
    assert problems == []
    assert [(name, study.patient_id, study.labels["COVID-19"]) for name, study in studies.items()] == [
        ("train/CR.png", "cohen/3", 0),
        ("train/MIDRC-RICORD-1C-419639-001464-39871-0.png", "ricord/419639-001464", 1),
        ("val/CR.png", "sirm/9", 1),
        ("test/CR.jpg", "rsna/3", 0),
    ]
    assert studies["val/CR.png"].attributes == {"source": "sirm"}
    assert source.summary()["edition"] == "subset: 4 of 84,818"
    assert source.summary()["images of rsna"] == 1


def test_names_that_differ_by_suffix_are_two_images(tmp_path: Path) -> None:
    studies, problems, _ = read("covidx", small(tmp_path, ["1 a.png positive x", "2 a.jpg negative x"]))
    assert problems == []
    assert [study.labels["COVID-19"] for study in studies.values()][:2] == [0, 1]
    assert list(studies)[:2] == ["train/a.jpg", "train/a.png"]


def test_a_suffix_that_is_not_that_of_the_file_finds_no_image(tmp_path: Path) -> None:
    root = small(tmp_path, images=("train/b.jpeg",))
    (root / "train.txt").write_text("1 b.png positive x\n" + "\n".join(TRAIN))
    _, problems, _ = read("covidx", root)
    assert reasons(problems) == {
        "train/b.png": "row without image: train/b.png",
        "train/b.jpeg": "the image is not in the list of its folder",
    }


def test_bad_lines_are_named(tmp_path: Path) -> None:
    lines = [
        *TRAIN,
        "patient_id filename class source",
        "5 c.png",
        *TRAIN[:1],
        "6 d.png positive x",
        "6 d.png negative x",
    ]
    studies, problems, _ = read("covidx", small(tmp_path, lines, images=("train/c.png",)))
    assert len(studies) == 4
    found = [(problem.path, problem.reason) for problem in problems]
    assert not any("train/d.png" in path for path, _ in found)
    assert ("train.txt:3", "unknown class 'class'; positive and negative are allowed") in found
    assert ("train.txt:4", "the line has 2 words; patient, file name, class and source are expected") in found
    assert any(path == "train.txt:5" and "agree; the first is kept" in reason for path, reason in found)
    assert sum("differ; none is kept" in reason for _, reason in found) == 2


def test_lists_of_an_older_edition_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="older edition: it has the class COVID-19"):
        read("covidx", small(tmp_path, ["1 a.png COVID-19 cohen", "2 b.png normal rsna"]))


def test_patients_in_two_splits_stop_the_run_or_leave_training(tmp_path: Path) -> None:
    root = small(tmp_path, test=["3 other.png positive cohen"])
    with pytest.raises(UserError, match=r"1 patients are in both test and train \(the first: cohen/3\)"):
        read("covidx", root)
    studies, _, source = read("covidx", root, shared_patients="keep_test")
    assert list(studies) == [
        "train/MIDRC-RICORD-1C-419639-001464-39871-0.png", "val/CR.png", "test/other.png"
    ]  # fmt: skip
    assert source.counts["images left out, their patients are in a later split"] == 1


def test_a_missing_list_says_what_to_do(tmp_path: Path) -> None:
    root = small(tmp_path)
    (root / "val.txt").unlink()
    with pytest.raises(UserError, match=r"val\.txt is missing"):
        read("covidx", root)


def test_a_name_on_very_many_lines_does_not_fill_every_message_with_all_of_them(tmp_path: Path) -> None:
    studies, problems, _ = read("covidx", small(tmp_path, [f"{n} a.png negative rsna" for n in range(3000)]))
    assert "train/a.png" not in studies
    assert len(problems) == 3000
    assert problems[0].reason == (
        "duplicated id: train/a.png is on lines 1, 2, 3, 4, 5 and 2,995 more, which differ; none is kept"
    )

"""The caption sets: ROCO's tab-separated files, ROCOv2's tables, MedICaT's JSON lines, each with its faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raw import put, read, reasons

from medvlp.errors import UserError

JSONL = "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"


def test_roco_joins_captions_and_articles_by_id(tmp_path: Path) -> None:
    put(tmp_path, [f"train/radiology/images/ROCO_0000{n}.jpg" for n in (1, 2, 4, 5)])
    put(tmp_path, ["val/radiology/images/ROCO_00009.jpg", "train/non-radiology/images/ROCO_00007.jpg"])
    put(tmp_path, {
        "train/radiology/captions.txt": "ROCO_00002\t Chest, \"PA\" view.\nROCO_00001\tA CT.\nROCO_00003\tLost.\n"
        "ROCO_00004\t\nROCO_00001\tA CT.\nno tab here\n",
        "train/radiology/dlinks.txt": "ROCO_00002\tftp://x/oa/PMC4083729.tar.gz\tPMC4083729_f.jpg\n",
        "val/radiology/captions.txt": "ROCO_00009\tAn MRI.\n",
        "val/radiology/dlinks.txt": "ROCO_00009\tftp://x/oa/PMC4083729.tar.gz\tg.jpg\n",
    })  # fmt: skip
    studies, problems, source = read("roco", tmp_path)
    assert {name: (study.report, study.split, study.attributes) for name, study in studies.items()} == {
        "ROCO_00001": ("A CT.", "train", {"kind": "radiology"}),
        "ROCO_00002": ('Chest, "PA" view.', "train", {"kind": "radiology", "article": "PMC4083729"}),
        "ROCO_00009": ("An MRI.", "val", {"kind": "radiology", "article": "PMC4083729"}),
    }
    found = reasons(problems)
    assert "agree; the first is kept" in found["ROCO_00001"]
    assert found["ROCO_00003"] == "row without image: ROCO_00003"
    assert found["ROCO_00004"] == "the caption is empty"
    assert "not in train/radiology/captions.txt" in found["ROCO_00005"]
    assert found["train/radiology/captions.txt:6"] == "the line is not 'id, tab, text'"
    assert source.counts["articles with figures in several splits"] == 1
    assert source.counts["images of train/non-radiology left out"] == 1


def test_two_captions_of_one_id_contradict_each_other(tmp_path: Path) -> None:
    put(tmp_path, ["test/radiology/images/ROCO_00001.jpg", "test/radiology/images/ROCO_00002.jpg"])
    put(tmp_path, {"test/radiology/captions.txt": "ROCO_00001\tA\nROCO_00002\tB\nROCO_00001\tC\n"})
    studies, problems, _ = read("roco", tmp_path)
    assert list(studies) == ["ROCO_00002"]
    assert [problem.reason.split(", which ")[1] for problem in problems] == ["differ; none is kept"] * 2


def test_rocov2_finds_images_in_nested_folders_and_adds_concepts(tmp_path: Path) -> None:
    ids = ["ROCOv2_2023_train_000001", "ROCOv2_2023_train_000002"]
    put(tmp_path, [f"train_images/train/{ids[0]}.jpg", f"train_images/{ids[1]}.jpg"])
    captions = f'ID,Caption\n{ids[1]},"Axial CT,\ncontrast"\n{ids[0]},Film.\n'
    put(tmp_path, {"train_captions.csv": captions, "train_concepts.csv": f"ID,CUIs\n{ids[0]},C0040405;C0817096\n"})
    studies, problems, source = read("roco", tmp_path, edition="rocov2")
    assert problems == []
    assert studies[ids[0]].attributes == {"concepts": "C0040405;C0817096"}
    assert studies[ids[1]].report == "Axial CT,\ncontrast"
    assert source.summary()["edition"] == "subset: 2 of 79,789"


def test_medicat_reads_json_lines_and_marks_articles(tmp_path: Path) -> None:
    lines = [
        {
            "pdf_hash": "ab",
            "fig_uri": "2-Figure1-1.png",
            "s2_caption": "CT",
            "s2orc_references": None,
            "radiology": True,
        },
        {"pdf_hash": "ab", "fig_uri": "3-Figure2-1.png", "s2_caption": "Plot", "radiology": False},
        {"pdf_hash": "cd", "s2_caption": "?"},
    ]
    put(tmp_path, ["release/figures/ab_2-Figure1-1.png", "release/figures/ab_3-Figure2-1.png"])
    put(tmp_path, {f"release/{JSONL}": "\n".join([*map(json.dumps, lines), "{", ""])})
    studies, problems, source = read("roco", tmp_path, edition="medicat")
    (study,) = studies.values()
    assert (study.study_id, study.report, study.split) == ("ab_2-Figure1-1.png", "CT", None)
    assert study.attributes == {"article": "ab", "kind": "radiology"}
    assert source.counts["figures left out, they are no radiology"] == 1
    assert [problem.path.split(":")[1] for problem in problems] == ["3", "4"]
    assert len(read("roco", tmp_path, edition="medicat", figures="all")[0]) == 2


@pytest.mark.parametrize("edition", ["roco", "rocov2", "medicat"])
def test_the_wrong_edition_says_so(tmp_path: Path, edition: str) -> None:
    with pytest.raises(UserError, match=r"none of|is missing|no image"):
        read("roco", tmp_path, edition=edition)


def test_roco_is_found_in_the_folder_data_of_its_repository(tmp_path: Path) -> None:
    put(tmp_path, ["data/validation/radiology/images/ROCO_00009.jpg"])
    put(tmp_path, {"data/validation/radiology/captions.txt": "ROCO_00009\tAn MRI.\n"})
    studies, problems, _ = read("roco", tmp_path)
    assert problems == []
    assert [(study.split, study.images[0].path) for study in studies.values()] == [
        ("val", "data/validation/radiology/images/ROCO_00009.jpg")
    ]

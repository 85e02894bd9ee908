"""Boxes that do not fit their images: a copy of the images at another size must not keep boxes that look right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlp.config.prepare import PrepareConfig
from medvlp.store.array_store import Store
from medvlp.store.boxes import boxes_that_fit
from medvlp.store.prepare import prepare
from medvlp.types import Box, ImageRef, Study

BOXES = {  # in pixels of 1024 x 1024
    "a": [(100, 700, 200, 200)],
    "b": [(600, 300, 100, 300), (50, 50, 100, 100)],
    "c": [(20, 30, 100, 60)],
    "d": [(700, 700, 250, 260)],
}


def studies() -> list[Study]:
    return [
        Study(name, name, (ImageRef(name, f"{name}.png"),), boxes=tuple(Box(name, "Mass", *box) for box in boxes))
        for name, boxes in BOXES.items()
    ]


def files(**size: tuple[int, int]) -> list[dict[str, object]]:
    return [
        {"image_id": name, "path": f"{name}.png", "height": size.get(name, (1024, 1024))[0],
         "width": size.get(name, (1024, 1024))[1]}
        for name in BOXES
    ]  # fmt: skip


def test_images_of_the_released_size_keep_all_boxes() -> None:
    kept, problems = boxes_that_fit(studies(), files())
    assert kept == studies()
    assert problems == []


def test_a_box_over_the_edge_is_kept_and_one_outside_takes_those_of_its_image() -> None:
    # d reaches 950 x 960: of an image 900 wide and 900 high (200 / 250) * (200 / 260) = 62 % lie inside
    kept, problems = boxes_that_fit(studies(), files(d=(900, 900), b=(1024, 512)))
    assert [len(study.boxes) for study in kept] == [1, 0, 1, 1]
    assert [(problem.path, problem.study_id) for problem in problems] == [("b.png", "b")]
    assert "outside the image of 512 x 1024 pixels" in problems[0].reason
    _, problems = boxes_that_fit(studies(), files(d=(850, 850)))  # (150 / 250) * (150 / 260) = 35 %
    assert [problem.study_id for problem in problems] == ["d"]


def test_where_most_images_do_not_fit_no_box_is_kept() -> None:
    kept, problems = boxes_that_fit(studies(), files(**dict.fromkeys(BOXES, (256, 256))))
    assert [study.boxes for study in kept] == [()] * 4
    assert [problem.study_id for problem in problems] == ["a", "b", "c", "d"]
    assert problems[2].reason.startswith("the boxes of most images lie outside")  # c fits by chance


def test_images_that_are_not_in_the_store_are_not_judged() -> None:
    kept, problems = boxes_that_fit(studies(), files()[:1])
    assert kept == studies()
    assert problems == []


@pytest.mark.parametrize(("side", "left"), [(1024, 2), (224, 0)])
def test_nih_reduced_by_somebody(tmp_path: Path, side: int, left: int) -> None:
    names = [f"0000000{patient}_000.png" for patient in (1, 2, 3)]
    (tmp_path / "images").mkdir()
    for name in names:
        Image.fromarray(np.full((side, side), 90, np.uint8)).save(tmp_path / "images" / name)
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    rows = "".join(f"{name},Mass,0,{int(name[:8])},50,M,PA\n" for name in names)
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(header + rows, encoding="utf-8")
    (tmp_path / "train_val_list.txt").write_text(names[0], encoding="utf-8")
    (tmp_path / "test_list.txt").write_text("\n".join(names[1:]), encoding="utf-8")
    boxes = f"{names[1]},Mass,600,500,100,80\n{names[2]},Mass,300,700,90,70\n"
    table = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + boxes
    (tmp_path / "BBox_List_2017.csv").write_text(table, encoding="utf-8")
    settings = {"source": "nih_chestxray14", "root": tmp_path, "out": tmp_path / "store", "image": {"size": 16}}
    settings |= {"num_workers": 1, "max_quarantine_share": 1, "val_fraction": 0}
    summary = prepare(PrepareConfig.model_validate(settings))
    store = Store.open(tmp_path / "store")
    assert len(store) == 3
    assert sum(len(json.loads(cell)) for cell in store.studies["boxes"]) == left
    assert summary.quarantined == 2 - left

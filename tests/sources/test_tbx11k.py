"""The TBX11K adapter: the real sample against its JSON, and hand-written COCO files and tables with their faults."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from raw import put, read, reasons

from medvlp.errors import UserError

CATEGORIES = [{"id": 1, "name": "ActiveTuberculosis"}, {"id": 2, "name": "ObsoletePulmonaryTuberculosis"},
              {"id": 3, "name": "PulmonaryTuberculosis"}]  # fmt: skip
NAMES = ("tb/tb0001.png", "tb/tb0002.png", "health/h0001.png", "sick/s0001.png")


def coco(names: tuple[str, ...], boxes: list[tuple[int, int, list[float]]]) -> str:
    images = [{"id": n, "file_name": name, "width": 512, "height": 512} for n, name in enumerate(names)]
    marks = [{"id": n, "image_id": i, "category_id": c, "bbox": b} for n, (i, c, b) in enumerate(boxes)]
    return json.dumps({"categories": CATEGORIES, "images": images, "annotations": marks})


def full(root: Path, boxes: list[tuple[int, int, list[float]]], **lists: tuple[str, ...]) -> Path:
    put(root, [f"imgs/{name}" for name in NAMES] + ["imgs/test/x1.png", "imgs/extra/e1.png"])
    texts = {
        split: coco(names, boxes if split == "train" else []) for split, names in ({"train": NAMES} | lists).items()
    }
    return put(root, {f"annotations/json/TBX11K_{split}.json": text for split, text in texts.items()})


@pytest.mark.data
def test_the_real_sample_equals_its_json(test_data: Path) -> None:
    root = test_data / "tbx11k_mini"
    studies, problems, source = read("tbx11k", root)
    assert problems == []
    assert list(studies) == ["h0001", "tb0005", "tb0007"]
    raw = json.loads((root / "annotations/json/TBX11K_train.json").read_text())
    boxes = [[box.x, box.y, box.width, box.height] for study in studies.values() for box in study.boxes]
    assert boxes == [mark["bbox"] for mark in raw["annotations"]]
    assert [box.label for box in studies["tb0007"].boxes] == ["Latent tuberculosis"] * 2
    assert studies["tb0005"].labels == {
        "Tuberculosis": 1, "Active tuberculosis": 1, "Latent tuberculosis": 0, "Sick but not tuberculosis": 0,
        "Healthy": 0,
    }  # fmt: skip
    assert studies["h0001"].labels["Healthy"] == 1
    assert source.summary()["edition"] == "subset: 3 of 8,400"


def test_active_and_latent_are_said_by_boxes_alone(tmp_path: Path) -> None:
    studies, problems, _ = read("tbx11k", full(tmp_path, [(0, 3, [1, 2, 3, 4])]))
    assert problems == []
    first, second = studies["tb0001"].labels, studies["tb0002"].labels
    assert [first[name] for name in ("Tuberculosis", "Active tuberculosis", "Latent tuberculosis")] == [1, -1, -1]
    assert second["Tuberculosis"] == 1
    assert math.isnan(second["Active tuberculosis"])
    assert math.isnan(second["Latent tuberculosis"])
    assert studies["s0001"].labels["Active tuberculosis"] == 0
    assert studies["s0001"].labels["Sick but not tuberculosis"] == 1


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((0, 9, [1, 2, 3, 4]), "unknown category 'None'"),
        ((0, 1, [1, 2, 0, 4]), "without an area"),
        ((0, 1, [2000, 1500, 300, 300]), "outside the image of 512 x 512"),
        ((0, 1, [300, 5, 300, 5]), "outside the image of 512 x 512"),
        ((0, 1, [5, 300, 5, 300]), "outside the image of 512 x 512"),
        ((0, 1, [1, 2, 3]), "3 numbers"),
        ((0, 1, [5, 5, 5, 5]), "occurs twice"),
    ],
)
def test_bad_boxes_are_left_out(tmp_path: Path, box: Any, reason: str) -> None:
    studies, problems, _ = read("tbx11k", full(tmp_path, [(0, 1, [5, 5, 5, 5]), box]))
    assert [reason in problem.reason for problem in problems] == [True]
    assert len(studies["tb0001"].boxes) == 1
    assert studies["tb0001"].labels["Active tuberculosis"] == 1
    assert math.isnan(studies["tb0001"].labels["Latent tuberculosis"])


def test_faults_of_the_coco_files(tmp_path: Path) -> None:
    root = full(tmp_path, [(2, 1, [1, 2, 3, 4]), (7, 1, [1, 2, 3, 4])], val=("tb/tb0001.png", "tb/tb0009.png"))
    put(root, ["imgs/tb/tb0010.png"])
    studies, problems, source = read("tbx11k", root, test_images=True)
    assert list(studies) == ["s0001", "tb0002", "x1"]
    assert studies["x1"].labels == {}
    assert studies["x1"].split == "test"
    found = reasons(problems)
    assert found["tb0001"] == "tb/tb0001.png is in both COCO files"
    assert found["tb0009"] == "row without image: imgs/tb/tb0009.png is missing"
    assert found["h0001"] == "there is a box on an image of the class health"
    assert found["tb/tb0010.png"] == "the image is not in a COCO file"
    assert "unknown image 7" in found["annotations/json/TBX11K_train.json:annotation 1"]
    assert source.problems == problems
    assert "images of imgs/test left out" in read("tbx11k", root)[2].counts


def test_another_structure_is_named_and_no_traceback(tmp_path: Path) -> None:
    root = put(full(tmp_path, []), {"annotations/json/TBX11K_val.json": '{"images": []}'})
    with pytest.raises(UserError, match="another structure than expected: missing key 'annotations'"):
        read("tbx11k", root)
    (root / "annotations/json/TBX11K_val.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        read("tbx11k", root)


def test_a_name_that_tells_no_class_is_not_called_healthy(tmp_path: Path) -> None:
    header = "fname,image_height,image_width,source,bbox,target,tb_type,image_type"
    rows = [f"{name}.png,512,512,train,none,no_tb,none,healthy" for name in ("h0001", "x0002", "t0003", "hs0004")]
    put(tmp_path, {"data.csv": "\n".join([header, *rows])})
    names = ("h0001", "x0002", "t0003", "hs0004", "s0005", "test_0006")
    root = put(tmp_path, [f"images/{name}.png" for name in names])
    studies, problems, source = read("tbx11k", root, edition="simplified")
    assert list(studies) == ["h0001"]
    found = reasons(problems)
    assert [name for name, reason in found.items() if "tells no class" in reason] == ["x0002", "t0003", "hs0004"]
    assert found["s0005"] == "the image is not in data.csv"
    assert "test_0006" not in found
    assert source.counts["images whose name tells no class, without a row, left out"] == 1


def test_the_simplified_table_has_one_row_per_box(tmp_path: Path) -> None:
    place = "\"{'xmin': 1.5, 'ymin': 2, 'width': 3, 'height': 4}\""
    rows = [
        "h0001.png,512,512,train,none,no_tb,none,healthy",
        f"tb0001.png,512,512,val,{place},tb,active_tb,tb",
        f"tb0001.png,512,512,val,{place.replace('1.5', '9')},tb,latent_tb,tb",
        f"tb0002.png,512,512,val,{place},tb,aktive_tb,tb",
        "tb0003.png,512,512,val,none,no_tb,none,tb",
        f"s0001.png,512,512,train,{place},no_tb,active_tb,sick",
        "s0002.png,512,512,train,none,no_tb,none,sick",
        "s0002.png,512,512,val,none,no_tb,none,sick",
        "tb0004.png,512,512,train,\"__import__('os')\",tb,active_tb,tb",
    ]
    header = "fname,image_height,image_width,source,bbox,target,tb_type,image_type"
    put(tmp_path, {"data.csv": "\n".join([header, *rows])})
    names = ("h0001", "tb0001", "tb0002", "tb0003", "s0001", "s0002", "tb0004")
    studies, problems, _ = read("tbx11k", put(tmp_path, [f"images/{name}.png" for name in names]), edition="simplified")
    assert [(name, study.split) for name, study in studies.items()] == [
        ("h0001", "train"), ("tb0001", "val"), ("tb0002", "val"), ("tb0004", "train"),
    ]  # fmt: skip
    assert [(box.label, box.x) for box in studies["tb0001"].boxes] == [
        ("Active tuberculosis", 1.5), ("Latent tuberculosis", 9),
    ]  # fmt: skip
    found = reasons(problems)
    assert "unknown category 'aktive_tb'. Did you mean 'active_tb'?" in found["tb0002"]
    assert "target 'no_tb' contradicts the file name" in found["tb0003"]
    assert "box on an image of the class sick" in found["s0001"]
    assert "contradict each other" in found["s0002"]
    assert "no number" in found["tb0004"]


def test_a_box_cell_that_is_nested_without_end_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    header = "fname,image_height,image_width,source,bbox,target,tb_type,image_type"
    rows = [
        f"tb0001.png,512,512,train,{'-' * 3000}1,tb,active_tb,tb",
        "h0001.png,512,512,train,none,no_tb,none,healthy",
    ]
    put(tmp_path, {"data.csv": "\n".join([header, *rows])})
    root = put(tmp_path, ["images/tb0001.png", "images/h0001.png"])
    studies, problems, _ = read("tbx11k", root, edition="simplified")
    assert not studies["tb0001"].boxes
    assert len(problems) == 1

"""The SIIM-ACR adapter: both spellings of -1, union of rows, run lengths by hand, and the PNG edition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raw import put, read, reasons

from medvlp.errors import UserError
from medvlp.sources._runs import decode_gaps, runs_of

TRAIN = "dicom-images-train"


def dicom(root: Path, *rows: str, header: str = "ImageId, EncodedPixels") -> Path:
    put(root, [f"{TRAIN}/s{name}/e{name}/1.2.{name}.dcm" for name in "abc"])
    return put(root, {"train-rle.csv": "\n".join([header, *rows])})


def test_gaps_run_down_the_columns_from_the_end_of_the_run_before() -> None:
    mask = decode_gaps("1 2 3 1", (3, 4))
    assert mask.astype(int).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert runs_of(mask) == (2, 1, 4, 1, 8, 1)
    assert runs_of(np.ones((2, 3), bool)) == (0, 6)
    assert runs_of(np.zeros((2, 3), bool)) == ()


@pytest.mark.parametrize("text", ["", "5", "1 2 3", "1 0", "10 3", "a b", "-1 2", "1.0 2"])
def test_run_lengths_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"pairs|does not fit"):
        decode_gaps(text, (3, 4))


@pytest.mark.parametrize("none", ["-1", " -1"])
@pytest.mark.parametrize("header", ["ImageId, EncodedPixels", "ImageId,EncodedPixels"])
def test_minus_one_is_negative_in_both_spellings(tmp_path: Path, none: str, header: str) -> None:
    root = dicom(tmp_path, f"1.2.a,{none}", "1.2.b, 557374 2 1015 8", f"1.2.c,{none}", header=header)
    studies, problems, _ = read("siim_acr", root)
    assert problems == []
    assert [study.labels["Pneumothorax"] for study in studies.values()] == [0, 1, 0]
    assert studies["1.2.a"].masks == ()
    (mask,) = studies["1.2.b"].masks
    pixels = np.zeros((1024, 1024), bool)
    pixels[557374 % 1024 :, 557374 // 1024][:2] = True
    second = 557374 + 2 + 1015
    pixels[second % 1024 :, second // 1024][:8] = True
    assert mask.size == (1024, 1024)
    assert mask.runs == runs_of(pixels)
    assert sum(mask.runs[1::2]) == 10
    assert studies["1.2.b"].images[0].path == f"{TRAIN}/sb/eb/1.2.b.dcm"


def test_all_rows_of_an_image_make_one_mask(tmp_path: Path) -> None:
    root = dicom(tmp_path, "1.2.a,0 2", "1.2.b,-1", "1.2.a,1024 1", "1.2.a,1 2", "1.2.a,0 2", "1.2.c,-1")
    studies, problems, _ = read("siim_acr", root)
    assert studies["1.2.a"].masks[0].runs == (0, 2, 1024, 1, 2048, 1)
    assert [(problem.path, problem.reason) for problem in problems] == [
        ("train-rle.csv:6", "the same row occurs twice")
    ]


def test_broken_and_contradicting_rows_leave_the_image_out(tmp_path: Path) -> None:
    root = dicom(tmp_path, "1.2.a,-1", "1.2.a,0 2", "1.2.b,0 2 1048575 9", "1.2.c,", "1.2.d,-1")
    studies, problems, _ = read("siim_acr", root)
    assert studies == {}
    found = reasons(problems)
    assert "one row says -1" in found["1.2.a"]
    assert "does not fit 1024 x 1024" in found["1.2.b"]
    assert "no pairs of whole numbers" in found["1.2.c"]
    assert "row without image" in found["1.2.d"]


def test_the_table_of_the_second_stage_goes_before_that_of_the_first(tmp_path: Path) -> None:
    root = put(dicom(tmp_path, "1.2.a,-1", "1.2.b,-1", "1.2.c,-1"), ["dicom-images-test/s/e/1.2.t.dcm"])
    rows = ["ImageId,EncodedPixels", "1.2.a,-1", "1.2.b,0 2", "1.2.c,-1", "1.2.t,0 2"]
    studies, problems, source = read("siim_acr", put(root, {"stage_2_train.csv": "\n".join(rows)}))
    assert problems == []
    assert {name[-1]: (study.split, study.labels["Pneumothorax"]) for name, study in studies.items()} == {
        "a": ("train", 0), "b": ("train", 1), "c": ("train", 0), "t": ("test", 1),
    }  # fmt: skip
    assert source.counts["tables left out for stage_2_train.csv"] == 1


def test_hidden_test_images_are_counted_and_training_images_without_a_row_named(tmp_path: Path) -> None:
    root = put(dicom(tmp_path, "1.2.a,-1", "1.2.b,-1"), ["dicom-images-test/s/e/1.2.t.dcm"])
    studies, problems, source = read("siim_acr", root)
    assert list(studies) == ["1.2.a", "1.2.b"]
    assert reasons(problems) == {"1.2.c": "the image is not in train-rle.csv"}
    assert source.counts["images of the test folder without a row"] == 1


def png(root: Path, train: list[str], test: list[str], images: list[str], masks: list[str]) -> Path:
    put(root, [f"png_images/{name}.png" for name in images] + [f"png_masks/{name}.png" for name in masks])
    tables = {"train": train, "test": test}
    header = "new_filename,ImageId,has_pneumo"
    return put(root, {f"stage_1_{split}_images.csv": "\n".join([header, *rows]) for split, rows in tables.items()})


def test_the_png_edition_checks_names_against_rows(tmp_path: Path) -> None:
    train = ["0_train_1_.png,1.2,1", "1_train_0_.png,1.3,0", "2_train_0_.png,1.4,1", "3_train_1_.png,1.5,1"]
    names = ["0_train_1_", "1_train_0_", "2_train_0_", "3_train_1_", "0_test_0_"]
    root = png(tmp_path, train, ["0_test_0_.png,1.6,0"], names, ["0_train_1_", "1_train_0_", "0_test_0_"])
    studies, problems, _ = read("siim_acr", root, edition="png")
    assert {name: (study.split, study.labels["Pneumothorax"]) for name, study in studies.items()} == {
        "0_test_0_": ("test", 0), "0_train_1_": ("train", 1), "1_train_0_": ("train", 0),
    }  # fmt: skip
    assert studies["0_train_1_"].masks[0].path == "png_masks/0_train_1_.png"
    assert studies["1_train_0_"].masks == ()
    assert "contradicts its row" in reasons(problems)["2_train_0_"]
    assert "mask 3_train_1_.png is missing" in reasons(problems)["3_train_1_"]


def test_one_image_in_both_tables_of_the_png_edition_stops_the_run(tmp_path: Path) -> None:
    row = "0_train_0_.png,1.2,0"
    with pytest.raises(UserError, match="in both tables"):
        read("siim_acr", png(tmp_path, [row], [row], ["0_train_0_"], []), edition="png")

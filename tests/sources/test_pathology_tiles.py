"""The adapter of pathology tiles: videos as groups, several captions of one image, and every kind of bad row."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw import put, read, reasons

from medvlp.errors import UserError
from medvlp.types import UNKNOWN_PATIENT


def quilt(root: Path, rows: list[str], names: list[str], columns: str = "") -> Path:
    put(root, names)
    header = f",caption,image_path,subset,split,pathology,magnification{columns}"
    return put(root, {"quilt_1M_lookup.csv": "\n".join([header, *rows])})


def test_tiles_are_grouped_by_video_and_captions_joined(tmp_path: Path) -> None:
    names = ["a/6GRDeJ_zU_image_1.jpg", "b/6GRDeJ_zU_image_2.jpg", "b/twitter_60_0.jpg"]
    rows = [
        '0,"Gland, left.",6GRDeJ_zU_image_1.jpg,quilt,train,"[\'Skin\']",2.0',
        "1,Second.,6GRDeJ_zU_image_1.jpg,quilt,train,['Skin'],2.0",
        "2,Third.,6GRDeJ_zU_image_2.jpg,quilt,train,,",
        "3,A tweet.,twitter_60_0.jpg,openpath,holdout,,",
        "4,A tweet.,twitter_60_0.jpg,openpath,holdout,,",
        "5,,6GRDeJ_zU_image_2.jpg,quilt,train,,",
    ]
    studies, problems, source = read("pathology_tiles", quilt(tmp_path, rows, names), edition="quilt")
    first = studies["6GRDeJ_zU_image_1"]
    assert (first.patient_id, first.report, first.split) == ("6GRDeJ_zU", "Gland, left.\nSecond.", "train")
    assert first.images[0].path == "a/6GRDeJ_zU_image_1.jpg"
    assert first.images[0].modality == "SM"
    assert first.attributes == {"subset": "quilt", "pathology": "['Skin']", "magnification": "2.0"}
    assert studies["6GRDeJ_zU_image_2"].patient_id == "6GRDeJ_zU"
    tweet = studies["twitter_60_0"]
    assert (tweet.patient_id, tweet.split) == (UNKNOWN_PATIENT, None)
    assert source.counts["images with an unknown split"] == 1
    assert [problem.reason for problem in problems] == ["the caption is empty", "the same caption occurs twice"]


def test_marked_images_can_be_left_out(tmp_path: Path) -> None:
    rows = ["0,One.,v_image_1.jpg,quilt,train,,,1.0", "1,Two.,v_image_2.jpg,quilt,train,,,0.0"]
    root = quilt(tmp_path, rows, ["v_image_1.jpg", "v_image_2.jpg"], ",not_histology")
    assert len(read("pathology_tiles", root, edition="quilt")[0]) == 2
    studies, problems, source = read("pathology_tiles", root, edition="quilt", histology="only")
    assert list(studies) == ["v_image_2"]
    assert source.counts["images left out, they are no histology"] == 1
    assert problems == []


def test_bad_rows_of_a_table_of_ones_own(tmp_path: Path) -> None:
    put(tmp_path, ["t/a.png", "t/b.png", "t/c.png", "t/d.png"])
    rows = ["t/a.png,One,p1,train", "t/b.png,Two,p2,train", "t/b.png,More,p3,train", "t/e.png,Lost,p1,train",
            "../x.png,Out,p1,train", "t/c.png,Three,,test"]  # fmt: skip
    put(tmp_path, {"tiles.csv": "\n".join(["image,caption,patient,split", *rows])})
    studies, problems, _ = read("pathology_tiles", tmp_path)
    assert {name: study.patient_id for name, study in studies.items()} == {"t/a": "p1", "t/c": UNKNOWN_PATIENT}
    assert reasons(problems) == {
        "t/b": "the rows of the image have different patients or splits",
        "t/e": "row without image: t/e.png",
        "../x": "the path leaves the root",
        "t/d.png": "the image is not in tiles.csv",
    }


def test_splits_of_a_table_of_ones_own_are_never_lost(tmp_path: Path) -> None:
    put(tmp_path, [f"{name}.png" for name in "abcd"])
    rows = ["a.png,One,p1,Training", "b.png,Two,p2,dev", "c.png,Three,p3,", "d.png,Four,p4,holdout"]
    put(tmp_path, {"tiles.csv": "\n".join(["image,caption,patient,split", *rows])})
    studies, problems, source = read("pathology_tiles", tmp_path)
    assert {name: study.split for name, study in studies.items()} == {"a": "train", "b": "val", "c": None}
    assert "the split is none of train" in reasons(problems)["d"]
    assert source.counts["images with an unknown split"] == 1
    assert list(read("pathology_tiles", tmp_path, split="none")[0]) == ["a", "b", "c", "d"]


def test_names_of_tables_from_windows_and_blank_names(tmp_path: Path) -> None:
    put(tmp_path, ["t/a.png", "b.png"])
    rows = [
        "t\\a.png,One,p1,train",
        "./t/a.png,Two,p1,train",
        ",Three,p1,train",
        ".,Four,p1,train",
        "b.png,Five,p1,train",
    ]
    put(tmp_path, {"tiles.csv": "\n".join(["image,caption,patient,split", *rows])})
    studies, problems, _ = read("pathology_tiles", tmp_path)
    assert {name: study.report for name, study in studies.items()} == {"b": "Five", "t/a": "One\nTwo"}
    assert reasons(problems) == {"tiles.csv:4": "the row names no image", "tiles.csv:5": "the row names no image"}


def test_splits_that_are_not_taken_do_not_contradict_each_other(tmp_path: Path) -> None:
    rows = ["0,One.,v_image_1.jpg,quilt,train,,", "1,Two.,v_image_1.jpg,quilt,val,,"]
    root = quilt(tmp_path, rows, ["v_image_1.jpg"])
    assert read("pathology_tiles", root, edition="quilt")[0] == {}
    assert list(read("pathology_tiles", root, edition="quilt", split="none")[0]) == ["v_image_1"]


def test_one_name_in_two_folders_is_ambiguous(tmp_path: Path) -> None:
    root = quilt(tmp_path, ["0,One.,v_image_1.jpg,quilt,train,,"], ["a/v_image_1.jpg", "b/v_image_1.jpg"])
    studies, problems, _ = read("pathology_tiles", root, edition="quilt")
    assert studies == {}
    assert "2 images have this name" in reasons(problems)["v_image_1"]


def test_a_video_in_two_splits_stops_the_run(tmp_path: Path) -> None:
    rows = ["0,One.,v_image_1.jpg,quilt,train,,", "1,Two.,v_image_2.jpg,quilt,test,,"]
    root = quilt(tmp_path, rows, ["v_image_1.jpg", "v_image_2.jpg"])
    with pytest.raises(UserError, match="1 patients are in both test and train: results"):
        read("pathology_tiles", root, edition="quilt")
    studies, _, _ = read("pathology_tiles", root, edition="quilt", split="none")
    assert [study.split for study in studies.values()] == [None, None]

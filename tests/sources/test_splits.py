"""Split lists: the exact faults of BenchX's real lists, and every check on lists written by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from raw import put

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.cards import Card, load_card
from medvlp.sources.splits import apply_split_lists, check_split_lists, read_split_lists
from medvlp.types import UNKNOWN_PATIENT, Box, ImageRef, Study

SETS = {
    "COVIDx": "covidx",
    "NIH_Chest_Xray": "nih_chestxray14",
    "Object-CXR": "object_cxr",
    "RSNA": "rsna_pneumonia",
    "SIIM": "siim_acr",
    "TBX11K": "tbx11k",
    "VinDr_CXR": "vindr_cxr",
}
FAULTS = {
    "COVIDx": [
        "train: 317 of 67,862 lines repeat a name",
        "train_10: 12 of 6,786 lines repeat a name",
        "val: 34 of 8,472 lines repeat a name",
        "every list has one line less than the official split has images: the first line was taken for a header",
    ],
    "NIH_Chest_Xray": ["train_1: only 77 of 785 names are in train_10"],
}
NOTES = {
    "SIIM": ["This is another split than the official one (train 10,675, test 1,372 images)"],
    "TBX11K": ["This is another split than the official one (train 6,600, val 1,800, test 2,800 images)"],
}


@pytest.mark.data
@pytest.mark.parametrize(("folder", "name"), SETS.items())
def test_real_lists_have_exactly_their_known_faults(test_data: Path, folder: str, name: str) -> None:
    lists = read_split_lists(test_data / "benchx_splits" / folder)
    assert lists.sizes == {
        path.stem: len(path.read_text().splitlines()) for path in (test_data / "benchx_splits" / folder).glob("*.txt")
    }
    report = check_split_lists(lists, [load_card(other) for other in SETS.values()])
    assert report.known == f"benchx lists of {name}"
    assert sorted(report.faults) == sorted(FAULTS.get(folder, []))
    assert report.overlaps == []
    if folder in NOTES:
        assert report.notes == NOTES[folder]


@pytest.mark.data
def test_real_lists_on_real_images(test_data: Path) -> None:
    source = SOURCES.get("nih_chestxray14")(test_data / "nih_chestxray14_mini")
    before = list(source.studies())
    lists = read_split_lists(test_data / "benchx_splits" / "NIH_Chest_Xray")
    after, report = apply_split_lists(lists, before, [source.card])
    own = {name: set(lines) for name, lines in lists.names.items()}
    for study in after:
        file = f"{study.study_id}.png"
        assert file in own[str(study.split)]
        assert study.subsets == tuple(name for name in ("train_1", "train_10") if file in own[name])
    assert report.images == {
        name: sum(f"{study.study_id}.png" in lines for study in before) for name, lines in own.items()
    }
    assert len(after) + report.unlisted == len(before)
    # The patients of all three lists are known to be apart.
    assert not [fault for fault in report.faults if "patients" in fault]


def lists(root: Path, **names: str) -> Path:
    return put(root, {f"{name}.txt": "\n".join(text.split()) + "\n" for name, text in names.items()})


def study(name: str, patient: str = UNKNOWN_PATIENT, split: str | None = None, paths: tuple[str, ...] = ()) -> Study:
    images = tuple(ImageRef(f"{name}:{path}", path) for path in paths or (f"images/{name}.png",))
    boxes = tuple(Box(image.image_id, "x", 1, 1, 2, 2) for image in images)
    return Study(name, patient, images, boxes=boxes, split=split)


def apply(root: Path, studies: list[Study]) -> tuple[dict[str, Study], list[str], list[str]]:
    after, report = apply_split_lists(read_split_lists(root), studies, [])
    return {one.study_id: one for one in after}, report.faults + report.overlaps, report.notes


def test_splits_and_subsets_follow_the_lists_and_the_rest_is_left_out(tmp_path: Path) -> None:
    lists(tmp_path, train="a b c", val="d", test="e.png", train_1="a", train_10="a b")
    found, faults, notes = apply(tmp_path, [study(name, name, "train") for name in "abcdef"])
    assert {name: (one.split, one.subsets) for name, one in found.items()} == {
        "a": ("train", ("train_1", "train_10")), "b": ("train", ("train_10",)), "c": ("train", ()), "d": ("val", ()),
        "e": ("test", ()),
    }  # fmt: skip
    assert faults == []
    assert notes == [
        "1 images of the data set's own train are in no list",
        "2 images are in another split than the data set's own",
    ]


def test_faults_are_told_with_numbers(tmp_path: Path) -> None:
    lists(tmp_path, train="a b c c", val="d a", test="e x", train_1="b z", train_10="a")
    found, faults, _ = apply(tmp_path, [study(name, patient) for name, patient in zip("abcde", "12341", strict=True)])
    assert set(faults) == {
        "1 images of the data set are in both train and val",
        "1 names are in both train and val",
        "1 patients are in both val and test",
        "test: 1 of 2 names are no image of the data set",
        "train: 1 of 4 lines repeat a name",
        "train_1: 1 of 2 names are no image of the data set",
        "train_1: only 1 of 2 names are in train",
        "train_10: only 0 of 1 names are in train_1",
    }
    assert len(faults) == 8
    assert found["a"].split == "val"
    assert found["a"].subsets == ()


def test_names_that_differ_by_suffix_alone(tmp_path: Path) -> None:
    images = ["train/a.png", "train/a.jpg", "train/b.png", "train/b.jpg", "train/c.jpeg", "train/c.jpg", "test/a.png"]
    lists(tmp_path, train="train/a.png train/a.png train/b.png train/c.png", test="test/a.png", train_10="train/a.png")
    found, faults, _ = apply(tmp_path, [study(path, paths=(path,)) for path in images])
    assert {name: (one.split, one.subsets) for name, one in found.items()} == {
        "train/a.png": ("train", ("train_10",)), "train/a.jpg": ("train", ()), "train/b.png": ("train", ()),
        "test/a.png": ("test", ()),
    }  # fmt: skip
    assert faults == ["train: 1 of 4 lines repeat a name", "train: 1 names fit several images and were not used"]


def cut_card(root: Path, *, cut: bool) -> Card:
    sizes = {"benchx": read_split_lists(root).sizes}
    card = load_card("covidx")
    assert card.cut_split_lists == ("benchx",)
    return card.model_copy(update={"split_lists": sizes, "cut_split_lists": card.cut_split_lists if cut else ()})


def test_names_cut_at_the_first_dot_mean_all_images_that_they_fit(tmp_path: Path) -> None:
    """As BenchX writes COVIDx: DX.1.2.png and DX.1.3.jpg are both DX.png."""
    images = ["train/DX.1.2.png", "train/DX.1.3.jpg", "train/1.png", "train/1.CXR.jpg", "train/1.CT.jpg"]
    images += ["train/r.a.png", "val/DX.9.png", "test/b.png"]
    lists(
        tmp_path, train="train/DX.png train/DX.png train/1.png train/1.png train/r.png", val="val/DX.png",
        test="test/b.png", train_1="train/DX.png", train_10="train/DX.png train/DX.png train/r.png",
    )  # fmt: skip
    studies = [study(path, paths=(path,)) for path in images]
    after, report = apply_split_lists(read_split_lists(tmp_path), studies, [cut_card(tmp_path, cut=True)])
    assert {one.study_id: (one.split, one.subsets) for one in after} == {
        "train/DX.1.2.png": ("train", ("train_10",)), "train/DX.1.3.jpg": ("train", ("train_10",)),
        "train/r.a.png": ("train", ("train_10",)), "val/DX.9.png": ("val", ()), "test/b.png": ("test", ()),
    }  # fmt: skip
    assert "train: 1 names fit several images and were not used" in report.faults
    assert "train_1: 1 names fit several images and were not used" in report.faults
    assert "train: 3 images are found by names that end at the first dot of the file name" in report.notes
    assert not [fault for fault in report.faults if "no image" in fault]


def test_other_lists_are_not_read_as_cut(tmp_path: Path) -> None:
    lists(tmp_path, train="1 b", test="c")
    studies = [study(name, paths=(f"s/{name}.dcm",)) for name in ("1.2.840", "b", "c")]
    after, report = apply_split_lists(read_split_lists(tmp_path), studies, [cut_card(tmp_path, cut=False)])
    assert [one.study_id for one in after] == ["b", "c"]
    assert "train: 1 of 2 names are no image of the data set" in report.faults


@pytest.mark.data
def test_every_line_of_the_real_covidx_lists_finds_its_image(test_data: Path) -> None:
    own = read_split_lists(test_data / "benchx_splits" / "COVIDx")
    times, seen = Counter(own.names["train"]), Counter[str]()
    images = []
    for line in (line for split in ("train", "val", "test") for line in own.names[split]):
        seen[line] += 1
        dots = f".{seen[line]}.840" if times[line] > 1 or line.startswith("val/") else ""
        images.append(ImageRef(f"{line}{seen[line]}", line.removesuffix(".png") + dots + ".jpg"))
    studies = [Study(image.image_id, UNKNOWN_PATIENT, (image,)) for image in images]
    _, report = apply_split_lists(own, studies, [load_card("covidx")])
    assert {name: report.images[name] for name in ("train", "val", "test")} == {
        "train": 67862,
        "val": 8472,
        "test": 8481,
    }
    assert report.unlisted == 0
    assert not [fault for fault in report.faults if "no image" in fault]


def test_dots_of_a_uid_are_no_suffix(tmp_path: Path) -> None:
    lists(tmp_path, train="1.2.34", test="1.2.35.dcm")
    found, faults, _ = apply(tmp_path, [study("x", paths=("s/1.2.34.dcm",)), study("y", paths=("s/1.2.35.dcm",))])
    assert [one.split for one in found.values()] == ["train", "test"]
    assert faults == []


def test_a_study_keeps_its_listed_images_alone_and_is_never_parted(tmp_path: Path) -> None:
    lists(tmp_path / "one", train="a c", test="d")
    both = study("s", paths=("i/a.png", "i/b.png"))
    found, _, _ = apply(tmp_path / "one", [both, study("d")])
    assert [image.path for image in found["s"].images] == ["i/a.png"]
    assert [box.image_id for box in found["s"].boxes] == ["s:i/a.png"]
    lists(tmp_path / "two", train="a", test="b")
    with pytest.raises(UserError, match="images of one study are in test and train"):
        apply(tmp_path / "two", [both])


def test_unusable_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train\.txt"):
        read_split_lists(put(tmp_path, {"test.txt": "a\n"}))
    put(tmp_path, {"train.txt": "\n"})
    with pytest.raises(UserError, match=r"train\.txt is empty"):
        read_split_lists(tmp_path)
    lists(tmp_path, train="a")
    with pytest.raises(UserError, match="No name of the lists is an image of the data set; the first name is a"):
        apply(tmp_path, [study("q")])


def test_lists_of_another_size_than_the_card_knows(tmp_path: Path) -> None:
    report = check_split_lists(read_split_lists(lists(tmp_path, train="a b", test="c")), [load_card("rsna_pneumonia")])
    assert report.known is None
    assert "train has 2 lines instead of 18,678" in report.notes[0]

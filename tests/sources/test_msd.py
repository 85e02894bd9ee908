"""Traps of the decathlon: permuted parts of the brain tumour, files of macOS, channels, lists that do not match."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.phantom.layouts.msd import nifti_channels
from medvlp.types import Study

BRAIN = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
CHANNELS = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}


def write(root: Path, task: str, training: list[str], test: list[str], **fields: object) -> Path:
    """Write empty files for the entries, and the list."""
    folder = root / task
    content: dict[str, object] = {"modality": {"0": "CT"}, "numTraining": len(training), "relase": "1.0"}
    content["training"] = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in training]
    content["test"] = [f"./imagesTs/{name}.nii.gz" for name in test]
    for part, names in (("imagesTr", training), ("labelsTr", training), ("imagesTs", test)):
        (folder / part).mkdir(parents=True)
        for name in names:
            (folder / part / f"{name}.nii.gz").write_bytes(b"")
            (folder / part / f"._{name}.nii.gz").write_bytes(b"")
    (folder / "dataset.json").write_text(json.dumps(content | fields))
    return folder


def read(root: Path, **options: str) -> tuple[list[Study], list[str], Source]:
    source = SOURCES.get("msd")(root, options)
    return list(source.studies()), [f"{problem.path}: {problem.reason}" for problem in source.problems], source


def test_cases_by_number_and_the_task_by_its_folder(tmp_path: Path) -> None:
    folder = write(tmp_path, "Task09_Spleen", ["spleen_10", "spleen_2"], ["spleen_1"], labels={"0": "x", "1": "spleen"})
    for root in (tmp_path, folder):
        studies, problems, source = read(root)
        assert [(study.study_id, study.split, len(study.masks)) for study in studies] == [
            ("spleen_2", "train", 1), ("spleen_10", "train", 1), ("spleen_1", "test", 0)
        ]  # fmt: skip
        assert problems == []
        assert source.summary() == {"edition": "subset: 2 of 41"}
        assert (root / studies[0].images[0].path).is_file()


def test_parts_of_the_brain_tumour_in_the_order_of_brats_are_refused(tmp_path: Path) -> None:
    brats = {"0": "background", "1": "non-enhancing tumor", "2": "edema", "3": "enhancing tumour"}
    write(tmp_path, "Task01_BrainTumour", ["BRATS_001"], [], labels=brats, modality=CHANNELS)
    with pytest.raises(UserError, match=r"1: 'non-enhancing tumor', 2: 'edema'"):
        read(tmp_path)


def test_one_channel_of_four_is_read_and_named(tmp_path: Path) -> None:
    write(tmp_path, "Task01_BrainTumour", ["BRATS_001"], [], labels=BRAIN, modality=CHANNELS)
    for options, number, name in (({}, 0, "FLAIR"), ({"channel": "T2w"}, 3, "T2w")):
        (study,), _, _ = read(tmp_path, **options)
        assert study.images[0].facts is not None
        assert (study.images[0].facts.channel, study.attributes) == (number, {"channel": name})
        assert study.images[0].modality == "MR"
    with pytest.raises(UserError, match=r"no channel 'T2'\. Did you mean 'T2w'"):
        read(tmp_path, channel="T2")
    folder = tmp_path / "Task01_BrainTumour" / "dataset.json"
    folder.write_text(folder.read_text().replace("FLAIR", "T2 FLAIR").replace('"T1w"', '"T2w "'))
    with pytest.raises(UserError, match="The channels are T2 FLAIR, T2w"):
        read(tmp_path)


def test_lists_and_files_that_do_not_match(tmp_path: Path) -> None:
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    folder = write(tmp_path, "Task03_Liver", ["liver_0", "liver_1", "liver_2"], [], labels=labels, numTraining=64)
    (folder / "imagesTr" / "liver_0.nii.gz").rename(folder / "imagesTr" / "liver_9.nii.gz")
    (folder / "labelsTr" / "liver_1.nii.gz").unlink()
    content = json.loads((folder / "dataset.json").read_text())
    content["test"] = ["./imagesTs/../../../secret.nii.gz"]
    content["training"].append(content["training"][2])
    (folder / "dataset.json").write_text(json.dumps(content))
    studies, problems, source = read(tmp_path)
    assert [(study.study_id, len(study.masks)) for study in studies] == [("liver_1", 0), ("liver_2", 2)]
    assert problems == [
        "dataset.json: training[3]: the file is listed twice; the first is kept",
        "dataset.json: test[0]: the entry names no file of the task",
        "dataset.json: liver_0 is listed, and there is no such volume",
        "Task03_Liver/imagesTr/liver_1.nii.gz: the volume has no label map",
        "Task03_Liver/imagesTr/liver_9.nii.gz: the file is not in dataset.json",
    ]
    assert source.summary()["numTraining is 64, and so many cases are listed"] == 3


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"modality": ["CT"]}, "The channels are not given"),
        ({"training": {"image": "x"}}, "`training` of dataset.json is no list"),
        ({"test": "x"}, "`test` of dataset.json is no list"),
        ({"labels": ["background", "liver", "cancer"]}, "no mapping `labels`"),
    ],
)
def test_a_list_of_another_form_is_refused(tmp_path: Path, fields: dict[str, object], what: str) -> None:
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    folder = write(tmp_path, "Task03_Liver", ["liver_0"], [], labels=labels)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | fields))
    with pytest.raises(UserError, match=what):
        read(tmp_path)


def test_an_entry_whose_label_is_no_path_is_named(tmp_path: Path) -> None:
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    folder = write(tmp_path, "Task03_Liver", ["liver_0", "liver_1"], [], labels=labels)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][0]["label"] = 7
    (folder / "dataset.json").write_text(json.dumps(content))
    studies, problems, _ = read(tmp_path)
    assert [study.study_id for study in studies] == ["liver_1"]
    assert problems[0] == "dataset.json: training[0]: the entry names no file of the task"


def test_several_tasks_need_a_name(tmp_path: Path) -> None:
    write(tmp_path, "Task09_Spleen", ["spleen_1"], [], labels={"1": "spleen"})
    write(tmp_path, "Task06_Lung", ["lung_1"], [], labels={"1": "cancer"})
    with pytest.raises(UserError, match="several tasks") as caught:
        read(tmp_path)
    assert "Task06_Lung, Task09_Spleen" in caught.value.fix
    assert read(tmp_path, task="Task06_Lung")[0][0].study_id == "lung_1"


def test_files_with_channels_are_what_nibabel_reads(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.array([[0, 0, 1.5, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    (tmp_path / "x.nii.gz").write_bytes(nifti_channels([array, array + 100], affine))
    image = nibabel.load(tmp_path / "x.nii.gz")
    assert image.shape == (4, 3, 2, 2)
    assert np.array_equal(np.asarray(image.dataobj)[..., 1].T, array + 100)


def test_the_label_map_of_another_case_is_used_for_none(tmp_path: Path) -> None:
    names = ["spleen_1", "spleen_2"]
    path = write(tmp_path, "Task09_Spleen", names, [], labels={"0": "x", "1": "spleen"}) / "dataset.json"
    content = json.loads(path.read_text())
    for entry, other in zip(content["training"], names[::-1], strict=True):
        entry["label"] = f"./labelsTr/{other}.nii.gz"
    path.write_text(json.dumps(content))
    studies, problems, _ = read(tmp_path)
    assert [(study.study_id, study.masks) for study in studies] == [("spleen_1", ()), ("spleen_2", ())]
    assert [problem.split(": ")[1] for problem in problems] == [
        f"the list gives {name} the label map of another case" for name in names
    ]

"""Traps of AMOS: MR among CT, the numbering of the kidneys, rows that belong to nobody, files of other numbers."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.types import Intensity, Study

NAMES = [
    *("background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota"),
    *("postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus"),
]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def read(root: Path) -> tuple[list[Study], list[str], dict[str, object]]:
    source = SOURCES.get("amos22")(root)
    studies = list(source.studies())
    return studies, [f"{problem.path}: {problem.reason}" for problem in source.problems], source.summary()


def lists(root: Path, names: list[str]) -> None:
    content = {"labels": dict(zip(map(str, range(16)), names, strict=True)), "training": [], "test": []}
    (root / "dataset.json").write_text(json.dumps(content))


def test_numbers_tell_ct_from_mr_and_the_kidneys_are_right_then_left(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/amos_0500.nii.gz", "labelsTr/amos_0500.nii.gz", "imagesTs/amos_0501.nii.gz")
    touch(tmp_path, "imagesTr/._amos_0500.nii.gz")
    lists(tmp_path, NAMES)
    (ct, mr), problems, _ = read(tmp_path)
    assert problems == []
    assert [(s.images[0].modality, s.images[0].facts.intensity, s.split) for s in (ct, mr)] == [  # type: ignore[union-attr]
        ("CT", Intensity.HU, "train"), ("MR", Intensity.STORED, "test")
    ]  # fmt: skip
    assert {mask.values: mask.label for mask in ct.masks}[(2,)] == "right kidney"
    assert {mask.values: mask.label for mask in ct.masks}[(8,)] == "aorta"
    assert (len(ct.masks), mr.masks) == (15, ())


def test_a_list_that_numbers_the_left_kidney_first_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/amos_0001.nii.gz")
    lists(tmp_path, [*NAMES[:2], NAMES[3], NAMES[2], *NAMES[4:]])
    with pytest.raises(UserError, match=r"2: 'left kidney', 3: 'right kidney'"):
        read(tmp_path)


def test_files_that_do_not_belong(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/amos_5437.nii.gz", "imagesTr/amos_0002.nii.gz", "labelsTr/amos_0003.nii.gz")
    studies, problems, _ = read(tmp_path)
    assert [study.study_id for study in studies] == ["amos_0002"]
    assert sorted(problems) == [
        "imagesTr/amos_0002.nii.gz: the volume has no label map",
        "imagesTr/amos_5437.nii.gz: only amos_0001 to amos_0600 have labels and a known modality",
        "labelsTr/amos_0003.nii.gz: a label map without volume",
    ]


def test_ambiguous_rows_of_the_table_are_not_used(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTs/amos_0500.nii.gz", "imagesTs/amos_0499.nii.gz")
    header = "amos_id,Patient's Birth Date,Patient's Sex,Patient's Age,Site"
    rows = [header, "499,19600101,F,060Y,B", "500,19600101,F,060Y,B", ""]
    (tmp_path / "labeled_data_meta_0000_0599.csv").write_text("\n".join(rows))
    (one, other), _, summary = read(tmp_path)
    assert (one.sex, one.age, one.site) == ("F", 60.0, "B")
    assert (other.sex, other.age, other.site) == (None, None, None)
    assert summary["rows of the table that may belong to another volume, not used"] == 1
    assert "19600101" not in repr(one)


def test_an_empty_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no volume in imagesTr/"):
        read(tmp_path)


def test_lists_of_another_form_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/amos_0001.nii.gz")
    labels = dict(zip(map(str, range(16)), NAMES, strict=True))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "training": 240}))
    with pytest.raises(UserError, match=r"training, validation, test of dataset\.json are not lists"):
        read(tmp_path)


def test_suffixes_in_capitals_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/amos_0001.NII.GZ", "labelsTr/amos_0001.nii")
    (study,), problems, _ = read(tmp_path)
    assert (study.study_id, len(study.masks), problems) == ("amos_0001", 15, [])


def test_rows_are_found_by_number_or_by_name_and_others_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTs/amos_0007.nii.gz", "imagesTs/amos_0008.nii.gz", "imagesTs/amos_0009.nii.gz")
    rows = ["amos_id,Patient's Sex", "7,F", "amos_0008,M", "0009,F", "nine,M"]
    (tmp_path / "labeled_data_meta_0000_0599.csv").write_text("\n".join(rows))
    studies, problems, _ = read(tmp_path)
    assert [study.sex for study in studies] == ["F", "M", "F"]
    assert problems == ["labeled_data_meta_0000_0599.csv:5: amos_id 'nine' is no number of a volume"]


def test_a_label_map_of_another_numbering_is_not_stored(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    for number, value in ((1, 15), (2, 16)):
        for folder, array in (
            ("imagesTr", np.zeros((8, 9, 10), np.int16)),
            ("labelsTr", np.zeros((8, 9, 10), np.uint8)),
        ):
            array[3, 4, 5] = value
            (tmp_path / "raw" / folder).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"raw/{folder}/amos_000{number}.nii.gz")
    config = {"source": "amos22", "root": tmp_path / "raw", "out": tmp_path / "store", "num_workers": 1}
    prepare(PrepareConfig.model_validate({**config, "max_quarantine_share": 1.0}))
    store = Store.open(tmp_path / "store")
    rows = store.images.set_index("image_id")["index"]
    assert (store.has_labels(rows["amos_0001"]), store.has_labels(rows["amos_0002"])) == (True, False)
    assert "values that its list does not have: 16" in (tmp_path / "store/quarantine.jsonl").read_text()

"""Fine-tuning on volumes and prediction for their files: the same answers, label maps on the grid of each file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import tiny_ct

from medvlp import load_encoder
from medvlp.config.finetune import FinetuneConfig
from medvlp.errors import UserError
from medvlp.finetune.run import finetune
from medvlp.infer.predict import predict
from medvlp.store.array_store import Store
from medvlp.tasks._tuned import load_tuned

STRUCTURES = ["heart", "right lower lobe"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ct.make_store(tmp_path_factory.mktemp("tuned_ct"))


def config(store: Path, folder: Path, **fields: Any) -> FinetuneConfig:
    tree = {
        "encoder": "random:vit_tiny_patch16_224@16/8",
        "run": {"dir": folder},
        "data": {"store": store},
        "train": {"steps": 3, "batch_size": 4, "freeze_encoder": True},
        "track": {"mlflow": False},
        "bootstrap_resamples": 20,
        "device": "cpu",
    }
    return FinetuneConfig.model_validate(tree | fields)


@pytest.fixture(scope="module")
def segmenter(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned_ct_run") / "run"
    data = {"store": store, "labels": STRUCTURES}
    finetune(config(store, folder, task="volume_segmentation", data=data, volume_segmentation={"channels": 4}))
    return folder


def test_a_classifier_of_volumes_gives_files_the_answers_of_the_store(store: Path, tmp_path: Path) -> None:
    finetune(config(store, tmp_path / "run", decision={"calibration": "none"}))
    kept = pd.read_parquet(tmp_path / "run" / "predictions" / "test.parquet").set_index("sample_id")
    opened = Store.open(store)
    paths = opened.images.set_index("image_id")["path"]
    files = {str(store.parent / "raw" / paths[name]): name for name in kept.index}
    done = predict(tmp_path / "run", [Path(file) for file in files], tmp_path / "p.csv")
    assert (done.predicted, done.refused, done.what) == (len(kept), 0, "volumes")
    table = pd.read_csv(tmp_path / "p.csv")
    for row in table.to_dict("records"):
        own = kept.loc[files[row["path"]]]
        for column in [name for name in table if name.startswith("probability:")]:
            assert row[column] == pytest.approx(own[column.replace("probability:", "score:")], abs=1e-5)
    assert "taken as HU by its values" in table["notes"].iloc[0]
    again = load_encoder(str(tmp_path / "run"))
    assert again.kind == "volume"
    before = load_encoder("random:vit_tiny_patch16_224@16/8", stored=opened.config)
    rows = np.arange(2)
    np.testing.assert_array_equal(again.encode_rows(opened, rows).pooled, before.encode_rows(opened, rows).pooled)


def test_label_maps_lie_on_the_grid_of_the_file(store: Path, segmenter: Path, tmp_path: Path) -> None:
    file = next((store.parent / "raw" / "volumes").iterdir())
    scan = nibabel.load(file)
    # The same patient with the axes of the file turned: the answer must turn with them.
    turned = scan.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    done = predict(segmenter, [file, tmp_path / "turned.nii.gz"], tmp_path / "p.csv", masks=tmp_path / "masks")
    assert done.predicted == 2
    table = pd.read_csv(tmp_path / "p.csv")
    plain, other = (nibabel.load(tmp_path / "masks" / name) for name in table["mask"])
    assert plain.shape == scan.shape
    assert other.shape == turned.shape
    np.testing.assert_allclose(plain.affine, scan.affine, atol=1e-4)
    np.testing.assert_allclose(other.affine, turned.affine, atol=1e-4)
    values = np.asanyarray(plain.dataobj)
    np.testing.assert_array_equal(
        np.asanyarray(plain.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]])).dataobj), np.asanyarray(other.dataobj)
    )
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    for k, name in enumerate(STRUCTURES, 1):
        assert table[f"voxels:{name}"].iloc[0] == (values == k).sum()
        assert table[f"volume_ml:{name}"].iloc[0] == pytest.approx((values == k).sum() * voxel_ml, rel=1e-4)


def test_a_file_that_places_its_volume_twice_is_answered_by_its_sform(
    store: Path, segmenter: Path, tmp_path: Path
) -> None:
    scan = nibabel.load(next((store.parent / "raw" / "volumes").iterdir()))
    scan.set_qform(scan.affine @ np.diag([-1.0, 1.0, 1.0, 1.0]), 1)
    nibabel.save(scan, tmp_path / "x.nii.gz")
    predict(segmenter, [tmp_path / "x.nii.gz"], tmp_path / "p.csv", masks=tmp_path / "masks")
    table = pd.read_csv(tmp_path / "p.csv")
    assert "sform and qform place it differently" in table["notes"].iloc[0]
    mask = nibabel.load(tmp_path / "masks" / table["mask"].iloc[0])
    for affine in (mask.get_sform(), mask.get_qform()):
        np.testing.assert_allclose(affine, scan.get_sform(), atol=1e-4)


def test_real_volumes_are_answered_or_refused_with_a_reason(
    store: Path, segmenter: Path, test_data: Path, tmp_path: Path
) -> None:
    series, nifti = test_data / "ct_series_abdomen_3slice", test_data / "nifti"
    done = predict(segmenter, [series, nifti], tmp_path / "p.csv", masks=tmp_path / "masks")
    assert (done.predicted, done.refused) == (1, 2)
    assert done.quarantine is not None
    reasons = [json.loads(line)["reason"] for line in done.quarantine.read_text().splitlines()]
    assert all("is in stored" in reason for reason in reasons)
    told = predict(segmenter, [series, nifti], tmp_path / "q.csv", masks=tmp_path / "all", intensity="hu")
    assert (told.predicted, told.refused) == (3, 0)
    for row in pd.read_csv(tmp_path / "q.csv").to_dict("records"):
        if row["path"].endswith(".nii.gz"):
            assert nibabel.load(tmp_path / "all" / row["mask"]).shape == nibabel.load(row["path"]).shape


def test_the_report_of_a_segmentation_names_nobody(store: Path, segmenter: Path) -> None:
    page = (segmenter / "report.html").read_text(encoding="utf-8")
    assert "slice " in page
    for name in Store.open(store).images["image_id"]:
        assert f">{name}<" not in page


def test_mistakes_are_said(store: Path, segmenter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Set task=volume_segmentation"):
        finetune(config(store, tmp_path / "run", task="segmentation"))
    with pytest.raises(UserError, match="no folder for them"):
        predict(segmenter, [tmp_path], tmp_path / "p.csv")
    model = load_tuned(segmenter)
    assert model.preprocessing.kind == "volume"
    (tmp_path / "x.nii.gz").write_bytes(b"no volume")
    with pytest.raises(UserError, match="got an answer"):
        predict(segmenter, [tmp_path / "x.nii.gz"], tmp_path / "p.csv", masks=tmp_path / "masks")

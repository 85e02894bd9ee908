"""Outlines of one's own: trained, told, and drawn on the pixels of new files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import own_data
import pandas as pd
import phantom_store
import pytest
from browser import WIDTHS, open_page, overflow

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.finetune.run import finetune
from medvlp.infer.masks import on_file
from medvlp.infer.predict import predict
from medvlp.io.masks import to_stored_mask
from medvlp.store.array_store import Store
from medvlp.tasks._regions import masks_of
from medvlp.tasks._tuned import load_tuned

LABELS = [
    {"name": "Lungs full", "positive": "edema", "regions": ["edema", "effusion", "consolidation"]},
    "cardiomegaly",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom (`raw`), its store with squares of another size, and a segmentation of it (`run`)."""
    folder = tmp_path_factory.mktemp("outlines")
    store = phantom_store.make_store(folder, image={"size": 48})
    train = {"steps": 24, "validate_every": 12, "batch_size": 4, "lr": 0.01, "freeze_encoder": True}
    finetune(
        own_data.config(
            store,
            folder / "run",
            task="segmentation",
            encoder="random:resnet10t@48",
            data={"labels": LABELS, "views": ["PA", "AP"]},
            train=train,
            segmentation={"decoder": "unet", "channels": 16, "cross_entropy": 0.0},
        )
    )
    return folder


def test_the_run_keeps_masks_and_scores_them(folder: Path) -> None:
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["decisions"] == []
    assert result["scores"][0]["metric"] == "dice"
    assert {row["label"] for row in result["scores"]} == {"Lungs full", "cardiomegaly", "macro"}
    assert {row["metric"] for row in result["subgroups"]} == {"dice"}
    assert "Masks on the pixels of each image" in (folder / "run" / "model" / "model_card.md").read_text()
    assert load_tuned(folder / "run").label_names == ["Lungs full", "cardiomegaly"]
    with open_page(folder / "run" / "report.html") as page:
        assert page.locator("#mistake-list figure").count() >= 2
        assert page.locator("#curves").count() == 0
        assert page.locator("#headline").inner_text().count("threshold") == 0
        assert [overflow(page, width) for width in WIDTHS] == [0, 0, 0]


def test_new_files_get_the_masks_that_were_validated_on_their_own_pixels(folder: Path, tmp_path: Path) -> None:
    store = Store.open(folder / "store")
    paths = [str(folder / "raw" / path) for path in store.images["path"]]
    done = predict(folder / "run", list(map(Path, paths)), tmp_path / "out.csv", masks=tmp_path / "masks")
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == done.predicted > 60
    assert table["area_mm2:cardiomegaly"].isna().all(), "a picture says no spacing"
    files = dict(zip(store.images["image_id"], paths, strict=True))
    kept = pd.read_parquet(folder / "run" / "predictions" / "test.parquet")
    stored = masks_of(kept["predicted"].tolist(), 48)
    rows = {path: number for number, path in enumerate(table["path"])}
    some = False
    for mask, image, label in zip(stored, kept["sample_id"], kept["label"], strict=True):
        row = table.iloc[rows[files[image]]]
        drawn = cv2.imread(str(tmp_path / "masks" / row[f"mask:{label}"]), cv2.IMREAD_UNCHANGED)
        assert drawn.shape == (64, 64)
        assert set(np.unique(drawn)) <= {0, 255}
        expected, whole = on_file(mask, 64, 64, store.image_config)
        assert whole
        assert ((drawn == 255) == expected).mean() > 0.999  # a logit at 0 may turn in another batch
        assert row[f"pixels:{label}"] == (drawn == 255).sum()
        some |= bool(mask.any())
    assert some
    assert len(list((tmp_path / "masks").iterdir())) == 2 * len(table)


def test_masks_of_dicom_lie_on_its_rows_and_columns_whatever_its_photometry(folder: Path, tmp_path: Path) -> None:
    store = Store.open(folder / "store")
    picture = cv2.imread(str(folder / "raw" / store.images["path"].iloc[0]), cv2.IMREAD_GRAYSCALE)
    image = cv2.resize(picture, (88, 64), interpolation=cv2.INTER_AREA)
    spacing = {"ImagerPixelSpacing": [0.5, 0.25], "ViewPosition": "PA", "Modality": "CR"}
    plain = own_data.write_file(tmp_path / "plain.dcm", 1, pixels=image, **spacing)
    photometry = {"PhotometricInterpretation": "MONOCHROME1"}
    inverse = own_data.write_file(tmp_path / "inverse.dcm", 2, pixels=255 - image, **spacing, **photometry)
    cv2.imwrite(str(tmp_path / "same.png"), image)
    files = [plain, inverse, tmp_path / "same.png"]
    predict(folder / "run", files, tmp_path / "out.parquet", masks=tmp_path / "masks")
    table = pd.read_parquet(tmp_path / "out.parquet")
    for label in ("Lungs full", "cardiomegaly"):
        drawn = [cv2.imread(str(tmp_path / "masks" / name), cv2.IMREAD_UNCHANGED) for name in table[f"mask:{label}"]]
        assert [mask.shape for mask in drawn] == [(64, 88)] * 3
        assert (drawn[0] == drawn[1]).all(), "MONOCHROME1 is the same picture"
        inside = [int((mask > 0).sum()) for mask in drawn]
        assert table[f"pixels:{label}"].tolist() == inside
        np.testing.assert_allclose(table[f"area_mm2:{label}"], [inside[0] * 0.125, inside[1] * 0.125, np.nan])
    assert sum(table[f"pixels:{label}"].sum() for label in ("Lungs full", "cardiomegaly")) > 0


@pytest.mark.parametrize("aspect", ["pad", "squash", "crop"])
def test_a_mask_goes_to_the_square_and_back(aspect: str) -> None:
    config = StoredImageConfig.model_validate({"size": 64, "aspect": aspect})
    mask = np.zeros((200, 120), dtype=np.uint8)
    mask[80:130, 30:90] = 1
    back, whole = on_file(to_stored_mask(mask, config) > 0, 200, 120, config)
    assert whole == (aspect != "crop")
    assert (back == (mask > 0)).mean() > 0.98
    rows, columns = np.nonzero(back)
    assert abs(rows.mean() - 104.5) < 2.1  # half a pixel of the square, rounded
    assert abs(columns.mean() - 59.5) < 2.1


def test_masks_need_a_new_folder(folder: Path, tmp_path: Path) -> None:
    file = folder / "raw" / Store.open(folder / "store").images["path"].iloc[0]
    with pytest.raises(UserError, match="there is no folder for them"):
        predict(folder / "run", [file], tmp_path / "out.csv")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "mine.txt").touch()
    with pytest.raises(UserError, match="holds something already"):
        predict(folder / "run", [file], tmp_path / "out.csv", masks=tmp_path / "masks")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="None of the 1 files"):
        predict(folder / "run", [tmp_path / "text.png"], tmp_path / "out.csv", masks=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_store_without_masks_is_told(tmp_path: Path, own_run: Path) -> None:
    with pytest.raises(UserError, match="The store has no masks"):
        finetune(own_data.config(own_run / "store", tmp_path / "run", task="segmentation"))

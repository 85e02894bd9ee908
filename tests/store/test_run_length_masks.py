"""Run lengths and mask files of one data set become the same masks in a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medvlp.config.prepare import PrepareConfig
from medvlp.sources.phantom.examples import Example, ExampleImage
from medvlp.sources.phantom.layouts.siim_acr import SiimLayout
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare

SIDE = 64


def example(number: int, split: str, masks: list[np.ndarray]) -> Example:
    pixels = np.random.default_rng(number).integers(1, 255, (SIDE, SIDE), dtype=np.uint8)
    image = ExampleImage(pixels, masks=tuple(("pneumothorax", mask) for mask in masks))
    return Example(number, number, split=split, images=(image,))


def test_both_editions_of_siim_give_the_same_masks(tmp_path: Path) -> None:
    one, other = np.zeros((2, SIDE, SIDE), bool)
    one[3:20, 5:9] = one[10, 5:40] = True
    other[50:, 60:] = True
    made = [example(0, "train", [one, other]), example(1, "train", []), example(2, "test", [other])]
    stores = {}
    for edition in ("dicom", "png"):
        root, options = tmp_path / edition, {"edition": edition}
        root.mkdir()
        SiimLayout(root, options).write(made)
        fields = {"source": "siim_acr", "root": root, "out": tmp_path / f"{edition}_store", "options": options}
        config = PrepareConfig.model_validate(fields | {"image": {"size": SIDE}, "num_workers": 1, "val_fraction": 0})
        stores[edition] = Store.open(prepare(config).store)
    for store in stores.values():
        labels = sorted(store.studies["label:Pneumothorax"])
        assert labels == [0, 1, 1]
        masks = {int(mask.sum()): mask for mask in store.read_masks(store.masks["index"].to_numpy())}
        assert sorted(masks) == sorted([int((one | other).sum()), int(other.sum())])
        for truth in (one | other, other):
            assert np.array_equal(masks[int(truth.sum())] > 0, truth)


def test_masks_without_a_pixel_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A positive image whose mask file is empty, and a lesion that a small store does not keep."""
    large, small, empty = np.zeros((3, SIDE, SIDE), bool)
    large[:20], small[17, 17] = True, True
    made = [example(0, "train", [large]), example(1, "train", [small]), example(2, "test", [empty])]
    root = tmp_path / "png"
    root.mkdir()
    SiimLayout(root, {"edition": "png"}).write(made)
    fields = {"source": "siim_acr", "root": root, "out": tmp_path / "store", "options": {"edition": "png"}}
    config = PrepareConfig.model_validate(fields | {"image": {"size": 16}, "num_workers": 1, "val_fraction": 0})
    store = Store.open(prepare(config).store)
    assert sorted(store.masks["pixels"] > 0) == [False, False, True]
    assert store.meta["counts"]["empty masks"] == 2
    assert "2 of 3 masks have no pixel as stored" in caplog.text

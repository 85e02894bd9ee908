"""Features of the baselines against plain numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medvlp.bench import baselines


@pytest.fixture
def store() -> Any:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 64, 64)).astype(np.uint8)
    images = pd.DataFrame({"image_id": list("abcdef"), "index": [3, 1, 0, 2, 5, 4]})
    frame = images.assign(
        split=["train", "train", "train", "test", "test", "val"],
        view=["PA", "AP", None, "PA", "PA", "LATERAL"],
        sex=["M", None, "F", "F", "M", "M"],
        age=[40.0, np.nan, 60.0, 90.0, np.nan, 10.0],
        height=[100, 200, 100, 100, 100, 100],
        width=[50, 100, 100, 100, 100, 100],
    )
    return SimpleNamespace(
        images=images, samples=lambda: frame.iloc[::-1], read=lambda places: pixels[places], pixels=pixels
    )


def test_metadata_is_one_hot_with_missing_as_a_category_and_training_medians(store: Any) -> None:
    found = baselines.metadata(store)
    views = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0]])
    sexes = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(found[:, :4], views)
    np.testing.assert_array_equal(found[:, 4:7], sexes)
    np.testing.assert_array_equal(found[:, 7], [0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(found[:, 8], [40, 50, 60, 90, 50, 10])
    np.testing.assert_array_equal(found[:, 9:], [[100, 50, 2], [200, 100, 2], *[[100, 100, 1]] * 4])


def test_image_statistics_equal_plain_numpy(store: Any) -> None:
    ordered = store.pixels[store.images["index"].to_numpy()]
    np.testing.assert_allclose(baselines.mean(store)[:, 0], ordered.mean(axis=(1, 2)) / 255, atol=1e-6)
    blocks = ordered.reshape(6, 16, 4, 16, 4).mean(axis=(2, 4)).reshape(6, -1) / 255
    np.testing.assert_allclose(baselines.pixels16(store), blocks, atol=1e-6)
    shares = np.stack([np.histogram(image / 255, bins=32, range=(0, 1))[0] for image in ordered]) / 64**2
    np.testing.assert_allclose(baselines.histogram(store), shares, atol=1e-3)
    np.testing.assert_allclose(baselines.histogram(store).sum(axis=1), 1)
    assert baselines.majority(store).shape == (6, 0)


def test_names_follow_the_suite() -> None:
    assert baselines.baseline_names(("majority", "image_statistics")) == [
        "image_statistics:mean",
        "image_statistics:histogram",
        "image_statistics:pixels16",
        "majority",
    ]

"""The stored square: place of pixels, filters, scaling; against block means, Pillow and boxes drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.io import stored_transform, to_stored
from medvlp.types import Intensity, Radiograph


def unit(array: np.ndarray) -> Radiograph:
    return Radiograph(array.astype(np.float32), None, Intensity.UNIT, {"range": (0.0, 1.0)})


@pytest.mark.parametrize("crop_from", [None, 73])
@pytest.mark.parametrize("aspect", ["pad", "squash", "crop"])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (64, 64), (31, 57), (1000, 20)])
def test_boxes_follow_the_pixels(aspect, shape, crop_from):
    config = StoredImageConfig(size=64, aspect=aspect, crop_from=crop_from)
    height, width = shape
    top, bottom, left, right = height * 0.4, height * 0.7, width * 0.3, width * 0.6
    image = np.zeros(shape)
    rows, columns = slice(round(top), round(bottom)), slice(round(left), round(right))
    image[rows, columns] = 1
    stored = to_stored(unit(image), config).astype(float) / 255
    scale_y, scale_x, offset_y, offset_x = stored_transform(height, width, config)
    y = [np.clip(v * scale_y + offset_y, 0, 64) for v in (rows.start, rows.stop)]
    x = [np.clip(v * scale_x + offset_x, 0, 64) for v in (columns.start, columns.stop)]
    assert stored.shape == (64, 64)
    assert stored.sum() == pytest.approx((y[1] - y[0]) * (x[1] - x[0]), rel=0.05, abs=1)
    weights = stored / stored.sum()
    assert (weights.sum(1) @ (np.arange(64) + 0.5)) == pytest.approx(np.mean(y), abs=0.6)
    assert (weights.sum(0) @ (np.arange(64) + 0.5)) == pytest.approx(np.mean(x), abs=0.6)


def test_pad_keeps_the_aspect_ratio_and_centres():
    stored = to_stored(unit(np.ones((200, 100))), StoredImageConfig(size=100))
    assert (stored[:, 25:75] == 255).all()
    assert stored[:, :25].max() == 0
    assert stored[:, 75:].max() == 0


def test_crop_takes_the_centre():
    image = np.zeros((100, 300))
    image[:, 100:200] = 1
    assert (to_stored(unit(image), StoredImageConfig(size=50, aspect="crop")) == 255).all()


@pytest.mark.parametrize("aspect", ["pad", "squash", "crop"])
def test_crop_from_is_the_centre_of_the_larger_square(aspect):
    image = unit(np.random.default_rng(4).random((150, 90)))
    larger = to_stored(image, StoredImageConfig(size=64, aspect=aspect, interpolation="bilinear"))
    cut = to_stored(image, StoredImageConfig(size=56, crop_from=64, aspect=aspect, interpolation="bilinear"))
    np.testing.assert_array_equal(cut, larger[4:60, 4:60])


def test_crop_from_below_the_size_is_a_mistake():
    with pytest.raises(ValueError, match="crop_from must not be below size"):
        StoredImageConfig(size=64, crop_from=63)


def test_area_is_the_block_mean():
    image = np.random.default_rng(0).random((128, 96))
    stored = to_stored(unit(image), StoredImageConfig(size=32, aspect="squash", dtype="uint16"))
    expected = image.reshape(32, 4, 32, 3).mean(axis=(1, 3)) * 65535
    np.testing.assert_allclose(stored, expected, atol=1)


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_other_filters_are_anti_aliased_like_pillow(name):
    image = np.random.default_rng(1).random((200, 200)).astype(np.float32)
    stored = to_stored(unit(image), StoredImageConfig(size=50, interpolation=name))
    resample = Image.Resampling[name.upper()]
    expected = np.asarray(Image.fromarray(image).resize((50, 50), resample)) * 255
    np.testing.assert_allclose(stored, np.clip(expected, 0, 255), atol=0.51)


def test_bicubic_enlarges_like_the_cubic_of_keys():
    # A third implementation: torch without corners aligned, whose a is -0.75 unless it is told to anti-alias.
    image = np.random.default_rng(3).random((20, 20)).astype(np.float32)
    stored = to_stored(unit(image), StoredImageConfig(size=50, interpolation="bicubic", dtype="uint16"))
    pixels = torch.from_numpy(image)[None, None]
    expected = torch.nn.functional.interpolate(pixels, size=50, mode="bicubic", antialias=True)[0, 0].clamp(0, 1)
    np.testing.assert_allclose(stored, expected.numpy() * 65535, atol=1.5)


@pytest.mark.parametrize("name", ["area", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shape", [(10, 10), (10, 200), (200, 10)])
def test_constant_images_stay_constant(name, shape):
    config = StoredImageConfig(size=48, aspect="squash", interpolation=name)
    assert (to_stored(unit(np.full(shape, 0.4)), config) == 102).all()


def test_stored_values_are_scaled_by_the_recorded_range():
    values = np.array([[-100.0, 0.0], [1000.0, 3000.0]])
    for intensity in (Intensity.STORED, Intensity.HU):
        radiograph = Radiograph(values.astype(np.float32), None, intensity, {"range": (0.0, 2000.0)})
        stored = to_stored(radiograph, StoredImageConfig(size=16, aspect="squash", interpolation="area"))
        assert (stored[0, 0], stored[0, -1], stored[-1, 0], stored[-1, -1]) == (0, 0, 128, 255)
    flat = Radiograph(np.full((4, 4), 7, np.float32), None, Intensity.STORED, {"range": (7.0, 7.0)})
    assert to_stored(flat, StoredImageConfig(size=16)).max() == 0


def test_full_size_is_kept_bit_by_bit():
    values = np.random.default_rng(2).integers(0, 65536, size=(64, 64))
    values[0, 0], values[0, 1] = 0, 65535
    radiograph = Radiograph(values.astype(np.float32), None, Intensity.STORED, {"range": (0.0, 65535.0)})
    np.testing.assert_array_equal(to_stored(radiograph, StoredImageConfig(size=64, dtype="uint16")), values)

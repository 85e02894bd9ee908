"""Maps back on the pixels of the image: landmarks, exact ramps, and torch's own interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.io.enlarge import to_image, to_square
from medvlp.io.masks import to_stored_mask, to_stored_region
from medvlp.io.stored import stored_transform, to_stored
from medvlp.types import Intensity, Radiograph

SHAPES = [(90, 150), (150, 90), (64, 64), (300, 211)]
ASPECTS = ["pad", "crop", "squash"]


def config_of(aspect: str, size: int = 64) -> StoredImageConfig:
    return StoredImageConfig.model_validate({"size": size, "aspect": aspect})


def seen(height: int, width: int, config: StoredImageConfig) -> np.ndarray:
    """Which pixels of the image have their centre in the stored square."""
    scale_y, scale_x, offset_y, offset_x = stored_transform(height, width, config)
    rows = (np.arange(height) + 0.5) * scale_y + offset_y
    columns = (np.arange(width) + 0.5) * scale_x + offset_x
    inside = [(at >= 0) & (at <= config.size) for at in (rows, columns)]
    return inside[0][:, None] & inside[1]


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_landmark_comes_back_to_its_place(aspect: str, height: int, width: int) -> None:
    config = config_of(aspect)
    for y, x in ((0.5, 0.5), (0.35, 0.55), (0.6, 0.42)):
        row, column = int(y * height), int(x * width)
        image = np.zeros((height, width), np.float32)
        image[row - 3 : row + 4, column - 3 : column + 4] = 1
        square = to_stored(Radiograph(image, None, Intensity.UNIT, {}), config)
        cells = square.reshape(16, 4, 16, 4).mean((1, 3))
        found = to_image(cells, height, width, config)
        assert found.shape == (height, width)
        at = np.unravel_index(np.nanargmax(found), found.shape)
        scale_y, scale_x, _, _ = stored_transform(height, width, config)
        assert abs(at[0] + 0.5 - row) <= 4 / scale_y, "within one cell of 4 stored pixels"
        assert abs(at[1] + 0.5 - column) <= 4 / scale_x


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_ramp_of_places_is_the_transform(aspect: str, height: int, width: int) -> None:
    """A map that holds the stored coordinates of its cells gives each image pixel its stored coordinate."""
    config, cells = config_of(aspect), 8
    centres = (np.arange(cells) + 0.5) * config.size / cells
    ramps = np.stack([np.tile(centres[:, None], cells), np.tile(centres, (cells, 1))])
    found = to_image(ramps, height, width, config)
    scale_y, scale_x, offset_y, offset_x = stored_transform(height, width, config)
    expected_y = np.clip((np.arange(height) + 0.5) * scale_y + offset_y, centres[0], centres[-1])
    expected_x = np.clip((np.arange(width) + 0.5) * scale_x + offset_x, centres[0], centres[-1])
    inside = seen(height, width, config)
    np.testing.assert_array_equal(np.isnan(found[0]), ~inside)
    assert inside.all() == (aspect != "crop" or height == width)
    np.testing.assert_allclose(found[0][inside], np.broadcast_to(expected_y[:, None], inside.shape)[inside])
    np.testing.assert_allclose(found[1][inside], np.broadcast_to(expected_x, inside.shape)[inside])


@pytest.mark.parametrize("shape", [(3, 3), (14, 14), (1, 5)])
def test_the_square_is_torchs_bilinear_interpolation(shape: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(size=(2, 4, *shape))
    expected = torch.nn.functional.interpolate(torch.from_numpy(maps), size=(96, 96), mode="bilinear").numpy()
    np.testing.assert_allclose(to_square(maps, 96), expected, atol=1e-12)
    squashed = to_image(maps, 50, 70, config_of("squash"))
    expected = torch.nn.functional.interpolate(torch.from_numpy(maps), size=(50, 70), mode="bilinear").numpy()
    np.testing.assert_allclose(squashed, expected, atol=1e-12)


def test_equal_cells_stay_equal_to_the_bit() -> None:
    maps = np.full((1, 7, 7), 0.1, np.float32)
    assert (to_square(maps, 61) == np.float32(0.1)).all()
    assert to_square(maps, 61).dtype == np.float32


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_box_lies_where_its_mask_lies(aspect: str, height: int, width: int) -> None:
    """Against the mask of the box in the image, which the store resamples by itself; a pixel at the edge may differ."""
    config, box = config_of(aspect), {"x": 31.0, "y": 22.0, "width": 25.0, "height": 40.0}
    y, x = np.mgrid[:height, :width] + 0.5
    inside = {
        "rectangle": (x >= 31) & (x < 56) & (y >= 22) & (y < 62),
        "ellipse": ((x - 43.5) / 12.5) ** 2 + ((y - 42) / 20) ** 2 <= 1,
        "polygon": (y >= 22) & (y < 62) & (x - 31 < 25 * (y - 22) / 40) & (x >= 31),
    }
    points = [[31.0, 22.0], [56.0, 62.0], [31.0, 62.0]]
    for shape, mask in inside.items():
        found = to_stored_region({**box, "shape": shape, "points": points}, height, width, config)
        expected = to_stored_mask(mask, config) > 0
        edge = np.zeros_like(expected)
        for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            edge |= np.roll(expected, shift, (0, 1)) != expected
        assert not ((found != expected) & ~edge).any()
        assert found.sum() == pytest.approx(expected.sum(), rel=0.12)


def test_a_tiny_box_keeps_a_pixel_and_one_outside_keeps_none() -> None:
    config = config_of("crop")
    tiny = to_stored_region({"x": 75.2, "y": 40.2, "width": 0.3, "height": 0.3}, 90, 150, config)
    assert tiny.sum() == 1
    scale_y, scale_x, offset_y, offset_x = stored_transform(90, 150, config)
    assert tiny[int(40.35 * scale_y + offset_y), int(75.35 * scale_x + offset_x)]
    assert not to_stored_region({"x": 0.0, "y": 10.0, "width": 12.0, "height": 30.0}, 90, 150, config).any(), "cropped"
    beyond = to_stored_region({"x": -40.0, "y": 10.0, "width": 20.0, "height": 30.0}, 90, 150, config_of("pad"))
    assert not beyond.any()
    over = {"x": -20.0, "y": -20.0, "width": 200.0, "height": 200.0}
    offset = int(stored_transform(90, 150, config_of("pad"))[2])
    wide, tall = (to_stored_region(over, *size, config_of("pad")) for size in ((90, 150), (150, 90)))
    assert not wide[:offset].any(), "no box lies on the padding"
    assert not tall[:, :offset].any()
    assert not tall[:, -offset:].any()
    assert tall[:, offset:-offset].all()

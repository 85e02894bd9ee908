"""Masks of images: files, runs and polygons, and where they lie in the stored square."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageDraw

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.io import read_image_masks, stored_transform, to_stored, to_stored_mask
from medvlp.io.masks import fill_polygon
from medvlp.types import Intensity, Mask, Radiograph


def blob(height: int, width: int, seed: int = 0) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 3) > 0.02


def encode(mask: np.ndarray) -> tuple[int, ...]:
    """Return runs of a mask, by its changes."""
    flat = np.concatenate([[0], mask.ravel().astype(np.int8), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    return tuple(int(v) for pair in zip(starts, ends - starts, strict=True) for v in pair)


def test_files_and_runs(tmp_path):
    mask = blob(40, 30)
    values = np.where(mask, 2, 0).astype(np.uint8)
    values[:5] = 7
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "b.png")
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([200, 100, 50] * 256)
    palette.save(tmp_path / "p.png")
    Image.fromarray(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, -1)).save(tmp_path / "rgb.png")
    nibabel.save(nibabel.Nifti1Image(values.T[..., None], np.eye(4)), tmp_path / "n.nii.gz")
    found = read_image_masks(
        tmp_path,
        [
            Mask("x", "lung", "a.png"),
            Mask("x", "lung", "b.png", values=(2,)),
            Mask("x", "other", "b.png", values=(7,)),
            Mask("x", "any", "b.png"),
            Mask("x", "palette", "p.png", values=(7,)),
            Mask("x", "colour", "rgb.png"),
            Mask("x", "nifti", "n.nii.gz", values=(7,)),
            Mask("x", "runs", size=(40, 30), runs=encode(mask)),
        ],
        40,
        30,
    )
    for mine, expected in zip(
        found, [mask, values == 2, values == 7, values != 0, values == 7, mask, values == 7, mask], strict=True
    ):
        assert mine.dtype == bool
        np.testing.assert_array_equal(mine, expected)


def test_polygon_is_that_of_an_independent_rule():
    rng = np.random.default_rng(1)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    points = np.stack([25 + 18 * np.cos(angles), 20 + 15 * np.sin(angles)], axis=1)
    from matplotlib.path import Path as MatplotlibPath

    y, x = np.mgrid[:40, :50] + 0.5
    expected = MatplotlibPath([*points, points[0]]).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(40, 50)
    mine = fill_polygon(points, 40, 50)
    np.testing.assert_array_equal(mine, expected)
    canvas = Image.new("1", (50, 40))
    ImageDraw.Draw(canvas).polygon([tuple(p - 0.5) for p in points], fill=1)
    assert (np.asarray(canvas) != mine).sum() < 80  # Pillow fills its outline too


def test_polygon_corners_on_pixel_borders():
    square = np.array([(1, 2), (4, 2), (4, 5), (1, 5)], float)
    expected = np.zeros((6, 6), bool)
    expected[2:5, 1:4] = True
    np.testing.assert_array_equal(fill_polygon(square, 6, 6), expected)
    beyond = fill_polygon(square * 3 - 4, 6, 6)  # from (-1, 2) to (8, 11)
    assert beyond[2:].all()
    assert not beyond[:2].any()


@pytest.mark.parametrize("aspect", ["pad", "squash", "crop"])
@pytest.mark.parametrize(("height", "width", "size"), [(90, 60, 64), (60, 90, 64), (31, 57, 128), (64, 64, 64)])
def test_stored_mask_lies_where_the_image_lies(aspect, height, width, size):
    config = StoredImageConfig(size=size, aspect=aspect)
    mask = blob(height, width)
    stored = to_stored_mask(mask, config)
    image = to_stored(Radiograph(mask.astype(np.float32), None, Intensity.UNIT, {}), config)
    assert (stored.shape, stored.dtype, set(np.unique(stored))) == ((size, size), np.uint8, {0, 1})
    sure = (image < 40) | (image > 215)
    np.testing.assert_array_equal(stored[sure] == 1, image[sure] > 127)
    if size > height:
        return
    scale_y, scale_x, offset_y, offset_x = stored_transform(height, width, config)
    for y, x in np.random.default_rng(0).integers(0, size, (50, 2)):
        row, column = int((y + 0.5 - offset_y) // scale_y), int((x + 0.5 - offset_x) // scale_x)
        inside = 0 <= row < height and 0 <= column < width
        assert stored[y, x] == (inside and mask[row, column])


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Mask("x", "l", "small.png"), "5 x 4 pixels where its image has 40 x 30"),
        (Mask("x", "l", "missing.png"), "cannot be opened"),
        (Mask("x", "l", "m.jpg"), "JPEG"),
        (Mask("x", "l", "colour.png"), "coloured"),
        (Mask("x", "l", "cut.png"), "truncated"),
        (Mask("x", "l", size=(30, 40), runs=(0, 1)), "30 x 40 pixels"),
        (Mask("x", "l", size=(40, 30), runs=(0, 1, 5)), "not pairs"),
        (Mask("x", "l", size=(40, 30), runs=(1190, 20)), "leave the image"),
        (Mask("x", "l", size=(40, 30), runs=(-4, 20)), "leave the image"),
        (Mask("x", "l", points=((0, 0), (1, 1))), "three or more finite corners"),
        (Mask("x", "l", points=((0, 0), (1, float("nan")), (2, 2))), "finite corners"),
        (Mask("x", "l"), "three or more"),
    ],
)
def test_bad_masks(tmp_path, mask, reason):
    Image.new("L", (4, 5)).save(tmp_path / "small.png")
    Image.new("L", (30, 40)).save(tmp_path / "m.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "colour.png").read_bytes()[:-20])
    with pytest.raises(UserError, match=reason):
        read_image_masks(tmp_path, [mask], 40, 30)

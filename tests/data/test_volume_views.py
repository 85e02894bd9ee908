"""Views of volumes against brute force in voxels and in millimetres, OpenCV, torch and SimpleITK."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import map_coordinates

from medvlp.config.volumes import VolumeInputConfig
from medvlp.data import volume_views as views
from medvlp.data.volume_views import Grid
from medvlp.io import read_volume
from medvlp.io.nifti_writer import write_nifti

SHAPE = (11, 20, 27)
RNG = np.random.default_rng(0)
VOXELS = RNG.integers(-1000, 2000, SHAPE).astype(np.int16)


def oblique() -> np.ndarray:
    """Spacing 2.5, 0.7, 1.2 mm, turned about all three axes."""
    turn = np.eye(3)
    for axis, degrees in enumerate((12.0, -20.0, 31.0)):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        one, two = [a for a in range(3) if a != axis]
        part = np.eye(3)
        part[[one, one, two, two], [one, two, one, two]] = c, -s, s, c
        turn = turn @ part
    axes = turn[:, [2, 1, 0]] * [2.5, 0.7, 1.2]  # d towards superior, h towards anterior, w towards right
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, [-31.0, 17.5, 240.0]
    return affine


def overlap_mean(values: np.ndarray, start: float, step: float, size: int) -> np.ndarray:
    """Mean over the last axis of what each new voxel covers, by integrating a staircase of 1/1000 voxels."""
    fine = np.repeat(values.astype(np.float64), 1000, axis=-1)
    width = max(step, 1.0)
    out = []
    for i in range(size):
        low = round((start + i * step - width / 2 + 0.5) * 1000)
        places = np.clip(np.arange(low, low + round(width * 1000)), 0, fine.shape[-1] - 1)
        out.append(fine[..., places].mean(axis=-1))
    return np.stack(out, axis=-1)


@pytest.mark.parametrize(
    "grid",
    [
        views.stretched(SHAPE, (4, 5, 9)),
        views.stretched(SHAPE, (20, 33, 31)),
        views.stretched(SHAPE, (8, 8, 54)),
        Grid((3, 4, 5), (2.25, 3.5, 1.125), (1.5, 1.0, 2.75)),
    ],
)
def test_voxels_are_the_mean_of_what_they_cover(grid: Grid) -> None:
    wanted = VOXELS.astype(np.float64)
    for axis in range(3):
        moved = np.moveaxis(wanted, axis, -1)
        wanted = np.moveaxis(overlap_mean(moved, grid.start[axis], grid.step[axis], grid.size[axis]), -1, axis)
    got = views.cut(VOXELS, grid, -1024)
    assert got.dtype == np.int16
    assert np.abs(got - wanted).max() < 0.5 + 3.0  # the staircase is right to 1/1000 of a voxel of up to 3,000
    exact = views.cut(VOXELS.astype(np.float64), grid, -1024)
    assert np.abs(exact - wanted).max() < 3.0


def test_resizing_a_plane_is_what_opencv_and_torch_do() -> None:
    plane = RNG.normal(size=(1, 96, 120)).astype(np.float32)
    for size in ((40, 33), (24, 60)):
        area = cv2.resize(plane[0], size[::-1], interpolation=cv2.INTER_AREA)
        assert np.allclose(views.resize(plane, (1, *size))[0], area, atol=1e-4)
    larger = cv2.resize(plane[0], (200, 131), interpolation=cv2.INTER_LINEAR)
    assert np.allclose(views.resize(plane, (1, 131, 200))[0], larger, atol=1e-3)
    volume = RNG.normal(size=(24, 12, 36)).astype(np.float32)
    pooled = torch.nn.functional.interpolate(torch.from_numpy(volume)[None, None], (8, 6, 9), mode="area")[0, 0]
    assert np.allclose(views.resize(volume, (8, 6, 9)), pooled, atol=1e-5)
    finer = torch.nn.functional.interpolate(torch.from_numpy(volume)[None, None], (31, 30, 37), mode="trilinear")[0, 0]
    assert np.allclose(views.resize(volume, (31, 30, 37)), finer, atol=1e-5)


def test_crops_are_exact_and_padded_outside() -> None:
    wide = np.pad(VOXELS, 30, constant_values=-1024)
    for start in itertools.product((-9, 0, 4), (-3, 11), (-30, 2, 24)):
        got = views.cut(VOXELS, views.whole(SHAPE).crop(start, (6, 12, 9)), -1024)
        there = tuple(slice(s + 30, s + 30 + n) for s, n in zip(start, (6, 12, 9), strict=True))
        assert np.array_equal(got, wide[there])
    assert np.array_equal(views.cut(VOXELS, views.whole(SHAPE).middle((5, 30, 3)), 0)[:, 5:25], VOXELS[3:8, :, 12:15])


def test_only_the_box_that_a_view_covers_is_read() -> None:
    asked = []

    def part(start, size):  # type: ignore[no-untyped-def]
        asked.append((tuple(start), tuple(size)))
        assert min(start) >= 0
        assert all(s + n <= whole for s, n, whole in zip(start, size, SHAPE, strict=True))
        return views.part_of(VOXELS)(start, size)

    views.read_view(part, SHAPE, Grid((4, 4, 4), (2, -1, 20), (1, 1, 1)), -1024)
    views.read_view(part, SHAPE, Grid((2, 2, 2), (3, 4, 5), (2, 2, 2)), -1024)
    assert asked[0] == ((2, 0, 20), (4, 3, 4))
    assert asked[1] == ((2, 3, 4), (5, 5, 5))
    far = views.read_view(part, SHAPE, Grid((2, 3, 4), (40, 0, 0)), -7)
    assert far.shape == (2, 3, 4)
    assert far.dtype == np.int16
    assert (far == -7).all()


def test_a_view_at_another_spacing_equals_simpleitk_at_its_places() -> None:
    affine = oblique()
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0))
    grid = views.respaced(SHAPE, spacing, (1.0, 0.5, 0.6)).crop((3, 4, 5), (12, 10, 16))
    smooth = cv2.GaussianBlur(VOXELS.astype(np.float32), (0, 0), 1.0)
    mine = views.cut(smooth, grid, 0)
    image = itk_image(smooth, affine)
    target = itk_image(np.zeros(grid.size, np.float32), grid.affine(affine))
    theirs = sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(), sitk.sitkLinear))
    assert np.abs(mine - theirs).max() < 1e-2


def itk_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An ITK image [d h w] on the grid of an affine in RAS: ITK's axes are w, h, d and its space is LPS."""
    image = sitk.GetImageFromArray(array)
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    axes = lps[:, [2, 1, 0]]
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((axes / spacing).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    return image


@pytest.mark.parametrize("wanted", [(2.5, 0.7, 1.2), (3.0, 1.4, 1.5), (1.0, 0.5, 0.6)])
def test_a_spot_keeps_its_place_in_the_patient_through_every_view(wanted: tuple[float, ...]) -> None:
    affine, shape = oblique(), (40, 60, 50)
    place = np.array([17.0, 32.0, 21.0])
    d, h, w = np.indices(shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    away = sum(((axis - p) * s) ** 2 for axis, p, s in zip((d, h, w), place, spacing, strict=True))
    spot = (1000 * np.exp(-away / (2 * 6.0**2))).astype(np.float32)
    where = affine @ [*place, 1.0]
    grid = views.respaced(shape, spacing, wanted).middle((32, 48, 40))
    view = views.cut(spot, grid, 0)
    tokens = grid.resized((8, 12, 10))
    heat = views.resize(view, (8, 12, 10))
    for values, lies in ((view, grid), (heat, tokens)):
        found = centre_of(values)
        tolerance = 0.35 * max(s * step for s, step in zip(spacing, lies.step, strict=True))
        assert np.linalg.norm((lies.affine(affine) @ [*found, 1.0] - where)[:3]) < tolerance
    back = views.put_back(heat, tokens, shape)
    assert np.linalg.norm((affine @ [*centre_of(back), 1.0] - where)[:3]) < 1.5


def centre_of(values: np.ndarray) -> np.ndarray:
    """Centre of mass of what is above half of the maximum."""
    weights = np.where(values > values.max() / 2, values, 0).astype(np.float64)
    return np.array([(weights * index).sum() / weights.sum() for index in np.indices(values.shape)])


def test_the_way_back_is_linear_interpolation_at_the_voxels_of_the_volume() -> None:
    grid = views.whole(SHAPE).crop((2, 3, 4), (8, 12, 16)).resized((4, 4, 4))
    heat = RNG.normal(size=(4, 4, 4))
    back = views.put_back(heat, grid, SHAPE, np.nan)
    inside = np.zeros(SHAPE, bool)
    inside[2:10, 3:15, 4:20] = True
    assert np.array_equal(~np.isnan(back), inside)
    places = [(index - s) / t for index, s, t in zip(np.indices(SHAPE), grid.start, grid.step, strict=True)]
    wanted = map_coordinates(heat, places, order=1, mode="nearest")
    assert np.allclose(back[inside], wanted[inside], atol=1e-6)


def test_labels_take_the_nearest_value_there_and_back() -> None:
    labels = RNG.integers(0, 5, SHAPE).astype(np.uint8)
    grid = views.stretched(SHAPE, (22, 60, 81))
    finer = views.cut(labels, grid, 0, labels=True)
    assert finer.dtype == np.uint8
    assert np.array_equal(views.put_back(finer, grid, SHAPE, labels=True), labels)
    crop = views.whole(SHAPE).crop((-2, 5, 20), (6, 6, 12))
    back = views.put_back(views.cut(labels, crop, 0, labels=True), crop, SHAPE, 9, labels=True)
    assert np.array_equal(back[:4, 5:11, 20:], labels[:4, 5:11, 20:])
    assert (back[4:] == 9).all()


@pytest.mark.parametrize(
    ("shape", "size", "overlap"), [((192, 192, 64), (64, 64, 64), 0), ((30, 41, 17), (16, 16, 16), 0.5),
                                   ((10, 7, 5), (4, 8, 5), 0.25), ((9, 9, 9), (1, 9, 9), 0)],
)  # fmt: skip
def test_tiles_cover_all_with_their_overlap(shape: tuple, size: tuple, overlap: float) -> None:
    starts = views.tiles(shape, size, overlap)
    count = np.zeros(shape, int)
    for start in starts:
        count[tuple(slice(max(0, s), s + n) for s, n in zip(start, size, strict=True))] += 1
    assert count.min() >= 1
    for axis in range(3):
        places = np.unique(starts[:, axis])
        assert (np.diff(places) <= size[axis] * (1 - overlap) + (overlap > 0)).all()
        if len(places) > 1:
            assert places[0] == 0
            assert places[-1] == shape[axis] - size[axis]
    if shape == (192, 192, 64):
        assert starts.tolist() == [[d, h, 0] for d in (0, 64, 128) for h in (0, 64, 128)]
    if shape == (9, 9, 9):
        assert starts.tolist() == [[d, 0, 0] for d in range(9)]


def test_windows_merge_to_the_map_that_they_were_cut_from() -> None:
    heat = RNG.normal(size=SHAPE)
    grids = [views.whole(SHAPE).crop(start, (6, 8, 8)) for start in views.tiles(SHAPE, (6, 8, 8), 0.4)]
    merged = views.merge([views.cut(heat, grid, 0) for grid in grids], grids, SHAPE)
    assert np.allclose(merged, heat)
    assert views.merge([np.ones((6, 8, 8))], grids[:1], SHAPE, outside=-1)[-1, -1, -1] == -1


def test_a_crop_around_an_organ_has_its_middle() -> None:
    mask = np.zeros((30, 30, 30), bool)
    mask[4:9, 20:28, 11] = True
    low, high = views.bounds(mask)
    assert low.tolist() == [4, 20, 11]
    assert high.tolist() == [9, 28, 12]
    assert views.around(mask, (6, 8, 5)).tolist() == [3, 20, 9]
    with pytest.raises(ValueError, match="empty"):
        views.bounds(np.zeros((2, 2, 2), bool))


def test_the_model_input_is_stretched_or_the_middle_at_its_spacing() -> None:
    whole = views.input_grid(SHAPE, None, VolumeInputConfig(size=(8, 16, 16)))
    assert whole == views.stretched(SHAPE, (8, 16, 16))
    at = VolumeInputConfig(size=(8, 16, 16), spacing_mm=(2.0, 1.0, 1.0))
    same = views.input_grid((20, 32, 32), (2.0001, 1.0, 1.0), at)
    assert same == Grid((8, 16, 16), (6, 8, 8))
    other = views.input_grid((20, 32, 32), (1.0, 0.5, 1.0), at)
    assert other.step == (2.0, 2.0, 1.0)
    assert np.allclose(other.start, [2.5, 0.5, 8.0])
    with pytest.raises(ValueError, match="unknown"):
        views.input_grid(SHAPE, None, at)


def test_nifti_of_an_oblique_view_is_in_its_place_for_itk_and_for_us(tmp_path: Path) -> None:
    affine = oblique()
    grid = views.whole(SHAPE).crop((1, 2, 3), (8, 10, 12)).resized((4, 5, 24))
    view = views.cut(VOXELS, grid, -1024)
    file = write_nifti(tmp_path / "view.nii.gz", view, grid.affine(affine))
    assert [f.name for f in tmp_path.iterdir()] == ["view.nii.gz"]
    image = sitk.ReadImage(str(file))
    for index in ((0, 0, 0), (3, 1, 20), (2, 4, 7)):
        point = np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]]))
        assert np.allclose(point * [-1, -1, 1], (grid.affine(affine) @ [*index, 1.0])[:3], atol=1e-4)
        assert image[tuple(int(i) for i in index[::-1])] == view[index]
    again = read_volume(file)
    assert np.allclose(again.affine, grid.affine(affine), atol=1e-4)
    assert np.array_equal(again.array, view)
    with pytest.raises(ValueError, match="ends in"):
        write_nifti(tmp_path / "view.png", view, affine)

"""Sides, axes, spacing and the physics of projection, against plain numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from medvlp.sources.phantom.findings import NAMES, Finding
from medvlp.sources.phantom.grid import Grid
from medvlp.sources.phantom.project import (
    BONE_GAIN,
    MU_WATER,
    View,
    Wires,
    arms_away,
    attenuation,
    line_integral,
    wire_integral,
)
from medvlp.sources.phantom.study import PhantomStudy, generate_study

SIZE, PIXELS = 64, 128


def exemplar(name: str, side: str = "left") -> Finding:
    lobe = f"{side} upper lobe"
    extra = {
        "effusion": {"side": side},
        "pneumothorax": {"side": side},
        "consolidation": {"side": side, "lobe": lobe},
        "atelectasis": {"side": side, "lobe": f"{side} lower lobe", "kind": "lobar"},
        "nodule": {"side": side, "lobe": lobe, "size_mm": 26},
        "mass": {"side": side, "lobe": lobe, "size_mm": 55},
        "fracture": {"side": side, "rib": 6, "angle": 80.0, "kind": "acute"},
        "device": {"side": side, "kind": "pacemaker"},
    }
    return Finding(name, 0.7, 5, **extra.get(name, {}))


def study(*findings: Finding, index: int = 1) -> PhantomStudy:
    return generate_study(4, index, SIZE, PIXELS, findings=findings, noise=False)


@pytest.fixture(scope="module")
def healthy() -> PhantomStudy:
    return study()


def test_affine_maps_axes_to_superior_anterior_right(healthy: PhantomStudy) -> None:
    start, *steps = (
        healthy.affine @ np.array(index) for index in ((0, 0, 0, 1), (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1))
    )
    d, h, w = (step - start for step in steps)
    spacing = healthy.spacing_mm
    np.testing.assert_allclose(d[:3], (0, 0, spacing[0]))
    np.testing.assert_allclose(h[:3], (0, spacing[1], 0))
    np.testing.assert_allclose(w[:3], (spacing[2], 0, 0))
    assert min(spacing) > 0


def test_organs_lie_where_they_belong(healthy: PhantomStudy) -> None:
    """Liver right, heart left of the middle and in front of the spine, apex of the lungs above, three lobes right."""
    position = np.indices(healthy.volume.shape).reshape(3, -1)
    centre = lambda mask: position[:, mask.ravel()].mean(axis=1)  # noqa: E731
    middle = SIZE / 2
    heart = generate_heart_mask(healthy)
    bone = healthy.volume > 250
    lungs = healthy.lobes > 0
    assert centre(heart)[2] < middle, "the heart lies left, at low w"
    assert centre(heart)[1] > centre(bone & (np.abs(position[2].reshape(bone.shape) - middle) < 5))[1], (
        "spine is behind"
    )
    assert set(np.unique(healthy.lobes[:, :, SIZE // 2 :])) == {0, 1, 2, 3}
    assert set(np.unique(healthy.lobes[:, :, : SIZE // 2])) == {0, 4, 5}
    assert centre(healthy.lobes == 1)[0] > centre(healthy.lobes == 2)[0] > centre(healthy.lobes == 3)[0] - 15
    assert centre(healthy.lobes == 2)[1] > centre(healthy.lobes == 3)[1], "the middle lobe is in front"
    assert centre(lungs)[0] > centre(healthy.volume == healthy.volume.max())[0] - SIZE


def generate_heart_mask(base: PhantomStudy) -> np.ndarray:
    return study(exemplar("cardiomegaly"), index=base.visit.index).masks[0].full(SIZE)


def test_hu_of_organs(healthy: PhantomStudy) -> None:
    hu = healthy.volume
    corner = hu[-1, -1, -1]
    inner = healthy.lobes > 0
    liver = hu[4:8, SIZE // 2 - 4 : SIZE // 2 + 4, SIZE - SIZE // 3 : SIZE - SIZE // 4]
    assert corner == -1000
    assert -900 < np.median(hu[inner]) < -780
    assert 40 <= np.median(liver) <= 75
    assert 20 <= np.median(hu[generate_heart_mask(healthy)]) <= 75
    assert 0.004 < (hu > 250).mean() < 0.06, "bone"
    assert (np.abs(hu + 100) < 30).mean() > 0.002, "fat"
    assert hu.min() >= -1024
    assert hu.max() <= 2000


def test_nodule_has_its_size_in_mm() -> None:
    fine = generate_study(4, 1, 128, PIXELS, findings=[exemplar("nodule")], noise=False)
    voxels = fine.masks[0].inside.sum() * np.prod(fine.spacing_mm)
    diameter = (6 * voxels / np.pi) ** (1 / 3)
    assert diameter == pytest.approx(26, rel=0.3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["effusion", "consolidation", "mass"])
def test_side_specific_findings_brighten_the_other_side_of_the_image(
    side: str, name: str, healthy: PhantomStudy
) -> None:
    ill = study(exemplar(name, side))
    difference = ill.images[0].integral - healthy.images[0].integral
    left_half, right_half = np.abs(difference[:, : PIXELS // 2]).sum(), np.abs(difference[:, PIXELS // 2 :]).sum()
    assert (right_half > 5 * left_half) if side == "left" else (left_half > 5 * right_half)
    assert difference.sum() > 0
    pixels = ill.images[0].pixels.astype(int) - healthy.images[0].pixels.astype(int)
    assert pixels[ill.images[0].masks[0]].mean() > 3, "dense is bright"
    columns = np.flatnonzero(ill.masks[0].full(SIZE).any(axis=(0, 1)))
    assert (columns.mean() < SIZE / 2) == (side == "left"), "left is low w in RAS"


def test_pneumothorax_darkens() -> None:
    finding = replace(exemplar("pneumothorax"), severity=1.0)
    ill, well = study(finding), study()
    difference = ill.images[0].integral - well.images[0].integral
    assert difference[ill.images[0].masks[0]].mean() < 0


@pytest.mark.parametrize("name", NAMES)
def test_each_finding_changes_volume_and_image_inside_its_mask(name: str) -> None:
    ill, well = study(exemplar(name)), study()
    volume = np.abs(ill.volume.astype(int) - well.volume.astype(int))
    mask = ill.masks[0].full(SIZE)
    assert mask.any()
    outside = volume[~mask].mean()
    assert volume[mask].mean() > 5 * outside
    for image, base in zip(ill.images, well.images, strict=True):
        difference = np.abs(image.integral - base.integral)
        near = image.masks[0] | dilate(image.masks[0], 4)
        assert difference[image.masks[0]].mean() > 0.008
        share = difference[near].sum() / difference.sum()
        # The collapsed lung around a pneumothorax, vessels in edema and flat domes in emphysema change beyond the mask.
        least = {"pneumothorax": 0.5, "emphysema": 0.75, "fracture": 0.75, "edema": 0.75}.get(name, 0.9)
        assert share > least, (image.view, share)


def dilate(mask: np.ndarray, steps: int) -> np.ndarray:
    grown = mask.copy()
    for _ in range(steps):
        grown[1:] |= grown[:-1].copy()
        grown[:-1] |= grown[1:].copy()
        grown[:, 1:] |= grown[:, :-1].copy()
        grown[:, :-1] |= grown[:, 1:].copy()
    return grown


def test_box_is_the_bounding_box_of_the_projected_mask() -> None:
    ill = study(*(exemplar(name) for name in NAMES))
    for image in ill.images:
        for mask, box in zip(image.masks, image.boxes, strict=True):
            assert box is not None
            x, y, width, height = box
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            assert mask[y].any()
            assert mask[y + height - 1].any()
            assert mask[:, x].any()
            assert mask[:, x + width - 1].any()


def trace(mu: np.ndarray, grid: Grid, view: View, size: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Integrate attenuation along rays from a point source to detector pixels, in plain numpy (PA, AP or LATERAL)."""
    d, h, w = np.array(grid.spacing_mm) * grid.size
    spacing = np.array(grid.spacing_mm)
    pixel = grid.size * max(spacing[0], spacing[1] if view.name == "LATERAL" else spacing[2]) * view.zoom / size
    across = -(columns - size / 2 + 0.5) * pixel
    up = -(rows - size / 2 + 0.5) * pixel
    thick = w if view.name == "LATERAL" else h
    # Distance from the detector runs from the near face (gap) to the far face.
    step = 0.25
    lift = np.arange(view.gap + step / 2, view.gap + thick, step)
    shrink = (view.distance - lift) / view.distance
    along = (thick + view.gap - lift if view.name == "PA" else lift - view.gap) - thick / 2
    total = np.zeros(len(rows))
    for k in range(len(rows)):
        a, z = across[k] * shrink, up[k] * shrink
        depth = (along + thick / 2) / (spacing[2] if view.name == "LATERAL" else spacing[1]) - 0.5
        z_index = (z + d / 2) / spacing[0] - 0.5
        if view.name == "LATERAL":
            at = np.stack([z_index, (a + h / 2) / spacing[1] - 0.5, depth])
        else:
            at = np.stack([z_index, depth, (a + w / 2) / spacing[2] - 0.5])
        values = map_coordinates(mu, at, order=1, mode="constant")
        stretch = np.sqrt(1 + (across[k] ** 2 + up[k] ** 2) / view.distance**2)
        total[k] = values.sum() * step * stretch
    return total


@pytest.mark.parametrize(("name", "distance"), [("PA", 1830.0), ("AP", 1050.0), ("LATERAL", 1830.0)])
def test_line_integrals_equal_traced_rays(name: str, distance: float, healthy: PhantomStudy) -> None:
    view = View(name, distance, 30.0, zoom=1.05)
    mu = attenuation(healthy.volume.astype(np.float32))
    image = line_integral(mu, healthy.grid, view, PIXELS)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(20, 108, 150), rng.integers(20, 108, 150)
    reference = trace(mu, healthy.grid, view, PIXELS, rows, columns)
    ours = image[rows, columns]
    assert np.corrcoef(ours, reference)[0, 1] > 0.995
    assert np.median(np.abs(ours - reference) / (reference + 0.1)) < 0.02


def test_water_attenuates_as_beer_lambert_says() -> None:
    """A water slab of 100 mm: exp(-mu x) of the photons pass, at the centre where rays are straight."""
    grid = Grid(48)
    hu = np.full((48,) * 3, -1000.0, np.float32)
    deep = 10
    hu[:, 20 : 20 + deep] = 0
    image = line_integral(attenuation(hu), grid, View("PA", 1e7, 0.0), 96)
    assert np.exp(-image[48, 48]) == pytest.approx(np.exp(-MU_WATER * deep * grid.spacing_mm[1]), rel=1e-3)


def test_ap_magnifies_the_heart_more_than_pa() -> None:
    """The heart lies in front, far from the detector in AP."""
    grid = Grid(SIZE)
    hu = np.full((SIZE,) * 3, -1000.0, np.float32)
    hu[24:40, 40:44, 24:40] = 0
    width = {
        name: (line_integral(attenuation(hu), grid, View(name, distance, 30.0), 256) > 0.1).any(axis=0).sum()
        for name, distance in (("PA", 1830.0), ("AP", 1050.0))
    }
    assert width["AP"] > 1.1 * width["PA"]


def test_rotation_moves_front_against_back() -> None:
    grid = Grid(SIZE)
    hu = np.full((SIZE,) * 3, -1000.0, np.float32)
    hu[30:34, 56:60, 30:34] = 1000
    columns = [
        line_integral(attenuation(hu), grid, View("PA", 1830.0, 30.0, (turn, 0.0)), 256).sum(axis=0)
        for turn in (0.0, 0.1)
    ]
    straight, turned = (float(np.average(np.arange(256), weights=column)) for column in columns)
    assert straight - turned == pytest.approx(0.1 * 26 * grid.spacing_mm[1] / (360 / 256), abs=0.5)


@pytest.mark.parametrize("view", [View("PA", 1830.0, 30.0, (0.05, -0.03), (4.0, 3.0), 0.95), View("AP", 1050.0, 30.0),
                                  View("LATERAL", 1830.0, 30.0)], ids=lambda view: view.name)  # fmt: skip
def test_wires_fall_where_the_volume_shows_them(view: View) -> None:
    """A tube drawn from its points has the mass, place and course that the same tube has through voxels."""
    grid = Grid(SIZE, (1.1, 0.9, 1.0))
    t = np.linspace(0, 1, 4000)
    points = np.stack([-60 + 90 * t, 30 - 60 * t**2, -40 + 70 * np.sqrt(t)], axis=1)
    weights = np.full(len(t), 2e3)
    hu = np.zeros((SIZE,) * 3, np.float32)
    box, added = grid.splat(points, weights / grid.voxel)
    hu[box] = added
    mu = hu * np.float32(MU_WATER / 1000 * BONE_GAIN)
    # In a bath, because the undershoot of the volume's cubic interpolation is cut off at zero in air.
    reference = line_integral(mu + np.float32(0.01), grid, view, PIXELS)
    reference -= line_integral(np.full_like(mu, 0.01), grid, view, PIXELS)
    ours = wire_integral(Wires(points, weights), grid, view, PIXELS)
    assert ours.sum() == pytest.approx(reference.sum(), rel=0.02)
    rows, columns = np.indices(ours.shape)
    for axis in (rows, columns):
        means = [np.average(axis, weights=image) for image in (ours, reference)]
        assert means[0] == pytest.approx(means[1], abs=0.3)
        spread = [np.average((axis - means[1]) ** 2, weights=image) ** 0.5 for image in (ours, reference)]
        assert spread[0] == pytest.approx(spread[1], rel=0.06)


def test_arms_leave_the_lateral_and_the_chest_stays() -> None:
    grid = Grid(SIZE)
    stays = arms_away(grid)[:, 0]
    x, z = grid.x[0, 0], grid.z[:, 0, 0]
    assert stays[np.ix_(z < 110, np.abs(x) < 130)].min() == 1
    assert stays[np.ix_(z > 80, np.abs(x) > 172)].max() == 0

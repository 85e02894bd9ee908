"""The healthy thorax in Hounsfield units: body wall, lungs with lobes, mediastinum, heart, vessels, abdomen, bones.

Guarantee: `build` is a pure function of its arguments; the parts it returns (lungs, lobes, heart) are those drawn
into the volume. Coordinates are template millimetres (x right, y anterior, z superior), see `grid`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from medvlp.sources.phantom.body import Shape, diaphragm_of, paint_body, paint_gas, ramp
from medvlp.sources.phantom.grid import Grid, coarse_noise, mix, soft
from medvlp.sources.phantom.mediastinum import AIR, great_vessels, heart_of, paint_airways
from medvlp.sources.phantom.patient import Patient, Posture
from medvlp.sources.phantom.skeleton import Break, paint_skeleton, spine_x
from medvlp.sources.phantom.vessels import paint_vessels

LUNG, BLOOD, HEART, LIVER, BOWEL = -840.0, 50.0, 45.0, 60.0, 35.0
LOBES = {
    "right upper lobe": 1,
    "right middle lobe": 2,
    "right lower lobe": 3,
    "left upper lobe": 4,
    "left lower lobe": 5,
}
"""Lobe -> number in the lobe map."""
HILUM = {"right": (38.0, -16.0, 0.0), "left": (-38.0, -18.0, 8.0)}


@dataclass(frozen=True)
class Changes:
    """What disease does to the healthy shape."""

    heart: float = 1.0
    """Size of the heart over the patient's normal."""
    flatten: float = 0.0
    """How far emphysema pushes the domes down, template mm."""
    vessels: float = 1.0
    """Calibre of the pulmonary vessels: above 1 in edema, below 1 in emphysema."""
    breaks: tuple[Break, ...] = ()


@dataclass(frozen=True)
class Placed:
    """A device: its HU in the volume (`added` in `box`) and the points it is made of, finer than voxels."""

    box: tuple[slice, slice, slice]
    added: Float[np.ndarray, "d h w"]
    points: Float[np.ndarray, "n 3"]
    """Template mm."""
    weights: Float[np.ndarray, " n"]
    """HU x mm³ (template) of each point."""


@dataclass
class Anatomy:
    """The volume in HU and the parts that findings need."""

    grid: Grid
    hu: Float[np.ndarray, "d h w"]
    lung: dict[str, Float[np.ndarray, "d h w"]]
    """Side -> share of each voxel that is lung, without heart and great vessels."""
    depth: Float[np.ndarray, "d h w"]
    """Distance from the pleura in template mm, positive inside either lung (about right near the surface)."""
    wall: Float[np.ndarray, "d h w"]
    """Distance from the chest wall, positive inside the thoracic cavity."""
    lobes: UInt8[np.ndarray, "d h w"]
    heart: Float[np.ndarray, "d h w"]
    shape: Shape
    domes: dict[str, float]
    """Height of each dome."""
    apex: float
    sides: dict[str, slice] = field(default_factory=dict)
    """Side -> its columns (axis w)."""
    devices: list[Placed] = field(default_factory=list)
    """What devices added, in the order of painting."""


def _shape(grid: Grid, patient: Patient, apex: float) -> Shape:
    z = grid.z
    rise = np.clip((z + 40) / (apex + 40), 0, 1)
    width = 138 - 11 * ramp(z, -80, 30) - 5 * ramp(-z, 95, 160)
    dome = np.sqrt(np.maximum(1 - rise**2.1, 0))
    wall_x = 54 + (width - 54) * dome
    depth = patient.depth * (96 - 14 * ramp(z, -90, 60))
    wall_y = depth * np.sqrt(np.maximum(1 - rise**3.2, 1e-3))
    centre = -4 - 14 * ramp(z, -90, 70) - 14 * ramp(z, 60, 130) - 5 * patient.kyphosis * ramp(z, -60, 60)
    return Shape(wall_x.astype(np.float32), wall_y.astype(np.float32), centre.astype(np.float32), z.ravel())


def _medial(grid: Grid, patient: Patient, shape: Shape) -> Float[np.ndarray, "d h w"]:
    """Return how far from the middle each lung begins: behind the sternum, beside vessels, beside the spine."""
    y, z = grid.y, grid.z
    heights = [-100, -50, 0, 28, 55, 80, 105, 130]
    right = np.interp(z, heights, [9, 5, 12, 31, 29, 27, 31, 38])
    left = np.interp(z, heights, [11, 8, 18, 22, 23, 26, 30, 37])
    phase = 40 * patient.heart + 9 * patient.scoliosis
    front = ramp(y - shape.centre_y, 28, 66)
    # Below, the heart lies against the sternum and keeps the lungs apart; above, they meet.
    before = 5 + ramp(-z, -15, 65) * (10 + np.clip((y - 25) * 0.5, 0, 30))
    back = 1 - ramp(y, -60, -20)
    sides = []
    for sign, middle, wave in ((-1, left, z / 23 + 1.7 * phase), (1, right, z / 19 + phase)):
        bend = sign * spine_x(z, patient)
        middle = middle + 2.4 * np.sin(wave) + bend
        behind = 6 + np.clip((-y - 36) * 0.75, 0, 36) + sign * 1.2 * np.sin(z / 11 + phase) + bend
        medial = middle + back * (behind - middle)
        sides.append((medial + front * (before - medial)).astype(np.float32))
    return np.where(grid.x > 0, sides[1], sides[0])


def _lungs(
    grid: Grid, patient: Patient, shape: Shape, diaphragm: np.ndarray, apex: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the signed distances to the chest wall and to the whole pleura."""
    x, y, z = grid.x, grid.y, grid.z
    wall = (1 - (np.abs(x) / shape.wall_x) ** 2.5 - (np.abs(y - shape.centre_y) / shape.wall_y) ** 2.3).astype(
        np.float32
    )
    wall *= (0.42 * (shape.wall_x + shape.wall_y) / 2).astype(np.float32)
    rise = np.clip((z - 15) / (apex - 15), 0, 1)
    medial = 50 - (50 - _medial(grid, patient, shape)) * np.sqrt(np.maximum(1 - rise**5, 0))
    depth = np.minimum(wall, np.abs(x) - medial.astype(np.float32))
    np.minimum(depth, 0.85 * (z - diaphragm[None]), out=depth)
    np.minimum(depth, apex - z, out=depth)
    return wall, depth


def _lobes(grid: Grid, depth: np.ndarray, hu: np.ndarray, inside: np.ndarray) -> UInt8[np.ndarray, "d h w"]:
    """Number the lobes and draw the fissures as thin sheets between them."""
    size = grid.size
    x, y, z = grid.x[0], grid.y[0], grid.z
    right = grid.x[0, 0] > 0
    oblique = np.where(x > 0, 52, 60) - (y + 95) * np.where(x > 0, 0.86, 0.9) - 8 * ((np.abs(x) - 65) / 60) ** 2
    horizontal = 2 - 6 * ((np.abs(x) - 60) / 70) + 0.04 * y
    above = z > oblique[None].astype(np.float32)
    lobes = np.where(above, np.uint8(4), np.uint8(5))
    upper = z > horizontal[None].astype(np.float32)
    lobes[:, :, right] = np.where(
        above[:, :, right], np.where(upper[:, :, right], np.uint8(1), np.uint8(2)), np.uint8(3)
    )
    sheet = np.concatenate([oblique[None], np.where((x > 0) & (horizontal > oblique), horizontal, -999.0)[None]])
    at = (sheet - grid.first[2]) / grid.step[2]
    low = np.floor(at).astype(int)
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    for k in range(2):
        for level, share in ((low[k], 1 - (at[k] - low[k])), (low[k] + 1, at[k] - low[k])):
            good = (level >= 0) & (level < size)
            d, h, w = level[good], rows[good], columns[good]
            hu[d, h, w] += (inside[d, h, w] * share[good] * (110.0 if k else 60.0)).astype(np.float32)
    lobes[depth <= 0] = 0
    return lobes


def build(
    grid: Grid,
    patient: Patient,
    posture: Posture,
    changes: Changes,
    rng: np.random.Generator,
    study_rng: np.random.Generator,
) -> Anatomy:
    """Draw the thorax.

    Args:
        grid: Where to draw.
        patient: The anatomy.
        posture: Breath of this study.
        changes: What disease does to the shape.
        rng: Stream of the patient (vessel tree, lung texture).
        study_rng: Stream of the study (stomach and bowel gas).
    """
    apex = 124.0 + patient.apex
    shape = _shape(grid, patient, apex)
    hu = np.full((grid.size,) * 3, AIR, np.float32)
    paint_body(grid, patient, shape, hu)
    diaphragm, domes = diaphragm_of(grid, patient, posture, changes.flatten)
    wall, depth = _lungs(grid, patient, shape, diaphragm, apex)

    floor = np.clip(soft(diaphragm[None] - grid.z, 4.0), 0, 1)
    cavity = soft(wall, 3.0)
    organ = np.where(grid.x > -25, np.float32(LIVER), np.float32(BOWEL))
    hu += cavity * (20 + floor * (organ - 20) - hu)

    paint_gas(grid, domes, diaphragm, hu, study_rng)
    share = soft(depth, 2.6)
    air = LUNG + 26 * coarse_noise(rng, hu.shape, (14, 14, 14)) + (grid.z * -0.22)
    hu += share * (air.astype(np.float32) - hu)
    lobes = _lobes(grid, depth, hu, share)
    paint_vessels(grid, hu, share, depth, changes.vessels, rng)

    tissue = np.zeros_like(hu)
    heart = np.zeros_like(hu)
    box, part = heart_of(grid, patient, posture, changes.heart, 0.5 * (domes["right"] + domes["left"]))
    part = part * soft(grid.z[box[0]] - diaphragm[None, box[1], box[2]] + 3, 4.0)
    heart[box] = part
    tissue[box] = part
    mix(hu[box], part, HEART)
    box, part = great_vessels(grid, patient)
    part = part * soft(grid.z[box[0]] - diaphragm[None, box[1], box[2]] + 40, 4.0)
    tissue[box] = np.maximum(tissue[box], part)
    mix(hu[box], part, BLOOD)
    paint_airways(grid, hu)
    paint_skeleton(grid, hu, patient, posture, shape, changes.breaks)

    share *= 1 - tissue
    lobes[share < 0.5] = 0
    half = grid.size // 2
    sides = {"right": slice(half, grid.size), "left": slice(0, half)}
    lung = {side: share[:, :, columns] for side, columns in sides.items()}
    return Anatomy(grid, hu, lung, depth, wall, lobes, heart, shape, domes, apex, sides)

"""The healthy thorax in Hounsfield units: body wall, lungs with lobes, mediastinum, heart, vessels, abdomen, bones.

Guarantee: `build` is a pure function of its arguments; the parts it returns (lungs, lobes, heart) are those drawn
into the volume. Coordinates are template millimetres (x right, y anterior, z superior), see `grid`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from medvlp.sources.phantom.grid import Grid, coarse_noise, mix, soft
from medvlp.sources.phantom.mediastinum import AIR, great_vessels, heart_of, paint_airways
from medvlp.sources.phantom.patient import Patient, Posture
from medvlp.sources.phantom.skeleton import Break, paint_skeleton, spine_x
from medvlp.sources.phantom.vessels import paint_vessels

LUNG, FAT, MUSCLE, BLOOD, HEART, LIVER, BOWEL = -840.0, -100.0, 50.0, 50.0, 45.0, 60.0, 35.0
LOBES = {
    "right upper lobe": 1,
    "right middle lobe": 2,
    "right lower lobe": 3,
    "left upper lobe": 4,
    "left lower lobe": 5,
}
"""Lobe -> number in the lobe map."""
SIDE_SIGN = {"right": 1.0, "left": -1.0}
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


@dataclass
class Shape:
    """Smooth curves that the parts share; every array broadcasts against `[d h w]`."""

    wall_x: Float[np.ndarray, "d 1 1"]
    """Half width of the thoracic cavity."""
    wall_y: Float[np.ndarray, "d 1 1"]
    """Half depth of the thoracic cavity."""
    centre_y: Float[np.ndarray, "d 1 1"]
    heights: Float[np.ndarray, " d"]

    def at(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return half width, half depth and centre y at heights `z`."""
        x, y, c = (np.interp(z, self.heights, curve.ravel()) for curve in (self.wall_x, self.wall_y, self.centre_y))
        return x, y, c


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


def _ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _shape(grid: Grid, patient: Patient, apex: float) -> Shape:
    z = grid.z
    rise = np.clip((z + 40) / (apex + 40), 0, 1)
    width = 138 - 11 * _ramp(z, -80, 30) - 5 * _ramp(-z, 95, 160)
    dome = np.sqrt(np.maximum(1 - rise**2.1, 0))
    wall_x = 54 + (width - 54) * dome
    depth = patient.depth * (96 - 14 * _ramp(z, -90, 60))
    wall_y = depth * np.sqrt(np.maximum(1 - rise**3.2, 1e-3))
    centre = -4 - 14 * _ramp(z, -90, 70) - 14 * _ramp(z, 60, 130) - 5 * patient.kyphosis * _ramp(z, -60, 60)
    return Shape(wall_x.astype(np.float32), wall_y.astype(np.float32), centre.astype(np.float32), z.ravel())


def _body(grid: Grid, patient: Patient, shape: Shape, hu: np.ndarray) -> None:
    z, thick = grid.z, 19 * patient.muscle
    torso = 138 - 8 * _ramp(z, -60, 40) + thick
    shoulder = 205 * patient.muscle**0.3
    width = torso + (shoulder - torso) * _ramp(z, 15, 85)
    neck = 56 + 4 * patient.muscle
    width = width + (neck - width) * _ramp(z, 100, 172) ** 0.8
    cavity = patient.depth * (96 - 14 * _ramp(z, -90, 60))
    depth = cavity + thick * 0.95
    depth = depth + (neck * 1.05 - depth) * _ramp(z, 85, 160)
    centre = shape.centre_y - 4
    fat = patient.fat * (1 - 0.75 * _ramp(z, 70, 140))
    inner_x, inner_y = width, depth
    across = (np.abs(grid.x - 0) / inner_x) ** 2.4
    along = (np.abs(grid.y - centre) / inner_y) ** 2.4
    level = (across.astype(np.float32) + along.astype(np.float32)).astype(np.float32)
    np.subtract(1, level, out=level)
    level *= ((inner_x + inner_y) / 2 / 2.4).astype(np.float32)
    skin = soft(level + fat.astype(np.float32), 3.0)
    hu += skin * np.float32(FAT - AIR)
    hu += soft(level, 4.0) * np.float32(MUSCLE - FAT)
    if patient.breast:
        front = centre + inner_y * (1 - np.clip(np.abs(grid.x) / inner_x, 0, 0.99) ** 2.4) ** (1 / 2.4) + fat
        _breasts(grid, patient, front.astype(np.float32), hu)


def _breasts(grid: Grid, patient: Patient, front: np.ndarray, hu: np.ndarray) -> None:
    """Draw breasts as bulges of the front `[d 1 w]` of the body, so that their shadow has a soft rim."""
    size = patient.breast
    for sign in (1, -1):
        x0, z0 = sign * (70 + 6 * size), -50 - 14 * size
        wide, tall = 62 * size**0.5, 46 * size**0.5
        box = grid.box((x0 - wide, 0, z0 - tall), (x0 + wide, 140, z0 + 2.6 * tall))
        x, y, z = grid.local(box)
        off = ((x - x0) / wide) ** 2 + ((z - z0) / np.where(z < z0, tall, 2.5 * tall)) ** 2
        bulge = 37 * size**0.8 * np.clip(1 - off, 0, 1) ** 1.15
        # The bulge starts under the skin, so that it leaves the wall without a step.
        share = soft((front[box[0], :, box[2]] - 9 + bulge - y).astype(np.float32), 4.0) * (y > 0)
        gland = np.clip(bulge / 22, 0, 1) * (40 + 25 * size)
        part = hu[box]
        np.maximum(part, AIR + share * (FAT - AIR + gland).astype(np.float32), out=part)


def _diaphragm(grid: Grid, patient: Patient, posture: Posture, changes: Changes) -> tuple[np.ndarray, dict[str, float]]:
    x, y = grid.x[0], grid.y[0]
    across, along = np.abs(x) - 62, y - 18
    domes = {}
    height = np.zeros((grid.size, grid.size), np.float32)
    for side, sign in SIDE_SIGN.items():
        dome = -88 + patient.dome[0 if side == "right" else 1] + posture.breath - changes.flatten
        domes[side] = float(dome)
        deep = 1 - 0.45 * min(changes.flatten / 25, 1)
        outward = np.clip(across / 76, 0, 1.2)
        drop = 40 * outward**2.3 + 7 * np.clip(-across / 45, 0, 1) ** 2
        drop = drop + np.where(along < 0, 62 * (along / 116) ** 2, 17 * (along / 80) ** 2)
        height = np.where(np.sign(x) == sign, dome - deep * drop, height)
    return height.astype(np.float32), domes


def _medial(grid: Grid, patient: Patient, shape: Shape) -> np.ndarray:
    """Return how far from the middle each lung begins: behind the sternum, beside the great vessels, beside the spine."""
    x, y, z = grid.x, grid.y, grid.z
    heights = [-100, -50, 0, 28, 55, 80, 105, 130]
    right = np.interp(z, heights, [15, 14, 19, 31, 29, 27, 31, 38])
    left = np.interp(z, heights, [16, 15, 21, 22, 23, 26, 30, 37])
    phase = 40 * patient.heart + 9 * patient.scoliosis
    right = right + 2.4 * np.sin(z / 19 + phase) + spine_x(z, patient)
    left = left + 2.4 * np.sin(z / 23 + 1.7 * phase) - spine_x(z, patient)
    middle = np.where(x > 0, right, left)
    front = _ramp(y - shape.centre_y, 28, 66) * (0.55 + 0.45 * _ramp(z, -30, 20))
    back = 1 - _ramp(y, -72, -30)
    behind = 11 + np.clip((-y - 40) * 0.55, 0, 27) + 1.2 * np.sin(z / 11 + phase) * np.sign(x)
    behind = behind + np.sign(x) * spine_x(z, patient)
    medial = middle + back * (behind - middle)
    return medial + front * (5 - medial)


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


def _abdomen(
    grid: Grid, domes: dict[str, float], diaphragm: np.ndarray, hu: np.ndarray, rng: np.random.Generator
) -> None:
    centre = np.array([-58 + rng.normal(0, 6), 4 + rng.normal(0, 8), domes["left"] - 24 + rng.normal(0, 3)])
    radii = np.array([28, 30, 17]) * rng.uniform(0.55, 1.15)
    gas = [(centre, radii, centre[2] - radii[2] * rng.uniform(-0.2, 0.6))]
    for _ in range(int(rng.integers(0, 4))):
        place = np.array([rng.uniform(-115, -20), rng.uniform(0, 50), domes["left"] - rng.uniform(45, 70)])
        gas.append((place, rng.uniform(8, 17, 3), -1e3))
    for place, size, level in gas:
        box = grid.box(place - size, place + size)
        x, y, z = grid.local(box)
        quadric = (
            1 - ((x - place[0]) / size[0]) ** 2 - ((y - place[1]) / size[1]) ** 2 - ((z - place[2]) / size[2]) ** 2
        )
        inside = np.minimum(quadric * (0.4 * size.min()), z - level)
        inside = np.minimum(inside, 0.8 * (diaphragm[None, box[1], box[2]] - 4 - z))
        mix(hu[box], soft(inside.astype(np.float32), 3.0), -960.0)


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
    _body(grid, patient, shape, hu)
    diaphragm, domes = _diaphragm(grid, patient, posture, changes)
    wall, depth = _lungs(grid, patient, shape, diaphragm, apex)

    floor = np.clip(soft(diaphragm[None] - grid.z, 4.0), 0, 1)
    cavity = soft(wall, 3.0)
    organ = np.where(grid.x > -25, np.float32(LIVER), np.float32(BOWEL))
    hu += cavity * (20 + floor * (organ - 20) - hu)

    _abdomen(grid, domes, diaphragm, hu, study_rng)
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

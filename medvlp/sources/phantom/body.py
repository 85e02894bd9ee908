"""Around the lungs: the cavity's curves, the body wall with breasts, the diaphragm and the gas below it.

Guarantee: everything is drawn in template millimetres into the array given; see `grid`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medvlp.sources.phantom.grid import Grid, mix, soft
from medvlp.sources.phantom.mediastinum import AIR
from medvlp.sources.phantom.patient import Patient, Posture

FAT, MUSCLE = -100.0, 50.0
SIDE_SIGN = {"right": 1.0, "left": -1.0}


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


def ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a smooth step from 0 at `low` to 1 at `high`."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def paint_body(grid: Grid, patient: Patient, shape: Shape, hu: np.ndarray) -> None:
    """Draw the body wall, muscle under fat, into the air of `hu`, in place."""
    z, thick = grid.z, 19 * patient.muscle
    torso = 138 - 8 * ramp(z, -60, 40) + thick
    shoulder = 205 * patient.muscle**0.3
    width = torso + (shoulder - torso) * ramp(z, 15, 85)
    neck = 56 + 4 * patient.muscle
    width = width + (neck - width) * ramp(z, 100, 172) ** 0.8
    cavity = patient.depth * (96 - 14 * ramp(z, -90, 60))
    depth = cavity + thick * 0.95
    depth = depth + (neck * 1.05 - depth) * ramp(z, 85, 160)
    centre = shape.centre_y - 4
    fat = patient.fat * (1 - 0.75 * ramp(z, 70, 140))
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


def diaphragm_of(grid: Grid, patient: Patient, posture: Posture, flatten: float) -> tuple[np.ndarray, dict[str, float]]:
    """Return the height of the diaphragm `[h w]` and of each dome; `flatten` is how far it is pushed down, mm."""
    x, y = grid.x[0], grid.y[0]
    across, along = np.abs(x) - 62, y - 18
    domes = {}
    height = np.zeros((grid.size, grid.size), np.float32)
    for side, sign in SIDE_SIGN.items():
        dome = -88 + patient.dome[0 if side == "right" else 1] + posture.breath - flatten
        domes[side] = float(dome)
        deep = 1 - 0.45 * min(flatten / 25, 1)
        outward = np.clip(across / 76, 0, 1.2)
        drop = 40 * outward**2.3 + 7 * np.clip(-across / 45, 0, 1) ** 2
        drop = drop + np.where(along < 0, 62 * (along / 116) ** 2, 17 * (along / 80) ** 2)
        height = np.where(np.sign(x) == sign, dome - deep * drop, height)
    return height.astype(np.float32), domes


def paint_gas(
    grid: Grid, domes: dict[str, float], diaphragm: np.ndarray, hu: np.ndarray, rng: np.random.Generator
) -> None:
    """Draw the gas of stomach and bowel below the diaphragm into `hu`, in place."""
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

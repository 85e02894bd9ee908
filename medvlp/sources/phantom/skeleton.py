"""Bones: ribs, spine, sternum, clavicles, scapulae and humeral heads.

Guarantee: bone mass is painted below voxel size (trilinear), so thin bones keep their attenuation at any grid size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from medvlp.sources.phantom.grid import Grid, cross, mix, path_tubes, smooth_path, tubes
from medvlp.sources.phantom.patient import Patient, Posture

if TYPE_CHECKING:
    from medvlp.sources.phantom.body import Shape

FIRST_VERTEBRA, VERTEBRA_STEP = 126.0, 23.2
"""Height of the middle of T1 and the distance between thoracic vertebrae, template mm."""
_REACH = (150, 150, 148, 146, 143, 139, 135, 126, 117, 108, 82, 58)
"""Angle around the chest, degrees from the spine, at which the bone of rib 1 to 12 ends."""
_DROP = (58, 84, 100, 110, 116, 120, 122, 118, 112, 104, 92, 80)
"""Fall of rib 1 to 12 over half the way around the chest, mm."""


@dataclass(frozen=True)
class Break:
    """A broken rib: `rib` 1 to 12, `angle` in degrees from the spine, `shift` of the ends in mm, `callus` 0 to 1."""

    side: str
    rib: int
    angle: float
    shift: float
    callus: float


def spine_y(z: np.ndarray, patient: Patient) -> np.ndarray:
    """Return the y of the vertebral bodies' centre at heights `z` (kyphosis bends the middle backwards)."""
    return -58 - patient.kyphosis * 9 * np.exp(-(((z - 25) / 80) ** 2)) + 8 * np.clip((z - 60) / 80, 0, 1.4)


def spine_x(z: np.ndarray, patient: Patient) -> np.ndarray:
    """Return the x of the spine at heights `z` (scoliosis)."""
    return patient.scoliosis * np.sin((z + 40) / 60)


def rib_path(
    side: str, rib: int, patient: Patient, shape: Shape, angles: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 3"]:
    """Return points on the middle line of a rib (1 to 12) at angles in degrees from the spine (0) forwards."""
    sign = 1.0 if side == "right" else -1.0
    phi = np.deg2rad(angles)
    head = FIRST_VERTEBRA - VERTEBRA_STEP * (rib - 1)
    z = head + 3 - _DROP[rib - 1] * patient.ribs * (phi / np.pi) ** 1.6
    x_half, y_half, centre = shape.at(z)
    x_half = np.maximum(x_half, 58.0 if rib == 1 else 66.0) + 4
    y_half = np.maximum(y_half, 42.0) + 4
    power = 2 / 2.35
    x = sign * x_half * np.sin(phi) ** power
    y = centre - y_half * np.sign(np.cos(phi)) * np.abs(np.cos(phi)) ** power
    back = spine_y(np.array([head]), patient)[0] - 17
    near = np.clip(angles / 16, 0, 1)
    return np.stack([x, back + (y - back) * near, z], axis=1)


def _ribs(patient: Patient, shape: Shape, breaks: tuple[Break, ...]) -> tuple[np.ndarray, np.ndarray]:
    ring = np.arange(12) * np.pi / 6
    points, weights = [], []
    for side in ("right", "left"):
        for rib in range(1, 13):
            reach = _REACH[rib - 1]
            count = int(reach * 1.4 + 12)
            angles = np.linspace(8, reach, count)
            path = rib_path(side, rib, patient, shape, angles)
            # Bone thins forwards; at the side, where rays run along the rib, it is spread over more height.
            side_on = np.exp(-(((angles - 88) / 26) ** 2))
            strength = 1.08 - 0.66 * np.clip((angles - 55) / 45, 0, 1) - 0.16 * side_on
            for broken in breaks:
                if (broken.side, broken.rib) == (side, rib):
                    away = (angles - broken.angle) * 2.0
                    bump = np.exp(-((away / 22) ** 2)) * np.where(away > 0, 1.0, -0.35) * broken.shift
                    path = path + np.stack([0 * bump, 0 * bump, -bump], axis=1)
                    gap = np.abs(away) < 3.2
                    strength = np.where(gap, 0.1 + 2.2 * broken.callus, strength)
                    strength += 1.1 * broken.callus * np.exp(-((away / 9) ** 2))
            tangent = np.gradient(path, axis=0)
            length = np.linalg.norm(tangent, axis=1)
            tangent = tangent / length[:, None]
            outward = np.stack([path[:, 0], path[:, 1] + 10, 0 * path[:, 0]], axis=1)
            outward -= (outward * tangent).sum(axis=1, keepdims=True) * tangent
            outward /= np.linalg.norm(outward, axis=1, keepdims=True)
            upward = cross(tangent, outward)
            tall = (5.0 if rib in (1, 12) else 6.6) + 1.8 * side_on
            off = (
                3.3 * np.cos(ring)[None, :, None] * outward[:, None]
                + (tall[:, None] * np.sin(ring))[:, :, None] * upward[:, None]
            )
            points.append((path[:, None] + off).reshape(-1, 3))
            mass = np.pi * 3.3 * 6.4 * length * strength * 850
            weights.append(np.repeat(mass / 12, 12))
    return np.concatenate(points), np.concatenate(weights)


def _plate(corners: list[tuple[float, float, float]], thickness: float) -> tuple[np.ndarray, np.ndarray]:
    a, b, c = (np.array(corner, dtype=np.float64) for corner in corners)
    n = 44
    across, down = np.meshgrid((np.arange(n) + 0.5) / n, (np.arange(n) + 0.5) / n)
    u, v = across.ravel(), down.ravel()
    fold = u + v > 1
    u, v = np.where(fold, 1 - u, u), np.where(fold, 1 - v, v)
    points = a + u[:, None] * (b - a) + v[:, None] * (c - a)
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a))
    return points, np.full(len(points), area * thickness / len(points))


def _shoulders(posture: Posture) -> tuple[np.ndarray, np.ndarray]:
    inward = 20.0 if posture.view == "AP" else 0.0
    points, weights = [], []

    def add(part: tuple[np.ndarray, np.ndarray], hu: float) -> None:
        points.append(part[0])
        weights.append(part[1] * hu)

    for s in (1.0, -1.0):
        collar = smooth_path(
            [(s * 13, 56, 84), (s * 48, 62, 90), (s * 92, 34, 103), (s * 130, 8, 114), (s * 158, 0, 116)], 2.0
        )
        wide = np.interp(np.linspace(0, 1, len(collar)), [0, 0.15, 0.5, 0.85, 1], [8.2, 6.4, 5.6, 6.2, 7.0])
        add(path_tubes(collar, wide, 2.4), 950.0)
        upper, lower, socket = (
            (s * (104 - inward), -96, 92), (s * (118 - inward), -100, -42), (s * (152 - inward * 0.6), -34, 92)
        )  # fmt: skip
        add(_plate([upper, lower, socket], 3.6), 800.0)
        add(path_tubes(smooth_path([lower, (s * (140 - inward), -72, 28), socket], 2.5), 4.6, 2.4), 650.0)
        add(path_tubes(smooth_path([upper, (s * (112 - inward), -102, 20), lower], 2.5), 2.4, 2.4), 700.0)
        spine = smooth_path([(s * (106 - inward), -98, 74), (s * (138 - inward), -72, 100), (s * 166, -14, 120)], 2.5)
        add(path_tubes(spine, 4.6, 2.4), 560.0)
        coracoid = smooth_path([socket, (s * (146 - inward), -12, 106), (s * 138, 8, 98)], 2.5)
        add(path_tubes(coracoid, 5.0, 2.4), 350.0)
        rng = np.random.default_rng(0)
        ball = rng.normal(size=(900, 3))
        ball *= 22 / np.linalg.norm(ball, axis=1, keepdims=True)
        add((ball * rng.uniform(0.6, 1, (900, 1)) + np.array([s * 176, -16, 92]), np.full(900, 44602 / 900)), 280.0)
        add(path_tubes(np.array([[s * 180, -16, 90], [s * 186, -16, -10]]), 11.0, 2.4), 380.0)
    return np.concatenate(points), np.concatenate(weights)


def _vertebrae(grid: Grid, patient: Patient, hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw the vertebral bodies into `hu`; return points of the arches and processes."""
    box = grid.box((-30, -105, -400), (30, -15, 400))
    x, y, z = grid.local(box)
    centre_x, centre_y = spine_x(z, patient), spine_y(z, patient)
    place = (FIRST_VERTEBRA - z) / VERTEBRA_STEP
    phase = np.abs(place - np.rint(place)) * 2
    wide = 14.5 + 3.0 * np.clip((40 - z) / 160, 0, 1) + 3.2 * phase**3
    level = 1 - ((x - centre_x) / wide) ** 2 - ((y - centre_y) / (wide * 0.86)) ** 2
    share = np.clip(level * (0.5 * wide) / 2.6 + 0.5, 0, 1)
    end = np.clip((0.80 - phase) / 0.12 + 0.5, 0, 1)
    plate = np.exp(-(((phase - 0.76) / 0.09) ** 2))
    shell = np.exp(-((level / 0.22) ** 2))
    bone = 60 + end * (patient.bone * (95 + 75 * shell) - 60) + plate * 230 * patient.bone
    mix(hu[box], share.astype(np.float32), bone.astype(np.float32))
    starts, stops, radii = [], [], []
    for number in range(-2, 14):
        height = FIRST_VERTEBRA - VERTEBRA_STEP * number
        cx, cy = float(spine_x(np.array(height), patient)), float(spine_y(np.array(height), patient))
        parts = [((cx, cy - 24, height - 3), (cx, cy - 46, height - 20), 3.4)]
        for s in (1.0, -1.0):
            parts.append(((cx + s * 12, cy - 10, height + 3), (cx + s * 13, cy - 24, height + 2), 4.2))
            parts.append(((cx + s * 13, cy - 22, height + 2), (cx + s * 33, cy - 32, height + 5), 4.0))
            parts.append(((cx + s * 13, cy - 24, height + 2), (cx, cy - 30, height - 4), 4.4))
        for start, stop, radius in parts:
            starts.append(start)
            stops.append(stop)
            radii.append(radius)
    points, weights = tubes(np.array(starts), np.array(stops), np.array(radii), 2.4)
    return points, weights * 230


def _sternum(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    heights = np.linspace(80, -78, 54)
    _, half, centre = shape.at(heights)
    y = np.minimum(centre + half + 7, 96) - 4 * np.clip((heights - 40) / 40, 0, 1)
    wide = np.interp(heights, [-78, -62, -20, 40, 52, 80], [5, 14, 17, 12, 21, 26])
    across = np.linspace(-1, 1, 15)
    points = np.stack(np.broadcast_arrays(wide[:, None] * across, y[:, None], heights[:, None]), axis=-1).reshape(-1, 3)
    edge = np.where(np.abs(across) > 0.9, 1.8, 0.9)
    mass = wide[:, None] * 2 / 15 * 10.0 * (158 / 54) * edge
    return points, mass.ravel() * 230


def paint_skeleton(
    grid: Grid,
    hu: Float[np.ndarray, "d h w"],
    patient: Patient,
    posture: Posture,
    shape: Shape,
    breaks: tuple[Break, ...],
) -> None:
    """Draw all bones into `hu` in place."""
    parts = [_ribs(patient, shape, breaks), _shoulders(posture), _vertebrae(grid, patient, hu), _sternum(shape)]
    points = np.concatenate([part[0] for part in parts])
    weights = np.concatenate([part[1] for part in parts]) * (patient.bone / grid.voxel)
    box, added = grid.splat(points, weights)
    part = hu[box]
    part += added
    np.minimum(part, 1800, out=part)

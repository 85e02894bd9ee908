"""Heart, great vessels and airways.

Guarantee: heart and great vessels are returned as a box of the grid and the share of each voxel that they fill;
coordinates are template millimetres, see `grid`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from medvlp.sources.phantom.grid import Grid, mix, path_tubes, smooth_path, soft
from medvlp.sources.phantom.patient import Patient, Posture

Slices = tuple[slice, slice, slice]
AIR = -1000.0
"""HU of air."""
CARINA = (3.0, -22.0, 28.0)


def heart_of(
    grid: Grid, patient: Patient, posture: Posture, enlarge: float, floor: float
) -> tuple[Slices, Float[np.ndarray, "d h w"]]:
    """Return the heart: ventricles, right atrium, left atrium and outflow as joined ellipsoids.

    Args:
        grid: Where to draw.
        patient: Size and turn of the healthy heart.
        posture: A high diaphragm lays the heart flatter.
        enlarge: Size over the patient's normal.
        floor: Mean height of the domes of the diaphragm.
    """
    size = patient.heart * enlarge
    drop = 0.75 * (floor + 88)
    turn = 0.62 + patient.heart_turn + 0.008 * posture.breath
    axis = np.array([-np.cos(turn) * 0.92, 0.36, -np.sin(turn)])
    axis /= np.linalg.norm(axis)
    grow = size - 1
    parts = (
        ((-28 - 14 * grow, 22.0, -58 + 10 * grow + drop), 66 * size, 48 * size, axis),
        ((15 + 2 * grow, 12.0, -52 + 6 * grow + drop), 44 * size, 32 * size, np.array([0.05, 0.1, 1.0])),
        ((-2.0, -14.0, -26 + drop), 33 * size, 24 * size, np.array([1.0, 0.0, 0.0])),
        ((-20.0, 30.0, -16 + drop), 44 * size, 27 * size, np.array([0.5, -0.2, 1.0])),
    )
    low = np.array([-38 - 80 * size - 20 * max(grow, 0), -14 - 30 * size, -66 - 70 * size + drop])
    high = np.array([20 + 38 * size, 26 + 58 * size, 48 + drop])
    box = grid.box(low, high)
    x, y, z = grid.local(box)
    level = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), -1e3, np.float32)
    for centre, long, short, direction in parts:
        direction = direction / np.linalg.norm(direction)
        px, py, pz = x - centre[0], y - centre[1], z - centre[2]
        along = px * direction[0] + py * direction[1] + pz * direction[2]
        square = (px * px + py * py) + pz * pz
        quadric = 1 - along * along * (1 / long**2 - 1 / short**2) - square / short**2
        np.maximum(level, quadric * (0.5 * short), out=level)
    return box, soft(level, 3.5)


def great_vessels(grid: Grid, patient: Patient) -> tuple[Slices, Float[np.ndarray, "d h w"]]:
    """Return aorta, pulmonary trunk and arteries, superior vena cava and the vessels of the neck."""
    r, s = patient.aorta, patient.aorta / 12.5
    aorta = smooth_path(
        [
            (4, 16, -30),
            (12 * s, 20, 5),
            (13 * s, 12, 34),
            (0, -4, 50 * s),
            (-25 * s, -24, 46 * s),
            (-26 * s, -44, 22),
            (-21 * s, -52, -30),
            (-15, -52, -90),
            (-8, -50, -170),
        ],
        4.0,
    )
    trunk = smooth_path([(-14, 34, -4), (-22, 16, 10), (-28, -4, 13), (-40, -18, 9)], 4.0)
    right = smooth_path([(-16, 6, 8), (6, -6, 6), (30, -12, 3), (42, -20, -12), (45, -26, -34)], 4.0)
    left = smooth_path([(-30, -10, 12), (-41, -24, 6), (-44, -32, -22)], 4.0)
    cava = smooth_path([(22, 8, -20), (24, 4, 30), (22, 4, 62), (12, 4, 100)], 4.0)
    head = smooth_path([(2, 0, 50), (9, -2, 78), (20, -8, 110), (24, -12, 150)], 4.0)
    throat = smooth_path([(-12, -6, 50), (-17, -8, 82), (-22, -10, 112), (-24, -12, 150)], 4.0)
    points, weights = [], []
    for path, radius in (
        (aorta, r), (trunk, np.linspace(15, 9, len(trunk))), (right, np.linspace(11, 6.0, len(right))),
        (left, np.linspace(10, 6.0, len(left))), (cava, 10.0), (head, 7.0), (throat, 6.0),
    ):  # fmt: skip
        p, w = path_tubes(path, radius, 2.6)
        points.append(p)
        weights.append(w)
    box, share = grid.splat(np.concatenate(points), np.concatenate(weights) / grid.voxel)
    return box, np.minimum(share, 1)


def airways() -> dict[str, np.ndarray]:
    """Return the centre lines of trachea and main bronchi, from above to below."""
    c = np.array(CARINA)
    return {
        "trachea": smooth_path([(0, -6, 172), (0, -14, 110), (2.5, -19, 60), tuple(c)], 2.0),
        "right": smooth_path([tuple(c), (18, -23, 12), (34, -25, 0), (46, -30, -22)], 2.0),
        "left": smooth_path([tuple(c), (-18, -24, 14), (-38, -28, 3), (-52, -34, -18)], 2.0),
    }


def paint_airways(grid: Grid, hu: Float[np.ndarray, "d h w"]) -> None:
    """Draw trachea and main bronchi with their walls into `hu` in place."""
    for name, path in airways().items():
        radius = 8.5 if name == "trachea" else np.linspace(7.5, 4.0, len(path))
        for grow, value in ((1.8, 20.0), (0.0, AIR)):
            points, weights = path_tubes(path, radius + grow, 1.9)
            box, share = grid.splat(points, weights / grid.voxel)
            mix(hu[box], np.minimum(share, 1), value)

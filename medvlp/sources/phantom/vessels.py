"""Branching arteries and veins of the lungs.

Guarantee: the tree is drawn from one random stream in a fixed number of draws, so that calibre changes (edema,
emphysema) leave its course as it is.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from medvlp.sources.phantom.grid import Grid, tubes

_ROOTS = (
    # direction (x lateral, y anterior, z superior), first length mm, radius mm
    ((0.45, -0.15, 1.0), 24.0, 3.4),
    ((0.75, 0.55, 0.65), 24.0, 2.8),
    ((0.8, -0.45, 0.55), 23.0, 2.8),
    ((1.0, 0.35, 0.0), 24.0, 2.9),
    ((0.9, -0.5, -0.25), 24.0, 3.1),
    ((0.5, 0.7, -0.6), 27.0, 3.1),
    ((0.75, 0.1, -0.9), 29.0, 3.9),
    ((0.3, -0.5, -1.0), 29.0, 3.9),
    ((0.55, -0.35, -0.9), 31.0, 3.7),
)
_LEVELS = 6
_HILA = ((36.0, -20.0, -4.0), (-38.0, -22.0, 4.0))


def _tree(rng: np.random.Generator, hilum: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sign = np.sign(hilum[0])
    direction = np.array([root[0] for root in _ROOTS])
    direction = direction + rng.normal(0, 0.12, direction.shape)
    direction[:, 0] *= sign
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = np.array([root[1] for root in _ROOTS])
    radius = np.array([root[2] for root in _ROOTS])
    start = np.array(hilum) + np.array([sign * 2.0, 0, 0]) + direction * 4 * np.array([0.3, 1.5, 3.0])
    starts, stops, radii = [], [], []
    for level in range(_LEVELS):
        bend = start + direction * length[:, None] * 0.5 + rng.normal(0, 0.05, start.shape) * length[:, None]
        stop = start + direction * length[:, None]
        starts += [start, bend]
        stops += [bend, stop]
        radii += [radius, radius * 0.93]
        if level == _LEVELS - 1:
            break
        sideways = rng.normal(size=direction.shape)
        sideways -= (sideways * direction).sum(axis=1, keepdims=True) * direction
        sideways /= np.linalg.norm(sideways, axis=1, keepdims=True)
        angle = rng.uniform(0.25, 0.55, (len(direction), 1))
        other = rng.uniform(0.35, 0.8, (len(direction), 1))
        direction = np.concatenate([direction + np.tan(angle) * sideways, direction - np.tan(other) * sideways])
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        start = np.concatenate([stop, stop])
        length = np.concatenate(
            [length * rng.uniform(0.72, 0.95, len(length)), length * rng.uniform(0.6, 0.85, len(length))]
        )
        radius = np.concatenate([radius * 0.8, radius * 0.66])
    return np.concatenate(starts), np.concatenate(stops), np.concatenate(radii)


def paint_vessels(
    grid: Grid,
    hu: Float[np.ndarray, "d h w"],
    lung: Float[np.ndarray, "d h w"],
    depth: Float[np.ndarray, "d h w"],
    calibre: float,
    rng: np.random.Generator,
) -> None:
    """Draw the trees of both lungs into `hu`, inside the lungs.

    Args:
        grid: Where to draw.
        hu: Volume, changed in place.
        lung: Share of lung in each voxel.
        depth: Distance from the pleura in mm: vessels fade in the last few millimetres.
        calibre: Factor on every radius.
        rng: Stream of the patient.
    """
    trees = [_tree(rng, hilum) for hilum in _HILA]
    start, stop, radius = (np.concatenate(parts) for parts in zip(*trees, strict=True))
    lower = 1 + 0.14 * np.clip(-start[:, 2] / 90, -1, 1)
    radius = radius * lower * 1.36
    radius = radius * (calibre if calibre >= 1 else calibre ** (1 + 0.6 * (radius < 1.5)))
    points, weights = [], []
    for low, high in ((0.0, 0.8), (0.8, 1.6), (1.6, 9.0)):
        chosen = (radius >= low) & (radius < high)
        for p, w in [tubes(start[chosen], stop[chosen], radius[chosen], 2.4)]:
            points.append(p)
            weights.append(w)
    box, share = grid.splat(np.concatenate(points), np.concatenate(weights) / grid.voxel)
    np.minimum(share, 1, out=share)
    share *= lung[box]
    share *= np.clip(depth[box] * 0.18, 0, 1)
    part = hu[box]
    part += share * (45 - part)

"""Voxel grid of the phantom and sub-voxel painting of points and tubes.

Guarantee: arrays are `[d h w]` in RAS: `d` grows towards superior, `h` towards anterior, `w` towards the patient's
right. Anatomy is written once in template millimetres (x right, y anterior, z superior); a patient's size scales the
three axes of the grid, so spacing and affine are those of the patient while the drawing code sees the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Float, Int

TEMPLATE_LOW = (-180.0, -140.0, -186.0)
TEMPLATE_HIGH = (180.0, 140.0, 174.0)
"""Field of view in template mm, (x, y, z)."""


@dataclass(frozen=True)
class Grid:
    """A cube of `size`³ voxels over the field of view.

    Args:
        size: Voxels per axis.
        scale: Patient size over template size along x, y, z.
    """

    size: int
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @cached_property
    def step(self) -> Float[np.ndarray, " 3"]:
        """Voxel distance in template mm along x, y, z."""
        return (np.array(TEMPLATE_HIGH) - np.array(TEMPLATE_LOW)) / self.size

    @cached_property
    def first(self) -> Float[np.ndarray, " 3"]:
        """Centre of voxel (0, 0, 0) in template mm, (x, y, z)."""
        return np.array(TEMPLATE_LOW) + self.step / 2

    @cached_property
    def x(self) -> Float[np.ndarray, "1 1 w"]:
        """Template x (towards the patient's right) of every column."""
        return self._axis(0)[None, None, :]

    @cached_property
    def y(self) -> Float[np.ndarray, "1 h 1"]:
        """Template y (towards anterior) of every row."""
        return self._axis(1)[None, :, None]

    @cached_property
    def z(self) -> Float[np.ndarray, "d 1 1"]:
        """Template z (towards superior) of every slice."""
        return self._axis(2)[:, None, None]

    def _axis(self, axis: int) -> Float[np.ndarray, " n"]:
        return (self.first[axis] + self.step[axis] * np.arange(self.size)).astype(np.float32)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel distance of this patient in mm along d, h, w."""
        x, y, z = (float(step * scale) for step, scale in zip(self.step, self.scale, strict=True))
        return z, y, x

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Matrix from array index (d, h, w, 1) to RAS position (right, anterior, superior, 1) in mm."""
        affine = np.zeros((4, 4))
        for axis in range(3):
            affine[axis, 2 - axis] = self.step[axis] * self.scale[axis]
            affine[axis, 3] = self.first[axis] * self.scale[axis]
        affine[3, 3] = 1.0
        return affine

    @property
    def voxel(self) -> float:
        """Volume of a voxel in template mm³."""
        return float(np.prod(self.step))

    def box(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> tuple[slice, slice, slice]:
        """Return the slices [d h w] between two template corners (x, y, z), with one voxel of margin."""
        slices = []
        for axis in (2, 1, 0):
            start = int(np.floor((low[axis] - self.first[axis]) / self.step[axis])) - 1
            stop = int(np.ceil((high[axis] - self.first[axis]) / self.step[axis])) + 2
            slices.append(slice(min(max(start, 0), self.size - 1), min(max(stop, 1), self.size)))
        return slices[0], slices[1], slices[2]

    def local(self, box: tuple[slice, slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the broadcastable template x, y, z of a box."""
        return self.x[:, :, box[2]], self.y[:, box[1]], self.z[box[0]]

    def index(self, points: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, "n 3"]:
        """Return the nearest voxel (d, h, w) of template points (x, y, z), clipped to the grid."""
        index = np.rint((points - self.first) / self.step).astype(np.int64)[:, ::-1]
        return np.clip(index, 0, self.size - 1)

    def splat(
        self, points: Float[np.ndarray, "n 3"], weights: Float[np.ndarray, " n"]
    ) -> tuple[tuple[slice, slice, slice], Float[np.ndarray, "d h w"]]:
        """Spread weights over the eight voxels around each point (trilinear), so that the sum is kept inside the grid.

        Returns:
            The box that holds all of it, and its values.
        """
        at = ((points - self.first) / self.step)[:, ::-1]
        inside = np.all((at >= 0) & (at < self.size - 1.001), axis=1)
        at, weights = at[inside], weights[inside]
        if len(at) == 0:
            return (slice(0, 1), slice(0, 1), slice(0, 1)), np.zeros((1, 1, 1), np.float32)
        corner = at.astype(np.int32)
        fraction = (at - corner).astype(np.float32)
        low, high = corner.min(axis=0), corner.max(axis=0) + 2
        shape = tuple(int(n) for n in high - low)
        corner -= low.astype(np.int32)
        flat = (corner[:, 0] * shape[1] + corner[:, 1]) * shape[2] + corner[:, 2]
        far, near = fraction, 1 - fraction
        weights = weights.astype(np.float32)
        values = np.zeros(shape[0] * shape[1] * shape[2])
        for k in range(8):
            d, h, w = k >> 2 & 1, k >> 1 & 1, k & 1
            share = weights * (far if d else near)[:, 0] * (far if h else near)[:, 1] * (far if w else near)[:, 2]
            values += np.bincount(flat + (d * shape[1] + h) * shape[2] + w, share, len(values))
        box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
        return box, values.reshape(shape).astype(np.float32)


def smooth_path(knots: Sequence[Sequence[float]], step: float) -> Float[np.ndarray, "n 3"]:
    """Return points every `step` mm along a smooth curve (Catmull-Rom) through the knots (x, y, z)."""
    k = np.asarray(knots, dtype=np.float64)
    k = np.concatenate([2 * k[:1] - k[1:2], k, 2 * k[-1:] - k[-2:-1]])
    pieces = []
    for a, b, c, d in zip(k[:-3], k[1:-2], k[2:-1], k[3:], strict=True):
        t = np.linspace(0, 1, max(int(np.linalg.norm(c - b) / step), 2), endpoint=False)[:, None]
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*pieces, k[-2:-1]])


def cross(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Return the vector products of rows (`np.cross` takes ten times as long on short arrays)."""
    ax, ay, az = a[:, 0], a[:, 1], a[:, 2]
    bx, by, bz = b[:, 0], b[:, 1], b[:, 2]
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


@cache
def disc(count: int) -> Float[np.ndarray, "count 2"]:
    """Return `count` points spread evenly over the unit disc (sunflower)."""
    k = np.arange(count) + 0.5
    radius, angle = np.sqrt(k / count), k * 2.399963229728653
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def tubes(
    start: Float[np.ndarray, "n 3"], stop: Float[np.ndarray, "n 3"], radius: Float[np.ndarray, " n"], step: float
) -> tuple[Float[np.ndarray, "m 3"], Float[np.ndarray, " m"]]:
    """Fill straight tubes with points; a weight is the volume in mm³ that its point stands for."""
    if len(start) == 0:
        return np.zeros((0, 3)), np.zeros(0)
    along = stop - start
    length = np.linalg.norm(along, axis=1)
    direction = along / np.maximum(length, 1e-6)[:, None]
    reference = np.where(np.abs(direction[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    first = cross(direction, reference)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = cross(direction, first)
    steps = max(int(np.ceil(length.max() / step)), 1)
    pattern = disc(max(int((radius.max() / step) ** 2 * 4), 1))
    t = (np.arange(steps) + 0.5) / steps
    centre = start[:, None] + along[:, None] * t[:, None]
    r = radius[:, None, None, None]
    off = r * (pattern[None, None, :, :1] * first[:, None, None] + pattern[None, None, :, 1:] * second[:, None, None])
    points = centre[:, :, None] + off
    weight = np.pi * radius**2 * length / (steps * len(pattern))
    return points.reshape(-1, 3), np.repeat(weight, steps * len(pattern))


def path_tubes(
    path: Float[np.ndarray, "n 3"], radius: float | Float[np.ndarray, " n"], step: float
) -> tuple[Float[np.ndarray, "m 3"], Float[np.ndarray, " m"]]:
    """`tubes` along a polyline."""
    r = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(path),))
    return tubes(path[:-1], path[1:], (r[:-1] + r[1:]) / 2, step)


def mix(hu: np.ndarray, fraction: np.ndarray, value: float | np.ndarray) -> None:
    """Replace `fraction` (0 to 1) of each voxel of `hu` by `value`, in place."""
    hu += fraction * (value - hu)


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Return the share of a voxel inside a surface from the distance (positive inside), linear over `width` mm."""
    share = distance * np.float32(1 / width)
    share += np.float32(0.5)
    return np.clip(share, 0, 1, out=share)


def coarse_noise(rng: np.random.Generator, shape: Sequence[int], cells: Sequence[int]) -> Float[np.ndarray, "d h w"]:
    """Return smooth noise of zero mean and about unit variance with `cells` cells along each axis (trilinear)."""
    noise = rng.standard_normal([n + 1 for n in cells]).astype(np.float32)
    for axis, (size, count) in enumerate(zip(shape, cells, strict=True)):
        at = (np.arange(size) + 0.5) / size * count
        low = at.astype(int)
        matrix = np.zeros((size, count + 1), np.float32)
        matrix[np.arange(size), low] = 1 - (at - low)
        matrix[np.arange(size), low + 1] = at - low
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        noise = np.moveaxis(np.tensordot(matrix, noise, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(noise)

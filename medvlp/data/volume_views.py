"""Views of a volume: whole, crops, tiles, slices, around an organ; and the way back to the volume and the patient.

Guarantee: a view is a `Grid`, which says where each of its voxels lies in the index of the volume; so the view's affine
follows exactly, also of an oblique volume with unequal spacing, and a map on the view (heat map, mask) returns to the
voxels it was made from. Reading takes from the volume only what the grid covers. A voxel of a coarser grid is the mean
of what it covers, one of a finer grid is interpolated linearly; nothing aliases. Sums are taken one term after the
other, so that the voxels are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.io.resample import resampled_size

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

    from medvlp.config.volumes import VolumeInputConfig

Size = tuple[int, int, int]
Part = Callable[[Sequence[int], Sequence[int]], "Shaped[np.ndarray, 'd h w']"]
"""Reads voxels of a volume: first voxel and number of voxels along d, h, w, all inside it; as `Store.crop` does."""
SAME_SPACING = 1e-3
"""Relative difference up to which two spacings are one: 0.3 mm in 300."""


@dataclass(frozen=True)
class Grid:
    """Voxels of a view: voxel i along an axis lies at `start + i * step` of the volume's index (d, h, w).

    Args:
        size: Voxels of the view along d, h, w.
        start: Place of its first voxel in the volume's index.
        step: Voxels of the volume from one voxel of the view to the next.
    """

    size: Size
    start: tuple[float, float, float] = (0.0, 0.0, 0.0)
    step: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def matrix(self) -> Float[np.ndarray, "4 4"]:
        """From the index (d, h, w, 1) of the view to that of the volume."""
        matrix = np.diag([*self.step, 1.0])
        matrix[:3, 3] = self.start
        return matrix

    def affine(self, of_volume: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
        """Return the view's affine from its index (d, h, w, 1) to mm, given the volume's."""
        return of_volume @ self.matrix

    def view(self, inner: Grid) -> Grid:
        """Return, in the index of the volume, a grid that is given in the index of this view."""
        places = zip(self.start, self.step, inner.start, strict=True)
        start = [begin + step * place for begin, step, place in places]
        step = [one * other for one, other in zip(self.step, inner.step, strict=True)]
        return Grid(inner.size, _three(start), _three(step))

    def crop(self, start: Sequence[int], size: Sequence[int]) -> Grid:
        """Return the grid of `size` voxels of this view from voxel `start` on, which may lie outside."""
        return self.view(Grid(_size(size), _three(start)))

    def middle(self, size: Sequence[int]) -> Grid:
        """Return the grid of `size` voxels around the middle of this view; it reaches over a view that is smaller."""
        return self.crop([(whole - part) // 2 for whole, part in zip(self.size, size, strict=True)], size)

    def resized(self, size: Sequence[int]) -> Grid:
        """Return the grid of `size` voxels that covers the same room, as the tokens of a tower do."""
        return self.view(stretched(self.size, size))

    def inverse(self, shape: Sequence[int]) -> Grid:
        """Return the grid of the volume's voxels, `shape` of them, in the index of this view."""
        start = [-begin / step for begin, step in zip(self.start, self.step, strict=True)]
        return Grid(_size(shape), _three(start), _three([1 / step for step in self.step]))


def whole(shape: Sequence[int]) -> Grid:
    """Return the grid of a volume itself."""
    return Grid(_size(shape))


def stretched(shape: Sequence[int], size: Sequence[int]) -> Grid:
    """Return the grid of `size` voxels that covers a whole volume of `shape`, each axis stretched on its own."""
    step = [length / count for length, count in zip(shape, size, strict=True)]
    return Grid(_size(size), _three([(one - 1) / 2 for one in step]), _three(step))


def respaced(shape: Sequence[int], spacing_mm: Sequence[float], wanted_mm: Sequence[float]) -> Grid:
    """Return the grid of a whole volume at another spacing, centred on it, as `medvlp.io.resample` has it.

    Along an axis that has the wanted spacing already (up to `SAME_SPACING`) it is that of the volume.
    """
    size, start, step = [], [], []
    for length, old, new in zip(shape, spacing_mm, wanted_mm, strict=True):
        same = abs(new / old - 1) <= SAME_SPACING
        ratio = 1.0 if same else new / old
        count = length if same else resampled_size(length, old, new)
        size.append(count)
        step.append(ratio)
        start.append((length - 1) / 2 - ratio * (count - 1) / 2)
    return Grid(_size(size), _three(start), _three(step))


def input_grid(
    shape: Sequence[int],
    spacing_mm: Sequence[float] | None,
    config: VolumeInputConfig,
    size: Sequence[int] | None = None,
) -> Grid:
    """Return the grid of the model input: the whole volume stretched, or its middle at `config.spacing_mm`.

    Args:
        shape: Voxels of the volume along d, h, w.
        spacing_mm: Its spacing.
        config: The model input.
        size: Voxels along d, h, w in place of those of the model input.

    Raises:
        ValueError: A spacing is asked for and the volume's is unknown.
    """
    size = size or config.size
    if config.spacing_mm is None:
        return stretched(shape, size)
    if spacing_mm is None:
        raise ValueError("the spacing of the volume is unknown")
    return respaced(shape, spacing_mm, config.spacing_mm).middle(size)


# Places of several views.


def tiles(shape: Sequence[int], size: Sequence[int], overlap: float = 0.0) -> Int[np.ndarray, "n 3"]:
    """Return the first voxels of windows that cover a volume, in row-major order.

    Windows lie at even distances of at most `(1 - overlap) * size`, the first and last flush with the borders. With
    `overlap` 0 and a shape that `size` divides they are the base crops of VoCo; with a size of 1 along an axis they are
    slices. Along an axis on which the volume is smaller than a window, one window lies around it.

    Args:
        shape: Voxels of the volume, or of a region, along d, h, w.
        size: Voxels of a window.
        overlap: Least share of a window that its neighbour covers, from 0 to below 1.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}, not in [0, 1)")
    axes = []
    for length, window in zip(shape, size, strict=True):
        room = length - window
        if room <= 0:
            axes.append(np.array([room // 2]))
            continue
        count = -(-room // max(1, int(window * (1 - overlap)))) + 1
        axes.append(np.rint(np.linspace(0, room, count)).astype(np.int64))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def around(mask: Bool[np.ndarray, "d h w"], size: Sequence[int]) -> Int[np.ndarray, " 3"]:
    """Return the first voxel of the window of `size` voxels around the middle of the box that bounds a mask.

    Raises:
        ValueError: The mask is empty.
    """
    low, high = bounds(mask)
    return (low + high - np.asarray(size)) // 2


def bounds(mask: Bool[np.ndarray, "d h w"]) -> tuple[Int[np.ndarray, " 3"], Int[np.ndarray, " 3"]]:
    """Return the first voxel of the box that bounds a mask, and the one behind its last.

    Raises:
        ValueError: The mask is empty.
    """
    low, high = [], []
    for axis in range(3):
        held = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(held):
            raise ValueError("the mask is empty")
        low.append(held[0])
        high.append(held[-1] + 1)
    return np.array(low), np.array(high)


# Reading, and the way back.


def read_view(
    part: Part, shape: Sequence[int], grid: Grid, outside: float, *, labels: bool = False, within: bool = False
) -> Shaped[np.ndarray, "d h w"]:
    """Return the voxels of a view; integers stay integers.

    Args:
        part: Reads voxels of the volume; only the box that the grid covers is asked for.
        shape: Voxels of the volume along d, h, w.
        grid: The view.
        outside: Value of voxels whose centre lies outside the volume.
        labels: The values are labels: each voxel takes the nearest one.
        within: `outside` is brought into the range of the values inside, so that it does not widen it.
    """
    axes = [_Axis.of(*values, labels=labels) for values in zip(shape, grid.size, grid.start, grid.step, strict=True)]
    lengths = [axis.held.stop - axis.held.start for axis in axes]
    if min(lengths) <= 0:
        kind = part((0, 0, 0), (1, 1, 1)).dtype
        return np.full(grid.size, outside, dtype=kind)
    block = part([axis.low for axis in axes], [axis.high - axis.low for axis in axes])
    inner = _sampled(block, axes)
    if lengths == list(grid.size):
        return inner
    if within:
        outside = min(max(outside, inner.min()), inner.max())
    out = np.full(grid.size, outside, dtype=inner.dtype)
    out[tuple(axis.held for axis in axes)] = inner
    return out


def cut(
    array: Shaped[np.ndarray, "d h w"], grid: Grid, outside: float, *, labels: bool = False
) -> Shaped[np.ndarray, "d h w"]:
    """Return the voxels of a view of an array; see `read_view`."""
    return read_view(part_of(array), array.shape, grid, outside, labels=labels)


def put_back(
    values: Shaped[np.ndarray, "d h w"], grid: Grid, shape: Sequence[int], outside: float = 0, *, labels: bool = False
) -> Shaped[np.ndarray, "d h w"]:
    """Return a map on a view's grid at the voxels of the volume, of `shape`; what the view leaves out is `outside`."""
    return cut(values, grid.inverse(shape), outside, labels=labels)


def resize(values: Shaped[np.ndarray, "d h w"], size: Sequence[int]) -> Shaped[np.ndarray, "d h w"]:
    """Return a whole volume at another size; see `stretched`."""
    return cut(values, stretched(values.shape, size), 0)


def merge(
    maps: Sequence[Float[np.ndarray, "d h w"]], grids: Sequence[Grid], shape: Sequence[int], outside: float = 0
) -> Float[np.ndarray, "d h w"]:
    """Return the mean of maps on several views (a sliding window) at the voxels of the volume, `outside` where none is.

    Args:
        maps: One for each view.
        grids: Where they lie.
        shape: Voxels of the volume along d, h, w.
        outside: Value of voxels that no view covers.
    """
    total, count = np.zeros(_size(shape), np.float64), np.zeros(_size(shape), np.int64)
    for values, grid in zip(maps, grids, strict=True):
        back = put_back(np.asarray(values, np.float64), grid, shape, np.nan)
        covered = ~np.isnan(back)
        total[covered] += back[covered]
        count += covered
    return np.where(count > 0, total / np.maximum(count, 1), outside)


def part_of(array: Shaped[np.ndarray, "d h w"]) -> Part:
    """Return what `read_view` reads an array by."""

    def part(start: Sequence[int], size: Sequence[int]) -> Shaped[np.ndarray, "d h w"]:
        return array[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))]

    return part


@dataclass(frozen=True)
class _Axis:
    """How the voxels of a view come from those of the volume along one axis.

    Args:
        held: Voxels of the view whose centres lie inside the volume.
        low: First voxel of the volume that is needed.
        high: The one behind the last.
        places: Voxels of the volume, counted from `low`, that make each voxel of the view; None: they are one by one.
        weights: Their weights, which sum to 1.
    """

    held: slice
    low: int
    high: int
    places: Int[np.ndarray, "n taps"] | None = None
    weights: Float[np.ndarray, "n taps"] | None = None

    @classmethod
    def of(cls, length: int, size: int, start: float, step: float, *, labels: bool) -> _Axis:
        """Return it for `size` voxels from `start` on, `step` apart, of an axis of `length` voxels."""
        centres = start + step * np.arange(size)
        inside = np.flatnonzero((centres >= -0.5) & (centres <= length - 0.5))
        if not len(inside):
            return cls(slice(0, 0), 0, 0)
        held = slice(int(inside[0]), int(inside[-1]) + 1)
        if step == 1 and start == round(start):
            return cls(held, int(start) + held.start, int(start) + held.stop)
        places, weights = _taps(centres[held], step, labels)
        places = np.clip(places, 0, length - 1)  # behind the border its voxel is repeated
        low = int(places.min())
        return cls(held, low, int(places.max()) + 1, places - low, weights)


def _taps(
    centres: Float[np.ndarray, " n"], step: float, nearest: bool
) -> tuple[Int[np.ndarray, "n taps"], Float[np.ndarray, "n taps"]]:
    """Return the voxels that a voxel of width `max(step, 1)` covers around each centre, and the share of each."""
    if nearest:
        return np.floor(centres + 0.5).astype(np.int64)[:, None], np.ones((len(centres), 1), np.float32)
    width = max(step, 1.0)
    low = centres[:, None] - width / 2
    places = np.floor(low + 0.5).astype(np.int64) + np.arange(int(np.ceil(width)) + 1)
    shares = np.minimum(low + width, places + 0.5) - np.maximum(low, places - 0.5)
    return places, (np.maximum(shares, 0) / width).astype(np.float32)


def _sampled(block: Shaped[np.ndarray, "d h w"], axes: Sequence[_Axis]) -> Shaped[np.ndarray, "d h w"]:
    """Return a block of voxels sampled along its axes, in float32 between, in its own type at the end."""
    if all(axis.places is None for axis in axes):
        return block
    if all(axis.places is None or axis.places.shape[1] == 1 for axis in axes):
        picked = [
            np.arange(length) if axis.places is None else axis.places[:, 0]
            for length, axis in zip(block.shape, axes, strict=True)
        ]
        return block[np.ix_(*picked)]
    along_d, along_h, along_w = axes
    kind = block.dtype
    whole_numbers = np.issubdtype(kind, np.integer)
    out = np.empty([axis.held.stop - axis.held.start for axis in axes], kind)
    for number in range(len(out)):
        plane = _filtered(_plane(block, along_d, number), along_h)
        plane = _filtered(plane.T, along_w).T
        out[number] = np.rint(plane) if whole_numbers else plane
    return out


def _plane(block: Shaped[np.ndarray, "d h w"], axis: _Axis, number: int) -> Float[np.ndarray, "h w"]:
    if axis.places is None or axis.weights is None:
        return block[number]
    plane: Any = 0
    for place, weight in zip(axis.places[number], axis.weights[number], strict=True):
        if weight:
            plane = plane + weight * block[place]
    return plane


def _filtered(plane: Float[np.ndarray, "n m"], axis: _Axis) -> Float[np.ndarray, "new m"]:
    """Return weighted sums of rows."""
    if axis.places is None or axis.weights is None:
        return plane
    out: Any = 0
    for places, weights in zip(axis.places.T, axis.weights.T, strict=True):
        out = out + plane[places] * weights[:, None]
    return out


def _size(values: Sequence[int]) -> Size:
    d, h, w = (int(value) for value in values)
    return d, h, w


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    d, h, w = (float(value) for value in values)
    return d, h, w

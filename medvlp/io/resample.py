"""A volume at another spacing: linear interpolation, with the mean over what a voxel covers where it gets coarser.

Guarantee: the result covers the same room, centred on it; its affine says exactly where. Refining equals trilinear
interpolation; coarsening uses the linear filter stretched to the new spacing (as Pillow does), so nothing aliases. The
voxels are the same on every machine: sums are taken one term after the other, where a matrix product would take them in
an order that depends on the processor and the number of threads, and the hash of a store with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError
from medvlp.io.grid import plain, spacing_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.types import Volume

LARGEST_VOXELS = 2**31
"""Voxels of a result; at int16 they take 4 GiB."""


def resampled_size(length: int, spacing: float, wanted: float) -> int:
    """Return the number of voxels along an axis at the wanted spacing."""
    return max(1, round(length * spacing / wanted))


def new_positions(length: int, spacing: float, wanted: float) -> Float[np.ndarray, " n"]:
    """Return where the new voxels' centres lie, in voxels of the old axis."""
    count = resampled_size(length, spacing, wanted)
    return ((np.arange(count) - (count - 1) / 2) * (wanted / spacing)) + (length - 1) / 2


def filter_taps(
    length: int, spacing: float, wanted: float
) -> tuple[Int[np.ndarray, "new taps"], Float[np.ndarray, "new taps"]]:
    """Return the old voxels that make each new one, and their weights; these sum to 1, ends repeat the border."""
    positions = new_positions(length, spacing, wanted)
    reach = max(wanted / spacing, 1.0)
    places = np.ceil(positions - reach).astype(np.int64)[:, None] + np.arange(int(2 * reach) + 1)
    weights = np.maximum(1 - np.abs(positions[:, None] - places) / reach, 0)
    total = sum(weights.T, start=np.zeros(len(positions)))
    return np.clip(places, 0, length - 1), (weights / total[:, None]).astype(np.float32)


def _filtered(
    plane: Float[np.ndarray, "n m"], places: Int[np.ndarray, "new taps"], weights: Float[np.ndarray, "new taps"]
) -> Float[np.ndarray, "new m"]:
    """Return weighted sums of rows."""
    out = np.zeros((len(places), plane.shape[1]), dtype=np.float32)
    for taps, parts in zip(places.T, weights.T, strict=True):
        out += plane[taps] * parts[:, None]
    return out


def resample(volume: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """Return the volume at `spacing_mm` along d, h, w.

    Raises:
        UserError: The volume's spacing is unknown, or the result would be too large.
    """
    if volume.affine is None or volume.spacing_mm is None:
        what = "The volume cannot be resampled: nothing says how far apart its voxels are."
        raise UserError(what, volume.provenance["path"], "Set volume.spacing_mm to null.")
    if min(spacing_mm) <= 0:
        raise UserError(f"volume.spacing_mm is {spacing_mm}.", "volume.spacing_mm", "Give three positive numbers.")
    shape = volume.array.shape
    old = volume.spacing_mm
    size = tuple(resampled_size(n, a, b) for n, a, b in zip(shape, old, spacing_mm, strict=True))
    if np.prod([float(n) for n in size]) > LARGEST_VOXELS:
        what = f"At {spacing_mm} mm the volume would have {size[0]} x {size[1]} x {size[2]} voxels."
        raise UserError(what, volume.provenance["path"], "Choose a larger volume.spacing_mm.")
    along_d, along_h, along_w = (filter_taps(n, a, b) for n, a, b in zip(shape, old, spacing_mm, strict=True))
    array = np.empty(size, dtype=np.int16)
    for index, (places, weights) in enumerate(zip(*along_d, strict=True)):
        plane = np.zeros(shape[1:], dtype=np.float32)
        for k in np.flatnonzero(weights):
            plane += weights[k] * volume.array[places[k]]
        array[index] = np.rint(_filtered(_filtered(plane, *along_h).T, *along_w).T)
    starts = [new_positions(n, a, b)[0] for n, a, b in zip(shape, old, spacing_mm, strict=True)]
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ np.asarray([*starts, 1.0]))[:3]
    affine[:3, :3] *= np.divide(spacing_mm, old)
    record = {
        **volume.provenance,
        "resampled": {"from_mm": list(old), "shape": list(shape), "affine": plain(volume.affine)},
    }
    return replace(volume, array=array, affine=affine, spacing_mm=spacing_of(affine), provenance=record)

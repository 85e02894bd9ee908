"""Cropping to the body.

Guarantee: nothing above -500 HU is cut off that belongs to the body and is thicker than two slices and four pixels;
parts that lie apart from it and have less than a tenth of its voxels (a table, but also an arm in a scan of the trunk)
do not count. Only volumes in HU are cropped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError
from medvlp.types import Intensity

if TYPE_CHECKING:
    from medvlp.types import Volume

BODY_HU = -500
SMALLEST_PART = 0.1
"""Parts with less than this share of the largest part's voxels are not the body (both legs are)."""
_STEP = (2, 4, 4)


def body_box(volume: Volume) -> tuple[slice, slice, slice]:
    """Return the bounding box of the body.

    Connected parts are found on every second slice and fourth pixel, and the box reaches one such step further.

    Raises:
        UserError: The volume is not in HU, or has no voxel above -500 HU.
    """
    from scipy import ndimage

    where = volume.provenance["path"]
    if volume.intensity is not Intensity.HU:
        what = "The body cannot be found: the values of the volume are not known to be HU."
        raise UserError(what, where, "Set volume.crop to none, or name the values by volume.intensity.")
    inside = volume.array[tuple(slice(None, None, step) for step in _STEP)] > BODY_HU
    parts, _ = ndimage.label(inside)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if not sizes.max():
        raise UserError("The volume holds no body: no voxel is above -500 HU.", where, "Set volume.crop to none.")
    body = np.isin(parts, np.flatnonzero(sizes >= SMALLEST_PART * sizes.max()))
    box = []
    for axis, step in enumerate(_STEP):
        found = np.flatnonzero(body.any(axis=tuple(other for other in range(3) if other != axis)))
        start, stop = int(found[0] - 1) * step + 1, int(found[-1] + 1) * step
        box.append(slice(max(start, 0), min(stop, volume.array.shape[axis])))
    return box[0], box[1], box[2]


def crop_to_body(volume: Volume) -> Volume:
    """Return the volume cut to the bounding box of the body; see `body_box`."""
    box = body_box(volume)
    affine = None
    if volume.affine is not None:
        affine = volume.affine.copy()
        affine[:3, 3] = (volume.affine @ np.asarray([*(part.start for part in box), 1.0]))[:3]
    record = {**volume.provenance, "crop": {"kind": "body", "box": [[part.start, part.stop] for part in box]}}
    return replace(volume, array=np.ascontiguousarray(volume.array[box]), affine=affine, provenance=record)

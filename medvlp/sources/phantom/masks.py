"""The 3D mask of a finding, and the parts of the volume that lesions are drawn in.

Guarantee: a mask is kept as its box and the voxels (bool) inside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from medvlp.sources.phantom.anatomy import Anatomy

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Mask:
    """Voxels of one finding: `inside` `[d h w]` is the part of the grid in `box`."""

    box: Slices
    inside: Bool[np.ndarray, "d h w"]

    def full(self, size: int) -> Bool[np.ndarray, "size size size"]:
        """Return the mask on the whole grid."""
        volume = np.zeros((size,) * 3, bool)
        volume[self.box] = self.inside
        return volume

    def cropped(self) -> Mask:
        """Return the same with the smallest box."""
        slices, parts = [], []
        for axis, old in enumerate(self.box):
            hit = np.flatnonzero(self.inside.any(axis=tuple(k for k in range(3) if k != axis)))
            first, last = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, 1)
            slices.append(slice(old.start + first, old.start + last))
            parts.append(slice(first, last))
        return Mask((slices[0], slices[1], slices[2]), self.inside[parts[0], parts[1], parts[2]])


def both_lungs(anatomy: Anatomy) -> np.ndarray:
    """Return the share of lung of every voxel `[d h w]`, left and right together."""
    return np.concatenate([anatomy.lung["left"], anatomy.lung["right"]], axis=2)


def ball(a: Anatomy, centre: np.ndarray, reach: float) -> tuple[Slices, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the box of a ball (true mm) and the offsets from its centre in true mm."""
    scale = np.array(a.grid.scale)
    box = a.grid.box(centre - reach / scale, centre + reach / scale)
    x, y, z = a.grid.local(box)
    return box, ((x - centre[0]) * scale[0], (y - centre[1]) * scale[1], (z - centre[2]) * scale[2])

"""Patch merging of MONAI's Swin transformer as MONAI did it until version 1.4.

Guarantee: of the eight sub-lattices of a volume two are read twice and two never, as in the networks that were trained
with it (SwinUNETR, VoCo, VELVET-Med); later versions of MONAI read all eight, which gives such weights other features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float

OFFSETS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
"""First voxel (d, h, w) of each sub-lattice, in the order of the weights."""


class LegacyPatchMerging(PatchMergingV2):
    """Eight neighbours become one of twice the width; the names are those of MONAI."""

    def forward(self, x: Float[torch.Tensor, "b d h w c"]) -> Float[torch.Tensor, "b d2 h2 w2 e"]:
        """Return the merged volume; an odd side is padded with zeros at its end."""
        depth, height, width = x.shape[1:4]
        even = functional.pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        parts = [even[:, d::2, h::2, w::2] for d, h, w in OFFSETS]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))

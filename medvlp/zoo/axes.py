"""Axes of volumes: from RAS, `[d h w]`, to those that a released checkpoint was trained with, and back.

Guarantee: nothing is resampled; turning there and back is the identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp.zoo.release import AXES

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

SPATIAL = 3
"""Axes of a volume: the last ones of a tensor."""
BACKWARDS = "IPL"
"""Directions against those of RAS."""


def to_axes(volume: Float[torch.Tensor, "*n d h w"], axes: str) -> Float[torch.Tensor, "*n i j k"]:
    """Return a volume in RAS along other axes; see `VolumeImageConfig.axes`."""
    first = volume.ndim - SPATIAL
    turned = volume.permute(*range(first), *(first + AXES[letter] for letter in axes))
    return turned.flip([first + place for place, letter in enumerate(axes) if letter in BACKWARDS])


def from_axes(volume: Float[torch.Tensor, "*n i j k"], axes: str) -> Float[torch.Tensor, "*n d h w"]:
    """Return what `to_axes` turned, or a map of it on a coarser grid, in RAS."""
    first = volume.ndim - SPATIAL
    straight = volume.flip([first + place for place, letter in enumerate(axes) if letter in BACKWARDS])
    own = [AXES[letter] for letter in axes]
    return straight.permute(*range(first), *(first + own.index(axis) for axis in range(SPATIAL)))

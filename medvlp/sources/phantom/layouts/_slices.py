"""Slices of phantom volumes as 8-bit pictures, as data sets without geometry publish them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from medvlp.sources.phantom.examples import ExampleVolume

if TYPE_CHECKING:
    from jaxtyping import UInt8

WINDOWS = {"lung": (-600.0, 1500.0), "bone": (400.0, 1800.0), "soft": (40.0, 400.0)}
"""Centre and width in HU."""
_AXES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
Plane = Literal["axial", "coronal", "sagittal"]


def grey_slices(volume: ExampleVolume, plane: Plane = "axial", window: str = "lung") -> UInt8[np.ndarray, "n h w"]:
    """Return the slices of a plane in a window of HU, seen from the feet or from the front, as films are.

    Args:
        volume: In RAS.
        plane: Axial slices run towards superior, coronal ones towards anterior, sagittal ones towards the right.
        window: One of `WINDOWS`.
    """
    centre, width = WINDOWS[window]
    turned = np.flip(volume.array.transpose(_AXES[plane]), axis=(1, 2))
    grey = (turned.astype(np.float32) - (centre - width / 2)) * (255 / width)
    return np.ascontiguousarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))

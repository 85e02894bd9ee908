"""Stored images as they are shown on a page, and slices of stored volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from medvlp.config.volumes import PRESETS
from medvlp.types import Intensity

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped, UInt8

    from medvlp.store.array_store import Store

PIXELS = 224
WINDOW = "whole"
"""Of slices in HU; others are shown from their lowest to their highest value."""


def stored_images(store: Store, rows: Int[np.ndarray, " m"]) -> list[Shaped[np.ndarray, "h w *c"]]:
    """Return stored squares by their rows of the images table; of volumes and videos the middle slices and frames."""
    places = store.images["index"].to_numpy()[rows]
    if store.kind == "video":
        middles = store.images["frames"].to_numpy(dtype=np.int64)[rows] // 2
        return [store.read_frames(int(i), int(at), int(at) + 1)[0] for i, at in zip(places, middles, strict=True)]
    if store.kind == "volume":
        return [axial(store, int(index), store.shape(int(index))[0] // 2) for index in places]
    return list(store.read(places))


def axial(store: Store, index: int, at: int) -> UInt8[np.ndarray, "p q"]:
    """Return an axial slice of a volume with square pixels, the patient's right on the left, anterior on top."""
    _, height, width = store.shape(index)
    plane = store.crop(index, (at, 0, 0), (1, height, width))[0].astype(np.float32)
    if store.images["intensity"].to_numpy()[store.images["index"] == index][0] == Intensity.HU:
        centre, wide = PRESETS[WINDOW]
        low = centre - wide / 2
    else:
        low, wide = float(plane.min()), max(1.0, float(np.ptp(plane)))
    grey = np.rint(np.clip((plane - low) / wide, 0, 1) * 255).astype(np.uint8)
    return as_shown(grey, store.spacing_mm(index))


def as_shown(
    plane: Shaped[np.ndarray, "h w"], spacing_mm: tuple[float, float, float] | None, *, nearest: bool = False
) -> Shaped[np.ndarray, "p q"]:
    """Return an axial plane [h w] of a volume turned as radiologists show it, its longer side `PIXELS`."""
    _, row_mm, column_mm = spacing_mm or (1.0, 1.0, 1.0)
    height, width = plane.shape[0] * row_mm, plane.shape[1] * column_mm
    scale = PIXELS / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shrinks = max(plane.shape) > PIXELS
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(plane[::-1, ::-1]), size, interpolation=how)


def grey(stored: Shaped[np.ndarray, "h w *c"]) -> Shaped[np.ndarray, "p q *c"]:
    """Return a stored square with 8 bits, as large as it is shown; a slice is shown already."""
    image = stored if stored.dtype == np.uint8 else (stored >> 8).astype(np.uint8)
    if image.shape[0] != image.shape[1]:
        return image
    enlarge = image.shape[0] < PIXELS
    return cv2.resize(image, (PIXELS, PIXELS), interpolation=cv2.INTER_LINEAR if enlarge else cv2.INTER_AREA)

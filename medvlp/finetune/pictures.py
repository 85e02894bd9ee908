"""Stored images as they are shown on a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped

    from medvlp.store.array_store import Store

PIXELS = 224


def stored_images(store: Store, rows: Int[np.ndarray, " m"]) -> Shaped[np.ndarray, "m s s *c"]:
    """Return stored squares by their rows of the images table."""
    return store.read(store.images["index"].to_numpy()[rows])


def grey(stored: Shaped[np.ndarray, "s s *c"]) -> Shaped[np.ndarray, "p p *c"]:
    """Return a stored square with 8 bits, as large as it is shown."""
    image = stored if stored.dtype == np.uint8 else (stored >> 8).astype(np.uint8)
    enlarge = image.shape[0] < PIXELS
    return cv2.resize(image, (PIXELS, PIXELS), interpolation=cv2.INTER_LINEAR if enlarge else cv2.INTER_AREA)

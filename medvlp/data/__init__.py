"""Training batches from a prepared store: images by threads, order and changes by counting, text paired or not."""

from __future__ import annotations

from medvlp.data.loader import ImageLoader
from medvlp.data.transforms import normalise, resize_pixels

__all__ = ["ImageLoader", "normalise", "resize_pixels"]

"""Training batches: images and crops of volumes by threads, order and changes by counting, text paired or not."""

from __future__ import annotations

from medvlp.data.loader import ImageLoader
from medvlp.data.transforms import normalise, resize_pixels
from medvlp.data.volume_loader import VolumeLoader

__all__ = ["ImageLoader", "VolumeLoader", "normalise", "resize_pixels"]

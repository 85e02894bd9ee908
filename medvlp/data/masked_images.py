"""Batches of images with masks of structures.

Guarantee: a mask goes through the same crop, rotation and flip as its image, so that the two keep together; its values
are never mixed. Order and augmentation are those of `ImageLoader`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.data.augment import apply_to_mask, draw
from medvlp.data.loader import ImageLoader
from medvlp.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Int, UInt8

MASKS = "masks"
"""Key in `Batch.extra`: `[b k s s]`, 1 inside."""


class MaskLoader(ImageLoader):
    """Training batches whose `extra["masks"]` are the masks of the images, on the pixels of the output.

    Args:
        *arguments: As for `ImageLoader`.
        masks: Returns the masks of rows of the images table on the stored square, `[b k h h]`; called from threads.
        **options: As for `ImageLoader`; `augment` is given.
    """

    def __init__(
        self, *arguments: Any, masks: Callable[[np.ndarray], UInt8[np.ndarray, "b k h h"]], **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.masks = masks

    def load(self, epoch: int, step: int, rows: Int[np.ndarray, " b"]) -> Batch:
        """Make one batch; called from worker threads."""
        import torch

        batch = super().load(epoch, step, rows)
        assert self.augment is not None
        stored = self.masks(rows)
        changes = draw(self.augment, self.seed, epoch, rows, stored.shape[2])
        made = np.empty((*stored.shape[:2], self.input_size, self.input_size), np.uint8)
        for i, own in enumerate(stored):
            for mask, out in zip(own, made[i], strict=True):
                apply_to_mask(mask, changes, i, out)
        batch.extra[MASKS] = torch.from_numpy(made)
        return batch

"""Batches of volumes that are read one by one: what fine-tuning on a store of volumes trains on.

Guarantee: order, places and changes are functions of (seed, epoch, sample), as in every `Loader`. Changes are drawn
here and made by `medvlp.data.volume_augment.on_device`, of voxels and of their classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.data.counter import IMAGE, uniforms
from medvlp.data.loader import Loader
from medvlp.data.volume_augment import NUMBERS, flips, planned
from medvlp.data.volume_input import outside_of
from medvlp.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Int16, UInt8

    from medvlp.config.data import VolumeAugmentConfig
    from medvlp.config.volumes import VolumeInputConfig

CLASSES = "organs"
"""Key in `Batch.extra`: uint8 `[b d h w]`, the class of each voxel."""
Read = Callable[[int, int], "tuple[Int16[np.ndarray, 'd h w'], UInt8[np.ndarray, 'd h w'], Float[np.ndarray, ' 3']]"]
"""Epoch and row of the images table -> voxels of the model input, their classes, and their distance in mm or NaN."""


class VolumeRowLoader(Loader):
    """Batches of rows of the images table: `pixels` are int16 `[b 1 d h w]`.

    Args:
        rows: Positions in the images table, `[n]`.
        read: Returns one volume; called from threads.
        augment: Strength of the changes.
        taken: The model input.
        **options: As for `Loader`.
    """

    def __init__(
        self,
        rows: Int[np.ndarray, " n"],
        *,
        read: Read,
        augment: VolumeAugmentConfig,
        taken: VolumeInputConfig,
        **options: Any,
    ) -> None:
        super().__init__(rows, training=True, **options)
        self.read, self.augment, self.taken = read, augment, taken

    def made(self, epoch: int, rows: Int[np.ndarray, " b"]) -> tuple[Batch, Bool[np.ndarray, " b"]]:
        """Return a batch of these rows, and which of them `on_device` will mirror; called from worker threads."""
        import torch

        voxels, classes, spacing = (
            np.stack(parts) for parts in zip(*(self.read(epoch, int(row)) for row in rows), strict=True)
        )
        pixels = torch.from_numpy(voxels[:, None])
        u = uniforms(IMAGE, self.seed, epoch, rows, NUMBERS)
        size: Any = voxels.shape[1:]
        extra = {CLASSES: torch.from_numpy(classes)} | planned(
            self.augment, u, size, spacing, outside_of(voxels, self.taken)
        )
        batch = Batch(torch.from_numpy(rows.copy()), pixels.pin_memory() if self.pin_memory else pixels, extra=extra)
        return batch, flips(self.augment, u).sum(axis=1) % 2 == 1

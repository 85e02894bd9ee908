"""Batches of volumes that are read one by one: what fine-tuning on a store of volumes trains on.

Guarantee: order and places are functions of (seed, epoch, sample), as in every `Loader`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.data.loader import Loader
from medvlp.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int16, UInt8

VALUES = "values"
"""Key in `Batch.extra`: uint8 `[b d h w]`, the class of each voxel."""
Read = Callable[[int, int], "tuple[Int16[np.ndarray, 'd h w'], UInt8[np.ndarray, 'd h w'] | None]"]
"""Epoch and row of the images table -> voxels of the model input, and their classes where they are asked for."""


class VolumeRowLoader(Loader):
    """Batches of rows of the images table: `pixels` are int16 `[b 1 d h w]`.

    Args:
        rows: Positions in the images table, `[n]`.
        read: Returns one volume; called from threads.
        training: Another order in each epoch.
        **options: As for `Loader`.
    """

    def __init__(self, rows: Int[np.ndarray, " n"], *, read: Read, training: bool, **options: Any) -> None:
        super().__init__(rows, training=training, **options)
        self.read = read

    def made(self, epoch: int, rows: Int[np.ndarray, " b"]) -> tuple[Batch, Bool[np.ndarray, " b"]]:
        """Return a batch of these rows, none of them mirrored; called from worker threads."""
        import torch

        found = [self.read(epoch, int(row)) for row in rows]
        pixels = torch.from_numpy(np.stack([voxels for voxels, _ in found])[:, None])
        batch = Batch(index=torch.from_numpy(rows.copy()), pixels=pixels.pin_memory() if self.pin_memory else pixels)
        classes = [values for _, values in found if values is not None]
        if classes:
            batch.extra[VALUES] = torch.from_numpy(np.stack(classes))
        return batch, np.zeros(len(rows), dtype=bool)

"""From rows of a store to what a tower takes, whatever the store holds: the road of every task.

Guarantee: without augmentation the pixels are those that the encoder itself makes of the row; a volume is never
augmented here, and a wish for it is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.config.data import AugmentConfig
from medvlp.config.volumes import VolumeInputConfig
from medvlp.data.loader import ImageLoader
from medvlp.data.transforms import resize_pixels, to_tensor
from medvlp.data.volume_input import stored_input_voxels
from medvlp.errors import UserError
from medvlp.types import Batch

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int

    from medvlp.config.preprocessing import AnyInput
    from medvlp.store.array_store import Store


def read_inputs(store: Store, rows: Int[np.ndarray, " b"], taken: AnyInput) -> Int[torch.Tensor, "b c *s"]:
    """Return the pixels of rows of the images table as a tower takes them, not yet normalised.

    Args:
        store: Of images, or of volumes.
        rows: Positions in the images table.
        taken: What the tower takes, of the kind of the store.

    Raises:
        UserError: A volume has no spacing where one is asked for, or other numbers than the windows mean.
    """
    import torch

    places = store.images["index"].to_numpy()
    if not isinstance(taken, VolumeInputConfig):
        return to_tensor(resize_pixels(store.read(places[rows]), taken.size))
    found = torch.empty((len(rows), 1, *taken.size), dtype=torch.int16)
    for out, row in zip(found.numpy(), rows, strict=True):
        out[0] = stored_input_voxels(store, int(row), taken)
    return found


def check_side(taken: AnyInput, side: int | None) -> None:
    """Raise `UserError` where the side of a picture is set for an encoder of volumes."""
    if side is not None and isinstance(taken, VolumeInputConfig):
        raise UserError(
            f"The encoder takes volumes, and {side} is the side of a picture.", "fine_tune.input_size", "Leave it out."
        )


class InputLoader(ImageLoader):
    """Batches of images, or of volumes where `taken` is their input.

    Args:
        store: Prepared store.
        rows: Samples, `[n]`: positions in the images table, unless a subclass shows others.
        taken: What the tower takes.
        augment: Strength of the changes of images; None is evaluation.
        **options: As for `Loader`.

    Raises:
        UserError: Volumes are to be augmented.
    """

    def __init__(
        self,
        store: Store,
        rows: Int[np.ndarray, " n"],
        *,
        taken: AnyInput,
        augment: AugmentConfig | None,
        **options: Any,
    ) -> None:
        volumes = isinstance(taken, VolumeInputConfig)
        if volumes and augment not in (None, AugmentConfig()):
            raise UserError(
                "fine_tune.augment is of pictures, and the store holds volumes.", store.path, "Leave it out."
            )
        side = 0 if isinstance(taken.size, tuple) else taken.size
        super().__init__(store, rows, input_size=side, augment=augment, **options)
        self.taken, self.of = taken, store

    def load(self, epoch: int, step: int, rows: Int[np.ndarray, " b"]) -> Batch:
        """Make one batch; called from worker threads."""
        return self.batch(rows, self.seen(epoch, rows, rows))

    def seen(
        self, epoch: int, images: Int[np.ndarray, " b"], keys: Int[np.ndarray, " b"]
    ) -> Int[torch.Tensor, "b c *s"]:
        """Return a reading of rows of the images table; `keys` decide its augmentation."""
        if isinstance(self.taken, VolumeInputConfig):
            pixels = read_inputs(self.of, images, self.taken)
            return pixels.pin_memory() if self.pin_memory else pixels
        return self.reading(self.stored(images), epoch, keys, self.input_size)[0]

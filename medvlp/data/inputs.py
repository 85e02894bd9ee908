"""From rows of a store to what a tower takes, whatever the store holds: the road of every task.

Guarantee: without augmentation the pixels are those that the encoder itself makes of the row. An augmentation of
another kind than what the tower takes is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.config.data import AnyAugmentConfig, AugmentConfig, VolumeAugmentConfig
from medvlp.config.volumes import ClipInputConfig, VolumeInputConfig
from medvlp.data.clip_loader import ClipLoader
from medvlp.data.clips import Clips
from medvlp.data.counter import IMAGE, uniforms
from medvlp.data.loader import ImageLoader
from medvlp.data.transforms import frames_to_tensor, resize_frames, resize_pixels, to_tensor
from medvlp.data.volume_augment import NUMBERS, check_turns, planned
from medvlp.data.volume_input import grid_of, outside_of, stored_input_voxels
from medvlp.errors import UserError
from medvlp.types import Batch

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int

    from medvlp.config.preprocessing import AnyInput
    from medvlp.store.array_store import Store


def read_inputs(store: Store, rows: Int[np.ndarray, " b"], taken: AnyInput) -> Int[torch.Tensor, "b c *s"]:
    """Return the pixels of rows of the images table as a tower takes them, not yet normalised.

    Args:
        store: Of images, volumes, or of videos and their frames.
        rows: Positions in the images table.
        taken: What the tower takes, of the kind of the store.

    Raises:
        UserError: A volume has no spacing where one is asked for, or other numbers than the windows mean.
    """
    import torch

    if isinstance(taken, ClipInputConfig):
        clips = Clips(store, taken)
        return frames_to_tensor(resize_frames(clips.read(rows, clips.starts(rows)), taken.size))
    places = store.images["index"].to_numpy()
    if not isinstance(taken, VolumeInputConfig):
        return to_tensor(resize_pixels(store.read(places[rows]), taken.size))
    found = torch.empty((len(rows), 1, *taken.size), dtype=torch.int16)
    for out, row in zip(found.numpy(), rows, strict=True):
        out[0] = stored_input_voxels(store, int(row), taken)
    return found


def check_side(taken: AnyInput, side: int | None) -> None:
    """Raise `UserError` where the side of a picture is set for an encoder of volumes or clips."""
    if side is not None and isinstance(taken, VolumeInputConfig | ClipInputConfig):
        kind = "volumes" if isinstance(taken, VolumeInputConfig) else "clips"
        raise UserError(
            f"The encoder takes {kind}, and {side} is the side of a picture.", "fine_tune.input_size", "Leave it out."
        )


def fitting_augmentation(
    augment: AnyAugmentConfig, taken: AnyInput, where: object
) -> AugmentConfig | VolumeAugmentConfig:
    """Return the augmentation of the kind of what a tower takes: of volumes none at all where none is given.

    Args:
        augment: As it is configured.
        taken: What the tower takes.
        where: What is named if the two do not fit.

    Raises:
        UserError: It is of pictures and the tower takes volumes, or the reverse, or its quarter turns need squares.
    """
    if not isinstance(taken, VolumeInputConfig):
        if isinstance(augment, VolumeAugmentConfig):
            fix = "Leave it out, or give one of pictures, without its kind."
            raise UserError("The section augment is of volumes, and the store holds pictures.", where, fix)
        return augment
    if isinstance(augment, VolumeAugmentConfig):
        check_turns(augment, [taken.size], "augment")
        return augment
    if augment != AugmentConfig():
        fix = "Leave it out, or set augment.kind=volume beside keys of volumes."
        raise UserError("The section augment is of pictures, and the store holds volumes.", where, fix)
    return VolumeAugmentConfig()


def input_spacing(store: Store, row: int, taken: VolumeInputConfig) -> Float[np.ndarray, " 3"]:
    """Return the distance in mm of the voxels of the model input of a row of the images table; NaN where unknown."""
    index = int(store.images["index"].iloc[row])
    spacing = store.spacing_mm(index)
    step = np.array(grid_of(store.shape(index), spacing, taken, store.path).step)
    return step * np.array(spacing or (np.nan,) * 3)


class InputLoader(ImageLoader):
    """Batches of images, or of volumes or clips where `taken` is their input.

    Volumes are changed by `medvlp.data.volume_augment.on_device`; here it is only drawn what is done to them.

    Args:
        store: Prepared store.
        rows: Samples, `[n]`: positions in the images table, unless a subclass shows others.
        taken: What the tower takes.
        augment: Strength of the changes; None is evaluation.
        **options: As for `Loader`.

    Raises:
        UserError: The augmentation is not of the kind that the tower takes.
    """

    def __init__(
        self,
        store: Store,
        rows: Int[np.ndarray, " n"],
        *,
        taken: AnyInput,
        augment: AnyAugmentConfig | None,
        **options: Any,
    ) -> None:
        own = None if augment is None else fitting_augmentation(augment, taken, store.path)
        self.changes = own if isinstance(own, VolumeAugmentConfig) else None
        of_images = AugmentConfig() if isinstance(own, VolumeAugmentConfig) else own
        side = 0 if isinstance(taken.size, tuple) else taken.size
        super().__init__(store, rows, input_size=side, augment=of_images, **options)
        self.taken, self.of = taken, store
        self.clips = None
        if isinstance(taken, ClipInputConfig):
            self.clips = ClipLoader(store, rows, config=taken, augment=of_images, **options)

    def load(self, epoch: int, step: int, rows: Int[np.ndarray, " b"]) -> Batch:
        """Make one batch; called from worker threads."""
        pixels, extra = self.seen(epoch, rows, rows)
        return replace(self.batch(rows, pixels), extra=extra)

    def seen(
        self, epoch: int, images: Int[np.ndarray, " b"], keys: Int[np.ndarray, " b"]
    ) -> tuple[Int[torch.Tensor, "b c *s"], dict[str, torch.Tensor]]:
        """Return a reading of rows of the images table, and of volumes the entries of `Batch.extra` that change it.

        `keys` decide what is changed.
        """
        if self.clips is not None:
            return self.clips.reading(self.clips.frames(epoch, images), epoch, keys, self.input_size)[0], {}
        if not isinstance(self.taken, VolumeInputConfig):
            return self.reading(self.stored(images), epoch, keys, self.input_size)[0], {}
        pixels = read_inputs(self.of, images, self.taken)
        extra: dict[str, torch.Tensor] = {}
        if self.changes is not None and self.changes.moves:
            spacing = np.stack([input_spacing(self.of, int(row), self.taken) for row in images])
            u = uniforms(IMAGE, self.seed, epoch, keys, NUMBERS)
            outside = outside_of(pixels.numpy()[:, 0], self.taken)
            extra = planned(self.changes, u, self.taken.size, spacing, outside)
        return pixels.pin_memory() if self.pin_memory else pixels, extra

"""Batches of clips from a store of videos, or of the frames of videos.

Guarantee: order, places and changes are functions of (seed, epoch, sample), as in every `Loader`; all frames of a clip
are changed alike. Further readings of a clip show the same frames; further clips of a study are drawn on their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.data.augment import apply, draw
from medvlp.data.clips import Clips
from medvlp.data.counter import IMAGE, VIEW
from medvlp.data.loader import ImageLoader
from medvlp.data.pretrain_loader import PretrainLoader
from medvlp.data.transforms import frames_to_tensor, resize_frames
from medvlp.types import Batch

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Int, UInt8

    from medvlp.config.data import AugmentConfig
    from medvlp.config.volumes import ClipInputConfig
    from medvlp.store.array_store import Store


class ClipLoader(ImageLoader):
    """Batches of clips: `pixels` are uint8 `[b 1 f s s]`, or `[b 3 f s s]` in colour.

    Args:
        store: See `Clips`.
        rows: Positions in the images table, `[n]`, that make up the data set.
        config: The model input.
        augment: Strength of the changes; None is evaluation: the order of `rows`, no change, clips from the middle.
        **options: As for `Loader`.
    """

    def __init__(
        self,
        store: Store,
        rows: Int[np.ndarray, " n"],
        *,
        config: ClipInputConfig,
        augment: AugmentConfig | None,
        **options: Any,
    ) -> None:
        super().__init__(store, rows, input_size=config.size, augment=augment, **options)
        self.clips = Clips(store, config)

    def made(self, epoch: int, rows: Int[np.ndarray, " b"]) -> tuple[Batch, Bool[np.ndarray, " b"]]:
        """Return a batch of clips of these samples, and which of them are mirrored."""
        pixels, mirrored = self.reading(self.frames(epoch, rows), epoch, rows, self.input_size)
        return self.batch(rows, pixels), mirrored

    def frames(self, epoch: int, rows: Int[np.ndarray, " b"], number: int = 0) -> UInt8[np.ndarray, "b f s s *c"]:
        """Return the stored frames of a clip of each sample; in training clips of one sample differ by `number`."""
        if not self.training:
            return self.clips.read(rows, self.clips.starts(rows))
        return self.clips.read(rows, self.clips.draw(self.seed, epoch, rows, number))

    def reading(
        self,
        stored: np.ndarray,
        epoch: int,
        rows: Int[np.ndarray, " b"],
        size: int,
        crop_scale: tuple[float, float] | None = None,
        stream: int = IMAGE,
    ) -> tuple[torch.Tensor, Bool[np.ndarray, " b"]]:
        """Return a reading of stored frames as `[b c f s s]`, and which of them are mirrored; see `ImageLoader`."""
        mirrored = np.zeros(len(rows), dtype=bool)
        if self.augment is None:
            made = resize_frames(stored, size)
        else:
            made = np.empty((*stored.shape[:2], size, size, *stored.shape[4:]), stored.dtype)
            how = self.augment if crop_scale is None else self.augment.model_copy(update={"crop_scale": crop_scale})
            changes = draw(how, self.seed, epoch, rows, stored.shape[2], stream)
            mirrored = changes.flip
            for i, clip in enumerate(stored):
                for frame, out in zip(clip, made[i], strict=True):
                    apply(frame, changes, i, out)
        pixels = frames_to_tensor(made)
        return pixels.pin_memory() if self.pin_memory else pixels, mirrored


class ClipPretrainLoader(PretrainLoader, ClipLoader):
    """Batches of clips for pre-training; arguments as for `ClipLoader` and `PretrainLoader`."""

    def made(self, epoch: int, rows: Int[np.ndarray, " b"]) -> tuple[Batch, Bool[np.ndarray, " b"]]:
        """Return a batch of clips with their further readings and those of their study, and which are mirrored."""
        import torch

        demands, stored = self.sources.demands, self.frames(epoch, rows)
        pixels, mirrored = self.reading(stored, epoch, rows, self.input_size)
        batch = self.batch(rows, pixels)
        batch.views = tuple(
            self.reading(stored, epoch, rows, view.size, view.crop_scale, VIEW + number)[0]
            for number, view in enumerate(demands.views)
        )
        if self.sources.study_rows is not None:
            columns = self.sources.study_rows[rows].T
            others = [
                self.reading(self.frames(epoch, column, number), epoch, column, self.input_size, None, VIEW + number)[0]
                for number, column in enumerate(columns[1:], start=1)
            ]
            batch.study = torch.stack([pixels, *others], dim=1)
        return batch, mirrored

"""Batches from a prepared store, by threads: what all loaders share, and the loader of images.

Guarantee: the order is a function of (seed, epoch) and each sample's augmentation one of (seed, epoch, sample id), so
the number of workers, the number of ranks and a resume change no pixel. Rank r of w takes the r-th w-th of every global
batch. A loader that is left in the middle of an epoch, also by an exception, leaves no thread behind.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medvlp.data.augment import apply, draw
from medvlp.data.counter import IMAGE, permutation
from medvlp.data.transforms import resize_pixels, to_tensor
from medvlp.types import Batch

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from jaxtyping import Bool, Int

    from medvlp.config.data import AugmentConfig


class PixelStore(Protocol):
    """What the loader needs of a store."""

    @property
    def images(self) -> pd.DataFrame:
        """One row per image; column `index` is its place in the array."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images `[b h w]` or `[b h w 3]` at these places, in this order; several threads may call it."""


class Loader(ABC):
    """Batches of one epoch after another; how one batch is made is for the subclass to say.

    Args:
        rows: Samples, `[n]`, that make up the data set; for images their positions in the images table.
        batch_size: Samples per global batch, a multiple of `world_size`. In training a data set that is smaller makes
            one batch of all its samples (cut to a multiple of `world_size`).
        seed: Seed of order and augmentation.
        training: Whether order and samples change from epoch to epoch; else the order of `rows`, a short last batch
            kept.
        num_workers: Threads; 0 loads in the caller's thread.
        prefetch: Batches made ahead.
        rank: Rank of this process.
        world_size: Number of processes.
        keep_last: In training, make a short batch of the samples left over at the end of an epoch.
        pin_memory: Put the pixels into page-locked memory, for asynchronous copies to a GPU.
    """

    def __init__(
        self,
        rows: Int[np.ndarray, " n"],
        *,
        batch_size: int,
        seed: int,
        training: bool,
        num_workers: int = 2,
        prefetch: int = 4,
        rank: int = 0,
        world_size: int = 1,
        keep_last: bool = False,
        pin_memory: bool = False,
    ) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        if not len(self.rows):
            raise ValueError("a loader needs at least one sample")
        if training:
            batch_size = min(batch_size, len(self.rows) // world_size * world_size)
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"a global batch of {batch_size} does not split over {world_size} ranks")
        self.batch_size, self.seed, self.training = batch_size, seed, training
        self.keep_last = keep_last or not training
        self.num_workers, self.prefetch = num_workers, max(1, prefetch)
        self.rank, self.world_size, self.pin_memory = rank, world_size, pin_memory

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch; training leaves out the samples of a last, short one, unless it is kept."""
        n = len(self.rows)
        return -(-n // self.batch_size) if self.keep_last else n // self.batch_size

    def batch_rows(self, epoch: int, step: int) -> Int[np.ndarray, " b"]:
        """Return the samples of this rank's part of a global batch."""
        return self._parts(self._order(epoch), step)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `start_step` on."""
        return self._run((epoch, step) for step in range(start_step, self.steps_per_epoch))

    def stream(self, start: int = 0) -> Iterator[Batch]:
        """Yield batches without end, epoch after epoch, from batch number `start` of all; made ahead across epochs."""
        return self._run(divmod(number, self.steps_per_epoch) for number in itertools.count(start))

    def _run(self, jobs: Iterator[tuple[int, int]]) -> Iterator[Batch]:
        """Make the batches of (epoch, step) in order."""
        order, of_epoch = np.empty(0, np.int64), -1

        def parts() -> Iterator[tuple[int, int, np.ndarray]]:
            nonlocal order, of_epoch
            for epoch, step in jobs:
                if epoch != of_epoch:
                    order, of_epoch = self._order(epoch), epoch
                yield epoch, step, self._parts(order, step)

        if self.num_workers == 0:
            for epoch, step, rows in parts():
                yield self.load(epoch, step, rows)
            return
        import cv2

        cv2.setNumThreads(1)  # parallel over batches already: nested threads only get in each other's way
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="medvlp-loader")
        waiting: deque[Future[Batch]] = deque()
        try:
            for epoch, step, rows in parts():
                waiting.append(pool.submit(self.load, epoch, step, rows))
                if len(waiting) > self.prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _order(self, epoch: int) -> np.ndarray:
        return self.rows[permutation(self.seed, epoch, len(self.rows))] if self.training else self.rows

    def _parts(self, order: np.ndarray, step: int) -> np.ndarray:
        batch = order[step * self.batch_size : (step + 1) * self.batch_size]
        return np.array_split(batch, self.world_size)[self.rank]

    def load(self, epoch: int, step: int, rows: Int[np.ndarray, " b"]) -> Batch:
        """Make one batch; called from worker threads."""
        return self.made(epoch, rows)[0]

    @abstractmethod
    def made(self, epoch: int, rows: Int[np.ndarray, " b"]) -> tuple[Batch, Bool[np.ndarray, " b"]]:
        """Return a batch of these samples, and which of them are mirrored; called from worker threads."""


class ImageLoader(Loader):
    """Batches of images: `pixels` are `[b 1 s s]`, or `[b 3 s s]` in colour, uint8 or, from a uint16 store, int32.

    Args:
        store: Prepared store.
        rows: Positions in the images table, `[n]`, that make up the data set.
        input_size: Side `s` of the output in pixels.
        augment: Strength of the changes; None is evaluation: the order of `rows`, no change, a short last batch kept.
        **options: As for `Loader`.
    """

    def __init__(
        self,
        store: PixelStore,
        rows: Int[np.ndarray, " n"],
        *,
        input_size: int,
        augment: AugmentConfig | None,
        **options: Any,
    ) -> None:
        super().__init__(rows, training=augment is not None, **options)
        self.store, self.input_size, self.augment = store, input_size, augment
        self._places = store.images["index"].to_numpy()

    def made(self, epoch: int, rows: Int[np.ndarray, " b"]) -> tuple[Batch, Bool[np.ndarray, " b"]]:
        """Return a batch of these images, and which of them are mirrored."""
        pixels, mirrored = self.reading(self.stored(rows), epoch, rows, self.input_size)
        return self.batch(rows, pixels), mirrored

    def stored(self, rows: Int[np.ndarray, " b"]) -> np.ndarray:
        """Return the stored squares of images, `[b h w]` or `[b h w 3]`."""
        return self.store.read(self._places[rows])

    def batch(self, rows: Int[np.ndarray, " b"], pixels: torch.Tensor) -> Batch:
        """Return the batch of images."""
        import torch

        return Batch(index=torch.from_numpy(rows.copy()), pixels=pixels)

    def reading(
        self,
        stored: np.ndarray,
        epoch: int,
        rows: Int[np.ndarray, " b"],
        size: int,
        crop_scale: tuple[float, float] | None = None,
        stream: int = IMAGE,
    ) -> tuple[torch.Tensor, Bool[np.ndarray, " b"]]:
        """Return a reading of stored squares as `[b c s s]`, augmented in training, and which of them are mirrored.

        Args:
            stored: Squares of the store.
            epoch: Epoch, from 0.
            rows: Row of each in the images table.
            size: Side `s`.
            crop_scale: Share of the area that a crop keeps; None takes the configured one.
            stream: Stream of random numbers; readings of one image differ by it.
        """
        if self.augment is None:
            made, mirrored = resize_pixels(stored, size), np.zeros(len(rows), dtype=bool)
        else:
            made = np.empty((len(rows), size, size, *stored.shape[3:]), stored.dtype)
            how = self.augment if crop_scale is None else self.augment.model_copy(update={"crop_scale": crop_scale})
            changes = draw(how, self.seed, epoch, rows, stored.shape[1], stream)
            mirrored = changes.flip
            for i, image in enumerate(stored):
                apply(image, changes, i, made[i])
        pixels = to_tensor(made)
        return pixels.pin_memory() if self.pin_memory else pixels, mirrored

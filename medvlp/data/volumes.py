"""Batches of 3D crops from a store of volumes, windowed when the batch is made.

Guarantee: order and place of the crops are functions of (seed, epoch, sample), as in every `Loader`; the store keeps HU
and a window changes nothing there. A volume whose numbers are not what the windows mean is refused before the first
batch, and a structure that a label map does not name is never taken as absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.data.counter import CROP, uniforms
from medvlp.data.loader import Loader
from medvlp.errors import UserError
from medvlp.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Int, Int16, Shaped, UInt8

    from medvlp.config.volumes import CropConfig, WindowConfig
    from medvlp.store.array_store import Store


MOST_STRUCTURES = 255
"""Values of a uint8 mask besides 0."""


class VolumeLoader(Loader):
    """Batches of crops: `pixels` are uint8 `[b c d h w]`, one channel for each window, in RAS.

    Sample `i` is crop `i % per_volume` of the volume at position `rows[i // per_volume]`; `index` of a batch holds the
    samples, `extra["row"]` `[b]` the positions in the images table, and `extra["start"]` `[b 3]` the first voxel of
    each crop along d, h, w (negative where the crop begins outside the volume). With `structures`, `extra["mask"]` is
    uint8 `[b d h w]`: 0, or 1 + the place of the structure in `structures`.

    Args:
        store: Store of volumes.
        rows: Positions in the images table, `[n]`, that make up the data set.
        crop: Size, windows and place of the crops.
        seed: Seed of order and places.
        training: Random places, where `crop.place` says so, and another order in each epoch; else the order of `rows`
            and crops from the centre.
        structures: Names of structures whose masks are wanted; every volume needs a label map that names them all.
        **options: As for `Loader`.

    Raises:
        UserError: The store holds no volumes; some are not in `crop.intensity`; or one lacks a structure.
    """

    def __init__(
        self,
        store: Store,
        rows: Int[np.ndarray, " n"],
        *,
        crop: CropConfig,
        seed: int,
        training: bool,
        structures: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if store.kind != "volume":
            raise UserError(
                f"Crops are taken from volumes, but the store holds {store.kind}s.", store.path, "Use another store."
            )
        if len(structures) > MOST_STRUCTURES:
            raise UserError(
                f"{len(structures)} structures are asked for; a mask of bytes holds {MOST_STRUCTURES}.",
                store.path,
                "Ask for fewer.",
            )
        self.store, self.crop, self.structures = store, crop, tuple(structures)
        self.positions = np.asarray(rows, dtype=np.int64)
        super().__init__(np.arange(len(self.positions) * crop.per_volume), seed=seed, training=training, **options)
        self._indices = store.images["index"].to_numpy()
        self._check_intensity()
        self._tables = np.stack([window_table(window) for window in crop.windows])
        tables: dict[bytes, np.ndarray] = {}  # most volumes of a store share one numbering
        self._values: dict[int, np.ndarray] = {}
        for index in self._used().tolist() if structures else ():
            table = self._class_table(index)
            self._values[index] = tables.setdefault(table.tobytes(), table)

    def _used(self) -> Int[np.ndarray, " n"]:
        return self._indices[np.unique(self.positions)]

    def _check_intensity(self) -> None:
        used = self.store.images.iloc[np.unique(self.positions)]
        other = used[used["intensity"] != self.crop.intensity]
        if len(other):
            raise UserError(
                f"{len(other)} of {len(used)} volumes are not in {self.crop.intensity}, as the windows are: "
                f"{other['image_id'].iloc[0]} is in {other['intensity'].iloc[0]}.",
                self.store.path,
                "Name it when the data set is prepared (volume.intensity), or set crop.intensity and crop.windows.",
            )

    def _class_table(self, index: int) -> UInt8[np.ndarray, " v"]:
        """Return the class of each value of a volume's label map."""
        names = self.store.structures(index)
        missing = [name for name in self.structures if name not in names.values()]
        if missing:
            raise UserError(
                f"The label map of volume {index} does not name {', '.join(missing)}; it names "
                f"{', '.join(sorted(set(names.values()))) or 'nothing'}.",
                self.store.path,
                "Leave the structure out, or take the volumes that `store.masks` lists with it.",
            )
        table = np.zeros(1 << 16, dtype=np.uint8)
        for value, name in names.items():
            table[value] = self.structures.index(name) + 1 if name in self.structures else 0
        return table

    def starts(self, epoch: int, samples: Int[np.ndarray, " b"]) -> Int[np.ndarray, "b 3"]:
        """Return the first voxel of the crop of each sample; where the volume is smaller, it lies inside the crop."""
        shapes = np.array([self.store.shape(int(i)) for i in self._indices[self._rows(samples)]]).reshape(-1, 3)
        room = shapes - np.array(self.crop.size)
        if not self.training or self.crop.place == "centre":
            return room // 2
        places = uniforms(CROP, self.seed, epoch, samples, 3)
        return np.minimum(room, 0) + np.floor(places * (np.abs(room) + 1)).astype(np.int64)

    def _rows(self, samples: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        return self.positions[samples // self.crop.per_volume]

    def load(self, epoch: int, step: int, rows: Int[np.ndarray, " b"]) -> Batch:
        """Make one batch; called from worker threads."""
        import torch

        positions, starts = self._rows(rows), self.starts(epoch, rows)
        pixels = np.empty((len(rows), len(self._tables), *self.crop.size), dtype=np.uint8)
        mask = np.zeros((len(rows), *self.crop.size), dtype=np.uint8) if self.structures else None
        for i, (index, start) in enumerate(zip(self._indices[positions].tolist(), starts.tolist(), strict=True)):
            voxels = padded_crop(self.store, index, start, self.crop.size, self.crop.outside)
            apply_windows(voxels, self._tables, pixels[i])
            if mask is not None:
                values = padded_crop(self.store, index, start, self.crop.size, 0, labels=True)
                np.take(self._values[index], values, out=mask[i], mode="clip")  # "raise" would buffer; no value is out
        extra = {"row": torch.from_numpy(positions.copy()), "start": torch.from_numpy(starts.copy())}
        if mask is not None:
            extra["mask"] = torch.from_numpy(mask)
        tensor = torch.from_numpy(pixels)
        return Batch(
            index=torch.from_numpy(rows.copy()),
            pixels=tensor.pin_memory() if self.pin_memory else tensor,
            extra=extra,
        )


def padded_crop(
    store: Store, index: int, start: Sequence[int], size: Sequence[int], outside: int, *, labels: bool = False
) -> Shaped[np.ndarray, "d h w"]:
    """Return voxels, or values of the label map, of a crop that may reach over the volume's edge.

    Args:
        store: Store of volumes.
        index: Number of the volume.
        start: First voxel along d, h, w; may be negative.
        size: Voxels along d, h, w.
        outside: Value outside the volume.
        labels: Take the label map.
    """
    read = store.crop_labels if labels else store.crop
    shape = store.shape(index)
    low = [max(first, 0) for first in start]
    high = [min(first + length, whole) for first, length, whole in zip(start, size, shape, strict=True)]
    inside = [end - first for first, end in zip(low, high, strict=True)]
    if inside == list(size):
        return read(index, start, size)
    if min(inside) <= 0:
        return np.full(size, outside, dtype=np.int16)
    part = read(index, low, inside)
    whole = np.full(size, outside, dtype=part.dtype)
    offset = [first - begin for first, begin in zip(low, start, strict=True)]
    whole[tuple(slice(begin, begin + length) for begin, length in zip(offset, inside, strict=True))] = part
    return whole


def window_table(window: WindowConfig) -> UInt8[np.ndarray, "65536"]:
    """Return the grey value of every int16, at the place of the same bits as uint16."""
    values = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float64)
    return np.rint(np.clip((values - window.low) / window.width, 0, 1) * 255).astype(np.uint8)


def apply_windows(
    voxels: Int16[np.ndarray, "*s"], tables: UInt8[np.ndarray, "c 65536"], out: UInt8[np.ndarray, "c *s"]
) -> None:
    """Write one channel for each window into `out`."""
    bits = np.ascontiguousarray(voxels, dtype=np.int16).view(np.uint16)
    for table, channel in zip(tables, out, strict=True):
        np.take(table, bits, out=channel, mode="clip")

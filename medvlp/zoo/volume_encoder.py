"""Encoders of volumes, under the interface of encoders of images.

Guarantee: a file, the volume read from it, and its row in a store that was prepared in the same way give the same
features. Heat maps return to the voxels of the volume that was given; nothing is shown where the encoder saw nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from medvlp.config.preprocessing import VolumePreprocessing
from medvlp.data.transforms import normalise
from medvlp.data.volume_input import grid_of, input_view, input_voxels, stored_input_voxels, with_meaning
from medvlp.data.volume_views import Grid, part_of, put_back
from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.types import Features, Volume
from medvlp.zoo.encoder import Encoder, _chunks, _concatenate

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int, Int16

    from medvlp.store.array_store import Store

Scan = str | Path | Volume
READERS = 2
"""Threads that read ahead while the tower computes."""


class VolumeEncoder(Encoder):
    """An encoder of volumes; see `Encoder`.

    Where `Encoder` speaks of stored squares `[b h w]`, these are int16 voxels `[b d h w]` of the model input: a volume
    is brought to its grid when it is read, because volumes of a store differ in size.
    """

    kind: ClassVar[str] = "volume"
    preprocessing: VolumePreprocessing

    def __init__(self, *arguments: Any, batch_size: int = 4, **options: Any) -> None:
        super().__init__(*arguments, batch_size=batch_size, **options)

    def read(self, scan: Scan) -> Volume:
        """Return the volume of a file or folder, as `preprocessing.stored` says, or the one that is given.

        See `medvlp.data.volume_input.with_meaning`.

        Raises:
            UserError: It cannot be read, or its numbers are not what the windows mean.
        """
        volume = scan if isinstance(scan, Volume) else read_volume(scan, self.preprocessing.stored)
        return with_meaning(volume, self.preprocessing.input, _named(scan))

    def preprocess(self, image: Scan) -> Int16[np.ndarray, "d h w"]:  # type: ignore[override]
        """Return the voxels of the model input of a file, folder or volume.

        Raises:
            UserError: It cannot be read, or does not fit the encoder.
        """
        return input_voxels(self.read(image), self.preprocessing.input, _named(image))

    def encode_image(self, images: Iterable[Scan] | Scan) -> Features:  # type: ignore[override]
        """Return the features of files, folders and volumes, in the order given.

        Raises:
            UserError: One cannot be read, or does not fit the encoder.
        """
        scans = [images] if isinstance(images, str | Path | Volume) else list(images)
        return self._encoded(self.preprocess, scans)

    def encode_rows(self, store: Store, rows: Int[np.ndarray, " n"]) -> Features:
        """Return the features of rows of the images table of a store of volumes; whole chunks are read, ahead.

        Raises:
            UserError: The store holds no volumes, or one does not fit the encoder.
        """
        self.check_store(store)
        taken = self.preprocessing.input
        return self._encoded(lambda row: stored_input_voxels(store, row, taken), [int(row) for row in rows])

    def heat_maps(  # type: ignore[override]
        self, images: Iterable[Scan] | Scan, texts: Sequence[str]
    ) -> list[Float32[np.ndarray, "t d h w"]]:
        """Return where each volume shows what each text says, on its voxels: larger is more evidence.

        NaN is what lies outside the model input: the encoder has not seen it.

        Raises:
            UserError: The encoder has no heat maps, a text is empty, or a volume cannot be read.
        """
        self.check_heat_maps(texts)
        scans = [images] if isinstance(images, str | Path | Volume) else list(images)
        found = []
        for scan in scans:
            volume = self.read(scan)
            shape, taken = volume.array.shape, self.preprocessing.input
            grid = grid_of(shape, volume.spacing_mm, taken, _named(scan))
            voxels = input_view(part_of(volume.array), shape, grid, taken)
            maps = self.token_heat_maps(voxels[None], texts)[0].cpu().numpy()
            found.append(np.stack([on_volume(own, grid, shape) for own in maps]))
        return found

    def heat_maps_stored(
        self, pixels: Int16[np.ndarray, "b d h w"], texts: Sequence[str]
    ) -> Float32[np.ndarray, "b t d h w"]:
        """As `heat_maps`, of voxels of the model input, on these."""
        size = self.preprocessing.input.size
        maps = self.token_heat_maps(pixels, texts).cpu().numpy()
        return np.stack([[on_volume(own, Grid(size), size) for own in each] for each in maps])

    def _encoded(self, read: Any, items: Sequence[Any]) -> Features:
        """Return the features of what `read` makes of each item; the next batch is read meanwhile."""
        if not items:
            raise UserError("There are no volumes to encode.", "encoder", "Give one volume or more.")
        parts, chunks = [], [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        with ThreadPoolExecutor(READERS) as pool:
            ahead = [pool.submit(read, item) for item in chunks[0]]
            for number in range(len(chunks)):
                voxels = np.stack([one.result() for one in ahead])
                ahead = [pool.submit(read, item) for item in chunks[number + 1]] if number + 1 < len(chunks) else []
                parts.append(self.encode_stored(voxels))
        return _concatenate(parts)

    def _inputs(self, pixels: Int16[np.ndarray, "b d h w"]) -> Iterator[Float[torch.Tensor, "b c d h w"]]:
        if not len(pixels):
            raise UserError("There are no volumes to encode.", "encoder", "Give one volume or more.")
        for chunk in _chunks(pixels, self.batch_size):
            yield normalise(torch.from_numpy(chunk[:, None]).to(self.device), self.preprocessing.input)


def _named(scan: Scan) -> object:
    return scan.provenance.get("path", "the volume") if isinstance(scan, Volume) else scan


def on_volume(
    values: Float32[np.ndarray, "gd gh gw"], grid: Grid, shape: Sequence[int]
) -> Float32[np.ndarray, "d h w"]:
    """Return a map on the tokens of a model input at the voxels of the volume; NaN where the input does not reach.

    Args:
        values: One value for each token; together the tokens cover the model input evenly.
        grid: The model input in the index of the volume.
        shape: Voxels of the volume.
    """
    return put_back(values, grid.resized(values.shape), shape, np.nan)

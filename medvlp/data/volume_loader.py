"""Batches of volumes from a store: whole ones or crops, with further crops, organs and affines.

Guarantee: order, places and changes are functions of (seed, epoch, sample), as in every `Loader`. Of a volume only the
voxels that a crop covers are read, so its size does not matter. A volume whose numbers are not what the windows mean,
or which has no spacing where one is asked for, is refused before the first batch; a structure that a label map does not
name is never taken as absent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.data.counter import CROP, IMAGE, VIEW, uniforms
from medvlp.data.demands import VolumeView
from medvlp.data.loader import Loader
from medvlp.data.volume_augment import NUMBERS, affine_inside, check_turns, cut_inside, flips, planned
from medvlp.data.volume_input import fits, input_view, outside_of
from medvlp.data.volume_views import Grid, input_grid, read_view, respaced, whole
from medvlp.errors import UserError
from medvlp.store.manifest import UNITS
from medvlp.text.sides import mirrored_order
from medvlp.types import Batch

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int, Int16, Shaped, UInt8

    from medvlp.config.data import VolumeAugmentConfig
    from medvlp.config.volumes import VolumeInputConfig
    from medvlp.store.array_store import Store

MOST_STRUCTURES = 255
"""Values of a uint8 mask besides 0."""


class VolumeLoader(Loader):
    """Batches of volumes: `pixels` are int16 `[b 1 d h w]` in RAS, as stored.

    With `input.spacing_mm` they are crops at that spacing, in training at random places, else from the middle; without,
    whole volumes that are stretched. `extra["affine"]` `[b 4 4]` is NaN for a volume without geometry. See `Demands`
    for views and organs. What `medvlp.data.volume_augment.on_device` changes is only drawn here.

    Args:
        store: Store of volumes.
        rows: Positions in the images table, `[n]`, that make up the data set.
        config: The model input.
        augment: Strength of the changes; None is evaluation: the order of `rows`, no change, crops from the middle.
        size: Voxels of `pixels` along d, h, w; None takes those of the model input.
        views: Further crops; see `VolumeView`. Their places are drawn also in evaluation.
        volumes: Rows that will be asked for, where `rows` are something else.
        organs: Structures that `extra["organs"]` shows; every volume needs a label map that names them all.
        **options: As for `Loader`.

    Raises:
        UserError: The store does not hold what is asked for.
    """

    def __init__(
        self,
        store: Store,
        rows: Int[np.ndarray, " n"],
        *,
        config: VolumeInputConfig,
        augment: VolumeAugmentConfig | None,
        size: tuple[int, int, int] | None = None,
        views: Sequence[VolumeView] = (),
        organs: Sequence[str] = (),
        volumes: Int[np.ndarray, " m"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(rows, training=augment is not None, **options)
        self.store, self.config, self.augment = store, config, augment
        self.size, self.views, self.organs = size or config.size, tuple(views), tuple(organs)
        self._places = store.images["index"].to_numpy()
        used = np.unique(self.rows if volumes is None else volumes)
        check_volumes(store, used, config)
        self._check_sizes()
        self._classes = self._class_tables(self._places[used].tolist()) if organs else {}

    def _check_sizes(self) -> None:
        for view in self.views:
            if view.kind == "inside" and any(one > whole for one, whole in zip(view.size, self.size, strict=True)):
                raise ValueError(f"crops of {view.size} voxels do not lie inside {self.size}")
        turned = [self.size, *(view.size for view in self.views if view.kind == "local")]
        check_turns(self.augment, turned, "data.augment")

    def made(self, epoch: int, rows: Int[np.ndarray, " b"]) -> tuple[Batch, Bool[np.ndarray, " b"]]:
        """Return a batch of these volumes, and which of them `on_device` will mirror."""
        import torch

        indices = self._places[rows].tolist()
        pixels, grids = self._empty(len(rows), 1, *self.size), self._grids(epoch, rows, indices)
        self._each(self._read_into, pixels.numpy()[:, 0], indices, grids)
        affines = np.stack([self._affine(index, grid) for index, grid in zip(indices, grids, strict=True)])
        extra = {"affine": torch.from_numpy(affines)}
        drawn = uniforms(IMAGE, self.seed, epoch, rows, NUMBERS)
        mirrored = np.zeros(len(rows), dtype=bool)
        if self.augment is not None:
            mirrored = flips(self.augment, drawn).sum(axis=1) % 2 == 1
            extra |= self._drawn(pixels.numpy()[:, 0], extra["affine"], drawn, self.size)
        views = tuple(self._view(number, epoch, rows, pixels, drawn, extra) for number in range(len(self.views)))
        if self.organs:
            organs = self._empty(len(rows), *self.size, kind=torch.uint8)
            self._each(self._read_organs_into, organs.numpy(), indices, grids, mirrored.tolist())
            extra["organs"] = organs
        return Batch(torch.from_numpy(rows.copy()), pixels, views=views, extra=extra), mirrored

    def _empty(self, *shape: int, kind: torch.dtype | None = None) -> torch.Tensor:
        import torch

        return torch.empty(shape, dtype=kind or torch.int16, pin_memory=self.pin_memory)

    def _grids(self, epoch: int, rows: Int[np.ndarray, " b"], indices: Sequence[int]) -> list[Grid]:
        """Return where `pixels` lie in their volumes."""
        if self.config.spacing_mm is None or not self.training:
            return [
                input_grid(self.store.shape(index), self.store.spacing_mm(index), self.config, self.size)
                for index in indices
            ]
        wholes = [self._whole(index) for index in indices]
        starts = places([grid.size for grid in wholes], self.size, uniforms(CROP, self.seed, epoch, rows, 3))
        return [grid.crop(start, self.size) for grid, start in zip(wholes, starts.tolist(), strict=True)]

    def _whole(self, index: int) -> Grid:
        """Return the volume at the model's spacing, or as it is stored where that names none."""
        shape, spacing = self.store.shape(index), self.store.spacing_mm(index)
        if self.config.spacing_mm is None or spacing is None:
            return whole(shape)
        return respaced(shape, spacing, self.config.spacing_mm)

    def _view(
        self,
        number: int,
        epoch: int,
        rows: Int[np.ndarray, " b"],
        pixels: torch.Tensor,
        drawn: Float[np.ndarray, "b numbers"],
        extra: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return a further view `[b n 1 d h w]`, and add its places, affines and changes to `extra`."""
        import torch

        view, end = self.views[number], f"_{number}"
        u = uniforms(VIEW + number, self.seed, epoch, rows, view.count * (3 + NUMBERS))
        u = u.reshape(len(rows), view.count, -1)
        if view.kind == "inside":
            starts = torch.from_numpy(places([[self.size]] * len(rows), view.size, u[..., :3]))
            crops = cut_inside(pixels, starts, view.size)
            extra |= {"start" + end: starts, "affine" + end: affine_inside(extra["affine"], starts)}
            return crops.pin_memory() if self.pin_memory else crops
        indices = self._places[rows].tolist()
        wholes = [self._whole(index) for index in indices]
        begins = places([[grid.size] for grid in wholes], view.size, u[..., :3])
        crops = self._empty(len(rows), view.count, 1, *view.size)
        grids = [
            [grid.crop(start, view.size) for start in of] for grid, of in zip(wholes, begins.tolist(), strict=True)
        ]
        flat = [(index, crop) for index, of in zip(indices, grids, strict=True) for crop in of]
        self._each(self._read_into, crops.numpy().reshape(-1, *view.size), *zip(*flat, strict=True))
        affines = np.stack([self._affine(*one) for one in flat]).reshape(len(rows), view.count, 4, 4)
        extra |= {"start" + end: torch.from_numpy(begins), "affine" + end: torch.from_numpy(affines)}
        if self.augment is not None:
            u[..., 3:6] = drawn[:, None, :3]  # all views of a volume are mirrored together, as its text is
            extra |= self._drawn(crops.numpy()[:, :, 0], extra["affine" + end], u[..., 3:], view.size, end)
        return crops

    def _drawn(
        self,
        voxels: Int16[np.ndarray, "*n d h w"],
        affines: Float[torch.Tensor, "*n 4 4"],
        u: Float[np.ndarray, "*n numbers"],
        size: tuple[int, int, int],
        end: str = "",
    ) -> dict[str, torch.Tensor]:
        """Return what `on_device` is to do, as entries of `Batch.extra`."""
        assert self.augment is not None
        spacing = np.linalg.norm(affines.numpy()[..., :3, :3], axis=-2)
        return planned(self.augment, u, size, spacing, outside_of(voxels, self.config), end)

    def _read(self, index: int, grid: Grid, *, labels: bool = False) -> Shaped[np.ndarray, "d h w"]:
        shape = self.store.shape(index)
        if labels:
            return read_view(partial(self.store.crop_labels, index), shape, grid, 0, labels=True)
        return input_view(partial(self.store.crop, index), shape, grid, self.config)

    def _read_into(self, out: Int16[np.ndarray, "d h w"], index: int, grid: Grid) -> None:
        out[:] = self._read(index, grid)

    def _read_organs_into(self, out: UInt8[np.ndarray, "d h w"], index: int, grid: Grid, mirrored: bool) -> None:
        values = self._read(index, grid, labels=True)
        np.take(self._classes[index, mirrored], values, out=out, mode="clip")  # "raise" would buffer

    def _each(self, read: Callable[..., None], *columns: Iterable[Any]) -> None:
        """Read every sample of a batch, in the threads that the batches made at a time leave over."""
        threads = self.num_workers // (self.prefetch + 1)
        if threads < 2:
            for one in zip(*columns, strict=True):
                read(*one)
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="medvlp-reader") as pool:
            deque(pool.map(read, *columns), maxlen=0)

    def _affine(self, index: int, grid: Grid) -> Float[np.ndarray, "4 4"]:
        affine = self.store.affine(index)
        return np.full((4, 4), np.nan) if affine is None else grid.affine(affine)

    def _class_tables(self, indices: Sequence[int]) -> dict[tuple[int, bool], UInt8[np.ndarray, " v"]]:
        """Return the class of each value of the label map of a volume, as it is and mirrored."""
        if len(self.organs) > MOST_STRUCTURES:
            raise UserError(
                f"{len(self.organs)} structures are asked for; a mask of bytes holds {MOST_STRUCTURES}.",
                self.store.path,
                "Ask for fewer.",
            )
        tables: dict[bytes, np.ndarray] = {}  # most volumes of a store share one numbering
        found = {}
        for index in indices:
            for mirrored in (False, True) if self.augment is not None and self.augment.mirrors else (False,):
                table = self._class_table(index, mirrored)
                found[index, mirrored] = tables.setdefault(table.tobytes(), table)
        return found

    def _class_table(self, index: int, mirrored: bool) -> UInt8[np.ndarray, " v"]:
        values = self.store.structures(index)
        names = list(values.values())
        becomes = [names[to] if to is not None else "" for to in mirrored_order(names)] if mirrored else names
        missing = [name for name in self.organs if name not in becomes]
        if missing:
            image = " mirrored" if mirrored else ""
            raise UserError(
                f"The{image} label map of volume {index} does not name {', '.join(missing)}; it names "
                f"{', '.join(sorted(filter(None, becomes))) or 'nothing'}.",
                self.store.path,
                "Leave the structure out, or take the volumes that `store.masks` lists with it.",
            )
        table = np.zeros(1 << 16, dtype=np.uint8)
        for value, name in zip(values, becomes, strict=True):
            table[value] = self.organs.index(name) + 1 if name in self.organs else 0
        return table


def places(shapes: Sequence[Any], size: Sequence[int], u: Float[np.ndarray, "*n 3"]) -> Int[np.ndarray, "*n 3"]:
    """Return the first voxels of random crops; where a volume is smaller than a crop, it lies inside.

    Args:
        shapes: Voxels of the volumes along d, h, w, `[*n 3]`.
        size: Voxels of a crop.
        u: Numbers in [0, 1).
    """
    room = np.array(shapes) - np.array(size)
    return np.minimum(room, 0) + np.floor(u * (np.abs(room) + 1)).astype(np.int64)


def check_volumes(store: Store, rows: Int[np.ndarray, " n"], config: VolumeInputConfig) -> None:
    """Raise `UserError` unless the volumes are what a model input takes.

    Args:
        store: The store.
        rows: Rows of the images table.
        config: The model input.
    """
    if store.kind != "volume":
        raise UserError(
            f"Volumes are needed, and the store holds {UNITS[store.kind]}.", store.path, "Use a store of volumes."
        )
    used = store.images.iloc[rows]
    other = used[[not fits(intensity, config) for intensity in used["intensity"]]]
    if len(other):
        raise UserError(
            f"{len(other)} of {len(used)} volumes are not in {config.intensity}, as the windows are: "
            f"{other['image_id'].iloc[0]} is in {other['intensity'].iloc[0]}.",
            store.path,
            "Name it when the data set is prepared (volume.intensity), or set input.intensity and input.windows; where "
            "some are of another modality, segmentation leaves them out by volume_segmentation.modalities.",
        )
    unknown = used[used["spacing_slice_mm"].isna()]
    if config.spacing_mm is not None and len(unknown):
        raise UserError(
            f"The model takes voxels at {config.spacing_mm} mm, and nothing says how far apart those of "
            f"{len(unknown)} of {len(used)} volumes lie: {unknown['image_id'].iloc[0]}.",
            store.path,
            "Use volumes with geometry, or set input.spacing_mm=null.",
        )

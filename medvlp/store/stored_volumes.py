"""Volumes, label maps and clips of a store, whole or in part.

Guarantee: what is asked for outside of a volume, or of a volume that is not there, raises; nothing is filled in.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from medvlp.errors import UserError
from medvlp.store.open_arrays import OpenArrays
from medvlp.store.shards import CLIPS, LABELS, VOLUMES, array_folder, clip_axes, shard_file

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int16, Shaped

    from medvlp.config.preprocessing import AnyStored
    from medvlp.types import Clip, Volume


class StoredVolumes(ABC):
    """The part of a `Store` that reads volumes and clips."""

    path: Path
    hash: str
    kind: str
    config: AnyStored
    _arrays: OpenArrays

    @property
    @abstractmethod
    def images(self) -> pd.DataFrame:
        """One row per volume or clip."""

    @property
    @abstractmethod
    def masks(self) -> pd.DataFrame:
        """One row per structure of a label map."""

    @abstractmethod
    def _refuse(self, kind: str) -> NoReturn:
        """Say that the store holds something else."""

    @abstractmethod
    def _reading(self, name: str) -> AbstractContextManager[None]:
        """Turn errors of reading into `UserError`."""

    def read_volume(self, index: int) -> Volume:
        """Return a volume by its number (`images["index"]`), as `medvlp.read_volume` gave it."""
        from medvlp.types import Intensity, Volume

        row = self._volume_rows[self._known(index, "volume")]
        provenance = {"store": self.hash, "image_id": row["image_id"], "hu_applied": row["hu_applied"]}
        return Volume(
            array=self._region(VOLUMES, index, tuple(slice(0, size) for size in row["shape"])),
            affine=self.affine(index),
            spacing_mm=self.spacing_mm(index),
            intensity=Intensity(row["intensity"]),
            provenance=provenance,
        )

    def shape(self, index: int) -> tuple[int, int, int]:
        """Return depth, height and width of a volume in voxels."""
        return self._volume_rows[self._known(index, "volume")]["shape"]

    def affine(self, index: int) -> Float[np.ndarray, "4 4"] | None:
        """Return the affine of a volume from the index (d, h, w, 1) to RAS in mm; None where nobody says."""
        import numpy as np

        stated = self._volume_rows[self._known(index, "volume")]["affine"]
        return None if stated is None else np.array(json.loads(stated))

    def spacing_mm(self, index: int) -> tuple[float, float, float] | None:
        """Return the distance of voxels of a volume in mm along d, h, w; None where nobody says."""
        row = self._volume_rows[self._known(index, "volume")]
        d, h, w = (float(row[f"spacing_{axis}_mm"]) for axis in ("slice", "row", "col"))
        return None if d != d else (d, h, w)

    def crop(self, index: int, start: Sequence[int], size: Sequence[int]) -> Int16[np.ndarray, "d h w"]:
        """Return a part of a volume: `size` voxels along d, h, w from `start` on.

        Raises:
            IndexError: The part is not inside the volume, or there is no such volume.
            UserError: The file is missing or damaged, or the store holds no volumes.
        """
        return self._region(VOLUMES, index, self._inside(index, start, size))

    def read_labels(self, index: int) -> tuple[Shaped[np.ndarray, "d h w"], dict[int, str]]:
        """Return the label map of a volume (uint8 or uint16) and the name of each of its values.

        Raises:
            UserError: The volume has no label map, or as for `crop`.
        """
        shape = self.shape(index)
        return self.crop_labels(index, (0, 0, 0), shape), self.structures(index)

    def crop_labels(self, index: int, start: Sequence[int], size: Sequence[int]) -> Shaped[np.ndarray, "d h w"]:
        """Return a part of a volume's label map; see `crop`."""
        region = self._inside(index, start, size)
        if not self.has_labels(index):
            name = self._volume_rows[index]["image_id"]
            raise UserError(f"The volume {name} has no label map.", self.path, "Use one that `store.masks` lists.")
        return self._region(LABELS, index, region)

    def has_labels(self, index: int) -> bool:
        """Tell whether a volume has a label map."""
        return index in self._structures

    def structures(self, index: int) -> dict[int, str]:
        """Return value -> name of what a volume's label map names; nothing where there is none."""
        return dict(self._structures.get(index, {}))

    def read_clip(self, index: int) -> Clip:
        """Return a clip by its number (`images["index"]`)."""
        from medvlp.types import Clip

        row = self._volume_rows[self._known(index, "video")]
        return Clip(
            array=self._region(CLIPS, index, (slice(0, row["frames"]),)),
            fps=None if row["fps"] != row["fps"] else row["fps"],
            provenance={
                "store": self.hash,
                "image_id": row["image_id"],
                "height": row["height"],
                "width": row["width"],
            },
        )

    def read_frames(self, index: int, start: int, stop: int) -> Shaped[np.ndarray, "f h w *c"]:
        """Return frames `start` to `stop - 1` of a clip.

        Raises:
            IndexError: They are not inside the clip, or there is no such clip.
            UserError: The file is missing or damaged, or the store holds no clips.
        """
        frames = self._volume_rows[self._known(index, "video")]["frames"]
        if not 0 <= start < stop <= frames:
            raise IndexError(f"frames {start} to {stop} are not inside a clip of {frames}")
        return self._region(CLIPS, index, (slice(start, stop),))

    @cached_property
    def _volume_rows(self) -> dict[int, dict[str, Any]]:
        """Facts of each volume or clip by its number; missing values are None, NaN in columns of reals."""
        names = ["index", "image_id", "depth", "height", "width", "frames", "affine", "intensity", "hu_applied", "fps"]
        names += ["spacing_slice_mm", "spacing_row_mm", "spacing_col_mm"]
        found: dict[int, dict[str, Any]] = {}
        for record in self.images[names].astype(object).to_dict("records"):
            row: dict[str, Any] = {str(name): value for name, value in record.items()}
            for name in ("affine", "intensity", "hu_applied"):
                row[name] = None if row[name] != row[name] else row[name]
            if self.kind == "volume":
                row["shape"] = (int(row["depth"]), int(row["height"]), int(row["width"]))
            else:
                row |= {name: int(row[name]) for name in ("frames", "height", "width")}
            found[int(row["index"])] = row
        return found

    @cached_property
    def _structures(self) -> dict[int, dict[int, str]]:
        """Value -> name, in each volume that has a label map."""
        found: dict[int, dict[int, str]] = {}
        for index, value, label in self.masks[["index", "value", "label"]].itertuples(index=False):
            found.setdefault(int(index), {})[int(value)] = label
        return found

    def _known(self, index: int, kind: str) -> int:
        if self.kind != kind:
            self._refuse(kind)
        if index not in self._volume_rows:
            raise IndexError(f"{self.path} has no {kind} {index}")
        return int(index)

    def _inside(self, index: int, start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
        shape = self.shape(index)
        ends = [int(low) + int(length) for low, length in zip(start, size, strict=True)]
        if min(start) < 0 or min(size) < 1 or any(end > whole for end, whole in zip(ends, shape, strict=True)):
            raise IndexError(f"{tuple(size)} voxels from {tuple(start)} are not inside a volume of {shape}")
        return tuple(slice(int(low), end) for low, end in zip(start, ends, strict=True))

    def _region(self, group: str, index: int, region: tuple[slice, ...]) -> Shaped[np.ndarray, " ..."]:
        folder = array_folder(self.path / group, index)
        axes = clip_axes(self.config) if group == CLIPS else 3
        name = f"{group}/{folder.name}"
        with self._reading(name):
            return self._arrays.region(name, region, shard_file(folder, 0, axes))

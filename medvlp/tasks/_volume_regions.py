"""Where the labels of a task are in the volumes of a store: classes of voxels from their label maps.

Guarantee: a structure that a label map does not name is not known of the volume, never taken as absent; a label of
several structures is known where all are that the store has at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError, nearest
from medvlp.tasks._regions import regions_of

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

    from medvlp.config.task import LabelConfig
    from medvlp.store.array_store import Store

KEPT_MAPS = 8
"""Label maps held in memory."""


class VolumeRegions:
    """Classes of voxels, by rows of the images table.

    Args:
        store: Store of volumes with label maps.
        labels: The task's labels; `regions` are structures, several of one label are united.
        task: Name of the task, for errors.

    Raises:
        UserError: The store holds no volumes or label maps, none of a label's names, or a structure is of two labels.
    """

    def __init__(self, store: Store, labels: Sequence[LabelConfig], task: str) -> None:
        self.store, self.labels = store, labels
        where = f"task {task}, data set {store.dataset}"
        if store.kind != "volume":
            raise UserError(
                "The task outlines structures of volumes, and the store holds none.", where, "Use type: segmentation."
            )
        names = {str(name) for name in store.masks["label"]}
        if not names:
            raise UserError("The store has no label maps.", where, "Prepare the data set with its masks.")
        self._class_of: dict[str, int] = {}
        self._needed = [len(names & set(regions_of(label))) for label in labels]
        for number, label in enumerate(labels, 1):
            wanted = regions_of(label)
            if not names & set(wanted):
                raise UserError(
                    f"The store has no structure '{wanted[0]}'.{nearest(wanted[0], sorted(names))}",
                    where,
                    f"Name structures in `regions` of the label '{label.name}': {', '.join(sorted(names))}.",
                )
            for name in wanted:
                if name in self._class_of:
                    fix = "A voxel has one label: give the structure to one of them, or make a task of each."
                    raise UserError(f"The structure '{name}' belongs to two labels of the task.", where, fix)
                self._class_of[name] = number
        self._places = store.images["index"].to_numpy()
        self._read = lru_cache(KEPT_MAPS)(self._classes)

    def marked(self) -> Float[np.ndarray, "n k"]:
        """Return for every row of the images table 1 where a label has voxels, 0 where none, NaN where unknown."""
        found = np.full((len(self._places), len(self.labels)), np.nan)
        named = np.zeros(found.shape, dtype=np.int64)
        row_of = {str(image): row for row, image in enumerate(self.store.images["image_id"])}
        table = self.store.masks
        for image, name, voxels in zip(table["image_id"], table["label"], table["voxels"], strict=True):
            number = self._class_of.get(str(name))
            if number is not None and str(image) in row_of:
                at = row_of[str(image)], number - 1
                found[at] = np.fmax(found[at], float(voxels > 0))
                named[at] += 1
        return np.where(named == self._needed, found, np.nan)

    def classes(self, row: int) -> UInt8[np.ndarray, "d h w"]:
        """Return the class of each voxel of a volume: 0, or 1 + the place of its label; it must not be changed."""
        return self._read(int(row))

    def _classes(self, row: int) -> UInt8[np.ndarray, "d h w"]:
        values, names = self.store.read_labels(int(self._places[row]))
        table = np.zeros(max(int(values.max()), max(names, default=0)) + 1, np.uint8)
        for value, name in names.items():
            table[value] = self._class_of.get(name, 0)
        return table[values]

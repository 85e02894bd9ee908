"""Where the labels of a task are in the images of a store: masks, or boxes filled, on the stored square.

Guarantee: a region is what the store holds, under the names that the task gives; several of one label are united. Runs
and masks turn into each other without loss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medvlp.errors import UserError, nearest
from medvlp.io.masks import to_stored_region
from medvlp.io.stored import stored_transform

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, UInt8

    from medvlp.config.preprocessing import StoredImageConfig
    from medvlp.config.task import LabelConfig
    from medvlp.store.array_store import Store


def regions_of(label: LabelConfig) -> tuple[str, ...]:
    """Return the names that a label's boxes or masks have in the data set."""
    return label.regions or (label.positive,)


def runs_of(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, " r"]:
    """Return start and length of each run of a mask, in row-major order."""
    edges = np.flatnonzero(np.diff(mask.reshape(-1).astype(np.int8), prepend=0, append=0))
    runs = edges.reshape(-1, 2)
    return np.stack([runs[:, 0], runs[:, 1] - runs[:, 0]], axis=1).reshape(-1)


def masks_of(runs: Sequence[Int[np.ndarray, " r"]], side: int) -> Bool[np.ndarray, "m s s"]:
    """Return the masks of runs on a square: the inverse of `runs_of`."""
    changes = np.zeros((len(runs), side * side + 1), dtype=np.int8)
    for change, own in zip(changes, runs, strict=True):
        starts, lengths = np.asarray(own, dtype=np.int64).reshape(-1, 2).T
        change[starts] += 1
        change[starts + lengths] -= 1
    return np.cumsum(changes[:, :-1], axis=1, dtype=np.int8).astype(bool).reshape(-1, side, side)


class RegionReader:
    """Regions of a task's labels, by rows of the images table.

    Args:
        store: The store.
        labels: The task's labels.
        target: What a region is.
        legacy_boxes: As BenchX draws boxes; see `SegmentationConfig`.
        task: Name of the task, for errors.

    Raises:
        UserError: The store has no masks (boxes), or none of a label's names.
    """

    def __init__(
        self,
        store: Store,
        labels: Sequence[LabelConfig],
        target: Literal["masks", "boxes"],
        legacy_boxes: Literal["size", "corners"] | None,
        task: str,
    ) -> None:
        self.store, self.labels, self.legacy_boxes = store, labels, legacy_boxes
        self._masks: dict[str, list[tuple[int, int]]] = {}
        self._boxes: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self._ids = store.images["image_id"].astype(str).to_numpy()
        names = self._read_masks() if target == "masks" else self._read_boxes()
        where = f"task {task}, data set {store.dataset}"
        if not names:
            other = "boxes" if target == "masks" else "masks"
            fix = f"Use a store with {target}; `segmentation.target: {other}` takes {other}."
            raise UserError(f"The store has no {target}.", where, fix)
        for label in labels:
            wanted = regions_of(label)
            if not names & set(wanted):
                raise UserError(
                    f"The store has no {target} named '{wanted[0]}'.{nearest(wanted[0], sorted(names))}",
                    where,
                    f"Name them in `regions` of the label '{label.name}'; there are: {', '.join(sorted(names))}.",
                )

    def _read_masks(self) -> set[str]:
        table = self.store.masks
        for image, name, index in zip(table["image_id"], table["label"], table["index"], strict=True):
            for k in self._asked(str(name)):
                self._masks.setdefault(str(image), []).append((k, int(index)))
        return set(table["label"].astype(str))

    def _read_boxes(self) -> set[str]:
        names = set()
        for text in self.store.studies["boxes"]:
            for box in json.loads(text or "[]"):
                names.add(str(box["label"]))
                for k in self._asked(str(box["label"])):
                    self._boxes.setdefault(str(box["image_id"]), []).append((k, box))
        return names

    def _asked(self, name: str) -> list[int]:
        return [k for k, label in enumerate(self.labels) if name in regions_of(label)]

    def marked(self) -> tuple[Bool[np.ndarray, "n k"], Bool[np.ndarray, "n k"]]:
        """Return, for every row of the images table, which labels have a region, and which one that is seen.

        A region that the stored square does not show (cropped off) is not seen.
        """
        shape = (len(self._ids), len(self.labels))
        there, seen = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        pixels = dict(zip(self.store.masks["index"], self.store.masks["pixels"], strict=True)) if self._masks else {}
        for row, image in enumerate(self._ids):
            for k, index in self._masks.get(image, ()):
                there[row, k], seen[row, k] = True, seen[row, k] | (pixels[index] > 0)
            for k, box in self._boxes.get(image, ()):
                there[row, k], seen[row, k] = True, seen[row, k] | self._region(box, row).any()
        return there, seen

    def __call__(self, rows: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b k s s"]:
        """Return the regions of images: 1 inside."""
        size = self.store.size
        found = np.zeros((len(rows), len(self.labels), size, size), dtype=np.uint8)
        at = [(i, k, index) for i, row in enumerate(rows) for k, index in self._masks.get(self._ids[row], ())]
        if at:
            for (i, k, _), mask in zip(at, self.store.read_masks(np.array([index for *_, index in at])), strict=True):
                found[i, k] |= mask != 0
        for i, row in enumerate(rows):
            for k, box in self._boxes.get(self._ids[row], ()):
                found[i, k] |= self._region(box, int(row))
        return found

    def _region(self, box: Mapping[str, Any], row: int) -> Bool[np.ndarray, "s s"]:
        image = self.store.images.iloc[row]
        place = int(image["height"]), int(image["width"]), self.store.image_config
        return benchx_region(box, *place, self.legacy_boxes) if self.legacy_boxes else to_stored_region(box, *place)


def benchx_region(
    box: Mapping[str, Any], height: int, width: int, config: StoredImageConfig, rule: Literal["size", "corners"]
) -> Bool[np.ndarray, "s s"]:
    """Return a box as the scripts of BenchX draw it on an image of the stored size.

    Args:
        box: Fields of `medvlp.types.Box`.
        height: Of the file, in pixels.
        width: Likewise.
        config: That of the image.
        rule: size: position and size are cut to whole pixels. corners: both corners are cut to whole pixels and the far
            one is inside; an ellipse is filled as its box; of a polygon the corners are cut and its outline is inside.
    """
    import cv2

    scale_y, scale_x, offset_y, offset_x = stored_transform(height, width, config)
    canvas = np.zeros((config.size, config.size), dtype=np.uint8)
    if rule == "corners" and box.get("shape") == "polygon":
        points = np.asarray(box["points"], dtype=np.float64) * (scale_x, scale_y) + (offset_x, offset_y)
        cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
        return canvas != 0
    left, top = box["x"] * scale_x + offset_x, box["y"] * scale_y + offset_y
    across, down = box["width"] * scale_x, box["height"] * scale_y
    if rule == "corners":
        cv2.rectangle(canvas, (int(left), int(top)), (int(left + across), int(top + down)), 1, cv2.FILLED)
    else:
        canvas[int(top) : int(top) + int(down), int(left) : int(left) + int(across)] = 1
    return canvas != 0

"""Example volumes of the test split, for the report: axial slices as one small picture.

Guarantee: which volumes are shown depends on the store and the tasks alone, each patient once; slices run from the feet
to the head, look as radiologists show them (the patient's right on the left, anterior on top) and have the proportions
that the distances of voxels give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.cells import as_json
from medvlp.config.volumes import PRESETS
from medvlp.store.files import write_atomic

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped, UInt8

    from medvlp.store.array_store import Store
    from medvlp.tasks.base import Samples
    from medvlp.types import Volume

MOST, SLICES, SIDE = 4, 64, 144
"""Volumes of a data set, slices of a volume, and pixels of the longer side of a slice."""
COLUMNS = 8
INDEX = "volumes.json"
WINDOW = "whole"


def write_volumes(stores: Sequence[tuple[Store, Sequence[Samples]]], folder: Path, scratch: Path) -> None:
    """Write `<dataset>/<volume>.png` and `volumes.json`.

    Args:
        stores: Each store of volumes with the test samples of the tasks on it.
        folder: `RESULTS/examples`.
        scratch: Folder on the same disk.
    """
    from medvlp.bench.examples import file_name, write_png

    index: list[dict[str, Any]] = []
    for store, tests in stores:
        for row in _chosen(tests):
            name = str(store.images["image_id"].iloc[row])
            volume = store.read_volume(int(store.images["index"].iloc[row]))
            strip, facts = _strip(volume)
            file = f"{store.dataset}/{file_name(name)}.png"
            write_png(folder / file, strip, scratch)
            lines = {label for samples in tests for label in _present(samples, row)}
            index.append({"sample_id": name, "dataset": store.dataset, "file": file, "labels": sorted(lines)} | facts)
    write_atomic(folder / INDEX, as_json(index).encode(), scratch)


def _present(samples: Samples, row: int) -> list[str]:
    """Return the labels that a task knows to be present in a volume."""
    places = np.flatnonzero(samples.rows == row)
    return [samples.label_names[k] for at in places for k in np.flatnonzero(samples.labels[at] == 1).tolist()]


def _chosen(tests: Sequence[Samples]) -> list[int]:
    """Return rows of the images table: the volumes that show most labels, of equal ones by a hash of their name."""
    counts: dict[int, tuple[int, bytes, str]] = {}
    for samples in tests:
        shown = (samples.labels == 1).sum(axis=1)
        for row, name, patient, number in zip(
            samples.rows.tolist(), samples.sample_ids, samples.patient_ids, shown.tolist(), strict=True
        ):
            before = counts.get(row, (0, b"", patient))[0]
            counts[row] = before - number, hashlib.sha256(name.encode()).digest(), patient
    chosen: dict[str, int] = {}
    for row, (_, _, patient) in sorted(counts.items(), key=lambda item: item[1][:2]):
        if len(chosen) < MOST:
            chosen.setdefault(patient, row)
    return sorted(chosen.values())


def _strip(volume: Volume) -> tuple[UInt8[np.ndarray, "h w"], dict[str, Any]]:
    """Return the slices of a volume side by side and below each other, and what places them."""
    depth, height, width = volume.array.shape
    slices = np.unique(np.linspace(0, depth - 1, min(depth, SLICES)).round().astype(int))
    _, row_mm, column_mm = volume.spacing_mm or (1.0, 1.0, 1.0)
    scale = SIDE / max(height * row_mm, width * column_mm)
    tile = max(1, round(height * row_mm * scale)), max(1, round(width * column_mm * scale))
    centre, wide = PRESETS[WINDOW]
    if str(volume.intensity) != "hu":
        low, high = np.percentile(volume.array[:: max(1, depth // 32), ::4, ::4], (0.5, 99.5))
        centre, wide = float(low + high) / 2, max(float(high - low), 1.0)
    unit = np.clip((as_tiles(volume.array, slices, tile) - (centre - wide / 2)) / wide, 0, 1)
    facts = {"slices": slices.tolist(), "tile": list(tile), "columns": COLUMNS, "shape": list(volume.array.shape)}
    facts |= {"letters": volume.affine is not None}
    return sheet(np.rint(unit * 255).astype(np.uint8)), facts


def as_tiles(
    array: Shaped[np.ndarray, "d h w"], slices: Int[np.ndarray, " s"], tile: tuple[int, int]
) -> Float[np.ndarray, "s h w"]:
    """Return slices of a volume as they are looked at, at the size of a tile."""
    import cv2

    filters = cv2.INTER_AREA if max(array.shape[1:]) > max(tile) else cv2.INTER_LINEAR
    return np.stack(
        [
            cv2.resize(np.ascontiguousarray(array[at, ::-1, ::-1], dtype=np.float32), tile[::-1], interpolation=filters)
            for at in slices
        ]
    )


def sheet(tiles: Shaped[np.ndarray, "s h w *c"]) -> Shaped[np.ndarray, "H W *c"]:
    """Return tiles in rows of `COLUMNS`; what is left of the last row is 0."""
    number, height, width = tiles.shape[:3]
    rows = -(-number // COLUMNS)
    padded = np.zeros((rows * COLUMNS, *tiles.shape[1:]), tiles.dtype)
    padded[:number] = tiles
    laid = padded.reshape(rows, COLUMNS, *tiles.shape[1:]).swapaxes(1, 2)
    return laid.reshape(rows * height, COLUMNS * width, *tiles.shape[3:])

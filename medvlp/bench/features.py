"""Features of all images of a store, computed once per encoder hash and store hash.

Guarantee: a cached table is whole or absent. Work is kept in parts of fixed size, so that a killed run loses at most
one part and the finished table is bit-identical to an uninterrupted one; two runs at a time do not disturb each other.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvlp.bench.baselines import FEATURES
from medvlp.progress import progress_bar
from medvlp.store.files import write_atomic

if TYPE_CHECKING:
    from jaxtyping import Float32

    from medvlp.store.array_store import Store
    from medvlp.zoo import Encoder

PART_IMAGES = 512
TABLE, IDS, PARTS = "features.npy", "ids.json", "parts"


class FeatureCache:
    """Feature tables in a folder, one sub-folder each: `features.npy` [n d] and `ids.json`, the image of each row.

    Args:
        folder: `RESULTS/features`.
        scratch: Folder on the same disk for files in the making.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch

    def path(self, subject_hash: str, store: Store) -> Path:
        """Return the folder of one table."""
        return self.folder / f"{subject_hash[:16]}-{store.hash[:16]}"

    def of_encoder(
        self, load: Callable[[], Encoder], subject_hash: str, store: Store, name: str
    ) -> Float32[np.ndarray, "n d"]:
        """Return pooled features of an encoder, one row per row of the images table.

        Args:
            load: Returns the encoder; called only if a part is missing.
            subject_hash: Hash of the encoder.
            store: The prepared store.
            name: Name for the progress bar.
        """
        folder = self.path(subject_hash, store)
        if (folder / TABLE).exists():
            return self._open(folder)
        places = store.images["index"].to_numpy()
        starts = range(0, len(places), PART_IMAGES)
        parts = [folder / PARTS / f"{start:09d}-{start + PART_IMAGES:09d}.npy" for start in starts]
        with progress_bar(f"features of {name}", len(places), "images") as advance:
            for start, part in zip(starts, parts, strict=True):
                chunk = places[start : start + PART_IMAGES]
                if not part.exists():
                    self._save(part, load().encode_stored(store.read(chunk)).pooled.float().cpu().numpy())
                advance(len(chunk))
        try:
            self._finish(folder, store, np.concatenate([np.load(part) for part in parts]))
        except FileNotFoundError:
            # Another run finished this table just now and removed the parts.
            if not (folder / TABLE).exists():
                raise
        shutil.rmtree(folder / PARTS, ignore_errors=True)
        return self._open(folder)

    def of_baseline(self, name: str, subject_hash: str, store: Store) -> Float32[np.ndarray, "n d"]:
        """Return the features of a baseline, one row per row of the images table."""
        folder = self.path(subject_hash, store)
        if not (folder / TABLE).exists():
            self._finish(folder, store, FEATURES[name](store))
        return self._open(folder)

    def _finish(self, folder: Path, store: Store, table: np.ndarray) -> None:
        ids = json.dumps(store.images["image_id"].tolist())
        write_atomic(folder / IDS, ids.encode(), self.scratch)
        self._save(folder / TABLE, table)

    def _save(self, path: Path, table: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(table, dtype=np.float32))
        write_atomic(path, buffer.getvalue(), self.scratch)

    @staticmethod
    def _open(folder: Path) -> Float32[np.ndarray, "n d"]:
        return np.load(folder / TABLE)

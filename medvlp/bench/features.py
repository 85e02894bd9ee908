"""Features of all images of a store, computed once per encoder hash and store hash.

Guarantee: a cached table is whole or absent, and finite. Work is kept in parts of fixed size, so that a killed run
loses at most one part and the finished table is bit-identical to an uninterrupted one; several runs at a time share the
parts among them.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvlp.bench.baselines import FEATURES
from medvlp.bench.finite import check_finite
from medvlp.bench.locks import POLL_SECONDS, Locks
from medvlp.progress import Advance, progress_bar
from medvlp.store.files import write_atomic
from medvlp.tasks.base import rows_at_once

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
        locks: Those of the folder of results.
        alive: Called after each part, and while another run is waited for.
    """

    def __init__(self, folder: Path, scratch: Path, locks: Locks, alive: Callable[[], None] = lambda: None) -> None:
        self.folder, self.scratch, self.locks, self.alive = folder, scratch, locks, alive
        self.seconds = 0.0
        """Spent on features by this process so far, waiting for other runs included."""

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

        Raises:
            NotFiniteError: The encoder gives NaN or infinity.
        """
        folder, started = self.path(subject_hash, store), time.monotonic()
        if not (folder / TABLE).exists():
            rows = np.arange(len(store.images))
            parts = {start: self._part_file(folder, start) for start in range(0, len(rows), PART_IMAGES)}

            def compute(start: int) -> None:
                encoder, part = load(), rows[start : start + PART_IMAGES]
                step = rows_at_once(encoder, PART_IMAGES)
                chunks = (part[at : at + step] for at in range(0, len(part), step))
                table = np.concatenate(
                    [encoder.encode_rows(store, chunk).pooled.float().cpu().numpy() for chunk in chunks]
                )
                check_finite(table, "features", f"encoder {name}, data set {store.dataset}")
                self._save(parts[start], table)

            with progress_bar(f"features of {name}", len(parts), f"parts of {PART_IMAGES} images") as advance:
                self._all_parts(folder, parts, compute, advance)
            try:
                if not (folder / TABLE).exists():
                    self._finish(folder, store, np.concatenate([np.load(part) for part in parts.values()]))
            except FileNotFoundError:
                # Another run finished this table just now and removed the parts.
                if not (folder / TABLE).exists():
                    raise
            self.seconds += time.monotonic() - started
        return self._open(folder)

    def _all_parts(
        self, folder: Path, parts: Mapping[int, Path], compute: Callable[[int], None], advance: Advance
    ) -> None:
        """Make all missing parts, leaving to other runs those that they are at."""
        waiting = list(parts)
        while waiting and not (folder / TABLE).exists():
            others = []
            for start in waiting:
                if self._part(folder, start, parts[start], compute):
                    advance(1)
                else:
                    others.append(start)
            if len(others) == len(waiting):
                self.alive()
                time.sleep(POLL_SECONDS)
            waiting = others

    def _part(self, folder: Path, start: int, part: Path, compute: Callable[[int], None]) -> bool:
        """Make a part if it is missing; return False where another run is at it."""
        if part.exists():
            return True
        with self.locks.held(f"features-{folder.name}-{start}") as mine:
            if not mine:
                return False
            if not part.exists() and not (folder / TABLE).exists():
                compute(start)
        self.alive()
        return True

    def of_baseline(self, name: str, subject_hash: str, store: Store) -> Float32[np.ndarray, "n d"]:
        """Return the features of a baseline, one row per row of the images table."""
        folder = self.path(subject_hash, store)
        if not (folder / TABLE).exists():
            self._finish(folder, store, FEATURES[name](store))
        return self._open(folder)

    @staticmethod
    def _part_file(folder: Path, start: int) -> Path:
        return folder / PARTS / f"{start:09d}-{start + PART_IMAGES:09d}.npy"

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
        shutil.rmtree(folder / PARTS, ignore_errors=True)
        return np.load(folder / TABLE)

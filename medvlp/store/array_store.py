"""A prepared store, read only.

Guarantee: opening reads `store.json` alone; tables and array are opened on first use. A `Store` may be shared by
threads, pickled (it travels as its path) and used after a fork; images come back in the order asked for.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.sources.cards import Card, read_card
from medvlp.store import manifest
from medvlp.store.shards import ARRAY, PROGRESS, shard_file

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Int, Shaped

_inherited_by_fork = False


def _note_fork() -> None:
    global _inherited_by_fork
    _inherited_by_fork = "tensorstore" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)

INDEX_CACHE_BYTES = 32 << 20
"""Room for the indices of some thousand shards, so that an image costs one read and not two."""


def read_meta(path: Path) -> dict[str, Any]:
    """Return `store.json` of a finished store.

    Raises:
        UserError: There is no store, it is unfinished or damaged, or another version of medvlp wrote its format.
    """
    file = path / manifest.META
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        version = meta["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        if (path / PROGRESS).is_dir():
            raise UserError(
                "The store is not finished.", path, "Run the same `medvlp data prepare` command again; it goes on."
            ) from None
        raise UserError("There is no prepared store.", path, "Make one with `medvlp data prepare`.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The store is damaged: {error!r}.", file, "Prepare it again in another folder.") from None
    except OSError as error:
        raise UserError(f"The store cannot be read: {error.strerror}.", file, "Check the access rights.") from None
    if version != manifest.FORMAT_VERSION:
        older = isinstance(version, int) and version < manifest.FORMAT_VERSION
        fix = "Prepare the data set again in another folder." if older else "Update medvlp."
        raise UserError(
            f"The store has format version {version}; this medvlp reads version {manifest.FORMAT_VERSION}.", path, fix
        )
    return meta


class Store:
    """A prepared store.

    Attributes:
        path: Its folder.
        meta: Contents of `store.json`.
        hash: SHA-256 of its content, the same on every machine.
        dataset: Name of the data set.
        image_config: How the images were made from their files.
        size: Side of the images in pixels.
        label_names: Labels in the order of the card.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.meta = read_meta(self.path)
        self.hash: str = self.meta["hash"]
        self.dataset: str = self.meta["dataset"]
        self.image_config = StoredImageConfig.model_validate(self.meta["preprocessing"])
        self.size = self.image_config.size
        self.label_names: list[str] = list(self.meta["labels"])
        self._lock = threading.Lock()
        self._handle: Any = None
        self._shards_checked = False

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a finished store.

        Raises:
            UserError: There is none, it is unfinished or damaged, or its format has another version.
        """
        return cls(Path(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path,)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, dataset={self.dataset!r}, images={len(self)}, hash={self.hash[:12]})"

    def __len__(self) -> int:
        """Number of good images."""
        return int(self.meta["counts"]["images"])

    @cached_property
    def card(self) -> Card:
        """The data card, as it was when the store was made."""
        return read_card(self.path / manifest.CARD)

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row per good image; `index` is its row in the array. Columns: `medvlp.store.manifest.IMAGE_COLUMNS`."""
        return self._table(manifest.IMAGES)

    @cached_property
    def studies(self) -> pd.DataFrame:
        """One row per study. Columns: `medvlp.store.manifest.STUDY_COLUMNS`, then `label:<name>`."""
        return self._table(manifest.STUDIES)

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        try:
            return pd.read_parquet(self.path / name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"A table of the store is damaged: {error}", self.path / name, "Prepare it again in another folder."
            ) from error

    def samples(self) -> pd.DataFrame:
        """Return one row per image: the columns of `images`, then those of its study in `studies`."""
        own = [name for name in self.studies.columns if name == "study_id" or name not in self.images.columns]
        return self.images.merge(self.studies[own], on="study_id", how="left", validate="many_to_one")

    def read(self, indices: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b h w"]:
        """Return images by their array row (`images["index"]`), in the order given, repeats allowed.

        Args:
            indices: Rows of the array.

        Returns:
            uint8 or uint16 `[b h w]`, 0 black to full scale white.

        Raises:
            IndexError: A row is outside the array.
            UserError: A shard is missing on disk or damaged.
        """
        import numpy as np

        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        rows = int(self.meta["counts"]["array_rows"])
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= rows):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} asked for, the array of {self.path} has {rows}")
        if not len(wanted):
            return np.empty((0, self.size, self.size), dtype=self.image_config.dtype)
        return self._read(wanted)

    def _read(self, wanted: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b h w"]:
        import numpy as np

        try:
            self._check_shards()
            if _inherited_by_fork:  # tensorstore aborts a forked child of a process that has used it
                return np.asarray(self._zarr_array.oindex[wanted])
            return self._array()[wanted].read().result()
        except (ValueError, OSError) as error:
            raise UserError(
                f"The images of the store cannot be read: {error}",
                self.path / ARRAY,
                "Prepare it again in another folder.",
            ) from error

    def _check_shards(self) -> None:
        """Refuse a store of which shards are missing (half a copy): Zarr would read them as black."""
        if self._shards_checked:
            return
        shard_images = self.meta["made_from"]["settings"]["shard_images"]
        visible = self.images.loc[self.images["mean"] > 0, "index"]
        for number in sorted(set(visible // shard_images)):
            file = shard_file(self.path, number)
            if not file.exists():
                raise UserError("A shard of the store is missing.", file, "Copy the store again, or prepare it again.")
        self._shards_checked = True

    @cached_property
    def _zarr_array(self) -> Any:
        import zarr

        return zarr.open_array(self.path / ARRAY, mode="r")

    def _array(self) -> Any:
        """Return the tensorstore handle."""
        import tensorstore as ts

        with self._lock:
            if self._handle is None:
                spec = {
                    "driver": "zarr3",
                    "kvstore": {"driver": "file", "path": str((self.path / ARRAY).resolve())},
                    "recheck_cached_metadata": "open",
                    "recheck_cached_data": "open",
                }
                context = ts.Context({"cache_pool": {"total_bytes_limit": INDEX_CACHE_BYTES}})
                self._handle = ts.open(spec, open=True, read=True, context=context).result()
            return self._handle

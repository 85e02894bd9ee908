"""A prepared store, read only.

Guarantee: opening reads `store.json` alone; tables and array are opened on first use. A `Store` may be shared by
threads, pickled (it travels as its path) and used after a fork; images come back in the order asked for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from medvlp.config.preprocessing import AnyStored, StoredImageConfig, StoredVideoConfig, StoredVolumeConfig
from medvlp.errors import UserError
from medvlp.sources.cards import Card, read_card
from medvlp.store import manifest
from medvlp.store.open_arrays import OpenArrays
from medvlp.store.remote import COPYING, is_remote, place, reaching, read_bytes, sizes
from medvlp.store.shards import IMAGES_ARRAY, MASKS_ARRAY, PROGRESS, image_layout, shard_file
from medvlp.store.stored_volumes import StoredVolumes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Int, Shaped, UInt8


def read_meta(path: Path) -> dict[str, Any]:
    """Return `store.json` of a finished store.

    Raises:
        UserError: There is no store, it is unfinished or damaged, or another version of medvlp wrote its format.
    """
    file = path / manifest.META
    try:
        meta = json.loads(read_bytes(file))
        version = meta["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        if (path / COPYING).exists():
            raise UserError(
                "The store is only half copied.", path, "Run the same `medvlp data copy` command again; it goes on."
            ) from None
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


_CONFIGS: dict[str, type[AnyStored]] = {"volume": StoredVolumeConfig, "video": StoredVideoConfig}


class Store(StoredVolumes):
    """A prepared store.

    Attributes:
        path: Its folder.
        meta: Contents of `store.json`.
        hash: SHA-256 of its content, the same on every machine.
        dataset: Name of the data set.
        kind: What it holds: image, volume, video, or none of these.
        config: How images, volumes or clips were made from their files.
        label_names: Labels in the order of the card.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = place(path)
        self.meta = read_meta(self.path)
        self.hash: str = self.meta["hash"]
        self.dataset: str = self.meta["dataset"]
        self.kind: str = self.meta["kind"]
        self.config = _CONFIGS.get(self.kind, StoredImageConfig).model_validate(self.meta["preprocessing"])
        self.label_names: list[str] = list(self.meta["labels"])
        self._arrays = OpenArrays(self.path)
        self._checked: set[str] = set()

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a finished store.

        Raises:
            UserError: There is none, it is unfinished or damaged, or its format has another version.
        """
        return cls(place(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (str(self.path) if is_remote(self.path) else self.path,)

    def __repr__(self) -> str:
        what = f"{manifest.UNITS[self.kind]}={len(self)}, hash={self.hash[:12]}"
        return f"Store({str(self.path)!r}, dataset={self.dataset!r}, {what})"

    def __len__(self) -> int:
        """Number of good images, volumes or clips."""
        return int(self.meta["counts"]["images"])

    @property
    def image_config(self) -> StoredImageConfig:
        """How the images were made from their files.

        Raises:
            UserError: The store holds volumes or clips.
        """
        if not isinstance(self.config, StoredImageConfig):
            self._refuse("image")
        return self.config

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.image_config.size

    @cached_property
    def card(self) -> Card:
        """The data card, as it was when the store was made."""
        with reaching(self.path):
            return read_card(self.path / manifest.CARD)

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row per good image, volume or clip. Columns: `medvlp.store.manifest.IMAGE_COLUMNS`."""
        return self._table(manifest.IMAGES)

    @cached_property
    def studies(self) -> pd.DataFrame:
        """One row per study. Columns: `medvlp.store.manifest.STUDY_COLUMNS`, then `label:<name>`."""
        return self._table(manifest.STUDIES)

    @cached_property
    def masks(self) -> pd.DataFrame:
        """One row per good mask or structure of a label map. Columns: `medvlp.store.manifest.MASK_COLUMNS`."""
        return self._table(manifest.MASKS)

    @cached_property
    def questions(self) -> pd.DataFrame:
        """One row per question, none where the data set has no questions. Columns: `manifest.QUESTION_COLUMNS`."""
        if not self.meta["counts"].get("questions"):
            import pandas as pd

            return pd.DataFrame(columns=list(manifest.QUESTION_COLUMNS))
        return self._table(manifest.QUESTIONS)

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        file = self.path / name
        try:
            return pd.read_parquet(io.BytesIO(read_bytes(file)) if is_remote(file) else file)
        except (OSError, ValueError) as error:
            raise UserError(
                f"A table of the store is damaged: {error}", self.path / name, "Prepare it again in another folder."
            ) from error

    def samples(self) -> pd.DataFrame:
        """Return one row per image: the columns of `images`, then those of its study in `studies`."""
        own = [name for name in self.studies.columns if name == "study_id" or name not in self.images.columns]
        return self.images.merge(self.studies[own], on="study_id", how="left", validate="many_to_one")

    def read(self, indices: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b h w *c"]:
        """Return images by their array row (`images["index"]`), in the order given, repeats allowed.

        Args:
            indices: Rows of the array.

        Returns:
            uint8 or uint16 `[b h w]`, 0 black to full scale white, or `[b h w 3]`, red, green and blue.

        Raises:
            IndexError: A row is outside the array.
            UserError: A shard is missing on disk or damaged, or the store holds volumes or clips.
        """
        import numpy as np

        shape = image_layout(0, 1, self.image_config).shape
        wanted = self._rows(indices, int(self.meta["counts"]["array_rows"]), IMAGES_ARRAY)
        if not len(wanted):
            return np.zeros(shape, dtype=self.image_config.dtype)
        with self._reading(IMAGES_ARRAY):
            shard_images = self.meta["made_from"]["settings"]["shard_images"]
            self._check_shards(IMAGES_ARRAY, self.images["index"], shard_images, len(shape))
            return self._arrays.rows(IMAGES_ARRAY, wanted)

    def read_masks(self, wanted: Int[np.ndarray, " m"] | Sequence[str]) -> UInt8[np.ndarray, "m s s"]:
        """Return masks of images or clips, 1 inside and 0 outside, where the stored pixels are.

        Args:
            wanted: Rows (`masks["index"]`), or image ids: then the masks of these images, in the order of the ids and
                of `masks`.

        Raises:
            IndexError: A row is no mask.
            UserError: A file is missing or damaged, or the store holds volumes (see `read_labels`).
        """
        import numpy as np

        if isinstance(self.config, StoredVolumeConfig):
            self._refuse("image")
        table = self.masks
        if isinstance(next(iter(wanted), None), str):
            of_image = table.groupby("image_id", sort=False)["index"].apply(list).to_dict()
            wanted = np.array([row for name in wanted for row in of_image.get(name, [])], dtype=np.int64)
        rows = np.asarray(wanted, dtype=np.int64).reshape(-1)
        unknown = np.setdiff1d(rows, table["index"].to_numpy())
        if len(unknown):
            raise IndexError(f"row {unknown[0]} of {self.path / MASKS_ARRAY} is no mask")
        if not len(rows):
            return np.zeros((0, self.config.size, self.config.size), dtype=np.uint8)
        with self._reading(MASKS_ARRAY):
            self._check_shards(MASKS_ARRAY, table["index"], self.meta["counts"]["shard_masks"], 3)
            return self._arrays.rows(MASKS_ARRAY, rows)

    def _refuse(self, kind: str) -> NoReturn:
        raise UserError(
            f"The store holds {manifest.UNITS[self.kind]}, but {manifest.UNITS[kind]} are needed.",
            self.path,
            "Use another store.",
        )

    @staticmethod
    def _rows(indices: Int[np.ndarray, " b"], rows: int, name: str) -> Int[np.ndarray, " b"]:
        import numpy as np

        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= rows):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} asked for, {name} has {rows}")
        return wanted

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            raise UserError(
                f"{manifest.UNITS[self.kind].capitalize()} of the store cannot be read: {error}",
                self.path / name,
                "Copy the store again, or prepare it again in another folder.",
            ) from error

    def _check_shards(self, name: str, rows: pd.Series, shard_rows: int, axes: int) -> None:
        """Refuse a store of which shards are missing (half a copy): Zarr would read them as 0."""
        if name in self._checked:
            return
        array = self.path / name
        there = sizes(array) if is_remote(array) else None  # one question for all, not one for each
        for number in sorted(set(rows // shard_rows)):
            file = shard_file(array, number, axes)
            if not (file.exists() if there is None else file.relative_to(array).as_posix() in there):
                raise UserError("A shard of the store is missing.", file, "Copy the store again, or prepare it again.")
        self._checked.add(name)

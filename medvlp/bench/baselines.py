"""Baselines without an encoder: what metadata, simple image statistics and prevalence alone tell.

Guarantee: features hold no label. They go through the same linear probe, with the same choice of C, as every encoder,
so that an encoder's number can be read against them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from medvlp.config.base import json_sha256

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from medvlp.store.array_store import Store

VERSION = 1
"""Rises with every change that can move a baseline's number."""
HISTOGRAM_BINS = 32
THUMBNAIL = 16
IMAGES_AT_ONCE = 1024
LOCATION_PRIOR = "location_prior"
"""The baseline of grounding, without features: the mean region of the training images, whatever the image."""


def metadata(store: Store) -> Float[np.ndarray, "n d"]:
    """Return view and sex as one-hot columns (missing is a category), age, image height, width and their ratio.

    A missing age is the median of the training split, with a column that says so.
    """
    frame = store.samples().set_index("image_id").loc[store.images["image_id"]]
    columns = [_one_hot(frame[name]) for name in ("view", "sex")]
    age = frame["age"].to_numpy(dtype=np.float64)
    known = age[(frame["split"] == "train").to_numpy() & ~np.isnan(age)]
    columns.append(np.isnan(age)[:, None].astype(np.float64))
    columns.append(np.where(np.isnan(age), np.median(known) if len(known) else 0.0, age)[:, None])
    sides = frame[["height", "width"]].to_numpy(dtype=np.float64)
    columns += [sides, sides[:, :1] / sides[:, 1:]]
    return np.concatenate(columns, axis=1)


def _one_hot(values: pd.Series) -> Float[np.ndarray, "n c"]:
    names = values.astype(object).where(values.notna(), "missing").astype(str).to_numpy()
    return (names[:, None] == np.unique(names)[None]).astype(np.float64)


def _per_image(store: Store, function: Callable[[np.ndarray], np.ndarray]) -> Float[np.ndarray, "n d"]:
    places = store.images["index"].to_numpy()
    parts = []
    for start in range(0, len(places), IMAGES_AT_ONCE):
        pixels = store.read(places[start : start + IMAGES_AT_ONCE])
        unit = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
        parts.append(function(unit if unit.ndim == 3 else unit.mean(axis=-1)))
    return np.concatenate(parts)


def mean(store: Store) -> Float[np.ndarray, "n 1"]:
    """Return the mean grey value of each image, 0 to 1."""
    return _per_image(store, lambda pixels: pixels.mean(axis=(1, 2), dtype=np.float64)[:, None])


def histogram(store: Store) -> Float[np.ndarray, "n 32"]:
    """Return the share of pixels in 32 equal ranges of grey."""

    def shares(pixels: np.ndarray) -> np.ndarray:
        counts = [np.histogram(image, bins=HISTOGRAM_BINS, range=(0, 1))[0] for image in pixels]
        return np.stack(counts) / pixels[0].size

    return _per_image(store, shares)


def pixels16(store: Store) -> Float[np.ndarray, "n 256"]:
    """Return each image reduced to 16 × 16 by area, row-major."""
    import cv2

    def thumbnails(pixels: np.ndarray) -> np.ndarray:
        small = [cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA) for image in pixels]
        return np.stack(small).reshape(len(pixels), -1)

    return _per_image(store, thumbnails)


def majority(store: Store) -> Float[np.ndarray, "n 0"]:
    """Return no feature at all: the probe is left with the prevalence among the training samples."""
    return np.zeros((len(store.images), 0))


FEATURES: dict[str, Callable[[Store], np.ndarray]] = {
    "metadata": metadata,
    "image_statistics:mean": mean,
    "image_statistics:histogram": histogram,
    "image_statistics:pixels16": pixels16,
    "majority": majority,
    LOCATION_PRIOR: majority,
}
"""Name in tables -> features; the part before the colon is the name in a suite's `baselines`."""


def baseline_names(wanted: tuple[str, ...]) -> list[str]:
    """Return the names in tables of the baselines that a suite asks for, `random` aside."""
    return [name for name in FEATURES if name.split(":")[0] in wanted]


def baseline_hash(name: str) -> str:
    """Return the hash that stands for the encoder hash in cells of a baseline."""
    return json_sha256({"baseline": name, "version": VERSION})

"""Distributions on the page of a store: grey values or HU, brightness, slice distances, ages, and categories.

Guarantee: what is counted are the stored numbers; a sample of them where there are many, drawn by the page's seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.html.charts import histogram
from medvlp.html.numbers import count
from medvlp.store import manifest

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Shaped, UInt8

    from medvlp.store.array_store import Store

GREY_IMAGES, HU_VOLUMES, SLICES_OF_VOLUME = 512, 16, 12
HU_EDGES = np.arange(-1100, 1601, 50)


def eight_bits(pixels: Shaped[np.ndarray, "b h w *c"]) -> UInt8[np.ndarray, "b h w *c"]:
    """Return stored pixels as they are shown."""
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def charts(store: Store, samples: pd.DataFrame, rng: np.random.Generator) -> Iterator[tuple[str, str, Any]]:
    """Yield title, note and chart of each distribution.

    Args:
        store: The store.
        samples: Its images joined with their studies.
        rng: Decides which images are counted where there are many.
    """
    if not len(samples):
        return
    unit = manifest.UNITS[store.kind]
    if store.kind == "image":
        yield _grey_values(store, samples, rng)
    elif store.kind == "volume":
        yield from _hounsfield(store, samples, rng)
    for column, title, label, bins, least in (
        ("mean", "Mean brightness", "Mean grey value (0 to 1)", 30, 1.0),
        ("spacing_slice_mm", "Slice distance", "mm", 20, 5.0),
        ("depth", "Slices", "Slices of a volume", 20, 10.0),
        ("frames", "Length", "Frames of a clip", 20, 10.0),
        ("age", "Age", "Years", 20, 100.0),
    ):
        values = samples[column].dropna().to_numpy(dtype="float64")
        if not len(values) or (column == "mean" and store.kind == "volume"):
            continue
        counts, edges = np.histogram(values, bins=bins, range=(0.0, max(least, float(values.max()))))
        note = f"{count(len(values))} of {count(len(samples))} {unit}"
        yield title, note, histogram(counts.tolist(), edges.tolist(), label, unit.capitalize(), title)


def _grey_values(store: Store, samples: pd.DataFrame, rng: np.random.Generator) -> tuple[str, str, Any]:
    rows = np.sort(rng.choice(len(samples), size=min(GREY_IMAGES, len(samples)), replace=False))
    totals = np.zeros(64)
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        pixels = eight_bits(store.read(samples["index"].to_numpy()[part]))
        totals += np.bincount(pixels.ravel() >> 2, minlength=64)
    share = (100 * totals / totals.sum()).tolist()
    colour = ", all three colours together" if store.image_config.colour == "keep" else ""
    about = f"of {count(len(rows))} images; 0 is black, 255 white, padding included{colour}"
    edges = np.arange(0, 257, 4).tolist()
    return "Grey values", about, histogram(share, edges, "Grey value", "Share of pixels, %", "Grey values")


def _hounsfield(store: Store, samples: pd.DataFrame, rng: np.random.Generator) -> Iterator[tuple[str, str, Any]]:
    in_hu = samples.loc[samples["intensity"] == "hu", "index"].to_numpy()
    if not len(in_hu):
        return
    chosen = np.sort(rng.choice(in_hu, size=min(HU_VOLUMES, len(in_hu)), replace=False))
    totals = np.zeros(len(HU_EDGES) - 1)
    for index in chosen.tolist():
        depth, height, width = store.shape(index)
        for at in np.unique(np.linspace(0, depth - 1, min(SLICES_OF_VOLUME, depth)).astype(int)).tolist():
            voxels = store.crop(index, (at, 0, 0), (1, height, width))
            totals += np.histogram(np.clip(voxels, HU_EDGES[0], HU_EDGES[-1]), bins=HU_EDGES)[0]
    share = (100 * totals / totals.sum()).tolist()
    about = f"of slices of {count(len(chosen))} volumes; what lies outside is in the first or last bar"
    yield "HU", about, histogram(share, HU_EDGES.tolist(), "HU", "Share of voxels, %", "HU")


def groups(kind: str, samples: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, int, str]]]]:
    """Yield title and the most frequent categories, with their counts, of each property of the images."""
    size = samples["width"].astype("Int64").astype(str) + " × " + samples["height"].astype("Int64").astype(str)
    columns = {"View": samples["view"], "Sex": samples["sex"], "Split": samples["split"]}
    columns |= {"Columns × rows" if kind == "volume" else "Size of the file, px": size}
    columns |= {"Modality": samples["modality"], "Site": samples["site"], "Values": samples["intensity"]}
    for title, column in columns.items():
        counts = column.astype(object).where(column.notna(), "not stated").value_counts()
        if len(counts) == 1 and counts.index[0] == "not stated":
            continue
        shown = [
            (str(name), int(k), f"{count(int(k))} ({100 * k / len(samples):.1f} %)")
            for name, k in counts.head(8).items()
        ]
        rest = int(counts.iloc[8:].sum())
        yield title, shown + ([(f"{len(counts) - 8} others", rest, count(rest))] if rest else [])

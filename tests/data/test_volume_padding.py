"""What lies outside a volume never changes what its tissue is mapped to, also where its own range is the window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import volume_source as raw
from torch import nn
from volume_source import SHAPES

from medvlp.config.data import VolumeAugmentConfig
from medvlp.config.volumes import VolumeInputConfig
from medvlp.data.demands import VolumeView
from medvlp.data.inputs import InputLoader
from medvlp.data.transforms import normalise
from medvlp.data.volume_augment import on_device
from medvlp.data.volume_input import input_voxels, stored_input_voxels
from medvlp.data.volume_loader import VolumeLoader
from medvlp.store.array_store import Store
from medvlp.tasks._volume_segmenter import segment

ROWS = np.arange(len(SHAPES))
SIZE = (40, 40, 48)
"""More voxels than any volume of the store has."""
PADDING = [-1024, 77, 30000]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("padding")
    raw.run(raw.write(folder / "raw"), folder / "store")
    store = Store.open(folder / "store")
    assert all(length <= size for shape in SHAPES for length, size in zip(shape, SIZE, strict=True))
    return store


def taken(store: Store, row: int, outside: int, **changes: Any) -> VolumeInputConfig:
    """The volume of a row as it is, in the middle of a larger model input, from its lowest to its highest value."""
    given = {"size": SIZE, "spacing_mm": store.spacing_mm(row), "windows": (), "mean": (0.0,), "std": (1.0,)}
    return VolumeInputConfig.model_validate(given | {"outside": outside} | changes)


def stretched(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float64)
    return (array - array.min()) / max(1, array.max() - array.min())


@pytest.mark.parametrize("outside", PADDING)
def test_tissue_is_mapped_as_without_padding_from_file_and_store(store: Store, outside: int) -> None:
    for row in ROWS.tolist():
        volume, config = store.read_volume(row), taken(store, row, outside)
        wanted, shape = stretched(volume.array), volume.array.shape
        start = [(whole - part) // 2 for whole, part in zip(shape, SIZE, strict=True)]
        inside = tuple(slice(-first, length - first) for first, length in zip(start, shape, strict=True))
        for voxels in (input_voxels(volume, config), stored_input_voxels(store, row, config)):
            found = normalise(torch.from_numpy(voxels)[None, None], config)[0, 0].numpy()
            np.testing.assert_allclose(found[inside], wanted, atol=1e-6)
            assert 0 <= found.min() <= found.max() <= 1
            nearest = np.clip(outside, volume.array.min(), volume.array.max())
            assert (voxels[tuple(0 if first else slice(None) for first in start)] == nearest).all()


def test_windows_keep_the_value_that_is_asked_for(store: Store) -> None:
    config = taken(store, 0, -1024, windows=["lung"])
    assert (stored_input_voxels(store, 0, config)[0, 0] == -1024).all()


def test_turned_volumes_and_crops_bring_nothing_new_in(store: Store) -> None:
    augment = VolumeAugmentConfig(rotate_degrees=(30.0, 30.0, 30.0), zoom=0.3)
    config = VolumeInputConfig.model_validate({"size": (8, 8, 8), "spacing_mm": None, "windows": (), "outside": -32000})
    options: dict[str, Any] = {"batch_size": len(ROWS), "seed": 1, "num_workers": 0, "augment": augment}
    batches = [next(InputLoader(store, ROWS, taken=config, **options).epoch(0))]
    views = [VolumeView("local", (40, 40, 48), 2)]
    batches.append(next(VolumeLoader(store, ROWS, config=config, views=views, **options).epoch(0)))
    for batch in batches:
        changed = on_device(batch, "cpu")
        for own, row in enumerate(batch.index.tolist()):
            lowest = int(store.read_volume(row).array.min())
            shown = [changed.pixels[own], *(view[own] for view in changed.views)]
            assert min(int(one.min()) for one in shown) >= lowest


@pytest.mark.parametrize("outside", PADDING)
def test_sliding_windows_see_tissue_as_without_padding(store: Store, outside: int) -> None:
    seen: list[torch.Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(pixels)
            return torch.cat([pixels, 1 - pixels], dim=1)

    volume = store.read_volume(0)
    segment(Watching(), volume, taken(store, 0, outside), 0.5)
    (window,) = torch.cat(seen)[:, 0].numpy()
    shape = volume.array.shape
    at = [(whole - part) // 2 for whole, part in zip(SIZE, shape, strict=True)]
    inside = tuple(slice(first, first + length) for first, length in zip(at, shape, strict=True))
    np.testing.assert_allclose(window[inside], stretched(volume.array), atol=1e-6)
    assert 0 <= window.min() <= window.max() <= 1

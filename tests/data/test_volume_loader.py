"""Crops of volumes: the same voxels whatever the workers and ranks, against plain slicing of padded arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import volume_source as raw
from pydantic import ValidationError
from volume_source import SHAPES, label_map, voxels

from medvlp.config.preprocessing import ModelInputConfig
from medvlp.config.volumes import PRESETS, CropConfig, WindowConfig
from medvlp.data import VolumeLoader, normalise
from medvlp.data.volumes import apply_windows, window_table
from medvlp.errors import UserError
from medvlp.store.array_store import Store

SIZE = (8, 16, 20)
"""Volume 2 is smaller than a crop along d and w."""
AIR = -1024


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("volumes")
    raw.run(raw.write(folder / "raw"), folder / "store")
    return Store.open(folder / "store")


def crop_config(**changes: object) -> CropConfig:
    return CropConfig.model_validate({"size": SIZE, "windows": ["lung", "mediastinum"], "per_volume": 3} | changes)


def loader(store: Store, rows: object = (0, 1, 2, 3), **changes: object) -> VolumeLoader:
    options: dict[str, object] = {"crop": crop_config(), "seed": 5, "training": True, "batch_size": 4}
    return VolumeLoader(store, np.asarray(rows), **(options | changes))  # type: ignore[arg-type]


def padded(array: np.ndarray, start: np.ndarray, outside: int) -> np.ndarray:
    """The crop by padding the whole array on all sides."""
    wide = np.pad(array, 40, constant_values=outside)
    return wide[tuple(slice(low + 40, low + 40 + side) for low, side in zip(start, SIZE, strict=True))]


def windowed(hu: np.ndarray, name: str) -> np.ndarray:
    centre, width = PRESETS[name]
    grey = (hu.astype(np.float64) - (centre - width / 2)) / width * 255
    return np.rint(np.clip(grey, 0, 255)).astype(np.uint8)


def test_crops_and_windows_against_numpy(store: Store) -> None:
    seen = set()
    for epoch in range(3):
        for batch in loader(store, structures=("spleen", "liver"), rows=(0, 1, 2)).epoch(epoch):
            assert batch.pixels.shape == (4, 2, *SIZE)
            assert batch.pixels.dtype == torch.uint8
            for i in range(4):
                row, start = int(batch.extra["row"][i]), batch.extra["start"][i].numpy()
                assert row == int(batch.index[i]) // 3
                hu = padded(voxels(row), start, AIR)
                for channel, name in enumerate(("lung", "mediastinum")):
                    assert np.array_equal(batch.pixels[i, channel].numpy(), windowed(hu, name))
                classes = np.array([0, 2, 1], np.uint8)[padded(label_map(row), start, 0)]
                assert np.array_equal(batch.extra["mask"][i].numpy(), classes)
                seen.add((row, *start.tolist()))
    assert len(seen) > 20


def test_the_whole_range_of_places_is_used_and_air_surrounds_small_volumes(store: Store) -> None:
    crops = loader(store, crop=crop_config(per_volume=4096))
    for row, shape in enumerate(SHAPES):
        starts = crops.starts(0, np.arange(4096) + 4096 * row)
        room = np.array(shape) - np.array(SIZE)
        assert starts.min(axis=0).tolist() == np.minimum(room, 0).tolist()
        assert starts.max(axis=0).tolist() == np.maximum(room, 0).tolist()


def test_evaluation_takes_the_centre_in_the_order_of_the_rows(store: Store) -> None:
    batches = list(loader(store, rows=(3, 0), training=False, crop=crop_config(per_volume=1), batch_size=3).epoch(7))
    (batch,) = batches
    assert batch.extra["row"].tolist() == [3, 0]
    assert batch.extra["start"].tolist() == [[12, 2, 5], [6, 8, 10]]
    centred = loader(store, crop=crop_config(place="centre")).starts(3, np.arange(12))
    assert np.array_equal(centred[9:], [[12, 2, 5]] * 3)


def same(one: list, two: list) -> bool:
    pairs = list(zip(one, two, strict=True))
    return bool(pairs) and all(torch.equal(a.pixels, b.pixels) and torch.equal(a.index, b.index) for a, b in pairs)


def test_workers_ranks_and_resume_change_nothing(store: Store) -> None:
    plain = list(loader(store, num_workers=0).epoch(1))
    assert len(plain) == 3
    assert same(plain, list(loader(store, num_workers=4, prefetch=2).epoch(1)))
    assert same(plain[1:], list(loader(store).epoch(1, 1)))
    ranks = [list(loader(store, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
    for whole, *parts in zip(plain, *ranks, strict=True):
        assert torch.equal(whole.pixels, torch.cat([part.pixels for part in parts]))
    assert not same(plain, list(loader(store, num_workers=0).epoch(2)))
    assert not same(plain, list(loader(store, num_workers=0, seed=6).epoch(1)))


def test_other_stores_intensities_and_structures_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match="v3 is in hu") as caught:
        loader(store, rows=[3], crop=crop_config(intensity="stored"))
    assert "volume.intensity" in caught.value.fix
    with pytest.raises(UserError, match="volume 0 does not name kidney; it names liver, spleen"):
        loader(store, rows=(0,), structures=("liver", "kidney"))
    with pytest.raises(UserError, match="volume 3 does not name liver; it names nothing"):
        loader(store, structures=("liver",))
    with pytest.raises(UserError, match="256 structures are asked for; a mask of bytes holds 255"):
        loader(store, rows=(0,), structures=[str(number) for number in range(256)])

    class Images:
        kind, path = "image", Path("store")
        images = pd.DataFrame({"index": [0]})

    with pytest.raises(UserError, match="store holds images"):
        loader(Images())  # type: ignore[arg-type]


def test_a_value_that_the_label_map_does_not_name_is_background(store: Store) -> None:
    named = loader(store, rows=(0,), structures=("liver",), training=False, crop=crop_config(per_volume=1))
    (batch,) = named.epoch(0)
    start = batch.extra["start"][0].numpy()
    assert np.array_equal(batch.extra["mask"][0].numpy(), padded(label_map(0) == 1, start, 0).astype(np.uint8))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_int16_through_a_window(name: str) -> None:
    window = CropConfig(windows=(name,)).windows[0]  # type: ignore[arg-type]
    every = np.arange(-32768, 32768).astype(np.int16)
    out = np.empty((1, 65536), np.uint8)
    apply_windows(every, window_table(window)[None], out)
    assert np.array_equal(out[0], windowed(every, name))
    assert (out[0][every <= window.low] == 0).all()
    assert (out[0][every >= window.high] == 255).all()


def test_presets_are_the_windows_of_practice() -> None:
    assert PRESETS["lung"] == (-600, 1500)
    assert PRESETS["mediastinum"] == (40, 400)
    assert PRESETS["bone"] == (400, 1800)
    assert PRESETS["brain"] == (40, 80)
    assert PRESETS["soft_tissue"] == (50, 350)


def test_a_wrong_window_is_named() -> None:
    with pytest.raises(ValidationError, match=r"there is no window 'mediastinal'\. Did you mean 'mediastinum'"):
        CropConfig.model_validate({"windows": ["mediastinal"]})
    with pytest.raises(ValidationError, match="width"):
        WindowConfig(centre=0, width=0)
    mixed = CropConfig.model_validate({"windows": ["bone", {"centre": 1, "width": 2}]})
    assert mixed.windows == (WindowConfig(centre=400, width=1800), WindowConfig(centre=1, width=2))


def test_crops_are_normalised_as_images_are() -> None:
    crops = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    config = ModelInputConfig(size=16, channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    out = normalise(crops, config)
    for channel, (mean, std) in enumerate(zip(config.mean, config.std, strict=True)):
        assert torch.allclose(out[:, channel], (crops[:, channel] / 255 - mean) / std, atol=1e-5)
    one = normalise(crops[:, :1], config)
    assert one.shape == out.shape
    with pytest.raises(ValueError, match="2 channels, the model takes 3"):
        normalise(crops[:, :2], config)

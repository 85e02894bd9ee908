"""Batches of volumes: the same voxels whatever the workers and ranks, against plain slicing of padded arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import volume_source as raw
from pydantic import ValidationError
from volume_source import SHAPES, SPACING_MM, affine, label_map, voxels

from medvlp.config.data import VolumeAugmentConfig
from medvlp.config.volumes import PRESETS, VolumeInputConfig, WindowConfig
from medvlp.data import VolumeLoader, normalise
from medvlp.data import volume_views as views
from medvlp.data.demands import VolumeView
from medvlp.data.volume_loader import places
from medvlp.errors import UserError
from medvlp.store.array_store import Store

SIZE = (8, 16, 20)
"""Volume 2 is smaller than a crop along d and w."""
AIR = -1024
STILL = VolumeAugmentConfig()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("volumes")
    raw.run(raw.write(folder / "raw"), folder / "store")
    return Store.open(folder / "store")


def taken(**changes: object) -> VolumeInputConfig:
    return VolumeInputConfig.model_validate({"size": SIZE, "spacing_mm": SPACING_MM} | changes)


def loader(store: Store, rows: object = (0, 1, 2, 3), **changes: Any) -> VolumeLoader:
    options: dict[str, Any] = {"config": taken(), "augment": STILL, "seed": 5, "batch_size": 2}
    return VolumeLoader(store, np.asarray(rows), **(options | changes))


def padded(array: np.ndarray, start: np.ndarray, size: tuple[int, ...] = SIZE, outside: int = AIR) -> np.ndarray:
    """The crop by padding the whole array on all sides."""
    wide = np.pad(array, 40, constant_values=outside)
    return wide[tuple(slice(int(low) + 40, int(low) + 40 + side) for low, side in zip(start, size, strict=True))]


def first_voxel(row: int, of_crop: np.ndarray) -> np.ndarray:
    """The place of a crop's first voxel in its volume, by the two affines."""
    start = np.linalg.solve(affine(row), of_crop @ [0, 0, 0, 1.0])[:3]
    assert np.allclose(start, np.rint(start))
    return np.rint(start)


def test_crops_with_organs_and_affine_against_numpy(store: Store) -> None:
    seen = set()
    for epoch in range(6):
        for batch in loader(store, organs=("spleen", "liver"), rows=(0, 1, 2)).epoch(epoch):
            assert batch.pixels.shape == (2, 1, *SIZE)
            assert batch.pixels.dtype == torch.int16
            for i, row in enumerate(batch.index.tolist()):
                of_crop = batch.extra["affine"][i].numpy()
                assert np.allclose(of_crop[:3, :3], affine(row)[:3, :3])
                start = first_voxel(row, of_crop)
                assert np.array_equal(batch.pixels[i, 0].numpy(), padded(voxels(row), start))
                classes = np.array([0, 2, 1], np.uint8)[padded(label_map(row), start, outside=0)]
                assert np.array_equal(batch.extra["organs"][i].numpy(), classes)
                seen.add((row, *start.tolist()))
    assert len(seen) > 10


def test_the_whole_range_of_places_is_used_and_air_surrounds_small_volumes() -> None:
    u = np.random.default_rng(0).random((4096, 3))
    for shape in SHAPES:
        starts = places([shape] * 4096, SIZE, u)
        room = np.array(shape) - np.array(SIZE)
        assert starts.min(axis=0).tolist() == np.minimum(room, 0).tolist()
        assert starts.max(axis=0).tolist() == np.maximum(room, 0).tolist()


def test_evaluation_takes_the_middle_in_the_order_of_the_rows(store: Store) -> None:
    (batch,) = list(loader(store, rows=(3, 0), augment=None, batch_size=3).epoch(7))
    assert batch.index.tolist() == [3, 0]
    for i, (row, start) in enumerate([(3, (12, 2, 5)), (0, (6, 8, 10))]):
        assert first_voxel(row, batch.extra["affine"][i].numpy()).tolist() == list(start)
        assert np.array_equal(batch.pixels[i, 0].numpy(), padded(voxels(row), np.array(start)))


def test_without_a_spacing_the_whole_volume_is_stretched(store: Store) -> None:
    (batch,) = list(loader(store, rows=(0,), config=taken(spacing_mm=None), batch_size=1).epoch(0))
    assert np.array_equal(batch.pixels[0, 0].numpy(), views.resize(voxels(0), SIZE))
    assert np.allclose(batch.extra["affine"][0], views.stretched(SHAPES[0], SIZE).affine(affine(0)))


def test_another_spacing_is_resampled_where_the_affine_says(store: Store) -> None:
    wanted = (2.0, 1.0, 0.6)
    for batch in loader(store, config=taken(spacing_mm=wanted), rows=(0, 1)).epoch(0):
        for i, row in enumerate(batch.index.tolist()):
            of_crop = batch.extra["affine"][i].numpy()
            assert np.allclose(np.linalg.norm(of_crop[:3, :3], axis=0), wanted)
            start = np.linalg.solve(affine(row), of_crop[:, 3])[:3]
            grid = views.Grid(SIZE, tuple(start), tuple(np.divide(wanted, SPACING_MM)))
            assert np.abs(batch.pixels[i, 0].numpy() - views.cut(voxels(row), grid, AIR)).max() <= 1


def test_a_region_and_views_of_it_and_of_the_volume(store: Store) -> None:
    demanded = (VolumeView("inside", (4, 8, 8), 3), VolumeView("local", (8, 12, 12), 2))
    options: dict[str, Any] = {"size": (10, 18, 16), "views": demanded, "rows": (0, 1)}
    for batch in loader(store, **options).epoch(2):
        assert batch.pixels.shape == (2, 1, 10, 18, 16)
        inside, local = batch.views
        assert inside.shape == (2, 3, 1, 4, 8, 8)
        assert local.shape == (2, 2, 1, 8, 12, 12)
        for i, row in enumerate(batch.index.tolist()):
            own = batch.pixels[i, 0].numpy()
            for k, (d, h, w) in enumerate(batch.extra["start_0"][i].tolist()):
                assert np.array_equal(inside[i, k, 0], own[d : d + 4, h : h + 8, w : w + 8])
                place = batch.extra["affine"][i] @ torch.tensor([d, h, w, 1.0], dtype=torch.float64)
                assert torch.allclose(batch.extra["affine_0"][i, k, :, 3], place)
            for k, start in enumerate(batch.extra["start_1"][i].numpy()):
                assert np.array_equal(local[i, k, 0], padded(voxels(row), start, (8, 12, 12)))
                assert np.array_equal(first_voxel(row, batch.extra["affine_1"][i, k].numpy()), start)
        assert len(np.unique(batch.extra["start_1"].numpy().reshape(-1, 3), axis=0)) > 1
    with pytest.raises(ValueError, match="do not lie inside"):
        loader(store, views=(VolumeView("inside", (9, 8, 8)),))


def equal(one: Any, two: Any) -> bool:
    tensors = [(one.pixels, two.pixels), (one.index, two.index), *zip(one.views, two.views, strict=True)]
    tensors += [(one.extra[name], two.extra[name]) for name in one.extra]
    return one.extra.keys() == two.extra.keys() and all(torch.equal(a, b) for a, b in tensors)


def same(one: list, two: list) -> bool:
    pairs = list(zip(one, two, strict=True))
    return bool(pairs) and all(equal(a, b) for a, b in pairs)


def test_workers_ranks_and_resume_change_nothing(store: Store) -> None:
    options: dict[str, Any] = {
        "augment": VolumeAugmentConfig(flip=("h", "w"), zoom=0.1, noise=5),
        "views": (VolumeView("inside", (4, 8, 8)), VolumeView("local", (8, 12, 12), 2)),
        "organs": ("liver",),
        "rows": (0, 1, 2, 0),
    }
    plain = list(loader(store, num_workers=0, **options).epoch(1))
    assert len(plain) == 2
    assert same(plain, list(loader(store, num_workers=4, prefetch=1, **options).epoch(1)))
    assert same(plain[1:], list(loader(store, **options).epoch(1, 1)))
    ranks = [list(loader(store, rank=rank, world_size=2, **options).epoch(1)) for rank in (0, 1)]
    for whole, *parts in zip(plain, *ranks, strict=True):
        assert torch.equal(whole.pixels, torch.cat([part.pixels for part in parts]))
        for name, value in whole.extra.items():
            assert torch.equal(value, torch.cat([part.extra[name] for part in parts]))
        for number, view in enumerate(whole.views):
            assert torch.equal(view, torch.cat([part.views[number] for part in parts]))
    assert not same(plain, list(loader(store, num_workers=0, **options).epoch(2)))
    assert not same(plain, list(loader(store, num_workers=0, seed=6, **options).epoch(1)))


def test_a_training_crop_never_reads_the_whole_volume(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain = Store.crop
    monkeypatch.setattr(Store, "crop", lambda self, i, start, size: asked.append(size) or plain(self, i, start, size))
    list(loader(store, rows=(0, 0, 3, 3), num_workers=0).epoch(0))
    assert len(asked) == 4
    assert all(size[axis] <= SIZE[axis] for size in asked for axis in range(3))


def test_what_does_not_fit_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="v3 is in hu") as caught:
        loader(store, rows=[3], config=taken(intensity="stored"))
    assert "volume.intensity" in caught.value.fix
    with pytest.raises(UserError, match="volume 0 does not name kidney; it names liver, spleen"):
        loader(store, rows=(0,), organs=("liver", "kidney"))
    with pytest.raises(UserError, match="volume 3 does not name liver; it names nothing"):
        loader(store, organs=("liver",))
    with pytest.raises(UserError, match="256 structures are asked for; a mask of bytes holds 255"):
        loader(store, rows=(0,), organs=[str(number) for number in range(256)])
    with pytest.raises(UserError, match="Quarter turns need squares"):
        loader(store, augment=VolumeAugmentConfig(rot90=True))
    loader(store, augment=VolumeAugmentConfig(rot90=True), size=(8, 16, 16))

    class Images:
        kind, path = "image", Path("store")
        images = pd.DataFrame({"index": [0]})

    with pytest.raises(UserError, match="store holds images"):
        loader(Images(), rows=(0,))  # type: ignore[arg-type]


def test_a_volume_without_spacing_is_refused_where_one_is_needed(store: Store) -> None:
    other = Store.open(store.path)
    columns = ["affine", "spacing_slice_mm", "spacing_row_mm", "spacing_col_mm"]
    other.images.loc[1, columns] = [None, np.nan, np.nan, np.nan]
    with pytest.raises(UserError, match=r"how far apart those of 1 of 4 volumes lie: v1") as caught:
        loader(other)
    assert "spacing_mm=null" in caught.value.fix
    (batch,) = loader(other, rows=(1,), config=taken(spacing_mm=None), batch_size=1).epoch(0)
    assert torch.isnan(batch.extra["affine"]).all()


def test_a_value_that_the_label_map_does_not_name_is_background(store: Store) -> None:
    (batch,) = loader(store, rows=(0,), organs=("liver",), augment=None, batch_size=1).epoch(0)
    start = first_voxel(0, batch.extra["affine"][0].numpy())
    assert np.array_equal(batch.extra["organs"][0].numpy(), padded(label_map(0) == 1, start, outside=0))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_int16_through_a_window(name: str) -> None:
    centre, width = PRESETS[name]
    config = VolumeInputConfig(windows=(name,), mean=(0.25,), std=(2.0,))  # type: ignore[arg-type]
    every = np.arange(-32768, 32768).astype(np.int16)
    out = normalise(torch.from_numpy(every).view(1, 1, 16, 64, 64), config).flatten().numpy()
    wanted = np.clip((every - (centre - width / 2)) / width, 0, 1)
    assert np.allclose(out, (wanted - 0.25) / 2, atol=1e-6)


def test_presets_are_the_windows_of_practice() -> None:
    assert PRESETS["lung"] == (-600, 1500)
    assert PRESETS["mediastinum"] == (40, 400)
    assert PRESETS["bone"] == (400, 1800)
    assert PRESETS["brain"] == (40, 80)
    assert PRESETS["soft_tissue"] == (50, 350)


def test_a_wrong_window_is_named() -> None:
    with pytest.raises(ValidationError, match=r"there is no window 'mediastinal'\. Did you mean 'mediastinum'"):
        VolumeInputConfig.model_validate({"windows": ["mediastinal"]})
    with pytest.raises(ValidationError, match="width"):
        WindowConfig(centre=0, width=0)
    mixed = VolumeInputConfig.model_validate({"windows": ["bone", {"centre": 1, "width": 2}]})
    assert mixed.windows == (WindowConfig(centre=400, width=1800), WindowConfig(centre=1, width=2))

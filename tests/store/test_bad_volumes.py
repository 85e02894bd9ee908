"""Volumes that are broken, short, of another modality or too large, from their files to a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import volume_source as raw
from made_dicom import random_slices, write_series

from medvlp.config.data import VolumeAugmentConfig
from medvlp.config.volumes import VolumeInputConfig
from medvlp.data import VolumeLoader
from medvlp.data.volume_input import stored_input_voxels
from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.store.array_store import Store
from medvlp.types import ImageRef, Intensity, Study, VolumeFacts

SIZE = (12, 16, 16)
SHAPE = (3, 24, 20)
"""Three slices, 5 mm apart."""
SPACING = (5.0, 1.0, 1.0)


class Mixed(raw.Volumes):
    """A CT of three slices, one with NaN, a series with a gap, and an MR."""

    name = "phantom"

    def studies(self) -> Iterator[Study]:
        for name, path, kind in [
            ("short", "short.nii.gz", Intensity.HU),
            ("nan", "nan.nii.gz", Intensity.HU),
            ("gap", "gap", Intensity.HU),
            ("mr", "mr.nii.gz", Intensity.STORED),
        ]:
            modality = "MR" if name == "mr" else "CT"
            image = ImageRef(name, path, modality, facts=VolumeFacts(kind))
            yield Study(name, name, (image,), split="train")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("mixed")
    root = folder / "raw"
    root.mkdir()
    own = np.diag([1.0, 1.0, 5.0, 1.0])
    values = np.random.default_rng(0).integers(-1000, 1000, SHAPE[::-1]).astype(np.float32)
    for name in ("short", "mr"):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), own), root / f"{name}.nii.gz")
    values[3, 4, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, own), root / "nan.nii.gz")
    files = write_series(root / "gap", random_slices(6, seed=1), [(0.0, 0.0, 2.0 * k) for k in range(6)])
    files[3].unlink()
    raw.run(root, folder / "store", Mixed, max_quarantine_share=1.0)
    return Store.open(folder / "store")


def loader(store: Store, rows: Any, **changes: Any) -> VolumeLoader:
    options: dict[str, Any] = {
        "config": VolumeInputConfig(size=SIZE, spacing_mm=SPACING),
        "augment": VolumeAugmentConfig(),
        "seed": 0,
        "batch_size": 1,
        "num_workers": 0,
    }
    return VolumeLoader(store, np.asarray(rows), **(options | changes))


def test_nan_and_a_missing_slice_go_to_quarantine_with_their_reason(store: Store) -> None:
    lines = [json.loads(line) for line in (store.path / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["path"]: line["reason"] for line in lines}
    assert "NaN or infinite" in reasons["nan.nii.gz"]
    assert "distance" in reasons["gap"]
    assert store.images["image_id"].tolist() == ["short", "mr"]


def test_three_slices_lie_in_air_at_a_spacing_and_are_stretched_without(store: Store) -> None:
    voxels = store.read_volume(int(store.images["index"].iloc[0])).array
    (batch,) = loader(store, [0], augment=None).epoch(0)
    own = batch.pixels[0, 0].numpy()
    assert np.array_equal(own[5:8], voxels[:, 4:20, 2:18])
    assert (own[:5] == -1024).all()
    assert (own[8:] == -1024).all()
    for epoch in range(5):
        (batch,) = loader(store, [0]).epoch(epoch)
        assert (batch.pixels[0, 0] != -1024).any((1, 2)).sum() == 3
    (batch,) = loader(store, [0], config=VolumeInputConfig(size=SIZE)).epoch(0)
    assert (batch.pixels[0, 0] != -1024).all()


def test_another_modality_is_refused_before_the_first_batch(store: Store) -> None:
    with pytest.raises(UserError, match=r"1 of 2 volumes are not in hu, as the windows are: mr is in stored"):
        loader(store, [0, 1])
    (batch,) = loader(store, [1], config=VolumeInputConfig(size=SIZE, intensity="stored")).epoch(0)
    assert batch.pixels.dtype == torch.int16


def test_without_windows_numbers_of_any_meaning_are_taken_by_loader_and_encoder(store: Store) -> None:
    taken = VolumeInputConfig(size=SIZE, windows=())
    (batch,) = loader(store, [0, 1], config=taken, augment=None, batch_size=2).epoch(0)
    for row in (0, 1):
        assert np.array_equal(batch.pixels[row, 0], stored_input_voxels(store, row, taken))
    with pytest.raises(UserError, match="mr is in stored, the model takes hu"):
        stored_input_voxels(store, 1, VolumeInputConfig(size=SIZE))


def test_a_volume_that_free_memory_does_not_hold_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.path.parent / "raw"
    write_series(tmp_path / "whole", random_slices(13, seed=1), [(0.0, 0.0, 2.0 * k) for k in range(13)])
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2 * 3 * 24 * 20 - 1))
    for path in (folder / "short.nii.gz", tmp_path / "whole"):
        with pytest.raises(UserError, match="GiB of memory are free") as caught:
            read_volume(path)
        assert "part of the volume" in caught.value.fix
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2 * 3 * 24 * 20))
    assert read_volume(folder / "short.nii.gz").array.shape == SHAPE


def test_a_crop_of_a_volume_beyond_memory_reads_its_own_voxels_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = int(store.images["index"].iloc[0])
    row = dict(store._volume_rows[index], shape=(60_000, 16_000, 16_000))
    monkeypatch.setitem(store._volume_rows, index, row)
    asked = []

    def crop(_: Store, number: int, start: Any, size: Any) -> np.ndarray:
        asked.append((number, tuple(start), tuple(size)))
        return np.zeros(size, np.int16)

    monkeypatch.setattr(Store, "crop", crop)
    (batch,) = loader(store, [0]).epoch(0)
    assert batch.pixels.shape == (1, 1, *SIZE)
    assert [size for _, _, size in asked] == [SIZE]

"""Label maps piece by piece: memory, and counts against numpy."""

from __future__ import annotations

import tracemalloc

import nibabel
import numpy as np
import pytest

from medvlp.io import read_volume, read_volume_labels, streams
from medvlp.io.label_map import count_values, read_label_map
from medvlp.types import Intensity, Mask, VolumeFacts

SHAPE = (200, 210, 60)


def write(tmp_path, name: str, array: np.ndarray, axes=(1.0, 1.0, 1.0)) -> None:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*axes, 1.0])), tmp_path / name)


def labels_of(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, shape).astype(np.uint8)


@pytest.mark.parametrize("values", [(1,), ()])
def test_masks_take_less_memory_than_their_volume(tmp_path, monkeypatch, values):
    monkeypatch.setattr(streams, "_PIECE_BYTES", 2**16)
    write(tmp_path, "v.nii", np.zeros(SHAPE, dtype=np.int16), axes=(-1.0, 1.0, 1.0))
    write(tmp_path, "m.nii", labels_of(), axes=(-1.0, 1.0, 1.0))
    volume = read_volume(tmp_path / "v.nii", facts=VolumeFacts(Intensity.HU))
    masks = [Mask("v", "a", "m.nii", values), Mask("v", "b", "m.nii", (2, 4))]
    tracemalloc.start()
    try:
        labels, names = read_volume_labels(tmp_path, masks, volume, known_values=(1, 2, 3, 4))
        voxels = count_values(labels, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * volume.array.nbytes + 2**22  # the labels, and tables of 65,536 values
    expected = np.isin(labels_of(), [2, 4]).transpose(2, 1, 0)[:, :, ::-1]
    assert names == {1: "a", 2: "b"}
    np.testing.assert_array_equal(labels == 2, expected)
    assert voxels.tolist() == np.bincount(labels.ravel(), minlength=3).tolist()


def test_values_that_no_label_map_holds_are_nowhere(tmp_path):
    write(tmp_path, "v.nii", np.zeros((4, 5, 6), dtype=np.int16))
    write(tmp_path, "m.nii", np.full((4, 5, 6), 65535, dtype=np.uint16))
    volume = read_volume(tmp_path / "v.nii", facts=VolumeFacts(Intensity.HU))
    labels, _ = read_volume_labels(tmp_path, [Mask("v", "a", "m.nii", (-1, 70000))], volume, trust_shape=True)
    assert not labels.any()


def test_all_values_in_the_order_of_the_bytes(tmp_path):
    write(tmp_path, "m.nii", labels_of((4, 5, 6)))
    np.testing.assert_array_equal(read_label_map(tmp_path / "m.nii", 2**20), labels_of((4, 5, 6)).transpose(2, 1, 0))

"""Encoders of volumes: file, volume and store give the same; heat maps return to the voxels; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import volume_source
from made_dicom import random_slices, write_series
from scipy.ndimage import map_coordinates

import medvlp
from medvlp.config.preprocessing import StoredVolumeConfig, VolumePreprocessing
from medvlp.config.volumes import VolumeInputConfig
from medvlp.data.transforms import normalise
from medvlp.data.volume_views import input_grid
from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.io.intensity import looks_like_hu
from medvlp.sources.phantom.write import nifti
from medvlp.store.array_store import Store
from medvlp.types import Features, Intensity
from medvlp.zoo.volume_encoder import VolumeEncoder, on_volume

SPEC = "random:vit_tiny_patch16_224@16/8"


class Echo(torch.nn.Module):
    """Gives the voxels back as tokens."""

    def forward(self, pixels: torch.Tensor) -> Features:
        tokens = pixels.flatten(2).transpose(1, 2)
        return Features(tokens, tokens.mean(1), tuple(pixels.shape[2:]))


def echo(**taken: object) -> VolumeEncoder:
    config = VolumeInputConfig.model_validate({"size": (8, 16, 24), "mean": (0.0,), "std": (1.0,)} | taken)
    return VolumeEncoder("echo", Echo(), 1, VolumePreprocessing(input=config), {})


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_source.write(tmp_path_factory.mktemp("raw") / "raw")


@pytest.fixture(scope="module")
def store(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("stores") / "store"
    volume_source.run(raw, out)
    return Store.open(out)


def test_file_volume_and_store_give_the_same_features(raw: Path, store: Store) -> None:
    encoder = medvlp.load_encoder(SPEC, stored=store.config)
    assert encoder.kind == "volume"
    rows = np.arange(4)
    by_store = encoder.encode_rows(store, rows).pooled
    by_file = encoder.encode_image([raw / path for path in store.images["path"]]).pooled
    alone = torch.cat([encoder.encode_image(store.read_volume(row)).pooled for row in rows])
    torch.testing.assert_close(by_store, by_file, rtol=0, atol=0)
    torch.testing.assert_close(by_store, alone, rtol=1e-5, atol=1e-6)
    assert len(by_store.unique(dim=0)) == 4


@pytest.mark.parametrize("spacing_mm", [None, (5.0, 1.5, 0.5)])
def test_voxels_of_the_model_input_lie_where_their_affine_says(store: Store, spacing_mm: object) -> None:
    encoder = echo(spacing_mm=spacing_mm, windows=[{"centre": 0, "width": 4000}])
    volume = store.read_volume(0)
    tokens = encoder.encode_image(volume).tokens[0, :, 0].unflatten(0, (8, 16, 24)).numpy() * 4000 - 2000
    grid = input_grid(volume.array.shape, volume.spacing_mm, encoder.preprocessing.input)
    index = np.stack([axis.ravel() for axis in np.indices((8, 16, 24))] + [np.ones(8 * 16 * 24)])
    places = (grid.matrix @ index)[:3]
    inside = np.all((places >= 0) & (places <= np.array(volume.array.shape)[:, None] - 1), axis=0)
    # The volume is a plane with noise: the mean over a coarse voxel is about the plane at its centre.
    plane = np.array([40, -12, 5]) @ places - 500
    assert inside.mean() > 0.4
    assert np.abs(tokens.ravel() - plane)[inside].mean() < 15
    outside = ~np.all((places > -0.51) & (places < np.array(volume.array.shape)[:, None] - 0.49), axis=0)
    assert set(np.rint(tokens.ravel()[outside])) <= {-1024.0}


def test_each_window_is_a_channel_and_none_is_the_range_of_the_volume() -> None:
    hu = torch.tensor([-2000, -600, 40, 3000], dtype=torch.int16).view(1, 1, 4, 1, 1)
    config = VolumeInputConfig(windows=("lung", {"centre": 40, "width": 400}), mean=(0.5,), std=(0.25,))
    found = normalise(hu, config).flatten(2)
    wanted = [[0, 0.5, (40 + 1350) / 1500, 1], [0, 0, 0.5, 1]]
    torch.testing.assert_close(found[0], (torch.tensor(wanted) - 0.5) / 0.25)
    whole = normalise(torch.cat([hu, hu + 100]), VolumeInputConfig(windows=(), mean=(0.0,), std=(1.0,))).flatten(1)
    torch.testing.assert_close(whole, torch.tensor([[0, 0.28, 0.408, 1]]).expand(2, -1))
    flat = normalise(torch.zeros(1, 1, 2, 2, 2, dtype=torch.int16), VolumeInputConfig(windows=()))
    assert torch.isfinite(flat).all()


def test_a_map_on_tokens_returns_to_the_voxels(store: Store) -> None:
    volume = store.read_volume(1)
    config = VolumeInputConfig(size=(8, 16, 16), spacing_mm=(2.5, 0.75, 0.5))
    grid = input_grid(volume.array.shape, volume.spacing_mm, config)
    values = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)
    found = on_volume(values, grid, volume.array.shape)
    tokens = grid.resized(values.shape)
    index = np.stack([*np.indices(volume.array.shape).astype(float), np.ones(volume.array.shape)]).reshape(4, -1)
    places = (np.linalg.inv(tokens.matrix) @ index)[:3]
    wanted = map_coordinates(values, places, order=1, mode="nearest").reshape(volume.array.shape)
    seen = np.all((places > -0.5) & (places < np.array(values.shape)[:, None] - 0.5), axis=0).reshape(found.shape)
    np.testing.assert_allclose(found[seen], wanted[seen], atol=1e-5)
    assert np.isnan(found[~seen]).all()
    assert 0 < seen.mean() < 1


def test_a_file_that_does_not_say_what_its_numbers_mean_counts_as_hu_only_if_it_holds_air(store: Store) -> None:
    volume = replace(store.read_volume(0), intensity=Intensity.STORED, provenance={"intensity_source": "nobody"})
    assert echo().read(volume).intensity == Intensity.HU
    for numbers in (volume.array + 3000, np.where(volume.array < -400, -2000, 50).astype(np.int16)):
        with pytest.raises(UserError, match="is in stored"):
            echo().read(replace(volume, array=numbers))


def test_a_series_that_states_its_modality_never_counts_as_hu_by_its_values(tmp_path: Path) -> None:
    signed = (2 * random_slices(6, seed=4) - 3000).astype(np.int16)
    write_series(tmp_path / "mr", signed, Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    write_series(tmp_path / "z", signed, RescaleType="Z_EFF", RescaleSlope=0.01, RescaleIntercept=0)
    for name in ("mr", "z"):
        assert looks_like_hu(read_volume(tmp_path / name).array)
        with pytest.raises(UserError, match=r"is in stored") as caught:
            echo().read(tmp_path / name)
        assert str(tmp_path / name) in caught.value.where


@pytest.mark.parametrize("windows", [(), ({"centre": 0, "width": 2000},)])
@pytest.mark.parametrize("padding", [-2000, -3024])
def test_padding_is_air_whoever_says_that_the_numbers_are_hu(tmp_path: Path, windows: object, padding: int) -> None:
    voxels = volume_source.voxels(0)
    voxels[:, :9], voxels[:, 9:14] = padding, -1000
    path = tmp_path / "padded.nii.gz"
    path.write_bytes(nifti(voxels, volume_source.affine(0)))
    encoder = echo(windows=windows)
    said = read_volume(path, StoredVolumeConfig(intensity="hu"))
    np.testing.assert_array_equal(encoder.preprocess(path), encoder.preprocess(said))
    given = read_volume(path)
    assert encoder.read(given).array.min() == -1024
    assert given.array.min() == padding  # the caller's own volume stays
    resampled = StoredVolumeConfig(spacing_mm=(5.0, 1.5, 0.5))
    with pytest.raises(UserError, match="resampled before"):
        encoder.read(read_volume(path, resampled))
    encoder.read(read_volume(path, resampled.model_copy(update={"intensity": "hu"})))


def test_a_volume_that_was_read_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    path.write_bytes(nifti(volume_source.label_map(0), volume_source.affine(0)))
    with pytest.raises(UserError, match="is in stored") as caught:
        echo().preprocess(read_volume(path))
    assert str(path) in caught.value.where


def test_what_does_not_fit_is_refused(store: Store, tmp_path: Path) -> None:
    volume = store.read_volume(0)
    with pytest.raises(UserError, match="is in stored"):
        echo().encode_image(replace(volume, intensity=Intensity.STORED))
    echo(windows=()).encode_image(replace(volume, intensity=Intensity.STORED))
    with pytest.raises(UserError, match="nothing says at which distance"):
        echo(spacing_mm=(1, 1, 1)).encode_image(replace(volume, spacing_mm=None, affine=None))
    with pytest.raises(UserError, match="takes images, and the store holds volumes"):
        medvlp.load_encoder("random:resnet10t@32").encode_rows(store, np.arange(2))
    with pytest.raises(UserError, match="no volumes to encode"):
        echo().encode_image([])
    with pytest.raises(UserError, match="cannot be opened"):
        echo().encode_image(tmp_path / "none.nii.gz")

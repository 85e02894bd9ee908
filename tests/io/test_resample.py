"""Another spacing, and the box of the body: against SimpleITK and Pillow, and by hand."""

from __future__ import annotations

import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image

from medvlp.config.preprocessing import StoredVolumeConfig
from medvlp.errors import UserError
from medvlp.io import read_volume


def smooth(shape=(20, 24, 16)) -> np.ndarray:
    """Return HU without sharp edges, (i, j, k)."""
    from scipy import ndimage

    noise = np.random.default_rng(0).normal(0, 1, shape)
    return np.rint(ndimage.gaussian_filter(noise, 2) * 5000).astype(np.int16)


def write(tmp_path, array, affine):
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "x.nii")
    return tmp_path / "x.nii"


def test_refining_is_trilinear_as_in_simpleitk(tmp_path):
    import SimpleITK as sitk

    array = smooth()
    path = write(tmp_path, array, np.diag([0.8, 0.9, 2.0, 1]))
    new = (1.0, 0.5, 0.4)
    volume = read_volume(path, StoredVolumeConfig(spacing_mm=new))
    assert volume.spacing_mm == pytest.approx(new)
    assert volume.array.shape == (32, 43, 40)
    image = sitk.Cast(sitk.GetImageFromArray(array.transpose(2, 1, 0)), sitk.sitkFloat32)
    image.SetSpacing((0.8, 0.9, 2.0))
    origin = (volume.affine @ [0, 0, 0, 1])[:3]
    directions = np.eye(3).ravel().tolist()
    grid = (40, 43, 32), sitk.Transform(), sitk.sitkLinear, origin.tolist(), new[::-1], directions, -9999.0
    found = sitk.Resample(image, *grid)
    theirs = sitk.GetArrayFromImage(found)
    inside = theirs > -9999
    assert inside.mean() > 0.85
    np.testing.assert_allclose(volume.array[inside], theirs[inside], atol=0.51)


@pytest.mark.parametrize("axes", [[1.0, 1, 1], [-1.0, 1, -1]])
def test_the_same_room_is_covered(tmp_path, axes):
    path = write(tmp_path, smooth(), np.diag([*np.multiply(axes, [0.8, 0.9, 2.0]), 1]))
    before = read_volume(path)
    after = read_volume(path, StoredVolumeConfig(spacing_mm=(1.7, 1.3, 1.1)))
    centres = [v.affine @ [*(np.subtract(v.array.shape, 1) / 2), 1] for v in (before, after)]
    np.testing.assert_allclose(*centres, atol=1e-9)
    extents = [np.multiply(v.array.shape, v.spacing_mm) for v in (before, after)]
    assert np.abs(extents[0] - extents[1]).max() <= 1.7 / 2
    assert after.provenance["resampled"]["from_mm"] == pytest.approx([2.0, 0.9, 0.8])


def test_coarsening_averages_instead_of_picking(tmp_path):
    """A pattern finer than the new voxels becomes its mean, as in Pillow; picking every third would alias."""
    array = np.zeros((30, 30, 6), np.int16)
    array[::2] = 1000
    volume = read_volume(write(tmp_path, array, np.eye(4)), StoredVolumeConfig(spacing_mm=(1, 1, 3)))
    inner = volume.array[:, :, 1:-1]
    assert np.abs(inner.astype(int) - 500).max() <= 60
    row = array[:, 0, 0].astype(np.float32)
    theirs = np.asarray(Image.fromarray(row[None]).resize((10, 1), Image.Resampling.BILINEAR))[0]
    np.testing.assert_allclose(volume.array[0, 0, 1:-1], theirs[1:-1], atol=0.51)


def test_oblique_axes_stay_oblique(tmp_path):
    angle = np.radians(20)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = read_volume(write(tmp_path, smooth(), affine), StoredVolumeConfig(spacing_mm=(2, 2, 2)))
    directions = volume.affine[:3, :3] / 2
    np.testing.assert_allclose(directions, affine[:3, [2, 1, 0]], atol=1e-6)


def test_constant_stays_constant_and_sizes_are_bounded(tmp_path):
    path = write(tmp_path, np.full((7, 8, 9), 40, np.int16), np.eye(4))
    assert (read_volume(path, StoredVolumeConfig(spacing_mm=(0.3, 2.7, 50))).array == 40).all()
    with pytest.raises(UserError, match="would have"):
        read_volume(path, StoredVolumeConfig(spacing_mm=(0.001, 0.001, 0.001)))
    with pytest.raises(UserError, match=r"volume\.spacing_mm is"):
        read_volume(path, StoredVolumeConfig(spacing_mm=(1, -1, 1)))


def test_crop_to_the_body(tmp_path):
    hu = np.full((60, 64, 30), -1000, np.int16)
    hu[11:41, 20:55, 3:27] = 30
    hu[2:5, 2:5, 3:27] = 200  # a wire beside the body does not count
    hu[45:58, 20:50, 3:27] = 30  # the other leg does
    config = StoredVolumeConfig(crop="body", intensity="hu")
    volume = read_volume(write(tmp_path, hu, np.diag([1.0, 1, 2, 1])), config)
    (d0, d1), (h0, h1), (w0, w1) = volume.provenance["crop"]["box"]
    assert 1 <= d0 <= 3
    assert 27 <= d1 <= 29
    assert 16 <= h0 <= 20
    assert 55 <= h1 <= 59
    assert 7 <= w0 <= 11
    assert 58 <= w1 <= 60
    np.testing.assert_array_equal(volume.array, hu.transpose(2, 1, 0)[d0:d1, h0:h1, w0:w1])
    np.testing.assert_allclose((volume.affine @ [0, 0, 0, 1])[:3], (w0, h0, 2 * d0))
    assert (volume.array > -500).sum() == 30 * 35 * 24 + 13 * 30 * 24


def test_crop_needs_hu_and_a_body(tmp_path):
    path = write(tmp_path, np.full((8, 8, 8), -1000, np.int16), np.eye(4))
    with pytest.raises(UserError, match="not known to be HU"):
        read_volume(path, StoredVolumeConfig(crop="body"))
    with pytest.raises(UserError, match="no voxel is above -500 HU"):
        read_volume(path, StoredVolumeConfig(crop="body", intensity="hu"))


PRINT_SHA256 = """
import hashlib, sys
from medvlp.config.preprocessing import StoredVolumeConfig
from medvlp.io import read_volume
volume = read_volume(sys.argv[1], StoredVolumeConfig(spacing_mm=(1.7, 1.3, 1.1)))
print(hashlib.sha256(volume.array.tobytes()).hexdigest())
"""


def test_another_processor_or_more_threads_make_the_same_voxels(tmp_path):
    noise = np.random.default_rng(0).integers(-1000, 2000, (240, 230, 12)).astype(np.int16)
    path = write(tmp_path, noise, np.diag([0.8, 0.9, 2.0, 1]))
    found = set()
    for processor, threads in (("Nehalem", "1"), ("Haswell", "2")):  # kernels of OpenBLAS; other libraries ignore it
        environment = {**os.environ, "OPENBLAS_CORETYPE": processor, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", PRINT_SHA256, str(path)], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1

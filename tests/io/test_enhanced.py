"""Enhanced multi-frame CT: against highdicom, and with frames in any order."""

from __future__ import annotations

import numpy as np
import pytest
from made_dicom import enhanced_dataset, random_slices

from medvlp.config.preprocessing import StoredVolumeConfig
from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.types import Intensity

PLACES = [(-50.0, -40.0, 10 + 5.0 * k) for k in range(6)]


def write(tmp_path, ds):
    path = tmp_path / "x.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path


def test_frames_in_any_order(tmp_path):
    slices = random_slices(6)
    order = np.random.default_rng(3).permutation(6)
    path = write(tmp_path, enhanced_dataset(slices[order], [PLACES[k] for k in order]))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, slices[:, ::-1, ::-1] - 1024)
    assert volume.spacing_mm == pytest.approx((5, 0.8, 0.7))
    assert (volume.intensity, volume.provenance["hu_applied"]) == (Intensity.HU, True)
    first = (volume.affine @ [0, 0, 0, 1])[:3]
    assert first == pytest.approx((50 - 9 * 0.7, 40 - 11 * 0.8, 10))


def test_a_frame_of_its_own_rescale(tmp_path):
    from pydicom.dataset import Dataset

    slices = random_slices(6)
    ds = enhanced_dataset(slices, PLACES)
    own = Dataset()
    own.RescaleSlope, own.RescaleIntercept, own.RescaleType = 2, -500, "HU"
    ds.PerFrameFunctionalGroupsSequence[4].PixelValueTransformationSequence = [own]
    expected = slices.astype(int) - 1024
    expected[4] = slices[4] * 2 - 500
    np.testing.assert_array_equal(read_volume(write(tmp_path, ds)).array, expected[:, ::-1, ::-1])


@pytest.mark.data
def test_real_file_agrees_with_highdicom(test_data):
    import highdicom

    path = test_data / "dicom" / "eCT_Supplemental.dcm"
    volume = read_volume(path)
    theirs = highdicom.imread(path).get_volume(apply_modality_transform=False, apply_real_world_transform=False)
    theirs = theirs.to_patient_orientation("HAR")
    np.testing.assert_array_equal(volume.array, theirs.array)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ theirs.affine
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert volume.intensity is Intensity.STORED  # a perfusion map: the file says that its units are not HU


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ds: ds.PerFrameFunctionalGroupsSequence.pop(), "declares 6 frames, but describes 5"),
        (lambda ds: delattr(ds.PerFrameFunctionalGroupsSequence[2], "PlanePositionSequence"), "lacks ImagePosition"),
        (lambda ds: setattr(ds, "NumberOfFrames", 7), "declares 7 frames"),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-20]), "truncated"),
    ],
)
def test_contradictions(tmp_path, change, reason):
    ds = enhanced_dataset(random_slices(6), PLACES)
    change(ds)
    with pytest.raises(UserError, match=reason):
        read_volume(write(tmp_path, ds))


def test_the_checks_of_a_series_hold(tmp_path):
    slices = random_slices(4)
    phases = enhanced_dataset(slices, [PLACES[0], PLACES[1]] * 2)
    with pytest.raises(UserError, match="4 slices lie at 2 places"):
        read_volume(write(tmp_path, phases))
    gap = enhanced_dataset(slices, [PLACES[0], PLACES[1], PLACES[2], PLACES[4]])
    with pytest.raises(UserError, match="1 of 3 distances"):
        read_volume(write(tmp_path, gap))
    assert read_volume(write(tmp_path, gap), StoredVolumeConfig(irregular="resample")).array.shape == (5, 12, 10)

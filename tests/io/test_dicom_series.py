"""One DICOM series -> one volume: against SimpleITK, dicom2nifti and values written out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_dicom import AXIAL, SECRET, random_slices, slice_dataset, write_series
from pydicom.dataelem import DataElement

from medvlp.config.preprocessing import StoredVolumeConfig
from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.types import Intensity, VolumeFacts

RESAMPLE = StoredVolumeConfig(irregular="resample", tilt="resample")


def itk_volume(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return SimpleITK's array in RAS (d, h, w) and its affine, for files in order."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    image = sitk.DICOMOrient(reader.Execute(), "RAS")
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def rotation(seed: int) -> np.ndarray:
    """Return a rotation by up to about 40 degrees."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(np.random.default_rng(seed).uniform(-0.4, 0.4, 3)).as_matrix()


def oriented(folder: Path, seed: int, axes: tuple[int, int, int]) -> tuple[list[Path], np.ndarray]:
    """Write a series whose rows, columns and normal run along exchanged and tilted axes."""
    directions = rotation(seed)[:, list(axes)] * np.random.default_rng(seed + 1).choice([-1, 1], 3)
    directions[:, 2] = np.cross(directions[:, 0], directions[:, 1])
    slices = random_slices(7, seed=seed)
    positions = [tuple(np.array([3.0, -20.0, 40.0]) + 1.5 * k * directions[:, 2]) for k in range(7)]
    cosines = [f"{v:.12f}" for v in (*directions[:, 0], *directions[:, 1])]
    return write_series(folder, slices, positions, ImageOrientationPatient=cosines), slices


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_orientation_agrees_with_simpleitk(tmp_path, axes, seed):
    files, _ = oriented(tmp_path, seed, axes)
    volume = read_volume(tmp_path)
    array, affine = itk_volume(files)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    np.testing.assert_allclose(volume.spacing_mm, np.linalg.norm(affine[:3, :3], axis=0), atol=1e-6)
    assert volume.array.flags.c_contiguous
    assert volume.array.dtype == np.int16


@pytest.mark.data
def test_real_series_agrees_with_simpleitk_and_dicom2nifti(test_data, tmp_path):
    import dicom2nifti
    import nibabel
    import pydicom

    folder = test_data / "ct_series_abdomen_3slice"
    volume = read_volume(folder)
    files = [folder / name for name in ("03.dcm", "02.dcm", "01.dcm")]
    array, affine = itk_volume(files)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    padding = array == -3024
    np.testing.assert_array_equal(volume.array[~padding], array[~padding])
    assert (volume.array[padding] == -1024).all()
    assert volume.provenance["padding_voxels"] == padding.sum() > 0
    dicom2nifti.settings.disable_validate_slicecount()
    dicoms = [pydicom.dcmread(file) for file in files]
    dicom2nifti.convert_dicom.dicom_array_to_nifti(dicoms, str(tmp_path / "x.nii.gz"), reorient_nifti=True)
    image = nibabel.as_closest_canonical(nibabel.load(tmp_path / "x.nii.gz"))
    theirs = np.asarray(image.dataobj).transpose(2, 1, 0)
    np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], volume.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.array[~padding], theirs[~padding])


def test_left_is_left(tmp_path):
    """A voxel with a mark: in DICOM the column index grows to the patient's left, the row index to the back."""
    slices = np.zeros((3, 12, 10), np.int16)
    slices[0, 2, 7] = 1000  # lowest slice, near the front, left of the middle
    write_series(tmp_path, slices, RescaleIntercept=0)
    volume = read_volume(tmp_path)
    place = np.argwhere(volume.array == 1000)
    assert place.tolist() == [[0, 12 - 1 - 2, 10 - 1 - 7]]
    right, anterior, superior = (volume.affine @ [*place[0], 1])[:3]
    assert (right, anterior, superior) == pytest.approx((50 - 7 * 0.7, 40 - 2 * 0.8, 10))


def test_order_is_by_position(tmp_path):
    """Names and instance numbers are in another order, and one way round or the other is the same volume."""
    slices = random_slices(9)
    positions = [(-50.0, -40.0, 10 + 2.5 * k) for k in range(9)]
    write_series(tmp_path / "up", slices, positions)
    write_series(tmp_path / "down", slices[::-1], positions[::-1])
    up, down = read_volume(tmp_path / "up"), read_volume(tmp_path / "down")
    np.testing.assert_array_equal(up.array, down.array)
    np.testing.assert_array_equal(up.array, slices[:, ::-1, ::-1] - 1024)
    assert up.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert (up.intensity, up.provenance["hu_applied"], up.provenance["intensity_source"]) == (
        Intensity.HU,
        True,
        "file",
    )


def test_spacing_is_that_of_the_positions(tmp_path):
    write_series(tmp_path, random_slices(4), SliceThickness=5, SpacingBetweenSlices=4)
    assert read_volume(tmp_path).spacing_mm[0] == pytest.approx(2.5)


def test_slope_and_intercept_of_each_slice(tmp_path):
    slices = random_slices(4)
    slopes, intercepts = [1, 0.5, 2, 1], [-1024, 0, -1000, -1023.5]
    write_series(tmp_path, slices, each_RescaleSlope=slopes, each_RescaleIntercept=intercepts)
    volume = read_volume(tmp_path)
    expected = np.rint(slices * np.reshape(slopes, (4, 1, 1)) + np.reshape(intercepts, (4, 1, 1)))
    np.testing.assert_array_equal(volume.array, expected[:, ::-1, ::-1])
    assert volume.provenance["slope"] == volume.provenance["intercept"] == "per slice"
    assert volume.provenance["rounded"] is True


@pytest.mark.parametrize("dtype", ["i2", "u2", "u1"])
@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"]
)
def test_types_and_transfer_syntaxes(tmp_path, dtype, syntax):
    slices = (random_slices(3, 7, 9) // (16 if dtype == "u1" else 1)).astype(dtype)
    for k, pixels in enumerate(slices):
        stored = pixels.astype(pixels.dtype.newbyteorder(">")) if syntax.endswith("1.2.2") else pixels
        ds = slice_dataset(pixels, (0, 0, k))
        ds.PixelData = stored.tobytes() + b"\0" * (pixels.nbytes % 2)
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_volume(tmp_path).array, slices[:, ::-1, ::-1].astype(int) - 1024)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("bits", "high_bit"), [(12, 11), (12, 15), (15, 14), (10, 12)])
def test_bits_outside_of_the_stored_ones(tmp_path, signed, bits, high_bit):
    """As in single images: old overlays in unused bits do not reach the voxels, and the sign is extended."""
    rng = np.random.default_rng(bits)
    values = rng.integers(-(2 ** (bits - 1)) if signed else 0, 2 ** (bits - 1), (3, 6, 5))
    words = (values & (2**bits - 1)) << (high_bit - bits + 1)
    words |= rng.integers(0, 2**16, words.shape) & ~(((1 << bits) - 1) << (high_bit - bits + 1)) & 0xFFFF
    pixels = words.astype(np.uint16).view(np.int16) if signed else words.astype(np.uint16)
    write_series(tmp_path, pixels, BitsStored=bits, HighBit=high_bit, RescaleIntercept=-5)
    np.testing.assert_array_equal(read_volume(tmp_path).array, values[:, ::-1, ::-1] - 5)


def test_padding_becomes_air(tmp_path):
    slices = random_slices(3)
    slices[:, :3] = -2000
    slices[:, 3, 0] = -976  # -2000 HU after the rescale
    padding = DataElement("PixelPaddingValue", "US", 63536)  # -2000, written as if it had no sign
    write_series(tmp_path, slices, PixelPaddingValue=padding)
    volume = read_volume(tmp_path)
    expected = slices - 1024
    expected[:, :3] = expected[:, 3, 0] = -1024
    np.testing.assert_array_equal(volume.array, expected[:, ::-1, ::-1])
    assert volume.provenance["padding_voxels"] == 3 * 31


def test_padding_of_unsigned_values_becomes_air_and_not_the_brightest(tmp_path):
    slices = random_slices(3).astype(np.uint16)
    slices[:, 0] = 63536  # -2000 without its sign
    write_series(tmp_path, slices, PixelPaddingValue=DataElement("PixelPaddingValue", "US", 63536))
    volume = read_volume(tmp_path)
    assert volume.array.min() == -1024
    assert volume.array.max() == slices[:, 1:].max() - 1024
    assert volume.provenance["padding_voxels"] >= 3 * slices.shape[2]
    assert volume.provenance["clipped_voxels"] == 0


def test_a_padding_value_that_could_be_tissue_is_left_alone(tmp_path):
    slices = random_slices(3)
    slices[:, 0] = 1024
    write_series(tmp_path, slices, PixelPaddingValue=1024)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, slices[:, ::-1, ::-1] - 1024)
    assert volume.provenance["padding_voxels"] == 0


def test_hu_beyond_int16_are_clipped_and_counted(tmp_path):
    slices = random_slices(3).astype(np.uint16)
    slices[1, 2, 2] = 65000
    write_series(tmp_path, slices, RescaleIntercept=-1000)
    volume = read_volume(tmp_path)
    assert volume.array.max() == 32767
    assert volume.provenance["clipped_voxels"] == 1


def test_uneven_distances(tmp_path):
    slices = random_slices(6)
    z = [0, 2, 4, 8, 10, 12]  # one is missing
    write_series(tmp_path, slices, [(0, 0, v) for v in z])
    with pytest.raises(UserError, match=r"1 of 5 distances between slices differ .* \(2 to 4 mm\)") as caught:
        read_volume(tmp_path)
    assert "volume.irregular" in caught.value.fix
    assert "volume.tilt" not in caught.value.fix
    volume = read_volume(tmp_path, RESAMPLE)
    assert volume.spacing_mm[0] == pytest.approx(2)
    hu = slices[:, ::-1, ::-1] - 1024
    np.testing.assert_array_equal(volume.array[[0, 1, 2, 4, 5, 6]], hu)
    np.testing.assert_allclose(volume.array[3], (hu[2] + hu[3].astype(float)) / 2, atol=0.5)
    assert volume.provenance["straightened"]["uneven"]


def test_one_percent_is_the_limit(tmp_path):
    write_series(tmp_path / "good", random_slices(4), [(0, 0, v) for v in (0, 2, 4.019, 6.019)])
    write_series(tmp_path / "bad", random_slices(4), [(0, 0, v) for v in (0, 2, 4.021, 6.021)])
    assert read_volume(tmp_path / "good").spacing_mm[0] == pytest.approx(6.019 / 3)
    with pytest.raises(UserError, match="1 of 3 distances"):
        read_volume(tmp_path / "bad")


def test_several_phases(tmp_path):
    write_series(tmp_path, random_slices(6), [(0, 0, k % 3) for k in range(6)])
    for config in (StoredVolumeConfig(), RESAMPLE):
        with pytest.raises(UserError, match="6 slices lie at 3 places: several phases"):
            read_volume(tmp_path, config)


@pytest.mark.parametrize("angle", [5.0, -18.5])
def test_gantry_tilt(tmp_path, angle):
    """A straight rod along the table, seen by a tilted gantry, is straight again on the resampled grid."""
    rows, columns, count, step = 60, 40, 15, 3.0
    tilt = np.radians(angle)
    column = np.array([0, np.cos(tilt), np.sin(tilt)])
    normal = np.cross([1, 0, 0], column)
    slices = np.full((count, rows, columns), 24, np.int16)
    positions = []
    for k in range(count):
        origin = np.array([-20.0, -30.0, step * k])  # the table moves along z, not along the normal
        positions.append(tuple(origin))
        y = origin[1] + column[1] * np.arange(rows)
        x = origin[0] + np.arange(columns)
        slices[k] += (1000 * np.exp(-((y[:, None] - 0) ** 2 + (x[None] + 2) ** 2) / 18)).astype(np.int16)
    write_series(
        tmp_path, slices, positions, PixelSpacing=[1, 1], ImageOrientationPatient=[1, 0, 0, *map(float, column)]
    )
    with pytest.raises(UserError, match=rf"shifted against each other by {abs(angle):.1f} degrees") as caught:
        read_volume(tmp_path)
    assert "volume.tilt" in caught.value.fix
    volume = read_volume(tmp_path, RESAMPLE)
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(axes[:, 0] * [-1, -1, 1], normal, atol=1e-9)
    index = np.argwhere(volume.array > -1000)
    ras = (np.concatenate([index, np.ones((len(index), 1))], axis=1) @ volume.affine.T)[:, :3]
    weights = volume.array[tuple(index.T)] + 1000.0
    for d in range(1, volume.array.shape[0] - 1):
        plane = index[:, 0] == d
        centre = np.average(ras[plane], axis=0, weights=weights[plane])
        assert centre[:2] == pytest.approx((2, 0), abs=0.02)
    covered = volume.array != -1024
    assert not covered.all()  # outside of every slice there is air
    assert volume.provenance["straightened"]["fill"] == -1024


def test_slices_shifted_sideways(tmp_path):
    slices = random_slices(5)
    write_series(tmp_path, slices, [(1.4 if k == 2 else 0, 0, k) for k in range(5)])
    with pytest.raises(UserError, match=r"shifted sideways by up to 1.4 mm"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, RESAMPLE)
    assert volume.array.shape == (5, 12, 12)
    expected = np.full((5, 12, 12), -1024)
    for k in range(5):
        first = 2 if k == 2 else 0  # 1.4 mm are two columns
        expected[k, :, first : first + 10] = slices[k] - 1024
    np.testing.assert_array_equal(volume.array, expected[:, ::-1, ::-1])


@pytest.mark.data
def test_head_series_with_tilt_and_uneven_steps(test_data):
    folder = test_data / "ct_series_ge_head"
    with pytest.raises(UserError) as caught:
        read_volume(folder)
    assert "14 of 27 distances" in caught.value.what
    assert "18.5 degrees (gantry tilt)" in caught.value.what
    assert caught.value.fix.startswith("Set volume.irregular and volume.tilt to resample")
    for half in ({"irregular": "resample"}, {"tilt": "resample"}):
        with pytest.raises(UserError):
            read_volume(folder, StoredVolumeConfig(**half))
    volume = read_volume(folder, RESAMPLE)
    assert volume.spacing_mm == pytest.approx((4.22 * np.cos(np.radians(18.5)), 0.4882812, 0.4882812), rel=1e-4)
    _agrees_with_slices(volume, folder)


def _agrees_with_slices(volume, folder):
    """Where a slice of the series lies on one of the grid's, the voxels are that slice's, moved by its shift."""
    import pydicom
    from scipy import ndimage

    compared = 0
    inverse = np.linalg.inv(volume.affine)
    for file in sorted(folder.iterdir()):
        ds = pydicom.dcmread(file)
        position = np.array(ds.ImagePositionPatient, float) * [-1, -1, 1]
        d, h, w = (inverse @ [*position, 1])[:3]
        if abs(d - round(d)) > 0.003:
            continue
        pixels = ds.pixel_array.astype(np.float32) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        pixels[ds.pixel_array == ds.PixelPaddingValue] = -1024
        y, x = np.mgrid[100:400, 100:400]
        rows = h - y  # rows run to the back, the volume's axis to the front
        found = ndimage.map_coordinates(volume.array[round(d)].astype(np.float32), [rows, w - x], order=1)
        error = np.abs(found - pixels[100:400, 100:400])
        assert np.median(error) <= 3  # interpolated twice: here and there
        compared += 1
    assert compared >= 5


def test_one_series_is_needed(tmp_path):
    write_series(tmp_path / "a", random_slices(3))
    write_series(tmp_path / "b", random_slices(4), SeriesInstanceUID="1.2.3.77")
    with pytest.raises(UserError, match="make 2 volumes where one is needed: CT of 3 files, CT of 4 files") as caught:
        read_volume(tmp_path)
    assert SECRET not in str(caught.value)
    files = sorted((tmp_path / "b").iterdir())
    assert read_volume(tmp_path, files=files).array.shape == (4, 12, 10)
    with pytest.raises(UserError, match="make 0 volumes"):
        read_volume(_image_only(tmp_path / "c"))


def _image_only(folder: Path) -> Path:
    folder.mkdir()
    slice_dataset(random_slices(1)[0], (0, 0, 0), Modality="CR").save_as(folder / "x.dcm", enforce_file_format=True)
    return folder


def test_a_broken_slice_is_not_left_out(tmp_path):
    files = write_series(tmp_path, random_slices(5))
    data = files[4].read_bytes()
    for broken, reason in (
        (data[:-2], "truncated"),
        (data[:400], "cannot be used|no pixel data"),
        (data.replace(b"\x20\x00\x32\x00DS", b"\x20\x00\x33\x00DS"), "lacks ImagePositionPatient"),
    ):
        files[4].write_bytes(broken)
        with pytest.raises(UserError, match=reason) as caught:
            read_volume(tmp_path)
        assert caught.value.where == str(files[4])
        assert "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PixelSpacing": [0.8, -0.7]}, "pixel spacing is 0.8 x -0.7"),
        ({"PixelSpacing": [0.8, 0]}, "pixel spacing"),
        ({"PixelSpacing": None}, "lacks PixelSpacing"),
        ({"ImagePositionPatient": ["nan", "0", "0"]}, "ImagePositionPatient is not finite"),
        ({"ImagePositionPatient": ["1e9", "0", "0"]}, "from the origin"),
        ({"PixelSpacing": "12"}, "PixelSpacing has 1 values where 2 are needed"),
        ({"ImagePositionPatient": "123"}, "ImagePositionPatient has 1 values where 3 are needed"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no pair of perpendicular unit vectors"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "3 values where 6"),
        ({"RescaleSlope": 0}, "rescale slope is 0"),
        ({"RescaleSlope": None}, "must come together"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels"),
        ({"BitsAllocated": None}, "lacks BitsAllocated"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "coloured"),
    ],
)  # fmt: skip
def test_absurd_headers(tmp_path, tags, reason):
    write_series(tmp_path, random_slices(3), **tags)
    with pytest.raises(UserError, match=reason):
        read_volume(tmp_path)


def test_other_modalities_keep_stored_values(tmp_path):
    slices = random_slices(3)
    write_series(
        tmp_path, slices, Modality="MR", RescaleSlope=2, RescaleIntercept=7, PhotometricInterpretation="MONOCHROME2"
    )
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, slices[:, ::-1, ::-1])
    assert volume.intensity is Intensity.STORED
    assert (volume.provenance["hu_applied"], volume.provenance["slope"]) == (False, 2.0)
    with pytest.raises(UserError, match="HU are asked for, but the files are MR"):
        read_volume(tmp_path, StoredVolumeConfig(intensity="hu"))
    write_series(tmp_path / "pet", slices, Modality="PT", each_RescaleSlope=[1, 2, 3])
    with pytest.raises(UserError, match="rescale slope differs between slices"):
        read_volume(tmp_path / "pet")


def test_inverted_grey_values_but_never_inverted_hu(tmp_path):
    slices = random_slices(3)
    write_series(
        tmp_path / "mr",
        slices,
        Modality="MR",
        BitsStored=12,
        HighBit=11,
        PhotometricInterpretation="MONOCHROME1",
        PixelRepresentation=0,
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "mr").array, 4095 - slices[:, ::-1, ::-1])
    write_series(tmp_path / "ct", slices, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array, slices[:, ::-1, ::-1] - 1024)


def test_ct_without_rescale_is_hu_only_if_someone_says_so(tmp_path):
    slices = random_slices(3)
    write_series(tmp_path, slices, RescaleSlope=None, RescaleIntercept=None)
    stored, named = read_volume(tmp_path), read_volume(tmp_path, StoredVolumeConfig(intensity="hu"))
    assert (stored.intensity, stored.provenance["intensity_source"]) == (Intensity.STORED, "nobody")
    assert (named.intensity, named.provenance["hu_applied"]) == (Intensity.HU, False)
    np.testing.assert_array_equal(stored.array, named.array)
    scaled = read_volume(tmp_path, facts=VolumeFacts(Intensity.HU, 1, -1000))
    np.testing.assert_array_equal(scaled.array, stored.array - 1000)
    assert scaled.provenance["hu_applied"] is True


def test_slope_is_never_applied_twice(tmp_path):
    write_series(tmp_path, random_slices(3))
    with pytest.raises(UserError, match="scaled twice"):
        read_volume(tmp_path, facts=VolumeFacts(Intensity.HU, 1, -1024))


def test_an_affine_of_the_data_set_counts_columns_first(tmp_path):
    slices = random_slices(3)
    write_series(tmp_path, slices)
    affine = ((-0.7, 0.0, 0.0, 5.0), (0.0, -0.8, 0.0, 6.0), (0.0, 0.0, -3.0, 7.0), (0.0, 0.0, 0.0, 1.0))
    volume = read_volume(tmp_path, facts=VolumeFacts(Intensity.HU, affine=affine))
    np.testing.assert_array_equal(volume.array, slices[::-1, ::-1, ::-1] - 1024)
    assert volume.spacing_mm == pytest.approx((3, 0.8, 0.7))
    assert (volume.affine @ [2, 11, 9, 1])[:3] == pytest.approx((5, 6, 7))


def test_no_identifier_in_provenance(tmp_path):
    write_series(tmp_path, random_slices(3), SeriesDescription=SECRET, PatientID=SECRET)
    provenance = {**read_volume(tmp_path).provenance, "path": ""}
    assert "Doe" not in str(provenance)
    assert "1.2.3" not in str(provenance)


def test_compressed_slices(tmp_path):
    """RLE is decoded here, JPEG 2000 in the decoder process; both give the values of the plain file."""
    slices = random_slices(3, 64, 64)
    for syntax, plugin in (("1.2.840.10008.1.2.5", "pydicom"), ("1.2.840.10008.1.2.4.90", "pylibjpeg")):
        folder = tmp_path / plugin
        folder.mkdir()
        for k, pixels in enumerate(slices):
            ds = slice_dataset(pixels, (0, 0, k), ImageOrientationPatient=list(AXIAL))
            ds.compress(syntax, encoding_plugin=plugin)
            ds.save_as(folder / f"{k}.dcm", enforce_file_format=True)
        np.testing.assert_array_equal(read_volume(folder).array, slices[:, ::-1, ::-1] - 1024)

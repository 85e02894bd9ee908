"""NIfTI, MHD, NRRD, NumPy files and folders of pictures -> volumes, against nibabel and SimpleITK."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

import medvlp
from medvlp.config.preprocessing import StoredVolumeConfig
from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.types import Intensity, VolumeFacts

HU = StoredVolumeConfig(intensity="hu")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(seed: int, spacing=(0.7, 0.8, 2.5)) -> np.ndarray:
    """Return an affine with exchanged, reversed and tilted axes."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    axes = Rotation.from_rotvec(rng.uniform(-0.4, 0.4, 3)).as_matrix()[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    matrix[:3, :3] = axes * spacing
    matrix[:3, 3] = rng.uniform(-100, 100, 3)
    return matrix


def voxels(seed: int = 0, shape=(10, 12, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


def canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (d, h, w) and its affine, by nibabel, from an (i, j, k) array."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine[:, [2, 1, 0, 3]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_nifti_agrees_with_nibabel(tmp_path, seed, name):
    array, affine = voxels(seed), oblique(seed)
    kind = nibabel.Nifti2Image if seed % 2 else nibabel.Nifti1Image
    nibabel.save(kind(array, affine), tmp_path / name)
    volume = medvlp.read_volume(tmp_path / name)
    expected, matrix = canonical(array, affine)
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.affine, matrix, atol=1e-4)
    assert volume.array.flags.c_contiguous
    assert (volume.intensity, volume.provenance["intensity_source"]) == (Intensity.STORED, "nobody")


@pytest.mark.data
@pytest.mark.parametrize("name", ["CT_AVM.nii.gz", "CT_pitch.nii.gz"])
def test_real_nifti_agrees_with_simpleitk_and_nibabel(test_data, name):
    import SimpleITK as sitk

    path = test_data / "nifti" / name
    volume = read_volume(path)
    image = nibabel.load(path)
    expected, affine = canonical(np.asarray(image.dataobj), image.affine)
    np.testing.assert_array_equal(volume.array, np.rint(expected))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    itk = sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS")
    np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(itk), atol=0.5 if "AVM" in name else 0)
    matrix = LPS[:3, :3] @ np.reshape(itk.GetDirection(), (3, 3)) * itk.GetSpacing()
    np.testing.assert_allclose(volume.affine[:3, :3], matrix[:, ::-1], atol=1e-4)


def test_intensity_is_what_someone_says(tmp_path):
    nibabel.save(nibabel.Nifti1Image(voxels(), oblique(0)), tmp_path / "x.nii.gz")
    path = tmp_path / "x.nii.gz"
    for volume, intensity, source in (
        (read_volume(path), Intensity.STORED, "nobody"),
        (read_volume(path, HU), Intensity.HU, "configuration"),
        (read_volume(path, HU, facts=VolumeFacts(Intensity.STORED)), Intensity.STORED, "data set"),
        (read_volume(path, facts=VolumeFacts(Intensity.HU)), Intensity.HU, "data set"),
    ):
        assert (volume.intensity, volume.provenance["intensity_source"]) == (intensity, source)
        assert volume.provenance["hu_applied"] is False
    with pytest.raises(UserError, match="cannot be UNIT"):
        read_volume(path, facts=VolumeFacts(Intensity.UNIT))


def test_geometry_of_another_volume_is_refused(tmp_path):
    array = np.zeros((7, 6, 5), np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "x.nii")
    affine = tuple(map(tuple, oblique(4).tolist()))
    volume = read_volume(tmp_path / "x.nii", facts=VolumeFacts(Intensity.HU, affine=affine, size=(7, 6, 5)))
    assert sorted(volume.array.shape) == [5, 6, 7]
    for size in ((5, 6, 7), (7, 6, 4)):
        with pytest.raises(UserError, match="7 x 6 x 5 columns, rows and slices, but the data set's table says"):
            read_volume(tmp_path / "x.nii", facts=VolumeFacts(Intensity.HU, affine=affine, size=size))


def test_facts_of_ct_rate_v1_are_applied_once(tmp_path):
    """Raw values and a wrong affine in the file; slope, intercept and geometry from the tables."""
    array = voxels() + 1000
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "x.nii.gz")
    affine = oblique(4)
    facts = VolumeFacts(Intensity.HU, 1, -1024, tuple(map(tuple, affine.tolist())))
    volume = read_volume(tmp_path / "x.nii.gz", facts=facts)
    expected, matrix = canonical(array - 1024, affine)
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.affine, matrix, atol=1e-4)
    assert volume.provenance["hu_applied"] is True
    assert (volume.provenance["scaling_source"], volume.provenance["affine_source"]) == ("data set", "data set")
    far = read_volume(tmp_path / "x.nii.gz", facts=VolumeFacts(Intensity.HU, 1, -8192))
    assert far.array.min() == array.min() - 8192


def test_header_scaling_is_applied_and_recorded(tmp_path):
    image = nibabel.Nifti1Image(voxels() + 1000, oblique(1))
    image.header.set_slope_inter(1, -1024)
    nibabel.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii", HU)
    theirs, _ = canonical(np.asarray(nibabel.load(tmp_path / "x.nii").dataobj), oblique(1))
    np.testing.assert_array_equal(volume.array, theirs)
    assert volume.provenance["hu_applied"] is True
    assert (volume.provenance["slope"], volume.provenance["intercept"]) == (1.0, -1024.0)
    with pytest.raises(UserError, match="scaled twice"):
        read_volume(tmp_path / "x.nii", facts=VolumeFacts(Intensity.HU, 1, -1024))


def test_fractions(tmp_path):
    floats = voxels().astype(np.float32)
    path = tmp_path / "x.nii.gz"
    nibabel.save(nibabel.Nifti1Image(floats, oblique(2)), path)
    np.testing.assert_array_equal(read_volume(path).array, canonical(floats, oblique(2))[0])
    nibabel.save(nibabel.Nifti1Image(floats + np.float32(0.3), oblique(2)), path)
    with pytest.raises(UserError, match="fractions, and nothing says that they are HU") as caught:
        read_volume(path)
    assert "volume.intensity" in caught.value.fix
    volume = read_volume(path, HU)
    np.testing.assert_array_equal(volume.array, canonical(floats, oblique(2))[0])
    assert volume.provenance["rounded"] is True
    fine = nibabel.Nifti1Image(voxels(), oblique(2))
    fine.header.set_slope_inter(0.01, 0)
    nibabel.save(fine, path)
    with pytest.raises(UserError, match=r"scaled by 0\.01 and merge"):
        read_volume(path)
    for bad in (np.nan, np.inf):
        floats[3, 3, 3] = bad
        nibabel.save(nibabel.Nifti1Image(floats, oblique(2)), path)
        with pytest.raises(UserError, match="NaN or infinite"):
            read_volume(path, HU)


def test_what_int16_cannot_hold(tmp_path):
    wide = voxels().astype(np.int32)
    wide[2, 2, 2] = 70000
    nibabel.save(nibabel.Nifti1Image(wide, oblique(2)), tmp_path / "x.nii")
    with pytest.raises(UserError, match="1 voxels in one part lie outside"):
        read_volume(tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii", HU)
    assert (volume.array.max(), volume.provenance["clipped_voxels"]) == (32767, 1)


def test_padding_of_hu_files_becomes_air(tmp_path):
    array = voxels()
    array[0], array[1, 0] = -3024, -2000
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1, 1, 1])), tmp_path / "x.nii")
    hu, stored = read_volume(tmp_path / "x.nii", HU), read_volume(tmp_path / "x.nii")
    assert (hu.array[:, :, 0] == -1024).all()
    assert (hu.array[:, 0, 1] == -1024).all()
    assert hu.provenance["padding_voxels"] == 12 * 7 + 7
    assert stored.array.min() == -3024


def test_geometry_that_nobody_states(tmp_path):
    image = nibabel.Nifti1Image(voxels(), oblique(3))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    assert volume.affine is None
    assert volume.spacing_mm is None
    np.testing.assert_array_equal(volume.array, voxels().transpose(2, 1, 0))
    with pytest.raises(UserError, match="nothing says how far apart"):
        read_volume(tmp_path / "x.nii", StoredVolumeConfig(spacing_mm=(1, 1, 1)))
    image.set_qform(np.diag([-2.0, 1, 1, 1]), 1)
    nibabel.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    assert volume.provenance["affine_source"] == "qform"
    np.testing.assert_array_equal(volume.array, voxels()[::-1].transpose(2, 1, 0))


def test_units_other_than_mm(tmp_path):
    image = nibabel.Nifti1Image(voxels(), np.diag([0.0007, 0.0008, 0.002, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "x.nii")
    assert read_volume(tmp_path / "x.nii").spacing_mm == pytest.approx((2, 0.8, 0.7))


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([1.0, 1, 0, 1]), "spacing of"),
        (np.diag([1.0, 1, 500, 1]), "spacing of 500"),
        (np.array([[1.0, 0.9, 0, 0], [0, 0.4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "nearly parallel|not perpendicular"),
        (np.array([[1.0, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "not perpendicular"),
    ],
)
def test_absurd_geometry(tmp_path, affine, reason):
    image = nibabel.Nifti1Image(voxels(), np.eye(4))
    image.header["sform_code"] = 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = affine[row]
    image.header["qform_code"] = 0
    data = image.header.binaryblock + b"\0" * 4 + voxels().tobytes(order="F")
    (tmp_path / "x.nii").write_bytes(data)
    with pytest.raises(UserError, match=reason):
        read_volume(tmp_path / "x.nii")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("distances", [(0.0, 0.0, 0.0), (0.8, 0.8, 0.0), (0.8, -0.8, 2.0), (float("nan"), 1.0, 1.0)])
def test_distances_of_a_qform_are_not_made_up(tmp_path, distances, packed):
    """nibabel puts 1 mm for 0, and drops a sign."""
    image = nibabel.Nifti1Image(voxels(), np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(np.eye(4), 1)
    image.header["pixdim"][1:4] = distances
    path = tmp_path / ("x.nii.gz" if packed else "x.nii")

    def write() -> None:
        data = image.header.binaryblock + b"\0" * 4 + voxels().tobytes(order="F")
        path.write_bytes(gzip.compress(data) if packed else data)

    write()
    with pytest.raises(UserError, match="distances of voxels"):
        read_volume(path)
    image.header.set_sform(oblique(1), 1)  # needs none of them
    write()
    assert read_volume(path).provenance["affine_source"] == "sform"


def test_kinds_of_nifti_that_are_no_volume(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)), tmp_path / "4d.nii")
    with pytest.raises(UserError, match="4 dimensions"):
        read_volume(tmp_path / "4d.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 1), np.int16), np.eye(4)), tmp_path / "one.nii")
    assert read_volume(tmp_path / "one.nii").array.shape == (6, 5, 4)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.complex64), np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(UserError, match="complex64"):
        read_volume(tmp_path / "c.nii")


def test_truncated_and_damaged_nifti(tmp_path):
    nibabel.save(nibabel.Nifti1Image(voxels(), oblique(0)), tmp_path / "x.nii")
    data = (tmp_path / "x.nii").read_bytes()
    path = tmp_path / "y.nii"
    for length in (0, 10, 200, 348, 400, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            read_volume(path)
    packed = bytearray(gzip.compress(data))
    for length in (15, 60, len(packed) // 2, len(packed) - 1, len(packed) - 9):
        path.write_bytes(packed[:length])
        with pytest.raises(UserError):
            read_volume(path)
    packed[-6] ^= 1  # the checksum
    path.write_bytes(packed)
    with pytest.raises(UserError, match="damaged"):
        read_volume(path)


def test_the_checksum_is_compared_and_more_voxels_than_declared_are_noticed(tmp_path):
    """The voxels end long before the compressed file does, so that nothing but reading on can tell."""
    array = voxels(shape=(120, 110, 90))
    image = nibabel.Nifti1Image(array, np.eye(4))
    data = bytearray(gzip.compress(image.to_bytes(), compresslevel=1))
    path = tmp_path / "x.nii.gz"
    path.write_bytes(data)
    assert read_volume(path).array.shape == (90, 110, 120)
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_volume(path)
    fewer = bytearray(image.to_bytes())
    fewer[46:48] = (45).to_bytes(2, "little")
    for name, content in (("x.nii.gz", gzip.compress(bytes(fewer), compresslevel=1)), ("x.nii", bytes(fewer))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"more voxels follow|where its header declares"):
            read_volume(tmp_path / name)


def test_a_small_file_that_claims_gigabytes(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((8192, 8192, 64))
    header["magic"], header["vox_offset"], header["sform_code"] = b"n+1", 352, 0
    bomb = gzip.compress(header.binaryblock + b"\0" * 4 + bytes(2**20))
    (tmp_path / "x.nii.gz").write_bytes(bomb)
    with pytest.raises(UserError, match=r"holds only .* compressed"):
        read_volume(tmp_path / "x.nii.gz")


@pytest.mark.parametrize("name", ["x.mhd", "x.mha", "x.nrrd", "x.nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_itk_formats_agree_with_simpleitk(tmp_path, name, compressed, seed):
    import SimpleITK as sitk

    array, affine = voxels(seed), LPS @ oblique(seed)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / name), useCompression=compressed)
    volume = read_volume(tmp_path / name)
    expected, matrix = canonical(array, oblique(seed))
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.affine, matrix, atol=1e-4)


def test_data_file_of_a_header_must_lie_beside_it(tmp_path):
    (tmp_path / "data").mkdir()
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = {}\n"
    (tmp_path / "secret.raw").write_bytes(bytes(16))
    for name in ("../secret.raw", str(tmp_path / "secret.raw"), "", ".."):
        (tmp_path / "data" / "x.mhd").write_text(header.format(name))
        with pytest.raises(UserError, match="another folder"):
            read_volume(tmp_path / "data" / "x.mhd")
    (tmp_path / "data" / "x.mhd").write_text(header.format("missing.raw"))
    with pytest.raises(UserError, match="cannot be opened"):
        read_volume(tmp_path / "data" / "x.mhd")
    (tmp_path / "data" / "x.raw").write_bytes(np.arange(8, dtype="<i2").tobytes())
    (tmp_path / "data" / "x.mhd").write_text(header.format("x.raw"))
    volume = read_volume(tmp_path / "data" / "x.mhd")
    assert volume.affine is None
    assert volume.array.ravel().tolist() == list(range(8))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("DimSize = 2 2 2", "DimSize = 1000000 2 2", "declares a size"),
        ("DimSize = 2 2 2", "DimSize = -2 2 2", "declares a size"),
        ("DimSize = 2 2 2", "DimSize = 2 2", "unusable"),
        ("DimSize = 2 2 2", "DimSize = 2 2 3", "truncated"),
        ("MET_SHORT", "MET_STRING", "ElementType is unknown"),
        ("NDims = 3", "NDims = 4", "one 3D array"),
        ("NDims = 3", "NDims = 3\nNDims = 3", "twice"),
        ("ElementSpacing = 1 1 1", "ElementSpacing = 1 -1 1", "three positive numbers"),
        ("ElementSpacing = 1 1 1", "ElementSpacing = 1 nan 1", "three positive numbers"),
        ("Offset = 0 0 0", "Offset = 0 0 nan", "not finite"),
        ("Offset = 0 0 0\n", "", "only a part of its geometry; Offset is missing"),
        ("NDims = 3", "NDims = 3\nDistanceUnits = um", "not in mm"),
        ("ElementSpacing", "ElementSpacimg", "only a part of its geometry; ElementSpacing is missing"),
    ],
)
def test_broken_metaimage(tmp_path, old, new, reason):
    text = (
        "ObjectType = Image\nNDims = 3\nOffset = 0 0 0\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        "ElementSpacing = 1 1 1\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = x.raw\n"
    )
    (tmp_path / "x.raw").write_bytes(bytes(16))
    (tmp_path / "x.mhd").write_text(text)
    assert read_volume(tmp_path / "x.mhd").affine is not None
    (tmp_path / "x.mhd").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=reason):
        read_volume(tmp_path / "x.mhd")


def test_nrrd_in_other_units_is_refused(tmp_path):
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n"
    )
    path = tmp_path / "x.nrrd"
    for units in ("", 'space units: "mm" "mm" "mm"\n'):
        path.write_bytes((head + units + "\n").encode() + bytes(16))
        assert read_volume(path).spacing_mm == (1, 1, 1)
    path.write_bytes((head + 'space units: "um" "um" "um"\n\n').encode() + bytes(16))
    with pytest.raises(UserError, match="not in mm"):
        read_volume(path)


def test_numpy_files_have_no_geometry_but_that_of_the_data_set(tmp_path):
    """RAD-ChestCT: slices run down, rows to the back, columns to the left."""
    array = voxels().transpose(2, 1, 0).copy()
    np.savez_compressed(tmp_path / "x.npz", ct=array)
    np.save(tmp_path / "x.npy", array)
    for name in ("x.npz", "x.npy"):
        plain = read_volume(tmp_path / name)
        np.testing.assert_array_equal(plain.array, array)
        assert plain.affine is None
        affine = ((-0.8, 0.0, 0.0, 0.0), (0.0, -0.8, 0.0, 0.0), (0.0, 0.0, -0.8, 0.0), (0.0, 0.0, 0.0, 1.0))
        volume = read_volume(tmp_path / name, facts=VolumeFacts(Intensity.HU, affine=affine))
        np.testing.assert_array_equal(volume.array, array[::-1, ::-1, ::-1])
        assert volume.spacing_mm == pytest.approx((0.8, 0.8, 0.8))


def test_numpy_files_that_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=voxels(), b=voxels())
    with pytest.raises(UserError, match="2 arrays"):
        read_volume(path)
    np.savez(path, a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(UserError, match="real numbers"):
        read_volume(path)
    np.savez(path, a=np.asfortranarray(voxels()))
    with pytest.raises(UserError, match="Fortran"):
        read_volume(path)
    np.savez(path, a=voxels()[0])
    with pytest.raises(UserError, match="2 dimensions"):
        read_volume(path)
    np.savez_compressed(path, a=voxels())
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(UserError):
        read_volume(path)


def test_picture_slices_are_sorted_as_integers(tmp_path):
    slices = np.random.default_rng(0).integers(0, 256, (12, 8, 9), dtype=np.uint8)
    for k, pixels in enumerate(slices):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")  # 10 comes after 9, not after 1
    (tmp_path / "text.txt").write_text("a report")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, slices)
    assert (volume.array.dtype, volume.affine, volume.spacing_mm) == (np.int16, None, None)
    assert volume.intensity is Intensity.STORED
    (tmp_path / "3.png").unlink()
    assert read_volume(tmp_path).provenance["missing_numbers"] == 1
    with pytest.raises(UserError, match="grey values, not HU"):
        read_volume(tmp_path, HU)
    Image.fromarray(slices[0]).save(tmp_path / "a7.png")
    with pytest.raises(UserError, match="Two slices have the number 7"):
        read_volume(tmp_path)
    (tmp_path / "a7.png").unlink()
    Image.fromarray(slices[0, :4]).save(tmp_path / "3.png")
    with pytest.raises(UserError, match="4 x 9 where the first has 8 x 9"):
        read_volume(tmp_path)


def test_what_is_no_volume(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("x.png", "A picture is no volume"),
        ("empty", "empty"),
        ("text", "no volume in a known format"),
    ):
        with pytest.raises(UserError, match=reason):
            read_volume(tmp_path / name)
    with pytest.raises(UserError, match="neither DICOM nor picture slices"):
        read_volume(tmp_path / "folder")
    with pytest.raises(UserError, match="cannot be opened"):
        read_volume(Path(tmp_path / "missing"))

"""DICOM files made here, for what the real ones do not show; expected values are written out by hand or in numpy."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.io import read_radiograph, to_stored
from medvlp.types import Intensity

NONE = StoredImageConfig(voi="none")
SECRET = "Doe^Jane19500101"


def make(
    words: np.ndarray,
    *,
    bits: int | None = None,
    syntax: str = ExplicitVRLittleEndian,
    meta: bool = True,
    **tags: object,
) -> bytes:
    """Return a DICOM file that holds `words` (the raw pixel words) as they are."""
    ds = Dataset()
    ds.PatientName = ds.PatientID = ds.AccessionNumber = SECRET
    ds.Modality = "DX"
    ds.Rows, ds.Columns = words.shape[-2:]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = words.dtype.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(words.dtype.kind == "i")
    big = syntax == ExplicitVRBigEndian
    data = words.astype(words.dtype.newbyteorder(">" if big else "<")).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    buffer = io.BytesIO()
    if meta:
        dcmwrite(buffer, ds, enforce_file_format=True)
    else:
        del ds.file_meta
        dcmwrite(buffer, ds, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=not big)
    return buffer.getvalue()


def read(tmp_path: Path, data: bytes, config: StoredImageConfig | None = None):
    path = tmp_path / "x.dcm"
    path.write_bytes(data)
    radiograph = read_radiograph(path, config)
    assert "Doe" not in str({**radiograph.provenance, "path": ""})
    return radiograph


RAMP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 80


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
def test_uncompressed_transfer_syntaxes(tmp_path, syntax, dtype):
    words = np.arange(35).reshape(5, 7).astype(dtype) * 3 - (50 if dtype == "i2" else 0)
    words = words.astype(dtype)
    radiograph = read(tmp_path, make(words, syntax=syntax), NONE)
    np.testing.assert_array_equal(radiograph.array, words)
    assert radiograph.provenance["transfer_syntax"] == syntax.name


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_file_without_preamble_and_meta_header(tmp_path, syntax):
    radiograph = read(tmp_path, make(RAMP, syntax=syntax, meta=False), NONE)
    np.testing.assert_array_equal(radiograph.array, RAMP)
    assert radiograph.provenance["transfer_syntax"] == syntax.name


def test_rle(tmp_path):
    import pydicom

    words = np.arange(600, dtype=np.uint16).reshape(20, 30)
    ds = pydicom.dcmread(io.BytesIO(make(words)))
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    ds.compress(RLELossless, encoding_plugin="pydicom")
    buffer = io.BytesIO()
    ds.save_as(buffer)
    np.testing.assert_array_equal(read(tmp_path, buffer.getvalue(), NONE).array, words)


@pytest.mark.parametrize("bits", [10, 12, 15])
@pytest.mark.parametrize("signed", [False, True])
def test_unused_high_bits_are_ignored(tmp_path, bits, signed):
    """Old overlays live in the high bits of the pixel words."""
    rng = np.random.default_rng(bits)
    low = -(2 ** (bits - 1)) if signed else 0
    values = rng.integers(low, low + 2**bits, size=(9, 11))
    words = ((values & (2**bits - 1)) | (rng.integers(0, 2, size=values.shape) << bits)).astype(np.uint16)
    data = make(words, bits=bits, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(read(tmp_path, data, NONE).array, values)


def test_high_bit_above_the_stored_bits(tmp_path):
    values = np.arange(48).reshape(6, 8) * 85
    words = ((values << 4) | 0b1010).astype(np.uint16)
    np.testing.assert_array_equal(read(tmp_path, make(words, bits=12, HighBit=15), NONE).array, values)


@pytest.mark.parametrize(
    ("function", "centre", "width", "expected"),
    [
        # PS3.3 C.11.2.1.2.1 lists these: centre 2048, width 4096 maps 0..4095 to the whole range.
        (None, 2048, 4096, lambda x: x / 4095),
        ("LINEAR", 2048, 1, lambda x: (x > 2047.5).astype(float)),
        ("LINEAR", 0, 100, lambda x: np.where(x <= -50, 0, np.where(x > 49, 1, (x + 0.5) / 99 + 0.5))),
        ("LINEAR", 2047.5, 2, lambda x: np.clip(x - 2046.5, 0, 1)),
        ("LINEAR_EXACT", 2048, 4096, lambda x: x / 4096),
        ("LINEAR_EXACT", 100, 0.5, lambda x: np.where(x <= 99.75, 0, np.where(x > 100.25, 1, (x - 100) / 0.5 + 0.5))),
        ("SIGMOID", 2000, 500, lambda x: 1 / (1 + np.exp(-4 * (x - 2000) / 500))),
    ],
)
def test_windows(tmp_path, function, centre, width, expected):
    words = np.array([[0, 1, 49, 50, 99, 100, 101, 2046], [2047, 2048, 2049, 2000, 3000, 4000, 4094, 4095]], np.uint16)
    tags = {"WindowCenter": centre, "WindowWidth": width} | ({"VOILUTFunction": function} if function else {})
    radiograph = read(tmp_path, make(words, bits=12, **tags))
    np.testing.assert_allclose(radiograph.array, expected(words.astype(float)), atol=1e-6)
    assert radiograph.provenance["voi"]["function"] == (function or "LINEAR")
    inverse = read(tmp_path, make(words, bits=12, PhotometricInterpretation="MONOCHROME1", **tags))
    np.testing.assert_allclose(inverse.array, 1 - expected(words.astype(float)), atol=1e-6)


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 10, "WindowWidth": 0},
        {"WindowCenter": 10, "WindowWidth": 0.5},
        {"WindowCenter": 10, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": [10, 20], "WindowWidth": 5},
        {"WindowCenter": 10, "WindowWidth": 5, "VOILUTFunction": "CUBIC"},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"RescaleSlope": 2},
    ],
)
def test_unusable_transformations_are_errors(tmp_path, tags):
    with pytest.raises(UserError, match="cannot be used") as caught:
        read(tmp_path, make(RAMP, **tags))
    assert caught.value.where.endswith("x.dcm")


def lut(descriptor: list[int], data: object, kind: str | None = None) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if min(descriptor) >= 0 else "SS", descriptor)
    item.add_new("LUTData", "OW" if isinstance(data, bytes) else "US", data)
    if kind:
        item.ModalityLUTType = kind
    return Sequence([item])


def test_voi_lut_takes_its_ends_outside_and_inverts_after(tmp_path):
    words = np.array([[0, 4, 5, 6, 7, 8, 9, 255]], np.uint8)
    sequence = lut([4, 5, 10], [0, 100, 300, 1023])
    expected = np.array([[0, 0, 0, 100, 300, 1023, 1023, 1023]]) / 1023
    data = make(words, VOILUTSequence=sequence, WindowCenter=3, WindowWidth=4)
    np.testing.assert_allclose(read(tmp_path, data).array, expected, atol=1e-7)
    data = make(words, VOILUTSequence=sequence, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read(tmp_path, data).array, 1 - expected, atol=1e-7)


def test_window_is_taken_where_config_says_so(tmp_path):
    data = make(RAMP, VOILUTSequence=lut([2, 0, 8], [0, 255]), WindowCenter=2048, WindowWidth=4096)
    radiograph = read(tmp_path, data, StoredImageConfig(voi="window"))
    np.testing.assert_allclose(radiograph.array, RAMP / 4095, atol=1e-6)


def test_voi_lut_of_signed_values_with_unsigned_descriptor(tmp_path):
    """First mapped value -2 written as 65534, as many writers do."""
    words = np.array([[-3, -2, -1, 0, 1, 2]], np.int16)
    data = make(words, VOILUTSequence=lut([4, 65534, 8], [10, 20, 30, 255]))
    np.testing.assert_allclose(read(tmp_path, data).array * 255, [[10, 10, 20, 30, 255, 255]], atol=1e-4)


def test_eight_bit_lut_packed_in_words(tmp_path):
    words = np.array([[0, 1, 2, 3]], np.uint8)
    for data in (bytes([7, 8, 9, 200]), [7 | 8 << 8, 9 | 200 << 8]):
        sequence = lut([4, 0, 8], data)
        np.testing.assert_allclose(read(tmp_path, make(words, VOILUTSequence=sequence)).array * 255, [[7, 8, 9, 200]])


def test_lut_that_contradicts_its_descriptor(tmp_path):
    for sequence in (lut([8, 0, 8], [1, 2, 3]), lut([2, 0, 8], [1, 300]), lut([2, 0, 30], [1, 2])):
        with pytest.raises(UserError, match="a LUT"):
            read(tmp_path, make(RAMP, VOILUTSequence=sequence))


def test_modality_lut_then_window(tmp_path):
    words = np.array([[0, 1, 2, 3]], np.uint8)
    data = make(
        words, ModalityLUTSequence=lut([4, 0, 16], [0, 1000, 3000, 4095], "OD"), WindowCenter=2048, WindowWidth=4096
    )
    np.testing.assert_allclose(read(tmp_path, data).array, [[0, 1000 / 4095, 3000 / 4095, 1]], atol=1e-6)


def test_monochrome1_without_voi_is_mirrored_in_its_declared_bits(tmp_path):
    radiograph = read(tmp_path, make(RAMP, bits=12, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(radiograph.array, 4095 - RAMP.astype(float))
    assert radiograph.intensity is Intensity.STORED
    signed = (RAMP.astype(np.int32) - 2048).astype(np.int16)
    radiograph = read(tmp_path, make(signed, bits=12, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(radiograph.array, -1 - signed.astype(float))


def test_hounsfield_only_where_the_file_says_so(tmp_path):
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    cases = [
        ({"Modality": "CT", "RescaleType": "HU"}, Intensity.HU),
        ({"Modality": "CT"}, Intensity.HU),
        ({"Modality": "CT", "RescaleType": "US"}, Intensity.STORED),
        ({"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Intensity.STORED),
        ({"Modality": "DX"}, Intensity.STORED),
    ]
    for tags, intensity in cases:
        radiograph = read(tmp_path, make(RAMP, **rescale, **tags), NONE)
        assert radiograph.intensity is intensity, tags
        np.testing.assert_array_equal(radiograph.array, RAMP * 2.0 - 1000)
    assert read(tmp_path, make(RAMP, Modality="CT"), NONE).intensity is Intensity.STORED


def test_padding_is_black_with_and_without_voi(tmp_path):
    words = RAMP.copy()
    words[0] = 4095
    tags = {"PixelPaddingValue": 4095, "PhotometricInterpretation": "MONOCHROME2"}
    windowed = read(tmp_path, make(words, bits=12, WindowCenter=2048, WindowWidth=4096, **tags))
    np.testing.assert_array_equal(windowed.array[0], 0)
    np.testing.assert_allclose(windowed.array[1:], words[1:] / 4095, atol=1e-6)
    assert windowed.provenance["padding"]["pixels"] == 8
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        plain = read(tmp_path, make(words, bits=12, **tags | {"PhotometricInterpretation": photometric}), NONE)
        inside = plain.array[1:]
        assert plain.provenance["range"] == (inside.min(), inside.max())
        stored = to_stored(plain, StoredImageConfig(size=16, aspect="squash", interpolation="bilinear"))
        assert stored[0].max() == 0
        assert stored.max() > 200


def test_padding_range_and_wrongly_signed_value(tmp_path):
    words = np.array([[-2000, -1990, -1980, 0, 100, 200]], np.int16)
    data = make(words, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1985)
    for tag in (b"\x20\x01", b"\x21\x01"):
        data = data.replace(b"\x28\x00" + tag + b"SS", b"\x28\x00" + tag + b"US")
    radiograph = read(tmp_path, data, NONE)
    assert radiograph.provenance["padding"] == {"low": -2000, "high": -1985, "pixels": 2}
    assert radiograph.provenance["range"] == (-1980, 200)


@pytest.mark.parametrize(
    ("tags", "spacing", "tag"),
    [
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "ImagerPixelSpacing"),
        ({"PixelSpacing": [0.3, 0.4]}, (0.3, 0.4), "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.3, 0.3]}, (0.2, 0.2), "ImagerPixelSpacing"),
        (
            {"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.3, 0.3], "PixelSpacingCalibrationType": "FIDUCIAL"},
            (0.3, 0.3),
            "PixelSpacing",
        ),
        ({"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.3, 0.3], "Modality": "MR"}, (0.3, 0.3), "PixelSpacing"),
        ({"ImagerPixelSpacing": [0, 0], "PixelSpacing": [0.3, 0.3]}, (0.3, 0.3), "PixelSpacing"),
        ({"NominalScannedPixelSpacing": [0.5, 0.5], "Modality": "OT"}, (0.5, 0.5), "NominalScannedPixelSpacing"),
        ({"PixelSpacing": [0, 0]}, None, None),
        ({}, None, None),
    ],
)
def test_spacing_and_the_name_of_its_tag(tmp_path, tags, spacing, tag):
    radiograph = read(tmp_path, make(RAMP, **tags))
    assert radiograph.spacing_mm == spacing
    assert radiograph.provenance["spacing_tag"] == tag


def test_colour_is_refused_unless_luminance(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, size=(4, 6, 3), dtype=np.uint8)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB", "Rows": 4, "Columns": 6}
    data = make(rgb, **tags)
    with pytest.raises(UserError, match="RGB"):
        read(tmp_path, data)
    radiograph = read(tmp_path, data, StoredImageConfig(colour="luminance"))
    np.testing.assert_allclose(radiograph.array * 255, rgb @ [0.299, 0.587, 0.114], atol=1e-3)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PixelData": None}, "no integer pixel data"),
        ({"Rows": None}, "lacks Rows"),
        ({"BitsStored": None}, "lacks BitsStored"),
        ({"PixelRepresentation": None}, "lacks PixelRepresentation"),
        ({"PhotometricInterpretation": SECRET}, "photometric interpretation is unknown"),
        ({"Rows": 7}, "truncated"),
        ({"Rows": 5}, "rows, columns and frames make"),
        ({"Columns": 0}, "no rows or columns"),
        ({"NumberOfFrames": 0, "Rows": 4}, "rows, columns and frames make"),
        ({"NumberOfFrames": -1}, "-1 frames"),
        ({"BitsAllocated": 32}, "8 or 16 are read"),
        ({"BitsStored": 17}, "8 or 16 are read"),
    ],
)
def test_missing_and_wrong_headers(tmp_path, tags, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read(tmp_path, make(RAMP, **tags))
    assert "Doe" not in str(caught.value).replace(caught.value.where, "")


def test_jpeg_frame_of_another_size_or_cut_inside(tmp_path):
    from PIL import Image

    smooth = (np.add.outer(np.arange(64), np.arange(80)) * 255 / 142).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
    stream = buffer.getvalue()

    def wrap(frame: bytes, **tags: object) -> bytes:
        return make(smooth, syntax=JPEGBaseline8Bit, PixelData=encapsulate([frame]), **tags)

    whole = read(tmp_path, wrap(stream), NONE).array
    np.testing.assert_allclose(whole, smooth, atol=4)
    with pytest.raises(UserError, match="64 x 80 where 80 x 64"):
        read(tmp_path, wrap(stream, Rows=80, Columns=64))
    with pytest.raises(UserError, match="end-of-image"):
        read(tmp_path, wrap(stream[: len(stream) // 2]))
    # Cut in the middle but closed by a proper end marker: decoders fill the rest with grey and say nothing.
    with pytest.raises(UserError, match="coded data end"):
        read(tmp_path, wrap(stream[: len(stream) * 2 // 3] + b"\xff\xd9"))

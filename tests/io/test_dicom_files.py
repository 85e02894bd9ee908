"""Every DICOM test file, pixel by pixel, against SimpleITK plus a few lines of numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.io import find_images, is_image_file, read_radiograph, to_stored
from medvlp.types import Intensity

pytestmark = pytest.mark.data
SimpleITK = pytest.importorskip("SimpleITK")

RADIOGRAPH = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm"


@pytest.fixture(scope="module")
def dicom(test_data: Path) -> Path:
    return test_data / "dicom"


def reference(path: Path) -> np.ndarray:
    """Values after rescale; SimpleITK also mirrors MONOCHROME1 within its declared bits."""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(np.float64)


def linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """The formula of PS3.3 C.11.2.1.2.1 as it is written there, for an output range of 0 to 1."""
    out = (values - (centre - 0.5)) / (width - 1) + 0.5
    out[values <= centre - 0.5 - (width - 1) / 2] = 0
    out[values > centre - 0.5 + (width - 1) / 2] = 1
    return out


@pytest.mark.parametrize(
    ("name", "intensity", "spacing", "inverted"),
    [
        (RADIOGRAPH, Intensity.STORED, (0.168, 0.168), False),
        ("693_J2KR.dcm", Intensity.HU, (0.478516, 0.478516), False),
        ("693_UNCI.dcm", Intensity.HU, (0.478516, 0.478516), False),
        ("Fake_MONOHR1.dcm", Intensity.STORED, (0.168, 0.168), True),
        ("JLSL_16_15_1_1F.dcm", Intensity.STORED, None, False),
        ("JPEG-LL.dcm", Intensity.STORED, (2.26, 2.26), False),
        ("MR-SIEMENS-DICOM-WithOverlays.dcm", Intensity.STORED, (0.72314049586777, 0.72314049586777), False),
        ("RG1_J2KI.dcm", Intensity.STORED, None, True),
        ("RG3_J2KI.dcm", Intensity.STORED, None, True),
        ("bad_sequence.dcm", Intensity.HU, (0.287109375, 0.287109375), False),
        ("vlut_04.dcm", Intensity.STORED, None, False),
    ],
)
def test_values_without_voi_are_those_of_simpleitk(dicom, name, intensity, spacing, inverted):
    radiograph = read_radiograph(dicom / name, StoredImageConfig(voi="none"))
    expected = reference(dicom / name)[0]
    np.testing.assert_array_equal(radiograph.array, expected)
    assert radiograph.array.dtype == np.float32
    assert radiograph.intensity is intensity
    assert radiograph.spacing_mm == spacing
    assert radiograph.provenance["spacing_tag"] == ("PixelSpacing" if spacing else None)
    assert radiograph.provenance["inverted"] is inverted
    assert radiograph.provenance["voi"] == {"kind": "none"}


@pytest.mark.parametrize(
    ("name", "centre", "width", "monochrome1"),
    [
        ("693_J2KR.dcm", 40, 100, False),
        ("693_UNCI.dcm", 40, 100, False),
        ("MR-SIEMENS-DICOM-WithOverlays.dcm", 450, 790, False),
        ("bad_sequence.dcm", 40, 350, False),
        ("RG1_J2KI.dcm", 15000, 30000, 32767),
        ("RG3_J2KI.dcm", 550, 1024, 1023),
    ],
)
def test_first_window(dicom, name, centre, width, monochrome1):
    radiograph = read_radiograph(dicom / name)
    values = reference(dicom / name)[0]
    expected = 1 - linear(monochrome1 - values, centre, width) if monochrome1 else linear(values, centre, width)
    np.testing.assert_allclose(radiograph.array, expected, atol=1e-6)
    assert radiograph.intensity is Intensity.UNIT
    assert radiograph.provenance["voi"] == {
        "kind": "window",
        "index": 0,
        "function": "LINEAR",
        "centre": centre,
        "width": width,
    }
    assert radiograph.provenance["inverted"] is bool(monochrome1)


def test_second_window_by_config(dicom):
    path = dicom / "MR-SIEMENS-DICOM-WithOverlays.dcm"
    radiograph = read_radiograph(path, StoredImageConfig(voi="window", voi_index=1))
    np.testing.assert_allclose(radiograph.array, linear(reference(path)[0], 200, 443), atol=1e-6)
    with pytest.raises(UserError, match="none of index 2"):
        read_radiograph(path, StoredImageConfig(voi_index=2))
    with pytest.raises(UserError, match="no VOI LUT"):
        read_radiograph(path, StoredImageConfig(voi="lut"))


def raw_lut(path: Path, sequence: str) -> np.ndarray:
    import pydicom

    return np.asarray(pydicom.dcmread(path)[sequence][0].LUTData, dtype=np.int64)


def test_voi_lut(dicom):
    path = dicom / "vlut_04.dcm"
    expected = raw_lut(path, "VOILUTSequence")[reference(path)[0].astype(int)] / 65535
    radiograph = read_radiograph(path)
    np.testing.assert_allclose(radiograph.array, expected, atol=1e-7)
    assert radiograph.provenance["voi"]["kind"] == "lut"
    with pytest.raises(UserError, match="no window"):
        read_radiograph(path, StoredImageConfig(voi="window"))


def test_modality_lut(dicom):
    path = dicom / "mlut_18.dcm"
    radiograph = read_radiograph(path)
    expected = raw_lut(path, "ModalityLUTSequence")[reference(path)[0].astype(int) + 2048]
    np.testing.assert_array_equal(radiograph.array, expected)
    assert radiograph.intensity is Intensity.STORED
    assert radiograph.provenance["range"] == (0, 65535)


def test_multi_frame_is_refused_unless_chosen(dicom):
    path = dicom / "eCT_Supplemental.dcm"
    with pytest.raises(UserError, match="2 frames") as caught:
        read_radiograph(path)
    assert "image.frame" in caught.value.fix
    frames = reference(path)
    # Window and rescale stand in the shared and per-frame groups of this file: centre 49, width 102; slope 1, -1024.
    for frame in (0, 1):
        radiograph = read_radiograph(path, StoredImageConfig(frame=frame))
        np.testing.assert_allclose(radiograph.array, linear(frames[frame], 49, 102), atol=1e-6)
        assert radiograph.provenance["frame"] == frame
        assert radiograph.spacing_mm == (0.388672, 0.388672)
    with pytest.raises(UserError, match="Frame 2 was asked for"):
        read_radiograph(path, StoredImageConfig(frame=2))


def test_palette_colour_is_refused_unless_luminance(dicom):
    path = dicom / "OBXXXX1A_rle_2frame.dcm"
    with pytest.raises(UserError, match="2 frames"):
        read_radiograph(path)
    with pytest.raises(UserError, match="PALETTE COLOR"):
        read_radiograph(path, StoredImageConfig(frame=1))
    radiograph = read_radiograph(path, StoredImageConfig(frame=1, colour="luminance"))
    rgb = reference(path)[1]
    np.testing.assert_allclose(radiograph.array * 255, rgb @ [0.299, 0.587, 0.114], atol=1.0)
    assert radiograph.intensity is Intensity.UNIT


def test_file_that_ends_before_its_pixels(dicom):
    path = dicom / "emri_small_jpeg_2k_lossless_too_short.dcm"
    with pytest.raises(UserError, match="ends before") as caught:
        read_radiograph(path)
    assert caught.value.where == str(path)
    assert caught.value.fix


def test_hounsfield_padding_is_black_and_outside_the_range(dicom):
    path = dicom / "693_J2KR.dcm"
    config = StoredImageConfig(voi="none", size=512)
    radiograph = read_radiograph(path, config)
    values = reference(path)[0]
    padded = values == -3024
    assert radiograph.provenance["padding"] == {"low": -3024, "high": -3024, "pixels": padded.sum()}
    low, high = values[~padded].min(), values.max()
    assert radiograph.provenance["range"] == (low, high)
    stored = to_stored(radiograph, config)
    np.testing.assert_array_equal(stored[padded], 0)
    expected = np.where(padded, 0, (values - low) / (high - low) * 255)
    np.testing.assert_allclose(stored, expected, atol=0.51)


def test_provenance_is_json_without_identifiers(dicom):
    import pydicom

    for path in dicom.glob("*.dcm"):
        if "too_short" in path.name:
            continue
        provenance = dict(read_radiograph(path, StoredImageConfig(frame=0, colour="luminance")).provenance)
        del provenance["path"]
        text = json.dumps(provenance)
        header = pydicom.dcmread(path, stop_before_pixels=True)
        for keyword in (
            "PatientName",
            "PatientID",
            "PatientBirthDate",
            "AccessionNumber",
            "StudyInstanceUID",
            "StudyDate",
        ):
            value = str(header.get(keyword, ""))
            assert len(value) < 4 or value not in text, (path.name, keyword)


def test_image_files_are_found_by_content(dicom, tmp_path):
    assert len(find_images(dicom)) == 15
    renamed = tmp_path / "deep" / "scan.txt"
    renamed.parent.mkdir()
    renamed.write_bytes((dicom / "vlut_04.dcm").read_bytes())
    (tmp_path / "note.dcm").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / ".hidden.dcm").write_bytes(renamed.read_bytes())
    assert find_images(tmp_path) == [renamed]
    assert not is_image_file(tmp_path / "missing.png")
    np.testing.assert_array_equal(read_radiograph(renamed).array, read_radiograph(dicom / "vlut_04.dcm").array)
    for name, reason in (
        ("note.dcm", "neither"),
        ("empty.png", "empty"),
        ("missing.png", "opened"),
        ("deep", "folder"),
    ):
        with pytest.raises(UserError, match=reason):
            read_radiograph(tmp_path / name)

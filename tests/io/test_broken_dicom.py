"""Truncated and damaged DICOM files: always a `UserError` with the path, never a partial image or a bare traceback."""

from __future__ import annotations

import numpy as np
import pytest

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.io import read_radiograph

pytestmark = pytest.mark.data

CONFIG = StoredImageConfig(frame=0, colour="luminance", voi="none")
SMALL = [
    "JLSL_16_15_1_1F.dcm",
    "JPEG-LL.dcm",
    "693_J2KR.dcm",
    "RG3_J2KI.dcm",
    "OBXXXX1A_rle_2frame.dcm",
    "vlut_04.dcm",
    "Fake_MONOHR1.dcm",
    "bad_sequence.dcm",
    "eCT_Supplemental.dcm",
]


@pytest.mark.parametrize("name", SMALL)
def test_every_truncation_is_an_error(test_data, tmp_path, name):
    data = (test_data / "dicom" / name).read_bytes()
    path = tmp_path / name
    rng = np.random.default_rng(0)
    lengths = [len(data) - cut for cut in (1, 2, 3, 7, 8, 9, 50)] + rng.integers(1, len(data), size=25).tolist()
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(UserError) as caught:
            read_radiograph(path, CONFIG)
        assert caught.value.where == str(path)
        assert caught.value.fix


@pytest.mark.parametrize("name", SMALL)
def test_flipped_bits_give_an_image_or_an_error(test_data, tmp_path, name, capfd, recwarn, caplog):
    data = (test_data / "dicom" / name).read_bytes()
    path = tmp_path / name
    rng = np.random.default_rng(1)
    for _ in range(25):
        broken = bytearray(data)
        for position in rng.integers(0, min(len(data), 4000), size=3):
            broken[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            radiograph = read_radiograph(path, CONFIG)
        except UserError:
            continue
        assert radiograph.array.ndim == 2
        assert np.isfinite(radiograph.array).all()
    assert capfd.readouterr() == ("", "")
    assert not [str(found.message) for found in recwarn] + [record.message for record in caplog.records]


def test_a_crashing_decoder_costs_one_image(test_data, tmp_path):
    """GDCM aborts the whole process on this stream: an unknown JFIF revision, then a bad Huffman code."""
    data = bytearray((test_data / "dicom" / "bad_sequence.dcm").read_bytes())
    path = tmp_path / "x.dcm"
    for position, mask in ((3615, 0x04), (2009, 0x40)):
        data[position] ^= mask
    path.write_bytes(data)
    with pytest.raises(UserError, match="the decoder crashed"):
        read_radiograph(path)
    assert read_radiograph(test_data / "dicom" / "bad_sequence.dcm").array.shape == (512, 512)


def test_reasons_quote_nothing_from_the_file(test_data, tmp_path):
    """A damaged length can make one attribute swallow others, so values never enter a message."""
    data = bytearray((test_data / "dicom" / "MR-SIEMENS-DICOM-WithOverlays.dcm").read_bytes())
    position = data.find(b"\x28\x00\x50\x10DS")
    assert position > 0
    data[position + 8 : position + 12] = b"Anna"
    path = tmp_path / "x.dcm"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_radiograph(path)
    assert "Anna" not in caught.value.what

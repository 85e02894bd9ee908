"""PNG and JPEG against Pillow, OpenCV and arrays written by hand."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.io import read_radiograph
from medvlp.types import Intensity

LUMINANCE = StoredImageConfig(colour="luminance")


def encode(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def read(tmp_path: Path, data: bytes, config: StoredImageConfig | None = None):
    path = tmp_path / "x"
    path.write_bytes(data)
    return read_radiograph(path, config)


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.integers(0, 256, size=(61, 83), dtype=np.uint8), (9, 9), 3)


def test_8_bit_png_is_unit(tmp_path, grey):
    radiograph = read(tmp_path, encode(grey))
    np.testing.assert_array_equal(radiograph.array, grey.astype(np.float32) / 255)
    assert radiograph.intensity is Intensity.UNIT
    assert radiograph.spacing_mm is None
    assert radiograph.provenance["format"] == "png"
    assert radiograph.provenance["range"] == (0, 1)


def test_16_bit_png_keeps_16_bits(tmp_path):
    values = (np.arange(60 * 70, dtype=np.uint16) * 13 + 500).reshape(60, 70)
    radiograph = read(tmp_path, encode(values))
    np.testing.assert_array_equal(radiograph.array, values)
    assert radiograph.intensity is Intensity.STORED
    assert radiograph.provenance["range"] == (values.min(), values.max())
    assert radiograph.provenance["bits"] == 16


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits_reaches_full_scale(tmp_path, bits):
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    values = np.arange(8) % 2**bits
    packed = np.packbits(((values[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8))
    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    body = zlib.compress(b"\0" + packed.tobytes())
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    np.testing.assert_allclose(read(tmp_path, png).array, [values / (2**bits - 1)], atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "LA", "P"])
def test_grey_pictures_in_colour_modes(tmp_path, grey, mode):
    image = Image.fromarray(grey).convert(mode)
    radiograph = read(tmp_path, encode(image))
    np.testing.assert_array_equal(radiograph.array, grey.astype(np.float32) / 255)


def test_palette_that_is_not_in_grey_order(tmp_path, grey):
    image = Image.fromarray(grey)
    image = Image.fromarray(255 - grey, mode=None).convert("P")
    image.putpalette([value for index in range(256) for value in [255 - index] * 3])
    np.testing.assert_array_equal(read(tmp_path, encode(image)).array, grey.astype(np.float32) / 255)


def test_true_colour_is_refused_unless_luminance(tmp_path, grey):
    rgb = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    for data in (encode(rgb), encode(Image.fromarray(rgb).convert("P"))):
        with pytest.raises(UserError, match="coloured") as caught:
            read(tmp_path, data)
        assert "luminance" in caught.value.fix
    radiograph = read(tmp_path, encode(rgb), LUMINANCE)
    np.testing.assert_allclose(radiograph.array, rgb @ [0.299, 0.587, 0.114] / 255, atol=1e-6)
    assert radiograph.provenance["colour"] == "luminance"


def test_one_coloured_pixel_is_colour(tmp_path, grey):
    rgb = np.stack([grey] * 3, axis=-1)
    rgb[5, 5, 0] ^= 1
    with pytest.raises(UserError, match="coloured"):
        read(tmp_path, encode(rgb))


def test_what_would_lose_information_is_refused(tmp_path, grey):
    see_through = np.stack([grey, grey, grey, grey], axis=-1)
    with pytest.raises(UserError, match="transparent"):
        read(tmp_path, encode(see_through))
    ok, wide = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint16))
    assert ok
    with pytest.raises(UserError, match="16-bit RGB"):
        read(tmp_path, wide.tobytes(), LUMINANCE)
    with pytest.raises(UserError, match="one image"):
        read(tmp_path, encode(grey), StoredImageConfig(frame=1))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_jpeg_as_opencv_decodes_it(tmp_path, grey, options):
    data = encode(grey, "JPEG", **options)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    radiograph = read(tmp_path, data)
    np.testing.assert_array_equal(radiograph.array, expected.astype(np.float32) / 255)
    assert radiograph.provenance["format"] == "jpeg"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, grey, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(grey, "JPEG", exif=exif, quality=100)
    radiograph = read(tmp_path, data)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(radiograph.array, expected.astype(np.float32) / 255)
    assert radiograph.provenance["orientation"] == orientation


def test_undefined_orientation_is_refused(tmp_path, grey):
    exif = Image.Exif()
    exif[0x0112] = 9
    with pytest.raises(UserError, match="orientation is 9"):
        read(tmp_path, encode(grey, "JPEG", exif=exif))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_truncation_is_an_error(tmp_path, grey, kind):
    data = encode(grey, kind)
    for length in range(8, len(data) - 1):
        with pytest.raises(UserError) as caught:
            read(tmp_path, data[:length])
        assert caught.value.where.endswith("x")


def test_truncation_is_an_error_even_if_pillow_is_told_to_load_it(tmp_path, grey, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for kind in ("PNG", "JPEG"):
        with pytest.raises(UserError):
            read(tmp_path, encode(grey, kind)[:-200])


def test_jpeg_cut_in_the_middle_and_closed_again(tmp_path, grey):
    """libjpeg fills the lost part with mid-grey without an error; the file must not pass for a radiograph."""
    data = encode(grey, "JPEG")
    cut = data[: len(data) * 2 // 3] + b"\xff\xd9"
    assert (np.asarray(Image.open(io.BytesIO(cut)))[-8:, -8:] == 128).all()
    with pytest.raises(UserError, match="coded data end before"):
        read(tmp_path, cut)
    whole = np.full((64, 64), 128, np.uint8)
    np.testing.assert_array_equal(read(tmp_path, encode(whole, "JPEG")).array, whole / np.float32(255))


def test_flipped_bits_in_a_png_never_pass(tmp_path, grey):
    data = encode(grey)
    rng = np.random.default_rng(1)
    for position in rng.integers(8, len(data), size=200):
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(UserError):
            read(tmp_path, bytes(broken))


def test_other_formats_are_named(tmp_path, grey):
    for kind in ("BMP", "TIFF", "GIF"):
        with pytest.raises(UserError, match="neither DICOM nor PNG nor JPEG"):
            read(tmp_path, encode(grey, kind))


@pytest.mark.data
def test_nih_files_as_opencv_decodes_them(test_data):
    for path in sorted((test_data / "nih_chestxray14_native").glob("*.png"))[:4]:
        expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read_radiograph(path).array, expected.astype(np.float32) / 255)

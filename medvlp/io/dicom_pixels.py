"""Pixel data of one DICOM frame -> stored values, complete or an error.

Guarantee: the decoder of each transfer syntax is fixed (so every machine gives the same values), a compressed frame is
checked for completeness and size before and after decoding, and bits outside Bits Stored (old overlays, leftovers)
never reach the image. Errors are `ValueError` with a reason.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import config, uid
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from medvlp.io.bitstream import JpegLayout, check_rle, jpeg2000_size, jpeg_layout, with_more_scan_data
from medvlp.io.decoder_process import Frame, decode_frame

if TYPE_CHECKING:
    from jaxtyping import Integer, Shaped
    from pydicom.dataset import Dataset

_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
PLUGINS = {
    **dict.fromkeys((*_JPEG, *_JPEG_LS), "gdcm"),
    **dict.fromkeys(_JPEG_2000, "pylibjpeg"),
    uid.RLELossless: "pydicom",
}
"""Compressed transfer syntax -> the one pydicom plugin that decodes it."""
_IMAGE_PIXEL = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
_QUIET = threading.RLock()


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from quoting values of a file in warnings and in its log: they may be identifiers.

    The switches are global, so one thread at a time goes through here; pydicom holds the interpreter lock anyway.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mode, disabled = config.settings.reading_validation_mode, config.logger.disabled
        config.settings.reading_validation_mode, config.logger.disabled = config.IGNORE, True
        try:
            yield
        finally:
            config.settings.reading_validation_mode, config.logger.disabled = mode, disabled


def frame_values(dataset: Dataset, frame: int, frames: int) -> Integer[np.ndarray, "h w"]:
    """Decode one grey frame.

    Args:
        dataset: Dataset with the Image Pixel module and PixelData; SamplesPerPixel is 1.
        frame: Index of the frame.
        frames: Number of frames.

    Returns:
        Stored values `[h w]`, masked to Bits Stored and sign extended, int32.

    Raises:
        ValueError: The pixel data are missing, cut off, too long, damaged or of an unknown transfer syntax.
    """
    bits, high_bit = int(dataset.BitsStored), int(dataset.get("HighBit", dataset.BitsStored - 1))
    allocated = int(dataset.BitsAllocated)
    if allocated not in (8, 16) or not 1 <= bits <= allocated or not bits - 1 <= high_bit < allocated:
        raise ValueError(f"{bits} bits stored, high bit {high_bit}, {allocated} bits allocated; 8 or 16 are read")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in PLUGINS and syntax != uid.RLELossless and high_bit != bits - 1:
        raise ValueError(f"compressed pixel data with high bit {high_bit} for {bits} bits stored")
    raw = decode(dataset, frame, frames, raw=True)
    words = raw.astype(raw.dtype.newbyteorder("=")).view(f"u{raw.dtype.itemsize}").astype(np.int32) >> (
        high_bit - bits + 1
    )
    words &= (1 << bits) - 1
    if int(dataset.PixelRepresentation):
        words -= (words >> (bits - 1)) << bits
    return words


def decode(dataset: Dataset, frame: int, frames: int, *, raw: bool) -> Shaped[np.ndarray, "h w *c"]:
    """Decode one frame as pydicom gives it; `raw=False` turns YBR into RGB.

    Raises:
        ValueError: As `frame_values`.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in PLUGINS and syntax not in _NATIVE:
        known = syntax.name if syntax.name != str(syntax) else re.sub(r"[^0-9.]", "?", syntax)[:64]
        raise ValueError(f"transfer syntax {known} is not supported")
    if syntax not in PLUGINS:
        _check_length(dataset, frames)
        return _decode_here(dataset, frame, raw, "")
    stream = get_frame(dataset.PixelData, frame, number_of_frames=frames)
    layout = _check_stream(dataset, stream)
    if syntax == uid.RLELossless:
        return _decode_here(dataset, frame, raw, PLUGINS[syntax])
    attributes = {keyword: dataset[keyword].value for keyword in _IMAGE_PIXEL if keyword in dataset}
    request = Frame(stream, str(syntax), PLUGINS[syntax], attributes, raw)
    pixels = decode_frame(request)
    if layout is not None and syntax in _JPEG and _may_have_run_dry(pixels, layout):
        longer = decode_frame(replace(request, stream=with_more_scan_data(stream, layout)))
        if not np.array_equal(pixels, longer):
            raise ValueError("truncated: coded data end before the image does")
    return pixels


def _check_length(dataset: Dataset, frames: int) -> None:
    """Refuse native pixel data that are shorter, or longer by a row or more, than rows, columns and frames say."""
    row = int(dataset.Columns) * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) // 8
    expected, found = int(dataset.Rows) * row * frames, len(dataset.PixelData)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        expected = expected * 2 // 3
    if found < expected:
        raise ValueError(f"truncated: {found} bytes of pixel data where {expected} are declared")
    if found >= expected + max(row, 2):
        raise ValueError(f"{found} bytes of pixel data where rows, columns and frames make {expected}")


def _check_stream(dataset: Dataset, stream: bytes) -> JpegLayout | None:
    """Check that a compressed frame is complete and of the declared size."""
    syntax = dataset.file_meta.TransferSyntaxUID
    layout, size = None, None
    if syntax in _JPEG or syntax in _JPEG_LS:
        layout = jpeg_layout(stream)
        size = (layout.rows or int(dataset.Rows), layout.columns)
    elif syntax in _JPEG_2000:
        size = jpeg2000_size(stream)
    elif syntax == uid.RLELossless:
        check_rle(stream, int(dataset.Rows) * int(dataset.Columns))
    if size is not None and size != (int(dataset.Rows), int(dataset.Columns)):
        raise ValueError(
            f"a compressed frame of {size[0]} x {size[1]} where {dataset.Rows} x {dataset.Columns} is declared"
        )
    return layout


def _may_have_run_dry(pixels: Shaped[np.ndarray, "h w *c"], layout: JpegLayout) -> bool:
    """Tell the traces of a decoder that ran out of data: exact mid-grey, or in lossless JPEG a constant row."""
    corner = pixels[-8:, -8:].astype(np.int64)
    if layout.lossless:
        return not np.ptp(corner[-1])
    return bool(np.ptp(corner) <= 2 and abs(int(corner.flat[0]) - 2 ** (layout.bits - 1)) <= 1)


def _decode_here(dataset: Dataset, frame: int, raw: bool, plugin: str) -> Shaped[np.ndarray, "h w *c"]:
    with quiet_pydicom():
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        options: Any = {"index": frame, "raw": raw, "decoding_plugin": plugin, "correct_unused_bits": False}
        return decoder.as_array(dataset, **options)[0]

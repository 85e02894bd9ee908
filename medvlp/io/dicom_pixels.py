"""Pixel data of one DICOM frame -> stored values, complete or an error.

Guarantee: the decoder of each transfer syntax is fixed (so every machine gives the same values), a compressed frame is
checked for completeness and size before and after decoding, and bits outside Bits Stored (old overlays, leftovers)
never reach the image. Errors are `ValueError` with a reason.
"""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from medvlp.io.bitstream import JpegLayout, jpeg2000_size, jpeg_layout, with_more_scan_data

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
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
QUIET = threading.RLock()
"""Held while Python warnings are captured, which is not safe in several threads at once."""


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
    words = raw.view(f"u{raw.dtype.itemsize}").astype(np.int64) >> (high_bit - bits + 1)
    words &= (1 << bits) - 1
    if int(dataset.PixelRepresentation):
        words -= (words >> (bits - 1)) << bits
    return words.astype(np.int32)


def decode(dataset: Dataset, frame: int, frames: int, *, raw: bool) -> Shaped[np.ndarray, "h w *c"]:
    """Decode one frame as pydicom gives it; `raw=False` turns YBR into RGB.

    Raises:
        ValueError: As `frame_values`.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in PLUGINS and syntax not in _NATIVE:
        raise ValueError(f"transfer syntax {syntax.name} is not supported")
    options: dict[str, Any] = {"index": frame, "raw": raw, "decoding_plugin": PLUGINS.get(syntax, "")}
    options["shift_correction"] = False
    layout: JpegLayout | None = None
    stream = b""
    if syntax in PLUGINS:
        stream = get_frame(dataset.PixelData, frame, number_of_frames=frames)
        layout = _check_stream(dataset, stream)
    else:
        _check_length(dataset, frames)
    pixels = _run(dataset, options)
    if layout is not None and syntax in _JPEG and _may_have_run_dry(pixels, layout):
        longer = _run_stream(dataset, with_more_scan_data(stream, layout), options)
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


def _run(dataset: Dataset, options: dict[str, Any]) -> Shaped[np.ndarray, "h w *c"]:
    with QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _silence_gdcm()
        pixels, _ = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, **options)
    return pixels


def _run_stream(dataset: Dataset, stream: bytes, options: dict[str, Any]) -> Shaped[np.ndarray, "h w *c"]:
    from pydicom.dataset import Dataset as NewDataset
    from pydicom.encaps import encapsulate

    copy = NewDataset(dataset)
    copy.file_meta = dataset.file_meta
    copy.NumberOfFrames = 1
    copy.PixelData = encapsulate([stream])
    copy["PixelData"].is_undefined_length = True
    return _run(copy, {**options, "index": 0})


def _silence_gdcm() -> None:
    """Keep GDCM from writing about broken files to standard error; the reason is in our error."""
    import gdcm

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    gdcm.Trace.DebugOff()

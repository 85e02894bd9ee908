"""Stored values of one DICOM slice: native pixel data by numpy, compressed ones by their fixed decoder.

Guarantee: the same values as `dicom_pixels.frame_values`: complete or an error, masked to Bits Stored, sign extended.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom import uid

from medvlp.io.dicom_file import parse
from medvlp.io.dicom_header import PIXEL_TAGS, Pixels
from medvlp.io.dicom_pixels import frame_values

if TYPE_CHECKING:
    from jaxtyping import Integer

_NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)


def read_slice(path: Path, pixels: Pixels) -> Integer[np.ndarray, "h w"]:
    """Read the stored values of a file of one frame.

    Raises:
        OSError: It cannot be opened.
        ValueError: Its pixel data are truncated, too long, damaged or of an unknown transfer syntax.
    """
    place = pixels.place
    if pixels.transfer_syntax in _NATIVE and place.length is not None and place.in_file and pixels.plain:
        return _native(path, pixels)
    dataset = parse(path.read_bytes(), (*PIXEL_TAGS, "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"))
    return frame_values(dataset, 0, 1)


def _native(path: Path, pixels: Pixels) -> Integer[np.ndarray, "h w"]:
    order = ">" if pixels.transfer_syntax == uid.ExplicitVRBigEndian else "<"
    dtype = np.dtype(f"{order}{'i' if pixels.signed else 'u'}{pixels.allocated // 8}")
    needed, declared = pixels.rows * pixels.columns * dtype.itemsize, int(pixels.place.length or 0)
    if declared < needed:
        raise ValueError(f"truncated: {declared} bytes of pixel data where {needed} are declared")
    if declared >= needed + max(pixels.columns * dtype.itemsize, 2):
        raise ValueError(f"{declared} bytes of pixel data where rows and columns make {needed}")
    words = np.empty((pixels.rows, pixels.columns), dtype)
    with path.open("rb", buffering=0) as file:
        file.seek(pixels.place.offset)
        found = file.readinto(words.data.cast("B"))
    if found != needed:
        raise ValueError(f"truncated: {found} bytes of pixel data where {needed} are declared")
    return only_stored_bits(words.astype(dtype.newbyteorder("="), copy=False), pixels)


def only_stored_bits(words: Integer[np.ndarray, "h w"], pixels: Pixels) -> Integer[np.ndarray, "h w"]:
    """Drop the bits outside of Bits Stored, in place, and extend the sign."""
    above = pixels.allocated - 1 - pixels.high_bit
    unused = pixels.allocated - pixels.stored
    if unused == 0:
        return words
    if pixels.signed or above:
        words <<= above
        words >>= unused
        return words
    words >>= unused - above
    return words

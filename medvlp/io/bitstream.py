"""Structure of compressed images, checked before a decoder sees them.

Guarantee: a stream that passes is complete as far as its own markers and checksums can tell. Decoders fill what is
missing with grey and say nothing; a truncated radiograph must be an error instead. Sources: PNG (ISO/IEC 15948) §5,
JPEG (ITU-T T.81) annex B, JPEG-LS (ITU-T T.87) annex C, JPEG 2000 (ITU-T T.800) annex A.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_NO_FRAME = (0xC4, 0xC8, 0xCC)
_JPEG_LS_FRAME = 0xF7
_JPEG_BARE = (0x01, *range(0xD0, 0xD8))
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_LS_SCAN_END = re.compile(rb"\xff[\x80-\xfe]")


class BrokenStream(ValueError):
    """A compressed image is truncated or its structure is broken."""


@dataclass(frozen=True)
class JpegLayout:
    """What the markers of a JPEG or JPEG-LS stream say. `scan_end` is where the coded data of the last scan end."""

    rows: int
    columns: int
    bits: int
    components: int
    lossless: bool
    scan_end: int


def png_header(data: bytes) -> dict[str, Any]:
    """Check every chunk of a PNG and return `width`, `height`, `bits`, `colour_type`.

    Raises:
        BrokenStream: A chunk is cut off, fails its CRC, or the end marker is missing.
    """
    header: dict[str, Any] = {}
    position = len(_PNG_SIGNATURE)
    while True:
        length = int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        body_end = position + 8 + length
        if body_end + 4 > len(data):
            raise BrokenStream("truncated: the PNG ends inside a chunk or before its end marker")
        crc = int.from_bytes(data[body_end : body_end + 4], "big")
        if zlib.crc32(memoryview(data)[position + 4 : body_end]) != crc:
            raise BrokenStream("damaged: the checksum of a PNG chunk is wrong")
        if not header:
            if name != b"IHDR" or length != 13:
                raise BrokenStream("damaged: the PNG does not begin with its header chunk")
            body = data[position + 8 : body_end]
            header = {
                "width": int.from_bytes(body[:4], "big"),
                "height": int.from_bytes(body[4:8], "big"),
                "bits": body[8],
                "colour_type": body[9],
            }
        if name == b"IEND":
            return header
        position = body_end + 4


def jpeg_layout(data: bytes) -> JpegLayout:
    """Walk the markers of a JPEG or JPEG-LS stream from start to end of image.

    Raises:
        BrokenStream: A segment or a scan is cut off, or there is no frame, scan or end-of-image marker.
    """
    if data[:2] != b"\xff\xd8":
        raise BrokenStream("damaged: no JPEG start marker")
    position, scan_end = 2, 0
    frame: tuple[int, int, int, int, int] | None = None
    while True:
        if position + 2 > len(data):
            raise BrokenStream("truncated: the JPEG has no end-of-image marker")
        if data[position] != 0xFF:
            raise BrokenStream(f"damaged: no JPEG marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        position += 2
        if marker == 0xD9:
            break
        if marker in _JPEG_BARE:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        segment = data[position + 2 : position + length]
        if length < 2 or position + length > len(data):
            raise BrokenStream("truncated: a JPEG segment is cut off")
        position += length
        if (0xC0 <= marker <= 0xCF and marker not in _JPEG_NO_FRAME) or marker == _JPEG_LS_FRAME:
            if len(segment) < 6:
                raise BrokenStream("damaged: the JPEG frame header is too short")
            rows, columns = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            frame = (marker, segment[0], rows, columns, segment[5])
        elif marker == 0xDA:
            pattern = _JPEG_LS_SCAN_END if frame and frame[0] == _JPEG_LS_FRAME else _JPEG_SCAN_END
            found = pattern.search(data, position)
            if found is None:
                raise BrokenStream("truncated: the JPEG has no end-of-image marker")
            position = scan_end = found.start()
    if frame is None or not scan_end:
        raise BrokenStream("damaged: the JPEG holds no image data")
    marker, bits, rows, columns, components = frame
    return JpegLayout(rows, columns, bits, components, marker in (0xC3, 0xC7, 0xCB, 0xCF, _JPEG_LS_FRAME), scan_end)


def with_more_scan_data(data: bytes, layout: JpegLayout) -> bytes:
    """Return the JPEG with extra coded data at the end of its last scan.

    A decoder that had all its data ignores the addition; one that ran dry uses it, and its image changes. So a stream
    whose middle is lost, but which ends in a proper end marker, gives itself away.
    """
    return data[: layout.scan_end] + b"\x5a\xa3\x39\x6c" * 64 + data[layout.scan_end :]


def check_rle(data: bytes, pixels: int) -> None:
    """Follow the runs of every segment of an RLE frame (DICOM PS3.5 annex G): each must give one byte per pixel.

    Raises:
        BrokenStream: A segment is cut off, too short or too long.
    """
    count = int.from_bytes(data[:4], "little")
    if not 1 <= count <= 15 or len(data) < 64:
        raise BrokenStream("damaged: no RLE header")
    starts = [int.from_bytes(data[4 * k : 4 * k + 4], "little") for k in range(1, count + 1)]
    for start, stop in zip(starts, [*starts[1:], len(data)], strict=True):
        if not 64 <= start < stop <= len(data):
            raise BrokenStream("damaged: RLE segments are not in order")
        position, made = start, 0
        while made < pixels:
            if position >= stop:
                raise BrokenStream("truncated: an RLE segment ends before the image does")
            control = data[position]
            if control < 128:
                made += control + 1
                position += control + 2
            else:
                made += 257 - control if control > 128 else 0
                position += 2 if control > 128 else 1
        if made > pixels or position > stop or data[position:stop].strip(b"\0\x80"):
            raise BrokenStream("damaged: an RLE segment does not end with the image")


def jpeg2000_size(data: bytes) -> tuple[int, int]:
    """Follow the tile parts of a JPEG 2000 codestream (bare or in JP2 boxes) to its end; return `(rows, columns)`.

    Raises:
        BrokenStream: A header or tile part is cut off, or the end-of-codestream marker is missing.
    """
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or start + 24 > len(data):
        raise BrokenStream("damaged: no JPEG 2000 codestream")
    x1, y1, x0, y0 = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    position = start + 2
    tile_parts = 0
    while True:
        marker = data[position : position + 2]
        if len(marker) < 2:
            raise BrokenStream("truncated: the JPEG 2000 codestream has no end marker")
        if marker == b"\xff\xd9":
            break
        if marker[0] != 0xFF:
            raise BrokenStream(f"damaged: no JPEG 2000 marker at byte {position}")
        if marker == b"\xff\x90":
            tile_parts += 1
            length = int.from_bytes(data[position + 6 : position + 10], "big")
            if length == 0:
                if not data.rstrip(b"\x00").endswith(b"\xff\xd9"):
                    raise BrokenStream("truncated: the JPEG 2000 codestream has no end marker")
                break
            if length < 14:
                raise BrokenStream("damaged: a JPEG 2000 tile part has no length")
            position += length
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if not tile_parts:
        raise BrokenStream("damaged: the JPEG 2000 codestream holds no tile")
    return y1 - y0, x1 - x0

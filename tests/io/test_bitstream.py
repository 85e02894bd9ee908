"""Structure of RLE frames, on streams written by hand after DICOM PS3.5 annex G."""

from __future__ import annotations

import pytest

from medvlp.io.bitstream import BrokenStream, check_rle

LITERAL_5 = bytes([4, 1, 2, 3, 4, 5])
RUN_OF_7 = bytes([256 - 6, 9])
NOTHING = bytes([128])


def frame(*segments: bytes) -> bytes:
    """Return an RLE frame: its header of 64 bytes, then the segments."""
    starts = [64 + sum(map(len, segments[:k])) for k in range(len(segments))]
    numbers = [len(segments), *starts, *[0] * (15 - len(segments))]
    return b"".join(number.to_bytes(4, "little") for number in numbers) + b"".join(segments)


@pytest.mark.parametrize(
    "segments",
    [
        (LITERAL_5 + RUN_OF_7,),
        (LITERAL_5 + RUN_OF_7, RUN_OF_7 + LITERAL_5),
        (NOTHING + LITERAL_5 + NOTHING + RUN_OF_7, RUN_OF_7 + LITERAL_5 + b"\0"),
    ],
)
def test_sound_frames(segments):
    check_rle(frame(*segments), 12)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(LITERAL_5), "ends before the image"),
        (frame(LITERAL_5 + RUN_OF_7)[:-1], "does not end with the image"),
        (frame(LITERAL_5 + RUN_OF_7 + RUN_OF_7), "does not end with the image"),
        (frame(RUN_OF_7 + RUN_OF_7), "does not end with the image"),
        (frame(LITERAL_5[:-2] + RUN_OF_7, RUN_OF_7 + LITERAL_5), "ends before|does not end"),
        (frame(LITERAL_5 + RUN_OF_7)[:40], "no RLE header"),
        (bytes(64), "no RLE header"),
        (frame(b"", LITERAL_5 + RUN_OF_7), "not in order"),
        (b"\x01\0\0\0" + b"\xff\xff\xff\x7f" + bytes(56) + LITERAL_5 + RUN_OF_7, "not in order"),
    ],
)
def test_broken_frames(data, reason):
    with pytest.raises(BrokenStream, match=reason):
        check_rle(data, 12)

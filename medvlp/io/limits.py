"""Sizes that a file may declare, checked before memory is taken for them.

Guarantee: a header that claims absurd dimensions, a small compressed file that claims to unpack to gigabytes, and a
volume that free memory does not hold, are a `UserError` before the array is allocated; unpacking stops at the declared
size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medvlp.errors import UserError

FREE_BYTES = 512 * 2**20
"""Declared pixel bytes that any compressed file may unpack to; more only in proportion to the file's own size."""
LARGEST_RATIO = 60
"""Unpacked bytes per byte of a file beyond `FREE_BYTES`. CT compresses 2 to 5 times, padded CT up to about 20 times."""
LARGEST_SIDE = 16384
"""Voxels along one axis of a volume; pixels along a side of an image are bounded by `FRAME_PIXELS`."""
FRAME_PIXELS = 50_000_000
"""Pixels of one image. The largest radiographs (mammography) have 30 million."""
SPACING_MM = (1e-3, 100.0)
"""Distances between voxels that are believed."""
LARGEST_REST = 4096
"""Bytes that may follow the voxels: some writers fill up a block. More, and the header declares too few voxels."""
_FIX = "Restore the file from its source, or leave it out."


def inflated_bound(packed: int) -> int:
    """Return to how many bytes a compressed file without a declared size may unpack."""
    return min(FREE_BYTES, max(FREE_BYTES // 8, LARGEST_RATIO * packed))


def check_size(
    shape: Sequence[int], itemsize: int, available: int, path: Path, *, compressed: bool, free: int = FREE_BYTES
) -> int:
    """Return the bytes that an array takes on disk once unpacked.

    Args:
        shape: As the header declares it.
        itemsize: Bytes per voxel.
        available: Bytes of the file that can hold the array.
        path: For the error.
        compressed: Whether those bytes are compressed.
        free: Unpacked bytes that are allowed whatever the ratio.

    Raises:
        UserError: A side is not positive or absurdly long, or the file cannot hold that many bytes.
    """
    if not shape or min(shape) < 1 or max(shape) > LARGEST_SIDE:
        sides = " x ".join(str(side) for side in shape)
        raise UserError(f"The file declares a size of {sides}; 1 to {LARGEST_SIDE} per side are read.", path, _FIX)
    declared = math.prod(shape) * itemsize
    if not compressed and declared > available:
        what = f"The file is truncated: {available} bytes of pixel data where its header declares {declared}."
        raise UserError(what, path, _FIX)
    if not compressed and available - declared > LARGEST_REST:
        what = f"The file holds {available} bytes of pixel data where its header declares {declared}."
        raise UserError(what, path, _FIX)
    if compressed and declared > max(free, LARGEST_RATIO * available):
        what = f"The file declares {declared} bytes of pixel data, but holds only {available} compressed ones."
        raise UserError(what, path, _FIX)
    return declared


def check_memory(shape: Sequence[int], path: Path) -> None:
    """Check that free memory holds a volume of int16.

    Raises:
        UserError: It does not.
    """
    import psutil

    needed, free = 2 * math.prod(shape), psutil.virtual_memory().available
    if needed > free:
        sides = " x ".join(str(side) for side in shape)
        raise UserError(
            f"A volume of {sides} voxels takes {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB of memory are free.",
            path,
            "Use a machine with more memory, fewer workers, or a file of a part of the volume.",
        )


def check_frame(rows: int, columns: int) -> None:
    """Check the size of one image.

    Raises:
        ValueError: It has no rows or columns, or more pixels than any radiograph.
    """
    if min(rows, columns) < 1:
        raise ValueError("it has no rows or columns")
    if rows * columns > FRAME_PIXELS:
        raise ValueError(f"{rows} x {columns} pixels; up to {FRAME_PIXELS // 10**6} million are read")

"""Hashes of raw files and of stored pixels, as they stand in `images.parquet`.

Guarantee: they depend on bytes and elements alone, not on memory layout, byte order or machine; the perceptual hash may
round differently on another processor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Shaped, UInt8

_HASH_BLOCK = 1 << 20


def source_files(path: Path) -> list[Path]:
    """Return the file, or all files below a folder in the order of their names; hidden ones are left out."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))


def file_sha256_once(file: Path) -> str:
    """Return the SHA-256 of a file of which many frames are read one after the other."""
    status = file.stat()
    return _sha256_of(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _sha256_of(file: Path, mtime_ns: int, size: int) -> str:
    return files_sha256([file])


def files_sha256(files: Sequence[Path]) -> str:
    """Return the SHA-256 over the bytes of files, one after the other; of one file it is the file's own."""
    digest = hashlib.sha256()
    block = bytearray(_HASH_BLOCK)
    view = memoryview(block)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while length := stream.readinto(block):
                digest.update(view[:length])
    return digest.hexdigest()


def pixels_sha256(array: Shaped[np.ndarray, " ..."]) -> str:
    """Return the SHA-256 of an array's elements in C order, little-endian."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data).hexdigest()


def perceptual_hash(pixels: Shaped[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> str:
    """Return the 64-bit perceptual hash of uint8 or uint16 pixels as 16 hex digits (ImageHash `phash`)."""
    import imagehash
    import numpy as np
    from PIL import Image

    small = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return str(imagehash.phash(Image.fromarray(small)))


def stretched(plane: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return a slice as grey values from its lowest to its highest value."""
    import numpy as np

    low, high = int(plane.min()), int(plane.max())
    return ((plane.astype(np.int32) - low) * 255 // max(high - low, 1)).astype(np.uint8)

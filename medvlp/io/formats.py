"""Formats of volumes, told by their first bytes."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from medvlp.errors import UserError

_HEAD = 4096
_METAIMAGE = re.compile(rb"^\s*(ObjectType|NDims|Comment)\s*=", re.MULTILINE)


def volume_format(path: Path) -> str:
    """Return dicom, nifti, metaimage, nrrd, npy, npz, picture, video, empty or unknown.

    Raises:
        UserError: The file is missing or cannot be opened.
    """
    from medvlp.io import _format, _is_video

    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UserError(
            f"The file cannot be opened: {error.strerror}.", path, "Check path and access rights."
        ) from None
    if not head:
        return "empty"
    found = _format(head)
    if found:
        return found if found == "dicom" else "picture"
    if head.startswith(b"\x1f\x8b"):
        return "nifti" if _is_nifti(_unpacked(head)) else "unknown"
    if head.startswith(b"NRRD00"):
        return "nrrd"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PK\x03\x04"):
        return "npz"
    if _is_nifti(head):
        return "nifti"
    if _is_video(head):
        return "video"
    return "metaimage" if _METAIMAGE.search(head[:512]) else "unknown"


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _HEAD)
    except zlib.error:
        return b""


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")

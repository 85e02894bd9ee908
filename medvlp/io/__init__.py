"""Image files on disk -> arrays whose geometry and intensity are named, or an error that says why.

Guarantee: a file is recognised by its content, not by its name; what cannot be read completely and unambiguously raises
`UserError` with path and reason. Importing this package imports neither numpy nor any decoder.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.errors import UserError

if TYPE_CHECKING:
    from medvlp.config.preprocessing import StoredImageConfig
    from medvlp.io.clip import read_clip
    from medvlp.io.masks import read_image_masks, read_volume_labels, to_stored_mask
    from medvlp.io.series import find_series
    from medvlp.io.stored import stored_transform, to_stored
    from medvlp.io.volume import read_volume
    from medvlp.types import Radiograph

__all__ = [
    "find_images",
    "find_series",
    "is_dicom_file",
    "is_image_file",
    "read_clip",
    "read_image_masks",
    "read_radiograph",
    "read_volume",
    "read_volume_labels",
    "stored_transform",
    "to_stored",
    "to_stored_mask",
]

_HEAD = 1024
_DICOM_GROUPS = (2, 8)
_LONGEST_FIRST_ELEMENT = 256
_VALUE_REPRESENTATIONS = frozenset(
    re.findall("..", "AEASATCSDADSDTFLFDISLOLTOBODOFOLOVOWPNSHSLSQSSSTSVTMUCUIULUNURUSUTUV")
)


def read_radiograph(path: str | Path, config: StoredImageConfig | None = None, frame: int | None = None) -> Radiograph:
    """Read one 2D image from DICOM, PNG or JPEG, or one frame of a video.

    Args:
        path: The file; its format is told from its first bytes.
        config: What to do where a file leaves a choice: `voi`, `voi_index`, `frame`, `colour`. Default: that class's.
        frame: Frame of a multi-frame file or video, from 0, in place of `config.frame`.

    Returns:
        A `Radiograph` `[h w]` float32, MONOCHROME1 already inverted, every choice in `provenance`; `[h w 3]` for a
        coloured file whose colours the configuration keeps.

    Raises:
        UserError: The file is missing, truncated, broken, of another format, or ambiguous under `config`.
    """
    from medvlp.config.preprocessing import StoredImageConfig

    path, config = Path(path), config or StoredImageConfig()
    if frame is not None:
        config = config.model_copy(update={"frame": frame})
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            kind = _format(head)
            data = head + file.read() if kind in ("dicom", "png", "jpeg") else head
    except IsADirectoryError:
        raise UserError("A folder was given where an image file is needed.", path, "Name one file in it.") from None
    except OSError as error:
        raise UserError(
            f"The image cannot be opened: {error.strerror}.", path, "Check path and access rights."
        ) from None
    if kind == "dicom":
        from medvlp.io.dicom import read_dicom

        return read_dicom(data, path, config)
    if kind in ("png", "jpeg"):
        from medvlp.io.raster import read_raster

        return read_raster(data, path, config)
    if _is_video(head):
        from medvlp.io.video import read_frame

        return read_frame(path, config)
    what = "The file is empty." if not data else "The file is neither DICOM nor PNG nor JPEG."
    raise UserError(what, path, "Restore the file, or convert it to one of these formats.")


def is_image_file(path: str | Path) -> bool:
    """Return whether the first bytes of a file are those of a DICOM, PNG or JPEG file (a DICOMDIR is none)."""
    return _format_of(Path(path)) is not None


def find_images(folder: str | Path) -> list[Path]:
    """Return the image files under a folder, at any depth and with any suffix, sorted; hidden files are left out.

    Raises:
        UserError: The folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("The folder does not exist.", folder, "Check the path.")
    found = (path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())
    return sorted(path for path in found if is_image_file(path))


def is_dicom_file(path: str | Path) -> bool:
    """Return whether the first bytes of a file are those of a DICOM file (a DICOMDIR is none)."""
    return _format_of(Path(path)) == "dicom"


def _format_of(path: Path) -> str | None:
    """Return the format of a file that can be read and is no DICOMDIR."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    return None if path.name.upper() == "DICOMDIR" else _format(head)


def _format(head: bytes) -> str | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[128:132] == b"DICM" or _starts_with_element(head):
        return "dicom"
    return None


def _is_video(head: bytes) -> bool:
    """Tell AVI, MP4 or QuickTime, and Matroska."""
    return (head[:4], head[8:12]) == (b"RIFF", b"AVI ") or head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3"


def _starts_with_element(head: bytes) -> bool:
    """Tell a DICOM file without preamble: it starts with a little-endian element of group 2 or 8, sanely long."""
    if len(head) < 8 or int.from_bytes(head[:2], "little") not in _DICOM_GROUPS:
        return False
    if head[4:6].decode("latin-1") in _VALUE_REPRESENTATIONS:
        return True
    length = int.from_bytes(head[4:8], "little")
    return length <= _LONGEST_FIRST_ELEMENT and length % 2 == 0


_LAZY = {
    "find_series": "medvlp.io.series",
    "read_clip": "medvlp.io.clip",
    "read_image_masks": "medvlp.io.masks",
    "read_volume": "medvlp.io.volume",
    "read_volume_labels": "medvlp.io.masks",
    "stored_transform": "medvlp.io.stored",
    "to_stored": "medvlp.io.stored",
    "to_stored_mask": "medvlp.io.masks",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'medvlp.io' has no attribute '{name}'")

"""Videos and folders of frames -> clips.

Guarantee: frames keep their order and are never skipped but by `every` and `max_frames`; each becomes a stored square
by the same rules as a radiograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.io.formats import volume_format
from medvlp.types import Clip

if TYPE_CHECKING:
    from jaxtyping import Float32

    from medvlp.config.preprocessing import StoredVideoConfig


def read_clip(path: str | Path, config: StoredVideoConfig | None = None) -> Clip:
    """Read a video (AVI, MP4, MKV) or a folder of numbered frames (PNG, JPEG).

    Args:
        path: The file or the folder.
        config: Size, aspect, colour, and which frames to keep. Default: that class's.

    Returns:
        Frames `[f size size]`, or `[f size size 3]` (red, green, blue) where colours are kept, uint8.

    Raises:
        UserError: The video is missing, damaged or truncated, or the folder holds no numbered frames of one size.
    """
    from medvlp.config.preprocessing import StoredVideoConfig

    path, config = Path(path), config or StoredVideoConfig()
    array, fps, facts = _from_folder(path, config) if path.is_dir() else _from_video(path, config)
    provenance = {"path": str(path), "every": config.every, "frames": len(array), **facts}
    return Clip(array, None if fps is None else fps / config.every, provenance)


def _from_video(path: Path, config: StoredVideoConfig) -> tuple[np.ndarray, float | None, dict[str, Any]]:
    from medvlp.io.video import WholeVideo, decode_video

    if volume_format(path) != "video":
        raise UserError("The file is no AVI, MP4 or MKV video.", path, "Convert it to one of these.")
    request = WholeVideo(str(path), config.size, config.aspect, config.colour, config.every, config.max_frames)
    frames = decode_video(request)
    facts = {"format": "video", "declared_frames": frames.declared, "height": frames.height, "width": frames.width}
    cut = config.max_frames is not None and len(frames.pixels) == config.max_frames
    facts["file_frames"] = max(frames.passed, (frames.declared or 0) if cut else 0)
    return frames.pixels, frames.fps, facts


def _from_folder(path: Path, config: StoredVideoConfig) -> tuple[np.ndarray, float | None, dict[str, Any]]:
    from medvlp.io.raster import read_pixels
    from medvlp.io.stored import stored_frame

    pictures = _pictures(path)
    kept = pictures[:: config.every][: config.max_frames]
    stored, first = [], None
    for file in kept:
        frame = read_pixels(file)
        if first is not None and frame.shape[:2] != first:
            what = (
                f"The frame has {frame.shape[0]} x {frame.shape[1]} pixels where the first has {first[0]} x {first[1]}."
            )
            raise UserError(what, file, "Give the frames of one video.")
        first = frame.shape[:2]
        stored.append(stored_frame(frame, config.size, config.aspect, config.colour))
    height, width = first or (0, 0)
    facts = {"format": "pictures", "declared_frames": len(pictures), "height": height, "width": width}
    return np.stack(stored), None, facts | {"file_frames": len(pictures)}


def _pictures(path: Path) -> list[Path]:
    from medvlp.io.picture_slices import numbered
    from medvlp.io.series import files_under, unrecognised

    files = files_under(path)
    found = [file for file in files if volume_format(file) == "picture"]
    for stranger in unrecognised(files, found):
        raise UserError("A file among the frames is no picture, or is damaged.", stranger, "Restore or remove it.")
    if len({file.parent for file in found}) > 1:
        raise UserError("The frames lie in several folders.", path, "Give the folder of one video.")
    pictures = numbered(found, path)
    if not pictures:
        raise UserError("The folder holds no frames.", path, "Give a video, or a folder of numbered PNG or JPEG files.")
    return pictures


def read_grey_frames(path: str | Path, numbers: Sequence[int]) -> dict[int, Float32[np.ndarray, "h w"]]:
    """Return frames of a video or folder at their own size, as luminance from 0 to 1.

    Args:
        path: As `read_clip` takes it.
        numbers: Frames of the file, from 0.

    Raises:
        UserError: One cannot be read.
    """
    from medvlp.io.raster import LUMINANCE, read_pixels
    from medvlp.io.video import OneFrame, decode_video

    path = Path(path)
    pictures = _pictures(path) if path.is_dir() else None
    found = {}
    for number in sorted(set(numbers)):
        if pictures is None:
            pixels = decode_video(OneFrame(str(path), number)).pixels[0]
        else:
            pixels = read_pixels(pictures[number])
        unit = pixels.astype(np.float32) / 255
        found[number] = unit @ np.asarray(LUMINANCE, np.float32) if unit.ndim == 3 else unit
    return found

"""Videos and folders of frames -> clips.

Guarantee: frames keep their order and are never skipped but by `every` and `max_frames`; each becomes a stored square
by the same rules as a radiograph.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.io.formats import volume_format
from medvlp.types import Clip

if TYPE_CHECKING:
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
    return frames.pixels, frames.fps, facts


def _from_folder(path: Path, config: StoredVideoConfig) -> tuple[np.ndarray, float | None, dict[str, Any]]:
    from medvlp.io.picture_slices import numbered
    from medvlp.io.raster import read_pixels
    from medvlp.io.series import files_under, unrecognised
    from medvlp.io.stored import stored_frame

    files = files_under(path)
    found = [file for file in files if volume_format(file) == "picture"]
    for stranger in unrecognised(files, found):
        raise UserError("A file among the frames is no picture, or is damaged.", stranger, "Restore or remove it.")
    pictures = numbered(found, path)
    if not pictures:
        raise UserError("The folder holds no frames.", path, "Give a video, or a folder of numbered PNG or JPEG files.")
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
    return np.stack(stored), None, facts

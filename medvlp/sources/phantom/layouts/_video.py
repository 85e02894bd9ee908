"""Video files of phantom clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import UInt8

_CODES = {".avi": "MJPG", ".mp4": "mp4v"}


def write_video(file: Path, frames: UInt8[np.ndarray, "f h w *c"], fps: float) -> None:
    """Write grey or RGB frames as colour video: Motion JPEG in .avi, MPEG-4 in .mp4."""
    import cv2

    file.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    code = cv2.VideoWriter.fourcc(*_CODES[file.suffix])
    writer = cv2.VideoWriter(str(file), code, fps, (width, height))
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write {file.name}")
    for frame in frames:
        grey = frame.ndim == 2
        writer.write(np.ascontiguousarray(np.repeat(frame[..., None], 3, axis=2) if grey else frame[..., ::-1]))
    writer.release()

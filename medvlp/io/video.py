"""Videos (AVI, MP4, MKV) -> frames, decoded by FFmpeg (through OpenCV) in the decoder process.

Guarantee: a decoder that reports an error, or finds fewer frames than the container declares, makes the video unusable:
FFmpeg would otherwise conceal what is lost. Frames are numbered from 0 in the order in which they are shown.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.io.decoder_process import SECONDS_PER_FRAME, DecoderFailed, ask
from medvlp.io.dicom_file import one_line
from medvlp.io.limits import FRAME_PIXELS
from medvlp.types import Intensity, Radiograph

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from medvlp.config.preprocessing import StoredImageConfig

SECONDS_PER_VIDEO = 3600.0
SECONDS_PER_PASSED_FRAME = 0.02
MISSING_FRAMES = 0.01
"""Share of the declared frames that a container may count wrongly; AVI counts them exactly."""
_LOG_LEVEL = {"OPENCV_FFMPEG_LOGLEVEL": "24"}
"""Warnings: that a frame is given up is no error to FFmpeg."""
_WARNING = re.compile(rb"^\[OPENCV:FFMPEG:24\] ")
_DAMAGE = re.compile(rb"miss|damag|error|mismatch|broken|invalid|trunc|corrupt|conceal|overread|not reached|not match")
_CLIP_BYTES = 2**30
_FIX = "Restore the file from its source, or leave it out."


@dataclass(frozen=True)
class Frames:
    """Decoded frames (red, green, blue), what the container says, and the frames that were passed to get them."""

    pixels: UInt8[np.ndarray, "f h w *c"]
    fps: float | None
    declared: int | None
    height: int
    width: int
    passed: int


@dataclass(frozen=True)
class WholeVideo:
    """Every `every`-th frame of a video as stored squares, up to `max_frames` of them."""

    path: str
    size: int
    aspect: str
    colour: str
    every: int
    max_frames: int | None

    def answer(self) -> Frames:
        """Decode the video, in the decoder process."""
        return _quietly(self._decode)

    def _decode(self) -> Frames:
        import cv2

        capture = _open(self.path)
        kept: list[np.ndarray] = []
        index, height, width = 0, 0, 0
        most = _CLIP_BYTES // (self.size**2 * (3 if self.colour == "keep" else 1))
        while (self.max_frames is None or len(kept) < self.max_frames) and capture.grab():
            if index % self.every == 0:
                good, frame = capture.retrieve()
                if not good or (kept and frame.shape[:2] != (height, width)):
                    raise ValueError(f"frame {index} cannot be decoded, or has another size")
                height, width = frame.shape[:2]
                if len(kept) >= most:
                    raise ValueError("it has more frames than a clip can hold; set video.every or video.max_frames")
                kept.append(self._stored(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)))
            index += 1
        declared = _declared(capture)
        if not kept:
            raise ValueError("it holds no frame")
        whole = self.max_frames is None or len(kept) < self.max_frames
        allowed = 0 if _is_avi(self.path) else MISSING_FRAMES * (declared or 0)
        if whole and declared is not None and index < declared - allowed:
            raise ValueError(f"truncated: {index} frames where {declared} are declared")
        return Frames(np.stack(kept), _fps(capture), declared, height, width, index)

    def _stored(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s *c"]:
        from medvlp.io.stored import stored_frame

        return stored_frame(frame, self.size, self.aspect, self.colour)


@dataclass(frozen=True)
class OneFrame:
    """One frame of a video at its own size."""

    path: str
    frame: int

    def answer(self) -> Frames:
        """Decode up to the frame, in the decoder process: on from the frame before where that was asked for last."""
        global _playing
        status = Path(self.path).stat()
        key = (self.path, status.st_mtime_ns, status.st_size)
        playing = _playing
        if playing is None or playing.key != key or (playing.index > self.frame and self.frame < playing.failed_at):
            playing = _playing = _Playing(key)
        if self.frame >= playing.failed_at:
            raise ValueError(playing.failure)
        try:
            return _quietly(lambda: playing.show(self.frame))
        except Exception as error:
            # What is damaged stays damaged: the answer for a later frame must not depend on what was asked before.
            playing.failed_at, playing.failure = self.frame, str(error)
            raise


class _Playing:
    """A video that is open at a frame, so that frames asked for in order are decoded once."""

    def __init__(self, key: tuple[str, int, int]) -> None:
        self.key = key
        self.index = 0
        """Frames that were passed."""
        self.failed_at: float = math.inf
        self.failure = ""
        self._capture: Any = None

    def show(self, number: int) -> Frames:
        """Decode up to a frame that was not passed yet."""
        import cv2

        self._capture = self._capture or _open(self.key[0])
        while self.index <= number:
            if not self._capture.grab():
                raise IndexError(f"it has {self.index} frames")
            self.index += 1
        good, frame = self._capture.retrieve()
        if not good:
            raise ValueError("the frame cannot be decoded")
        pixels = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)[None]
        height, width = frame.shape[:2]
        return Frames(pixels, _fps(self._capture), _declared(self._capture), height, width, self.index)


_playing: _Playing | None = None


def decode_video(request: WholeVideo | OneFrame) -> Frames:
    """Decode a video in the decoder process.

    Raises:
        UserError: It cannot be opened, is damaged or truncated, or has no such frame.
    """
    path = Path(request.path)
    try:
        path.open("rb").close()
        frames = request.frame if isinstance(request, OneFrame) else 0
        seconds = SECONDS_PER_FRAME + frames * SECONDS_PER_PASSED_FRAME
        seconds = SECONDS_PER_VIDEO if isinstance(request, WholeVideo) else seconds
        return ask(request, seconds)
    except OSError as error:
        raise UserError(
            f"The video cannot be opened: {error.strerror}.", path, "Check path and access rights."
        ) from None
    except DecoderFailed as error:
        raise UserError(f"The video cannot be used: {one_line(error)}.", path, _FIX) from None


def read_frame(path: Path, config: StoredImageConfig) -> Radiograph:
    """Read one frame of a video; see `medvlp.io.read_radiograph`.

    Raises:
        UserError: No frame is named or there is none such, the video is damaged, or coloured and `config` refuses that.
    """
    from medvlp.io.raster import colour_values

    if config.frame is None:
        fix = "Name a frame (0 is the first), or read the whole of it by read_clip."
        raise UserError("The file is a video, not one image.", path, fix)
    frames = decode_video(OneFrame(str(path), config.frame))
    pixels, colour = frames.pixels[0], "equal channels"
    values: np.ndarray = pixels[..., 0]
    if not (pixels == pixels[..., :1]).all():
        values, colour = colour_values(pixels, config, path)
    facts = {"path": str(path), "format": "video", "frame": config.frame, "frames": frames.declared, "colour": colour}
    facts |= {"spacing_tag": None, "inverted": False, "full_scale": 255, "range": (0.0, 1.0)}
    return Radiograph(values.astype(np.float32) / np.float32(255), None, Intensity.UNIT, facts)


def _open(path: str) -> Any:
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise ValueError("it is no video that can be opened")
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if not 1 <= width * height <= FRAME_PIXELS:
        raise ValueError(f"frames of {height:.0f} x {width:.0f} pixels")
    return capture


def _declared(capture: Any) -> int | None:
    import cv2

    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if 0 < count < 1e9 else None


def _fps(capture: Any) -> float | None:
    import cv2

    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if np.isfinite(fps) and 0 < fps <= 10000 else None


def _quietly(decode: Any) -> Frames:
    """Decode with standard output and error kept in a file: what FFmpeg reports there is otherwise lost."""
    os.environ.update(_LOG_LEVEL)
    flush = ctypes.CDLL(None).fflush
    with tempfile.TemporaryFile() as report:
        before = os.dup(1), os.dup(2)
        flush(None)
        for stream in (1, 2):
            os.dup2(report.fileno(), stream)
        try:
            frames = decode()
        finally:
            flush(None)
            for stream, own in zip((1, 2), before, strict=True):
                os.dup2(own, stream)
                os.close(own)
        report.seek(0)
        if any(_DAMAGE.search(line.lower()) or not _WARNING.match(line) for line in report.read().splitlines()):
            raise ValueError("damaged: its decoder reports errors")
        return frames


def _is_avi(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(4) == b"RIFF"

"""Frames of a video asked for in any order are the same, and in order they are decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from medvlp.io import video
from medvlp.sources.phantom.layouts._video import write_video

COUNT = 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    steps = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] * 5
    frames = np.broadcast_to(steps, (COUNT, 32, 32, 3)) + rng.integers(0, 20, (COUNT, 32, 32, 3), dtype=np.uint8)
    write_video(tmp_path / "x.mp4", frames, 25.0)
    return tmp_path / "x.mp4"


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the videos that were opened."""
    names: list[str] = []

    def opens(name: str, *arguments: Any, real: Any = cv2.VideoCapture) -> Any:
        names.append(name)
        return real(name, *arguments)

    monkeypatch.setattr(cv2, "VideoCapture", opens)
    monkeypatch.setattr(video, "_playing", None)
    return names


def alone(path: Path, frame: int) -> np.ndarray:
    """Decode a frame from the start by OpenCV."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    for _ in range(frame):
        capture.grab()
    return cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)


def test_any_order_gives_the_same_frames(path: Path, opened: list[str]) -> None:
    wanted = {frame: alone(path, frame) for frame in (0, 7, 8, 25, COUNT - 1)}
    opened.clear()
    for frame in (0, 7, 8, 25, COUNT - 1):
        assert np.array_equal(video.OneFrame(str(path), frame).answer().pixels[0], wanted[frame])
    assert len(opened) == 1
    for frame in (25, 7, 7, 0, COUNT - 1):
        assert np.array_equal(video.OneFrame(str(path), frame).answer().pixels[0], wanted[frame])
    assert len(opened) == 5


def test_frames_behind_the_end_fail_each_time_and_the_others_still_answer(path: Path, opened: list[str]) -> None:
    for frame in (COUNT, COUNT + 5, COUNT):
        with pytest.raises((IndexError, ValueError), match=f"it has {COUNT} frames"):
            video.OneFrame(str(path), frame).answer()
    assert len(opened) == 1
    assert np.array_equal(video.OneFrame(str(path), 3).answer().pixels[0], alone(path, 3))


def test_a_changed_file_is_opened_again(path: Path) -> None:
    before = video.OneFrame(str(path), 3).answer().pixels
    write_video(path, np.full((10, 32, 32, 3), 200, np.uint8), 25.0)
    after = video.OneFrame(str(path), 4).answer().pixels
    assert abs(float(after.mean()) - 200) < 5
    assert before.mean() < 60

"""Clips that a user names, and what a fine-tuned model answers for them.

Guarantee: as for images and volumes, each clip is named once, in the order given, and has a row or a reason. A folder
with pictures in it is one clip, the folder of its frames; in other folders videos are searched at any depth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.config.preprocessing import StoredVideoConfig
from medvlp.data.clips import cut_clip
from medvlp.data.transforms import frames_to_tensor, resize_frames
from medvlp.errors import UserError
from medvlp.infer.admission import check_content
from medvlp.infer.images import Bad
from medvlp.io.clip import read_clip
from medvlp.tasks._classifier import logits_of
from medvlp.tasks._tuned import calibrated

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from medvlp.tasks._tuned import TunedModel

VIDEO_SUFFIXES = frozenset({".avi", ".mp4", ".mkv"})
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


@dataclass(frozen=True)
class SeenClip:
    """One clip as it is given to the model."""

    frames: UInt8[np.ndarray, "f h w *c"]
    digest: str
    notes: list[str] = field(default_factory=list)


def list_clips(paths: Sequence[Path]) -> tuple[list[Path], list[Bad]]:
    """Return the videos and folders of frames that are named or lie in named folders, and what is none."""
    found: dict[Path, None] = {}
    bad: list[Bad] = []
    for path in map(Path, paths):
        if path.is_dir():
            clips = _under(path)
            found.update(dict.fromkeys(clips))
            if not clips:
                bad.append(Bad(str(path), "The folder holds no video and no frames.", "Check the path."))
        elif path.exists():
            found[path] = None
        else:
            bad.append(Bad(str(path), "The file does not exist.", "Check the path."))
    return list(found), bad


def _under(folder: Path) -> list[Path]:
    inside = sorted(path for path in folder.rglob("*") if path.name[0] != "." and path.is_file())
    of_frames = {path.parent for path in inside if path.suffix.lower() in PICTURE_SUFFIXES}
    return sorted({path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES} | of_frames)


def see_clip(path: Path, model: TunedModel) -> SeenClip:
    """Read the clip in the middle of a video as the validation clips were read.

    Raises:
        UserError: It cannot be read, or all its pixels are equal; or the model was trained on extracted frames.
    """
    stored = model.preprocessing.stored
    if not isinstance(stored, StoredVideoConfig):
        raise UserError(
            "The model answers frames of videos, each with the frames around it, and a file is one clip.",
            path,
            "Judge it with `medvlp bench`, or train it on a store of videos.",
        )
    clip = read_clip(path, stored)
    frames = cut_clip(clip.array, model.preprocessing.input)
    check_content(frames, path)
    notes = ["no header"] if model.scope.modalities or model.scope.views or model.scope.body_parts else []
    if len(clip.array) < len(frames):
        notes.append(f"{len(clip.array)} frames where the model takes {len(frames)}: the others are black")
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else (path,):
        if file.is_file():
            digest.update(file.read_bytes())
    return SeenClip(frames, digest.hexdigest(), notes)


class ClipProbabilities:
    """Calibrated probability and answer of every label, of clips."""

    def __init__(self, model: TunedModel) -> None:
        self.model = model

    def __call__(self, seen: Sequence[tuple[str, SeenClip]], first: int) -> list[dict[str, Any] | Bad]:
        """See `medvlp.infer.predict.Answers`."""
        from medvlp.infer.predict import probability_row

        model, taken = self.model, self.model.preprocessing.input
        frames = frames_to_tensor(resize_frames(np.stack([clip.frames for _, clip in seen]), taken.size))
        probabilities = calibrated(model.decisions, logits_of(model.network, frames, taken, model.device))
        return [probability_row(model, name, own) for (name, _), own in zip(seen, probabilities, strict=True)]

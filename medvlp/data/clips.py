"""Clips of a store: which frames belong together, where a clip begins, and its frames as the model takes them.

Guarantee: frames stay in order and are never taken from another video; what lies behind the end of a video is black.
Where a clip begins is a function of (seed, epoch, sample) in training, and the middle otherwise.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np

from medvlp.data.corpus import reports_of
from medvlp.data.counter import CROP, uniforms
from medvlp.errors import UserError
from medvlp.store.manifest import UNITS
from medvlp.text.clip_captions import caption_templates, template_caption

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

    from medvlp.config.volumes import ClipInputConfig
    from medvlp.store.array_store import Store

ENDOSCOPY = "ES"


class Clips:
    """Clips of a store of videos, or of the frames of endoscopic videos that a store keeps one by one.

    In a store of videos every row is a video, and its clip lies anywhere in it. In a store of frames every row is a
    frame, whose clip holds it: the rows of one patient, in the order of the table, are one video.

    Args:
        store: Store of videos, or of images of modality ES.
        config: Frames of a clip and their distance.

    Raises:
        UserError: The store holds something else.
    """

    def __init__(self, store: Store, config: ClipInputConfig) -> None:
        check_clips(store)
        self.store, self.config = store, config
        self._indices = store.images["index"].to_numpy()
        rows = np.arange(len(self._indices))
        if store.kind == "video":
            self._first, self._length = rows, store.images["frames"].to_numpy(dtype=np.int64)
            self._place = np.full(len(rows), -1)
            self._order = rows
        else:
            _, video = np.unique(store.images["patient_id"].to_numpy(dtype=str), return_inverse=True)
            self._order = np.argsort(video, kind="stable")
            sizes = np.bincount(video)
            begins = np.cumsum(sizes) - sizes
            self._first, self._length = begins[video], sizes[video]
            self._place = np.empty(len(rows), dtype=np.int64)
            self._place[self._order] = rows
            self._place -= self._first

    @property
    def span(self) -> int:
        """Frames from the first to the last one of a clip."""
        return (self.config.frames - 1) * self.config.every + 1

    def starts(
        self, rows: Int[np.ndarray, " b"], drawn: Float[np.ndarray, " b"] | None = None
    ) -> Int[np.ndarray, " b"]:
        """Return the first frame of the clip of each row, counted in its video.

        Args:
            rows: Positions in the images table.
            drawn: Numbers in [0, 1) that say where; None is the middle.
        """
        last, place = np.maximum(self._length[rows] - self.span, 0), self._place[rows]
        alone = place < 0
        low = np.where(alone, 0, np.clip(place - self.span + 1, 0, last))
        high = np.where(alone, last, np.minimum(place, last))
        if drawn is None:
            middle = np.where(alone, last // 2, np.clip(place - self.span // 2, 0, last))
            return middle.astype(np.int64)
        return low + np.floor(drawn * (high - low + 1)).astype(np.int64)

    def draw(self, seed: int, epoch: int, rows: Int[np.ndarray, " b"], number: int = 0) -> Int[np.ndarray, " b"]:
        """Return a drawn first frame of the clip of each row; clips of one row differ by `number`."""
        return self.starts(rows, uniforms(CROP, seed, epoch, rows, number + 1)[:, number])

    def read(self, rows: Int[np.ndarray, " b"], starts: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b f s s *c"]:
        """Return the stored frames of clips."""
        return np.stack([self._clip(int(row), int(start)) for row, start in zip(rows, starts, strict=True)])

    def _clip(self, row: int, start: int) -> UInt8[np.ndarray, "f s s *c"]:
        frames = np.arange(start, min(start + self.span, self._length[row]), self.config.every)
        if self.store.kind == "video":
            held = self.store.read_frames(int(self._indices[row]), int(frames[0]), int(frames[-1]) + 1)
            held = held[:: self.config.every]
        else:
            held = self.store.read(self._indices[self._order[self._first[row] + frames]])
        if held.dtype != np.uint8:
            raise UserError("Clips are of bytes, and the frames of the store are wider.", self.store.path, "Use uint8.")
        return _filled(held, self.config.frames)


def cut_clip(frames: UInt8[np.ndarray, "n h w *c"], config: ClipInputConfig) -> UInt8[np.ndarray, "f h w *c"]:
    """Return the clip in the middle of a video, as `Clips` cuts it."""
    return _filled(frames[frames_taken(len(frames), config)], config.frames)


def frames_taken(number: int, config: ClipInputConfig) -> Int[np.ndarray, " f"]:
    """Return which of a video's frames are in the clip in its middle; fewer than `config.frames` of a short video."""
    start = max(number - ((config.frames - 1) * config.every + 1), 0) // 2
    return np.arange(start, number, config.every)[: config.frames]


def _filled(frames: UInt8[np.ndarray, "n h w *c"], number: int) -> UInt8[np.ndarray, "f h w *c"]:
    missing = number - len(frames)
    return np.pad(frames, [(0, missing), *[(0, 0)] * (frames.ndim - 1)]) if missing else frames


def check_clips(store: Store) -> None:
    """Raise `UserError` unless a store holds videos or frames of videos."""
    if store.kind != "video" and not (store.kind == "image" and store.card.modality == ENDOSCOPY):
        raise UserError(
            f"Clips are taken from videos or frames of videos, and the store holds {UNITS[store.kind]}.",
            store.path,
            "Use a store of videos or of endoscopic frames, e.g. echonet_dynamic or cholec80.",
        )


def texts_of(store: Store) -> dict[str, str]:
    """Return study -> report, or the captions of a data set without reports."""
    return reports_of(store) or captions_of(store)


def captions_of(store: Store) -> dict[str, str]:
    """Return study -> caption by the sentences of `clip_captions.yaml`; none of a data set that has no sentences."""
    if store.dataset not in caption_templates():
        return {}
    labels = [f"label:{name}" for name in store.label_names]
    found = {}
    for study in store.studies[["study_id", "values", *labels]].to_dict("records"):
        values = json.loads(study["values"]) if isinstance(study["values"], str) else {}
        own = {name.removeprefix("label:"): float(study[name]) for name in labels}
        measured = {name: math.nan if value is None else float(value) for name, value in values.items()}
        caption = template_caption(store.dataset, own, measured)
        if caption:
            found[str(study["study_id"])] = f"FINDINGS: {caption}"
    return found

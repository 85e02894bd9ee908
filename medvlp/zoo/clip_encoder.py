"""Encoders of clips, under the interface of encoders of images.

Guarantee: a file, the clip read from it, and its row in a store that was prepared in the same way give the same
features: those of the clip in the middle of the video, or in a store of frames of the clip around the frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from medvlp.config.preprocessing import ClipPreprocessing, StoredVideoConfig
from medvlp.data.clips import Clips, check_clips, cut_clip
from medvlp.data.transforms import frames_to_tensor, normalise, resize_frames
from medvlp.errors import UserError
from medvlp.io.clip import read_clip
from medvlp.types import Clip, Features
from medvlp.zoo.encoder import Encoder, _chunks, _concatenate

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

    from medvlp.store.array_store import Store

Video = str | Path | Clip


class ClipEncoder(Encoder):
    """An encoder of clips; see `Encoder`.

    Where `Encoder` speaks of stored squares `[b h w]`, these are the frames `[b f h w]` or `[b f h w 3]` of one clip
    each.
    """

    kind: ClassVar[str] = "video"
    preprocessing: ClipPreprocessing

    def __init__(self, *arguments: Any, batch_size: int = 8, **options: Any) -> None:
        super().__init__(*arguments, batch_size=batch_size, **options)

    def read(self, video: Video) -> Clip:
        """Return the clip of a file or folder of frames, as `preprocessing.stored` says, or the one that is given.

        Raises:
            UserError: It cannot be read, or it is a video and the encoder was trained on single frames: at which rate
                these were taken nobody says.
        """
        if isinstance(video, Clip):
            return video
        path, stored = Path(video), self.preprocessing.stored
        if isinstance(stored, StoredVideoConfig):
            return read_clip(path, stored)
        if not path.is_dir():
            raise UserError(
                f"The encoder '{self.name}' was trained on extracted frames, and this is no folder of frames.",
                path,
                "Extract the frames at the rate of the training data, see its data card.",
            )
        colour = "keep" if stored.colour == "keep" else "luminance"
        return read_clip(path, StoredVideoConfig(size=stored.size, aspect=stored.aspect, colour=colour))

    def preprocess(self, image: Video) -> UInt8[np.ndarray, "f h w *c"]:  # type: ignore[override]
        """Return the frames of the clip in the middle of a video.

        Raises:
            UserError: It cannot be read.
        """
        return cut_clip(self.read(image).array, self.preprocessing.input)

    def encode_image(self, images: Iterable[Video] | Video) -> Features:  # type: ignore[override]
        """Return the features of videos, folders of frames and clips, in the order given.

        Raises:
            UserError: One cannot be read.
        """
        videos = [images] if isinstance(images, str | Path | Clip) else list(images)
        return _concatenate([self.encode_stored(self.preprocess(video)[None]) for video in videos])

    def encode_rows(self, store: Store, rows: Int[np.ndarray, " n"]) -> Features:
        """Return the features of rows of the images table of a store of videos or of frames of videos.

        Raises:
            UserError: The store holds neither.
        """
        self.check_store(store)
        clips, rows = Clips(store, self.preprocessing.input), np.asarray(rows, dtype=np.int64)
        parts = (rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))
        return _concatenate([self.encode_stored(clips.read(part, clips.starts(part))) for part in parts])

    def check_store(self, store: Store) -> None:
        """Raise `UserError` unless a store holds videos or frames of videos."""
        check_clips(store)

    def _inputs(self, pixels: UInt8[np.ndarray, "b f h w *c"]) -> Iterator[Float[torch.Tensor, "b c f h w"]]:
        if not len(pixels):
            raise UserError("There are no clips to encode.", "encoder", "Give one clip or more.")
        config = self.preprocessing.input
        for chunk in _chunks(pixels, self.batch_size):
            yield normalise(frames_to_tensor(resize_frames(chunk, config.size)).to(self.device), config)

"""Encoders of clips, under the interface of encoders of images.

Guarantee: a file, the clip read from it, and its row in a store that was prepared in the same way give the same
features: those of the clip in the middle of the video, or in a store of frames of the clip around the frame. Heat maps
return to the frames, rows and columns of the file; what the encoder has not seen is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from medvlp.config.preprocessing import ClipPreprocessing, StoredImageConfig, StoredVideoConfig
from medvlp.data.clip_place import ClipPlace
from medvlp.data.clips import Clips, check_clips, cut_clip
from medvlp.data.transforms import frames_to_tensor, normalise, resize_frames
from medvlp.errors import UserError
from medvlp.io.clip import read_clip
from medvlp.io.enlarge import to_image, to_places
from medvlp.types import Clip, Features
from medvlp.zoo.encoder import Encoder, _chunks, _concatenate

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int, UInt8

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
        path = Path(video)
        if not isinstance(self.preprocessing.stored, StoredVideoConfig) and not path.is_dir():
            raise UserError(
                f"The encoder '{self.name}' was trained on extracted frames, and this is no folder of frames.",
                path,
                "Extract the frames at the rate of the training data, see its data card.",
            )
        return read_clip(path, self._video_config)

    @property
    def _video_config(self) -> StoredVideoConfig:
        """How a video or a folder of frames is read."""
        stored = self.preprocessing.stored
        if isinstance(stored, StoredVideoConfig):
            return stored
        colour = "keep" if stored.colour == "keep" else "luminance"
        return StoredVideoConfig(size=stored.size, aspect=stored.aspect, colour=colour)

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

    def place_of(self, video: Video, clip: Clip) -> ClipPlace:
        """Return where the model input of a clip lies in the video that it was read from."""
        if isinstance(video, Clip):
            return ClipPlace.of_clip(clip, self.preprocessing.input)
        return ClipPlace.of_file(clip, self._video_config, self.preprocessing.input)

    def heat_maps(  # type: ignore[override]
        self, images: Iterable[Video] | Video, texts: Sequence[str]
    ) -> list[Float32[np.ndarray, "t f h w"]]:
        """Return where each clip shows what each text says: on the frames, rows and columns of its file.

        Of a `Clip` they lie on its own frames. Frames that the encoder does not take, and what a crop cuts off, are
        NaN.

        Raises:
            UserError: The encoder has no heat maps, a text is empty, a clip cannot be read, or is too long for maps.
        """
        self.check_heat_maps(texts)
        found = []
        for video in [images] if isinstance(images, str | Path | Clip) else images:
            clip = self.read(video)
            maps = self.token_heat_maps(self.preprocess(clip)[None], texts)[0].cpu().numpy()
            found.append(self.place_of(video, clip).on_video(maps))
        return found

    def heat_maps_stored(
        self, pixels: UInt8[np.ndarray, "b f h w *c"], texts: Sequence[str]
    ) -> Float32[np.ndarray, "b t f h w"]:
        """As `heat_maps`, of the frames of clips of the model input, on these."""
        maps = self.token_heat_maps(pixels, texts).cpu().numpy()
        frames = (np.arange(pixels.shape[1]) + 0.5) / pixels.shape[1]
        squashed = StoredImageConfig(aspect="squash")
        height, width = pixels.shape[2:4]
        return to_image(to_places(maps, frames, -3), height, width, squashed)

    def check_store(self, store: Store) -> None:
        """Raise `UserError` unless a store holds videos or frames of videos."""
        check_clips(store)

    def _inputs(self, pixels: UInt8[np.ndarray, "b f h w *c"]) -> Iterator[Float[torch.Tensor, "b c f h w"]]:
        if not len(pixels):
            raise UserError("There are no clips to encode.", "encoder", "Give one clip or more.")
        config = self.preprocessing.input
        for chunk in _chunks(pixels, self.batch_size):
            yield normalise(frames_to_tensor(resize_frames(chunk, config.size)).to(self.device), config)

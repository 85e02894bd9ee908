"""Where the frames of a model input lie in the video that they were cut from, and the way back.

Guarantee: a map returns to the frames, rows and columns of the video, whatever was left out, padded, cropped or
squashed on the way. A frame that the model did not take, and what a crop cut off, is NaN: nothing is interpolated
between frames that were seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvlp.config.preprocessing import StoredImageConfig, StoredVideoConfig
from medvlp.data.clips import frames_taken
from medvlp.errors import UserError
from medvlp.io.enlarge import to_image, to_places

if TYPE_CHECKING:
    from jaxtyping import Float32, Int

    from medvlp.config.volumes import ClipInputConfig
    from medvlp.types import Clip

MOST_BYTES = 2**31
"""Of the maps of one video."""


@dataclass(frozen=True)
class ClipPlace:
    """A model input within its video.

    Args:
        shape: Frames, rows and columns of the video.
        taken: Frame of the video that each frame of the model input is; those behind the end of the video are none.
        length: Frames of the model input.
        square: How a frame became a square.
    """

    shape: tuple[int, int, int]
    taken: Int[np.ndarray, " s"]
    length: int
    square: StoredImageConfig

    @classmethod
    def of_file(cls, clip: Clip, stored: StoredVideoConfig, taken: ClipInputConfig) -> ClipPlace:
        """Return the place within the file that a clip was read from by `stored`."""
        facts = clip.provenance
        return cls(
            (int(facts["file_frames"]), int(facts["height"]), int(facts["width"])),
            frames_taken(len(clip.array), taken) * stored.every,
            taken.frames,
            StoredImageConfig(size=stored.size, aspect=stored.aspect),
        )

    @classmethod
    def of_clip(cls, clip: Clip, taken: ClipInputConfig) -> ClipPlace:
        """Return the place within the frames of a clip itself, which are stretched to the model input."""
        frames, height, width = clip.array.shape[:3]
        squashed = StoredImageConfig(aspect="squash")
        return cls((frames, height, width), frames_taken(frames, taken), taken.frames, squashed)

    def on_video(self, maps: Float32[np.ndarray, "t gf gh gw"]) -> Float32[np.ndarray, "t f h w"]:
        """Return maps on the frames, rows and columns of the video, NaN where the model has seen nothing.

        Args:
            maps: Values on a grid whose cells cover the model input evenly.

        Raises:
            UserError: The maps of so long a video take too much memory.
        """
        size = 4 * len(maps) * np.prod(self.shape, dtype=np.int64)
        if size > MOST_BYTES:
            frames, height, width = self.shape
            raise UserError(
                f"Maps on {frames} frames of {height} x {width} pixels take {size / 2**30:.1f} GiB.",
                "heat maps",
                f"Cut what is to be explained out of the video, to {MOST_BYTES / 2**30:.0f} GiB, or ask fewer texts.",
            )
        found = np.full((len(maps), *self.shape), np.nan, np.float32)
        in_time = to_places(maps, (np.arange(len(self.taken)) + 0.5) / self.length, -3)
        found[:, self.taken] = to_image(in_time, *self.shape[1:], self.square)
        return found

"""Masks as runs of pixels.

Guarantee: a run-length text that does not fit its image raises; nothing is cut off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool


def decode_gaps(text: str, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Return the mask of `gap length gap length ...`, counted down the columns from the end of the run before.

    Args:
        text: Whole numbers, blank-separated.
        size: Height and width of the image.

    Raises:
        ValueError: The text is no list of pairs, a length is not positive, or a run leaves the image.
    """
    words = text.split()
    if not words or len(words) % 2 or not all(word.isdecimal() for word in words):
        raise ValueError("the run lengths are no pairs of whole numbers")
    height, width = size
    pixels = np.zeros(height * width, bool)
    end = 0
    for gap, length in zip(words[::2], words[1::2], strict=True):
        start = end + int(gap)
        end = start + int(length)
        if end == start or end > pixels.size:
            raise ValueError(f"the run of length {length} from pixel {start} does not fit {height} x {width} pixels")
        pixels[start:end] = True
    return pixels.reshape(width, height).T


def runs_of(mask: Bool[np.ndarray, "h w"]) -> tuple[int, ...]:
    """Return start, length, start, length, ... of a mask in row-major order, as `medvlp.types.Mask` holds them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.ravel(), [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    return tuple(int(value) for pair in zip(starts, ends - starts, strict=True) for value in pair)

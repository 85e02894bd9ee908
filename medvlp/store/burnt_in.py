"""Candidates for text burnt into pixels: rows of small, sharp, bright shapes of equal height.

Guarantee: a candidate is a place to look, not a proof; it comes with its box. Side markers of one or two letters are no
candidates, lines of four characters and more are, if they are at least `MIN_HEIGHT` pixels high as stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from medvlp.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Shaped

    from medvlp.store.array_store import Store

MIN_HEIGHT, MIN_CHARACTERS = 4, 4
MIN_CONTRAST = 60
"""Grey levels (of 255) that a stroke must stand above its surroundings."""
_AT_ONCE = 256


@dataclass(frozen=True)
class TextLine:
    """A row of characters: its box in stored pixels and how many shapes it has."""

    x: int
    y: int
    width: int
    height: int
    characters: int


def text_lines(image: Shaped[np.ndarray, "h w"]) -> list[TextLine]:
    """Return rows of shapes that look like printed text in a uint8 or uint16 image."""
    grey = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    size = max(9, 2 * (min(grey.shape) // 40) + 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (size, size))
    strokes = cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, kernel) > MIN_CONTRAST
    count, _, stats, _ = cv2.connectedComponentsWithStats(strokes.astype(np.uint8), connectivity=8)
    tallest = max(2 * MIN_HEIGHT, min(grey.shape) // 12)
    shapes = [
        (
            stats[k, cv2.CC_STAT_LEFT],
            stats[k, cv2.CC_STAT_TOP],
            stats[k, cv2.CC_STAT_WIDTH],
            stats[k, cv2.CC_STAT_HEIGHT],
        )
        for k in range(1, count)
        if MIN_HEIGHT <= stats[k, cv2.CC_STAT_HEIGHT] <= tallest
        and stats[k, cv2.CC_STAT_WIDTH] <= 2 * stats[k, cv2.CC_STAT_HEIGHT]
        and stats[k, cv2.CC_STAT_AREA] >= 0.15 * stats[k, cv2.CC_STAT_WIDTH] * stats[k, cv2.CC_STAT_HEIGHT]
    ]
    return _rows(sorted(tuple(int(value) for value in shape) for shape in shapes))


def _rows(shapes: list[tuple[int, ...]]) -> list[TextLine]:
    """Join shapes of equal height and base line that stand close beside each other."""
    lines: list[list[tuple[int, ...]]] = []
    for shape in shapes:
        x, y, _, height = shape
        for line in lines:
            before_x, before_y, before_width, before_height = line[-1]
            gap = x - before_x - before_width
            level = abs((y + height) - (before_y + before_height)) <= 0.2 * max(height, before_height) + 1
            if -1 <= gap <= 1.6 * max(height, before_height) and level and _alike(height, before_height):
                line.append(shape)
                break
        else:
            lines.append([shape])
    return [_box(line) for line in lines if len(line) >= MIN_CHARACTERS]


def _alike(height: int, other: int) -> bool:
    return min(height, other) >= 0.65 * max(height, other)


def _box(line: Sequence[tuple[int, ...]]) -> TextLine:
    left, top = min(s[0] for s in line), min(s[1] for s in line)
    right, bottom = max(s[0] + s[2] for s in line), max(s[1] + s[3] for s in line)
    return TextLine(left, top, right - left, bottom - top, len(line))


def burnt_in_text(store: Store) -> list[dict[str, Any]]:
    """Return every image of an image store with candidates, those with most characters first."""
    rows = store.images["index"].to_numpy()
    names = store.images["image_id"].tolist()
    found = []
    with progress_bar(f"Looking for burnt-in text in {store.dataset}", len(rows), "images") as advance:
        for start in range(0, len(rows), _AT_ONCE):
            block = store.read(rows[start : start + _AT_ONCE])
            for name, image in zip(names[start : start + _AT_ONCE], block, strict=True):
                lines = text_lines(image if image.ndim == 2 else image.max(axis=-1))
                if lines:
                    boxes = [[line.x, line.y, line.width, line.height] for line in lines]
                    characters = sum(line.characters for line in lines)
                    found.append({"store": store.path.name, "image": name, "characters": characters, "boxes": boxes})
            advance(len(block))
    return sorted(found, key=lambda row: -row["characters"])

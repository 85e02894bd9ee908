"""Marks that are laid over the pictures of a page.

Guarantee: a mark never hides what lies under it: it is a line around the structure with a
faint filling, and the same structure has the same colour on the whole page.
"""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool

COLOURS = (
    "#ffb000",
    "#3ec9ff",
    "#ff5ea8",
    "#6ee76e",
    "#b58cff",
    "#ff7043",
    "#f4f15a",
    "#30e0c0",
    "#ff9ec4",
    "#9ad0ff",
)
"""Colours of marks on grey pictures, by the place of the structure; after the last come computed ones."""
_GOLDEN_TURN = 0.381966
_FILL, _LINE = 44, 235


def colour(place: int) -> str:
    """Return the colour of a structure: neighbours in a list of many differ in hue, and after some in lightness."""
    if place < len(COLOURS):
        return COLOURS[place]
    lightness = (0.62, 0.74, 0.52)[place // 7 % 3]
    parts = colorsys.hls_to_rgb(place * _GOLDEN_TURN % 1, lightness, 0.85)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def marks_uri(masks: Sequence[Bool[np.ndarray, "h w"]], places: Sequence[int]) -> str | None:
    """Return structures as one transparent PNG, later ones on top; None where there is nothing inside any.

    Args:
        masks: Inside of each structure, all of one size.
        places: What decides the colour of each.
    """
    from PIL import Image

    shown = [(mask, place) for mask, place in zip(masks, places, strict=True) if mask.any()]
    if not shown:
        return None
    layer = np.zeros((*shown[0][0].shape, 4), dtype=np.uint8)
    for mask, place in shown:
        rgb = [int(colour(place)[at : at + 2], 16) for at in (1, 3, 5)]
        layer[mask] = [*rgb, _FILL]
        layer[edge(mask)] = [*rgb, _LINE]
    buffer = io.BytesIO()
    Image.fromarray(layer).quantize(64).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def edge(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels inside that touch the outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner

"""A map on a coarse grid that covers the stored square -> the pixels of the square, or of the image it was made from.

Guarantee: the inverse of the geometry of `stored_transform`, in one bilinear step between the centres of the cells;
beyond the outer centres a map keeps its last value. Pixels of the image that the square does not show are NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medvlp.io.stored import stored_transform

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.config.preprocessing import StoredImageConfig


def to_square(maps: Float[np.ndarray, "*n g w"], size: int) -> Float[np.ndarray, "*n s s"]:
    """Return maps on the pixels of the stored square.

    Args:
        maps: Values on a grid whose cells cover the square evenly.
        size: Side `s` of the square in pixels.
    """
    places = (np.arange(size) + 0.5) / size
    return _interpolate(maps, places, places)


def to_image(
    maps: Float[np.ndarray, "*n g w"], height: int, width: int, config: StoredImageConfig
) -> Float[np.ndarray, "*n height width"]:
    """Return maps on the pixels of the image that a stored square was made from.

    Args:
        maps: Values on a grid whose cells cover the square evenly.
        height: Of the image, in pixels.
        width: Likewise.
        config: How the square was made.
    """
    scale_y, scale_x, offset_y, offset_x = stored_transform(height, width, config)
    rows = ((np.arange(height) + 0.5) * scale_y + offset_y) / config.size
    columns = ((np.arange(width) + 0.5) * scale_x + offset_x) / config.size
    found = _interpolate(maps, rows, columns)
    found[..., (rows < 0) | (rows > 1), :] = np.nan
    found[..., (columns < 0) | (columns > 1)] = np.nan
    return found


def to_places(maps: Float[np.ndarray, "*n"], places: Float[np.ndarray, " p"], axis: int) -> Float[np.ndarray, "*n"]:
    """Return maps read along one axis at places given as shares of it; between equal cells exactly their value."""
    at = np.clip(places * maps.shape[axis] - 0.5, 0, maps.shape[axis] - 1)
    first = np.floor(at).astype(np.intp)
    share = (at - first).astype(maps.dtype).reshape(-1, *[1] * (-1 - axis))
    before = maps.take(first, axis)
    behind = maps.take(np.minimum(first + 1, maps.shape[axis] - 1), axis)
    return before + share * (behind - before)


def _interpolate(
    maps: Float[np.ndarray, "*n g w"], rows: Float[np.ndarray, " h"], columns: Float[np.ndarray, " v"]
) -> Float[np.ndarray, "*n h v"]:
    return to_places(to_places(maps, rows, -2), columns, -1)

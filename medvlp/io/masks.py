"""Masks of images, as they lie in the data set and as they lie in a stored square; and of volumes.

Guarantee: a mask has the size of its image or is refused; in the stored square each pixel takes the mask's value at the
place that `stored_transform` gives it, so mask and image keep together. Nothing is smoothed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.io.formats import volume_format
from medvlp.io.label_map import read_label_map
from medvlp.io.stored import stored_transform
from medvlp.io.volume_masks import read_volume_labels

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped, UInt8

    from medvlp.config.preprocessing import StoredImageConfig
    from medvlp.types import Mask

__all__ = ["read_image_masks", "read_volume_labels", "to_stored_mask", "to_stored_region"]

_FIX = "Use the mask that was drawn on this image."


def read_image_masks(root: Path, masks: Sequence[Mask], height: int, width: int) -> list[Bool[np.ndarray, "h w"]]:
    """Return the masks of one image, each `[height width]`, True inside.

    Args:
        root: Folder of the data set.
        masks: Of files (grey PNG, NIfTI, MHD, NRRD), runs or polygons. Polygons are in continuous pixels, (0, 0) the
            top-left corner of the first one; a pixel is inside if its centre is, by the even-odd rule.
        height: Of the image, in pixels.
        width: Likewise.

    Raises:
        UserError: A file is missing, damaged, coloured or lossy, a mask has another size, or runs leave the image.
    """
    return [_read(Path(root), mask, height, width) for mask in masks]


def _read(root: Path, mask: Mask, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    if mask.path is not None:
        path = root / mask.path
        values = _file_values(path)
        _check_size(values.shape, height, width, path)
        return np.isin(values, mask.values) if mask.values else values != 0
    where = f"mask of {mask.label} on {mask.image_id}"
    if mask.size is not None:
        _check_size(mask.size, height, width, where)
        return _from_runs(mask.runs, height, width, where)
    return fill_polygon(np.asarray(mask.points, dtype=np.float64), height, width, where)


def _file_values(path: Path) -> Shaped[np.ndarray, "h w"]:
    kind = volume_format(path)
    if kind == "picture":
        from medvlp.io.raster import read_values

        return read_values(path)
    values = read_label_map(path, 2**26)
    if values.shape[0] != 1:
        raise UserError(f"The mask has {values.shape[0]} slices; an image has one.", path, _FIX)
    return values[0]


def _check_size(found: Sequence[int], height: int, width: int, where: object) -> None:
    if tuple(found) != (height, width):
        what = f"The mask has {found[0]} x {found[1]} pixels where its image has {height} x {width}."
        raise UserError(what, where, _FIX)


def _from_runs(runs: Sequence[int], height: int, width: int, where: str) -> Bool[np.ndarray, "h w"]:
    """Return runs (start, length, start, length, ... in row-major order, from 0) as a mask."""
    pairs = np.asarray(runs, dtype=np.int64)
    if len(pairs) % 2:
        raise UserError("The runs are not pairs of start and length.", where, "Correct the runs.")
    starts, lengths = pairs[::2], pairs[1::2]
    if len(pairs) and (min(starts.min(), lengths.min()) < 0 or (starts + lengths).max() > height * width):
        raise UserError("The runs leave the image.", where, "Correct the runs.")
    flat = np.zeros(height * width, dtype=bool)
    for start, length in zip(starts, lengths, strict=True):
        flat[start : start + length] = True
    return flat.reshape(height, width)


def fill_polygon(
    points: Float[np.ndarray, "n 2"], height: int, width: int, where: object = ""
) -> Bool[np.ndarray, "h w"]:
    """Return the pixels whose centres lie inside a polygon (even-odd rule).

    Args:
        points: Corners (x, y) in continuous pixels.
        height: Of the image.
        width: Of the image.
        where: For errors.

    Raises:
        UserError: There are fewer than three corners, or they are not finite.
    """
    if points.ndim != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise UserError("The polygon does not have three or more finite corners.", where, "Correct the polygon.")
    mask = np.zeros((height, width), dtype=bool)
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    centres = np.arange(width) + 0.5
    for row in range(max(0, int(y0.min() - 0.5)), min(height, int(np.ceil(y0.max())))):
        y = row + 0.5
        crosses = (y0 <= y) != (y1 <= y)
        at = x0[crosses] + (y - y0[crosses]) * (x1[crosses] - x0[crosses]) / (y1[crosses] - y0[crosses])
        mask[row] = (np.searchsorted(np.sort(at), centres, side="right") % 2).astype(bool)
    return mask


def to_stored_mask(mask: Bool[np.ndarray, "h w"], config: StoredImageConfig) -> UInt8[np.ndarray, "s s"]:
    """Return a mask as it lies in the stored square of its image: 1 inside, 0 outside and in the padding.

    Each stored pixel takes the value of the mask's pixel under its centre.

    Args:
        mask: Of the whole image.
        config: That of the image.
    """
    height, width = mask.shape
    scale_y, scale_x, offset_y, offset_x = stored_transform(height, width, config)
    centres = np.arange(config.size) + 0.5
    rows = np.floor((centres - offset_y) / scale_y).astype(np.intp)
    columns = np.floor((centres - offset_x) / scale_x).astype(np.intp)
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    stored = np.zeros((config.size, config.size), dtype=np.uint8)
    picked = np.asarray(mask)[np.ix_(rows[inside_rows], columns[inside_columns])] != 0
    stored[np.ix_(inside_rows, inside_columns)] = picked
    return stored


def to_stored_region(
    box: Mapping[str, Any], height: int, width: int, config: StoredImageConfig
) -> Bool[np.ndarray, "s s"]:
    """Return the inside of a box as it lies in the stored square of its image: the pixels whose centres are in it.

    A box on the image that is so small that it holds no centre takes the pixel under its own.

    Args:
        box: Fields of `medvlp.types.Box`, in pixels of the file; `shape` is rectangle, ellipse or polygon.
        height: Of the file, in pixels.
        width: Likewise.
        config: That of the image.
    """
    scale_y, scale_x, offset_y, offset_x = stored_transform(height, width, config)
    size = config.size
    if box.get("shape") == "polygon" and box.get("points"):
        points = np.asarray(box["points"], dtype=np.float64)
        return fill_polygon(points * (scale_x, scale_y) + (offset_x, offset_y), size, size)
    left, right = (min(max(x, 0), width) * scale_x + offset_x for x in (box["x"], box["x"] + box["width"]))
    top, bottom = (min(max(y, 0), height) * scale_y + offset_y for y in (box["y"], box["y"] + box["height"]))
    x, y = np.arange(size) + 0.5, np.arange(size)[:, None] + 0.5
    if right <= left or bottom <= top:
        return np.zeros((size, size), dtype=bool)
    if box.get("shape") == "ellipse":
        across, down = ((x - (left + right) / 2) / (right - left), (y - (top + bottom) / 2) / (bottom - top))
        region = across**2 + down**2 <= 0.25
    else:
        region = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    row, column = int(np.floor((top + bottom) / 2)), int(np.floor((left + right) / 2))
    if not region.any() and 0 <= row < size and 0 <= column < size:
        region[row, column] = True
    return region

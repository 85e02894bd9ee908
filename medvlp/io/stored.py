"""A radiograph of any size -> the square of grey values that a store keeps.

Guarantee: the place of every pixel is given by `stored_transform` alone, so boxes and masks can follow; UNIT is scaled
by full scale, STORED and HU by the image's own range as recorded in its provenance; padding of the file becomes black.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from medvlp.types import Intensity, Radiograph

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16

    from medvlp.config.preprocessing import StoredImageConfig

_PILLOW_FILTERS = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "lanczos")}


def to_stored(
    radiograph: Radiograph, config: StoredImageConfig
) -> UInt8[np.ndarray, "s s *c"] | UInt16[np.ndarray, "s s *c"]:
    """Return the image as `[size size]` grey values, 0 black to full scale white.

    Where `config.colour` is keep the result is `[size size 3]`: red, green and blue, equal for a grey image.

    Shrinking is anti-aliased with every filter; `area` enlarges bilinearly.

    Args:
        radiograph: Image with `provenance["range"]` (values of black and white) and, where the file has padding pixels,
            `provenance["padding"]` with their `low` and `high` value.
        config: Side, aspect policy, filter and type of the result.
    """
    unit = unit_range(radiograph)
    full_scale = 255 if config.dtype == "uint8" else 65535
    if unit.ndim == 3:
        square = np.stack([_square(unit[..., channel], config) for channel in range(unit.shape[2])], axis=-1)
    else:
        square = _square(unit, config)
    stored = np.rint(np.clip(square, 0, 1) * full_scale).astype(config.dtype)
    return np.repeat(stored[..., None], 3, axis=-1) if config.colour == "keep" and stored.ndim == 2 else stored


def stored_frame(
    frame: UInt8[np.ndarray, "h w *c"], size: int, aspect: str, colour: str
) -> UInt8[np.ndarray, "s s *c"]:
    """Return one frame of a video as a stored square: luminance, or its three colours where `colour` is keep.

    Args:
        frame: Grey, or red, green and blue.
        size: Side of the square.
        aspect: pad, squash or crop.
        colour: luminance or keep.
    """
    from medvlp.config.preprocessing import StoredImageConfig
    from medvlp.io.raster import LUMINANCE

    config = StoredImageConfig.model_validate({"size": size, "aspect": aspect, "colour": colour})
    unit = frame.astype(np.float32) / 255
    if unit.ndim == 3 and colour != "keep":
        unit = unit @ np.asarray(LUMINANCE, dtype=np.float32)
    return to_stored(Radiograph(unit, None, Intensity.UNIT, {}), config)


def _square(unit: Float[np.ndarray, "h w"], config: StoredImageConfig) -> Float[np.ndarray, "s s"]:
    height, width = unit.shape
    new_height, new_width, top, left = _layout(height, width, config)
    resized = _resize(np.ascontiguousarray(unit), new_height, new_width, config.interpolation)
    size = config.size
    square = np.zeros((size, size), dtype=np.float32)
    rows, columns = min(new_height, size), min(new_width, size)
    square[max(top, 0) : max(top, 0) + rows, max(left, 0) : max(left, 0) + columns] = resized[
        max(-top, 0) : max(-top, 0) + rows, max(-left, 0) : max(-left, 0) + columns
    ]
    return square


def stored_transform(height: int, width: int, config: StoredImageConfig) -> tuple[float, float, float, float]:
    """Return `(scale_y, scale_x, offset_y, offset_x)` from pixels of the file to pixels of the stored square.

    Coordinates are continuous, (0, 0) is the top-left corner of the first pixel: `y_stored = y * scale_y + offset_y`.
    Points that a crop cuts off fall outside `[0, size]`.
    """
    new_height, new_width, top, left = _layout(height, width, config)
    return new_height / height, new_width / width, float(top), float(left)


def _layout(height: int, width: int, config: StoredImageConfig) -> tuple[int, int, int, int]:
    """Return the resized image's size and where its top-left corner lies in the square (negative where cropped)."""
    size, scaled = config.size, config.crop_from or config.size
    if config.aspect == "squash":
        new_height = new_width = scaled
    else:
        side = max(height, width) if config.aspect == "pad" else min(height, width)
        new_height, new_width = max(1, round(height * scaled / side)), max(1, round(width * scaled / side))
    return new_height, new_width, (size - new_height) // 2, (size - new_width) // 2


def unit_range(radiograph: Radiograph) -> Float[np.ndarray, "h w *c"]:
    """Return the image from 0, black, to 1, white; padding of the file is black."""
    image = np.asarray(radiograph.array, dtype=np.float32)
    if radiograph.intensity is Intensity.UNIT:
        return image
    low, high = radiograph.provenance["range"]
    unit = np.clip((image - low) / (high - low), 0, 1) if high > low else np.zeros_like(image)
    padding = radiograph.provenance.get("padding")
    if padding:
        unit[(image >= padding["low"]) & (image <= padding["high"])] = 0
    return unit.astype(np.float32, copy=False)


def _resize(image: Float[np.ndarray, "h w"], height: int, width: int, filter_name: str) -> Float[np.ndarray, "h w"]:
    if image.shape == (height, width):
        return image
    if filter_name != "area":
        return np.asarray(Image.fromarray(image).resize((width, height), _PILLOW_FILTERS[filter_name]))
    shrunk_height, shrunk_width = min(height, image.shape[0]), min(width, image.shape[1])
    if image.shape != (shrunk_height, shrunk_width):
        image = cv2.resize(image, (shrunk_width, shrunk_height), interpolation=cv2.INTER_AREA)
    if image.shape != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image

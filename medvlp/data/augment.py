"""Random changes of a training image, split into what is drawn and what is done.

Guarantee: `draw` is the only place with randomness and depends on (seed, epoch, sample id) alone; `apply` is a pure
function of pixels and drawn values. Both know nothing of batches, threads or ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvlp.data.counter import IMAGE, uniforms
from medvlp.data.transforms import MAX_BILINEAR_SHRINK, resize_filter

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8, UInt16

    from medvlp.config.data import AugmentConfig


@dataclass(frozen=True, slots=True)
class ImageChanges:
    """Drawn values of `n` samples: crop box in stored pixels, degrees counter-clockwise, factors of grey values."""

    top: Int[np.ndarray, " n"]
    left: Int[np.ndarray, " n"]
    height: Int[np.ndarray, " n"]
    width: Int[np.ndarray, " n"]
    degrees: Float[np.ndarray, " n"]
    flip: Bool[np.ndarray, " n"]
    brightness: Float[np.ndarray, " n"]
    contrast: Float[np.ndarray, " n"]
    invert: Bool[np.ndarray, " n"]


def draw(
    config: AugmentConfig, seed: int, epoch: int, ids: Int[np.ndarray, " n"], size: int, stream: int = IMAGE
) -> ImageChanges:
    """Draw the changes of the samples `ids`.

    A crop keeps a share of the area, uniform in `crop_scale`, at a ratio of width to height, log-uniform in
    `crop_ratio`; a side that would leave the image is cut to it. Its place is uniform. Brightness and contrast factors
    are uniform within 1 ± their strength, the angle within ± `rotate_degrees`.

    Args:
        config: Strength of each change.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        ids: Row of each sample in the images table.
        size: Side of the stored squares.
        stream: Stream of random numbers; views of one image differ by it.
    """
    u = uniforms(stream, seed, epoch, np.asarray(ids), 9).T
    area = size * size * (config.crop_scale[0] + u[0] * (config.crop_scale[1] - config.crop_scale[0]))
    low, high = np.log(config.crop_ratio[0]), np.log(config.crop_ratio[1])
    ratio = np.exp(low + u[1] * (high - low))
    width = np.clip(np.rint(np.sqrt(area * ratio)), 1, size).astype(np.int64)
    height = np.clip(np.rint(np.sqrt(area / ratio)), 1, size).astype(np.int64)
    return ImageChanges(
        top=np.floor(u[2] * (size - height + 1)).astype(np.int64),
        left=np.floor(u[3] * (size - width + 1)).astype(np.int64),
        height=height,
        width=width,
        degrees=(2 * u[4] - 1) * config.rotate_degrees,
        flip=(u[5] < 0.5) & config.flip,
        brightness=1 + (2 * u[6] - 1) * config.brightness,
        contrast=1 + (2 * u[7] - 1) * config.contrast,
        invert=u[8] < config.invert,
    )


def apply(
    image: UInt8[np.ndarray, "h w *c"] | UInt16[np.ndarray, "h w *c"],
    changes: ImageChanges,
    i: int,
    out: UInt8[np.ndarray, "s s *c"] | UInt16[np.ndarray, "s s *c"],
) -> None:
    """Write the changed image of sample `i` into `out`.

    Crop (and rotation) resample once; then grey values become `contrast · (brightness · x - m) + m` with `m` the mean
    of `brightness · x` over the crop and its channels, saturated at black and full scale, and possibly inverted.
    """
    import cv2

    if changes.degrees[i]:
        _rotated_crop(image, changes, i, out)
    else:
        top, left, height, width = changes.top[i], changes.left[i], changes.height[i], changes.width[i]
        crop = image[top : top + height, left : left + width]
        flags = resize_filter(max(height, width) / out.shape[0])
        cv2.resize(crop, (out.shape[1], out.shape[0]), dst=out, interpolation=flags)
    if changes.flip[i]:
        out[:] = out[:, ::-1].copy()
    gain, offset = changes.brightness[i] * changes.contrast[i], 0.0
    if changes.contrast[i] != 1:
        means = cv2.mean(out)[: out.shape[2] if out.ndim == 3 else 1]
        offset = changes.brightness[i] * (1 - changes.contrast[i]) * sum(means) / len(means)
    if changes.invert[i]:
        gain, offset = -gain, np.iinfo(out.dtype).max - offset
    if gain != 1 or offset != 0:
        cv2.addWeighted(out, gain, out, 0, offset, dst=out)


def _rotated_crop(image: np.ndarray, changes: ImageChanges, i: int, out: np.ndarray) -> None:
    """Sample a crop box turned about its centre; what lies outside the image is black."""
    import cv2

    scale = np.array([changes.width[i], changes.height[i]]) / out.shape[0]
    centre = np.array([changes.left[i], changes.top[i]]) + np.array([changes.width[i], changes.height[i]]) / 2
    if scale.max() > MAX_BILINEAR_SHRINK:
        size = np.maximum(1, np.rint(np.array(image.shape[1::-1]) / scale)).astype(int)
        exact = size / np.array(image.shape[1::-1])
        image = cv2.resize(image, tuple(int(side) for side in size), interpolation=cv2.INTER_AREA)
        scale, centre = scale * exact, centre * exact
    angle = np.deg2rad(changes.degrees[i])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn * scale  # columns: step in the image per output column and per output row
    shift = (centre - 0.5) - matrix @ (np.array(out.shape[1::-1]) / 2 - 0.5)
    cv2.warpAffine(
        image,
        np.column_stack([matrix, shift]),
        out.shape[1::-1],
        dst=out,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )

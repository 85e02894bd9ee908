"""From stored squares to model input, without randomness: resize on the CPU, normalise on the device.

Guarantee: training, inference and benchmark share these two functions. The filter follows the scale: bilinear up to a
shrinking of 1.25, area (the mean of the covered pixels) beyond. On 30 NIH radiographs, 256² to 224² by bilinear and by
area differ from the 224² made from 512² by the same 1.02 grey values (root mean square); bilinear is six times faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int, UInt8, UInt16

    from medvlp.config.preprocessing import AnyInput
    from medvlp.config.volumes import VolumeInputConfig

MAX_BILINEAR_SHRINK = 1.25


def resize_filter(shrink: float) -> int:
    """Return the OpenCV filter for a reduction by `shrink` (input side / output side)."""
    import cv2

    return cv2.INTER_AREA if shrink > MAX_BILINEAR_SHRINK else cv2.INTER_LINEAR


def resize_pixels(
    pixels: UInt8[np.ndarray, "b h w *c"] | UInt16[np.ndarray, "b h w *c"], size: int
) -> UInt8[np.ndarray, "b s s *c"] | UInt16[np.ndarray, "b s s *c"]:
    """Resize stored squares to the side that a model takes; the type is kept.

    Args:
        pixels: Stored grey values, or red, green and blue in a last axis.
        size: Side `s` of the output in pixels.
    """
    import cv2

    if pixels.shape[1:3] == (size, size):
        return pixels
    out = np.empty((len(pixels), size, size, *pixels.shape[3:]), pixels.dtype)
    flags = resize_filter(max(pixels.shape[1:3]) / size)
    for image, target in zip(pixels, out, strict=True):
        cv2.resize(image, (size, size), dst=target, interpolation=flags)
    return out


def resize_frames(frames: UInt8[np.ndarray, "b f h w *c"], size: int) -> UInt8[np.ndarray, "b f s s *c"]:
    """Resize the frames of clips as `resize_pixels` does."""
    made = resize_pixels(frames.reshape(-1, *frames.shape[2:]), size)
    return made.reshape(*frames.shape[:2], *made.shape[1:])


def frames_to_tensor(frames: UInt8[np.ndarray, "b f h w *c"]) -> UInt8[torch.Tensor, "b c f h w"]:
    """Return the tensor of a batch of clips; channels, where there are any, come before time."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(frames))
    return tensor[:, None] if tensor.ndim == 4 else tensor.permute(0, 4, 1, 2, 3).contiguous()


def to_tensor(
    pixels: UInt8[np.ndarray, "b h w *c"] | UInt16[np.ndarray, "b h w *c"],
) -> Int[torch.Tensor, "b c h w"]:
    """Return the tensor of a batch without loss: uint8 stays, uint16 becomes int32, which every torch kernel takes.

    Channels, where there are any, come first.
    """
    import torch

    tensor = torch.from_numpy(pixels if pixels.dtype == np.uint8 else pixels.astype(np.int32))
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def normalise(pixels: Int[torch.Tensor, "b k *s"], config: AnyInput) -> Float[torch.Tensor, "b c *s"]:
    """Return stored pixels as a tower takes them, in float32, on the device of `pixels`.

    Images and clips: `(x / full scale - mean) / std`; full scale is 255 for uint8, and 65535 for the wider integers
    that a uint16 store is carried in. Volumes: one channel for each window, see `VolumeInputConfig`.

    Args:
        pixels: Images `[b k h w]`, clips `[b k f h w]` or volumes `[b 1 d h w]`; `k` is 1, a channel that is repeated,
            or `config.channels`.
        config: Windows, mean and standard deviation.

    Raises:
        TypeError: `pixels` are no integers.
        ValueError: The channels are others than the model takes.
    """
    import torch

    from medvlp.config.volumes import VolumeInputConfig as Volumes

    if pixels.is_floating_point():
        raise TypeError(f"normalise takes stored integers, got {pixels.dtype}")
    volumes = isinstance(config, Volumes)
    if pixels.shape[1] not in ((1,) if volumes else (1, config.channels)):
        raise ValueError(f"the images have {pixels.shape[1]} channels, the model takes {config.channels}")
    channels_first = (1, -1, *[1] * (pixels.ndim - 2))
    mean = torch.tensor(config.mean, device=pixels.device).view(channels_first)
    std = torch.tensor(config.std, device=pixels.device).view(channels_first)
    if isinstance(config, Volumes):
        return (_windowed(pixels.to(torch.float32), config) - mean) / std
    full_scale = 255.0 if pixels.dtype == torch.uint8 else 65535.0
    out = (pixels.to(torch.float32) - mean * full_scale) / (std * full_scale)
    return out.expand(-1, config.channels, *[-1] * (pixels.ndim - 2))


def _windowed(voxels: Float[torch.Tensor, "b 1 d h w"], config: VolumeInputConfig) -> Float[torch.Tensor, "b c d h w"]:
    """Return one channel from 0 to 1 for each window, or one from the lowest to the highest value of each volume."""
    import torch

    if config.windows:
        low, width = ([getattr(window, name) for window in config.windows] for name in ("low", "width"))
        lows, widths = (torch.tensor(values, device=voxels.device).view(1, -1, 1, 1, 1) for values in (low, width))
        return ((voxels - lows) / widths).clamp(0, 1)
    lowest, highest = (reduce(voxels, dim=(2, 3, 4), keepdim=True) for reduce in (torch.amin, torch.amax))
    return (voxels - lowest) / (highest - lowest).clamp(min=1)

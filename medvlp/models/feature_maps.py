"""Maps of several depths from a 2D image tower: what dense heads (segmentation) read.

Guarantee: maps run from shallow to deep, each `[b d h w]` over the whole image, and the last one is the grid of the
tower's tokens. A convolutional or hierarchical backbone gives its own map at every stride; a plain transformer four
maps of one stride, from a third, a half, two thirds and all of its blocks: 3, 5, 7 and 11 of twelve, as in
mmsegmentation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch.nn import functional

from medvlp.errors import UserError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

Maps = list["Float[torch.Tensor, 'b d h w']"]


@runtime_checkable
class MapTower(Protocol):
    """An image tower that gives maps."""

    def feature_maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> Maps:
        """Return the maps of normalised pixels, from shallow to deep."""

    def set_input_size(self, side: int) -> None:
        """Make ready for pixels of another side; weights that depend on it are resampled."""


def plain_levels(blocks: int) -> list[int]:
    """Return the blocks of a plain transformer that give maps, from 0: four, of few blocks some twice."""
    return [math.ceil(blocks * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)]


def as_map(tokens: Float[torch.Tensor, "b p d"], grid: Sequence[int]) -> Float[torch.Tensor, "b d h w"]:
    """Return row-major tokens as a map."""
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))


def one_per_stride(maps: Maps) -> Maps:
    """Return the deepest map of every size."""
    return list({tuple(each.shape[2:]): each for each in maps}.values())


def timm_maps(backbone: Any, pixels: Float[torch.Tensor, "b c h w"]) -> tuple[torch.Tensor, Maps]:
    """Return what `forward_features` of a timm backbone gives, and its maps, the last one before any last norm.

    Maps of a hierarchical transformer are normalised over their channels, as its last one is by its own norm.

    Raises:
        UserError: The backbone has no maps.
    """
    if not hasattr(backbone, "forward_intermediates") or not hasattr(backbone, "feature_info"):
        raise without_grid(type(backbone).__name__)
    strides = [info["reduction"] for info in backbone.feature_info]
    if len(set(strides)) > 1:
        final, maps = backbone.forward_intermediates(pixels)
        if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
            maps = [channel_norm(each) for each in maps]
        return final, one_per_stride(maps)
    wanted = plain_levels(len(strides))
    taken = sorted(set(wanted))
    final, maps = backbone.forward_intermediates(pixels, indices=taken)
    return final, [maps[taken.index(level)] for level in wanted]


def channel_norm(maps: Float[torch.Tensor, "b d h w"]) -> Float[torch.Tensor, "b d h w"]:
    """Return a map with mean 0 and variance 1 over the channels of every place."""
    return functional.layer_norm(maps.permute(0, 2, 3, 1), maps.shape[1:2]).permute(0, 3, 1, 2)


def set_timm_size(backbone: Any, side: int) -> None:
    """Make a timm backbone ready for square pixels; windows keep their size, position tables are resampled.

    Raises:
        UserError: It cannot take this size.
    """
    if not hasattr(backbone, "set_input_size"):
        return
    windows: dict[str, Any] = {}
    if hasattr(backbone, "layers") and hasattr(backbone.layers[0], "blocks"):
        windows["window_size"] = backbone.layers[0].blocks[0].window_size
    try:
        backbone.set_input_size(img_size=(side, side), **windows)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"The backbone cannot take pixels of {side} x {side}: {error}", "input_size", "Choose another size."
        ) from error


def without_grid(name: str) -> UserError:
    """Return the error of an encoder that has no maps."""
    return UserError(
        f"The features of '{name}' have no grid: they do not say what is where.",
        "encoder",
        "Use an encoder whose features are maps or patches, e.g. a ResNet or a ViT.",
    )

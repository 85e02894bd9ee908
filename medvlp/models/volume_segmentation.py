"""Dense heads on the maps of a tower of volumes: MONAI's UNETR and SwinUNETR decoders, and a linear one.

Guarantee: the blocks, their widths and their order are MONAI's; where patches are no cube of 16 voxels, UNETR has as
many steps of two as lead from a cell to a voxel. A frozen tower gets no gradient and stays in evaluation mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float

Maps = list["Float[torch.Tensor, 'b d *g']"]
NORM = "instance"


def _basic(given: int, out: int) -> nn.Module:
    from monai.networks.blocks import UnetrBasicBlock

    block: nn.Module = UnetrBasicBlock(3, given, out, kernel_size=3, stride=1, norm_name=NORM, res_block=True)
    return block


def _up(given: int, out: int, factor: Sequence[int]) -> nn.Module:
    from monai.networks.blocks import UnetrUpBlock

    block: nn.Module = UnetrUpBlock(
        3, given, out, kernel_size=3, upsample_kernel_size=tuple(factor), norm_name=NORM, res_block=True
    )
    return block


class UnetrHead(nn.Module):
    """The decoder of UNETR (Hatamizadeh et al. 2021, arXiv 2103.10504) on four maps of one stride.

    Args:
        width: Channels of the maps.
        grid: Their cells along d, h, w.
        size: Voxels of the input.
        pixel_channels: Channels of the input.
        classes: Channels of the logits.
        channels: Width at the voxels; it doubles from step to step.

    Raises:
        UserError: The input cannot be halved as often as a cell is halved down to a voxel.
    """

    def __init__(
        self, width: int, grid: Sequence[int], size: Sequence[int], pixel_channels: int, classes: int, channels: int
    ) -> None:
        from monai.networks.blocks import UnetrPrUpBlock

        super().__init__()
        stride = math.prod(size) / math.prod(grid)
        self.steps = max(1, round(math.log2(stride) / 3))
        if any(side % 2**self.steps for side in size):
            raise UserError(
                f"A volume of {tuple(size)} cannot be halved {self.steps} times.",
                "method.image.input.size",
                f"Use an encoder whose input is divisible by {2**self.steps}, or decoder: linear.",
            )
        self.grid = tuple(side // 2**self.steps for side in size)
        self.first = _basic(pixel_channels, channels)
        widths = [channels * 2**step for step in range(self.steps)]
        self.enlarge = nn.ModuleList(
            UnetrPrUpBlock(
                3, width, widths[step], num_layer=self.steps - step - 1, kernel_size=3, stride=1,
                upsample_kernel_size=2, norm_name=NORM, conv_block=True, res_block=True,
            )
            for step in range(1, self.steps)
        )  # fmt: skip
        below = [*widths[1:], width]
        self.up = nn.ModuleList(_up(below[step], widths[step], (2, 2, 2)) for step in reversed(range(self.steps)))
        self.classifier = nn.Conv3d(channels, classes, 1)

    def forward(self, maps: Maps, pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "b k d h w"]:
        """Return logits of the voxels."""
        fitted = [_resized(each, self.grid) for each in maps]
        # The shallowest map leads to the finest step; of fewer steps the deepest ones are left out.
        skips = [self.first(pixels), *(block(fitted[place]) for place, block in enumerate(self.enlarge))]
        state = fitted[-1]
        for block, skip in zip(self.up, reversed(skips), strict=True):
            state = block(state, skip)
        logits: torch.Tensor = self.classifier(state)
        return logits


class SwinUnetrHead(nn.Module):
    """The decoder of SwinUNETR (Hatamizadeh et al. 2022, arXiv 2201.01266) on maps of several strides.

    Args:
        widths: Channels of the maps, from fine to coarse.
        grids: Their cells along d, h, w.
        size: Voxels of the input.
        pixel_channels: Channels of the input.
        classes: Channels of the logits.
        channels: Width at the voxels; MONAI has that of the finest map.

    Raises:
        UserError: A map is no whole number of times larger than the next.
    """

    def __init__(
        self,
        widths: Sequence[int],
        grids: Sequence[Sequence[int]],
        size: Sequence[int],
        pixel_channels: int,
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        sides = [tuple(size), *(tuple(grid) for grid in grids)]
        if any(fine % coarse for above, own in pairwise(sides) for fine, coarse in zip(above, own, strict=True)):
            raise UserError(
                f"Maps of {sides[1:]} do not divide each other and a volume of {sides[0]}.",
                "method.image.input.size",
                "Use an encoder whose input is a multiple of its deepest stride, or decoder: linear.",
            )
        factors = [[fine // coarse for fine, coarse in zip(above, own, strict=True)] for above, own in pairwise(sides)]
        self.first = _basic(pixel_channels, channels)
        # As in MONAI the last but one map goes into its step as it is.
        self.lateral = nn.ModuleList(
            nn.Identity() if place == len(widths) - 2 else _basic(width, width) for place, width in enumerate(widths)
        )
        above = [channels, *widths[:-1]]
        self.up = nn.ModuleList(
            _up(widths[place], above[place], factors[place]) for place in reversed(range(len(widths)))
        )
        self.classifier = nn.Conv3d(channels, classes, 1)

    def forward(self, maps: Maps, pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "b k d h w"]:
        """Return logits of the voxels."""
        own = [block(each) for block, each in zip(self.lateral, maps, strict=True)]
        skips = [self.first(pixels), *own[:-1]]
        state = own[-1]
        for block, skip in zip(self.up, reversed(skips), strict=True):
            state = block(state, skip)
        logits: torch.Tensor = self.classifier(state)
        return logits


class LinearHead(nn.Module):
    """One linear map on all maps, each enlarged to the finest and normalised over its channels: a dense linear probe.

    Args:
        widths: Channels of the maps.
        classes: Channels of the logits.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.norm = nn.ModuleList(nn.GroupNorm(1, width, affine=False) for width in widths)
        self.classifier = nn.Conv3d(sum(widths), classes, 1)

    def forward(self, maps: Maps, pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "b k d h w"]:
        """Return logits of the voxels, interpolated from the finest map."""
        finest = maps[0].shape[2:]
        joined = torch.cat([_resized(norm(each), finest) for norm, each in zip(self.norm, maps, strict=True)], dim=1)
        return _resized(self.classifier(joined), pixels.shape[2:])


class VolumeSegmenter(nn.Module):
    """A tower of volumes and a dense head.

    Args:
        tower: Gives the maps; it is not copied.
        size: Voxels of the input along d, h, w.
        pixel_channels: Channels of the input.
        classes: Channels of the logits.
        decoder: The head; auto is the one that fits the maps.
        channels: Its width at the voxels.
        frozen: Train the head alone.

    Raises:
        UserError: The tower has no maps, or the head does not fit them.
    """

    def __init__(
        self,
        tower: nn.Module,
        *,
        size: Sequence[int],
        pixel_channels: int,
        classes: int,
        decoder: Literal["auto", "unetr", "swin_unetr", "linear"],
        channels: int,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        shapes = _shapes(tower, size, pixel_channels)
        self.tower: Any = tower.requires_grad_(not frozen)
        widths, grids = [shape[0] for shape in shapes], [tuple(shape[1:]) for shape in shapes]
        plain = len(set(grids)) == 1
        if decoder == "auto":
            decoder = "unetr" if plain else "swin_unetr"
        if decoder != "linear" and plain != (decoder == "unetr"):
            maps = "one stride" if plain else "several strides"
            what = f"The encoder's maps have {maps}, which the decoder {decoder} does not read."
            raise UserError(what, "volume_segmentation.decoder", "Use decoder: auto.")
        self.head: Any
        if decoder == "linear":
            self.head = LinearHead(widths, classes)
        elif plain:
            self.head = UnetrHead(widths[0], grids[0], size, pixel_channels, classes, channels)
        else:
            self.head = SwinUnetrHead(widths, grids, size, pixel_channels, classes, channels)

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "b k d h w"]:
        """Return logits of normalised voxels."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.tower.feature_maps(pixels)
        logits: torch.Tensor = self.head(maps, pixels)
        return logits.float()

    def train(self, mode: bool = True) -> VolumeSegmenter:
        """Switch to training mode; a frozen tower stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self


def _resized(maps: Float[torch.Tensor, "b d *g"], size: Sequence[int]) -> Float[torch.Tensor, "b d *s"]:
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, tuple(size), mode="trilinear", align_corners=False)


@torch.no_grad()
def _shapes(tower: Any, size: Sequence[int], channels: int) -> list[torch.Size]:
    """Return `[d gd gh gw]` of every map."""
    device = next(tower.parameters()).device
    was_training = tower.training
    tower.eval()
    try:
        return [each.shape[1:] for each in tower.feature_maps(torch.zeros(1, channels, *size, device=device))]
    finally:
        tower.train(was_training)

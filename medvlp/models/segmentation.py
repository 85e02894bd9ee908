"""Dense heads on the maps of an image tower: UPerNet and the decoder of U-Net, both by segmentation-models-pytorch.

Guarantee: a head reads whatever maps a tower gives (see `models.feature_maps`); maps of one stride, of a plain
transformer, first go through `TokenPyramid`. Without `level_norm` UPerNet is mmsegmentation's `UPerHead` with its
auxiliary `FCNHead`, parameter by parameter. A frozen tower gets no gradient and stays in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.models.feature_maps import Maps, MapTower, without_grid

if TYPE_CHECKING:
    from jaxtyping import Float

DROPOUT = 0.1
"""Of whole channels before a classifier, as in mmsegmentation."""
AUXILIARY_CHANNELS = 256
FINEST = 4
"""Stride of the finest map that UPerNet reads, as in mmsegmentation."""


class TokenPyramid(nn.Module):
    """Four maps of one stride, made four and two times larger by transposed convolutions, kept, and halved by maxima.

    `Feature2Pyramid` of mmsegmentation with the factors 4, 2, 1 and 1/2, as BenchX has it behind its transformers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.down2 = nn.MaxPool2d(2, stride=2)

    def forward(self, maps: Maps) -> Maps:
        """Return the pyramid of four maps."""
        first, second, third, fourth = maps
        return [self.up4(first), self.up2(second), third, self.down2(fourth)]


class UPerNetHead(nn.Module):
    """Pyramid pooling, top-down path and fusion (Xiao et al. 2018, arXiv 1807.10221), and an auxiliary head.

    Args:
        widths: Channels of the maps, from fine to coarse; two or more.
        classes: Channels of the logits.
        channels: Width of the head.
        level_norm: Normalise every map over its channels first; mmsegmentation does not.
    """

    def __init__(self, widths: Sequence[int], classes: int, channels: int, level_norm: bool) -> None:
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        super().__init__()
        self.decoder = UPerNetDecoder((0, 0, *widths), decoder_channels=channels)
        if not level_norm:
            self.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in widths)
        self.classifier = _classifier(channels, classes)
        self.auxiliary = nn.Sequential(
            nn.Conv2d(widths[-2], AUXILIARY_CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(AUXILIARY_CHANNELS),
            nn.ReLU(inplace=True),
            _classifier(AUXILIARY_CHANNELS, classes),
        )
        _initialise(self)

    def forward(self, maps: Maps, size: tuple[int, int]) -> list[Float[torch.Tensor, "b k h w"]]:
        """Return logits at the finest map's size; in training also those of the auxiliary head, of the last but one."""
        # The decoder takes the image and its half first, and skips them.
        logits = [self.classifier(self.decoder([maps[0], maps[0], *maps]))]
        return [*logits, self.auxiliary(maps[-2])] if self.training else logits


class UNetHead(nn.Module):
    """The decoder of U-Net (Ronneberger et al. 2015, arXiv 1505.04597) up to the size of the pixels.

    Args:
        widths: Channels of the maps, from fine to coarse.
        strides: Pixels per cell of each; where the finest is above 2 a level without a map is put between.
        classes: Channels of the logits.
        channels: Width of the first, coarsest block; it halves from block to block, down to 16.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[float], classes: int, channels: int) -> None:
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        super().__init__()
        self.bridge = strides[0] > 2
        levels = (0, *widths) if self.bridge else tuple(widths)
        blocks = [max(16, channels >> number) for number in range(len(levels))]
        self.decoder = UnetDecoder((0, *levels), blocks, n_blocks=len(blocks))
        self.classifier = nn.Conv2d(blocks[-1], classes, 3, padding=1)
        _initialise(self)

    def forward(self, maps: Maps, size: tuple[int, int]) -> list[Float[torch.Tensor, "b k h w"]]:
        """Return logits of `size`, that of the pixels."""
        height, width = size
        empty = [maps[0].new_empty(len(maps[0]), 0, height, width)]
        if self.bridge:
            empty.append(maps[0].new_empty(len(maps[0]), 0, (height + 1) // 2, (width + 1) // 2))
        return [self.classifier(self.decoder([*empty, *maps]))]


class Segmenter(nn.Module):
    """An image tower and a dense head.

    Args:
        tower: Gives the maps; it is not copied.
        side: Of the pixels that it will see.
        pixel_channels: Of the pixels.
        classes: Channels of the logits.
        decoder: The head.
        channels: Its width; None is BenchX's: 512, and that of the tokens for a plain transformer.
        level_norm: See `UPerNetHead`.
        frozen: Train the head alone.
        drop_path: Stochastic depth of a frozen plain transformer in training, rising to this rate at the last block:
            what BenchX leaves on by mistake.

    Raises:
        UserError: The features have no grid, one of a single cell, or the tower cannot take the size.
    """

    def __init__(
        self,
        tower: nn.Module,
        *,
        side: int,
        pixel_channels: int,
        classes: int,
        decoder: Literal["upernet", "unet"],
        channels: int | None,
        level_norm: bool,
        frozen: bool,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        shapes = _shapes(tower, side, pixel_channels)
        self.tower: Any = tower.requires_grad_(not frozen)
        widths, strides = [shape[0] for shape in shapes], [side / shape[1] for shape in shapes]
        plain = len(set(strides)) == 1
        self.pyramid = TokenPyramid(widths[-1]) if plain else None
        if plain:
            strides = [strides[0] * factor for factor in (0.25, 0.5, 1, 2)]
        self.skipped = 0 if plain or decoder == "unet" else sum(stride < FINEST for stride in strides)
        widths, strides = widths[self.skipped :], strides[self.skipped :]
        if len(widths) < 2 or side / strides[-1] < 1:
            raise without_grid(type(tower).__name__)
        width = channels or (widths[-1] if plain else 512)
        self.head: Any = (
            UNetHead(widths, strides, classes, width)
            if decoder == "unet"
            else UPerNetHead(widths, classes, width, level_norm)
        )
        if drop_path and plain and frozen:
            _set_drop_path(tower, drop_path)

    def forward(self, pixels: Float[torch.Tensor, "b c h w"]) -> list[Float[torch.Tensor, "b k h w"]]:
        """Return logits of the pixels' size; in training those of an auxiliary head, too, where there is one."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.tower.feature_maps(pixels)
        maps = maps[self.skipped :] if self.pyramid is None else self.pyramid(maps)
        size = (pixels.shape[2], pixels.shape[3])
        return [
            functional.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
            for logits in self.head(maps, size)
        ]

    def train(self, mode: bool = True) -> Segmenter:
        """Switch to training mode; a frozen tower stays in evaluation mode, its stochastic depth aside."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
            for module in self.tower.modules():
                if isinstance(module, DropPath):
                    module.train(mode)
        return self


@torch.no_grad()
def _shapes(tower: nn.Module, side: int, channels: int) -> list[torch.Size]:
    """Return `[d h w]` of every map, made ready for pixels of a side."""
    if not isinstance(tower, MapTower):
        raise without_grid(type(tower).__name__)
    tower.set_input_size(side)
    device = next(tower.parameters()).device
    was_training = tower.training
    tower.eval()
    try:
        maps = tower.feature_maps(torch.zeros(1, channels, side, side, device=device))
    except (AssertionError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            f"The encoder cannot take pixels of {side} x {side}: {error}", "input_size", "Choose another input_size."
        ) from error
    finally:
        tower.train(was_training)
    return [each.shape[1:] for each in maps]


def _classifier(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(channels, classes, 1))


def _initialise(head: Any) -> None:
    """Initialise as mmsegmentation does: convolutions for ReLU by their outputs, classifiers near 0."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def _set_drop_path(tower: nn.Module, rate: float) -> None:
    blocks = [block for block in tower.modules() if hasattr(block, "drop_path1") and hasattr(block, "drop_path2")]
    for number, block in enumerate(blocks):
        share: Any = DropPath(rate * number / max(len(blocks) - 1, 1))
        block.drop_path1, block.drop_path2 = share, share

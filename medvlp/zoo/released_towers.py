"""Image towers of released checkpoints on timm, with the views that official code and benchmarks take of them.

Guarantee: with the official weights a view gives the official features; a position table is resized as the method
resizes it, whatever the size of the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.models.feature_maps import Maps, as_map, plain_levels, set_timm_size, timm_maps
from medvlp.types import Features
from medvlp.zoo.release import AnyImageConfig, ClipImageConfig, ImageConfig, ViewConfig, VolumeImageConfig

if TYPE_CHECKING:
    from jaxtyping import Float


class ReleasedTower(nn.Module):
    """A timm backbone under several views.

    Args:
        config: Backbone and views.

    Attributes:
        dim: Width of the pooled vector.
        view: Name of the view that `forward` takes by default.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        backbone: Any = timm.create_model(config.name, num_classes=0, **config.args)
        self.backbone: Any = backbone
        self.dim: int = backbone.num_features
        self.view = next(iter(config.views))

    def forward(self, pixels: Float[torch.Tensor, "b c h w"], view: str | None = None) -> Features:
        """Return the features of normalised pixels.

        Args:
            pixels: Of the size that the checkpoint was trained for, or of another.
            view: One of the configured views; None is `self.view`.
        """
        chosen = self.config.views[view or self.view]
        if chosen.upsample is not None:
            pixels = functional.interpolate(pixels, size=chosen.upsample, mode="bilinear", align_corners=True)
        return self.features(pixels, chosen)

    def feature_maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> Maps:
        """Return the maps of normalised pixels, from shallow to deep; see `models.feature_maps`.

        The view that is set enlarges only pixels that are smaller.
        """
        side = self.config.views[self.view].upsample
        if side is not None and side > pixels.shape[2]:
            pixels = functional.interpolate(pixels, size=side, mode="bilinear", align_corners=True)
        return self.maps(pixels)

    def maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> Maps:
        """Return the maps of pixels at the size of the view."""
        raise NotImplementedError

    def set_input_size(self, side: int) -> None:
        """Make ready for pixels of another side.

        Raises:
            UserError: The tower cannot take this size.
        """
        self.check_size(side, side)

    def features(self, pixels: Float[torch.Tensor, "b c h w"], view: ViewConfig) -> Features:
        """Return the features of pixels at the size of the view."""
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raise `UserError` if the tower cannot take pixels of this size."""


class ResNetTower(ReleasedTower):
    """A ResNet: tokens are the map of a stage, the pooled vector is the mean of the last stage."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config)
        stages = ["layer1", "layer2", "layer3", "layer4"]
        self.stages = stages[: stages.index(config.last) + 1]
        for stage in stages[len(self.stages) :]:
            setattr(self.backbone, stage, nn.Identity())
        self.dim = next(info["num_chs"] for info in self.backbone.feature_info if info["module"] == config.last)

    def features(self, pixels: Float[torch.Tensor, "b c h w"], view: ViewConfig) -> Features:
        """Return the features of pixels."""
        tapped = None
        for stage, maps in zip(["stem", *self.stages], self._stage_maps(pixels), strict=True):
            if stage == view.tap:
                tapped = maps
        return _map_features(maps if tapped is None else tapped, maps.mean((2, 3)))

    def maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> Maps:
        """Return what the stem, before its pooling, and every stage give."""
        return list(self._stage_maps(pixels))

    def _stage_maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> Iterator[Float[torch.Tensor, "b d h w"]]:
        net = self.backbone
        maps = net.act1(net.bn1(net.conv1(pixels)))
        yield maps
        maps = net.maxpool(maps)
        for stage in self.stages:
            maps = getattr(net, stage)(maps)
            yield maps


class SwinTower(ReleasedTower):
    """A Swin transformer: tokens and their mean, after the last norm."""

    def check_size(self, height: int, width: int) -> None:
        """Raise `UserError` unless the size is the one whose windows the checkpoint has."""
        own = tuple(self.backbone.patch_embed.img_size)
        if (height, width) != own:
            raise UserError(
                f"The windows of the checkpoint are those of {own[0]} pixels, not of {height} x {width}.",
                "encoder",
                f"Take {own[0]} pixels.",
            )

    def features(self, pixels: Float[torch.Tensor, "b c h w"], view: ViewConfig) -> Features:
        """Return the features of pixels."""
        self.check_size(*pixels.shape[2:])
        maps = self.backbone.forward_features(pixels)
        return Features(maps.flatten(1, 2), maps.mean((1, 2)), tuple(maps.shape[1:3]))

    def maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> Maps:
        """Return the maps of the stages, the last one after the last norm."""
        self.check_size(*pixels.shape[2:])
        final, maps = timm_maps(self.backbone, pixels)
        return [*maps[:-1], final.permute(0, 3, 1, 2)]

    def set_input_size(self, side: int) -> None:
        """Lay the windows over pixels of another side, which then is the only one that fits; as mmsegmentation does."""
        set_timm_size(self.backbone, side)


class ViTTower(ReleasedTower):
    """A plain vision transformer: patches after the last norm, and the pooling of the view."""

    def check_size(self, height: int, width: int) -> None:
        """Raise `UserError` unless patches cover the size to the edge, or it is the checkpoint's own."""
        embed = self.backbone.patch_embed
        side = embed.patch_size[0]
        if (height, width) != tuple(embed.img_size) and (height % side or width % side):
            raise UserError(
                f"Pixels of {height} x {width} do not divide into patches of {side}.",
                "encoder",
                f"Choose {embed.img_size[0]}, or a multiple of {side}.",
            )

    def features(self, pixels: Float[torch.Tensor, "b c h w"], view: ViewConfig) -> Features:
        """Return the features of pixels."""
        return self.encode(*self.embed(pixels, view), view)

    def embed(
        self, pixels: Float[torch.Tensor, "b c h w"], view: ViewConfig | None = None
    ) -> tuple[Float[torch.Tensor, "b n d"], tuple[int, int]]:
        """Return class token and patches with their positions, before the first layer, and the grid of the patches."""
        net = self.backbone
        embed, side = net.patch_embed, net.patch_embed.patch_size[0]
        self.check_size(*pixels.shape[2:])
        grid = (pixels.shape[2] // side, pixels.shape[3] // side)
        embedded = embed.norm(embed.proj(pixels).flatten(2).transpose(1, 2))
        if net.cls_token is not None:
            embedded = torch.cat([net.cls_token.expand(len(pixels), -1, -1), embedded], dim=1)
        return embedded + self._positions(grid, view or self.config.views[self.view]), grid

    def encode(
        self, embedded: Float[torch.Tensor, "b n d"], grid: tuple[int, int], view: ViewConfig | None = None
    ) -> Features:
        """Return the features of what `embed` gives, or of other patches behind a class token.

        Args:
            embedded: States before the first layer.
            grid: Layout of the patches.
            view: How they are pooled; None is the view that is set.
        """
        net = self.backbone
        states = embedded
        for states in self._states(embedded, grid):  # noqa: B007 - the last ones are meant
            pass
        normed, prefix = net.norm(states), net.num_prefix_tokens
        tokens = normed[:, prefix:]
        pooled = {
            "cls": lambda: normed[:, 0],
            "mean": lambda: tokens.mean(1),
            "mean_before_norm": lambda: states[:, prefix:].mean(1),
            "attention": lambda: net.attn_pool(tokens),
        }[(view or self.config.views[self.view]).pool]()
        return Features(tokens, pooled, grid)

    def maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> Maps:
        """Return the patches after four of the blocks, and after the last one the norm."""
        net = self.backbone
        embedded, grid = self.embed(pixels)
        states = list(self._states(embedded, grid))
        states[-1] = net.norm(states[-1])
        return [as_map(states[level][:, net.num_prefix_tokens :], grid) for level in plain_levels(len(states))]

    def class_state(self) -> Float[torch.Tensor, "1 1 d"]:
        """Return the class token with its position, as `embed` has it."""
        return self.backbone.cls_token + self.backbone.pos_embed[:, :1]

    def _states(
        self, embedded: Float[torch.Tensor, "b n d"], grid: tuple[int, int]
    ) -> Iterator[Float[torch.Tensor, "b n d"]]:
        """Yield the states after each block."""
        states, arguments = self.backbone.norm_pre(embedded), self._block_arguments(grid)
        for block in self.backbone.blocks:
            states = block(states, **arguments)
            yield states

    def _block_arguments(self, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {}

    def _positions(self, grid: tuple[int, int], view: ViewConfig) -> Float[torch.Tensor, "1 n d"]:
        net, how = self.backbone, view.positions or self.config.positions
        table, own = net.pos_embed, net.patch_embed.grid_size
        if grid == tuple(own):
            return table
        prefix = table.shape[1] - own[0] * own[1]
        square = table[:, prefix:].unflatten(1, own).permute(0, 3, 1, 2)
        if how.offset:
            scale = tuple((new + how.offset) / old for new, old in zip(grid, own, strict=True))
            resized = functional.interpolate(square, scale_factor=scale, mode="bicubic", antialias=how.antialias)
        else:
            resized = functional.interpolate(square, size=grid, mode="bicubic", antialias=how.antialias)
        return torch.cat([table[:, :prefix], resized.flatten(2).transpose(1, 2)], dim=1)


class EvaTower(ViTTower):
    """EVA-02: a vision transformer whose patches are also rotated by their place, computed for the grid at hand."""

    def _block_arguments(self, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"rope": self.backbone.rope.get_embed(list(grid))}


class ConvNeXtTower(ReleasedTower):
    """A ConvNeXt of torchvision: tokens are its last map, the pooled vector their mean after the classifier's norm."""

    def __init__(self, config: ImageConfig) -> None:
        import torchvision

        nn.Module.__init__(self)
        self.config, self.view = config, next(iter(config.views))
        net = getattr(torchvision.models, config.name)(**config.args)
        net.classifier = net.classifier[:2]  # norm and flatten; what follows is a head
        self.backbone, self.dim = net, net.classifier[0].normalized_shape[0]

    def features(self, pixels: Float[torch.Tensor, "b c h w"], view: ViewConfig) -> Features:
        """Return the features of pixels."""
        maps = self.backbone.features(pixels)
        return _map_features(maps, self.backbone.classifier(self.backbone.avgpool(maps)))

    def maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> Maps:
        """Return the maps of the four stages."""
        found: Maps = []
        for number, layer in enumerate(self.backbone.features):
            pixels = layer(pixels)
            if number % 2:  # a stage follows the stem, or what halves its map
                found.append(pixels)
        return found


def build_tower(config: AnyImageConfig) -> Any:
    """Return the tower of a format, its weights still random."""
    if isinstance(config, VolumeImageConfig):
        from medvlp.zoo.released_volumes import build_volume_tower

        return build_volume_tower(config)
    if isinstance(config, ClipImageConfig):
        from medvlp.zoo.released_clips import ReleasedMViT

        return ReleasedMViT(config)
    towers = {"resnet": ResNetTower, "swin": SwinTower, "vit": ViTTower, "eva": EvaTower, "convnext": ConvNeXtTower}
    return towers[config.family](config)


def _map_features(tokens: Float[torch.Tensor, "b d h w"], pooled: Float[torch.Tensor, "b e"]) -> Features:
    return Features(tokens.flatten(2).transpose(1, 2), pooled, tuple(tokens.shape[2:]))

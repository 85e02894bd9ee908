"""Towers of volumes of released checkpoints, on timm, MONAI and our CTViT, with the views that official code takes.

Guarantee: voxels come in RAS, `[d h w]`, and go to the axes that the checkpoint was trained with; tokens, grids and
maps come back in RAS. With the official weights a view gives the official features.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from monai.networks.nets.swin_unetr import SwinTransformer, SwinUNETR
from torch import nn
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.models.ctvit import CTViT
from medvlp.models.feature_maps import as_map, plain_levels
from medvlp.models.inflate import InflatedResNet
from medvlp.models.patch_embed3d import PatchEmbed3d
from medvlp.models.patch_merging import LegacyPatchMerging
from medvlp.types import Features
from medvlp.zoo.axes import from_axes, to_axes
from medvlp.zoo.release import AXES, VolumeImageConfig, VolumeViewConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float

Maps = list["Float[torch.Tensor, 'b e z y x']"]
LAST_STAGE = 32
"""Voxels along each side for one token of a Swin transformer."""


class ReleasedVolumeTower(nn.Module):
    """A backbone of volumes under several views.

    Subclasses work along the axes of the official code; `forward` and `feature_maps` turn to them and back.

    Args:
        config: Backbone, axes and views.

    Attributes:
        view: Name of the view that `forward` takes by default.
        widths: Width of the pooled vector by pool.
    """

    backbone: Any
    widths: dict[str, int]

    def __init__(self, config: VolumeImageConfig) -> None:
        super().__init__()
        self.config = config
        self.view = next(iter(config.views))

    @property
    def dim(self) -> int:
        """Width of the pooled vector of the view that is set."""
        return self.widths[self.config.views[self.view].pool]

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"], view: str | None = None) -> Features:
        """Return the features of normalised voxels in RAS.

        Args:
            pixels: Of the size that the checkpoint was trained for, or of another where the tower takes it.
            view: One of the configured views; None is `self.view`.
        """
        features = self.own_features(to_axes(pixels, self.config.axes), view)
        straight = from_axes(as_map(features.tokens, features.grid), self.config.axes)
        return Features(straight.flatten(2).transpose(1, 2), features.pooled, tuple(straight.shape[2:]))

    def feature_maps(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Maps:
        """Return the maps of normalised voxels in RAS, from shallow to deep; see `models.feature_maps`."""
        return [from_axes(each, self.config.axes) for each in self.maps(to_axes(pixels, self.config.axes))]

    def own_features(self, pixels: Float[torch.Tensor, "b c i j k"], view: str | None = None) -> Features:
        """Return the features of voxels along the axes of the official code, on a grid along these."""
        self.check_own_size(tuple(pixels.shape[2:]))
        return self.features(pixels, self.config.views[view or self.view])

    def features(self, pixels: Float[torch.Tensor, "b c i j k"], view: VolumeViewConfig) -> Features:
        """Return the features of voxels along the axes of the official code."""
        raise NotImplementedError

    def maps(self, pixels: Float[torch.Tensor, "b c i j k"]) -> Maps:
        """Return the maps of voxels along the axes of the official code."""
        raise NotImplementedError

    def check_size(self, *size: int) -> None:
        """Raise `UserError` if the tower cannot take volumes of this size along d, h, w."""
        self.check_own_size(tuple(size[AXES[letter]] for letter in self.config.axes))

    def check_own_size(self, size: tuple[int, ...]) -> None:
        """Raise `UserError` if the tower cannot take this size along the axes of the official code."""

    def set_input_size(self, *size: int) -> None:
        """Make ready for volumes of another size.

        Raises:
            UserError: The tower cannot take this size.
        """
        self.check_size(*size)


class ViTVolume(ReleasedVolumeTower):
    """A vision transformer of timm on patches of voxels; positions are resized linearly for another size.

    `args`: `size` and `patch` in voxels along the axes of the official code, `eps` of all norms; the others are timm's.
    """

    def __init__(self, config: VolumeImageConfig) -> None:
        super().__init__(config)
        args = dict(config.args)
        size, patch, eps = tuple(args.pop("size")), tuple(args.pop("patch")), args.pop("eps", 1e-6)
        self.backbone = timm.create_model(
            config.name,
            num_classes=0,
            in_chans=1,
            embed_layer=partial(PatchEmbed3d, size=size, patch=patch),
            norm_layer=partial(nn.LayerNorm, eps=eps),
            **args,
        )
        self.widths = dict.fromkeys(("cls", "mean", "mean_before_norm"), self.backbone.embed_dim)

    def check_own_size(self, size: tuple[int, ...]) -> None:
        """Raise `UserError` unless patches fill the volume."""
        patch = self.backbone.patch_embed.patch_size
        if any(side % length for side, length in zip(size, patch, strict=True)):
            raise _unfit(size, f"patches of {patch} voxels do not fill it")

    def features(self, pixels: Float[torch.Tensor, "b c i j k"], view: VolumeViewConfig) -> Features:
        """Return the features of voxels."""
        *_, states = self.states(pixels)
        prefix = self.backbone.num_prefix_tokens
        normed = self.backbone.norm(states)
        tokens = normed[:, prefix:]
        pooled = {
            "cls": lambda: normed[:, 0],
            "mean": lambda: tokens.mean(1),
            "mean_before_norm": lambda: states[:, prefix:].mean(1),
        }[view.pool]()
        return Features(tokens, pooled, self._grid(pixels))

    def maps(self, pixels: Float[torch.Tensor, "b c i j k"]) -> Maps:
        """Return the patches after four of the blocks, and after the last one the norm."""
        states = list(self.states(pixels))
        states[-1] = self.backbone.norm(states[-1])
        prefix, grid = self.backbone.num_prefix_tokens, self._grid(pixels)
        return [as_map(states[level][:, prefix:], grid) for level in plain_levels(len(states))]

    def states(self, pixels: Float[torch.Tensor, "b c i j k"]) -> Iterator[Float[torch.Tensor, "b n d"]]:
        """Yield the states after each block, a class token first where there is one."""
        net = self.backbone
        states = net.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        positions, token = self._positions(self._grid(pixels)), net.cls_token
        if net.no_embed_class or token is None:
            states = states + positions
        if token is not None:
            states = torch.cat([token.expand(len(states), -1, -1), states], dim=1)
        if not net.no_embed_class and token is not None:
            states = states + positions
        states = net.norm_pre(states)
        for block in net.blocks:
            states = block(states)
            yield states

    def _grid(self, pixels: torch.Tensor) -> tuple[int, ...]:
        grid: tuple[int, ...] = self.backbone.patch_embed.dynamic_feat_size(pixels.shape[2:])
        return grid

    def _positions(self, grid: tuple[int, ...]) -> Float[torch.Tensor, "1 n d"]:
        table, own = self.backbone.pos_embed, self.backbone.patch_embed.grid_size
        if grid == tuple(own):
            return table
        prefix = table.shape[1] - own[0] * own[1] * own[2]
        resized = functional.interpolate(as_map(table[:, prefix:], own), size=grid, mode="trilinear")
        return torch.cat([table[:, :prefix], resized.flatten(2).transpose(1, 2)], dim=1)


class SwinVolume(ReleasedVolumeTower):
    """MONAI's Swin transformer, with the merging of patches that the weights were trained with.

    `args` are those of MONAI's SwinTransformer, or, for the name SwinUNETR, of that class: its decoder is left out.
    Maps are then what its convolution blocks give; else, as the tokens always, the states of the stages, each place
    normalised over its channels.
    """

    def __init__(self, config: VolumeImageConfig) -> None:
        super().__init__(config)
        if config.name == "SwinUNETR":
            given = {"downsample": LegacyPatchMerging, **config.args}
            self.backbone = SwinUNETR(1, 1, **given)
            for part in ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1", "out"):
                delattr(self.backbone, part)
            width = self.backbone.swinViT.embed_dim
            self.widths = {"stages": 24 * width, "mean": 16 * width}
        else:
            given = {"window_size": (7, 7, 7), "patch_size": (2, 2, 2), **config.args}
            self.backbone = SwinTransformer(in_chans=1, downsample=LegacyPatchMerging, **given)
            self.widths = {"mean": 16 * self.backbone.embed_dim}

    def check_own_size(self, size: tuple[int, ...]) -> None:
        """Raise `UserError` unless the volume can be halved as often as the stages do."""
        if any(side % LAST_STAGE for side in size):
            raise _unfit(size, f"its sides are no multiples of {LAST_STAGE} voxels")
        if self.config.name == "SwinUNETR" and max(size) == LAST_STAGE:
            raise _unfit(size, "one token alone cannot be normalised")

    def features(self, pixels: Float[torch.Tensor, "b c i j k"], view: VolumeViewConfig) -> Features:
        """Return the features of voxels."""
        states = self.states(pixels)
        tokens = states[-1].flatten(2).transpose(1, 2)
        if view.pool == "stages":
            pooled = torch.cat([each.mean((2, 3, 4)) for each in self.blocks(pixels, states)], dim=1)
        else:
            pooled = tokens.mean(1)
        return Features(tokens, pooled, tuple(states[-1].shape[2:]))

    def states(self, pixels: Float[torch.Tensor, "b c i j k"]) -> Maps:
        """Return the states after the patches and after each stage."""
        swin = self.backbone.swinViT if self.config.name == "SwinUNETR" else self.backbone
        states: Maps = swin(pixels)
        return states

    def blocks(self, pixels: Float[torch.Tensor, "b c i j k"], states: Maps) -> Maps:
        """Return what SwinUNETR's convolution blocks make of the voxels and of all states but the fourth."""
        net = self.backbone
        inputs = [pixels, *states[:3], states[4]]
        blocks = [net.encoder1, net.encoder2, net.encoder3, net.encoder4, net.encoder10]
        return [block(each) for block, each in zip(blocks, inputs, strict=True)]

    def maps(self, pixels: Float[torch.Tensor, "b c i j k"]) -> Maps:
        """Return one map of each size."""
        states = self.states(pixels)
        return self.blocks(pixels, states) if self.config.name == "SwinUNETR" else states


class ResNetVolume(ReleasedVolumeTower):
    """An inflated ResNet on one channel that is repeated to three; tokens are the last map, pooled is their mean."""

    def __init__(self, config: VolumeImageConfig) -> None:
        super().__init__(config)
        self.backbone = InflatedResNet(timm.create_model(config.name, num_classes=0, **config.args))
        self.widths = {"mean": self.backbone.num_features}

    def features(self, pixels: Float[torch.Tensor, "b c i j k"], view: VolumeViewConfig) -> Features:
        """Return the features of voxels."""
        last = self.backbone(pixels.expand(-1, 3, -1, -1, -1))
        tokens = last.flatten(2).transpose(1, 2)
        return Features(tokens, tokens.mean(1), tuple(last.shape[2:]))

    def maps(self, pixels: Float[torch.Tensor, "b c i j k"]) -> Maps:
        """Return what the stem, before its pooling, and every stage give."""
        maps: Maps = self.backbone.maps(pixels.expand(-1, 3, -1, -1, -1))
        return maps


class CTViTVolume(ReleasedVolumeTower):
    """CTViT and its projection: the mean of the slabs, laid out as one vector, goes to the latent.

    `args`: `size` in voxels along the axes of the official code and `latent`, the width of the projection; the others
    are those of `CTViT`.
    """

    def __init__(self, config: VolumeImageConfig) -> None:
        super().__init__(config)
        args = dict(config.args)
        self.size, latent = tuple(args.pop("size")), args.pop("latent")
        patch = args["patch"] = tuple(args["patch"])
        self.backbone = CTViT(**args)
        places = (self.size[1] // patch[1]) * (self.size[2] // patch[2])
        self.project = nn.Linear(places * self.backbone.dim, latent, bias=False)
        self.widths = {"latent": latent, "mean": self.backbone.dim}

    def check_own_size(self, size: tuple[int, ...]) -> None:
        """Raise `UserError` unless the slices are those of the projection and slabs fill the volume."""
        if size[1:] != self.size[1:] or size[0] % self.backbone.patch[0]:
            raise _unfit(size, f"slices must be {self.size[1:]}, their number a multiple of {self.backbone.patch[0]}")

    def features(self, pixels: Float[torch.Tensor, "b c i j k"], view: VolumeViewConfig) -> Features:
        """Return the features of voxels."""
        tokens = self.backbone(pixels)
        flat = tokens.flatten(1, 3)
        pooled = self.latent(tokens) if view.pool == "latent" else flat.mean(1)
        return Features(flat, pooled, tuple(tokens.shape[1:4]))

    def latent(self, tokens: Float[torch.Tensor, "b t y x d"]) -> Float[torch.Tensor, "b e"]:
        """Return the projection of tokens."""
        return self.project(tokens.mean(1).flatten(1))

    def maps(self, pixels: Float[torch.Tensor, "b c i j k"]) -> Maps:
        """Return the patches, the states within slabs and across them, and the tokens."""
        return self.backbone.maps(pixels)


def build_volume_tower(config: VolumeImageConfig) -> ReleasedVolumeTower:
    """Return the tower of a format, its weights still random.

    Raises:
        UserError: A view pools in a way that the family does not have.
    """
    families = {"vit": ViTVolume, "swin": SwinVolume, "resnet": ResNetVolume, "ctvit": CTViTVolume}
    tower = families[config.family](config)
    foreign = {view.pool for view in config.views.values()} - tower.widths.keys()
    if foreign:
        raise UserError(
            f"A tower of the family {config.family} has no pool {', '.join(sorted(foreign))}.",
            "image.views",
            f"There are: {', '.join(tower.widths)}.",
        )
    return tower


def _unfit(size: tuple[int, ...], why: str) -> UserError:
    shown = " x ".join(str(side) for side in size)
    return UserError(
        f"The tower cannot take a volume of {shown} voxels, along the axes that it was trained with: {why}.",
        "encoder",
        "Leave out size=, or give another.",
    )

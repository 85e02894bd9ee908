"""Towers of volumes: voxels in, tokens over (d, h, w) and a pooled vector out.

Guarantee: tokens are row-major over the grid, whose axes are those of the volume; 2D weights are inflated strictly, key
by key.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn

from medvlp.config.towers import VolumeTowerConfig
from medvlp.errors import UserError, nearest
from medvlp.models.feature_maps import as_map, plain_levels
from medvlp.models.patch_embed3d import PatchEmbed3d, inflate_vit
from medvlp.models.positions import grid_positions
from medvlp.models.tower import Tower
from medvlp.models.vit import require_vit, vit_embedded
from medvlp.models.weights import check_keys, find_weights, read_state
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Float

Maps = list["Float[torch.Tensor, 'b d *g']"]


class ViT3d(Tower):
    """A plain vision transformer of timm on patches of voxels; fresh positions start as sines.

    Args:
        config: timm name, patch, 2D weights and model input.

    Raises:
        UserError: Unknown backbone, a patch that does not divide the input, or weights that do not fit.
    """

    def __init__(self, config: VolumeTowerConfig) -> None:
        super().__init__()
        assert config.patch is not None
        if any(side % patch for side, patch in zip(config.input.size, config.patch, strict=True)):
            raise UserError(
                f"Patches of {config.patch} do not divide a volume of {config.input.size}.",
                "method.image.patch",
                "Give sides that divide those of method.image.input.size.",
            )
        self.config = config
        self.backbone: Any = require_vit(self._made(config), "A tower of volumes of the family vit")
        self.dim = self.token_dim = self.backbone.embed_dim
        if config.weights is not None:
            self.record = self._load(Path(config.weights))
        elif self.backbone.pos_embed is not None:
            self._start_positions()
        if config.freeze:
            self.requires_grad_(False)

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Features:
        """Return the features of normalised voxels."""
        if self.keep_embedding:
            return self.embedded_features(pixels)
        if self.keep_levels:
            return self.level_features(pixels)
        return self.vit_features(pixels, attention=self.config.attention)

    def feature_maps(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Maps:
        """Return four maps of one stride; see `models.feature_maps.plain_levels`."""
        backbone, maps = self.backbone, []
        states = backbone.norm_pre(vit_embedded(backbone, pixels))
        for block in backbone.blocks:
            states = block(states)
            maps.append(states[:, backbone.num_prefix_tokens :])
        grid = self.grid_of(pixels)
        return [as_map(maps[level], grid) for level in plain_levels(len(maps))]

    def grid_of(self, pixels: Float[torch.Tensor, "b c d h w"]) -> tuple[int, ...]:
        """Return patches along d, h, w."""
        grid: tuple[int, ...] = self.backbone.patch_embed.dynamic_feat_size(pixels.shape[2:])
        return grid

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.backbone.set_grad_checkpointing(enabled)

    @staticmethod
    def _made(config: VolumeTowerConfig) -> nn.Module:
        assert config.patch is not None
        name = str(config.name).partition(".")[0]
        if not timm.is_model(name):
            raise UserError(
                f"timm has no backbone named '{config.name}'.{nearest(name, timm.list_models())}",
                "method.image.name",
                "Use the name of a plain ViT, e.g. vit_base_patch16_224.",
            )
        given = {
            "embed_layer": partial(PatchEmbed3d, size=config.input.size, patch=config.patch),
            "drop_path_rate": config.drop_path,
            "patch_drop_rate": config.token_drop,
            **config.args,
        }
        try:
            return timm.create_model(name, num_classes=0, in_chans=config.input.channels, **given)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"timm cannot build '{config.name}' on patches of voxels: {error}",
                "method.image",
                "Use a plain ViT, e.g. vit_base_patch16_224.",
            ) from error

    def _start_positions(self) -> None:
        positions, grid = self.backbone.pos_embed, self.backbone.patch_embed.grid_size
        with torch.no_grad():
            positions[:, positions.shape[1] - math.prod(grid) :] = grid_positions(grid, self.dim)

    def _load(self, path: Path) -> dict[str, Any]:
        backbone, file = self.backbone, find_weights(path)
        given = read_state(file)
        dropped = [key for key in ("head.weight", "head.bias") if key in given]
        state = {key: value for key, value in given.items() if key not in dropped}
        if "patch_embed.proj.weight" not in state or state["patch_embed.proj.weight"].ndim != 4:
            raise UserError("The file holds no 2D vision transformer of timm.", file, "Give one as timm saves it.")
        prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
        state = inflate_vit(state, backbone.patch_embed, prefix, self.config.input.channels)
        check_keys(backbone.state_dict(), state, file)
        backbone.load_state_dict(state, strict=True)
        adapted = sorted(key for key, value in state.items() if given[key].shape != value.shape)
        return {"file": file.name, "adapted": adapted, "dropped": dropped}

"""MONAI's encoder of SwinUNETR as a tower of volumes.

Guarantee: weights carry MONAI's names, and every map is what its encoder returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai.networks.nets.swin_unetr import SwinTransformer

from medvlp.config.towers import VolumeTowerConfig
from medvlp.errors import UserError
from medvlp.models.tower import Tower
from medvlp.types import Features

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

Maps = list["Float[torch.Tensor, 'b d *g']"]


class Swin3d(Tower):
    """MONAI's encoder of SwinUNETR: tokens are its deepest map, each place normalised over channels, and their mean.

    `args` are those of `monai.networks.nets.swin_unetr.SwinTransformer`; what is not given is as in SwinUNETR, with the
    corrected merging of patches.

    Args:
        config: Arguments and model input.

    Raises:
        UserError: Arguments that MONAI does not take, or an input that is not divisible by its 32 voxels.
    """

    def __init__(self, config: VolumeTowerConfig) -> None:
        super().__init__()
        self.config = config
        given = {
            "embed_dim": 48,
            "window_size": (7, 7, 7),
            "patch_size": (2, 2, 2),
            "depths": (2, 2, 2, 2),
            "num_heads": (3, 6, 12, 24),
            "downsample": "mergingv2",
            "drop_path_rate": config.drop_path,
            **config.args,
        }
        try:
            self.backbone: Any = SwinTransformer(in_chans=config.input.channels, spatial_dims=3, **given)
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f"MONAI cannot build the Swin encoder: {error}", "method.image.args", "See SwinTransformer of MONAI."
            ) from error
        # Each of the four stages halves the grid, after the patches.
        strides = [patch * 16 for patch in given["patch_size"]]
        if any(side % stride for side, stride in zip(config.input.size, strides, strict=True)):
            raise UserError(
                f"A volume of {config.input.size} cannot be halved four times after patches of {given['patch_size']}.",
                "method.image.input.size",
                f"Give multiples of {strides}.",
            )
        self.dim = self.token_dim = given["embed_dim"] * 16
        if config.freeze:
            self.requires_grad_(False)

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Features:
        """Return the features of normalised voxels."""
        deepest = self.feature_maps(pixels)[-1]
        tokens = deepest.flatten(2).transpose(1, 2)
        return Features(tokens, tokens.mean(1), tuple(deepest.shape[2:]))

    def feature_maps(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Maps:
        """Return the map after the patches and after each of the four stages."""
        maps: Maps = self.backbone(pixels)
        return maps

    def grid_of(self, pixels: Float[torch.Tensor, "b c d h w"]) -> tuple[int, ...]:
        """Return the grid of the tokens."""
        return tuple(side // (patch * 16) for side, patch in zip(pixels.shape[2:], self._patch, strict=True))

    @property
    def _patch(self) -> tuple[int, int, int]:
        patch: tuple[int, int, int] = self.backbone.patch_embed.patch_size
        return patch

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for module in self.backbone.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = enabled

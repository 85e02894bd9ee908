"""Patches of voxels for timm's vision transformer, and its 2D weights carried to them.

Guarantee: an inflated embedding gives of a volume whose slices are all alike what the 2D one gives of the slice; the
rest of the transformer is timm's own, so that all that works on its tokens works on those of a volume.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import nn

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float

Triple = tuple[int, int, int]


class PatchEmbed3d(nn.Module):
    """Non-overlapping patches along d, h, w, as timm's `PatchEmbed` makes them in 2D.

    Args:
        size: Voxels along d, h, w.
        patch: Voxels of a patch.
        in_chans: Channels.
        embed_dim: Width of a token.
        bias: Of the projection.
        **_: What timm passes for images, sizes in 2D among it.
    """

    def __init__(
        self, *, size: Triple, patch: Triple, in_chans: int, embed_dim: int, bias: bool = True, **_: Any
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = size, patch
        self.grid_size = tuple(side // length for side, length in zip(size, patch, strict=True))
        self.num_patches = math.prod(self.grid_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, patch, patch, bias=bias)

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "b p e"]:
        """Return the tokens, row-major over the grid.

        Raises:
            UserError: The volume has another size than the positions.
        """
        if tuple(pixels.shape[2:]) != self.img_size:
            raise UserError(
                f"The volume has {tuple(pixels.shape[2:])} voxels, the tower takes {self.img_size}.",
                "method.image.input.size",
                "Use the size that the tower was made for.",
            )
        return self.proj(pixels).flatten(2).transpose(1, 2)

    def feat_ratio(self) -> Triple:
        """Return the voxels of a patch along d, h, w."""
        return self.patch_size

    def dynamic_feat_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the grid of a volume of this size."""
        return tuple(side // patch for side, patch in zip(size, self.patch_size, strict=True))


def inflate_vit(
    state: dict[str, torch.Tensor], embed: PatchEmbed3d, prefix_tokens: int, channels: int
) -> dict[str, torch.Tensor]:
    """Return the state dict of a 2D transformer of timm as that of one on patches of voxels.

    The kernel is resampled in-plane (FlexiViT, arXiv 2212.08013, as timm does), repeated along d and divided by its
    depth; input channels follow timm's rule; positions are resampled in-plane and repeated along d.

    Args:
        state: From `patch_embed.proj.weight` `[e c p p]` and `pos_embed` `[1 n e]` on; left as it is.
        embed: The embedding to fill.
        prefix_tokens: Tokens before the patches in `pos_embed`.
        channels: Of the volume.
    """
    depth, rows, columns = embed.patch_size
    inflated = dict(state)
    kernel = timm.models.adapt_input_conv(channels, state["patch_embed.proj.weight"])
    if kernel.shape[2:] != (rows, columns):
        kernel = resample_patch_embed(kernel, [rows, columns])
    inflated["patch_embed.proj.weight"] = kernel[:, :, None].repeat(1, 1, depth, 1, 1) / depth
    positions = state.get("pos_embed")
    if positions is not None:
        side = math.isqrt(positions.shape[1] - prefix_tokens)
        slices, *plane = embed.grid_size
        positions = resample_abs_pos_embed(positions, plane, [side, side], prefix_tokens)
        patches = positions[:, prefix_tokens:].repeat(1, slices, 1)
        inflated["pos_embed"] = torch.cat([positions[:, :prefix_tokens], patches], dim=1)
    return inflated

"""From the states of visible patches to the pixels of all: the decoder of a masked autoencoder.

Guarantee: a patch is predicted at its own place of the grid, whatever the order of the visible ones; positions are
fixed and are no part of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import get_act_layer
from timm.models.vision_transformer import Block
from torch import nn

from medvlp.errors import UserError
from medvlp.models.positions import grid_positions

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a pixel decoder.

    Args:
        dim: Width, a multiple of 4 and of `heads`.
        layers: Transformer blocks.
        heads: Of their attention.
        activation: `gelu` (MAE, MRM) or `quick_gelu` (M3AE).
        norm_eps: Of the norms.
    """

    dim: int
    layers: int
    heads: int
    activation: str
    norm_eps: float

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str) -> DecoderSizes:
        """Return the sizes of a section of a method's options.

        Raises:
            UserError: The width does not divide, or the activation is another.
        """
        sizes = cls(**{name: options[name] for name in cls.__dataclass_fields__})
        if sizes.heads < 1 or sizes.dim % sizes.heads or sizes.dim % 4 or sizes.layers < 1:
            raise UserError(
                f"A width of {sizes.dim} with {sizes.heads} heads and {sizes.layers} layers makes no decoder.",
                f"method.options.{where}",
                "Give one layer or more, and a width that is a multiple of 4 and of the heads.",
            )
        if sizes.activation not in ("gelu", "quick_gelu"):
            raise UserError(
                f"The activation '{sizes.activation}' is unknown.", f"method.options.{where}", "Use gelu or quick_gelu."
            )
        return sizes


class PixelDecoder(nn.Module):
    """Decoder of MAE (arXiv 2111.06377, section 3): mask tokens join, a small transformer, one linear map to pixels.

    Args:
        width: Width of the states.
        grid: Patches along each axis: (h, w), or (d, h, w).
        values: Numbers in a patch: pixels or voxels times channels.
        sizes: Of the transformer.
    """

    positions: torch.Tensor

    def __init__(self, width: int, grid: tuple[int, ...], values: int, sizes: DecoderSizes) -> None:
        super().__init__()
        dim = sizes.dim
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", grid_positions(grid, dim), persistent=False)
        norm: Any = partial(nn.LayerNorm, eps=sizes.norm_eps)
        self.blocks = nn.Sequential(
            *(
                Block(dim, sizes.heads, qkv_bias=True, norm_layer=norm, act_layer=get_act_layer(sizes.activation))
                for _ in range(sizes.layers)
            )
        )
        self.norm, self.predict = norm(dim), nn.Linear(dim, values)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(_start)

    def forward(
        self, states: Float[torch.Tensor, "b k+1 d"], keep: Int[torch.Tensor, "b k"]
    ) -> Float[torch.Tensor, "b p q"]:
        """Return the prediction of every patch, row-major over the grid.

        Args:
            states: Of the class token, then of the visible patches in the order of `keep`.
            keep: Number of each visible patch.
        """
        embedded = self.embed(states)
        class_state, visible = embedded[:, :1], embedded[:, 1:]
        filled = self.mask_token.to(embedded.dtype).expand(len(states), len(self.positions), -1)
        filled = filled.scatter(1, keep[..., None].expand_as(visible), visible) + self.positions.to(embedded.dtype)
        decoded = self.norm(self.blocks(torch.cat([class_state, filled], dim=1)))
        return self.predict(decoded[:, 1:])


def draw_kept(
    rows: int, patches: int, hidden_share: float, device: torch.device
) -> tuple[Int[torch.Tensor, "b k"], Bool[torch.Tensor, "b p"]]:
    """Draw which patches of each image stay visible, from torch's global generator.

    Args:
        rows: Number of images.
        patches: Of each image.
        hidden_share: Share that is hidden; the rest, rounded down but at least one patch, stays.
        device: Where.

    Returns:
        keep, hidden: Numbers of the visible patches, and True at the others.
    """
    number = max(1, int(patches * (1 - hidden_share)))
    keep = torch.rand(rows, patches, device=device).argsort(1)[:, :number]
    hidden = torch.ones(rows, patches, dtype=torch.bool, device=device).scatter(1, keep, False)
    return keep, hidden


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

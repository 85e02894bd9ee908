"""A volume as its slices: a flat backbone on each, and attention among them (RadCLIP, arXiv 2403.09948).

Guarantee: a slice gives the same tokens whatever slices lie beside it; only the pooled vector knows of the others. The
positions of slices are sines, so that any number of slices fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.config.preprocessing import ModelInputConfig
from medvlp.config.towers import ImageTowerConfig, VolumeTowerConfig
from medvlp.errors import UserError
from medvlp.models.tower import Tower
from medvlp.models.vision2d import ImageTower
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Float

LONGEST_WAVE = 10_000.0


class SliceTower(Tower):
    """A flat tower on every slice, an adapter that pools them: tokens are those of all slices.

    Args:
        config: timm name, weights, model input; `args` are timm's and `adapter`, the arguments of `SliceAttention`.

    Raises:
        UserError: Slices that are not square, channels that no flat tower takes, or weights that do not fit.
    """

    def __init__(self, config: VolumeTowerConfig) -> None:
        super().__init__()
        self.config = config
        args = dict(config.args)
        adapter = args.pop("adapter", {})
        self.backbone = ImageTower(_flat_config(config, args))
        self.record = self.backbone.record
        self.dim, self.token_dim = self.backbone.dim, self.backbone.token_dim
        try:
            self.adapter = SliceAttention(self.dim, **adapter)
        except (TypeError, AssertionError) as error:
            raise UserError(
                f"The attention among slices cannot be built: {error}",
                "method.image.args.adapter",
                f"Give heads that divide the width {self.dim}, and residual as true or false.",
            ) from error
        if config.freeze:
            self.requires_grad_(False)

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Features:
        """Return the features of normalised voxels."""
        batch, slices = pixels.shape[0], pixels.shape[2]
        flat = self.backbone(_slices(pixels))
        tokens = flat.tokens.unflatten(0, (batch, slices)).flatten(1, 2)
        pooled = self.adapter(flat.pooled.unflatten(0, (batch, slices)))
        return Features(tokens, pooled, (slices, *flat.grid))

    def feature_maps(self, pixels: Float[torch.Tensor, "b c d h w"]) -> list[Float[torch.Tensor, "b e d y x"]]:
        """Return the maps of the flat tower, slice by slice."""
        batch = pixels.shape[0]
        flat = self.backbone.feature_maps(_slices(pixels))
        return [each.unflatten(0, (batch, -1)).transpose(1, 2) for each in flat]

    def grid_of(self, pixels: Float[torch.Tensor, "b c d h w"]) -> tuple[int, ...]:
        """Return slices, and the grid of the flat tower."""
        return (pixels.shape[2], *self.backbone.grid_of(pixels[:, :, 0]))

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.backbone.set_gradient_checkpointing(enabled)


def _flat_config(config: VolumeTowerConfig, args: dict[str, Any]) -> ImageTowerConfig:
    _, height, width = config.input.size
    if height != width or config.input.channels not in (1, 3):
        raise UserError(
            f"A flat tower takes squares of 1 or 3 channels, not {height} x {width} of {config.input.channels}.",
            "method.image.input",
            "Give slices as high as wide, and 1 or 3 windows.",
        )
    return ImageTowerConfig(
        name=str(config.name),
        weights=config.weights,
        drop_path=config.drop_path,
        args=args,
        input=ModelInputConfig.model_validate({"size": height, "channels": config.input.channels}),
    )


def _slices(pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "n c h w"]:
    return pixels.transpose(1, 2).flatten(0, 1)


class SliceAttention(nn.Module):
    """From vectors of slices to one of the volume: positions are added, slices attend to each other, the mean is taken.

    The paper's rule is V = MHSA(I + PE(P)). It does not say how many heads there are, which positions, nor how the
    slices become one vector: here 8 heads, sines, and the mean.

    Args:
        dim: Width of the vectors.
        heads: Attention heads.
        residual: Add what enters to what is attended to, so that training starts near the mean of the slices;
            not in the paper.
    """

    def __init__(self, dim: int, heads: int = 8, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, slices: Float[torch.Tensor, "b s d"]) -> Float[torch.Tensor, "b d"]:
        """Return one vector for each volume."""
        placed = slices + slice_positions(slices.shape[1], slices.shape[2]).to(slices)
        attended = self.attention(placed, placed, placed, need_weights=False)[0]
        return (attended + slices if self.residual else attended).mean(1)


def slice_positions(count: int, dim: int) -> Float[torch.Tensor, "s d"]:
    """Return sines and cosines of the numbers of slices, interleaved (Vaswani et al., arXiv 1706.03762, 3.5)."""
    place = torch.arange(count, dtype=torch.float32)[:, None]
    rate = LONGEST_WAVE ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    waves = torch.stack([(place * rate).sin(), (place * rate).cos()], dim=2)
    return waves.flatten(1)[:, :dim]

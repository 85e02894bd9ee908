"""CTViT, the encoder of CT-CLIP (Hamamci et al., arXiv 2403.17834): attention within slabs, then across them.

Guarantee: the operations are those of the official encoder, so that its weights give its features: attention by cosines
with learned scales, keys and values from what enters a layer before its norm, a depth-wise convolution for positions
that looks no slab ahead, GEGLU, and a relative position bias within a slab.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medvlp.config.towers import VolumeTowerConfig
from medvlp.errors import UserError
from medvlp.models.quantiser import Quantiser
from medvlp.models.tower import Tower
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Float

Size = tuple[int, int, int]
Shape = tuple[int, int, int, int]
COSINE_FACTOR = 8.0


class CTViTTower(Tower):
    """CTViT as a tower: tokens are the codes, or without a quantiser the states, of the patches; pooled is their mean.

    Args:
        config: Patch, model input, and in `args` further arguments of `CTViT`.

    Raises:
        UserError: A patch that does not divide the input, or arguments that `CTViT` does not take.
    """

    def __init__(self, config: VolumeTowerConfig) -> None:
        super().__init__()
        self.config = config
        assert config.patch is not None
        check_patches(config.input.size, config.patch, "method.image.patch")
        try:
            self.backbone = CTViT(config.input.channels, config.patch, **config.args)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"CTViT cannot be built: {error}", "method.image.args", "See medvlp.models.ctvit.CTViT."
            ) from error
        self.dim = self.token_dim = self.backbone.dim
        if config.freeze:
            self.requires_grad_(False)

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Features:
        """Return the features of normalised voxels."""
        tokens = self.backbone(pixels)
        flat = tokens.flatten(1, 3)
        return Features(flat, flat.mean(1), tuple(tokens.shape[1:4]))

    def feature_maps(self, pixels: Float[torch.Tensor, "b c d h w"]) -> list[Float[torch.Tensor, "b e t y x"]]:
        """Return four maps of one stride: after the patches, within slabs, across them, and the tokens."""
        return self.backbone.maps(pixels)

    def grid_of(self, pixels: Float[torch.Tensor, "b c d h w"]) -> tuple[int, ...]:
        """Return patches along d, h, w."""
        return tuple(side // length for side, length in zip(pixels.shape[2:], self.backbone.patch, strict=True))

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.backbone.checkpointing = enabled


def check_patches(size: Size, patch: Size, where: str) -> None:
    """Raise `UserError` unless patches fill a volume."""
    if any(side % length for side, length in zip(size, patch, strict=True)):
        raise UserError(
            f"Patches of {patch} do not divide a volume of {size}.",
            where,
            "Give sides of patches that divide its sides.",
        )


class CTViT(nn.Module):
    """The encoder, with or without its quantiser.

    Args:
        channels: Input channels.
        patch: Voxels of a patch along slices, rows, columns.
        dim: Width of tokens.
        spatial_depth: Layers that attend within a slab.
        temporal_depth: Layers that attend across slabs, each place for itself.
        heads: Attention heads.
        head_dim: Width of a head.
        codes: Codes of the quantiser; None leaves it out.
        scrambled: Lay the tokens out for the position convolution of the layers across slabs in the order in which they
            stand in memory, though it is that of places and then slabs. The official weights were trained so.

    Attributes:
        checkpointing: Recompute activations in the backward pass instead of keeping them.
        feature_info: The module whose output are the tokens as a map, as timm names stages.
    """

    def __init__(
        self,
        channels: int = 1,
        patch: Size = (10, 20, 20),
        dim: int = 512,
        spatial_depth: int = 4,
        temporal_depth: int = 4,
        heads: int = 8,
        head_dim: int = 32,
        codes: int | None = 8192,
        scrambled: bool = False,
    ) -> None:
        super().__init__()
        self.patch, self.dim, self.scrambled, self.checkpointing = patch, dim, scrambled, False
        self.feature_info = [{"module": "output", "num_chs": dim}]
        width = channels * patch[0] * patch[1] * patch[2]
        self.embed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.LayerNorm(dim))
        self.position_bias = PositionBias(dim, heads)
        self.spatial = Layers(spatial_depth, dim, heads, head_dim)
        self.temporal = Layers(temporal_depth, dim, heads, head_dim)
        self.quantiser = None if codes is None else Quantiser(codes, dim)
        self.output = nn.Identity()

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "b t y x e"]:
        """Return one token of width `e` for every patch; the codes where there is a quantiser."""
        encoded = self.encode(pixels)
        tokens = encoded if self.quantiser is None else self.quantiser(encoded)
        # The map `[b e t y x]` is what Grad-CAM looks into.
        return self.output(tokens.movedim(-1, 1)).movedim(1, -1)

    def encode(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "b t y x e"]:
        """Return the tokens before the quantiser."""
        *_, encoded = self._stages(pixels)
        return encoded

    def maps(self, pixels: Float[torch.Tensor, "b c d h w"]) -> list[Float[torch.Tensor, "b e t y x"]]:
        """Return the patches, the states after attention within slabs and after that across them, and the tokens."""
        stages = list(self._stages(pixels))
        last = stages[-1] if self.quantiser is None else self.quantiser(stages[-1])
        return [states.movedim(-1, 1) for states in (*stages, last)]

    def _stages(self, pixels: torch.Tensor) -> Iterator[Float[torch.Tensor, "b t y x e"]]:
        tokens = self.embed(self.patches(pixels))
        yield tokens
        shape: Shape = tuple(tokens.shape[:4])
        batch, slabs, rows, columns = shape
        bias = self.position_bias(rows, columns)
        within = self.spatial(tokens.flatten(2, 3).flatten(0, 1), shape, bias, True, self.checkpointing)
        within = within.unflatten(0, (batch, slabs))
        yield within.unflatten(2, (rows, columns))
        across = within.transpose(1, 2).flatten(0, 1)
        across = self.temporal(across, shape, None, self.scrambled, self.checkpointing)
        yield across.unflatten(0, (batch, rows, columns)).permute(0, 3, 1, 2, 4)

    def patches(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "b t y x v"]:
        """Return the voxels of every patch: channels, slices, rows, columns."""
        depth, height, width = self.patch
        cut = pixels.unfold(2, depth, depth).unfold(3, height, height).unfold(4, width, width)
        return cut.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)


class Layers(nn.Module):
    """Layers of position convolution, attention and GEGLU, and a last norm."""

    def __init__(self, depth: int, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, head_dim) for _ in range(depth))
        self.norm = FixedShiftNorm(dim)

    def forward(
        self,
        tokens: Float[torch.Tensor, "n l d"],
        shape: Shape,
        bias: Float[torch.Tensor, "heads l l"] | None,
        as_it_stands: bool,
        checkpointing: bool,
    ) -> Float[torch.Tensor, "n l d"]:
        """Return the states after all layers.

        Args:
            tokens: Of the slabs, or of the places.
            shape: Batch, slabs, rows, columns.
            bias: Added to the products of queries and keys.
            as_it_stands: Read the memory of `tokens` in the order of `shape` for the position convolution; else they
                come by place and are put in that order first.
            checkpointing: See `CTViT`.
        """
        for layer in self.layers:
            inputs: tuple[Any, ...] = (tokens, shape, bias, as_it_stands)
            if checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                tokens = layer(*inputs)
        return self.norm(tokens)


class Layer(nn.Module):
    """Position convolution, attention and GEGLU, each added to what enters it."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.position = nn.Conv3d(dim, dim, 3, groups=dim)
        self.attention = CosineAttention(dim, heads, head_dim)
        self.feed = GEGLU(dim)

    def forward(
        self,
        tokens: Float[torch.Tensor, "n l d"],
        shape: Shape,
        bias: Float[torch.Tensor, "heads l l"] | None,
        as_it_stands: bool,
    ) -> Float[torch.Tensor, "n l d"]:
        """Return the states after the layer; see `Layers`."""
        tokens = tokens + self._positions(tokens, shape, as_it_stands)
        tokens = tokens + self.attention(tokens, bias)
        return tokens + self.feed(tokens)

    def _positions(self, tokens: torch.Tensor, shape: Shape, as_it_stands: bool) -> torch.Tensor:
        batch, _, rows, columns = shape
        if as_it_stands:
            volume = tokens.reshape(*shape, -1).permute(0, 4, 1, 2, 3)
        else:
            volume = tokens.unflatten(0, (batch, rows, columns)).permute(0, 4, 3, 1, 2)
        seen = self.position(functional.pad(volume, (1, 1, 1, 1, 2, 0)))
        if as_it_stands:
            return seen.permute(0, 2, 3, 4, 1).reshape(tokens.shape)
        return seen.permute(0, 3, 4, 2, 1).reshape(tokens.shape)


class CosineAttention(nn.Module):
    """Attention by cosines of queries and keys, each coordinate with a learned scale."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = FixedShiftNorm(dim)
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.query_scale = nn.Parameter(torch.ones(head_dim))
        self.key_scale = nn.Parameter(torch.ones(head_dim))
        self.out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(
        self, tokens: Float[torch.Tensor, "n l d"], bias: Float[torch.Tensor, "heads l l"] | None
    ) -> Float[torch.Tensor, "n l d"]:
        """Return what the tokens attend to; queries are taken behind the norm, keys and values before it."""
        query = self._by_head(self.query(self.norm(tokens)))
        key, value = (self._by_head(part) for part in self.key_value(tokens).chunk(2, dim=2))
        query = functional.normalize(query, dim=3) * self.query_scale
        key = functional.normalize(key, dim=3) * self.key_scale
        mask = None if bias is None else bias.to(query.dtype)[None]
        attended = functional.scaled_dot_product_attention(
            query.to(value.dtype), key.to(value.dtype), value, mask, scale=COSINE_FACTOR
        )
        return self.out(attended.transpose(1, 2).flatten(2))

    def _by_head(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(2, (self.heads, -1)).transpose(1, 2)


class GEGLU(nn.Module):
    """A gated layer of two thirds of four times the width (Shazeer, arXiv 2002.05202); the gate is the second half."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = 8 * dim // 3
        self.norm = nn.LayerNorm(dim)
        self.rise = nn.Linear(dim, 2 * inner, bias=False)
        self.fall = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Float[torch.Tensor, "n l d"]) -> Float[torch.Tensor, "n l d"]:
        """Return the output of the layer."""
        value, gate = self.rise(self.norm(tokens)).chunk(2, dim=2)
        return self.fall(functional.gelu(gate) * value)


class FixedShiftNorm(nn.Module):
    """Layer normalisation with a learned factor; its shift is stored and not learned."""

    beta: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, values: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n d"]:
        """Return the normalised values."""
        return functional.layer_norm(values, values.shape[-1:], self.gamma, self.beta)


class PositionBias(nn.Module):
    """A bias of attention from the distance of two places, on a logarithmic scale (Swin v2, arXiv 2111.09883)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, dim), nn.LeakyReLU(0.1), nn.Linear(dim, dim), nn.LeakyReLU(0.1), nn.Linear(dim, heads)
        )

    def forward(self, rows: int, columns: int) -> Float[torch.Tensor, "heads l l"]:
        """Return the bias between the places of a grid, row by row."""
        weight = next(self.net.parameters())
        down = torch.arange(1 - rows, rows, device=weight.device)
        right = torch.arange(1 - columns, columns, device=weight.device)
        distances = torch.stack(torch.meshgrid(down, right, indexing="ij"), dim=2).to(weight.dtype)
        table = self.net(distances.sign() * distances.abs().log1p())  # each distance once, not each pair of places
        row, column = torch.meshgrid(down[rows - 1 :], right[columns - 1 :], indexing="ij")
        row, column = row.flatten(), column.flatten()
        pairs = table[row[:, None] - row + rows - 1, column[:, None] - column + columns - 1]
        return pairs.permute(2, 0, 1)

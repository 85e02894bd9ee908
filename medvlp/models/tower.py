"""What all image towers are, whatever the dimension: normalised pixels in, tokens on a grid and a pooled vector out.

Guarantee: prefix tokens (class, registers) never appear among the tokens, which are row-major over the grid. What only
a plain vision transformer can do (leaving patches out, attention) is the same code for images, volumes and clips.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from medvlp.models.vit import require_class_token, require_vit, vit_embedded, vit_encoded, vit_levels, vit_states
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class Tower(nn.Module, ABC):
    """Base class of image towers.

    Attributes:
        config: Its configuration, which alone builds it again.
        backbone: The network of a library inside it.
        dim: Width of the pooled vector.
        token_dim: Width of the tokens.
        record: How the weights were made: file, adapted and dropped keys; empty for a fresh tower.
        keep_embedding: Return `Features.embedding`, too; for a plain ViT.
        keep_levels: Blocks, from 0, whose patches `Features.levels` holds; for a plain ViT of volumes.
    """

    config: Any
    backbone: Any
    dim: int
    token_dim: int

    def __init__(self) -> None:
        super().__init__()
        self.record: dict[str, Any] = {}
        self.keep_embedding = False
        self.keep_levels: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, pixels: Float[torch.Tensor, "b c *s"]) -> Features:
        """Return the features of normalised pixels."""

    @abstractmethod
    def feature_maps(self, pixels: Float[torch.Tensor, "b c *s"]) -> list[Float[torch.Tensor, "b d *g"]]:
        """Return the maps of normalised pixels, from shallow to deep.

        Raises:
            UserError: The backbone has no maps.
        """

    @abstractmethod
    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""

    @abstractmethod
    def grid_of(self, pixels: Float[torch.Tensor, "b c *s"]) -> tuple[int, ...]:
        """Return the grid of the patches of a plain ViT."""

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.config.freeze)

    # What only a plain vision transformer can do.

    def encode_visible(self, pixels: Float[torch.Tensor, "b c *s"], keep: Int[torch.Tensor, "b k"]) -> Features:
        """Return the features of some patches alone, as a masked autoencoder's encoder sees them.

        Args:
            pixels: Normalised pixels.
            keep: Row-major numbers of the patches; the tokens come in this order, their `grid` is (1, k).

        Raises:
            UserError: The backbone is no plain ViT.
        """
        features = self.vit_features(pixels, keep=keep)
        return replace(features, grid=(1, keep.shape[1]))

    def encode_hidden(
        self,
        pixels: Float[torch.Tensor, "b c *s"],
        hidden: Bool[torch.Tensor, "b p"],
        mask_token: Float[torch.Tensor, " d"],
    ) -> Features:
        """Return the features with `mask_token` in place of the embedding of hidden patches (iBOT, arXiv 2111.07832).

        Raises:
            UserError: The backbone is no plain ViT.
        """
        return self.vit_features(pixels, hidden=hidden, mask_token=mask_token)

    def embed(self, pixels: Float[torch.Tensor, "b c *s"]) -> Float[torch.Tensor, "b n d"]:
        """Return the class token and the patches with their positions, before the blocks.

        Raises:
            UserError: The backbone is no plain ViT.
        """
        return vit_embedded(require_vit(self.backbone, "Embedding patches"), pixels)

    def class_embedding(self) -> Float[torch.Tensor, "1 1 d"]:
        """Return the class token with its position, before the blocks.

        Raises:
            UserError: The backbone is no plain ViT with a class token.
        """
        return require_class_token(self.backbone, "A class token")[0]

    def visible_states(
        self, pixels: Float[torch.Tensor, "b c *s"], keep: Int[torch.Tensor, "b k"]
    ) -> Float[torch.Tensor, "b n d"]:
        """Return the states of prefix tokens and of some patches, as `encode_visible`, before any pooling.

        Raises:
            UserError: The backbone is no plain ViT.
        """
        return vit_states(require_vit(self.backbone, "Masking patches"), pixels, keep=keep)[0]

    def encode_embedded(self, states: Float[torch.Tensor, "b n d"], grid: tuple[int, ...] | None = None) -> Features:
        """Return the features of a class token and any tokens after it, as `embed` gives them.

        Args:
            states: Embeddings, positions added.
            grid: How the tokens lie; None is one row.

        Raises:
            UserError: The backbone is no plain ViT.
        """
        backbone = require_vit(self.backbone, "Encoding embeddings")
        encoded, _ = vit_encoded(backbone, states)
        tokens = encoded[:, backbone.num_prefix_tokens :]
        return Features(tokens, backbone.forward_head(encoded, pre_logits=True), grid or (1, tokens.shape[1]))

    def embedded_features(self, pixels: Float[torch.Tensor, "b c *s"]) -> Features:
        """Return the features with `Features.embedding`, the mean of the patches before the first block.

        Raises:
            UserError: The backbone is no plain ViT.
        """
        states = self.embed(pixels)
        features = self.encode_embedded(states, self.grid_of(pixels))
        return replace(features, embedding=states[:, self.backbone.num_prefix_tokens :].mean(1))

    def level_features(self, pixels: Float[torch.Tensor, "b c *s"]) -> Features:
        """Return the features with `Features.levels`, the patches after the blocks of `keep_levels`.

        Raises:
            UserError: The backbone is no plain ViT.
        """
        backbone = require_vit(self.backbone, "Patches after some blocks")
        states, levels = vit_levels(backbone, pixels, self.keep_levels)
        tokens = states[:, backbone.num_prefix_tokens :]
        pooled = backbone.forward_head(states, pre_logits=True)
        return Features(tokens, pooled, self.grid_of(pixels), levels=torch.stack(levels, dim=1))

    def vit_features(self, pixels: Float[torch.Tensor, "b c *s"], **how: Any) -> Features:
        """Return the features of a plain ViT; `how` is that of `models.vit.vit_states`.

        Raises:
            UserError: The backbone is no plain ViT.
        """
        backbone = require_vit(self.backbone, "Masking patches, or reading attention,")
        states, attended = vit_states(backbone, pixels, **how)
        tokens = states[:, backbone.num_prefix_tokens :]
        return Features(tokens, backbone.forward_head(states, pre_logits=True), self.grid_of(pixels), attended)

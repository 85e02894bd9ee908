"""Fusion of image and text by attention: two streams that attend to each other, or text alone that attends to images.

Guarantee: pads get no attention; each layer reads the other stream as it stood before the layer; a text is fused the
same whatever texts stand beside it, also where it has no entities.

Layers are post-norm as in BERT: self-attention, cross-attention, feed-forward, each with residual, dropout and
LayerNorm. Their attention is `nn.MultiheadAttention`, whose `in_proj_weight` is query, key and value of a released
checkpoint on top of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.errors import UserError
from medvlp.models.language_head import start_as_bert
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

TEXT, IMAGE = 0, 1
"""Rows of the modality-type embedding."""


@dataclass(frozen=True)
class FusionSizes:
    """Sizes of a stack of fusion layers.

    Args:
        dim: Width of both streams.
        layers: Of each stream.
        heads: Of every attention.
        ffn: Width of the feed-forward.
        dropout: After attention and feed-forward, and of attention weights.
        norm_eps: Of the norms; M3AE has 1e-12, PTUnifier 1e-5.
    """

    dim: int
    layers: int
    heads: int
    ffn: int
    dropout: float
    norm_eps: float

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str) -> FusionSizes:
        """Return the sizes of a section of a method's options.

        Raises:
            UserError: The width does not divide by the heads.
        """
        sizes = cls(**{name: options[name] for name in cls.__dataclass_fields__})
        if sizes.heads < 1 or sizes.dim % sizes.heads or sizes.layers < 1:
            raise UserError(
                f"A width of {sizes.dim} with {sizes.heads} heads and {sizes.layers} layers makes no attention.",
                f"method.options.{where}",
                "Give one layer or more, and a width that is a multiple of the heads.",
            )
        return sizes


class Residual(nn.Module):
    """Dropout, residual and norm behind a part of a layer."""

    def __init__(self, dim: int, sizes: FusionSizes) -> None:
        super().__init__()
        self.dropout, self.norm = nn.Dropout(sizes.dropout), nn.LayerNorm(dim, eps=sizes.norm_eps)

    def forward(self, states: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """Return `norm(states + dropout(change))`."""
        return self.norm(states + self.dropout(change))


class AttentionPair(nn.Module):
    """Self-attention, then attention to the other modality.

    Args:
        sizes: Sizes.
    """

    def __init__(self, sizes: FusionSizes) -> None:
        super().__init__()
        self.self_attention, self.self_residual = _attention(sizes), Residual(sizes.dim, sizes)
        self.cross_attention, self.cross_residual = _attention(sizes), Residual(sizes.dim, sizes)

    def attend(
        self,
        states: Float[torch.Tensor, "b n d"],
        mask: Bool[torch.Tensor, "b *q n"] | None,
        other: Float[torch.Tensor, "b m d"],
        other_mask: Bool[torch.Tensor, "b m"] | None,
        weights: bool = False,
    ) -> tuple[Float[torch.Tensor, "b n d"], Float[torch.Tensor, "b n m"] | None]:
        """Return the new states and, if asked, the cross-attention averaged over heads.

        Args:
            states: Of this modality.
            mask: True at real tokens, or `[b n n]`: at those that each token sees; None where all are.
            other: States of the other modality.
            other_mask: True at its real tokens.
            weights: Return the cross-attention.
        """
        seen = {"key_padding_mask": _pads(mask)}
        if mask is not None and mask.ndim == 3:
            seen = {"attn_mask": ~mask.repeat_interleave(self.self_attention.num_heads, 0)}
        own, _ = self.self_attention(states, states, states, need_weights=False, **seen)
        states = self.self_residual(states, own)
        change, attended = self.cross_attention(
            states, other, other, key_padding_mask=_pads(other_mask), need_weights=weights
        )
        return self.cross_residual(states, change), attended


class FeedForward(nn.Module):
    """Linear - GELU - Linear with residual and norm."""

    def __init__(self, sizes: FusionSizes) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(sizes.dim, sizes.ffn), nn.GELU(), nn.Linear(sizes.ffn, sizes.dim))
        self.residual = Residual(sizes.dim, sizes)

    def forward(self, states: Float[torch.Tensor, "b n d"]) -> Float[torch.Tensor, "b n d"]:
        """Return the new states."""
        return self.residual(states, self.layers(states))


class FusionLayer(AttentionPair):
    """Self-attention, attention to the other modality, feed-forward (METER, arXiv 2111.02387; BERT's cross layer)."""

    def __init__(self, sizes: FusionSizes) -> None:
        super().__init__(sizes)
        self.ffn = FeedForward(sizes)

    def forward(
        self,
        states: Float[torch.Tensor, "b n d"],
        mask: Bool[torch.Tensor, "b *q n"] | None,
        other: Float[torch.Tensor, "b m d"],
        other_mask: Bool[torch.Tensor, "b m"] | None,
        weights: bool = False,
    ) -> tuple[Float[torch.Tensor, "b n d"], Float[torch.Tensor, "b n m"] | None]:
        """Return the new states and, if asked, the cross-attention; arguments as for `attend`."""
        states, attended = self.attend(states, mask, other, other_mask, weights)
        return self.ffn(states), attended


class EntityLayer(AttentionPair):
    """Layer of the entities of a text: it sees the image and reports to the text (ARL, ACM MM 2022, section 3.3).

    Args:
        sizes: Of the entities; `sizes.dim` is their width.
        width: Width of text and image.
        final: Nothing reads the entities after this layer: it has no feed-forward.
    """

    def __init__(self, sizes: FusionSizes, width: int, final: bool) -> None:
        super().__init__(sizes)
        self.from_image, self.to_text = nn.Linear(width, sizes.dim), nn.Linear(sizes.dim, width)
        self.mix, self.mix_residual = nn.Linear(width, width), Residual(width, sizes)
        self.ffn = None if final else FeedForward(sizes)

    def forward(
        self, stream: Float[torch.Tensor, "b s e"], mask: Bool[torch.Tensor, "b s"], image: torch.Tensor
    ) -> Float[torch.Tensor, "b s e"]:
        """Return what the entities saw in the image, `[b p d]`, before their feed-forward."""
        # A text without entities has no key at all, and a softmax over nothing is NaN: it reads its first, empty place.
        empty = ~mask.any(1, keepdim=True)
        mask = torch.cat([mask[:, :1] | empty, mask[:, 1:]], dim=1)
        return self.attend(stream, mask, self.from_image(image), None)[0]

    def tell(
        self,
        text: Float[torch.Tensor, "b l d"],
        stream: Float[torch.Tensor, "b s e"] | None = None,
        places: Float[torch.Tensor, "b s l"] | None = None,
    ) -> Float[torch.Tensor, "b l d"]:
        """Return the text's states with each entity added at its tokens; None is a text without entities."""
        told = text
        if stream is not None and places is not None:
            told = text + places.transpose(1, 2).to(stream.dtype) @ self.to_text(stream)
        return self.mix_residual(text, self.mix(told))


@dataclass(frozen=True)
class Entities:
    """Entities of the texts of a batch; at least one column, which may be empty.

    Args:
        states: Their vectors.
        mask: True at real ones.
        places: 1 at the tokens that each covers.
    """

    states: Float[torch.Tensor, "b s e"]
    mask: Bool[torch.Tensor, "b s"]
    places: Float[torch.Tensor, "b s l"]


def places_of(spans: Int[torch.Tensor, "b s 2"], length: int) -> Float[torch.Tensor, "b s l"]:
    """Return 1 at the tokens (first to last) of each span, 0 elsewhere; a span of -1 covers none."""
    at = torch.arange(length, device=spans.device)
    return ((at >= spans[..., :1]) & (at < spans[..., 1:]) & (spans[..., :1] >= 0)).float()


@dataclass(frozen=True)
class Fused:
    """Output of a fusion.

    Args:
        image: States of the class token and the patches.
        text: States of the tokens.
        attention: What each text token attends to in the last layer, mean over heads; None unless asked for.
    """

    image: Float[torch.Tensor, "b p d"]
    text: Float[torch.Tensor, "b l d"]
    attention: Float[torch.Tensor, "b l p"] | None = None


class Fusion(nn.Module):
    """Co-attention of image and text: projections, modality types, layers for each stream, a pooler for each.

    The image's states are its class token (the tower's pooled vector), then its patches.

    Args:
        image_width: Width of the image tower's tokens and pooled vector.
        text_width: Width of the text tower.
        sizes: Of the layers.
        entities: Sizes of the entity stream in the text's layers, or None.
    """

    def __init__(
        self, image_width: int, text_width: int, sizes: FusionSizes, entities: FusionSizes | None = None
    ) -> None:
        super().__init__()
        dim, last = sizes.dim, sizes.layers - 1
        self.image_projection, self.text_projection = nn.Linear(image_width, dim), nn.Linear(text_width, dim)
        self.types = nn.Embedding(2, dim)
        self.image_layers = nn.ModuleList(FusionLayer(sizes) for _ in range(sizes.layers))
        self.text_layers = nn.ModuleList(FusionLayer(sizes) for _ in range(sizes.layers))
        self.entity_layers = (
            None
            if entities is None
            else nn.ModuleList(EntityLayer(entities, dim, number == last) for number in range(sizes.layers))
        )
        self.image_pooler, self.text_pooler = nn.Linear(dim, dim), nn.Linear(dim, dim)
        start_as_bert(self, sizes.dim)

    def embed_image(self, features: Features) -> Float[torch.Tensor, "b p+1 d"]:
        """Return the image's states before the layers, class token first."""
        states = torch.cat([features.pooled[:, None], features.tokens], dim=1)
        return self.image_projection(states) + self.types.weight[IMAGE]

    def embed_text(self, tokens: Float[torch.Tensor, "b l w"]) -> Float[torch.Tensor, "b l d"]:
        """Return the text's states before the layers."""
        return self.text_projection(tokens) + self.types.weight[TEXT]

    def forward(
        self,
        image: Float[torch.Tensor, "b p d"],
        text: Float[torch.Tensor, "b l d"],
        text_mask: Bool[torch.Tensor, "b l"],
        entities: Entities | None = None,
        layers: int | None = None,
        weights: bool = False,
    ) -> Fused:
        """Return the states of both streams.

        Args:
            image: From `embed_image`.
            text: From `embed_text`.
            text_mask: True at real tokens.
            entities: Of the entity stream, where the module has one; None is texts without entities.
            layers: Stop behind this many; None runs all.
            weights: Return the attention of the text's last layer.
        """
        attention = None
        stream = None if entities is None else entities.states
        stages: list[Any] = list(zip(self.image_layers, self.text_layers, strict=True))[:layers]
        for number, (image_layer, text_layer) in enumerate(stages):
            seen = image
            image, _ = image_layer(image, None, text, text_mask)
            text, attention = text_layer.attend(text, text_mask, seen, None, weights and number == len(stages) - 1)
            if self.entity_layers is not None:
                stream, text = _entity_step(self.entity_layers[number], stream, entities, seen, text)
            text = text_layer.ffn(text)
        return Fused(image, text, attention)

    def pool(self, fused: Fused) -> Float[torch.Tensor, "b 2*d"]:
        """Return the first states of text, then image, each through a tanh layer."""
        return torch.cat(
            [self.text_pooler(fused.text[:, 0]).tanh(), self.image_pooler(fused.image[:, 0]).tanh()], dim=1
        )


class TextFusion(nn.Module):
    """Text layers that attend to a fixed image (the upper half of ALBEF's text encoder, arXiv 2107.07651)."""

    def __init__(self, sizes: FusionSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(sizes) for _ in range(sizes.layers))
        start_as_bert(self, sizes.dim)

    def forward(
        self,
        text: Float[torch.Tensor, "b l d"],
        text_mask: Bool[torch.Tensor, "b *q l"],
        image: Float[torch.Tensor, "b p d"],
        weights_of: int | None = None,
    ) -> tuple[Float[torch.Tensor, "b l d"], Float[torch.Tensor, "b l p"] | None]:
        """Return the fused states, and the cross-attention (mean over heads) of the layer `weights_of`."""
        attention = None
        for number, layer in enumerate(self.layers):
            text, attended = layer(text, text_mask, image, None, weights=number == weights_of)
            attention = attention if attended is None else attended
        return text, attention


def _entity_step(
    layer: Any, stream: torch.Tensor | None, entities: Entities | None, image: torch.Tensor, text: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return the entities after their layer, and the text with what they have seen."""
    if stream is None or entities is None:
        return None, layer.tell(text)
    stream = layer(stream, entities.mask, image)
    text = layer.tell(text, stream, entities.places)
    return (stream if layer.ffn is None else layer.ffn(stream)), text


def _attention(sizes: FusionSizes) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(sizes.dim, sizes.heads, dropout=sizes.dropout, batch_first=True)


def _pads(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else ~mask

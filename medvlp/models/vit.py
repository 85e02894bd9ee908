"""What masked image modelling and attention weights need of timm's vision transformers.

Guarantee: with nothing hidden the tokens are those of timm's `forward_features`; positions are added before a token is
dropped, so that a kept token is the same token as in the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch.utils.checkpoint import checkpoint

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def require_vit(backbone: Any, purpose: str) -> VisionTransformer:
    """Return the backbone.

    Raises:
        UserError: It is no plain vision transformer of timm.
    """
    if not isinstance(backbone, VisionTransformer):
        raise UserError(
            f"{purpose} needs a plain vision transformer, not {type(backbone).__name__}.",
            "method.image.name",
            "Use a ViT of timm, e.g. vit_base_patch16_224.",
        )
    return backbone


def require_class_token(backbone: Any, purpose: str) -> tuple[torch.Tensor, torch.nn.Parameter]:
    """Return the class token with its position, `[1 1 d]`, and the table of positions.

    Raises:
        UserError: The backbone is no plain vision transformer with a class token, and no other beside the patches.
    """
    vit = require_vit(backbone, purpose)
    if vit.num_prefix_tokens != 1 or vit.cls_token is None or vit.pos_embed is None or vit.no_embed_class:
        raise UserError(
            f"{purpose} needs a vision transformer with a class token and nothing else beside the patches.",
            "method.image.name",
            "Use a ViT of timm without registers, e.g. vit_base_patch16_224.",
        )
    return vit.cls_token + vit.pos_embed[:, :1], vit.pos_embed


def vit_states(
    backbone: VisionTransformer,
    pixels: Float[torch.Tensor, "b c h w"],
    *,
    keep: Int[torch.Tensor, "b k"] | None = None,
    hidden: Bool[torch.Tensor, "b p"] | None = None,
    mask_token: Float[torch.Tensor, " d"] | None = None,
    attention: bool = False,
) -> tuple[Float[torch.Tensor, "b n d"], Float[torch.Tensor, "b heads p"] | None]:
    """Return the states of all tokens, prefix tokens first, after the last norm, and the class token's attention.

    Args:
        backbone: The transformer.
        pixels: Normalised pixels.
        keep: Patches that are encoded, in this order; None is all (MAE, arXiv 2111.06377).
        hidden: Patches whose embedding is replaced by `mask_token` before positions are added (iBOT, arXiv 2111.07832).
        mask_token: The embedding of a hidden patch.
        attention: Return what the class token attends to in the last block, without gradient.
    """
    embedded = backbone.patch_embed(pixels)
    if hidden is not None:
        assert mask_token is not None
        shape = embedded.shape[:-1]
        embedded = torch.where(hidden.reshape(shape)[..., None], mask_token.to(embedded.dtype), embedded)
    states = backbone._pos_embed(embedded)
    if keep is not None:
        prefix = states[:, : backbone.num_prefix_tokens]
        patches = states[:, backbone.num_prefix_tokens :]
        chosen = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[-1]))
        states = torch.cat([prefix, chosen], dim=1)
    return vit_encoded(backbone, backbone.patch_drop(states), attention)


def vit_embedded(backbone: VisionTransformer, pixels: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b n d"]:
    """Return prefix tokens and patches with their positions, as `vit_encoded` takes them."""
    return backbone._pos_embed(backbone.patch_embed(pixels))


def vit_encoded(
    backbone: VisionTransformer, states: Float[torch.Tensor, "b n d"], attention: bool = False
) -> tuple[Float[torch.Tensor, "b n d"], Float[torch.Tensor, "b heads p"] | None]:
    """Return the states after all blocks and the last norm, and the class token's attention; any number of tokens.

    Args:
        backbone: The transformer.
        states: Prefix tokens and patches, positions added.
        attention: As in `vit_states`.
    """
    states = backbone.norm_pre(states)
    if backbone.grad_checkpointing and torch.is_grad_enabled():
        states = checkpoint_seq(backbone.blocks[:-1], states)
    else:
        states = backbone.blocks[:-1](states)
    attended = class_attention(backbone, states) if attention else None
    return backbone.norm(backbone.blocks[-1](states)), attended


def vit_levels(
    backbone: VisionTransformer, pixels: Float[torch.Tensor, "b c *s"], levels: Sequence[int]
) -> tuple[Float[torch.Tensor, "b n d"], list[Float[torch.Tensor, "b p d"]]]:
    """Return the states of all tokens after the last norm, and the patches after some blocks.

    Args:
        backbone: The transformer.
        pixels: Normalised pixels.
        levels: Numbers of blocks, from 0, rising.
    """
    states, kept = backbone.norm_pre(vit_embedded(backbone, pixels)), []
    for number, block in enumerate(backbone.blocks):
        if backbone.grad_checkpointing and torch.is_grad_enabled():
            states = checkpoint(block, states, use_reentrant=False)
        else:
            states = block(states)
        if number in levels:
            kept.append(states[:, backbone.num_prefix_tokens :])
    return backbone.norm(states), kept


@torch.no_grad()
def class_attention(
    backbone: VisionTransformer, states: Float[torch.Tensor, "b n d"]
) -> Float[torch.Tensor, "b heads p"]:
    """Return the softmax of the class token over all tokens in the last block, cut to the patches.

    Args:
        backbone: A transformer with a class token.
        states: Input of the last block.
    """
    block: Any = backbone.blocks[-1]
    layer: Any = block.attn
    qkv = layer.qkv(block.norm1(states)).unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = layer.q_norm(qkv[0][:, :, :1]), layer.k_norm(qkv[1])
    weights = (layer.scale * (query @ key.transpose(2, 3))).float().softmax(-1)
    return weights[:, :, 0, backbone.num_prefix_tokens :]

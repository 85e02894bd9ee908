"""Text towers of released checkpoints on transformers, with the pooling that the official code takes.

Guarantee: with the official weights the states, word vectors and pooled vectors are the official ones; a text gives the
same whatever texts stand beside it, unless `legacy_pad_mean` asks for the official fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.types import TextBatch, TextFeatures
from medvlp.zoo.release import TextConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class ReleasedText(nn.Module):
    """BERT, RoBERTa, Longformer without global attention, or the text side of CLIP.

    Args:
        config: Architecture, layers and pooling.

    Attributes:
        legacy_pad_mean: Whether pool `mean` takes the pads in.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        import transformers

        kind = {"bert": "Bert", "roberta": "Roberta", "longformer": "Longformer", "clip": "CLIPText"}[config.family]
        self.config = config
        self.legacy_pad_mean = config.legacy_pad_mean
        architecture = getattr(transformers, f"{kind}Config")(**config.config)
        # Fused kernels do not return attention, and Longformer has none.
        eager = config.attention or config.family == "longformer"
        architecture._attn_implementation = "eager" if eager else "sdpa"
        pooler = {} if config.family == "clip" else {"add_pooling_layer": config.pooler}
        self.model: Any = getattr(transformers, f"{kind}Model")(architecture, **pooler)

    def forward(self, text: TextBatch) -> TextFeatures:
        """Return token states (of the configured layers), the pooled vector and, if asked for, attention."""
        mask = text.mask.to(torch.bool)
        positions = torch.zeros_like(text.ids) if self.config.positions == "zero" else None
        output = self.model(
            input_ids=text.ids,
            attention_mask=mask.to(torch.long),
            position_ids=positions,
            output_hidden_states=True,
            output_attentions=self.config.attention,
        )
        states = torch.stack([output.hidden_states[layer] for layer in self.config.layers])
        tokens = states.mean(0) if self.config.combine == "mean" else states.sum(0)
        pooled = output.pooler_output if self.config.pool == "pooler" else self._pool(tokens, mask)
        attention = output.attentions[-1][:, :, 0].mean(1) if self.config.attention else None
        return TextFeatures(tokens, pooled, mask, text.word_ids, attention)

    def embed(self, ids: Int[torch.Tensor, "b l"]) -> Float[torch.Tensor, "b l d"]:
        """Return the embeddings of tokens with their positions, normed, before the layers."""
        return self.model.embeddings(input_ids=ids)

    def encode_embedded(self, embedded: Float[torch.Tensor, "b l d"]) -> Float[torch.Tensor, "b l d"]:
        """Return the last layer's states of embeddings without pads."""
        return self.model.encoder(embedded).last_hidden_state

    def _pool(self, tokens: Float[torch.Tensor, "b l d"], mask: Bool[torch.Tensor, "b l"]) -> torch.Tensor:
        if self.config.pool == "cls":
            return tokens[:, 0]
        if self.config.pool == "mean" and self.legacy_pad_mean:
            return tokens.mean(1)
        weights = mask.to(tokens.dtype)[..., None]
        if self.config.slots is not None:
            return (tokens * weights).sum(1) / self.config.slots
        return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)

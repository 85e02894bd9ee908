"""Text tower on transformers: a fresh one by size, or a model from a local folder; several ways to pool.

Guarantee: nothing is fetched from a network and no foreign code runs; frozen layers get no gradient and stay in
evaluation mode (no dropout) while the rest trains; a folder's weights are used or explained, key by key.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from medvlp.config.towers import TextTowerConfig
from medvlp.errors import UserError
from medvlp.models.text_families import (
    Family,
    check_fit,
    described_model,
    family_of,
    folder_model,
    fresh_model,
    layers_of,
)
from medvlp.types import TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class TextTower(nn.Module):
    """An encoder of the BERT family, or the text side of CLIP or SigLIP.

    CLIP's tokens see only those before them, and its end-of-text token ("eos") stands for the text. SigLIP's model was
    trained without a mask, on texts padded to its full length, and its "pooler" reads the last slot: it is run so here,
    and its tokens are then cut back to the batch.

    Args:
        config: A folder, a saved architecture, or the sizes of a fresh tower; pooling and freezing.
        vocab_size: Number of tokens of the tokenizer in use.
        pad_id: Its padding token.
        legacy_pad_mean: Pool over all token slots, pads included, as MedCLIP's official code does. A text's vector then
            depends on the longest text beside it.

    Attributes:
        dim: Width of the pooled vector.
        family: bert, clip or siglip.

    Raises:
        UserError: A folder that cannot be used, a vocabulary that does not fit, or more frozen layers than there are.
    """

    def __init__(self, config: TextTowerConfig, vocab_size: int, pad_id: int, legacy_pad_mean: bool = False) -> None:
        super().__init__()
        self.config = config
        self.legacy_pad_mean = legacy_pad_mean
        self.model: Any = _build(config, vocab_size, pad_id)
        self.family: Family = family_of(self.model.config.model_type)
        self.pad_id = pad_id
        self.dim: int = self.model.config.hidden_size
        if self.family == "siglip" and config.pool == "pooler":
            self.dim = self.model.config.projection_size
        layers = layers_of(self.model)
        if config.pool == "layers_1_2_12" and len(layers) < 2:
            raise UserError("Pooling layers_1_2_12 needs two layers or more.", "method.text.layers", "Use pool: mean.")
        if config.freeze_layers > len(layers):
            raise UserError(
                f"{config.freeze_layers} layers cannot be frozen, the text tower has {len(layers)}.",
                "method.text.freeze_layers",
                f"Give 0 to {len(layers)}.",
            )
        self._frozen: list[nn.Module] = [self.model] if config.freeze else []
        if config.freeze_layers and not config.freeze:
            self._frozen = [self.model.embeddings, *layers[: config.freeze_layers]]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    @property
    def architecture(self) -> dict[str, Any]:
        """The tower's transformers configuration, enough to build it again without the folder."""
        return _portable(self.model.config)

    def train(self, mode: bool = True) -> TextTower:
        """Switch to training mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, text: TextBatch) -> TextFeatures:
        """Return token features and the pooled vector of each text."""
        config, length = self.config, text.ids.shape[1]
        by_layers = config.pool == "layers_1_2_12"
        ids, mask = text.ids, text.mask.to(torch.long)
        if self.family == "siglip":
            ids = functional.pad(ids, (0, self.model.config.max_position_embeddings - length), value=self.pad_id)
        output = self.model(
            input_ids=ids,
            attention_mask=None if self.family == "siglip" else mask,
            output_hidden_states=by_layers or config.tokens == "last_4_sum",
            **({"output_attentions": True} if config.attention else {}),
        )
        states = [state[:, :length] for state in output.hidden_states or ()]
        tokens = output.last_hidden_state[:, :length]
        if config.tokens == "last_4_sum":
            tokens = torch.stack(states[-4:]).sum(0)
        if config.pool == "cls":
            pooled = tokens[:, 0]
        elif config.pool == "eos":
            last = (mask.sum(1) - 1).clamp_min(0)
            pooled = tokens[torch.arange(len(tokens), device=tokens.device), last]
        elif config.pool == "pooler":
            pooled = output.pooler_output
        elif by_layers:
            pooled = self._mean(torch.stack([states[1], states[2], states[-1]]).mean(0), text.mask)
        else:
            pooled = self._mean(tokens, text.mask)
        attended = output.attentions[-1][:, :, 0].mean(1).detach() if config.attention else None
        return TextFeatures(tokens, pooled, text.mask, text.word_ids, attended)

    def embed(self, ids: Int[torch.Tensor, "b l"]) -> Float[torch.Tensor, "b l d"]:
        """Return the embeddings of tokens with their positions, normed, before the layers.

        Raises:
            UserError: The tower is not of the BERT family, so that `encode_embedded` could not go on from them.
        """
        if self.family != "bert":
            raise UserError(
                f"Embeddings enter a BERT-family tower, not '{self.family}'.",
                "method.text",
                "Use family: bert, or the folder of a BERT.",
            )
        return self.model.embeddings(input_ids=ids)

    def encode_embedded(
        self, embedded: Float[torch.Tensor, "b l d"], mask: Bool[torch.Tensor, "b *q l"]
    ) -> Float[torch.Tensor, "b l d"]:
        """Return the last layer's states of embeddings as `embed` gives them; with these, the tokens of `forward`.

        Args:
            embedded: Embeddings of the tokens.
            mask: True at real tokens, or `[b q l]`: at those that token q sees.
        """
        unseen = torch.zeros_like(mask, dtype=embedded.dtype).masked_fill(~mask, torch.finfo(embedded.dtype).min)
        unseen = unseen[:, None] if mask.ndim == 3 else unseen[:, None, None]
        return self.model.encoder(embedded, attention_mask=unseen).last_hidden_state

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        # transformers renames these calls within its version 5.
        model, renamed = self.model, hasattr(self.model, "activation_checkpointing_enable")
        if enabled:
            enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        else:
            disable = model.activation_checkpointing_disable if renamed else model.gradient_checkpointing_disable
            disable()

    def _mean(
        self, tokens: Float[torch.Tensor, "b l d"], mask: Bool[torch.Tensor, "b l"]
    ) -> Float[torch.Tensor, "b d"]:
        if self.legacy_pad_mean:
            return tokens.mean(1)
        weights = mask.to(tokens.dtype)[..., None]
        return (tokens * weights).sum(1) / weights.sum(1).clamp_min(1.0)


def _build(config: TextTowerConfig, vocab_size: int, pad_id: int) -> Any:
    if config.folder is not None:
        model = folder_model(Path(config.folder), config.pool == "pooler")
    elif config.architecture is not None:
        model = described_model(config.architecture)
    else:
        if config.freeze_layers:
            raise UserError(
                "A fresh text tower cannot have frozen layers: they would stay random.",
                "method.text.freeze_layers",
                "Give method.text.folder, or freeze_layers: 0.",
            )
        model = fresh_model(config, vocab_size, pad_id)
    check_fit(model, config, vocab_size)
    if config.attention:  # fused kernels give no weights
        model.set_attn_implementation("eager")
    # A head that no objective uses would be a parameter without gradient.
    if config.pool != "pooler":
        for head in ("pooler", "head"):
            if getattr(model, head, None) is not None:
                setattr(model, head, None if head == "pooler" else nn.Identity())
    return model


def _portable(config: Any) -> dict[str, Any]:
    fields = config.to_dict()
    for machine_dependent in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"):
        fields.pop(machine_dependent, None)
    return fields

"""Text tower on transformers: a fresh BERT by size, or a model from a local folder; several ways to pool.

Guarantee: nothing is fetched from a network and no foreign code runs; frozen layers get no gradient and stay in
evaluation mode (no dropout) while the rest trains; a folder's weights are used or explained, key by key.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.config.schema import TextTowerConfig
from medvlp.errors import UserError
from medvlp.types import TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

HEADS_OF_PRETRAINING = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids")
"""Keys of a language model's file that a text tower has no use for, at any depth of prefix."""


class TextTower(nn.Module):
    """A BERT-family encoder.

    Args:
        config: A folder, a saved architecture, or the sizes of a fresh tower; pooling and freezing.
        vocab_size: Number of tokens of the tokenizer in use.
        pad_id: Its padding token.
        legacy_pad_mean: Pool over all token slots, pads included, as MedCLIP's official code does. A text's vector then
            depends on the longest text beside it.

    Attributes:
        dim: Width `d`.

    Raises:
        UserError: A folder that cannot be used, a vocabulary that does not fit, or more frozen layers than there are.
    """

    def __init__(self, config: TextTowerConfig, vocab_size: int, pad_id: int, legacy_pad_mean: bool = False) -> None:
        super().__init__()
        self.config = config
        self.legacy_pad_mean = legacy_pad_mean
        self.model: Any = _build(config, vocab_size, pad_id)
        # A pooler that no objective uses would be a parameter without gradient.
        if config.pool != "pooler" and getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None
        self.dim: int = self.model.config.hidden_size
        layers = self.model.encoder.layer
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
        config = self.config
        by_layers = config.pool == "layers_1_2_12"
        output = self.model(
            input_ids=text.ids,
            attention_mask=text.mask.to(torch.long),
            output_hidden_states=by_layers or config.tokens == "last_4_sum",
            **({"output_attentions": True} if config.attention else {}),
        )
        tokens = output.last_hidden_state
        if config.tokens == "last_4_sum":
            tokens = torch.stack(output.hidden_states[-4:]).sum(0)
        if config.pool == "cls":
            pooled = tokens[:, 0]
        elif config.pool == "pooler":
            pooled = output.pooler_output
        elif by_layers:
            states = output.hidden_states
            pooled = self._mean(torch.stack([states[1], states[2], states[-1]]).mean(0), text.mask)
        else:
            pooled = self._mean(tokens, text.mask)
        attended = output.attentions[-1][:, :, 0].mean(1).detach() if config.attention else None
        return TextFeatures(tokens, pooled, text.mask, text.word_ids, attended)

    def embed(self, ids: Int[torch.Tensor, "b l"]) -> Float[torch.Tensor, "b l d"]:
        """Return the embeddings of tokens with their positions, normed, before the layers."""
        return self.model.embeddings(input_ids=ids)

    def encode_embedded(
        self, embedded: Float[torch.Tensor, "b l d"], mask: Bool[torch.Tensor, "b l"]
    ) -> Float[torch.Tensor, "b l d"]:
        """Return the last layer's states of embeddings as `embed` gives them; with these, the tokens of `forward`."""
        unseen = torch.zeros_like(mask, dtype=embedded.dtype).masked_fill(~mask, torch.finfo(embedded.dtype).min)
        return self.model.encoder(embedded, attention_mask=unseen[:, None, None]).last_hidden_state

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
    from transformers import AutoConfig, AutoModel, BertConfig, BertModel

    if config.folder is not None:
        model = _from_folder(Path(config.folder), config.pool == "pooler")
    elif config.architecture is not None:
        fields = dict(config.architecture)
        model = AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    else:
        if config.freeze_layers:
            raise UserError(
                "A fresh text tower cannot have frozen layers: they would stay random.",
                "method.text.freeze_layers",
                "Give method.text.folder, or freeze_layers: 0.",
            )
        model = BertModel(
            BertConfig(
                vocab_size=vocab_size,
                hidden_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=4 * config.hidden,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                max_position_embeddings=config.max_tokens,
                pad_token_id=pad_id,
            ),
            add_pooling_layer=config.pool == "pooler",
        )
    if config.attention:  # fused kernels give no weights
        model.set_attn_implementation("eager")
    _check_fit(model, config, vocab_size)
    return model


def _from_folder(folder: Path, needs_pooler: bool) -> Any:
    from transformers import AutoModel

    if not (folder / "config.json").is_file():
        raise UserError("The text model folder has no config.json.", folder, "Give a local Hugging Face model folder.")
    try:
        model, info = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"The text model cannot be loaded: {str(error).splitlines()[0]}",
            folder,
            "The folder needs config.json and model.safetensors of a BERT-family model.",
        ) from error
    allowed = tuple(head for head in HEADS_OF_PRETRAINING if not (needs_pooler and head == "pooler."))
    check_hub_loading(info, folder, allowed)
    return model


def check_hub_loading(info: dict[str, Any], folder: Path, allowed: tuple[str, ...]) -> None:
    """Raise `UserError` if transformers left a key missing, over or mismatched that is not in `allowed`.

    Args:
        info: Loading information of `from_pretrained`.
        folder: The model folder, for the message.
        allowed: Beginnings of keys, after any prefix of modules, that may be missing or left over.
    """

    def unexplained(keys: Any) -> list[str]:
        return sorted(str(k) for k in keys if not any(f".{k}".find(f".{part}") >= 0 for part in allowed))

    parts = {
        "missing": unexplained(info["missing_keys"]),
        "unexplained": unexplained(info["unexpected_keys"]),
        "other shapes": sorted(str(key) for key in info["mismatched_keys"]),
    }
    if any(parts.values()):
        shown = "; ".join(f"{name} ({len(k)}): {', '.join(k[:8])}" for name, k in parts.items() if k)
        raise UserError(f"The weights do not fit the model: {shown}.", folder, "Mend the folder's model.safetensors.")


def _check_fit(model: Any, config: TextTowerConfig, vocab_size: int) -> None:
    if not hasattr(getattr(model, "encoder", None), "layer") or not hasattr(model, "embeddings"):
        raise UserError(
            f"A text tower must be of the BERT family, not '{model.config.model_type}'.",
            config.folder or "method.text.architecture",
            "Use BERT, RoBERTa, ELECTRA or a model built like them.",
        )
    if vocab_size > model.config.vocab_size:
        raise UserError(
            f"The tokenizer has {vocab_size} tokens, the text tower only {model.config.vocab_size}.",
            config.folder or "method.text",
            "Use the tokenizer of the model's own folder.",
        )
    positions = model.config.max_position_embeddings
    offset = model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0
    if config.max_tokens > positions - offset:
        raise UserError(
            f"The text tower has positions for {positions - offset} tokens, max_tokens is {config.max_tokens}.",
            "method.text.max_tokens",
            f"Give at most {positions - offset}.",
        )


def _portable(config: Any) -> dict[str, Any]:
    fields = config.to_dict()
    for machine_dependent in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"):
        fields.pop(machine_dependent, None)
    return fields

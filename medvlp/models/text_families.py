"""The transformers models behind a text tower: BERT and its like, CLIP's causal text model, SigLIP's.

Guarantee: a family is read off the model's own configuration; a model of another family is refused in words. A folder
of a whole CLIP or SigLIP gives its text side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from medvlp.config.towers import TextTowerConfig
from medvlp.errors import UserError

Family = Literal["bert", "clip", "siglip"]

HEADS_OF_PRETRAINING = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids")
"""Keys of a language model's file that a text tower has no use for, at any depth of prefix."""
OTHER_SIDE = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "logit_bias")
"""Keys of a whole CLIP or SigLIP that are not of its text model."""


def family_of(model_type: str) -> Family:
    """Return the family of a transformers model type; anything that is not CLIP or SigLIP is taken for a BERT."""
    name = model_type.removesuffix("_text_model")
    return "clip" if name == "clip" else "siglip" if name == "siglip" else "bert"


def layers_of(model: Any) -> Sequence[nn.Module]:
    """Return the transformer layers of a model of any family."""
    encoder = model.encoder
    return encoder.layer if hasattr(encoder, "layer") else encoder.layers


def described_model(architecture: dict[str, Any]) -> Any:
    """Return a fresh model from what `config.to_dict()` gave."""
    from transformers import AutoConfig, AutoModel

    fields = dict(architecture)
    model_type = str(fields.pop("model_type"))
    if family_of(model_type) == "bert":
        return AutoModel.from_config(AutoConfig.for_model(model_type, **fields))
    config_class, model_class = _classes(family_of(model_type))
    return model_class(config_class(**fields))


def fresh_model(config: TextTowerConfig, vocab_size: int, pad_id: int) -> Any:
    """Return a fresh model of the configured family and sizes."""
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": 4 * config.hidden,
        "attention_probs_dropout_prob" if config.family == "bert" else "attention_dropout": config.dropout,
        "max_position_embeddings": config.max_tokens,
        "pad_token_id": pad_id,
    }
    if config.family == "bert":
        from transformers import BertConfig, BertModel

        return BertModel(
            BertConfig(**shared, hidden_dropout_prob=config.dropout), add_pooling_layer=config.pool == "pooler"
        )
    config_class, model_class = _classes(config.family)
    own = {"projection_size": config.hidden} if config.family == "siglip" else {}
    # The tower finds the end of a text by its mask; transformers wants these within the vocabulary.
    return model_class(config_class(**shared, **own, bos_token_id=pad_id, eos_token_id=pad_id))


def folder_model(folder: Path, needs_pooler: bool) -> Any:
    """Return the text model of a local folder.

    Raises:
        UserError: No usable folder, or weights that are not used or explained key by key.
    """
    from transformers import AutoModel

    if not (folder / "config.json").is_file():
        raise UserError("The text model folder has no config.json.", folder, "Give a local Hugging Face model folder.")
    try:
        family = family_of(str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")))
        loader: Any = AutoModel if family == "bert" else _classes(family)[1]
        model, info = loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"The text model cannot be loaded: {str(error).splitlines()[0]}",
            folder,
            "The folder needs config.json and model.safetensors of a BERT-family model, CLIP or SigLIP.",
        ) from error
    allowed = tuple(head for head in HEADS_OF_PRETRAINING if not (needs_pooler and head == "pooler."))
    check_hub_loading(info, folder, allowed if family == "bert" else (*OTHER_SIDE, "embeddings.position_ids"))
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


def check_fit(model: Any, config: TextTowerConfig, vocab_size: int) -> None:
    """Raise `UserError` if the model is no text tower, or not one for this vocabulary, length or pooling."""
    where: Any = config.folder or "method.text"
    encoder = getattr(model, "encoder", None)
    if not (hasattr(encoder, "layer") or hasattr(encoder, "layers")) or not hasattr(model, "embeddings"):
        raise UserError(
            f"A text tower must be of the BERT family, CLIP or SigLIP, not '{model.config.model_type}'.",
            config.folder or "method.text.architecture",
            "Use BERT, RoBERTa, ELECTRA or a model built like them, or the folder of a CLIP or SigLIP.",
        )
    if vocab_size > model.config.vocab_size:
        raise UserError(
            f"The tokenizer has {vocab_size} tokens, the text tower only {model.config.vocab_size}.",
            where,
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
    _check_pool(family_of(model.config.model_type), config)


def _check_pool(family: Family, config: TextTowerConfig) -> None:
    if family == "clip" and config.pool in ("cls", "pooler"):
        raise UserError(
            f"In CLIP's text model a token sees those before it alone: pool '{config.pool}' would see no word.",
            "method.text.pool",
            "Use eos, the last token, or mean.",
        )
    if family != "bert" and config.attention:
        raise UserError(
            "Attention of the class token is that of a BERT-family tower.", "method.text.attention", "Leave it out."
        )


def _classes(family: Family) -> tuple[Any, Any]:
    """Return the configuration and the model class of CLIP's or SigLIP's text side."""
    import transformers

    name = {"clip": "CLIPText", "siglip": "SiglipText"}[family]
    return getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}Model")

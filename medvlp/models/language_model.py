"""A decoder language model as text tower: an instruction before the text, attention both ways, pooling by latents.

Guarantee: nothing is fetched from a network and no foreign code runs; only the text after the instruction is pooled; a
text has the same vector whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.config.towers import TextTowerConfig
from medvlp.errors import UserError
from medvlp.models.text import TextTower
from medvlp.models.text_families import check_hub_loading
from medvlp.models.weights import check_keys
from medvlp.types import TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

ADAPTER = "llm2clip"
"""Name of the adapter in the keys of its weights, as in the released checkpoint."""
POOL = "latent_attn."
"""Beginning of the pool's keys in the weight file of a folder."""
ADAPTED = "medvlp_adapted"
"""Key of a saved architecture that says whether there are adapters."""


class LatentPool(nn.Module):
    """Tokens read trained latent vectors; then an MLP and the mean over tokens (after NV-Embed, arXiv 2405.17428).

    Args:
        dim: Width of the tokens.
        latents: Number of latent vectors.
        heads: Of the attention.
    """

    def __init__(self, dim: int, latents: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(
                f"A width of {dim} does not split into {heads} heads.", "method.options.pool.heads", "Give a divisor."
            )
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.multihead_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(
        self, tokens: Float[torch.Tensor, "b l d"], mask: Bool[torch.Tensor, "b l"]
    ) -> Float[torch.Tensor, "b d"]:
        """Return the mean over the tokens that `mask` names; 0 where it names none."""
        latents = self.latents.to(tokens.dtype).expand(len(tokens), -1, -1)
        read = self.mlp(self.multihead_attn(tokens, latents, latents, need_weights=False)[0])
        weights = mask.to(read.dtype)[..., None]
        return (read * weights).sum(1) / weights.sum(1).clamp_min(1.0)


class LanguageModelTower(TextTower):
    """Any decoder of transformers, from a local folder, a saved architecture or, by size, a fresh Llama.

    A folder's model stays fixed and gets low-rank adapters (LoRA, arXiv 2106.09685, by peft) on the projections of its
    attention; its pool stays fixed, too, where the folder's weights bring one. A fresh model trains as a whole, without
    adapters: there would be nothing to adapt.

    Args:
        config: Folder, saved architecture or sizes; `pool` and `tokens` must be left at mean and last.
        vocab_size: Number of tokens of the tokenizer in use.
        pad_id: Its padding token.
        instruction: Tokens of the instruction, with the special tokens that begin a text.
        lead: How many special tokens begin a text.
        options: `bidirectional`, `pool` (`latents`, `heads`), `lora` (`rank`, `alpha`, `dropout`, `modules`).

    Raises:
        UserError: A folder that cannot be used, a vocabulary or length that does not fit, or modules that are missing.
    """

    instruction: torch.Tensor

    def __init__(
        self,
        config: TextTowerConfig,
        vocab_size: int,
        pad_id: int,
        instruction: list[int],
        lead: int,
        options: Mapping[str, Any],
    ) -> None:
        nn.Module.__init__(self)  # not TextTower's own: it builds an encoder
        if config.pool != "mean" or config.tokens != "last" or config.attention or config.freeze_layers:
            raise UserError(
                "A language model pools by latents over its last states.",
                "method.text",
                "Leave pool, tokens, attention and freeze_layers at mean, last, false and 0.",
            )
        self.config, self.pad_id, self.lead = config, pad_id, lead
        self.bidirectional: bool = options["bidirectional"]
        self.register_buffer("instruction", torch.tensor(instruction, dtype=torch.int64), persistent=False)
        fields = dict(config.architecture or {})
        lora = options["lora"]
        self.adapted = bool(fields.pop(ADAPTED, config.folder is not None and lora["rank"] > 0))
        self.model: Any = _build(config, fields, vocab_size, len(instruction) - lead)
        self.dim = self.model.config.hidden_size
        _check_fit(self.model, config, vocab_size, len(instruction) - lead)
        self.pool = LatentPool(self.dim, options["pool"]["latents"], options["pool"]["heads"])
        pooled = config.folder is not None and _load_pool(self.pool, Path(config.folder))
        if self.adapted:
            self.model.requires_grad_(False)
            self.pool.requires_grad_(not pooled)
            _adapt(self.model, lora)
        self._frozen = [self] if config.freeze else []
        for module in self._frozen:
            module.requires_grad_(False)

    @property
    def architecture(self) -> dict[str, Any]:
        """The model's transformers configuration, and whether it has adapters."""
        return {**super().architecture, ADAPTED: self.adapted}

    def train(self, mode: bool = True) -> LanguageModelTower:
        """Switch to training mode; a frozen tower stays in evaluation mode."""
        nn.Module.train(self, mode and not self.config.freeze)
        return self

    def forward(self, text: TextBatch) -> TextFeatures:
        """Return states and the pooled vector of each text, padded as it came; the model itself reads left-padded."""
        rows, lead, length = len(text.ids), self.lead, text.ids.shape[1]
        ids = torch.cat([self.instruction.expand(rows, -1), text.ids[:, lead:]], dim=1)
        mask = torch.cat([self.instruction.new_ones(rows, len(self.instruction)).bool(), text.mask[:, lead:]], dim=1)
        places = torch.arange(ids.shape[1], device=ids.device)
        shift = ids.shape[1] - mask.sum(1, keepdim=True)
        right = (places - shift) % ids.shape[1]
        states = self._states(ids.gather(1, right), mask.gather(1, right))
        left = (places + shift) % ids.shape[1]
        states = states.gather(1, left[..., None].expand_as(states))
        before = len(self.instruction) - lead
        tokens = torch.cat([states[:, :lead], states[:, before + lead :]], dim=1)[:, :length]
        told = text.mask & (torch.arange(length, device=ids.device) >= lead)
        return TextFeatures(tokens, self.pool(tokens, told), text.mask, text.word_ids)

    def _states(self, ids: torch.Tensor, mask: Bool[torch.Tensor, "b l"]) -> Float[torch.Tensor, "b l d"]:
        """Return the last states of left-padded tokens, positions counted from the first real one."""
        seen = mask[:, None, None].expand(-1, 1, ids.shape[1], -1)
        if not self.bidirectional:
            seen = seen.tril()
        # A pad sees itself at least: a softmax over nothing is NaN.
        seen = seen | torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        output = self.model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=False)
        return output.last_hidden_state


def _build(config: TextTowerConfig, fields: dict[str, Any], vocab_size: int, before: int) -> Any:
    from transformers import AutoConfig, AutoModel, LlamaConfig

    how: dict[str, Any] = {"attn_implementation": "sdpa"}  # takes the mask as it is, whatever the model
    if config.folder is not None:
        return _from_folder(Path(config.folder), how)
    if fields:
        return AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields), **how)
    fresh = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden,
        intermediate_size=4 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_tokens + before,
        attention_dropout=config.dropout,
    )
    return AutoModel.from_config(fresh, **how)


def _from_folder(folder: Path, how: dict[str, Any]) -> Any:
    from transformers import AutoModel

    if not (folder / "config.json").is_file():
        raise UserError("The text model folder has no config.json.", folder, "Give a local Hugging Face model folder.")
    try:
        model, info = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **how
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"The language model cannot be loaded: {str(error).splitlines()[0]}",
            folder,
            "The folder needs config.json and model.safetensors of a decoder that transformers knows.",
        ) from error
    check_hub_loading(info, folder, ("lm_head.", POOL))
    return model


def _check_fit(model: Any, config: TextTowerConfig, vocab_size: int, before: int) -> None:
    if not hasattr(model, "layers"):
        raise UserError(
            f"The model '{model.config.model_type}' is no decoder of the kind of Llama.",
            config.folder or "method.text.architecture",
            "Use Llama, Mistral, Qwen, Gemma or a model built like them.",
        )
    if vocab_size > model.config.vocab_size:
        raise UserError(
            f"The tokenizer has {vocab_size} tokens, the language model only {model.config.vocab_size}.",
            config.folder or "method.text",
            "Use the tokenizer of the model's own folder.",
        )
    if config.max_tokens + before > model.config.max_position_embeddings:
        raise UserError(
            f"The model has positions for {model.config.max_position_embeddings} tokens; instruction and text may have "
            f"{before + config.max_tokens}.",
            "method.text.max_tokens",
            f"Give at most {model.config.max_position_embeddings - before}.",
        )


def _load_pool(pool: LatentPool, folder: Path) -> bool:
    """Load the pool from a folder's weights, strictly; return whether they have one."""
    from safetensors import safe_open

    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found = [key for key in tensors.keys() if key.startswith(POOL)]  # noqa: SIM118 (no mapping)
            state |= {key.removeprefix(POOL): tensors.get_tensor(key).float() for key in found}
    if state:
        check_keys(pool.state_dict(), state, folder)
        pool.load_state_dict(state, strict=True)
    return bool(state)


def _adapt(model: Any, lora: Mapping[str, Any]) -> None:
    """Put adapters into the model; the rest of it stays fixed."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=list(lora["modules"]),
        bias="none",
    )
    try:
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    except ValueError as error:
        raise UserError(
            f"The language model has no modules {', '.join(lora['modules'])} to adapt.",
            "method.options.lora.modules",
            "Name linear layers of the model, e.g. q_proj, k_proj, v_proj, o_proj.",
        ) from error

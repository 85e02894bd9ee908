"""A causal language model of transformers as a decoder of reports: visual tokens and a prompt stand before the words.

Guarantee: nothing is fetched from a network and no foreign code runs; every weight of a folder has its place in the
model. Tokens that are missing are neither seen nor counted as places.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.errors import UserError
from medvlp.models.report_decoder import ReportDecoder, Visual
from medvlp.models.text_families import check_hub_loading

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from medvlp.text.vocabulary import ReportTokens


class CausalDecoder(ReportDecoder):
    """Projected visual tokens, then the text, through a causal language model.

    Args:
        visual_width: Width of the visual tokens.
        model: A causal language model of transformers; see `fresh_model` and `folder_model`.
        tokens: The tokens that it reads and writes.
    """

    def __init__(self, visual_width: int, model: Any, tokens: ReportTokens) -> None:
        from transformers import GenerationConfig

        super().__init__()
        self.model = model
        model.generation_config = GenerationConfig()  # a folder's own would add to what a task says of the search
        self.begin_id, self.end_id = tokens.begin_id, tokens.end_id
        width = model.get_input_embeddings().embedding_dim
        self.visual = nn.Sequential(nn.LayerNorm(visual_width), nn.Linear(visual_width, width))

    def _prefix(
        self, visual: Visual, ids: Int[torch.Tensor, "b l"]
    ) -> tuple[Float[torch.Tensor, "b p+l d"], Bool[torch.Tensor, "b p+l"]]:
        """Return visual tokens and prompt, missing ones first, and embedded words; and which of them are real."""
        words = self.model.get_input_embeddings()(ids)
        shown = self.visual(visual.tokens).to(words.dtype)
        mask = visual.tokens.new_ones(visual.tokens.shape[:2], dtype=torch.bool)
        if visual.mask is not None:
            mask = visual.mask
        if visual.prompt is not None and visual.prompt_mask is not None:
            shown = torch.cat([shown, self.model.get_input_embeddings()(visual.prompt)], dim=1)
            mask = torch.cat([mask, visual.prompt_mask], dim=1)
        if visual.mask is not None or visual.prompt is not None:
            order = mask.to(torch.uint8).argsort(dim=1, stable=True)
            shown = shown.gather(1, order[..., None].expand_as(shown))
            mask = mask.gather(1, order)
        return torch.cat([shown, words], dim=1), torch.cat([mask, torch.ones_like(ids, dtype=torch.bool)], dim=1)

    def forward(self, visual: Visual, ids: Int[torch.Tensor, "b l"]) -> Float[torch.Tensor, "b l v"]:
        """See `ReportDecoder.forward`."""
        states, mask = self._prefix(visual, ids)
        places = (mask.cumsum(1) - 1).clamp_min(0)
        output = self.model(inputs_embeds=states, attention_mask=mask.long(), position_ids=places, use_cache=False)
        return output.logits[:, -ids.shape[1] :]

    @torch.no_grad()
    def generate(
        self, visual: Visual, max_tokens: int, beams: int = 1, banned: Sequence[int] = ()
    ) -> Int[torch.Tensor, "b t"]:
        """See `ReportDecoder.generate`; the search is that of transformers, sums are divided by the length."""
        from transformers import GenerationConfig

        begin = torch.full((len(visual.tokens), 1), self.begin_id, device=visual.tokens.device)
        states, mask = self._prefix(visual, begin)
        how = GenerationConfig(
            max_new_tokens=max_tokens,
            num_beams=beams,
            do_sample=False,
            early_stopping=False,
            suppress_tokens=list(banned) or None,
            bos_token_id=self.begin_id,
            eos_token_id=self.end_id,
            pad_token_id=self.end_id,
        )
        found = self.model.generate(inputs_embeds=states, attention_mask=mask.long(), generation_config=how)
        return nn.functional.pad(found, (0, max_tokens - found.shape[1]), value=self.end_id)


def fresh_model(
    vocab_size: int, width: int, hidden: int, layers: int, heads: int, max_places: int, dropout: float
) -> Any:
    """Return an untrained decoder of the kind of Llama (arXiv 2302.13971).

    Args:
        vocab_size: Number of tokens.
        width: Width of the model.
        hidden: Width of its feed-forward parts.
        layers: Number of layers.
        heads: Attention heads.
        max_places: Visual tokens and words, at most.
        dropout: Of the attention weights.

    Raises:
        UserError: The width does not split into heads of an even width.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    if width % (2 * heads):
        raise UserError(
            f"A width of {width} does not split into {heads} heads of an even width.", "decoder", "Give fitting ones."
        )
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=max_places,
            attention_dropout=dropout,
            tie_word_embeddings=True,
        )
    )


def folder_model(folder: Path) -> Any:
    """Return the causal language model of a local Hugging Face folder, in single precision.

    Raises:
        UserError: There is none, its weights do not fit, or the model looks at words that follow.
    """
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise UserError(
            "The folder of the decoder has no config.json.", folder, "Give a local Hugging Face folder of a decoder."
        )
    how: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **how)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The folder holds no causal language model that can be loaded: {str(error).splitlines()[0]}",
            folder,
            "Give config.json and model.safetensors of GPT-2, Llama, Qwen, Gemma or a decoder like them.",
        ) from error
    model, info = loaded
    check_hub_loading(info, folder, ("lm_head.",) if model.config.tie_word_embeddings else ())
    _check_causal(model.eval(), folder)
    return model


def shaped_model(folder: Path) -> Any:
    """Return a causal language model of the shape of a folder's config.json, its weights still random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def check_places(model: Any, vocab_size: int, places: int, folder: Path) -> None:
    """Refuse a model whose tables are too small.

    Args:
        model: From `folder_model`.
        vocab_size: Tokens of its tokenizer.
        places: Visual tokens and words, at most.
        folder: For the message.

    Raises:
        UserError: It has no row for a token, or no position for a place.
    """
    rows = model.get_input_embeddings().num_embeddings
    if vocab_size > rows:
        raise UserError(
            f"The tokenizer has {vocab_size} tokens, the model {rows}.", folder, "Put the model's own tokenizer there."
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", places)
    if places > positions:
        raise UserError(
            f"The model has {positions} positions; visual tokens and words may be {places}.",
            folder,
            "Lower reports.max_images or reports.max_tokens, or take another encoder or decoder.",
        )


@torch.no_grad()
def _check_causal(model: Any, folder: Path) -> None:
    """Refuse an encoder (BERT and the like), which transformers would load as a decoder, too."""
    rows = torch.tensor([[0, 1], [0, 2]], device=model.device) % model.config.get_text_config().vocab_size
    try:
        first = model(input_ids=rows).logits[:, 0]
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The model cannot read a text alone: {error}", folder, "Give a causal decoder.") from error
    if not torch.allclose(first[0], first[1], rtol=1e-3, atol=1e-4):
        raise UserError(
            f"The model '{model.config.model_type}' looks at words that follow: it is no causal decoder.",
            folder,
            "Give the folder of GPT-2, Llama, Qwen, Gemma or a decoder like them.",
        )

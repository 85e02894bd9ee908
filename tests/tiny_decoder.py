"""A local Hugging Face folder with the smallest causal language model."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<unk>", "</s>", "There", "is", "a", "pneumothorax", "No", "Small", "No", "pleural", "effusion", "."]


def write_folder(folder: Path, seed: int = 0) -> Path:
    """Write config, weights and tokenizer; the folder's own settings of the search would repeat no word."""
    words = list(dict.fromkeys(WORDS))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=256, **sizes))
    model.generation_config.repetition_penalty = 50.0
    model.save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder

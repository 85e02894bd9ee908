"""What a rebuilt released model computes, under the names of the reference arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from released_files import image_of
from torch.nn import functional

from medvlp.models.words import to_words
from medvlp.types import TextBatch

Arrays = dict[str, torch.Tensor]
Outputs = Callable[[Any, Path, Mapping[str, np.ndarray]], Arrays]
SPECIAL = (0, 101, 102)
FIRST_CONTINUATION = 20001
"""In the made-up vocabulary of the reference values larger ids continue a word."""


def outputs(model: Any, folder: Path, reference: Mapping[str, np.ndarray]) -> Arrays:
    """Return every array of a folder that the model computes, in full."""
    made = image_outputs(model, image_of(folder))
    if "in_input_ids" in reference:
        made |= _text(model, text_of(reference))
    return made


def text_of(reference: Mapping[str, np.ndarray]) -> TextBatch:
    """Return the token ids of a folder with word ids as our tokenizer gives them."""
    ids = torch.from_numpy(reference["in_input_ids"]).long()
    mask = torch.from_numpy(reference["in_attention_mask"]).bool()
    word_ids = (ids < FIRST_CONTINUATION).cumsum(1) - 2
    word_ids[torch.isin(ids, torch.tensor(SPECIAL)) | ~mask] = -1
    return TextBatch(ids, mask, word_ids=word_ids)


def image_outputs(model: Any, pixels: torch.Tensor) -> Arrays:
    """Return the arrays of the image side."""
    features = model.encode_image(pixels)
    made = {"tokens": features.tokens, "pooled": features.pooled}
    if "native" in model.release.image.views:
        features = model.encode_image(pixels, "native")
        made |= {"tokens_native": features.tokens, "pooled_native": features.pooled}
    if "image" in model.heads:
        head = model.head("image")
        made |= {"proj": head(features.pooled), "proj_raw": head.raw(features.pooled)}
    if "image_tokens" in model.heads:
        made["patch_proj"] = model.head("image_tokens")(features.tokens)
    return made


def _text(model: Any, text: TextBatch) -> Arrays:
    model.text.legacy_pad_mean = True
    features = model.encode_text(text)
    model.text.legacy_pad_mean = False
    words = to_words(features, first=True, last=True)
    vector = model.head("text")(features.pooled) if "text" in model.heads else features.pooled
    made = {
        "text_hidden": features.tokens,
        "text_cls": features.tokens[:, 0],
        "text_words": functional.pad(words.tokens, (0, 0, 0, text.ids.shape[1] - words.tokens.shape[1])),
        "text_pooler": features.pooled,
        "text_proj": vector,
    }
    if "text" in model.heads:
        made["text_proj_raw"] = model.head("text").raw(features.pooled)
    return made


def _mgca(model: Any, folder: Path, reference: Mapping[str, np.ndarray]) -> Arrays:
    text = text_of(reference)
    made = image_outputs(model, image_of(folder)) | _text(model, text)
    made["text_words"] = made["text_words"][:, 1:]
    features = model.encode_text(text)
    # The official code pairs token i with the attention of token i + 1: it drops the class token of one list only.
    shifted = torch.cat([features.cls_attention[:, 1:], torch.zeros(len(text.ids), 1)], dim=1)
    attention = to_words(replace(features, cls_attention=shifted), first=True, last=True).attention
    made["text_word_attention"] = functional.pad(attention, (0, text.ids.shape[1] - attention.shape[1]))[:, 1:]
    return made


def _mrm(model: Any, folder: Path, reference: Mapping[str, np.ndarray]) -> Arrays:
    pixels = image_of(folder)
    made = image_outputs(model, pixels)
    return {
        **made,
        "pooled_native_input": made["pooled"],
        "pooled_norm_then_mean": model.encode_image(pixels, "normed").pooled,
        "cls": model.encode_image(pixels, "cls").pooled,
    }


def _refers(model: Any, folder: Path, reference: Mapping[str, np.ndarray]) -> Arrays:
    made = image_outputs(model, image_of(folder))
    # Pre-training adds the class token to every patch.
    return {**made, "tokens_native": made["tokens"] + made["pooled"][:, None]}


def _echoprime_view(model: Any, folder: Path, reference: Mapping[str, np.ndarray]) -> Arrays:
    made = image_outputs(model, image_of(folder))
    return {**made, "logits": model.head("views")(made["pooled"])}


OWN: dict[str, Outputs] = {
    "echoprime_view": _echoprime_view,
    "mgca_vit": _mgca,
    "mgca_r50": _mgca,
    "mrm": _mrm,
    "refers": _refers,
}
"""Models whose arrays mean something else; a module of tests may add its own."""

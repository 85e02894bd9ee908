"""LLM2CLIP4CXR: radiographs contrasted with reports as a language model reads them (arXiv 2509.15234).

Guarantee: features are of unit length and the scale is an exponential, where the released training code has neither;
`options.legacy_logits` is for continuing from its checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.language_model import LanguageModelTower
from medvlp.objectives.contrastive import info_nce
from medvlp.types import Batch, Features, TextFeatures

MAX_LOG_SCALE = math.log(100.0)


class LLM2CLIP(Method):
    """The second stage: InfoNCE of whole images and reports.

    The first, masked tokens and paraphrases on text alone, is what the language model in `text.folder` has behind it.
    Each text is read behind `options.instruction` and pooled without it; the separator that the official code writes
    between the two marks that border and never reaches the model. Without a folder a fresh Llama of the configured size
    trains as a whole. `options.legacy_logits` trains on products of raw projections times the raw scale (2.66 at the
    start); scores are cosines either way.
    """

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.text_encoder is not None
        self.text_projection: Any = nn.Sequential(nn.LayerNorm(self.text_encoder.dim), self.text_projection)
        self.set_scale(self.positive("info_nce", "temperature"), learnt=True)

    def build_text_tower(self) -> LanguageModelTower:
        """Return the language model."""
        text, options, context = self.config.text, self.config.options, self.context
        assert text is not None
        read = context.tokenise([options["instruction"] or "a"], text.max_tokens)
        assert read.word_ids is not None
        ids, words = read.ids[0].tolist(), read.word_ids[0].tolist()
        lead = next((number for number, word in enumerate(words) if word >= 0), len(words))
        told = [token for token, word in zip(ids, words, strict=True) if word >= 0] if options["instruction"] else []
        return LanguageModelTower(text, context.vocab_size, context.pad_id, ids[:lead] + told, lead, options)

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, 1/T, between 1 and 100."""
        return self.scale_within(0.0, MAX_LOG_SCALE)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `info_nce`, of the augmented reading of the reports where there is one."""
        given = self.texts_of(batch)
        image, text = self.encode_stored(batch.pixels), self.encode_text(batch.text_augmented or given)
        if self.config.options["legacy_logits"]:
            scale = self.log_scale.squeeze()
            return self.weighted({"info_nce": info_nce(*self._raw(image, text), scale, as_given=True)})
        term = info_nce(self.project_image(image), self.project_text(text), self.logit_scale)
        return self.weighted({"info_nce": term})

    def _raw(self, image: Features, text: TextFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """Return projections that are not of unit length."""
        of_image: Any = self.image_projection
        norm, of_text = self.text_projection
        return of_image.layers(image.pooled), of_text.layers(norm(text.pooled))

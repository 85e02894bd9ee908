"""GLoRIA: sentences aligned with radiographs as wholes, and words with image regions (Huang et al., ICCV 2021).

Guarantee: pads are in no softmax and no sum, and negatives are those of all ranks; the scores of an image do not depend
on the images scored beside it unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._choices import TEXT_UNITS, chosen
from medvlp.methods.base import Encode, Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import Projection
from medvlp.models.words import Words, to_words
from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.terms import unit
from medvlp.objectives.token_max import mean_cosines
from medvlp.objectives.word_region import prompt_similarity, standardised, word_region_nce
from medvlp.objectives.zero_shot import by_group
from medvlp.types import Batch, Features, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class GLoRIA(Method):
    """Objectives `global` and `local`, each image to text plus text to image.

    In the paper the shared space is that of the text tower, whose tokens are the sum of its last four layers; a
    `projection.dim` that is not its width gives texts and words linear maps of their own. A sentence is the mean of its
    tokens (the official mean over all slots, pads included, has the same direction). In training [CLS] is a word and
    [SEP] is none, in scoring neither is.

    `zero_shot` is a softmax over the two sides of a question of `10 · (cos + 5 · max_w cos_w) / 2`; the official factor
    5 weighs the local part. `options.standardise_scores` first standardises the score of each side over the images
    scored together, as the official code does: a score then depends on its neighbours.
    `options.legacy_prompt_lengths` counts the characters of a prompt as its words, as the official code does, so that
    [SEP] and empty slots enter.
    """

    heat_map_kind = "patch-text similarity"
    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        for constant in ("scale", "sharpness", "match_scale"):
            self.positive("local", constant)
        self.set_scale(1 / self.positive("global", "scale"), learnt=False)
        chosen_reduce = self.objective("local")["reduce"]
        if chosen_reduce not in ("sum", "mean"):
            where = "method.objectives.local.reduce"
            raise UserError(f"{where} is '{chosen_reduce}'.", where, "Use sum or mean.")

    def build_projections(self) -> None:
        """Make the maps of images and regions, and those of texts and words where widths differ."""
        assert self.text_encoder is not None
        width, dim = self.text_encoder.dim, self.config.projection.dim
        self.image_projection = Projection(self.image_encoder.dim, self.config.projection)
        self.region_projection = nn.Linear(self.image_encoder.token_dim, dim, bias=False)
        self.text_projection, self.word_projection = (
            nn.Identity() if width == dim else nn.Linear(width, dim, bias=False) for _ in range(2)
        )

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(text_unit=chosen(config, "text_unit", TEXT_UNITS))

    def project_text(self, features: TextFeatures) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of texts."""
        return unit(self.text_projection(features.pooled))

    def _words(self, text: TextFeatures, first: bool = False, last: bool = False) -> Words:
        words = to_words(text, first=first, last=last)
        return replace(words, tokens=self.word_projection(words.tokens))

    @property
    def _attention(self) -> dict[str, Any]:
        return {name: self.objective("local")[name] for name in ("sharpness", "match_scale")}

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `global` and `local`, those that have a weight."""
        given = self.texts_of(batch)
        features, text = self.encode_stored(batch.pixels), self.encode_text(given)
        terms: dict[str, Term] = {}
        if self.is_on("global"):
            vectors = self.project_image(features), self.project_text(text)
            value, count = self.over_prefixes(lambda a, b: info_nce(a, b, self.logit_scale), *vectors)
            terms["global"] = 2 * value, count
        if self.is_on("local"):
            words, constants = self._words(text, first=True), self.objective("local")
            terms["local"] = word_region_nce(
                self.region_projection(features.tokens),
                words.tokens,
                words.mask,
                constants["scale"],
                reduce=constants["reduce"],
                **self._attention,
            )
        return self.weighted(terms)

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the probability of each question; see the class. The official code has one side and the maximum."""
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        prompts = [prompt for group in groups for prompt in group]
        similarity = self._similarity(image, encode(prompts), prompts)
        scores = by_group(similarity, [len(group) for group in groups], reduce)
        if self.config.options["standardise_scores"]:
            scores = standardised(scores)
        return (self.logit_scale.float() * scores).unflatten(1, (len(positives), 2)).softmax(2)[..., 0]

    def _similarity(self, image: Features, text: TextFeatures, prompts: Sequence[str]) -> Float[torch.Tensor, "b t"]:
        words = self._words(text)
        tokens, mask = words.tokens, words.mask
        if self.config.options["legacy_prompt_lengths"]:
            tokens, mask = self._slots_by_characters(self._words(text, last=True), prompts)
        regions = self.region_projection(image.tokens)
        return prompt_similarity(
            self.project_image(image), regions, self.project_text(text), tokens, mask, **self._attention
        )

    def _slots_by_characters(
        self, words: Words, prompts: Sequence[str]
    ) -> tuple[Float[torch.Tensor, "t l d"], Bool[torch.Tensor, "t l"]]:
        assert self.config.text is not None
        lengths = [min(len(prompt), self.config.text.max_tokens - 1) for prompt in prompts]
        missing = max(0, max(lengths) - words.tokens.shape[1])
        tokens = functional.pad(words.tokens, (0, 0, 0, missing))
        ends = torch.tensor(lengths, device=tokens.device)[:, None]
        return tokens, torch.arange(tokens.shape[1], device=tokens.device) < ends

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return the mean cosine of each region with the words of each text.

        The attention over regions (`word_attention`) is no map of evidence: a softmax over the words comes first, so
        that a region without any content wins where no other word claims it.
        """
        features, words = self.encode_image(pixels), self._words(encode(texts))
        maps = mean_cosines(self.region_projection(features.tokens), words.tokens, words.mask)
        return maps.unflatten(2, features.grid)

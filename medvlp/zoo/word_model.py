"""MGCA's and GLoRIA's released models: image regions and words meet in a space of their own.

Guarantee: scores and heat maps follow the rules of the methods as medvlp trains them; what an image and a text give
does not depend on the images and texts beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from medvlp.methods.base import Encode
from medvlp.models.words import Words, to_words
from medvlp.objectives.token_max import mean_cosines
from medvlp.objectives.word_region import prompt_similarity, word_attention
from medvlp.objectives.zero_shot import by_group
from medvlp.types import Features, TextFeatures
from medvlp.zoo.released import ReleasedModel

if TYPE_CHECKING:
    from jaxtyping import Float


class WordModel(ReleasedModel):
    """A model with a head for the tokens of images, and perhaps one for words (MGCA)."""

    @property
    def heat_map_kind(self) -> str | None:
        """How `heat_map` finds evidence."""
        return "patch-text similarity" if self.shared_space else None

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return the mean cosine of each region with the words of each text."""
        features, words = self.encode_image(pixels), self.words(encode(texts))
        return mean_cosines(self.regions(features), words.tokens, words.mask).unflatten(2, features.grid)

    def regions(self, features: Features) -> Float[torch.Tensor, "b p d"]:
        """Return the tokens of images in the space of words; `features` are of the view `release.projects`."""
        return self.head("image_tokens")(features.tokens)

    def words(self, text: TextFeatures) -> Words:
        """Return the words of texts, special tokens left out, in the space of regions."""
        words = to_words(text)
        has_head = "text_tokens" in self.release.heads
        return replace(words, tokens=self.head("text_tokens")(words.tokens)) if has_head else words


class WordRegionModel(WordModel):
    """GLoRIA: a text is scored by its vector and by its best word.

    Options of the format: `sharpness` and `match_scale`, see `medvlp.objectives.word_region`.
    """

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the probability of each question; see `medvlp.methods.gloria.GLoRIA`."""
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        text = encode([prompt for group in groups for prompt in group])
        words, options = self.words(text), self.release.options
        similarity = prompt_similarity(
            self.project_image(image),
            self.regions(image),
            self.project_text(text),
            words.tokens,
            words.mask,
            options["sharpness"],
            options["match_scale"],
        )
        scores = self.logit_scale * by_group(similarity, [len(group) for group in groups], reduce)
        return scores.unflatten(1, (len(positives), 2)).softmax(2)[..., 0]

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return the attention over the regions, the mean over the words of each text."""
        features, words = self.encode_image(pixels), self.words(encode(texts))
        attention = word_attention(self.regions(features), words.tokens, words.mask, self.release.options["sharpness"])
        attention = attention.masked_fill(~words.mask[None, ..., None], 0.0)
        return (attention.sum(2) / words.mask.sum(1).clamp_min(1)[:, None]).unflatten(2, features.grid)

"""ConceptCLIP's released model: patches and words are projected by heads of their own, with a scale of their own.

Guarantee: the outputs are the official ones; texts are scored as by our own training of the method: the official
average of a global and a local softmax, here of the two sides of each question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

from medvlp.methods.base import Encode, Method
from medvlp.methods.conceptclip import ConceptCLIP, local_scores, prompt_concepts
from medvlp.types import Features, TextFeatures
from medvlp.zoo.release import Release
from medvlp.zoo.released import ReleasedModel

if TYPE_CHECKING:
    from jaxtyping import Float


class ConceptModel(ReleasedModel):
    """Two towers, a projection of texts, and projections of patches and words.

    Options of the format: `local_share` and `patches` of the zero-shot rule.

    Attributes:
        bias: Added to `logit_scale * cosine` in the sigmoid loss of images and texts; scores go without it.
        concept_bias: Likewise of patches and concepts.
    """

    def __init__(self, release: Release) -> None:
        super().__init__(release)
        self.bias = nn.Parameter(torch.zeros(()))
        self.concept_log_scale = nn.Parameter(torch.zeros(()))
        self.concept_bias = nn.Parameter(torch.zeros(()))

    @property
    def concept_logit_scale(self) -> Float[torch.Tensor, ""]:
        """Factor of cosines between patches and concepts."""
        return self.concept_log_scale.exp()

    @property
    def heat_map_kind(self) -> str | None:
        """How `heat_map` finds evidence."""
        return ConceptCLIP.heat_map_kind if self.shared_space else None

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the probability of each question; see `ConceptCLIP.zero_shot`."""
        whole = Method.zero_shot(self, image, positives, negatives, encode, reduce)  # type: ignore[arg-type]
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        prompts, options = [prompt for group in groups for prompt in group], self.release.options
        concepts = self._concepts(prompts, encode(prompts))
        patches, scale = self.head("image_tokens")(image.tokens), self.concept_logit_scale
        local = local_scores(patches, concepts, groups, scale, options["patches"], reduce)
        return options["local_share"] * local + (1 - options["local_share"]) * whole

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return the cosine of every patch and every text."""
        features = self.encode_image(pixels)
        patches = functional.normalize(self.head("image_tokens")(features.tokens), dim=2)
        cosines = torch.einsum("bpd,td->btp", patches, self._concepts(texts, encode(texts)))
        return cosines.unflatten(2, features.grid)

    def _concepts(self, prompts: Sequence[str], features: TextFeatures) -> Float[torch.Tensor, "t d"]:
        words, limit = self.head("text_tokens")(features.tokens), self._need(self.release.text, "text tower").max_tokens
        return prompt_concepts(prompts, words, features, self.tokenizer, limit)

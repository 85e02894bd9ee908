"""ConceptCLIP: images with captions, and concepts of a caption with the region that shows them (arXiv 2501.15579).

Guarantee: both sigmoid losses over all ranks' images, captions and concepts; spans are token positions (the released
converter stores character positions, which the released loss then takes for tokens).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ProjectionConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods.base import Encode, Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import Projection, UnitLength
from medvlp.objectives.concept_alignment import region_concept_alignment, top_patch_logits
from medvlp.objectives.contrastive import sigmoid_pairs
from medvlp.text.triplets import read_mentions
from medvlp.types import Batch, Features, TextFeatures

if TYPE_CHECKING:
    from medvlp.text.tokenizer import Tokenizer


class ConceptCLIP(Method):
    """Two stages in one: `rc_align.weight: 0` is the first. Both scales start from 1/0.07, both biases from -10.

    The image tower's pooled vector is the shared one, texts are projected to its width; `projection` describes the
    heads of patches and of tokens. A concept is the mean of its tokens. Zero-shot scores are the mean of a global and a
    local softmax, the local one over the `zero_shot.patches` best patches; the vector of a prompt is that of the
    findings it names, or of all its words.

    Attributes:
        patch_projection: Of image tokens to the local space.
        token_projection: Of text tokens.
        logit_bias: `[1]`, of images and captions.
        concept_log_scale: `[1]`, of patches and concepts.
        concept_bias: `[1]`.
    """

    nests = True
    heat_map_kind = "patch-text similarity"

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.positive("it_align", "temperature"), learnt=True)
        self.logit_bias = nn.Parameter(torch.tensor([float(self.objective("it_align")["bias"])]))
        start = -math.log(self.positive("rc_align", "temperature"))
        self.concept_log_scale = nn.Parameter(torch.tensor([start]))
        self.concept_bias = nn.Parameter(torch.tensor([float(self.objective("rc_align")["bias"])]))
        if not self.is_on("rc_align"):
            for part in (self.patch_projection, self.token_projection):
                part.requires_grad_(False)
            self.concept_log_scale.requires_grad_(False)
            self.concept_bias.requires_grad_(False)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(concepts=config.objectives["rc_align"]["weight"] != 0)

    def build_projections(self) -> None:
        """Make the heads of whole images and texts, and of their tokens."""
        assert self.text_encoder is not None
        width, projection = self.image_encoder.dim, self.config.projection
        self.image_projection = UnitLength(width, width)
        self.text_projection = Projection(self.text_encoder.dim, ProjectionConfig(dim=width, bias=projection.bias))
        self.patch_projection = Projection(self.image_encoder.token_dim, projection)
        self.token_projection = Projection(self.text_encoder.dim, projection)

    @property
    def concept_scale(self) -> torch.Tensor:
        """Factor of cosines of patches and concepts."""
        return self.concept_log_scale.exp().squeeze()

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `it_align` and `rc_align`.

        Raises:
            UserError: The batch names no concepts at all.
        """
        given = self.texts_of(batch)
        image, text = self.encode_stored(batch.pixels), self.encode_text(given)
        scale, bias = self.logit_scale, self.logit_bias.squeeze()
        vectors = self.project_image(image), self.project_text(text)
        terms = {"it_align": self.over_prefixes(lambda x, y: sigmoid_pairs(x, y, scale, bias), *vectors)}
        if self.is_on("rc_align"):
            if given.spans is None:
                raise UserError("ConceptCLIP needs concepts, the texts have none.", "data", "Use a store with reports.")
            terms["rc_align"] = region_concept_alignment(
                self.patch_projection.unscaled(image.tokens),
                self.token_projection.unscaled(text.tokens),
                given.spans,
                self.concept_scale,
                self.concept_bias.squeeze(),
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
        """Return the probability of each question: the average of a global and a local softmax of its two sides.

        A side is the mean or maximum over its prompts. Without RC-Align the global softmax alone counts.
        """
        whole = super().zero_shot(image, positives, negatives, encode, reduce)
        rule = self.config.options["zero_shot"]
        if not self.is_on("rc_align") or not rule["local_share"]:
            return whole
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        prompts = [prompt for group in groups for prompt in group]
        concepts = self.prompt_concepts(prompts, encode(prompts))
        patches = self.patch_projection(image.tokens)
        local = local_scores(patches, concepts, groups, self.concept_scale.float(), rule["patches"], reduce)
        return rule["local_share"] * local + (1 - rule["local_share"]) * whole

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return the cosine of every patch and every text; without RC-Align, Grad-CAM."""
        if not self.is_on("rc_align"):
            return super().heat_map(pixels, texts, encode)
        features = self.encode_image(pixels)
        concepts = self.prompt_concepts(texts, encode(texts))
        cosines = torch.einsum("bpd,td->btp", self.patch_projection(features.tokens), concepts)
        return cosines.unflatten(2, features.grid)

    def prompt_concepts(self, prompts: Sequence[str], features: TextFeatures) -> Float[torch.Tensor, "t d"]:
        """Return the unit vector of each prompt in the local space; see the function of the same name."""
        assert self.config.text is not None
        words = self.token_projection.unscaled(features.tokens)
        return prompt_concepts(prompts, words, features, self.context.tokenizer, self.config.text.max_tokens)


def local_scores(
    patches: Float[torch.Tensor, "b p d"],
    concepts: Float[torch.Tensor, "t d"],
    groups: Sequence[Sequence[str]],
    scale: Float[torch.Tensor, ""],
    top: int,
    reduce: Literal["max", "mean"],
) -> Float[torch.Tensor, "b k"]:
    """Return the probability of each question by its best patches.

    Args:
        patches: Of any length.
        concepts: Unit vectors of all prompts, group after group.
        groups: 2k lists of prompts: those for question 0, those against it, those for question 1, ...
        scale: Factor of cosines.
        top: Patches that count.
        reduce: How the logits of several prompts become one.
    """
    parts = top_patch_logits(patches, concepts, scale, top).split([len(group) for group in groups], dim=1)
    sides = torch.stack([part.amax(1) if reduce == "max" else part.mean(1) for part in parts], dim=1)
    return sides.unflatten(1, (-1, 2)).softmax(2)[..., 0]


def prompt_concepts(
    prompts: Sequence[str],
    words: Float[torch.Tensor, "t l d"],
    features: TextFeatures,
    tokenizer: Tokenizer | None,
    max_tokens: int,
) -> Float[torch.Tensor, "t d"]:
    """Return the unit vector of each prompt: the mean of the findings that it names, or of all its words.

    Args:
        prompts: `t` texts.
        words: Their tokens in the local space, of any length.
        features: As the text tower gives them.
        tokenizer: Tells which tokens a finding covers; without one all words count.
        max_tokens: At which texts are cut.
    """
    chosen = features.mask.clone()
    if features.word_ids is not None:
        chosen &= features.word_ids >= 0
    for row, prompt in enumerate(prompts):
        spans = [] if tokenizer is None else _named(prompt, tokenizer, max_tokens)
        if spans:
            chosen[row] = False
        for first, last in spans:
            chosen[row, first:last] = True
    weights = chosen.to(torch.float32)[..., None]
    return functional.normalize((words.float() * weights).sum(1), dim=1)


def _named(prompt: str, tokenizer: Tokenizer, max_tokens: int) -> list[tuple[int, int]]:
    """Return the tokens of the findings that a prompt names."""
    places = sorted({(mention.start, mention.end) for mention in read_mentions(prompt)})
    return [span for span in tokenizer.token_spans(prompt, places, max_tokens) if span is not None]

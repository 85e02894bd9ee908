"""MGCA: radiographs and reports aligned as wholes, token by token, and by prototypes (Wang et al., arXiv 2210.06044).

Guarantee: negatives and prototype assignments are those of all ranks' samples, and pads enter neither losses nor batch
normalisation; the official code's departures from that are switches.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._choices import TEXT_UNITS, chosen
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import Projection
from medvlp.models.words import project_tokens, to_words
from medvlp.objectives.contrastive import info_nce, target_ce
from medvlp.objectives.prototypes import swapped_prediction
from medvlp.objectives.terms import unit
from medvlp.objectives.token_alignment import clipped_attention, token_alignment
from medvlp.types import Batch, Features, TextFeatures


class MGCA(Method):
    """Objectives `ita` (both directions summed), `cta` (words over patches plus patches over words) and `cpa`.

    With a ViT the patches are weighted by the attention of its class token, which needs `image.attention`; with a CNN
    they weigh alike, its tokens come from `image.tap` and their contexts are brought to length 1, as in the official
    code. The closing [SEP] is a word, [CLS] is none. Prototypes have length 1 after every step and no gradient for
    `hold_prototypes_epochs`.

    Switches for what the official code does: `legacy_per_rank` (negatives and assignments of one GPU alone),
    `legacy_pads` (padded words are wrong answers), `legacy_shifted_attention` (a word has the attention weight of the
    token behind it). Its punctuation is stripped beforehand; here punctuation is a word.

    Heat maps are Grad-CAM of the global cosine: tokens are only told apart within one sample, so that a patch and a
    word may be similar for any reason that holds within it; on the phantom the most similar patch misses the finding.
    """

    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        tower, text = self.image_encoder, self.text_encoder
        assert text is not None
        self.set_scale(self.positive("ita", "temperature"), learnt=False)
        for term, constant in (("cta", "temperature"), ("cpa", "temperature"), ("cpa", "epsilon")):
            self.positive(term, constant)
        if not text.config.attention:
            raise UserError(
                "MGCA weighs words by attention.", "method.text.attention", "Set method.text.attention=true."
            )
        is_vit = hasattr(tower.backbone, "blocks") and hasattr(tower.backbone, "patch_embed")
        if is_vit and not getattr(config.image, "attention", False):
            raise UserError(
                "MGCA weighs the patches of a ViT by attention.",
                "method.image.attention",
                "Set method.image.attention=true.",
            )
        self.patch_projection = Projection(tower.token_dim, self.config.projection)
        self.word_projection = Projection(text.dim, self.config.projection)
        count = int(self.positive("cpa", "prototypes"))
        self.prototypes = nn.Parameter(unit(torch.randn(count, self.config.projection.dim)))

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(text_unit=chosen(config, "text_unit", TEXT_UNITS))

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `ita`, `cta` and `cpa`, those that have a weight."""
        given = self.texts_of(batch)
        features, text = self.encode_stored(batch.pixels), self.encode_text(given)
        image_vector, text_vector = self.project_image(features), self.project_text(text)
        terms = {"ita": self._instances(image_vector, text_vector)}
        if self.is_on("cta"):
            terms["cta"] = self._tokens(features, text)
        if self.is_on("cpa"):
            constants = {name: self.objective("cpa")[name] for name in ("temperature", "epsilon", "iterations")}
            per_rank = self.config.options["legacy_per_rank"]
            terms["cpa"] = swapped_prediction(
                image_vector, text_vector, self.prototypes, per_rank=per_rank, **constants
            )
        return self.weighted(terms)

    def _instances(self, image: torch.Tensor, text: torch.Tensor) -> Term:
        if self.config.options["legacy_per_rank"]:
            own = torch.eye(len(image), device=image.device)
            ways = [target_ce(*sides, own, self.logit_scale) for sides in ((image, text), (text, image))]
            return ways[0][0] + ways[1][0], ways[0][1] + ways[1][1]
        value, count = self.over_prefixes(lambda a, b: info_nce(a, b, self.logit_scale), image, text)
        return 2 * value, count

    def _tokens(self, features: Features, text: TextFeatures) -> Term:
        options, temperature = self.config.options, self.objective("cta")["temperature"]
        if options["legacy_shifted_attention"]:
            assert text.cls_attention is not None
            text = replace(text, cls_attention=functional.pad(text.cls_attention[:, 1:], (0, 1)))
        words = to_words(text, last=True)
        word_vectors = project_tokens(self.word_projection, words.tokens, words.mask)
        patches = self.patch_projection(features.tokens)
        assert words.attention is not None
        word_weights = clipped_attention(words.attention, words.mask & (words.attention != 0))
        everywhere = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        attended = features.cls_attention
        if attended is None:
            patch_weights = everywhere / everywhere.shape[1]
        else:
            patch_weights = clipped_attention(attended.mean(1), everywhere)
        of_words, count = token_alignment(
            word_vectors,
            patches,
            word_weights,
            words.mask,
            everywhere,
            temperature,
            legacy_pads=options["legacy_pads"],
        )
        of_patches, _ = token_alignment(
            patches, word_vectors, patch_weights, everywhere, words.mask, temperature, unit_contexts=attended is None
        )
        return of_words + of_patches, count

    def adjust_gradients(self) -> None:
        """Hold the prototypes in the first epochs."""
        if self.progress.epoch < self.config.options["hold_prototypes_epochs"]:
            assert self.prototypes.grad is not None
            self.prototypes.grad.zero_()

    @torch.no_grad()
    def end_step(self) -> None:
        """Bring the prototypes back to length 1."""
        self.prototypes.copy_(functional.normalize(self.prototypes, dim=1))

"""SimCroP: hidden patches and words, and sentences that pick their patches (arXiv 2509.08311).

Guarantee: the image tower sees visible patches alone; pads enter no term; equal sentences are no negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ProjectionConfig, VolumeTowerConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._fused import hidden_share
from medvlp.methods.base import Encode, Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.fusion import FusionSizes, TextFusion
from medvlp.models.language_head import LanguageHead, hide_tokens
from medvlp.models.masked_decoder import DecoderSizes, PixelDecoder, draw_kept
from medvlp.models.projection import Projection
from medvlp.models.sentences import sentence_keys, sentence_means
from medvlp.models.vit import require_class_token
from medvlp.objectives.masked import mim, mlm
from medvlp.objectives.sentence_patches import best_patches, sentence_patch_nce
from medvlp.objectives.zero_shot import by_group
from medvlp.types import Batch, Features, TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Float


class SimCroP(Method):
    """Objectives `mim`, `mlm` and `align`; the paper's formulas and constants are not published, these are stand-ins.

    `mim` is MAE on voxels. In `mlm` the image enters at two granularities: the mean of the visible patches is added to
    the embedding of every word (the instance), and the last layers attend to the patches (word and patch). In `align`
    each sentence picks the share `picked` of the patches of each volume that are most similar to it.

    A text is scored by the patches that it picks. Heat maps are the cosines of the patches with the text.
    """

    shared_space = False
    heat_map_kind = "patch-text similarity"
    uses_sentences = True
    training_parts = ("decoder", "fusion", "to_words", "to_fusion", "language_head")

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        config.image_of(VolumeTowerConfig, "SimCroP")
        super().__init__(config, context)
        assert self.text_encoder is not None
        backbone, options = self.image_encoder.backbone, self.config.options
        require_class_token(backbone, "Masked modelling of volumes")
        self.set_scale(self.positive("align", "temperature"), learnt=True)
        if not 0 < self.objective("align")["picked"] <= 1:
            where = "method.objectives.align.picked"
            raise UserError(f"{where} is {self.objective('align')['picked']}.", where, "Give a share of the patches.")
        self.patch: tuple[int, ...] = tuple(backbone.patch_embed.patch_size)
        width, dim = self.text_encoder.dim, self.image_encoder.dim
        values = self.config.image.input.channels
        for side in self.patch:
            values *= side
        sizes = DecoderSizes.of(options["decoder"], "decoder")
        self.decoder = PixelDecoder(dim, tuple(backbone.patch_embed.grid_size), values, sizes)
        self.to_words, self.to_fusion = nn.Linear(dim, width), nn.Linear(dim, width)
        self.fusion = TextFusion(FusionSizes.of({**options["fusion"], "dim": width}, "fusion"))
        self.language_head = LanguageHead(width, context.vocab_size)
        linear = ProjectionConfig(dim=self.config.projection.dim)
        self.patch_projection, self.sentence_projection = Projection(dim, linear), Projection(width, linear)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(sentences=True, hidden_share=hidden_share(config))

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines."""
        return self.scale_within(0.0, self.objective("align")["max_log_scale"])

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `mim`, `mlm` and `align`."""
        text, volumes = self.texts_of(batch), self.normalised(batch.pixels)
        settings = self.objective("mim")
        keep, hidden = draw_kept(len(volumes), len(self.decoder.positions), settings["hidden_share"], volumes.device)
        states = self.image_encoder.visible_states(volumes, keep)
        terms = {}
        if self.is_on("mim"):
            terms["mim"] = mim(self.decoder(states, keep), volumes, hidden, self.patch, settings["normalise"])
        if self.is_on("mlm"):
            terms["mlm"] = self._words(states[:, 1:], text)
        if self.is_on("align"):
            terms["align"] = self._alignment(states[:, 1:], batch.text_augmented or text)
        return self.weighted(terms)

    def _words(self, patches: Float[torch.Tensor, "b k d"], text: TextBatch) -> Term:
        """Return the loss of hidden words, beside the visible patches."""
        if text.hidden is None:
            raise UserError("MLM needs to know which tokens are hidden.", "text.hidden", "Demand a hidden_share.")
        assert self.text_encoder is not None
        ids = hide_tokens(text.ids, text.hidden, self.context.mask_id, self.context.vocab_size)
        embedded = self.text_encoder.embed(ids) + self.to_words(patches.mean(1))[:, None]
        tokens = self.text_encoder.encode_embedded(embedded, text.mask)
        fused, _ = self.fusion(tokens, text.mask, self.to_fusion(patches))
        return mlm(self.language_head(fused[text.hidden]), text.ids[text.hidden])

    def _alignment(self, patches: Float[torch.Tensor, "b k d"], text: TextBatch) -> Term:
        """Return the loss of sentences with the visible patches that they pick."""
        if text.sentence_ids is None:
            raise UserError("SimCroP needs the sentences of texts.", "data", "Use batches made by its demands.")
        sentences = sentence_means(self.encode_text(text).tokens, text.sentence_ids)
        return sentence_patch_nce(
            self.patch_projection(patches),
            self.sentence_projection(sentences.tokens),
            sentences.mask,
            sentence_keys(text.ids, text.sentence_ids),
            self.logit_scale,
            self.objective("align")["picked"],
        )

    def project_text(self, features: TextFeatures) -> Float[torch.Tensor, "b d"]:
        """Return the unit vector of each text, read as one sentence."""
        words = torch.zeros_like(features.mask) if features.word_ids is None else features.word_ids >= 0
        ids = torch.where(words, 0, -1)
        means = sentence_means(features.tokens, ids).tokens
        return self.sentence_projection(means[:, 0] if means.shape[1] else features.pooled)

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the softmax of the scores of both sides of a question, each by the patches that it picks."""
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        texts = self.project_text(encode([prompt for prompts in groups for prompt in prompts])).float()
        patches = self.patch_projection(image.tokens).float()
        scores = best_patches(texts, patches, self.objective("align")["picked"]).T
        logits = self.logit_scale.float() * by_group(scores, [len(prompts) for prompts in groups], reduce)
        return logits.unflatten(1, (len(positives), 2)).softmax(2)[..., 0]

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c d h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t *g"]:
        """Return the cosine of each patch with each text."""
        features, vectors = self.encode_image(pixels), self.project_text(encode(texts))
        cosines = torch.einsum("bpd,td->btp", self.patch_projection(features.tokens), vectors)
        return cosines.unflatten(2, features.grid)

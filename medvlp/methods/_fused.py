"""What M3AE, ARL and PTUnifier share: two towers, their fusion, hidden tokens and patches, and matching.

Guarantee: each term has the passes that its paper gives it; what two passes have in common (the whole image of MLM and
ITM, the whole text of MIM and ITM) is encoded once, which changes no expected value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods.base import Encode, Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.fusion import Entities, Fused, Fusion, FusionSizes
from medvlp.models.language_head import LanguageHead, hide_tokens, start_as_bert
from medvlp.models.masked_decoder import DecoderSizes, PixelDecoder, draw_kept
from medvlp.models.vit import require_vit
from medvlp.objectives.masked import mim, mlm
from medvlp.objectives.matching import itm, match_score, replacements, same_texts
from medvlp.objectives.zero_shot import by_class
from medvlp.types import Features, TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Float

IMAGES_AT_ONCE = 64


class FusedMethod(Method):
    """Base of methods with co-attention (METER, arXiv 2111.02387).

    Options: `text_unit` (report or sentence), `hidden_share` (share that MLM hides), `lr_factor` (of fusion and heads
    over the towers), `fusion` (see `FusionSizes`).
    """

    shared_space = False
    heat_map_kind = "cross-attention"
    parts: tuple[str, ...] = ("fusion.", "language_head.", "matching_head.")
    """Beginnings of the names of parameters that learn `lr_factor` times as fast."""

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.text_encoder is not None
        tower = self.image_encoder
        if tower.token_dim != tower.dim:
            raise UserError(
                "The fusion takes the pooled vector as one of the tokens, and they differ in width.",
                "method.image.tap",
                "Leave tap out, or set truncate.",
            )
        self.sizes = FusionSizes.of(self.config.options["fusion"], "fusion")
        self.fusion = self.build_fusion()
        self.language_head = LanguageHead(self.sizes.dim, context.vocab_size, eps=self.sizes.norm_eps)
        self.matching_head = nn.Linear(2 * self.sizes.dim, 2)
        start_as_bert(self.matching_head, self.sizes.dim)

    def build_fusion(self) -> Fusion:
        """Return the fusion; a subclass adds to it."""
        assert self.text_encoder is not None
        return Fusion(self.image_encoder.dim, self.text_encoder.dim, self.sizes)

    def build_decoder(self) -> PixelDecoder:
        """Return the decoder of hidden patches.

        Raises:
            UserError: The image tower is no plain ViT.
        """
        embed = require_vit(self.image_encoder.backbone, "Masked image modelling").patch_embed
        values = embed.patch_size[0] * embed.patch_size[1] * self.config.image.input.channels
        sizes = DecoderSizes.of(self.config.options["decoder"], "decoder")
        return PixelDecoder(self.sizes.dim, embed.grid_size, values, sizes)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(text_unit=config.options["text_unit"], hidden_share=hidden_share(config))

    def learning_rate_factors(self) -> dict[str, float]:
        """Return the factor of fusion and heads."""
        return dict.fromkeys(self.parts, float(self.config.options["lr_factor"]))

    # Passes.

    def encode_tokens(self, text: TextBatch) -> Float[torch.Tensor, "b l d"]:
        """Return the states of a text as the fusion takes them."""
        assert self.text_encoder is not None
        return self.fusion.embed_text(self.text_encoder(text).tokens)

    def masked_text(self, text: TextBatch) -> TextBatch:
        """Return the text as it is seen with hidden tokens.

        Raises:
            UserError: The batch does not say which are hidden.
        """
        if text.hidden is None:
            raise UserError("MLM needs to know which tokens are hidden.", "text.hidden", "Demand a hidden_share.")
        ids = hide_tokens(text.ids, text.hidden, self.context.mask_id, self.context.vocab_size)
        return replace(text, ids=ids)

    def mlm_term(self, image: Float[torch.Tensor, "b p d"], text: TextBatch, entities: Entities | None = None) -> Term:
        """Return the loss of hidden tokens, beside the whole image."""
        fused = self.fusion(image, self.encode_tokens(self.masked_text(text)), text.mask, entities)
        assert text.hidden is not None
        return mlm(self.language_head(fused.text[text.hidden]), text.ids[text.hidden])

    def mim_term(
        self,
        decoder: PixelDecoder,
        pixels: Float[torch.Tensor, "b c h w"],
        states: Float[torch.Tensor, "b l d"],
        text: TextBatch,
        entities: Entities | None = None,
    ) -> Term:
        """Return the loss of hidden patches, beside the whole text."""
        settings = self.objective("mim")
        patches = len(decoder.positions)
        keep, hidden = draw_kept(len(pixels), patches, settings["hidden_share"], pixels.device)
        visible = self.fusion.embed_image(self.image_encoder.encode_visible(pixels, keep))
        fused = self.fusion(visible, states, text.mask, entities, layers=settings["layer"])
        patch = require_vit(self.image_encoder.backbone, "Masked image modelling").patch_embed.patch_size[0]
        return mim(decoder(fused.image, keep), pixels, hidden, patch, settings["normalise"])

    def itm_term(
        self,
        image: Float[torch.Tensor, "b p d"],
        states: Float[torch.Tensor, "b l d"],
        text: TextBatch,
        entities: Entities | None = None,
    ) -> Term:
        """Return the loss of matching, half of the images replaced by others of the batch."""
        index, matched = replacements(same_texts(text.ids, text.mask))
        fused = self.fusion(image[index], states, text.mask, entities)
        return itm(self.matching_head(self.fusion.pool(fused)), matched)

    # Use.

    def fuse(self, image: Features, text: TextFeatures, weights: bool = False) -> Fused:
        """Return the fusion of images with texts, row by row."""
        return self.fusion(
            self.fusion.embed_image(image), self.fusion.embed_text(text.tokens), text.mask, None, None, weights
        )

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the softmax of the matching scores of positive and negative prompts, see `Method.zero_shot`.

        Raises:
            UserError: Matching was not trained.
        """
        if not self.is_on("itm"):
            raise UserError(
                "The method was trained without matching, and scores texts by it.",
                "method.objectives.itm.weight",
                "Train with a weight above 0.",
            )
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        texts = encode([prompt for prompts in groups for prompt in prompts])
        scores = torch.stack([self._match(image, texts, number) for number in range(len(texts.tokens))], dim=1)
        owner = torch.tensor([number for number, prompts in enumerate(groups) for _ in prompts], device=scores.device)
        return by_class(scores, owner, reduce).unflatten(1, (len(positives), 2)).softmax(2)[..., 0]

    def _match(self, image: Features, texts: TextFeatures, number: int) -> Float[torch.Tensor, " b"]:
        """Return how well each image matches one of the texts."""
        scores = []
        for first in range(0, len(image.tokens), IMAGES_AT_ONCE):
            some = slice(first, first + IMAGES_AT_ONCE)
            part = Features(image.tokens[some], image.pooled[some], image.grid)
            fused = self.fuse(part, _repeated(texts, number, len(part.tokens)))
            scores.append(match_score(self.matching_head(self.fusion.pool(fused))))
        return torch.cat(scores)

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return what the words of each text attend to in the last layer, the mean over words and heads."""
        with torch.no_grad():
            image, encoded = self.encode_image(pixels), encode(texts)
            maps = []
            for number in range(len(texts)):
                text = _repeated(encoded, number, len(pixels))
                attention = self.fuse(image, text, weights=True).attention
                assert attention is not None
                words = (text.mask if text.word_ids is None else text.word_ids >= 0).to(attention.dtype)[:, None]
                attended = (words @ attention)[:, 0, 1:] / words.sum(2).clamp_min(1.0)
                maps.append(attended.unflatten(1, image.grid))
            return torch.stack(maps, dim=1)


def hidden_share(config: MethodConfig) -> float:
    """Return the share of the tokens that MLM hides, 0 where it is off."""
    return float(config.options["hidden_share"]) if config.objectives["mlm"]["weight"] else 0.0


def _repeated(texts: TextFeatures, number: int, rows: int) -> TextFeatures:
    """Return one text, without its pads, as often as there are images."""
    length = int(texts.mask[number].sum())
    words = None if texts.word_ids is None else texts.word_ids[number, :length].expand(rows, -1)
    return TextFeatures(
        texts.tokens[number, :length].expand(rows, -1, -1),
        texts.pooled[number].expand(rows, -1),
        texts.mask[number, :length].expand(rows, -1),
        words,
    )

"""ALBEF: align by a momentum teacher, then fuse (Li et al., NeurIPS 2021, arXiv 2107.07651).

Guarantee: teacher and queues are part of the state dict and move only at the end of a training step, so that a resumed
run goes on with the same targets; validation moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods.base import Encode, Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.fusion import FusionSizes, TextFusion
from medvlp.models.language_head import LanguageHead, hide_tokens
from medvlp.models.queue import FeatureQueue
from medvlp.models.teacher import Teacher
from medvlp.objectives.gather import gather_with_gradient
from medvlp.objectives.masked import mlm
from medvlp.objectives.matching import hard_negatives, itm, match_score, same_texts, with_mismatches
from medvlp.objectives.momentum import momentum_itc
from medvlp.types import Batch, Features, TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from medvlp.models.text import TextTower

TAUGHT = ("image_encoder", "text_encoder", "image_projection", "text_projection", "fusion", "language_head")
"""What the teacher has copies of."""


class ALBEF(Method):
    """Image-text contrast with queues and soft targets, matching with hard negatives, masked words with soft targets.

    The share `alpha` of the teacher rises over the first epoch. The temperature is learnt as the logarithm of its
    inverse, between 0.001 and 0.5. The teacher computes without dropout, where the official code leaves it on. With
    `text.folder` the lower `options.text_layers` layers of its BERT are the text tower and the upper ones start the
    fusion, as in the paper.
    """

    training_parts = ("teacher", "image_queue", "text_queue")

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.positive("itc", "temperature"), learnt=True)
        options, width = self.config.options, self._text_tower.dim
        if options["zero_shot"] not in ("itc", "itm"):
            raise UserError(
                f"Zero-shot scores do not come from '{options['zero_shot']}'.",
                "method.options.zero_shot",
                "Use itc, the cosine, or itm, the matching head.",
            )
        self.fusion = TextFusion(FusionSizes.of({**options["fusion"], "dim": width}, "fusion"))
        self._start_fusion()
        image_width = self.image_encoder.dim
        if image_width != self.image_encoder.token_dim:
            raise UserError("ALBEF fuses tokens of the last stage.", "method.image.tap", "Leave image.tap out.")
        self.to_fusion = nn.Identity() if image_width == width else nn.Linear(image_width, width)
        self.match_head = nn.Linear(width, 2)
        self.language_head = LanguageHead(width, context.vocab_size, tied=True)
        self.teacher = Teacher(self._students())
        self.image_queue = FeatureQueue(options["queue"], config.projection.dim)
        self.text_queue = FeatureQueue(options["queue"], config.projection.dim)
        self._arrivals: list[tuple[torch.Tensor, torch.Tensor]] = []

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(hidden_share=config.options["hidden_share"] if config.objectives["mlm"]["weight"] else 0.0)

    @property
    def _text_tower(self) -> TextTower:
        assert self.text_encoder is not None
        return self.text_encoder

    def build_text_tower(self) -> TextTower:
        """Return the text tower; of a folder's BERT only the lower layers."""
        tower = super().build_text_tower()
        layers, kept = tower.model.encoder.layer, self.config.options["text_layers"]
        self._upper_layers: Sequence[Any] = ()
        if self.config.text is not None and self.config.text.folder is not None and kept < len(layers):
            self._upper_layers = tuple(layers[kept:])
            tower.model.encoder.layer = layers[:kept]
            tower.model.config.num_hidden_layers = kept
        return tower

    def _start_fusion(self) -> None:
        """Start self-attention and feed-forward of the fusion from the upper layers of a folder's BERT."""
        upper, self._upper_layers = self._upper_layers, ()
        if upper and len(upper) != len(self.fusion.layers):
            raise UserError(
                f"{len(upper)} upper layers of the text model cannot start {len(self.fusion.layers)} layers of fusion.",
                "method.options.fusion.layers",
                "Let text_layers and fusion.layers together be the layers of the text model.",
            )
        for layer, bert in zip(self.fusion.layers, upper, strict=False):
            _load_bert_layer(layer, bert)

    def _students(self) -> dict[str, nn.Module]:
        modules = {name: getattr(self, name) for name in TAUGHT}
        return {**modules, "to_fusion": self.to_fusion}

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, 1/T, with T between 0.001 and 0.5."""
        itc = self.objective("itc")
        return self.scale_within(-math.log(itc["max_temperature"]), -math.log(itc["min_temperature"]))

    @property
    def alpha(self) -> float:
        """Share of the teacher in targets: rises from 0 over the first epoch."""
        return float(self.config.options["alpha"]) * min(1.0, self.progress.epoch)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `itc`, `itm` and `mlm`."""
        text = self.texts_of(batch)
        image, words = self.encode_stored(batch.pixels), self.encode_text(text)
        teacher_image, teacher_words = self._teach(batch, text)
        terms = self._contrast(image, words, teacher_image, teacher_words)
        states = self._image_states(image)
        if self.is_on("itm"):
            terms["itm"] = self._matching(image, states, words, same_texts(text.ids, text.mask))
        if self.is_on("mlm"):
            terms["mlm"] = self._masked_words(text, states, teacher_image)
        return self.weighted(terms)

    @torch.no_grad()
    def _teach(self, batch: Batch, text: TextBatch) -> tuple[Features, TextFeatures]:
        """Return the teacher's features of the images that it sees, and of the texts."""
        image = self.teacher["image_encoder"](self.normalised(self._teacher_pixels(batch)))
        return image, self.teacher["text_encoder"](text)

    def _teacher_pixels(self, batch: Batch) -> torch.Tensor:
        return batch.pixels

    def _contrast(
        self, image: Features, words: TextFeatures, teacher_image: Features, teacher_words: TextFeatures
    ) -> dict[str, Term]:
        image_vectors, text_vectors = self.project_image(image), self.project_text(words)
        image_keys, text_keys = self._keys(teacher_image, teacher_words)
        queues = self.image_queue.features, self.text_queue.features
        itc = momentum_itc(image_vectors, text_vectors, image_keys, text_keys, *queues, self.logit_scale, self.alpha)
        return {"itc": itc}

    @torch.no_grad()
    def _keys(self, image: Features, words: TextFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the teacher's unit vectors, and keep them for the queues while training."""
        keys = self.teacher["image_projection"](image.pooled), self.teacher["text_projection"](words.pooled)
        if self.training:
            self._arrivals.append(keys)
        return keys

    def _image_states(self, image: Features, part: nn.Module | None = None) -> Float[torch.Tensor, "b p+1 d"]:
        """Return what the fusion attends to: the class token (or mean), then the patches."""
        return (part or self.to_fusion)(torch.cat([image.pooled[:, None], image.tokens], dim=1))

    def _matching(
        self, image: Features, states: torch.Tensor, words: TextFeatures, same: Bool[torch.Tensor, "b b"]
    ) -> Term:
        """Ask about each pair, each image with a wrong text, and each text with a wrong image."""
        with torch.no_grad():
            cosines = self.project_image(image) @ self.project_text(words).T
            wrong_text, has_text = hard_negatives(self.logit_scale * cosines, same)
            wrong_image, has_image = hard_negatives(self.logit_scale * cosines.T, same)
        of_image, of_text, matched = with_mismatches(wrong_image, has_image, wrong_text, has_text)
        return itm(self._match_logits(states[of_image], words.tokens[of_text], words.mask[of_text]), matched)

    def _match_logits(self, states: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        fused, _ = self.fusion(tokens, mask, states)
        return self.match_head(fused[:, 0])

    def _masked_words(self, text: TextBatch, states: torch.Tensor, teacher_image: Features) -> Term:
        if text.hidden is None:
            raise UserError("ALBEF hides words, and the batch says none.", "data", "Use batches made by its demands.")
        hidden = text.hidden
        seen = hide_tokens(text.ids, hidden, self.context.mask_id, self.context.vocab_size)
        seen_text = TextBatch(seen, text.mask, word_ids=text.word_ids)
        logits = self._word_logits({name: getattr(self, name) for name in TAUGHT}, seen_text, hidden, states)
        with torch.no_grad():
            copies: dict[str, nn.Module] = {name: self.teacher[name] for name in TAUGHT}
            teacher_states = self._image_states(teacher_image, self.teacher["to_fusion"])
            targets = self._word_logits(copies, seen_text, hidden, teacher_states)
        return mlm(logits, text.ids[hidden], targets, self.alpha)

    @staticmethod
    def _word_logits(
        modules: dict[str, Any], text: TextBatch, hidden: Bool[torch.Tensor, "b l"], states: torch.Tensor
    ) -> Float[torch.Tensor, "n v"]:
        tower = modules["text_encoder"]
        fused, _ = modules["fusion"](tower(text).tokens, text.mask, states)
        return modules["language_head"](fused[hidden], tower.model.get_input_embeddings().weight)

    def end_step(self) -> None:
        """Move the teacher towards the student, and the step's vectors into the queues."""
        self.teacher.update(self._students(), self.config.options["momentum"])
        for image, text in self._arrivals:
            self.image_queue.enqueue(gather_with_gradient(image))
            self.text_queue.enqueue(gather_with_gradient(text))
        self._arrivals.clear()

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return probabilities from the cosines of the contrast, or from the matching head (`options.zero_shot`)."""
        if self.config.options["zero_shot"] == "itc":
            return super().zero_shot(image, positives, negatives, encode, reduce)
        states, sides = self._image_states(image), []
        images = len(states)
        for prompts in (prompts for pair in zip(positives, negatives, strict=True) for prompts in pair):
            words = encode(prompts)
            scores = [
                match_score(self._match_logits(states, tokens.expand(images, -1, -1), mask.expand(images, -1)))
                for tokens, mask in zip(words.tokens, words.mask, strict=True)
            ]
            stacked = torch.stack(scores, dim=1).float()
            sides.append(stacked.amax(1) if reduce == "max" else stacked.mean(1))
        return torch.stack(sides, dim=1).unflatten(1, (len(positives), 2)).softmax(2)[..., 0]


def _load_bert_layer(layer: Any, bert: Any) -> None:
    """Give a layer of the fusion the self-attention and the feed-forward of a layer of transformers' BERT."""
    own, attention = bert.attention.self, bert.attention.output
    with torch.no_grad():
        for kind in ("weight", "bias"):
            joined = torch.cat([getattr(part, kind) for part in (own.query, own.key, own.value)])
            getattr(layer.self_attention, f"in_proj_{kind}").copy_(joined)
            for target, source in (
                (layer.self_attention.out_proj, attention.dense),
                (layer.self_residual.norm, attention.LayerNorm),
                (layer.ffn.layers[0], bert.intermediate.dense),
                (layer.ffn.layers[2], bert.output.dense),
                (layer.ffn.residual.norm, bert.output.LayerNorm),
            ):
                getattr(target, kind).copy_(getattr(source, kind))

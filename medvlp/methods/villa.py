"""ViLLA: which region shows which attribute, then contrast of regions with their texts (Varma et al., ICCV 2023).

Guarantee: an attribute that a label calls uncertain is neither present nor lacking; regions of images with the same
text are not each other's negatives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ImageTowerConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods.base import Encode, Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.book import Book
from medvlp.models.regions import grid_boxes, region_features, stage_of_regions
from medvlp.models.text import TextTower
from medvlp.objectives.contrastive import multi_positive_nce
from medvlp.objectives.gather import gather_with_gradient
from medvlp.objectives.regions import attribute_nce, image_scores, region_scores, regions_of_attributes
from medvlp.objectives.terms import nothing
from medvlp.objectives.zero_shot import prompt_logits
from medvlp.text.labeler import FINDINGS, label_sentence
from medvlp.text.sections import split_sentences
from medvlp.types import Batch, Features, TextBatch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

IMAGES_AT_ONCE = 64
"""Images whose regions are scored together outside training."""


class ViLLA(Method):
    """arXiv 2308.11194. Attributes are the label columns, regions a grid.

    `mapping` (stage 1) trains a head for each attribute to find, among an image's regions, the one that shows it.
    `region` (stage 2) contrasts each region with the sentences of the report that state the attributes found in it
    (where none does, with the attribute's prompt), and each image with its report.

    The paper trains the stages one after the other, the second on the mapping of the first. Here one run does both:
    `region` comes in after `options.mapping_share` of the steps, and the heads go on following the image tower, which
    then moves. `image.freeze=true` with `objectives.region.weight=0` is the first stage alone. What the authors did on
    radiographs is not public: grid, sentences and prompts are ours. `options.legacy_mask` keeps the official
    denominator of stage 1, in which each image that has the attribute adds 1.
    """

    boxes: torch.Tensor

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if not context.label_names:
            raise UserError("ViLLA's attributes are labels, and the data has none.", "data", "Use a store with labels.")
        side = config.image_of(ImageTowerConfig, "ViLLA").input.size
        stage_of_regions(self.image_encoder)
        options, text = self.config.options, self.config.text
        assert text is not None
        self.temperature = self.positive("mapping", "temperature")
        self.set_scale(self.positive("region", "temperature"), learnt=False)
        self.names = tuple(name.replace("_", " ").lower() for name in context.label_names)
        heads = 1 if options["shared_head"] else len(self.names)
        self.heads = nn.ModuleList(self._head() for _ in range(heads))
        self.prompts = [[prompt.format(name) for prompt in options["prompts"]] for name in self.names]
        tokens = context.tokenise([prompt for own in self.prompts for prompt in own], text.max_tokens)
        self.book = Book(tokens, self._text_tower)
        grid = options["grid"]
        boxes = grid_boxes(side, grid["rows"], grid["columns"], grid["overlap"])
        self.register_buffer("boxes", boxes, persistent=False)

    @property
    def _text_tower(self) -> TextTower:
        assert self.text_encoder is not None
        return self.text_encoder

    def _head(self) -> nn.Module:
        hidden = self.config.options["head"]
        return nn.Sequential(
            nn.Linear(self.image_encoder.dim, hidden), nn.ReLU(), nn.Linear(hidden, self.config.projection.dim)
        )

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        config.image_of(ImageTowerConfig, "VILLA")
        return Demands(labels=True)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `mapping` and `region`."""
        text = self.texts_of(batch)
        if batch.labels is None:
            raise UserError("ViLLA needs labels of the images.", "data", "Use a store with labels.")
        image = self.encode_stored(batch.pixels)
        regions = self._regions(image)
        owner = torch.arange(len(batch.pixels), device=regions.device).repeat_interleave(len(self.boxes))
        present, lacking = self._attributes_of(batch.labels)
        moved = regions if self.config.options["mapping_trains_image"] else regions.detach()
        scores = self._scores(moved)
        best = image_scores(scores, owner, len(present))
        legacy = self.config.options["legacy_mask"]
        terms = {"mapping": attribute_nce(best, present, lacking, self.temperature, legacy)}
        if self.is_on("region"):
            shown = regions_of_attributes(scores.detach(), owner, present, self.config.options["margin"])
            terms["region"] = self._contrast(image, regions, text, shown, owner)
        return self.weighted(terms)

    def _regions(self, image: Features) -> Float[torch.Tensor, "b*r d"]:
        return region_features(self.image_encoder, image, self.boxes, self.config.options["region_size"])

    def _attributes_of(self, labels: Float[torch.Tensor, "b k"]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which attributes each image has and lacks; what is not mentioned by `options.not_mentioned`."""
        lacking = labels == 0
        if self.config.options["not_mentioned"] == "lacking":
            lacking = lacking | labels.isnan()
        return labels == 1, lacking

    def _scores(self, regions: Float[torch.Tensor, "r d"]) -> Float[torch.Tensor, "r k"]:
        """Return the cosine of each region, through the head of each attribute, with the attribute."""
        with torch.no_grad():
            vectors = functional.normalize(self.text_projection(self.book(self._text_tower)), dim=-1)
            attributes = functional.normalize(vectors.unflatten(0, (len(self.names), -1)).mean(1), dim=-1)
        return region_scores(torch.stack([head(regions) for head in self.heads], dim=1), attributes)

    def _contrast(
        self,
        image: Features,
        regions: Float[torch.Tensor, "r d"],
        text: TextBatch,
        shown: Bool[torch.Tensor, "r k"],
        owner: Int[torch.Tensor, " r"],
    ) -> Term:
        whole, reports = self.project_image(image), self.project_text(self.encode_text(text))
        if self.progress.step < self.config.options["mapping_share"] * self.progress.steps:
            return nothing(whole, reports, self.image_projection(regions))
        chosen = shown.any(1).nonzero()[:, 0]
        told = self._texts_of_regions(text.texts, shown[chosen].tolist(), owner[chosen].tolist())
        vectors = torch.cat([whole, self.image_projection(regions[chosen])])
        texts = torch.cat([reports, self._text_vectors(told, reports)])
        keys = torch.tensor([_number(one) for one in [*self._reports(text), *told]], device=vectors.device)
        everyone, all_texts, all_vectors = (gather_with_gradient(tensor) for tensor in (keys, texts, vectors))
        same = keys[:, None] == everyone
        by_image, count = multi_positive_nce(vectors, all_texts, same, self.logit_scale)
        by_text, others = multi_positive_nce(texts, all_vectors, same, self.logit_scale)
        return 0.5 * (by_image + by_text), count + others

    def _reports(self, text: TextBatch) -> list[str]:
        """Return a name for each report: its text, or where the batch brings none its tokens."""
        if text.texts:
            return list(text.texts)
        return [str(ids[mask].tolist()) for ids, mask in zip(text.ids, text.mask, strict=True)]

    def _texts_of_regions(self, reports: Sequence[str], shown: list[list[bool]], owner: list[int]) -> list[str]:
        """Return the text of each region: the sentences that state its attributes, each once."""
        told = []
        for attributes, image in zip(shown, owner, strict=True):
            stated = _statements(reports[image], tuple(self.context.label_names)) if reports else {}
            sentences: dict[str, None] = {}
            for number, is_shown in enumerate(attributes):
                if is_shown:
                    sentences |= dict.fromkeys(stated.get(number) or self.prompts[number][:1])
            told.append(" ".join(sentences))
        return told

    def _text_vectors(self, texts: list[str], like: Float[torch.Tensor, "b d"]) -> Float[torch.Tensor, "n d"]:
        """Return unit vectors of texts; equal ones are encoded once."""
        if not texts:
            return like[:0]
        assert self.config.text is not None
        places = {one: number for number, one in enumerate(dict.fromkeys(texts))}
        tokens = self.context.tokenise(list(places), self.config.text.max_tokens).to(like.device)
        rows = torch.tensor([places[one] for one in texts], device=like.device)
        return self.project_text(self.encode_text(tokens))[rows]

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return probabilities as the base class does, of what answers best: the whole image or one of its regions."""
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        vectors = self.project_text(encode([prompt for prompts in groups for prompt in prompts])).float()
        owner = torch.tensor([n for n, prompts in enumerate(groups) for _ in prompts], device=vectors.device)
        parts = []
        for tokens, pooled in zip(image.tokens.split(IMAGES_AT_ONCE), image.pooled.split(IMAGES_AT_ONCE), strict=True):
            regions = self._regions(Features(tokens, pooled, image.grid)).unflatten(0, (len(pooled), -1))
            candidates = self.image_projection(torch.cat([pooled[:, None], regions], dim=1)).float()
            logits = prompt_logits(candidates.flatten(0, 1), vectors, owner, self.logit_scale.float(), reduce)
            parts.append(logits.unflatten(0, candidates.shape[:2]).amax(1))
        return torch.cat(parts).unflatten(1, (len(positives), 2)).softmax(2)[..., 0]


@lru_cache(maxsize=65536)
def _statements(report: str, labels: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
    """Return the sentences of a report that state each label, by the label's number.

    One of the CheXpert findings is stated where the labeler says so, any other label where its name stands.
    """
    found: dict[int, tuple[str, ...]] = {}
    for sentence in split_sentences(report):
        read = label_sentence(sentence)
        for number, label in enumerate(labels):
            named = label.replace("_", " ").lower() in sentence.lower()
            if read[label] == 1 if label in FINDINGS else named:
                found[number] = (*found.get(number, ()), sentence)
    return found


def _number(text: str) -> int:
    """Return a number that is the same for equal texts, in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)

"""VELVET-Med: volumes and reports aligned as report, sentences and words, with pretext tasks of each side alone.

Guarantee: negatives are those of all ranks, pads enter neither losses nor pooling, and a text that is the same as an
image's own is no mismatch; what the official code does otherwise is a switch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ProjectionConfig, VolumeTowerConfig
from medvlp.data.demands import Demands, VolumeView
from medvlp.errors import UserError
from medvlp.methods.base import Encode, Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.fusion import FusionSizes, TextFusion
from medvlp.models.inpainting import VolumeDecoder, cut_out
from medvlp.models.language_head import LanguageHead, hide_tokens
from medvlp.models.projection import Projection
from medvlp.models.sentences import Levels, SentenceText, levels_of
from medvlp.models.tribert import SentenceTower
from medvlp.models.words import to_words
from medvlp.objectives.contrastive import info_nce, shared_text_nce, text_numbers
from medvlp.objectives.masked import mlm
from medvlp.objectives.matching import hard_negatives, itm, same_texts, with_mismatches
from medvlp.objectives.scale import cosine_factor
from medvlp.objectives.terms import mean_of
from medvlp.objectives.token_max import mean_cosines
from medvlp.objectives.volume_views import inpainting_l1, nt_xent, turn_ce, turned
from medvlp.objectives.word_region import unit_word_region_nce
from medvlp.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.models.feature_maps import Maps

LOCAL_LEVELS = {"sentence": -2, "word": -3}
"""Stages of the tower, from the deepest, whose places are compared with sentences and with words."""
PRETEXT = ("contrast", "rotation", "inpainting")
AXES = {"d": -3, "h": -2, "w": -1}


@dataclass(frozen=True)
class _Read:
    """A batch of texts as they were read: laid out, their states, and the vectors of their levels."""

    text: SentenceText
    states: Float[torch.Tensor, "b l d"]
    levels: Levels


class VelvetMed(Method):
    """Contrast of `report`, `sentence` and `word`, fusion (`mlm`, `matching`), pretext tasks of crops and of texts.

    The volume as a whole gives the three contrasts: the mean of the deepest stage with [CLS], the stages before it with
    sentences and words. Six layers of TriBERT attend to the deepest stage for masked words and for matching, whose
    mismatches are drawn by their similarity. Two readings of a local crop, each turned by quarter turns and with boxes
    of noise, give `contrast`, `rotation` and `inpainting`. `text_mlm` reads masked words without the volume.

    The temperature is a raw number, held above `min_temperature`, which the official code lets pass 0. Its other faults
    are switches: `legacy_mask` (the last sentence of a report that fills all tokens), `reduce: sum` of the local terms
    (long texts win; it is the published setting). Departures: a view of the whole is the resampled volume, not 96 of
    its slices; the plane of the quarter turns is coronal, (d, w), by the names of the official axes.
    """

    heat_map_kind = "patch-text similarity"
    uses_sentences = True
    training_parts = (
        *("fusion", "to_fusion", "match_head", "language_head", "text_language_head"),
        *("contrast_head", "rotation_head", "inpainting_decoder"),
    )

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        config.image_of(VolumeTowerConfig, "VELVET-Med")
        super().__init__(config, context)
        self.temperature = nn.Parameter(torch.tensor([self.positive("report", "temperature")]))
        for term in LOCAL_LEVELS:
            for constant in ("scale", "sharpness", "match_scale"):
                self.positive(term, constant)
            if self.objective(term)["reduce"] not in ("sum", "mean"):
                where = f"method.objectives.{term}.reduce"
                raise UserError(f"{where} is '{self.objective(term)['reduce']}'.", where, "Use sum or mean.")
        self._plane = self._rotation_plane()
        self._check_numbers()
        self._build_fusion()
        self._build_pretext()

    def _check_numbers(self) -> None:
        volumes, sentences = self.config.options["pretext_volumes"], self.config.options["report_sentences"]
        for name, number, least in (("pretext_volumes", volumes, 2), ("report_sentences", sentences, 0)):
            if number is not None and number < least:
                where = f"method.options.{name}"
                raise UserError(f"{where} is {number}.", where, f"Give a whole number from {least}.")

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        on = {name for name, constants in config.objectives.items() if constants["weight"]}
        depth, height, width = config.options["local_size"]
        views = (VolumeView("local", (depth, height, width)),) if on & set(PRETEXT) else ()
        hides = on & {"mlm", "text_mlm"}
        share = float(config.options["hidden_share"]) if hides else 0.0
        candidates = int(config.options["report_sentences"])
        return Demands(sentences=True, hidden_share=share, volume_views=views, candidates=candidates)

    def build_text_tower(self) -> SentenceTower:
        """Return the lower part of TriBERT."""
        assert self.config.text is not None
        options, context = self.config.options, self.context
        return SentenceTower(
            self.config.text,
            context.vocab_size,
            context.pad_id,
            options["sentences"],
            options["sentence_tokens"],
            options["legacy_mask"],
        )

    def build_projections(self) -> None:
        """Make linear maps to the shared space for report, sentences and words, of either side."""
        super().build_projections()
        dims, text = self._stage_dims(), self._text_tower.dim
        linear = ProjectionConfig(dim=self.config.projection.dim)
        self.place_projections = nn.ModuleDict(
            {term: Projection(dims[level], linear) for term, level in LOCAL_LEVELS.items()}
        )
        self.part_projections = nn.ModuleDict({term: Projection(text, linear) for term in LOCAL_LEVELS})

    @property
    def _text_tower(self) -> SentenceTower:
        assert isinstance(self.text_encoder, SentenceTower)
        return self.text_encoder

    def _stage_dims(self) -> list[int]:
        """Return the widths of the stages of the tower.

        Raises:
            UserError: They do not get smaller.
        """
        image = self.config.image_of(VolumeTowerConfig, "VELVET-Med")
        if image.family != "swin":
            raise UserError(
                f"VELVET-Med compares three stages of a tower with three levels of a report; the family {image.family} "
                "is not known to have them.",
                "method.image.family",
                "Use the family swin.",
            )
        return [self.image_encoder.dim // 2**level for level in (4, 3, 2, 1, 0)]

    def _rotation_plane(self) -> tuple[int, int]:
        axes, size = self.config.options["rotation_plane"], self.config.options["local_size"]
        if len(set(axes)) != 2 or not set(axes) <= set(AXES) or len({size[AXES[axis]] for axis in axes}) != 1:
            raise UserError(
                f"Crops of {tuple(size)} cannot be turned by quarters in the plane {axes}.",
                "method.options.rotation_plane",
                "Name two of d, h, w along which method.options.local_size is the same.",
            )
        return AXES[axes[0]], AXES[axes[1]]

    def _build_fusion(self) -> None:
        width = self._text_tower.dim
        vocabulary = self.context.vocab_size
        self.fusion = TextFusion(FusionSizes.of({**self.config.options["fusion"], "dim": width}, "fusion"))
        self.to_fusion = nn.Linear(self.image_encoder.dim, width)
        self.match_head = nn.Linear(width, 2)
        self.language_head = LanguageHead(width, vocabulary, tied=True)
        self.text_language_head = LanguageHead(width, vocabulary, tied=True)

    def _build_pretext(self) -> None:
        dim, size = self.image_encoder.dim, tuple(self.config.options["local_size"])
        self.contrast_head = nn.Linear(dim, int(self.positive("contrast", "dim")))
        self.rotation_head = nn.Linear(dim, 4)
        blank = torch.zeros(1, 1, *size)
        grid = self.image_encoder.grid_of(blank)
        self.inpainting_decoder = VolumeDecoder(dim, grid, size, self.config.image.input.channels)

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, 1/T."""
        low = None if self.config.options["legacy_temperature"] else self.objective("report")["min_temperature"]
        if low is not None and self.training:
            with torch.no_grad():
                self.temperature.clamp_(min=low)
        return cosine_factor(self.temperature, "divide", low)

    # Losses.

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return the terms that have a weight."""
        given = self.texts_of(batch)
        tower = self._text_tower
        laid = tower.lay_out(batch.text_augmented or given)
        maps = self.image_encoder.feature_maps(self.normalised(batch.pixels))
        states = tower.states(laid)
        read = _Read(laid, states, levels_of(states, laid))
        places = maps[-1].flatten(2).transpose(1, 2)
        image, singles = self.image_projection(places.mean(1)), batch.candidates
        texts = [read.levels.report, *([] if singles is None else [self.encode_text(singles).pooled])]
        # At once, so that a projection that normalises over the batch has one mean for both kinds of texts.
        text, *of_singles = self.text_projection(torch.cat(texts)).split([len(each) for each in texts])
        terms = self._contrasts(maps, image, text, read.levels)
        if singles is not None:
            same = text_numbers(singles.texts, image.device)
            told = shared_text_nce(image, of_singles[0], same, self.logit_scale)
            terms["report"] = mean_of([terms["report"], told])
        seen = self.to_fusion(places)
        if self.is_on("matching"):
            terms["matching"] = self._matching(seen, image, text, read, same_texts(given.ids, given.mask))
        if self.is_on("mlm") or self.is_on("text_mlm"):
            terms |= self._masked_words(tower.lay_out(given), seen)
        if any(self.is_on(term) for term in PRETEXT):
            terms |= self._pretext(batch)
        return self.weighted({name: term for name, term in terms.items() if self.is_on(name)})

    def _contrasts(self, maps: Maps, image: torch.Tensor, text: torch.Tensor, levels: Levels) -> dict[str, Term]:
        smoothing = self.objective("report")["label_smoothing"]
        terms = {"report": info_nce(image, text, self.logit_scale, label_smoothing=smoothing)}
        for name, parts in (("sentence", levels.sentences), ("word", levels.words)):
            if self.is_on(name):
                constants = {key: self.objective(name)[key] for key in ("scale", "sharpness", "match_scale", "reduce")}
                own = self.part_projections[name](parts.tokens)
                terms[name] = unit_word_region_nce(self._places(maps, name), own, parts.mask, **constants)
        return terms

    def _places(self, maps: Maps, level: str) -> Float[torch.Tensor, "b p d"]:
        """Return unit vectors of the places of a stage."""
        return self.place_projections[level](maps[LOCAL_LEVELS[level]].flatten(2).transpose(1, 2))

    def _matching(
        self, seen: torch.Tensor, image: torch.Tensor, text: torch.Tensor, read: _Read, same: torch.Tensor
    ) -> Term:
        """Ask about each pair, each text with a wrong volume, and each volume with a wrong text."""
        with torch.no_grad():
            similarity = self.logit_scale * (text @ image.T)
            wrong_image, has_image = hard_negatives(similarity, same, least=0.0)
            wrong_text, has_text = hard_negatives(similarity.T, same, least=0.0)
        of_image, of_text, matched = with_mismatches(wrong_image, has_image, wrong_text, has_text)
        sees = self._text_tower.sees(read.text)
        fused, _ = self.fusion(read.states[of_text], sees[of_text], seen[of_image])
        return itm(self.match_head(fused[:, 0]), matched)

    def _masked_words(self, laid: SentenceText, seen: torch.Tensor) -> dict[str, Term]:
        """Return `mlm`, beside the volume, and `text_mlm`, without it."""
        tower, hidden = self._text_tower, laid.hidden
        ids = hide_tokens(laid.ids, hidden, self.context.mask_id, self.context.vocab_size)
        states, embedding = tower.states(replace(laid, ids=ids)), tower.model.get_input_embeddings().weight
        targets = laid.ids[hidden]
        terms: dict[str, Term] = {}
        if self.is_on("mlm"):
            fused, _ = self.fusion(states, tower.sees(laid), seen)
            terms["mlm"] = mlm(self.language_head(fused[hidden], embedding), targets)
        if self.is_on("text_mlm"):
            terms["text_mlm"] = mlm(self.text_language_head(states[hidden], embedding), targets)
        return terms

    def _pretext(self, batch: Batch) -> dict[str, Term]:
        """Return `contrast`, `rotation` and `inpainting` of two readings of a local crop."""
        if not batch.views:
            raise UserError("VELVET-Med needs a local crop of each volume.", "data", "Use batches made by its demands.")
        read, options = batch.views[0][: self.config.options["pretext_volumes"]], self.config.options["cutout"]
        crops = self.normalised(read.flatten(0, 1))
        turns = torch.randint(4, (2 * len(crops),), device=crops.device)
        whole = turned(torch.cat([crops, crops]), turns, self._plane)
        smallest, largest = options["sides"]
        deepest = self.image_encoder.feature_maps(cut_out(whole, options["share"], (smallest, largest)))[-1]
        pooled = deepest.flatten(2).mean(2)
        scale = 1 / torch.tensor(self.positive("contrast", "temperature"), device=crops.device)
        first, second = self.contrast_head(pooled).chunk(2)
        return {
            "contrast": nt_xent(first, second, scale),
            "rotation": turn_ce(self.rotation_head(pooled), turns),
            "inpainting": inpainting_l1(self.inpainting_decoder(deepest), whole),
        }

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c d h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t *g"]:
        """Return the mean cosine of each place of the word stage with the words of each text."""
        maps, words = self.image_encoder.feature_maps(pixels), to_words(encode(texts))
        own = self.part_projections["word"](words.tokens)
        found = mean_cosines(self._places(maps, "word"), own, words.mask)
        return found.unflatten(2, maps[LOCAL_LEVELS["word"]].shape[2:])

"""Batches of images or volumes with all that a method demands: texts, labels, triplets, concepts, groups, views.

Guarantee: as for every `Loader`, a batch is a function of seed, epoch and step alone. A mirrored image has mirrored
texts, triplets and labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.data.candidates import Candidates
from medvlp.data.counter import GROUP, TEXT_CHOICE, VIEW, generator, uniforms
from medvlp.data.demands import Demands
from medvlp.data.groups import SemanticGroups
from medvlp.data.loader import ImageLoader, Loader
from medvlp.data.texts import SentenceChoice
from medvlp.data.token_table import TokenTable
from medvlp.data.volume_loader import VolumeLoader
from medvlp.knowledge.books import anatomy_names
from medvlp.text.sides import mirrored_order
from medvlp.types import Batch

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int, Int8, Shaped

    from medvlp.config.data import TextAugmentConfig


@dataclass(frozen=True)
class Sources:
    """What batches are made from, by row of the images table.

    Args:
        demands: What the method asks for.
        labels: Labels of every image, `[n k]`, or None.
        label_names: Their columns.
        table: The tokenised texts, or None for a method without text. Where images may be mirrored, the second half are
            the texts of the first with sides swapped.
        first_text: Paired: row in `table` of the first text of every image, -1 without text.
        text_count: Paired: number of texts of every image, which follow each other; an epoch takes one of them.
        triplets: Ternary matrix of every image, `[n 51 75]`, or None.
        groups: Semantic groups of all images, or None.
        study_rows: Rows of the study's images of every image, the image itself first, `[n v]`, or None.
        candidates: Sentences of every image, or None.
    """

    demands: Demands
    labels: Float[np.ndarray, "n k"] | None
    label_names: tuple[str, ...]
    table: TokenTable | None
    first_text: Int[np.ndarray, " n"] | None = None
    text_count: Int[np.ndarray, " n"] | None = None
    triplets: Int8[np.ndarray, "n 51 75"] | None = None
    groups: SemanticGroups | None = None
    study_rows: Int[np.ndarray, "n v"] | None = None
    candidates: Candidates | None = None

    def text_rows(self, seed: int, epoch: int, rows: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return the text of each image in an epoch."""
        assert self.first_text is not None
        assert self.text_count is not None
        drawn = uniforms(TEXT_CHOICE, seed, epoch, rows, 1)[:, 0]
        return self.first_text[rows] + np.floor(drawn * self.text_count[rows]).astype(np.int64)


class PretrainLoader(Loader):
    """The part of a loader for pre-training that knows no pixels; another base class `made` these.

    Args:
        *arguments: As for the other base class; with groups, the rows are the places of an epoch, counted from 0.
        sources: Texts, labels and the like.
        choice: Unpaired: draws the sentences.
        groups: Semantic groups of the loader's own images.
        **options: As for the other base class.
    """

    def __init__(
        self,
        *arguments: Any,
        sources: Sources,
        choice: SentenceChoice | None = None,
        groups: SemanticGroups | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.sources, self.choice, self.groups = sources, choice, groups
        self.text_changes: TextAugmentConfig | None = options["augment"]

    def load(self, epoch: int, step: int, rows: Int[np.ndarray, " b"]) -> Batch:
        """Make one batch; called from worker threads."""
        import torch

        sources = self.sources
        concepts: Int[np.ndarray, " b"] | None = None
        if self.groups is not None:
            rows, concepts = self.groups.places[rows].T
        batch, mirrored = self.made(epoch, rows)
        batch.paired = self.choice is None
        if sources.labels is not None:
            batch.labels = torch.from_numpy(_mirrored(sources.labels[rows], mirrored, self._label_order, np.nan))
        if sources.triplets is not None:
            batch.triplets = torch.from_numpy(_mirrored(sources.triplets[rows], mirrored, _place_order(), -1))
        if sources.table is not None:
            keys, chosen = self._texts(epoch, step, rows)
            if self.choice is None:
                chosen = chosen + mirrored * (len(sources.table.texts) // 2)
            self._add_text(batch, sources.table, epoch, keys, chosen)
        if sources.candidates is not None:
            batch.candidates = sources.candidates.draw(self.seed, epoch, rows, mirrored)
        if concepts is not None:
            self._add_groups(batch, epoch, step, rows, concepts)
        return batch

    @cached_property
    def _label_order(self) -> list[int | None]:
        return mirrored_order(self.sources.label_names)

    def _order(self, epoch: int) -> np.ndarray:
        if self.groups is None:
            return super()._order(epoch)
        epoch = epoch if self.training else 0
        return self.groups.order(self.seed, epoch, self.sources.demands.group_size)[: len(self.rows)]

    def _texts(
        self, epoch: int, step: int, rows: Int[np.ndarray, " b"]
    ) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
        """Return the key of the random changes of each text, and its row in the table."""
        if self.choice is None:
            return rows, self.sources.text_rows(self.seed, epoch, rows)
        first = step * self.batch_size + self.rank * (self.batch_size // self.world_size)
        keys = np.arange(first, first + len(rows))
        return keys, self.choice.draw(epoch, keys)

    def _add_text(
        self, batch: Batch, table: TokenTable, epoch: int, keys: Int[np.ndarray, " b"], chosen: Int[np.ndarray, " b"]
    ) -> None:
        demands = self.sources.demands
        sampled = demands.sample_sentences
        batch.text = table.sampled(chosen, self.seed, epoch, keys) if sampled else table.batch(chosen)
        changes = self.text_changes
        if changes is not None and changes.changes_text:
            batch.text_augmented = table.augmented(chosen, changes, self.seed, epoch, keys)
        if demands.hidden_share:
            table.hide(batch.text, demands.hidden_share, demands.hide_concepts, self.seed, epoch, keys)

    def _add_groups(
        self, batch: Batch, epoch: int, step: int, rows: Int[np.ndarray, " b"], concepts: Int[np.ndarray, " b"]
    ) -> None:
        """Set groups and relations, and give some of the images a caption of their group's concept."""
        import torch

        groups, size = self.groups, self.sources.demands.group_size
        assert groups is not None
        everyones, first = np.stack([rows, concepts], axis=1), 0
        if self.world_size > 1:
            order = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
            everyones, first = groups.places[order], self.rank * len(rows) // size
        related = groups.relations(everyones, size)[first : first + len(rows) // size]
        batch.groups, batch.related = torch.from_numpy(np.arange(len(rows)) // size), torch.from_numpy(related)
        if batch.text is None or self.sources.table is None:
            return
        texts = list(batch.text.texts)
        for i, (row, concept) in enumerate(zip(rows, concepts, strict=True)):
            rng = generator(GROUP, self.seed, epoch, int(row), int(concept))
            if rng.random() < self.sources.demands.caption_share:
                texts[i] = groups.caption(int(concept), rng)
        batch.text = self.sources.table.of_texts(texts)


class ImagePretrainLoader(PretrainLoader, ImageLoader):
    """Batches of images for pre-training; arguments as for `ImageLoader` and `PretrainLoader`."""

    def made(self, epoch: int, rows: Int[np.ndarray, " b"]) -> tuple[Batch, Bool[np.ndarray, " b"]]:
        """Return a batch of these images with their further views, and which of them are mirrored."""
        demands, stored = self.sources.demands, self.stored(rows)
        pixels, mirrored = self.reading(stored, epoch, rows, self.input_size * demands.image_scale)
        batch = self.batch(rows, pixels)
        batch.views = tuple(
            self.reading(stored, epoch, rows, view.size, view.crop_scale, VIEW + number)[0]
            for number, view in enumerate(demands.views)
        )
        if self.sources.study_rows is not None:
            batch.study = self._study(pixels, epoch, self.sources.study_rows[rows])
        return batch, mirrored

    def _study(self, own: torch.Tensor, epoch: int, rows: Int[np.ndarray, "b v"]) -> torch.Tensor:
        import torch

        others = [self.reading(self.stored(column), epoch, column, self.input_size)[0] for column in rows[:, 1:].T]
        return torch.stack([own, *others], dim=1)


class VolumePretrainLoader(PretrainLoader, VolumeLoader):
    """Batches of volumes for pre-training; arguments as for `VolumeLoader` and `PretrainLoader`."""


@cache
def _place_order() -> list[int | None]:
    return mirrored_order(anatomy_names())


def _mirrored(
    values: Shaped[np.ndarray, "b k *rest"], mirrored: Bool[np.ndarray, " b"], order: list[int | None], unknown: float
) -> Shaped[np.ndarray, "b k *rest"]:
    """Return values with the columns of mirrored rows in `order`; one without counterpart becomes unknown."""
    if not mirrored.any():
        return values
    swapped = values[:, [0 if column is None else column for column in order]]
    swapped[:, [column is None for column in order]] = unknown
    return np.where(mirrored.reshape(-1, *[1] * (values.ndim - 1)), swapped, values)

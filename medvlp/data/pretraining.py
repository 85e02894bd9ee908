"""What a method is pre-trained on: images or volumes of a store with their reports, or with others' sentences.

Guarantee: everything that would make training impossible (an empty split, no reports, no common finding) is a
`UserError` here, before anything starts; images and sentences left out are counted in `facts`. A label is never filled
in: a finding that the data set does not name stays NaN.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.cluster import cpu_count
from medvlp.config.base import json_sha256
from medvlp.config.towers import ClipTowerConfig, VolumeTowerConfig
from medvlp.data.candidates import Candidates
from medvlp.data.checks import check_batch, refuse_unused
from medvlp.data.clip_loader import ClipPretrainLoader
from medvlp.data.clips import captions_of, check_clips
from medvlp.data.concepts import find_concepts
from medvlp.data.corpus import PairedTexts, get_tokenizer, paired_texts, report_corpus, reports_of
from medvlp.data.demands import Demands
from medvlp.data.labels import image_labels
from medvlp.data.pretrain_loader import ImagePretrainLoader, PretrainLoader, Sources, VolumePretrainLoader
from medvlp.data.studies import groups_of, rows_of_studies, split_of_images, triplet_matrices
from medvlp.data.texts import SentenceChoice, Sentences, collect_sentences
from medvlp.data.token_table import TokenTable
from medvlp.data.volume_loader import check_volumes
from medvlp.errors import UserError
from medvlp.knowledge.bank import KnowledgeBank
from medvlp.knowledge.books import anatomy_book, finding_book
from medvlp.knowledge.prompts import templates
from medvlp.store.manifest import UNITS
from medvlp.text.sides import swap_sides

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Int

    from medvlp.config.train import PretrainConfig
    from medvlp.knowledge.table import ConceptTable
    from medvlp.store.array_store import Store

logger = logging.getLogger(__name__)

MOST_THREADS = 16
"""Of a loader, where the configuration names no number."""


@dataclass(frozen=True)
class PretrainData:
    """All that training needs of the data.

    Args:
        store: The prepared store.
        train: Rows of the training images in the images table.
        val: Rows of the validation images; empty where the store has no such split, it is too small for one batch, or
            it is what is trained on.
        sources: What batches are made from.
        sentences: Unpaired: the sentences.
        concepts: Concepts that texts name, or None.
        facts: Counts of what is used and what is left out.
        hash: SHA-256 of the store's hash and of all that batches are made from: what was trained on.
    """

    store: Store
    train: Int[np.ndarray, " n"]
    val: Int[np.ndarray, " m"]
    sources: Sources
    sentences: Sentences | None
    concepts: ConceptTable | None
    facts: dict[str, int]
    hash: str

    @property
    def table(self) -> TokenTable | None:
        """The tokenised texts, or None."""
        return self.sources.table

    @property
    def label_names(self) -> tuple[str, ...]:
        """Columns of the labels."""
        return self.sources.label_names

    def loader(self, config: PretrainConfig, *, validation: bool = False, **options: Any) -> PretrainLoader:
        """Return the loader of the training or validation images.

        Args:
            config: The run's configuration.
            validation: Validation images, in order, without augmentation.
            **options: `rank`, `world_size`, `pin_memory`.
        """
        volumes = rows = self.val if validation else self.train
        groups, demands, image = self.sources.groups, self.sources.demands, config.method.image
        unit = options.get("world_size", 1)
        if groups is not None:
            size = demands.group_size
            groups = groups.within(rows)
            rows, unit = np.arange(groups.size(size)), unit * size
        batch_size = config.train.batch_size // config.train.accumulate
        if validation:  # whole batches only: the value of a contrast depends on the size of its batch
            batch_size = min(batch_size, len(rows) // unit * unit)
            rows = rows[: len(rows) // batch_size * batch_size]
        choice = None
        if self.sentences is not None:
            assert self.sources.labels is not None
            of_images = self.sources.labels[self.train]
            choice = SentenceChoice(self.sentences, of_images, config.data.sentences, config.run.seed + validation)
        options |= {
            "sources": self.sources,
            "choice": choice,
            "groups": groups,
            "batch_size": batch_size,
            "seed": config.run.seed,
            "augment": None if validation else config.data.augment,
            "num_workers": _threads() if config.data.num_workers is None else config.data.num_workers,
            "prefetch": config.data.prefetch,
        }
        if isinstance(image, VolumeTowerConfig):
            return VolumePretrainLoader(
                self.store,
                rows,
                config=image.input,
                size=demands.region,
                views=demands.volume_views,
                organs=demands.organs,
                volumes=volumes,
                **options,
            )
        if isinstance(image, ClipTowerConfig):
            return ClipPretrainLoader(self.store, rows, config=image.input, **options)
        return ImagePretrainLoader(self.store, rows, input_size=image.input.size, **options)


def _threads() -> int:
    """Return how many threads load in this process; torchrun says how many processes share the machine."""
    return max(1, min(MOST_THREADS, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def load_data(
    config: PretrainConfig,
    *,
    demands: Demands,
    tokenizer_folder: Path,
    keep_tokenizer: bool = False,
    world_size: int = 1,
) -> PretrainData:
    """Open the store, gather what batches are made from, and train or load the tokenizer.

    Args:
        config: The run's configuration.
        demands: What the method asks for.
        tokenizer_folder: Where the run keeps its tokenizer.
        keep_tokenizer: Use the one that is there: the run goes on, or another rank has just made it.
        world_size: Ranks that share a batch.

    Raises:
        UserError: The data cannot train this method.
    """
    from medvlp.store.array_store import Store

    data = config.data
    refuse_unused(config, demands)
    store = Store.open(data.store)
    train, val = _images(config, store)
    facts: dict[str, int] = {}
    unpaired = demands.reports and not demands.paired
    label_names, labels = image_labels(store, data.labels, to_findings=unpaired)
    if demands.labels and (labels is None or not (labels[train] == 1).any()):
        raise UserError("The method needs labels, the store has none.", data.store, "Use a store with labels.")
    if unpaired and data.augment.keep_sentences != (1.0, 1.0):
        raise UserError(
            "The method reads texts by their findings, and a part of a text has not all of them.",
            "data.augment.keep_sentences",
            "Leave it out.",
        )
    bank = None if data.knowledge is None else KnowledgeBank.open(data.knowledge)
    paired, sentences, told = None, None, None
    if demands.reports and demands.paired:
        of_clips = config.method.image.kind == "video" and not reports_of(store)
        captions = captions_of(store) if of_clips else {}
        facts |= {"captions_by_template": len(captions)} if captions else {}
        paired = paired_texts(store, data.sections, demands.text_unit, captions)
        has_text = paired.first >= 0
        if demands.candidates:
            told = paired_texts(store, data.sections, "sentence", captions)
            has_text &= told.first >= 0
        facts["images_without_text"] = int((~has_text[train]).sum())
        train, val = train[has_text[train]], val[has_text[val]]
        if not len(train):
            raise UserError(
                f"No training image has a report with a section of {', '.join(data.sections)}.",
                data.store,
                "Use a store with reports, or an unpaired method such as medclip with data.reports.",
            )
    elif unpaired:
        corpus = report_corpus(config, store, split_of_images(store) == data.split, facts)
        sentences = collect_sentences(corpus, data.sections)
        facts |= {
            "sentences": int(sentences.counts.sum()),
            "distinct_sentences": len(sentences.texts),
            "distinct_sentences_without_finding": sentences.dropped,
        }
        if not sentences.texts:
            raise UserError("The reports have no sentence with a finding.", data.reports or data.store, "Check them.")
    triplets = triplet_matrices(store, bank) if demands.triplets else None
    if triplets is not None and not (triplets[train] >= 0).any():
        raise UserError("No report of a training image states a finding.", data.store, "Use a store with reports.")
    groups = None
    if demands.group_size:
        groups = groups_of(store, np.concatenate([train, val]), bank)
        facts |= {
            "concepts_of_groups": len(groups.concepts),
            "places_in_groups": groups.within(train).size(demands.group_size),
        }
        if groups.within(val).size(demands.group_size) < world_size * demands.group_size:
            val = val[:0]
    check_batch(
        config, demands, len(train) if groups is None else groups.within(train).size(demands.group_size), world_size
    )
    val = val if len(val) >= max(2, world_size) else val[:0]
    facts |= {"train_images": len(train), "val_images": len(val)}
    table, concepts = None, None
    if config.method.text is not None and (paired is not None or sentences is not None):
        table, concepts = _tokenised(config, demands, paired, sentences, train, bank, tokenizer_folder, keep_tokenizer)
        facts["texts_cut"] = table.cut
    candidates = None
    if told is not None and table is not None:
        candidates = Candidates.of(told, table, demands.candidates, data.augment.mirrors)
    sources = Sources(
        demands,
        labels,
        label_names,
        table,
        None if paired is None else paired.first,
        None if paired is None else paired.count,
        triplets,
        groups,
        rows_of_studies(store, demands.study_images) if demands.study_images else None,
        candidates,
    )
    made_of = [store.hash, None if table is None else table.hash, label_names, data.split, data.views]
    of_images = [train, store.images["index"].to_numpy()[train], None if labels is None else labels[train]]
    of_images += [] if paired is None else [paired.first[train], paired.count[train]]
    made_of += [hashlib.sha256(values.tobytes()).hexdigest() for values in of_images if values is not None]
    made_of += [] if candidates is None else [candidates.table.hash]
    made_of += [] if bank is None else [bank.meta["hash"]]
    return PretrainData(store, train, val, sources, sentences, concepts, facts, json_sha256(made_of))


def _images(config: PretrainConfig, store: Store) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Return the rows of training and validation images."""
    data = config.data
    wanted = config.method.image.kind
    if isinstance(config.method.image, ClipTowerConfig):
        check_clips(store)
    elif store.kind not in (wanted, "none"):
        raise UserError(
            f"The store holds {UNITS[store.kind]}, and the method takes {UNITS[wanted]}.",
            data.store,
            f"Use a store of {UNITS[wanted]}, or another method.image.kind.",
        )
    split = split_of_images(store)
    used = store.images["view"].isin(data.views).to_numpy() if data.views else np.ones(len(split), dtype=bool)
    train, val = np.flatnonzero((split == data.split) & used), np.flatnonzero((split == "val") & used)
    if data.split == "val":
        val = val[:0]
    elif data.split == "test":
        logger.warning("The images of the test split are trained on: no benchmark on this store is valid for the run.")
    if not len(split):
        raise UserError("The store has no image.", data.store, "Use a store of a data set with images.")
    if not (split == data.split).any():
        found = ", ".join(
            f"{name} ({number})" for name, number in zip(*np.unique(split, return_counts=True), strict=True)
        )
        raise UserError(f"The split '{data.split}' has no image. There are: {found}.", data.store, "Set data.split.")
    if isinstance(config.method.image, VolumeTowerConfig):
        check_volumes(store, np.concatenate([train, val]), config.method.image.input)
    if not len(train):
        known = ", ".join(sorted(store.images["view"].dropna().unique())) or "none is named"
        raise UserError(f"No training image has one of these views. There are: {known}.", data.store, "Set data.views.")
    return train, val


def _tokenised(
    config: PretrainConfig,
    demands: Demands,
    paired: PairedTexts | None,
    sentences: Sentences | None,
    train: Int[np.ndarray, " n"],
    bank: KnowledgeBank | None,
    folder: Path,
    keep: bool,
) -> tuple[TokenTable, ConceptTable | None]:
    """Return the tokenised texts and, where they are asked for, the concepts that they name."""
    text = config.method.text
    assert text is not None
    if paired is None:
        assert sentences is not None
        texts, seen, labels = sentences.texts, sentences.texts, sentences.labels
    else:
        texts, seen, labels = paired.texts, paired.of_images(train), None
        if config.data.augment.mirrors:
            texts = [*texts, *map(swap_sides, texts)]
    if demands.triplets:
        seen = [*seen, *(note.description for note in finding_book()), *(note.prompt() for note in anatomy_book())]
    if demands.group_size:
        seen = [*seen, *templates()]
    concepts, mentions = None, None
    if demands.concepts:
        concepts, mentions = find_concepts(texts, bank, config.data.min_concept_count)
    tokenizer = get_tokenizer(config, seen, folder, keep)
    return TokenTable(tokenizer, texts, text.max_tokens, labels, mentions, demands.sentences), concepts

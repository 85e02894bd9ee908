"""What a method is pre-trained on: images of a store with their reports, or with sentences of other patients.

Guarantee: everything that would make training impossible (an empty split, no reports, no common finding) is a
`UserError` here, before anything starts; images and sentences left out are counted in `facts`. A label is never filled
in: a finding that the data set does not name stays NaN.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.config.base import json_sha256
from medvlp.data.demands import Demands
from medvlp.data.loader import ImageLoader
from medvlp.data.texts import SentenceChoice, Sentences, TokenTable, collect_sentences, report_text
from medvlp.errors import UserError, nearest
from medvlp.types import Batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int

    from medvlp.config.schema import PretrainConfig
    from medvlp.knowledge.table import ConceptTable
    from medvlp.store.array_store import Store
    from medvlp.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class PretrainLoader(ImageLoader):
    """Batches of images, labels and texts; as `ImageLoader` a function of seed, epoch and step alone.

    Args:
        labels: Labels of every image of the store, `[n k]`, or None.
        table: The tokenised texts, or None for a method without text.
        text_rows: Paired: row in `table` of every image of the store (-1 without text). None where texts are unpaired.
        choice: Unpaired: draws the sentences.
        **options: As for `ImageLoader`.
    """

    def __init__(
        self,
        store: Store,
        rows: Int[np.ndarray, " n"],
        *,
        labels: Float[np.ndarray, "n k"] | None,
        table: TokenTable | None,
        text_rows: Int[np.ndarray, " n"] | None = None,
        choice: SentenceChoice | None = None,
        **options: Any,
    ) -> None:
        super().__init__(store, rows, **options)
        self.labels, self.table, self.text_rows, self.choice = labels, table, text_rows, choice

    def load(self, epoch: int, step: int, rows: Int[np.ndarray, " b"]) -> Batch:
        """Make one batch with its texts, and their augmented reading where that is on."""
        import torch

        batch = super().load(epoch, step, rows)
        if self.labels is not None:
            batch.labels = torch.from_numpy(self.labels[rows])
        batch.paired = self.choice is None
        if self.table is None:
            return batch
        if self.choice is None:
            assert self.text_rows is not None
            keys, texts = rows, self.text_rows[rows]
        else:
            first = step * self.batch_size + self.rank * (self.batch_size // self.world_size)
            keys = np.arange(first, first + len(rows))
            texts = self.choice.draw(epoch, keys)
        batch.text = self.table.batch(texts)
        if self.augment is not None and (self.augment.shuffle_sentences or self.augment.drop_words):
            batch.text_augmented = self.table.augmented(texts, self.augment, self.seed, epoch, keys)
        return batch


@dataclass(frozen=True)
class PretrainData:
    """All that training needs of the data.

    Args:
        store: The prepared store.
        train: Rows of the training images in the images table.
        val: Rows of the validation images; empty where the store has no such split, it is too small for one batch, or
            it is what is trained on.
        label_names: Columns of the labels.
        labels: Labels of every image of the store, `[n k]`, or None where the store has none.
        table: The tokenised texts, or None.
        text_rows: Paired: row in `table` of every image of the store, -1 without text.
        sentences: Unpaired: the sentences.
        facts: Counts of what is used and what is left out.
        hash: SHA-256 of the store's hash, the texts and the labels: what was trained on.
        concepts: Rows of the concepts that texts name, or None.
    """

    store: Store
    train: Int[np.ndarray, " n"]
    val: Int[np.ndarray, " m"]
    label_names: tuple[str, ...]
    labels: Float[np.ndarray, "n k"] | None
    table: TokenTable | None
    text_rows: Int[np.ndarray, " n"] | None
    sentences: Sentences | None
    facts: dict[str, int]
    hash: str
    concepts: ConceptTable | None = None

    def loader(self, config: PretrainConfig, *, validation: bool = False, **options: Any) -> PretrainLoader:
        """Return the loader of the training or validation images.

        Args:
            config: The run's configuration.
            validation: Validation images, in order, without augmentation.
            **options: `rank`, `world_size`, `pin_memory`.
        """
        rows = self.val if validation else self.train
        batch_size = config.train.batch_size // config.train.accumulate
        if validation:  # whole batches only: the value of a contrast depends on the size of its batch
            batch_size = min(batch_size, len(rows) // options.get("world_size", 1) * options.get("world_size", 1))
            rows = rows[: len(rows) // batch_size * batch_size]
        choice = None
        if self.sentences is not None:
            assert self.labels is not None
            choice = SentenceChoice(
                self.sentences, self.labels[self.train], config.data.sentences, config.run.seed + validation
            )
        return PretrainLoader(
            self.store,
            rows,
            labels=self.labels,
            table=self.table,
            text_rows=self.text_rows,
            choice=choice,
            batch_size=batch_size,
            input_size=config.method.image.input.size,
            seed=config.run.seed,
            augment=None if validation else config.data.augment,
            num_workers=config.data.num_workers,
            prefetch=config.data.prefetch,
            **options,
        )


def load_data(
    config: PretrainConfig,
    *,
    demands: Demands,
    tokenizer_folder: Path,
    keep_tokenizer: bool = False,
    world_size: int = 1,
) -> PretrainData:
    """Open the store, gather texts and labels, and train or load the tokenizer.

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
    paired = demands.paired
    _refuse_unused(config, demands)
    store = Store.open(data.store)
    if store.kind in ("volume", "video"):
        held = {"volume": "volumes", "video": "clips"}[store.kind]
        raise UserError(f"The store holds {held}, and the method takes images.", data.store, "Use a store of images.")
    split = _split_of_images(store)
    train, val = np.flatnonzero(split == data.split), np.flatnonzero(split == "val")
    if data.split == "val":
        val = val[:0]
    elif data.split == "test":
        logger.warning("The images of the test split are trained on: no benchmark on this store is valid for the run.")
    facts: dict[str, int] = {}
    if not len(train):
        found = ", ".join(
            f"{name} ({number})" for name, number in zip(*np.unique(split, return_counts=True), strict=True)
        )
        if not found:
            raise UserError("The store has no image.", data.store, "Use a store of a data set with images.")
        raise UserError(f"The split '{data.split}' has no image. There are: {found}.", data.store, "Set data.split.")
    unpaired_text = demands.reports and not paired
    label_names, labels = image_labels(store, data.labels, to_findings=unpaired_text)
    if demands.labels and (labels is None or not (labels[train] == 1).any()):
        raise UserError("The method needs labels, the store has none.", data.store, "Use a store with labels.")
    texts: list[str] = []
    text_rows, sentences = None, None
    if demands.reports and paired:
        texts, text_rows = paired_texts(store, data.sections)
        without = int((text_rows[train] < 0).sum())
        train, val = train[text_rows[train] >= 0], val[text_rows[val] >= 0]
        facts |= {"images_without_text": without}
        if not len(train):
            raise UserError(
                f"No training image has a report with a section of {', '.join(data.sections)}.",
                data.store,
                "Use a store with reports, or an unpaired method such as medclip with data.reports.",
            )
    elif unpaired_text:
        sentences = collect_sentences(_report_corpus(config, store, split == data.split, facts), data.sections)
        texts = sentences.texts
        facts |= {
            "sentences": int(sentences.counts.sum()),
            "distinct_sentences": len(texts),
            "distinct_sentences_without_finding": sentences.dropped,
        }
        if not texts:
            raise UserError("The reports have no sentence with a finding.", data.reports or data.store, "Check them.")
    batch = config.train.batch_size // config.train.accumulate
    if batch % world_size:
        raise UserError(
            f"A batch of {batch} does not split over {world_size} processes.",
            "train.batch_size / train.accumulate",
            f"Give a multiple of {world_size * config.train.accumulate}.",
        )
    if batch < 2 and demands.reports:
        raise UserError(
            "In micro-batches of one sample there is no other to tell it from: nothing would be learnt.",
            "train.batch_size / train.accumulate",
            "Give a larger batch_size, or accumulate less.",
        )
    if len(train) < batch:
        raise UserError(
            f"There are {len(train)} training images, fewer than one batch of {batch}.",
            data.store,
            f"Set train.batch_size to {len(train) * config.train.accumulate} or less.",
        )
    val = val if len(val) >= max(2, world_size) else val[:0]
    facts |= {"train_images": len(train), "val_images": len(val)}
    table = None
    if config.method.text is not None and texts:
        seen = texts if text_rows is None else [texts[row] for row in np.unique(text_rows[train])]
        tokenizer = get_tokenizer(config, seen, tokenizer_folder, keep_tokenizer)
        table = TokenTable(
            tokenizer, texts, config.method.text.max_tokens, None if sentences is None else sentences.labels
        )
    made_of = [store.hash, None if table is None else table.hash, label_names, data.split]
    return PretrainData(
        store, train, val, label_names, labels, table, text_rows, sentences, facts, json_sha256(made_of)
    )


def _refuse_unused(config: PretrainConfig, demands: Demands) -> None:
    """Raise `UserError` for a key of `data` that the method would silently ignore."""
    data, kind = config.data, type(config.data)
    unused = {
        "data.reports": demands.paired and data.reports is not None,
        "data.sentences": demands.paired and data.sentences != kind.model_fields["sentences"].default,
        "data.labels": not demands.labels and bool(data.labels),
    }
    keys = " and ".join(key for key, is_unused in unused.items() if is_unused)
    if keys:
        raise UserError(
            f"The method '{config.method.name}' has no use for {keys}.",
            keys,
            "Leave it out: a paired method takes the reports of the store." if demands.paired else "Leave it out.",
        )


def get_tokenizer(config: PretrainConfig, texts: Sequence[str], folder: Path, keep: bool) -> Tokenizer:
    """Return the tokenizer in `folder` (if `keep`), else `method.text.folder`'s, else one trained on the texts."""
    from medvlp.text.tokenizer import Tokenizer

    assert config.method.text is not None
    if keep:
        return Tokenizer.from_folder(folder)
    if config.method.text.folder is not None:
        tokenizer = Tokenizer.from_folder(config.method.text.folder)
    else:
        tokenizer = Tokenizer.train(list(texts), config.method.text.vocab_size)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer.save(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return tokenizer


def paired_texts(store: Store, sections: Sequence[str]) -> tuple[list[str], Int[np.ndarray, " n"]]:
    """Return the texts of the studies and, for every image of the store, the row of its text or -1."""
    texts: list[str] = []
    row_of_study: dict[str, int] = {}
    studies = store.studies
    reports = studies["report"] if "report" in studies else [None] * len(studies)
    for study, report in zip(studies["study_id"], reports, strict=True):
        text = report_text(report, sections)
        if text:
            row_of_study[study] = len(texts)
            texts.append(text)
    return texts, np.array([row_of_study.get(study, -1) for study in store.images["study_id"]], dtype=np.int64)


def image_labels(
    store: Store, wanted: Sequence[str], *, to_findings: bool
) -> tuple[tuple[str, ...], Float[np.ndarray, "n k"] | None]:
    """Return label names and the labels of every image of the store.

    Args:
        store: The store.
        wanted: Label columns used; empty takes all.
        to_findings: Map them to the CheXpert findings, by the card's `chexpert:` and by equal names. Of several labels
            that mean one finding the strongest counts: present, then uncertain, then absent. A finding that no label
            means stays NaN.

    Raises:
        UserError: A label that the store does not have.
    """
    names = list(store.label_names)
    for name in wanted:
        if name not in names:
            raise UserError(
                f"The store has no label '{name}'.{nearest(name, names)}", "data.labels", f"Use: {', '.join(names)}."
            )
    used = list(wanted) or names
    if not used and not to_findings:
        return (), None
    of_study = store.studies.set_index("study_id")[[f"label:{name}" for name in used]]
    values = of_study.loc[store.images["study_id"]].to_numpy(dtype=np.float32)
    if not to_findings:
        return tuple(used), values
    from medvlp.text.labeler import FINDINGS

    return tuple(FINDINGS), map_labels(values, used, store.card.chexpert, FINDINGS)


def map_labels(
    values: Float[np.ndarray, "n m"], names: Sequence[str], mapping: Mapping[str, str], findings: Sequence[str]
) -> Float[np.ndarray, "n k"]:
    """Bring labels into the columns of `findings`; see `image_labels`."""
    mapped = np.full((len(values), len(findings)), np.nan, dtype=np.float32)
    rank = {0.0: 0, -1.0: 1, 1.0: 2}
    for column, name in enumerate(names):
        finding = mapping.get(name, name)
        if finding not in findings:
            continue
        target = mapped[:, list(findings).index(finding)]
        for value in rank:
            weaker = [np.isnan(target)] + [target == other for other in rank if rank[other] < rank[value]]
            target[(values[:, column] == value) & np.any(weaker, axis=0)] = value
    return mapped


def _split_of_images(store: Store) -> np.ndarray:
    split = store.studies.set_index("study_id")["split"]
    return split.loc[store.images["study_id"]].fillna("none").to_numpy(dtype=str)


def _report_corpus(config: PretrainConfig, store: Store, of_split: np.ndarray, facts: dict[str, int]) -> list[str]:
    """Return the reports of `data.reports`, or of the store's own training studies; count them in `facts`."""
    if config.data.reports is not None:
        from medvlp.sources import SOURCES

        source = SOURCES.get(config.data.reports_source)(config.data.reports)
        reports = [study.report for study in source.studies() if study.report]
        if source.problems:
            reasons = Counter(problem.reason for problem in source.problems)
            listed = "; ".join(f"{number} x {reason}" for reason, number in reasons.most_common(5))
            logger.warning("%d reports are left out: %s", len(source.problems), listed)
        facts |= {"reports": len(reports), "reports_left_out": len(source.problems)}
        return reports
    studies = set(store.images["study_id"][of_split])
    frame = store.studies
    if "report" in frame:
        reports = [
            r for s, r in zip(frame["study_id"], frame["report"], strict=True) if s in studies and isinstance(r, str)
        ]
        if any(report.strip() for report in reports):
            return reports
    raise UserError(
        "The method needs reports: the store has none, and data.reports is not set.",
        config.data.store,
        "Set data.reports to a report collection, e.g. NLMCXR_reports.tgz.",
    )

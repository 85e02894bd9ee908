"""Texts of a training corpus, tokenised once: reports that belong to images, or sentences that stand on their own.

Guarantee: which text goes with which place of a batch, and how its augmented reading looks, is a function of
(seed, epoch, place or image); no text is dropped without being counted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medvlp.config.base import json_sha256
from medvlp.data.counter import TEXT, TEXT_CHOICE, generator, uniforms
from medvlp.errors import UserError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int

    from medvlp.config.schema import AugmentConfig
    from medvlp.text.tokenizer import Tokenizer
    from medvlp.types import TextBatch


def report_text(report: str | None, sections: Sequence[str]) -> str:
    """Return the chosen sections of a report, joined by newlines; empty where it has none of them."""
    from medvlp.text.sections import split_sections

    if not isinstance(report, str) or not report.strip():
        return ""
    parts = split_sections(report)
    return "\n".join(parts[name] for name in sections if parts.get(name))


@dataclass(frozen=True)
class Sentences:
    """Distinct sentences of a corpus with their findings.

    Args:
        texts: First spelling of each.
        labels: 1, 0, -1, NaN per finding, `[n k]`.
        counts: Times that each occurs in the corpus.
        dropped: Distinct sentences left out because they mention no finding.
    """

    texts: list[str]
    labels: Float[np.ndarray, "n k"]
    counts: Int[np.ndarray, " n"]
    dropped: int


def collect_sentences(reports: Iterable[str], sections: Sequence[str]) -> Sentences:
    """Split reports into sentences, join equal ones (case and blanks aside), label them with the CheXpert findings."""
    from medvlp.text.labeler import FINDINGS, label_sentence
    from medvlp.text.sections import split_sentences

    spelling: dict[str, str] = {}
    counts: dict[str, int] = {}
    for report in reports:
        for sentence in split_sentences(report_text(report, sections)):
            key = " ".join(sentence.lower().split())
            spelling.setdefault(key, sentence)
            counts[key] = counts.get(key, 0) + 1
    labels = np.array([list(label_sentence(text).values()) for text in spelling.values()], dtype=np.float32)
    labels = labels.reshape(len(spelling), len(FINDINGS))
    kept = np.any(~np.isnan(labels), axis=1)
    texts, numbers = list(spelling.values()), np.array(list(counts.values()), dtype=np.int64)
    return Sentences(
        [text for text, keep in zip(texts, kept, strict=True) if keep], labels[kept], numbers[kept], int((~kept).sum())
    )


class SentenceChoice:
    """Draws sentences for the places of a batch.

    `images`: a finding is drawn as often as it is present among the training images, then one of the distinct sentences
    that state it, all alike; so nearly every image of a batch has sentences of its own findings. `findings`: the same
    with all findings alike. `reports`: sentences as often as they occur in the reports.

    Args:
        sentences: The corpus.
        image_labels: Labels of the training images in the same columns, `[m k]`.
        how: One of the three.
        seed: Seed of the run.

    Raises:
        UserError: No finding is present both among the images and in the sentences.
    """

    def __init__(self, sentences: Sentences, image_labels: Float[np.ndarray, "m k"], how: str, seed: int) -> None:
        self.seed = seed
        stated = sentences.labels == 1
        present = (image_labels == 1).sum(axis=0) * stated.any(axis=0)
        if not present.any():
            raise UserError(
                "No finding is present both among the images and in the sentences.",
                "data.store, data.reports",
                "Map the labels to CheXpert findings by `chexpert:` in the data card, or use a paired method.",
            )
        if how == "reports":
            self._columns = [(np.arange(len(stated)), np.cumsum(sentences.counts) / sentences.counts.sum())]
            self._edges = np.ones(1)
            return
        chosen = np.flatnonzero(present)
        weights = present[chosen].astype(float) if how == "images" else np.ones(len(chosen))
        self._edges = np.cumsum(weights) / weights.sum()
        members = [np.flatnonzero(stated[:, column]) for column in chosen]
        self._columns = [(rows, np.arange(1, len(rows) + 1) / len(rows)) for rows in members]

    def draw(self, epoch: int, places: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return the sentence of each place (counted through the epoch)."""
        u = uniforms(TEXT_CHOICE, self.seed, epoch, places, 2)
        columns = np.searchsorted(self._edges, u[:, 0], side="right").clip(max=len(self._edges) - 1)
        chosen = np.empty(len(places), dtype=np.int64)
        for i, column in enumerate(columns):
            rows, edges = self._columns[column]
            chosen[i] = rows[min(np.searchsorted(edges, u[i, 1], side="right"), len(rows) - 1)]
        return chosen


@dataclass
class TokenTable:
    """Token ids of many texts, made once; batches are padded to their longest text.

    Args:
        tokenizer: Makes the ids.
        texts: The texts.
        max_tokens: Longer texts are cut.
        labels: Findings of each text, `[n k]`, or None.
    """

    tokenizer: Tokenizer
    texts: list[str]
    max_tokens: int
    labels: Float[np.ndarray, "n k"] | None = None
    _ids: list[np.ndarray] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        for start in range(0, len(self.texts), 1024):
            ids, mask, _ = self.tokenizer.encode(self.texts[start : start + 1024], self.max_tokens)
            self._ids += [row[keep].astype(np.int32) for row, keep in zip(ids, mask, strict=True)]

    @property
    def hash(self) -> str:
        """SHA-256 of texts and labels."""
        labels = None if self.labels is None else np.nan_to_num(self.labels, nan=9).tolist()
        return json_sha256([self.texts, labels])

    def batch(self, rows: Int[np.ndarray, " b"]) -> TextBatch:
        """Return the texts of these rows."""
        import torch

        from medvlp.types import TextBatch

        ids, mask = self._pad([self._ids[row] for row in rows])
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return TextBatch(ids, mask, labels, [self.texts[row] for row in rows])

    def augmented(
        self, rows: Int[np.ndarray, " b"], augment: AugmentConfig, seed: int, epoch: int, keys: Int[np.ndarray, " b"]
    ) -> TextBatch:
        """Return a changed reading of the texts, each a function of (seed, epoch, its key)."""
        import torch

        from medvlp.text.augment import augment_text
        from medvlp.types import TextBatch

        changed = [
            augment_text(
                self.texts[row], generator(TEXT, seed, epoch, int(key)), augment.shuffle_sentences, augment.drop_words
            )
            for row, key in zip(rows, keys, strict=True)
        ]
        with self._lock:  # truncation is a state of the tokenizer, and several threads make batches
            ids, mask, _ = self.tokenizer.encode(changed, self.max_tokens)
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return TextBatch(torch.from_numpy(ids), torch.from_numpy(mask), labels, changed)

    def _pad(self, rows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        longest = max((len(row) for row in rows), default=0)
        ids = np.full((len(rows), longest), self.tokenizer.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = True
        return torch.from_numpy(ids), torch.from_numpy(mask)

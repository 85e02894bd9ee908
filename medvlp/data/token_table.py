"""Texts tokenised once, with the words and concepts of each token; batches are padded to their longest text.

Guarantee: no text is cut without being counted in `cut`; a concept of which a part is cut off is left out. How an
augmented reading looks, and which tokens are hidden, is a function of (seed, epoch, key).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from medvlp.config.base import json_sha256
from medvlp.data.counter import HIDE, TEXT, generator
from medvlp.text.augment import draw_sentences
from medvlp.text.masking import whole_unit_mask

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.config.data import TextAugmentConfig
    from medvlp.text.tokenizer import Tokenizer
    from medvlp.types import TextBatch

Mention = tuple[int, int, int]
"""Characters `start:end` of a text, and the row of the concept that they name."""


@dataclass(frozen=True)
class _Row:
    ids: Int[np.ndarray, " l"]
    words: Int[np.ndarray, " l"]
    sentences: Int[np.ndarray, " l"] | None
    spans: Int[np.ndarray, "s 3"]


@dataclass
class TokenTable:
    """Token ids of many texts.

    Args:
        tokenizer: Makes the ids.
        texts: The texts.
        max_tokens: Longer texts are cut.
        labels: Findings of each text, `[n k]`, or None.
        mentions: Concepts of each text, or None where nobody asks for them.
        sentences: Say which sentence each token lies in.
    """

    tokenizer: Tokenizer
    texts: list[str]
    max_tokens: int
    labels: Float[np.ndarray, "n k"] | None = None
    mentions: Sequence[Sequence[Mention]] | None = None
    sentences: bool = False
    cut: int = 0
    """Texts longer than `max_tokens`."""
    _rows: list[_Row] = field(default_factory=list, repr=False)
    _long: set[int] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        for start in range(0, len(self.texts), 1024):
            self._rows += self._made(self.texts[start : start + 1024], start)
        full = [number for number, row in enumerate(self._rows) if len(row.ids) == self.max_tokens]
        if full:
            _, mask, _ = self.tokenizer.encode([self.texts[row] for row in full], self.max_tokens + 1)
            self._long = {row for row, tokens in zip(full, mask.sum(1), strict=True) if tokens > self.max_tokens}
            self.cut = len(self._long)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of texts, labels and mentions."""
        labels = None if self.labels is None else np.nan_to_num(self.labels, nan=9).tolist()
        mentions = [] if self.mentions is None else [[list(map(list, row)) for row in self.mentions]]
        return json_sha256([self.texts, labels, *mentions])

    def batch(self, rows: Int[np.ndarray, " b"]) -> TextBatch:
        """Return the texts of these rows."""
        return self._padded(
            [self._rows[row] for row in rows],
            [self.texts[row] for row in rows],
            None if self.labels is None else self.labels[rows],
        )

    def sampled(self, rows: Int[np.ndarray, " b"], seed: int, epoch: int, keys: Int[np.ndarray, " b"]) -> TextBatch:
        """Return the texts of these rows; of those that are too long some sentences (M3D-CLIP, arXiv 2404.00578).

        They are the first one and others that fit, drawn by (seed, epoch, key), in the order of the text. The official
        code does not count the first one, so that its texts are cut after all, and appends the others as drawn.
        """
        texts = [
            self._some_sentences(int(row), generator(TEXT, seed, epoch, int(key)))
            if int(row) in self._long
            else self.texts[row]
            for row, key in zip(rows, keys, strict=True)
        ]
        text = self.of_texts(texts)
        if self.labels is not None:
            import torch

            text.labels = torch.from_numpy(self.labels[rows])
        return text

    def _some_sentences(self, row: int, rng: np.random.Generator) -> str:
        from medvlp.text.sections import split_sentences

        sentences = split_sentences(self.texts[row])
        _, mask, words = self.tokenizer.encode(sentences, self.max_tokens)
        special = int((mask & (words < 0)).sum(1).max())
        return " ".join(draw_sentences(sentences, mask.sum(1) - special, self.max_tokens - special, rng))

    def of_texts(self, texts: Sequence[str]) -> TextBatch:
        """Return texts that are not in the table, without labels and concepts."""
        return self._padded(self._made(texts, None), texts, None)

    def augmented(
        self,
        rows: Int[np.ndarray, " b"],
        augment: TextAugmentConfig,
        seed: int,
        epoch: int,
        keys: Int[np.ndarray, " b"],
    ) -> TextBatch:
        """Return a changed reading of the texts, each a function of (seed, epoch, its key)."""
        import torch

        from medvlp.text.augment import augment_text

        changed = [
            augment_text(self.texts[row], generator(TEXT, seed, epoch, int(key)), augment)
            for row, key in zip(rows, keys, strict=True)
        ]
        text = self.of_texts(changed)
        if self.labels is not None:
            text.labels = torch.from_numpy(self.labels[rows])
        return text

    def hide(
        self, text: TextBatch, share: float, whole_concepts: bool, seed: int, epoch: int, keys: Int[np.ndarray, " b"]
    ) -> None:
        """Choose the tokens of each text that masked language modelling hides, and set `text.hidden`.

        Args:
            text: Texts of a batch.
            share: Share of the tokens of words.
            whole_concepts: Hide the tokens of a concept together, and not only those of a word.
            seed: Seed of the run.
            epoch: Epoch, from 0.
            keys: Key of each text.
        """
        import torch

        assert text.word_ids is not None
        words = text.word_ids.numpy()
        spans = [[] if text.spans is None else row[row[:, 0] >= 0].tolist() for row in _rows_of(text)]
        masks = [
            whole_unit_mask(words[i], generator(HIDE, seed, epoch, int(key)), share, spans[i] if whole_concepts else ())
            for i, key in enumerate(keys)
        ]
        text.hidden = torch.from_numpy(np.stack(masks))

    def _made(self, texts: Sequence[str], first: int | None) -> list[_Row]:
        """Tokenise texts; `first` is the row of the first in the table, None for texts that are not in it."""
        ids, mask, words = self.tokenizer.encode(list(texts), self.max_tokens)
        numbers = self.tokenizer.sentence_ids(texts, self.max_tokens).astype(np.int32) if self.sentences else None
        rows = []
        for i, keep in enumerate(mask):
            spans = np.empty((0, 3), np.int32)
            if self.mentions is not None and first is not None:
                spans = self._spans(texts[i], self.mentions[first + i])
            sentences = None if numbers is None else numbers[i][keep]
            rows.append(_Row(ids[i][keep].astype(np.int32), words[i][keep].astype(np.int32), sentences, spans))
        return rows

    def _spans(self, text: str, mentions: Sequence[Mention]) -> Int[np.ndarray, "s 3"]:
        places = self.tokenizer.token_spans(text, [(start, end) for start, end, _ in mentions], self.max_tokens)
        whole = [(*place, row) for place, (_, _, row) in zip(places, mentions, strict=True) if place is not None]
        return np.array(whole, np.int32).reshape(-1, 3)

    def _padded(self, rows: Sequence[_Row], texts: Sequence[str], labels: Float[np.ndarray, "b k"] | None) -> TextBatch:
        import torch

        from medvlp.types import TextBatch

        longest = max((len(row.ids) for row in rows), default=0)
        ids = np.full((len(rows), longest), self.tokenizer.pad_id, dtype=np.int64)
        words = np.full((len(rows), longest), -1, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=bool)
        most = max((len(row.spans) for row in rows), default=0)
        spans = np.full((len(rows), most, 3), -1, dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)], words[i, : len(row.ids)], mask[i, : len(row.ids)] = row.ids, row.words, True
            spans[i, : len(row.spans)] = row.spans
        text = TextBatch(
            torch.from_numpy(ids),
            torch.from_numpy(mask),
            None if labels is None else torch.from_numpy(labels),
            list(texts),
            word_ids=torch.from_numpy(words),
        )
        if self.sentences:
            numbers = np.full(ids.shape, -1, dtype=np.int64)
            for i, row in enumerate(rows):
                assert row.sentences is not None
                numbers[i, : len(row.ids)] = row.sentences
            text.sentence_ids = torch.from_numpy(numbers)
        if self.mentions is not None:
            text.spans, text.concepts = torch.from_numpy(spans[..., :2]), torch.from_numpy(spans[..., 2])
        return text


def _rows_of(text: TextBatch) -> list[np.ndarray]:
    return [np.empty((0, 2), int)] * len(text.ids) if text.spans is None else list(text.spans.numpy())

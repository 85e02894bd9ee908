"""Texts of a training corpus: reports or sentences that belong to images, or sentences that stand on their own.

Guarantee: which text goes with which place of a batch is a function of (seed, epoch, place or image); no text is
dropped without being counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvlp.data.counter import TEXT_CHOICE, uniforms
from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


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

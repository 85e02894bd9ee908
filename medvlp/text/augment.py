"""Text augmentation in the manner of EDA (Wei and Zou, 2019): shuffled sentences, dropped sentences and words.

Guarantee: a sentence stays as a whole or goes as a whole. Every word that the labeler reads stays in it, and in its
order: findings, places, states, sides, negation, doubt and the words that end a clause. Only filling words are dropped.
Headings stay in front of their sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from medvlp.text.sections import find_sections, split_sentences
from medvlp.text.statements import kept_spans

if TYPE_CHECKING:
    from jaxtyping import Bool

    from medvlp.config.data import TextAugmentConfig


@lru_cache(maxsize=1 << 16)
def _words(sentence: str) -> tuple[tuple[str, bool], ...]:
    """Return the words of a sentence, each with whether it may be dropped."""
    words = sentence.split()
    lowered = [word.lower() for word in words]
    spans = kept_spans(" ".join(lowered))
    result, start = [], 0
    for word, low in zip(words, lowered, strict=True):
        end = start + len(low)
        meaning = any(s < end and start < e for s, e in spans)
        result.append((word, not meaning and low.isalpha()))
        start = end + 1
    return tuple(result)


def augment_text(text: str, rng: np.random.Generator, changes: TextAugmentConfig) -> str:
    """Return another wording of a text that says the same, or with `keep_sentences` a part of it.

    Args:
        text: A sentence, several, or a report with headings; sentences change places only within their section.
        rng: Source of randomness; one draw decides, so that equal generators give equal texts.
        changes: What is done. A text keeps at least one sentence, a sentence at least one word.
    """
    if not changes.changes_text:
        return text
    sections = find_sections(text)
    told = [split_sentences(text[section.start : section.end]) for section in sections]
    kept = iter(_kept(sum(map(len, told)), rng, changes.keep_sentences))
    parts = []
    for section, of_section in zip(sections, told, strict=True):
        sentences = [sentence for sentence in of_section if next(kept)]
        if of_section and not sentences:
            continue
        if changes.shuffle_sentences:
            sentences = [s if s[-1] in ".!?:;" else f"{s}." for s in sentences]  # else two would become one
            sentences = [sentences[k] for k in rng.permutation(len(sentences))]
        if changes.drop_words > 0:
            sentences = [_drop(sentence, rng, changes.drop_words) for sentence in sentences]
        parts.append(" ".join([text[section.heading_start : section.start].strip(), *sentences]).strip())
    return "\n".join(part for part in parts if part)


def _kept(count: int, rng: np.random.Generator, share: tuple[float, float]) -> Bool[np.ndarray, " n"]:
    """Return which of the sentences of a text stay."""
    if share == (1.0, 1.0):
        return np.ones(count, bool)
    number = max(1, round(rng.uniform(*share) * count))
    return rng.permutation(count) < number


def _drop(sentence: str, rng: np.random.Generator, probability: float) -> str:
    words = _words(sentence)
    drawn = rng.random(len(words)) < probability
    kept = [word for (word, droppable), drop in zip(words, drawn, strict=True) if not (droppable and drop)]
    return " ".join(kept or [words[0][0]])


def draw_sentences(
    sentences: Sequence[str], lengths: Sequence[int], budget: int, rng: np.random.Generator
) -> list[str]:
    """Return the first sentence and others, drawn one by one, that together are no longer than a budget.

    Args:
        sentences: Of a text.
        lengths: Tokens of each.
        budget: Tokens that fit; the first sentence stays even where it is longer.
        rng: Draws the order in which the others are tried.
    """
    kept, left = {0}, budget - int(lengths[0])
    for number in 1 + rng.permutation(len(sentences) - 1):
        if lengths[number] <= left:
            kept.add(int(number))
            left -= int(lengths[number])
    return [sentences[number] for number in sorted(kept)]

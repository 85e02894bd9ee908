"""Augmented text says the same: protected words survive, in order, and the labels stay."""

from __future__ import annotations

import math
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp.config.data import TextAugmentConfig
from medvlp.text.augment import augment_text, draw_sentences
from medvlp.text.labeler import FINDINGS, label_report
from medvlp.text.sections import find_sections, split_sentences

PROTECTED = [
    "no",
    "not",
    "without",
    "left",
    "right",
    "bilateral",
    "may",
    "possible",
    "probable",
    "cannot",
    "versus",
    "or",
    "and",
    "but",
    "effusion",
    "pneumothorax",
    "opacity",
    "cardiomegaly",
    "excluded",
    "resolved",
    "likely",
    "lower",
    "lobe",
]
FILLING = ["the", "small", "there", "noted", "again", "overall", "film", "xyz"]
SENTENCES = st.lists(st.sampled_from(PROTECTED + FILLING), min_size=1, max_size=12).map(
    lambda words: " ".join(words) + "."
)
TEXTS = st.lists(SENTENCES, min_size=1, max_size=5).map(" ".join)


def changes(shuffle: bool, drop: float = 0.0, keep: tuple[float, float] = (1.0, 1.0)) -> TextAugmentConfig:
    return TextAugmentConfig(shuffle_sentences=shuffle, drop_words=drop, keep_sentences=keep)


def words_of(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word in PROTECTED]


@settings(deadline=None)
@given(SENTENCES, st.integers(0, 2**32), st.floats(0, 0.999))
def test_protected_words_survive_in_order(sentence: str, seed: int, drop: float) -> None:
    changed = augment_text(sentence, np.random.default_rng(seed), changes(False, drop))
    assert words_of(changed) == words_of(sentence)


@settings(deadline=None)
@given(TEXTS, st.integers(0, 2**32))
def test_shuffling_keeps_every_sentence(text: str, seed: int) -> None:
    changed = augment_text(text, np.random.default_rng(seed), changes(True, 0))
    assert sorted(split_sentences(changed)) == sorted(split_sentences(text))


REAL = (
    "FINDINGS: There is a small left pleural effusion. The heart is mildly enlarged. No pneumothorax is seen on the "
    "right. Opacity in the lower lobe may represent pneumonia or atelectasis, although edema cannot be excluded. "
    "Stable chest tube.\n"
    "IMPRESSION: 1. Small left effusion. 2. No evidence of pneumothorax."
)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.999))
def test_labels_stay(seed: int, drop: float) -> None:
    changed = label_report(augment_text(REAL, np.random.default_rng(seed), changes(True, drop)))
    original = label_report(REAL)
    assert all(changed[f] == original[f] or (math.isnan(changed[f]) and math.isnan(original[f])) for f in FINDINGS)


def test_filling_words_are_dropped_and_headings_stay() -> None:
    changed = augment_text(REAL, np.random.default_rng(0), changes(True, 0.9))
    assert len(changed.split()) < len(REAL.split())
    assert changed.startswith("FINDINGS: ")
    assert "\nIMPRESSION: " in changed
    assert changed.index("IMPRESSION") > changed.index("chest tube")


def test_same_generator_same_text_and_neutral_settings_change_nothing() -> None:
    draws = {augment_text(REAL, np.random.default_rng(7), changes(True, 0.3)) for _ in range(3)}
    assert len(draws) == 1
    assert augment_text(REAL, np.random.default_rng(8), changes(True, 0.3)) not in draws
    assert augment_text(REAL, np.random.default_rng(0), changes(False, 0.0)) == REAL
    assert augment_text("", np.random.default_rng(0), changes(True, 0.5)) == ""


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 60), st.integers(0, 99))
def test_drawn_sentences_fit_and_stay_in_order(lengths: list[int], budget: int, seed: int) -> None:
    sentences = [f"sentence {number}" for number in range(len(lengths))]
    drawn = draw_sentences(sentences, lengths, budget, np.random.default_rng(seed))
    rows = [sentences.index(sentence) for sentence in drawn]
    assert rows[0] == 0
    assert rows == sorted(set(rows))
    used = sum(lengths[row] for row in rows)
    assert used <= max(budget, lengths[0])
    left = [length for row, length in enumerate(lengths) if row not in rows]
    assert all(used + length > budget for length in left)  # nothing more would fit


def test_all_sentences_have_their_turn() -> None:
    sentences = [str(number) for number in range(5)]
    seen = {s for seed in range(40) for s in draw_sentences(sentences, [2] * 5, 6, np.random.default_rng(seed))}
    assert seen == set(sentences)


@settings(deadline=None)
@given(TEXTS, st.integers(0, 2**32), st.floats(0, 1), st.booleans())
def test_a_part_of_the_sentences_stays_whole_and_in_order(text: str, seed: int, share: float, shuffle: bool) -> None:
    """As many as the share says, at least one; in the order of the text unless they are shuffled."""
    told = split_sentences(text)
    kept = split_sentences(augment_text(text, np.random.default_rng(seed), changes(shuffle, keep=(share, share))))
    assert len(kept) == max(1, round(share * len(told)))
    order = iter(sorted(told) if shuffle else told)
    assert all(sentence in order for sentence in (sorted(kept) if shuffle else kept))


def test_every_number_of_sentences_is_drawn_and_headings_go_with_their_last_sentence() -> None:
    drawn = [augment_text(REAL, np.random.default_rng(seed), changes(False, keep=(0.0, 1.0))) for seed in range(300)]
    total = sum(len(split_sentences(REAL[s.start : s.end])) for s in find_sections(REAL))
    sections = [find_sections(text) for text in drawn]
    counts = [sum(len(split_sentences(t[s.start : s.end])) for s in of) for t, of in zip(drawn, sections, strict=True)]
    assert set(counts) == set(range(1, total + 1))
    assert all(text[s.start : s.end].strip() for text, of in zip(drawn, sections, strict=True) for s in of)
    assert all(text.splitlines() for text in drawn)

"""Masks of whole words and entities, and which captions are used."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medvlp.text.captions import caption_fault, usable_captions
from medvlp.text.masking import units, whole_unit_mask

#                    [CLS] small  ple ##ural eff ##usion left  .  [SEP] pad
WORD_IDS = np.array([-1, 0, 1, 1, 2, 2, 3, 4, -1, -1])


def test_units_are_words_or_whole_entities() -> None:
    assert units(WORD_IDS).tolist() == [-1, 0, 1, 1, 2, 2, 3, 4, -1, -1]
    assert units(WORD_IDS, [(2, 6)]).tolist() == [-1, 0, 1, 1, 1, 1, 2, 3, -1, -1]
    assert units(WORD_IDS, [(2, 5), (5, 7)]).tolist() == [-1, 0, 1, 1, 1, 1, 1, 2, -1, -1]
    assert units(np.array([0, 0, 1])).tolist() == [0, 0, 1]
    assert units(np.array([-1, -1])).tolist() == [-1, -1]


@pytest.mark.parametrize("spans", [(), [(2, 6)], [(1, 4), (4, 7)]])
def test_units_are_masked_whole_and_special_tokens_never(spans: list[tuple[int, int]]) -> None:
    numbers = units(WORD_IDS, spans)
    for seed in range(50):
        mask = whole_unit_mask(WORD_IDS, np.random.default_rng(seed), 0.3, spans)
        assert not mask[numbers < 0].any()
        for unit in set(numbers[numbers >= 0].tolist()):
            assert mask[numbers == unit].all() or not mask[numbers == unit].any()
        assert mask.sum() >= 0.3 * 7
        assert np.array_equal(mask, whole_unit_mask(WORD_IDS, np.random.default_rng(seed), 0.3, spans))


def test_the_share_of_masked_tokens_is_as_asked() -> None:
    words = np.arange(2000)
    masked = np.mean([whole_unit_mask(words, np.random.default_rng(seed), 0.15).mean() for seed in range(5)])
    assert masked == pytest.approx(0.15, abs=0.001)
    assert not whole_unit_mask(words, np.random.default_rng(0), 0.0).any()
    assert whole_unit_mask(words, np.random.default_rng(0), 1.0).all()
    assert not whole_unit_mask(np.array([-1, -1]), np.random.default_rng(0), 0.5).any()


def test_captions_are_left_out_for_a_named_reason() -> None:
    assert caption_fault("Left pleural effusion") is None
    assert [caption_fault(t) for t in (None, " ", "12 3 4", "Fig 1")] == ["empty", "empty", "no letters", "too short"]
    counts: Counter[str] = Counter()
    given = [("a", "CT of the chest"), ("a", "CT of  the CHEST"), ("b", "CT of the chest"), ("c", "CT"), ("d", None)]
    assert list(usable_captions(given, counts)) == [("a", "CT of the chest"), ("b", "CT of the chest")]
    assert counts == {"repeated": 1, "too short": 1, "empty": 1}

"""Spellings of one term become equal, and different terms stay different."""

from __future__ import annotations

import pytest

from medvlp.text.spelling import stem, words_of

SAME = [
    ("lungs", "lung"), ("oedema", "edema"), ("tumours", "tumor"), ("haemorrhage", "hemorrhage"), ("masses", "mass"),
    ("metastases", "metastasis"), ("diagnoses", "diagnosis"), ("biopsies", "biopsy"), ("oesophagus", "esophagus"),
    ("apices", "apex"), ("vertebrae", "vertebra"), ("bronchi", "bronchus"), ("anaemia", "anemia"), ("fibres", "fiber"),
    ("leukaemias", "leukemia"), ("diseases", "disease"), ("bases", "base"), ("sarcomata", "sarcoma"),
    ("dyspnoea", "dyspnea"), ("ischaemia", "ischemia"), ("crohn's", "crohn"), ("visualised", "visualized"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_word_are_equal(one: str, other: str) -> None:
    assert stem(one) == stem(other)


@pytest.mark.parametrize("word", ["pelvis", "thrombus", "atelectasis", "mass", "diagnosis", "lens", "gas", "us", "is"])
def test_a_singular_that_ends_in_s_is_one_word(word: str) -> None:
    assert stem(word) == stem(stem(word)) or len(word) > 3
    assert stem(word) not in ("pelvi", "thrombu", "atelectasi", "mas", "diagnosi", "ga", "u", "i")


def test_words_have_their_places_whatever_the_capitals() -> None:
    text = "İ Small-cell  LUNG/pleura's"
    words = words_of(text)
    assert [text[start:end] for _, start, end in words] == ["İ", "Small", "cell", "LUNG", "pleura's"]
    assert [word for word, _, _ in words][1:] == ["small", "cell", "lung", "pleura"]

"""Tokens of reports: R2Gen's numbering, order of no effect, cuts, unknown words, and a folder's own tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.text.report_words import sentence_text
from medvlp.text.vocabulary import UNKNOWN, FolderTokens, WordVocabulary

REPORTS = ["The heart is normal. No effusion, no edema.", "The heart is large. Small effusion.", "No edema is seen."]


def test_words_keep_what_a_reader_needs() -> None:
    text = (
        "FINDINGS are stable: a 1.5 cm left-sided nodule; no effusion,pneumothorax\nor edema. Dr. Lee's film (AP/PA)?"
    )
    assert sentence_text(text) == (
        "findings are stable : a 1.5 cm left-sided nodule ; no effusion , pneumothorax or edema . dr lee's film ap/pa ."
    )
    assert sentence_text(" \n..") == ""


def test_numbers_are_those_of_r2gen() -> None:
    """Sorted with the unknown word among them, from 1; 0 begins, ends and fills."""
    tokens = WordVocabulary.build(REPORTS, 2)
    words = sorted({".", "edema", "effusion", "heart", "is", "no", "the", UNKNOWN})
    assert tokens.size == len(words) + 1
    ids, mask = tokens.encode(["no effusion is large.", "the"], 60)
    assert ids[0].tolist() == [0, *(words.index(w) + 1 for w in ("no", "effusion", "is", UNKNOWN, ".")), 0]
    assert ids[1].tolist() == [0, words.index("the") + 1, words.index(".") + 1, 0, 0, 0, 0]
    assert mask.sum(axis=1).tolist() == [7, 4]
    assert tokens.banned == (words.index(UNKNOWN) + 1,)
    assert tokens.decode(ids[0, 1:]) == f"no effusion is {UNKNOWN}."
    assert tokens.decode([0, 3, 3]) == ""


def test_a_long_text_is_cut_and_then_does_not_end() -> None:
    tokens = WordVocabulary.build(REPORTS, 1)
    ids, mask = tokens.encode([REPORTS[0]], 4)
    assert ids.shape == (1, 4)
    assert mask.all()
    assert tokens.decode(ids[0, 1:]) == "the heart is"
    assert tokens.encode([], 4)[0].shape == (0, 0)


def test_the_order_of_reports_changes_nothing_and_their_words_do() -> None:
    tokens = WordVocabulary.build(REPORTS, 1)
    assert WordVocabulary.build(REPORTS[::-1], 1).hash == tokens.hash
    assert WordVocabulary.build([*REPORTS, "Fracture."], 1).hash != tokens.hash


@pytest.mark.parametrize(("reports", "count"), [([], 1), (["Normal normal normal"], 2), (REPORTS, 9)])
def test_a_vocabulary_of_one_word_is_refused(reports: list[str], count: int) -> None:
    with pytest.raises(UserError, match=f"stand there {count} times or more") as caught:
        WordVocabulary.build(reports, count, str.lower)
    assert "min_count" in caught.value.where


def make_tokenizer(folder: Path, **special: str) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", "the", "heart", "is", "normal", "no", "effusion", "."]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special).save_pretrained(folder)
    return folder


def test_a_folder_brings_its_own_tokens(tmp_path: Path) -> None:
    tokens = FolderTokens(make_tokenizer(tmp_path, bos_token="<s>", eos_token="</s>"))
    ids, mask = tokens.encode(["the heart\nis normal.", "no edema"], 60)
    assert ids.tolist() == [[0, 3, 4, 5, 6, 9, 1], [0, 7, 2, 1, 1, 1, 1]]
    assert mask.sum(axis=1).tolist() == [7, 4]
    assert tokens.decode([3, 4, 0, 5, 1, 7]) == "the heart is"
    assert (tokens.size, tokens.banned) == (10, (0, 2))
    without = FolderTokens(make_tokenizer(tmp_path / "other", eos_token="</s>"))
    assert without.begin_id == without.end_id == 1
    assert without.hash != tokens.hash


def test_a_folder_without_an_end_or_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no token that ends a text"):
        FolderTokens(make_tokenizer(tmp_path / "endless"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        FolderTokens(tmp_path / "empty")

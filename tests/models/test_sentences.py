"""TriBERT's layout, mask and pooling against official values, and by properties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvlp.models.sentences import SentenceLimits, SentenceText, lay_out, levels_of, sentence_mask, sentence_starts
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import TextBatch
from tests.objectives.official import cases_3d, check, load

PAD, CLS, SENTENCE, WORD, PIECE = range(5)
MASKS = cases_3d("velvet/tribert_mask")
POOLED = cases_3d("velvet/token_pooling")


def laid(ids: torch.Tensor, kinds: torch.Tensor, types: torch.Tensor) -> SentenceText:
    words = torch.where((kinds == WORD) | (kinds == PIECE), (kinds == WORD).cumsum(1) - 1, -1)
    return SentenceText(ids, types, words, torch.zeros_like(kinds, dtype=torch.bool))


def types_of(kinds: torch.Tensor) -> torch.Tensor:
    return torch.where(kinds == CLS, 1, (kinds == SENTENCE).cumsum(1)) * (kinds != PAD)


@pytest.mark.parametrize("file", MASKS, ids=lambda file: file.stem)
def test_the_mask_is_the_official_one_and_without_its_fault(file: Path) -> None:
    case = load(file)
    types, kinds = case["token_type_ids"][None], case["token_kind"][None]
    assert torch.equal(types_of(kinds), types)
    assert torch.equal(sentence_starts(types), kinds == SENTENCE)
    assert torch.equal(sentence_mask(types, legacy=True)[0].long(), case["mask"])
    assert torch.equal(sentence_mask(types)[0].long(), case["mask_fixed"])


@pytest.mark.parametrize("file", MASKS, ids=lambda file: file.stem)
def test_a_plain_text_is_laid_out_as_the_official_sequence(file: Path) -> None:
    """From the same word pieces, those of longer sentences among them, with a [SEP] at the end of the report."""
    case = load(file)
    kinds, types = case["token_kind"], case["token_type_ids"]
    inner = (kinds == WORD) | (kinds == PIECE)
    ids = torch.cat([case["input_ids"][:1], case["input_ids"][inner], torch.tensor([99])])[None]
    sentences = torch.cat([torch.tensor([-1]), types[inner] - 1, torch.tensor([-1])])[None]
    words = torch.cat([torch.tensor([-1]), (kinds[inner] == WORD).cumsum(0) - 1, torch.tensor([-1])])[None]
    if kinds[-1] == SENTENCE:  # the words of the last sentence were cut: it has one
        ids[:, -1], sentences[:, -1], words[:, -1] = 98, types[-1] - 1, words.max() + 1
    text = TextBatch(ids, torch.ones_like(ids, dtype=torch.bool), word_ids=words, sentence_ids=sentences)
    limits = SentenceLimits(int(case["max_len_report"]), int(case["max_num_sentences"]), int(case["max_len_sentence"]))
    first = int(case["input_ids"][kinds == SENTENCE][0])
    found = lay_out(text, first, 0, limits)
    length = int(case["attention_mask"].sum())
    assert found.ids.shape == (1, length)
    assert torch.equal(found.ids[0], case["input_ids"][:length])
    assert torch.equal(found.types[0], types[:length])
    assert torch.equal(found.word_ids, laid(ids, kinds[None], types[None]).word_ids[:, :length])


@pytest.mark.parametrize("file", POOLED, ids=lambda file: file.stem)
def test_report_sentences_and_words_are_the_official_ones(file: Path) -> None:
    case = load(file)
    hidden, kinds = case["hidden"].requires_grad_(), case["token_kind"]
    levels = levels_of(hidden, laid(case["input_ids"], kinds, types_of(kinds)))
    sentences, words = levels.sentences.tokens[levels.sentences.mask], levels.words.tokens[levels.words.mask]
    for found, name in ((levels.report, "report"), (sentences, "sentence"), (words, "word")):
        torch.testing.assert_close(found, case[name], rtol=1e-6, atol=1e-12)
    assert levels.sentences.mask.sum(1).tolist() == case["sentences_per_text"].tolist()
    assert levels.words.mask.sum(1).tolist() == case["words_per_text"].tolist()
    loss = torch.stack([part.square().sum() for part in (levels.report, sentences, words)]).sum()
    check(loss, case, {"hidden": hidden}, name="loss")


REPORT = "The heart is large. No effusion. A nodule of 2.5 cm in the left lung. Bones are normal."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([REPORT, REPORT], 80)


def batch(tokenizer: Tokenizer, texts: list[str], max_tokens: int = 64) -> TextBatch:
    ids, mask, words = (torch.from_numpy(array) for array in tokenizer.encode(texts, max_tokens))
    return TextBatch(
        ids, mask, word_ids=words, sentence_ids=torch.from_numpy(tokenizer.sentence_ids(texts, max_tokens))
    )


def test_sentences_end_where_the_text_says_and_not_inside_a_number(tokenizer: Tokenizer) -> None:
    text = batch(tokenizer, [REPORT, "No effusion", ""])
    assert text.sentence_ids is not None
    assert text.sentence_ids.amax(1).tolist() == [3, 0, -1]
    third = text.ids[0][text.sentence_ids[0] == 2]
    assert tokenizer.decode(third.tolist()) == "a nodule of 2. 5 cm in the left lung."
    assert ((text.sentence_ids >= 0) == (text.word_ids >= 0)).all()


def test_a_text_is_laid_out_and_read_alone_as_in_a_batch(tokenizer: Tokenizer) -> None:
    limits = SentenceLimits(64, 50, 200)
    both = lay_out(batch(tokenizer, ["No effusion.", REPORT]), 80, 0, limits)
    alone = lay_out(batch(tokenizer, ["No effusion."]), 80, 0, limits)
    length = alone.ids.shape[1]
    assert alone.ids[0, 0] == batch(tokenizer, [""]).ids[0, 0]
    for name in ("ids", "types", "word_ids", "hidden"):
        assert torch.equal(getattr(both, name)[:1, :length], getattr(alone, name))
    assert not both.mask[0, length:].any()
    assert torch.equal(sentence_mask(both.types)[0, :length, :length], sentence_mask(alone.types)[0])


def test_limits_cut_tokens_sentences_and_reports(tokenizer: Tokenizer) -> None:
    text = batch(tokenizer, [REPORT])
    short = lay_out(text, 80, 0, SentenceLimits(64, 50, 5))
    assert [(short.types[0, 1:] == i).sum().item() for i in (1, 2, 3, 4)] == [4, 4, 4, 4]
    cut = lay_out(text, 80, 0, SentenceLimits(12, 50, 200))
    whole = lay_out(text, 80, 0, SentenceLimits(64, 50, 200))
    assert torch.equal(cut.ids, whole.ids[:, :12])
    few = lay_out(text, 80, 0, SentenceLimits(64, 2, 200))
    assert torch.equal(few.ids, whole.ids[:, : few.ids.shape[1]])
    assert few.types.max() == 2
    torch.manual_seed(0)
    drawn = [lay_out(text, 80, 0, SentenceLimits(64, 2, 200), draw=True) for _ in range(20)]
    kept = {tuple(sorted({int(word) for word in one.word_ids[0]} - {-1})) for one in drawn}
    assert len(kept) > 2
    for one in drawn:
        assert one.ids[0][sentence_starts(one.types)[0]].tolist() == [80, 81]
        inner = one.word_ids[0][one.word_ids[0] >= 0]
        assert (inner[1:] >= inner[:-1]).all()


def test_hidden_tokens_and_texts_without_words_keep_their_place(tokenizer: Tokenizer) -> None:
    text = batch(tokenizer, [REPORT, ""])
    text.hidden = (text.word_ids % 3 == 1) & (text.word_ids >= 0)
    found = lay_out(text, 80, 0, SentenceLimits(64, 50, 200))
    assert found.ids[found.hidden].tolist() == text.ids[text.hidden].tolist()
    assert found.types[1].tolist() == [1, *[0] * (found.ids.shape[1] - 1)]
    levels = levels_of(torch.randn(2, found.ids.shape[1], 3), found)
    assert not levels.sentences.mask[1].any()
    assert not levels.words.mask[1].any()
    empty = lay_out(batch(tokenizer, [""]), 80, 0, SentenceLimits(64, 50, 200))
    assert empty.types.tolist() == [[1]]

"""Word pieces become words: against a loop, with pads, special tokens and batch normalisation."""

from __future__ import annotations

import pytest
import torch

from medvlp.config.towers import ProjectionConfig
from medvlp.errors import UserError
from medvlp.models.projection import Projection
from medvlp.models.words import project_tokens, to_words
from medvlp.types import TextFeatures

# [CLS] two words of 1 and 3 pieces [SEP]; [CLS] one word [SEP]; nothing but [CLS] [SEP].
WORD_IDS = torch.tensor([[-1, 0, 1, 1, 1, -1], [-1, 0, -1, -1, -1, -1], [-1, -1, -1, -1, -1, -1]])
LENGTHS = torch.tensor([6, 3, 2])


def text() -> TextFeatures:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 6, 4, generator=generator)
    attention = torch.rand(3, 6, generator=generator)
    mask = torch.arange(6) < LENGTHS[:, None]
    return TextFeatures(tokens, tokens[:, 0], mask, WORD_IDS, attention)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize(("first", "last"), [(False, False), (True, False), (False, True), (True, True)])
def test_words_as_in_a_loop(first: bool, last: bool, reduce: str) -> None:
    given = text()
    words = to_words(given, first=first, last=last, reduce=reduce)
    for row in range(3):
        groups = [[0]] if first else []
        for word in range(int(WORD_IDS[row].max()) + 1):
            groups.append([i for i in range(6) if WORD_IDS[row, i] == word])
        groups += [[int(LENGTHS[row]) - 1]] if last else []
        assert int(words.mask[row].sum()) == len(groups)
        assert words.mask[row, : len(groups)].all()
        for slot, pieces in enumerate(groups):
            expected = given.tokens[row, pieces].sum(0) / (len(pieces) if reduce == "mean" else 1)
            torch.testing.assert_close(words.tokens[row, slot], expected)
            torch.testing.assert_close(words.attention[row, slot], given.cls_attention[row, pieces].sum())
    assert not words.tokens[~words.mask].any()
    assert not words.attention[~words.mask].any()
    assert words.mask.any(0).all()


def test_a_batch_gives_what_each_text_gives_alone() -> None:
    given, together = text(), to_words(text(), first=True)
    for row, length in enumerate(LENGTHS):
        part = (slice(row, row + 1), slice(int(length)))
        alone = to_words(
            TextFeatures(given.tokens[part], given.pooled[[row]], given.mask[part], WORD_IDS[part]), first=True
        )
        torch.testing.assert_close(together.tokens[row, together.mask[row]], alone.tokens[0])
        assert alone.attention is None


def test_texts_without_any_word() -> None:
    given = text()
    words = to_words(TextFeatures(given.tokens[2:], given.pooled[2:], given.mask[2:], WORD_IDS[2:]))
    assert words.mask.shape == (1, 0)
    assert words.tokens.shape == (1, 0, 4)


def test_texts_without_word_ids_are_refused() -> None:
    given = text()
    with pytest.raises(UserError, match="without word ids"):
        to_words(TextFeatures(given.tokens, given.pooled, given.mask))


def test_pads_enter_no_batch_normalisation() -> None:
    torch.manual_seed(0)
    projection = Projection(4, ProjectionConfig(dim=3, hidden=5, batch_norm="both")).train()
    words = to_words(text(), last=True)
    tokens = words.tokens.clone().requires_grad_()
    projected = project_tokens(projection, tokens, words.mask)
    assert not projected[~words.mask].any()
    torch.testing.assert_close(projected[words.mask], projection(words.tokens[words.mask]))
    projected[..., 0].sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad[~words.mask].any()
    assert tokens.grad[words.mask].any()

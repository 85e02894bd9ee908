"""Embeddings of fixed texts: computed once by a frozen tower, anew by one that trains."""

from __future__ import annotations

import torch

from medvlp.config.towers import TextTowerConfig
from medvlp.models.book import Book
from medvlp.models.text import TextTower
from medvlp.types import TextBatch

SIZES = {"hidden": 16, "layers": 1, "heads": 2, "max_tokens": 8, "dropout": 0.0}


def tokens() -> TextBatch:
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    return TextBatch(ids, ids > 0)


def tower(**fields: object) -> TextTower:
    torch.manual_seed(0)
    return TextTower(TextTowerConfig.model_validate(SIZES | fields), 32, 0)


def test_a_frozen_tower_is_asked_once_and_its_answers_are_saved() -> None:
    frozen = tower(freeze=True)
    book = Book(tokens(), frozen)
    expected = frozen(tokens()).pooled
    torch.testing.assert_close(book(frozen), expected)
    assert list(book.state_dict()) == ["vectors"]
    for parameter in frozen.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(book(frozen, torch.tensor([1])), expected[1:])
    assert not book(frozen).requires_grad


def test_a_saved_model_brings_its_answers() -> None:
    first = tower(freeze=True)
    saved = Book(tokens(), first)
    again = Book(tokens(), tower(freeze=True, architecture=first.architecture))
    assert again.vectors is not None
    assert again.vectors.isnan().all()
    again.load_state_dict(saved.state_dict(), strict=True)
    torch.testing.assert_close(again(first), saved(first))


def test_a_tower_that_trains_is_asked_anew() -> None:
    trained = tower()
    book = Book(tokens(), trained)
    assert not book.state_dict()
    before = book(trained)
    torch.testing.assert_close(before[1:], book(trained, torch.tensor([1])))
    before.sum().backward()
    assert trained.model.embeddings.word_embeddings.weight.grad.any()
    with torch.no_grad():
        trained.model.embeddings.word_embeddings.weight[5] = torch.randn(16)
    assert not torch.allclose(before[0], book(trained)[0])
    torch.testing.assert_close(before[1], book(trained)[1])

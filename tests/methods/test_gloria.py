"""GLoRIA as a whole: its terms by plain steps, pads, scoring, heat maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.methods.base import Method
from tests.methods.local_alignment import RESNET, batch, encode, method, texts, train_one_step, without_gradient

IMAGE = {**RESNET, "tap": "layer3", "upsample": None}
GROUPS = [[[1], [2, 3], [4]], [[1]], [[1, 2], [3]], [[1], [2]]]


def gloria(dim: int = 16, **fields: Any) -> Method:
    return method("gloria", IMAGE, text={"tokens": "last_4_sum"}, **{"projection": {"dim": dim}, **fields})


def words_of(tokens: torch.Tensor, row: int, first: bool) -> torch.Tensor:
    groups = ([[0]] if first else []) + GROUPS[row]
    return torch.stack([tokens[row, group].sum(0) for group in groups])


def matches(regions: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    attention = (4 * (words @ regions.T).softmax(0)).softmax(1)
    return 5 * functional.cosine_similarity(attention @ regions, words)


def test_the_terms_by_plain_steps() -> None:
    model, given = gloria().eval(), batch()
    features, text = model.encode_stored(given.pixels), model.encode_text(given.text)
    states = model.text_encoder.model(
        input_ids=given.text.ids, attention_mask=given.text.mask.long(), output_hidden_states=True
    ).hidden_states
    torch.testing.assert_close(text.tokens, torch.stack(states).sum(0))
    sentence = torch.stack([t[m].mean(0) for t, m in zip(text.tokens, given.text.mask, strict=True)])
    whole = 10 * model.project_image(features) @ functional.normalize(sentence, dim=1).T
    regions = model.region_projection(features.tokens)
    local = 10 * torch.stack(
        [
            torch.stack([matches(regions[i], words_of(text.tokens, t, first=True)).logsumexp(0) for t in range(4)])
            for i in range(4)
        ]
    )
    own, terms = torch.arange(4), model(given)
    for name, scores in (("global", whole), ("local", local)):
        expected = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
        torch.testing.assert_close(terms[name][0], expected)
        assert terms[name][1] == 8


def test_further_pads_change_nothing() -> None:
    model = gloria().eval()
    for name, (value, _) in model(batch(pads=3)).items():
        torch.testing.assert_close(value, model(batch())[name][0])


@pytest.mark.parametrize("dim", [16, 8])
def test_every_parameter_learns(dim: int) -> None:
    model = gloria(dim)
    assert isinstance(model.word_projection, torch.nn.Identity) == (dim == 16)
    train_one_step(model, batch())
    assert [name for name in without_gradient(model) if "key.bias" not in name] == []
    only = gloria(dim, objectives={"local": {"weight": 0.0}})
    assert set(only(batch())) == {"global"}


def test_answers_come_from_both_similarities() -> None:
    model, given = gloria().eval(), batch()
    with torch.no_grad():
        features, text = model.encode_stored(given.pixels), model.encode_text(texts())
        regions = model.region_projection(features.tokens)
        local = torch.stack(
            [torch.stack([matches(r, words_of(text.tokens, t, first=False)).max() for t in range(4)]) for r in regions]
        )
        similarity = (model.project_image(features) @ model.project_text(text).T + local) / 2
        for reduce, sides in (("max", similarity[:, :2].amax(1)), ("mean", similarity[:, :2].mean(1))):
            answers = model.zero_shot(features, [["0", "1"], ["2"]], [["3"], ["0"]], encode(model), reduce)
            expected = torch.stack([sides - similarity[:, 3], similarity[:, 2] - similarity[:, 0]], dim=1)
            torch.testing.assert_close(answers, (10 * expected).sigmoid())
        alone = model.zero_shot(model.encode_stored(given.pixels[:1]), [["0"]], [["3"]], encode(model))
        together = model.zero_shot(features, [["0"]], [["3"]], encode(model))
        torch.testing.assert_close(together[:1], alone)


def test_official_habits_of_scoring_are_switches() -> None:
    given = batch()
    answers = []
    for options in ({}, {"standardise_scores": True}, {"legacy_prompt_lengths": True}):
        model = gloria(options=options).eval()
        with torch.no_grad():
            features = model.encode_stored(given.pixels)
            answers.append(model.zero_shot(features, [["000"], ["1"]], [["3"], ["0000000000"]], encode(model)))
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


def test_the_heat_map_is_the_mean_cosine_with_the_words() -> None:
    model = gloria().eval()
    pixels = model.normalised(batch().pixels)
    with torch.no_grad():
        maps = model.heat_map(pixels, ["0", "1"], encode(model))
        features, text = model.encode_image(pixels), model.encode_text(texts())
        words = functional.normalize(words_of(text.tokens, 0, first=False), dim=1)
        regions = functional.normalize(model.region_projection(features.tokens)[2], dim=1)
    torch.testing.assert_close(maps[2, 0].flatten(), (regions @ words.T).mean(1))


def test_what_does_not_suit_is_refused() -> None:
    with pytest.raises(UserError, match="Use sum or mean"):
        gloria(objectives={"local": {"reduce": "max"}})
    with pytest.raises(UserError, match="Give a number above 0"):
        gloria(objectives={"global": {"scale": 0.0}})
    given = batch()
    given.text.word_ids = None
    with pytest.raises(UserError, match="without word ids"):
        gloria()(given)

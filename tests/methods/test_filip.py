"""FILIP as a whole: its term by plain steps, pads, scoring, heat maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.methods.base import Method
from tests.methods.local_alignment import VIT, batch, encode, method, texts, train_one_step, without_gradient


def filip(top_k: int = 0, **fields: Any) -> Method:
    return method("filip", VIT, objectives={"token_max": {"top_k": top_k}}, **fields)


def unit_tokens(model: Method, pixels: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    text = model.encode_text(texts())
    words = [model.text_projection.layers(t[m]) for t, m in zip(text.tokens, text.mask, strict=True)]
    patches = list(model.image_projection.layers(model.encode_stored(pixels).tokens))
    return ([functional.normalize(x, dim=1) for x in part] for part in (patches, words))


def test_the_term_by_plain_steps() -> None:
    model, given = filip().eval(), batch()
    patches, words = unit_tokens(model, given.pixels)
    by_image = torch.stack([torch.stack([(p @ w.T).amax(1).mean() for w in words]) for p in patches]) / 0.07
    by_text = torch.stack([torch.stack([(w @ p.T).amax(1).mean() for p in patches]) for w in words]) / 0.07
    own = torch.arange(4)
    expected = (functional.cross_entropy(by_image, own) + functional.cross_entropy(by_text, own)) / 2
    value, count = model(given)["token_max"]
    torch.testing.assert_close(value, expected)
    assert count == 8
    assert filip(top_k=2).eval()(given)["token_max"][0] != value


def test_further_pads_change_nothing_but_in_the_official_way() -> None:
    for legacy in (False, True):
        model = filip(options={"legacy_pads": legacy}).eval()
        with_pads, without = (float(model(batch(pads=pads))["token_max"][0].detach()) for pads in (3, 0))
        assert (with_pads == pytest.approx(without, rel=1e-5)) != legacy


def test_every_parameter_learns_and_the_scale_stays_in_bounds() -> None:
    model = filip(top_k=3)
    train_one_step(model, batch())
    assert [name for name in without_gradient(model) if "key.bias" not in name] == []
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert float(model.logit_scale.detach()) == pytest.approx(100.0, rel=1e-4)
    assert float(model.log_scale.detach()) == pytest.approx(math.log(100.0))


def test_answers_are_the_mean_of_both_directions() -> None:
    model, given = filip().eval(), batch()
    with torch.no_grad():
        patches, words = unit_tokens(model, given.pixels)
        scores = torch.stack(
            [torch.stack([((p @ w.T).amax(1).mean() + (w @ p.T).amax(1).mean()) / 2 for w in words]) for p in patches]
        )
        answers = model.zero_shot(model.encode_stored(given.pixels), [["0", "1"]], [["2"]], encode(model), "max")
    expected = ((scores[:, :2].amax(1) - scores[:, 2]) / 0.07).sigmoid()
    torch.testing.assert_close(answers[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_heat_map_is_the_mean_cosine_with_the_words() -> None:
    model = filip().eval()
    pixels = batch().pixels
    with torch.no_grad():
        maps = model.heat_map(model.normalised(pixels), ["1", "0"], encode(model))
        patches, words = unit_tokens(model, pixels)
    torch.testing.assert_close(maps[2, 1].flatten(), (patches[2] @ words[0][1:-1].T).mean(1))


def test_what_does_not_suit_is_refused() -> None:
    with pytest.raises(UserError, match="or 0 for all"):
        filip(top_k=-1)
    with pytest.raises(UserError, match="Give a number above 0"):
        method("filip", VIT, objectives={"token_max": {"temperature": 0.0}})
    with pytest.raises(UserError, match="matryoshka"):
        filip(matryoshka={"prefixes": [4, 8]})

"""FDT as a whole: its term by plain steps, pads, the temperature and its place in the state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.methods.base import Method, Progress
from medvlp.models.codebook import sparsemax
from tests.methods.local_alignment import VIT, batch, encode, method, train_one_step, without_gradient

FALLING = {"start": 2.0, "factor": 0.1, "every": 10, "lowest": 0.05}


def fdt(**options: Any) -> Method:
    options = {"codebook": {"entries": 12}, "temperature": FALLING, **options}
    return method("fdt", VIT, options=options)


def mixture(model: Method, queries: torch.Tensor, temperature: float) -> torch.Tensor:
    scores = (queries @ model.codebook.entries.T).amax(0) / 8**0.5 / temperature
    return functional.normalize(sparsemax(scores[None]) @ model.codebook.entries, dim=1)[0]


def test_the_term_by_plain_steps() -> None:
    model, given = fdt().eval(), batch()
    model.begin_step(Progress(5, 100, 10))
    temperature = 2.0 * 0.1**0.5
    text = model.encode_text(given.text)
    images = [mixture(model, model.image_query(t), temperature) for t in model.encode_stored(given.pixels).tokens]
    texts = [mixture(model, model.text_query(t[m]), temperature) for t, m in zip(text.tokens, text.mask, strict=True)]
    scores, own = torch.stack(images) @ torch.stack(texts).T / 0.07, torch.arange(4)
    expected = (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2
    value, count = model(given)["info_nce"]
    torch.testing.assert_close(value, expected)
    assert count == 8


def test_further_pads_change_nothing_but_in_the_official_way() -> None:
    for legacy in (False, True):
        model = fdt(legacy_pads=legacy).eval()
        with torch.no_grad():
            for parameter in model.text_query.parameters():
                parameter.abs_()
            model.codebook.entries.copy_(-model.codebook.entries.abs())
        few = model.project_text(model.encode_text(batch().text))
        many = model.project_text(model.encode_text(batch(pads=3).text))
        assert torch.allclose(few[0], many[0], atol=1e-6) != legacy


def test_every_parameter_learns() -> None:
    model = fdt(temperature={**FALLING, "factor": 1.0})
    train_one_step(model, batch())
    assert [name for name in without_gradient(model) if "key.bias" not in name] == []


def test_the_temperature_follows_the_step_and_comes_back_with_the_weights() -> None:
    model = fdt()
    expected = {0: 2.0, 10: 0.2, 1000: 0.05}
    for step, temperature in expected.items():
        model.begin_step(Progress(step, 2000, 10))
        assert float(model.temperature) == pytest.approx(temperature)
    loaded = fdt()
    loaded.load_state_dict(model.state_dict(), strict=True)
    assert float(loaded.temperature) == pytest.approx(0.05)
    assert float(fdt(temperature={"start": 1000.0, "factor": 1.0}).temperature) == 1000.0


def test_answers_are_probabilities_and_heat_maps_have_the_grid() -> None:
    model, given = fdt().eval(), batch()
    with torch.no_grad():
        features = model.encode_stored(given.pixels)
        answers = model.zero_shot(features, [["0"], ["1"]], [["2"], ["3"]], encode(model))
    images, texts = model.project_image(features), model.project_text(encode(model)(["0", "2"]))
    expected = (images @ texts.T / 0.07).softmax(1)[:, 0]
    torch.testing.assert_close(answers[:, 0], expected.detach(), rtol=1e-4, atol=1e-5)
    assert model.heat_map(model.normalised(given.pixels), ["0"], encode(model)).shape == (4, 1, *features.grid)


def test_what_does_not_suit_is_refused() -> None:
    with pytest.raises(UserError, match="Use sparsemax or softmax"):
        fdt(codebook={"entries": 12, "attention": "entmax"})
    for options in ({"codebook": {"entries": 0}}, {"temperature": {"lowest": 0.0}}):
        with pytest.raises(UserError, match="Give a number above 0"):
            fdt(**options)

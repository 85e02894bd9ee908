"""REFERS as a whole: its terms by plain steps, pads, views, single images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.methods.base import Method
from tests.methods.local_alignment import RESNET, VIT, batch, encode, method, train_one_step, without_gradient

DECODER = {"hidden": 16, "layers": 1, "heads": 2, "dropout": 0.0}


def refers(dim: int = 32, **fields: Any) -> Method:
    options = {"views": 2, "decoder": DECODER, **fields.pop("options", {})}
    return method("refers", VIT, text={"pool": "pooler"}, projection={"dim": dim}, options=options, **fields)


def test_the_terms_by_plain_steps() -> None:
    model, given = refers().eval(), batch(views=2)
    views = [model.encode_stored(given.study[:, view]) for view in range(2)]
    study = functional.normalize(torch.cat([view.pooled for view in views], dim=1), dim=1)
    text = functional.normalize(model.text_projection.layers(model.encode_text(given.text).pooled), dim=1)
    scores, own = study @ text.T / 0.1, torch.arange(4)
    expected = 0.75 * functional.cross_entropy(scores, own) + 0.25 * functional.cross_entropy(scores.T, own)
    terms = model(given)
    torch.testing.assert_close(terms["info_nce"][0], expected)
    patches = [view.tokens + view.pooled[:, None] for view in views]
    weights = model.fusion.weight(torch.cat(patches, dim=2)).sigmoid()
    memory = torch.cat([patch * weights[..., [view]] for view, patch in enumerate(patches)], dim=1)
    total, number = torch.zeros(()), 0
    for row in range(4):
        ids = given.text.ids[row][given.text.mask[row]][None]
        logits = model.decoder(ids, torch.ones_like(ids, dtype=torch.bool), memory[[row]])[0, :-1]
        total = total + functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        number += len(logits)
    torch.testing.assert_close(terms["captioning"][0], total / number)
    assert terms["captioning"][1] == number
    assert terms["info_nce"][1] == 8


def test_further_pads_change_nothing() -> None:
    model = refers().eval()
    for name, (value, _) in model(batch(pads=3, views=2)).items():
        torch.testing.assert_close(value, model(batch(views=2))[name][0])


@pytest.mark.parametrize("dim", [32, 8])
def test_every_parameter_learns(dim: int) -> None:
    model = refers(dim)
    assert isinstance(model.image_projection, torch.nn.Identity) == (dim == 32)
    train_one_step(model, batch(views=2))
    # The bias of keys cancels in a softmax.
    assert [name for name in without_gradient(model) if "key.bias" not in name] == []


def test_the_official_text_term_has_a_value_and_no_gradient() -> None:
    legacy, ours = refers(options={"legacy_constant_text_term": True}), refers()
    given = batch(views=2)
    terms = [model.eval()(given)["info_nce"] for model in (legacy, ours)]
    torch.testing.assert_close(terms[0][0], terms[1][0])
    assert terms[0][1] == terms[1][1]
    for value, _ in terms:
        value.backward()
    assert not torch.allclose(legacy.text_projection.layers.weight.grad, ours.text_projection.layers.weight.grad)


def test_a_single_image_stands_for_all_views() -> None:
    model, given = refers().eval(), batch()
    with torch.no_grad():
        features = model.encode_stored(given.pixels)
        twice = functional.normalize(torch.cat([features.pooled, features.pooled], dim=1), dim=1)
        torch.testing.assert_close(model.project_image(features), twice)
        answers = model.zero_shot(features, [["0"]], [["1"]], encode(model))
        texts = model.project_text(encode(model)(["0", "1"]))
    torch.testing.assert_close(answers[:, 0], (10 * twice @ texts.T).softmax(1)[:, 0])


def test_the_text_tower_has_its_own_rate() -> None:
    assert refers(options={"text_lr_ratio": 0.2}).learning_rate_factors() == {"text_encoder.": 0.2}


def test_what_does_not_suit_is_refused() -> None:
    for given in (batch(), batch(views=3)):
        with pytest.raises(UserError, match="2 images of each study"):
            refers()(given)
    with pytest.raises(UserError, match="one view or more"):
        refers(options={"views": 0})
    with pytest.raises(UserError, match="truncate"):
        method("refers", {**RESNET, "tap": "layer2"}, text={"pool": "pooler"}, options={"decoder": DECODER})
